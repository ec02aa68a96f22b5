"""The advantages of a rollout: the policy's outputs, and what the estimator computes from them."""

from typing import NamedTuple

from sb3_reinforce.distributed.partition import Partition
from sb3_reinforce.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sb3_reinforce.functional.baselines import Baseline, Episodes, compute_baseline, join_episodes
from sb3_reinforce.functional.estimator import Estimator, PolicyGradientTargets
from sb3_reinforce.rollout.batch import EpisodeBatch, Evaluator, PolicyOutputs, describe_episodes
from sb3_reinforce.update.evaluator import PolicyEvaluator


def evaluate_rollout(
    evaluator: PolicyEvaluator, batch: EpisodeBatch, baseline: Baseline, critic_is_fitted: bool, needs_log_probs: bool
) -> PolicyOutputs:
    """
    Compute what the estimator and its baseline need from the policy that acted.

    If the critic is fitted, episodes that were cut are bootstrapped with the value of their final observation, as in SB3. The
    values of an unfitted critic would be noise. Raises ``ValueError``, which names the environment and the step, if a
    log-probability is not finite.
    """
    values = evaluator.baseline_values(batch) if baseline.needs_critic else None
    goes_on = baseline.needs_critic and critic_is_fitted and batch.final_observations is not None
    final_values = evaluator.final_values(batch) if goes_on else None
    log_probs = evaluator.log_probs(batch) if needs_log_probs else None
    distribution = evaluator.distributions(batch) if baseline.needs_distribution else None
    return PolicyOutputs(values, final_values, log_probs, distribution)


class Advantages(NamedTuple):
    """
    The advantages of the episodes of all processes, computed together as a single process with all episodes would.

    :param targets: Targets of each step of all processes.
    :param episodes: The episodes that they were computed from.
    :param partition: Position of this process's episodes among them.
    """

    targets: PolicyGradientTargets
    episodes: Episodes
    partition: Partition

    @property
    def local_targets(self) -> PolicyGradientTargets:
        """The targets of the steps of this process."""
        rewards_to_go, advantages, score_weights, n_averaged = self.targets
        local = self.partition.local_numbers
        return PolicyGradientTargets(local(rewards_to_go), local(advantages), local(score_weights), n_averaged)


def compute_advantages(
    batch: EpisodeBatch,
    estimator: Estimator,
    evaluator: Evaluator,
    ent_coef: float = 0.0,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Advantages:
    """
    Compute returns, baseline and advantages.

    :param batch: The episodes of this process, with the policy's outputs.
    :param estimator: Computes the weight of each step's score from the episodes.
    :param evaluator: Evaluator of the policy that acted.
    :param ent_coef: Coefficient of ``-log_prob`` in the rewards (Levine 2018, eq. 9); 0 for no entropy in the return.
    :param processes: The processes that train together.
    :return: The advantages.
    :raises ValueError: If the baseline returns numbers that cannot be subtracted.
    :raises ProcessError: If another process has failed, or is gone.
    """
    parts = processes.gather(describe_episodes(batch, estimator, ent_coef, evaluator))
    episodes = estimator.add_returns(join_episodes(parts))
    subtracted = compute_baseline(estimator.baseline, episodes)
    if not estimator.baseline.is_deterministic:
        subtracted = processes.broadcast(subtracted)
    start = sum(len(part.rewards) for part in parts[: processes.rank])
    partition = Partition(episodes.lengths, start, start + len(batch.rewards))
    return Advantages(estimator(episodes, subtracted), episodes, partition)
