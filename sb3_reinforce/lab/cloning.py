"""
Behaviour cloning: the pseudo-loss of the policy gradient with all weights 1.

Maximising the likelihood of what an expert did and the policy gradient differ in nothing but the weight of each step:
REINFORCE weights the score of an action by what came of it, cloning trusts that the expert knew.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce.buffers import EpisodeBatch, NumpyObs, map_observation
from sb3_reinforce.estimators import StepWeights
from sb3_reinforce.lab.collect import check_environment, frozen
from sb3_reinforce.lab.gradients import MICRO_BATCH_SIZE, take_episodes
from sb3_reinforce.masking import split_observation
from sb3_reinforce.policies import averaged_model
from sb3_reinforce.policy_step import clone_tensors, compute_gradient
from sb3_reinforce.reading import make_reader
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.returns import Array, IntArray


class Demonstrations(NamedTuple):
    """
    What an expert saw and did.

    :param observations: Shape ``(n_steps, *obs_shape)`` or a dict of such arrays.
    :param actions: As the environment got them, shape ``(n_steps, *action_shape)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param returns: Sum of the rewards of each episode, shape ``(n_episodes,)``.
    """

    observations: NumpyObs
    actions: np.ndarray[Any, np.dtype[Any]]
    episode_lengths: IntArray
    returns: Array


class Cloning(NamedTuple):
    """
    What became of a fit.

    :param log_probs: Mean log-probability of the held-out actions: before the fit, and after each pass.
    :param best_epoch: After how many passes it was highest: the policy that was kept.
    """

    log_probs: list[float]
    best_epoch: int


def demonstrate(
    expert: BaseAlgorithm, env: GymEnv, n_episodes: int = 20, deterministic: bool = True, seed: int = 0
) -> Demonstrations:
    """
    Let a trained model show what it does.

    :param expert: Any model of SB3, whatever its algorithm.
    :param env: An environment that is not the expert's own, and shows what the pupil is to see. It is seeded and reset.
    :param n_episodes: Episodes, of which each environment makes the same number, or one more.
    :param deterministic: Whether the expert takes its likeliest actions.
    :param seed: Of the environment and, with ``deterministic=False``, the actions.
    :return: The demonstrations.
    :raises ValueError: If environment and expert do not fit, or no episode is asked for.
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, not {n_episodes}")
    env = expert._wrap_env(env)
    check_environment(expert, env)
    # The same number of each: the first to finish would be the short ones
    quota = [(n_episodes + index) // env.num_envs for index in range(env.num_envs)]
    steps: list[list[tuple[Any, Any]]] = [[] for _ in quota]
    done_steps: list[tuple[Any, Any]] = []
    lengths, returns = [], []
    with frozen(env, expert.device):
        th.manual_seed(seed)
        env.seed(seed)
        observations = env.reset()
        sums = np.zeros(env.num_envs)
        state, starts = None, np.ones(env.num_envs, dtype=bool)
        while any(quota):
            actions, state = expert.predict(observations, state, starts, deterministic)  # type: ignore[arg-type]
            seen = copy.deepcopy(observations)
            observations, rewards, starts, _ = env.step(actions)
            sums += rewards
            for index, left in enumerate(quota):
                if left == 0:
                    continue
                steps[index].append((map_observation(lambda obs: obs[index], seen), actions[index]))  # noqa: B023
                if starts[index]:
                    done_steps += steps[index]
                    lengths.append(len(steps[index]))
                    returns.append(sums[index])
                    steps[index], quota[index] = [], left - 1
            sums[starts] = 0.0
    all_observations = [observation for observation, _ in done_steps]
    first = all_observations[0]
    return Demonstrations(
        {key: np.stack([one[key] for one in all_observations]) for key in first}
        if isinstance(first, dict)
        else np.stack(all_observations),
        np.stack([action for _, action in done_steps]),
        np.array(lengths, dtype=np.int64),
        np.array(returns, dtype=np.float64),
    )


def clone(
    model: REINFORCE,
    observations: NumpyObs,
    actions: np.ndarray[Any, np.dtype[Any]],
    episode_lengths: IntArray | None = None,
    epochs: int = 50,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    patience: int = 5,
    seed: int = 0,
) -> Cloning:
    """
    Fit the actor of a model to what an expert did (Pomerleau 1991), by the model's own loss with unit weights.

    What it does for REINFORCE is a warm start: call it before ``learn``. The model's optimizer, and its critic, which knows
    nothing of the new policy, stay as they are.

    :param model: Its actor is fitted. Of continuous actions the standard deviation is fitted too: to an expert that always
        does the same it shrinks, and with it the exploration.
    :param observations: Shape ``(n_steps, *obs_shape)`` or a dict of such arrays, as the model will see them. With
        ``use_masking`` action masks count where they are a part of them.
    :param actions: As the environment gets them, shape ``(n_steps, *action_shape)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``. Minibatches and the held-out part then consist of
        whole episodes, which a policy with memory needs, and which makes the held-out part honest: neighbouring steps are
        almost the same. None for independent steps.
    :param epochs: At most so many passes.
    :param batch_size: Steps of a minibatch; a few more or less where it consists of whole episodes.
    :param learning_rate: Of a new optimizer of the model's kind.
    :param held_out: Share of the episodes (or steps) that is kept to judge the fit.
    :param patience: Passes without a higher held-out log-probability after which the fit stops. The best policy is kept.
    :param seed: Of the held-out part and the minibatches.
    :return: What became of it.
    :raises ValueError: If an argument is out of its range, the demonstrations do not fit the model, or cannot be held out
        from.
    """
    batch = as_batch(model, observations, actions, episode_lengths)
    n_episodes = len(batch.episode_lengths)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    n_held_out = round(held_out * n_episodes)
    if not 0.0 < held_out < 1.0 or not 0 < n_held_out < n_episodes:
        raise ValueError(
            f"held_out must leave at least one of {n_episodes} episodes (or steps) on both sides, which {held_out} does not"
        )

    rng = np.random.default_rng(seed)
    order = rng.permutation(n_episodes)
    judges, pupils = take_episodes(batch, order[:n_held_out]), order[n_held_out:]
    policy = model.policy
    policy.set_training_mode(False)
    reader = make_reader(policy, min(model.micro_batch_size or MICRO_BATCH_SIZE, MICRO_BATCH_SIZE))
    optimizer: th.optim.Optimizer | None = None
    best, best_epoch = clone_tensors(policy.state_dict()), 0
    log_probs = [float(reader.log_probs(judges).mean())]
    for epoch in range(1, epochs + 1):
        for episodes in minibatches(rng.permutation(pupils), batch.episode_lengths, batch_size):
            minibatch = take_episodes(batch, episodes)
            parameters = compute_gradient(reader, minibatch, unit_weights(minibatch), ent_coef=0.0).parameters
            if optimizer is None:
                kind, settings = policy.optimizer_class, policy.optimizer_kwargs
                optimizer = kind(parameters, lr=learning_rate, **settings)  # type: ignore[call-arg]
            th.nn.utils.clip_grad_norm_(parameters, model.max_grad_norm)
            optimizer.step()
        log_probs.append(float(reader.log_probs(judges).mean()))
        if log_probs[-1] > log_probs[best_epoch]:
            best, best_epoch = clone_tensors(policy.state_dict()), epoch
        elif epoch - best_epoch >= patience:
            break
    policy.load_state_dict(best)
    policy.optimizer.zero_grad()
    if model.policy_averaging is not None:
        # What it averaged over has nothing to do with the new policy
        model.policy_average = averaged_model(policy, model.policy_averaging)
    return Cloning(log_probs, best_epoch)


def unit_weights(batch: EpisodeBatch) -> StepWeights:
    """
    Weight every step alike, which makes the pseudo-loss the negative mean log-likelihood.

    :param batch: The demonstrations.
    :return: The weights.
    """
    ones = np.ones(len(batch.actions))
    return StepWeights(rewards_to_go=ones, advantages=ones, weights=ones, n_averaged=len(ones))


def minibatches(order: IntArray, episode_lengths: IntArray, batch_size: int) -> list[IntArray]:
    """
    Cut episodes into minibatches.

    :param order: Indices of the episodes.
    :param episode_lengths: Of all episodes.
    :param batch_size: Steps of a minibatch, which ends with the episode that makes the number full.
    :return: Indices of the episodes of each minibatch.
    """
    filled = np.cumsum(episode_lengths[order]) // batch_size
    # A minibatch ends with the episode that fills it
    return [part for part in np.split(order, np.flatnonzero(np.diff(filled, prepend=0)) + 1) if len(part)]


def as_batch(
    model: REINFORCE, observations: NumpyObs, actions: np.ndarray[Any, np.dtype[Any]], episode_lengths: IntArray | None
) -> EpisodeBatch:
    """
    Put demonstrations into the form of a rollout.

    :param model: Whose spaces they are in.
    :param observations: See ``clone``.
    :param actions: See ``clone``.
    :param episode_lengths: See ``clone``.
    :return: The batch, with actions as the policy draws them.
    :raises ValueError: If they do not fit the model or each other.
    """
    policy: ActorCriticPolicy = model.policy
    n_steps = len(actions)
    lengths = np.ones(n_steps, dtype=np.int64) if episode_lengths is None else np.asarray(episode_lengths, dtype=np.int64)
    if n_steps == 0 or lengths.sum() != n_steps or (lengths < 1).any():
        raise ValueError(
            f"episode_lengths must be above 0 and add up to the {n_steps} steps of the actions, not {lengths.sum()}"
        )
    parts = observations if isinstance(observations, dict) else {"observation": observations}
    space = model.observation_space
    spaces_of = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
    if set(parts) != set(spaces_of):
        raise ValueError(f"observations must have the parts {', '.join(spaces_of)}, not {', '.join(parts)}")
    for name, part in parts.items():
        if np.shape(part) != (n_steps, *(spaces_of[name].shape or ())):
            raise ValueError(
                f"observations: {name} must be of shape {(n_steps, *(spaces_of[name].shape or ()))}, as the model's space and "
                f"the number of actions say, not {np.shape(part)}"
            )
    action_shape = model.action_space.shape or ()
    if actions.shape[1:] != action_shape:
        raise ValueError(f"actions must be of shape {(n_steps, *action_shape)}, not {actions.shape}")
    if isinstance(model.action_space, spaces.Box) and policy.squash_output:
        actions = policy.scale_action(actions)
    seen: Any = obs_as_tensor(observations, model.device)
    seen, masks = split_observation(seen) if model.use_masking else (seen, None)
    return EpisodeBatch(
        observations=seen,
        actions=th.as_tensor(np.asarray(actions).reshape(n_steps, -1), device=model.device),
        rewards=np.zeros(n_steps),
        episode_lengths=lengths,
        cut_steps=np.zeros(0, dtype=np.int64),
        final_observations=None,
        locate=lambda step: (0, step),
        action_masks=None if masks is None else masks.flatten(1).bool(),
    )
