"""From the environment to a batch of whole episodes."""

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.policies.inspection import (
    ACTING_METHODS,
    has_standard_distribution,
    is_recurrent,
    overrides,
    unwrap_compiled,
)
from sb3_reinforce.rollout.samplers import (
    ActionSampler,
    DistributionSampler,
    ForwardSampler,
    NumpyMlpActor,
    ParameterSampler,
    TorchActor,
    is_standard_mlp,
)


def make_action_sampler(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> ActionSampler:
    """
    Choose the fastest exact sampler for a policy, with all environments at the start of an episode.

    For a standard MLP or LSTM, NumPy computes the actor and draws the actions. For any other features extractor or network
    with one of SB3's distributions, PyTorch computes the actor and NumPy draws. Everything else (gSDE, overridden methods) is
    drawn by the policy's distribution object, from PyTorch's generator instead of ``rng``.
    """
    policy = unwrap_compiled(policy)
    if is_recurrent(policy):
        # sb3-contrib need not be installed
        from sb3_reinforce.rollout.recurrent_samplers import make_recurrent_sampler

        return make_recurrent_sampler(policy, n_envs, rng)
    if overrides(policy, "forward") and not any(overrides(policy, name) for name in ACTING_METHODS):
        return ForwardSampler(policy)
    if not has_standard_distribution(policy):
        return DistributionSampler(policy)
    actor = NumpyMlpActor(policy, n_envs) if is_standard_mlp(policy) else TorchActor(policy)
    return ParameterSampler(policy, actor, n_envs, rng)
