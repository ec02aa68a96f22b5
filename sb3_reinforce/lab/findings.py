"""The findings of a measurement, in sentences that claim no more than its intervals."""

import math
from collections.abc import Sequence

import numpy as np

from sb3_reinforce.lab.estimators import OWN
from sb3_reinforce.lab.measurement import Measurement, Result
from sb3_reinforce.lab.statistics import MIN_INFORMATIVE, Interval

TOO_FEW = "too few informative episodes"


def write_number(value: float) -> str:
    """Format a number with two or three significant digits, such as ``4.5``, ``71`` or ``1,078``."""
    if not math.isfinite(value):
        return "unbounded" if value > 0.0 else "unknown"
    digits = 0 if abs(value) >= 10 else 1 if abs(value) >= 1 else 2
    return f"{value:,.{digits}f}"


def write_episodes(episodes: Interval) -> str:
    """Format a gradient noise scale with its interval, or say why there is none."""
    if not episodes.is_bounded:
        return TOO_FEW
    if not math.isfinite(episodes.value):
        return f"unresolved (above {write_number(episodes.low)})" if episodes.low > 0.0 else "unresolved"
    return f"{write_number(episodes.value)} [{write_number(episodes.low)}, {write_number(episodes.high)}]"


def write_bias(bias: Interval) -> str:
    """Format the distance from the unbiased gradient, given as a relative square, in per cent of that gradient's length."""
    if math.isnan(bias.value):
        return "the reference"
    value, low, high = (f"{100 * math.sqrt(max(square, 0.0)):.0f} %" if square < math.inf else "unbounded" for square in bias)
    if bias.low <= 0.0:
        return "unresolved" if math.isinf(bias.high) else f"none seen (below {high})"
    return f"{value} [{low}, {high}]"


def needs_fewer(first: Result, second: Result) -> bool:
    """Check whether the first noise scale's interval is below the second's; this is cautious, since they share episodes."""
    return first.estimator.target == second.estimator.target and first.episodes.high < second.episodes.low


def best_estimators(measurement: Measurement) -> tuple[set[str], set[str]]:
    """For each target, find the keys of the resolved estimator that needs the fewest episodes, and of those that may."""
    best, tied = set(), set()
    for target in {result.estimator.target for result in measurement.results.values()}:
        same = {key: one for key, one in measurement.results.items() if one.estimator.target == target}
        resolved = {key: one.episodes.value for key, one in same.items() if one.is_resolved}
        if resolved:
            first = min(resolved, key=lambda key: resolved[key])
            best.add(first)
            tied |= {key for key, one in same.items() if one.ratio.is_bounded and not needs_fewer(same[first], one)} - {first}
    return best, tied


def findings(measurements: Sequence[Measurement], focus: Measurement) -> list[str]:
    """Return at most five findings about the models, most of them about the one that the figure shows."""
    others = [one for one in (measurements[0], measurements[-1]) if one is not focus]
    return [*describe(focus), *(describe(one)[0] for one in {one.label: one for one in others}.values())]


def notes(measurements: Sequence[Measurement]) -> list[str]:
    """Say where there are too few episodes to conclude anything."""
    few = [one for one in measurements if not all(result.ratio.is_bounded for result in one.results.values())]
    return [
        f"{one.label}: too few informative episodes. For some estimators fewer than {MIN_INFORMATIVE} of the "
        f"{len(one.returns)} episodes carry the gradient, or have a return that is not the most common one, and no interval "
        "can be trusted. Collect more episodes."
        for one in few
    ]


def describe(measurement: Measurement) -> list[str]:
    """Describe what a model's episodes show, one claim per sentence, starting with the batch size."""
    results = measurement.results
    own = results.get(OWN) or results.get("to-go-critic") or next(iter(results.values()))
    what = "the model's own estimator" if own.estimator.key == OWN else f"'{own.estimator.label}'"
    start = f"{measurement.label} (mean return {write_number(float(np.mean(measurement.returns)))})"
    sentences = [f"{start[0].upper()}{start[1:]}: {describe_batch(measurement, own, what)}."]
    critic, bare, refit = (results.get(key) for key in ("to-go-critic", "to-go", "to-go-refit"))
    if critic is not None and bare is not None:
        sentences.append(describe_pair(critic, bare, "this model's critic", "reward-to-go alone"))
    other = critic or results.get("to-go-constant") or bare
    if refit is not None and other is not None:
        name = "this model's own critic" if other is critic else f"'{other.estimator.label}'"
        sentences.append(describe_pair(refit, other, "a refitted critic", name))
    return sentences


def describe_batch(measurement: Measurement, result: Result, what: str) -> str:
    """Say whether the batch of a model is large enough for an estimator."""
    size, episodes = measurement.batch_size, result.episodes
    batch = f"its batch of {size} {'episode' if size == 1 else 'episodes'}"
    if not result.is_resolved:
        unresolved = f"with {len(measurement.returns)} episodes the gradient of {what} is not distinguishable from zero"
        if not result.ratio.is_bounded:
            return f"{unresolved}: {TOO_FEW}"
        if size >= episodes.low:
            return unresolved
        above = f"more than {write_number(episodes.low)} episodes are needed until the signal equals the noise"
        return f"{unresolved}; {above}, so {batch} is mostly noise"
    needs = f"{what} needs {write_episodes(episodes)} episodes until the signal equals the noise"
    if size > episodes.high:
        return f"{needs}, and {batch} is ample: more buy little"
    if size < episodes.low:
        return f"{needs}; {batch} is noisier than that, which is often still efficient"
    return f"{needs}; whether {batch} is as large lies within the uncertainty"


def describe_pair(first: Result, second: Result, first_name: str, second_name: str) -> str:
    """Compare two estimators of the same target."""
    if not (first.ratio.is_bounded and second.ratio.is_bounded):
        return f"No difference between {first_name} and {second_name} is claimed: {TOO_FEW}."
    for better, worse, better_name, worse_name in (
        (first, second, first_name, second_name),
        (second, first, second_name, first_name),
    ):
        if needs_fewer(better, worse):
            enough, more = write_episodes(better.episodes), write_episodes(worse.episodes)
            return f"With {better_name} {enough} episodes are enough, with {worse_name} {more} are needed."
    return f"No difference between {first_name} and {second_name} is claimed, since their intervals overlap."
