"""
Run a comparison from the README or docs with ``sb3-reinforce compare``, and save its results: one CSV with a row for each
run, a page made from it, and a few figures. ``comparisons.py`` lists the comparisons.

The runs are in logs/benchmarks/, where the same command continues after an interruption. Options that are not listed here are
passed to ``sb3-reinforce compare``. ``overall`` is the page on several comparisons together.

    python benchmarks/compare.py time_to_threshold
    python benchmarks/compare.py lectures --part corridor --jobs 2
    python benchmarks/compare.py classic --report-only
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from common import LOGS_DIR, make_parser, make_provenance, read_results, replace_rows, write_results, write_text
from comparisons import COMPARISONS, Comparison
from matplotlib.figure import Figure
from pages import OVERALL, OVERALL_ALGORITHMS, RANDOM, SNAPSHOTS, draw_aggregates, draw_dots, make_overall_page, make_page
from scipy.integrate import trapezoid

from sb3_reinforce.lab import plots
from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.cli import main as run_command
from sb3_reinforce.zoo.compare import cli, figures
from sb3_reinforce.zoo.compare.plan import Settings, read_settings
from sb3_reinforce.zoo.compare.results import Results
from sb3_reinforce.zoo.compare.results import read_results as read_comparison

#: New runs take the place of all that have these in common, so that no mean is over runs of different sources.
KEY = ["part", "env", "algorithm"]
#: Columns of ``results.csv``, and what they are called here.
COLUMNS = {
    "env": "env",
    "algorithm": "algorithm",
    "seed": "seed",
    "steps": "steps",
    "seconds": "seconds",
    "score": "score",
    "score_std_over_episodes": "score_std",
    "stochastic_score": "sampled_score",
    "stochastic_score_std_over_episodes": "sampled_score_std",
    "best_score": "best_score",
    "steps_to_threshold": "steps_to_threshold",
    "seconds_to_threshold": "seconds_to_threshold",
}


def collect(folder: Path, part: str, thresholds: dict[str, float], earlier: pd.DataFrame) -> pd.DataFrame:
    """
    Read the runs of a comparison, random actions among them, as rows of the CSV.

    :param earlier: Rows of the CSV so far.
    """
    settings = read_settings(folder)
    results = read_comparison(folder, settings, thresholds)
    runs = results.runs[list(COLUMNS)].rename(columns=COLUMNS)
    random = [
        {"env": env, "algorithm": RANDOM, "seed": 0, "sampled_score": score} for env, score in results.random_scores.items()
    ]
    runs = pd.concat([runs, pd.DataFrame(random)], ignore_index=True)
    entries = [settings.entries[env].get(name, {}) for env, name in zip(runs["env"], runs["algorithm"], strict=True)]
    runs.insert(0, "part", part)
    runs.insert(4, "budget", [describe_budget(settings, entry) for entry in entries])
    runs["steps"] = runs["steps"].astype("Int64")
    runs["threshold"] = runs["env"].map(thresholds)
    runs["hyperparameters"] = [json.dumps(entry, sort_keys=True) for entry in entries]
    kept = earlier[(earlier["part"] == part) & ~earlier["algorithm"].isin(settings.algorithms)]
    for table in (at_equal_steps(results, kept), read_curves(results)):
        runs = runs.merge(table, how="left", on=["env", "algorithm", "seed"])
    return runs


def describe_budget(settings: Settings, entry: dict[str, Any]) -> str:
    if settings.seconds is not None:
        return f"{settings.seconds:g} seconds"
    return f"{int(settings.n_timesteps or entry['n_timesteps'])} steps" if entry else ""


def at_equal_steps(results: Results, kept: pd.DataFrame) -> pd.DataFrame:
    """
    Read the learning curves where the shortest run of the algorithms of the page ``overall`` ended.

    :param kept: Earlier runs of other algorithms in the same comparison. Their ``equal_steps`` hold for the new runs too, and
        a new run that is shorter has no score there.
    """
    curves = results.curves[results.curves["algorithm"].isin(OVERALL_ALGORITHMS)]
    ends = curves.groupby(["env", "algorithm", "seed"])["steps"].max().groupby("env").min().to_dict()
    if "equal_steps" in kept:
        ends |= kept.dropna(subset="equal_steps").groupby("env")["equal_steps"].first().to_dict()
    rows = [
        {
            "env": env,
            "algorithm": name,
            "seed": seed,
            "equal_steps": ends[env],
            "score_at_equal_steps": float(np.interp(ends[env], curve["steps"], curve["score"], right=np.nan)),
        }
        for (env, name, seed), curve in curves.sort_values("steps").groupby(["env", "algorithm", "seed"])
    ]
    return pd.DataFrame(rows, columns=["env", "algorithm", "seed", "equal_steps", "score_at_equal_steps"])


def read_curves(results: Results) -> pd.DataFrame:
    """Read the area under the learning curves, and their scores at the steps of the table of environments."""
    rows = []
    for (env, name, seed), curve in results.curves.sort_values("steps").groupby(["env", "algorithm", "seed"]):
        reached = [n_steps for n_steps in SNAPSHOTS if n_steps <= curve["steps"].max()]
        scores = {f"score_{n_steps}": float(np.interp(n_steps, curve["steps"], curve["score"])) for n_steps in reached}
        steps = curve["steps"].to_numpy(dtype=float)
        area = float(trapezoid(curve["score"], steps) / np.ptp(steps)) if len(steps) > 1 else np.nan
        rows.append({"env": env, "algorithm": name, "seed": seed, "area": area, **scores})
    return pd.DataFrame(rows, columns=["env", "algorithm", "seed", "area", *(f"score_{n_steps}" for n_steps in SNAPSHOTS)])


def run_part(words: Sequence[str], folder: Path, part: str, provenance: dict[str, str], earlier: pd.DataFrame) -> pd.DataFrame:
    if run_command(["compare", *words, "-f", str(folder)]) != 0:
        sys.exit(1)
    register()
    options = cli.make_parser().parse_args(list(words))
    thresholds = cli.choose_thresholds(options.env, cli.parse_pairs(options.threshold, "--threshold"))
    return collect(folder, part, thresholds, earlier).assign(**provenance)


def write_page(name: str, comparison: Comparison, runs: pd.DataFrame, results_dir: Path) -> None:
    write_results(results_dir / f"{name}.csv", runs, make_page(name, comparison, runs))
    if comparison.dots is not None:
        save_figure(draw_dots(runs, comparison), results_dir / f"{name}.png")
    if comparison.normalised:
        save_figure(draw_aggregates(runs), results_dir / f"{name}_aggregates.png")


def save_figure(figure: Figure, path: Path) -> None:
    # Without the version of matplotlib, equal figures are equal files
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_curves(folder: Path, env_id: str | None) -> Figure:
    """Draw the learning curves of a comparison, or of one environment of it, as reports do."""
    results = read_comparison(folder, read_settings(folder), {})
    axis, width = "steps" if results.settings.seconds is None else "seconds", plots.WIDE
    if env_id is not None:
        results, width = results._replace(runs=results.runs[results.runs["env"] == env_id]), plots.HALF
    with matplotlib.rc_context(plots.STYLE):
        figure = figures.learning_curves(results, plots.make_styles(results.settings.algorithms), axis, width)
        plots.space_ticks(figure)
    return figure


def main(arguments: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("name", choices=[*COMPARISONS, "overall"], help="the comparison")
    parser.add_argument("--part", nargs="+", help="run only these parts of it")
    parser.add_argument("--folder", type=Path, default=LOGS_DIR, help="folder of the runs")
    options, further = parser.parse_known_args(arguments)
    results_dir: Path = options.results_dir
    if options.name == "overall":
        page = make_overall_page([read_results(results_dir / f"{name}.csv") for name in OVERALL])
        write_text(results_dir / "overall.md", page)
        return
    comparison = COMPARISONS[options.name]
    if unknown := set(options.part or ()) - set(comparison.parts):
        parser.error(f"{options.name} has no part {', '.join(sorted(unknown))}, but {', '.join(comparison.parts)}")
    runs = read_results(results_dir / f"{options.name}.csv", KEY)
    provenance = make_provenance("compare", arguments)
    for part in [] if options.report_only else options.part or comparison.parts:
        folder = options.folder / options.name / part
        new = run_part([*shlex.split(comparison.parts[part]), *further], folder, part, provenance, runs)
        new.loc[new["env"].isin(comparison.stochastic), "score"] = np.nan
        for _, rows in new.groupby(KEY, sort=False):
            runs = replace_rows(runs, rows, KEY)
        write_page(options.name, comparison, runs, results_dir)
        for figure, source in comparison.figures.items():
            of_part, _, env_id = source.partition("/")
            if of_part == part:
                save_figure(draw_curves(folder, env_id or None), results_dir / figure)
    write_page(options.name, comparison, runs, results_dir)


if __name__ == "__main__":
    main(sys.argv[1:])
