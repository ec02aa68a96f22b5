"""
Steps per second of one training with 1 and 2 processes, the share of communication, and time to a threshold.

The numbers of processes take turns over several rounds, started by torchrun. All processes have the same number of
environments and steps, so two processes take twice as many steps; the ratio of steps per second is 2 if the second process
costs nothing and has its own core.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --env LunarLander-v3 --rounds 9 --threshold LunarLander-v3=200
"""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import common
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import distributed
from tqdm import tqdm

from sb3_reinforce import REINFORCE

NAME = "ranks"
KEY = ["measured", "env", "n_processes"]
#: Processes that are started at random take a port that is free.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
COMMUNICATION = ("all_reduce", "all_gather_object", "broadcast_object_list")


def env_and_score(text: str) -> tuple[str, float]:
    env_id, separator, score = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be ENV=SCORE, not {text}")
    return env_id, float(score)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add("--env", nargs="*", default=["CartPole-v1", "LunarLander-v3", "HalfCheetah-v5"], help="environments")
    add("--processes", type=common.positive_int, nargs="+", default=[1, 2], help="numbers of processes")
    add("--rounds", type=common.positive_int, default=5, help="times that each number of processes has its turn")
    add("--steps", type=common.positive_int, default=40_000, help="environment steps of each process per round")
    add("--n-envs", type=common.positive_int, default=8, help="environments of each process, in a DummyVecEnv")
    add("--n-steps", type=common.positive_int, default=256, help="steps of each environment per update")
    add(
        "--threshold",
        type=env_and_score,
        nargs="*",
        default=[("CartPole-v1", 475.0)],
        metavar="ENV=SCORE",
        help="mean of the last 100 training episodes to reach, with the entry of hyperparams/reinforce.yml",
    )
    add("--seeds", type=int, nargs="+", default=list(range(3)), help="seeds of the runs to a threshold")
    add("--max-steps", type=common.positive_int, default=2_000_000, help="steps after which such a run is given up")
    return parser.parse_args(arguments)


# In the processes that torchrun starts


@contextlib.contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Note the seconds of every call of a function."""
    original, seconds = getattr(owner, name), []

    @functools.wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(owner, name, noting):
        yield seconds


class StopAtThreshold(BaseCallback):
    """
    Ends the training when the mean over 100 training episodes reaches a score, and that over the next 100 confirms it.

    The highest of many means may be there by luck. What counts is when it was reached.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.reached = False
        self.start = time.perf_counter()
        self.steps, self.seconds = 0, 0.0
        self.first_episode: Any = None

    def _on_step(self) -> bool:
        episodes = self.model.ep_info_buffer or []
        is_there = len(episodes) == 100 and sum(episode["r"] for episode in episodes) / 100 >= self.threshold
        if self.first_episode is not None and all(episode is not self.first_episode for episode in episodes):
            self.reached = is_there
            self.first_episode = None
        elif self.first_episode is None:
            self.steps, self.seconds = self.num_timesteps, time.perf_counter() - self.start
            self.first_episode = episodes[-1] if is_there else None
        return not self.reached


def measure_speed(spec: dict[str, Any], n_processes: int) -> dict[str, Any]:
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(spec["env"], n_envs=spec["n_envs"])
    model = REINFORCE("MlpPolicy", env, n_steps=spec["n_steps"], seed=spec["run"], device="cpu", distributed=True)
    model.learn(spec["warmup_steps"] * n_processes)
    steps_before = model.num_timesteps
    with contextlib.ExitStack() as stack:
        communication = [stack.enter_context(timed(distributed, name)) for name in COMMUNICATION]
        if distributed.is_initialized():
            distributed.barrier()
        start = time.perf_counter()
        model.learn(spec["n_timesteps"] * n_processes, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
    return {
        "steps": model.num_timesteps - steps_before,
        "seconds": seconds,
        "communication_seconds": sum(map(sum, communication)),
    }


def measure_threshold(spec: dict[str, Any]) -> dict[str, Any]:
    from sb3_reinforce.zoo.commands import train

    noted: dict[str, Any] = {}
    learn = REINFORCE.learn

    def learn_to_threshold(self: REINFORCE, total_timesteps: int, callback: Any = None, **kwargs: Any) -> REINFORCE:
        stop = StopAtThreshold(spec["threshold"])
        learn(self, total_timesteps, [*(callback or []), stop], **kwargs)
        noted.update(steps=stop.steps, seconds=stop.seconds, reached=stop.reached)
        return self

    REINFORCE.learn = learn_to_threshold  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--env", spec["env"], "--seed", str(spec["run"]), "-n", str(spec["n_timesteps"]), "-f", folder]
        train([*arguments, "--eval-freq", "-1", "--device", "cpu", "--verbose", "0", "--num-threads", "1"])
    return noted


def work(text: str) -> None:
    th.set_num_threads(1)
    spec = json.loads(text)
    result = measure_threshold(spec) if "threshold" in spec else measure_speed(spec, int(os.environ["WORLD_SIZE"]))
    if os.environ["RANK"] == "0":
        Path(spec["output"]).write_text(json.dumps(result))


# In the process that starts them


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Let torchrun start the processes, and return what the first of them measured."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "result.json")
        command = [*TORCHRUN, "--nproc-per-node", str(spec["n_processes"]), __file__, "--worker"]
        done = subprocess.run([*command, json.dumps({**spec, "output": str(output)})], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{spec}:\n{done.stderr}")
        result: dict[str, Any] = json.loads(output.read_text())
    return result


def list_specs(options: argparse.Namespace) -> list[dict[str, Any]]:
    speed = {"measured": "speed", "n_envs": options.n_envs, "n_steps": options.n_steps, "n_timesteps": options.steps}
    speed |= {"warmup_steps": min(5_000, options.steps)}
    aim = {"measured": "threshold", "n_timesteps": options.max_steps}
    return [
        speed | {"env": env_id, "run": round_number, "n_processes": n_processes}
        for env_id in options.env
        for round_number in range(options.rounds)
        for n_processes in options.processes
    ] + [
        aim | {"env": env_id, "threshold": score, "run": seed, "n_processes": n_processes}
        for env_id, score in options.threshold
        for seed in options.seeds
        for n_processes in options.processes
    ]


def speed_table(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Medians over the rounds; the ratio to the fewest processes is that of each round."""
    results = results.assign(speed=results["steps"] / results["seconds"])
    table = []
    for env_id, of_env in results.groupby("env", sort=False):
        speeds = of_env.pivot(index="run", columns="n_processes", values="speed")
        ratios = speeds.div(speeds[speeds.columns.min()], axis=0)
        for n_processes, own in of_env.groupby("n_processes"):
            ratio = ratios[n_processes]
            table.append(
                {
                    "environment": env_id,
                    "processes": n_processes,
                    "rounds": len(own),
                    "steps/s": f"{own['speed'].median():,.0f}",
                    "ratio": f"{ratio.median():.2f} ({ratio.min():.2f} to {ratio.max():.2f})",
                    "communication": f"{(own['communication_seconds'] / own['seconds']).median():.1%}",
                }
            )
    return table


def threshold_table(results: pd.DataFrame) -> list[dict[str, Any]]:
    table = []
    for (env_id, n_processes), own in results.groupby(["env", "n_processes"], sort=False):
        reached = own[own["reached"].astype(str) == "True"]
        table.append(
            {
                "environment": env_id,
                "threshold": f"{own['threshold'].iloc[0]:g}",
                "processes": n_processes,
                "reached": f"{len(reached)} of {len(own)}",
                "steps": f"{reached['steps'].median():,.0f}" if len(reached) else "",
                "seconds": f"{reached['seconds'].median():.1f}" if len(reached) else "",
            }
        )
    return table


def make_page(results: pd.DataFrame) -> str:
    parts = ["# One training in several processes"]
    kinds = dict(list(results.groupby("measured", sort=False)))
    if "speed" in kinds:
        parts += [
            "## Steps per second",
            "Medians over the rounds, in which the numbers of processes take turns; the ratio is to the fewest processes, "
            "with its range. Communication is the share of the time that the first process spends in reductions and gathers, "
            "including waiting.",
            common.make_table(speed_table(kinds["speed"])),
        ]
    if "threshold" in kinds:
        parts += [
            "## Time to a threshold",
            "Median steps (of all processes) and seconds until the mean of the last 100 training episodes reaches the "
            "threshold, over the runs that reach it. The hyperparameters are the same: `n_steps` is a budget for each "
            "environment, so an update of two processes has twice as many steps. The next 100 episodes confirm the threshold, "
            "except in the runs of commit 4f6881b659.",
            common.make_table(threshold_table(kinds["threshold"])),
        ]
    return common.make_page(parts, results)


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--worker"]:
        work(arguments[1])
        return
    options = parse(arguments)
    path = options.results_dir / f"{NAME}.csv"
    results = common.read_results(path, KEY)
    if not options.report_only:
        provenance = common.make_provenance(NAME, arguments)
        rows = [{**spec, **run(spec)} for spec in tqdm(list_specs(options), desc=NAME)]
        new = pd.DataFrame(rows).drop(columns=["n_timesteps", "warmup_steps"], errors="ignore").assign(**provenance)
        results = common.replace_rows(results, new, KEY)
    common.write_results(path, results, make_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
