"""Several episodes from the same start: the environments of a rollout are reset with equal seeds, wave by wave."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_reinforce.functional.baselines import Baseline
from sb3_reinforce.functional.returns import IntArray
from sb3_reinforce.rollout.batch import named_parts


class CommonStarts(NamedTuple):
    """
    The episodes of a rollout, grouped by their starts.

    :param n_starts: Number of starts.
    :param episodes_per_start: Counted episodes from each start.
    :param has_greedy_episodes: Whether there is also an episode of the deterministic policy from each start.
    """

    n_starts: int
    episodes_per_start: int
    has_greedy_episodes: bool

    def waves(self, n_envs: int) -> Iterator[tuple[IntArray, bool]]:
        """
        Divide the episodes into waves that begin at the same time, one episode in each of the first environments.

        A wave consists of the start index of each episode, and whether the policy is deterministic: such waves come first.
        """
        greedy = np.arange(self.n_starts if self.has_greedy_episodes else 0)
        for starts, is_greedy in ((greedy, True), (np.repeat(np.arange(self.n_starts), self.episodes_per_start), False)):
            for first in range(0, len(starts), n_envs):
                yield starts[first : first + n_envs], is_greedy


def choose_common_starts(n_episodes: int | None, episodes_per_start: int | None, baseline: Baseline) -> CommonStarts | None:
    """Choose the starts of a rollout of ``n_episodes`` in this process; None if every episode starts independently."""
    if n_episodes is None or (episodes_per_start is None and not baseline.needs_greedy_episodes):
        return None
    each = episodes_per_start or 1
    return CommonStarts(n_episodes // each, each, baseline.needs_greedy_episodes)


def check_restartable(env: VecEnv, argument: str) -> None:
    """Refuse environments that cannot be reset with equal seeds; ``argument``, for the message, is what requires it."""
    engine = env.unwrapped
    if not isinstance(engine, DummyVecEnv | SubprocVecEnv):
        raise ValueError(
            f"{argument} needs environments that can be reset with equal seeds, a DummyVecEnv or a SubprocVecEnv, and "
            f"{type(engine).__name__} is none"
        )


def reset_to(model: OnPolicyAlgorithm, env: VecEnv, starts: IntArray, seeds: IntArray) -> None:
    """
    Reset all environments, using the same seed for the same start.

    :param starts: Start index of each of the first environments.
    :param seeds: Seed of each start.
    :raises ValueError: If the first observations differ after the same seed; names two environments.
    """
    engine: Any = env.unwrapped
    # VecEnv.seed gives each environment a different seed
    engine._seeds = [*seeds[starts].tolist(), *[None] * (env.num_envs - len(starts))]
    model._last_obs = env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    for name, rows in named_parts("observation", model._last_obs).items():
        for env_idx, start in enumerate(starts.tolist()):
            first = starts.tolist().index(start)
            if not np.array_equal(rows[env_idx], rows[first], equal_nan=rows.dtype.kind == "f"):
                raise ValueError(
                    f"The first {name} of environments {first} and {env_idx} differ, though both were reset with the seed "
                    f"{seeds[start]}: episodes can have a common start only where reset(seed=...) decides it"
                )
