"""Statistics of a comparison: pure functions on arrays. Intervals are 95 % intervals, NaN for a single run."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from sb3_reinforce.lab.statistics import Interval

FloatArray = NDArray[np.float64]
#: p-values by pair, in either order.
PValues = dict[frozenset[str], float]

#: Probability of a false claim among all pairs of one table.
LEVEL = 0.05
BOOTSTRAP_SAMPLES = 2000
PERMUTATIONS = 10_000
PROFILE_SCORES = np.linspace(0.0, 1.0, 101)
#: Aggregates over runs and environments, and whether more is better.
AGGREGATES = {"IQM": True, "median": True, "optimality gap": False}


def decimals(values: Sequence[float]) -> int:
    """Return the number of decimals that show a hundredth of the range, at least one below a range of 1,000."""
    finite = np.asarray(values)[np.isfinite(values)]
    if not finite.any():
        return 1
    # Equal numbers have no range, but a magnitude
    span = float(np.ptp(finite) or np.abs(finite).max())
    return max(2 - math.floor(math.log10(span)), 1 if span < 1000.0 else 0)


def mean_with_interval(values: Sequence[float] | FloatArray) -> Interval:
    """Return the mean over seeds with Student's interval: a percentile bootstrap of three or five values is too narrow."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan)
    half_width = float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half_width, mean + half_width)


def normalise(scores: FloatArray, low: float, high: float) -> FloatArray:
    """
    Scale scores so that random actions, and anything worse, have 0 and the best run has 1; all are 0 if none is better.

    Without a lower bound, an environment in which the best run is barely better than random would outweigh all others.
    """
    return np.maximum((scores - low) / (high - low), 0.0) if high > low else np.zeros_like(scores)


class Overall(NamedTuple):
    """
    Statistics over environments.

    :param n_seeds: Number of runs by algorithm in every environment in which it can act.
    :param everywhere: Algorithms that can act in all environments, whose aggregates are comparable.
    :param aggregates: Estimates with intervals by aggregate and algorithm.
    :param differences: p-values of the differences in IQM for all pairs of ``everywhere``.
    :param improvement: Probability that a run of the first beats a run of the second in the same environment, by pair.
    :param profiles: Share of runs above each of ``PROFILE_SCORES`` by algorithm, with both ends of its interval.
    """

    n_seeds: dict[str, int]
    everywhere: set[str]
    aggregates: dict[str, dict[str, Interval]]
    differences: PValues
    improvement: dict[tuple[str, str], Interval]
    profiles: dict[str, tuple[FloatArray, FloatArray, FloatArray]]


def over_environments(scores: Mapping[str, FloatArray]) -> Overall:
    """
    Aggregate over runs and environments (Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice,
    NeurIPS 2021).

    ``scores`` holds normalised scores by algorithm, of shape (runs, environments), NaN where the algorithm cannot act. An
    algorithm is aggregated over the other environments, and a pair is compared over the environments of both.
    """
    acts = {name: ~np.isnan(matrix).any(axis=0) for name, matrix in scores.items()}
    own = {name: matrix[:, acts[name]] for name, matrix in scores.items()}
    everywhere = {name: matrix for name, matrix in scores.items() if acts[name].all()}
    columns = {name: bootstrap([matrix], aggregate_runs) for name, matrix in own.items()}
    aggregates = {
        aggregate: {name: Interval(*estimates[:, column]) for name, estimates in columns.items()}
        for column, aggregate in enumerate(AGGREGATES)
    }
    improvement = {}
    for pair in itertools.combinations(scores, 2):
        both = acts[pair[0]] & acts[pair[1]]
        if both.any():
            improvement[pair] = Interval(*bootstrap([scores[name][:, both] for name in pair], probability_of_improvement))
    profiles = {name: (*estimates[:, len(AGGREGATES) :],) for name, estimates in columns.items()}
    n_seeds = {name: len(matrix) for name, matrix in scores.items()}
    return Overall(n_seeds, set(everywhere), aggregates, compare_iqm(everywhere), improvement, profiles)


def compare_iqm(scores: Mapping[str, FloatArray]) -> PValues:
    """
    Test the differences in interquartile mean for all pairs with several runs, corrected for the number of pairs (Holm 1979).

    A permutation test exchanges the runs of a pair within each environment. If the scores of two algorithms have the same
    distributions, it finds a difference with at most the stated probability, however few runs there are and whatever the
    distributions. The statistic is the difference divided by its standard error, which keeps the probability near that level
    if different distributions have equal interquartile means (Janssen, Statistics & Probability Letters 36, 1997).
    """
    pairs = itertools.combinations([name for name, matrix in scores.items() if len(matrix) > 1], 2)
    uncorrected = sorted((permutation_test(scores[first], scores[second]), first, second) for first, second in pairs)
    corrected = np.array([p_value * (len(uncorrected) - rank) for rank, (p_value, _, _) in enumerate(uncorrected)])
    p_values = np.minimum(np.maximum.accumulate(corrected), 1.0) if uncorrected else corrected
    return {frozenset(pair): float(p_value) for (_, *pair), p_value in zip(uncorrected, p_values, strict=True)}


def permutation_test(first: FloatArray, second: FloatArray) -> float:
    """Return the share of permutations, the observed one included, with at least as large a studentised difference."""
    rng = np.random.default_rng(0)
    runs, observed = np.concatenate([first, second]), studentised_difference(first, second)
    n_larger = 0
    for _ in range(PERMUTATIONS // 500):
        permuted = rng.permuted(np.tile(runs, (500, 1, 1)), axis=1)
        differences = studentised_difference(permuted[:, : len(first)], permuted[:, len(first) :])
        # The same runs in a different order may differ by rounding
        n_larger += int(np.sum(differences >= observed * (1.0 - 1e-9)))
    return (n_larger + 1) / (PERMUTATIONS + 1)


def studentised_difference(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return absolute differences of interquartile means over their standard errors, infinite if runs do not vary."""
    (mean, variance), (other_mean, other_variance) = iqm_and_variance(first), iqm_and_variance(second)
    difference = np.abs(mean - other_mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference < 1e-12, 0.0, difference / np.sqrt(variance + other_variance))


def iqm_and_variance(scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the interquartile mean and its variance over seeds, from winsorised scores (Tukey & McLaughlin 1963)."""
    n_runs = scores.shape[-2]
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = ordered.shape[-1] // 4
    middle = ordered[..., cut : ordered.shape[-1] - cut]
    winsorised = np.clip(scores, middle[..., :1, np.newaxis], middle[..., -1:, np.newaxis])
    return middle.mean(axis=-1), n_runs * winsorised.var(axis=-2, ddof=1).sum(axis=-1) / middle.shape[-1] ** 2


def compare_means(values: Mapping[str, FloatArray]) -> PValues:
    """
    Test the differences in mean score in one environment for all pairs with several runs, corrected for the number of pairs.

    The Games-Howell test is right for normally distributed scores. If runs either solve a task or fail, all n runs of one
    algorithm may succeed and all m of another fail by chance, with a probability of at most 2^(1 - n - m). No p-value is
    below this floor, so with three runs a difference is claimed only if there is a single environment.
    """
    several = {name: own for name, own in values.items() if len(own) > 1}
    if len(several) < 2:
        return {}
    with np.errstate(divide="ignore", invalid="ignore"):
        # NaN if the runs of two algorithms do not vary at all
        p_values = np.nan_to_num(scipy.stats.tukey_hsd(*several.values(), equal_var=False).pvalue)
    return {
        frozenset((first, second)): max(float(p_values[i, j]), 2.0 ** (1 - len(several[first]) - len(several[second])))
        for (i, first), (j, second) in itertools.combinations(enumerate(several), 2)
    }


def seeds_to_claim(n_environments: int) -> int:
    """Return the fewest seeds that allow a claim of a difference in one of several environments; see the floor above."""
    return math.floor((1.0 - math.log2(LEVEL / n_environments)) / 2.0) + 1


def aggregate_runs(scores: FloatArray) -> FloatArray:
    """Return ``AGGREGATES`` and the shares of runs above ``PROFILE_SCORES`` (Agarwal et al. 2021) along the last axis."""
    iqm = scipy.stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)
    median = np.median(scores.mean(axis=-2), axis=-1)
    optimality_gap = 1.0 - np.minimum(scores, 1.0).mean(axis=(-2, -1))
    shares = [(scores > score).mean(axis=(-2, -1)) for score in PROFILE_SCORES]
    return np.stack([iqm, median, optimality_gap, *shares], axis=-1)


def probability_of_improvement(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the probability that a run of the first beats one of the second, averaged over environments; ties count half."""
    difference = first[..., :, np.newaxis, :] - second[..., np.newaxis, :, :]
    return np.asarray(np.mean((difference > 0.0) + 0.5 * (difference == 0.0), axis=(-3, -2, -1)))


def bootstrap(matrices: Sequence[FloatArray], function: Callable[..., FloatArray]) -> FloatArray:
    """
    Estimate statistics of normalised scores with 95 % intervals by a bootstrap over runs, stratified by environment.

    Each end is the outer one of two intervals. The bootstrap's percentiles follow skewed distributions but are too narrow
    with few runs. Student's interval has the bootstrap's standard error times sqrt(n / (n - 1)) and Satterthwaite's degrees
    of freedom over the environments (Hesterberg, The American Statistician 69, 2015, on both).

    ``function`` takes matrices of shape (..., runs, environments), which are resampled independently, and returns numbers
    between 0 and 1. The result holds the estimates, low ends and high ends, shape (3, ...); the ends are NaN for a single run.
    """
    values = function(*matrices)
    n_runs = min(map(len, matrices))
    if n_runs < 2:
        return np.stack([values, *np.full((2, *values.shape), np.nan)])
    rng = np.random.default_rng(0)
    samples = np.concatenate(
        [function(*(draw_runs(matrix, 100, rng) for matrix in matrices)) for _ in range(BOOTSTRAP_SAMPLES // 100)]
    )
    variances = np.concatenate([matrix.var(axis=0, ddof=1) / len(matrix) for matrix in matrices])
    freedom = n_runs - 1.0
    if variances.any():
        freedom *= float(variances.sum() ** 2 / (variances**2).sum())
    margin = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(n_runs / (n_runs - 1.0)) * samples.std(axis=0, ddof=1)
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return np.stack([values, *np.clip([np.minimum(low, values - margin), np.maximum(high, values + margin)], 0.0, 1.0)])


def draw_runs(scores: FloatArray, n_samples: int, rng: np.random.Generator) -> FloatArray:
    """Resample the runs of each environment with replacement; return shape (n_samples, runs, environments)."""
    return np.take_along_axis(scores[np.newaxis], rng.integers(len(scores), size=(n_samples, *scores.shape)), axis=1)


def first_reached(positions: Sequence[float], scores: Sequence[float], threshold: float) -> float:
    """
    Return the position at which a learning curve reaches a score that the next two evaluations confirm, or infinity.

    The best of many noisy evaluations proves little: with a mean score of 180 and a standard deviation of 20, one of twenty
    evaluations reaches 200 with probability 97 %, three in a row with 6 %. Scores after the last position only confirm.
    """
    reached = np.asarray(scores) >= threshold
    (confirmed,) = np.nonzero(reached[:-2] & reached[1:-1] & reached[2:])
    return float(positions[confirmed[0]]) if len(confirmed) else np.inf


def mean_curve(curves: Sequence[tuple[FloatArray, FloatArray]], n_points: int = 100) -> dict[str, FloatArray]:
    """Average learning curves (positions and scores per run) from 0 to the end of the shortest, with Student's interval."""
    end = min(positions[-1] for positions, _ in curves)
    grid = np.linspace(0.0, end, n_points)
    scores = np.array([np.interp(grid, positions, values) for positions, values in curves])
    estimates = np.array([mean_with_interval(column) for column in scores.T])
    return {"position": grid, "mean": estimates[:, 0], "low": estimates[:, 1], "high": estimates[:, 2]}
