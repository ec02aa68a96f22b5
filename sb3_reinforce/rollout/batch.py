"""The counted episodes of one rollout, one after another, as arrays and tensors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_reinforce.functional.baselines import Episodes
from sb3_reinforce.functional.estimator import Estimator
from sb3_reinforce.functional.returns import Array, IntArray, complete_rewards
from sb3_reinforce.policies.masked_distribution import NumpyArray as NumpyArray

NumpyObs = NumpyArray | dict[str, NumpyArray]


class PolicyOutputs(NamedTuple):
    """
    Outputs of the policy that acted, computed once at the end of the rollout.

    :param values: V(s) of each step, shape ``(n_steps,)``; None without a critic.
    :param final_values: V(s) of each of ``final_observations``, shape ``(n_cuts,)``; None where a time limit is the end of the
        episode: without a critic, and before its first fit, when its values would be noise.
    :param log_probs: Log-probabilities of the actions, shape ``(n_steps,)``; None unless they are part of the return.
    :param distribution: PyTorch distribution of all steps, on the CPU; None unless the baseline needs it.
    """

    values: Array | None = None
    final_values: Array | None = None
    log_probs: Array | None = None
    distribution: Any = None


class EpisodeBatch(NamedTuple):
    """
    The counted episodes of one rollout, one after another.

    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
    :param actions: Actions as the policy sampled them, before clipping or rescaling, shape ``(n_steps, action_dim)``.
    :param rewards: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, one environment after another.
    :param cut_steps: Last step of each episode cut by a time limit or by the bound of the rollout, shape ``(n_cuts,)``.
    :param final_observations: Observations after these steps, shape ``(n_cuts, *obs_shape)``; None if there is no cut.
    :param episode_starts: Environment and step of the rollout at which each episode began, shape ``(n_episodes, 2)``.
    :param action_masks: Shape ``(n_steps, n_options)``, True for valid actions; None without masks.
    :param features: Output of the layers that the critic shares with the actor, as they were when the policy acted, shape
        ``(n_steps, n_features)``; None if there are no such layers, or the policy computes it in another way.
    :param outputs: Outputs of the policy for these steps.
    :param starts: Index of each episode's start, shape ``(n_episodes,)``: episodes with the same index were reset with the
        same seed. None without common starts.
    :param greedy_rewards: Rewards of the deterministic policy's episode from each start; empty if there are no such episodes.
    """

    observations: PyTorchObs
    actions: th.Tensor
    rewards: Array
    episode_lengths: IntArray
    cut_steps: IntArray
    final_observations: PyTorchObs | None
    episode_starts: IntArray
    action_masks: th.Tensor | None = None
    features: th.Tensor | None = None
    outputs: PolicyOutputs = PolicyOutputs()
    starts: IntArray | None = None
    greedy_rewards: Sequence[Array] = ()


class Evaluator(Protocol):
    """Evaluations of the policy that acted, beyond its ``PolicyOutputs``."""

    def log_probs(self, batch: EpisodeBatch) -> Array: ...

    def score_products(self, batch: EpisodeBatch, returns: Array, weights: Array) -> Array: ...

    def reshape_actions(self, actions: th.Tensor) -> th.Tensor: ...


def describe_episodes(batch: EpisodeBatch, estimator: Estimator, ent_coef: float, evaluator: Evaluator | None) -> Episodes:
    """
    Collect what an estimator and its baseline need from a batch, without returns.

    :param ent_coef: Coefficient of ``-log_prob`` in the rewards (Levine 2018, eq. 9); 0 for no entropy in the return.
    :param evaluator: Evaluator of the policy that acted; None if the policy has been updated.
    :raises RuntimeError: If the policy has been updated and the baseline needs it.
    """
    values, final_values, log_probs, distribution = batch.outputs
    rewards = complete_rewards(batch.rewards, log_probs, ent_coef, batch.cut_steps, final_values, estimator.gamma)
    baseline = estimator.baseline
    episodes = Episodes(rewards, batch.episode_lengths, values=values, distribution=distribution, starts=batch.starts)
    if len(batch.greedy_rewards) > 0:
        lengths = np.array([len(episode) for episode in batch.greedy_rewards])
        episodes = episodes.replace(greedy_rewards=np.concatenate(batch.greedy_rewards), greedy_lengths=lengths)
    if evaluator is None and (baseline.needs_observations or baseline.needs_scores or baseline.is_fitted):
        raise RuntimeError(
            "rollout_buffer.returns and .advantages are there until the policy is updated: ask for them in on_rollout_end"
        )
    if evaluator is not None and baseline.needs_observations:
        # Copies, since a baseline may keep them, and the next rollout uses the same memory
        episodes = episodes.replace(
            observations=map_observation(_copy, batch.observations),
            actions=_copy(evaluator.reshape_actions(batch.actions)),
            action_masks=None if batch.action_masks is None else _copy(batch.action_masks),
        )
    if evaluator is not None and baseline.needs_scores:
        of_policy = estimator.add_returns(episodes)
        products = evaluator.score_products(batch, of_policy.returns, estimator.step_weights(of_policy))
        episodes = episodes.replace(score_products=products)
    return episodes


def _copy(tensor: th.Tensor) -> NumpyArray:
    return tensor.cpu().numpy().copy()


def locate_step(batch: EpisodeBatch, step: int) -> tuple[int, int]:
    """Find the environment of a step of a batch, and the number of the step in the rollout, for error messages."""
    ends = np.cumsum(batch.episode_lengths)
    episode = int(np.searchsorted(ends, step, side="right"))
    env_idx, first_step = batch.episode_starts[episode].tolist()
    return env_idx, first_step + step - int(ends[episode] - batch.episode_lengths[episode])


def map_observation(function: Callable[..., Any], observation: Any, *others: Any) -> Any:
    """Apply a function to one or several observations (arrays, tensors), or entry by entry to dict observations."""
    if isinstance(observation, dict):
        return {key: function(part, *(other[key] for other in others)) for key, part in observation.items()}
    return function(observation, *others)


def select_steps(observations: Any, steps: Any) -> Any:
    """The observations at the given steps: an index, a slice or an array of indices."""
    return map_observation(lambda obs: obs[steps], observations)


def named_parts(name: str, observation: Any) -> dict[str, Any]:
    """Name the entries of a dict observation, or the whole of any other."""
    if isinstance(observation, dict):
        return {f"{name}['{key}']": part for key, part in observation.items()}
    return {name: observation}
