"""Reading, checking and moving the action masks of an environment."""

from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_reinforce.policies.masked_distribution import (
    MASK_KEY,
    NumpyArray,
    action_dims_of,
    check_masks,
    has_action_mask,
    to_boolean_masks,
)
from sb3_reinforce.rollout.batch import NumpyObs

#: Takes the observations, the infos of the last step, and the episode starts; returns the masks of the environment.
MaskSource = Callable[[NumpyObs, Sequence[dict[str, Any]], NumpyArray], Any]

#: The name of the method in sb3-contrib.
MASK_METHOD = "action_masks"

#: The key of the observation, beside the mask, if the environment's observation is not a Dict.
OBSERVATION_KEY = "observation"


def find_mask_source(env: VecEnv) -> MaskSource:
    """
    Find the source of an environment's action masks.

    The first of: the key ``action_mask`` of a Dict observation, which reaches everything that sees the observations; the
    ``VecEnv``'s own method ``action_masks()``; the method ``action_masks()`` of its environments, which costs a round
    trip to each process of a ``SubprocVecEnv``; the key ``action_mask`` of the infos, and of ``reset_infos`` where an
    episode starts, since the info of the last step describes the episode that ended.

    :param env: The environment, after a reset.
    :return: The source.
    :raises ValueError: If there is none, or ``VecNormalize`` would normalise the mask.
    """
    if has_action_mask(env.observation_space):
        normalizer = unwrap_vec_normalize(env)
        if normalizer is not None and normalizer.norm_obs and MASK_KEY in (normalizer.norm_obs_keys or ()):
            raise ValueError(
                f"VecNormalize normalises the action masks: name the other keys in its norm_obs_keys, without {MASK_KEY!r}"
            )
        return lambda observations, infos, starts: observations[MASK_KEY]
    own_method = getattr(env, MASK_METHOD, None)
    if callable(own_method):
        return lambda observations, infos, starts: own_method()
    if env.has_attr(MASK_METHOD):
        return lambda observations, infos, starts: env.env_method(MASK_METHOD)
    engine = env.unwrapped
    if all(MASK_KEY in info for info in engine.reset_infos):
        return lambda observations, infos, starts: [
            (engine.reset_infos[env_idx] if start else infos[env_idx]).get(MASK_KEY) for env_idx, start in enumerate(starts)
        ]
    raise ValueError(
        f"use_masking=True, but the environment gives no masks: neither a key {MASK_KEY!r} of a Dict observation, nor a "
        f"method {MASK_METHOD}() of the VecEnv or of its environments, nor a key {MASK_KEY!r} of the infos"
    )


class ActionMaskReader:
    """
    Reads the masks of all environments before a step.

    :param env: The environment, after a reset.
    :raises ValueError: If it provides no masks, or its actions cannot be masked.
    """

    def __init__(self, env: VecEnv) -> None:
        self.action_dims = action_dims_of(env.action_space)
        self.n_envs = env.num_envs
        self.source = find_mask_source(env)

    def __call__(
        self, observations: NumpyObs, infos: Sequence[dict[str, Any]], starts: NumpyArray, n_steps: int
    ) -> NumpyArray:
        """
        Read and check the masks.

        :param observations: Observations to act on, shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :param infos: Infos of the last step of every environment.
        :param starts: Where an episode starts, shape ``(n_envs,)``.
        :param n_steps: Steps of the rollout so far, for messages.
        :return: Shape ``(n_envs, n_options)``, True for valid options.
        :raises ValueError: If a mask has the wrong shape or type, or allows no action; names the environment and the step.
        """
        masks = self.source(observations, infos, starts)
        masks = check_masks(masks, self.action_dims, self.n_envs, f"of environment {{}} at step {n_steps} of the rollout")
        # A VecEnv may write the next step's masks into the same array
        return masks.copy()


def sample_valid_actions(masks: Any, action_space: spaces.Space[Any], rng: np.random.Generator) -> NumpyArray:
    """
    Sample valid actions uniformly.

    :param masks: Booleans, or 0 and 1, with a row for each environment.
    :param action_space: Discrete, MultiDiscrete or MultiBinary.
    :param rng: Generator to draw from.
    :return: Shape ``(n_envs, *action_shape)``.
    :raises ValueError: If the actions cannot be masked, or a mask has the wrong shape or type, or allows no action.
    """
    action_dims = action_dims_of(action_space)
    allowed = check_masks(masks, action_dims, len(masks), "of environment {}")
    components = np.split(np.where(allowed, rng.random(allowed.shape), -1.0), np.cumsum(action_dims)[:-1], axis=1)
    actions = np.stack([component.argmax(axis=1) for component in components], axis=1)
    return actions.reshape(-1, *action_space.shape)  # type: ignore[misc]


class ActionMaskInObservation(gym.Wrapper[Any, Any, Any, Any]):
    """
    Moves the mask of an environment into its observation.

    Everything in SB3 and RL Zoo that passes observations to ``predict`` then passes the masks, too: ``evaluate_policy``,
    ``EvalCallback``, ``enjoy``, ``record-video``. A Dict observation gets the additional key ``action_mask``; any other
    becomes a Dict with the keys ``observation`` and ``action_mask``, for which a ``MultiInputPolicy`` is needed.

    ``reset`` and ``step`` raise ``ValueError`` if a mask is missing, or has the wrong shape or type.

    :param env: Environment with a method ``action_masks()``, or with the key ``action_mask`` in its infos. For a method with
        another name, see ``ActionMasker`` of sb3-contrib.
    :raises ValueError: If the environment's actions cannot be masked, or its observation already has a mask.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._n_options = sum(action_dims_of(env.action_space))
        if has_action_mask(env.observation_space):
            raise ValueError(f"The observation of {env} has the key {MASK_KEY!r} already: it needs no wrapper")
        self._is_dict = isinstance(env.observation_space, spaces.Dict)
        parts = env.observation_space.spaces if self._is_dict else {OBSERVATION_KEY: env.observation_space}  # type: ignore[attr-defined]
        self.observation_space = spaces.Dict({**parts, MASK_KEY: spaces.MultiBinary(self._n_options)})
        self._has_method = env.has_wrapper_attr(MASK_METHOD)
        source = f"method {MASK_METHOD}()" if self._has_method else f"info[{MASK_KEY!r}]"
        self._whose = f"that {env} gives by its {source}".replace("{", "{{").replace("}", "}}")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, and put the mask into the observation."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(observation, info), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment, and put the mask into the observation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation, info), reward, terminated, truncated, info

    def _with_mask(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        mask = self.env.get_wrapper_attr(MASK_METHOD)() if self._has_method else info.get(MASK_KEY)
        # At the end of an episode, there may be no valid action
        allowed = to_boolean_masks([mask], self._n_options, 1, self._whose)[0]
        parts = observation if self._is_dict else {OBSERVATION_KEY: observation}
        return {**parts, MASK_KEY: allowed.astype(np.int8)}
