"""
Signal and noise of gradients: pure functions on inner products of the gradients of episodes, or of batches of episodes.

All functions take the matrix of inner products ``g_i . g_j`` of shape ``(n, n)``, so they do not depend on the number of
parameters. By default the episodes are a sample, and the estimates are unbiased. With ``probabilities``, of shape ``(n,)``,
they are all possible episodes, and the results are exact. A squared norm with a negative estimate cannot be told from zero;
it is never clipped.
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
#: With fewer episodes that carry a gradient there is no interval: unseen episodes could change everything.
MIN_INFORMATIVE = 8


class Interval(NamedTuple):
    """
    An estimate and its interval.

    :param value: The estimate.
    :param low: Lower end; NaN, like the upper end, if a single run says nothing about the spread.
    :param high: Upper end; infinite if nothing bounds the number.
    """

    value: float
    low: float
    high: float

    @property
    def is_bounded(self) -> bool:
        """Whether there is an interval: there is none if too few episodes carry the gradient, or for a single run."""
        return bool(np.isfinite(self.low) or np.isfinite(self.high))


def inner_products(first: Gradients, second: Gradients | None = None) -> Array:
    """Return ``(first_i . second_j + second_i . first_j) / 2`` (``second`` is ``first`` if None), in double precision."""
    products = np.zeros((len(first), len(first)))
    # In chunks, since a double-precision copy of everything would be larger than all gradients
    for start in range(0, first.shape[1], 1024):
        columns = slice(start, start + 1024)
        left = first[:, columns].astype(np.float64)
        products += left @ (left if second is None else second[:, columns].astype(np.float64)).T
    return products if second is None else (products + products.T) / 2


def mean_over_pairs(products: Array, probabilities: Array | None = None) -> float:
    """Return the mean over pairs of distinct episodes: an unbiased estimate (U-statistic) of the product of the means."""
    if probabilities is not None:
        return float(probabilities @ products @ probabilities)
    n = len(products)
    return float((products.sum() - np.trace(products)) / (n * (n - 1)))


def signal_and_noise(products: Array, probabilities: Array | None = None) -> tuple[float, float]:
    """Return the squared norm of the expected gradient, and the trace of the covariance matrix."""
    signal = mean_over_pairs(products, probabilities)
    weights = np.full(len(products), 1 / len(products)) if probabilities is None else probabilities
    return signal, float(weights @ np.diag(products)) - signal


def noise_scale(signal: float, noise: float, batch_size: int = 1) -> float:
    """Return the gradient noise scale (McCandlish et al. 2018, eq. 2.8) from a batch's noise; infinite without signal."""
    return batch_size * noise / signal if signal > 0.0 else np.inf


def n_informative(products: Array) -> float:
    """Return the effective number of episodes that carry the gradient (Kish 1965): from 0 to n, fewer with rare rewards."""
    energies = np.diag(products)
    return float(energies.sum() ** 2 / np.sum(energies**2)) if energies.any() else 0.0


def leave_out(products: Array) -> list[Array]:
    """Compute ``mean_over_pairs`` of all episodes, of all but one, and of all but two: shapes ``()``, ``(n,)``, ``(n, n)``."""
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
    Compute a jackknife interval from the statistic of all episodes, of all but one, and of all but two.

    The jackknife variance counts the part of a statistic that is quadratic in the episodes twice, which would make intervals
    of weak signals too wide by a factor of the square root of two. Efron & Stein (1981) estimate that part by leaving out two
    episodes at a time. The quantile is Student's for as many episodes as carry the gradient. The interval is unbounded with
    fewer than four episodes (or batches), if fewer than ``MIN_INFORMATIVE`` and a quarter of them are informative, and if the
    statistic cannot be computed.
    """
    value, without_one, without_two = statistic
    n = len(without_one)
    with np.errstate(invalid="ignore"):
        second = n * value - (n - 1) * (without_one[:, None] + without_one) + (n - 2) * without_two
    second = second[~np.eye(n, dtype=bool)]
    if informative < min(MIN_INFORMATIVE, n / 4) or not np.isfinite(second).all():
        return unbounded(float(value))
    # Halved, since every pair occurs twice
    quadratic = np.var(second) / 2
    variance = max((n - 1) * np.var(without_one) - quadratic, quadratic)
    half_width = student_quantile(max(informative - 1.0, 1.0)) * np.sqrt(variance)
    return Interval(float(value), float(value - half_width), float(value + half_width))


def unbounded(value: float) -> Interval:
    """Make the unbounded interval of a number about which the episodes say too little."""
    return Interval(value, -np.inf, np.inf)


def student_quantile(degrees: float) -> float:
    """Return Student's quantile for ``COVERAGE``, within 1 % from 3 degrees up (Abramowitz & Stegun 1964, eq. 26.7.5)."""
    z = NormalDist().inv_cdf((1 + COVERAGE) / 2)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return float(z + sum(term / degrees**power for power, term in enumerate(terms, start=1)))


def signal_to_noise(products: Array, batch_size: int = 1) -> Interval:
    """Return the signal-to-noise ratio of one episode, from gradients of batches of ``batch_size`` episodes."""
    energies = np.diag(products)
    signals, squares = leave_out(products), leave_out((energies[:, None] + energies) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [signal / (square - signal) / batch_size for signal, square in zip(signals, squares, strict=True)]
    return interval(ratios, n_informative(products))


def invert(ratio: Interval) -> Interval:
    """Convert the signal-to-noise ratio of one episode to the noise scale, infinite where the ratio is not above zero."""
    value, low, high = (1 / part if part > 0.0 else np.inf for part in ratio)
    return Interval(value, high, low) if ratio.is_bounded else unbounded(value)


def mean_cosine(products: Array) -> float:
    """Return the mean cosine of the gradients of disjoint batches (Ilyas et al. 2018, section 3.1); NaN if one is zero."""
    norms = np.sqrt(np.diag(products))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products / np.outer(norms, norms)
    return mean_over_pairs(cosines)


def relative(difference: Array, reference: Array) -> Interval:
    """Return the ratio of the squared norms of two expected gradients, unbounded where the second may be zero."""
    norms, informative = leave_out(reference), n_informative(reference)
    is_resolved = interval(norms, informative).low > 0.0
    if difference.any():
        informative = min(informative, n_informative(difference))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [above / below for above, below in zip(leave_out(difference), norms, strict=True)]
    return interval(ratios, informative) if is_resolved else unbounded(float(ratios[0]))


def cosine(cross: Array, first: Array, second: Array) -> Interval:
    """Return the cosine of two expected gradients from inner products across and within both; NaN if one may be zero."""
    parts = zip(*(leave_out(products) for products in (cross, first, second)), strict=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = [dot / (np.sqrt(one) * np.sqrt(other)) for dot, one, other in parts]
    return interval(cosines, min(n_informative(first), n_informative(second)))


def mean_interval(value: float, intervals: Sequence[Interval]) -> Interval:
    """Average the intervals from several splits of the same episodes; as wide as one split's, since no data are added."""
    bounded = [one for one in intervals if one.is_bounded]
    if 2 * len(bounded) < len(intervals):
        return unbounded(value)
    below, above = np.mean([(one.low - one.value, one.high - one.value) for one in bounded], axis=0)
    return Interval(value, value + float(below), value + float(above))
