"""The policy's step: the gradient, and an optimizer step or a natural step along it."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.distributed.partition import Partition
from sb3_reinforce.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sb3_reinforce.functional.estimator import PolicyGradientTargets
from sb3_reinforce.functional.natural_gradient import Product, conjugate_gradient, fisher_product, step_of_size
from sb3_reinforce.rollout.batch import EpisodeBatch
from sb3_reinforce.update.evaluator import NOT_LEARNED, PolicyEvaluator, Steps, count_steps

#: A step is shortened while the exact divergence is above this multiple of the target. The quadratic estimate is not exact,
#: and a bound at the target itself would shorten every second step.
KL_TOLERANCE = 1.5

SHORTENING = 0.7

#: Down to a millionth of the length: the policy may hardly change at the steps that F is estimated from, but change at others.
MAX_SHORTENINGS = 40


class PolicyGradient(NamedTuple):
    """
    The gradient of the pseudo-loss, stored in ``grad`` of the parameters.

    :param parameters: Parameters that have a gradient; empty if the actor is frozen.
    :param policy_loss: The pseudo-loss ``-(weight * log_prob)``, reduced, without the entropy bonus.
    :param entropy: Mean entropy over the steps.
    """

    parameters: list[th.nn.Parameter]
    policy_loss: float
    entropy: float


def compute_gradient(
    evaluator: PolicyEvaluator,
    batch: EpisodeBatch,
    targets: PolicyGradientTargets,
    ent_coef: float,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> PolicyGradient:
    """
    Differentiate the pseudo-loss ``-(advantage * log_prob)`` minus the entropy bonus (Williams 1992, section 4).

    :param evaluator: Evaluator of the policy; the gradients of its micro-batches are summed.
    :param batch: The episodes of this process.
    :param targets: Targets of the steps of these episodes.
    :param ent_coef: Coefficient of the entropy bonus.
    :return: The gradient, over the episodes of all processes.
    :raises ValueError: If a log-probability is not finite.
    """
    policy = evaluator.policy
    score_weights = th.as_tensor(targets.score_weights, dtype=th.float32, device=policy.device)
    policy.zero_grad()
    policy_loss = entropy = 0.0
    for steps in evaluator.micro_batches(batch.episode_lengths):
        log_prob, step_entropy = evaluator.log_prob_and_entropy(batch, steps)
        micro_batch_loss = -(score_weights[steps] * log_prob).sum() / targets.n_averaged
        loss = micro_batch_loss - ent_coef * step_entropy.sum() / targets.n_averaged if ent_coef > 0.0 else micro_batch_loss
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        policy_loss += micro_batch_loss.item()
        entropy += step_entropy.sum().item()
    trained = trained_parameters(policy)
    policy_loss, entropy, n_steps = processes.sum_gradients(trained, (policy_loss, entropy, len(batch.rewards)))
    parameters = [parameter for parameter in trained if parameter.grad is not None]
    return PolicyGradient(parameters, policy_loss, entropy / n_steps)


def trained_parameters(policy: ActorCriticPolicy) -> list[th.nn.Parameter]:
    """Parameters of the optimizer that require a gradient."""
    of_optimizer = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    return [parameter for parameter in policy.parameters() if parameter.requires_grad and id(parameter) in of_optimizer]


def clipped_norm(gradient: PolicyGradient, max_grad_norm: float) -> float:
    """Clip a gradient, and return its norm before clipping. Raises ``ValueError`` if the norm is not finite."""
    grad_norm = th.nn.utils.clip_grad_norm_(gradient.parameters, max_grad_norm).item()
    if not np.isfinite(grad_norm):
        raise ValueError(f"The gradient of the policy is {grad_norm} (policy loss {gradient.policy_loss}). {NOT_LEARNED}")
    return grad_norm


class NaturalStep(NamedTuple):
    """
    The result of a natural step.

    :param kl: Mean KL divergence from the policy before to the policy after, in nats, over all steps; 0 if the step was
        skipped.
    :param n_shortenings: Number of times the step was shortened because the exact divergence was too far above the target.
    :param curvature: ``s F s`` for the step s scaled to length 1: how much the policy changes for a change of the parameters.
    :param skipped: Reason why the policy was not changed; None if it moved.
    """

    kl: float
    n_shortenings: int
    curvature: float
    skipped: str | None = None


def natural_step(
    evaluator: PolicyEvaluator,
    batch: EpisodeBatch,
    gradient: PolicyGradient,
    target_kl: float,
    cg_max_steps: int,
    cg_damping: float,
    fisher_max_steps: int | None,
    rng: np.random.Generator,
    partition: Partition,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> NaturalStep:
    """
    Move the policy along ``F^-1 g`` so far that it changes by ``target_kl`` (Kakade 2001; Schulman et al. 2015, appendix C).

    :param evaluator: Evaluator of the policy, whose parameters are changed.
    :param batch: The episodes of this process.
    :param gradient: Gradient of the pseudo-loss.
    :param target_kl: Quadratic estimate of the mean KL divergence of the step, see ``mean_divergence``.
    :param cg_max_steps: Maximum number of conjugate gradient steps.
    :param cg_damping: Added to the diagonal of F for the direction, but not for the length.
    :param fisher_max_steps: Maximum number of steps in the random subset from which F is estimated; None for all.
    :param rng: Generator that draws the subset, if there are more steps; process 0's in all processes.
    :param partition: Position of this process's steps among the steps of all processes.
    """
    parameters = gradient.parameters
    if not parameters:
        return NaturalStep(0.0, 0, 0.0)
    ascent = -th.cat([parameter.grad.reshape(-1) for parameter in parameters])  # type: ignore[union-attr]
    if not ascent.any():
        return NaturalStep(0.0, 0, 0.0, "the gradient is zero")
    # A power of two causes no rounding, and keeps the squares of a small or large gradient in range
    ascent /= 2.0 ** math.floor(math.log2(float(ascent.abs().max())))

    divergence = fisher_divergence = Divergence(evaluator, batch, slice(0, partition.n_steps), partition, processes)
    if fisher_max_steps is not None and partition.n_steps > fisher_max_steps:
        subset = evaluator.subsample(partition.episode_lengths, fisher_max_steps, processes.broadcast(rng))
        fisher_divergence = Divergence(evaluator, batch, subset, partition, processes)
    fisher = fisher_divergence.fisher_product(parameters)

    def damped(vector: th.Tensor) -> th.Tensor:
        return fisher(vector) + cg_damping * vector

    direction = conjugate_gradient(damped, ascent, cg_max_steps)
    # Damping that outweighs F would fix the length of the step in parameters: it counts only where F is 0
    curvature = float(direction @ fisher(direction))
    curvature = curvature if curvature > 0.0 else float(direction @ damped(direction))
    if not (math.isfinite(curvature) and curvature > 0.0):
        return NaturalStep(0.0, 0, curvature, f"the curvature along it is {curvature}")

    step = step_of_size(direction, curvature, target_kl)
    curvature /= float(direction @ direction)
    before = [parameter.detach().clone() for parameter in parameters]
    changes = th.split(step, [parameter.numel() for parameter in parameters])
    with th.no_grad():
        for n_shortenings in range(MAX_SHORTENINGS + 1):
            for parameter, old, change in zip(parameters, before, changes, strict=True):
                parameter.copy_(old + SHORTENING**n_shortenings * change.view_as(old))
            kl = divergence.value()
            if kl <= KL_TOLERANCE * target_kl:
                return NaturalStep(kl, n_shortenings, curvature)
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
    return NaturalStep(
        0.0, MAX_SHORTENINGS, curvature, f"the policy changed by {kl} at its shortest, target_kl is {target_kl}"
    )


class Divergence:
    """
    The mean KL divergence from the policy at construction to the policy at the time of a call, by micro-batches.

    :param batch: The episodes of this process.
    :param steps: Steps to average over, among the episodes of all processes.
    :param partition: Position of this process's steps among the steps of all processes.
    """

    def __init__(
        self,
        evaluator: PolicyEvaluator,
        batch: EpisodeBatch,
        steps: Steps,
        partition: Partition,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.evaluator, self.batch, self.processes = evaluator, batch, processes
        self.n_averaged = count_steps(steps)
        self.micro_batches = evaluator.micro_batches(batch.episode_lengths, partition.local_steps(steps))
        with th.no_grad():
            # The policy returns the same object every time, with new contents
            self.before = [copy.copy(evaluator.distribution(batch, micro_batch)) for micro_batch in self.micro_batches]

    def of_micro_batch(self, index: int) -> th.Tensor:
        """The contribution of a micro-batch to the mean, a differentiable scalar in nats."""
        micro_batch = self.micro_batches[index]
        fraction = count_steps(micro_batch) / self.n_averaged
        return fraction * mean_divergence(self.before[index], self.evaluator.distribution(self.batch, micro_batch))

    @th.no_grad()
    def value(self) -> float:
        """The mean, in nats."""
        local = sum(float(self.of_micro_batch(index)) for index in range(len(self.micro_batches)))
        return sum(self.processes.gather(local))

    def fisher_product(self, parameters: Sequence[th.nn.Parameter]) -> Product:
        """The product with F. The graph of a single micro-batch is stored; several graphs are rebuilt for each product."""
        indices = range(len(self.micro_batches))
        if len(indices) == 1:
            only = fisher_product(self.of_micro_batch(0), parameters)
            return lambda vector: self.processes.sum(only(vector))

        def multiply(vector: th.Tensor) -> th.Tensor:
            products = (fisher_product(self.of_micro_batch(index), parameters)(vector) for index in indices)
            return self.processes.sum(sum(products, th.zeros_like(vector)))

        return multiply


def mean_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """
    Average KL(old || new), in nats, over steps, and over the dimensions of a Box or MultiBinary action, as sb3-contrib's TRPO
    does.

    The divergence of the whole action is this mean times the number of dimensions. Over the components of a MultiDiscrete
    action it is a sum. Squashing does not change the divergence, which is computed from the Gaussians before squashing; with
    gSDE, it is computed from Gaussians with new noise at every step.
    """
    return kl_divergence(old, new).mean()


@contextmanager
def unchanged_by_failure(*learners: th.nn.Module | th.optim.Optimizer) -> Iterator[None]:
    """
    Restore policies and optimizers, without gradients, if an update within the context fails.

    This includes Ctrl-C and running out of memory: what is saved next is the result of the previous update.
    """
    before = [clone_tensors(learner.state_dict()) for learner in learners]
    try:
        yield
    except BaseException:
        for learner, state in zip(learners, before, strict=True):
            learner.load_state_dict(state)
            learner.zero_grad()
        raise


def clone_tensors(state: Any) -> Any:
    """Clone the tensors of a state dict, with its dicts, lists and tuples: ten times as fast as ``copy.deepcopy``."""
    if isinstance(state, th.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: clone_tensors(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(clone_tensors(value) for value in state)
    return state
