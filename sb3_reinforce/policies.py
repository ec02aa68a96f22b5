"""SB3's actor-critic policies, which can be built without a critic when no learned baseline is wanted."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BaseModel,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sb3_reinforce.masking import MASK_KEY, as_booleans, choices_of, masked, split_masks, take_masks

#: Whose methods are called as they call each other.
LIBRARIES = ("stable_baselines3.", "sb3_contrib.", "sb3_reinforce.", "torch.")
#: What makes the distribution of a policy.
ACTING_METHODS = ("get_distribution", "_get_action_dist_from_latent")
#: Policies with memory, which need sb3-contrib.
RECURRENT_POLICIES = ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy")


class ZeroValue(nn.Module):
    """The value of every state when there is no critic: 0, without a parameter."""

    def forward(self, latent_vf: th.Tensor) -> th.Tensor:
        """
        Return zeros.

        :param latent_vf: Shape ``(batch, n_features)``.
        :return: Shape ``(batch, 1)``.
        """
        # From the shape, which an export keeps open, and not len(), which becomes a constant
        return latent_vf.new_zeros((latent_vf.shape[0], 1))


def has_memory(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether a policy acts on what it saw before, with an LSTM as in sb3-contrib.

    :param policy: Any actor-critic policy.
    :return: Whether it does.
    """
    return hasattr(policy, "lstm_actor")


def uncompiled(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    Find the policy that ``torch.compile`` has wrapped, whose class says which methods it overrides.

    :param policy: Any policy, compiled or not.
    :return: The policy itself.
    """
    own: ActorCriticPolicy = getattr(policy, "_orig_mod", policy)
    return own


def check_policy_class(policy_class: Any) -> None:
    """
    Refuse what is no actor-critic policy.

    :param policy_class: That the user chose.
    :raises ValueError: If it is none; says what to use instead of sb3-contrib's maskable ones.
    """
    if isinstance(policy_class, type) and issubclass(policy_class, ActorCriticPolicy):
        return
    name = getattr(policy_class, "__name__", repr(policy_class))
    if name.startswith("Maskable"):
        own = next((kind for kind in ("Cnn", "MultiInput") if kind in name), "Mlp")
        raise ValueError(f"policy: {name} is for MaskablePPO; use {own}Policy with use_masking=True")
    raise ValueError(f"policy must be a name such as 'MlpPolicy' or a class derived from SB3's ActorCriticPolicy, not {name}")


def check_features_extractor(policy_name: str, extractor_class: type, observation_space: spaces.Space[Any]) -> None:
    """
    Refuse SB3's feature extractors where they cannot read the observations.

    :param policy_name: Of its class.
    :param extractor_class: Of its features extractor.
    :param observation_space: Without the action mask.
    :raises ValueError: If they do not fit; names the policy that does.
    """
    lstm = "Lstm" if "Lstm" in policy_name or "Recurrent" in policy_name else ""
    is_dict = isinstance(observation_space, spaces.Dict)
    if is_dict and extractor_class in (FlattenExtractor, NatureCNN):
        raise ValueError(f"{policy_name} cannot read the Dict observations of this environment: use MultiInput{lstm}Policy")
    if not is_dict and extractor_class is CombinedExtractor:
        in_one_line = " ".join(str(observation_space).split())
        raise ValueError(
            f"{policy_name} is for Dict observations, but the observation space is {in_one_line}: use Mlp{lstm}Policy, or "
            f"Cnn{lstm}Policy for images"
        )


def is_own(module: nn.Module, method: str) -> bool:
    """
    Tell whether a policy or a network has a method that is not of SB3, sb3-contrib or this package.

    :param module: A policy that is not compiled, or a network.
    :param method: Its name.
    :return: Whether the object has it, or any of its classes, also below a method of this package that calls it.
    """
    definitions = [(cls, vars(cls)[method]) for cls in type(module).__mro__ if method in vars(cls)]
    modules = [str(getattr(part, "__module__", "")) for definition in definitions for part in definition]
    return method in vars(module) or not all(name.startswith(LIBRARIES) for name in modules)


def check_methods(policy: ActorCriticPolicy) -> None:
    """
    Refuse a policy that overrides what is not called while it acts and when it is differentiated.

    :param policy: Any actor-critic policy.
    :raises ValueError: Names the method, and what to override instead.
    """
    policy = uncompiled(policy)
    name, extractor = type(policy).__name__, policy.mlp_extractor
    not_called = ["evaluate_actions", "_predict"]
    if has_memory(policy):
        not_called.append("forward")
        for method in ("get_distribution", "predict_values", "_process_sequence"):
            if is_own(policy, method):
                raise ValueError(
                    f"{name} overrides {method}, which goes step by step, but whole episodes are read from their first step: "
                    "override _get_action_dist_from_latent instead, which both go through, or the networks"
                )
    for method in not_called:
        if is_own(policy, method) and not any(is_own(policy, acting) for acting in ACTING_METHODS):
            raise ValueError(
                f"{name} overrides {method}, but neither {' nor '.join(ACTING_METHODS)}, by which it acts here and in "
                "predict: what acts would not be what is differentiated. Override one of these"
            )
    if is_own(policy, "obs_to_tensor"):
        raise ValueError(
            f"{name} overrides obs_to_tensor, which predict calls and training does not: make it a features extractor, or a "
            "wrapper of the environment"
        )
    own_halves = [half for half in ("forward_actor", "forward_critic") if hasattr(extractor, half) and is_own(extractor, half)]
    if not own_halves and is_own(extractor, "forward"):
        raise ValueError(
            f"{name}: {type(extractor).__name__} overrides forward, but neither forward_actor nor forward_critic, by which a "
            "policy acts here and in predict: override these"
        )


def actor_features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """
    Compute what the actor's network is given, by the policy's own ``extract_features`` if it has one, as SB3's A2C does.

    :param policy: Any actor-critic policy.
    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
    :return: Shape ``(n_steps, n_features)``.
    """
    if is_own(uncompiled(policy), "extract_features"):
        features = policy.extract_features(observations)
        return features if policy.share_features_extractor else features[0]  # type: ignore[return-value]
    return BaseModel.extract_features(policy, observations, policy.pi_features_extractor)


def critic_features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """
    Compute what the critic's network is given. See ``actor_features``.

    :param policy: Any actor-critic policy.
    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
    :return: Shape ``(n_steps, n_features)``.
    """
    if is_own(uncompiled(policy), "extract_features"):
        features = policy.extract_features(observations)
        return features if policy.share_features_extractor else features[1]  # type: ignore[return-value]
    return BaseModel.extract_features(policy, observations, policy.vf_features_extractor)


def distribution_of(policy: ActorCriticPolicy, observations: PyTorchObs) -> Distribution:
    """
    Compute the distribution of actions by which a policy without memory acts.

    :param policy: Any actor-critic policy without memory.
    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
    :return: SB3's distribution. The policy may return the same object the next time.
    """
    own = uncompiled(policy)
    if is_own(own, "get_distribution") or not is_own(own, "extract_features"):
        return policy.get_distribution(observations)
    latent = policy.mlp_extractor.forward_actor(actor_features(policy, observations))
    return policy._get_action_dist_from_latent(latent)


def remove_critic(policy: ActorCriticPolicy) -> None:
    """
    Take every parameter that only the value function uses out of a policy and out of its optimizer.

    ``predict_values`` then returns zeros, and ``forward`` and ``evaluate_actions`` go on working.

    :param policy: Changed in place.
    """
    policy.value_net = ZeroValue()  # type: ignore[assignment]
    policy.mlp_extractor.value_net = nn.Sequential()
    if has_memory(policy):
        policy.lstm_critic, policy.critic = None, nn.Sequential()  # type: ignore[assignment]
    policy.share_features_extractor = True
    policy.vf_features_extractor = policy.pi_features_extractor
    learning_rate = policy.optimizer.param_groups[0]["lr"]
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
    # No other device is used, and to ask a GPU for its generator is to start it
    devices = [policy.device] if policy.device.type == "cuda" else []
    with th.random.fork_rng(devices), th.no_grad():
        policy.reset_noise()


class OptionalCriticMixin(ActorCriticPolicy):
    """
    Adds ``use_critic`` and action masks to an SB3 actor-critic policy; mix it in first to give a custom policy the same.

    Every method takes observations as the environment gives them, with the mask under ``action_mask``, and the network sees
    them without. Methods that act also take masks as ``action_masks``, which rule over those in the observation: booleans,
    or 0 and 1, in the layout of sb3-contrib, shape ``(n_observations, n_options)``.

    SB3's default optimizer (Adam with an epsilon of 1e-5) becomes PyTorch's fused version of the same, whose step costs a
    third on small networks.

    :param use_critic: Without it the policy has an actor only, and its values are 0.
    """

    def __init__(self, *args: Any, use_critic: bool = True, **kwargs: Any) -> None:
        self.use_critic = use_critic
        if kwargs.get("optimizer_class", th.optim.Adam) is th.optim.Adam and kwargs.get("optimizer_kwargs") is None:
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        super().__init__(*args, **kwargs)
        if not use_critic:
            remove_critic(self)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3's own classes do not know it, and can load what has a critic
        critic_choice = {} if self.use_critic else {"use_critic": False}
        return {**super()._get_constructor_parameters(), **critic_choice}

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """
        Make the features extractor, as in SB3.

        :return: The features extractor.
        :raises ValueError: If SB3's cannot read the observations; names the policy that can.
        """
        check_features_extractor(type(self).__name__, self.features_extractor_class, self.observation_space)
        return super().make_features_extractor()

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """
        Convert an observation to tensors, as in SB3; its mask stays with it.

        :param observation: One or several observations.
        :return: The tensors, and whether there were several.
        :raises ValueError: If a mask has the wrong shape or type.
        """
        observation, masks = split_masks(self, observation)
        tensors, is_batch = super().obs_to_tensor(observation)
        if masks is not None:
            rows = masks if is_batch else [masks]
            booleans = as_booleans(rows, sum(choices_of(self.action_space)), len(rows), "of observation {}")
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
        Choose actions, as in SB3, among those that are allowed.

        :param observation: One or several observations.
        :param state: Hidden states, for recurrent policies.
        :param episode_start: Where episodes start, for recurrent policies.
        :param deterministic: Whether to choose the most probable action.
        :param action_masks: Shape ``(n_options,)`` for one observation, ``(n_observations, n_options)`` for several.
        :return: The actions and the next hidden states.
        :raises ValueError: If a mask has the wrong shape or type, or allows no action.
        """
        observation, masks = take_masks(self, observation, action_masks)
        with masked(self, masks):
            return super().predict(observation, state, episode_start, deterministic)

    def get_distribution(self, obs: Any, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """See ``ActorCriticPolicy.get_distribution``: the distribution over the actions that are allowed."""
        obs, masks = take_masks(self, obs, action_masks)
        with masked(self, masks):
            return super().get_distribution(obs, *args, **kwargs)

    def forward(self, obs: Any, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """See ``ActorCriticPolicy.forward``: actions that are allowed, and their log-probabilities."""
        obs, masks = take_masks(self, obs, action_masks)
        with masked(self, masks):
            return super().forward(obs, *args, **kwargs)

    def evaluate_actions(self, obs: Any, *args: Any, action_masks: Any = None, **kwargs: Any) -> Any:
        """See ``ActorCriticPolicy.evaluate_actions``: log-probabilities and entropy of the distribution of the allowed."""
        obs, masks = take_masks(self, obs, action_masks)
        with masked(self, masks):
            return super().evaluate_actions(obs, *args, **kwargs)

    def predict_values(self, obs: Any, *args: Any, **kwargs: Any) -> Any:
        """See ``ActorCriticPolicy.predict_values``: a mask changes no value."""
        return super().predict_values(split_masks(self, obs)[0], *args, **kwargs)


class MlpPolicy(OptionalCriticMixin):
    """SB3's ``ActorCriticPolicy`` with the additional argument ``use_critic``."""


class CnnPolicy(OptionalCriticMixin, ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy`` with the additional argument ``use_critic``."""


class MultiInputPolicy(OptionalCriticMixin, MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy`` with the additional argument ``use_critic``."""


def import_recurrent_policy(name: str) -> type[ActorCriticPolicy]:
    """
    Import a policy with memory.

    :param name: One of ``RECURRENT_POLICIES``.
    :return: The class.
    :raises ModuleNotFoundError: If sb3-contrib is not installed; says what to install.
    """
    try:
        from sb3_reinforce import recurrent
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "sb3_contrib":
            raise
        raise ModuleNotFoundError(
            f'{name} needs sb3-contrib: pip install "sb3-reinforce[lstm]"', name="sb3_contrib"
        ) from error
    policy_class: type[ActorCriticPolicy] = getattr(recurrent, name)
    return policy_class
