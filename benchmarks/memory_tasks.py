"""
REINFORCE with memory on tasks that need it: steps and seconds to a threshold, beside RecurrentPPO and beside an MLP.

REINFORCE has its entry in hyperparams/reinforce_lstm.yml, the MLP the same entry without memory. RecurrentPPO has RL Zoo's
entry, or RL Zoo's default where there is none, and once more its own defaults with 8 environments and as many units as
REINFORCE. A policy is evaluated with its likeliest actions on other episodes at even intervals, while the clock stands
still, and a run ends when three evaluations in a row reach the threshold; the first of them counts. The contenders run in
turn for each seed in one process. A finished run of the same code and settings never runs again: interrupt and start again
at will.

    python benchmarks/memory_tasks.py
    python benchmarks/memory_tasks.py --task sb3_reinforce/TMaze-v0 --seeds 0 1 2
    python benchmarks/memory_tasks.py --speed
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml
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
from contenders import measure_learning, use_one_thread
from rl_zoo3.exp_manager import ExperimentManager
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization
from tqdm import tqdm

from sb3_reinforce import REINFORCE
from sb3_reinforce.zoo import hyperparams_path, register
from sb3_reinforce.zoo.compare.statistics import first_reached

NAME = "memory_tasks"
#: Added to a seed for its evaluation, so that the episodes are not those of the training.
EVALUATION_SEED = 10_000
N_EVAL_ENVS = 10
#: Units of every LSTM of --speed.
SPEED_UNITS = 64


class Task(NamedTuple):
    """An environment, the mean score to reach, the steps after which a run is given up, and the steps between evaluations."""

    threshold: float
    max_steps: int
    eval_freq: int
    contenders: tuple[str, ...]


BESIDE_PPO = ("memory", "mlp", "recurrent_ppo", "recurrent_ppo_same_units")
TASKS = {
    "sb3_reinforce/TMaze-v0": Task(0.95, 300_000, 10_000, BESIDE_PPO),
    "sb3_reinforce/TMaze50-v0": Task(0.95, 2_000_000, 50_000, BESIDE_PPO),
    "sb3_reinforce/TMazeMasked-v0": Task(0.95, 300_000, 10_000, ("memory", "mlp", "memory_without_masks")),
    "CartPoleNoVel-v1": Task(475.0, 1_000_000, 20_000, BESIDE_PPO),
    "PendulumNoVel-v1": Task(-200.0, 1_000_000, 20_000, BESIDE_PPO),
}
TITLES = {
    "memory": "REINFORCE, memory",
    "mlp": "REINFORCE, MLP",
    "memory_without_masks": "REINFORCE, memory, no masks",
    "recurrent_ppo": "RecurrentPPO, RL Zoo",
    "recurrent_ppo_same_units": "RecurrentPPO, same units",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS), help="environments")
    parser.add_argument("--contender", choices=TITLES, nargs="+", default=list(TITLES), help="of those that a task has")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="seeds, each for all contenders")
    parser.add_argument("--max-steps", type=positive_int, help="give runs up earlier or later than the task says")
    parser.add_argument("--eval-episodes", type=positive_int, default=100, help="episodes of an evaluation")
    parser.add_argument("--table-only", action="store_true", help="write the table of the finished runs")
    parser.add_argument("--speed", action="store_true", help="measure steps per second on CartPole instead")
    parser.add_argument("--n-envs", type=positive_int, default=8, help="with --speed: environments")
    parser.add_argument("--n-steps", type=positive_int, default=128, help="with --speed: steps of each per update")
    parser.add_argument("--steps", type=positive_int, default=20_000, help="with --speed: steps of a contender per round")
    parser.add_argument("--rounds", type=positive_int, default=5, help="with --speed: times that all run in turn")
    return parser.parse_args(arguments)


# Learning


def settings_of(env_id: str, contender: str) -> tuple[str, dict[str, Any] | None]:
    """Return algorithm and entry of a contender; None for RL Zoo's entry."""
    entries = yaml.safe_load(hyperparams_path("reinforce_lstm").read_text())
    entry = dict(entries.get(env_id, entries["default"]))
    if contender == "recurrent_ppo":
        return "ppo_lstm", None
    if contender == "recurrent_ppo_same_units":
        units = eval(entry["policy_kwargs"])["lstm_hidden_size"]
        return "ppo_lstm", {
            "policy": "MlpLstmPolicy",
            "n_envs": 8,
            "n_timesteps": entry["n_timesteps"],
            "policy_kwargs": f"dict(lstm_hidden_size={units})",
        }
    if contender == "memory_without_masks":
        entry["use_masking"] = False
    if contender == "mlp":
        del entry["policy_kwargs"]
        entry["policy"] = entry["policy"].replace("LstmPolicy", "Policy")
    return "reinforce_lstm", entry


class StopWhenSolved(BaseCallback):
    """Evaluates at even intervals while the clock stands still, and ends the training when the threshold is confirmed."""

    def __init__(self, env: VecEnv, task: Task, n_episodes: int, seed: int) -> None:
        super().__init__()
        self.env, self.task, self.n_episodes, self.seed = env, task, n_episodes, seed
        self.next_evaluation = task.eval_freq
        self.paused = 0.0
        self.start = time.perf_counter()
        #: Steps, seconds and mean score
        self.curve: list[tuple[int, float, float]] = []

    @property
    def seconds(self) -> float:
        """Of training, so far."""
        return time.perf_counter() - self.start - self.paused

    def first_reached(self) -> tuple[float, float]:
        """Steps and seconds of the first of three evaluations in a row that reach the threshold; infinite without them."""
        steps, seconds, scores = zip(*self.curve, strict=True) if self.curve else ((), (), ())
        return first_reached(steps, scores, self.task.threshold), first_reached(seconds, scores, self.task.threshold)

    @property
    def reached(self) -> bool:
        """Whether there are three evaluations in a row that reach the threshold."""
        return bool(np.isfinite(self.first_reached()[0]))

    def evaluate(self) -> None:
        """Add a point to the curve."""
        steps, seconds, pause_start = self.num_timesteps, self.seconds, time.perf_counter()
        train_env = self.model.get_env()
        assert train_env is not None
        sync_envs_normalization(train_env, self.env)
        self.env.seed(self.seed + N_EVAL_ENVS * len(self.curve))
        score, _ = evaluate_policy(self.model, self.env, self.n_episodes, warn=False)
        self.curve.append((steps, round(seconds, 3), float(score)))
        self.paused += time.perf_counter() - pause_start

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next_evaluation:
            self.next_evaluation += self.task.eval_freq
            self.evaluate()
        return not self.reached and self.num_timesteps < self.task.max_steps


def run(env_id: str, contender: str, seed: int, task: Task, n_episodes: int) -> dict[str, Any]:
    algo, entry = settings_of(env_id, contender)
    with tempfile.TemporaryDirectory() as folder:
        config = None
        if entry is not None:
            config = f"{folder}/entry.yml"
            with open(config, "w") as file:
                yaml.safe_dump({env_id: entry}, file)
        with contextlib.redirect_stdout(io.StringIO()):
            manager = ExperimentManager(
                argparse.Namespace(),
                algo,
                env_id,
                folder,
                # RL Zoo's schedules are made for its own number of steps; its default names no policy with memory
                n_timesteps=0 if entry is None else task.max_steps,
                eval_freq=-1,
                hyperparams={"policy": "MlpLstmPolicy"} if entry is None else {},
                seed=seed,
                verbose=0,
                device="cpu",
                config=config,
            )
            experiment = manager.setup_experiment()
            assert experiment is not None
            model, hyperparameters = experiment
            eval_env = manager.create_envs(N_EVAL_ENVS, eval_env=True)
        callback = StopWhenSolved(eval_env, task, n_episodes, EVALUATION_SEED + seed)
        callback.start = time.perf_counter()
        model.learn(manager.n_timesteps, callback=callback)
        seconds = callback.seconds
        if not callback.reached and (not callback.curve or callback.curve[-1][0] < model.num_timesteps):
            callback.evaluate()
        eval_env.close()
        assert model.env is not None
        model.env.close()
    reached_steps, reached_seconds = callback.first_reached()
    return {
        "env": env_id,
        "contender": contender,
        "seed": seed,
        "reached": callback.reached,
        "steps": int(reached_steps) if callback.reached else callback.curve[-1][0],
        "seconds": reached_seconds if callback.reached else seconds,
        "score": callback.curve[-1][2],
        "best": max(score for _, _, score in callback.curve),
        "curve": callback.curve,
        "hyperparameters": {key: str(value) for key, value in dict(hyperparameters).items()},
    }


def key_of(env_id: str, contender: str, seed: int, task: Task, n_episodes: int) -> str:
    """Identify a run by all that its result depends on, the machine apart."""
    content = [code_hash(), env_id, contender, seed, task[:3], n_episodes, settings_of(env_id, contender)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def shown(runs: list[dict[str, Any]], unit: str, form: str) -> str:
    """Median over seeds, where a run that did not get there counts as longer than any, and bounds it by what it spent."""
    median = float(np.median([one[unit] if one["reached"] else np.inf for one in runs]))
    return f"{median:{form}}" if np.isfinite(median) else f"> {np.median([one[unit] for one in runs]):{form}}"


def learning_tables(runs: list[dict[str, Any]]) -> list[str]:
    parts = []
    for env_id, task in TASKS.items():
        rows = []
        for contender in task.contenders:
            own = [one for one in runs if one["env"] == env_id and one["contender"] == contender]
            if own:
                rows.append(
                    {"": TITLES[contender]}
                    | {"reached": f"{sum(one['reached'] for one in own)} of {len(own)}"}
                    | {"steps": shown(own, "steps", ",.0f"), "seconds": shown(own, "seconds", ",.1f")}
                    | {"last scores": ", ".join(f"{one['score']:.2f}" for one in own)}
                )
        if rows:
            parts.append(f"## {env_id}, {task.threshold:g} within {task.max_steps:,} steps\n\n{markdown_table(rows)}")
    return parts


# Speed


def make_learners(options: argparse.Namespace) -> dict[str, BaseAlgorithm]:
    def arguments(seed: int) -> dict[str, Any]:
        return {
            "policy": "MlpLstmPolicy",
            "env": make_vec_env("CartPole-v1", options.n_envs, seed=seed),
            "n_steps": options.n_steps,
            "policy_kwargs": {"lstm_hidden_size": SPEED_UNITS},
            "seed": seed,
            "device": "cpu",
        }

    return {
        "REINFORCE, optimiser": REINFORCE(**arguments(0)),
        "REINFORCE, natural": REINFORCE(natural_gradient=True, **arguments(0)),
        "RecurrentPPO": RecurrentPPO(**arguments(0)),
    }


class RolloutClock(BaseCallback):
    """Measures how long rollouts take."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def _on_rollout_start(self) -> None:
        self.rollout_start = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.seconds += time.perf_counter() - self.rollout_start

    def _on_step(self) -> bool:
        return True


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    models = make_learners(options)
    rounds = []
    for round_idx in tqdm(range(options.rounds + 1), desc=f"CartPole-v1, {options.n_envs} envs", unit="round"):
        results = {}
        for name, model in models.items():
            clock = RolloutClock()
            learn = model.learn

            def learn_with_clock(*args: Any, clock: RolloutClock = clock, learn: Any = learn, **kwargs: Any) -> Any:
                return learn(*args, callback=clock, **kwargs)

            model.learn = learn_with_clock  # type: ignore[method-assign]
            measured = measure_learning(model, options.steps)
            model.learn = learn  # type: ignore[method-assign]
            results[name] = measured | {"rollout_seconds": clock.seconds}
        if round_idx:
            rounds.append(results)
    rows = {
        name: {
            "steps_per_second": float(np.median([own[name]["steps"] / own[name]["seconds"] for own in rounds])),
            "update_per_rollout": float(
                np.median([own[name]["seconds"] / own[name]["rollout_seconds"] - 1.0 for own in rounds])
            ),
        }
        for name in models
    }
    settings = {name: getattr(options, name) for name in ("n_envs", "n_steps", "steps", "rounds")}
    return {"settings": settings, "rows": rows, "rounds": rounds}


def speed_table(speed: dict[str, Any]) -> str:
    slowest = speed["rows"]["RecurrentPPO"]["steps_per_second"]
    table = [
        {"": name}
        | {"steps per second": f"{row['steps_per_second']:,.0f}"}
        | {"times RecurrentPPO's": f"{row['steps_per_second'] / slowest:.1f}"}
        | {"seconds of updates per second of rollouts": f"{row['update_per_rollout']:.2f}"}
        for name, row in speed["rows"].items()
    ]
    settings = speed["settings"]
    title = f"## CartPole-v1, {settings['n_envs']} environments, {settings['n_steps']} steps of each per update, 64 units"
    return f"{title}\n\n{markdown_table(table)}\n\n{provenance_line(speed['provenance'])}"


# Both


def to_markdown(content: dict[str, Any]) -> str:
    parts = [
        "# Tasks that need memory\n\nSteps and seconds to the first of three evaluations in a row that reach the threshold: "
        "medians over seeds, where a run that did not get there counts as longer than any. One thread."
    ]
    parts += learning_tables(list(content["runs"].values()))
    if content["runs"]:
        parts.append(f"Runs of earlier calls stay. The last one: {provenance_line(content['provenance'])}")
    if "speed" in content:
        parts.append(speed_table(content["speed"]))
    return "\n\n".join(parts) + "\n"


def draw(runs: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    env_ids = [env_id for env_id in TASKS if any(one["env"] == env_id for one in runs)]
    figure = Figure(figsize=(5.5 * len(env_ids), 4.2), layout="constrained")
    colours = dict(zip(TITLES, ("tab:blue", "tab:gray", "tab:cyan", "tab:orange", "tab:red"), strict=True))
    for panel, env_id in zip(figure.subplots(1, len(env_ids), squeeze=False)[0], env_ids, strict=True):
        labelled: set[str] = set()
        for one in runs:
            if one["env"] == env_id:
                steps, _, scores = zip(*one["curve"], strict=True)
                label = None if one["contender"] in labelled else TITLES[one["contender"]]
                labelled.add(one["contender"])
                panel.plot(steps, scores, color=colours[one["contender"]], alpha=0.7, label=label)
        panel.axhline(TASKS[env_id].threshold, linestyle=":", color="black")
        panel.set_title(env_id)
        panel.set_xlabel("steps")
        panel.set_ylabel("mean score of an evaluation")
        panel.grid(alpha=0.3)
        panel.legend()
    return figure


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    made_by = provenance(NAME, arguments, options.seeds)
    use_one_thread()
    register()
    path = options.results_dir / f"{NAME}.json"
    content = {"runs": {}, **read_json(path)}

    def write() -> None:
        runs = list(content["runs"].values())
        write_results(options.results_dir, NAME, content, to_markdown(content), draw(runs) if runs else None)

    if options.table_only:
        write()
    elif options.speed:
        content["speed"] = {**measure_speed(options), "provenance": made_by}
        write()
    else:
        wanted = []
        for env_id in options.task:
            task = TASKS[env_id]
            task = task if options.max_steps is None else task._replace(max_steps=options.max_steps)
            for seed in options.seeds:
                chosen = (contender for contender in task.contenders if contender in options.contender)
                wanted += [(env_id, contender, seed, task, options.eval_episodes) for contender in chosen]
        for one in tqdm(wanted, unit="run"):
            key = key_of(*one)
            if key in content["runs"]:
                continue
            # One result of a task, contender and seed: the last one
            kept = {k: v for k, v in content["runs"].items() if (v["env"], v["contender"], v["seed"]) != one[:3]}
            content["runs"] = {**kept, key: {**run(*one), "provenance": made_by}}
            content["provenance"] = made_by
            write()
    print(to_markdown(content))


if __name__ == "__main__":
    main(sys.argv[1:])
