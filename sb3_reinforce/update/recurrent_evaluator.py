"""
Evaluates recurrent policies on whole episodes. Needs sb3-contrib.

Every episode starts from the zero state, in the environment as at the update, where whole episodes are evaluated from their
first step: the gradient goes back through all of an episode's time, and no state is stored or stale.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticPolicy,
)
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_reinforce.functional.lstm import run_lstm
from sb3_reinforce.functional.returns import Array, IntArray
from sb3_reinforce.policies.inspection import actor_features
from sb3_reinforce.policies.masked_distribution import use_action_masks
from sb3_reinforce.rollout.batch import EpisodeBatch, map_observation
from sb3_reinforce.update.evaluator import PolicyEvaluator, Steps

#: One step of some episodes side by side costs about as much as so many steps of padding, with 64 units on a CPU.
PADDING_PER_STEP = 8


class RecurrentPolicyEvaluator(PolicyEvaluator):
    """
    Evaluates a recurrent policy on whole episodes: its micro-batches are made of them, however long they are.

    :param policy: In evaluation mode.
    :param micro_batch_size: Steps that are evaluated at once, which bounds the memory, unless an episode is longer; None for
        all.
    """

    policy: RecurrentActorCriticPolicy

    def explain_long_episode(self, episode_lengths: IntArray) -> str | None:
        """See ``PolicyEvaluator``."""
        longest = int(episode_lengths.max(initial=0))
        if longest <= self.micro_batch_size:
            return None
        return (
            f"A recurrent policy is evaluated on whole episodes, and one of {longest} steps is longer than micro_batch_size="
            f"{self.micro_batch_size}: it was evaluated at once. Raise micro_batch_size if the memory allows it."
        )

    def _cuts(self, episode_lengths: IntArray, steps: Steps) -> Iterator[slice]:
        """Whole episodes. Longer than ``micro_batch_size`` is only a single one."""
        lengths = selected_episode_lengths(episode_lengths, steps)
        ends = np.cumsum(lengths)
        for group in group_episodes(lengths, self.micro_batch_size):
            yield slice(int(ends[group.start] - lengths[group.start]), int(ends[group.stop - 1]))

    def minibatches(self, episode_lengths: IntArray, size: int | None, rng: np.random.Generator) -> Iterator[list[Steps]]:
        """
        Divide the episodes of a batch into minibatches at random.

        :param episode_lengths: Steps of each episode of the batch, shape ``(n_episodes,)``.
        :param size: Steps of a minibatch, which holds fewer where another episode does not fit; None for all.
        :param rng: Draws the order, unless one minibatch holds all.
        :return: The micro-batches of each minibatch.
        """
        if size is None or size >= episode_lengths.sum():
            yield self.micro_batches(episode_lengths)
            return
        order = rng.permutation(len(episode_lengths))
        for group in group_episodes(episode_lengths[order], size):
            yield self.micro_batches(episode_lengths, self._steps_of(episode_lengths, order[group]))

    def subsample(self, episode_lengths: IntArray, max_steps: int, rng: np.random.Generator) -> Steps:
        """
        Choose episodes at random, from which a mean over the batch can be estimated.

        How many does not depend on which, since to take episodes until the next one does not fit would prefer short ones.

        :param episode_lengths: Steps of each episode of the batch, shape ``(n_episodes,)``.
        :param max_steps: At most so many steps are chosen, unless a single episode is longer.
        :param rng: Chooses them.
        :return: Their steps, in order.
        """
        longest_first = np.sort(episode_lengths)[::-1]
        n_fitting = max(1, int(np.searchsorted(np.cumsum(longest_first), max_steps, side="right")))
        return self._steps_of(episode_lengths, np.sort(rng.choice(len(longest_first), n_fitting, replace=False)))

    def _steps_of(self, episode_lengths: IntArray, episodes: IntArray) -> th.Tensor:
        ends = np.cumsum(episode_lengths)[episodes]
        starts = ends - episode_lengths[episodes]
        steps = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        return th.as_tensor(steps, device=self.policy.device)

    def distribution(self, batch: EpisodeBatch, steps: Steps) -> Distribution:
        """
        Compute the distribution of actions.

        :param batch: The episodes.
        :param steps: Which of its steps, those of whole episodes.
        :return: SB3's distribution, for these steps. The policy may return the same object the next time.
        """
        policy = self.policy
        features = actor_features(policy, _select(batch.observations, steps))
        memories = run_lstm_over_episodes(policy.lstm_actor, features, selected_episode_lengths(batch.episode_lengths, steps))
        with use_action_masks(policy, None if batch.action_masks is None else batch.action_masks[steps]):
            return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(memories))

    def final_values(self, batch: EpisodeBatch) -> Array:
        """
        Compute the critic's values of what followed cut episodes, as of one step more of each.

        :param batch: The episodes, at least one of them cut.
        :return: Shape ``(n_cuts,)``.
        """
        ends = np.cumsum(batch.episode_lengths)
        cut_episodes = np.searchsorted(ends, batch.cut_steps, side="right")
        n_steps = len(batch.actions)
        steps_with_final = [
            np.append(np.arange(ends[episode] - batch.episode_lengths[episode], ends[episode]), n_steps + cut)
            for cut, episode in enumerate(cut_episodes)
        ]
        chosen = th.as_tensor(np.concatenate(steps_with_final), device=self.policy.device)
        prolonged = batch._replace(
            observations=_select(_concatenate(batch.observations, batch.final_observations), chosen),
            actions=batch.actions.new_empty((len(chosen), 0)),
            episode_lengths=batch.episode_lengths[cut_episodes] + 1,
        )
        return self.values(prolonged)[np.cumsum(prolonged.episode_lengths) - 1]

    def _critic_input_layers(self) -> list[nn.Module]:
        policy = self.policy
        return [policy.vf_features_extractor, *([policy.lstm_actor] if policy.shared_lstm else [])]

    def _critic_inputs(self, batch: EpisodeBatch, steps: Steps) -> th.Tensor:
        features = super()._critic_inputs(batch, steps)
        if not self.policy.shared_lstm:
            return features
        # As in sb3-contrib, the critic's gradient does not reach what it shares with the actor
        return run_lstm_over_episodes(
            self.policy.lstm_actor, features, selected_episode_lengths(batch.episode_lengths, steps)
        ).detach()

    def _critic_latent(self, inputs: th.Tensor, batch: EpisodeBatch, steps: Steps) -> th.Tensor:
        policy = self.policy
        if policy.lstm_critic is not None:
            return run_lstm_over_episodes(policy.lstm_critic, inputs, selected_episode_lengths(batch.episode_lengths, steps))
        if policy.shared_lstm:
            return inputs
        assert policy.critic is not None
        latent: th.Tensor = policy.critic(inputs)
        return latent


def _select(observations: PyTorchObs, steps: Steps) -> Any:
    return map_observation(lambda obs: obs[steps], observations)


def _concatenate(observations: PyTorchObs, more: PyTorchObs | None) -> Any:
    if isinstance(observations, dict):
        assert isinstance(more, dict)
        return {key: th.cat([part, more[key]]) for key, part in observations.items()}
    return th.cat([observations, more])  # type: ignore[list-item]


def selected_episode_lengths(episode_lengths: IntArray, steps: Steps) -> IntArray:
    """
    Measure the chosen episodes.

    :param episode_lengths: Steps of each episode of a batch, shape ``(n_episodes,)``.
    :param steps: Which of its steps, those of whole episodes.
    :return: Shape ``(number of chosen episodes,)``.
    """
    is_last = np.zeros(int(episode_lengths.sum()), dtype=bool)
    is_last[np.cumsum(episode_lengths) - 1] = True
    chosen = steps if isinstance(steps, slice) else steps.cpu().numpy()
    return np.diff(np.flatnonzero(is_last[chosen]), prepend=-1)


def group_episodes(lengths: IntArray, max_steps: int | None) -> Iterator[slice]:
    """
    Divide episodes, in their order, into as long groups as possible.

    :param lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param max_steps: Of a group, unless a single episode is longer; None for one group.
    :return: Slices of episodes.
    """
    first, n_steps = 0, 0
    for episode, length in enumerate(lengths.tolist()):
        if max_steps is not None and n_steps + length > max_steps and episode > first:
            yield slice(first, episode)
            first, n_steps = episode, 0
        n_steps += length
    if len(lengths) > 0:
        yield slice(first, len(lengths))


def run_lstm_over_episodes(lstm: nn.LSTM, inputs: th.Tensor, lengths: IntArray) -> th.Tensor:
    """
    Run an LSTM over whole episodes, each from the zero state.

    Episodes of similar length are padded and read side by side. On a CPU that is several times faster than packing them,
    where each step's slice makes the backward pass allocate a gradient of the whole.

    :param lstm: Any LSTM with time as the first dimension.
    :param inputs: The steps of one episode after the other, shape ``(n_steps, n_inputs)``.
    :param lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Its outputs, shape ``(n_steps, n_outputs)``.
    """
    starts = np.cumsum(lengths) - lengths
    outputs, order = [], []
    for episodes in bucket_episodes(lengths):
        times = np.arange(lengths[episodes[0]])[:, None]
        is_step = times < lengths[episodes]
        # The padding repeats an episode's last step, whose outputs nobody reads
        steps = starts[episodes] + np.minimum(times, lengths[episodes] - 1)
        padded_outputs = run_lstm(lstm, inputs[th.as_tensor(steps, device=inputs.device)])
        outputs.append(padded_outputs[th.as_tensor(is_step, device=inputs.device)])
        order.append(steps[is_step])
    return th.cat(outputs)[th.as_tensor(np.argsort(np.concatenate(order)), device=inputs.device)]


def bucket_episodes(lengths: IntArray) -> list[IntArray]:
    """
    Sort episodes into buckets of similar length.

    :param lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: The episodes of each bucket, the longest first.
    """
    order = np.argsort(-lengths, kind="stable")
    buckets: list[IntArray] = []
    while len(order) > 0:
        ordered = lengths[order]
        # An episode has a bucket of its own where that costs less than to fill up this one
        is_too_short = np.cumsum(ordered[0] - ordered) > PADDING_PER_STEP * ordered
        size = int(is_too_short.argmax()) if is_too_short.any() else len(order)
        buckets.append(order[:size])
        order = order[size:]
    return buckets
