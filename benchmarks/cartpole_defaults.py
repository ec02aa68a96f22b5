"""
CartPole-v1 with the defaults of the class: train 100,000 steps with each of twenty seeds, then evaluate.

Each finished seed is written at once. Run again, only those are trained that are missing, or that were trained by other
sources of the package or with other options.

    python benchmarks/cartpole_defaults.py --jobs 2
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import numpy as np
from common import (
    code_hash,
    make_parser,
    markdown_table,
    positive_int,
    provenance,
    provenance_line,
    read_json,
    write_results,
)
from tqdm import tqdm

NAME = "cartpole_defaults"
ENV = "CartPole-v1"
#: Added to a seed for its evaluation, so that the episodes are not those of the training.
EVALUATION_SEED = 10_000


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20)), help="seeds to train with")
    parser.add_argument("--timesteps", type=positive_int, default=100_000, help="total_timesteps of each training")
    parser.add_argument("--episodes", type=positive_int, default=20, help="deterministic episodes of each evaluation")
    parser.add_argument("--threshold", type=float, default=475.0, help="mean score that counts as solved")
    parser.add_argument("--jobs", type=positive_int, default=2, help="seeds that are trained at a time")
    return parser.parse_args(arguments)


def train_seed(seed: int, timesteps: int, n_episodes: int) -> dict[str, Any]:
    import torch as th
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    from sb3_reinforce import REINFORCE

    th.set_num_threads(1)
    start = time.perf_counter()
    model = REINFORCE("MlpPolicy", ENV, seed=seed, device="cpu").learn(timesteps)
    seconds = time.perf_counter() - start
    evaluation_env = make_vec_env(ENV, seed=EVALUATION_SEED + seed)
    scores, _ = evaluate_policy(model, evaluation_env, n_episodes, deterministic=True, return_episode_rewards=True)
    return {
        "seed": seed,
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores)),
        "scores": [float(score) for score in scores],  # type: ignore[union-attr]
        "steps": model.num_timesteps,
        "training_seconds": seconds,
    }


def train_seeds(seeds: Sequence[int], timesteps: int, n_episodes: int, jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from (train_seed(seed, timesteps, n_episodes) for seed in seeds)
        return
    # A forked process may hang in PyTorch
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_seed, seed, timesteps, n_episodes) for seed in seeds]):
            yield future.result()


def to_markdown(content: dict[str, Any]) -> str:
    runs, settings = content["runs"], content["settings"]
    n_solved = sum(run["mean"] >= content["threshold"] for run in runs)
    table = markdown_table(
        [
            {
                "seed": run["seed"],
                "mean score": f"{run['mean']:.1f}",
                "std": f"{run['std']:.1f}",
                "training seconds": f"{run['training_seconds']:.0f}",
            }
            for run in runs
        ]
    )
    return (
        f"# {ENV} with default hyperparameters\n\n"
        f'`REINFORCE("MlpPolicy", "{ENV}", seed=s).learn({settings["timesteps"]:_})`, then {settings["episodes"]} '
        f"deterministic episodes of the final model.\n\n{table}\n\n"
        f"**{n_solved} of {len(runs)} seeds reach {content['threshold']:g}.**\n\n{provenance_line(content['provenance'])}\n"
    )


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    settings = {"code_hash": code_hash(), "timesteps": options.timesteps, "episodes": options.episodes}
    earlier = read_json(options.results_dir / f"{NAME}.json")
    finished = {run["seed"]: run for run in earlier["runs"]} if earlier.get("settings") == settings else {}
    missing = [seed for seed in options.seeds if seed not in finished]

    made_by = provenance(NAME, arguments, options.seeds)
    content = {"provenance": made_by, "settings": settings, "threshold": options.threshold}

    def write() -> None:
        content["runs"] = [finished[seed] for seed in sorted(finished)]
        write_results(options.results_dir, NAME, content, to_markdown(content))

    with tqdm(total=len(options.seeds), initial=len(options.seeds) - len(missing), desc=ENV, unit="seed") as progress:
        for run in train_seeds(missing, options.timesteps, options.episodes, options.jobs):
            finished[run["seed"]] = run
            progress.set_postfix_str(f"seed {run['seed']}: {run['mean']:.0f}")
            progress.update()
            write()
    write()
    print(to_markdown(content))


if __name__ == "__main__":
    main(sys.argv[1:])
