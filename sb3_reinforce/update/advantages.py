"""From a rollout to the advantages: what the policy says of the rollout, and what the estimator makes of it."""

from typing import Any, NamedTuple

import numpy as np

from sb3_reinforce.distributed.partition import Partition
from sb3_reinforce.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sb3_reinforce.functional.estimator import Estimator, PolicyGradientTargets
from sb3_reinforce.functional.returns import Array, complete_rewards
from sb3_reinforce.rollout.batch import EpisodeBatch, PolicyOutputs
from sb3_reinforce.update.evaluator import PolicyEvaluator


def evaluate_rollout(
    evaluator: PolicyEvaluator, batch: EpisodeBatch, has_critic: bool, critic_is_fitted: bool, needs_log_probs: bool
) -> PolicyOutputs:
    """
    Compute what the estimator needs of the policy that acted.

    :param evaluator: Of that policy.
    :param batch: The episodes.
    :param has_critic: Whether a value is subtracted.
    :param critic_is_fitted: Whether episodes that were cut go on with the value of their final observation, as in SB3. The
        values of a critic that never learned would be noise.
    :param needs_log_probs: Whether the return holds the entropy.
    :return: Values and log-probabilities.
    :raises ValueError: If a log-probability is not finite; names the environment and the step.
    """
    values = evaluator.baseline_values(batch) if has_critic else None
    goes_on = has_critic and critic_is_fitted and batch.final_observations is not None
    final_values = evaluator.final_values(batch) if goes_on else None
    return PolicyOutputs(values, final_values, evaluator.log_probs(batch) if needs_log_probs else None)


class Advantages(NamedTuple):
    """
    The advantages of the episodes of all processes, which are computed together, as one process would with all of them.

    :param targets: Of each step of all processes.
    :param values: V(s) of each step of all processes, shape ``(n_steps,)``; None without a critic.
    :param partition: Where the episodes of this process are among them.
    """

    targets: PolicyGradientTargets
    values: Array | None
    partition: Partition

    @property
    def local_targets(self) -> PolicyGradientTargets:
        """Those of the steps of this process."""
        rewards_to_go, advantages, score_weights, n_averaged = self.targets
        local = self.partition.local_numbers
        return PolicyGradientTargets(local(rewards_to_go), local(advantages), local(score_weights), n_averaged)


def compute_advantages(
    batch: EpisodeBatch, estimator: Estimator, ent_coef: float = 0.0, processes: ProcessGroup = SINGLE_PROCESS
) -> Advantages:
    """
    Compute returns, baseline and advantages.

    :param batch: The episodes of this process, with what the policy says of them.
    :param estimator: Makes the weight of each step's score of rewards and values.
    :param ent_coef: What ``-log_prob`` of an action earns (Levine 2018, eq. 9); 0 if the entropy is no part of the return.
    :param processes: Those that train together.
    :return: The advantages.
    :raises ProcessError: If another process has failed, or is gone.
    """
    values, final_values, log_probs = batch.outputs
    rewards = complete_rewards(batch.rewards, log_probs, ent_coef, batch.cut_steps, final_values, estimator.gamma)
    parts = processes.gather((rewards, values, batch.episode_lengths))
    all_rewards, all_values, episode_lengths = (_join(arrays) for arrays in zip(*parts, strict=True))
    start = sum(len(part[0]) for part in parts[: processes.rank])
    partition = Partition(episode_lengths, start, start + len(rewards))
    return Advantages(estimator(all_rewards, all_values, episode_lengths), all_values, partition)


def _join(arrays: tuple[Any, ...]) -> Any:
    return arrays[0] if len(arrays) == 1 or arrays[0] is None else np.concatenate(arrays)
