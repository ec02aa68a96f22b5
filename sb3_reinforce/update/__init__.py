"""From a batch of whole episodes to new parameters."""

from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.policies.inspection import check_methods, is_recurrent
from sb3_reinforce.update.evaluator import PolicyEvaluator


def make_evaluator(policy: ActorCriticPolicy, micro_batch_size: int | None = None) -> PolicyEvaluator:
    """
    Choose the evaluator that a policy needs.

    :param policy: In evaluation mode.
    :param micro_batch_size: Steps that are evaluated at once; None for all. See ``PolicyEvaluator``.
    :return: One that evaluates whole episodes if the policy is recurrent.
    :raises ValueError: If the policy overrides what is not called while it acts and when it is differentiated.
    """
    check_methods(policy)
    if is_recurrent(policy):
        # sb3-contrib need not be installed
        from sb3_reinforce.update.recurrent_evaluator import RecurrentPolicyEvaluator

        return RecurrentPolicyEvaluator(policy, micro_batch_size)
    return PolicyEvaluator(policy, micro_batch_size)
