"""The figure of a laboratory report, and its four panels separately."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from sb3_reinforce.lab import plots
from sb3_reinforce.lab.estimators import OWN
from sb3_reinforce.lab.measurement import FEATURED, Measurement
from sb3_reinforce.lab.statistics import invert

BLUE, ORANGE, GREEN, PINK = plots.COLOURS[:4]
#: Colours from the first model of a training run to the last, light to dark, so that greyscale prints show the order too.
STAGES = ("#a6cee3", "#5aa2d0", "#0b5394", "#000000")
#: Colours and names of the estimators in panels B, C and D.
SHOWN = {
    "whole": ("#777777", "whole return"),
    "to-go": (PINK, "reward-to-go alone"),
    "to-go-critic": (ORANGE, "- this model's critic"),
    "to-go-constant": (BLUE, "- best constant"),
    "to-go-refit": (GREEN, "- refitted critic"),
}
#: Noise scales above this multiple of the number of collected episodes are not resolved.
FARTHEST = 5
MAX_CLOUDS = 3
TITLE: Any = {"fontsize": 10, "fontweight": "bold", "loc": "left"}


def focus_of(measurements: Sequence[Measurement]) -> Measurement:
    """Choose the model that panels B, C and D show: the middle one."""
    return measurements[len(measurements) // 2]


def whole_figure(title: str, measurements: Sequence[Measurement]) -> Figure:
    """Draw all panels."""
    focus = focus_of(measurements)
    figure = Figure(figsize=(14, max(8.4, 0.6 * len(measurements[0].results) + 2)), layout="constrained")
    figure.suptitle(plots.wrap(title, 13.5, 12), x=0.01, ha="left", fontsize=12)
    left, right = figure.subfigures(1, 2, width_ratios=(0.9, 1.0), squeeze=False)[0]
    draw_needed(left, measurements, plots.HALF)
    top, bottom = right.subfigures(2, 1, height_ratios=(0.9, 1.1), squeeze=False)[:, 0]
    draw_clouds(top, focus, len(cloud_keys(focus)))
    axes = bottom.subplots(1, 2)
    draw_cosines(axes[0], focus)
    draw_subsamples(axes[1], focus)
    plots.space_ticks(figure)
    return figure


def needed_figure(measurements: Sequence[Measurement], width: float) -> Figure:
    """Draw panel A alone."""
    height = 1.6 + len(measurements[0].results) * (0.25 + 0.09 * len(measurements))
    figure = Figure(figsize=(width, height), layout="constrained")
    draw_needed(figure, measurements, width)
    plots.space_ticks(figure)
    return figure


def panels(measurement: Measurement, is_narrow: bool) -> list[Figure]:
    """Draw panels B, C and D of a model, each as a separate figure."""
    n_clouds = max(1, len(cloud_keys(measurement)))
    size = (plots.NARROW, 2.4 * n_clouds + 0.8) if is_narrow else (2.6 * n_clouds + 0.6, 3.4)
    figures = [Figure(figsize=size, layout="constrained")]
    draw_clouds(figures[0], measurement, 1 if is_narrow else n_clouds)
    for draw in (draw_cosines, draw_subsamples):
        figure = Figure(figsize=(plots.NARROW if is_narrow else 4.8, 3.8), layout="constrained")
        draw(figure.subplots(), measurement)
        figures.append(figure)
    for figure in figures:
        plots.space_ticks(figure)
    return figures


def draw_needed(figure: Figure | SubFigure, measurements: Sequence[Measurement], width: float) -> None:
    """Panel A: how many episodes each estimator needs."""
    axes = figure.subplots()
    labels = {key: one.results[key].estimator.label for one in measurements for key in one.results}
    intervals = [result.episodes for one in measurements for result in one.results.values()]
    edge = FARTHEST * max(len(one.returns) for one in measurements)
    lowest = min((end for ends in intervals for end in ends if math.isfinite(end) and end > 0.0), default=1.0) / 1.5
    shades = [2] if len(measurements) == 1 else np.linspace(0, len(STAGES) - 1, len(measurements)).round().astype(int)
    handles = []
    for index, (measurement, shade) in enumerate(zip(measurements, shades, strict=True)):
        style = plots.Style(STAGES[shade], "-", plots.MARKERS[index % len(plots.MARKERS)])
        offset = (index - (len(measurements) - 1) / 2) * 0.7 / len(measurements)
        for row, key in enumerate(labels):
            if key not in measurement.results:
                continue
            value, low, high = measurement.results[key].episodes
            shown = value if lowest <= value <= edge else np.nan
            plots.draw_interval(axes, row + offset, (shown, max(min(low, edge), lowest), min(high, edge)), style)
            if high > edge:
                axes.plot(edge, row + offset, ">", color=style.colour, markersize=7, clip_on=False)
        label = f"{measurement.label}, return {float(np.mean(measurement.returns)):.3g}"
        handles.append(Line2D([], [], color=style.colour, marker=style.marker, label=label))
    sizes = sorted({measurement.batch_size for measurement in measurements})
    for size in sizes:
        axes.axvline(size, color=ORANGE, linewidth=1.4)
    handles.append(Line2D([], [], color=ORANGE, label=f"batch of {' and '.join(map(str, sizes))} episodes"))
    axes.set_xscale("log")
    axes.set_xlim(lowest, edge)
    plots.name_rows(axes, list(labels.values()), width)
    for tick, key in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_fontweight("bold" if key == OWN else "normal")
    axes.xaxis.set_major_formatter(plots.PLAIN_NUMBERS)
    xlabel = "episodes until the signal equals the noise, 90 % interval (fewer is better)"
    axes.set_xlabel(plots.wrap(xlabel, 0.6 * width, 9), fontsize=9)
    figure.suptitle(plots.wrap("A  How many episodes does each estimator need?", width), fontsize=10, fontweight="bold")
    plots.legend_below(figure, handles, width)


def cloud_keys(measurement: Measurement) -> list[str]:
    """Choose at most three estimators whose updates panel B shows."""
    keys = [key for key in FEATURED if key in measurement.results]
    return [key for key in keys if key != "to-go-constant" or len(keys) <= MAX_CLOUDS]


def draw_clouds(figure: Figure | SubFigure, measurement: Measurement, n_columns: int) -> None:
    """Panel B: updates around the gradient."""
    keys = cloud_keys(measurement)
    if not keys:
        return
    size = measurement.batch_size
    all_axes = figure.subplots(len(keys) // n_columns, n_columns, sharex=True, sharey=True, squeeze=False).flatten()
    clouds = {key: measurement.results[key].cloud for key in keys}
    reach = max(2.0, *(float(np.quantile(np.abs(cloud), 0.98)) for cloud in clouds.values() if cloud is not None))
    for axes, key in zip(all_axes, keys, strict=True):
        colour, name = SHOWN[key]
        cloud, result = clouds[key], measurement.results[key]
        assert cloud is not None
        axes.axvspan(-reach, 0.0, color="0.93", zorder=0)
        axes.plot(*np.clip(cloud, -reach, reach).T, "o", color=colour, markersize=2.5, alpha=0.6)
        axes.annotate("", (1.0, 0.0), (0.0, 0.0), arrowprops={"arrowstyle": "-|>", "linewidth": 2, "color": "black"})
        axes.set_title(f"{name}\n{100 * result.backwards:.0f} % backwards", fontsize=9, color=colour)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    title = f"B  Each dot is one update with {size} {'episode' if size == 1 else 'episodes'}"
    figure.suptitle(title, fontsize=10, fontweight="bold")
    figure.supxlabel("along the mean gradient of other episodes\n(arrow: length 1)", fontsize=9)
    figure.supylabel("strongest noise", fontsize=9)


def draw_cosines(axes: Axes, measurement: Measurement) -> None:
    """Panel C: whether two batches agree."""
    for key, (colour, name) in SHOWN.items():
        result = measurement.results.get(key)
        if result is None:
            continue
        sizes = sorted(result.cosines)
        axes.plot(sizes, [result.cosines[size] for size in sizes], "o-", color=colour, markersize=3.5, label=name)
        if result.ratio.low > 0.0:
            ratio = np.array(sizes) * result.ratio.value
            axes.plot(sizes, ratio / (1 + ratio), ":", color=colour, linewidth=1)
    axes.axvline(measurement.batch_size, color=ORANGE, linewidth=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(plots.PLAIN_NUMBERS)
    axes.set(xlabel="episodes per batch", ylabel="cosine of two disjoint batches", ylim=(-0.25, 1.05))
    axes.set_title("C  Do two batches agree?", **TITLE)
    axes.legend(fontsize=7.5, title="dotted: SNR / (1 + SNR)", title_fontsize=7.5)


def draw_subsamples(axes: Axes, measurement: Measurement) -> None:
    """Panel D: the estimates from fewer episodes."""
    n, edge = len(measurement.returns), FARTHEST * len(measurement.returns)
    for key, (colour, name) in SHOWN.items():
        result = measurement.results.get(key)
        if result is None or key not in FEATURED:
            continue
        sizes = [*result.fewer, n]
        estimates = [*(invert(ratio) for ratio in result.fewer.values()), result.episodes]
        value, low, high = np.clip(np.array(estimates).T, 1e-3, edge)
        axes.plot(sizes, value, "o-", color=colour, markersize=3.5, label=name)
        axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(plots.PLAIN_NUMBERS)
    axes.yaxis.set_major_formatter(plots.PLAIN_NUMBERS)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="episodes collected for the laboratory", ylabel="episodes needed, estimate", ylim=(None, edge))
    axes.set_title("D  Can these numbers be trusted?", **TITLE)
    axes.legend(fontsize=7.5, title="bands: 90 % of subsamples; of all: interval", title_fontsize=7.5)
