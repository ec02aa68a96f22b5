"""What kind of policy one is: recurrent, compiled, with methods of its own, with one of SB3's distributions."""

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
from stable_baselines3.common.policies import (
    ActorCriticPolicy,
    BaseModel,
)
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

#: Whose methods are called as they call each other.
LIBRARIES = ("stable_baselines3.", "sb3_contrib.", "sb3_reinforce.", "torch.")

#: What makes the distribution of a policy.
ACTING_METHODS = ("get_distribution", "_get_action_dist_from_latent")


def is_recurrent(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether a policy acts on what it saw before, with an LSTM as in sb3-contrib.

    :param policy: Any actor-critic policy.
    :return: Whether it does.
    """
    return hasattr(policy, "lstm_actor")


def unwrap_compiled(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    Find the policy that ``torch.compile`` has wrapped, whose class says which methods it overrides.

    :param policy: Any policy, compiled or not.
    :return: The policy itself.
    """
    own: ActorCriticPolicy = getattr(policy, "_orig_mod", policy)
    return own


def overrides(module: nn.Module, method: str) -> bool:
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
    policy = unwrap_compiled(policy)
    name, extractor = type(policy).__name__, policy.mlp_extractor
    not_called = ["evaluate_actions", "_predict"]
    if is_recurrent(policy):
        not_called.append("forward")
        for method in ("get_distribution", "predict_values", "_process_sequence"):
            if overrides(policy, method):
                raise ValueError(
                    f"{name} overrides {method}, which goes step by step, but whole episodes are read from their first step: "
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
    own_halves = [
        half for half in ("forward_actor", "forward_critic") if hasattr(extractor, half) and overrides(extractor, half)
    ]
    if not own_halves and overrides(extractor, "forward"):
        raise ValueError(
            f"{name}: {type(extractor).__name__} overrides forward, but neither forward_actor nor forward_critic, by which a "
            "policy acts here and in predict: override these"
        )


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


def explain_overridden_features(policy: ActorCriticPolicy) -> str | None:
    """
    Say that a policy would predict with other features than it trains with.

    :param policy: Any actor-critic policy.
    :return: A warning; None if all is well.
    """
    if not overrides(policy, "extract_features") or overrides(policy, "get_distribution"):
        return None
    return (
        f"{type(policy).__name__} overrides extract_features, which training calls, and SB3's predict does not: make it a "
        "features extractor (policy_kwargs: features_extractor_class), or override get_distribution and predict_values too"
    )


def actor_features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """
    Compute what the actor's network is given, by the policy's own ``extract_features`` if it has one, as SB3's A2C does.

    :param policy: Any actor-critic policy.
    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
    :return: Shape ``(n_steps, n_features)``.
    """
    if overrides(unwrap_compiled(policy), "extract_features"):
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
    if overrides(unwrap_compiled(policy), "extract_features"):
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
    own = unwrap_compiled(policy)
    if overrides(own, "get_distribution") or not overrides(own, "extract_features"):
        return policy.get_distribution(observations)
    latent = policy.mlp_extractor.forward_actor(actor_features(policy, observations))
    return policy._get_action_dist_from_latent(latent)


def has_standard_distribution(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether a policy's distribution is one of SB3's, with the parameters that ``action_net`` computes.

    :param policy: Any actor-critic policy.
    :return: False for gSDE, and as soon as a method on the way to the distribution is overridden.
    """
    return (
        type(policy.action_dist)
        in (CategoricalDistribution, DiagGaussianDistribution, MultiCategoricalDistribution, BernoulliDistribution)
        and type(policy.action_net) is nn.Linear
        and not any(overrides(policy, name) for name in ACTING_METHODS)
    )
