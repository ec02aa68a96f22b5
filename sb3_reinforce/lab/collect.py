"""Collect whole episodes of a model without changing the model."""

import contextlib
import copy
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_reinforce.arguments import check_env_type
from sb3_reinforce.functional.returns import Array, first_steps
from sb3_reinforce.lab.estimators import has_critic
from sb3_reinforce.lab.gradients import MICRO_BATCH_SIZE
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.rollout.batch import EpisodeBatch
from sb3_reinforce.rollout.budget import EXPECTED_EPISODE_STEPS, EpisodeQuota, find_time_limit
from sb3_reinforce.rollout.buffers import DictEpisodeRolloutBuffer, EpisodeRolloutBuffer, choose_buffer_class
from sb3_reinforce.rollout.collector import RolloutSettings, collect_episodes
from sb3_reinforce.rollout.common_starts import CommonStarts
from sb3_reinforce.update import make_evaluator
from sb3_reinforce.update.evaluator import PolicyEvaluator

#: Fewer episodes give no meaningful interval.
MIN_EPISODES = 20
#: An episode with this many steps, and longer than its environment's time limit, is assumed never to end.
MAX_EPISODE_STEPS = 10_000


class Episodes(NamedTuple):
    """
    Episodes of a model.

    :param model: A copy of the model, with a copy of its policy.
    :param evaluator: Policy evaluator of that copy.
    :param batch: The episodes.
    :param returns: Undiscounted sum of the rewards of each episode, from ``Monitor`` where there is one, in the order in which
        the episodes ended, shape ``(n_episodes,)``.
    """

    model: OnPolicyAlgorithm
    evaluator: PolicyEvaluator
    batch: EpisodeBatch
    returns: Array


class _Watch(BaseCallback):
    """Show how many episodes are done, and stop episodes that would never end."""

    def __init__(self, bar: Any, max_episode_steps: int) -> None:
        super().__init__()
        self.bar = bar
        self.max_episode_steps = max_episode_steps
        self.n_steps: Any = 0

    def _on_step(self) -> bool:
        self.n_steps = np.where(self.locals["dones"], 0, self.n_steps + 1)
        check_length(int(self.n_steps.max()), self.max_episode_steps)
        if self.bar is not None:
            self.bar.update(sum(map(len, self.locals["rollout_buffer"].episode_ends)) - self.bar.n)
        return True


def find_max_episode_steps(env: VecEnv) -> int:
    """Return the number of steps beyond which an episode is assumed never to end: at least the time limit."""
    return max(MAX_EPISODE_STEPS, find_time_limit(env) or 0)


def check_length(n_steps: int, max_episode_steps: int) -> None:
    """Raise ``ValueError`` for an episode that seems never to end."""
    if n_steps >= max_episode_steps:
        raise ValueError(
            f"env: an episode did not end within {max_episode_steps:,} steps, and the laboratory needs whole ones: wrap the "
            "environment in gymnasium.wrappers.TimeLimit"
        )


def check_model(model: BaseAlgorithm, n_episodes: int) -> None:
    """Raise ``ValueError`` if the model has no stochastic actor like REINFORCE's, or there are too few episodes."""
    if not isinstance(model, OnPolicyAlgorithm) or not isinstance(model.policy, ActorCriticPolicy):
        raise ValueError(
            f"model: {type(model).__name__} has no stochastic actor with a log-probability to differentiate; the laboratory "
            "measures REINFORCE, A2C and PPO"
        )
    if any(base.__name__ == "TRPO" for base in type(model).__mro__):
        raise ValueError(
            "model: TRPO does not step its policy with its optimizer, so the size of its step cannot be measured; the "
            "laboratory measures REINFORCE, A2C and PPO"
        )
    if n_episodes < MIN_EPISODES:
        raise ValueError(f"n_episodes must be at least {MIN_EPISODES}, not {n_episodes}: fewer say nothing about noise")


def as_vec_env(model: Any, env: GymEnv) -> VecEnv:
    """
    Wrap an environment as SB3 does, and check that a model (or any other agent, whose spaces are unknown) can act in it.

    :raises ValueError: If it is not an environment, is the model's own, or has other spaces than the model.
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


def copy_model(model: OnPolicyAlgorithm) -> OnPolicyAlgorithm:
    """Copy what collecting and updating change: policy, optimizer and generators; the copy's logger writes nothing."""
    copied = copy.copy(model)
    # The distribution holds tensors with a graph, which cannot be deep-copied; it is rebuilt at its next use
    distribution = model.policy.action_dist
    copied.policy = copy.deepcopy(model.policy, {id(distribution): copy.copy(distribution)})
    copied.policy.set_training_mode(False)
    copied.set_logger(Logger(None, []))
    if isinstance(copied, REINFORCE):
        copied._warned, copied._rng = set(), copy.deepcopy(model._rng)  # type: ignore[attr-defined]
    return copied


def make_lab_evaluator(policy: ActorCriticPolicy, model: OnPolicyAlgorithm) -> PolicyEvaluator:
    """Make an evaluator with a model's micro-batches, up to the laboratory's maximum size."""
    return make_evaluator(policy, min(getattr(model, "micro_batch_size", None) or MICRO_BATCH_SIZE, MICRO_BATCH_SIZE))


def make_buffer(model: OnPolicyAlgorithm, n_envs: int) -> EpisodeRolloutBuffer | DictEpisodeRolloutBuffer:
    """Make a buffer for whole episodes of a model's copy."""
    if isinstance(model, REINFORCE):
        owner = copy.copy(model)
        owner.n_envs, owner.n_steps = n_envs, None
        owner._setup_rollout_buffer()
        return owner.rollout_buffer
    buffer_class: type[EpisodeRolloutBuffer] = choose_buffer_class(None, model.observation_space)
    spaces = (model.observation_space, model.action_space)
    return buffer_class(EXPECTED_EPISODE_STEPS, *spaces, device=model.device, n_envs=n_envs)


@contextlib.contextmanager
def frozen(env: VecEnv, device: th.device) -> Iterator[None]:
    """Leave the statistics of ``VecNormalize`` and PyTorch's generator unchanged."""
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
    model: OnPolicyAlgorithm,
    env: GymEnv,
    n_episodes: int = 500,
    seed: int = 0,
    progress_bar: bool = False,
    common_starts: CommonStarts | None = None,
) -> Episodes:
    """
    Collect whole episodes, counted as in ``REINFORCE``: the first ones to start. See ``measure``.

    Common starts determine how many episodes are collected. With gSDE every episode has its own exploration matrix.
    """
    check_model(model, n_episodes)
    env = as_vec_env(model, env)
    copied = copy_model(model)
    copied.ep_info_buffer = deque(maxlen=n_episodes)
    copied.ep_success_buffer = deque(maxlen=n_episodes)
    # Make the collection start with a reset
    copied._last_episode_starts = np.zeros(env.num_envs, dtype=bool)

    buffer, use_masking = make_buffer(copied, env.num_envs), getattr(copied, "use_masking", False)
    max_episode_steps = find_max_episode_steps(env)
    max_steps = max_episode_steps * (-(-n_episodes // env.num_envs) + 1)
    # SB3's algorithms bootstrap where a time limit truncated an episode
    bootstraps = has_critic(model) and getattr(model, "bootstrap_at_time_limit", True)
    with progress(progress_bar, "episodes", n_episodes) as bar, frozen(env, model.device):
        th.manual_seed(seed)
        env.seed(seed)
        watch = _Watch(bar, max_episode_steps)
        watch.init_callback(copied)
        rng = np.random.default_rng(seed)
        settings = RolloutSettings(max_steps, bootstraps, rng, use_masking)
        collect_episodes(copied, env, watch, buffer, EpisodeQuota(0, n_episodes), settings, common_starts)
        if bar is not None:
            bar.update(n_episodes - bar.n)

    batch = buffer.whole_episodes()
    returns = np.array([info["r"] for info in copied.ep_info_buffer], dtype=np.float64)
    if len(returns) < n_episodes:
        returns = np.add.reduceat(batch.rewards, first_steps(batch.episode_lengths))
    return Episodes(copied, make_lab_evaluator(copied.policy, model), batch, returns)


@contextlib.contextmanager
def progress(is_shown: bool, what: str, total: int) -> Iterator[Any]:
    """Yield a progress bar of tqdm, or None if it is not shown."""
    if not is_shown:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, leave=False) as bar:
        yield bar
