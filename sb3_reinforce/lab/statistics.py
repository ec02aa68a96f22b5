"""
What a gradient is worth: pure functions on inner products of the gradients of episodes, or of batches of episodes.

All functions take the matrix of inner products ``g_i . g_j`` of shape ``(n, n)``, so that they do not depend on the number of
parameters. Episodes are a sample, of which unbiased estimates are made, unless ``probabilities`` says that they are all that
there are: then the results are exact. A squared norm can be estimated as negative, which says that it cannot be told from
zero, and is never clipped.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_reinforce.returns import Array

Gradients = npt.NDArray[np.floating[Any]]

#: Nominal coverage of all intervals.
COVERAGE = 0.9
N_RESAMPLES = 1000


class Interval(NamedTuple):
    """
    A number and its interval.

    :param value: The number.
    :param low: Lower end.
    :param high: Upper end; infinite where nothing bounds the number.
    """

    value: float
    low: float
    high: float


def inner_products(first: Gradients, second: Gradients | None = None) -> Array:
    """
    Multiply all gradients with each other, in double precision.

    :param first: Shape ``(n, n_parameters)``.
    :param second: Shape ``(n, n_parameters)``; None for the first again.
    :return: ``(first_i . second_j + second_i . first_j) / 2``, shape ``(n, n)``.
    """
    products = np.zeros((len(first), len(first)))
    # In parts, since a copy in double precision of everything would be larger than all gradients
    for start in range(0, first.shape[1], 1024):
        columns = slice(start, start + 1024)
        left = first[:, columns].astype(np.float64)
        products += left @ (left if second is None else second[:, columns].astype(np.float64)).T
    return products if second is None else (products + products.T) / 2


def mean_over_pairs(products: Array, probabilities: Array | None = None) -> float:
    """
    Estimate the inner product of two expected gradients, of one with itself its squared norm.

    :param products: Inner products, shape ``(n, n)``.
    :param probabilities: Of each episode, if they are all that there are, shape ``(n,)``.
    :return: Mean over the pairs of different episodes (a U-statistic, unbiased), or the exact value.
    """
    if probabilities is not None:
        return float(probabilities @ products @ probabilities)
    n = len(products)
    return float((products.sum() - np.trace(products)) / (n * (n - 1)))


def signal_and_noise(products: Array, probabilities: Array | None = None) -> tuple[float, float]:
    """
    Split the mean squared norm of a gradient.

    :param products: Inner products, shape ``(n, n)``.
    :param probabilities: Of each episode, if they are all that there are, shape ``(n,)``.
    :return: The squared norm of the expected gradient, and the trace of the covariance matrix.
    """
    signal = mean_over_pairs(products, probabilities)
    weights = np.full(len(products), 1 / len(products)) if probabilities is None else probabilities
    return signal, float(weights @ np.diag(products)) - signal


def noise_scale(signal: float, noise: float, batch_size: int = 1) -> float:
    """
    Compute the gradient noise scale (McCandlish et al. 2018, eq. 2.8): as many episodes have as much signal as noise.

    :param signal: Squared norm of the expected gradient.
    :param noise: Trace of the covariance of the gradient of a batch.
    :param batch_size: Episodes of that batch.
    :return: Episodes; infinite if there is no signal, or none that can be told from zero.
    """
    return batch_size * noise / signal if signal > 0.0 else np.inf


def resamples(n: int, n_resamples: int, rng: np.random.Generator) -> Array:
    """
    Draw resamples with replacement.

    :param n: Number of episodes.
    :param n_resamples: Number of resamples.
    :param rng: Source of randomness.
    :return: How often each episode is in each resample, shape ``(n_resamples, n)``.
    """
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)


def bootstrap_mean_over_pairs(products: Array, counts: Array) -> Array:
    """
    Bootstrap ``mean_over_pairs``.

    A pair that is the same episode drawn twice is left out: its squared norm is mostly noise, and would count as signal. What
    is left is still too wide for weak signals, by up to the square root of 3: a resample varies the mean product of each
    episode with all others, whose own noise it takes for differences between episodes. So the two parts of the statistic
    (Hoeffding 1948, eq. 5.9) are resampled apart: the linear part, scaled to its unbiased variance, and the quadratic part of
    distinct pairs (Arcones & Giné 1992, section 2, with centred products).

    :param products: Inner products, shape ``(n, n)``.
    :param counts: See ``resamples``.
    :return: Shape ``(n_resamples,)``; NaN with fewer than four episodes.
    """
    n = len(products)
    if n < 4:
        return np.full(len(counts), np.nan)
    estimate = mean_over_pairs(products)
    distinct = products - np.diag(np.diag(products))
    sums, sums_of_squares = distinct.sum(axis=1), (distinct**2).sum(axis=1)

    # Mean product of two episodes with a third, and of two pairs without a common episode
    triples = sums**2 - sums_of_squares
    quadruples = sums.sum() ** 2 - 4 * triples.sum() - 2 * sums_of_squares.sum()
    variance = triples.sum() / (n * (n - 1) * (n - 2)) - quadruples / (n * (n - 1) * (n - 2) * (n - 3))
    linear = sums / (n - 1) - estimate
    apparent_variance = np.mean(linear**2)
    scale = np.sqrt(max(variance, 0.0) / apparent_variance) if apparent_variance > 0.0 else 0.0

    means = products.mean(axis=1)
    centred = products - means[:, None] - means + products.mean()
    drawn = counts - 1.0
    quadratic = ((drawn @ centred) * drawn).sum(axis=1) - drawn**2 @ np.diag(centred)
    return np.asarray(estimate + 2 * scale * (drawn @ linear) / n + quadratic / (n * (n - 1)))


def bootstrap_signal_and_noise(products: Array, counts: Array) -> tuple[Array, Array]:
    """
    Bootstrap ``signal_and_noise``.

    :param products: Inner products, shape ``(n, n)``.
    :param counts: See ``resamples``.
    :return: Two arrays of shape ``(n_resamples,)``.
    """
    signals = bootstrap_mean_over_pairs(products, counts)
    return signals, counts @ np.diag(products) / len(products) - signals


def interval(value: float, replicates: Array) -> Interval:
    """
    Make a percentile interval.

    :param value: The estimate.
    :param replicates: Its bootstrap replicates, shape ``(n_resamples,)``.
    :return: The estimate with the interval of ``COVERAGE``, which is unbounded if a replicate could not be computed.
    """
    if np.isnan(replicates).any():
        return Interval(float(value), -np.inf, np.inf)
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], method="inverted_cdf")
    return Interval(float(value), float(low), float(high))


def signal_to_noise(signal: float, noise: float, signals: Array, noises: Array, batch_size: int = 1) -> Interval:
    """
    Estimate the signal-to-noise ratio of one episode, which has an interval even where the noise scale has none.

    :param signal: Squared norm of the expected gradient.
    :param noise: Trace of the covariance of the gradient of a batch.
    :param signals: Bootstrap replicates.
    :param noises: Bootstrap replicates.
    :param batch_size: Episodes of that batch.
    :return: The ratio. It grows in proportion to the number of episodes.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval(float(np.divide(signal, noise)) / batch_size, signals / noises / batch_size)


def invert(ratio: Interval) -> Interval:
    """
    Turn the signal-to-noise ratio of one episode into the noise scale.

    :param ratio: The ratio, whose interval may reach below zero.
    :return: Episodes until the signal equals the noise; infinite where the ratio is not above zero.
    """

    def episodes(part: float) -> float:
        return 1 / part if part > 0.0 else np.inf

    return Interval(episodes(ratio.value), episodes(ratio.high), episodes(ratio.low))


def mean_cosine(products: Array) -> float:
    """
    Compare gradients of disjoint batches (Ilyas et al. 2018, section 3.1).

    :param products: Inner products of the gradients of the batches, shape ``(n, n)``.
    :return: Mean cosine over the pairs; NaN if a gradient is zero.
    """
    norms = np.sqrt(np.diag(products))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products / np.outer(norms, norms)
    return mean_over_pairs(cosines)


def relative(numerator: float, denominator: float, numerators: Array, denominators: Array) -> Interval:
    """
    Estimate a ratio to a squared norm that may not be told from zero.

    :param numerator: Estimate.
    :param denominator: Estimate.
    :param numerators: Bootstrap replicates.
    :param denominators: Bootstrap replicates of the same resamples.
    :return: The ratio; where the denominator is not above zero, it is unbounded.
    """

    def divide(above: Array, below: Array) -> Array:
        unbounded = np.where(above > 0.0, np.inf, -np.inf)
        return np.where(below > 0.0, above / np.where(below > 0.0, below, 1.0), unbounded)

    value = divide(np.array([numerator]), np.array([denominator]))[0]
    return interval(float(value), divide(numerators, denominators))


def best_scale(cross: float, own: float) -> float:
    """
    Find the factor that brings one expected gradient closest to another.

    :param cross: Inner product of the two.
    :param own: Squared norm of the one that is scaled.
    :return: The factor; NaN if its squared norm is not above zero.
    """
    return cross / own if own > 0.0 else np.nan


def share_backwards(updates: Gradients, direction: Gradients) -> float:
    """
    Count the updates that point away from a direction.

    :param updates: Gradients of batches, shape ``(n, n_parameters)``.
    :param direction: Mean gradient of other episodes, shape ``(n_parameters,)``.
    :return: Share with a negative inner product.
    """
    return float(np.mean(updates @ direction < 0.0))
