"""
Environment steps per second of REINFORCE, A2C and PPO, and of bare stepping of the same vectorised environment.

The compared algorithms take turns in one process over several rounds, after a warm-up. All steps count, including those that
REINFORCE leaves unused. Each call adds rows to the table, or replaces those of the same configuration.

    python benchmarks/throughput.py learning --env CartPole-v1 --n-envs 1 --n-steps 256
    python benchmarks/throughput.py learning --env HalfCheetah-v5 --n-envs 8 --n-steps 128 --vec-normalize
    python benchmarks/throughput.py recurrent --n-envs 8 --n-steps 128
    python benchmarks/throughput.py engines --env LunarLander-v3 --n-envs 8 --train-steps 300000
    python benchmarks/throughput.py scaling
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import common
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tqdm import tqdm

from sb3_reinforce import REINFORCE
from sb3_reinforce.vec_env import make_envpool_vec_env

NAME = "throughput"
CONFIGURATION = ["kind", "axis", "env", "engine", "n_envs", "n_steps", "width", "vec_normalize", "actions"]
#: What is varied for the kind ``scaling``, one at a time.
AXES = {
    "n_envs": [2**exponent for exponent in range(9)],
    "width": [16, 32, 64, 128, 256, 512],
    "n_steps": [16, 64, 256, 1024, 4096],
}
BASE = {"n_envs": 8, "width": 64, "n_steps": 256}
#: Random actions per environment that are drawn ahead, and then used repeatedly.
N_PRESAMPLED = 1_000
#: Makes at least so many steps, and returns how many and in how many seconds.
Run = Callable[[int], tuple[int, float]]
#: One of those that run in turn: its configuration and algorithm, and what it does.
Side = tuple[dict[str, Any], Run]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add("kind", choices=["learning", "recurrent", "engines", "scaling"], help="what is measured")
    add("--env", default="CartPole-v1", help="environment id")
    add("--engine", choices=["dummy", "envpool"], default="dummy", help="what steps the environments")
    add("--n-envs", type=common.positive_int, default=8, help="environments that are stepped together")
    add("--n-steps", type=common.positive_int, default=64, help="steps of each environment per update")
    add("--vec-normalize", action="store_true", help="normalise observations and rewards with VecNormalize")
    add(
        "--actions",
        choices=["random", "policy"],
        default="random",
        help="actions of the bare stepping: random, or those of the REINFORCE model as it is in that round; not timed",
    )
    add("--train-steps", type=common.positive_int, default=300_000, help="of the policy that steps the engines")
    add("--steps", type=common.positive_int, default=20_000, help="environment steps per round")
    add("--warmup-steps", type=common.positive_int, default=5_000, help="steps before the first round")
    add("--rounds", type=common.positive_int, default=5, help="times that all run in turn")
    add("--seed", type=int, default=0, help="seed of environments and models")
    return parser.parse_args(arguments)


def make_venv(env_id: str, engine: str, n_envs: int, vec_normalize: bool, seed: int) -> VecEnv:
    venv = make_envpool_vec_env(env_id, n_envs, seed) if engine == "envpool" else make_vec_env(env_id, n_envs, seed)
    return VecNormalize(venv) if vec_normalize else venv


def learning(model: BaseAlgorithm) -> Run:
    """Go on learning for at least so many steps; the last rollout is finished, and every step of it counts."""

    def run(n_steps: int) -> tuple[int, float]:
        steps_before = model.num_timesteps
        start = time.perf_counter()
        model.learn(n_steps, reset_num_timesteps=False)
        return model.num_timesteps - steps_before, time.perf_counter() - start

    return run


def stepping(venv: VecEnv, choose_actions: Callable[[Any], np.ndarray]) -> Run:
    """Step from a reset; choosing the actions is not timed."""

    def run(n_steps: int) -> tuple[int, float]:
        observations = venv.reset()
        n_vec_steps = -(-n_steps // venv.num_envs)
        seconds = 0.0
        for _ in range(n_vec_steps):
            actions = choose_actions(observations)
            start = time.perf_counter()
            observations, _, _, _ = venv.step(actions)
            seconds += time.perf_counter() - start
        return n_vec_steps * venv.num_envs, seconds

    return run


def random_actions(venv: VecEnv, seed: int) -> Callable[[Any], np.ndarray]:
    venv.action_space.seed(seed)
    actions = [np.stack([venv.action_space.sample() for _ in range(venv.num_envs)]) for _ in range(N_PRESAMPLED)]
    endless = itertools.cycle(actions)
    return lambda observations: next(endless)


def policy_actions(model: BaseAlgorithm) -> Callable[[Any], np.ndarray]:
    return lambda observations: model.predict(observations)[0]


def ppo_batch_size(rollout_size: int, preferred: int = 64) -> int:
    """PPO's default, or the next smaller size that leaves no small batch over."""
    return max(size for size in range(1, preferred + 1) if rollout_size % size == 0)


def compare_learners(options: argparse.Namespace, row: dict[str, Any]) -> list[Side]:
    def arguments() -> dict[str, Any]:
        venv = make_venv(options.env, options.engine, options.n_envs, options.vec_normalize, options.seed)
        return {"env": venv, "n_steps": options.n_steps, "seed": options.seed, "device": "cpu"}

    batch_size = ppo_batch_size(options.n_steps * options.n_envs)
    models: dict[str, BaseAlgorithm] = {
        "reinforce": REINFORCE("MlpPolicy", **arguments()),
        "a2c": A2C("MlpPolicy", **arguments()),
        "ppo": PPO("MlpPolicy", batch_size=batch_size, **arguments()),
    }
    bare = arguments()["env"]
    actions = random_actions(bare, options.seed) if options.actions == "random" else policy_actions(models["reinforce"])
    sides = {"bare": stepping(bare, actions)} | {name: learning(model) for name, model in models.items()}
    return [(row | {"algorithm": name}, run) for name, run in sides.items()]


def compare_recurrent(options: argparse.Namespace, row: dict[str, Any]) -> list[Side]:
    from sb3_contrib import RecurrentPPO

    def arguments() -> dict[str, Any]:
        venv = make_vec_env(options.env, options.n_envs, seed=options.seed)
        policy_kwargs = {"lstm_hidden_size": BASE["width"]}
        policy = {"policy": "MlpLstmPolicy", "policy_kwargs": policy_kwargs}
        return policy | {"env": venv, "n_steps": options.n_steps, "seed": options.seed, "device": "cpu"}

    models: dict[str, BaseAlgorithm] = {
        "reinforce": REINFORCE(**arguments()),
        "reinforce-natural": REINFORCE(natural_gradient=True, **arguments()),
        "ppo_lstm": RecurrentPPO(**arguments()),
    }
    return [(row | {"actions": "", "algorithm": name}, learning(model)) for name, model in models.items()]


def compare_engines(options: argparse.Namespace, row: dict[str, Any]) -> list[Side]:
    """Train a policy, and step both engines with its actions."""
    venv = make_venv(options.env, "envpool", options.n_envs, options.vec_normalize, options.seed)
    model = REINFORCE("MlpPolicy", venv, n_steps=options.n_steps, seed=options.seed, device="cpu")
    model.learn(options.train_steps)
    actions = policy_actions(model)
    sides = []
    for engine in ("dummy", "envpool"):
        venv = make_venv(options.env, engine, options.n_envs, options.vec_normalize, options.seed + 1)
        sides.append((row | {"engine": engine, "actions": "policy", "algorithm": "bare"}, stepping(venv, actions)))
    return sides


def compare_sizes(options: argparse.Namespace, row: dict[str, Any]) -> list[Side]:
    """
    Vary the number of environments, the width of the networks and the size of a batch, beside bare stepping for each.

    The step size is 0: all the work of an update is done, but the policy stays the random one that the bare stepping follows,
    so that episodes are equally long on both sides and everywhere.
    """
    sides = []
    for axis, values in AXES.items():
        for value in values:
            size = BASE | {axis: value}
            bare, venv = (make_venv(options.env, "dummy", size["n_envs"], False, options.seed) for _ in range(2))
            model = REINFORCE(
                "MlpPolicy",
                venv,
                learning_rate=0.0,
                n_steps=size["n_steps"],
                policy_kwargs={"net_arch": [size["width"]] * 2},
                seed=options.seed,
                device="cpu",
            )
            own = row | size | {"axis": axis}
            sides.append((own | {"algorithm": "bare"}, stepping(bare, random_actions(bare, options.seed))))
            sides.append((own | {"algorithm": "reinforce"}, learning(model)))
    return sides


MAKE_SIDES = {
    "learning": compare_learners,
    "recurrent": compare_recurrent,
    "engines": compare_engines,
    "scaling": compare_sizes,
}


def measure(sides: Sequence[Side], options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with tqdm(total=len(sides) * (options.rounds + 1), desc=options.kind) as progress:
        for round_number in range(-1, options.rounds):
            for row, run in sides:
                steps, seconds = run(options.warmup_steps if round_number < 0 else options.steps)
                progress.update()
                if round_number >= 0:
                    rows.append(row | {"round": round_number, "steps": steps, "seconds": seconds})
    return rows


def tabulate(results: pd.DataFrame, side: str, reference: str) -> list[dict[str, Any]]:
    """
    Make a row for each configuration, with a column for each value of ``side``.

    Ratios are medians of the ratios of the rounds, so that what else the machine did then cancels.
    """
    results = results.assign(speed=results["steps"] / results["seconds"])
    rows = []
    configuration = [name for name in CONFIGURATION if name not in ("kind", "axis", side)]
    for _, own in results.groupby(configuration, sort=False, dropna=False):
        speeds = own.pivot(index="round", columns=side, values="speed")[list(own[side].unique())]
        row = {name: own[name].iloc[0] for name in configuration}
        row |= {f"{name}, steps/s": f"{speed:,.0f}" for name, speed in speeds.median().items()}
        ratios = (speeds[[reference]].to_numpy() / speeds.drop(columns=reference)).median()
        rows.append(row | {f"{reference} / {name}": f"{ratio:.2f}" for name, ratio in ratios.items()})
    return rows


def make_page(results: pd.DataFrame) -> str:
    parts = [
        "# Throughput",
        "Environment steps per second, one thread of PyTorch: medians over rounds in which all took turns in one process, "
        "after a warm-up; a ratio is the median of the rounds' ratios. Learners use default hyperparameters except `n_steps`. "
        "All of `learn` counts, including updates and the steps that REINFORCE leaves unused while the last episodes finish. "
        "Bare is `VecEnv.step` alone, with random actions drawn ahead or with the actions of the policy of that round.",
    ]
    kinds = dict(list(results.groupby("kind", sort=False)))
    for kind, title, side, reference in (
        ("learning", "Learning", "algorithm", "reinforce"),
        ("recurrent", "Recurrent policies", "algorithm", "reinforce"),
        ("engines", "EnvPool beside DummyVecEnv", "engine", "envpool"),
    ):
        if kind in kinds:
            parts += [f"## {title}", common.make_table(tabulate(kinds[kind], side, reference))]
    if "scaling" in kinds:
        parts.append("## Scaling")
        parts.append("The step size is 0, so all episodes are those of the random policy.")
        for axis, own in kinds["scaling"].groupby("axis", sort=False):
            rows = tabulate(own, "algorithm", "reinforce")
            columns = [str(axis), *(name for name in rows[0] if name not in CONFIGURATION)]
            parts.append(common.make_table([{name: row[name] for name in columns} for row in rows]))
    return common.make_page(parts, results)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    path = options.results_dir / f"{NAME}.csv"
    results = common.read_results(path, CONFIGURATION)
    if not options.report_only:
        provenance = common.make_provenance(NAME, arguments)
        th.set_num_threads(1)
        own = {name: getattr(options, name, "") for name in CONFIGURATION} | {"width": BASE["width"]}
        rows = measure(MAKE_SIDES[options.kind](options, own), options)
        # Read only now: another configuration may have been written in the meantime
        results = common.replace_rows(
            common.read_results(path, CONFIGURATION), pd.DataFrame(rows).assign(**provenance), CONFIGURATION
        )
    common.write_results(path, results, make_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
