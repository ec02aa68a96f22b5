"""Write the report of a comparison: one self-contained HTML file, Markdown, tables, figures."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from sb3_reinforce.checkpoints import write_file
from sb3_reinforce.lab.document import Document, Picture, Section, Table, write_document
from sb3_reinforce.zoo.compare import statistics, summary
from sb3_reinforce.zoo.compare.results import SCORES, Results
from sb3_reinforce.zoo.compare.run import REPORT_SEED, SELECTION_SEED
from sb3_reinforce.zoo.compare.run_files import LOG_FILE, last_exception
from sb3_reinforce.zoo.compare.statistics import Overall

FIGURES_FOLDER = "figures"
NOTHING = "none"
#: Longer tables are folded.
MAX_ROWS = 12


def write_report(folder: Path, results: Results, arguments: Sequence[str], failures: dict[str, str]) -> None:
    """Write all files of the report, with the ``arguments`` of the command and the reasons for failures by run name."""
    for name, table in (("results", results.runs), ("curves", results.curves)):
        write_file(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    scores = {} if results.runs.empty else results.normalised()
    overall = statistics.over_environments(scores) if scores else None
    pictures = draw_pictures(folder, results, overall)
    settings, rankings = results.settings, summary.rank_environments(results)
    document = Document(
        title=f"{summary.join(results.algorithms or settings.algorithms)} compared",
        subtitle=summary.describe_extent(results),
        table=None if results.runs.empty else main_table(results, overall, rankings),
        table_note="Final scores: mean over seeds and 95 % interval. Bold: the highest mean. ≈: the difference from it may be "
        "chance.",
        pictures=pick(pictures, "iqm", "final")[:1],
        findings=summary.findings(results, overall, rankings),
        notes=summary.notes(results, overall),
        sections=make_sections(results, overall, pictures, explain_missing(folder, results, failures)),
        reproduce=describe_origin(results, arguments),
        files="`results.csv` has one row for each run, `curves.csv` one for each evaluation.",
        hyperparameters={
            f"{name} on {env_id}": yaml.safe_dump(entry, width=100).rstrip()
            for env_id in results.environments or settings.entries
            for name, entry in settings.entries[env_id].items()
        },
    )
    write_document(folder / "report", document)


def draw_pictures(folder: Path, results: Results, overall: Overall | None) -> dict[str, Picture]:
    """Draw and save all figures, by name."""
    (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
    if results.runs.empty:
        return {}

    from sb3_reinforce.lab import plots
    from sb3_reinforce.zoo.compare import figures

    pictures = {}
    with plots.style():
        for name, description, wide, narrow in figures.draw_all(results, overall):
            svg, narrow_svg = plots.save(wide, folder / FIGURES_FOLDER / name), plots.render(narrow, "svg")
            pictures[name] = Picture(description, svg, narrow_svg, f"{FIGURES_FOLDER}/{name}.png")
    return pictures


def pick(pictures: Mapping[str, Picture], *names: str) -> list[Picture]:
    """Select the named figures that were drawn."""
    return [pictures[name] for name in names if name in pictures]


def explain_missing(folder: Path, results: Results, failures: Mapping[str, str]) -> dict[str, str]:
    """Explain why runs have no result, now or earlier, with the path of the run's log relative to the folder."""
    reasons = {}
    for task in results.missing:
        log = task.folder / LOG_FILE
        printed = (folder / log).read_text(errors="replace") if (folder / log).exists() else None
        reason = failures.get(str(task)) or last_exception(printed or "") or "not done yet"
        reasons[str(task)] = reason if printed is None else f"{reason} ({log.as_posix()})"
    return reasons


def make_sections(
    results: Results, overall: Overall | None, pictures: Mapping[str, Picture], missing: Mapping[str, str]
) -> list[Section]:
    """Assemble everything below the findings."""
    sections = []
    if missing:
        text = "The same command does them. What a run printed is in its output.log."
        table = Table(["run", "reason"], [list(row) for row in missing.items()])
        sections.append(Section("Missing runs", [text], table, is_folded=len(missing) > MAX_ROWS))
    if results.runs.empty:
        return sections
    has_bands = max(results.runs.groupby(["env", "algorithm"]).size()) > 4
    of_seeds = "thin lines are single runs"
    if has_bands:
        of_seeds = "bands are 95 % intervals (Student's), and thin lines are single runs where there are fewer than five"
    curves = f"Evaluations during the runs. Thick lines are means over seeds, {of_seeds}."
    curves += " The dotted line is the score to reach." if results.thresholds else ""
    sections += [
        Section("Learning curves against steps", [curves], pictures=pick(pictures, "steps")),
        Section(
            "Learning curves against time",
            [f"{curves} Time is that of training alone; runs shared the machine."],
            pictures=pick(pictures, "seconds"),
        ),
        Section(
            "Final scores of all runs",
            [
                "Symbols are runs, the vertical line is their mean with its 95 % interval, the dotted line is the score of "
                "random actions. Intervals are Student's, which know no bounds: near the lowest or the highest possible score "
                "they reach beyond it.",
                *(f"{line}." for line in summary.describe_time_limits(results)),
            ],
            pictures=pick(pictures, "iqm", "final")[1:],
        ),
        Section(
            "Other scores and steps taken",
            [
                "Sampled: the final policy with sampled actions. Best checkpoint: of each run the policy that was best in the "
                "evaluations during the run, scored again in other episodes, since the maximum of those evaluations would "
                "flatter. A best checkpoint far above the final policy means that training was not stable.",
                "Steps are those that were taken in training, in all seeds: an algorithm finishes the rollout, REINFORCE the "
                "episodes, that it is in when the budget is spent.",
            ],
            other_scores_table(results),
            is_folded=True,
        ),
    ]
    if overall is not None:
        text = (
            "Final scores, normalised such that random actions, and all that is worse, have 0 and the best run of this "
            "comparison has 1 in each environment. Intervals are 95 % intervals of a bootstrap over seeds, widened for their "
            "small number. The profile shows the share of runs above each score; the probability of improvement is that of a "
            "run of the first over a run of the second on the same environment. An algorithm that cannot act in an "
            "environment is counted over the others, and is compared in pairs only, over the environments of both."
        )
        shown = pick(pictures, "aggregates", "profile", "improvement")
        sections.append(Section("Over all environments", [text], aggregate_table(results, overall), shown, is_folded=True))
    if results.thresholds:
        text = (
            "Median over seeds (the upper of two in the middle) of the training until the first of three evaluations in a row "
            "that reached the score, the final scores being the last evaluation; runs without three count as infinite. "
            f"Evaluations are 1/{results.settings.n_evaluations} of a run apart."
        )
        table = threshold_table(results)
        sections.append(Section("To the threshold", [text], table, is_folded=len(table.rows) > MAX_ROWS))
    text = "Steps per second of training, median over seeds; evaluations do not count, runs shared the machine."
    sections.append(Section("Speed", [text], speed_table(results), is_folded=True))
    return sections


def main_table(results: Results, overall: Overall | None, rankings: Mapping[str, summary.Ranking]) -> Table:
    """Tabulate the final scores, with a row per environment and a column per algorithm and for random actions."""
    names, rows = results.algorithms, []
    for env_id, ranking in rankings.items():
        digits = results.decimals(env_id)
        random = f"{results.random_scores[env_id]:,.{digits}f}" if env_id in results.random_scores else NOTHING
        rows.append([env_id, *(write_rank(ranking, name, digits) for name in names), random])
    if overall is not None and len(results.environments) > 1 and len(overall.everywhere) > 1:
        ranking = summary.rank_everywhere(overall)
        rows.append(["all, normalised (IQM)", *(write_rank(ranking, name, 2) for name in names), "0.00"])
    return Table(["environment", *names, "random"], rows)


def write_rank(ranking: summary.Ranking, name: str, digits: int) -> str:
    """Format an algorithm's estimate, if it has one: the highest of several in bold, one that may be as high with ≈."""
    estimates, leaders, _, level, untested = ranking
    if name not in estimates:
        return ""
    is_best = len(estimates) > 1 and name in leaders
    return summary.write(estimates[name], digits, is_best, is_tied=name in level or name in untested)


def other_scores_table(results: Results) -> Table:
    """Tabulate what the final scores do not show, with a row per environment and algorithm."""
    rows = []
    for env_id in results.environments:
        digits = results.decimals(env_id)
        for name, steps in results.by_algorithm("steps", env_id).items():
            scores = [results.values(column, env_id, name).mean() for column in SCORES]
            ends = dict.fromkeys(f"{end:,.0f}" for end in (steps.min(), steps.max()))
            rows.append([env_id, name, *(f"{score:,.{digits}f}" for score in scores), " to ".join(ends)])
    return Table(["environment", "algorithm", "final", "final, sampled", "best checkpoint", "steps taken"], rows)


def aggregate_table(results: Results, overall: Overall) -> Table:
    """Tabulate the aggregates over environments."""
    rows = []
    for name, n_seeds in overall.n_seeds.items():
        counted = results.counted(name)
        where = f"all {len(counted)}" if name in overall.everywhere else summary.join(counted)
        cells = [summary.write(estimates[name]) for estimates in overall.aggregates.values()]
        rows.append([name, *cells, str(n_seeds), where])
    return Table(["algorithm", *overall.aggregates, "seeds", "environments"], rows)


def threshold_table(results: Results) -> Table:
    """Tabulate steps and seconds to the threshold."""
    rows = []
    for env_id, threshold in results.thresholds.items():
        for name, steps in results.by_algorithm("steps_to_threshold", env_id).items():
            seconds = results.values("seconds_to_threshold", env_id, name)
            reached = f"{np.isfinite(steps).sum()} of {len(steps)}"
            rows.append([env_id, f"{threshold:g}", name, reached, write_median(steps, 0), write_median(seconds, 1)])
    return Table(["environment", "score", "algorithm", "runs that reached it", "steps", "seconds"], rows)


def write_median(values: statistics.FloatArray, digits: int) -> str:
    """Format the median of numbers, some of which may be infinite."""
    # The upper of the two middle values: their mean would be meaningless if one is infinite
    median = float(np.sort(values)[len(values) // 2])
    return f"{median:,.{digits}f}" if np.isfinite(median) else "not reached"


def speed_table(results: Results) -> Table:
    """Tabulate the steps per second."""
    speeds = results.speeds().loc[results.environments, results.algorithms]
    rows = [[env_id, *(NOTHING if np.isnan(one) else f"{one:,.0f}" for one in own)] for env_id, own in speeds.iterrows()]
    return Table(["environment", *results.algorithms], rows)


def describe_origin(results: Results, arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Describe how to reproduce the report, as names and values."""
    settings = results.settings
    return [
        ("command", shlex.join(["sb3-reinforce", "compare", *arguments])),
        ("training seeds", ", ".join(map(str, settings.seeds))),
        (
            "evaluation",
            f"{settings.n_evaluations} evaluations of {settings.eval_episodes} episodes during a run (environments seeded "
            f"from {SELECTION_SEED} on), {settings.final_episodes} episodes for the scores (seeded from {REPORT_SEED} on), "
            "the same for all; rewards not normalised; statistics of VecNormalize as in training, unchanged by evaluations",
        ),
        *((what, " and ".join(versions)) for what, versions in results.versions.items()),
    ]
