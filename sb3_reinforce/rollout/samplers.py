"""
Samplers of actions for the collector: an actor and a draw.

Log-probabilities, entropies and values are computed in one batch at the update. Every step needs only the actor, which for a
small MLP is faster in NumPy than in PyTorch, and a draw: one vector operation on noise that is generated in blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_reinforce.policies.actor_critic import MlpPolicy, MultiInputPolicy
from sb3_reinforce.policies.inspection import ACTING_METHODS, actor_features, distribution_of, overrides, shares_features
from sb3_reinforce.policies.masked_distribution import apply_action_mask, use_action_masks
from sb3_reinforce.rollout.batch import NumpyArray, NumpyObs

#: Turns distribution parameters and noise into actions of shape ``(n_envs, *action_shape)``.
Draw = Callable[[NumpyArray, NumpyArray], NumpyArray]

#: Largest block of noise, in steps and in numbers (more numbers only if a single step needs them).
NOISE_BLOCK_STEPS, NOISE_BLOCK_SIZE = 256, 16_384

#: Size of the largest parameter that is compared by value to detect a change.
COMPARED_SIZE = 4_096

#: Weights of the largest layer that is copied for NumPy in every rollout; beyond, PyTorch is as fast without a copy.
COPIED_SIZE = 1_000_000


#: Noise with which a draw of ``make_draw`` is the most probable action, or the mean.
NO_NOISE: NumpyArray = np.zeros(1, dtype=np.float32)


class ActionSampler(ABC):
    """Samples actions for the collector."""

    #: Whether to take the most probable action, or the mean, instead of a sample
    deterministic = False
    #: For the last observations, the output of the layers that the critic shares with the actor, if it is worth storing, shape
    #: ``(n_envs, n_features)``
    features: NumpyArray | None = None

    @abstractmethod
    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """
        Sample an action for every environment.

        :param observations: Shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :param masks: Shape ``(n_envs, n_options)``, True for valid options; None if all are.
        :return: Shape ``(n_envs, *action_shape)``, neither clipped nor rescaled.
        """

    def reset_states(self, dones: NumpyArray) -> None:
        """Reset the hidden states of the environments whose episode ended, shape ``(n_envs,)``."""

    def refresh(self) -> None:
        """Copy the policy's parameters again if they were changed."""


class Actor(ABC):
    """Computes distribution parameters: logits, or the mean of a Gaussian."""

    #: Modules of the policy whose parameters the actor has copied
    copied_modules: Sequence[nn.Module] = ()
    #: See ``ActionSampler``
    features: NumpyArray | None = None

    @abstractmethod
    def __call__(self, observations: NumpyObs) -> NumpyArray:
        """
        Compute the distribution parameters, shape ``(n_envs, n_parameters)``, and update the hidden states of a recurrent
        policy.

        The next call may overwrite them.
        """

    def load(self) -> None:
        """Copy the policy's parameters."""

    def reset_states(self, dones: NumpyArray) -> None:
        pass


class ParameterWatch:
    """
    Detects changes of the parameters of modules, but not of their children, in microseconds for a small network.

    Small parameters are compared by value, large ones by PyTorch's version counter of in-place changes, which a write through
    ``.data`` or through a NumPy array does not increase.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # A replaced parameter is found again in these tables
        self._tables = [module._parameters for module in modules]
        self._remember()

    def _remember(self) -> None:
        parameters = [p for table in self._tables for p in table.values() if p is not None]
        is_small = [p.numel() <= COMPARED_SIZE and p.is_contiguous() for p in parameters]
        self._small = [_array(p) for p, small in zip(parameters, is_small, strict=True) if small]
        self._large = [p for p, small in zip(parameters, is_small, strict=True) if not small]
        # Comparing values on another device takes too long
        self._is_blind = any(p.device.type != "cpu" for p in parameters)
        self._last_state = self._state()

    def _state(self) -> tuple[bytes, list[int], list[int]]:
        addresses = [p.data_ptr() for table in self._tables for p in table.values() if p is not None]
        return b"".join(self._small), addresses, [p._version for p in self._large]  # type: ignore[arg-type]

    def has_changed(self) -> bool:
        """Whether parameters may have changed since the last call."""
        if not self._is_blind and self._state() == self._last_state:
            return False
        self._remember()
        return True


class DistributionSampler(ActionSampler):
    """Samples from the policy's distribution object."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        with th.no_grad(), use_action_masks(self.policy, masks):
            distribution = self._distribution(obs_as_tensor(observations, self.policy.device))
            actions: NumpyArray = distribution.get_actions(self.deterministic).cpu().numpy()
        return actions.reshape(-1, *self.policy.action_space.shape)  # type: ignore[misc]

    def _distribution(self, observations: PyTorchObs) -> Distribution:
        return distribution_of(self.policy, observations)


class ForwardSampler(ActionSampler):
    """Samples with a policy's ``forward``, as A2C does, if the policy overrides it but not its distribution."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        policy = self.policy
        obs_tensor = obs_as_tensor(observations, policy.device)
        with th.no_grad(), use_action_masks(policy, masks):
            actions, _, log_prob = policy(obs_tensor, self.deterministic)
            taken = actions if isinstance(policy.action_space, spaces.Discrete) else actions.flatten(1)
            expected = distribution_of(policy, obs_tensor).log_prob(taken)
        # The actions of a squashed Gaussian determine their noise only to a few digits
        if not th.allclose(log_prob, expected, rtol=0.01, atol=0.01):
            raise ValueError(
                f"{type(policy).__name__}: forward has other log-probabilities than get_distribution, which predict and the "
                f"update call: what acts would not be what is differentiated. Override {' or '.join(ACTING_METHODS)}"
            )
        sampled: NumpyArray = actions.cpu().numpy()
        return sampled


class ParameterSampler(ActionSampler):
    """Samples from distribution parameters without a distribution object. See ``has_standard_distribution``."""

    def __init__(self, policy: ActorCriticPolicy, actor: Actor, n_envs: int, rng: np.random.Generator) -> None:
        self.policy = policy
        self.actor = actor
        self.noise = noise_rows(policy, n_envs, rng)
        self.draw = make_draw(policy)
        # The policy itself holds the standard deviation of a Gaussian
        self.watch = ParameterWatch([policy, *actor.copied_modules])

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        parameters = self.actor(observations)
        self.features = self.actor.features
        noise = NO_NOISE if self.deterministic else next(self.noise)
        return self.draw(parameters if masks is None else apply_action_mask(parameters, masks), noise)

    def reset_states(self, dones: NumpyArray) -> None:
        self.actor.reset_states(dones)

    def refresh(self) -> None:
        if self.watch.has_changed():
            self.actor.load()
            self.draw = make_draw(self.policy)


class TorchActor(Actor):
    """The actor of a policy in PyTorch."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self.is_shared = shares_features(policy)

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        with th.no_grad():
            latent = self._latent(obs_as_tensor(observations, self.policy.device))
            parameters: NumpyArray = self.policy.action_net(latent).cpu().numpy()
        return parameters

    def _latent(self, observations: PyTorchObs) -> th.Tensor:
        features = actor_features(self.policy, observations)
        if self.is_shared:
            self.features = features.cpu().numpy()
        return self.policy.mlp_extractor.forward_actor(features)


class NumpyMlpActor(Actor):
    """The actor of a standard MLP policy in NumPy, on a copy of the policy's weights. See ``has_numpy_layers``."""

    def __init__(self, policy: ActorCriticPolicy, n_envs: int) -> None:
        flatten = make_flatten(policy)
        assert flatten is not None
        self.flatten = flatten
        modules = [*policy.mlp_extractor.policy_net, policy.action_net]
        self.linears = self.copied_modules = modules[::2]
        activations: dict[type[nn.Module], Callable[[NumpyArray, NumpyArray], Any]] = {nn.Tanh: np.tanh, nn.ReLU: _relu}
        # Results go into buffers, and biases have their shape: both save half of NumPy's time on such small arrays
        self.layers = [
            (
                np.empty((linear.in_features, linear.out_features), dtype=np.float32),
                np.empty((n_envs, linear.out_features), dtype=np.float32),
                np.empty((n_envs, linear.out_features), dtype=np.float32),
                activations[type(activation)] if activation is not None else None,
            )
            for linear, activation in zip(self.linears, [*modules[1::2], None], strict=True)
        ]
        self.load()

    def load(self) -> None:
        for linear, (weight, bias, _, _) in zip(self.linears, self.layers, strict=True):
            # NumPy transposes large matrices tens of times slower
            th.from_numpy(weight).copy_(linear.weight.detach().T)
            bias[:] = _array(linear.bias)

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        return self._through_layers(self.flatten(observations))

    def _through_layers(self, latent: NumpyArray) -> NumpyArray:
        for weight, bias, output, activation in self.layers:
            latent = np.dot(latent, weight, output)
            np.add(latent, bias, output)
            if activation is not None:
                activation(latent, output)
        return latent


def make_flatten(policy: ActorCriticPolicy) -> Callable[[Any], NumpyArray] | None:
    """
    Make the NumPy function from observations to the inputs of the first layer, float32, shape ``(n_envs, n_features)``.

    None if the features are more than flat observations, or a Dict of flat observations, in a row.
    """
    space, extractor = policy.observation_space, policy.pi_features_extractor
    if type(extractor) is FlattenExtractor:
        return _make_flatten_part(space)
    if type(extractor) is not CombinedExtractor or not isinstance(space, spaces.Dict):
        return None
    parts = {
        key: _make_flatten_part(space[key]) if type(part) is nn.Flatten else None for key, part in extractor.extractors.items()
    }
    flattens = [(key, flatten) for key, flatten in parts.items() if flatten is not None]
    if len(flattens) < len(parts):
        return None
    return lambda observations: np.concatenate([flatten(observations[key]) for key, flatten in flattens], axis=1)


def _make_flatten_part(space: spaces.Space[Any]) -> Callable[[NumpyArray], NumpyArray] | None:
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return lambda observations: _one_hot(observations, int(space.n))
    if isinstance(space, spaces.Box | spaces.MultiBinary) and not is_image_space(space):
        return lambda observations: observations.reshape(len(observations), -1).astype(np.float32, copy=False)
    return None


def _one_hot(observations: NumpyArray, n: int) -> NumpyArray:
    features = np.zeros((len(observations), n), dtype=np.float32)
    features[np.arange(len(observations)), observations.reshape(-1)] = 1.0
    return features


def _relu(latent: NumpyArray, output: NumpyArray) -> NumpyArray:
    return np.maximum(latent, 0.0, out=output)


def _array(parameter: th.Tensor) -> NumpyArray:
    return parameter.detach().cpu().numpy()


def noise_rows(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> Iterator[NumpyArray]:
    """Generate the noise of each step, shape ``(n_envs, n_parameters)``, in blocks, since calls cost more than numbers."""
    assert isinstance(policy.action_net, nn.Linear)
    n_parameters = int(policy.action_net.out_features)
    n_steps = max(1, min(NOISE_BLOCK_STEPS, NOISE_BLOCK_SIZE // (n_envs * n_parameters)))
    shape = n_steps, n_envs, n_parameters
    while True:
        if isinstance(policy.action_dist, DiagGaussianDistribution):
            yield from rng.standard_normal(shape, dtype=np.float32)
        elif isinstance(policy.action_dist, BernoulliDistribution):
            yield from rng.logistic(size=shape).astype(np.float32)
        elif n_steps < NOISE_BLOCK_STEPS:
            # The same distribution, four times faster
            yield from -np.log(rng.standard_exponential(shape)).astype(np.float32)
        else:
            yield from rng.gumbel(size=shape).astype(np.float32)


def make_draw(policy: ActorCriticPolicy) -> Draw:
    """
    Make the function that draws actions from the parameters of one of SB3's distributions, with the current standard
    deviation.

    A categorical draw is the argmax of the logits plus Gumbel noise, a Bernoulli draw is the sign of the logit plus logistic
    noise (Gumbel 1954; Maddison et al. 2014), and a Gaussian draw is the mean plus scaled normal noise.
    """
    distribution = policy.action_dist
    if isinstance(distribution, DiagGaussianDistribution):
        std, action_shape = np.exp(_array(policy.log_std)), policy.action_space.shape
        return lambda mean, normal: (mean + std * normal).reshape(-1, *action_shape)  # type: ignore[misc]
    if isinstance(distribution, BernoulliDistribution):
        return lambda logits, logistic: (logits + logistic > 0.0).astype(np.int8)
    if isinstance(distribution, MultiCategoricalDistribution):
        ends = np.cumsum(distribution.action_dims)
        parts = [slice(end - size, end) for size, end in zip(distribution.action_dims, ends, strict=True)]

        def draw_each(logits: NumpyArray, gumbel: NumpyArray) -> NumpyArray:
            perturbed = logits + gumbel
            return np.stack([perturbed[:, part].argmax(axis=1) for part in parts], axis=1)

        return draw_each
    return lambda logits, gumbel: (logits + gumbel).argmax(axis=1)


def is_standard_mlp(policy: ActorCriticPolicy) -> bool:
    """Whether a policy is exactly SB3's, for flat observations or a Dict of them, and ``has_numpy_layers``."""
    standard = (ActorCriticPolicy, MlpPolicy, MultiInputActorCriticPolicy, MultiInputPolicy)
    return type(policy) in standard and has_numpy_layers(policy)


def has_numpy_layers(policy: ActorCriticPolicy) -> bool:
    """
    Whether NumPy can compute the actor from observations, or from the outputs of an LSTM if it has one.

    The policy must be float32 on the CPU, with flat observations or a Dict of them, Linear layers of moderate size with Tanh
    or ReLU between them, no hooks, and no method replaced on an instance.
    """
    if type(policy.mlp_extractor) is not MlpExtractor or overrides(policy, "extract_features"):
        return False
    layers = [*policy.mlp_extractor.policy_net, policy.action_net]
    return (
        make_flatten(policy) is not None
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in layers[::2])
        and all(layer.weight.numel() <= COPIED_SIZE for layer in layers[::2])
        and all(type(layer) in (nn.Tanh, nn.ReLU) for layer in layers[1::2])
        and all(parameter.dtype == th.float32 and parameter.device.type == "cpu" for parameter in policy.parameters())
        and not any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())
        and not any(vars(module).keys() & {"forward", "forward_actor"} for module in policy.modules())
    )
