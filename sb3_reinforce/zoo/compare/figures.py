"""The figures of a comparison, each for wide and narrow screens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sb3_reinforce.lab import plots
from sb3_reinforce.lab.statistics import Interval
from sb3_reinforce.zoo.compare import statistics
from sb3_reinforce.zoo.compare.results import Results
from sb3_reinforce.zoo.compare.statistics import FloatArray, Overall

#: With fewer seeds, learning curves show every run instead of an interval.
MIN_SEEDS_OF_BANDS = 5
Styles = Mapping[str, plots.Style]


def draw_all(results: Results, overall: Overall | None) -> Iterator[tuple[str, str, Figure, Figure]]:
    """Draw all figures of a report: yield name, description, and the versions for wide and narrow screens."""
    styles = plots.make_styles(results.settings.algorithms)
    for axis, what in (("steps", "environment steps"), ("seconds", "seconds of training")):
        yield axis, f"Learning curves against {what}", *draw_twice(learning_curves, plots.WIDE, results, styles, axis)
    yield "final", "Final scores: runs, means and intervals", *draw_twice(final_scores, plots.WIDE, results, styles)
    if overall is None:
        return
    if len(results.environments) > 1:
        iqm, description = overall.aggregates["IQM"], "Interquartile mean of the normalised scores, with 95 % intervals"
        yield "iqm", description, *draw_twice(forest, plots.HALF, {"IQM": iqm}, styles)
    description = "IQM, median and optimality gap of the normalised scores"
    yield "aggregates", description, *draw_twice(forest, plots.WIDE, overall.aggregates, styles)
    yield "profile", "Performance profile", *draw_twice(profile, plots.HALF, overall, styles)
    if overall.improvement:
        yield "improvement", "Probability of improvement", *draw_twice(improvement, plots.HALF, overall)


def draw_twice(draw: Callable[..., Figure], width: float, *arguments: Any) -> tuple[Figure, Figure]:
    """Draw a figure for wide and narrow screens, with labels that do not touch."""
    wide, narrow = draw(*arguments, width), draw(*arguments, plots.NARROW)
    plots.space_ticks(wide)
    plots.space_ticks(narrow)
    return wide, narrow


def environment_grid(results: Results, width: float, height: float) -> tuple[Figure, list[Axes], float]:
    """Make a figure with a chart per environment, and return the width of a chart too."""
    n = len(results.environments)
    n_columns = 1 if width == plots.NARROW else min(n, 3 if n != 4 else 2)
    chart_width = width if width == plots.NARROW else max(width / 3, plots.HALF if n_columns < 3 else 0.0)
    figure, all_axes = plots.make_grid(n, chart_width * n_columns, height, n_columns)
    for axes, env_id in zip(all_axes, results.environments, strict=True):
        axes.set_title(plots.wrap(env_id, 0.8 * chart_width), fontsize=10)
    return figure, all_axes, chart_width * n_columns


def learning_curves(results: Results, styles: Styles, axis: str, width: float) -> Figure:
    """Draw the learning curves with intervals or, for few seeds, with each run as a thin line."""
    figure, all_axes, width = environment_grid(results, width, 3.0)
    for axes, env_id in zip(all_axes, results.environments, strict=True):
        runs = {name: run_curves(results, env_id, name, axis) for name in results.algorithms}
        for name, curves in runs.items():
            if not curves:
                continue
            style, mean = styles[name], statistics.mean_curve(curves)
            if len(curves) < MIN_SEEDS_OF_BANDS:
                for positions, scores in curves:
                    axes.plot(positions, scores, color=style.colour, linewidth=0.6, alpha=0.6)
            else:
                axes.fill_between(mean["position"], mean["low"], mean["high"], color=style.colour, alpha=0.15, linewidth=0)
            axes.plot(mean["position"], mean["mean"], color=style.colour, linestyle=style.line, linewidth=1.8)
        if env_id in results.thresholds:
            axes.axhline(results.thresholds[env_id], color="gray", linewidth=0.8, linestyle=":")
        low, high = note_outside(axes, [[scores for _, scores in curves] for curves in runs.values() if curves])
        margin = 0.06 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        if axis == "steps":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("environment steps" if axis == "steps" else "seconds of training", fontsize=9)
        axes.set_ylabel("score", fontsize=9)
    present = {name: style for name, style in styles.items() if name in results.algorithms}
    plots.legend_below(figure, plots.name_handles(present), width)
    return figure


def run_curves(results: Results, env_id: str, name: str, axis: str) -> list[tuple[FloatArray, FloatArray]]:
    """Return the positions and scores of each run's evaluations."""
    rows = results.curves[(results.curves["env"] == env_id) & (results.curves["algorithm"] == name)]
    return [(run[axis].to_numpy(dtype=float), run["score"].to_numpy(dtype=float)) for _, run in rows.groupby("seed")]


def robust_limits(scores: Sequence[Sequence[FloatArray]]) -> tuple[float, float]:
    """
    Find chart limits that a single diverging run does not stretch, from the scores of each algorithm's runs.

    A run counts with its lowest and highest score, and an algorithm with its median run, or with the inner one of two. Other
    runs are shown up to half of the range beyond, and runs of a much worse algorithm up to twice the range.
    """
    lows = [np.sort([own.min() for own in runs])[len(runs) // 2] for runs in scores]
    highs = [np.sort([own.max() for own in runs])[(len(runs) - 1) // 2] for runs in scores]
    high, usual_low = float(max(highs)), float(np.median(lows))
    every = np.concatenate([own for runs in scores for own in runs])
    reach = high - usual_low
    low = max(float(every.min()), float(min(lows)) - 0.5 * reach, usual_low - 2.0 * reach)
    return low, min(float(every.max()), high + 0.5 * reach)


def note_outside(axes: Axes, scores: Sequence[Sequence[FloatArray]]) -> tuple[float, float]:
    """Return robust limits, and note in the chart how many runs exceed them."""
    low, high = robust_limits(scores)
    if n_outside := sum(own.min() < low or own.max() > high for runs in scores for own in runs):
        note = f"{n_outside} {'run leaves' if n_outside == 1 else 'runs leave'} the chart"
        axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", fontsize=8, color="0.3")
    return low, high


def final_scores(results: Results, styles: Styles, width: float) -> Figure:
    """Draw the final scores: every run, the mean and its interval."""
    figure, all_axes, _ = environment_grid(results, width, 0.9 + plots.rows_height(results.algorithms, plots.NARROW))
    for axes, env_id in zip(all_axes, results.environments, strict=True):
        present = results.by_algorithm("score", env_id)
        for row, (name, values) in enumerate(present.items()):
            style = styles[name]
            axes.plot(values, np.full(len(values), row), style.marker, color=style.colour, alpha=0.5, markersize=5)
            mean = statistics.mean_with_interval(values)
            plots.draw_interval(axes, row, mean, style._replace(marker="|"), linewidth=1.5)
        low, high = note_outside(axes, [list(values[:, np.newaxis]) for values in present.values()])
        if env_id in results.random_scores:
            axes.axvline(results.random_scores[env_id], color="gray", linewidth=0.8, linestyle=":")
            low = min(low, results.random_scores[env_id])
        margin = 0.08 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
        plots.name_rows(axes, list(present), plots.NARROW)
        axes.set_xlabel("score of the final policy", fontsize=9)
    return figure


def forest(aggregates: Mapping[str, Mapping[str, Interval]], styles: Styles, width: float) -> Figure:
    """Draw aggregates over environments with their intervals, one chart per aggregate."""
    n_columns = len(aggregates) if width == plots.WIDE else 1
    names = list(next(iter(aggregates.values())))
    chart_width = width / n_columns
    figure, all_axes = plots.make_grid(len(aggregates), width, 0.9 + plots.rows_height(names, chart_width), n_columns)
    for axes, (name, estimates) in zip(all_axes, aggregates.items(), strict=True):
        for row, (algorithm, estimate) in enumerate(estimates.items()):
            plots.draw_interval(axes, row, estimate, styles[algorithm])
        plots.name_rows(axes, names, chart_width)
        better = "more" if statistics.AGGREGATES[name] else "less"
        axes.set_xlabel(plots.wrap(f"{name} of the normalised scores ({better} is better)", 0.5 * chart_width, 9), fontsize=9)
    return figure


def profile(overall: Overall, styles: Styles, width: float) -> Figure:
    """Draw the performance profile."""
    figure, (axes,) = plots.make_grid(1, width, 3.6)
    for name, (shares, low, high) in overall.profiles.items():
        colour, line, _ = styles[name]
        axes.plot(statistics.PROFILE_SCORES, shares, color=colour, linestyle=line)
        axes.fill_between(statistics.PROFILE_SCORES, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="normalised score", ylabel="share of runs above", ylim=(-0.02, 1.02))
    plots.legend_below(figure, plots.name_handles({name: styles[name] for name in overall.profiles}), width)
    return figure


def improvement(overall: Overall, width: float) -> Figure:
    """Draw the probability of improvement for all pairs."""
    names = [f"{first} over {second}" for first, second in overall.improvement]
    figure, (axes,) = plots.make_grid(1, width, 0.9 + plots.rows_height(names, width))
    for row, estimate in enumerate(overall.improvement.values()):
        plots.draw_interval(axes, row, estimate, plots.Style(plots.COLOURS[0], "-", "o"))
    axes.axvline(0.5, color="gray", linewidth=0.8)
    plots.name_rows(axes, names, width)
    axes.set(xlabel="probability of improvement", xlim=(-0.03, 1.03))
    return figure
