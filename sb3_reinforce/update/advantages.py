"""From a rollout to the weight of each step: what the policy says of it, and what the estimator makes of that."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_reinforce.distributed.partition import Partition
from sb3_reinforce.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sb3_reinforce.functional.estimator import Estimator, PolicyGradientTargets
from sb3_reinforce.functional.returns import Array, IntArray
from sb3_reinforce.rollout.batch import EpisodeBatch
from sb3_reinforce.rollout.buffers import DictEpisodeRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.update.evaluator import PolicyEvaluator


class EvaluatedRollout(NamedTuple):
    """
    What an update needs of a rollout.

    :param batch: The episodes of this rank, and where they are among those of all.
    :param values: V(s) of each step of all ranks, shape ``(n_steps,)``; None without a critic.
    :param step_weights: The weights, and what they were made of, of each step of all ranks.
    """

    batch: EpisodeBatch
    values: Array | None
    step_weights: PolicyGradientTargets

    @property
    def own_step_weights(self) -> PolicyGradientTargets:
        """Those of this rank."""
        weights, of = self.step_weights, self.batch.part.of
        return PolicyGradientTargets(
            of(weights.rewards_to_go), of(weights.advantages), of(weights.weights), weights.n_averaged
        )


def compute_advantages(
    buffer: EpisodeRolloutBuffer | DictEpisodeRolloutBuffer,
    batch: EpisodeBatch,
    reader: PolicyEvaluator,
    estimator: Estimator,
    entropy_reward: float,
    critic_is_fitted: bool,
    ranks: ProcessGroup = SINGLE_PROCESS,
) -> EvaluatedRollout:
    """
    Weigh the steps of a rollout. The buffer keeps what SB3's has, and the forward passes, so that none is made twice.

    :param buffer: Holds the rollout.
    :param batch: Its episodes.
    :param reader: Of the policy that acted.
    :param estimator: Decides the weights.
    :param entropy_reward: What ``-log_prob`` of an action earns (Levine 2018, eq. 9).
    :param critic_is_fitted: Whether episodes that were cut go on with the value of their final observation, as in SB3. The
        values of a critic that never learned would be noise.
    :param ranks: Their episodes are weighed together, as one process would with all of them.
    :return: Values and weights.
    :raises RankError: If a log-probability is not finite on any of several ranks.
    """

    def read() -> tuple[Array, Array | None, IntArray]:
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
        return rewards, values, batch.episode_lengths

    parts = ranks.gather(read)
    rewards, values, episode_lengths = parts[0]
    if ranks.size > 1:
        rewards, values, episode_lengths = map(_joined, zip(*parts, strict=True))
        start = sum(len(part[0]) for part in parts[: ranks.rank])
        part = Partition(ranks, episode_lengths, start, start + len(batch.rewards))
        batch = batch._replace(part=part)
    step_weights = estimator(rewards, values, episode_lengths)
    rollout = EvaluatedRollout(batch, values, step_weights)
    own = rollout.own_step_weights
    buffer.keep(
        values=np.zeros_like(own.advantages) if values is None else batch.part.of(values),
        returns=own.rewards_to_go,
        advantages=own.advantages,
    )
    return rollout


def _joined(arrays: Sequence[Any]) -> Any:
    return None if arrays[0] is None else np.concatenate(arrays)
