"""
Baselines that need no learning, as pure functions on arrays.

Subtracting a baseline leaves the expected gradient unchanged as long as the baseline of a step does not depend on the
action taken there (Williams 1992; Sutton & Barto 2018, eq. 13.10). The layout of the arrays is that of ``returns``.
"""

import numpy as np

from sb3_reinforce.functional.returns import Array, IntArray, time_steps


def episode_means(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Average the returns of the steps of each episode.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Shape ``(n_episodes,)``.
    """
    first_steps = np.cumsum(episode_lengths) - episode_lengths
    return np.asarray(np.add.reduceat(returns, first_steps) / episode_lengths)


def mean_baseline(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Mean return of the batch, every episode counted once.

    Biased: each episode's own return is part of its baseline. With whole-episode returns and N episodes, the expected
    gradient is exactly ``(1 - 1/N)`` of the true one; with rewards-to-go its direction is off by O(1/N) as well.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Shape ``(n_steps,)``, the same number everywhere.
    """
    return np.full(len(returns), episode_means(returns, episode_lengths).mean())


def leave_one_out_baseline(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Mean return of the other episodes, each counted once (Kool et al. 2019).

    Unbiased, because an episode never sees its own return.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, at least two of them.
    :return: Shape ``(n_steps,)``, constant inside an episode.
    """
    means = episode_means(returns, episode_lengths)
    return np.repeat((means.sum() - means) / (len(means) - 1), episode_lengths)


def time_step_baseline(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Mean return of the other episodes at the same time step.

    Unbiased for the same reason as ``leave_one_out_baseline``, which stands in where no other episode is long enough.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, at least two of them.
    :return: Shape ``(n_steps,)``.
    """
    steps = time_steps(episode_lengths)
    others = np.bincount(steps)[steps] - 1
    sum_of_others = np.bincount(steps, weights=returns)[steps] - returns
    return np.where(others > 0, sum_of_others / np.maximum(others, 1), leave_one_out_baseline(returns, episode_lengths))
