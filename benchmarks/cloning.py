"""
Clones of an expert on CartPole-v1, from part of one of its episodes, for docs/lectures/imitation.md.

    python benchmarks/cloning.py
"""

import sys
from collections.abc import Sequence
from typing import Any

import common
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.lab import clone, demonstrate

NAME = "cloning"
ENV = "CartPole-v1"
N_STEPS = (20, 50, 100, 500)
#: Added to a seed for the evaluation, so that the episodes are not those of the training.
EVALUATION_SEED = 10_000


def measure(seed: int, n_timesteps: int, n_episodes: int) -> list[dict[str, Any]]:
    """Train an expert, clone it from different numbers of steps, and score the clones."""
    expert = REINFORCE("MlpPolicy", ENV, seed=seed).learn(n_timesteps)
    shown = demonstrate(expert, make_vec_env(ENV, 1), n_episodes=1, seed=seed)
    env: VecEnv = make_vec_env(ENV, 8)
    rows = []
    for n_steps in N_STEPS:
        pupil = REINFORCE("MlpPolicy", ENV, seed=seed)
        fit = clone(pupil, shown.observations[:n_steps], shown.actions[:n_steps], seed=seed)
        env.seed(EVALUATION_SEED + seed)
        scores, _ = evaluate_policy(pupil, env, n_episodes, return_episode_rewards=True)
        rows.append(
            {
                "expert_steps": n_steps,
                "seed": seed,
                "training_steps": n_timesteps,
                "expert_score": float(shown.returns.mean()),
                "held_out_log_prob": fit.log_probs[fit.best_epoch],
                "score": np.mean(scores),
                "score_std": np.std(scores),
            }
        )
    return rows


def make_page(results: pd.DataFrame) -> str:
    results = results.assign(score_minus_std=results["score"] - results["score_std"])
    columns = {"expert_score": "expert", "held_out_log_prob": "held-out log-probability"}
    columns |= {"score": "clone", "score_minus_std": "clone, minus deviation"}
    rows = []
    for n_steps, own in results.groupby("expert_steps"):
        row = {"steps of the expert": n_steps, "seeds": len(own)}
        for column, label in columns.items():
            decimals = 3 if column == "held_out_log_prob" else 1
            mean, low, high = (f"{value:.{decimals}f}" for value in (own[column].mean(), own[column].min(), own[column].max()))
            row[label] = f"{mean} ({low} to {high})"
        rows.append(row)
    parts = [
        "# Clones",
        f"Clones of an expert trained for {results['training_steps'].iloc[0]:,} steps on {ENV}, from part of one of its "
        "episodes: mean over the seeds, lowest and highest; scores over 100 episodes with deterministic actions.",
        common.make_table(rows),
    ]
    return common.make_page(parts, results)


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="an expert for each")
    parser.add_argument("--n-timesteps", type=common.positive_int, default=100_000, help="of the expert")
    parser.add_argument("--episodes", type=common.positive_int, default=100, help="episodes of each evaluation")
    options = parser.parse_args(arguments)
    th.set_num_threads(1)
    path = options.results_dir / f"{NAME}.csv"
    results = common.read_results(path)
    if not options.report_only:
        rows = [row for seed in options.seeds for row in measure(seed, options.n_timesteps, options.episodes)]
        results = pd.DataFrame(rows).assign(**common.make_provenance(NAME, arguments)).sort_values(["expert_steps", "seed"])
    common.write_results(path, results, make_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
