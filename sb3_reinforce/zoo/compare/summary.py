"""The findings of a comparison, in sentences that claim no more than the numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sb3_reinforce.lab.statistics import Interval
from sb3_reinforce.zoo.compare.plan import Settings
from sb3_reinforce.zoo.compare.results import Results
from sb3_reinforce.zoo.compare.statistics import LEVEL, Overall, PValues, compare_means, mean_with_interval, seeds_to_claim
from sb3_reinforce.zoo.experiment import describe_time_limit


class Ranking(NamedTuple):
    """
    A ranking of algorithms by p-values.

    :param estimates: The ranked estimates by algorithm.
    :param leaders: Algorithms with the highest estimate, more than one if tied.
    :param behind: Other algorithms that a test finds lower.
    :param level: Other algorithms whose difference may be due to chance.
    :param untested: Other algorithms that were not tested.
    """

    estimates: dict[str, Interval]
    leaders: list[str]
    behind: list[str]
    level: list[str]
    untested: list[str]


def findings(results: Results, overall: Overall | None, rankings: Mapping[str, Ranking]) -> list[str]:
    """Return at most five findings with one claim each; differences only if a test, corrected for their number, finds them."""
    if results.runs.empty:
        return ["No run is finished, so there is nothing to compare. The reasons are listed below."]
    sentences = []
    if overall is not None and len(results.environments) > 1 and len(overall.everywhere) > 1:
        sentences += describe_aggregate(overall)
    return sentences + describe_environments(rankings) + describe_speed(results)


def notes(results: Results, overall: Overall | None) -> list[str]:
    """List what limits the findings: few seeds, missing runs, missing entries, algorithms that cannot act somewhere."""
    sentences = describe_seeds(results) + describe_untuned(results.settings) + describe_absences(results, overall)
    if results.missing and not results.runs.empty:
        sentences.append(f"Missing runs: {len(results.missing)} (listed below). All numbers are without them.")
    return sentences


def describe_extent(results: Results) -> str:
    """Describe what was compared."""
    settings = results.settings
    if settings.seconds is not None:
        budget = f"{settings.seconds:g} seconds of training each"
    elif settings.n_timesteps is not None:
        most = 0 if results.runs.empty else int(results.runs["steps"].max())
        overshoot = f" (up to {most:,} were taken)" if most > settings.n_timesteps else ""
        budget = f"{settings.n_timesteps:,} environment steps each{overshoot}"
    else:
        budget = "each for the number of steps in its own hyperparameters"
    names = results.algorithms or list(settings.algorithms)
    env_ids = results.environments or list(settings.entries)
    environments = join(env_ids) if len(env_ids) <= 3 else f"{len(env_ids)} environments"
    n_seeds = len(settings.seeds)
    return f"{join(names)} on {environments}, {n_seeds} {'seed' if n_seeds == 1 else 'seeds'}, {budget}."


def describe_aggregate(overall: Overall) -> list[str]:
    """Say which of the algorithms that can act in all environments is ahead over them, one claim per sentence."""
    estimates, leaders, behind, level, untested = rank_everywhere(overall)
    with_iqm = {name: f"{name} ({write(estimate)})" for name, estimate in estimates.items()}
    what = "interquartile mean of the normalised final scores over all environments"
    if len(leaders) > 1:
        return [f"The highest {what} is an exact tie between {join(with_iqm[name] for name in leaders)}."]
    sentences = [f"{leaders[0]} has the highest {what}, {write(estimates[leaders[0]])}."]
    if behind:
        sentences.append(f"By a permutation test it is above {join(with_iqm[name] for name in behind)}.")
    if level:
        sentences.append(f"Its difference from {join(with_iqm[name] for name in level)} may be chance.")
    elif untested:
        names = join(with_iqm[name] for name in untested)
        sentences.append(f"No difference from {names} is claimed, since a single run has no interval.")
    return sentences


def describe_seeds(results: Results) -> list[str]:
    """Say if there are too few seeds to conclude anything about a single environment."""
    n_seeds, n_environments = len(results.settings.seeds), len(results.environments)
    if n_seeds == 1:
        return [
            "One seed says nothing about the spread between runs: there are no intervals, and no difference is claimed. "
            "Intervals need at least two seeds; use five or more."
        ]
    if n_environments == 0 or n_seeds >= (needed := seeds_to_claim(n_environments)):
        return []
    where = "this environment" if n_environments == 1 else f"a single one of {n_environments} environments"
    return [
        f"{n_seeds} seeds are too few to claim a difference in {where}, however large it is: so many runs may all succeed or "
        f"all fail by chance. It takes {needed}."
    ]


def describe_untuned(settings: Settings) -> list[str]:
    """Say which algorithms train without hyperparameters for an environment: being ahead of them means less."""
    env_ids: dict[tuple[str, ...], list[str]] = {}
    for env_id, by_name in settings.untuned.items():
        env_ids.setdefault(tuple(by_name), []).append(env_id)
    sentences = []
    for names, own in env_ids.items():
        others = dict.fromkeys(other for env_id in own for versions in settings.untuned[env_id].values() for other in versions)
        known = f", though RL Zoo or the file that was given has {join(others)}" if others else ""
        train = "trains" if len(names) == 1 else "train"
        sentences.append(f"Without an entry for {join(own)}, {join(names)} {train} there with the entry default{known}.")
    return sentences


def describe_time_limits(results: Results) -> list[str]:
    """Say where an added time limit, which the environment itself lacks, ended an evaluation episode."""
    return [
        describe_time_limit(env_id, limit)
        for env_id, limit in results.settings.time_limits.items()
        if results.longest_episodes.get(env_id, 0) >= limit
    ]


def describe_absences(results: Results, overall: Overall | None) -> list[str]:
    """Say which algorithms do not support the actions of which environments."""
    sentences = []
    for name in results.algorithms:
        absent = [env_id for env_id in results.environments if name not in results.settings.entries[env_id]]
        if absent:
            iqm = ""
            if overall is not None and name in overall.n_seeds:
                value, where = write(overall.aggregates["IQM"][name]), join(results.counted(name))
                iqm = f": its interquartile mean, {value}, is over {where}, and has no rank among the others"
            sentences.append(f"{name} cannot act on {join(absent)}{iqm}.")
    return sentences


def rank_environments(results: Results) -> dict[str, Ranking]:
    """Rank the algorithms in each environment by their final scores."""
    rankings = {}
    for env_id in results.environments:
        scores = results.by_algorithm("score", env_id)
        estimates = {name: mean_with_interval(own) for name, own in scores.items()}
        rankings[env_id] = rank(estimates, compare_means(scores), LEVEL / len(results.environments))
    return rankings


def rank_everywhere(overall: Overall) -> Ranking:
    """Rank the algorithms that can act in all environments by their interquartile means."""
    estimates = {name: estimate for name, estimate in overall.aggregates["IQM"].items() if name in overall.everywhere}
    return rank(estimates, overall.differences, LEVEL)


def describe_environments(rankings: Mapping[str, Ranking]) -> list[str]:
    """Say in which environments each algorithm has the highest final score."""
    highest: dict[str, list[str]] = {}
    undecided = False
    for env_id, (estimates, leaders, _, level, untested) in rankings.items():
        if len(estimates) < 2:
            continue
        is_open = bool(level or untested)
        undecided = undecided or (len(leaders) == 1 and is_open)
        if len(leaders) > 1 or not is_open:
            name = leaders[0] if len(leaders) == 1 else f"an exact tie of {join(leaders)}"
            highest.setdefault(name, []).append(env_id)
    if highest:
        each = "; ".join(f"{name} on {join(env_ids)}" for name, env_ids in highest.items())
        return [f"Highest final score in an environment: {each}{'; no other is claimed' if undecided else ''}."]
    return ["No highest final score in an environment is claimed, since each may be chance."] if undecided else []


def describe_speed(results: Results) -> list[str]:
    """Say how fast the first algorithm trains relative to the others."""
    speeds = results.speeds()
    first, *others = results.algorithms
    parts = []
    for other in others:
        ratios = (speeds[first] / speeds[other]).dropna()
        if len(ratios):
            spread = f" ({min(ratios):.2g} to {max(ratios):.2g})" if len(ratios) > 1 else ""
            parts.append(f"{np.median(ratios):.2g} times those of {other}{spread}")
    if not parts:
        return []
    over = "median over environments and their range" if len(results.environments) > 1 else "medians over seeds"
    return [f"Steps per second of {first}: {join(parts)} ({over})."]


def rank(estimates: dict[str, Interval], differences: PValues, level: float) -> Ranking:
    """Find the highest estimates, and the others that differ from them with p-values below ``level``."""
    highest = max(estimate.value for estimate in estimates.values())
    # The means of the same score over different numbers of runs differ by rounding
    leaders = [name for name, estimate in estimates.items() if math.isclose(estimate.value, highest, rel_tol=1e-12)]
    others = sorted((name for name in estimates if name not in leaders), key=lambda name: -estimates[name].value)
    p_values = {name: differences.get(frozenset((leaders[0], name))) for name in others}
    return Ranking(
        estimates,
        leaders,
        [name for name, p_value in p_values.items() if p_value is not None and p_value < level],
        [name for name, p_value in p_values.items() if p_value is not None and p_value >= level],
        [name for name, p_value in p_values.items() if p_value is None],
    )


def write(estimate: Interval, digits: int = 2, is_best: bool = False, is_tied: bool = False) -> str:
    """Format an estimate with its interval, if it has one; the best in bold, one that may be as high with a mark."""
    value = f"{estimate.value:,.{digits}f}"
    interval = f" [{estimate.low:,.{digits}f}, {estimate.high:,.{digits}f}]" if estimate.is_bounded else ""
    return f"{f'**{value}**' if is_best else value}{interval}{' ≈' if is_tied else ''}"


def join(parts: Iterable[str]) -> str:
    """Join a list for a sentence, such as ``a, b and c``."""
    items: Sequence[str] = list(parts)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
