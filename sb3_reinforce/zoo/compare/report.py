"""Writes the report of a comparison: one HTML file that needs no other, markdown, tables, figures."""

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure

from sb3_reinforce.zoo.compare import figures, statistics, summary
from sb3_reinforce.zoo.compare.plan import write_bytes, write_text
from sb3_reinforce.zoo.compare.results import Results
from sb3_reinforce.zoo.compare.run import REPORT_SEED, SELECTION_SEED
from sb3_reinforce.zoo.compare.run_files import LOG_FILE, last_exception
from sb3_reinforce.zoo.compare.statistics import Overall

FIGURES_FOLDER = "figures"
NOTHING = "none"


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

    :param name: File name without suffix.
    :param description: What it shows.
    :param data: The SVG, as an address that contains it.
    """

    name: str
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


def write_report(folder: Path, results: Results, arguments: Sequence[str], failures: dict[str, str]) -> None:
    """
    Write all files of the report.

    :param folder: Folder of the comparison.
    :param results: The results.
    :param arguments: The command line that made them, without the program.
    :param failures: Why runs failed, by run.
    """
    results.runs.to_csv(buffer := io.StringIO(), index=False, lineterminator="\n")
    write_text(folder / "results.csv", buffer.getvalue())
    results.curves.to_csv(buffer := io.StringIO(), index=False, lineterminator="\n")
    write_text(folder / "curves.csv", buffer.getvalue())

    scores = {} if results.runs.empty else results.normalised()
    overall = statistics.over_environments(scores) if scores else None
    pictures = {}
    (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
    for name, description, figure in () if results.runs.empty else figures.draw_all(results, overall):
        svg = save(figure, folder / FIGURES_FOLDER / name)
        address = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        pictures[name] = Picture(name, description, address)

    content = {
        "title": f"{summary.join(results.algorithms or results.settings.algorithms)} compared",
        "summary": summary.summarise(results, overall),
        "sections": make_sections(results, overall, pictures, explain_missing(folder, results, failures)),
        "reproduce": describe_origin(results, arguments),
        "hyperparameters": {
            f"{name} on {env_id}": yaml.safe_dump(entry, width=100).rstrip()
            for env_id in results.environments or results.settings.environments
            for name, entry in results.settings.entries[env_id].items()
        },
        "figures_folder": FIGURES_FOLDER,
    }
    for suffix, autoescape in (("md", False), ("html", True)):
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("sb3_reinforce.zoo.compare"),
            autoescape=autoescape,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            undefined=jinja2.StrictUndefined,
        )
        write_text(folder / f"report.{suffix}", environment.get_template(f"report.{suffix}.jinja").render(content))


def explain_missing(folder: Path, results: Results, failures: Mapping[str, str]) -> dict[str, str]:
    """
    Say why runs have no result.

    :param folder: Folder of the comparison.
    :param results: The results.
    :param failures: Why runs failed that were tried now, by run.
    :return: Why by run, also of those that were tried earlier; with the path of what a run printed, relative to the folder.
    """
    reasons = {}
    for task in results.missing:
        log = task.folder / LOG_FILE
        printed = (folder / log).read_text(errors="replace") if (folder / log).exists() else None
        reason = failures.get(str(task)) or last_exception(printed or "") or "not done yet"
        reasons[str(task)] = reason if printed is None else f"{reason} ({log.as_posix()})"
    return reasons


def save(figure: Figure, path: Path) -> bytes:
    """
    Save a figure as PNG and SVG.

    :param figure: The figure.
    :param path: Path without suffix.
    :return: The SVG.
    """
    content = b""
    # Dates and versions would make equal figures differ
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with matplotlib.rc_context(figures.STYLE):
            figure.savefig(buffer := io.BytesIO(), format=suffix, dpi=150, metadata=metadata)
        content = buffer.getvalue()
        write_bytes(path.with_name(f"{path.name}.{suffix}"), content)
    return content


def make_sections(
    results: Results, overall: Overall | None, pictures: dict[str, Picture], missing: Mapping[str, str]
) -> list[Section]:
    """
    Arrange the report.

    :param results: The results.
    :param overall: Statistics over environments, if there are any.
    :param pictures: The figures by name.
    :param missing: Why runs have no result, by run.
    :return: The parts in order.
    """

    def per_environment(kind: str) -> list[Picture]:
        return [picture for name, picture in pictures.items() if name.startswith(f"{kind}_")]

    sections = []
    if missing:
        text = "The same command does them. What a run printed is in its output.log."
        sections.append(Section("Missing runs", [text], Table(["run", "reason"], [list(row) for row in missing.items()])))
    if results.runs.empty:
        return sections
    sections.append(
        Section(
            "Final scores",
            [
                "Mean over seeds and 95 % interval (Student's) of the final policy, that is after the whole budget, with the "
                "likeliest actions. Such an interval knows no bounds: where scores are near the lowest or the highest that is "
                "possible, it reaches beyond. Dots are runs, the dotted line is the score of random actions.",
                "Steps are those that were taken in training, in all seeds: an algorithm finishes the rollout, REINFORCE the "
                "episodes, that it is in when the budget is spent.",
                *(f"{line}." for line in summary.describe_time_limits(results)),
            ],
            final_table(results),
            per_environment("final"),
        )
    )
    sections.append(
        Section(
            "Other scores",
            [
                "Stochastic: the final policy with sampled actions. Best checkpoint: of each run the policy that was best in "
                "the evaluations during the run, scored anew in other episodes, since the maximum of those evaluations would "
                "flatter. A best checkpoint far above the final policy means that training was not stable.",
            ],
            other_scores_table(results),
        )
    )
    lines = "Evaluations during the runs: mean over seeds, 95 % interval (Student's, which knows no bounds)."
    dotted = " Dotted: the score to reach." if results.thresholds else ""
    sections.append(Section("Learning curves against steps", [lines + dotted], pictures=per_environment("steps")))
    sections.append(
        Section(
            "Learning curves against time",
            [f"{lines}{dotted} Time is that of training alone; runs shared the machine."],
            pictures=per_environment("seconds"),
        )
    )
    if overall is not None:
        names = [name for name in ("aggregates", "profile", "improvement") if name in pictures]
        sections.append(
            Section(
                "Over all environments",
                [
                    "Final scores, normalised such that random actions, and all that is worse, have 0 and the best run of "
                    "this comparison has 1 in each environment. Intervals are 95 % intervals of a bootstrap over seeds, "
                    "widened for their small number. The profile shows the share of runs above each score; the probability of "
                    "improvement is that of a run of the first over a run of the second on the same environment. Who cannot "
                    "act in an environment is counted over the others, and can be compared in pairs only, which are over the "
                    "environments of both.",
                ],
                aggregate_table(results, overall),
                [pictures[name] for name in names],
            )
        )
    if results.thresholds:
        sections.append(
            Section(
                "To the threshold",
                [
                    "Median over seeds (the upper of two in the middle) of the training until the first of three evaluations "
                    "in a row that reached the score, the final scores being the last evaluation; runs without three count as "
                    f"infinite. Evaluations are 1/{results.settings.n_evaluations} of a run apart.",
                ],
                threshold_table(results),
            )
        )
    sections.append(
        Section(
            "Speed",
            ["Steps per second of training, median over seeds; evaluations do not count, runs shared the machine."],
            speed_table(results),
            [pictures["throughput"]],
        )
    )
    return sections


def final_table(results: Results) -> Table:
    """
    Tabulate the final scores.

    :param results: The results.
    :return: One row for each environment and contender, and one for random actions.
    """
    rows = []
    for env_id in results.environments:
        digits = results.decimals(env_id)
        for name in results.algorithms:
            final = results.final(env_id, name)
            if final is not None:
                steps = write_range(results.values("steps", env_id, name))
                rows.append([env_id, name, summary.write(final, digits), steps])
        random = f"{results.random_scores[env_id]:,.{digits}f}" if env_id in results.random_scores else NOTHING
        rows.append([env_id, "random actions", random, NOTHING])
    return Table(["environment", "algorithm", "final score", "steps taken"], rows)


def write_range(values: statistics.FloatArray) -> str:
    """
    Write the extent of whole numbers.

    :param values: The numbers.
    :return: The smallest and the largest, or the only one.
    """
    low, high = f"{values.min():,.0f}", f"{values.max():,.0f}"
    return low if low == high else f"{low} to {high}"


def other_scores_table(results: Results) -> Table:
    """
    Tabulate what the final scores do not show.

    :param results: The results.
    :return: One row for each environment and contender.
    """
    rows = []
    for env_id in results.environments:
        digits = results.decimals(env_id)
        for name in results.algorithms:
            columns = ("score", "stochastic_score", "best_score")
            estimates = [results.final(env_id, name, column) for column in columns]
            if estimates[0] is not None:
                cells = [f"{estimate.value:,.{digits}f}" for estimate in estimates if estimate is not None]
                rows.append([env_id, name, *cells])
    return Table(["environment", "algorithm", "final", "final, stochastic", "best checkpoint"], rows)


def aggregate_table(results: Results, overall: Overall) -> Table:
    """
    Tabulate the aggregates over environments.

    :param results: The results.
    :param overall: Statistics over environments.
    :return: One row for each contender.
    """
    rows = []
    for name, n_seeds in overall.n_seeds.items():
        counted = results.counted(name)
        where = f"all {len(counted)}" if name in overall.everywhere else summary.join(counted)
        cells = [summary.write(estimates[name]) for estimates in overall.aggregates.values()]
        rows.append([name, *cells, str(n_seeds), where])
    return Table(["algorithm", *overall.aggregates, "seeds", "environments"], rows)


def threshold_table(results: Results) -> Table:
    """
    Tabulate steps and seconds to the threshold.

    :param results: The results.
    :return: One row for each environment and contender.
    """
    rows = []
    for env_id, threshold in results.thresholds.items():
        for name in results.algorithms:
            steps = results.values("steps_to_threshold", env_id, name)
            seconds = results.values("seconds_to_threshold", env_id, name)
            if len(steps):
                reached = f"{np.isfinite(steps).sum()} of {len(steps)}"
                row = [env_id, f"{threshold:g}", name, reached, write_median(steps, 0), write_median(seconds, 1)]
                rows.append(row)
    return Table(["environment", "score", "algorithm", "runs that reached it", "steps", "seconds"], rows)


def write_median(values: statistics.FloatArray, digits: int) -> str:
    """
    Write a median.

    :param values: Numbers, of which some may be infinite.
    :param digits: Digits behind the point.
    :return: The median.
    """
    # The upper one of two in the middle: the mean of a number and infinity would be none
    median = float(np.sort(values)[len(values) // 2])
    return f"{median:,.{digits}f}" if np.isfinite(median) else "not reached"


def speed_table(results: Results) -> Table:
    """
    Tabulate the steps per second.

    :param results: The results.
    :return: One row for each environment.
    """
    rows = []
    for env_id in results.environments:
        speeds = [results.values("steps_per_second", env_id, name) for name in results.algorithms]
        rows.append([env_id, *(f"{np.median(values):,.0f}" if len(values) else NOTHING for values in speeds)])
    return Table(["environment", *results.algorithms], rows)


def describe_origin(results: Results, arguments: Sequence[str]) -> list[tuple[str, str]]:
    """
    Say how to make the report again.

    :param results: The results.
    :param arguments: The command line, without the program.
    :return: Names and values.
    """
    settings = results.settings
    seeds = ", ".join(map(str, settings.seeds))
    return [
        ("command", shlex.join(["sb3-reinforce", "compare", *arguments])),
        ("training seeds", seeds),
        (
            "evaluation",
            f"{settings.n_evaluations} evaluations of {settings.eval_episodes} episodes during a run (environments seeded "
            f"from {SELECTION_SEED} on), {settings.final_episodes} episodes for the scores (seeded from {REPORT_SEED} on), "
            "the same for all; rewards not normalised; statistics of VecNormalize as in training, unchanged by evaluations",
        ),
        *((what, " and ".join(versions)) for what, versions in results.versions.items()),
    ]
