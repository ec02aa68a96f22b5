"""Rollout buffers that hold whole episodes: SB3's, growing as long as an episode lasts."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, PyTorchObs, RolloutBufferSamples

from sb3_reinforce.functional.returns import Array
from sb3_reinforce.rollout.batch import EpisodeBatch, NumpyArray, NumpyObs, _named_parts, map_observation


def _first_not_finite(numbers: Any) -> tuple[int, ...] | None:
    numbers = np.asarray(numbers)
    if not np.issubdtype(numbers.dtype, np.floating) or np.isfinite(numbers).all():
        return None
    return tuple(np.argwhere(~np.isfinite(numbers))[0].tolist())


WRITE_TO_REWARDS = (
    "This array of the rollout buffer is computed, and the update would not see what is written to it. To change what is "
    "learned, write to rollout_buffer.rewards in on_rollout_end"
)


class _ReadOnlyArray(NumpyArray):
    """An array that says what to write to instead. What is computed from it is an ordinary array."""

    def _check_writable(self) -> None:
        if not self.flags.writeable:
            raise ValueError(WRITE_TO_REWARDS)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: tuple[Any, ...] = (), **kwargs: Any) -> Any:
        for array in out:
            if isinstance(array, _ReadOnlyArray):
                array._check_writable()
        if out:
            kwargs["out"] = tuple(map(_to_ordinary, out))
        return getattr(ufunc, method)(*map(_to_ordinary, inputs), **kwargs)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check_writable()
        super().__setitem__(key, value)


def _to_ordinary(array: Any) -> Any:
    return array.view(np.ndarray) if isinstance(array, _ReadOnlyArray) else array


def _computed(name: str, what: str) -> Any:
    """Make the property of an array that is computed when it is asked for."""

    def refuse(buffer: "_WholeEpisodes", value: Any) -> None:
        raise ValueError(WRITE_TO_REWARDS)

    return property(lambda buffer: buffer._laid_out(name), refuse, doc=what)


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

    action_masks: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    #: Key of the observations that holds the action masks, which are then not stored a second time
    mask_key: str | None = None

    def reset(self) -> None:
        """Forget all steps. The storage is kept, so that only the first rollouts allocate."""
        if not hasattr(self, "_rewards"):
            self._observations = self._allocate_observations()
            # A Gaussian sample does not fit into an integer Box
            action_dtype = np.float32 if isinstance(self.action_space, spaces.Box) else self.action_space.dtype
            self._actions = np.empty((self.buffer_size, self.n_envs, self.action_dim), dtype=action_dtype)
            self._rewards = np.empty((self.buffer_size, self.n_envs), dtype=np.float32)
            self._obs_batch_shape = map_observation(lambda storage: storage.shape[1:], self._observations)
        self.pos = 0
        self.full = False
        #: For every environment, the number of steps at which each of its counted episodes was over
        self.episode_ends: list[list[int]] = [[] for _ in range(self.n_envs)]
        self._cuts: list[list[tuple[int, NumpyObs]]] = [[] for _ in range(self.n_envs)]
        self._evaluate: Callable[[Any, str], None] | None = None
        self._numbers: dict[str, Array] = {}
        self._arrays: dict[str, NumpyArray] = {}

    def _allocate_observations(self) -> NumpyObs:
        if isinstance(self.observation_space, spaces.Dict):
            return {
                key: np.empty((self.buffer_size, self.n_envs, *shape), dtype=self.observation_space[key].dtype)
                for key, shape in self.obs_shape.items()
            }
        return np.empty((self.buffer_size, self.n_envs, *self.obs_shape), dtype=self.observation_space.dtype)

    def _fit_to(self, obs: NumpyObs) -> None:
        """Hold what is acted on: ``VecNormalize`` makes fractions of whole numbers, whatever the space says."""

        def fitting(storage: NumpyArray, given: NumpyArray) -> NumpyArray:
            return storage if np.can_cast(given.dtype, storage.dtype, "same_kind") else storage.astype(given.dtype)

        if isinstance(self._observations, dict):
            self._observations = {key: fitting(storage, obs[key]) for key, storage in self._observations.items()}
        else:
            self._observations = fitting(self._observations, obs)  # type: ignore[arg-type]

    def _double(self) -> None:
        def doubled(storage: NumpyArray) -> NumpyArray:
            larger = np.empty((2 * len(storage), *storage.shape[1:]), dtype=storage.dtype)
            larger[: len(storage)] = storage
            return larger

        self._observations = map_observation(doubled, self._observations)
        self._actions, self._rewards = doubled(self._actions), doubled(self._rewards)
        if self.action_masks is not None:
            self.action_masks = doubled(self.action_masks)
        self.buffer_size *= 2

    def add(self, obs: NumpyObs, action: Any, reward: Any, action_masks: Any = None) -> None:
        """
        Store one step of every environment.

        :param obs: The observations acted on, shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :param action: As the policy drew them, shape ``(n_envs, *action_shape)``.
        :param reward: Shape ``(n_envs,)``.
        :param action_masks: Shape ``(n_envs, n_options)``, None without masks.
        """
        if self.pos == 0:
            self._fit_to(obs)
        if self.pos == self.buffer_size:
            self._double()
        if isinstance(self._observations, dict):
            for key, storage in self._observations.items():
                storage[self.pos] = obs[key].reshape(self._obs_batch_shape[key])
        else:
            self._observations[self.pos] = obs.reshape(self._obs_batch_shape)  # type: ignore[union-attr]
        self._actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self._rewards[self.pos] = reward
        if action_masks is not None and self.mask_key is None:
            if self.action_masks is None:
                self.action_masks = np.empty((self.buffer_size, *action_masks.shape), dtype=np.bool_)
            self.action_masks[self.pos] = action_masks
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
        return sum(self._steps_of_env)

    @property
    def _steps_of_env(self) -> list[int]:
        return [ends[-1] if ends else 0 for ends in self.episode_ends]

    def check_finite(self) -> None:
        """
        Look for rewards and observations that cannot be learned from.

        :raises ValueError: Names the first environment and step with a NaN or infinite reward or observation.
        """
        for name, stored in {"reward": self.rewards, **_named_parts("observation", self.observations)}.items():
            if (entry := _first_not_finite(stored)) is not None:
                self._refuse_number(name, entry[1], entry[0], stored[entry])
        for env_idx, own_cuts in enumerate(self._cuts):
            for step, final_observation in own_cuts:
                for name, stored in _named_parts("final observation", final_observation).items():
                    if (entry := _first_not_finite(stored)) is not None:
                        self._refuse_number(name, env_idx, step, stored[entry])

    def _refuse_number(self, name: str, env_idx: int, step: int, number: Any) -> None:
        raise ValueError(
            f"The {name} of environment {env_idx} at step {step} of the rollout is {number}. "
            "The rollout was not learned from. VecCheckNan finds where such numbers come from."
        )

    @property
    def observations(self) -> Any:
        """What was acted on, shape ``(pos, n_envs, *obs_shape)``, or a dict of such arrays."""
        return map_observation(lambda storage: storage[: self.pos], self._observations)

    @property
    def actions(self) -> NumpyArray:
        """As the policy drew them, shape ``(pos, n_envs, action_dim)``."""
        return self._actions[: self.pos]

    @property
    def rewards(self) -> NumpyArray:
        """As the environment gave them, shape ``(pos, n_envs)``. What is written here before the update is learned from."""
        return self._rewards[: self.pos]

    @rewards.setter
    def rewards(self, values: NumpyArray) -> None:
        self._rewards[: self.pos] = values

    @property
    def counted(self) -> NumpyArray:
        """Which steps belong to counted episodes, shape ``(pos, n_envs)``; the others hold zeros after the rollout."""
        return np.arange(self.pos)[:, None] < np.array(self._steps_of_env)

    @property
    def episode_starts(self) -> NumpyArray:
        """1 at the first step of each counted episode, shape ``(pos, n_envs)``."""
        starts = np.zeros((self.pos, self.n_envs), dtype=np.float32)
        for env_idx, ends in enumerate(self.episode_ends):
            starts[[0, *ends][: len(ends)], env_idx] = 1.0
        return starts

    values = _computed("values", "V(s) before the update, zeros without a critic, shape ``(pos, n_envs)``.")
    log_probs = _computed("log_probs", "Log-probabilities of the actions under the policy, shape ``(pos, n_envs)``.")
    returns = _computed("returns", "What the critic is fitted on, bootstrapped where the update is, shape ``(pos, n_envs)``.")
    advantages = _computed("advantages", "Return minus baseline, neither normalised nor weighted, shape ``(pos, n_envs)``.")

    def size(self) -> int:
        """
        Count the steps of each environment.

        :return: As in SB3, the length of the arrays.
        """
        return self.pos

    def finish_rollout(self, evaluate: Callable[[Any, str], None]) -> None:
        """
        Close the rollout: steps that were not counted hold zeros from now on.

        :param evaluate: Takes this buffer and one of ``"values"``, ``"log_probs"``, ``"returns"``, ``"advantages"``, and
            hands it to ``keep``. Called when somebody first asks for it, so that nobody else pays.
        """
        for env_idx, n_counted in enumerate(self._steps_of_env):
            for storage in (self._rewards, self._actions, *_named_parts("", self._observations).values()):
                storage[n_counted : self.pos, env_idx] = 0
        self.full = True
        self._evaluate = evaluate

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: NumpyArray) -> None:
        """
        Refuse what SB3's buffer does here: the update computes both from the rewards, whole episodes at a time.

        :param last_values: Unused.
        :param dones: Unused.
        :raises NotImplementedError: Always.
        """
        raise NotImplementedError("The update computes returns and advantages: to change what is learned, write to rewards")

    def keep(self, **numbers: Array) -> None:
        """
        Keep what was computed for the counted steps.

        :param numbers: Arrays of shape ``(n_counted_steps,)``, in the order of ``whole_episodes``.
        """
        self._numbers.update(numbers)
        for name in numbers:
            self._arrays.pop(name, None)

    def kept(self, name: str, compute: Callable[[], Array]) -> Array:
        """
        Compute something once between the end of the rollout and the update.

        :param name: What it is called.
        :param compute: Called if nothing is kept under that name.
        :return: What is kept.
        """
        if name not in self._numbers or self._evaluate is None:
            self.keep(**{name: compute()})
        return self._numbers[name]

    def finish_update(self) -> None:
        """Forget how to evaluate: the policy that acted is gone. What was kept can still be looked at."""
        self._evaluate = None

    def _laid_out(self, name: str) -> NumpyArray:
        # A callback may have changed the rewards since the last time
        follows_rewards = name in ("returns", "advantages") and self._evaluate is not None
        if name not in self._numbers or follows_rewards:
            if self._evaluate is None:
                raise RuntimeError(f"rollout_buffer.{name} is there when the rollout is over: ask for it in on_rollout_end")
            self._evaluate(self, name)
        if name not in self._arrays:
            by_env = np.zeros((self.n_envs, self.pos), dtype=np.float32)
            by_env[self.counted.T] = self._numbers[name]
            self._arrays[name] = by_env.T.view(_ReadOnlyArray)
            # The update would not see what is written here
            self._arrays[name].setflags(write=False)
        return self._arrays[name]

    def get(self, batch_size: int | None = None) -> Iterator[Any]:
        """
        Go through the counted steps in random order, as in SB3.

        :param batch_size: Steps of each minibatch, None for all at once.
        :return: Minibatches of SB3's type.
        """
        batch = self.whole_episodes()
        names = ("values", "log_probs", "advantages", "returns")
        numbers = [self.to_torch(getattr(self, name).T[self.counted.T]) for name in names]
        n_steps = self.n_counted_steps
        order = np.random.permutation(n_steps)
        samples_class = DictRolloutBufferSamples if isinstance(batch.observations, dict) else RolloutBufferSamples
        for start in range(0, n_steps, batch_size or n_steps):
            steps = th.as_tensor(order[start : start + (batch_size or n_steps)], device=self.device)
            observations: Any = map_observation(lambda obs: obs[steps], batch.observations)  # noqa: B023
            yield samples_class(observations, batch.actions[steps].float(), *(number[steps] for number in numbers))

    def whole_episodes(self) -> EpisodeBatch:
        """
        Put the counted episodes one after another, environment by environment.

        With one environment nothing is copied: the batch is valid until the next ``reset`` or ``add``.

        :return: The batch, its tensors on the buffer's device.
        """
        steps_of_env = self._steps_of_env
        first_step = np.cumsum([0, *steps_of_env])

        def counted(storage: NumpyArray) -> NumpyArray:
            if self.n_envs == 1:
                return storage[: steps_of_env[0], 0]
            return np.concatenate([storage[:n_steps, env_idx] for env_idx, n_steps in enumerate(steps_of_env)])

        def tensor(storage: NumpyArray) -> th.Tensor:
            return self.to_torch(storage, copy=False)

        def locate(index: int) -> tuple[int, int]:
            env_idx = int(np.searchsorted(first_step, index, side="right")) - 1
            return env_idx, index - int(first_step[env_idx])

        cuts = [(first_step[env_idx] + step, obs) for env_idx, own in enumerate(self._cuts) for step, obs in own]
        finals: list[Any] = [obs for _, obs in cuts]
        final_observations: PyTorchObs | None = None
        if cuts and isinstance(self._observations, dict):
            final_observations = {
                key: tensor(np.stack([obs[key] for obs in finals]).reshape(-1, *shape))
                for key, shape in self.obs_shape.items()
            }
        elif cuts:
            final_observations = tensor(np.stack(finals).reshape(-1, *self.obs_shape))
        observations = map_observation(lambda storage: tensor(counted(storage)), self._observations)
        action_masks = None if self.action_masks is None else tensor(counted(self.action_masks))
        if self.mask_key is not None:
            action_masks = observations.pop(self.mask_key).flatten(1).bool()
            if final_observations is not None:
                del final_observations[self.mask_key]  # type: ignore[union-attr]
        return EpisodeBatch(
            observations=observations,
            actions=tensor(counted(self._actions)),
            rewards=counted(self._rewards).astype(np.float64),
            episode_lengths=np.concatenate([np.diff(ends, prepend=0) for ends in self.episode_ends]).astype(np.int64),
            cut_steps=np.array([step for step, _ in cuts], dtype=np.int64),
            final_observations=final_observations,
            locate=locate,
            action_masks=action_masks,
        )


class EpisodeRolloutBuffer(_WholeEpisodes, RolloutBuffer):  # type: ignore[misc, override]
    """
    SB3's ``RolloutBuffer`` for whole episodes of any length.

    ``buffer_size`` is only the first capacity: storage doubles whenever an episode needs more. The update takes
    ``whole_episodes``; the arrays of SB3's buffer, and ``get``, are there for callbacks, and computed when asked for.
    """


class DictEpisodeRolloutBuffer(_WholeEpisodes, DictRolloutBuffer):  # type: ignore[misc, override]
    """``EpisodeRolloutBuffer`` for dict observations."""
