"""Gymnasium's vector environments as an SB3 ``VecEnv``."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_reinforce.policies.masked_distribution import NumpyArray
from sb3_reinforce.vec_env.base import EngineVecEnv, Info, ObsRows, select_rows, set_rows


class GymnasiumVecEnv(EngineVecEnv):
    """
    A gymnasium vector environment as a ``VecEnv``.

    A ``VecEnv`` resets an environment on the last step of an episode. All vector environments that do the same
    (``AutoresetMode.SAME_STEP``) are supported. Among those that reset one step later (``NEXT_STEP``) or never
    (``DISABLED``), ``SyncVectorEnv``, ``AsyncVectorEnv`` and gymnasium's CartPole are supported, since they can reset single
    environments, but not inside vector wrappers, which would miss these resets.

    The next ``reset()`` passes seeds and options to the vector environment: a single seed, and the same options for all.

    :param engine: The vector environment.
    :raises ValueError: If a space or the reset mode is not supported; the message names it.
    """

    def __init__(self, engine: VectorEnv[Any, Any, Any]) -> None:
        self.engine = engine
        self._resets_itself = engine.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP
        if not self._resets_itself:
            _check_reset_mode(engine)
        self._with_list_infos = DictInfoToList(engine)
        super().__init__(engine.num_envs, engine.single_observation_space, engine.single_action_space)
        self.metadata = engine.metadata

    def _reset_engine(self) -> tuple[ObsRows, list[Info]]:
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError(f"A vector environment takes the same options for all environments, not {self._options}")
        return self._with_list_infos.reset(seed=self._seeds[0], options=options or None)

    def _step_engine(self, actions: NumpyArray) -> tuple[ObsRows, NumpyArray, NumpyArray, NumpyArray, list[Info]]:
        obs, rewards, terminated, truncated, infos = self._with_list_infos.step(actions)
        dones = terminated | truncated
        if self._resets_itself and dones.any():
            indices = np.flatnonzero(dones)
            self._first_rows = select_rows(obs, indices), [infos[i] for i in indices]
            for i in indices:
                set_rows(obs, i, infos[i].pop("final_obs"))
                infos[i] = infos[i].pop("final_info", {})
        return obs, rewards, terminated, truncated, infos

    def _restart(self, indices: NumpyArray) -> tuple[ObsRows, list[Info]]:
        if self._resets_itself:
            return self._first_rows
        if type(self.engine) is CartPoleVectorEnv:
            return _restart_cart_poles(self.engine, indices)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[indices] = True
        obs, infos = self._with_list_infos.reset(options={"reset_mask": mask})
        return select_rows(obs, indices), [infos[i] for i in indices]

    def _render_engine(self) -> Sequence[NumpyArray]:
        return list(self.engine.render())  # type: ignore[arg-type]

    def has_attr(self, attr_name: str) -> bool:
        """
        Check whether all environments have an attribute or a method.

        This avoids reading a missing attribute, which ends the processes of an ``AsyncVectorEnv``.
        """
        if hasattr(self.engine, "call"):
            return all(self.engine.call("has_wrapper_attr", attr_name))
        return super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of each environment, or of the vector environment if it has no separate environments."""
        if hasattr(self.engine, "get_attr"):
            values = self.engine.get_attr(attr_name)
        else:
            values = [getattr(self.engine, attr_name)] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute. Raises ``NotImplementedError`` if the vector environment has no separate environments."""
        if not hasattr(self.engine, "set_attr"):
            raise NotImplementedError(f"Cannot set {attr_name}: the environments of {self.engine} are no separate objects")
        chosen = set(self._get_indices(indices))
        old = [value] * self.num_envs if len(chosen) == self.num_envs else self.get_attr(attr_name)
        self.engine.set_attr(attr_name, [value if i in chosen else old[i] for i in range(self.num_envs)])

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the chosen environments.

        Raises ``NotImplementedError`` if the vector environment has no separate environments, or if they run in other
        processes and only some are chosen.
        """
        chosen = list(self._get_indices(indices))
        if isinstance(self.engine, SyncVectorEnv):
            return [self.engine.envs[i].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for i in chosen]
        if hasattr(self.engine, "call") and chosen == list(range(self.num_envs)):
            return list(self.engine.call(method_name, *method_args, **method_kwargs))
        raise NotImplementedError(f"Cannot call {method_name} of environments {chosen} of {self.engine}")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return True for ``Monitor``, since the infos hold its statistics, and for wrappers inside a ``SyncVectorEnv``."""
        answers = super().env_is_wrapped(wrapper_class, indices)
        if isinstance(self.engine, SyncVectorEnv):
            inside = [is_wrapped(self.engine.envs[i], wrapper_class) for i in self._get_indices(indices)]
            return [answer or wrapped for answer, wrapped in zip(answers, inside, strict=True)]
        return answers

    def close(self) -> None:
        """Close all environments."""
        self.engine.close()


def make_gymnasium_vec_env(env_id: str, n_envs: int = 1, seed: int | None = None, **env_kwargs: Any) -> GymnasiumVecEnv:
    """
    Create an SB3 ``VecEnv`` from gymnasium's vectorised environment (``vector_entry_point``), with ``Monitor``'s statistics.

    :param env_id: Id in gymnasium's registry.
    :param n_envs: Number of environments.
    :param seed: Seed of the first reset; None for a random seed.
    :param env_kwargs: Passed to ``gymnasium.make_vec``, for instance ``max_episode_steps``.
    :return: The environments.
    :raises gymnasium.error.Error: If gymnasium does not know the id or has no vectorised implementation of it.
    :raises ValueError: If ``GymnasiumVecEnv`` does not support it.
    """
    vec_env = GymnasiumVecEnv(gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point", **env_kwargs))
    vec_env.seed(seed)
    return vec_env


def _check_reset_mode(engine: VectorEnv[Any, Any, Any]) -> None:
    """Raise ``ValueError`` if a vector environment cannot reset single environments."""
    mode = engine.metadata.get("autoreset_mode")
    if isinstance(engine, AsyncVectorEnv) and not engine.shared_memory and mode is AutoresetMode.NEXT_STEP:
        raise ValueError(
            "AsyncVectorEnv with shared_memory=False and AutoresetMode.NEXT_STEP resets an environment a second time, on the "
            "step after it was asked to: use shared_memory=True, or another reset mode"
        )
    if type(engine) is not CartPoleVectorEnv and not isinstance(engine, SyncVectorEnv | AsyncVectorEnv):
        raise ValueError(
            f"The reset mode {mode} of {engine} is not supported: it must be "
            "AutoresetMode.SAME_STEP, as this vector environment cannot reset single environments when their episodes end"
        )


def _restart_cart_poles(engine: CartPoleVectorEnv, indices: NumpyArray) -> tuple[ObsRows, list[Info]]:
    """
    Reset these environments now, as ``CartPoleVectorEnv`` would on its next step.

    It has no reset mask: its ``reset()`` always resets all environments.
    """
    assert engine.state is not None
    engine.state[:, indices] = engine.np_random.uniform(engine.low, engine.high, size=(4, len(indices)))
    engine.steps[indices] = 0
    engine.prev_done[indices] = False
    return engine.state.T[indices].astype(np.float32), [{} for _ in indices]
