"""
Memory of one huge rollout and its update, and time of an update against the size of its batch.

A fresh process collects one rollout of CartPole (a million steps), updates on it in micro-batches, and reports its peak
resident memory right after the imports and at the end. Rollouts of growing size are collected once each, and their updates
are timed alternately.

    python benchmarks/memory.py
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    import pandas as pd

NAME = "memory"
ENV = "CartPole-v1"
SEED = 0
DEFAULT_SIZES = [1_000 * 2**exponent for exponent in range(9)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add("--steps", type=common.positive_int, default=1_000_000, help="steps of the rollout whose memory is measured")
    add("--micro-batch-size", type=common.positive_int, default=16_384, help="micro_batch_size of REINFORCE")
    add("--sizes", type=common.positive_int, nargs="+", default=DEFAULT_SIZES, help="batch sizes to time updates of")
    add("--rounds", type=common.positive_int, default=5, help="times that all sizes are timed in turn")
    add("--measure-rollout", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_rollout_here(n_steps: int, micro_batch_size: int) -> dict[str, Any]:
    """One rollout and its update; must be the first thing that a process does."""
    before_imports = peak_memory()
    import torch as th

    from sb3_reinforce import REINFORCE

    after_imports = peak_memory()
    if after_imports <= before_imports:
        # Linux hands a parent's peak down to its children, and below such a peak nothing can be seen
        raise RuntimeError("The process that started this one was larger than the imports: start it from a small one.")
    th.set_num_threads(1)
    model = REINFORCE("MlpPolicy", ENV, n_steps=n_steps, micro_batch_size=micro_batch_size, seed=SEED, device="cpu")
    start = time.perf_counter()
    model.learn(n_steps)
    return {
        "measured": "rollout",
        "micro_batch_size": micro_batch_size,
        "steps": model.num_timesteps,
        "round": 0,
        "seconds": time.perf_counter() - start,
        "bytes_after_imports": after_imports,
        "peak_bytes": peak_memory(),
    }


def measure_rollout(options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--measure-rollout"]
    command += ["--steps", str(options.steps), "--micro-batch-size", str(options.micro_batch_size)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=common.REPOSITORY)
    if child.returncode != 0:
        raise RuntimeError(f"The measured process failed:\n{child.stderr}")
    measured: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return measured


def measure_updates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time updates on rollouts of one environment, each warmed up by an update before."""
    import torch as th
    from tqdm import tqdm

    from sb3_reinforce import REINFORCE

    th.set_num_threads(1)
    models = []
    for size in tqdm(options.sizes, desc="collecting"):
        model = REINFORCE("MlpPolicy", ENV, n_steps=size, seed=SEED, device="cpu").learn(size)
        model.train()
        models.append((model.num_timesteps, model))
    rows = []
    for round_number in tqdm(range(options.rounds), desc="updating"):
        for steps, model in models:
            for micro_batch_size in (None, options.micro_batch_size):
                model.micro_batch_size = micro_batch_size
                start = time.perf_counter()
                model.train()
                seconds = time.perf_counter() - start
                row = {"measured": "update", "micro_batch_size": micro_batch_size, "steps": steps}
                rows.append(row | {"round": round_number, "seconds": seconds})
    return rows


def make_page(results: "pd.DataFrame") -> str:
    import numpy as np

    (rollout,) = results[results["measured"] == "rollout"].to_dict("records")
    after_imports, peak = rollout["bytes_after_imports"] / 1e6, rollout["peak_bytes"] / 1e6
    memory = {
        "steps": f"{rollout['steps']:,}",
        "micro_batch_size": f"{rollout['micro_batch_size']:,.0f}",
        "after imports": f"{after_imports:.0f} MB",
        "peak": f"{peak:.0f} MB",
        "above imports": f"{peak - after_imports:.0f} MB",
    }
    updates = results[results["measured"] == "update"]
    updates = updates.assign(kind=np.where(updates["micro_batch_size"].isna(), "in one piece", "in micro-batches"))
    medians = updates.pivot_table(index="steps", columns="kind", values="seconds", aggfunc="median")[updates["kind"].unique()]
    times = [
        {"steps in the batch": f"{steps:,}"}
        | {f"ms {kind}": f"{seconds * 1e3:.1f}" for kind, seconds in row.items()}
        | {f"µs per step {kind}": f"{seconds * 1e6 / steps:.2f}" for kind, seconds in row.items()}
        for steps, row in medians.iterrows()
    ]
    parts = [
        "# Memory and time of an update",
        "## One rollout and its update",
        common.make_table([memory]),
        f"{ENV}, one environment, a fresh process; peak resident memory (`ru_maxrss`) right after the imports and at the end.",
        "## Time against batch size",
        common.make_table(times),
        "Medians over rounds in which the sizes take turns; an update is the policy's step and the critic's default epochs.",
    ]
    return common.make_page(parts, results)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if options.measure_rollout:
        print(json.dumps(measure_rollout_here(options.steps, options.micro_batch_size)))
        return
    path = options.results_dir / f"{NAME}.csv"
    if options.report_only:
        results = common.read_results(path)
    else:
        provenance = common.make_provenance(NAME, arguments)
        # The process that is measured must be started by a small one
        rollout = measure_rollout(options)
        updates = measure_updates(options)

        import pandas as pd

        results = pd.DataFrame([rollout, *updates]).astype({"bytes_after_imports": "Int64", "peak_bytes": "Int64"})
        results = results.assign(**provenance)
    common.write_results(path, results, make_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
