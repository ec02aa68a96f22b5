"""The fit of the learned baseline."""

from collections.abc import Sequence

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_reinforce.distributed.partition import Partition
from sb3_reinforce.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sb3_reinforce.functional.returns import Array
from sb3_reinforce.rollout.batch import EpisodeBatch
from sb3_reinforce.update.evaluator import NOT_LEARNED, PolicyEvaluator, count_steps
from sb3_reinforce.update.policy_step import trained_parameters


def fit_critic(
    evaluator: PolicyEvaluator,
    batch: EpisodeBatch,
    rewards_to_go: Array,
    actor_parameters: Sequence[th.nn.Parameter],
    rng: np.random.Generator,
    epochs: int,
    batch_size: int | None,
    vf_coef: float,
    max_grad_norm: float,
    partition: Partition,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> float | None:
    """
    Fit V(s) on the returns by mean squared error (Sutton & Barto 2018, eq. 9.1), with the policy's optimizer.

    Parameters shared with the actor are not changed: the policy moves only along its own gradient.

    :param rewards_to_go: The returns of the steps of this process, shape ``(n_steps,)``.
    :param actor_parameters: Parameters that the policy's step moves.
    :param rng: Generator that draws the minibatches from the episodes of all processes, the same in every process.
    :param epochs: Passes over the steps.
    :param batch_size: Steps per gradient step; None for all steps.
    :param vf_coef: Coefficient of the loss.
    :param max_grad_norm: Maximum norm of the critic's gradient.
    :param partition: Position of this process's steps among the steps of all processes.
    :return: Mean loss, before ``vf_coef``; None if the critic is frozen.
    :raises ValueError: If a gradient is NaN or infinite.
    """
    policy = evaluator.policy
    shared = {id(parameter) for parameter in actor_parameters}
    parameters = [parameter for parameter in trained_parameters(policy) if id(parameter) not in shared]
    if not parameters:
        return None
    # Shared convolutions need not be computed again for the fit
    inputs = evaluator.critic_inputs(batch, parameters)
    targets = th.as_tensor(rewards_to_go, dtype=th.float32, device=policy.device)
    losses = []
    # With the gradient left over from the policy's step, the optimizer would move the actor again
    policy.zero_grad()
    for _ in range(epochs):
        for minibatch in evaluator.minibatches(partition.episode_lengths, batch_size, rng):
            for parameter in parameters:
                parameter.grad = None
            size = sum(map(count_steps, minibatch))
            value_loss = 0.0
            for micro_batch in minibatch:
                steps = partition.local_steps(micro_batch)
                if count_steps(steps) > 0:
                    loss = F.mse_loss(evaluator.values_of(batch, steps, inputs), targets[steps], reduction="sum") / size
                    if loss.requires_grad:
                        (vf_coef * loss).backward(inputs=parameters)  # type: ignore[no-untyped-call]
                    value_loss += loss.item()
            (value_loss,) = processes.sum_gradients(parameters, (value_loss,))
            grad_norm = th.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
            if not np.isfinite(grad_norm):
                raise ValueError(f"The gradient of the critic is {grad_norm} (value loss {value_loss}). {NOT_LEARNED}")
            policy.optimizer.step()
            losses.append(value_loss)
    return float(np.mean(losses))
