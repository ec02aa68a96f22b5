"""Pages and figures of comparisons, made from their CSVs alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from common import describe_provenance, make_table
from comparisons import Comparison, Published
from matplotlib.figure import Figure

from sb3_reinforce.lab import plots
from sb3_reinforce.zoo.compare import figures, statistics, summary

RANDOM = "random"
LABELS = {
    "score": "score",
    "score_minus_std": "score minus deviation",
    "area": "area under the curve",
    "sampled_score": "sampled actions",
    "sampled_score_minus_std": "sampled actions, minus deviation",
}
#: Notes on scripts that are no longer here, but in the history of the repository, at the commits that the pages name.
EARLIER = {
    "zoo_table.py": "`zoo_table.py` trained through `sb3-reinforce train`, some of the runs with EnvPool (`--vec-env "
    "envpool`), and evaluated the final policy of each run once, with sampled actions where the best policy is stochastic.",
    "memory_tasks.py": "`memory_tasks.py` ended a run at the first evaluation of 100 episodes that reached the threshold "
    "(every 10,000 steps, 20,000 on CartPole, 50,000 on the T-maze of 50). The algorithms alternated in one process, beside "
    "other jobs. ppo_lstm-same-units has SB3's defaults, 8 environments and as many units as REINFORCE; on the T-maze, "
    "ppo_lstm has RL Zoo's default.",
    "masks.py": "`masks.py` measured MaskablePPO with its defaults and the same masks and observations, alternating with "
    "REINFORCE in one process; Taxi-v4 in gymnasium, Snake in EnvPool, where REINFORCE has the entry `default`. Seconds "
    "exclude the evaluations.",
    "lectures.py": "`lectures.py` computed the scores of the corridor and of dice exactly, with the environment's formula for "
    "the return of a policy; its dqn had a step size of 0.001 and 20,000 steps. On PixelCopter it had `n_steps=256` and an "
    "average of 0.9. Its images were in colour.",
}
#: Steps of a longer run after which the table of environments has scores.
SNAPSHOTS = (100_000, 300_000, 1_000_000)
#: The comparisons whose environments are put together, and the algorithms that all of them have.
OVERALL = ("classic", "mujoco")
OVERALL_ALGORITHMS = ["reinforce", "reinforce-adam", "a2c", "ppo", "trpo"]

Table = list[dict[str, Any]]


def group(runs: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield environment, algorithm and runs, in the order of the CSV; runs without training are left out."""
    trained = runs[runs["algorithm"] != RANDOM]
    for env, of_env in trained.groupby("env", sort=False):
        for (algorithm, _), own in of_env.groupby(["algorithm", "budget"], sort=False):
            yield str(env), algorithm, own.sort_values("seed")


def write_scores(values: Sequence[float]) -> str:
    """Write the mean, and the lowest and the highest of several."""
    if not values:
        return ""
    decimals = min(statistics.decimals(values), 3)
    mean = f"{np.mean(values):,.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{decimals}f} to {max(values):,.{decimals}f})"


def write_budget(runs: pd.DataFrame) -> str:
    """Write the budget of a run."""
    number, unit = runs["budget"].iloc[0].split()
    return f"{float(number):,g} {unit}" if unit == "seconds" else f"{int(number):,} {unit}"


def write_median(reached: pd.Series, spent: pd.Series, decimals: int) -> str:
    """Write the median, with unreached thresholds counted as longer than any, or bound it by what was spent."""
    median = float(np.median(reached))
    return f"{median:,.{decimals}f}" if np.isfinite(median) else f"> {np.median(spent):,.{decimals}f}"


def score_table(runs: pd.DataFrame, comparison: Comparison) -> Table:
    """Make one row for each environment and algorithm."""
    runs = runs.assign(
        score_minus_std=runs["score"] - runs["score_std"],
        sampled_score_minus_std=runs["sampled_score"] - runs["sampled_score_std"],
    )
    columns = [column for column in comparison.columns if runs[column].notna().any()]
    rows = []
    for env, algorithm, own in group(runs):
        row = {"environment": env, "algorithm": algorithm, "budget": write_budget(own), "seeds": len(own)}
        row |= {LABELS[column]: write_scores(own[column].dropna().tolist()) for column in columns}
        if comparison.normalised:
            row["95 % interval"] = write_with_interval(own["score"])
        if comparison.to_threshold:
            row["reached"] = f"{np.isfinite(own['steps_to_threshold']).sum()} of {len(own)}"
            row["threshold"] = f"{own['threshold'].iloc[0]:g}"
            row["steps"] = write_median(own["steps_to_threshold"], own["steps"], 0)
            row["seconds"] = write_median(own["seconds_to_threshold"], own["seconds"], 1)
        elif own["steps"].notna().all():
            row |= {"steps": f"{own['steps'].median():,.0f}", "seconds": f"{own['seconds'].median():,.0f}"}
        rows.append(row)
    return rows


def environment_table(runs: pd.DataFrame, published: Mapping[str, Published]) -> Table:
    """Make one row for each environment: scores after some steps and at the end, and published scores."""
    rows = []
    for env, of_env in runs[runs["algorithm"] != RANDOM].groupby("env", sort=False):
        own, adam = (of_env[of_env["algorithm"] == name].sort_values("seed") for name in ("reinforce", "reinforce-adam"))
        if own.empty:
            continue
        # The best policy may be a random one
        column = "score" if own["score"].notna().all() else "sampled_score"
        row = {"environment": str(env) + " (sampled actions)" * (column != "score"), "seeds": len(own)}
        for n_steps in SNAPSHOTS:
            scores = own.get(f"score_{n_steps}", pd.Series(dtype=float)).dropna()
            row[f"{n_steps:,}"] = write_with_interval(scores)
        row |= {"at the end": write_with_interval(own[column]), "steps": write_budget(own).removesuffix(" steps")}
        row["Adam"] = write_with_interval(adam[column].dropna())
        others = published.get(str(env), Published())
        rows.append(row | dict(zip(("Tianshou", "A2C", "PPO", "TRPO"), others, strict=True)))
    return rows


def write_with_interval(scores: pd.Series) -> str:
    if scores.empty:
        return ""
    return summary.write(statistics.mean_with_interval(scores.tolist()), statistics.decimals(scores.tolist()))


def make_page(name: str, comparison: Comparison, runs: pd.DataFrame) -> str:
    """Make the page of a comparison."""
    parts = [f"# {comparison.title}", comparison.purpose]
    if comparison.published:
        tables = {name: environment_table(runs, comparison.published)}
    else:
        tables = {str(part): score_table(own, comparison) for part, own in runs.groupby("part", sort=False)}
    if comparison.normalised:
        parts += describe_overall(normalise(runs, "score"), "final scores")
    for part, table in tables.items():
        parts += [f"## {part}"] * (len(tables) > 1) + [make_table(table)]
    if not comparison.published:
        parts.append(
            "Scores: mean over the seeds, lowest and highest in brackets; deterministic actions unless the column says "
            "otherwise. A deviation is the standard deviation over the episodes of a seed."
            + (" Intervals are Student's, over the seeds." if comparison.normalised else "")
        )
    shown = [f"{name}.png"] * (comparison.dots is not None) + [f"{name}_aggregates.png"] * comparison.normalised
    shown += comparison.figures
    parts += [f"![{comparison.title}]({figure})" for figure in shown]
    return "\n\n".join([*parts, *describe_origin(runs)]) + "\n"


def describe_origin(runs: pd.DataFrame) -> list[str]:
    """Describe the origin of the runs, with notes on scripts that are no longer here."""
    commands = " ".join(runs["command"].unique())
    notes = [note for script, note in EARLIER.items() if f"/{script}" in commands]
    where = " The script is in the history of the repository, at the commits below." if notes else ""
    return ["## Provenance", *[note + where for note in notes], describe_provenance(runs)]


# Statistics over environments


def normalise(runs: pd.DataFrame, column: str, algorithms: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """
    Scale scores so that random actions, and anything worse, score 0 and the best run scores 1 in each environment.

    :return: By algorithm the scores, of shape (seeds, environments), NaN where it cannot act.
    """
    random = runs[runs["algorithm"] == RANDOM].set_index("env")["sampled_score"]
    trained = runs[runs["algorithm"] != RANDOM]
    trained = trained if algorithms is None else trained[trained["algorithm"].isin(algorithms)]
    table = trained.pivot_table(index=["algorithm", "seed"], columns="env", values=column, sort=False)
    for env in table:
        table[env] = statistics.normalise(table[env].to_numpy(), random[env], table[env].max())
    return {name: table.loc[name].to_numpy() for name in trained["algorithm"].unique()}


def describe_overall(scores: Mapping[str, np.ndarray], kind: str) -> list[str]:
    """Name the leading algorithm over all environments, and make the table of aggregates."""
    overall = statistics.over_environments(scores)
    rows = [
        {"algorithm": name}
        | {aggregate: summary.write(estimates[name]) for aggregate, estimates in overall.aggregates.items()}
        | {"environments": int((~np.isnan(matrix)).any(axis=0).sum())}
        for name, matrix in scores.items()
    ]
    sentences = " ".join(summary.describe_aggregate(overall)).replace("final scores", kind) if overall.everywhere else ""
    return [sentences] * bool(sentences) + [make_table(rows)]


def make_overall_page(comparisons: Sequence[pd.DataFrame]) -> str:
    """Make the page on the environments of several comparisons together, for their common algorithms and seeds."""
    seeds = sorted(set.intersection(*(set(runs["seed"]) for runs in comparisons)))
    together = pd.concat([runs[runs["seed"].isin(seeds)] for runs in comparisons])
    final, equal = (
        # The best run stays the 1, even if its seed is left out
        join([normalise(runs, column, algorithms) for runs in comparisons], seeds)
        for column, algorithms in (("score", None), ("score_at_equal_steps", OVERALL_ALGORITHMS))
    )
    means = [
        {"environment": env} | {name: f"{matrix[:, column].mean():.2f}" for name, matrix in final.items()}
        for column, env in enumerate(together["env"].unique())
    ]
    steps = together.dropna(subset="equal_steps").groupby("env", sort=False)["equal_steps"].first()
    parts = [
        "# All environments of classic and mujoco together",
        f"Scores with deterministic actions for the seeds {', '.join(map(str, seeds))}, which all comparisons have, "
        "scaled so that random actions, and anything worse, score 0 and the best run of a comparison scores 1.",
        "## With the whole budget",
        *describe_overall(final, "final scores"),
        "Means over the seeds for each environment:",
        make_table(means),
        "## At equal steps",
        *describe_overall(equal, "scores at equal steps"),
        "The same runs, read off their learning curves at the end of the shortest run in each environment: "
        f"{summary.join(f'{n_steps:,.0f} ({env})' for env, n_steps in steps.items())}. Evaluations during a run have "
        "fewer episodes than the final evaluation, and step sizes that decay with the budget have hardly decayed at "
        "this point of a run that takes many steps in its time. Scaled by the best run at these steps.",
        *describe_origin(together),
    ]
    return "\n\n".join(parts) + "\n"


def join(tables: Sequence[Mapping[str, np.ndarray]], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Put the environments of several comparisons side by side; seeds count from 0."""
    return {name: np.hstack([table[name][: len(seeds)] for table in tables]) for name in OVERALL_ALGORITHMS}


# Figures


def draw_aggregates(runs: pd.DataFrame) -> Figure:
    """Draw the aggregates over environments as reports do."""
    overall = statistics.over_environments(normalise(runs, "score"))
    with matplotlib.rc_context(plots.STYLE):
        figure = figures.forest(overall.aggregates, plots.make_styles(overall.n_seeds), plots.WIDE)
        plots.space_ticks(figure)
    return figure


def draw_dots(runs: pd.DataFrame, comparison: Comparison) -> Figure:
    """Draw every run as a dot, with a panel for each environment that more than one algorithm trained on."""
    column = str(comparison.dots)
    panels = []
    # With a row for each environment, its runs belong together
    keys = ["env"] if comparison.published else ["env", "part"]
    for (env, *_), own in runs.groupby(keys, sort=False):
        algorithms = [(name, rows) for _, name, rows in group(own)]
        # With the same entry, the runs are the same
        if len({tuple(rows[column].dropna()) for _, rows in algorithms}) > 1:
            panels.append((env, algorithms))
    n_columns = min(5, len(panels))
    n_lines = -(-len(panels) // n_columns)
    figure = Figure(figsize=(max(2.6 * n_columns, 4), 2.6 * n_lines), layout="constrained")
    axes = figure.subplots(n_lines, n_columns, squeeze=False).flat
    for (env, algorithms), panel in zip(panels, axes, strict=False):
        for position, (_, rows) in enumerate(algorithms):
            values = rows[column].to_numpy(dtype=float)
            panel.plot([position] * len(values), np.where(np.isfinite(values), values, np.nan), "o", alpha=0.6)
            if comparison.to_threshold:
                spent = rows[column.removesuffix("_to_threshold")].to_numpy(dtype=float)
                panel.plot([position] * len(values), np.where(np.isfinite(values), np.nan, spent), "x", color="black")
            else:
                panel.plot([position - 0.3, position + 0.3], [np.mean(values)] * 2, color="black", linewidth=1)
        panel.set_title(f"{env}\n{write_budget(algorithms[0][1])}", fontsize=8)
        panel.set_xticks(range(len(algorithms)), [name for name, _ in algorithms], fontsize=7, rotation=20)
        panel.tick_params(axis="y", labelsize=7)
        panel.set_xlim(-0.6, len(algorithms) - 0.4)
        if comparison.to_threshold:
            panel.set_yscale("log")
            panel.set_ylabel(column.replace("_", " ") + " (x: not reached)", fontsize=7)
    for panel in axes:
        panel.set_axis_off()
    return figure
