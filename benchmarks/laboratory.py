"""
What the gradients of each estimator are worth at four stages of a training, by `sb3-reinforce gradients`.

Each environment is trained once with its entry in hyperparams/reinforce.yml; of twenty checkpoints those are measured whose
training returns are nearest to given parts of the way from the first to the best. What is trained or measured is not done
again.

    python benchmarks/laboratory.py
    python benchmarks/laboratory.py --env CartPole-v1 --episodes 1000
"""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import code_hash, make_parser, positive_int, provenance, read_json, write_json
from contenders import use_one_thread
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.cli import main as run_command
from sb3_reinforce.zoo.compare.plan import make_manager

NAME = "laboratory"
ENVIRONMENTS = ["CartPole-v1", "LunarLander-v3", "Hopper-v5"]
#: The entry of CartPole-v1 has no critic, and the table shall have its row.
OVERRIDES: dict[str, dict[str, Any]] = {"CartPole-v1": {"baseline": "value"}}
#: Early, half-way, nearly solved: parts of the way from the first to the best training return.
PARTS = (0.1, 0.5, 0.9)
N_CHECKPOINTS = 20
WINDOW = 20


class Checkpoints(BaseCallback):
    """Saves models with the statistics that they see the world through, and the mean return of the last episodes."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__()
        self.folder = folder
        self.every = every
        self.next = 0
        self.returns: dict[int, float] = {}

    def _on_rollout_start(self) -> None:
        if self.num_timesteps < self.next:
            return
        self.next += self.every
        self.model.save(self.folder / f"rl_model_{self.num_timesteps}_steps.zip")
        normalize = unwrap_vec_normalize(self.model.get_env())
        if normalize is not None:
            normalize.save(str(self.folder / f"rl_model_vecnormalize_{self.num_timesteps}_steps.pkl"))
        episodes = list(self.model.ep_info_buffer or [])[-WINDOW:]
        if episodes:
            self.returns[self.num_timesteps] = float(np.mean([episode["r"] for episode in episodes]))

    def _on_step(self) -> bool:
        return True


def train(env_id: str, seed: int, folder: Path, n_timesteps: int) -> Path:
    """Train once with the same settings and sources, and return the folder of the checkpoints with their returns."""
    done = folder / f"{env_id}.json"
    register()
    with contextlib.redirect_stdout(io.StringIO()):
        manager = make_manager(
            env_id, "reinforce", None, seed, str(folder), n_timesteps, overrides=dict(OVERRIDES.get(env_id, {}))
        )
        entry, _ = manager.read_hyperparameters()
        settings = {"n_timesteps": n_timesteps, "entry": str(dict(sorted(entry.items()))), "code_hash": code_hash()}
        if (finished := read_json(done)).get("settings") == settings:
            return Path(finished["folder"])
        experiment = manager.setup_experiment()
        assert experiment is not None
        model, _ = experiment
        callback = Checkpoints(Path(manager.save_path), max(1, manager.n_timesteps // N_CHECKPOINTS))
        manager.callbacks.append(callback)
        manager.learn(model)
        manager.save_trained_model(model)
    write_json(done, {"folder": manager.save_path, "returns": callback.returns, "settings": settings})
    return Path(manager.save_path)


def choose_stages(returns: dict[int, float]) -> list[int]:
    """Choose checkpoints by how far training has come, in the order of the training, each once."""
    steps = sorted(returns)
    first, best = returns[steps[0]], max(returns.values())
    chosen = []
    for part in PARTS:
        left = [step for step in steps if not chosen or step > chosen[-1]]
        if left:
            wanted = first + part * (best - first)
            chosen.append(min(left, key=lambda step: abs(returns[step] - wanted)))
    return chosen


def main(arguments: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--env", nargs="+", default=ENVIRONMENTS, help="environments")
    parser.add_argument("--seed", type=int, default=0, help="of training and measurement")
    parser.add_argument(
        "--n-timesteps", type=positive_int, default=None, help="of each training; by default those of the entry"
    )
    parser.add_argument("--episodes", type=positive_int, default=500, help="episodes of each measurement")
    parser.add_argument("--batch", type=positive_int, default=16, help="episodes of an update")
    parser.add_argument("--folder", type=Path, default=Path("logs", NAME), help="folder of the trainings")
    options = parser.parse_args(arguments)
    use_one_thread()
    for env_id in options.env:
        output = options.results_dir / NAME / env_id
        asked = {
            "episodes": options.episodes,
            "batch": options.batch,
            "seed": options.seed,
            "n_timesteps": options.n_timesteps,
        }
        if read_json(output / "provenance.json").get("asked") == asked:
            continue
        made_by = provenance(NAME, arguments, [options.seed])
        folder = train(env_id, options.seed, options.folder / f"seed{options.seed}", options.n_timesteps or 0)
        returns = {int(step): value for step, value in read_json(folder.parents[1] / f"{env_id}.json")["returns"].items()}
        models = [os.path.relpath(folder / f"rl_model_{step}_steps.zip") for step in (0, *choose_stages(returns))]
        unfinished = output.with_name(f".{output.name}.unfinished")
        command = ["gradients", "--env", env_id, "--model", *models, "--episodes", str(options.episodes)]
        command += ["--batch", str(options.batch), "--seed", str(options.seed), "-o", os.path.relpath(unfinished)]
        if run_command(command) != 0:
            sys.exit(1)
        write_json(unfinished / "provenance.json", {"asked": asked, "made_by": made_by, "training_returns": returns})
        shutil.rmtree(output, ignore_errors=True)
        unfinished.replace(output)


if __name__ == "__main__":
    main(sys.argv[1:])
