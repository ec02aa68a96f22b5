"""
Policies with memory: sb3-contrib's, read episode by episode. Needs sb3-contrib.

Every episode starts from the zero state, in the environment as at the update, where whole episodes are read from their
first step: the gradient goes back through all of an episode's time, and no state is stored or stale.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_reinforce.buffers import EpisodeBatch, NumpyObs, map_observation
from sb3_reinforce.lstm import is_plain, run_lstm
from sb3_reinforce.masking import masked
from sb3_reinforce.policies import OptionalCriticMixin, actor_features
from sb3_reinforce.reading import BatchReader, Steps
from sb3_reinforce.returns import Array, IntArray
from sb3_reinforce.sampling import (
    ActionSampler,
    Actor,
    NumpyArray,
    NumpyLayers,
    ParameterSampler,
    has_numpy_layers,
    has_standard_distribution,
    make_flatten,
)

#: One step of reading some episodes side by side costs about as much as so many steps of padding, with 64 units on a CPU.
PADDING_PER_STEP = 8


class LstmMixin(OptionalCriticMixin):
    """
    Adds ``use_critic`` to an actor-critic policy of sb3-contrib, and lets its own ``save`` and ``load`` keep the LSTM's size.

    The forget gates' biases start at 1 instead of about 0, so that a policy first remembers, and learns what to forget (Gers
    et al. 2000; Jozefowicz et al. 2015).

    :param use_critic: Without it the policy has an actor only, and its values are 0.
    :raises ValueError: If ``shared_lstm`` and ``enable_critic_lstm`` exclude each other.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("shared_lstm", False) and kwargs.get("enable_critic_lstm", True):
            raise ValueError(
                "policy_kwargs: shared_lstm=True gives the critic the actor's LSTM, enable_critic_lstm=True (the default) one "
                "of its own: set enable_critic_lstm=False"
            )
        super().__init__(*args, **kwargs)
        assert isinstance(self, RecurrentActorCriticPolicy)
        for lstm in filter(None, (self.lstm_actor, self.lstm_critic)):
            open_forget_gates(lstm)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        assert isinstance(self, RecurrentActorCriticPolicy)
        return {
            **super()._get_constructor_parameters(),
            "lstm_hidden_size": self.lstm_output_dim,
            "n_lstm_layers": self.lstm_actor.num_layers,
            "shared_lstm": self.shared_lstm,
            "enable_critic_lstm": self.enable_critic_lstm,
            "lstm_kwargs": self.lstm_kwargs,
        }


def open_forget_gates(lstm: nn.LSTM) -> None:
    """
    Let an LSTM start with forget biases of 1.

    :param lstm: Changed in place, if it has biases.
    """
    forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)
    with th.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("bias_"):
                # PyTorch has two biases, which are added
                parameter[forget] = 1.0 if name.startswith("bias_ih") else 0.0


class MlpLstmPolicy(LstmMixin, RecurrentActorCriticPolicy):
    """sb3-contrib's ``RecurrentActorCriticPolicy`` with the additional argument ``use_critic``."""


class CnnLstmPolicy(LstmMixin, RecurrentActorCriticCnnPolicy):
    """sb3-contrib's ``RecurrentActorCriticCnnPolicy`` with the additional argument ``use_critic``."""


class MultiInputLstmPolicy(LstmMixin, RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's ``RecurrentMultiInputActorCriticPolicy`` with the additional argument ``use_critic``."""


class EpisodeReader(BatchReader):
    """
    Reads whole episodes off a policy with memory: its pieces are made of them, however long they are.

    :param policy: In evaluation mode.
    :param micro_batch_size: Steps that are read at once, which bounds the memory, unless an episode is longer; None for all.
    """

    policy: RecurrentActorCriticPolicy

    def _cuts(self, batch: EpisodeBatch, steps: Steps) -> Iterator[slice]:
        """Whole episodes. Longer than ``micro_batch_size`` is only a single one."""
        lengths = lengths_of(batch, steps)
        ends = np.cumsum(lengths)
        for group in group_episodes(lengths, self.micro_batch_size):
            yield slice(int(ends[group.start] - lengths[group.start]), int(ends[group.stop - 1]))

    def minibatches(self, batch: EpisodeBatch, size: int | None, rng: np.random.Generator) -> Iterator[list[Steps]]:
        """
        Divide the episodes of a batch at random.

        :param batch: The episodes.
        :param size: Steps of a minibatch, which holds fewer where another episode does not fit; None for all.
        :param rng: Draws the order, unless one minibatch holds all.
        :return: The micro-batches of each minibatch.
        """
        if size is None or size >= len(batch.actions):
            yield self.pieces(batch)
            return
        order = rng.permutation(len(batch.episode_lengths))
        for group in group_episodes(batch.episode_lengths[order], size):
            yield self.micro_batches(batch, self._steps_of(batch, order[group]))

    def subsample(self, batch: EpisodeBatch, max_steps: int, rng: np.random.Generator) -> Steps:
        """
        Choose episodes at random, of which a mean over the batch can be estimated.

        How many does not depend on which, since to take episodes until the next one does not fit would prefer short ones.

        :param batch: The episodes.
        :param max_steps: At most so many steps are chosen, unless a single episode is longer.
        :param rng: Chooses them.
        :return: Their steps, in order.
        """
        longest_first = np.sort(batch.episode_lengths)[::-1]
        n_fitting = max(1, int(np.searchsorted(np.cumsum(longest_first), max_steps, side="right")))
        return self._steps_of(batch, np.sort(rng.choice(len(longest_first), n_fitting, replace=False)))

    def _steps_of(self, batch: EpisodeBatch, episodes: IntArray) -> th.Tensor:
        ends = np.cumsum(batch.episode_lengths)[episodes]
        starts = ends - batch.episode_lengths[episodes]
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
        memories = read_episodes(policy.lstm_actor, features, lengths_of(batch, steps))
        with masked(policy, None if batch.action_masks is None else batch.action_masks[steps]):
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
        return read_episodes(self.policy.lstm_actor, features, lengths_of(batch, steps)).detach()

    def _critic_latent(self, inputs: th.Tensor, batch: EpisodeBatch, steps: Steps) -> th.Tensor:
        policy = self.policy
        if policy.lstm_critic is not None:
            return read_episodes(policy.lstm_critic, inputs, lengths_of(batch, steps))
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


def lengths_of(batch: EpisodeBatch, steps: Steps) -> IntArray:
    """
    Measure the chosen episodes.

    :param batch: The episodes.
    :param steps: Which of its steps, those of whole episodes.
    :return: Shape ``(number of chosen episodes,)``.
    """
    is_last = np.zeros(len(batch.actions), dtype=bool)
    is_last[np.cumsum(batch.episode_lengths) - 1] = True
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


def read_episodes(lstm: nn.LSTM, inputs: th.Tensor, lengths: IntArray) -> th.Tensor:
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


def make_recurrent_sampler(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> ActionSampler:
    """
    Choose the fastest exact way to sample from a policy with memory. See ``sampling.make_action_sampler``.

    :param policy: In evaluation mode.
    :param n_envs: Number of environments, all at the start of an episode.
    :param rng: Source of all randomness, except for policies with a distribution of their own, which use PyTorch's.
    :return: The sampler, which remembers.
    """
    assert isinstance(policy, RecurrentActorCriticPolicy)
    if not has_standard_distribution(policy):
        return RecurrentDistributionSampler(policy, n_envs)
    actor = NumpyLstmActor(policy, n_envs) if is_standard_lstm(policy) else TorchLstmActor(policy, n_envs)
    return ParameterSampler(policy, actor, n_envs, rng)


def is_standard_lstm(policy: RecurrentActorCriticPolicy) -> bool:
    """
    Tell whether NumPy can stand in for a policy's actor.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    :return: True if it is exactly sb3-contrib's MLP policy: as ``sampling.is_standard_mlp``, after a plain LSTM.
    """
    return (
        is_plain(policy.lstm_actor)
        and type(policy) in (RecurrentActorCriticPolicy, MlpLstmPolicy)
        and has_numpy_layers(policy)
    )


class _TorchMemory:
    """
    The state of a policy's LSTM in PyTorch.

    :param policy: Whose LSTM it is.
    :param n_envs: Number of environments.
    """

    def __init__(self, policy: RecurrentActorCriticPolicy, n_envs: int) -> None:
        self.policy = policy
        n_layers, _, n_units = policy.lstm_hidden_state_shape
        self.state = tuple(th.zeros((n_layers, n_envs, n_units), device=policy.device) for _ in range(2))

    def latent(self, observations: NumpyObs) -> th.Tensor:
        """Remember observations, and compute what the layers of the action are given."""
        features = actor_features(self.policy, obs_as_tensor(observations, self.policy.device))
        outputs, self.state = self.policy.lstm_actor(features[None], self.state)
        return self.policy.mlp_extractor.forward_actor(outputs[0])

    def forget(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``."""
        is_over = th.as_tensor(dones, device=self.policy.device)
        for part in self.state:
            part[:, is_over] = 0.0


class RecurrentDistributionSampler(_TorchMemory, ActionSampler):
    """Samples from the policy's own distribution object."""

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """See ``ActionSampler``."""
        policy = self.policy
        mask_tensor = None if masks is None else th.as_tensor(masks, device=policy.device)
        with th.no_grad(), masked(policy, mask_tensor):
            distribution = policy._get_action_dist_from_latent(self.latent(observations))
            actions: NumpyArray = distribution.get_actions().cpu().numpy()
        return actions.reshape(-1, *policy.action_space.shape)  # type: ignore[misc]


class TorchLstmActor(_TorchMemory, Actor):
    """
    The actor of a policy in PyTorch.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    :param n_envs: Number of environments.
    """

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        """See ``Actor``."""
        with th.no_grad():
            parameters: NumpyArray = self.policy.action_net(self.latent(observations)).cpu().numpy()
        return parameters


class NumpyLstmActor(Actor):
    """
    The actor of a standard LSTM policy in NumPy, on a copy of the policy's weights.

    :param policy: A policy for which ``is_standard_lstm`` holds.
    :param n_envs: Number of environments.
    """

    def __init__(self, policy: RecurrentActorCriticPolicy, n_envs: int) -> None:
        self.cells = [NumpyLstmCell(policy.lstm_actor, layer, n_envs) for layer in range(policy.lstm_actor.num_layers)]
        flatten = make_flatten(policy)
        assert flatten is not None
        self.flatten = flatten
        self.layers = NumpyLayers(policy, n_envs)
        self.copied_modules = [policy.lstm_actor, *self.layers.linears]

    def load(self) -> None:
        """See ``Actor``."""
        for cell in self.cells:
            cell.load()
        self.layers.load()

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        """See ``Actor``."""
        latent = self.flatten(observations)
        for cell in self.cells:
            latent = cell(latent)
        return self.layers(latent)

    def forget(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``."""
        for cell in self.cells:
            cell.forget(dones)


class NumpyLstmCell:
    """
    One layer of an LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000) in NumPy.

    :param lstm: A float32 LSTM on the CPU with biases, in one direction, without projections.
    :param layer: Which of its layers.
    :param n_envs: Number of environments.
    """

    def __init__(self, lstm: nn.LSTM, layer: int, n_envs: int) -> None:
        self.lstm, self.layer, self.n_envs = lstm, layer, n_envs
        self.load()
        n_units = lstm.hidden_size
        n_inputs = len(self.weight) - n_units
        # The hidden state lies beside the inputs, so that one product serves both
        inputs_and_hidden = np.zeros((n_envs, n_inputs + n_units), dtype=np.float32)
        activations = np.empty((n_envs, 4 * n_units), dtype=np.float32)
        self.inputs_and_hidden = inputs_and_hidden
        self.inputs, self.hidden = np.split(inputs_and_hidden, [n_inputs], axis=1)
        self.cell = np.zeros((n_envs, n_units), dtype=np.float32)
        self.activations = activations
        self.gates = activations[:, : 3 * n_units]
        self.input_gate, self.forget_gate, self.output_gate, self.candidate = np.split(activations, 4, axis=1)

    def load(self) -> None:
        """Copy the LSTM's parameters."""
        weight_ih, weight_hh, bias_ih, bias_hh = (
            getattr(self.lstm, f"{name}_l{self.layer}").detach().numpy()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        weight, bias = np.hstack([weight_ih, weight_hh]), bias_ih + bias_hh
        # PyTorch's order is input, forget, cell, output. The three sigmoids are put together, and taken by the tanh that the
        # cell needs anyway: sigmoid(x) = (1 + tanh(x / 2)) / 2
        n_units = self.lstm.hidden_size
        gate_rows = np.r_[0 : 2 * n_units, 3 * n_units : 4 * n_units]
        rows = np.r_[gate_rows, 2 * n_units : 3 * n_units]
        halves = np.where(np.arange(4 * n_units) < 3 * n_units, np.float32(0.5), np.float32(1.0))
        self.weight = np.ascontiguousarray((weight[rows] * halves[:, None]).T)
        self.bias = np.tile(bias[rows] * halves, (self.n_envs, 1))

    def __call__(self, inputs: NumpyArray) -> NumpyArray:
        """
        Take a step.

        :param inputs: Shape ``(n_envs, n_inputs)``.
        :return: The hidden state, shape ``(n_envs, n_units)``; overwritten by the next call.
        """
        self.inputs[:] = inputs
        np.dot(self.inputs_and_hidden, self.weight, self.activations)
        np.add(self.activations, self.bias, self.activations)
        np.tanh(self.activations, self.activations)
        np.multiply(self.gates, 0.5, self.gates)
        np.add(self.gates, 0.5, self.gates)
        np.multiply(self.cell, self.forget_gate, self.cell)
        np.multiply(self.candidate, self.input_gate, self.candidate)
        np.add(self.cell, self.candidate, self.cell)
        np.tanh(self.cell, self.hidden)
        np.multiply(self.hidden, self.output_gate, self.hidden)
        return self.hidden

    def forget(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``."""
        self.hidden[dones] = 0.0
        self.cell[dones] = 0.0
