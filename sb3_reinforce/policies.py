"""SB3's actor-critic policies, which can be built without a critic when no learned baseline is wanted."""

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ZeroValue(nn.Module):
    """The value of every state when there is no critic: 0, without a parameter."""

    def forward(self, latent_vf: th.Tensor) -> th.Tensor:
        """
        Return zeros.

        :param latent_vf: Shape ``(batch, n_features)``.
        :return: Shape ``(batch, 1)``.
        """
        return latent_vf.new_zeros((len(latent_vf), 1))


def remove_critic(policy: ActorCriticPolicy, learning_rate: float) -> None:
    """
    Take every parameter that only the value function uses out of a policy and out of its optimizer.

    ``predict_values`` then returns zeros, and ``forward`` and ``evaluate_actions`` go on working.

    :param policy: Changed in place.
    :param learning_rate: Of the new optimizer.
    """
    policy.value_net = ZeroValue()  # type: ignore[assignment]
    policy.mlp_extractor.value_net = nn.Sequential()
    policy.share_features_extractor = True
    policy.vf_features_extractor = policy.pi_features_extractor
    policy.optimizer = policy.optimizer_class(policy.parameters(), lr=learning_rate, **policy.optimizer_kwargs)  # type: ignore[call-arg]


def averaged_model(policy: ActorCriticPolicy, decay: float) -> AveragedModel:
    """
    Start an exponential moving average of a policy's parameters (Polyak & Juditsky 1992; Ruppert 1988).

    :param policy: Copied. The first update of the average takes its parameters as they are.
    :param decay: What the average keeps of itself at an update, in (0, 1): it spans about ``1 / (1 - decay)`` updates.
    :return: PyTorch's averaged model, whose ``module`` is a policy of its own.
    """
    if policy.use_sde:
        reset_noise_apart(policy)  # PyTorch cannot copy what has a history
    return AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


def reset_noise_apart(policy: ActorCriticPolicy) -> None:
    """
    Draw new exploration matrices for gSDE, without moving PyTorch's generator.

    :param policy: Changed in place.
    """
    with th.random.fork_rng(), th.no_grad():
        policy.reset_noise()


class OptionalCriticMixin:
    """
    Adds ``use_critic`` to an SB3 actor-critic policy; mix it in first to give a custom policy the same choice.

    SB3's default optimizer (Adam with an epsilon of 1e-5) becomes PyTorch's fused version of the same, whose step costs a
    third on small networks.

    :param use_critic: Without it the policy has an actor only, and its values are 0.
    """

    def __init__(self, *args: Any, use_critic: bool = True, **kwargs: Any) -> None:
        self.use_critic = use_critic
        if kwargs.get("optimizer_class", th.optim.Adam) is th.optim.Adam and kwargs.get("optimizer_kwargs") is None:
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        if not self.use_critic:
            assert isinstance(self, ActorCriticPolicy)
            remove_critic(self, lr_schedule(1))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "use_critic": self.use_critic}  # type: ignore[misc]


class MlpPolicy(OptionalCriticMixin, ActorCriticPolicy):
    """SB3's ``ActorCriticPolicy`` with the additional argument ``use_critic``."""


class CnnPolicy(OptionalCriticMixin, ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy`` with the additional argument ``use_critic``."""


class MultiInputPolicy(OptionalCriticMixin, MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy`` with the additional argument ``use_critic``."""
