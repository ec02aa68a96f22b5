"""
How far the intervals and the claims of ``sb3-reinforce compare`` can be trusted with few seeds, by simulation.

Five algorithms with the same distribution of scores are compared repeatedly: how often is the leader, which has the highest
interquartile mean, declared above another, and how often do the intervals cover the true value? Then the first of them is
made better, to count how many of the other four it is declared above. Before: percentiles of a stratified bootstrap, and a
claim where two intervals do not overlap. After: the package's own method.

Finished rows are kept, so the script can be interrupted and started again.

    python benchmarks/interval_coverage.py
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import common
import numpy as np
import pandas as pd
from scipy.stats import trim_mean

from sb3_reinforce.zoo.compare import statistics
from sb3_reinforce.zoo.compare.statistics import FloatArray

NAME = "interval_coverage"
N_ENVS, N_SEEDS, N_ALGORITHMS = (4, 5, 9), (3, 5, 10), 5
#: Simulated runs that give the true value.
N_TRUE_RUNS = 20_000
KEYS = ["scores", "environments", "seeds", "n_sets"]
COLUMNS = [f"{name} {when}" for name in ("coverage", "false claims", "found") for when in ("before", "after")]
KINDS = {
    "normal": "normal, with the same spread in all environments; the better algorithm is higher by two standard deviations",
    "unlike": "normal, with a spread that falls from 0.3 in the first environment to 0.01 in the last; higher by 0.24",
    "skewed": "an exponential tail of bad runs; the better algorithm is higher by a standard deviation",
    "solved or not": "solved (1) or not (0.2) by the toss of a coin; the better algorithm solves with a probability of 0.9",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument("--n-sets", type=common.positive_int, default=800, help="simulated comparisons of each kind and size")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS), help="distributions of scores")
    return parser.parse_args(arguments)


def simulate(kind: str, shape: tuple[int, ...], rng: np.random.Generator, better: bool = False) -> FloatArray:
    """Draw scores of shape (..., runs, environments), on a scale where random actions score 0."""
    level = np.linspace(0.35, 0.9, shape[-1])
    if kind == "solved or not":
        solved = rng.random(shape) < (0.9 if better else 0.5)
        return np.where(solved, 1.0, 0.2) + 0.03 * rng.standard_normal(shape)
    if kind == "skewed":
        return level + 0.25 - 0.25 * rng.exponential(size=shape) + 0.25 * better
    spread = 0.12 if kind == "normal" else np.geomspace(0.3, 0.01, shape[-1])
    return level + spread * rng.standard_normal(shape) + 0.24 * better


def interquartile_mean(scores: FloatArray) -> FloatArray:
    return np.asarray(trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1))


def compare(scores: FloatArray, rng: np.random.Generator) -> tuple[int, list[bool], list[bool], FloatArray]:
    """Return the leader, whether each rule, old and new, declares it above each other, and all percentile intervals."""
    bootstraps = [interquartile_mean(statistics.draw_runs(own, 500, rng)) for own in scores]
    intervals = np.percentile(bootstraps, [2.5, 97.5], axis=1).T
    leader = int(interquartile_mean(scores).argmax())
    others = [index for index in range(len(scores)) if index != leader]
    p_values = statistics.compare_iqm({str(index): own for index, own in enumerate(scores)})
    before = [bool(intervals[leader, 0] > intervals[other, 1]) for other in others]
    after = [p_values[frozenset((str(leader), str(other)))] < statistics.LEVEL for other in others]
    return leader, before, after, intervals


def measure(kind: str, n_envs: int, n_seeds: int, n_sets: int) -> list[dict[str, Any]]:
    """Return the rates as a row; every fourth comparison, which is enough, is repeated with one better algorithm."""
    # A twentieth of the usual number: each p-value is less exact, but their distribution is the same
    statistics.PERMUTATIONS = 500
    rng = np.random.default_rng(0)
    true_scores = simulate(kind, (N_TRUE_RUNS, n_envs), rng)
    found: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for index in range(n_sets):
        raw = simulate(kind, (N_ALGORITHMS, n_seeds, n_envs), rng)
        best = raw.max(axis=(0, 1))
        scores = np.maximum(raw / best, 0.0)
        _, before, after, intervals = compare(scores, rng)
        found["false claims before"].append(any(before))
        found["false claims after"].append(any(after))
        truth = float(interquartile_mean(np.maximum(true_scores / best, 0.0)))
        low, high = statistics.bootstrap([scores[0]], interquartile_mean)[1:]
        found["coverage before"].append(float(np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))))
        found["coverage after"].append(low <= truth <= high)
        if index % 4 == 0:
            raw[0] = simulate(kind, (n_seeds, n_envs), rng, better=True)
            leader, before, after, _ = compare(np.maximum(raw / raw.max(axis=(0, 1)), 0.0), rng)
            found["found before"].append(float(np.mean(before)) * (leader == 0))
            found["found after"].append(float(np.mean(after)) * (leader == 0))
    rates = {name: float(np.mean(values)) for name, values in found.items()}
    return [{"scores": kind, "environments": n_envs, "seeds": n_seeds, "n_sets": n_sets, **rates}]


def make_page(results: pd.DataFrame) -> str:
    table = [
        {name: f"{value:.0%}".replace("%", " %") if name in COLUMNS else value for name, value in row.items()}
        for row in results[["scores", "environments", "seeds", *COLUMNS]].to_dict("records")
    ]
    n_sets = int(results["n_sets"].iloc[0])
    error = 200.0 * np.sqrt(0.05 * 0.95 / n_sets)
    parts = [
        "# Intervals and claims with few seeds",
        f"{n_sets} simulated comparisons of five algorithms in each row, so that a rate of 5 % is known to {error:.0f} "
        "points. Coverage: how often the 95 % interval of an interquartile mean contains the true value. False claims: how "
        "often the leader of five equal algorithms is declared above another. Found: the share of the other four that a "
        "better algorithm is declared above. Before: percentiles of a stratified bootstrap, and a claim where two intervals "
        "do not overlap.",
        "\n".join(f"- {kind}: {description}" for kind, description in KINDS.items()),
        common.make_table(table),
    ]
    return common.make_page(parts, results)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    path = options.results_dir / f"{NAME}.csv"
    cells = itertools.product([] if options.report_only else options.kinds, N_ENVS, N_SEEDS, [options.n_sets])
    results = common.measure_missing(path, KEYS, cells, measure, arguments)
    common.write_results(path, results, make_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
