"""
CartPole-v1 with the defaults of the class: train 100,000 steps with each of twenty seeds, then evaluate.

Each finished seed is written at once. Run again, only those are trained that are missing, or that were trained by other
sources of the package.

    python benchmarks/cartpole_defaults.py
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import common
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from tqdm import tqdm

from sb3_reinforce import REINFORCE

NAME = "cartpole_defaults"
ENV = "CartPole-v1"
#: Added to a seed for its evaluation, so that the episodes are not those of the training.
EVALUATION_SEED = 10_000
THRESHOLD = 475.0


def train(seed: int, timesteps: int, n_episodes: int) -> dict[str, Any]:
    start = time.perf_counter()
    model = REINFORCE("MlpPolicy", ENV, seed=seed, device="cpu").learn(timesteps)
    seconds = time.perf_counter() - start
    env = make_vec_env(ENV, seed=EVALUATION_SEED + seed)
    scores, _ = evaluate_policy(model, env, n_episodes, return_episode_rewards=True)
    scores = {"score": np.mean(scores), "score_std": np.std(scores)}
    return {"seed": seed, "steps": model.num_timesteps, "seconds": seconds, **scores}


def make_page(results: pd.DataFrame) -> str:
    results = results.sort_values("seed")
    rows = [
        {"seed": row.seed, "score": f"{row.score:.1f}", "deviation": f"{row.score_std:.1f}", "seconds": f"{row.seconds:.0f}"}
        for row in results.itertuples()
    ]
    parts = [
        f"# {ENV} with default hyperparameters",
        f'`REINFORCE("MlpPolicy", "{ENV}", seed=s).learn(100_000)`, then 20 deterministic episodes of the final model.',
        common.make_table(rows),
        f"**{(results['score'] >= THRESHOLD).sum()} of {len(results)} seeds reach {THRESHOLD:g}.**",
        "## What made the runs",
        common.describe_provenance(results),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20)), help="seeds to train with")
    parser.add_argument("--timesteps", type=common.positive_int, default=100_000, help="total_timesteps of each training")
    parser.add_argument("--episodes", type=common.positive_int, default=20, help="deterministic episodes of each evaluation")
    options = parser.parse_args(arguments)
    th.set_num_threads(1)
    path = options.results_dir / f"{NAME}.csv"
    results = common.read_results(path, ["seed", "sources"])
    provenance = common.make_provenance(NAME, arguments)
    finished = set(results.loc[results["sources"] == provenance["sources"], "seed"])
    for seed in [] if options.report_only else tqdm([seed for seed in options.seeds if seed not in finished], desc=ENV):
        run = train(seed, options.timesteps, options.episodes)
        results = common.replace_rows(results, pd.DataFrame([run | provenance]), ["seed"])
        common.write_results(path, results, make_page(results))
    common.write_results(path, results, make_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
