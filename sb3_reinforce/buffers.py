"""Rollout buffers that hold whole episodes: SB3's, growing as long as an episode lasts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_reinforce.returns import Array, IntArray

NumpyObs = np.ndarray[Any, np.dtype[Any]] | dict[str, np.ndarray[Any, np.dtype[Any]]]


def map_observation(function: Callable[[Any], Any], observation: Any) -> Any:
    """
    Apply a function to an observation, or to every entry of a dict observation.

    :param function: Takes and returns an array or a tensor.
    :param observation: Array, tensor, or dict of them.
    :return: The result, a dict if the observation is one.
    """
    if isinstance(observation, dict):
        return {key: function(part) for key, part in observation.items()}
    return function(observation)


class EpisodeBatch(NamedTuple):
    """
    The counted episodes of one rollout, one after another.

    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
    :param actions: As the policy drew them, before clipping or rescaling. Shape ``(n_steps, action_dim)``.
    :param rewards: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, the episodes of an environment in a row.
    :param cut_steps: Last step of each episode that a time limit or the bound of the rollout cut, shape ``(n_cuts,)``.
    :param final_observations: What followed those steps, shape ``(n_cuts, *obs_shape)``; None if there is no cut.
    :param locate: Turns the index of a step into ``(environment index, step of the rollout)``, for error messages.
    """

    observations: PyTorchObs
    actions: th.Tensor
    rewards: Array
    episode_lengths: IntArray
    cut_steps: IntArray
    final_observations: PyTorchObs | None
    locate: Callable[[int], tuple[int, int]]


class _WholeEpisodes:
    """What both buffers share: storage that doubles when it is full, and a record of where counted episodes end."""

    # Set by SB3's buffers
    buffer_size: int
    n_envs: int
    obs_shape: Any
    action_dim: int
    pos: int
    full: bool
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    device: th.device
    to_torch: Callable[..., th.Tensor]

    observations: NumpyObs
    actions: np.ndarray[Any, np.dtype[Any]]
    rewards: np.ndarray[Any, np.dtype[np.float32]]

    def reset(self) -> None:
        """Forget all steps. The storage is kept, so that only the first rollouts allocate."""
        if not hasattr(self, "rewards"):
            self.observations = self._allocate_observations()
            # A Gaussian sample does not fit into an integer Box
            action_dtype = np.float32 if isinstance(self.action_space, spaces.Box) else self.action_space.dtype
            self.actions = np.empty((self.buffer_size, self.n_envs, self.action_dim), dtype=action_dtype)
            self.rewards = np.empty((self.buffer_size, self.n_envs), dtype=np.float32)
            self._obs_batch_shape = map_observation(lambda storage: storage.shape[1:], self.observations)
        self.pos = 0
        self.full = False
        #: For every environment, the number of steps at which each of its counted episodes was over
        self.episode_ends: list[list[int]] = [[] for _ in range(self.n_envs)]
        self._cuts: list[list[tuple[int, NumpyObs]]] = [[] for _ in range(self.n_envs)]

    def _allocate_observations(self) -> NumpyObs:
        if isinstance(self.observation_space, spaces.Dict):
            return {
                key: np.empty((self.buffer_size, self.n_envs, *shape), dtype=self.observation_space[key].dtype)
                for key, shape in self.obs_shape.items()
            }
        return np.empty((self.buffer_size, self.n_envs, *self.obs_shape), dtype=self.observation_space.dtype)

    def _double(self) -> None:
        def doubled(storage: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
            larger = np.empty((2 * len(storage), *storage.shape[1:]), dtype=storage.dtype)
            larger[: len(storage)] = storage
            return larger

        self.observations = map_observation(doubled, self.observations)
        self.actions, self.rewards = doubled(self.actions), doubled(self.rewards)
        self.buffer_size *= 2

    def add(self, obs: NumpyObs, action: Any, reward: Any) -> None:
        """
        Store one step of every environment.

        :param obs: The observations acted on, shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :param action: As the policy drew them, shape ``(n_envs, *action_shape)``.
        :param reward: Shape ``(n_envs,)``.
        """
        if self.pos == self.buffer_size:
            self._double()
        if isinstance(self.observations, dict):
            for key, storage in self.observations.items():
                storage[self.pos] = obs[key].reshape(self._obs_batch_shape[key])
        else:
            self.observations[self.pos] = obs.reshape(self._obs_batch_shape)  # type: ignore[union-attr]
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.pos += 1

    def finish_episode(self, env_idx: int, final_observation: NumpyObs | None = None) -> None:
        """
        Mark the last stored step of an environment as the last of a counted episode.

        :param env_idx: Index of the environment.
        :param final_observation: Shape ``obs_shape``. What the agent would have acted on next, if the episode did not
            end by itself but was cut by a time limit or by the bound of the rollout.
        """
        self.episode_ends[env_idx].append(self.pos)
        if final_observation is not None:
            self._cuts[env_idx].append((self.pos - 1, final_observation))

    @property
    def n_counted_steps(self) -> int:
        """Number of steps that belong to counted episodes, over all environments."""
        return sum(ends[-1] for ends in self.episode_ends if ends)

    def check_finite(self) -> None:
        """
        Look for rewards and observations that cannot be learned from.

        :raises ValueError: Names the first environment and step with a NaN or infinite reward or observation.
        """
        parts = {"reward": self.rewards}
        if isinstance(self.observations, dict):
            parts.update({f"observation['{key}']": storage for key, storage in self.observations.items()})
        else:
            parts["observation"] = self.observations
        for name, storage in parts.items():
            stored = storage[: self.pos]
            if np.issubdtype(stored.dtype, np.floating) and not np.isfinite(stored).all():
                step, env_idx, *entry = np.argwhere(~np.isfinite(stored))[0]
                raise ValueError(
                    f"The {name} of environment {env_idx} at step {step} of the rollout is {stored[(step, env_idx, *entry)]}. "
                    "The rollout was not learned from. VecCheckNan finds where such numbers come from."
                )

    def whole_episodes(self) -> EpisodeBatch:
        """
        Put the counted episodes one after another, environment by environment.

        With one environment nothing is copied: the batch is valid until the next ``reset`` or ``add``.

        :return: The batch, its tensors on the buffer's device.
        """
        steps_of_env = [ends[-1] if ends else 0 for ends in self.episode_ends]
        first_step = np.cumsum([0, *steps_of_env])

        def counted(storage: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
            if self.n_envs == 1:
                return storage[: steps_of_env[0], 0]
            return np.concatenate([storage[:n_steps, env_idx] for env_idx, n_steps in enumerate(steps_of_env)])

        def tensor(storage: np.ndarray[Any, np.dtype[Any]]) -> th.Tensor:
            return self.to_torch(storage, copy=False)

        def locate(index: int) -> tuple[int, int]:
            env_idx = int(np.searchsorted(first_step, index, side="right")) - 1
            return env_idx, index - int(first_step[env_idx])

        cuts = [(first_step[env_idx] + step, obs) for env_idx, own in enumerate(self._cuts) for step, obs in own]
        finals: list[Any] = [obs for _, obs in cuts]
        final_observations: PyTorchObs | None = None
        if cuts and isinstance(self.observations, dict):
            final_observations = {
                key: tensor(np.stack([obs[key] for obs in finals]).reshape(-1, *shape))
                for key, shape in self.obs_shape.items()
            }
        elif cuts:
            final_observations = tensor(np.stack(finals).reshape(-1, *self.obs_shape))
        return EpisodeBatch(
            observations=map_observation(lambda storage: tensor(counted(storage)), self.observations),
            actions=tensor(counted(self.actions)),
            rewards=counted(self.rewards).astype(np.float64),
            episode_lengths=np.concatenate([np.diff(ends, prepend=0) for ends in self.episode_ends]).astype(np.int64),
            cut_steps=np.array([step for step, _ in cuts], dtype=np.int64),
            final_observations=final_observations,
            locate=locate,
        )


class EpisodeRolloutBuffer(_WholeEpisodes, RolloutBuffer):  # type: ignore[misc]
    """
    SB3's ``RolloutBuffer`` for whole episodes of any length.

    ``buffer_size`` is only the first capacity: storage doubles whenever an episode needs more. ``whole_episodes``
    takes the place of ``get``; values and log-probabilities are not stored, as they are computed at the update.
    """


class DictEpisodeRolloutBuffer(_WholeEpisodes, DictRolloutBuffer):  # type: ignore[misc]
    """``EpisodeRolloutBuffer`` for dict observations."""
