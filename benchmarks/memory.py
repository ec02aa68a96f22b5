"""
Memory of one huge rollout and its update, and time of an update against the size of its batch.

(a) A fresh process collects one rollout of CartPole (a million steps), updates on it in micro-batches, and reports its
peak resident memory above what it was after the imports. (b) Rollouts of growing size are collected once each, and
their updates timed in turn; a line through the logarithms shows with which power of the size the time grows.

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
from typing import Any

from common import REPOSITORY, make_parser, markdown_table, positive_int, provenance, provenance_line, write_results

NAME = "memory"
ENV = "CartPole-v1"
SEED = 0
MEGABYTE = 1_000_000
DEFAULT_SIZES = [1_000 * 2**exponent for exponent in range(9)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=positive_int, default=1_000_000, help="steps of the rollout whose memory is measured")
    parser.add_argument("--micro-batch-size", type=positive_int, default=16_384, help="micro_batch_size of REINFORCE")
    parser.add_argument("--limit-mb", type=float, default=300.0, help="megabytes (10^6 bytes) that the rollout may take")
    parser.add_argument("--sizes", type=positive_int, nargs="+", default=DEFAULT_SIZES, help="batch sizes to time updates of")
    parser.add_argument("--rounds", type=positive_int, default=5, help="times that all sizes are timed in turn")
    parser.add_argument("--measure-rollout", action="store_true", help=argparse.SUPPRESS)
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
        "n_steps": n_steps,
        "micro_batch_size": micro_batch_size,
        "steps": model.num_timesteps,
        "n_updates": model._n_updates,
        "seconds": time.perf_counter() - start,
        "peak_after_imports_bytes": after_imports,
        "peak_bytes": peak_memory(),
        "above_imports_bytes": peak_memory() - after_imports,
    }


def measure_rollout(options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--measure-rollout"]
    command += ["--steps", str(options.steps), "--micro-batch-size", str(options.micro_batch_size)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if child.returncode != 0:
        raise RuntimeError(f"The measured process failed:\n{child.stderr}")
    measured: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return measured | {"limit_bytes": int(options.limit_mb * MEGABYTE)}


def collect(n_steps: int, micro_batch_size: int) -> Any:
    """Make a model that holds a rollout of one environment, and has updated on it once, which warms it up."""
    from sb3_reinforce import REINFORCE

    model = REINFORCE("MlpPolicy", ENV, n_steps=n_steps, seed=SEED, device="cpu")
    model.learn(n_steps)
    model.micro_batch_size = micro_batch_size
    model.train()
    return model


def measure_updates(options: argparse.Namespace, progress: Any) -> list[dict[str, Any]]:
    models = []
    for size in options.sizes:
        progress.set_postfix_str(f"collecting {size:,} steps")
        models.append(collect(size, options.micro_batch_size))
        progress.update()
    kinds = {"in one piece": None, "in micro-batches": options.micro_batch_size}
    rounds: list[dict[str, list[float]]] = [{kind: [] for kind in kinds} for _ in models]
    for round_idx in range(options.rounds):
        progress.set_postfix_str(f"updates, round {round_idx + 1}")
        for model, seconds in zip(models, rounds, strict=True):
            for kind, micro_batch_size in kinds.items():
                model.micro_batch_size = micro_batch_size
                start = time.perf_counter()
                model.train()
                seconds[kind].append(time.perf_counter() - start)
        progress.update()
    return [
        {"batch_size": model.rollout_buffer.n_counted_steps, "rounds": seconds}
        for model, seconds in zip(models, rounds, strict=True)
    ]


def add_statistics(updates: list[dict[str, Any]]) -> dict[str, float]:
    """Add medians to the rows, and return the slopes of the fitted lines."""
    import numpy as np

    for row in updates:
        row["median_seconds"] = {kind: float(np.median(seconds)) for kind, seconds in row["rounds"].items()}

    def slope(rows: list[dict[str, Any]], kind: str) -> float:
        sizes = [row["batch_size"] for row in rows]
        return float(np.polyfit(np.log(sizes), np.log([row["median_seconds"][kind] for row in rows]), deg=1)[0])

    slopes = {}
    if len(updates) > 1:
        larger = updates[len(updates) // 2 :]
        for kind in updates[0]["median_seconds"]:
            slopes[kind] = slope(updates, kind)
            # What an update costs at any size flattens the line at small ones
            if len(larger) > 1:
                slopes[f"{kind}, larger half of the sizes"] = slope(larger, kind)
    return slopes


def draw(updates: list[dict[str, Any]], slopes: dict[str, float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    panel = figure.subplots()
    sizes = [row["batch_size"] for row in updates]
    for kind in updates[0]["median_seconds"]:
        label = f"{kind} (slope {slopes[kind]:.2f})" if kind in slopes else kind
        panel.loglog(sizes, [row["median_seconds"][kind] for row in updates], marker="o", label=label)
    last = updates[-1]["median_seconds"]["in one piece"]
    panel.loglog(sizes, [last * size / sizes[-1] for size in sizes], ":", color="gray", label="proportional (slope 1)")
    panel.set_xlabel("steps in the batch")
    panel.set_ylabel("seconds per update")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / MEGABYTE:.0f} MB"


def to_markdown(content: dict[str, Any]) -> str:
    rollout, slopes = content["rollout"], content["slopes"]
    memory = markdown_table(
        [
            {
                "steps": f"{rollout['steps']:,}",
                "micro_batch_size": f"{rollout['micro_batch_size']:,}",
                "after imports": _megabytes(rollout["peak_after_imports_bytes"]),
                "peak": _megabytes(rollout["peak_bytes"]),
                "above imports": _megabytes(rollout["above_imports_bytes"]),
                "limit": _megabytes(rollout["limit_bytes"]),
                "kept": "yes" if content["rollout_within_limit"] else "**no**",
            }
        ]
    )
    times = markdown_table(
        [
            {"steps in the batch": f"{row['batch_size']:,}"}
            | {f"ms {kind}": f"{seconds * 1e3:.1f}" for kind, seconds in row["median_seconds"].items()}
            | {
                f"µs per step {kind}": f"{seconds * 1e6 / row['batch_size']:.2f}"
                for kind, seconds in row["median_seconds"].items()
            }
            for row in content["updates"]
        ]
    )
    fitted = "; ".join(f"{kind}: {slope:.2f}" for kind, slope in slopes.items()) or "one size only"
    parts = [
        "# Memory and time of an update",
        f"## One rollout and its update\n\n{memory}",
        f"{ENV}, one environment, a fresh process; peak resident memory (`ru_maxrss`) right after the imports and at the end.",
        f"## Time against batch size\n\n{times}",
        "Medians over rounds in which all sizes ran in turn; an update is the policy's step and the critic's default epochs. "
        f"Slope of log(time) over log(size), 1 being linear: {fitted}.",
        f"![Time per update]({NAME}.png)",
        provenance_line(content["provenance"]),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if options.measure_rollout:
        print(json.dumps(measure_rollout_here(options.steps, options.micro_batch_size)))
        return
    from tqdm import tqdm

    made_by = provenance(NAME, arguments, [SEED])
    with tqdm(total=1 + len(options.sizes) + options.rounds, desc="memory, then time") as progress:
        progress.set_postfix_str(f"one rollout of {options.steps:,} steps")
        # Before PyTorch is imported here, see measure_rollout_here
        rollout = measure_rollout(options)
        progress.update()
        import torch as th

        th.set_num_threads(1)
        updates = measure_updates(options, progress)
    content = {
        "provenance": made_by,
        "rollout": rollout,
        "rollout_within_limit": rollout["above_imports_bytes"] < rollout["limit_bytes"],
        "updates": updates,
        "slopes": add_statistics(updates),
    }
    markdown = to_markdown(content)
    write_results(options.results_dir, NAME, content, markdown, draw(updates, content["slopes"]))
    print(markdown)


if __name__ == "__main__":
    main(sys.argv[1:])
