"""What a measurement says, in plain words that claim no more than its intervals."""

import math

import numpy as np

from sb3_reinforce.lab.lineup import OWN
from sb3_reinforce.lab.measurement import Measurement, Result
from sb3_reinforce.lab.statistics import Interval

TOO_FEW = "too few informative episodes"


def write_number(value: float) -> str:
    """
    Write a number with two or three digits that matter.

    :param value: The number.
    :return: Such as ``4.5``, ``71`` or ``1,078``.
    """
    if not math.isfinite(value):
        return "unbounded" if value > 0.0 else "unknown"
    digits = 0 if abs(value) >= 10 else 1 if abs(value) >= 1 else 2
    return f"{value:,.{digits}f}"


def write_episodes(episodes: Interval) -> str:
    """
    Write how many episodes an estimator needs.

    :param episodes: The gradient noise scale.
    :return: The number with its interval, or what the episodes can say.
    """
    if not episodes.is_bounded:
        return TOO_FEW
    if not math.isfinite(episodes.value):
        return f"unresolved (above {write_number(episodes.low)})" if episodes.low > 0.0 else "unresolved"
    return f"{write_number(episodes.value)} [{write_number(episodes.low)}, {write_number(episodes.high)}]"


def write_bias(bias: Interval) -> str:
    """
    Write how far an expected gradient is from that of an unbiased estimator.

    :param bias: Squared distance, relative to the squared length of the latter.
    :return: In per cent of its length.
    """

    def per_cent(square: float) -> str:
        return "unbounded" if math.isinf(square) else f"{100 * math.sqrt(max(square, 0.0)):.0f} %"

    if math.isnan(bias.value):
        return "the reference"
    if bias.low <= 0.0:
        return "unresolved" if math.isinf(bias.high) else f"none seen (below {per_cent(bias.high)})"
    return f"{per_cent(bias.value)} [{per_cent(bias.low)}, {per_cent(bias.high)}]"


def is_resolved(result: Result) -> bool:
    """
    Tell whether there is a gradient to be seen.

    :param result: Of an estimator.
    :return: Whether the interval of its signal-to-noise ratio is above zero.
    """
    return result.ratio.low > 0.0


def needs_fewer(first: Result, second: Result) -> bool:
    """
    Tell whether an estimator needs fewer episodes than another.

    :param first: Of the one.
    :param second: Of the other, for the same target.
    :return: Whether its interval is below the other's; they share their episodes, so this is cautious.
    """
    return first.contender.target == second.contender.target and first.episodes.high < second.episodes.low


def headline(environment: str, measurements: list[Measurement]) -> str:
    """
    Write the paragraph at the top of the report.

    :param environment: Its name.
    :param measurements: Of the models.
    :return: Sentences. A difference is claimed only where 90 % intervals do not overlap.
    """
    return f"{environment}. " + " ".join(sentence for one in measurements for sentence in describe(one))


def describe(measurement: Measurement) -> list[str]:
    """
    Say what was found of a model.

    :param measurement: Of the model.
    :return: Sentences.
    """
    results = measurement.results
    start = f"{measurement.label} (mean return {write_number(float(np.mean(measurement.returns)))})"
    sentences = []
    model_of = results.get(OWN) or results.get("to-go-critic") or next(iter(results.values()))
    what = "the model's own estimator" if model_of.contender.key == OWN else f"'{model_of.contender.label}'"
    sentences.append(f"{start[0].upper()}{start[1:]}: {describe_batch(measurement, model_of, what)}.")
    critic, bare = results.get("to-go-critic"), results.get("to-go")
    if critic is not None and bare is not None:
        sentences.append(describe_pair(critic, bare, "this model's critic", "reward-to-go alone"))
    refit = results.get("to-go-refit")
    other = critic or results.get("to-go-constant") or bare
    if refit is not None and other is not None:
        name = "this model's own" if other is critic else f"'{other.contender.label}'"
        sentences.append(describe_pair(refit, other, "a critic fitted anew", name))
    return sentences


def describe_batch(measurement: Measurement, result: Result, what: str) -> str:
    """
    Say whether a batch is large enough.

    :param measurement: Of the model.
    :param result: Of an estimator.
    :param what: What it is called.
    :return: A clause.
    """
    size = measurement.batch_size
    batch = f"its batch of {size} {'episode' if size == 1 else 'episodes'}"
    episodes = result.episodes
    if not is_resolved(result):
        unresolved = f"with {len(measurement.returns)} episodes the gradient of {what} is not distinguishable from zero"
        if not result.ratio.is_bounded:
            return f"{unresolved}: {TOO_FEW}"
        known = f", so that {batch} is mostly noise" if size < episodes.low else ""
        above = f"; more than {write_number(episodes.low)} are needed until the signal equals the noise" if known else ""
        return f"{unresolved}{above}{known}"
    needs = f"{what} needs {write_episodes(episodes)} episodes until the signal equals the noise"
    if size > episodes.high:
        return f"{needs}, and {batch} is ample: more buy little"
    if size < episodes.low:
        return f"{needs}, and {batch} is noisier than that, which is often still efficient"
    return f"{needs}, and whether {batch} is as large lies within the uncertainty"


def describe_pair(first: Result, second: Result, first_name: str, second_name: str) -> str:
    """
    Compare two estimators.

    :param first: Of the one that is expected to be better.
    :param second: Of the other.
    :param first_name: What the one is called.
    :param second_name: What the other is called.
    :return: A sentence.
    """
    if not (first.ratio.is_bounded and second.ratio.is_bounded):
        return f"No difference between {first_name} and {second_name} is claimed: {TOO_FEW}."
    better, worse, better_name, worse_name = first, second, first_name, second_name
    if needs_fewer(second, first):
        better, worse, better_name, worse_name = second, first, second_name, first_name
    if not needs_fewer(better, worse):
        return f"No difference between {first_name} and {second_name} is claimed, since their intervals overlap."
    rest = write_episodes(worse.episodes)
    return f"With {better_name} {write_episodes(better.episodes)} episodes are enough, with {worse_name} it takes {rest}."
