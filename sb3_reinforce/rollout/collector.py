"""The loop over the steps of the environments."""

import operator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.policies.masked_distribution import split_observation
from sb3_reinforce.rollout import make_action_sampler
from sb3_reinforce.rollout.action_masks import ActionMaskReader
from sb3_reinforce.rollout.batch import NumpyArray, select_steps
from sb3_reinforce.rollout.budget import EpisodeQuota
from sb3_reinforce.rollout.buffers import DictEpisodeRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.rollout.common_starts import CommonStarts, check_restartable, reset_to
from sb3_reinforce.rollout.idle_environments import IdleEnvironments


class Rollout(NamedTuple):
    """
    What was collected in a rollout.

    :param n_steps: Steps made, over all environments.
    :param n_episodes: Counted episodes, including the cut ones.
    :param n_cut: Counted episodes that the bound cut.
    :param infos: Infos of the environment at the ends of the other counted episodes.
    """

    n_steps: int
    n_episodes: int
    n_cut: int
    infos: list[dict[str, Any]]


class RolloutSettings(NamedTuple):
    """
    How episodes are collected.

    :param max_steps: Bound on the steps of each environment, at which running episodes are cut; ``math.inf`` for none.
    :param bootstraps: Whether the final observation of an episode that a time limit ended is stored, to bootstrap from it.
    :param rng: Generator of the actions, and of the seeds of common starts.
    :param use_masking: Whether to use the environment's action masks.
    """

    max_steps: float
    bootstraps: bool
    rng: np.random.Generator
    use_masking: bool = False


def make_action_transform(model: OnPolicyAlgorithm) -> Any:
    """
    Make the function that maps sampled actions to actions that the environment accepts, as in SB3; both have shape
    ``(n_envs, *action_shape)``.
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
    Sample new noise matrices of gSDE for the environments in which an episode starts, shape ``(n_envs,)``.

    Episodes that share a matrix are not independent: a baseline that compares them would subtract the episode's own noise.
    """
    distribution: Any = policy.action_dist
    present = distribution.exploration_matrices
    with th.no_grad():
        policy.reset_noise(len(episode_starts))
        starts = th.as_tensor(episode_starts, device=policy.device)[:, None, None]
        distribution.exploration_matrices = th.where(starts, distribution.exploration_matrices, present)


def is_of_libraries(callback: Any) -> bool:
    """
    Tell whether a callback, and all callbacks that it calls, come with SB3, sb3-contrib, RL Zoo or this package.

    None of these changes a policy within a rollout or reads ``obs_tensor``.
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
    settings: RolloutSettings,
    common_starts: CommonStarts | None = None,
) -> Rollout | None:
    """
    Step the environments until every counted episode is finished.

    An environment whose episodes no longer count is idle until the next rollout (``IdleEnvironments``). If the ``VecEnv`` can
    only step all environments, such steps count in ``num_timesteps``, but are not used.

    :param model: Provides the policy, counts the steps and stores the last observations.
    :param env: The training environment.
    :param callback: Called at the start and at every step, with the locals of ``step_episodes``, among them ``is_idle``: the
        environments that were not stepped, shape ``(n_envs,)``.
    :param rollout_buffer: Filled with the steps.
    :param quota: Decides which episodes count, unless they have common starts.
    :param settings: How episodes are collected.
    :param common_starts: Episodes to collect instead, wave by wave; None for independent starts.
    :return: What was collected, or None if the callback stopped early.
    :raises ValueError: If a reward or an observation is NaN or infinite, or an action mask cannot be used; names the
        environment and the step. Also if masks or common starts are required but missing.
    """
    rollout_buffer.reset()
    # A reset by somebody else since the last rollout, such as evaluate_policy, left other infos
    last_obs, reset_infos = rollout_buffer.end_of_last_rollout
    was_used = last_obs is model._last_obs and any(map(operator.is_not, reset_infos, reset_infos_of(env)))
    if common_starts is None and (was_used or not np.all(model._last_episode_starts)):
        model._last_obs = env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    callback.on_rollout_start()
    if common_starts is None:
        rollout = step_episodes(model, env, callback, rollout_buffer, quota, settings)
    else:
        rollout = step_waves(model, env, callback, rollout_buffer, common_starts, settings)
    if rollout is not None:
        rollout_buffer.finish_rollout()
        rollout_buffer.end_of_last_rollout = model._last_obs, reset_infos_of(env)
    return rollout


def reset_infos_of(env: VecEnv) -> list[dict[str, Any]]:
    """The info of the last reset of every environment; none if the ``VecEnv`` has no such list."""
    return list(getattr(env.unwrapped, "reset_infos", ()))


def step_waves(
    model: OnPolicyAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: EpisodeRolloutBuffer | DictEpisodeRolloutBuffer,
    common_starts: CommonStarts,
    settings: RolloutSettings,
) -> Rollout | None:
    """
    Collect episodes from common starts. See ``collect_episodes``; episodes of the deterministic policy count as steps only,
    and are cut at the same bound.
    """
    check_restartable(env, "episodes_per_start")
    seeds = settings.rng.integers(2**31, size=common_starts.n_starts)
    total, steps_made = Rollout(0, 0, 0, []), 0
    for starts, is_greedy in common_starts.waves(env.num_envs):
        if steps_made >= settings.max_steps:
            break
        reset_to(model, env, starts, seeds)
        quota, first_step = EpisodeQuota(0, len(starts)), rollout_buffer.pos
        rest = settings._replace(max_steps=settings.max_steps - steps_made)
        rollout = step_episodes(model, env, callback, rollout_buffer, quota, rest, is_greedy)
        if rollout is None:
            return None
        if is_greedy:
            rollout = rollout._replace(n_episodes=0, n_cut=0, infos=[])
        else:
            steps_made += rollout_buffer.pos - first_step
        n_episodes, n_cut = total.n_episodes + rollout.n_episodes, total.n_cut + rollout.n_cut
        total = Rollout(total.n_steps + rollout.n_steps, n_episodes, n_cut, total.infos + rollout.infos)
        rollout_buffer.finish_wave(first_step, starts.tolist(), is_greedy)
    return total


def step_episodes(
    model: OnPolicyAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: EpisodeRolloutBuffer | DictEpisodeRolloutBuffer,
    quota: EpisodeQuota,
    settings: RolloutSettings,
    deterministic: bool = False,
) -> Rollout | None:
    """
    Step the environments, which are at the start of an episode, until every counted episode is finished.

    See ``collect_episodes``; returns of a deterministic policy are not recorded, since its episodes are no training episodes.
    """
    if model.use_sde:
        model.policy.reset_noise(env.num_envs)
    to_env_actions = make_action_transform(model)
    counts = [quota.accepts(start_step=0) for _ in range(env.num_envs)]
    n_running, n_episodes, n_steps = sum(counts), 0, 0
    read_masks = ActionMaskReader(env) if settings.use_masking else None
    action_masks: Any = None
    infos: list[dict[str, Any]] = [{}] * env.num_envs
    finished_infos: list[dict[str, Any]] = []
    dones: NumpyArray = np.zeros(env.num_envs, dtype=bool)
    steps_before = model.num_timesteps
    # Checking the policy for changes, and making a tensor of the observations, take half the time of a step of CartPole
    is_watched = not is_of_libraries(callback)
    obs_tensor: Any = None

    sample_actions = make_action_sampler(model.policy, env.num_envs, settings.rng)
    sample_actions.deterministic = deterministic

    environments = IdleEnvironments(env)
    try:
        environments.set_idle(np.flatnonzero(np.logical_not(counts)))
        while n_running > 0 and n_steps < settings.max_steps:
            if model.use_sde and model.sde_sample_freq > 0 and n_steps % model.sde_sample_freq == 0:
                model.policy.reset_noise(env.num_envs)
            elif model.use_sde and np.any(dones):
                reset_noise_of(model.policy, dones)

            observations: Any = model._last_obs
            if read_masks is not None:
                action_masks = read_masks(observations, infos, model._last_episode_starts, n_steps)  # type: ignore[arg-type]
                observations, _ = split_observation(observations)
            try:
                actions = sample_actions(observations, action_masks)
            except ValueError:
                # PyTorch's distributions refuse NaN: report its source if it came from the environment
                no_actions, no_rewards = np.zeros((env.num_envs, rollout_buffer.action_dim)), np.zeros(env.num_envs)
                rollout_buffer.add(model._last_obs, no_actions, no_rewards)  # type: ignore[arg-type]
                rollout_buffer.check_finite()
                raise
            if is_watched:
                # As in SB3's loop, for callbacks that evaluate the policy or a network of their own on it
                obs_tensor = obs_as_tensor(model._last_obs, model.device)  # type: ignore[arg-type]
            clipped_actions = to_env_actions(actions)
            is_idle = environments.is_idle
            new_obs, rewards, dones, infos = environments.step(clipped_actions, model._last_obs)

            model.num_timesteps += env.num_envs - environments.n_idle

            # An idle environment waits at the start of an episode
            episode_starts = np.logical_or(dones, is_idle) if environments.n_idle else dones

            # Give access to local variables
            callback.update_locals(locals())
            if not callback.on_step():
                model._last_obs, model._last_episode_starts = new_obs, episode_starts  # type: ignore[assignment]
                return None
            if is_watched:
                sample_actions.refresh()
            n_steps += 1

            rollout_buffer.add(model._last_obs, actions, rewards, action_masks)  # type: ignore[arg-type]
            rollout_buffer.add_features(sample_actions.features)
            model._last_obs, model._last_episode_starts = new_obs, episode_starts  # type: ignore[assignment]

            # Takes a quarter of the time of dones.any() on a few environments
            if np.count_nonzero(dones):
                sample_actions.reset_states(dones)
                for env_idx in np.flatnonzero(dones).tolist():
                    if counts[env_idx]:
                        info = infos[env_idx]
                        goes_on = settings.bootstraps and info.get("TimeLimit.truncated", False)
                        rollout_buffer.finish_episode(env_idx, info.get("terminal_observation") if goes_on else None)
                        model._update_info_buffer([] if deterministic else [info], dones[env_idx : env_idx + 1])
                        finished_infos.append(info)
                        n_episodes += 1
                        # At the bound, no more episodes can start
                        counts[env_idx] = n_steps < settings.max_steps and quota.accepts(start_step=n_steps)
                        n_running += counts[env_idx] - 1
                environments.set_idle(np.flatnonzero(np.logical_and(dones, np.logical_not(counts))))
    except BaseException:
        # Whatever happened, the next rollout begins with a reset
        model._last_episode_starts = np.zeros(env.num_envs, dtype=bool)
        raise
    finally:
        environments.resume()

    for env_idx in np.flatnonzero(counts).tolist():
        rollout_buffer.finish_episode(env_idx, select_steps(model._last_obs, env_idx))
    rollout_buffer.check_finite()
    callback.update_locals(locals())
    return Rollout(model.num_timesteps - steps_before, n_episodes + n_running, n_running, finished_infos)
