"""What is wrong with the geometry of a figure: text that sticks out, and labels of ticks that touch."""

import itertools

from matplotlib.text import Text


def find_faults(figure):
    """Describe text outside the figure, and overlapping tick labels."""
    figure.draw_without_rendering()
    faults = []
    width, height = figure.bbox.size
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            if is_label_outside_limits(text, figure):
                continue
            if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
                faults.append(f"{text.get_text()!r} sticks out: {box}")
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            labels = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_visible()]
            for first, second in itertools.combinations([label for label in labels if label.get_text()], 2):
                if first.get_window_extent().overlaps(second.get_window_extent()):
                    faults.append(f"{axes.get_title()}: {first.get_text()!r} and {second.get_text()!r} overlap")
        legend = axes.get_legend()
        boxes = [axes.title.get_window_extent()] if axes.get_title() else []
        assert legend is None or not any(legend.get_window_extent().overlaps(box) for box in boxes)
    for legend in figure.legends:
        box = legend.get_window_extent()
        faults += [f"the legend covers {axes.get_title()!r}" for axes in figure.axes if box.overlaps(axes.get_tightbbox())]
    return faults


def is_label_outside_limits(text, figure):
    """Tell whether a text labels a tick that is not drawn, since it lies outside the limits of its axis."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if text in (tick.label1, tick.label2):
                    return not low <= tick.get_loc() <= high
    return False
