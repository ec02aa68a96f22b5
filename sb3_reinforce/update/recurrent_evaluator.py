"""
Evaluates recurrent policies on whole episodes. Needs sb3-contrib.

Every episode starts from the zero state, both while collecting and in the update: the gradient goes back through all steps of
an episode, and no hidden state is stored or stale.
"""

from collections.abc import Iterator

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import Distribution
from torch import nn

from sb3_reinforce.functional.lstm import run_lstm
from sb3_reinforce.functional.returns import Array, IntArray, first_steps, steps_of
from sb3_reinforce.policies.inspection import actor_features
from sb3_reinforce.policies.masked_distribution import use_action_masks
from sb3_reinforce.rollout.batch import EpisodeBatch, map_observation, select_steps
from sb3_reinforce.update.evaluator import PolicyEvaluator, Steps

#: Number of padded steps that cost about as much as one step of episodes side by side, with 64 units on a CPU.
PADDING_PER_STEP = 8


class RecurrentPolicyEvaluator(PolicyEvaluator):
    """Evaluates a recurrent policy. Micro-batches are whole episodes; a longer episode is a micro-batch by itself."""

    policy: RecurrentActorCriticPolicy

    def explain_long_episode(self, episode_lengths: IntArray) -> str | None:
        longest = int(episode_lengths.max(initial=0))
        if longest <= self.micro_batch_size:
            return None
        return (
            f"A recurrent policy is evaluated on whole episodes, and one of {longest} steps is longer than micro_batch_size="
            f"{self.micro_batch_size}: it was evaluated at once. Raise micro_batch_size if the memory allows it."
        )

    def _cuts(self, episode_lengths: IntArray, steps: Steps) -> Iterator[slice]:
        lengths = selected_episode_lengths(episode_lengths, steps)
        ends = np.cumsum(lengths)
        for group in group_episodes(lengths, self.micro_batch_size):
            yield slice(int(ends[group.start] - lengths[group.start]), int(ends[group.stop - 1]))

    def minibatches(self, episode_lengths: IntArray, size: int | None, rng: np.random.Generator) -> Iterator[list[Steps]]:
        """Divide the episodes at random. A minibatch has fewer than ``size`` steps if the next episode does not fit."""
        if size is None or size >= episode_lengths.sum():
            yield self.micro_batches(episode_lengths)
            return
        order = rng.permutation(len(episode_lengths))
        for group in group_episodes(episode_lengths[order], size):
            yield self.micro_batches(episode_lengths, self._steps_of(episode_lengths, order[group]))

    def subsample(self, episode_lengths: IntArray, max_steps: int, rng: np.random.Generator) -> Steps:
        """
        Choose whole episodes at random, with at most ``max_steps`` steps unless a single one is longer.

        Their number does not depend on the choice: taking episodes until the next one does not fit would favour short ones.
        """
        longest_first = np.sort(episode_lengths)[::-1]
        n_fitting = max(1, int(np.searchsorted(np.cumsum(longest_first), max_steps, side="right")))
        return self._steps_of(episode_lengths, np.sort(rng.choice(len(longest_first), n_fitting, replace=False)))

    def _steps_of(self, episode_lengths: IntArray, episodes: IntArray) -> th.Tensor:
        return th.as_tensor(steps_of(episode_lengths, episodes), device=self.policy.device)

    def distribution(self, batch: EpisodeBatch, steps: Steps) -> Distribution:
        policy = self.policy
        features = actor_features(policy, select_steps(batch.observations, steps))
        outputs = _run_lstm_over_steps(policy.lstm_actor, features, batch, steps)
        with use_action_masks(policy, None if batch.action_masks is None else batch.action_masks[steps]):
            return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(outputs))

    def final_values(self, batch: EpisodeBatch) -> Array:
        """The critic's values of the final observations of cut episodes, each as one more step of its episode."""
        ends = np.cumsum(batch.episode_lengths)
        cut_episodes = np.searchsorted(ends, batch.cut_steps, side="right")
        n_steps = len(batch.actions)
        steps_with_final = [
            np.append(np.arange(ends[episode] - batch.episode_lengths[episode], ends[episode]), n_steps + cut)
            for cut, episode in enumerate(cut_episodes)
        ]
        chosen = th.as_tensor(np.concatenate(steps_with_final), device=self.policy.device)
        with_finals = map_observation(lambda *parts: th.cat(parts), batch.observations, batch.final_observations)
        prolonged = batch._replace(
            observations=select_steps(with_finals, chosen),
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
        # As in sb3-contrib, the critic's gradient does not reach layers shared with the actor
        return _run_lstm_over_steps(self.policy.lstm_actor, features, batch, steps).detach()

    def _critic_latent(self, inputs: th.Tensor, batch: EpisodeBatch, steps: Steps) -> th.Tensor:
        policy = self.policy
        if policy.lstm_critic is not None:
            return _run_lstm_over_steps(policy.lstm_critic, inputs, batch, steps)
        if policy.shared_lstm:
            return inputs
        assert policy.critic is not None
        latent: th.Tensor = policy.critic(inputs)
        return latent


def selected_episode_lengths(episode_lengths: IntArray, steps: Steps) -> IntArray:
    """The lengths of the episodes that the chosen steps make up."""
    is_last = np.zeros(int(episode_lengths.sum()), dtype=bool)
    is_last[np.cumsum(episode_lengths) - 1] = True
    chosen = steps if isinstance(steps, slice) else steps.cpu().numpy()
    return np.diff(np.flatnonzero(is_last[chosen]), prepend=-1)


def group_episodes(lengths: IntArray, max_steps: int) -> Iterator[slice]:
    """Divide episodes, in their order, into groups of at most ``max_steps`` steps, unless a single episode is longer."""
    first, n_steps = 0, 0
    for episode, length in enumerate(lengths.tolist()):
        if n_steps + length > max_steps and episode > first:
            yield slice(first, episode)
            first, n_steps = episode, 0
        n_steps += length
    if len(lengths) > 0:
        yield slice(first, len(lengths))


def _run_lstm_over_steps(lstm: nn.LSTM, inputs: th.Tensor, batch: EpisodeBatch, steps: Steps) -> th.Tensor:
    return run_lstm_over_episodes(lstm, inputs, selected_episode_lengths(batch.episode_lengths, steps))


def run_lstm_over_episodes(lstm: nn.LSTM, inputs: th.Tensor, lengths: IntArray) -> th.Tensor:
    """
    Run an LSTM over whole episodes, each from the zero state.

    Episodes of similar length are padded and run side by side. On a CPU this is several times faster than packing them, where
    the slice of each step makes the backward pass allocate a gradient of the whole sequence.

    :param inputs: The steps of the episodes, one episode after the other, shape ``(n_steps, n_inputs)``.
    :param lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Shape ``(n_steps, n_outputs)``.
    """
    starts = first_steps(lengths)
    outputs, order = [], []
    for episodes in bucket_episodes(lengths):
        times = np.arange(lengths[episodes[0]])[:, None]
        is_step = times < lengths[episodes]
        # The padding repeats an episode's last step, and its outputs are discarded
        steps = starts[episodes] + np.minimum(times, lengths[episodes] - 1)
        padded_outputs = run_lstm(lstm, inputs[th.as_tensor(steps, device=inputs.device)])
        outputs.append(padded_outputs[th.as_tensor(is_step, device=inputs.device)])
        order.append(steps[is_step])
    return th.cat(outputs)[th.as_tensor(np.argsort(np.concatenate(order)), device=inputs.device)]


def bucket_episodes(lengths: IntArray) -> list[IntArray]:
    """Sort episodes into buckets of similar length, each with the longest first."""
    order = np.argsort(-lengths, kind="stable")
    buckets: list[IntArray] = []
    while len(order) > 0:
        ordered = lengths[order]
        # An episode starts a new bucket where that costs less than padding it
        is_too_short = np.cumsum(ordered[0] - ordered) > PADDING_PER_STEP * ordered
        size = int(is_too_short.argmax()) if is_too_short.any() else len(order)
        buckets.append(order[:size])
        order = order[size:]
    return buckets
