"""Evaluates the policy on a batch: distributions, log-probabilities, entropies and values, by micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.functional.baselines import join_distributions
from sb3_reinforce.functional.natural_gradient import flat_gradient
from sb3_reinforce.functional.returns import Array, IntArray
from sb3_reinforce.policies.inspection import critic_features, distribution_of, is_recurrent, overrides, unwrap_compiled
from sb3_reinforce.policies.masked_distribution import use_action_masks
from sb3_reinforce.rollout.batch import EpisodeBatch, locate_step, select_steps

NOT_LEARNED = "The rollout was not learned from: policy and optimizer are as before it."

#: Maximum number of distribution parameters in a micro-batch, unless ``micro_batch_size`` is given: 32 MiB.
MAX_MICRO_BATCH_NUMBERS = 2**23

#: Steps of a batch: a slice with start and stop, or a tensor of indices.
Steps = Any


class PolicyEvaluator:
    """
    Evaluates a policy in evaluation mode on batches.

    :param micro_batch_size: Number of steps evaluated at once, which bounds the memory; None for all, or for fewer if there
        are very many actions.
    """

    def __init__(self, policy: ActorCriticPolicy, micro_batch_size: int | None = None) -> None:
        self.policy = policy
        n_parameters = getattr(policy.action_net, "out_features", 1)
        self.micro_batch_size = micro_batch_size or max(1, MAX_MICRO_BATCH_NUMBERS // n_parameters)

    def micro_batches(self, episode_lengths: IntArray, steps: Steps | None = None) -> list[Steps]:
        """Divide the chosen steps of a batch into micro-batches; None for all steps."""
        if steps is None:
            steps = slice(0, int(episode_lengths.sum()))
        cuts = self._cuts(episode_lengths, steps)
        if isinstance(steps, slice):
            return [slice(steps.start + cut.start, steps.start + cut.stop) for cut in cuts]
        return [steps[cut] for cut in cuts]

    def explain_long_episode(self, episode_lengths: IntArray) -> str | None:
        """Return a warning if an episode that must be evaluated whole is longer than a micro-batch, or None."""
        return None

    def _cuts(self, episode_lengths: IntArray, steps: Steps) -> Iterator[slice]:
        """The micro-batches as slices of the chosen steps."""
        size, n_steps = self.micro_batch_size, count_steps(steps)
        return (slice(start, min(start + size, n_steps)) for start in range(0, n_steps, size))

    def minibatches(self, episode_lengths: IntArray, size: int | None, rng: np.random.Generator) -> Iterator[list[Steps]]:
        """
        Divide a batch at random into minibatches of ``size`` steps (None for a single one), and each into micro-batches.

        A single minibatch draws nothing from ``rng``.
        """
        n_steps = int(episode_lengths.sum())
        if size is None or size >= n_steps:
            yield self.micro_batches(episode_lengths)
            return
        order = th.as_tensor(rng.permutation(n_steps), device=self.policy.device)
        for start in range(0, n_steps, size):
            yield self.micro_batches(episode_lengths, order[start : start + size])

    def subsample(self, episode_lengths: IntArray, max_steps: int, rng: np.random.Generator) -> Steps:
        """Choose ``max_steps`` of the batch's steps at random, in order, to estimate a mean over the batch."""
        chosen = np.sort(rng.choice(int(episode_lengths.sum()), max_steps, replace=False))
        return th.as_tensor(chosen, device=self.policy.device)

    def distribution(self, batch: EpisodeBatch, steps: Steps) -> Distribution:
        """SB3's distribution of actions for these steps. The policy may return the same object at the next call."""
        masks = None if batch.action_masks is None else batch.action_masks[steps]
        with use_action_masks(self.policy, masks):
            return distribution_of(self.policy, select_steps(batch.observations, steps))

    def reshape_actions(self, actions: th.Tensor) -> th.Tensor:
        """Reshape actions from ``(n_steps, action_dim)`` to ``(n_steps, *action_shape)``."""
        return actions.reshape(-1, *self.policy.action_space.shape)  # type: ignore[misc]

    def log_prob_and_entropy(self, batch: EpisodeBatch, micro_batch: slice) -> tuple[th.Tensor, th.Tensor]:
        """
        Log-probabilities of the actions and entropies of a micro-batch, of shape ``(n_steps,)``.

        Raises ``ValueError``, which names the environment and the step, if a log-probability is not finite.
        """
        actions = batch.actions[micro_batch]
        is_discrete = isinstance(self.policy.action_space, spaces.Discrete)
        actions = self.reshape_actions(actions).long() if is_discrete else actions.float()
        distribution = self.distribution(batch, micro_batch)
        log_prob = distribution.log_prob(actions)
        if not th.isfinite(log_prob).all():
            first = int(th.isfinite(log_prob).logical_not().nonzero()[0])
            env_idx, step = locate_step(batch, micro_batch.start + first)
            raise ValueError(
                f"The log-probability of the action of environment {env_idx} at step {step} of the rollout is not finite, "
                f"and neither is the policy loss. {NOT_LEARNED}"
            )
        entropy = distribution.entropy()
        if entropy is None:
            # Squashed actions have no closed form. The value of this estimate is -log_prob, as in SB3. Its gradient is
            # -log_prob times the score, as for the entropy: the gradient of -log_prob alone is zero in expectation
            entropy = -log_prob.detach() * (1.0 + log_prob - log_prob.detach())
        return log_prob, entropy

    def log_probs(self, batch: EpisodeBatch) -> Array:
        """The log-probability of every action, shape ``(n_steps,)``."""
        return self._in_micro_batches(batch, lambda micro_batch: self.log_prob_and_entropy(batch, micro_batch)[0])

    def distributions(self, batch: EpisodeBatch) -> Any:
        """
        PyTorch's distribution of actions of all steps, on the CPU, or a list of them for MultiDiscrete actions; None without
        steps.

        Raises ``ValueError`` if ``join_distributions`` does not accept the policy's distribution.
        """
        parts = []
        with th.no_grad():
            for steps in self.micro_batches(batch.episode_lengths):
                # The policy returns the same object every time, with new contents
                parts.append(join_distributions([getattr(self.distribution(batch, steps), "distribution", None)]))
        return join_distributions(parts) if parts else None

    def score_products(self, batch: EpisodeBatch, returns: Array, weights: Array) -> Array:
        """
        The inner products of each episode's ``S = sum_t weights_t s_t``, where ``s_t`` is the gradient of the log-probability
        of a step, with ``sum_t weights_t returns_t s_t`` and with itself, shape ``(n_episodes, 2)``: the input of
        ``optimal_baseline``.
        """
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        rows = th.as_tensor(np.stack([weights * returns, weights]), dtype=th.float32, device=self.policy.device)
        products, ends = np.zeros((len(batch.episode_lengths), 2)), np.cumsum(batch.episode_lengths)
        for episode, (end, length) in enumerate(zip(ends.tolist(), batch.episode_lengths.tolist(), strict=True)):
            gradients = [th.zeros((), device=self.policy.device)] * 2
            for steps in self.micro_batches(batch.episode_lengths, slice(end - length, end)):
                log_prob, _ = self.log_prob_and_entropy(batch, steps)
                of_returns, of_scores = ((row[steps] * log_prob).sum() for row in rows)
                gradients[0] = gradients[0] + flat_gradient(of_returns, parameters, retain_graph=True)
                gradients[1] = gradients[1] + flat_gradient(of_scores, parameters)
            products[episode] = [float(gradient @ gradients[1]) for gradient in gradients]
        return products

    def values(self, batch: EpisodeBatch) -> Array:
        """The critic's value of every observation of the batch, shape ``(n_steps,)``."""
        return self._in_micro_batches(batch, lambda micro_batch: self.values_of(batch, micro_batch))

    def baseline_values(self, batch: EpisodeBatch) -> Array:
        """The values that A2C's rollout would hold: the values of ``forward``, if a policy overrides only that."""
        policy = unwrap_compiled(self.policy)
        if is_recurrent(policy) or not overrides(policy, "forward") or overrides(policy, "predict_values"):
            return self._in_micro_batches(batch, lambda micro_batch: self.values_of(batch, micro_batch, batch.features))

        def values_of_forward(micro_batch: slice) -> th.Tensor:
            observations = select_steps(batch.observations, micro_batch)
            values: th.Tensor = self.policy(observations, deterministic=True)[1]
            return values.flatten()

        return self._in_micro_batches(batch, values_of_forward)

    def final_values(self, batch: EpisodeBatch) -> Array:
        """The critic's values of the final observations of cut episodes, shape ``(n_cuts,)``, at least one."""
        assert batch.final_observations is not None
        finals = batch._replace(observations=batch.final_observations, episode_lengths=np.ones_like(batch.cut_steps))
        return self.values(finals)

    def values_of(self, batch: EpisodeBatch, steps: Steps, inputs: th.Tensor | None = None) -> th.Tensor:
        """The critic's values of the given steps, differentiable. ``inputs``: see ``critic_inputs``; None to compute them."""
        policy = self.policy
        if overrides(unwrap_compiled(policy), "predict_values"):
            return policy.predict_values(select_steps(batch.observations, steps)).flatten()
        latent = self._critic_latent(self._critic_inputs(batch, steps) if inputs is None else inputs[steps], batch, steps)
        values: th.Tensor = policy.value_net(policy.mlp_extractor.forward_critic(latent))
        return values.flatten()

    def critic_inputs(self, batch: EpisodeBatch, fitted: Sequence[th.nn.Parameter]) -> th.Tensor | None:
        """
        Compute what is constant while the critic is fitted: the outputs of the layers that the fit does not move.

        For layers shared with the actor, these are the outputs while acting, as in A2C's gradient, if the batch has them.

        :param fitted: Parameters that the fit moves.
        :return: Shape ``(n_steps, n_features)``; None if these layers have no parameters, or are fitted too.
        """
        policy, moved = unwrap_compiled(self.policy), {id(parameter) for parameter in fitted}
        parameters = [parameter for module in self._critic_input_layers() for parameter in module.parameters()]
        is_constant = parameters and not any(id(parameter) in moved for parameter in parameters)
        if not is_constant or overrides(policy, "extract_features") or overrides(policy, "predict_values"):
            return None
        inputs = batch.features
        if inputs is not None:
            return inputs
        with th.no_grad():
            for micro_batch in self.micro_batches(batch.episode_lengths):
                part = self._critic_inputs(batch, micro_batch)
                inputs = part.new_empty((len(batch.actions), *part.shape[1:])) if inputs is None else inputs
                inputs[micro_batch] = part
        return inputs

    def _critic_input_layers(self) -> list[th.nn.Module]:
        return [self.policy.vf_features_extractor]

    def _critic_inputs(self, batch: EpisodeBatch, steps: Steps) -> th.Tensor:
        return critic_features(self.policy, select_steps(batch.observations, steps))

    def _critic_latent(self, inputs: th.Tensor, batch: EpisodeBatch, steps: Steps) -> th.Tensor:
        return inputs

    def _in_micro_batches(self, batch: EpisodeBatch, function: Callable[[slice], th.Tensor]) -> Array:
        """Fill one array: a list of tensors would scatter small blocks over the freed memory of large ones."""
        results = np.empty(int(batch.episode_lengths.sum()), dtype=np.float64)
        with th.no_grad():
            for micro_batch in self.micro_batches(batch.episode_lengths):
                results[micro_batch] = function(micro_batch).cpu().numpy()
        return results


def count_steps(steps: Steps) -> int:
    """Number of chosen steps."""
    return steps.stop - steps.start if isinstance(steps, slice) else len(steps)
