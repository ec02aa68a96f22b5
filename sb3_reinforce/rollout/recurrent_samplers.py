"""From observations to actions with a recurrent policy. Needs sb3-contrib."""

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticPolicy,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_reinforce.functional.lstm import is_plain
from sb3_reinforce.policies.inspection import actor_features, has_standard_distribution
from sb3_reinforce.policies.masked_distribution import use_action_masks
from sb3_reinforce.policies.recurrent import MlpLstmPolicy
from sb3_reinforce.rollout.batch import NumpyObs
from sb3_reinforce.rollout.samplers import (
    ActionSampler,
    Actor,
    NumpyArray,
    NumpyLayers,
    ParameterSampler,
    has_numpy_layers,
    make_flatten,
)


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


class _TorchHiddenState:
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

    def reset_states(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``."""
        is_over = th.as_tensor(dones, device=self.policy.device)
        for part in self.state:
            part[:, is_over] = 0.0


class RecurrentDistributionSampler(_TorchHiddenState, ActionSampler):
    """Samples from the policy's own distribution object."""

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """See ``ActionSampler``."""
        policy = self.policy
        mask_tensor = None if masks is None else th.as_tensor(masks, device=policy.device)
        with th.no_grad(), use_action_masks(policy, mask_tensor):
            distribution = policy._get_action_dist_from_latent(self.latent(observations))
            actions: NumpyArray = distribution.get_actions(self.deterministic).cpu().numpy()
        return actions.reshape(-1, *policy.action_space.shape)  # type: ignore[misc]


class TorchLstmActor(_TorchHiddenState, Actor):
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

    def reset_states(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``."""
        for cell in self.cells:
            cell.reset_states(dones)


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

    def reset_states(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``."""
        self.hidden[dones] = 0.0
        self.cell[dones] = 0.0
