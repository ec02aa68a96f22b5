"""
Baselines on the travelling salesman problem, where returns differ more between starts than between policies.

REINFORCE with each baseline, and sb3-contrib's MaskablePPO, train on random cities. After every tenth of the budget the
deterministic policy tours the same fixed cities, and the gap to their shortest tours is noted, with the seconds of training.
If interrupted, the same command continues with the remaining runs.

    python benchmarks/travelling_salesman.py
    python benchmarks/travelling_salesman.py --algorithms group value --seeds 0 1 --steps 50000
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    import pandas as pd

NAME = "travelling_salesman"
BASELINES = {
    "group": {"baseline": "group", "episodes_per_start": 8},
    "greedy": {"baseline": "greedy", "episodes_per_start": 8},
    "leave_one_out": {"baseline": "leave_one_out"},
    "moving_average": {"baseline": "moving_average"},
    "value": {"critic_epochs": 10, "critic_batch_size": 256, "critic_learning_rate": 1e-3},
    "none": {"baseline": None},
}
#: Seed of the first cities that all are evaluated on.
FIRST_CITIES = 1_000_000
KEY = ["algorithm", "seed", "budget"]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    names = [*BASELINES, "MaskablePPO"]
    parser.add_argument("--algorithms", nargs="+", choices=names, default=names, help="baselines, and MaskablePPO")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the trainings")
    parser.add_argument("--steps", type=common.positive_int, default=150_000, help="of each training")
    parser.add_argument("--n-tours", type=common.positive_int, default=300, help="fixed cities of the evaluations")
    return parser.parse_args(arguments)


def make_model(algorithm: str, seed: int) -> Any:
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_reinforce import REINFORCE

    env = make_vec_env("sb3_reinforce/TravellingSalesman-v0", 16, seed=seed)
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [128, 128]}, "gamma": 1.0, "seed": seed, "device": "cpu"}
    if algorithm == "MaskablePPO":
        return MaskablePPO("MlpPolicy", env, n_steps=128, batch_size=256, ent_coef=0.01, **settings)
    step = {"natural_gradient": True, "target_kl": 0.02, "n_episodes": 64, "use_masking": True}
    return REINFORCE("MlpPolicy", env, **step, **BASELINES[algorithm], **settings)


@functools.lru_cache
def shortest_lengths(n_tours: int) -> list[float]:
    from sb3_reinforce.envs.travelling_salesman import TravellingSalesmanEnv, shortest_tour_length

    env = TravellingSalesmanEnv()
    lengths = []
    for i in range(n_tours):
        env.reset(seed=FIRST_CITIES + i)
        lengths.append(shortest_tour_length(env.cities))
    return lengths


def mean_gap(model: Any, n_tours: int) -> float:
    """How much longer the deterministic policy's tours are than the shortest, on average, as a fraction."""
    import numpy as np

    from sb3_reinforce.envs.travelling_salesman import TravellingSalesmanEnv

    envs = [TravellingSalesmanEnv() for _ in range(n_tours)]
    observations = np.stack([env.reset(seed=FIRST_CITIES + i)[0] for i, env in enumerate(envs)])
    lengths = np.zeros(n_tours)
    for _ in range(envs[0].n_cities - 1):
        masks = np.stack([env.action_masks() for env in envs])
        actions, _ = model.predict(observations, deterministic=True, action_masks=masks)
        taken = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        observations = np.stack([step[0] for step in taken])
        lengths -= [step[1] for step in taken]
    return float(np.mean(lengths / shortest_lengths(n_tours)) - 1.0)


def train(algorithm: str, seed: int, budget: int, n_tours: int) -> list[dict[str, Any]]:
    model, seconds, rows = make_model(algorithm, seed), 0.0, []
    for tenth in range(1, 11):
        start = time.process_time()
        model.learn(max(0, budget * tenth // 10 - model.num_timesteps), reset_num_timesteps=False)
        seconds += time.process_time() - start
        gap = mean_gap(model, n_tours)
        row = {"algorithm": algorithm, "seed": seed, "budget": budget, "steps": model.num_timesteps}
        rows.append(row | {"tenth": tenth, "seconds": seconds, "gap": gap})
    return rows


def make_page(results: "pd.DataFrame") -> str:
    shown = []
    for algorithm, runs in results.groupby("algorithm", sort=False):
        middle, last = runs[runs["tenth"] == 5], runs[runs["tenth"] == 10]
        shown.append(
            {
                "baseline": algorithm,
                "gap after half": f"{middle['gap'].mean():.1%}",
                "gap at the end": f"{last['gap'].mean():.1%}",
                "lowest and highest": f"{last['gap'].min():.1%}, {last['gap'].max():.1%}",
                "seeds": len(last),
                "steps": f"{last['steps'].mean():,.0f}",
                "CPU seconds": f"{last['seconds'].mean():.0f}",
            }
        )
    return f"""# Travelling salesman

The gap is how much the deterministic policy's tours of 10 cities exceed the shortest ones, on the same cities for all.
REINFORCE has the same natural step and 64 episodes per rollout with every baseline; `group` and `greedy` have 8 episodes from
each start. MaskablePPO is sb3-contrib's. Mean over seeds.

{common.make_table(shown)}

{common.describe_provenance(results)}
"""


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    import torch as th

    th.set_num_threads(1)
    path = options.results_dir / f"{NAME}.csv"
    runs = [(name, seed, options.steps) for seed in options.seeds for name in options.algorithms if not options.report_only]
    results = common.measure_missing(path, KEY, runs, functools.partial(train, n_tours=options.n_tours), arguments)
    common.write_results(path, results, make_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
