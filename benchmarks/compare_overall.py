"""
Aggregate over the environments of several comparisons.

Reports of ``sb3-reinforce compare`` aggregate over the environments of one comparison, of which every run has the same budget
and every environment the same seeds. Comparisons with other budgets and numbers of seeds meet here: scores are normalised as
in each report, and of each environment the seeds count that all comparisons have.

    python benchmarks/compare_overall.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np

from sb3_reinforce.zoo.compare import statistics, summary
from sb3_reinforce.zoo.compare.plan import SETTINGS_FILE, read_settings
from sb3_reinforce.zoo.compare.results import Results, read_results
from sb3_reinforce.zoo.compare.statistics import FloatArray

NAME = "compare_overall"
FOLDERS = [common.RESULTS_DIR / "compare" / name for name in ("classic", "mujoco_100_seconds")]


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument("--folders", nargs="+", type=Path, default=FOLDERS, help="folders of finished comparisons")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not (folder / SETTINGS_FILE).exists():
            parser.error(f"--folders: {folder} holds no comparison")
    return options


def read_comparison(folder: Path) -> Results:
    results = read_results(folder, read_settings(folder), thresholds={})
    if results.missing:
        raise SystemExit(f"{folder} is not finished: {len(results.missing)} runs are missing")
    return results


def join_environments(comparisons: Sequence[Results]) -> tuple[dict[str, FloatArray], list[int]]:
    """Put the environments of all comparisons side by side, for the contenders and seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(results.settings.seeds) for results in comparisons)))
    tables = [results.normalised() for results in comparisons]
    rows = [[results.settings.seeds.index(seed) for seed in seeds] for results in comparisons]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    if len(seeds) < 2 or not names:
        raise SystemExit(f"intervals need two seeds, and at least one contender: all comparisons have {seeds} and {names}")
    return {
        name: np.hstack([table[name][own_rows] for table, own_rows in zip(tables, rows, strict=True)]) for name in names
    }, seeds


def main(arguments: Sequence[str]) -> None:
    options = parse_options(arguments)
    comparisons = [read_comparison(folder) for folder in options.folders]
    scores, seeds = join_environments(comparisons)
    made_by = common.provenance(NAME, arguments, seeds)
    overall = statistics.over_environments(scores)
    env_ids = [env_id for results in comparisons for env_id in results.environments]

    budgets = [
        {"comparison": folder.name, "environments": summary.join(results.environments), "budget of a run": budget(results)}
        for folder, results in zip(options.folders, comparisons, strict=True)
    ]
    aggregates = [
        {"": name}
        | {aggregate: summary.write(estimates[name]) for aggregate, estimates in overall.aggregates.items()}
        | {"environments": int((~np.isnan(matrix)).any(axis=0).sum())}
        for name, matrix in scores.items()
    ]
    means = [
        {"environment": env_id}
        | {
            name: "cannot act" if np.isnan(mean := matrix[:, column].mean()) else f"{mean:.2f}"
            for name, matrix in scores.items()
        }
        for column, env_id in enumerate(env_ids)
    ]
    parts = [
        f"# {len(env_ids)} environments together",
        *([summary.describe_aggregate(overall)] if overall.everywhere else []),
        common.markdown_table(aggregates),
        "Final scores with the likeliest actions, scaled as in the reports: random actions, and all that is worse, have 0, "
        "the best run of the comparison has 1. Intervals are 95 % stratified bootstrap intervals (rliable) over the seeds "
        f"{', '.join(map(str, seeds))}, which all comparisons have.",
        "## Where it comes from\n\nMeans over these seeds:",
        common.markdown_table(means),
        common.markdown_table(budgets),
        common.provenance_line(made_by),
    ]
    content = {
        "provenance": made_by,
        "comparisons": budgets,
        "environments": env_ids,
        # JSON has no NaN
        "scores": {name: np.where(np.isnan(matrix), None, matrix).tolist() for name, matrix in scores.items()},
        "aggregates": {
            aggregate: {name: list(estimate) for name, estimate in estimates.items()}
            for aggregate, estimates in overall.aggregates.items()
        },
    }
    common.write_results(options.results_dir, NAME, content, "\n\n".join(parts) + "\n")
    print("\n\n".join(parts[:3]))


def budget(results: Results) -> str:
    return summary.describe_extent(results).rpartition(", ")[2].rstrip(".")


if __name__ == "__main__":
    main(sys.argv[1:])
