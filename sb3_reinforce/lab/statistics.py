"""
What a gradient is worth: pure functions on inner products of the gradients of episodes, or of batches of episodes.

All functions take the matrix of inner products ``g_i . g_j`` of shape ``(n, n)``, so that they do not depend on the number of
parameters. Episodes are a sample, of which unbiased estimates are made, unless ``probabilities`` says that they are all that
there are: then the results are exact. A squared norm can be estimated as negative, which says that it cannot be told from
zero, and is never clipped.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_reinforce.functional.returns import Array

Gradients = npt.NDArray[np.floating[Any]]

#: Nominal coverage of all intervals.
COVERAGE = 0.9
#: With fewer episodes that carry a gradient there is no interval: what was not seen yet could change everything.
MIN_INFORMATIVE = 8


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

    @property
    def is_bounded(self) -> bool:
        """Whether there is an interval: there is none where too few episodes carry the gradient."""
        return bool(np.isfinite(self.low) or np.isfinite(self.high))


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


def n_informative(products: Array) -> float:
    """
    Count the episodes that carry the gradient (Kish 1965): as many of one length would be as uneven.

    :param products: Inner products, shape ``(n, n)``.
    :return: From 0 (no episode has a gradient) to n. With a reward that is rare and no baseline, the episodes that earned it.
    """
    energies = np.diag(products)
    return float(energies.sum() ** 2 / np.sum(energies**2)) if energies.any() else 0.0


def leave_out(products: Array) -> list[Array]:
    """
    Compute ``mean_over_pairs`` of all episodes, without each one, and without each two of them.

    :param products: Inner products, shape ``(n, n)``.
    :return: Shapes ``()``, ``(n,)`` and ``(n, n)``, of which the diagonal has no meaning; not finite where no pair is left.
    """
    n = len(products)
    sums = products.sum(axis=1) - np.diag(products)
    total = sums.sum()
    without_two = total - 2 * (sums[:, None] + sums - products)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [
            total / (n * (n - 1)),
            (total - 2 * sums) / ((n - 1) * (n - 2)),
            without_two / ((n - 2) * (n - 3)),
        ]


def interval(statistic: Sequence[Array], informative: float) -> Interval:
    """
    Make an interval by the jackknife.

    The jackknife's variance counts the part of a statistic that is quadratic in the episodes twice, which would make
    intervals of weak signals too wide by the square root of two. Efron & Stein (1981) find that part by leaving
    out two episodes at a time. The quantile is Student's for as many episodes as carry the gradient.

    :param statistic: Of all episodes, without each one, and without each two of them: shapes ``()``, ``(n,)``, ``(n, n)``.
    :param informative: See ``n_informative``.
    :return: The statistic with the interval of ``COVERAGE``. It is unbounded with fewer than four episodes (or batches), where
        fewer than ``MIN_INFORMATIVE`` and a quarter of them are informative, and where the statistic cannot be computed.
    """
    value, without_one, without_two = statistic
    n = len(without_one)
    with np.errstate(invalid="ignore"):
        second = n * value - (n - 1) * (without_one[:, None] + without_one) + (n - 2) * without_two
    second = second[~np.eye(n, dtype=bool)]
    if informative < min(MIN_INFORMATIVE, n / 4) or not np.isfinite(second).all():
        return unbounded(float(value))
    # Half, since every pair is there twice
    quadratic = np.var(second) / 2
    variance = max((n - 1) * np.var(without_one) - quadratic, quadratic)
    half_width = student_quantile(max(informative - 1.0, 1.0)) * np.sqrt(variance)
    return Interval(float(value), float(value - half_width), float(value + half_width))


def unbounded(value: float) -> Interval:
    """
    Make the interval of a number of which the episodes say too little.

    :param value: The number.
    :return: An interval without ends.
    """
    return Interval(value, -np.inf, np.inf)


def student_quantile(degrees: float) -> float:
    """
    Compute the quantile of Student's distribution that ends an interval of ``COVERAGE``.

    :param degrees: Degrees of freedom, at least 1.
    :return: The quantile, within 1 % from 3 degrees on (Abramowitz & Stegun 1964, eq. 26.7.5).
    """
    z = NormalDist().inv_cdf((1 + COVERAGE) / 2)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return float(z + sum(term / degrees**power for power, term in enumerate(terms, start=1)))


def signal_to_noise(products: Array, batch_size: int = 1) -> Interval:
    """
    Estimate the signal-to-noise ratio of one episode, which has an interval even where the noise scale has none.

    :param products: Inner products of the gradients of episodes, or of batches of them, shape ``(n, n)``.
    :param batch_size: Episodes of a batch.
    :return: The ratio. It grows in proportion to the number of episodes.
    """
    energies = np.diag(products)
    signals, squares = leave_out(products), leave_out((energies[:, None] + energies) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [signal / (square - signal) / batch_size for signal, square in zip(signals, squares, strict=True)]
    return interval(ratios, n_informative(products))


def invert(ratio: Interval) -> Interval:
    """
    Turn the signal-to-noise ratio of one episode into the noise scale.

    :param ratio: The ratio, whose interval may reach below zero.
    :return: Episodes until the signal equals the noise; infinite where the ratio is not above zero.
    """

    def episodes(part: float) -> float:
        return 1 / part if part > 0.0 else np.inf

    if not ratio.is_bounded:
        return unbounded(episodes(ratio.value))
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


def relative(difference: Array, reference: Array) -> Interval:
    """
    Estimate the ratio of two squared norms, of which the second may not be told from zero.

    :param difference: Inner products of the gradients of which the first is the squared norm, shape ``(n, n)``.
    :param reference: Of those of which the second is the squared norm, shape ``(n, n)``.
    :return: The ratio; unbounded where the second cannot be told from zero.
    """
    norms, informative = leave_out(reference), n_informative(reference)
    is_resolved = interval(norms, informative).low > 0.0
    if difference.any():
        informative = min(informative, n_informative(difference))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [above / below for above, below in zip(leave_out(difference), norms, strict=True)]
    return interval(ratios, informative) if is_resolved else unbounded(float(ratios[0]))


def cosine(cross: Array, first: Array, second: Array) -> Interval:
    """
    Estimate the cosine of two expected gradients.

    :param cross: Inner products of the gradients of the one with those of the other, shape ``(n, n)``.
    :param first: Inner products of the gradients of the one, shape ``(n, n)``.
    :param second: Inner products of those of the other, shape ``(n, n)``.
    :return: The cosine, NaN where one of them cannot be told from zero.
    """
    parts = zip(*(leave_out(products) for products in (cross, first, second)), strict=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = [dot / (np.sqrt(one) * np.sqrt(other)) for dot, one, other in parts]
    return interval(cosines, min(n_informative(first), n_informative(second)))


def mean_interval(value: float, intervals: Sequence[Interval]) -> Interval:
    """
    Average the intervals from several deals of the same episodes into batches.

    :param value: The estimate from all deals.
    :param intervals: From each deal.
    :return: As wide as that of a single deal: to deal the same episodes again adds no data. Unbounded if most of them are.
    """
    bounded = [one for one in intervals if one.is_bounded]
    if 2 * len(bounded) < len(intervals):
        return unbounded(value)
    below, above = np.mean([(one.low - one.value, one.high - one.value) for one in bounded], axis=0)
    return Interval(value, value + float(below), value + float(above))


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
