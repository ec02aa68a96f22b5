"""SB3's actor-critic policies, which can be built without a critic when no learned baseline is wanted."""

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_reinforce.policies.inspection import check_features_extractor, is_recurrent
from sb3_reinforce.policies.masked_distribution import (
    MASK_KEY,
    action_dims_of,
    split_mask_for,
    take_action_masks,
    to_boolean_masks,
    use_action_masks,
)


class ZeroValue(nn.Module):
    """The value of every state without a critic: 0, without parameters."""

    def forward(self, latent_vf: th.Tensor) -> th.Tensor:
        """Return zeros, shape ``(batch, 1)``."""
        # The shape stays dynamic in an export, where len() would become a constant
        return latent_vf.new_zeros((latent_vf.shape[0], 1))


def remove_critic(policy: ActorCriticPolicy) -> None:
    """
    Remove every parameter that only the value function uses from a policy and its optimizer.

    ``predict_values`` then returns zeros, and ``forward`` and ``evaluate_actions`` still work.
    """
    policy.value_net = ZeroValue()  # type: ignore[assignment]
    policy.mlp_extractor.value_net = nn.Sequential()
    if is_recurrent(policy):
        policy.lstm_critic, policy.critic = None, nn.Sequential()  # type: ignore[assignment]
    policy.share_features_extractor = True
    policy.vf_features_extractor = policy.pi_features_extractor
    # A policy's own optimizer may have several groups of parameters
    rest = {id(parameter) for parameter in policy.parameters()}
    groups = policy.optimizer.param_groups
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in rest]
    groups[:] = [group for group in groups if group["params"]]


class OptionalCriticMixin(ActorCriticPolicy):
    """
    Adds ``use_critic`` and action masks to an SB3 actor-critic policy; use it as the first base class of a custom policy.

    Every method takes the environment's observations, with the mask under ``action_mask``; the network sees them without the
    mask. Methods that act also take masks as ``action_masks``, instead of the masks in the observations: booleans, or 0 and 1,
    in the order of sb3-contrib, shape ``(n_observations, n_options)``.

    SB3's default optimizer (Adam with an epsilon of 1e-5) is replaced by PyTorch's fused version of it, whose step takes a
    third of the time on small networks.

    :param use_critic: Whether to build a critic. Without it, the policy has only an actor, and its values are 0.
    """

    def __init__(self, *args: Any, use_critic: bool = True, **kwargs: Any) -> None:
        self.use_critic = use_critic
        if kwargs.get("optimizer_class", th.optim.Adam) is th.optim.Adam and kwargs.get("optimizer_kwargs") is None:
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        super().__init__(*args, **kwargs)
        if not use_critic:
            remove_critic(self)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3's classes do not have this argument, and can load a policy with a critic
        critic_choice = {} if self.use_critic else {"use_critic": False}
        return {**super()._get_constructor_parameters(), **critic_choice}

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """As in SB3. Raises ``ValueError``, which names the policy to use, if SB3's cannot read the observations."""
        check_features_extractor(type(self).__name__, self.features_extractor_class, self.observation_space)
        return super().make_features_extractor()

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """As in SB3, with the mask left in the observation. Raises ``ValueError`` for a mask of the wrong shape or type."""
        observation, masks = split_mask_for(self, observation)
        tensors, is_batch = super().obs_to_tensor(observation)
        if masks is not None:
            rows = masks if is_batch else [masks]
            booleans = to_boolean_masks(rows, sum(action_dims_of(self.action_space)), len(rows), "of observation {}")
            assert isinstance(tensors, dict)
            tensors = {**tensors, MASK_KEY: th.as_tensor(booleans, device=self.device)}
        return tensors, is_batch

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> Any:
        """
        Choose valid actions, as in SB3.

        :param observation: One or several observations.
        :param state: Hidden states, for recurrent policies.
        :param episode_start: Where episodes start, for recurrent policies.
        :param deterministic: Whether to choose the most probable action.
        :param action_masks: Shape ``(n_options,)`` for one observation, ``(n_observations, n_options)`` for several.
        :return: The actions and the next hidden states.
        :raises ValueError: If a mask has the wrong shape or type, or allows no action.
        """
        observation, masks = take_action_masks(self, observation, action_masks)
        with use_action_masks(self, masks):
            return super().predict(observation, state, episode_start, deterministic)

    def get_distribution(self, obs: Any, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """See ``ActorCriticPolicy.get_distribution``: the distribution over the valid actions."""
        obs, masks = take_action_masks(self, obs, action_masks)
        with use_action_masks(self, masks):
            return super().get_distribution(obs, *args, **kwargs)

    def forward(self, obs: Any, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """See ``ActorCriticPolicy.forward``: valid actions, and their log-probabilities."""
        obs, masks = take_action_masks(self, obs, action_masks)
        with use_action_masks(self, masks):
            return super().forward(obs, *args, **kwargs)

    def evaluate_actions(self, obs: Any, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """See ``ActorCriticPolicy.evaluate_actions``: log-probabilities and entropy over the valid actions."""
        obs, masks = take_action_masks(self, obs, action_masks)
        with use_action_masks(self, masks):
            return super().evaluate_actions(obs, *args, **kwargs)

    def predict_values(self, obs: Any, *args: Any, **kwargs: Any) -> Any:
        """See ``ActorCriticPolicy.predict_values``: a mask changes no value."""
        return super().predict_values(split_mask_for(self, obs)[0], *args, **kwargs)


class MlpPolicy(OptionalCriticMixin):
    """SB3's ``ActorCriticPolicy`` with the additional argument ``use_critic``."""


class CnnPolicy(OptionalCriticMixin, ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy`` with the additional argument ``use_critic``."""


class MultiInputPolicy(OptionalCriticMixin, MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy`` with the additional argument ``use_critic``."""
