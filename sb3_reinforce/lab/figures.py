"""The figure of a report, and its four panels apart, which can be read on a narrow screen."""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from sb3_reinforce.lab.estimators import OWN
from sb3_reinforce.lab.measurement import FEATURED, Measurement
from sb3_reinforce.lab.statistics import invert

#: Okabe and Ito's colours, which colour-blind readers can tell apart, as in the reports of ``sb3_reinforce.zoo.compare``.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
MARKERS = "osD^vP*X"
#: Text stays text, and equal figures are equal files.
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "sb3-reinforce", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3}

#: From the first stage of a training to the last: from light to dark, so that prints in grey show the order too.
STAGES = ("#a6cee3", "#5aa2d0", "#0b5394", "#000000")
#: Colours and names of what the panels B, C and D show.
SHOWN = {
    "whole": ("#777777", "whole return"),
    "to-go": (PINK, "reward-to-go alone"),
    "to-go-critic": (ORANGE, "- this model's critic"),
    "to-go-constant": (BLUE, "- best constant"),
    "to-go-refit": (GREEN, "- refitted critic"),
}
#: Numbers of episodes beyond this many times those that were collected are not resolved anyway.
FARTHEST = 5
MAX_CLOUDS = 3


def focus_of(measurements: Sequence[Measurement]) -> Measurement:
    """
    Choose the model that the panels B, C and D show.

    :param measurements: Of the models, in the order of their training.
    :return: The one half-way.
    """
    return measurements[len(measurements) // 2]


def whole_figure(title: str, measurements: Sequence[Measurement]) -> Figure:
    """
    Draw all panels.

    :param title: Above them.
    :param measurements: Of the models.
    :return: The figure.
    """
    n_rows = len(measurements[0].results)
    figure = Figure(figsize=(14, max(8.4, 0.6 * n_rows + 2)), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, 150)), x=0.01, ha="left", fontsize=12)
    left, right = figure.subfigures(1, 2, width_ratios=(0.9, 1.0), squeeze=False)[0]
    draw_needed(left.subplots(), measurements)
    top, bottom = right.subfigures(2, 1, height_ratios=(0.9, 1.1), squeeze=False)[:, 0]
    draw_clouds(top, focus_of(measurements))
    axes = bottom.subplots(1, 2)
    draw_cosines(axes[0], focus_of(measurements))
    draw_trust(axes[1], focus_of(measurements))
    return figure


def panels(measurements: Sequence[Measurement]) -> dict[str, tuple[str, Figure]]:
    """
    Draw each panel as a figure of its own.

    :param measurements: Of the models.
    :return: Description and figure by name.
    """
    focus = focus_of(measurements)
    rows = len(measurements[0].results)
    clouds = Figure(figsize=(4.8, 2.6 * len(cloud_keys(focus)) + 0.6), layout="constrained")
    draw_clouds(clouds, focus, below_each_other=True)
    return {
        "needed": (
            "Episodes until the signal equals the noise, by estimator and model",
            one_panel(lambda axes: draw_needed(axes, measurements), 1.8 + rows * (0.25 + 0.09 * len(measurements))),
        ),
        "clouds": (f"Updates around the gradient, {focus.label}", clouds),
        "cosines": (
            f"Cosine of two disjoint batches, {focus.label}",
            one_panel(lambda axes: draw_cosines(axes, focus), 3.6),
        ),
        "trust": (f"What fewer episodes would have said, {focus.label}", one_panel(lambda axes: draw_trust(axes, focus), 3.6)),
    }


def one_panel(draw: Callable[[Axes], None], height: float) -> Figure:
    """
    Make a figure with one chart.

    :param draw: Draws the chart.
    :param height: Height in inches.
    :return: The figure.
    """
    figure = Figure(figsize=(4.8, height), layout="constrained")
    draw(figure.subplots())
    return figure


def plain_numbers(axis: Any) -> None:
    """
    Label a logarithmic axis with numbers as one says them.

    :param axis: The axis.
    """
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_needed(axes: Axes, measurements: Sequence[Measurement]) -> None:
    """
    Panel A: how many episodes each estimator needs.

    :param axes: The chart.
    :param measurements: Of the models.
    """
    keys = list(dict.fromkeys(key for one in measurements for key in one.results))
    labels = {key: one.results[key].estimator.label for one in measurements for key in one.results}
    edge = FARTHEST * max(len(one.returns) for one in measurements)
    ends = [
        end
        for one in measurements
        for result in one.results.values()
        for end in result.episodes
        if math.isfinite(end) and 0 < end
    ]
    lowest = min(ends, default=1.0) / 1.5
    colours = [STAGES[round(index * (len(STAGES) - 1) / max(1, len(measurements) - 1))] for index in range(len(measurements))]
    if len(measurements) == 1:
        colours = [STAGES[2]]
    for index, (measurement, colour) in enumerate(zip(measurements, colours, strict=True)):
        offset = (index - (len(measurements) - 1) / 2) * 0.7 / len(measurements)
        for row, key in enumerate(keys):
            if key not in measurement.results:
                continue
            value, low, high = measurement.results[key].episodes
            at = row + offset
            axes.plot([max(min(low, edge), lowest), min(high, edge)], [at, at], color=colour, linewidth=2.2, alpha=0.8)
            if high > edge:
                axes.plot(edge, at, ">", color=colour, markersize=7, clip_on=False)
            if lowest <= value <= edge:
                axes.plot(value, at, MARKERS[index % len(MARKERS)], color=colour, markersize=6)
        mean_return = float(np.mean(measurement.returns))
        axes.plot(
            [], [], f"{MARKERS[index % len(MARKERS)]}-", color=colour, label=f"{measurement.label}, return {mean_return:.3g}"
        )
    sizes = sorted({measurement.batch_size for measurement in measurements})
    for size in sizes:
        axes.axvline(size, color=ORANGE, linewidth=1.4)
    axes.set_xscale("log")
    axes.set(xlim=(lowest, edge), ylim=(len(keys) - 0.4, -0.6))
    axes.set_yticks(range(len(keys)), [labels[key] for key in keys])
    for tick, key in zip(axes.get_yticklabels(), keys, strict=True):
        if key == OWN:
            tick.set_fontweight("bold")
    axes.grid(axis="y", visible=False)
    plain_numbers(axes.xaxis)
    batch = f"orange: the batch, {' and '.join(map(str, sizes))} episodes"
    axes.set_xlabel(f"episodes until the signal equals the noise,\n90 % interval (fewer is better); {batch}")
    axes.set_title("A  How many episodes does each estimator need?", fontsize=10, fontweight="bold", loc="left")
    axes.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.14 if len(keys) > 6 else -0.35), ncols=2, frameon=False
    )


def cloud_keys(measurement: Measurement) -> list[str]:
    """
    Choose the estimators whose updates are shown.

    :param measurement: Of the model.
    :return: At most three keys.
    """
    keys = [key for key in FEATURED if key in measurement.results]
    return [key for key in keys if key != "to-go-constant" or len(keys) <= MAX_CLOUDS]


def draw_clouds(figure: Any, measurement: Measurement, below_each_other: bool = False) -> None:
    """
    Panel B: updates around the gradient.

    :param figure: The figure or a part of it.
    :param measurement: Of the model.
    :param below_each_other: Whether charts are below and not beside each other.
    """
    keys = cloud_keys(measurement)
    if not keys:
        return
    size = measurement.batch_size
    shape = (len(keys), 1) if below_each_other else (1, len(keys))
    all_axes = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).flatten()
    clouds = {key: measurement.results[key].cloud for key in keys}
    reach = max(2.0, *(float(np.quantile(np.abs(cloud), 0.98)) for cloud in clouds.values() if cloud is not None))
    for axes, key in zip(all_axes, keys, strict=True):
        colour, name = SHOWN[key]
        cloud, result = clouds[key], measurement.results[key]
        assert cloud is not None
        axes.axvspan(-reach, 0.0, color="0.93", zorder=0)
        axes.plot(*np.clip(cloud, -reach, reach).T, "o", color=colour, markersize=2.5, alpha=0.6)
        axes.annotate("", (1.0, 0.0), (0.0, 0.0), arrowprops={"arrowstyle": "-|>", "linewidth": 2, "color": "black"})
        axes.set_title(name, fontsize=9, color=colour)
        axes.text(0.98, 0.03, f"{100 * result.backwards:.0f} % backwards", transform=axes.transAxes, ha="right", fontsize=8)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    figure.suptitle(
        f"B  Each dot is one update with {size} {'episode' if size == 1 else 'episodes'}", fontsize=10, fontweight="bold"
    )
    figure.supxlabel("along the mean gradient of other episodes\n(arrow: length 1)", fontsize=9)
    figure.supylabel("strongest noise", fontsize=9)


def draw_cosines(axes: Axes, measurement: Measurement) -> None:
    """
    Panel C: whether two batches agree.

    :param axes: The chart.
    :param measurement: Of the model.
    """
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
    plain_numbers(axes.xaxis)
    axes.set(xlabel="episodes per batch", ylabel="cosine of two disjoint batches", ylim=(-0.25, 1.05))
    axes.set_title("C  Do two batches agree?", fontsize=10, fontweight="bold", loc="left")
    axes.legend(fontsize=7.5, title="dotted: SNR / (1 + SNR)", title_fontsize=7.5)


def draw_trust(axes: Axes, measurement: Measurement) -> None:
    """
    Panel D: what fewer episodes would have said.

    :param axes: The chart.
    :param measurement: Of the model.
    """
    edge = FARTHEST * len(measurement.returns)
    for key, (colour, name) in SHOWN.items():
        result = measurement.results.get(key)
        if result is None or key not in FEATURED:
            continue
        sizes = [*result.fewer, len(measurement.returns)]
        estimates = [*(invert(ratio) for ratio in result.fewer.values()), result.episodes]
        value, low, high = np.clip(np.array(estimates).T, 1e-3, edge)
        axes.plot(sizes, value, "o-", color=colour, markersize=3.5, label=name)
        axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xticks(
        [*(size for size in (50, 100, 200, 500, 1000) if size < len(measurement.returns)), len(measurement.returns)]
    )
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    axes.set(xlabel="episodes collected for the laboratory", ylabel="episodes needed, estimate", ylim=(None, edge))
    axes.set_title("D  Can these numbers be trusted?", fontsize=10, fontweight="bold", loc="left")
    axes.legend(fontsize=7.5, title="bands: 90 % of subsamples; of all: interval", title_fontsize=7.5)
