"""One rollout: which episodes count, the loop over the steps of the environments, and the bound that ends it in any case."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_reinforce.buffers import DictEpisodeRolloutBuffer, EpisodeRolloutBuffer, NumpyArray, map_observation
from sb3_reinforce.masking import MaskReader, split_observation
from sb3_reinforce.sampling import make_action_sampler

#: Without a time limit and ``max_rollout_steps``, steps of an environment that a rollout may last beyond its budget.
DEFAULT_EXTRA_STEPS = 50_000
#: With ``n_episodes``, how long the default bound expects an episode to be.
EXPECTED_EPISODE_STEPS = 1_000


class EpisodeQuota:
    """
    Decides at the start of an episode whether it counts.

    Deciding later would favour short episodes: of those that run at the same time, they finish first.

    :param n_steps: Episodes that start before so many steps of the rollout count, unless ``n_episodes`` is given.
    :param n_episodes: So many episodes count, in the order in which they start.
    """

    def __init__(self, n_steps: int, n_episodes: int | None = None) -> None:
        self.n_steps = n_steps
        self.n_episodes = n_episodes
        self.n_started = 0

    def admits(self, start_step: int) -> bool:
        """
        Tell whether an episode that starts now counts. To be asked once for every episode, in the order of their starts.

        :param start_step: Steps that each environment has made in this rollout.
        :return: Whether it counts.
        """
        self.n_started += 1
        if self.n_episodes is not None:
            return self.n_started <= self.n_episodes
        return start_step < self.n_steps


class Rollout(NamedTuple):
    """
    What was collected.

    :param n_steps: Steps of each environment.
    :param n_episodes: Counted episodes, the cut ones among them.
    :param n_cut: Counted episodes that the bound cut.
    """

    n_steps: int
    n_episodes: int
    n_cut: int


def default_max_steps(n_steps: int | None, n_episodes: int | None, n_envs: int) -> int:
    """
    Choose the bound of a rollout in environments without a time limit, so that an episode that never ends does not hang.

    It depends on the declared rollout alone, not on the budget of ``learn``: a rollout that has begun is finished.

    :param n_steps: Budget in steps of each environment.
    :param n_episodes: Budget in episodes over all environments, which rules where it is given.
    :param n_envs: Number of environments.
    :return: Steps of each environment.
    """
    if n_episodes is not None:
        return DEFAULT_EXTRA_STEPS + EXPECTED_EPISODE_STEPS * -(-n_episodes // n_envs)
    assert n_steps is not None
    return DEFAULT_EXTRA_STEPS + n_steps


def find_time_limit(env: VecEnv) -> int | None:
    """
    Ask environments how long their episodes may last.

    :param env: Any vectorised environment.
    :return: The largest limit in steps; None if there is an environment without one, or that does not say.
    """
    try:
        if all(env.env_is_wrapped(TimeLimit)):
            return int(max(env.get_attr("_max_episode_steps")))
        if isinstance(env.unwrapped, DummyVecEnv | SubprocVecEnv):
            return None
        # An engine that steps many environments at once has no wrappers, but a specification
        spec = env.get_attr("spec", indices=0)[0]
        limit: int | None = getattr(getattr(spec, "config", spec), "max_episode_steps", None)
    except Exception:  # What other people's vectorised environments raise is anybody's guess
        return None
    return limit


def explain_cut(max_steps: float, n_cut: int, has_critic: bool) -> str:
    """
    Say that a rollout was bounded, and what to do.

    :param max_steps: The bound.
    :param n_cut: Episodes that it cut.
    :param has_critic: Whether the returns could be closed with a value.
    :return: A warning.
    """
    closing = "the value of its last observation" if has_critic else "what it had earned until then"
    return (
        f"A rollout reached max_rollout_steps={max_steps} steps per environment with {n_cut} episodes still "
        f"running. They were cut, and each return was closed with {closing}. If episodes are meant to be that long, "
        "raise max_rollout_steps; if they never end, wrap the environment in gymnasium.wrappers.TimeLimit."
    )


def make_action_transform(model: OnPolicyAlgorithm) -> Any:
    """
    Make the function from sampled actions to those that the environment accepts, as in SB3.

    :param model: Whose policy samples.
    :return: Takes and returns actions of shape ``(n_envs, *action_shape)``.
    """
    if not isinstance(model.action_space, spaces.Box):
        return lambda actions: actions
    if model.policy.squash_output:
        return model.policy.unscale_action
    low, high = model.action_space.low, model.action_space.high
    # Several times faster than np.clip on small arrays
    return lambda actions: np.minimum(np.maximum(actions, low), high)


def reset_noise_of(policy: ActorCriticPolicy, episode_starts: NumpyArray) -> None:
    """
    Sample new noise matrices of gSDE for the environments in which an episode starts.

    Episodes that share a matrix are not independent: a baseline that compares them would subtract an episode's own noise.

    :param policy: Uses gSDE.
    :param episode_starts: Where an episode starts, shape ``(n_envs,)``.
    """
    distribution: Any = policy.action_dist
    present = distribution.exploration_matrices
    with th.no_grad():
        policy.reset_noise(len(episode_starts))
        starts = th.as_tensor(episode_starts, device=policy.device)[:, None, None]
        distribution.exploration_matrices = th.where(starts, distribution.exploration_matrices, present)


def is_of_libraries(callback: Any) -> bool:
    """
    Tell whether a callback, with those that it calls, comes with SB3, sb3-contrib, RL Zoo or this package.

    None of these changes a policy within a rollout or reads ``obs_tensor``.

    :param callback: Of a training, or what such a callback calls.
    :return: False for a callback of the user's.
    """
    children = [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    children += getattr(callback, "callbacks", [])
    is_known = type(callback).__module__.startswith(("stable_baselines3.", "sb3_contrib.", "rl_zoo3.", "sb3_reinforce."))
    return is_known and all(child is None or is_of_libraries(child) for child in children)


def collect_episodes(
    model: OnPolicyAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: EpisodeRolloutBuffer | DictEpisodeRolloutBuffer,
    quota: EpisodeQuota,
    max_steps: float,
    bootstraps: bool,
    rng: np.random.Generator,
    use_masking: bool = False,
) -> Rollout | None:
    """
    Step the environments until every counted episode is finished.

    While the last of them are finished, the other environments are stepped too, since a ``VecEnv`` steps all; those
    steps count in ``num_timesteps``, but are not used.

    :param model: Acts with its policy, counts the steps and keeps the last observations.
    :param env: The training environment.
    :param callback: Called at the start and at every step; it finds the locals of this function.
    :param rollout_buffer: Filled with the steps.
    :param quota: Decides which episodes count.
    :param max_steps: Bound on the steps of each environment, where running episodes are cut; ``math.inf`` for none.
    :param bootstraps: Whether an episode that a time limit ended keeps its final observation, to be valued.
    :param rng: Draws the actions.
    :param use_masking: Whether the environment says which actions are allowed.
    :return: What was collected, or None if the callback stopped early.
    :raises ValueError: If a reward or an observation is NaN or infinite, or an action mask cannot be used; names the
        environment and the step. Or if there are no masks where there should be.
    """
    if not np.all(model._last_episode_starts):
        model._last_obs = env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    rollout_buffer.reset()
    if model.use_sde:
        model.policy.reset_noise(env.num_envs)
    to_env_actions = make_action_transform(model)
    counts = [quota.admits(start_step=0) for _ in range(env.num_envs)]
    n_running, n_episodes, n_steps = sum(counts), 0, 0
    read_masks = MaskReader(env) if use_masking else None
    action_masks: Any = None
    infos: list[dict[str, Any]] = [{}] * env.num_envs
    # Looking for changes of the policy, and a tensor of the observations, take half the time of a step of CartPole
    is_watched = not is_of_libraries(callback)
    obs_tensor: Any = None

    callback.on_rollout_start()
    sample_actions = make_action_sampler(model.policy, env.num_envs, rng)

    while n_running > 0 and n_steps < max_steps:
        if model.use_sde and model.sde_sample_freq > 0 and n_steps % model.sde_sample_freq == 0:
            model.policy.reset_noise(env.num_envs)
        elif model.use_sde and n_steps > 0 and np.any(model._last_episode_starts):
            reset_noise_of(model.policy, model._last_episode_starts)  # type: ignore[arg-type]

        observations: Any = model._last_obs
        if read_masks is not None:
            action_masks = read_masks(observations, infos, model._last_episode_starts, n_steps)  # type: ignore[arg-type]
            observations, _ = split_observation(observations)
        try:
            actions = sample_actions(observations, action_masks)
        except ValueError:
            # PyTorch's distributions refuse NaN: say where it came from, if it came from the environment
            rollout_buffer.add(model._last_obs, np.zeros((env.num_envs, rollout_buffer.action_dim)), np.zeros(env.num_envs))  # type: ignore[arg-type]
            rollout_buffer.check_finite()
            raise
        if is_watched:
            # As in SB3's loop, for callbacks that evaluate the policy or a network of their own on it
            obs_tensor = obs_as_tensor(model._last_obs, model.device)  # type: ignore[arg-type]
        clipped_actions = to_env_actions(actions)
        new_obs, rewards, dones, infos = env.step(clipped_actions)

        model.num_timesteps += env.num_envs

        # Give access to local variables
        callback.update_locals(locals())
        if not callback.on_step():
            model._last_obs, model._last_episode_starts = new_obs, dones  # type: ignore[assignment]
            return None
        if is_watched:
            sample_actions.refresh()
        n_steps += 1

        rollout_buffer.add(model._last_obs, actions, rewards, action_masks)  # type: ignore[arg-type]
        model._last_obs, model._last_episode_starts = new_obs, dones  # type: ignore[assignment]

        # A quarter of the time of dones.any() on a few environments
        if np.count_nonzero(dones):
            sample_actions.forget(dones)
            for env_idx in np.flatnonzero(dones).tolist():
                if counts[env_idx]:
                    info = infos[env_idx]
                    goes_on = bootstraps and info.get("TimeLimit.truncated", False)
                    rollout_buffer.finish_episode(env_idx, info.get("terminal_observation") if goes_on else None)
                    model._update_info_buffer([info], dones[env_idx : env_idx + 1])
                    n_episodes += 1
                    # At the bound no episode can start any more
                    counts[env_idx] = n_steps < max_steps and quota.admits(start_step=n_steps)
                    n_running += counts[env_idx] - 1

    for env_idx in np.flatnonzero(counts).tolist():
        final_observation = map_observation(lambda observations: observations[env_idx], model._last_obs)  # noqa: B023
        rollout_buffer.finish_episode(env_idx, final_observation)
    rollout_buffer.check_finite()
    callback.update_locals(locals())
    return Rollout(n_steps, n_episodes + n_running, n_running)
