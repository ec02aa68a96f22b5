"""Collecting whole episodes of a model that stays exactly as it is."""

import contextlib
import copy
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_reinforce.arguments import check_env_type
from sb3_reinforce.functional.returns import Array
from sb3_reinforce.lab.gradients import MICRO_BATCH_SIZE
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.rollout.batch import EpisodeBatch
from sb3_reinforce.rollout.budget import EXPECTED_EPISODE_STEPS, EpisodeQuota, find_time_limit
from sb3_reinforce.rollout.buffers import DictEpisodeRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.rollout.collector import collect_episodes
from sb3_reinforce.update.evaluator import PolicyEvaluator, make_evaluator

#: With fewer, no interval deserves the name.
MIN_EPISODES = 20
#: An episode that lasts so many steps, and longer than the time limit of its environment, is taken never to end.
MAX_EPISODE_STEPS = 10_000


class Episodes(NamedTuple):
    """
    Episodes of a model.

    :param model: A stand-in for the model, with a copy of its policy.
    :param reader: Of that copy.
    :param batch: The episodes.
    :param returns: Sum of the rewards of each episode, undiscounted and, where a ``Monitor`` says it, as the environment gave
        them, in the order in which the episodes ended, shape ``(n_episodes,)``.
    """

    model: OnPolicyAlgorithm
    reader: PolicyEvaluator
    batch: EpisodeBatch
    returns: Array


class _Watch(BaseCallback):
    """Shows how many episodes are done, and ends what would never end."""

    def __init__(self, n_episodes: int, bar: Any, max_episode_steps: int) -> None:
        super().__init__()
        self.n_episodes = n_episodes
        self.bar = bar
        self.max_episode_steps = max_episode_steps
        self.n_steps: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def _on_step(self) -> bool:
        dones = self.locals["dones"]
        self.n_steps = np.where(dones, 0, (0 if self.n_steps is None else self.n_steps) + 1)
        check_length(int(self.n_steps.max()), self.max_episode_steps)
        if self.bar is not None:
            self.bar.update(self.locals["n_episodes"] - self.bar.n)
        return True


def find_max_episode_steps(env: VecEnv) -> int:
    """Find after how many steps an episode is taken never to end: the time limit, if that is the larger number."""
    return max(MAX_EPISODE_STEPS, find_time_limit(env) or 0)


def check_length(n_steps: int, max_episode_steps: int) -> None:
    """Refuse an episode that has to be taken for one that never ends."""
    if n_steps >= max_episode_steps:
        raise ValueError(
            f"env: an episode did not end within {max_episode_steps:,} steps, and the laboratory needs whole ones: wrap the "
            "environment in gymnasium.wrappers.TimeLimit"
        )


def check_model(model: BaseAlgorithm, n_episodes: int) -> None:
    """
    Check what can be checked before episodes are collected.

    :param model: The model.
    :param n_episodes: How many episodes shall be collected.
    :raises ValueError: If the model has no stochastic actor as REINFORCE's, or there are too few episodes.
    """
    if not isinstance(model, OnPolicyAlgorithm) or not isinstance(model.policy, ActorCriticPolicy):
        raise ValueError(
            f"model: {type(model).__name__} has no stochastic actor with a log-probability to differentiate; the laboratory "
            "measures REINFORCE, A2C and PPO"
        )
    if n_episodes < MIN_EPISODES:
        raise ValueError(f"n_episodes must be at least {MIN_EPISODES}, not {n_episodes}: fewer say nothing about noise")


def as_vec_env(model: Any, env: GymEnv) -> VecEnv:
    """
    Wrap an environment as SB3 does, and check that a model can act in it.

    :param model: A model, or anything else that acts, whose spaces are not known.
    :param env: The environment, wrapped as the model's was.
    :return: The environment as a ``VecEnv``.
    :raises ValueError: If it is no environment or the model's own, or if their spaces differ.
    """
    if not isinstance(env, gym.Env | VecEnv):
        check_env_type(env)
        raise ValueError(f"env: must be an environment or a VecEnv, such as SB3's make_vec_env makes, not {env!r}")
    env = BaseAlgorithm._wrap_env(env)
    if not isinstance(model, BaseAlgorithm):
        return env
    if env is model.get_env():
        raise ValueError("env: must not be the model's own, which would lose the episodes that it is in; make another")
    try:
        check_for_correct_spaces(env, model.observation_space, model.action_space)
    except ValueError as error:
        raise ValueError(f"env: is not one that the model can act in. {error}") from error
    return env


def stand_in_for(model: OnPolicyAlgorithm) -> OnPolicyAlgorithm:
    """
    Copy what collecting and stepping change.

    :param model: The model, which is left as it is.
    :return: A model with the same settings, a copy of the policy and its optimizer, and a logger that writes nothing.
    """
    stand_in = copy.copy(model)
    # The distribution holds tensors with a graph, which cannot be copied deeply, and is made anew at its next use
    distribution = model.policy.action_dist
    stand_in.policy = copy.deepcopy(model.policy, {id(distribution): copy.copy(distribution)})
    stand_in.policy.set_training_mode(False)
    stand_in.set_logger(Logger(None, []))
    if isinstance(stand_in, REINFORCE):
        stand_in._warned, stand_in._rng = set(), copy.deepcopy(model._rng)  # type: ignore[attr-defined]
    return stand_in


def make_buffer(stand_in: OnPolicyAlgorithm, n_envs: int) -> tuple[EpisodeRolloutBuffer | DictEpisodeRolloutBuffer, bool]:
    """
    Make a buffer for whole episodes.

    :param stand_in: See ``stand_in_for``.
    :param n_envs: Number of environments to collect in.
    :return: The buffer, and whether actions are masked.
    """
    if isinstance(stand_in, REINFORCE):
        own = copy.copy(stand_in)
        own.n_envs, own.n_steps = n_envs, None
        own._setup_rollout_buffer()
        return own.rollout_buffer, own.use_masking
    is_dict = isinstance(stand_in.observation_space, spaces.Dict)
    buffer_class = DictEpisodeRolloutBuffer if is_dict else EpisodeRolloutBuffer
    spaces_of = (stand_in.observation_space, stand_in.action_space)
    return buffer_class(EXPECTED_EPISODE_STEPS, *spaces_of, device=stand_in.device, n_envs=n_envs), False  # type: ignore[arg-type]


def bootstraps_at_time_limit(model: OnPolicyAlgorithm) -> bool:
    """
    Tell whether a model goes on with the value of the last observation where a time limit cut an episode.

    :param model: See ``stand_in_for``.
    :return: As SB3's algorithms do, and REINFORCE with a critic if it is asked to.
    """
    return not isinstance(model, REINFORCE) or (model.baseline == "value" and model.bootstrap_at_time_limit)


@contextlib.contextmanager
def frozen(env: VecEnv, device: th.device) -> Iterator[None]:
    """Keep the statistics of ``VecNormalize`` and PyTorch's generator as they are."""
    normalize = unwrap_vec_normalize(env)
    was_training = normalize is not None and normalize.training
    if normalize is not None:
        normalize.training = False
    try:
        with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        if normalize is not None:
            normalize.training = was_training


def collect(
    model: OnPolicyAlgorithm, env: GymEnv, n_episodes: int = 500, seed: int = 0, progress_bar: bool = False
) -> Episodes:
    """
    Collect whole episodes, which count as in ``REINFORCE``: the first ones to start.

    The model is left as it is: its parameters, their gradients, its generators, its environment, its statistics.

    :param model: Acts, with sampled actions. With gSDE every episode has an exploration matrix of its own.
    :param env: An environment that is not the model's own; it is seeded and reset. Wrapped as the model's was.
    :param n_episodes: How many.
    :param seed: Of the environment and the actions.
    :param progress_bar: Whether to show one (needs tqdm).
    :return: The episodes.
    :raises ValueError: If environment and model do not fit, there are too few episodes, or an episode does not end.
    """
    check_model(model, n_episodes)
    env = as_vec_env(model, env)
    stand_in = stand_in_for(model)
    stand_in.ep_info_buffer = deque(maxlen=n_episodes)
    stand_in.ep_success_buffer = deque(maxlen=n_episodes)
    # Makes the collection begin with a reset
    stand_in._last_episode_starts = np.zeros(env.num_envs, dtype=bool)

    buffer, use_masking = make_buffer(stand_in, env.num_envs)
    max_episode_steps = find_max_episode_steps(env)
    max_steps = max_episode_steps * (-(-n_episodes // env.num_envs) + 1)
    bootstraps = bootstraps_at_time_limit(model)
    with progress(progress_bar, "episodes", n_episodes) as bar, frozen(env, model.device):
        th.manual_seed(seed)
        env.seed(seed)
        watch = _Watch(n_episodes, bar, max_episode_steps)
        watch.init_callback(stand_in)
        rng = np.random.default_rng(seed)
        collect_episodes(stand_in, env, watch, buffer, EpisodeQuota(0, n_episodes), max_steps, bootstraps, rng, use_masking)
        if bar is not None:
            bar.update(n_episodes - bar.n)

    batch = buffer.whole_episodes()
    returns = np.array([info["r"] for info in stand_in.ep_info_buffer], dtype=np.float64)
    if len(returns) < n_episodes:
        returns = np.add.reduceat(batch.rewards, np.cumsum(batch.episode_lengths) - batch.episode_lengths)
    micro_batch_size = min(getattr(model, "micro_batch_size", None) or MICRO_BATCH_SIZE, MICRO_BATCH_SIZE)
    return Episodes(stand_in, make_evaluator(stand_in.policy, micro_batch_size), batch, returns)


@contextlib.contextmanager
def progress(is_shown: bool, what: str, total: int) -> Iterator[Any]:
    """
    Show a progress bar for the duration of the context.

    :param is_shown: Whether to.
    :param what: What is counted.
    :param total: How many there will be.
    :return: The bar of tqdm, or None.
    """
    if not is_shown:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, leave=False) as bar:
        yield bar
