"""The moving average of a policy over updates."""

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_averaged_policy(policy: ActorCriticPolicy, decay: float) -> AveragedModel:
    """
    Start an exponential moving average of a policy's parameters (Polyak & Juditsky 1992; Ruppert 1988).

    It spans about ``1 / (1 - decay)`` updates; the first update takes the parameters as they are. The average's ``module`` is
    a copy of the policy.
    """
    if policy.use_sde:
        reset_noise_with_own_generator(policy)  # PyTorch cannot copy tensors with a history
    return AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


def reset_noise_with_own_generator(policy: ActorCriticPolicy) -> None:
    """Sample new exploration matrices for gSDE, without advancing PyTorch's generator."""
    # No other device is used, and asking a GPU for its generator would initialise it
    devices = [policy.device] if policy.device.type == "cuda" else []
    with th.random.fork_rng(devices), th.no_grad():
        policy.reset_noise()
