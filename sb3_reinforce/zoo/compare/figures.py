"""The figures of a report: one chart each, so that they can be read on a narrow screen."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from sb3_reinforce.zoo.compare import statistics
from sb3_reinforce.zoo.compare.plan import file_name
from sb3_reinforce.zoo.compare.results import Results
from sb3_reinforce.zoo.compare.statistics import FloatArray, Overall

SIZE = (4.8, 3.4)
#: Okabe and Ito's colours, which colour-blind readers can tell apart, and a second sign for prints in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 5)))
MARKERS = "osD^vP*X"
#: Pixels between two labels, about a digit: a browser may have a wider font than the one that was measured.
LABEL_GAP = 6.0
#: Text stays text, and equal figures are equal files.
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "sb3-reinforce", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3}


class Signs(dict[str, tuple[str, object, str]]):
    """
    Colour, line style and marker of each contender, the same in all figures.

    :param names: The contenders.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(
            (name, (COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]))
            for i, name in enumerate(names)
        )


def draw_all(results: Results, overall: Overall | None) -> Iterator[tuple[str, str, Figure]]:
    """
    Draw all figures of a report.

    :param results: The results.
    :param overall: Statistics over environments, if there are any.
    :return: Name, description and figure.
    """
    signs = Signs(list(results.settings.algorithms))
    with matplotlib.rc_context(STYLE):
        for env_id in results.environments:
            name = file_name(env_id)
            title = f"Learning curves on {env_id} against"
            yield f"steps_{name}", f"{title} steps", learning_curves(results, signs, env_id, "steps")
            yield f"seconds_{name}", f"{title} seconds of training", learning_curves(results, signs, env_id, "seconds")
            yield f"final_{name}", f"Final scores on {env_id}", final_scores(results, signs, env_id)
        yield "throughput", "Steps per second", throughput(results, signs)
        if overall is not None:
            yield "aggregates", "IQM, median and optimality gap of the normalised scores", aggregates(overall, signs)
            yield "profile", "Performance profile", profile(overall, signs)
            if overall.improvement:
                yield "improvement", "Probability of improvement", improvement(overall)


def new_figure(draw: Callable[[Axes], None], height: float = SIZE[1]) -> Figure:
    """
    Make a figure with one chart.

    :param draw: Draws the chart.
    :param height: Height in inches.
    :return: The figure.
    """
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    draw(figure.subplots())
    space_ticks(figure)
    return figure


def space_ticks(figure: Figure) -> None:
    """
    Take fewer ticks until no two labels below a chart touch, whatever the scores are.

    :param figure: The figure, ready but for this.
    """
    for axes in figure.axes:
        locators: list[Locator] = [MaxNLocator(n_ticks, steps=[1, 2, 2.5, 5, 10]) for n_ticks in (6, 5, 4, 3, 2)]
        if axes.get_xscale() == "log":
            axes.xaxis.set_minor_formatter(NullFormatter())
            locators = [LogLocator(subs=(1, 2, 5)), LogLocator(subs=(1, 3)), LogLocator(), *locators]
        else:
            locators.insert(0, axes.xaxis.get_major_locator())
        for locator in locators:
            axes.xaxis.set_major_locator(locator)
            gaps = measure_gaps(axes)
            if len(gaps) and gaps.min() >= LABEL_GAP:
                break


def measure_gaps(axes: Axes) -> FloatArray:
    """
    Measure the space between the labels below a chart.

    :param axes: The chart.
    :return: Distances of neighbours in pixels, negative if they overlap; empty if there are not two labels.
    """
    assert isinstance(axes.figure, Figure)
    axes.figure.draw_without_rendering()
    low, high = sorted(axes.get_xlim())
    labels = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    boxes = [label.get_window_extent() for position, label in labels if low <= position <= high]
    return np.array([right.x0 - left.x1 for left, right in itertools.pairwise(sorted(boxes, key=lambda box: box.x0))])


def learning_curves(results: Results, signs: Signs, env_id: str, axis: str) -> Figure:
    """
    Draw the learning curves of an environment.

    :param results: The results.
    :param signs: Colours and lines.
    :param env_id: The environment.
    :param axis: ``"steps"`` or ``"seconds"``.
    :return: The figure.
    """

    def draw(axes: Axes) -> None:
        for name, (colour, line, _) in signs.items():
            curve = results.curve(env_id, name, axis)
            if curve is None:
                continue
            axes.plot(curve["position"], curve["mean"], color=colour, linestyle=line, label=name)
            axes.fill_between(curve["position"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        if env_id in results.thresholds:
            axes.axhline(results.thresholds[env_id], color="gray", linewidth=0.8, linestyle=":")
        limit_to_means(axes, results, env_id)
        axes.set(title=env_id, xlabel="environment steps" if axis == "steps" else "seconds of training", ylabel="score")
        if axis == "steps":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(fontsize=9)

    return new_figure(draw)


def limit_to_means(axes: Axes, results: Results, env_id: str) -> None:
    """
    Let the scores fill a chart: with few seeds an interval can be many times as wide as they are.

    :param axes: The chart.
    :param results: The results.
    :param env_id: The environment.
    """
    scores = results.curves.loc[results.curves["env"] == env_id, "score"]
    margin = 0.08 * (scores.max() - scores.min()) or 1.0
    axes.set_ylim(scores.min() - margin, scores.max() + margin)


def final_scores(results: Results, signs: Signs, env_id: str) -> Figure:
    """
    Draw the final scores of an environment: each run, mean and interval.

    :param results: The results.
    :param signs: Colours and markers.
    :param env_id: The environment.
    :return: The figure.
    """

    def draw(axes: Axes) -> None:
        present = [name for name in results.algorithms if len(results.values("score", env_id, name))]
        for row, name in enumerate(present):
            colour, _, marker = signs[name]
            values = results.values("score", env_id, name)
            estimate = statistics.mean_with_interval(values.tolist())
            axes.plot(values, np.full(len(values), row), marker, color=colour, alpha=0.5, markersize=5)
            if estimate.has_interval:
                axes.plot([estimate.low, estimate.high], [row, row], color=colour)
            axes.plot(estimate.value, row, "|", color=colour, markersize=18, markeredgewidth=2)
        scores = results.runs.loc[results.runs["env"] == env_id, "score"]
        low, high = scores.min(), scores.max()
        if env_id in results.random_scores:
            axes.axvline(results.random_scores[env_id], color="gray", linewidth=0.8, linestyle=":")
            low = min(low, results.random_scores[env_id])
        margin = 0.08 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
        axes.set_yticks(range(len(present)), present)
        axes.set(title=env_id, xlabel="score of the final policy", ylim=(len(present) - 0.5, -0.5))

    return new_figure(draw, height=1.2 + 0.4 * len(results.algorithms))


def throughput(results: Results, signs: Signs) -> Figure:
    """
    Draw the steps per second of all contenders.

    :param results: The results.
    :param signs: Colours and markers.
    :return: The figure.
    """

    def draw(axes: Axes) -> None:
        for name, (colour, _, marker) in signs.items():
            medians = [
                (row, np.median(values))
                for row, env_id in enumerate(results.environments)
                if len(values := results.values("steps_per_second", env_id, name))
            ]
            if medians:
                rows, speeds = zip(*medians, strict=True)
                axes.plot(speeds, rows, marker, color=colour, label=name)
        axes.set_xscale("log")
        axes.set_yticks(range(len(results.environments)), results.environments)
        axes.set(xlabel="steps per second of training", ylim=(len(results.environments) - 0.5, -0.5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(fontsize=9)

    return new_figure(draw, height=1.6 + 0.35 * len(results.environments))


def aggregates(overall: Overall, signs: Signs) -> Figure:
    """
    Draw the aggregates over environments, one below the other.

    :param overall: Statistics over environments.
    :param signs: Colours and markers.
    :return: The figure.
    """
    figure = Figure(figsize=(SIZE[0], 3 * (0.7 + 0.25 * len(overall.n_seeds))), layout="constrained")
    all_axes = figure.subplots(len(statistics.AGGREGATES), 1)
    for axes, (aggregate_name, estimates) in zip(all_axes, overall.aggregates.items(), strict=True):
        for row, (name, estimate) in enumerate(estimates.items()):
            colour, _, marker = signs[name]
            if estimate.has_interval:
                axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=6, alpha=0.3)
            axes.plot(estimate.value, row, marker, color=colour)
        axes.set_yticks(range(len(estimates)), list(estimates))
        better = "more" if statistics.AGGREGATES[aggregate_name] else "less"
        axes.set(title=f"{aggregate_name} ({better} is better)", ylim=(len(estimates) - 0.5, -0.5))
        axes.title.set_fontsize(10)
    space_ticks(figure)
    return figure


def profile(overall: Overall, signs: Signs) -> Figure:
    """
    Draw the performance profile.

    :param overall: Statistics over environments.
    :param signs: Colours and lines.
    :return: The figure.
    """

    def draw(axes: Axes) -> None:
        for name, (shares, low, high) in overall.profiles.items():
            colour, line, _ = signs[name]
            axes.plot(statistics.PROFILE_SCORES, shares, color=colour, linestyle=line, label=name)
            axes.fill_between(statistics.PROFILE_SCORES, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="normalised score", ylabel="share of runs above", ylim=(-0.02, 1.02))
        axes.legend(fontsize=9)

    return new_figure(draw)


def improvement(overall: Overall) -> Figure:
    """
    Draw the probability of improvement of all pairs.

    :param overall: Statistics over environments.
    :return: The figure.
    """
    estimates = overall.improvement

    def draw(axes: Axes) -> None:
        for row, estimate in enumerate(estimates.values()):
            if estimate.has_interval:
                axes.plot([estimate.low, estimate.high], [row, row], color=COLOURS[0], linewidth=6, alpha=0.3)
            axes.plot(estimate.value, row, "o", color=COLOURS[0])
        axes.axvline(0.5, color="gray", linewidth=0.8)
        axes.set_yticks(range(len(estimates)), [f"{first} over {second}" for first, second in estimates])
        axes.set(xlabel="probability of improvement", xlim=(-0.03, 1.03), ylim=(len(estimates) - 0.5, -0.5))

    return new_figure(draw, height=0.9 + 0.3 * len(estimates))
