"""The vectorised environments that are measured, and how stepping and learning are timed on them."""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

#: From observations of all environments to actions for all of them.
ChooseActions = Callable[[Any], np.ndarray]

#: So many random actions per environment are drawn ahead, and then used again and again.
N_PRESAMPLED = 1_000


class Stepping(NamedTuple):
    """How long a number of environment steps took: inside ``VecEnv.step`` alone, and with choosing the actions."""

    steps: int
    seconds: float
    seconds_with_actions: float


def use_one_thread() -> None:
    th.set_num_threads(1)


def make_venv(
    env_id: str, engine: str, n_envs: int, vec_normalize: bool = False, seed: int = 0, envpool_threads: int | None = None
) -> VecEnv:
    if engine == "envpool":
        from sb3_reinforce.vec_env import make_envpool_vec_env

        own_arguments = {} if envpool_threads is None else {"num_threads": envpool_threads}
        venv = make_envpool_vec_env(env_id, n_envs, seed, **own_arguments)
    else:
        venv = make_vec_env(env_id, n_envs=n_envs, seed=seed)
    return VecNormalize(venv) if vec_normalize else venv


def random_actions(venv: VecEnv, seed: int = 0) -> ChooseActions:
    """Draw random actions ahead, so that none is drawn while the time is taken."""
    venv.action_space.seed(seed)
    actions = [np.stack([venv.action_space.sample() for _ in range(venv.num_envs)]) for _ in range(N_PRESAMPLED)]
    endless = itertools.cycle(actions)
    return lambda observations: next(endless)


def measure_stepping(venv: VecEnv, choose_actions: ChooseActions, n_steps: int) -> Stepping:
    """Step from a reset until at least so many steps are done, over all environments."""
    observations = venv.reset()
    n_vec_steps = -(-n_steps // venv.num_envs)
    seconds = 0.0
    start = time.perf_counter()
    for _ in range(n_vec_steps):
        actions = choose_actions(observations)
        step_start = time.perf_counter()
        observations, _, _, _ = venv.step(actions)
        seconds += time.perf_counter() - step_start
    seconds_with_actions = time.perf_counter() - start
    return Stepping(n_vec_steps * venv.num_envs, seconds, seconds_with_actions)


def measure_learning(model: BaseAlgorithm, n_steps: int) -> dict[str, float]:
    """Go on learning for at least so many steps; the last rollout is finished, and every step of it counts."""
    steps_before = model.num_timesteps
    start = time.perf_counter()
    model.learn(n_steps, reset_num_timesteps=False)
    return {"steps": model.num_timesteps - steps_before, "seconds": time.perf_counter() - start}
