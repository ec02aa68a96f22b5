"""Environments with no more episodes to count are idle while the others finish theirs."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from gymnasium.wrappers.utils import create_zero_array
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_reinforce.rollout.batch import NumpyArray

#: It is known what these store for each environment. Any other, even a subclass, might mishandle a row that does not change.
KNOWN_WRAPPERS = (
    VecCheckNan,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)


class IdleEnvironments:
    """
    Steps the environments of a ``VecEnv`` that are not idle.

    An idle environment is not stepped. Its row of a step's results has the last observation, reward 0, not done, and an info
    without an episode. ``VecMonitor`` and ``VecFrameStack`` leave its row unchanged, and ``VecNormalize`` updates its
    statistics from the other rows. Methods and attributes of an idle environment can be used as usual.

    :param env: Only a ``DummyVecEnv`` or a ``SubprocVecEnv`` within SB3's own wrappers can leave environments out; any other
        steps all of them, and none is ever idle.
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self._wrappers: list[VecEnvWrapper] = []
        while isinstance(env, VecEnvWrapper):
            self._wrappers.append(env)
            env = env.venv
        self._engine: Any = env
        self.is_supported = type(env) in (DummyVecEnv, SubprocVecEnv) and all(
            type(wrapper) in KNOWN_WRAPPERS for wrapper in self._wrappers
        )
        #: Which environments are idle, shape ``(n_envs,)``; replaced, not changed, by ``set_idle``.
        self.is_idle: NumpyArray = np.zeros(env.num_envs, dtype=bool)
        self.n_idle = 0
        self._is_stepping = False
        # Attributes ``step`` that environments of a ``DummyVecEnv`` had of their own, None for the method, by index
        self._steps: dict[int, Any] = {}

    def set_idle(self, indices: NumpyArray) -> None:
        """
        Exclude environments from the following steps, if that is supported.

        :param indices: Indices of environments at the start of an episode.
        """
        if not self.is_supported or len(indices) == 0:
            return
        self.is_idle = self.is_idle.copy()
        self.is_idle[indices] = True
        self._idle, self._stepped = np.flatnonzero(self.is_idle), np.flatnonzero(~self.is_idle)
        self.n_idle = len(self._idle)
        vars(self._engine)["step_async"] = self._step_async
        # Nobody reads it: ``step`` replaces it with the observation at which the environment waits
        observation = create_zero_array(self._engine.observation_space)
        if isinstance(self._engine, SubprocVecEnv):
            remotes = list(self._engine.remotes)
            for env_idx in indices:
                remotes[env_idx] = IdleRemote(remotes[env_idx], observation, self._engine.reset_infos[env_idx])
            self._engine.remotes = tuple(remotes)
            return
        for env_idx in indices:
            attributes = vars(self._engine.envs[env_idx])
            self._steps[env_idx] = attributes.get("step")
            attributes["step"] = lambda action: (observation, 0.0, False, False, {})

    def resume(self) -> None:
        """Step all environments again."""
        if self.n_idle == 0:
            return
        del self._engine.step_async
        for env_idx, step in self._steps.items():
            attributes = vars(self._engine.envs[env_idx])
            if step is None:
                del attributes["step"]
            else:
                attributes["step"] = step
        if isinstance(self._engine, SubprocVecEnv):
            idle = [remote for remote in self._engine.remotes if isinstance(remote, IdleRemote)]
            self._engine.remotes = tuple(getattr(remote, "remote", remote) for remote in self._engine.remotes)
            # If a step was interrupted, ``close`` waits for an answer from every process
            for remote in idle if self._engine.waiting else []:
                with contextlib.suppress(OSError):
                    remote.remote.send(("get_spaces", None))
        self._steps = {}
        self.is_idle = np.zeros_like(self.is_idle)
        self.n_idle = 0

    def step(self, actions: NumpyArray, last_obs: Any) -> VecEnvStepReturn:
        """
        Step the environments that are not idle.

        :param actions: Shape ``(n_envs, *action_shape)``. Actions of idle environments are not used.
        :param last_obs: The observations acted on, shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :return: As ``VecEnv.step``.
        """
        if self.n_idle == 0:
            return self.env.step(actions)
        # Indices select faster than booleans
        idle, stepped = self._idle, self._stepped
        rows = [attributes[name][idle] for attributes, name in self._arrays()]
        with self._counting(stepped):
            self._is_stepping = True
            try:
                observations, rewards, dones, infos = self.env.step(actions)
            finally:
                self._is_stepping = False
        for (attributes, name), values in zip(self._arrays(), rows, strict=True):
            attributes[name][idle] = values
        if isinstance(observations, dict):
            for key, part in observations.items():
                part[idle] = last_obs[key][idle]
        else:
            observations[idle] = last_obs[idle]  # type: ignore[index]
        return observations, rewards, dones, infos

    def _step_async(self, actions: NumpyArray) -> None:
        """The engine's ``step_async`` while environments are idle."""
        if not self._is_stepping:
            raise RuntimeError(
                "The training environment was stepped by something other than the rollout, such as a callback, while some of "
                "its environments are idle: their episodes would never end. Evaluate the policy in a separate environment."
            )
        type(self._engine).step_async(self._engine, actions)

    def _arrays(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Find the wrappers' arrays with a row for each environment: the dictionary that holds each array, and its key."""
        for wrapper in self._wrappers:
            if type(wrapper) is VecMonitor:
                yield vars(wrapper), "episode_returns"
                yield vars(wrapper), "episode_lengths"
            elif type(wrapper) is VecFrameStack:
                stacks = getattr(wrapper.stacked_obs, "sub_stacked_observations", {"": wrapper.stacked_obs})
                for stack in stacks.values():
                    yield vars(stack), "stacked_obs"
            elif type(wrapper) is VecNormalize:
                if isinstance(wrapper.old_obs, dict):
                    yield from ((wrapper.old_obs, key) for key in wrapper.old_obs)
                else:
                    yield vars(wrapper), "old_obs"

    @contextlib.contextmanager
    def _counting(self, counted: NumpyArray) -> Iterator[None]:
        """Let ``VecNormalize`` count only these rows. The discounted return of an idle environment stays 0."""
        counters: list[RunningMeanStd] = []
        for wrapper in self._wrappers:
            if type(wrapper) is VecNormalize:
                of_observations: Any = getattr(wrapper, "obs_rms", {})
                counters.append(wrapper.ret_rms)
                counters += of_observations.values() if isinstance(of_observations, dict) else [of_observations]
        for counter in counters:
            vars(counter)["update"] = partial(_update_from_rows, counter, counted)
        try:
            yield
        finally:
            for counter in counters:
                vars(counter).pop("update", None)


def _update_from_rows(counter: RunningMeanStd, rows: NumpyArray, values: NumpyArray) -> None:
    RunningMeanStd.update(counter, values[rows])


class IdleRemote:
    """
    Stand-in for the pipe to a process of a ``SubprocVecEnv``: it answers a step, and forwards everything else.

    :param remote: The pipe.
    :param observation: What a step returns.
    :param reset_info: Info of the reset at which the environment waits.
    """

    def __init__(self, remote: Any, observation: Any, reset_info: dict[str, Any]) -> None:
        self.remote = remote
        self.observation = observation
        self.reset_info = reset_info
        self._is_step = False

    def send(self, message: tuple[str, Any]) -> None:
        """Send any message but a step: a command and its data."""
        self._is_step = message[0] == "step"
        if not self._is_step:
            self.remote.send(message)

    def recv(self) -> Any:
        """Receive the answer to the last message."""
        return (self.observation, 0.0, False, {}, self.reset_info) if self._is_step else self.remote.recv()

    def close(self) -> None:
        """Close the pipe."""
        self.remote.close()
