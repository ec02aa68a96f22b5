"""From a rollout to the weight of each step: what the policy says of it, and what the estimator makes of that."""

from typing import NamedTuple

import numpy as np

from sb3_reinforce.buffers import DictEpisodeRolloutBuffer, EpisodeBatch, EpisodeRolloutBuffer
from sb3_reinforce.estimators import Estimator, StepWeights
from sb3_reinforce.reading import BatchReader
from sb3_reinforce.returns import Array


class WeighedRollout(NamedTuple):
    """
    What an update needs of a rollout.

    :param values: V(s) of each step, shape ``(n_steps,)``; None without a critic.
    :param step_weights: The weights, and what they were made of.
    """

    values: Array | None
    step_weights: StepWeights


def weigh_rollout(
    buffer: EpisodeRolloutBuffer | DictEpisodeRolloutBuffer,
    batch: EpisodeBatch,
    reader: BatchReader,
    estimator: Estimator,
    entropy_reward: float,
    critic_is_fitted: bool,
) -> WeighedRollout:
    """
    Weigh the steps of a rollout. The buffer keeps what SB3's has, and the forward passes, so that none is made twice.

    :param buffer: Holds the rollout.
    :param batch: Its episodes.
    :param reader: Of the policy that acted.
    :param estimator: Decides the weights.
    :param entropy_reward: What ``-log_prob`` of an action earns (Levine 2018, eq. 9).
    :param critic_is_fitted: Whether episodes that were cut go on with the value of their final observation, as in SB3. The
        values of a critic that never learned would be noise.
    :return: Values and weights.
    """
    rewards = batch.rewards
    if entropy_reward != 0.0:
        rewards = rewards - entropy_reward * buffer.kept("log_probs", lambda: reader.log_probs(batch))
    values = None
    if estimator.baseline == "value":
        values = buffer.kept("values", lambda: reader.baseline_values(batch))
        if batch.final_observations is not None and critic_is_fitted:
            rewards = rewards.copy()
            final_values = buffer.kept("final_values", lambda: reader.final_values(batch))
            rewards[batch.cut_steps] += estimator.gamma * final_values
    step_weights = estimator(rewards, values, batch.episode_lengths)
    buffer.keep(
        values=np.zeros_like(rewards) if values is None else values,
        returns=step_weights.rewards_to_go,
        advantages=step_weights.advantages,
    )
    return WeighedRollout(values, step_weights)
