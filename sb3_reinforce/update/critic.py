"""Fitting the learned baseline."""

import functools
from collections.abc import Sequence

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_reinforce.distributed.partition import count_steps
from sb3_reinforce.functional.returns import Array
from sb3_reinforce.rollout.batch import EpisodeBatch
from sb3_reinforce.update.evaluator import NOT_LEARNED, PolicyEvaluator, Steps
from sb3_reinforce.update.policy_step import trained_parameters


def fit_critic(
    reader: PolicyEvaluator,
    batch: EpisodeBatch,
    rewards_to_go: Array,
    actor_parameters: Sequence[th.nn.Parameter],
    rng: np.random.Generator,
    epochs: int,
    batch_size: int | None,
    vf_coef: float,
    max_grad_norm: float,
) -> float | None:
    """
    Fit V(s) on the returns by mean squared error (Sutton & Barto 2018, eq. 9.1), with the policy's optimizer.

    Parameters shared with the actor are left alone: the policy moves along its own gradient only.

    :param reader: Of the policy that the critic belongs to.
    :param batch: The episodes.
    :param rewards_to_go: Shape ``(n_steps,)``.
    :param actor_parameters: Those that the policy's own step moves.
    :param rng: Draws the minibatches, from the episodes of all ranks; on all ranks alike.
    :param epochs: Passes over the steps.
    :param batch_size: Steps per gradient step; None for all.
    :param vf_coef: Factor of the loss.
    :param max_grad_norm: The maximum norm of the critic's gradient.
    :return: Mean of the losses, before ``vf_coef``; None if the critic is frozen.
    :raises ValueError: If a gradient is NaN or infinite.
    :raises RankError: If another rank is gone.
    """
    policy = reader.policy
    shared = {id(parameter) for parameter in actor_parameters}
    parameters = [parameter for parameter in trained_parameters(policy) if id(parameter) not in shared]
    if not parameters:
        return None
    # Shared convolutions are not computed again for every gradient step
    inputs = reader.critic_inputs(batch, parameters)
    targets = th.as_tensor(rewards_to_go, dtype=th.float32, device=policy.device)
    all_episodes = batch.of_all_ranks()

    def accumulate(pieces: Sequence[Steps], size: int) -> tuple[float]:
        value_loss = 0.0
        for piece in pieces:
            if len(targets[piece]) > 0:
                piece_loss = F.mse_loss(reader.values_of(batch, piece, inputs), targets[piece], reduction="sum") / size
                if piece_loss.requires_grad:
                    (vf_coef * piece_loss).backward(inputs=parameters)  # type: ignore[no-untyped-call]
                value_loss += piece_loss.item()
        return (value_loss,)

    losses = []
    for _ in range(epochs):
        for pieces in reader.minibatches(all_episodes, batch_size, rng):
            policy.zero_grad()
            size = sum(count_steps(piece, len(all_episodes.actions)) for piece in pieces)
            own_pieces = [batch.part.own(piece) for piece in pieces]
            compute = functools.partial(accumulate, own_pieces, size)
            (value_loss,) = batch.part.ranks.sum_gradients(parameters, compute, n_numbers=1)
            grad_norm = th.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
            if not np.isfinite(grad_norm):
                raise ValueError(f"The gradient of the critic is {grad_norm} (value loss {value_loss}). {NOT_LEARNED}")
            policy.optimizer.step()
            losses.append(value_loss)
    return float(np.mean(losses))
