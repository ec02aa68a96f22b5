"""What a comparison says, in plain words that claim no more than the numbers."""

from collections.abc import Iterable, Sequence

import numpy as np

from sb3_reinforce.zoo.compare.plan import Settings
from sb3_reinforce.zoo.compare.results import Results
from sb3_reinforce.zoo.compare.statistics import LEVEL, Estimate, Overall, PValues, compare_means
from sb3_reinforce.zoo.experiment import describe_time_limit


def summarise(results: Results, overall: Overall | None) -> str:
    """
    Write the paragraph at the top of the report.

    :param results: The results.
    :param overall: Statistics over environments, if there are any.
    :return: Sentences. A difference is claimed only where a test finds it, corrected for the number of comparisons.
    """
    sentences = [describe_extent(results)]
    if results.runs.empty:
        return " ".join([*sentences, "No run is finished, so there is nothing to compare; why is listed below."])
    n_seeds = len(results.settings.seeds)
    if n_seeds == 1:
        sentences.append(
            "One seed says nothing about the spread between runs: there are no intervals, and no difference is claimed. "
            "Intervals need at least two seeds, and deserve five."
        )
    if overall is not None and len(results.environments) > 1 and len(overall.everywhere) > 1:
        sentences.append(describe_aggregate(overall))
    sentences += describe_untuned(results.settings)
    sentences += describe_absences(results, overall)
    sentences += describe_environments(results)
    sentences += describe_speed(results)
    if results.missing:
        sentences.append(f"{len(results.missing)} runs are missing (listed below), and what is said here is without them.")
    return " ".join(sentences)


def describe_extent(results: Results) -> str:
    """
    Say what was compared.

    :param results: The results.
    :return: A sentence.
    """
    settings = results.settings
    if settings.seconds is not None:
        budget = f"{settings.seconds:g} seconds of training each"
    elif settings.n_timesteps is not None:
        budget = f"{settings.n_timesteps:,} environment steps each{describe_overshoot(results)}"
    else:
        budget = "each for the number of steps in its own hyperparameters"
    contenders = results.algorithms or list(settings.algorithms)
    env_ids = results.environments or settings.environments
    environments = join(env_ids) if len(env_ids) <= 3 else f"{len(env_ids)} environments"
    n_seeds = len(settings.seeds)
    return f"{join(contenders)} on {environments}, {n_seeds} {'seed' if n_seeds == 1 else 'seeds'}, {budget}."


def describe_overshoot(results: Results) -> str:
    """
    Say how many steps were really taken, which may be more than the budget: algorithms finish what they have begun.

    :param results: The results.
    :return: Empty if no run is finished, or none took more.
    """
    most = 0 if results.runs.empty else int(results.runs["steps"].max())
    return f" (up to {most:,} were taken)" if most > (results.settings.n_timesteps or 0) else ""


def describe_aggregate(overall: Overall) -> str:
    """
    Say who is ahead over all environments, of those who can act in all of them.

    :param overall: Statistics over environments.
    :return: A sentence.
    """
    estimates = {name: estimate for name, estimate in overall.aggregates["IQM"].items() if name in overall.everywhere}
    leaders, behind, level, without = rank(estimates, overall.differences, LEVEL)
    if len(leaders) > 1:
        tied = join(f"{name} ({write(estimates[name])})" for name in leaders)
        return f"Over all environments the interquartile mean of the normalised final scores is an exact tie between {tied}."
    leader = leaders[0]
    sentence = (
        f"Over all environments {leader} has the highest interquartile mean of the normalised final scores, "
        f"{write(estimates[leader])}"
    )
    if behind:
        sentence += f"; a permutation test puts it above {join(f'{name} ({write(estimates[name])})' for name in behind)}"
    for names, reason in ((level, "it may be chance"), (without, "a single run has no interval")):
        if names:
            named = join(f"{name} ({write(estimates[name])})" for name in names)
            sentence += f"; no difference from {named} is claimed, since {reason}"
    return f"{sentence}."


def describe_untuned(settings: Settings) -> list[str]:
    """
    Say who trains without hyperparameters for an environment: being ahead of it says less.

    :param settings: The settings.
    :return: Sentences, one for all environments where the same contenders do.
    """
    env_ids: dict[tuple[str, ...], list[str]] = {}
    for env_id, by_contender in settings.untuned.items():
        env_ids.setdefault(tuple(by_contender), []).append(env_id)
    sentences = []
    for names, own in env_ids.items():
        others = dict.fromkeys(other for env_id in own for versions in settings.untuned[env_id].values() for other in versions)
        sentence = (
            f"Without an entry for {join(own)}, {join(names)} {'trains' if len(names) == 1 else 'train'} there with the entry "
            "default"
        )
        if others:
            sentence += f", though RL Zoo or the file that was given has {join(others)}"
        sentences.append(f"{sentence}.")
    return sentences


def describe_time_limits(results: Results) -> list[str]:
    """
    Say where a time limit that the environment does not have ended an evaluation episode.

    :param results: The results.
    :return: A line for each such environment.
    """
    return [
        describe_time_limit(env_id, limit)
        for env_id, limit in results.settings.time_limits.items()
        if results.longest_episodes.get(env_id, 0) >= limit
    ]


def describe_absences(results: Results, overall: Overall | None) -> list[str]:
    """
    Say who cannot act where.

    :param results: The results.
    :param overall: Statistics over environments, if there are any.
    :return: Sentences.
    """
    sentences = []
    for name in results.algorithms:
        absent = [env_id for env_id in results.environments if name not in results.settings.entries[env_id]]
        if not absent:
            continue
        sentence = f"{name} cannot act on {join(absent)}"
        if overall is not None and name in overall.n_seeds:
            iqm = write(overall.aggregates["IQM"][name])
            sentence += (
                f": its interquartile mean, {iqm}, is over {join(results.counted(name))}, and has no rank among the others"
            )
        sentences.append(f"{sentence}.")
    return sentences


def describe_environments(results: Results) -> list[str]:
    """
    Say who has the highest final score in each environment.

    :param results: The results.
    :return: Sentences.
    """
    winners: dict[str, list[str]] = {}
    undecided, tied = [], []
    for env_id in results.environments:
        finals = {name: results.final(env_id, name) for name in results.algorithms}
        estimates = {name: estimate for name, estimate in finals.items() if estimate is not None}
        if len(estimates) < 2:
            continue
        differences = compare_means({name: results.values("score", env_id, name) for name in estimates})
        leaders, _, level, without = rank(estimates, differences, LEVEL / len(results.environments))
        score = f"{estimates[leaders[0]].value:,.{results.decimals(env_id)}f}"
        if len(leaders) > 1:
            tied.append(f"{env_id} ({join(leaders)}, {score})")
        elif level or without:
            undecided.append(f"{env_id} ({leaders[0]}, {score})")
        else:
            winners.setdefault(leaders[0], []).append(env_id)
    sentences = [f"{name} has the highest final score on {join(env_ids)}." for name, env_ids in winners.items()]
    if undecided and len(results.settings.seeds) > 1:
        sentences.append(f"Where the highest mean may be so by chance, no highest final score is claimed: {join(undecided)}.")
    if tied:
        sentences.append(f"The highest final score is an exact tie on {join(tied)}.")
    return sentences


def describe_speed(results: Results) -> list[str]:
    """
    Say how fast the contenders train.

    :param results: The results.
    :return: Sentences.
    """
    speeds: dict[str, dict[str, float]] = {name: {} for name in results.algorithms}
    for name, by_env in speeds.items():
        for env_id in results.environments:
            values = results.values("steps_per_second", env_id, name)
            if len(values):
                by_env[env_id] = float(np.median(values))
    first, *others = speeds
    parts = []
    for other in others:
        ratios = [speeds[first][env_id] / speeds[other][env_id] for env_id in speeds[first] if env_id in speeds[other]]
        if ratios:
            spread = f" ({min(ratios):.2g} to {max(ratios):.2g})" if len(ratios) > 1 else ""
            parts.append(f"{np.median(ratios):.2g} for {other}{spread}")
    if not parts:
        return []
    over = "median over environments and their range" if len(results.environments) > 1 else "medians over seeds"
    return [f"Steps per second of {first} over those of the others ({over}): {join(parts)}."]


def rank(
    estimates: dict[str, Estimate], differences: PValues, level: float
) -> tuple[list[str], list[str], list[str], list[str]]:
    """
    Find the highest estimate, and from which others it can be told.

    :param estimates: Estimates by name.
    :param differences: p-values of their differences by pair.
    :param level: A difference with a p-value below it is not put down to chance.
    :return: The highest, more than one if they are equal; of the others those that are lower; those for which that may be
        chance; those that were not tested against it.
    """
    highest = max(estimate.value for estimate in estimates.values())
    leaders = [name for name, estimate in estimates.items() if estimate.value == highest]
    others = sorted((name for name in estimates if name not in leaders), key=lambda name: -estimates[name].value)
    p_values = {name: differences.get(frozenset((leaders[0], name))) for name in others}
    return (
        leaders,
        [name for name, p_value in p_values.items() if p_value is not None and p_value < level],
        [name for name, p_value in p_values.items() if p_value is not None and p_value >= level],
        [name for name, p_value in p_values.items() if p_value is None],
    )


def write(estimate: Estimate, digits: int = 2) -> str:
    """
    Write an estimate.

    :param estimate: The estimate.
    :param digits: Digits behind the point.
    :return: The number, with its interval if it has one.
    """
    if not estimate.has_interval:
        return f"{estimate.value:,.{digits}f}"
    return f"{estimate.value:,.{digits}f} [{estimate.low:,.{digits}f}, {estimate.high:,.{digits}f}]"


def join(parts: Iterable[str]) -> str:
    """
    Write a list as a part of a sentence.

    :param parts: The parts.
    :return: Such as ``a, b and c``.
    """
    items: Sequence[str] = list(parts)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
