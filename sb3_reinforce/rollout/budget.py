"""The budget of a rollout: which episodes count, and the bound that ends it in any case."""

import math

from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

#: Steps of an environment beyond the budget of a rollout, without a time limit and ``max_rollout_steps``.
DEFAULT_EXTRA_STEPS = 50_000

#: With ``n_episodes``, the episode length that the default bound expects.
EXPECTED_EPISODE_STEPS = 1_000


class EpisodeQuota:
    """
    Decides at the start of an episode whether it counts.

    Deciding later would favour short episodes: among episodes that run at the same time, they finish first.

    :param n_steps: Episodes that start before this step of the rollout count, unless ``n_episodes`` is given.
    :param n_episodes: Number of episodes that count, in the order in which they start.
    """

    def __init__(self, n_steps: int, n_episodes: int | None = None) -> None:
        self.n_steps = n_steps
        self.n_episodes = n_episodes
        self.n_started = 0

    def accepts(self, start_step: int) -> bool:
        """
        Tell whether an episode that starts after ``start_step`` steps of each environment counts.

        Call it once for every episode, in the order of their starts.
        """
        self.n_started += 1
        if self.n_episodes is not None:
            return self.n_started <= self.n_episodes
        return start_step < self.n_steps


def find_bound(
    max_rollout_steps: int | None, time_limit: int | None, n_steps: int | None, n_episodes: int | None, n_envs: int
) -> float:
    """
    Choose the bound of a rollout, so that it does not hang in an episode that never ends.

    It depends only on how the rollout is declared, not on the budget of ``learn``: a rollout that has begun is finished.

    :param max_rollout_steps: The user's choice; None if the user made none.
    :param time_limit: Largest time limit of the environments; None if one of them has none.
    :param n_steps: Budget in steps of each environment.
    :param n_episodes: Budget in episodes over all environments, which takes precedence over ``n_steps``.
    :param n_envs: Number of environments of all processes.
    :return: Steps of each environment; ``math.inf`` for no bound.
    """
    if max_rollout_steps is not None:
        return max_rollout_steps
    if time_limit is not None:
        return math.inf
    if n_episodes is not None:
        return DEFAULT_EXTRA_STEPS + EXPECTED_EPISODE_STEPS * -(-n_episodes // n_envs)
    assert n_steps is not None
    return DEFAULT_EXTRA_STEPS + n_steps


def find_time_limit(env: VecEnv) -> int | None:
    """Return the largest time limit of the environments, in steps; None if one of them has none, or it is unknown."""
    try:
        if all(env.env_is_wrapped(TimeLimit)):
            return int(max(env.get_attr("_max_episode_steps")))
        if isinstance(env.unwrapped, DummyVecEnv | SubprocVecEnv):
            return None
        # An engine that steps many environments at once has no wrappers, but it has a specification
        spec = env.get_attr("spec", indices=0)[0]
        limit: int | None = getattr(getattr(spec, "config", spec), "max_episode_steps", None)
    except Exception:  # Third-party vectorised environments may raise anything
        return None
    return limit


def explain_cut(max_steps: float, n_cut: int, has_critic: bool) -> str:
    """Return a warning that a rollout reached its bound, and what to do."""
    closing = "the value of its last observation" if has_critic else "what it had earned until then"
    return (
        f"A rollout reached max_rollout_steps={max_steps} steps per environment, and the episodes that were still running "
        f"({n_cut}) were cut: each return was closed with {closing}. If episodes are meant to be that long, "
        "raise max_rollout_steps; if they never end, wrap the environment in gymnasium.wrappers.TimeLimit."
    )
