"""Reading a batch off a policy at the update: distributions, log-probabilities, entropies and values, piece by piece."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_reinforce.buffers import EpisodeBatch, map_observation
from sb3_reinforce.masking import masked
from sb3_reinforce.returns import Array

NOT_LEARNED = "The rollout was not learned from: policy and optimizer are as before it."

#: Which steps of a batch: a slice, or a tensor of indices.
Steps = Any


class BatchReader:
    """
    Reads batches off a policy.

    :param policy: In evaluation mode.
    :param micro_batch_size: Steps that are read at once, which bounds the memory; None for all.
    """

    def __init__(self, policy: ActorCriticPolicy, micro_batch_size: int | None = None) -> None:
        self.policy = policy
        self.micro_batch_size = micro_batch_size

    def pieces(self, n_steps: int) -> Iterator[slice]:
        """
        Cut steps into micro-batches.

        :param n_steps: Number of steps.
        :return: Slices that together cover each of them once.
        """
        size = self.micro_batch_size or n_steps
        return (slice(start, min(start + size, n_steps)) for start in range(0, n_steps, size))

    def thinned(self, n_steps: int, max_steps: int | None) -> slice:
        """
        Choose evenly spread steps, of which a mean over the batch can be estimated, within one micro-batch.

        :param n_steps: Number of steps.
        :param max_steps: At most so many are chosen; None for no such bound.
        :return: Every k-th step.
        """
        bound = min(max_steps or n_steps, self.micro_batch_size or n_steps)
        return slice(0, n_steps, -(-n_steps // bound))

    def distribution(self, batch: EpisodeBatch, steps: Steps) -> Distribution:
        """
        Compute the distribution of actions.

        :param batch: The episodes.
        :param steps: Which of its steps.
        :return: SB3's distribution, for these steps. The policy may return the same object the next time.
        """
        masks = None if batch.action_masks is None else batch.action_masks[steps]
        with masked(self.policy, masks):
            return self.policy.get_distribution(map_observation(lambda obs: obs[steps], batch.observations))

    def log_prob_and_entropy(self, batch: EpisodeBatch, piece: slice) -> tuple[th.Tensor, th.Tensor]:
        """
        Compute log-probabilities of the actions and entropies.

        :param batch: The episodes.
        :param piece: Which of its steps.
        :return: Two tensors of shape ``(len(piece),)``.
        :raises ValueError: If a log-probability is not finite; names the environment and the step.
        """
        actions = batch.actions[piece]
        actions = actions.long().flatten() if isinstance(self.policy.action_space, spaces.Discrete) else actions.float()
        distribution = self.distribution(batch, piece)
        log_prob = distribution.log_prob(actions)
        if not th.isfinite(log_prob).all():
            env_idx, step = batch.locate((piece.start or 0) + int(th.isfinite(log_prob).logical_not().nonzero()[0]))
            raise ValueError(
                f"The log-probability of the action of environment {env_idx} at step {step} of the rollout is not finite, "
                f"and neither is the policy loss. {NOT_LEARNED}"
            )
        entropy = distribution.entropy()
        if entropy is None:
            # Squashed actions have no closed form. The value of this estimate is -log_prob, as in SB3, but so is not its
            # gradient: that of -log_prob is zero in expectation, that of the entropy is -log_prob times the score
            entropy = -log_prob.detach() * (1.0 + log_prob - log_prob.detach())
        return log_prob, entropy

    def log_probs(self, batch: EpisodeBatch) -> Array:
        """
        Compute the log-probability of every action.

        :param batch: The episodes.
        :return: Shape ``(n_steps,)``.
        """
        return self._in_pieces(len(batch.actions), lambda piece: self.log_prob_and_entropy(batch, piece)[0])

    def values(self, observations: PyTorchObs) -> Array:
        """
        Compute the critic's values.

        :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
        :return: Shape ``(n_steps,)``.
        """
        return self._in_pieces(_n_steps(observations), lambda piece: self.values_of(observations, piece))

    def baseline_values(self, observations: PyTorchObs) -> Array:
        """
        Compute the values that A2C's rollout would hold: those of ``forward``, if a policy overrides only that.

        :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
        :return: Shape ``(n_steps,)``.
        """
        policy_class = type(self.policy)
        if policy_class.forward is ActorCriticPolicy.forward or (
            policy_class.predict_values is not ActorCriticPolicy.predict_values
        ):
            return self.values(observations)

        def values_of_forward(piece: slice) -> th.Tensor:
            values: th.Tensor = self.policy(map_observation(lambda obs: obs[piece], observations), deterministic=True)[1]
            return values.flatten()

        return self._in_pieces(_n_steps(observations), values_of_forward)

    def values_of(self, observations: PyTorchObs, steps: Steps) -> th.Tensor:
        """
        Compute the critic's values, differentiable.

        :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
        :param steps: Which of them.
        :return: Shape ``(len(steps),)``.
        """
        return self.policy.predict_values(map_observation(lambda obs: obs[steps], observations)).flatten()

    def _in_pieces(self, n_steps: int, function: Callable[[slice], th.Tensor]) -> Array:
        """Fill an array piece by piece: a list of tensors would scatter small blocks over the freed memory of large ones."""
        results = np.empty(n_steps, dtype=np.float64)
        with th.no_grad():
            for piece in self.pieces(n_steps):
                results[piece] = function(piece).cpu().numpy()
        return results


def _n_steps(observations: PyTorchObs) -> int:
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
