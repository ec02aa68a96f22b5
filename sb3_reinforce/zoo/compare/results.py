"""The results of a comparison as tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sb3_reinforce.zoo.compare import statistics
from sb3_reinforce.zoo.compare.plan import RANDOM, Settings, Task, list_tasks
from sb3_reinforce.zoo.compare.run_files import RESULT_FILE
from sb3_reinforce.zoo.compare.statistics import FloatArray

#: Columns that identify a run; ``algo`` is the algorithm of RL Zoo.
KEY = ["env", "algorithm", "algo", "seed"]
#: Columns of scores in the report: the final policy, the final policy with sampled actions, and the best checkpoint.
SCORES = ["score", "stochastic_score", "best_score"]


class Results(NamedTuple):
    """
    The data of a report.

    :param settings: The settings of the comparison.
    :param runs: One row per finished run; ``score`` is the final policy's mean score with deterministic actions.
    :param curves: One row per evaluation during a run.
    :param random_scores: Mean score of random actions by environment.
    :param thresholds: Score to reach by environment, if it has one.
    :param versions: Versions of the packages that the runs used, more than one if they changed in between.
    :param missing: Runs without a result.
    :param longest_episodes: Steps of the longest evaluation episode by environment.
    """

    settings: Settings
    runs: pd.DataFrame
    curves: pd.DataFrame
    random_scores: dict[str, float]
    thresholds: dict[str, float]
    versions: dict[str, list[str]]
    missing: list[Task]
    longest_episodes: Mapping[str, float] = {}

    @property
    def algorithms(self) -> list[str]:
        """Names of the algorithms and variants that have runs."""
        present = set(self.runs["algorithm"])
        return [name for name in self.settings.algorithms if name in present]

    @property
    def environments(self) -> list[str]:
        """Ids of the environments that have runs."""
        present = set(self.runs["env"])
        return [env_id for env_id in self.settings.entries if env_id in present]

    def values(self, column: str, env_id: str, algorithm: str) -> FloatArray:
        """Return one column for an environment and an algorithm, in the order of the seeds."""
        rows = self.runs[(self.runs["env"] == env_id) & (self.runs["algorithm"] == algorithm)]
        return np.asarray(rows.sort_values("seed")[column], dtype=float)

    def by_algorithm(self, column: str, env_id: str) -> dict[str, FloatArray]:
        """Return one column for an environment by algorithm, for the algorithms with runs there."""
        values = {name: self.values(column, env_id, name) for name in self.algorithms}
        return {name: own for name, own in values.items() if len(own)}

    def speeds(self) -> pd.DataFrame:
        """Tabulate training steps per second, as medians over seeds, by environment (rows) and algorithm."""
        return self.runs.pivot_table(index="env", columns="algorithm", values="steps_per_second", aggfunc="median")

    def decimals(self, env_id: str) -> int:
        """Return the number of decimals for the scores of an environment, which must have a run."""
        scores = self.runs.loc[self.runs["env"] == env_id, SCORES].to_numpy(dtype=float)
        return statistics.decimals([*scores.flat, self.random_scores.get(env_id, np.nan)])

    def counted(self, algorithm: str) -> list[str]:
        """List the environments in which an algorithm counts in statistics: it can act, and random actions were scored."""
        return [
            env_id
            for env_id in self.environments
            if env_id in self.random_scores and algorithm in self.settings.entries[env_id]
        ]

    def normalised(self) -> dict[str, FloatArray]:
        """
        Normalise the final scores for statistics over environments.

        :return: Normalised scores by algorithm, shape (seeds, environments), for the environments in which random actions were
            scored; NaN where the algorithm cannot act. Only seeds that finished in all other environments count; algorithms
            without such a seed are omitted.
        """
        env_ids = [env_id for env_id in self.environments if env_id in self.random_scores]
        if not env_ids:
            return {}
        table = self.runs.pivot_table(index=["algorithm", "seed"], columns="env", values="score")[env_ids]
        for env_id in env_ids:
            best = float(self.runs.loc[self.runs["env"] == env_id, "score"].max())
            table[env_id] = statistics.normalise(table[env_id].to_numpy(), self.random_scores[env_id], best)
        tables = {name: table.loc[name].dropna(subset=self.counted(name)) for name in self.algorithms}
        return {name: scores.to_numpy() for name, scores in tables.items() if len(scores) and self.counted(name)}


def read_results(folder: Path, settings: Settings, thresholds: dict[str, float]) -> Results:
    """Read the results of the finished runs from the folder of a comparison."""
    runs, curves, missing = [], [], []
    random_scores: dict[str, float] = {}
    versions: dict[str, list[str]] = {}
    longest: dict[str, float] = {}
    for task in list_tasks(settings):
        path = folder / task.folder / RESULT_FILE
        if not path.exists():
            missing.append(task)
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        for package, version in result["versions"].items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
        longest[task.env_id] = max(longest.get(task.env_id, 0), result["longest_episode"])
        if task.algorithm == RANDOM:
            random_scores[task.env_id] = float(np.mean(result["final"]["stochastic"]))
            continue
        key = dict(zip(KEY, (task.env_id, task.algorithm, settings.algorithms[task.algorithm], task.seed), strict=True))
        evaluations = [
            key | {axis: evaluation[axis] for axis in ("steps", "seconds")} | {"score": float(np.mean(evaluation["scores"]))}
            for evaluation in result["evaluations"]
        ]
        curves += evaluations
        scores = describe_run(result)
        runs.append(key | scores | reach_threshold(evaluations, scores["score"], thresholds.get(task.env_id)))
    run_table, curve_table = (pd.DataFrame(rows, columns=None if rows else KEY) for rows in (runs, curves))
    return Results(settings, run_table, curve_table, random_scores, thresholds, versions, missing, longest)


def describe_run(result: dict[str, Any]) -> dict[str, Any]:
    """Summarise a run as columns of ``results.csv``."""
    return {
        "steps": result["steps"],
        "seconds": result["seconds"],
        "steps_per_second": result["steps"] / result["seconds"],
        "score": float(np.mean(result["final"]["deterministic"])),
        "score_std_over_episodes": float(np.std(result["final"]["deterministic"])),
        "stochastic_score": float(np.mean(result["final"]["stochastic"])),
        "stochastic_score_std_over_episodes": float(np.std(result["final"]["stochastic"])),
        "best_score": float(np.mean(result["best"]["deterministic"])),
        "best_stochastic_score": float(np.mean(result["best"]["stochastic"])),
        "best_at_steps": result["best"]["steps"],
    }


def reach_threshold(evaluations: list[dict[str, Any]], final: float, threshold: float | None) -> dict[str, float]:
    """Find when a run reached the threshold: infinity if it never did, NaN if there is no threshold."""
    if threshold is None:
        return {"steps_to_threshold": np.nan, "seconds_to_threshold": np.nan}
    scores = [*(evaluation["score"] for evaluation in evaluations), final]
    return {
        f"{axis}_to_threshold": statistics.first_reached([evaluation[axis] for evaluation in evaluations], scores, threshold)
        for axis in ("steps", "seconds")
    }
