"""Action masks of a policy: the distribution over the valid actions (Huang & Ontañón 2022)."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

NumpyArray = np.ndarray[Any, np.dtype[Any]]

#: Key of the mask in a Dict observation and in an info, as in gymnasium, PettingZoo and Jumanji.
MASK_KEY = "action_mask"

#: Logit of an invalid option, where the largest valid one is 0: its probability is exactly 0 in float32 and float64, and none
#: of its derivatives overflows, or is NaN as with minus infinity.
INVALID_LOGIT = -1e4

NO_MASKS = (
    "predict() was given no action masks, and chooses among all actions: hand them over as action_masks, or wrap the "
    "environment in sb3_reinforce.rollout.action_masks.ActionMaskInObservation"
)


def action_dims_of(action_space: spaces.Space[Any]) -> list[int]:
    """
    Number of options of each component of an action. A mask is a row of entries, one for every option, as in sb3-contrib.

    Every entry of a MultiBinary action has the options 0 and 1. Raises ``ValueError`` for actions that cannot be masked.
    """
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim == 1:
        return [int(n) for n in action_space.nvec]
    if isinstance(action_space, spaces.MultiBinary) and isinstance(action_space.n, int):
        return [2] * action_space.n
    raise ValueError(
        f"use_masking=True needs a Discrete action space, or a flat MultiDiscrete or MultiBinary one, but it is {action_space}"
    )


def space_without_mask(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> spaces.Space[Any]:
    """
    The observation space of the network: without the key ``action_mask``, if there is one.

    Raises ``ValueError`` for actions that cannot be masked, a mask of the wrong size, and observations that are only a mask.
    """
    n_options = sum(action_dims_of(action_space))
    if not has_action_mask(observation_space):
        return observation_space
    assert isinstance(observation_space, spaces.Dict)
    others = {key: part for key, part in observation_space.spaces.items() if key != MASK_KEY}
    if not others:
        raise ValueError(f"The observation space has the key {MASK_KEY!r} only: there is nothing that the policy could see")
    shape = observation_space[MASK_KEY].shape
    if shape is None or int(np.prod(shape)) != n_options:
        raise ValueError(
            f"The key {MASK_KEY!r} of the observation space has shape {shape}, but the action space {action_space} "
            f"needs {n_options} entries. If frames are stacked, stack them below the mask: "
            "ActionMaskInObservation(FrameStackObservation(env, 4))"
        )
    return spaces.Dict(others)


def has_action_mask(observation_space: spaces.Space[Any]) -> bool:
    """Whether observations are a Dict with the key ``action_mask``."""
    return isinstance(observation_space, spaces.Dict) and MASK_KEY in observation_space.spaces


def split_observation(observation: Any) -> tuple[Any, Any]:
    """Split one or several observations into the observation without the mask, and the mask or None."""
    if not isinstance(observation, dict) or MASK_KEY not in observation:
        return observation, None
    return {key: part for key, part in observation.items() if key != MASK_KEY}, observation[MASK_KEY]


def check_masks(masks: Any, action_dims: Sequence[int], n_rows: int, whose: str) -> NumpyArray:
    """
    Convert masks to booleans, and check that every component of an action has a valid option.

    :param masks: A row for each environment: an array or a sequence of arrays, of booleans or of 0 and 1.
    :param action_dims: See ``action_dims_of``.
    :param n_rows: Number of environments.
    :param whose: Names the mask in errors; ``{}`` stands for the index of the row.
    :return: Shape ``(n_rows, n_options)``, True for valid options.
    :raises ValueError: If a mask has the wrong shape or type, or allows no action.
    """
    allowed = to_boolean_masks(masks, sum(action_dims), n_rows, whose)
    if len(action_dims) == 1:
        has_option = allowed.any(axis=1, keepdims=True)
    else:
        has_option = np.logical_or.reduceat(allowed, np.cumsum([0, *action_dims[:-1]]), axis=1)
    if not has_option.all():
        row, component = np.argwhere(~has_option)[0].tolist()
        of_component = f" for component {component}" if len(action_dims) > 1 else ""
        raise ValueError(f"The action mask {whose.format(row)} allows no action{of_component}: one at least must be legal")
    return allowed


def to_boolean_masks(masks: Any, n_options: int, n_rows: int, whose: str) -> NumpyArray:
    """Convert masks to booleans as ``check_masks`` does, even masks that allow no action."""
    if len(masks) != n_rows:
        raise ValueError(f"There must be an action mask for each of {n_rows} observations, but there are {len(masks)}")
    if not isinstance(masks, np.ndarray) or masks.size != n_rows * n_options:
        for row, mask in enumerate(masks):
            if np.size(mask) != n_options or mask is None:
                found = "there is none" if mask is None else f"it has shape {np.shape(mask)}"
                raise ValueError(f"The action mask {whose.format(row)} must have {n_options} entries, but {found}")
    given = np.asarray(masks).reshape(n_rows, n_options)
    if given.dtype == np.bool_:
        return given
    if given.dtype.kind not in "iuf":
        types = [np.asarray(mask).dtype for mask in masks]
        row = next((row for row, dtype in enumerate(types) if dtype.kind not in "biuf"), 0)
        raise ValueError(f"The action mask {whose.format(row)} must hold booleans, or 0 and 1, but has the type {types[row]}")
    allowed = given.astype(np.bool_)
    is_valid = allowed == given
    if not is_valid.all():
        row, entry = np.argwhere(~is_valid)[0].tolist()
        raise ValueError(
            f"The action mask {whose.format(row)} must hold booleans, or 0 and 1, but holds {given[row, entry].item()!r}"
        )
    return allowed


def apply_action_mask(logits: NumpyArray, masks: NumpyArray) -> NumpyArray:
    """
    Set the logits of invalid options to minus infinity, shape ``(n_envs, n_options)``.

    MultiBinary actions have one logit for the two options of an entry, which is plus infinity where 0 is invalid.
    """
    if logits.shape == masks.shape:
        return np.where(masks, logits, -np.inf)
    return np.where(masks[:, 1::2], np.where(masks[:, 0::2], logits, np.inf), -np.inf)


def masked_logits(logits: th.Tensor, masks: th.Tensor, action_space: spaces.Space[Any]) -> th.Tensor:
    """
    The logits of the distribution over the valid actions: the policy's, renormalised.

    The largest valid logit of every component becomes 0, so that an invalid option has probability 0 whatever the valid logits
    are. It does not contribute to the gradient or the entropy.

    :param logits: Logits of the policy's network, shape ``(n_steps, n_logits)``.
    :param masks: Shape ``(n_steps, n_options)``, True for valid options.
    """
    if isinstance(action_space, spaces.MultiBinary):
        only_0, only_1 = ~masks[:, 1::2], ~masks[:, 0::2]
        return logits.masked_fill(only_0, INVALID_LOGIT).masked_fill(only_1, -INVALID_LOGIT)
    action_dims = action_dims_of(action_space)
    masked = []
    for part, mask in zip(th.split(logits, action_dims, dim=1), th.split(masks, action_dims, dim=1), strict=True):
        largest = part.detach().masked_fill(~mask, -th.inf).amax(dim=1, keepdim=True)
        masked.append((part - largest).masked_fill(~mask, INVALID_LOGIT))
    return th.cat(masked, dim=1)


@contextlib.contextmanager
def use_action_masks(policy: ActorCriticPolicy, masks: th.Tensor | NumpyArray | None) -> Iterator[None]:
    """
    Mask a policy's distribution within the context, with masks of shape ``(n_steps, n_options)``; None for no masks.

    The policy must build its distribution from logits, as all of SB3's do.
    """
    if masks is None:
        yield
        return
    unmasked = policy.action_dist
    masks = th.as_tensor(masks, device=policy.device) if isinstance(masks, np.ndarray) else masks
    policy.action_dist = _masked_distribution(unmasked, masks, policy.action_space)
    try:
        yield
    finally:
        policy.action_dist = unmasked


def _masked_distribution(distribution: Distribution, masks: th.Tensor, action_space: spaces.Space[Any]) -> Distribution:
    """Copy one of SB3's distributions, such that the copy masks the logits that it is given."""
    result = copy.copy(distribution)

    def proba_distribution(action_logits: th.Tensor) -> Distribution:
        return type(distribution).proba_distribution(result, masked_logits(action_logits, masks, action_space))

    result.proba_distribution = proba_distribution  # type: ignore[method-assign]
    return result


def split_mask_for(policy: ActorCriticPolicy, observation: Any) -> tuple[Any, Any]:
    """Split observations into the input of the network, and the masks or None; see ``split_observation``."""
    return (observation, None) if has_action_mask(policy.observation_space) else split_observation(observation)


def take_action_masks(policy: ActorCriticPolicy, observation: Any, action_masks: Any = None) -> tuple[Any, th.Tensor | None]:
    """
    Split the observations given to a policy into the input of its network and checked masks.

    :param observation: One or several observations as NumPy arrays, or several as tensors.
    :param action_masks: A mask for each observation, instead of the masks in the observations.
    :return: The observation without the mask; and masks of shape ``(n_observations, n_options)``, None if there are none.
    :raises ValueError: If the actions cannot be masked, or a mask has the wrong shape or type, or allows no action.
    """
    observation, observed_masks = split_mask_for(policy, observation)
    action_masks = observed_masks if action_masks is None else action_masks
    if action_masks is None:
        return observation, None
    action_dims = action_dims_of(policy.action_space)
    if isinstance(action_masks, th.Tensor):
        if th.jit.is_tracing() or th.compiler.is_compiling():  # type: ignore[attr-defined, no-untyped-call]
            # Values that leave PyTorch here become constants
            return observation, action_masks.flatten(1).bool()
        action_masks = action_masks.cpu().numpy()
    is_tensor = isinstance(next(iter(observation.values())) if isinstance(observation, dict) else observation, th.Tensor)
    tensors, is_batch = (observation, True) if is_tensor else policy.obs_to_tensor(observation)
    n_rows = len(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors)
    rows = action_masks if is_batch else [action_masks]
    return observation, th.as_tensor(check_masks(rows, action_dims, n_rows, "of observation {}"), device=policy.device)
