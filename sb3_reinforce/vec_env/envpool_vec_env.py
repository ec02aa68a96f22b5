"""EnvPool (Weng et al. 2022) as an SB3 ``VecEnv``: environments in C++, stepped by a pool of threads."""

import difflib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_reinforce.policies.masked_distribution import MASK_KEY, NumpyArray, has_action_mask
from sb3_reinforce.rollout.action_masks import OBSERVATION_KEY
from sb3_reinforce.vec_env.base import EngineVecEnv, Info, ObsRows

#: EnvPool's seeds are int32, and environment i gets the seed plus i: this bound avoids an overflow.
N_SEEDS = 2**30


class EnvPoolVecEnv(EngineVecEnv):
    """
    An EnvPool as a ``VecEnv``.

    EnvPool resets an environment one step after its episode ends. This adapter resets it at once, by a separate call that
    does not step the other environments.

    EnvPool takes its seed at construction, so a ``reset()`` after ``seed()`` rebuilds the pool. Infos are returned only on the
    last step of an episode; returning them on every step would be too slow.

    Actions with several components, an integer Box in EnvPool, become MultiDiscrete. If the action mask of a task covers
    combinations of the components, an action is the index of a combination. A mask that EnvPool returns in the infos
    (``legal_action_mask``) becomes the key ``action_mask`` of a Dict observation, as in Jumanji's tasks.

    EnvPool does not say whether an episode that ends on the very step of its time limit also terminated: it counts as
    truncated. EnvPool's spaces may be wider than gymnasium's: to continue with a model in the other kind of environment, see
    ``custom_objects`` of ``load()``.

    :param make_pool: Builds a synchronous pool with one player per environment; takes the keyword argument ``seed``.
    :param seed: Seed of the first environment; environment i gets ``seed + i``. None for a random seed.
    :raises ValueError: If the pool has an unsupported space or several players per environment, or is asynchronous.
    """

    def __init__(self, make_pool: Callable[..., Any], seed: int | None = None) -> None:
        self._make_pool = make_pool
        self._build_pool(int(np.random.randint(N_SEEDS)) if seed is None else seed)
        config, spec = self.pool.spec.config, self.pool.spec
        if config.max_num_players > 1:
            raise ValueError(
                f"max_num_players={config.max_num_players} is not supported: an environment must have one player, "
                "so choose a single-agent task"
            )
        if config.batch_size not in (0, config.num_envs):
            raise ValueError(
                f"batch_size={config.batch_size} with {config.num_envs} environments makes EnvPool asynchronous, which "
                "a VecEnv cannot be: leave batch_size out"
            )

        self._action_dtype = list(spec.action_array_spec.values())[-1].dtype
        state_keys = list(self.pool._state_keys)
        self._done, self._truncated, self._reward = (state_keys.index(key) for key in ("done", "trunc", "reward"))
        self._obs_indices = _index_by_name(state_keys, "obs")
        self._info_indices = _index_by_name(state_keys, "info")
        self._info_indices.pop("env_id")
        self._info_indices.pop("players.env_id")
        self._env_ids = np.arange(config.num_envs, dtype=np.int32)
        observation_space, action_space = _gymnasium_space(spec.observation_space), _action_space(spec.action_space)
        self._legal_actions: int | None = self._info_indices.pop("legal_action_mask", None)
        if self._legal_actions is not None:
            mask_space = spaces.MultiBinary(int(action_space.n))
            observation_space = spaces.Dict({OBSERVATION_KEY: observation_space, MASK_KEY: mask_space})
        self._combinations = _masked_combinations(observation_space, action_space)
        if self._combinations is not None:
            action_space = spaces.Discrete(math.prod(self._combinations))
        super().__init__(config.num_envs, observation_space, action_space)

    def _build_pool(self, seed: int) -> None:
        self._pool = self._make_pool(seed=seed % N_SEEDS)

    @property
    def pool(self) -> Any:
        """The pool. Raises ``gymnasium.error.ClosedEnvironmentError`` after ``close()``."""
        if self._pool is None:
            raise gym.error.ClosedEnvironmentError("This EnvPoolVecEnv is closed: make a new one")
        return self._pool

    def _reset_engine(self) -> tuple[ObsRows, list[Info]]:
        if any(self._options):
            raise ValueError(f"EnvPool takes no options at a reset, but set_options() gave {self._options}")
        if self._seeds[0] is not None:
            self.pool.close()
            self._build_pool(self._seeds[0])
        return self._restart(self._env_ids)

    # The step bypasses EnvPool's Python layer, which takes longer (25 µs) than the physics of eight CartPoles

    def _step_engine(self, actions: NumpyArray) -> tuple[ObsRows, NumpyArray, NumpyArray, NumpyArray, list[Info]]:
        shape = (self.num_envs, *self.action_space.shape)  # type: ignore[misc]
        if np.shape(actions) != shape:
            # EnvPool would read past the end of the array
            raise ValueError(f"Actions must have shape {shape}, not {np.shape(actions)}")
        if self._combinations is not None:
            actions = np.stack(np.unravel_index(actions, self._combinations), axis=1)
        actions = np.ascontiguousarray(actions, dtype=self._action_dtype)
        pool = self.pool
        pool._send([self._env_ids, self._env_ids, actions])
        state = pool._recv()

        dones, truncated = state[self._done], state[self._truncated]
        infos: list[Info] = [self._info(state, i) if done else {} for i, done in enumerate(dones.tolist())]
        return self._obs(state), state[self._reward], dones & ~truncated, truncated, infos

    def _restart(self, indices: NumpyArray) -> tuple[ObsRows, list[Info]]:
        self.pool._reset(indices.astype(np.int32))
        state = self.pool._recv()
        return self._obs(state), [self._info(state, row) for row in range(len(indices))]

    def _obs(self, state: list[NumpyArray]) -> ObsRows:
        if len(self._obs_indices) == 1:
            obs = state[next(iter(self._obs_indices.values()))]
            return obs if self._legal_actions is None else {OBSERVATION_KEY: obs, MASK_KEY: state[self._legal_actions]}
        return {name: state[index] for name, index in self._obs_indices.items()}

    def _info(self, state: list[NumpyArray], row: int) -> Info:
        return {name: state[index][row] for name, index in self._info_indices.items()}

    def _render_engine(self) -> Sequence[NumpyArray]:
        return list(self.pool.render(env_ids=self._env_ids))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Get an attribute of the pool, which all environments share."""
        return [getattr(self.pool, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raise ``NotImplementedError``: the environments are not Python objects."""
        raise NotImplementedError(f"Cannot set {attr_name}: EnvPool's environments live in C++ and have no attributes")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Raise ``NotImplementedError``: the environments are not Python objects."""
        raise NotImplementedError(f"Cannot call {method_name}: EnvPool's environments live in C++ and have no methods")

    def close(self) -> None:
        """Close viewers and stop the threads of the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None  # EnvPool's own close() leaves its threads running


def make_envpool_vec_env(env_id: str, n_envs: int = 1, seed: int | None = None, **env_kwargs: Any) -> EnvPoolVecEnv:
    """
    Create an SB3 ``VecEnv`` from an EnvPool task, with episode statistics as from ``Monitor``.

    :param env_id: Name of the task, see ``envpool.list_all_envs()``.
    :param n_envs: Number of environments.
    :param seed: Seed of the first environment; environment i gets ``seed + i``. None for a random seed.
    :param env_kwargs: Passed to ``envpool.make``, for instance ``num_threads`` or ``max_episode_steps``.
    :return: The environments.
    :raises ImportError: If EnvPool is not installed; the message says how to install it.
    :raises ValueError: If EnvPool does not have the task, or it cannot be a ``VecEnv``; see ``EnvPoolVecEnv``.
    """
    envpool = import_envpool(env_id)
    return EnvPoolVecEnv(functools.partial(envpool.make, env_id, "gymnasium", num_envs=n_envs, **env_kwargs), seed)


def import_envpool(env_id: str) -> ModuleType:
    """
    Import EnvPool.

    :param env_id: Name of a task.
    :return: The package ``envpool``.
    :raises ImportError: If EnvPool is not installed; the message says how to install it.
    :raises ValueError: If EnvPool does not have the task; names similar ones.
    """
    try:
        import envpool
    except ImportError as error:
        raise ImportError(
            'EnvPool, which needs Python 3.11, is not installed: pip install "sb3-reinforce[envpool]"'
        ) from error
    tasks = envpool.list_all_envs()
    if env_id not in tasks:
        nearest = difflib.get_close_matches(env_id, tasks)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "envpool.list_all_envs() lists them all"
        raise ValueError(f"EnvPool has no task {env_id!r}: {hint}")
    return envpool


def _index_by_name(state_keys: Iterable[str], kind: str) -> dict[str, int]:
    """Map names to indices in EnvPool's state for one kind of array, ``obs`` or ``info``: ``obs:position`` is ``position``."""
    return {key.partition(":")[2]: index for index, key in enumerate(state_keys) if key.partition(":")[0] == kind}


def _action_space(space: Any) -> Any:
    """Convert an integer Box from 0 to the MultiDiscrete that it stands for: one choice per entry."""
    if isinstance(space, spaces.Box) and space.dtype.kind in "iu" and len(space.shape) == 1 and not space.low.any():
        return spaces.MultiDiscrete(space.high.astype(np.int64) + 1)
    return _gymnasium_space(space)


def _masked_combinations(observation_space: Any, action_space: Any) -> tuple[int, ...] | None:
    """Return the number of options per component if the mask covers their combinations rather than single options."""
    if not (has_action_mask(observation_space) and isinstance(action_space, spaces.MultiDiscrete)):
        return None
    options = tuple(action_space.nvec.tolist())
    return options if observation_space[MASK_KEY].shape == options else None


def _gymnasium_space(space: Any) -> Any:
    """Correct EnvPool's bounds, which use C++'s positive ``numeric_limits<float>::min()`` as the lowest number."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _gymnasium_space(part) for key, part in space.spaces.items()})
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
        return space
    limits = np.finfo(space.dtype)
    low = np.where(space.low == limits.tiny, -np.inf, space.low)
    high = np.where(space.high == limits.max, np.inf, space.high)
    return spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)
