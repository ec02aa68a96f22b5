"""Shared parts of all report figures: style, grids, legends, intervals, and labels that neither touch nor stick out."""

import io
import itertools
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from sb3_reinforce.checkpoints import write_file

#: Widths in inches of a page of 1,280 pixels, half such a page, and a phone screen.
WIDE, HALF, NARROW = 12.6, 6.2, 4.0
#: Okabe and Ito's colours, which colour-blind readers can tell apart, and a second cue for greyscale prints.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 5)))
MARKERS = "osD^vP*X"
#: Text becomes paths, so it is equally wide in every browser; equal figures give equal files.
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "sb3-reinforce",
    "font.size": 10,
    "axes.grid": True,
    "text.parse_math": False,
    "grid.alpha": 0.3,
}
#: Minimum gap between two tick labels in pixels, about one digit.
LABEL_GAP = 6.0
PLAIN_NUMBERS: Formatter = FuncFormatter(lambda value, _: f"{value:,g}")


def style() -> AbstractContextManager[None]:
    """Draw in the style of the reports, whatever the user's style is (such as seaborn's, which RL Zoo's plots set)."""
    context: AbstractContextManager[None] = matplotlib.style.context(["default", STYLE])
    return context


class Style(NamedTuple):
    """Colour, line and marker of an algorithm, consistent across the figures of a report."""

    colour: str
    line: Any
    marker: str


def make_styles(names: Iterable[str]) -> dict[str, Style]:
    """Assign a style to every name, by position."""
    cycle = zip(itertools.cycle(COLOURS), itertools.cycle(LINES), itertools.cycle(MARKERS), strict=False)
    return {name: Style(*signs) for name, signs in zip(names, cycle, strict=False)}


def make_grid(n: int, width: float, height: float, n_columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a figure with ``n`` charts, each ``height`` inches high."""
    n_columns = min(n, n_columns)
    n_rows = -(-n // n_columns)
    figure = Figure(figsize=(width, height * n_rows), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08))
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axes in all_axes[n:]:
        axes.remove()
    return figure, list(all_axes[:n])


def wrap(text: str, width: float, size: float = 10) -> str:
    """Break a text into lines that fit into ``width`` inches."""
    return textwrap.fill(text, max(8, int(width * 72 / (0.58 * size))))


def legend_below(figure: Figure | SubFigure, handles: Sequence[Line2D], width: float) -> None:
    """Put one legend below all charts of a figure, in as many columns as fit, and extend the figure by its rows."""
    if handles:
        longest = 0.55 + 0.085 * max(len(str(handle.get_label())) for handle in handles)
        n_columns = max(1, min(len(handles), int(width / longest)))
        if isinstance(figure, Figure):
            figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // n_columns))
        figure.legend(handles=handles, loc="outside lower center", ncols=n_columns, fontsize=9, frameon=False)


def name_handles(styles: Mapping[str, Style]) -> list[Line2D]:
    """Make legend entries for lines."""
    return [Line2D([], [], color=style.colour, label=name, linestyle=style.line) for name, style in styles.items()]


def draw_interval(axes: Axes, row: float, interval: tuple[float, float, float], style: Style, **settings: Any) -> None:
    """Draw a value as a marker, and its interval as a line unless it is NaN."""
    value, low, high = interval
    if not np.isnan(low):
        axes.plot([low, high], [row, row], color=style.colour, **{"linewidth": 2.2, "alpha": 0.8, **settings})
    axes.plot(value, row, style.marker, color=style.colour, markersize=6)


def rows_height(names: Sequence[str], width: float) -> float:
    """Return the height in inches that the rows of ``name_rows`` need."""
    return len(names) * (0.14 + 0.17 * max(wrap(name, 0.4 * width).count("\n") + 1 for name in names))


def name_rows(axes: Axes, names: Sequence[str], width: float) -> None:
    """Label the rows of a chart, the first at the top, in less than half of ``width`` inches."""
    axes.set_yticks(range(len(names)), [wrap(name, 0.4 * width) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def space_ticks(figure: Figure) -> None:
    """Reduce the ticks until no two labels below a chart touch, whatever the scores are, then freeze the layout."""
    further: dict[Axes, list[Locator]] = {}
    for axes in figure.axes:
        further[axes] = [MaxNLocator(n_ticks, steps=[1, 2, 2.5, 5, 10]) for n_ticks in (6, 5, 4, 3, 2)]
        if axes.get_xscale() == "log":
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            further[axes][:0] = [LogLocator(subs=(1, 3)), LogLocator()]
    crowded = list(further)
    while crowded:
        figure.draw_without_rendering()
        crowded = [axes for axes in crowded if has_crowded_ticks(axes) and further[axes]]
        for axes in crowded:
            axes.xaxis.set_major_locator(further[axes].pop(0))
    figure.set_layout_engine(None)


def has_crowded_ticks(axes: Axes) -> bool:
    """Check whether labels below a drawn chart touch, or there are fewer than two."""
    low, high = sorted(axes.get_xlim())
    ticks = [tick for tick in axes.xaxis.get_major_ticks() if tick.label1.get_visible()]
    boxes = [tick.label1.get_window_extent() for tick in ticks if low <= tick.get_loc() <= high]
    gaps = [right.x0 - left.x1 for left, right in itertools.pairwise(sorted(boxes, key=lambda box: box.x0))]
    # Inner charts of a grid may have no labels
    return bool(ticks) and (not gaps or min(gaps) < LABEL_GAP)


def render(figure: Figure, suffix: str) -> bytes:
    """Render a figure as ``"png"`` or ``"svg"``, without dates and versions."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None}}[suffix]
    with style():
        figure.savefig(buffer := io.BytesIO(), format=suffix, dpi=150, metadata=metadata)
    # Paths need only a hundredth of a point, which halves the file
    return re.sub(rb' d="[^"]*"', lambda path: re.sub(rb"(\.\d\d)\d+", rb"\1", path[0]), buffer.getvalue())


def save(figure: Figure, path: Path) -> bytes:
    """Save a figure as PNG and SVG to a path without suffix, and return the SVG."""
    for suffix in ("png", "svg"):
        content = render(figure, suffix)
        write_file(path.with_name(f"{path.name}.{suffix}"), content)
    return content
