"""
Behaviour cloning: maximum likelihood is the policy gradient's pseudo-loss with all weights equal to 1.

REINFORCE weights the score of an action by its return; cloning trusts the expert.
"""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, PolicyPredictor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.functional.estimator import PolicyGradientTargets
from sb3_reinforce.functional.returns import Array, IntArray, first_steps
from sb3_reinforce.lab import collect
from sb3_reinforce.lab.gradients import take_episodes
from sb3_reinforce.policies.averaging import make_averaged_policy
from sb3_reinforce.policies.masked_distribution import NumpyArray, action_dims_of, check_masks, split_observation
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.rollout.action_masks import ActionMaskReader
from sb3_reinforce.rollout.batch import EpisodeBatch, NumpyObs, map_observation, select_steps
from sb3_reinforce.update.policy_step import clone_tensors, compute_gradient


class Demonstrations(NamedTuple):
    """
    Observations and actions of an expert.

    :param observations: Array of shape ``(n_steps, *obs_shape)``, or a dict of such arrays.
    :param actions: Actions as the environment received them, shape ``(n_steps, *action_shape)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param returns: Sum of the rewards of each episode, shape ``(n_episodes,)``.
    :param action_masks: Valid actions of each step, shape ``(n_steps, n_options)``; None if the expert got no masks.
    """

    observations: NumpyObs
    actions: np.ndarray[Any, np.dtype[Any]]
    episode_lengths: IntArray
    returns: Array
    action_masks: np.ndarray[Any, np.dtype[np.bool_]] | None = None


class Cloning(NamedTuple):
    """
    The progress of a fit.

    :param log_probs: Mean log-probability of the held-out actions: before the fit, and after each pass.
    :param best_epoch: Number of passes after which it was highest; the model has the policy from then.
    """

    log_probs: list[float]
    best_epoch: int


def demonstrate(
    expert: PolicyPredictor | Callable[..., Any], env: GymEnv, n_episodes: int = 20, deterministic: bool = True, seed: int = 0
) -> Demonstrations:
    """
    Record episodes of an expert.

    Action masks, if the environment provides them (see ``rollout.action_masks.find_mask_source``), are passed to an expert
    that takes them: a REINFORCE with ``use_masking``, a MaskablePPO, or anything else with a parameter ``action_masks``.

    :param expert: An SB3 model of any algorithm, a policy, or anything else with SB3's ``predict``; or a function from the
        observations of all environments (and ``action_masks``) to their actions.
    :param env: An environment separate from the expert's, with the observations that the clone will get. It is seeded and
        reset.
    :param n_episodes: Number of episodes, split evenly among the environments.
    :param deterministic: Whether the expert takes deterministic actions. Has no effect on a function.
    :param seed: Seed of the environment and, with ``deterministic=False``, of the actions.
    :return: The demonstrations.
    :raises ValueError: If environment and expert do not match, no episode is requested, the expert needs action masks but the
        environment provides none, or an episode does not end.
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, not {n_episodes}")
    predict = getattr(expert, "predict", None)
    if predict is None and not callable(expert):
        raise ValueError(f"expert: must have SB3's predict, or be a function of the observations, not {expert!r}")
    env = collect.as_vec_env(expert, env)
    max_episode_steps = collect.find_max_episode_steps(env)
    # The same number per environment: the first episodes to finish would be the short ones
    quota = [(n_episodes + index) // env.num_envs for index in range(env.num_envs)]
    steps: list[list[tuple[Any, Any, Any]]] = [[] for _ in quota]
    done_steps: list[tuple[Any, Any, Any]] = []
    lengths, returns = [], []
    with collect.frozen(env, getattr(expert, "device", th.device("cpu"))):
        th.manual_seed(seed)
        env.seed(seed)
        observations: Any = env.reset()
        read_masks = _make_mask_reader(expert, env)
        sums, n_steps = np.zeros(env.num_envs), 0
        infos: list[dict[str, Any]] = [{}] * env.num_envs
        state, starts = None, np.ones(env.num_envs, dtype=bool)
        while any(quota):
            masks = None if read_masks is None else read_masks(observations, infos, starts, n_steps)
            given = {} if masks is None else {"action_masks": masks}
            # An expert may change its inputs, and environments reuse their arrays
            seen = copy.deepcopy(observations)
            if predict is None:
                actions = expert(observations, **given)  # type: ignore[operator]
            else:
                actions, state = predict(observations, state, starts, deterministic, **given)
            actions = _as_array("expert: its actions", actions)
            action_shape = (env.num_envs, *(env.action_space.shape or ()))
            if actions.shape != action_shape:
                raise ValueError(f"expert: its actions must be of shape {action_shape}, not {actions.shape}")
            observations, rewards, starts, infos = env.step(actions)
            n_steps += 1
            sums += rewards
            for index, left in enumerate(quota):
                if left == 0:
                    continue
                mask = None if masks is None else masks[index].copy()
                steps[index].append((select_steps(seen, index), actions[index].copy(), mask))
                if starts[index]:
                    done_steps += steps[index]
                    lengths.append(len(steps[index]))
                    returns.append(sums[index])
                    steps[index], quota[index] = [], left - 1
                collect.check_length(len(steps[index]), max_episode_steps)
            sums[starts] = 0.0
    all_observations, all_actions, all_masks = zip(*done_steps, strict=True)
    return Demonstrations(
        map_observation(lambda *parts: np.stack(parts), *all_observations),
        np.stack(all_actions),
        np.array(lengths, dtype=np.int64),
        np.array(returns, dtype=np.float64),
        None if all_masks[0] is None else np.stack(all_masks),
    )


def _make_mask_reader(expert: Any, env: VecEnv) -> ActionMaskReader | None:
    """Make the reader of the action masks, or return None if the expert takes none."""
    parameter = inspect.signature(getattr(expert, "predict", expert)).parameters.get("action_masks")
    if parameter is None or not getattr(expert, "use_masking", True):
        return None
    try:
        return ActionMaskReader(env)
    except ValueError as error:
        # A MaskablePPO can predict without masks, but was never trained to
        if isinstance(expert, BaseAlgorithm) or parameter.default is parameter.empty:
            raise ValueError(f"env: {type(expert).__name__} needs action masks. {error}") from error
    return None


def clone(
    model: REINFORCE,
    observations: Any,
    actions: Any,
    episode_lengths: Any = None,
    epochs: int = 50,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    patience: int = 5,
    seed: int = 0,
    action_masks: Any = None,
) -> Cloning:
    """
    Fit the actor of a model to the actions of an expert (Pomerleau 1991), with the model's loss and unit weights.

    This is a warm start: call it before ``learn``. It leaves the model's optimizer unchanged, and its critic too, which knows
    nothing about the new policy. It fits a copy of the policy: an error or Ctrl-C leaves the model as it was.

    :param model: The REINFORCE model whose actor is fitted. With continuous actions the standard deviation is fitted too: with
        a deterministic expert it shrinks, and exploration with it.
    :param observations: Observations as the model will get them, shape ``(n_steps, *obs_shape)``, or a dict of these; arrays,
        lists or tensors.
    :param actions: Actions as the environment gets them, shape ``(n_steps, *action_shape)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``. Minibatches and the held-out part then consist of
        whole episodes. A recurrent policy needs this. It also keeps the held-out part honest, since neighbouring steps are
        almost the same. None for independent steps.
    :param epochs: Maximum number of passes over the data.
    :param batch_size: Steps per minibatch, which ends with the episode that fills it.
    :param learning_rate: Learning rate of a new optimizer of the same class as the model's.
    :param held_out: Fraction of the episodes (or steps) held out to judge the fit.
    :param patience: Passes without a higher held-out log-probability after which the fit stops. The best policy is used.
    :param seed: Seed of the held-out part and the minibatches.
    :param action_masks: Valid actions, shape ``(n_steps, n_options)``, for a model with ``use_masking`` whose observations do
        not contain the masks. Without masks the policy is fitted as if all actions were valid.
    :return: The held-out log-probabilities.
    :raises ValueError: If an argument is out of range, the model is not a REINFORCE or its actor is frozen, or the
        demonstrations do not match the model or are too few to hold any out.
    """
    if not isinstance(model, REINFORCE):
        raise ValueError(f"model: must be a REINFORCE, whose loss is used, not {type(model).__name__}")
    batch = as_batch(model, observations, actions, episode_lengths, action_masks)
    n_episodes = len(batch.episode_lengths)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0.0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be above 0 and finite, not {learning_rate}")
    n_held_out = round(held_out * n_episodes) if 0.0 < held_out < 1.0 else 0
    if not 0 < n_held_out < n_episodes:
        raise ValueError(
            f"held_out must leave at least one of {n_episodes} episodes (or steps) on both sides, which {held_out} does not"
        )

    rng = np.random.default_rng(seed)
    order = rng.permutation(n_episodes)
    validation, training = take_episodes(batch, order[:n_held_out]), order[n_held_out:]
    policy = collect.copy_model(model).policy
    evaluator = collect.make_lab_evaluator(policy, model)
    optimizer: th.optim.Optimizer | None = None
    best, best_epoch = clone_tensors(policy.state_dict()), 0
    log_probs = [float(evaluator.log_probs(validation).mean())]
    for epoch in range(1, epochs + 1):
        for episodes in minibatches(rng.permutation(training), batch.episode_lengths, batch_size):
            minibatch = take_episodes(batch, episodes)
            parameters = compute_gradient(evaluator, minibatch, unit_weights(minibatch), ent_coef=0.0).parameters
            if not parameters:
                raise ValueError("model: its actor is frozen, no parameter of it requires a gradient")
            if optimizer is None:
                kind, settings = policy.optimizer_class, policy.optimizer_kwargs
                optimizer = kind(parameters, lr=learning_rate, **settings)  # type: ignore[call-arg]
            th.nn.utils.clip_grad_norm_(parameters, model.max_grad_norm)
            optimizer.step()
        log_probs.append(float(evaluator.log_probs(validation).mean()))
        if log_probs[-1] > log_probs[best_epoch]:
            best, best_epoch = clone_tensors(policy.state_dict()), epoch
        elif epoch - best_epoch >= patience:
            break
    policy.load_state_dict(best)
    model.policy.load_state_dict(best)
    if model.policy_averaging is not None:
        # The old average has nothing to do with the new policy
        model.policy_average = make_averaged_policy(policy, model.policy_averaging)
    return Cloning(log_probs, best_epoch)


def unit_weights(batch: EpisodeBatch) -> PolicyGradientTargets:
    """Give every step the same weight, which makes the pseudo-loss the negative mean log-likelihood."""
    ones = np.ones(len(batch.actions))
    return PolicyGradientTargets(rewards_to_go=ones, advantages=ones, score_weights=ones, n_averaged=len(ones))


def minibatches(order: IntArray, episode_lengths: IntArray, batch_size: int) -> list[IntArray]:
    """Return the indices of the episodes of each minibatch, which ends with the episode that fills it."""
    filled = np.cumsum(episode_lengths[order]) // batch_size
    return [part for part in np.split(order, np.flatnonzero(np.diff(filled, prepend=0)) + 1) if len(part)]


def as_batch(
    model: REINFORCE, observations: Any, actions: Any, episode_lengths: Any = None, action_masks: Any = None
) -> EpisodeBatch:
    """Make a batch of demonstrations, with actions as the policy samples them; ValueError if they do not match the model."""
    policy: ActorCriticPolicy = model.policy
    actions = _as_array("actions", actions)
    n_steps, action_shape = len(actions) if actions.ndim else 0, model.action_space.shape or ()
    if actions.shape != (n_steps, *action_shape):
        raise ValueError(f"actions must be of shape {(n_steps, *action_shape)}, not {actions.shape}")
    lengths = np.ones(n_steps, dtype=np.int64) if episode_lengths is None else _as_array("episode_lengths", episode_lengths)
    if n_steps == 0 or lengths.ndim != 1 or lengths.sum() != n_steps or (lengths < 1).any() or (lengths % 1).any():
        raise ValueError(
            f"episode_lengths must be above 0 and add up to the {n_steps} steps of the actions, not {lengths.sum()}"
        )
    parts = observations if isinstance(observations, dict) else {"observation": observations}
    space = model.observation_space
    spaces_of = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
    if set(parts) != set(spaces_of):
        raise ValueError(f"observations must have the parts {', '.join(spaces_of)}, not {', '.join(map(str, parts))}")
    parts = {name: _as_array(f"observations: {name}", part) for name, part in parts.items()}
    for name, part in parts.items():
        if part.shape != (n_steps, *(spaces_of[name].shape or ())):
            raise ValueError(
                f"observations: {name} must be of shape {(n_steps, *(spaces_of[name].shape or ()))}, as the model's space and "
                f"the number of actions say, not {part.shape}"
            )
        # The observations of many environments exceed their bounds
        is_float = np.issubdtype(spaces_of[name].dtype, np.floating)
        _check_values(f"observations: {name}", part, None if is_float else spaces_of[name])
    if isinstance(model.action_space, spaces.Box):
        actions = actions.astype(model.action_space.dtype)
    _check_values("actions", actions, model.action_space)

    seen: Any = obs_as_tensor(parts if isinstance(space, spaces.Dict) else parts["observation"], model.device)
    if model.use_masking:
        seen, observed = split_observation(seen)
        action_masks = observed.flatten(1).cpu().numpy() if action_masks is None and observed is not None else action_masks
    elif action_masks is not None:
        raise ValueError("action_masks: the model has use_masking=False, and would not use them")
    if action_masks is not None:
        action_masks = _check_action_masks(action_masks, actions, model.action_space)
    if isinstance(model.action_space, spaces.Box) and policy.squash_output:
        actions = policy.scale_action(actions)
    return EpisodeBatch(
        observations=seen,
        actions=th.as_tensor(actions.reshape(n_steps, -1), device=model.device),
        rewards=np.zeros(n_steps),
        episode_lengths=lengths.astype(np.int64),
        cut_steps=np.zeros(0, dtype=np.int64),
        final_observations=None,
        episode_starts=np.stack([np.zeros(len(lengths)), first_steps(lengths)], axis=1).astype(np.int64),
        action_masks=None if action_masks is None else th.as_tensor(action_masks, device=model.device),
    )


def _as_array(name: str, values: Any) -> NumpyArray:
    """Convert a tensor, or anything that NumPy can convert, to an array of numbers."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, th.Tensor) else np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be an array of numbers, not of {array.dtype}")
    return array


def _check_values(name: str, values: NumpyArray, space: spaces.Space[Any] | None) -> None:
    """Raise ``ValueError`` for values that are not finite or not in a space; it names the first step with such a value."""
    is_valid, allowed = np.isfinite(values), "finite numbers"
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    elif isinstance(space, spaces.MultiBinary):
        low, high = np.array([0]), np.array([1])
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        low, high = np.asarray(space.start), space.start + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1
    if space is not None:
        is_valid = is_valid & (values >= low) & (values <= high)
        allowed = f"from {np.min(low)} to {np.max(high)}, as in the model's space"
        if not np.issubdtype(space.dtype, np.floating):
            is_valid, allowed = is_valid & (values % 1 == 0), f"whole numbers {allowed}"
    if not is_valid.all():
        index = tuple(np.argwhere(~is_valid)[0])
        raise ValueError(f"{name} must be {allowed}, not {values[index]} as at step {index[0]}")


def _check_action_masks(action_masks: Any, actions: NumpyArray, action_space: spaces.Space[Any]) -> NumpyArray:
    """Convert action masks to one format; raise ``ValueError`` if they mask an action that was taken."""
    action_dims = action_dims_of(action_space)
    masks = check_masks(_as_array("action_masks", action_masks), action_dims, len(actions), "of step {}")
    options = actions.reshape(len(actions), -1).astype(np.int64) + np.cumsum([0, *action_dims[:-1]])
    is_forbidden = ~np.take_along_axis(masks, options, axis=1).all(axis=1)
    if is_forbidden.any():
        step = int(np.flatnonzero(is_forbidden)[0])
        raise ValueError(f"actions: what was done at step {step}, {actions[step]}, is forbidden by its action mask")
    return masks
