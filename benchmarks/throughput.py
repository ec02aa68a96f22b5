"""
Environment steps per second of REINFORCE, A2C and PPO, and of bare stepping of the same vectorised environment.

The contenders run in turn in one process, several rounds, after each was warmed up. All steps count, those that
REINFORCE leaves unused included. Each call adds a row to the table, or replaces the one of the same configuration.

    python benchmarks/throughput.py --env CartPole-v1 --n-envs 1 --n-steps 256
    python benchmarks/throughput.py --env HalfCheetah-v5 --n-envs 8 --n-steps 128 --vec-normalize
    python benchmarks/throughput.py --env LunarLander-v3 --n-envs 8 --stepping-only --train-steps 300000
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import contenders
import matplotlib
import numpy as np
from common import (
    COLOURS,
    make_parser,
    markdown_table,
    merge_rows,
    positive_int,
    provenance,
    provenance_line,
    read_json,
    write_results,
)
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from sb3_reinforce import REINFORCE
from sb3_reinforce.collection import make_action_transform
from sb3_reinforce.sampling import make_action_sampler

NAME = "throughput"
LEARNERS: dict[str, type[BaseAlgorithm]] = {"a2c": A2C, "ppo": PPO, "reinforce": REINFORCE}
CONFIGURATION = ("env", "engine", "n_envs", "n_steps", "vec_normalize", "bare_actions", "envpool_threads")
STEPPING_CONFIGURATION = ("env", "n_envs", "deterministic", "envpool_threads")
ENGINES = ("dummy", "envpool")
LABELS = {
    "bare": "bare stepping",
    "reinforce": "REINFORCE",
    "a2c": "A2C",
    "ppo": "PPO",
    "dummy": "DummyVecEnv, stepping",
    "envpool": "EnvPool, stepping",
}
BAR_COLOURS = {**COLOURS, "dummy": "tab:red", "envpool": "tab:purple"}

matplotlib.use("Agg")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--env", default="CartPole-v1", help="environment id")
    parser.add_argument("--engine", choices=ENGINES, default="dummy", help="what steps the environments")
    parser.add_argument("--envpool-threads", type=positive_int, help="threads of EnvPool; by default it decides")
    parser.add_argument("--n-envs", type=positive_int, default=8, help="environments that are stepped together")
    parser.add_argument(
        "--n-steps", type=positive_int, default=64, help="steps of each environment per update, of all learners"
    )
    parser.add_argument("--vec-normalize", action="store_true", help="normalise observations and rewards with VecNormalize")
    parser.add_argument(
        "--bare-actions",
        choices=("random", "policy"),
        default="random",
        help="actions of the bare stepping: random ones drawn ahead, or those of the REINFORCE model as it is in that round, "
        "whose choosing is not timed (episodes are then as long as those of the learner)",
    )
    parser.add_argument("--steps", type=positive_int, default=20_000, help="environment steps of a contender per round")
    parser.add_argument(
        "--warmup-steps", type=positive_int, default=5_000, help="steps of each contender before the first round"
    )
    parser.add_argument("--rounds", type=positive_int, default=5, help="times that all contenders run in turn")
    parser.add_argument("--seed", type=int, default=0, help="seed of environments and models")
    parser.add_argument(
        "--stepping-only",
        action="store_true",
        help="compare bare stepping of EnvPool with that of DummyVecEnv, under the actions of a trained policy",
    )
    parser.add_argument(
        "--train-steps", type=positive_int, default=300_000, help="with --stepping-only: steps that REINFORCE trains before"
    )
    parser.add_argument("--deterministic", action="store_true", help="with --stepping-only: take the likeliest action")
    return parser.parse_args(arguments)


def ppo_batch_size(rollout_size: int, preferred: int = 64) -> int:
    """PPO's default, or the next smaller size that leaves no small batch over."""
    return max(size for size in range(1, preferred + 1) if rollout_size % size == 0)


def make_venv(options: argparse.Namespace, engine: str, seed: int) -> VecEnv:
    return contenders.make_venv(options.env, engine, options.n_envs, options.vec_normalize, seed, options.envpool_threads)


def make_learner(name: str, options: argparse.Namespace) -> BaseAlgorithm:
    arguments: dict[str, Any] = {"n_steps": options.n_steps, "seed": options.seed, "device": "cpu"}
    if name == "ppo":
        arguments["batch_size"] = ppo_batch_size(options.n_steps * options.n_envs)
    return LEARNERS[name]("MlpPolicy", make_venv(options, options.engine, options.seed), **arguments)


def policy_actions(model: REINFORCE, n_envs: int, seed: int, deterministic: bool = False) -> contenders.ChooseActions:
    if deterministic:
        return lambda observations: model.predict(observations, deterministic=True)[0]
    sample = make_action_sampler(model.policy, n_envs, np.random.default_rng(seed))
    to_env_actions = make_action_transform(model)
    return lambda observations: to_env_actions(sample(observations))


def measure_contenders(options: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders in turn, and return the row of their configuration."""
    models = {name: make_learner(name, options) for name in LEARNERS}
    bare = make_venv(options, options.engine, options.seed)

    def run(name: str, n_steps: int) -> dict[str, float]:
        if name != "bare":
            return contenders.measure_learning(models[name], n_steps)
        actions = contenders.random_actions(bare, options.seed)
        if options.bare_actions == "policy":
            actions = policy_actions(models["reinforce"], options.n_envs, options.seed)  # type: ignore[arg-type]
        stepping = contenders.measure_stepping(bare, actions, n_steps)
        return {"steps": stepping.steps, "seconds": stepping.seconds}

    names = ["bare", *LEARNERS]
    rounds = []
    with tqdm(total=len(names) * (options.rounds + 1), desc=f"{options.env}, {options.n_envs} envs") as progress:
        for round_idx in range(options.rounds + 1):
            results = {}
            for name in names:
                progress.set_postfix_str(f"{name}, {f'round {round_idx}' if round_idx else 'warm-up'}")
                results[name] = run(name, options.steps if round_idx else options.warmup_steps)
                progress.update()
            if round_idx:
                rounds.append(results)
    for venv in (bare, *(model.get_env() for model in models.values())):
        assert venv is not None
        venv.close()

    speeds = {name: np.array([results[name]["steps"] / results[name]["seconds"] for results in rounds]) for name in names}
    return {name: getattr(options, name) for name in CONFIGURATION} | {
        "steps_per_second": {name: float(np.median(speed)) for name, speed in speeds.items()},
        # Of each round, so that what else the machine did then cancels
        "reinforce_ratios": {
            rival: float(np.median(speeds["reinforce"] / speeds[rival])) for rival in names if rival != "reinforce"
        },
        "rounds": rounds,
    }


def measure_engines(options: argparse.Namespace) -> dict[str, Any]:
    """Train a policy, step both engines in turn with its actions, and return the row of their comparison."""
    model = REINFORCE(
        "MlpPolicy",
        make_venv(options, "envpool", options.seed),
        n_steps=options.n_steps,
        seed=options.seed,
        device="cpu",
    )
    with tqdm(total=options.train_steps, desc=f"training on {options.env}") as progress:

        def report_progress(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
            progress.update(local_variables["env"].num_envs)
            return True

        model.learn(options.train_steps, callback=report_progress)
    training_scores = [episode["r"] for episode in model.ep_info_buffer or []]

    venvs = {engine: make_venv(options, engine, options.seed + 1) for engine in ENGINES}
    actions = policy_actions(model, options.n_envs, options.seed, options.deterministic)
    rounds = []
    with tqdm(total=len(venvs) * (options.rounds + 1), desc="stepping") as progress:
        for round_idx in range(options.rounds + 1):
            results = {}
            for engine, venv in venvs.items():
                n_steps = options.steps if round_idx else options.warmup_steps
                results[engine] = contenders.measure_stepping(venv, actions, n_steps)._asdict()
                progress.update()
            if round_idx:
                rounds.append(results)
    for venv in venvs.values():
        venv.close()

    def speeds(engine: str, seconds: str) -> np.ndarray:
        return np.array([results[engine]["steps"] / results[engine][seconds] for results in rounds])

    row: dict[str, Any] = {name: getattr(options, name) for name in STEPPING_CONFIGURATION}
    row |= {"train_steps": options.train_steps, "training_score": float(np.mean(training_scores)) if training_scores else None}
    for label, seconds in (("stepping", "seconds"), ("stepping_with_actions", "seconds_with_actions")):
        of_engine = {engine: speeds(engine, seconds) for engine in ENGINES}
        row[label] = {engine: float(np.median(speed)) for engine, speed in of_engine.items()}
        row[label]["ratio"] = float(np.median(of_engine["envpool"] / of_engine["dummy"]))
    return row | {"rounds": rounds}


def to_markdown(content: dict[str, Any]) -> str:
    parts = ["# Throughput\n\nEnvironment steps per second, one thread of PyTorch."]
    if content["rows"]:
        table = markdown_table(
            [
                {
                    "environment": row["env"],
                    "engine": _engine_label(row),
                    "envs": row["n_envs"],
                    "n_steps": row["n_steps"],
                    "VecNormalize": "yes" if row["vec_normalize"] else "no",
                    "bare (actions)": f"{row['steps_per_second']['bare']:,.0f} ({row['bare_actions']})",
                }
                | {name.upper(): f"{row['steps_per_second'][name]:,.0f}" for name in LEARNERS}
                | {f"REINFORCE / {rival}": f"{row['reinforce_ratios'][rival.lower()]:.2f}" for rival in ("A2C", "PPO", "bare")}
                for row in content["rows"]
            ]
        )
        parts.append(
            f"{table}\n\nMedians over rounds in which all ran in turn in one process, after a warm-up; a ratio is the median "
            "of the ratios of the rounds. Learners: default hyperparameters except `n_steps`; the whole of `learn`, updates "
            "included. REINFORCE's steps include those that it leaves unused while the last episodes finish. Bare: "
            "`VecEnv.step` alone, under random actions drawn ahead or under those of the REINFORCE model of that round."
        )
    if content["stepping"]:
        table = markdown_table(
            [
                {
                    "environment": row["env"],
                    "envs": row["n_envs"],
                    "policy": _policy_label(row),
                    "EnvPool's threads": row["envpool_threads"] or "its own choice",
                    "DummyVecEnv": f"{row['stepping']['dummy']:,.0f}",
                    "EnvPool": f"{row['stepping']['envpool']:,.0f}",
                    "ratio": f"{row['stepping']['ratio']:.2f}",
                    "DummyVecEnv with actions": f"{row['stepping_with_actions']['dummy']:,.0f}",
                    "EnvPool with actions": f"{row['stepping_with_actions']['envpool']:,.0f}",
                    "ratio with actions": f"{row['stepping_with_actions']['ratio']:.2f}",
                }
                for row in content["stepping"]
            ]
        )
        parts.append(
            f"## EnvPool against DummyVecEnv\n\n{table}\n\nBare stepping, and stepping with the time that the policy takes "
            "for its actions, in turn in one process; medians as above."
        )
    made_by = [provenance_line(row["provenance"]) for row in content["rows"] + content["stepping"]]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in made_by)]) + "\n"


def draw(content: dict[str, Any]) -> Figure:
    """Draw the speed of every contender in every configuration, as bars."""
    configurations = [
        (_configuration_label(row), {name: row["steps_per_second"][name] for name in ("bare", "reinforce", "a2c", "ppo")})
        for row in content["rows"]
    ]
    configurations += [
        (f"{row['env']}\n{row['n_envs']} envs, stepping", {engine: row["stepping"][engine] for engine in ENGINES})
        for row in content["stepping"]
    ]
    figure, axis = plt.subplots(figsize=(2.5 + 2.2 * len(configurations), 4.5), layout="constrained")
    labelled: set[str] = set()
    for position, (_, speeds) in enumerate(configurations):
        width = 0.8 / len(speeds)
        for offset, (name, speed) in enumerate(speeds.items()):
            label = LABELS[name] if name not in labelled else None
            labelled.add(name)
            bars = axis.bar(
                position + (offset - (len(speeds) - 1) / 2) * width, speed, width, color=BAR_COLOURS[name], label=label
            )
            axis.bar_label(bars, labels=[f"{speed:,.0f}"], fontsize=7)
    axis.set_xticks(range(len(configurations)), [label for label, _ in configurations])
    axis.set_yscale("log")
    axis.set_ylabel("steps per second (log)")
    axis.legend()
    return figure


def _configuration_label(row: dict[str, Any]) -> str:
    normalize = ", VecNormalize" if row["vec_normalize"] else ""
    return f"{row['env']}\n{row['n_envs']} envs, n_steps {row['n_steps']}{normalize}\n{_engine_label(row)}"


def _engine_label(row: dict[str, Any]) -> str:
    threads = row["envpool_threads"]
    return f"envpool ({threads} threads)" if row["engine"] == "envpool" and threads else str(row["engine"])


def _policy_label(row: dict[str, Any]) -> str:
    score = "unknown" if row["training_score"] is None else f"{row['training_score']:.0f}"
    kind = "deterministic" if row["deterministic"] else "sampled"
    return f"REINFORCE after {row['train_steps']:,} steps (training score {score}), {kind}"


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    made_by = {"provenance": provenance(NAME, arguments, [options.seed])}
    contenders.use_one_thread()

    section, key = ("stepping", STEPPING_CONFIGURATION) if options.stepping_only else ("rows", CONFIGURATION)
    row = (measure_engines if options.stepping_only else measure_contenders)(options) | made_by
    # Read only now: another configuration may have been written in the meantime
    content = {"rows": [], "stepping": []} | read_json(options.results_dir / f"{NAME}.json")
    content[section] = merge_rows(content[section], row, key)
    markdown = to_markdown(content)
    write_results(options.results_dir, NAME, content, markdown, draw(content))
    print(markdown)


if __name__ == "__main__":
    main(sys.argv[1:])
