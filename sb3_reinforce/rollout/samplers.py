"""
From observations to actions while collecting: the actor and a draw, and nothing else.

A policy gradient needs only the actions during the rollout; log-probabilities, entropies and values are computed in
one batch at the update. What is left per step is the actor, which for a small MLP is faster in NumPy than in PyTorch,
and a draw, which is one vector operation on noise generated ahead in blocks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_reinforce.policies.actor_critic import MlpPolicy, MultiInputPolicy
from sb3_reinforce.policies.inspection import (
    ACTING_METHODS,
    actor_features,
    distribution_of,
    overrides,
)
from sb3_reinforce.policies.masked_distribution import apply_action_mask, use_action_masks
from sb3_reinforce.rollout.batch import NumpyObs

NumpyArray = np.ndarray[Any, np.dtype[Any]]

#: Turns distribution parameters and noise into actions of shape ``(n_envs, *action_shape)``.
Draw = Callable[[NumpyArray, NumpyArray], NumpyArray]

#: Noise is drawn ahead for so many steps at most, and for so many numbers at most unless a single step needs more.
NOISE_BLOCK_STEPS, NOISE_BLOCK_SIZE = 256, 16_384

#: Parameters of up to so many numbers are compared by value to notice a change.
COMPARED_SIZE = 4_096

#: Layers of up to so many weights are copied for NumPy in every rollout; beyond, PyTorch is as fast without a copy.
COPIED_SIZE = 1_000_000


#: With it, ``make_draw`` draws the most probable action, or the mean.
NO_NOISE: NumpyArray = np.zeros(1, dtype=np.float32)


class ActionSampler:
    """What the collector asks for actions."""

    #: Whether to take the most probable action, or the mean, instead of a sample
    deterministic = False

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """
        Sample an action for every environment.

        :param observations: Shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :param masks: Shape ``(n_envs, n_options)``, True for what is allowed; None if everything is.
        :return: Shape ``(n_envs, *action_shape)``, neither clipped nor rescaled.
        """
        raise NotImplementedError

    def reset_states(self, dones: NumpyArray) -> None:
        """
        Forget what was seen in episodes that ended.

        :param dones: Shape ``(n_envs,)``.
        """

    def refresh(self) -> None:
        """Copy the policy's parameters again if they were changed."""


class Actor:
    """What computes distribution parameters: logits, or the mean of a Gaussian."""

    #: Those of the policy whose parameters it holds copies of
    copied_modules: Sequence[nn.Module] = ()

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        """
        Compute the distribution parameters, and remember the observations if the policy is recurrent.

        :param observations: Shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :return: Shape ``(n_envs, n_parameters)``; may be overwritten by the next call.
        """
        raise NotImplementedError

    def load(self) -> None:
        """Copy the policy's parameters."""

    def reset_states(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``."""


class ParameterWatch:
    """
    Notices changes of parameters. A look takes a few microseconds for a small network.

    Small parameters are compared by value, large ones by PyTorch's count of changes in place, which a write through ``.data``
    or through a NumPy array does not raise.

    :param modules: Whose own parameters are watched, not those of their children.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # A parameter that is replaced is found here again
        self._tables = [module._parameters for module in modules]
        self._look()

    def _look(self) -> None:
        parameters = [p for table in self._tables for p in table.values() if p is not None]
        is_small = [p.numel() <= COMPARED_SIZE and p.is_contiguous() for p in parameters]
        self._small = [_array(p) for p, small in zip(parameters, is_small, strict=True) if small]
        self._large = [p for p, small in zip(parameters, is_small, strict=True) if not small]
        # Values on another device cannot be looked at so cheaply
        self._is_blind = any(p.device.type != "cpu" for p in parameters)
        self._seen = self._state()

    def _state(self) -> tuple[bytes, list[int], list[int]]:
        addresses = [p.data_ptr() for table in self._tables for p in table.values() if p is not None]
        return b"".join(self._small), addresses, [p._version for p in self._large]  # type: ignore[arg-type]

    def has_changed(self) -> bool:
        """
        Look for changes.

        :return: Whether there may have been any since the last call.
        """
        if not self._is_blind and self._state() == self._seen:
            return False
        self._look()
        return True


class DistributionSampler(ActionSampler):
    """
    Samples from the policy's own distribution object.

    :param policy: Any actor-critic policy.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """See ``ActionSampler``."""
        mask_tensor = None if masks is None else th.as_tensor(masks, device=self.policy.device)
        with th.no_grad(), use_action_masks(self.policy, mask_tensor):
            distribution = distribution_of(self.policy, obs_as_tensor(observations, self.policy.device))
            actions: NumpyArray = distribution.get_actions(self.deterministic).cpu().numpy()
        return actions.reshape(-1, *self.policy.action_space.shape)  # type: ignore[misc]


class ForwardSampler(ActionSampler):
    """
    Samples by the policy's own ``forward``, as A2C does.

    :param policy: Overrides ``forward``, but not what makes the distribution that an update differentiates.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """
        See ``ActionSampler``.

        :raises ValueError: If the log-probabilities of ``forward`` are those of another distribution.
        """
        policy = self.policy
        mask_tensor = None if masks is None else th.as_tensor(masks, device=policy.device)
        obs_tensor = obs_as_tensor(observations, policy.device)
        with th.no_grad(), use_action_masks(policy, mask_tensor):
            actions, _, log_prob = policy(obs_tensor, self.deterministic)
            taken = actions if isinstance(policy.action_space, spaces.Discrete) else actions.flatten(1)
            expected = distribution_of(policy, obs_tensor).log_prob(taken)
        # The actions of a squashed Gaussian tell the noise behind them to a few digits only
        if not th.allclose(log_prob, expected, rtol=0.01, atol=0.01):
            raise ValueError(
                f"{type(policy).__name__}: forward has other log-probabilities than get_distribution, which predict and the "
                f"update call: what acts would not be what is differentiated. Override {' or '.join(ACTING_METHODS)}"
            )
        sampled: NumpyArray = actions.cpu().numpy()
        return sampled


class ParameterSampler(ActionSampler):
    """
    Samples from distribution parameters, without a distribution object.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    :param actor: Computes the parameters.
    :param n_envs: Number of environments.
    :param rng: Source of the noise.
    """

    def __init__(self, policy: ActorCriticPolicy, actor: Actor, n_envs: int, rng: np.random.Generator) -> None:
        self.policy = policy
        self.actor = actor
        self.noise = noise_rows(policy, n_envs, rng)
        self.draw = make_draw(policy)
        # The policy itself has the standard deviation of a Gaussian
        self.watch = ParameterWatch([policy, *actor.copied_modules])

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """See ``ActionSampler``."""
        parameters = self.actor(observations)
        noise = NO_NOISE if self.deterministic else next(self.noise)
        return self.draw(parameters if masks is None else apply_action_mask(parameters, masks), noise)

    def reset_states(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``."""
        self.actor.reset_states(dones)

    def refresh(self) -> None:
        """See ``ActionSampler``."""
        if self.watch.has_changed():
            self.actor.load()
            self.draw = make_draw(self.policy)


class TorchActor(Actor):
    """
    The actor of a policy in PyTorch.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        """See ``Actor``."""
        policy = self.policy
        with th.no_grad():
            obs_tensor = obs_as_tensor(observations, policy.device)
            features = actor_features(policy, obs_tensor)
            parameters: NumpyArray = policy.action_net(policy.mlp_extractor.forward_actor(features)).cpu().numpy()
        return parameters


class NumpyMlpActor(Actor):
    """
    The actor of a standard MLP policy in NumPy, on a copy of the policy's weights.

    :param policy: A policy for which ``is_standard_mlp`` holds.
    :param n_envs: Number of environments.
    """

    def __init__(self, policy: ActorCriticPolicy, n_envs: int) -> None:
        flatten = make_flatten(policy)
        assert flatten is not None
        self.flatten = flatten
        self.layers = NumpyLayers(policy, n_envs)
        self.copied_modules = self.layers.linears

    def load(self) -> None:
        """See ``Actor``."""
        self.layers.load()

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        """See ``Actor``."""
        return self.layers(self.flatten(observations))


class NumpyLayers:
    """
    The fully connected layers of a policy's actor in NumPy, on a copy of the policy's weights.

    :param policy: A policy for which ``has_numpy_layers`` holds.
    :param n_envs: Number of environments.
    """

    def __init__(self, policy: ActorCriticPolicy, n_envs: int) -> None:
        modules = [*policy.mlp_extractor.policy_net, policy.action_net]
        self.linears = modules[::2]
        activations: dict[type[nn.Module], Callable[[NumpyArray, NumpyArray], Any]] = {nn.Tanh: np.tanh, nn.ReLU: _relu}
        # Results go into buffers and biases are as large as they are: both spare NumPy half the time of such small arrays
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
        """Copy the policy's parameters."""
        for linear, (weight, bias, _, _) in zip(self.linears, self.layers, strict=True):
            # NumPy transposes large matrices tens of times slower
            th.from_numpy(weight).copy_(linear.weight.detach().T)
            bias[:] = _array(linear.bias)

    def __call__(self, latent: NumpyArray) -> NumpyArray:
        """
        Compute the distribution parameters.

        :param latent: What the first layer is given, shape ``(n_envs, n_features)``.
        :return: Shape ``(n_envs, n_parameters)``; overwritten by the next call.
        """
        for weight, bias, output, activation in self.layers:
            latent = np.dot(latent, weight, output)
            np.add(latent, bias, output)
            if activation is not None:
                activation(latent, output)
        return latent


def make_flatten(policy: ActorCriticPolicy) -> Callable[[Any], NumpyArray] | None:
    """
    Make the function that does in NumPy what a policy does to observations before its first layer.

    :param policy: Any actor-critic policy.
    :return: From observations to features of shape ``(n_envs, n_features)``, float32. None if these are more than the numbers
        of flat observations, or of a Dict of them, in a row.
    """
    space, extractor = policy.observation_space, policy.pi_features_extractor
    if type(extractor) is FlattenExtractor:
        return _make_flatten_part(space)
    if type(extractor) is not CombinedExtractor or not isinstance(space, spaces.Dict):
        return None
    parts = {
        key: _make_flatten_part(space[key]) if type(own) is nn.Flatten else None for key, own in extractor.extractors.items()
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
    """
    Generate the noise that ``make_draw`` needs, in blocks because a draw costs more than the numbers in it.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    :param n_envs: Number of environments.
    :param rng: Source of the noise.
    :return: Endless iterator over the noise of one step, float32, shape ``(n_envs, n_parameters)``.
    """
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
    Make the function that draws actions from the parameters of SB3's own distributions.

    A categorical is drawn as the largest of its logits plus Gumbel noise, a Bernoulli as the sign of its logit plus
    logistic noise (Gumbel 1954; Maddison et al. 2014), a Gaussian as mean plus scaled normal noise.

    :param policy: A policy for which ``has_standard_distribution`` holds. The standard deviation is that of now.
    :return: See ``Draw``.
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
    """
    Tell whether NumPy can stand in for a policy's actor.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    :return: True if it is exactly SB3's policy for flat observations, or a Dict of them, and ``has_numpy_layers`` holds.
    """
    standard = (ActorCriticPolicy, MlpPolicy, MultiInputActorCriticPolicy, MultiInputPolicy)
    return type(policy) in standard and has_numpy_layers(policy)


def has_numpy_layers(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether NumPy can compute what a policy's actor does to observations, and to the outputs of an LSTM if it has one.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    :return: True if it is float32 on the CPU, with flat observations, or a Dict of them, Linear layers of no great size
        with Tanh or ReLU between them, no hooks, no method replaced on an instance.
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
