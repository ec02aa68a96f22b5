"""
Writes the report of the laboratory: one HTML file that needs no other, markdown, a table, the figure.

The page is that of ``sb3_reinforce.zoo.compare``, but not its code, which brings Optuna and rliable into memory: 150 MB, as
much as the gradients of 500 episodes.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sb3_reinforce.checkpoints import atomic_write
from sb3_reinforce.lab import figures
from sb3_reinforce.lab.findings import TOO_FEW, describe, findings, is_resolved, write_bias, write_episodes, write_number
from sb3_reinforce.lab.measurement import N_CLOUD_DOTS, N_SUBSAMPLES, Measurement, Result
from sb3_reinforce.lab.statistics import MIN_INFORMATIVE

NAME = "gradients"
TARGETS = {"undiscounted": "undiscounted state distribution", "discounted": "discounted objective"}


class Table(NamedTuple):
    """
    A table of the report.

    :param header: Names of the columns.
    :param rows: Cells.
    """

    header: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """
    A figure of the report.

    :param description: What it shows.
    :param data: The SVG, as an address that contains it.
    """

    description: str
    data: str


class Section(NamedTuple):
    """
    A part of the report.

    :param title: Its heading.
    :param text: Paragraphs that explain it.
    :param table: A table, if there is one.
    :param pictures: Figures.
    """

    title: str
    text: list[str]
    table: Table | None = None
    pictures: Sequence[Picture] = ()


def write_report(
    folder: Path, environment: str, measurements: Sequence[Measurement], origin: Sequence[tuple[str, str]] = ()
) -> str:
    """
    Write all files of the report.

    :param folder: Where they go; it is made if need be.
    :param environment: What the environment is called.
    :param measurements: Of at least one model, in the order of the training.
    :param origin: Names and values that say how to make the report again.
    :return: The paragraph at its top.
    """
    folder.mkdir(parents=True, exist_ok=True)
    to_table(measurements).to_csv(buffer := io.StringIO(), index=False, lineterminator="\n")
    write_file(folder / f"{NAME}.csv", buffer.getvalue().encode())

    summary = " ".join([f"{environment}.", *findings(measurements, figures.focus_of(measurements))])
    with matplotlib.rc_context(figures.STYLE):
        title = f"{environment}. {' '.join(describe(figures.focus_of(measurements)))}"
        figure = figures.whole_figure(title, measurements)
        for suffix in ("png", "svg"):
            write_file(folder / f"{NAME}.{suffix}", draw(figure, suffix))
        pictures = {
            name: Picture(description, f"data:image/svg+xml;base64,{base64.b64encode(draw(figure, 'svg')).decode()}")
            for name, (description, figure) in figures.panels(measurements).items()
        }
    content = {
        "title": f"What gradients are worth on {environment}",
        "summary": summary,
        "sections": make_sections(measurements, pictures),
        "reproduce": origin,
        "hyperparameters": {},
        "picture": f"{NAME}.png",
    }
    # The page of compare's reports, which has nothing of comparisons in it
    for package, template, suffix in (
        ("sb3_reinforce.zoo.compare", "report.html.jinja", "html"),
        ("sb3_reinforce.lab", "gradients.md.jinja", "md"),
    ):
        environment_of_template = jinja2.Environment(
            loader=jinja2.PackageLoader(package),
            autoescape=suffix == "html",
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            undefined=jinja2.StrictUndefined,
        )
        text = environment_of_template.get_template(template).render(content)
        write_file(folder / f"{NAME}.{suffix}", text.encode())
    return summary


def draw(figure: Figure, suffix: str) -> bytes:
    """
    Draw a figure.

    :param figure: The figure.
    :param suffix: ``"png"`` or ``"svg"``.
    :return: The picture. Without dates and versions, equal figures are equal files.
    """
    metadata = {"png": {"Software": None}, "svg": {"Date": None}}[suffix]
    figure.savefig(buffer := io.BytesIO(), format=suffix, dpi=150, metadata=metadata)
    return buffer.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """
    Write a file that is never seen half-written.

    :param path: The file.
    :param content: Its content.
    """
    with atomic_write(path) as file:
        file.write(content)


def to_table(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """
    Put all numbers into one table.

    :param measurements: Of the models.
    :return: A row for each model and estimator, of which docs/laboratory.md explains the columns.
    """
    rows = []
    for measurement in measurements:
        for key, result in measurement.results.items():
            episodes, size = result.episodes, measurement.batch_size
            rows.append(
                {
                    "model": measurement.label,
                    "algorithm": measurement.model_class,
                    "mean_return": float(np.mean(measurement.returns)),
                    "n_episodes": len(measurement.returns),
                    "n_steps": measurement.n_steps,
                    "gamma": measurement.gamma,
                    "batch_size": size,
                    "estimator": key,
                    "target": result.estimator.target,
                    "signal": result.signal,
                    "noise": result.noise,
                    "episodes": episodes.value,
                    "episodes_low": episodes.low,
                    "episodes_high": episodes.high,
                    "snr": size * result.ratio.value,
                    "snr_low": size * result.ratio.low,
                    "snr_high": size * result.ratio.high,
                    "bias": result.bias.value,
                    "bias_low": result.bias.low,
                    "bias_high": result.bias.high,
                    "reference": result.reference,
                    "backwards": result.backwards,
                    "kl": result.kl,
                    **{f"cosine_{number}": cosine for number, cosine in sorted(result.cosines.items())},
                }
            )
    return pd.DataFrame(rows)


def make_sections(measurements: Sequence[Measurement], pictures: dict[str, Picture]) -> list[Section]:
    """
    Arrange the report.

    :param measurements: Of the models.
    :param pictures: The panels by name.
    :return: The parts in order.
    """
    keys = list(dict.fromkeys(key for one in measurements for key in one.results))
    labels = {key: result.estimator.label for one in measurements for key, result in one.results.items()}
    rows = [
        [labels[key], *(write_episodes(one.results[key].episodes) if key in one.results else "none" for one in measurements)]
        for key in keys
    ]
    sections = [
        Section(
            "How many episodes does each estimator need?",
            [
                "Episodes until the signal equals the noise (the gradient noise scale), with 90 % intervals. All estimators "
                "of a model were computed from the very same episodes. Unresolved: the gradient cannot be told from zero with "
                "them. Estimators that see their batch have a scale of their own at each batch size, here at that of the "
                "model. The best constant and the refitted critic are what could be had: they are fitted on these "
                "episodes, each on one half for the other.",
                "This is no advice to collect so many. Beyond it more episodes buy little; below it updates are noisy, but "
                "often still the most efficient way to learn.",
            ],
            Table(["estimator", *(one.label for one in measurements)], rows),
            [pictures["needed"]],
        )
    ]
    sections += [stage_section(measurement) for measurement in measurements]
    focus = figures.focus_of(measurements)
    sections.append(
        Section(
            "What does an update look like?",
            [
                f"{focus.label}: {N_CLOUD_DOTS} updates with {focus.batch_size} episodes each, drawn from one half of the "
                "episodes, seen from the mean gradient of the other half (across) and from the direction in which "
                "reward-to-go is noisiest (up). In the grey part an update points backwards.",
            ],
            None,
            [pictures["clouds"]],
        )
    )
    shown = [key for key in figures.SHOWN if key in focus.results]
    sizes = sorted({size for key in shown for size in focus.results[key].cosines})
    sections.append(
        Section(
            "Do two batches agree?",
            [
                f"{focus.label}: mean cosine of the gradients of two disjoint batches. Near 0 two batches have nothing to do "
                "with each other, near 1 a larger batch says nothing new.",
            ],
            Table(
                ["estimator", *(f"{size} episodes" for size in sizes)],
                [[labels[key], *(write_cosine(focus.results[key].cosines.get(size)) for size in sizes)] for key in shown],
            ),
            [pictures["cosines"]],
        )
    )
    sections.append(
        Section(
            "Can these numbers be trusted?",
            [
                f"{focus.label}: what fewer episodes would have said. Bands are 90 % of {N_SUBSAMPLES} subsamples; at "
                "the right end is the interval of all episodes. Subsamples of nearly all episodes share them, so bands there "
                "are too narrow.",
            ],
            None,
            [pictures["trust"]],
        )
    )
    return sections


def stage_section(measurement: Measurement) -> Section:
    """
    Describe one model.

    :param measurement: Of the model.
    :return: Text and table.
    """
    deviation = float(np.std(measurement.returns, ddof=1))
    size = measurement.batch_size
    text = [
        f"{measurement.model_class}; {len(measurement.returns)} episodes of {measurement.n_steps:,} steps, return "
        f"{write_number(float(np.mean(measurement.returns)))} (standard deviation {write_number(deviation)}); gamma "
        f"{measurement.gamma:g}; an actor with {measurement.n_parameters:,} parameters; batch of {size} "
        f"({measurement.batch_note})."
    ]
    if measurement.is_compressed:
        text.append("Gradients were compressed, which changes inner products by about one per cent.")
    cosine = measurement.target_cosine
    if np.isfinite(cosine.value):
        bounds = f" [{cosine.low:.2f}, {cosine.high:.2f}]" if np.isfinite(cosine.low) else ", without an interval"
        text.append(
            "With gamma below 1 the undiscounted-state-distribution gradient (Nota & Thomas 2020) and that of the objective "
            f"that is discounted from the start are two: their cosine is {cosine.value:.3f}{bounds}. Compare the noise of "
            "estimators with the same target only."
        )
    if any(not is_resolved(result) for result in measurement.results.values()):
        text.append("An estimator whose gradient is not distinguishable from zero has no number of episodes that is known.")
    if not all(result.ratio.is_bounded for result in measurement.results.values()):
        text.append(
            f"Too few informative episodes: fewer than {MIN_INFORMATIVE} carry the gradient of an estimator, or fewer have a "
            "return that is not the most common one. No interval could be trusted: collect more episodes."
        )
    rows = [result_row(result, size) for result in measurement.results.values()]
    header = [
        "estimator",
        "estimates the gradient that is",
        "episodes until signal = noise",
        f"signal/noise at {size}",
        f"cosine at {size}",
        "bias",
        "backwards",
        "KL of the step",
    ]
    title = f"{measurement.label}"
    return Section(title[0].upper() + title[1:], text, Table(header, rows))


def result_row(result: Result, size: int) -> list[str]:
    """
    Write what was found of an estimator.

    :param result: Of the estimator.
    :param size: Episodes of an update.
    :return: Cells.
    """
    value, low, high = (write_number(size * part) for part in result.ratio)
    ratio = f"{value} [{low}, {high}]" if is_resolved(result) else "not distinguishable from zero"
    return [
        result.estimator.label,
        TARGETS[result.estimator.target],
        write_episodes(result.episodes),
        ratio if result.ratio.is_bounded else TOO_FEW,
        write_cosine(result.cosines.get(size)),
        write_bias(result.bias),
        f"{100 * result.backwards:.0f} %",
        f"{result.kl:.2g}",
    ]


def write_cosine(cosine: float | None) -> str:
    """
    Write a cosine.

    :param cosine: None if it was not measured.
    :return: The number.
    """
    return "" if cosine is None else f"{cosine:.2f}"
