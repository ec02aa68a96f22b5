"""The statistics of a comparison: pure functions on arrays, the bootstrap by rliable."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from rliable import library as rly
from rliable import metrics

FloatArray = NDArray[np.float64]

BOOTSTRAP_SAMPLES = 2000
PROFILE_SCORES = np.linspace(0.0, 1.0, 101)
#: Aggregates over runs and environments, and whether more is better.
AGGREGATES: dict[str, tuple[Callable[[FloatArray], float], bool]] = {
    "IQM": (metrics.aggregate_iqm, True),
    "median": (metrics.aggregate_median, True),
    "optimality gap": (metrics.aggregate_optimality_gap, False),
}


class Estimate(NamedTuple):
    """
    A number and its 95 % interval.

    :param value: The number.
    :param low: Lower end of the interval, NaN where a single run gives none.
    :param high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return not np.isnan(self.low)

    def is_above(self, other: "Estimate") -> bool:
        """
        Tell whether this interval lies above another.

        :param other: The other number.
        :return: False if they overlap, or one is missing.
        """
        return self.low > other.high


def decimals(values: Sequence[float]) -> int:
    """
    Find how many digits numbers need so that their differences can be seen.

    :param values: Numbers; those that are not finite do not count.
    :return: Digits behind the point: at least a hundredth of the range can be seen, and a tenth of one below a range of 1,000.
    """
    finite = np.asarray(values)[np.isfinite(values)]
    if not finite.any():
        return 1
    # Equal numbers have no range, but a size
    span = float(np.ptp(finite) or np.abs(finite).max())
    return max(2 - math.floor(math.log10(span)), 1 if span < 1000.0 else 0)


def mean_with_interval(values: Sequence[float]) -> Estimate:
    """
    Estimate a mean over a few seeds.

    The interval is Student's: with three or five values a percentile bootstrap is too narrow, since it knows of no values
    beyond the smallest and the largest.

    :param values: One number for each seed, at least one.
    :return: Mean and interval.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, np.nan, np.nan)
    half_width = float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - half_width, mean + half_width)


def normalise(scores: FloatArray, low: float, high: float) -> FloatArray:
    """
    Scale scores such that random actions and all that is worse have 0, and the best run has 1.

    Without a bound below, an environment in which the best run is hardly better than random would outweigh all others.

    :param scores: Scores of one environment.
    :param low: Score of random actions.
    :param high: Score of the best run.
    :return: Scaled scores, all 0 if no run is better than random actions.
    """
    return np.maximum((scores - low) / (high - low), 0.0) if high > low else np.zeros_like(scores)


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Seed NumPy's global generator for the context: rliable draws from it, whatever generator it is given."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


class Overall(NamedTuple):
    """
    Statistics over environments.

    :param n_seeds: Runs by contender in every environment in which it can act.
    :param everywhere: The contenders that can act in all environments, whose aggregates can be compared.
    :param aggregates: Estimates by aggregate and contender.
    :param improvement: Probability that a run of the first beats a run of the second on the same environment, by pair.
    :param profiles: By contender the share of runs above each of ``PROFILE_SCORES``, and both ends of its interval.
    """

    n_seeds: dict[str, int]
    everywhere: set[str]
    aggregates: dict[str, dict[str, Estimate]]
    improvement: dict[tuple[str, str], Estimate]
    profiles: dict[str, tuple[FloatArray, FloatArray, FloatArray]]


def over_environments(scores: Mapping[str, FloatArray]) -> Overall:
    """
    Aggregate over runs and environments, with stratified bootstrap intervals (Agarwal et al., Deep Reinforcement Learning
    at the Edge of the Statistical Precipice, NeurIPS 2021).

    :param scores: Normalised scores by contender, of shape (runs, environments), NaN where a contender cannot act: it is
        aggregated over the other environments, and a pair is compared over those in which both can.
    :return: The statistics.
    """
    acts = {name: ~np.isnan(matrix).any(axis=0) for name, matrix in scores.items()}
    own = {name: matrix[:, acts[name]] for name, matrix in scores.items()}
    functions = [function for function, _ in AGGREGATES.values()]

    def all_aggregates(matrix: FloatArray) -> FloatArray:
        return np.array([function(matrix) for function in functions])

    points, intervals = bootstrap(own, all_aggregates)
    aggregates = {
        aggregate: {name: Estimate(points[name][row], *intervals[name][:, row]) for name in scores}
        for row, aggregate in enumerate(AGGREGATES)
    }
    shares, share_intervals = bootstrap(own, share_above)
    names = list(scores)
    both = {(first, second): acts[first] & acts[second] for index, first in enumerate(names) for second in names[index + 1 :]}
    pairs = {pair: [scores[name][:, shared] for name in pair] for pair, shared in both.items() if shared.any()}
    wins, win_intervals = bootstrap(pairs, probability_of_improvement)
    return Overall(
        {name: len(matrix) for name, matrix in scores.items()},
        {name for name in scores if acts[name].all()},
        aggregates,
        {pair: Estimate(float(wins[pair][0]), *win_intervals[pair][:, 0]) for pair in pairs},
        {name: (shares[name], *share_intervals[name]) for name in scores},
    )


def share_above(scores: FloatArray) -> FloatArray:
    """
    Find the share of runs above each of ``PROFILE_SCORES``: the performance profile of Agarwal et al.

    :param scores: Scores, of shape (runs, environments).
    :return: Shares, of the shape of ``PROFILE_SCORES``.
    """
    return np.asarray((scores[..., np.newaxis] > PROFILE_SCORES).mean(axis=(0, 1)))


def probability_of_improvement(first: FloatArray, second: FloatArray) -> FloatArray:
    """
    Estimate how probably a run of one contender beats a run of another on the same environment; a draw counts half.

    The same number as rliable's function of this name, which takes a second for what this takes a millisecond.

    :param first: Scores, of shape (runs, environments).
    :param second: Scores, of shape (runs, environments).
    :return: The mean over environments, of shape (1,).
    """
    difference = first[:, np.newaxis] - second
    return np.array([np.mean((difference > 0.0) + 0.5 * (difference == 0.0))])


def bootstrap(data: Mapping[Any, Any], function: Callable[..., FloatArray]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """
    Bootstrap over runs, stratified by environment.

    :param data: Matrices, or lists of matrices, of shape (runs, environments).
    :param function: Takes matrices, returns an array.
    :return: What the function returns, and intervals of shape (2, ...), which are NaN if there is a single run.
    """
    with seeded():
        points, intervals = rly.get_interval_estimates(dict(data), function, reps=BOOTSTRAP_SAMPLES)
    for key, matrices in data.items():
        n_runs = min(len(matrix) for matrix in ([matrices] if isinstance(matrices, np.ndarray) else matrices))
        if n_runs < 2:
            intervals[key] = np.full_like(intervals[key], np.nan)
    return points, intervals


def first_reached(positions: Sequence[float], scores: Sequence[float], threshold: float) -> float:
    """
    Find where a learning curve reaches a score, and the next two evaluations confirm it.

    The best of many noisy evaluations is not yet a policy that is there: with scores of 180 on average and a standard
    deviation of 20, one of twenty reaches 200 with a probability of 97 %, two in a row with 35 %, three in a row with 6 %.

    :param positions: Steps or seconds of the evaluations.
    :param scores: Their scores; further ones may follow, which only confirm.
    :param threshold: The score.
    :return: Position of the first of three in a row, infinity if there are none.
    """
    reached = np.asarray(scores) >= threshold
    (confirmed,) = np.nonzero(reached[:-2] & reached[1:-1] & reached[2:])
    return float(positions[confirmed[0]]) if len(confirmed) else np.inf


def mean_curve(curves: Sequence[tuple[FloatArray, FloatArray]], n_points: int = 100) -> dict[str, FloatArray]:
    """
    Average learning curves whose evaluations are at different positions.

    :param curves: Positions and scores of each run.
    :param n_points: Number of positions of the result, from 0 to where the shortest curve ends.
    :return: Arrays ``position``, ``mean``, ``low``, ``high`` of shape (n_points,); the interval is Student's.
    """
    end = min(positions[-1] for positions, _ in curves)
    grid = np.linspace(0.0, end, n_points)
    scores = np.array([np.interp(grid, positions, values) for positions, values in curves])
    estimates = np.array([mean_with_interval(column) for column in scores.T])
    return {"position": grid, "mean": estimates[:, 0], "low": estimates[:, 1], "high": estimates[:, 2]}
