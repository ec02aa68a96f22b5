"""Properties of a policy: whether it is recurrent, compiled, overrides methods, or has one of SB3's distributions."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

#: Libraries whose methods are known to call each other.
LIBRARIES = ("stable_baselines3.", "sb3_contrib.", "sb3_reinforce.", "torch.")

#: Methods that make a policy's distribution.
ACTING_METHODS = ("get_distribution", "_get_action_dist_from_latent")


def is_recurrent(policy: ActorCriticPolicy) -> bool:
    """Whether a policy has the hidden state of an LSTM, as in sb3-contrib."""
    return hasattr(policy, "lstm_actor")


def unwrap_compiled(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """The policy inside the wrapper of ``torch.compile``, whose class shows which methods it overrides."""
    unwrapped: ActorCriticPolicy = getattr(policy, "_orig_mod", policy)
    return unwrapped


def overrides(module: nn.Module, method: str) -> bool:
    """
    Whether an object, or one of its classes, has a method that is not from SB3, sb3-contrib or this package.

    A method of this package that calls an overriding one does not hide it. A compiled policy must be unwrapped first.
    """
    definitions = [(cls, vars(cls)[method]) for cls in type(module).__mro__ if method in vars(cls)]
    modules = [str(getattr(part, "__module__", "")) for definition in definitions for part in definition]
    return method in vars(module) or not all(name.startswith(LIBRARIES) for name in modules)


def check_methods(policy: ActorCriticPolicy) -> None:
    """Refuse a policy that overrides a method that is not called while acting or in the update; say what to override."""
    policy = unwrap_compiled(policy)
    name, extractor = type(policy).__name__, policy.mlp_extractor
    not_called = ["evaluate_actions", "_predict"]
    if is_recurrent(policy):
        not_called.append("forward")
        for method in ("get_distribution", "predict_values", "_process_sequence"):
            if overrides(policy, method):
                raise ValueError(
                    f"{name} overrides {method}, which goes step by step, but an update evaluates whole episodes: "
                    "override _get_action_dist_from_latent instead, which both go through, or the networks"
                )
    for method in not_called:
        if overrides(policy, method) and not any(overrides(policy, acting) for acting in ACTING_METHODS):
            raise ValueError(
                f"{name} overrides {method}, but neither {' nor '.join(ACTING_METHODS)}, by which it acts here and in "
                "predict: what acts would not be what is differentiated. Override one of these"
            )
    if overrides(policy, "obs_to_tensor"):
        raise ValueError(
            f"{name} overrides obs_to_tensor, which predict calls and training does not: make it a features extractor, or a "
            "wrapper of the environment"
        )
    halves = [name for name in ("forward_actor", "forward_critic") if hasattr(extractor, name)]
    if overrides(extractor, "forward") and not any(overrides(extractor, half) for half in halves):
        raise ValueError(
            f"{name}: {type(extractor).__name__} overrides forward, but neither forward_actor nor forward_critic, by which a "
            "policy acts here and in predict: override these"
        )


def check_features_extractor(policy_name: str, extractor_class: type, observation_space: spaces.Space[Any]) -> None:
    """Refuse SB3's feature extractors where they cannot process the observations, and name the policy that can."""
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


def explain_overridden_features(policy: ActorCriticPolicy) -> str | None:
    """Return a warning if a policy would predict with different features than it trains with, or None."""
    if not overrides(policy, "extract_features") or overrides(policy, "get_distribution"):
        return None
    return (
        f"{type(policy).__name__} overrides extract_features, which training calls, and SB3's predict does not: make it a "
        "features extractor (policy_kwargs: features_extractor_class), or override get_distribution and predict_values too"
    )


def actor_features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """The input of the actor's network, from the policy's ``extract_features`` if it is overridden, as in SB3's A2C."""
    return _features(policy, observations, policy.pi_features_extractor, 0)


def critic_features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """The input of the critic's network, see ``actor_features``."""
    return _features(policy, observations, policy.vf_features_extractor, 1)


def shares_features(policy: ActorCriticPolicy) -> bool:
    """Whether actor and critic, if there is one, share a features extractor with layers, such as convolutions."""
    return (
        policy.share_features_extractor
        and all(next(module.parameters(), None) is not None for module in (policy.features_extractor, policy.value_net))
        and not any(overrides(policy, name) for name in ("extract_features", "predict_values", "forward"))
    )


def _features(policy: ActorCriticPolicy, observations: PyTorchObs, extractor: BaseFeaturesExtractor, index: int) -> th.Tensor:
    if overrides(unwrap_compiled(policy), "extract_features"):
        features = policy.extract_features(observations)
        return features if policy.share_features_extractor else features[index]  # type: ignore[return-value]
    return BaseModel.extract_features(policy, observations, extractor)


def distribution_of(policy: ActorCriticPolicy, observations: PyTorchObs) -> Distribution:
    """SB3's distribution for a policy that is not recurrent. The policy may return the same object at the next call."""
    unwrapped = unwrap_compiled(policy)
    if overrides(unwrapped, "get_distribution") or not overrides(unwrapped, "extract_features"):
        return policy.get_distribution(observations)
    latent = policy.mlp_extractor.forward_actor(actor_features(policy, observations))
    return policy._get_action_dist_from_latent(latent)


def has_standard_distribution(policy: ActorCriticPolicy) -> bool:
    """
    Whether the distribution is one of SB3's, with the parameters that ``action_net`` computes.

    False for gSDE, or if a method that makes the distribution is overridden.
    """
    return (
        type(policy.action_dist)
        in (CategoricalDistribution, DiagGaussianDistribution, MultiCategoricalDistribution, BernoulliDistribution)
        and type(policy.action_net) is nn.Linear
        and not any(overrides(policy, name) for name in ACTING_METHODS)
    )
