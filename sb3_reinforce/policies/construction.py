"""Making a policy from the arguments of an algorithm. Recurrent policies are imported only on request."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_reinforce.policies.actor_critic import OptionalCriticMixin, remove_critic
from sb3_reinforce.policies.inspection import check_features_extractor
from sb3_reinforce.policies.masked_distribution import space_without_mask

#: Names of the recurrent policies, which need sb3-contrib.
RECURRENT_POLICIES = ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy")


def check_policy_class(policy_class: Any) -> None:
    """Refuse a class that is not an actor-critic policy, and name the replacement of sb3-contrib's maskable policies."""
    if isinstance(policy_class, type) and issubclass(policy_class, ActorCriticPolicy):
        return
    name = getattr(policy_class, "__name__", repr(policy_class))
    if name.startswith("Maskable"):
        kind = next((kind for kind in ("Cnn", "MultiInput") if kind in name), "Mlp")
        raise ValueError(f"policy: {name} is for MaskablePPO; use {kind}Policy with use_masking=True")
    raise ValueError(f"policy must be a name such as 'MlpPolicy' or a class derived from SB3's ActorCriticPolicy, not {name}")


def import_recurrent_policy(name: str) -> type[ActorCriticPolicy]:
    """Import one of ``RECURRENT_POLICIES``; without sb3-contrib, the error says what to install."""
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


def make_policy(
    policy_class: type[ActorCriticPolicy],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    lr_schedule: Schedule,
    use_masking: bool,
    use_sde: bool,
    has_critic: bool,
    policy_kwargs: dict[str, Any],
) -> ActorCriticPolicy:
    """
    Build a policy on the CPU, without a critic if no value is learned. ``policy_kwargs`` are not changed.

    Raises ``ValueError`` if ``policy_kwargs`` contradict ``has_critic``, or the policy cannot process the observations.
    """
    if use_masking:
        observation_space = space_without_mask(observation_space, action_space)
    takes_use_critic = issubclass(policy_class, OptionalCriticMixin)
    if takes_use_critic and policy_kwargs.get("use_critic", has_critic) != has_critic:
        raise ValueError(
            f"policy_kwargs: use_critic={not has_critic} contradicts baseline, which decides alone whether there is a critic"
        )
    # Policies may change the arguments that they are given, and the user's arguments are saved with the model
    kwargs = {**({"use_critic": has_critic} if takes_use_critic else {}), **copy_containers(policy_kwargs)}
    policy = policy_class(observation_space, action_space, lr_schedule, use_sde=use_sde, **kwargs)
    check_features_extractor(policy_class.__name__, type(policy.features_extractor), policy.observation_space)
    if not has_critic and not takes_use_critic:
        remove_critic(policy)
    return policy


def copy_containers(value: Any) -> Any:
    """Copy dicts and lists at any depth, but not what they hold: a network in ``policy_kwargs`` is not copied."""
    if isinstance(value, dict):
        return {key: copy_containers(item) for key, item in value.items()}
    return [copy_containers(item) for item in value] if isinstance(value, list) else value
