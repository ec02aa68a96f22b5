"""SB3's rollout buffers for whole episodes: they grow as long as an episode lasts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_reinforce.functional.estimator import Estimator, PolicyGradientTargets
from sb3_reinforce.functional.returns import Array
from sb3_reinforce.rollout.batch import (
    EpisodeBatch,
    Evaluator,
    NumpyArray,
    NumpyObs,
    PolicyOutputs,
    describe_episodes,
    map_observation,
    named_parts,
    select_steps,
)


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
    """An array whose error on writing says what to write to instead. Results computed from it are ordinary arrays."""

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


def _refuse_writing(buffer: Any, values: Any) -> None:
    raise ValueError(WRITE_TO_REWARDS)


class _WholeEpisodes:
    """Base of both buffers: storage that doubles when it is full, and a record of the ends of counted episodes."""

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
    #: See ``EpisodeBatch``
    features: NumpyArray | None
    #: Observation key of the action masks, which are then not stored a second time
    mask_key: str | None = None
    #: The last observations, and the infos of the environments' resets, where the last rollout ended
    end_of_last_rollout: tuple[Any, list[dict[str, Any]]] = (None, [])

    def reset(self) -> None:
        """Discard all steps. The storage is reused, except for features, so that only the first rollouts allocate."""
        if not hasattr(self, "_rewards"):
            self._observations = map_observation(self._allocate, self.obs_shape, self.observation_space)
            # A Gaussian sample does not fit into an integer Box
            action_dtype = np.float32 if isinstance(self.action_space, spaces.Box) else self.action_space.dtype
            self._actions = np.empty((self.buffer_size, self.n_envs, self.action_dim), dtype=action_dtype)
            self._rewards = np.empty((self.buffer_size, self.n_envs), dtype=np.float32)
            self._obs_batch_shape = map_observation(lambda storage: storage.shape[1:], self._observations)
        self.pos = 0
        self.full = False
        self.features = None
        #: For every environment, the number of steps at the end of each of its counted episodes
        self.episode_ends: list[list[int]] = [[] for _ in range(self.n_envs)]
        self._cuts: list[list[tuple[int, NumpyObs]]] = [[] for _ in range(self.n_envs)]
        #: For every environment, the start index of each of its counted episodes, if they have common starts
        self.starts: list[list[int]] = [[] for _ in range(self.n_envs)]
        #: The rewards of the deterministic policy's episode from each start, if there is one
        self.greedy_rewards: dict[int, Array] = {}
        #: Outputs of the policy, once the rollout is over
        self.outputs: PolicyOutputs | None = None
        #: Evaluates the policy that acted, until it is updated
        self.evaluator: Evaluator | None = None

    def _allocate(self, shape: tuple[int, ...], space: spaces.Space[Any]) -> NumpyArray:
        return np.empty((self.buffer_size, self.n_envs, *shape), dtype=space.dtype)

    def _fit_to(self, obs: NumpyObs) -> None:
        """Adapt the dtype to the observations: ``VecNormalize`` turns integers into fractions, whatever the space says."""

        def fitting(storage: NumpyArray, given: NumpyArray) -> NumpyArray:
            return storage if np.can_cast(given.dtype, storage.dtype, "same_kind") else storage.astype(given.dtype)

        self._observations = map_observation(fitting, self._observations, obs)

    def _double(self) -> None:
        def doubled(storage: NumpyArray) -> NumpyArray:
            larger = np.empty((2 * len(storage), *storage.shape[1:]), dtype=storage.dtype)
            larger[: len(storage)] = storage
            return larger

        self._observations = map_observation(doubled, self._observations)
        self._actions, self._rewards = doubled(self._actions), doubled(self._rewards)
        if self.action_masks is not None:
            self.action_masks = doubled(self.action_masks)
        if self.features is not None:
            self.features = doubled(self.features)
        self.buffer_size *= 2

    def add(self, obs: NumpyObs, action: Any, reward: Any, action_masks: Any = None) -> None:
        """
        Store one step of every environment.

        :param obs: The observations acted on, shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :param action: Actions as the policy sampled them, shape ``(n_envs, *action_shape)``.
        :param reward: Rewards, shape ``(n_envs,)``.
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

    def add_features(self, features: NumpyArray | None) -> None:
        """
        Store, for the last stored step, the output of the layers that the critic shares with the actor.

        :param features: Shape ``(n_envs, n_features)``; None if there is nothing to store.
        """
        if features is None:
            return
        if self.features is None:
            self.features = np.empty((self.buffer_size, *features.shape), dtype=features.dtype)
        self.features[self.pos - 1] = features

    def finish_episode(self, env_idx: int, final_observation: NumpyObs | None = None) -> None:
        """
        Mark the last stored step of an environment as the last of a counted episode.

        :param env_idx: Index of the environment.
        :param final_observation: The observation that the agent would have acted on next, if the episode was cut by a time
            limit or by the bound of the rollout, shape ``obs_shape``; None if it ended by itself.
        """
        self.episode_ends[env_idx].append(self.pos)
        if final_observation is not None:
            self._cuts[env_idx].append((self.pos - 1, final_observation))

    def finish_wave(self, first_step: int, starts: Sequence[int], is_greedy: bool) -> None:
        """
        Append the counted episodes of a wave to the earlier ones of their environments, without a gap.

        :param first_step: Step at which the wave began.
        :param starts: Index of each episode's start, for the first environments.
        :param is_greedy: Whether the policy was deterministic. If so, only the rewards are stored, and no episode counts.
        """
        storages = [self._rewards, self._actions, *named_parts("", self._observations).values()]
        for env_idx, start in enumerate(starts):
            end = self.episode_ends[env_idx].pop()
            n_before = self._steps_of_env[env_idx]
            if is_greedy:
                self.greedy_rewards[start] = self._rewards[first_step:end, env_idx].astype(np.float64)
                self._cuts[env_idx] = [cut for cut in self._cuts[env_idx] if cut[0] < first_step]
                continue
            for storage in [*storages, *(own for own in (self.action_masks, self.features) if own is not None)]:
                storage[n_before : n_before + end - first_step, env_idx] = storage[first_step:end, env_idx]
            self.episode_ends[env_idx].append(n_before + end - first_step)
            self._cuts[env_idx] = [
                (step if step < first_step else n_before + step - first_step, final) for step, final in self._cuts[env_idx]
            ]
            self.starts[env_idx].append(start)
        self.pos = max(self._steps_of_env)

    @property
    def n_counted_steps(self) -> int:
        """Number of steps that belong to counted episodes, over all environments."""
        return sum(self._steps_of_env)

    @property
    def _steps_of_env(self) -> list[int]:
        return [ends[-1] if ends else 0 for ends in self.episode_ends]

    def check_finite(self) -> None:
        """
        Check that rewards and observations are finite.

        :raises ValueError: If a reward or an observation is NaN or infinite; names the first environment and step.
        """
        for name, stored in {"reward": self.rewards, **named_parts("observation", self.observations)}.items():
            if (entry := _first_not_finite(stored)) is not None:
                self._refuse_number(name, entry[1], entry[0], stored[entry])
        for env_idx, own_cuts in enumerate(self._cuts):
            for step, final_observation in own_cuts:
                for name, stored in named_parts("final observation", final_observation).items():
                    if (entry := _first_not_finite(stored)) is not None:
                        self._refuse_number(name, env_idx, step, stored[entry])

    def _refuse_number(self, name: str, env_idx: int, step: int, number: Any) -> None:
        raise ValueError(
            f"The {name} of environment {env_idx} at step {step} of the rollout is {number}. "
            "The rollout was not learned from. VecCheckNan finds where such numbers come from."
        )

    @property
    def observations(self) -> Any:
        """The observations acted on, shape ``(pos, n_envs, *obs_shape)``, or a dict of such arrays."""
        return map_observation(lambda storage: storage[: self.pos], self._observations)

    @property
    def actions(self) -> NumpyArray:
        """The actions as the policy sampled them, shape ``(pos, n_envs, action_dim)``."""
        return self._actions[: self.pos]

    @property
    def rewards(self) -> NumpyArray:
        """The environment's rewards, shape ``(pos, n_envs)``. The update learns from what is written here before it."""
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

    def _compute_values(self) -> NumpyArray:
        values = self._outputs_for("values").values
        return self._by_env(np.zeros(self.n_counted_steps) if values is None else values)

    def _compute_log_probs(self) -> NumpyArray:
        log_probs = self._outputs_for("log_probs").log_probs
        if log_probs is None:
            if self.evaluator is None:
                raise RuntimeError(
                    "rollout_buffer.log_probs is there until the policy is updated: ask for it in on_rollout_end"
                )
            log_probs = self.evaluator.log_probs(self.whole_episodes())
            self.outputs = self._outputs_for("log_probs")._replace(log_probs=log_probs)
        return self._by_env(log_probs)

    def _compute_returns(self) -> NumpyArray:
        return self._by_env(self._targets("returns").rewards_to_go)

    def _compute_advantages(self) -> NumpyArray:
        return self._by_env(self._targets("advantages").advantages)

    # SB3's arrays of shape (pos, n_envs), computed on access; returns and advantages from the current rewards, neither
    # normalised nor weighted
    values = property(_compute_values, _refuse_writing, doc="V(s), zeros without a critic.")
    log_probs = property(_compute_log_probs, _refuse_writing, doc="Of the actions, by the policy that acted.")
    returns = property(_compute_returns, _refuse_writing, doc="What the critic is fitted on.")
    advantages = property(_compute_advantages, _refuse_writing, doc="Return minus baseline.")

    def __getstate__(self) -> dict[str, Any]:
        # Copying the buffer must not copy the policy
        return {**vars(self), "evaluator": None}

    def _outputs_for(self, name: str) -> PolicyOutputs:
        if self.outputs is None:
            raise RuntimeError(f"rollout_buffer.{name} is there when the rollout is over: ask for it in on_rollout_end")
        return self.outputs

    def _targets(self, name: str) -> PolicyGradientTargets:
        self._outputs_for(name)
        return self._estimator(describe_episodes(self.whole_episodes(), self._estimator, self._ent_coef, self.evaluator))

    def _by_env(self, numbers: Array) -> NumpyArray:
        """Arrange numbers of the counted steps as SB3 does, read-only: the update would not see what is written there."""
        by_env = np.zeros((self.n_envs, self.pos), dtype=np.float32)
        by_env[self.counted.T] = numbers
        array = by_env.T.view(_ReadOnlyArray)
        array.setflags(write=False)
        return array

    def size(self) -> int:
        """
        Count the steps of each environment.

        :return: Length of the arrays, as in SB3.
        """
        return self.pos

    def finish_rollout(self) -> None:
        """Close the rollout: steps that were not counted hold zeros from now on."""
        for env_idx, n_counted in enumerate(self._steps_of_env):
            for storage in (self._rewards, self._actions, *named_parts("", self._observations).values()):
                storage[n_counted : self.pos, env_idx] = 0
        self.full = True

    def set_outputs(self, outputs: PolicyOutputs, evaluator: Evaluator, estimator: Estimator, ent_coef: float = 0.0) -> None:
        """
        Store the policy's outputs, from which SB3's arrays are computed.

        :param outputs: Outputs for the counted steps.
        :param evaluator: Evaluator of the policy that acted, for what is rarely needed, such as ``log_probs``.
        :param estimator: Computes returns and advantages from the rewards.
        :param ent_coef: Coefficient of ``-log_prob`` in the rewards, if ``outputs`` contain it.
        """
        self.outputs, self.evaluator, self._estimator, self._ent_coef = outputs, evaluator, estimator, ent_coef

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: NumpyArray) -> None:
        """
        Raise an error: the update computes returns and advantages from the rewards, whole episodes at a time.

        :param last_values: Unused.
        :param dones: Unused.
        :raises NotImplementedError: Always.
        """
        raise NotImplementedError("The update computes returns and advantages: to change what is learned, write to rewards")

    def get(self, batch_size: int | None = None) -> Iterator[Any]:
        """
        Iterate over the counted steps in random order, as in SB3.

        :param batch_size: Steps per minibatch; None for all at once.
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
            observations: Any = select_steps(batch.observations, steps)
            yield samples_class(observations, batch.actions[steps].float(), *(number[steps] for number in numbers))

    def whole_episodes(self) -> EpisodeBatch:
        """
        Concatenate the counted episodes, environment by environment.

        With one environment nothing is copied: the batch is valid until the next ``reset`` or ``add``.

        :return: The batch, with its tensors on the buffer's device.
        """

        def tensor(storage: NumpyArray) -> th.Tensor:
            return self.to_torch(storage, copy=False)

        def stacked(shape: tuple[int, ...], *rows: NumpyArray) -> th.Tensor:
            return tensor(np.stack(rows).reshape(-1, *shape))

        finals = [observation for cuts in self._cuts for _, observation in cuts]
        final_observations: Any = map_observation(stacked, self.obs_shape, *finals) if finals else None
        observations = map_observation(lambda storage: tensor(self._counted(storage)), self._observations)
        action_masks = None if self.action_masks is None else tensor(self._counted(self.action_masks))
        if self.mask_key is not None:
            action_masks = observations.pop(self.mask_key).flatten(1).bool()
            if final_observations is not None:
                del final_observations[self.mask_key]
        lengths = [np.diff(ends, prepend=0) for ends in self.episode_ends]
        first_steps = np.cumsum([0, *self._steps_of_env])
        cut_steps = [first_steps[env_idx] + step for env_idx, cuts in enumerate(self._cuts) for step, _ in cuts]
        return EpisodeBatch(
            observations=observations,
            actions=tensor(self._counted(self._actions)),
            rewards=self._counted(self._rewards).astype(np.float64),
            episode_lengths=np.concatenate(lengths).astype(np.int64),
            cut_steps=np.array(cut_steps, dtype=np.int64),
            final_observations=final_observations,
            episode_starts=np.array(
                [(env_idx, start) for env_idx, ends in enumerate(self.episode_ends) for start in [0, *ends][: len(ends)]],
                dtype=np.int64,
            ).reshape(-1, 2),
            action_masks=action_masks,
            features=None if self.features is None else tensor(self._counted(self.features)),
            outputs=self.outputs or PolicyOutputs(),
            starts=np.concatenate([np.array(own, dtype=np.int64) for own in self.starts]) if any(self.starts) else None,
            greedy_rewards=[self.greedy_rewards[start] for start in sorted(self.greedy_rewards)],
        )

    def _counted(self, storage: NumpyArray) -> NumpyArray:
        """The counted steps of an array, environment by environment."""
        steps_of_env = self._steps_of_env
        if self.n_envs == 1:
            return storage[: steps_of_env[0], 0]
        return np.concatenate([storage[:n_steps, env_idx] for env_idx, n_steps in enumerate(steps_of_env)])


class EpisodeRolloutBuffer(_WholeEpisodes, RolloutBuffer):  # type: ignore[misc, override]
    """
    SB3's ``RolloutBuffer`` for whole episodes of any length.

    ``buffer_size`` is only the initial capacity: storage doubles whenever an episode needs more. The update uses
    ``whole_episodes``; the arrays of SB3's buffer, and ``get``, exist for callbacks and are computed on access.
    """


class DictEpisodeRolloutBuffer(_WholeEpisodes, DictRolloutBuffer):  # type: ignore[misc, override]
    """``EpisodeRolloutBuffer`` for dict observations."""


def choose_buffer_class(chosen: type[Any] | None, observation_space: spaces.Space[Any]) -> type[Any]:
    """
    Choose the class of the rollout buffer.

    :param chosen: The user's choice; None for the default.
    :param observation_space: The environment's observation space.
    :return: The class.
    :raises ValueError: If the user's class does not hold whole episodes.
    """
    needed = DictEpisodeRolloutBuffer if isinstance(observation_space, spaces.Dict) else EpisodeRolloutBuffer
    if chosen is not None and not issubclass(chosen, needed):
        raise ValueError(
            f"rollout_buffer_class must derive from sb3_reinforce.rollout.buffers.{needed.__name__}, since SB3's buffers "
            f"hold a fixed number of steps and not whole episodes; {chosen.__name__} does not"
        )
    return chosen or needed
