"""
Environment steps per second of one training with 1 and 2 ranks, what the ranks spend on each other, and time to a threshold.

The numbers of ranks take turns, several rounds, each in processes of its own that torchrun starts. All ranks have the same
number of environments and steps, so that with two ranks twice as many steps are made; the ratio of steps per second is 2
where the second rank costs nothing and has a core of its own. What many ranks would do is computed, not measured. What is
there already from the same sources is kept: start the command again where it was interrupted.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --env LunarLander-v3 --rounds 9 --threshold LunarLander-v3=200
"""

import argparse
import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from common import (
    code_hash,
    make_parser,
    markdown_table,
    merge_rows,
    positive_int,
    provenance,
    provenance_line,
    read_json,
    write_results,
)
from contenders import use_one_thread
from torch import distributed
from tqdm import tqdm

from sb3_reinforce import REINFORCE
from sb3_reinforce.estimators import Estimator
from sb3_reinforce.joint_training import JointTraining
from sb3_reinforce.ranks import Ranks

NAME = "ranks"
SPEED_KEY = ("env", "n_ranks", "round", "n_envs", "n_steps", "steps", "code_hash")
THRESHOLD_KEY = ("env", "n_ranks", "seed", "threshold", "max_steps", "code_hash")
#: What differs between the runs of a row, or of a table.
REPEATED = ("n_ranks", "round", "seed")
#: Ranks of the computed table.
MANY_RANKS = (2, 8, 64, 512)
#: Repetitions of a reduction whose cost is measured, and draws of the slowest of many ranks.
N_REPETITIONS, N_DRAWS = 50, 2_000
#: Processes that are started at random take a port that is free.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def env_and_score(text: str) -> tuple[str, float]:
    env_id, separator, score = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be ENV=SCORE, not {text}")
    return env_id, float(score)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--env", nargs="*", default=["CartPole-v1", "LunarLander-v3", "HalfCheetah-v5"], help="environments")
    parser.add_argument(
        "--ranks", type=positive_int, nargs="+", default=[1, 2], help="numbers of ranks, the first is compared with"
    )
    parser.add_argument("--rounds", type=positive_int, default=5, help="times that each number of ranks has its turn")
    parser.add_argument("--steps", type=positive_int, default=100_000, help="environment steps of each rank per round")
    parser.add_argument("--n-envs", type=positive_int, default=8, help="environments of each rank, in a DummyVecEnv")
    parser.add_argument("--n-steps", type=positive_int, default=256, help="steps of each environment per update")
    parser.add_argument(
        "--threshold",
        type=env_and_score,
        nargs="*",
        default=[("CartPole-v1", 475.0), ("LunarLander-v3", 200.0)],
        metavar="ENV=SCORE",
        help="mean of the last 100 training episodes to reach, with the entry of hyperparams/reinforce.yml",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(3)), help="seeds of the runs to a threshold")
    parser.add_argument("--max-steps", type=positive_int, default=2_000_000, help="steps after which such a run is given up")
    return parser.parse_args(arguments)


# In the processes that torchrun starts


@contextlib.contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Note the seconds of every call of a method."""
    original, seconds = getattr(owner, name), []

    @functools.wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    setattr(owner, name, noting)
    try:
        yield seconds
    finally:
        setattr(owner, name, original)


def cost_of(function: Callable[[], Any]) -> float:
    """Median seconds of a call that nobody has to wait for."""
    seconds = []
    for _ in range(N_REPETITIONS):
        if distributed.is_initialized():
            distributed.barrier()
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def measure_speed(spec: dict[str, Any]) -> dict[str, Any]:
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(spec["env"], n_envs=spec["n_envs"])
    model = REINFORCE("MlpPolicy", env, n_steps=spec["n_steps"], seed=spec["round"], device="cpu", distributed=True)
    ranks: Ranks = model._joint.ranks
    model.learn(spec["warmup_steps"] * ranks.size)
    with contextlib.ExitStack() as stack:
        collection, exchange, weighing = (
            stack.enter_context(timed(owner, name))
            for owner, name in ((REINFORCE, "_collect"), (JointTraining, "collect"), (Estimator, "__call__"))
        )
        communication = [
            stack.enter_context(timed(distributed, name))
            for name in ("all_reduce", "all_gather_object", "broadcast_object_list")
        ]
        steps_before, updates_before = model.num_timesteps, model._n_updates
        ranks.broadcast(lambda: 0)
        for seconds in communication:
            seconds.clear()
        start = time.perf_counter()
        model.learn(spec["steps"] * ranks.size, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        communicated = [sum(calls) for calls in communication]
        n_reductions = len(communication[0])
    n_updates = model._n_updates - updates_before
    n_parameters = sum(parameter.numel() for parameter in model.policy.parameters())
    step_weights = np.zeros(model.rollout_buffer.n_counted_steps)
    return {
        "seconds": seconds,
        "steps_made": model.num_timesteps - steps_before,
        "n_updates": n_updates,
        "communication": sum(communicated) / seconds,
        "waiting": (sum(exchange) - sum(collection)) / seconds,
        "collection_seconds": ranks.gather(lambda: collection),
        "weighing_seconds": sum(weighing) / n_updates,
        "reductions_per_update": n_reductions / n_updates,
        "reduction_seconds": cost_of(lambda: ranks.sum(th.zeros(n_parameters))),
        "gather_seconds": cost_of(lambda: ranks.gather(lambda: (step_weights, step_weights))),
    }


def measure_threshold(spec: dict[str, Any]) -> dict[str, Any]:
    from time_to_threshold import N_EVAL_ENVS, StopAtThreshold

    from sb3_reinforce.zoo import hyperparams_path, register
    from sb3_reinforce.zoo.distributed import DistributedExperimentManager

    register()
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        manager = DistributedExperimentManager(
            argparse.Namespace(),
            "reinforce",
            spec["env"],
            folder,
            ranks=ranks,
            eval_freq=-1,
            seed=spec["seed"],
            verbose=0,
            device="cpu",
            config=str(hyperparams_path()),
        )
        experiment = manager.setup_experiment()
        assert experiment is not None
        model, _ = experiment
        callback = StopAtThreshold(spec["threshold"], spec["max_steps"], manager.create_envs(N_EVAL_ENVS, eval_env=True))
        callback.start = time.perf_counter()
        model.learn(spec["max_steps"], callback=[*manager.callbacks, callback])
    return {"seconds": callback.seconds, "steps_made": model.num_timesteps, "reached": callback.reached, "mean": callback.mean}


def work(text: str) -> None:
    use_one_thread()
    spec = json.loads(text)
    result = (measure_threshold if "threshold" in spec else measure_speed)(spec)
    if os.environ["RANK"] == "0":
        Path(spec["output"]).write_text(json.dumps(result))


# In the process that starts them


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Let torchrun start the ranks, and return what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "result.json")
        command = [*TORCHRUN, "--nproc-per-node", str(spec["n_ranks"]), __file__, "--worker"]
        process = subprocess.Popen([*command, json.dumps({**spec, "output": str(output)})], stderr=subprocess.PIPE, text=True)
        try:
            _, errors = process.communicate()
        finally:
            # torchrun ends its processes
            process.terminate()
            process.wait()
        if process.returncode != 0:
            raise RuntimeError(f"{spec}:\n{errors}")
        result: dict[str, Any] = json.loads(output.read_text())
    return result


def speed_specs(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {
            "env": env_id,
            "n_ranks": n_ranks,
            "round": round_number,
            "n_envs": options.n_envs,
            "n_steps": options.n_steps,
            "steps": options.steps,
            "warmup_steps": min(5_000, options.steps),
            "code_hash": code_hash(),
        }
        for env_id in options.env
        for round_number in range(options.rounds)
        for n_ranks in options.ranks
    ]


def threshold_specs(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {
            "env": env_id,
            "n_ranks": n_ranks,
            "seed": seed,
            "threshold": score,
            "max_steps": options.max_steps,
            "code_hash": code_hash(),
        }
        for env_id, score in options.threshold
        for seed in options.seeds
        for n_ranks in options.ranks
    ]


def is_done(rows: Sequence[dict[str, Any]], spec: dict[str, Any], key_names: Sequence[str]) -> bool:
    return any(all(row[name] == spec[name] for name in key_names) for row in rows)


def steps_per_second(rows: Sequence[dict[str, Any]]) -> float:
    return float(np.median([row["steps_made"] / row["seconds"] for row in rows]))


def speed_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds; the ratio is that of the rounds, one by one."""
    table = []
    for env_id in dict.fromkeys(row["env"] for row in rows):
        of_env = [row for row in rows if row["env"] == env_id]
        first = min(row["n_ranks"] for row in of_env)
        base = {row["round"]: row["steps_made"] / row["seconds"] for row in of_env if row["n_ranks"] == first}
        for n_ranks in sorted({row["n_ranks"] for row in of_env}):
            own = [row for row in of_env if row["n_ranks"] == n_ranks]
            ratios = [row["steps_made"] / row["seconds"] / base[row["round"]] for row in own if row["round"] in base]
            table.append(
                {
                    "environment": env_id,
                    "ranks": n_ranks,
                    "rounds": len(own),
                    "steps/s": f"{steps_per_second(own):,.0f}",
                    "ratio": f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "",
                    "communication": f"{np.median([row['communication'] for row in own]):.1%}",
                    "of it waiting for the last episode": f"{np.median([row['waiting'] for row in own]):.1%}",
                    "load": f"{np.mean([row['load'] for row in own]):.1f}",
                }
            )
    return table


def expected_seconds(rows: Sequence[dict[str, Any]], n_ranks: int) -> float:
    """
    Compute what an update lasts with many ranks, from what was measured with one and with several.

    The slowest of the ranks' collections is drawn from those of one rank; reductions cost as much more as the logarithm of
    the number of ranks, gathers and the weighing of all steps as much more as the number itself.
    """
    alone = [row for row in rows if row["n_ranks"] == 1]
    together = [row for row in rows if row["n_ranks"] > 1]
    collections = np.concatenate([row["collection_seconds"][0] for row in alone])
    slowest = np.random.default_rng(0).choice(collections, (N_DRAWS, n_ranks)).max(axis=1).mean()
    weighing = np.median([row["weighing_seconds"] for row in alone])
    rest = np.median([row["seconds"] / row["n_updates"] for row in alone]) - collections.mean() - weighing
    reductions = gathers = 0.0
    if n_ranks > 1:
        reductions = np.median(
            [row["reductions_per_update"] * row["reduction_seconds"] / np.log2(row["n_ranks"]) for row in together]
        ) * np.log2(n_ranks)
        # Of what the episodes gave, and of what the ranks report
        gathers = 2 * np.median([row["gather_seconds"] / row["n_ranks"] for row in together]) * n_ranks
    return float(slowest + rest + weighing * n_ranks + reductions + gathers)


def expectation_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for env_id in dict.fromkeys(row["env"] for row in rows):
        of_env = [row for row in rows if row["env"] == env_id]
        if {1} < {min(row["n_ranks"], 2) for row in of_env}:
            alone = expected_seconds(of_env, 1)
            ratios = {n_ranks: n_ranks * alone / expected_seconds(of_env, n_ranks) for n_ranks in MANY_RANKS}
            table.append(
                {"environment": env_id} | {f"{n} ranks": f"{ratio:.1f} ({ratio / n:.0%})" for n, ratio in ratios.items()}
            )
    return table


def threshold_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for env_id, n_ranks in dict.fromkeys((row["env"], row["n_ranks"]) for row in rows):
        own = [row for row in rows if (row["env"], row["n_ranks"]) == (env_id, n_ranks)]
        reached = [row for row in own if row["reached"]]
        table.append(
            {
                "environment": env_id,
                "threshold": own[0]["threshold"],
                "ranks": n_ranks,
                "reached": f"{len(reached)} of {len(own)}",
                "steps": f"{np.median([row['steps_made'] for row in reached]):,.0f}" if reached else "",
                "seconds": f"{np.median([row['seconds'] for row in reached]):.1f}" if reached else "",
                "load": f"{np.mean([row['load'] for row in own]):.1f}",
            }
        )
    return table


def describe(content: dict[str, Any]) -> str:
    parts = ["# One training with several ranks", provenance_line(content["provenance"])]
    if content["speed"]:
        parts += [
            "## Steps per second",
            "Median over the rounds; of the ratio to the fewest ranks, which take turns with the others, also the range. "
            "Communication is the share of the time that rank 0 spends in reductions and gathers, waiting included. The load "
            "is the machine's average before each run: above its number of cores less that of the ranks, they share cores.",
            markdown_table(speed_table(content["speed"])),
        ]
        if expectations := expectation_table(content["speed"]):
            parts += [
                "## What to expect of many ranks (computed, not measured)",
                "Steps per second as a multiple of those of one rank, and the share of a perfect multiple. Computed from the "
                "seconds of one rank's rollouts, of which all ranks wait for the slowest, and from the cost of reductions and "
                "gathers between ranks on one machine without waiting: a reduction costs as much more as the logarithm of the "
                "number of ranks, gathers and the weighing of all steps as much more as the number itself. A network is "
                "slower than one machine, and every rank needs a core of its own.",
                markdown_table(expectations),
            ]
    if content["threshold"]:
        parts += [
            "## Time to a threshold",
            "Median steps (of all ranks) and seconds until the mean of the last 100 training episodes is there, and 100 other "
            "episodes confirm it, with the same hyperparameters: `n_steps` is a budget of each environment, so that an update "
            "of two ranks holds twice as much.",
            markdown_table(threshold_table(content["threshold"])),
        ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--worker"]:
        work(arguments[1])
        return
    options = parse(arguments)
    content = read_json(options.results_dir / f"{NAME}.json") or {"speed": [], "threshold": []}
    content["provenance"] = provenance(NAME, arguments, options.seeds)
    kinds = (("speed", SPEED_KEY, speed_specs(options)), ("threshold", THRESHOLD_KEY, threshold_specs(options)))
    for kind, key_names, specs in kinds:
        # Of other sources or settings nothing is kept: a row of the table is about one code and one question
        asked = {spec["env"]: {name: spec[name] for name in key_names if name not in REPEATED} for spec in specs}
        content[kind] = [
            row for row in content[kind] if row["code_hash"] == code_hash() and {**row, **asked.get(row["env"], {})} == row
        ]
        for spec in tqdm(specs, desc=kind, disable=None):
            if not is_done(content[kind], spec, key_names):
                load = os.getloadavg()[0]
                content[kind] = merge_rows(content[kind], {**spec, "load": load, **run(spec)}, key_names)
                write_results(options.results_dir, NAME, content, describe(content))
    write_results(options.results_dir, NAME, content, describe(content))


if __name__ == "__main__":
    main(sys.argv[1:])
