"""
One run of zoo_table.py, in a process of its own: trains through RL Zoo, evaluates, and writes run.json into its folder.

The first line of standard input says what to train; the process ends when its standard input is closed.
"""

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import evaluate_run
import numpy as np
import psutil
import yaml
from common import code_hash, git_commit, write_json, write_text

from sb3_reinforce.zoo.commands import train
from sb3_reinforce.zoo.compare.run import end_with_parent

RESULT = "run.json"
#: Added to a seed for its evaluation, so that the episodes are not those of the training.
EVALUATION_SEED = 10_000


def train_and_evaluate(
    folder: Path, env: str, seed: int, entry: dict[str, Any], vec_env: str, episodes: int, deterministic: bool
) -> dict[str, Any]:
    # What is trained is what was asked for, whatever happens to the file of hyperparameters in the meantime
    config = folder / "hyperparams.yml"
    write_text(config, yaml.safe_dump({env: entry}))
    # Those of this run: the sources may change while the others are running
    sources = {"git_commit": git_commit(), "code_hash": code_hash()}
    arguments = ["--env", env, "--seed", str(seed), "-f", str(folder), "--conf-file", str(config)]
    train([*arguments, "--eval-freq", "-1", "--device", "cpu", "--num-threads", "1", "--vec-env", vec_env])
    training_seconds = time.time() - psutil.Process().create_time()

    arguments = ["--log-folder", str(folder), "--env", env, "--episodes", str(episodes)]
    sampling = [] if deterministic else ["--stochastic"]
    evaluate_run.main([*arguments, "--seed", str(EVALUATION_SEED + seed), *sampling])
    evaluation = json.loads((folder / evaluate_run.RESULT).read_text())
    if evaluation["trained_steps"] < int(entry["n_timesteps"]):
        raise SystemExit(f"only {evaluation['trained_steps']:,} of {int(entry['n_timesteps']):,} steps were trained")
    return {
        "mean": float(np.mean(evaluation["scores"])),
        "std_over_episodes": float(np.std(evaluation["scores"])),
        "training_seconds": training_seconds,
        "vec_env": vec_env,
        "deterministic": deterministic,
        **evaluation,
        "sources": sources,
    }


if __name__ == "__main__":
    instructions = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        result = train_and_evaluate(folder, **instructions)
    write_json(folder / RESULT, result)
