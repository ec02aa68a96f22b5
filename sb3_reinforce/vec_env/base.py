"""Base class of the adapters: resets, episode statistics and infos as in ``DummyVecEnv`` and ``Monitor``."""

import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from sb3_reinforce.policies.masked_distribution import NumpyArray

#: Observations of several environments, each array of shape ``(n_rows, *obs_shape)``.
ObsRows = NumpyArray | dict[str, NumpyArray]
Info = dict[str, Any]

SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class EngineVecEnv(VecEnv):
    """
    A ``VecEnv`` on an engine that steps all environments in one call.

    It behaves like a ``DummyVecEnv`` of environments wrapped in ``Monitor``: on the last step of an episode it returns the
    first observation of the next episode, and the info holds ``terminal_observation`` and the statistics ``episode``.

    :param num_envs: Number of environments.
    :param observation_space: Space of one environment: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
    :param action_space: Space of one environment: Box, Discrete, MultiDiscrete or MultiBinary.
    :raises ValueError: If a space is not supported; the message names it.
    """

    def __init__(self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        _check_spaces(observation_space, action_space)
        super().__init__(num_envs, observation_space, action_space)
        self._t_start = time.time()
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)

    @abstractmethod
    def _reset_engine(self) -> tuple[ObsRows, list[Info]]:
        """Start an episode in every environment with the pending seeds and options; return observations and reset infos."""

    @abstractmethod
    def _step_engine(self, actions: NumpyArray) -> tuple[ObsRows, NumpyArray, NumpyArray, NumpyArray, list[Info]]:
        """
        Step every environment.

        :return: Observations before any reset, rewards, terminations and truncations, each of shape ``(n_envs, ...)``, and a
            new info for each environment.
        """

    @abstractmethod
    def _restart(self, indices: NumpyArray) -> tuple[ObsRows, list[Info]]:
        """Start the next episode in the given environments only; return their observations and reset infos."""

    @abstractmethod
    def _render_engine(self) -> Sequence[NumpyArray]:
        """Render an RGB image of shape ``(height, width, 3)`` for each environment."""

    def reset(self) -> ObsRows:
        """Start an episode in every environment. As with ``Monitor``, unfinished episodes leave no statistics."""
        obs, self.reset_infos = self._reset_engine()
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return self._copy_rows(obs, self.num_envs)

    def step_async(self, actions: NumpyArray) -> None:
        """Store the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every environment. The engine never overwrites the returned arrays."""
        engine_obs, rewards, terminated, truncated, infos = self._step_engine(self._actions)
        obs = self._copy_rows(engine_obs, self.num_envs)
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        for info in infos:
            info["TimeLimit.truncated"] = False
        if dones.any():
            self._end_episodes(np.flatnonzero(dones), obs, terminated, infos)
        return obs, rewards.astype(np.float32), dones, infos

    def _end_episodes(self, indices: NumpyArray, obs: ObsRows, terminated: NumpyArray, infos: list[Info]) -> None:
        """Complete the infos of finished episodes, and replace their observations with the first ones of the next episodes."""
        seconds = round(time.time() - self._t_start, 6)
        last_obs = select_rows(obs, indices)
        for row, i in enumerate(indices):
            infos[i]["TimeLimit.truncated"] = not terminated[i]
            infos[i]["terminal_observation"] = select_rows(last_obs, row)
            infos[i]["episode"] = {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": seconds}
        self._returns[indices] = 0.0
        self._lengths[indices] = 0

        first_obs, reset_infos = self._restart(indices)
        set_rows(obs, indices, self._copy_rows(first_obs, len(indices)))
        for i, reset_info in zip(indices, reset_infos, strict=True):
            self.reset_infos[i] = reset_info

    def _copy_rows(self, obs: ObsRows, n_rows: int) -> ObsRows:
        """Copy observations, which the engine may overwrite, in the dtypes and shapes of the observation space."""
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: _copy_array(obs[key], part, n_rows) for key, part in space.spaces.items()}
        return _copy_array(obs, space, n_rows)

    def get_images(self) -> Sequence[NumpyArray | None]:
        """Render every environment if the render mode is ``rgb_array``; otherwise warn and return None for each."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"The render mode is {self.render_mode}, but this method assumes it is `rgb_array` to obtain images.",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return self._render_engine()

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return True for ``Monitor``, since the infos hold its statistics."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def select_rows(obs: ObsRows, indices: Any) -> ObsRows:
    """Copy the observations of some environments, or return a view of a single one's."""
    return {key: part[indices] for key, part in obs.items()} if isinstance(obs, dict) else obs[indices]


def set_rows(obs: ObsRows, indices: Any, values: Any) -> None:
    """Replace the observations of some environments, or of a single one, in place."""
    if isinstance(obs, dict):
        for key, part in obs.items():
            part[indices] = values[key]
    else:
        obs[indices] = values


def _copy_array(values: Any, space: spaces.Space[Any], n_rows: int) -> NumpyArray:
    return np.array(values, dtype=space.dtype).reshape(n_rows, *space.shape)  # type: ignore[misc]


def _check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for key, part in parts.items():
        if not isinstance(part, SUPPORTED_SPACES):
            where = f" at key {key!r}" if key else ""
            raise ValueError(
                f"The observation space {part}{where} is not supported: it must be Box, Discrete, MultiDiscrete, MultiBinary, "
                "or a Dict of these that is not nested"
            )
    if not isinstance(action_space, SUPPORTED_SPACES):
        raise ValueError(
            f"The action space {action_space} is not supported: it must be Box, Discrete, MultiDiscrete or MultiBinary"
        )
