"""
Aggregate over the environments of several comparisons.

Reports of ``sb3-reinforce compare`` aggregate over the environments of one comparison, of which every run has the same budget
and every environment the same seeds. Comparisons with other budgets and numbers of seeds meet here: scores are normalised as
in each report, and of each environment the seeds count that all comparisons have. The same runs are also read at equal
steps: where the shortest run in an environment ended, in the learning curve of each.

    python benchmarks/compare_overall.py
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd

from sb3_reinforce.zoo.compare import statistics, summary
from sb3_reinforce.zoo.compare.plan import SETTINGS_FILE, read_settings
from sb3_reinforce.zoo.compare.results import Results, read_results
from sb3_reinforce.zoo.compare.statistics import FloatArray

NAME = "compare_overall"
FOLDERS = [common.RESULTS_DIR / "compare" / name for name in ("classic", "mujoco")]


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


def keep_contenders(results: Results, names: Collection[str]) -> Results:
    """Leave out the others, so that they do not decide how many steps all have taken."""
    runs, curves = (table[table["contender"].isin(names)] for table in (results.runs, results.curves))
    return results._replace(runs=runs, curves=curves)


def common_steps(results: Results) -> dict[str, int]:
    """Find for every environment the steps that all of its runs had taken by their last evaluations."""
    ends = results.curves.groupby(["env", "contender", "seed"])["steps"].max()
    return {env_id: int(ends[env_id].min()) for env_id in results.environments}


def at_equal_steps(results: Results) -> Results:
    """Put the score that the learning curve has at the common steps in the place of the final one."""
    steps = common_steps(results)
    curves = results.curves.sort_values("steps").groupby(["env", "contender", "seed"])

    def score(run: pd.Series) -> float:
        curve = curves.get_group((run["env"], run["contender"], run["seed"]))
        return float(np.interp(steps[run["env"]], curve["steps"], curve["score"]))

    return results._replace(runs=results.runs.assign(score=results.runs.apply(score, axis=1)))


def describe(
    comparisons: Sequence[Results], scores: dict[str, FloatArray], overall: statistics.Overall, kind: str
) -> list[str]:
    """Write who is ahead, the aggregates, and where they come from."""
    env_ids = [env_id for results in comparisons for env_id in results.environments]
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
    return [
        *([summary.describe_aggregate(overall).replace("final scores", kind)] if overall.everywhere else []),
        common.markdown_table(aggregates),
        "Means over the seeds, of each environment:",
        common.markdown_table(means),
    ]


def main(arguments: Sequence[str]) -> None:
    options = parse_options(arguments)
    comparisons = [read_comparison(folder) for folder in options.folders]
    scores, seeds = join_environments(comparisons)
    made_by = common.provenance(NAME, arguments, seeds)
    overall = statistics.over_environments(scores)
    in_all = [keep_contenders(results, scores) for results in comparisons]
    steps_scores, _ = join_environments([at_equal_steps(results) for results in in_all])
    steps_overall = statistics.over_environments(steps_scores)
    env_ids = [env_id for results in comparisons for env_id in results.environments]
    steps = {env_id: n_steps for results in in_all for env_id, n_steps in common_steps(results).items()}

    budgets = [
        {"comparison": folder.name, "environments": summary.join(results.environments), "budget of a run": budget(results)}
        for folder, results in zip(options.folders, comparisons, strict=True)
    ]
    parts = [
        f"# {len(env_ids)} environments together",
        "## With the whole budget",
        *describe(comparisons, scores, overall, "final scores"),
        "Scores with the likeliest actions, scaled as in the reports: random actions, and all that is worse, have 0, "
        "the best run of the comparison has 1. Intervals are 95 % intervals of a bootstrap, widened for few seeds, over "
        f"the seeds {', '.join(map(str, seeds))}, which all comparisons have.",
        "## At equal steps",
        *describe(comparisons, steps_scores, steps_overall, "scores at equal steps"),
        "The same runs, read off their learning curves where the shortest of an environment ended: "
        f"{summary.join(f'{n_steps:,} ({env_id})' for env_id, n_steps in steps.items())}. Evaluations during a run have fewer "
        "episodes than the final one, and step sizes that decay with the budget have hardly done so at this point of a run "
        "that takes many steps in its time. Scaled by the best run at these steps.",
        common.markdown_table(budgets),
        *(sentence for results in comparisons for sentence in summary.describe_untuned(results.settings)),
        common.provenance_line(made_by),
    ]
    content = {
        "provenance": made_by,
        "comparisons": budgets,
        "environments": env_ids,
        **as_json(scores, overall),
        "at_equal_steps": {"steps": steps, **as_json(steps_scores, steps_overall)},
    }
    common.write_results(options.results_dir, NAME, content, "\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


def as_json(scores: dict[str, FloatArray], overall: statistics.Overall) -> dict[str, Any]:
    return {
        # JSON has no NaN
        "scores": {name: np.where(np.isnan(matrix), None, matrix).tolist() for name, matrix in scores.items()},
        "aggregates": {
            aggregate: {name: list(estimate) for name, estimate in estimates.items()}
            for aggregate, estimates in overall.aggregates.items()
        },
    }


def budget(results: Results) -> str:
    return summary.describe_extent(results).rpartition(", ")[2].rstrip(".")


if __name__ == "__main__":
    main(sys.argv[1:])
