"""Policies by name; recurrent ones are imported only when they are asked for."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import (
    ActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN

#: Policies with memory, which need sb3-contrib.
RECURRENT_POLICIES = ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy")


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


def import_recurrent_policy(name: str) -> type[ActorCriticPolicy]:
    """
    Import a policy with memory.

    :param name: One of ``RECURRENT_POLICIES``.
    :return: The class.
    :raises ModuleNotFoundError: If sb3-contrib is not installed; says what to install.
    """
    try:
        from sb3_reinforce.policies import recurrent
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "sb3_contrib":
            raise
        raise ModuleNotFoundError(
            f'{name} needs sb3-contrib: pip install "sb3-reinforce[lstm]"', name="sb3_contrib"
        ) from error
    policy_class: type[ActorCriticPolicy] = getattr(recurrent, name)
    return policy_class
