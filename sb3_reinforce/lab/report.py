"""Write the laboratory's report: one self-contained HTML file, Markdown, a table, the figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_reinforce.checkpoints import write_file
from sb3_reinforce.lab.document import Document, Picture, Section, Table, write_document
from sb3_reinforce.lab.findings import (
    TOO_FEW,
    best_estimators,
    describe,
    findings,
    notes,
    write_bias,
    write_episodes,
    write_number,
)
from sb3_reinforce.lab.measurement import N_CLOUD_DOTS, N_SUBSAMPLES, Measurement, Result

NAME = "gradients"
TARGETS = {"undiscounted": "undiscounted state distribution", "discounted": "discounted objective"}


def write_report(
    folder: Path, environment: str, measurements: Sequence[Measurement], origin: Sequence[tuple[str, str]] = ()
) -> str:
    """
    Write ``gradients.html``, ``.md``, ``.csv``, ``.png`` and ``.svg`` (needs the extra "zoo").

    :param folder: Folder for these files; created if needed.
    :param environment: Name of the environment.
    :param measurements: Measurements of at least one model, in the order of training.
    :param origin: Names and values that say how to reproduce the report.
    :return: The findings, one per line.
    """
    from sb3_reinforce.lab import figures, plots

    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / f"{NAME}.csv", to_table(measurements).to_csv(index=False, lineterminator="\n"))
    focus = figures.focus_of(measurements)
    with plots.style():
        title = f"{environment}. {' '.join(describe(focus))}"
        plots.save(figures.whole_figure(title, measurements), folder / NAME)
        svgs = []
        for width, is_narrow in ((1.1 * plots.HALF, False), (plots.NARROW, True)):
            drawn = [figures.needed_figure(measurements, width), *figures.panels(focus, is_narrow)]
            svgs.append([plots.render(one, "svg") for one in drawn])
    captions = [
        "Noise scale of each estimator and model",
        f"{focus.label}: {N_CLOUD_DOTS} updates with {focus.batch_size} episodes each, drawn from one half of the episodes, "
        "relative to the mean gradient of the other half (across) and the direction in which reward-to-go is noisiest (up). "
        "In the grey part an update points backwards.",
        f"{focus.label}: mean cosine of the gradients of two disjoint batches. Near 0 two batches have nothing in common, "
        "near 1 a larger batch says nothing new.",
        f"{focus.label}: what fewer episodes would have said. Bands are 90 % of {N_SUBSAMPLES} subsamples; at the right end "
        "is the interval of all episodes. Bands near it are too narrow, since these subsamples share most episodes.",
    ]
    pictures = [Picture(*parts) for parts in zip(captions, *svgs, strict=True)]
    said = findings(measurements, focus)
    document = Document(
        title=f"What gradients are worth on {environment}",
        subtitle="Episodes until the signal equals the noise (the gradient noise scale), with 90 % intervals, by estimator "
        "and model. All estimators of a model were computed from the same episodes.",
        table=needed_table(measurements),
        table_note="Bold: the fewest episodes among the resolved estimators of the same target. ≈: it may need as few. An "
        "estimator is unresolved if its gradient cannot be told from zero with these episodes: the number has no upper bound.",
        pictures=[Picture("The four panels of the report", file=f"{NAME}.png"), pictures[0]],
        findings=said,
        notes=notes(measurements),
        sections=[
            Section("Updates, batches and subsamples", [], cosine_table(focus, list(figures.SHOWN)), pictures[1:]),
            *(model_section(measurement) for measurement in measurements),
            Section(
                "How to read these numbers",
                [
                    "The noise scale is no advice to collect so many episodes. Above it more episodes buy little; below it "
                    "updates are noisy, but often still the most efficient way to learn.",
                    "Estimators that see their batch have a scale of their own at each batch size, here at that of the model. "
                    "The best constant and the refitted critic show what a baseline could be worth: they are fitted to these "
                    "episodes, each on one half for the other.",
                ],
            ),
        ],
        reproduce=origin,
        files=f"`{NAME}.csv` has one row for each model and estimator.",
    )
    write_document(folder / NAME, document)
    return "\n".join([*said, *document.notes])


def to_table(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """Put all numbers into one table, with a row per model and estimator; docs/laboratory.md explains the columns."""
    rows = []
    for measurement in measurements:
        size = measurement.batch_size
        for key, result in measurement.results.items():
            row = {
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
            }
            ratio = tuple(size * part for part in result.ratio)
            for name, numbers in (("episodes", result.episodes), ("snr", ratio), ("bias", result.bias)):
                row |= {f"{name}{end}": number for end, number in zip(("", "_low", "_high"), numbers, strict=True)}
            row |= {"reference": result.reference, "backwards": result.backwards, "kl": result.kl}
            rows.append(row | {f"cosine_{number}": cosine for number, cosine in sorted(result.cosines.items())})
    return pd.DataFrame(rows)


def needed_table(measurements: Sequence[Measurement]) -> Table:
    """Tabulate the noise scales, with a row per estimator and a column per model."""
    labels = {key: result.estimator.label for one in measurements for key, result in one.results.items()}
    rows = [[label] for label in labels.values()]
    for measurement in measurements:
        best, tied = best_estimators(measurement)
        for row, key in zip(rows, labels, strict=True):
            result = measurement.results.get(key)
            cell = "" if result is None else write_episodes(result.episodes)
            number, bracket, rest = cell.partition(" [")
            row.append(f"**{number}**{bracket}{rest}" if key in best else f"{cell} ≈" if key in tied else cell)
    return Table(["estimator", *(one.label for one in measurements)], rows)


def cosine_table(measurement: Measurement, keys: Sequence[str]) -> Table:
    """Tabulate the cosines between two disjoint batches."""
    results = [measurement.results[key] for key in keys if key in measurement.results]
    sizes = sorted({size for result in results for size in result.cosines})
    rows = [[one.estimator.label, *(write_cosine(one.cosines.get(size)) for size in sizes)] for one in results]
    return Table([f"{measurement.label}: cosine by batch size", *map(str, sizes)], rows)


def model_section(measurement: Measurement) -> Section:
    """Describe one model."""
    deviation, size = float(np.std(measurement.returns, ddof=1)), measurement.batch_size
    text = [
        f"{measurement.model_class}; {len(measurement.returns)} episodes of {measurement.n_steps:,} steps, return "
        f"{write_number(float(np.mean(measurement.returns)))} (standard deviation {write_number(deviation)}); gamma "
        f"{measurement.gamma:g}; an actor with {measurement.n_parameters:,} parameters; batch of {size} "
        f"({measurement.batch_note}).",
        " ".join(describe(measurement)),
    ]
    if measurement.is_compressed:
        text.append("Gradients were compressed, which changes inner products by about one per cent.")
    cosine = measurement.target_cosine
    if np.isfinite(cosine.value):
        bounds = f" [{cosine.low:.2f}, {cosine.high:.2f}]" if np.isfinite(cosine.low) else ", without an interval"
        text.append(
            "With gamma below 1 the undiscounted-state-distribution gradient (Nota & Thomas 2020: reward-to-go, all steps "
            "with the same weight) and the gradient of the discounted objective differ: their cosine is "
            f"{cosine.value:.3f}{bounds}. Compare the noise of estimators with the same target only."
        )
    header = ["estimator", "target", "episodes until signal = noise", f"signal/noise at {size}", f"cosine at {size}"]
    header += ["bias", "backwards", "KL of the step"]
    rows = [result_row(result, size) for result in measurement.results.values()]
    return Section(f"All numbers: {measurement.label}", text, Table(header, rows), is_folded=True)


def result_row(result: Result, size: int) -> list[str]:
    """Format the numbers of an estimator."""
    value, low, high = (write_number(size * part) for part in result.ratio)
    ratio = f"{value} [{low}, {high}]" if result.is_resolved else "not distinguishable from zero"
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
    """Format a cosine; empty if it was not measured."""
    return "" if cosine is None else f"{cosine:.2f}"
