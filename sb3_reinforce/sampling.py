"""
From observations to actions while collecting: the actor and a draw, and nothing else.

A policy gradient needs only the actions during the rollout; log-probabilities, entropies and values are computed in
one batch at the update. What is left per step is the actor, which for a small MLP is faster in NumPy than in PyTorch,
and a draw, which is one vector operation on noise generated ahead in blocks.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_reinforce.buffers import NumpyObs
from sb3_reinforce.masking import forbid, masked
from sb3_reinforce.policies import (
    ACTING_METHODS,
    MlpPolicy,
    MultiInputPolicy,
    actor_features,
    distribution_of,
    has_memory,
    is_own,
    uncompiled,
)

NumpyArray = np.ndarray[Any, np.dtype[Any]]
#: Turns observations of shape ``(n_envs, *obs_shape)`` into distribution parameters of shape ``(n_envs, n_parameters)``.
Actor = Callable[[NumpyObs], NumpyArray]
#: Turns distribution parameters into actions of shape ``(n_envs, *action_shape)``.
Draw = Callable[[NumpyArray], NumpyArray]

NOISE_BLOCK_STEPS = 256


class ActionSampler(Protocol):
    """What the collector asks for actions."""

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """
        Sample an action for every environment.

        :param observations: Shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :param masks: Shape ``(n_envs, n_options)``, True for what is allowed; None if everything is.
        :return: Shape ``(n_envs, *action_shape)``, neither clipped nor rescaled.
        """

    def forget(self, dones: NumpyArray) -> None:
        """
        Forget what was seen in episodes that ended.

        :param dones: Shape ``(n_envs,)``.
        """


def make_action_sampler(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> ActionSampler:
    """
    Choose the fastest exact way to sample from a policy, for as long as its parameters do not change.

    :param policy: In evaluation mode.
    :param n_envs: Number of environments, all at the start of an episode.
    :param rng: Source of all randomness, except for policies with a distribution of their own, which use PyTorch's.
    :return: NumPy actor and draw for a standard MLP; PyTorch actor and NumPy draw for any feature extractor or network
        under SB3's own distributions; the policy's own distribution object for everything else (gSDE, overridden methods).
    """
    policy = uncompiled(policy)
    if has_memory(policy):
        # sb3-contrib need not be installed
        from sb3_reinforce.recurrent import make_recurrent_sampler

        return make_recurrent_sampler(policy, n_envs, rng)
    if is_own(policy, "forward") and not any(is_own(policy, name) for name in ACTING_METHODS):
        return ForwardSampler(policy)
    if not has_standard_distribution(policy):
        return DistributionSampler(policy)
    actor = NumpyMlpActor(policy, n_envs) if is_standard_mlp(policy) else TorchActor(policy)
    return ParameterSampler(actor, make_draw(policy, n_envs, rng))


class _WithoutMemory:
    def forget(self, dones: NumpyArray) -> None:
        """See ``ActionSampler``: there is nothing to forget."""


class DistributionSampler(_WithoutMemory):
    """
    Samples from the policy's own distribution object.

    :param policy: Any actor-critic policy.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """See ``ActionSampler``."""
        mask_tensor = None if masks is None else th.as_tensor(masks, device=self.policy.device)
        with th.no_grad(), masked(self.policy, mask_tensor):
            distribution = distribution_of(self.policy, obs_as_tensor(observations, self.policy.device))
            actions: NumpyArray = distribution.get_actions().cpu().numpy()
        return actions.reshape(-1, *self.policy.action_space.shape)  # type: ignore[misc]


class ForwardSampler(_WithoutMemory):
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
        with th.no_grad(), masked(policy, mask_tensor):
            actions, _, log_prob = policy(obs_tensor)
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


class ParameterSampler(_WithoutMemory):
    """
    Samples from distribution parameters, without a distribution object.

    :param actor: Computes the parameters.
    :param draw: Draws actions from them.
    """

    def __init__(self, actor: Actor, draw: Draw) -> None:
        self.actor = actor
        self.draw = draw

    def __call__(self, observations: NumpyObs, masks: NumpyArray | None = None) -> NumpyArray:
        """See ``ActionSampler``."""
        parameters = self.actor(observations)
        return self.draw(parameters if masks is None else forbid(parameters, masks))


class TorchActor:
    """
    The actor of a policy in PyTorch: logits, or the mean of a Gaussian.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        """
        Compute the distribution parameters.

        :param observations: Shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :return: Shape ``(n_envs, n_parameters)``.
        """
        policy = self.policy
        with th.no_grad():
            obs_tensor = obs_as_tensor(observations, policy.device)
            features = actor_features(policy, obs_tensor)
            parameters: NumpyArray = policy.action_net(policy.mlp_extractor.forward_actor(features)).cpu().numpy()
        return parameters


class NumpyMlpActor:
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

    def __call__(self, observations: NumpyObs) -> NumpyArray:
        """
        Compute the distribution parameters.

        :param observations: Shape ``(n_envs, *obs_shape)`` or a dict of such arrays.
        :return: Shape ``(n_envs, n_parameters)``; overwritten by the next call.
        """
        return self.layers(self.flatten(observations))


class NumpyLayers:
    """
    The fully connected layers of a policy's actor in NumPy, on a copy of the policy's weights.

    :param policy: A policy for which ``has_numpy_layers`` holds.
    :param n_envs: Number of environments.
    """

    def __init__(self, policy: ActorCriticPolicy, n_envs: int) -> None:
        layers = [*policy.mlp_extractor.policy_net, policy.action_net]
        activations: dict[type[nn.Module], Callable[[NumpyArray, NumpyArray], Any]] = {nn.Tanh: np.tanh, nn.ReLU: _relu}
        # Results go into buffers and biases are as large as they are: both spare NumPy half the time of such small arrays
        self.layers = [
            (
                np.ascontiguousarray(_array(linear.weight).T),
                np.tile(_array(linear.bias), (n_envs, 1)),
                np.empty((n_envs, linear.out_features), dtype=np.float32),
                activations[type(activation)] if activation is not None else None,
            )
            for linear, activation in zip(layers[::2], [*layers[1::2], None], strict=True)
        ]

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


def noise_rows(draw_block: Callable[[tuple[int, ...]], NumpyArray], shape: tuple[int, ...]) -> Iterator[NumpyArray]:
    """
    Generate noise one step at a time, drawn in blocks because a draw costs more than the numbers in it.

    :param draw_block: Takes the shape of a block and returns it filled.
    :param shape: Shape of the noise of one step.
    :return: Endless iterator over float32 arrays of that shape.
    """
    while True:
        yield from draw_block((NOISE_BLOCK_STEPS, *shape)).astype(np.float32)


def make_draw(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> Draw:
    """
    Make the function that draws actions from the parameters of SB3's own distributions.

    A categorical is drawn as the largest of its logits plus Gumbel noise, a Bernoulli as the sign of its logit plus
    logistic noise (Gumbel 1954; Maddison et al. 2014), a Gaussian as mean plus scaled normal noise.

    :param policy: A policy for which ``has_standard_distribution`` holds.
    :param n_envs: Number of environments.
    :param rng: Source of the noise.
    :return: See ``Draw``.
    """
    distribution, action_space = policy.action_dist, policy.action_space
    assert isinstance(policy.action_net, nn.Linear)
    shape = (n_envs, int(policy.action_net.out_features))

    if isinstance(distribution, DiagGaussianDistribution):
        std = np.exp(_array(policy.log_std))
        normal = noise_rows(lambda block: rng.standard_normal(block, dtype=np.float32) * std, shape)
        action_shape = (n_envs, *action_space.shape)  # type: ignore[misc]
        return lambda mean: (mean + next(normal)).reshape(action_shape)

    if isinstance(distribution, BernoulliDistribution):
        logistic = noise_rows(lambda block: rng.logistic(size=block), shape)
        return lambda logits: (logits + next(logistic) > 0.0).astype(np.int8)

    gumbel = noise_rows(lambda block: rng.gumbel(size=block), shape)
    if isinstance(distribution, MultiCategoricalDistribution):
        ends = np.cumsum(distribution.action_dims)
        parts = [slice(end - size, end) for size, end in zip(distribution.action_dims, ends, strict=True)]

        def draw_each(logits: NumpyArray) -> NumpyArray:
            perturbed = logits + next(gumbel)
            return np.stack([perturbed[:, part].argmax(axis=1) for part in parts], axis=1)

        return draw_each
    return lambda logits: (logits + next(gumbel)).argmax(axis=1)


def has_standard_distribution(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether a policy's distribution is one of SB3's, with the parameters that ``action_net`` computes.

    :param policy: Any actor-critic policy.
    :return: False for gSDE, and as soon as a method on the way to the distribution is overridden.
    """
    return (
        type(policy.action_dist)
        in (CategoricalDistribution, DiagGaussianDistribution, MultiCategoricalDistribution, BernoulliDistribution)
        and type(policy.action_net) is nn.Linear
        and not any(is_own(policy, name) for name in ACTING_METHODS)
    )


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
    :return: True if it is float32 on the CPU, with flat observations, or a Dict of them, Linear layers with Tanh or ReLU
        between them, no hooks, no method replaced on an instance.
    """
    if type(policy.mlp_extractor) is not MlpExtractor or is_own(policy, "extract_features"):
        return False
    layers = [*policy.mlp_extractor.policy_net, policy.action_net]
    return (
        make_flatten(policy) is not None
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in layers[::2])
        and all(type(layer) in (nn.Tanh, nn.ReLU) for layer in layers[1::2])
        and all(parameter.dtype == th.float32 and parameter.device.type == "cpu" for parameter in policy.parameters())
        and not any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())
        and not any(vars(module).keys() & {"forward", "forward_actor"} for module in policy.modules())
    )
