"""
What the gradients of each estimator are worth at four stages of training, by `sb3-reinforce gradients`.

Each environment is trained once with its entry in hyperparams/reinforce.yml, but for at most 300,000 steps. The measured
checkpoints have training returns nearest to given parts of the way from the first to the best. Finished runs are not repeated.

    python benchmarks/laboratory.py
    python benchmarks/laboratory.py --env HalfCheetah-v5 --episodes 200 --estimators to-go-critic to-go-refit gae-0.95
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import yaml
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_reinforce.zoo.cli import main as run_command

NAME = "laboratory"
ENVIRONMENTS = ["CartPole-v1", "LunarLander-v3", "Hopper-v5"]
ESTIMATORS = ["lecture", "to-go-control-variates", "gae-0.99", "gae-0.97", "gae-0.95"]
MAX_TIMESTEPS = 300_000
#: Estimator that the noise is relative to.
REFERENCE = "to-go-critic"
#: The entry of CartPole-v1 has no critic, and the table shall have its row.
OVERRIDES = {"CartPole-v1": ["baseline:'value'"]}
#: Early, half-way, nearly solved: parts of the way from the first to the best training return.
PARTS = (0.1, 0.5, 0.9)
N_CHECKPOINTS = 20
WINDOW = 20
CHECKPOINT = "rl_model_{}_steps.zip"


def run(words: Sequence[str]) -> None:
    if run_command(words) != 0:
        sys.exit(1)


def train(env_id: str, seed: int, n_timesteps: int | None, folder: Path) -> Path:
    """Train through RL Zoo, unless that is done, and return the folder of the run with its checkpoints."""
    run_folder = folder / "reinforce" / f"{env_id}_1"
    if (run_folder / f"{env_id}.zip").exists():
        return run_folder
    shutil.rmtree(folder, ignore_errors=True)
    entry = yaml.safe_load((common.REPOSITORY / "hyperparams" / "reinforce.yml").read_text())[env_id]
    steps = n_timesteps or min(int(entry["n_timesteps"]), MAX_TIMESTEPS)
    checkpoints = {
        "save_freq": max(steps // N_CHECKPOINTS // entry.get("n_envs", 1), 1),
        "save_path": str(run_folder),
        "save_vecnormalize": True,
    }
    words = ["train", "--env", env_id, "--seed", str(seed), "-n", str(steps), "-f", str(folder), "--device", "cpu"]
    words += ["--eval-freq", "-1", "--num-threads", "1", "--verbose", "0", "-params", *OVERRIDES.get(env_id, [])]
    run([*words, f"callback:[{{'stable_baselines3.common.callbacks.CheckpointCallback': {checkpoints}}}]"])
    return run_folder


def read_returns(run_folder: Path) -> dict[int, float]:
    """Read the mean return of the last episodes before each checkpoint, as its model notes them."""
    returns = {}
    for path in run_folder.glob(CHECKPOINT.format("*")):
        # The Monitor files lack the steps of unfinished episodes, so that their step is not that of the training
        content, _, _ = load_from_zip_file(path)
        episodes = [episode["r"] for episode in content["ep_info_buffer"]][-WINDOW:]  # type: ignore[index]
        if episodes:
            returns[int(path.stem.split("_")[-2])] = float(np.mean(episodes))
    return returns


def choose_stages(returns: dict[int, float]) -> list[int]:
    """Choose checkpoints by how far training has come, in the order of the training, each once."""
    steps = sorted(returns)
    first, best = returns[steps[0]], max(returns.values())
    chosen: list[int] = []
    for part in PARTS:
        left = [step for step in steps if not chosen or step > chosen[-1]]
        if left:
            wanted = first + part * (best - first)
            chosen.append(min(left, key=lambda step: abs(returns[step] - wanted)))
    return chosen


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--env", nargs="+", default=ENVIRONMENTS, help="environments")
    parser.add_argument("--seed", type=int, default=0, help="of training and measurement")
    parser.add_argument("--n-timesteps", type=common.positive_int, help="of each training")
    parser.add_argument("--estimators", nargs="+", default=ESTIMATORS, help="as `sb3-reinforce gradients` takes them")
    parser.add_argument("--episodes", type=common.positive_int, default=300, help="episodes of each measurement")
    parser.add_argument("--batch", type=common.positive_int, default=16, help="episodes of an update")
    parser.add_argument("--folder", type=Path, default=common.LOGS_DIR / NAME, help="folder of trainings and reports")
    options = parser.parse_args(arguments)
    path = options.results_dir / f"{NAME}.csv"
    for env_id in [] if options.report_only else options.env:
        provenance = common.make_provenance(NAME, arguments)
        budget = "entry" if options.n_timesteps is None else f"{options.n_timesteps}"
        run_folder = train(env_id, options.seed, options.n_timesteps, options.folder / f"{env_id}_{budget}_seed{options.seed}")
        stages = choose_stages(read_returns(run_folder))
        models = [os.path.relpath(run_folder / CHECKPOINT.format(step)) for step in stages]
        report = options.folder / "reports" / env_id
        words = ["gradients", "--env", env_id, "--untrained", "--model", *models, "--episodes", str(options.episodes)]
        words += ["--estimators", *options.estimators]
        run([*words, "--batch", str(options.batch), "--seed", str(options.seed), "-o", os.path.relpath(report)])
        table = pd.read_csv(report / "gradients.csv").assign(**provenance)
        table.insert(0, "env", env_id)
        results = common.replace_rows(common.read_results(path, ["env"]), table, ["env"])
        common.write_results(path, results, make_page(results))
    if options.report_only:
        results = common.read_results(path)
        common.write_results(path, results, make_page(results))


def make_page(results: pd.DataFrame) -> str:
    parts = [
        "# What gradients are worth",
        "Gradient noise scale in episodes with a 90 % interval: a batch of this many episodes has as much signal as noise. "
        "`sb3-reinforce gradients` measured all estimators of a model on the same episodes; docs/laboratory.md explains the "
        "estimators and numbers. In brackets the bias: the distance between the expected gradients of the estimator and of "
        "the best unbiased estimator, in per cent of the latter's length, where its interval excludes 0 (as for one in twenty "
        "unbiased estimators). [?]: too few episodes carry the gradient for an interval. Means are of the undiscounted "
        "returns.",
    ]
    for env_id, of_env in results.groupby("env", sort=False):
        plain = of_env[of_env["estimator"] == REFERENCE].set_index("model")["noise"]
        scales, noises = [], []
        for estimator, own in of_env.groupby("estimator", sort=False):
            measured = {f"{row['model']}, mean {row['mean_return']:.0f}": row for row in own.to_dict("records")}
            scales.append({"estimator": estimator} | {label: write_scale(row) for label, row in measured.items()})
            noises.append(
                {"estimator": estimator}
                | {label: f"{row['noise'] / plain[row['model']]:.2f}" for label, row in measured.items() if len(plain)}
            )
        parts += [f"## {env_id}", common.make_table(scales)]
        if len(plain):
            parts += [f"Noise (trace of the covariance) relative to {REFERENCE}:", common.make_table(noises)]
    return common.make_page(parts, results)


def write_scale(row: Mapping[Any, Any]) -> str:
    """Write the noise scale with its interval, and the bias where it can be told from zero."""
    scale, low, high = (write_number(row[name]) for name in ("episodes", "episodes_low", "episodes_high"))
    bias = f" ({100 * row['bias'] ** 0.5:.0f} %)" if row["bias_low"] > 0.0 else ""
    # No interval where too few episodes carry the gradient
    return f"{scale} [{low}, {high}]{bias}" if np.isfinite(row["episodes_low"]) else f"{scale} [?]"


def write_number(value: float) -> str:
    """Write a number with two digits or as an integer; a missing bound of the interval is infinite."""
    return f"{value:,.2g}" if value < 10.0 else f"{value:,.0f}" if np.isfinite(value) else "no bound"


if __name__ == "__main__":
    main(sys.argv[1:])
