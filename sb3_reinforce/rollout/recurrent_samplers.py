"""Samplers of actions for recurrent policies. Needs sb3-contrib."""

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_reinforce.functional.lstm import is_plain
from sb3_reinforce.policies.inspection import actor_features, has_standard_distribution
from sb3_reinforce.policies.recurrent import MlpLstmPolicy
from sb3_reinforce.rollout.batch import NumpyArray, NumpyObs
from sb3_reinforce.rollout.samplers import (
    ActionSampler,
    DistributionSampler,
    NumpyMlpActor,
    ParameterSampler,
    TorchActor,
    has_numpy_layers,
)


def make_recurrent_sampler(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> ActionSampler:
    """See ``make_action_sampler``."""
    assert isinstance(policy, RecurrentActorCriticPolicy)
    if not has_standard_distribution(policy):
        return RecurrentDistributionSampler(policy, n_envs)
    actor = NumpyLstmActor(policy, n_envs) if is_standard_lstm(policy) else TorchLstmActor(policy, n_envs)
    return ParameterSampler(policy, actor, n_envs, rng)


def is_standard_lstm(policy: RecurrentActorCriticPolicy) -> bool:
    """Whether a policy is exactly sb3-contrib's MLP policy, with a plain LSTM, and ``has_numpy_layers``."""
    is_contribs = type(policy) in (RecurrentActorCriticPolicy, MlpLstmPolicy)
    return is_contribs and is_plain(policy.lstm_actor) and has_numpy_layers(policy)


class _HiddenState:
    """The hidden state of a policy's LSTM in PyTorch."""

    def __init__(self, policy: RecurrentActorCriticPolicy, n_envs: int) -> None:
        self.policy: ActorCriticPolicy = policy
        self.lstm = policy.lstm_actor
        n_layers, _, n_units = policy.lstm_hidden_state_shape
        self.state = tuple(th.zeros((n_layers, n_envs, n_units), device=policy.device) for _ in range(2))

    def _latent(self, observations: PyTorchObs) -> th.Tensor:
        """Update the hidden state, and compute the input of ``action_net``."""
        outputs, self.state = self.lstm(actor_features(self.policy, observations)[None], self.state)
        return self.policy.mlp_extractor.forward_actor(outputs[0])

    def reset_states(self, dones: NumpyArray) -> None:
        is_over = th.as_tensor(dones, device=self.policy.device)
        for part in self.state:
            part[:, is_over] = 0.0


class RecurrentDistributionSampler(_HiddenState, DistributionSampler):
    """Samples from the distribution object of a recurrent policy."""

    def _distribution(self, observations: PyTorchObs) -> Distribution:
        return self.policy._get_action_dist_from_latent(self._latent(observations))


class TorchLstmActor(_HiddenState, TorchActor):
    """The actor of a recurrent policy in PyTorch."""


class NumpyLstmActor(NumpyMlpActor):
    """The actor of a standard LSTM policy in NumPy, on a copy of the policy's weights. See ``is_standard_lstm``."""

    def __init__(self, policy: RecurrentActorCriticPolicy, n_envs: int) -> None:
        self.cells = [NumpyLstmCell(policy.lstm_actor, layer, n_envs) for layer in range(policy.lstm_actor.num_layers)]
        super().__init__(policy, n_envs)
        self.copied_modules = [policy.lstm_actor, *self.linears]

    def load(self) -> None:
        for cell in self.cells:
            cell.load()
        super().load()

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        latent = self.flatten(observations)
        for cell in self.cells:
            latent = cell(latent)
        return self._through_layers(latent)

    def reset_states(self, dones: NumpyArray) -> None:
        for cell in self.cells:
            cell.reset_states(dones)


class NumpyLstmCell:
    """A layer of a plain float32 LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000) in NumPy."""

    def __init__(self, lstm: nn.LSTM, layer: int, n_envs: int) -> None:
        self.lstm, self.layer, self.n_envs = lstm, layer, n_envs
        self.load()
        n_units = lstm.hidden_size
        n_inputs = len(self.weight) - n_units
        # The hidden state is stored beside the inputs, so that one product serves both
        inputs_and_hidden = np.zeros((n_envs, n_inputs + n_units), dtype=np.float32)
        activations = np.empty((n_envs, 4 * n_units), dtype=np.float32)
        self.inputs_and_hidden = inputs_and_hidden
        self.inputs, self.hidden = np.split(inputs_and_hidden, [n_inputs], axis=1)
        self.cell = np.zeros((n_envs, n_units), dtype=np.float32)
        self.activations = activations
        self.gates = activations[:, : 3 * n_units]
        self.input_gate, self.forget_gate, self.output_gate, self.candidate = np.split(activations, 4, axis=1)

    def load(self) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = (
            getattr(self.lstm, f"{name}_l{self.layer}").detach().numpy()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        weight, bias = np.hstack([weight_ih, weight_hh]), bias_ih + bias_hh
        # PyTorch's order is input, forget, cell, output. The three sigmoids are grouped and computed by the tanh that the cell
        # needs anyway: sigmoid(x) = (1 + tanh(x / 2)) / 2
        n_units = self.lstm.hidden_size
        gate_rows = np.r_[0 : 2 * n_units, 3 * n_units : 4 * n_units]
        rows = np.r_[gate_rows, 2 * n_units : 3 * n_units]
        halves = np.where(np.arange(4 * n_units) < 3 * n_units, np.float32(0.5), np.float32(1.0))
        self.weight = np.ascontiguousarray((weight[rows] * halves[:, None]).T)
        self.bias = np.tile(bias[rows] * halves, (self.n_envs, 1))

    def __call__(self, inputs: NumpyArray) -> NumpyArray:
        """Take a step, and return the hidden state, shape ``(n_envs, n_units)``, which the next call overwrites."""
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
        self.hidden[dones] = 0.0
        self.cell[dones] = 0.0
