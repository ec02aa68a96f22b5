"""The update: from a batch of whole episodes to new parameters."""

from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.policies.inspection import check_methods, is_recurrent
from sb3_reinforce.update.evaluator import PolicyEvaluator


def make_evaluator(policy: ActorCriticPolicy, micro_batch_size: int | None = None) -> PolicyEvaluator:
    """
    Choose the evaluator for a policy in evaluation mode: a recurrent policy is evaluated on whole episodes.

    Raises ``ValueError`` if the policy overrides a method that is not called while acting or in the update.
    """
    check_methods(policy)
    if is_recurrent(policy):
        # sb3-contrib need not be installed
        from sb3_reinforce.update.recurrent_evaluator import RecurrentPolicyEvaluator

        return RecurrentPolicyEvaluator(policy, micro_batch_size)
    return PolicyEvaluator(policy, micro_batch_size)
