"""
Returns, advantages and weights of whole episodes, as pure functions on arrays.

The steps of all episodes follow each other in flat arrays of shape ``(n_steps,)``; ``episode_lengths`` of shape
``(n_episodes,)`` says where each episode ends. All results are ``float64``: returns are sums over many steps, and the policy
gradient depends on the small differences between them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

IntArray = npt.NDArray[np.int64]


def first_steps(episode_lengths: IntArray) -> IntArray:
    """
    Find the first step of every episode.

    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Index of the first step of each episode, shape ``(n_episodes,)``.
    """
    return np.cumsum(episode_lengths) - episode_lengths


def steps_of(episode_lengths: IntArray, episodes: Sequence[int] | IntArray) -> IntArray:
    """
    Select the steps of some episodes.

    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param episodes: Indices of episodes, at least one.
    :return: The indices of their steps, one episode after another, in the order of ``episodes``.
    """
    starts = first_steps(episode_lengths)
    return np.concatenate([np.arange(starts[index], starts[index] + episode_lengths[index]) for index in episodes])


def time_steps(episode_lengths: IntArray) -> IntArray:
    """
    Number the steps of every episode from 0.

    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: The time step t of each step inside its own episode, shape ``(n_steps,)``.
    """
    return np.arange(int(np.sum(episode_lengths))) - np.repeat(first_steps(episode_lengths), episode_lengths)


def discounted_sums(terms: npt.ArrayLike, episode_lengths: IntArray, discount: float) -> Array:
    """
    Compute, for every step, the discounted sum of the terms from there to the end of its episode.

    ``sums[t] = terms[t] + discount * terms[t + 1] + ... `` (Sutton & Barto 2018, eq. 3.8), never past an episode's end.
    All steps are computed at once by doubling: once ``sums[t]`` covers k terms, adding ``discount**k * sums[t + k]``
    makes it cover 2k (Hillis & Steele 1986), so the longest episode costs log2(length) vector operations.

    :param terms: Terms to sum (rewards, temporal differences), shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param discount: Factor per step, in [0, 1].
    :return: Shape ``(n_steps,)``.
    """
    sums = np.array(terms, dtype=np.float64)
    steps_left = np.repeat(episode_lengths, episode_lengths) - 1 - time_steps(episode_lengths)
    longest = int(np.max(episode_lengths, initial=0))
    covered, factor = 1, float(discount)
    while covered < longest and factor > 0.0:
        inside_episode = steps_left[:-covered] >= covered
        sums[:-covered] += np.where(inside_episode, factor * sums[covered:], 0.0)
        covered, factor = 2 * covered, factor * factor
    return sums


def complete_rewards(
    rewards: Array,
    log_probs: Array | None,
    ent_coef: float,
    cut_steps: IntArray,
    final_values: Array | None,
    gamma: float,
) -> Array:
    """
    Add to the rewards the other terms of the objective: entropy, and the values of what followed episodes that were cut.

    :param rewards: The environment's rewards, shape ``(n_steps,)``.
    :param log_probs: Log-probabilities of the actions, shape ``(n_steps,)``; needed unless ``ent_coef`` is 0.
    :param ent_coef: Coefficient of ``-log_prob`` in the rewards (Levine 2018, eq. 9); 0 for no entropy in the return.
    :param cut_steps: Last step of each episode that was cut, shape ``(n_cuts,)``.
    :param final_values: V(s) of what followed these steps, shape ``(n_cuts,)``; None to treat a cut as the episode's end.
    :param gamma: Discount factor of ``final_values``, in [0, 1].
    :return: Shape ``(n_steps,)``.
    """
    if ent_coef != 0.0:
        assert log_probs is not None
        rewards = rewards - ent_coef * log_probs
    if final_values is not None:
        rewards = rewards.copy()
        rewards[cut_steps] += gamma * final_values
    return rewards


def rewards_to_go(rewards: npt.ArrayLike, episode_lengths: IntArray, gamma: float) -> Array:
    """
    Compute the causal return ``G_t = sum_{k >= t} gamma**(k - t) r_k`` (Sutton & Barto 2018, eq. 13.8).

    :param rewards: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param gamma: Discount factor, in [0, 1].
    :return: Shape ``(n_steps,)``.
    """
    return discounted_sums(rewards, episode_lengths, gamma)


def whole_episode_returns(rewards: npt.ArrayLike, episode_lengths: IntArray, gamma: float) -> Array:
    """
    Give every step the return of its whole episode, ``sum_k gamma**k r_k`` (Williams 1992).

    Discounting starts at the first step of the episode, so this is the discounted objective itself.

    :param rewards: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param gamma: Discount factor, in [0, 1].
    :return: Shape ``(n_steps,)``, constant inside an episode.
    """
    of_episodes = rewards_to_go(rewards, episode_lengths, gamma)[first_steps(episode_lengths)]
    return np.repeat(of_episodes, episode_lengths)


def generalized_advantages(
    rewards: npt.ArrayLike, values: npt.ArrayLike, episode_lengths: IntArray, gamma: float, gae_lambda: float
) -> Array:
    """
    Generalized advantage estimate (Schulman et al. 2016, eq. 16), for ``gae_lambda`` below 1.

    The value after an episode's last step is 0: the value bootstrapped at a time limit belongs in the last reward.

    :param rewards: Shape ``(n_steps,)``.
    :param values: V(s_t) of every step, shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param gamma: Discount factor, in [0, 1].
    :param gae_lambda: 1 gives ``rewards_to_go(...) - values``, 0 the one-step temporal difference.
    :return: Shape ``(n_steps,)``.
    """
    values = np.asarray(values, dtype=np.float64)
    next_values = np.append(values[1:], 0.0)
    next_values[np.cumsum(episode_lengths) - 1] = 0.0
    temporal_differences = np.asarray(rewards, dtype=np.float64) + gamma * next_values - values
    return discounted_sums(temporal_differences, episode_lengths, gamma * gae_lambda)


def discount_weights(episode_lengths: IntArray, gamma: float) -> Array:
    """
    Weight ``gamma**t`` of every step in the gradient of the discounted objective (Sutton & Barto 2018, section 13.3).

    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param gamma: Discount factor, in [0, 1].
    :return: Shape ``(n_steps,)``, 1 at the first step of each episode.
    """
    return np.asarray(float(gamma) ** time_steps(episode_lengths), dtype=np.float64)


def standardize(advantages: Array, epsilon: float = 1e-8) -> Array:
    """
    Subtract the mean and divide by the sample standard deviation, as SB3 does.

    :param advantages: Shape ``(n_steps,)``.
    :param epsilon: Added to the standard deviation, so that equal advantages give zeros and not NaN.
    :return: Shape ``(n_steps,)``; zeros if there is only one step or no variance.
    """
    deviation = advantages.std(ddof=1) if len(advantages) > 1 else 0.0
    # Below this, rounding errors would be scaled up to order one
    if deviation <= 1e-12 * np.abs(advantages).max():
        return np.zeros_like(advantages)
    return np.asarray((advantages - advantages.mean()) / (deviation + epsilon))
