"""Fitting the learned baseline."""

from collections.abc import Sequence

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_reinforce.buffers import EpisodeBatch
from sb3_reinforce.reading import NOT_LEARNED, BatchReader
from sb3_reinforce.returns import Array


def fit_critic(
    reader: BatchReader,
    batch: EpisodeBatch,
    rewards_to_go: Array,
    actor_parameters: Sequence[th.nn.Parameter],
    rng: np.random.Generator,
    epochs: int,
    batch_size: int | None,
    vf_coef: float,
    max_grad_norm: float,
) -> float:
    """
    Fit V(s) on the returns by mean squared error (Sutton & Barto 2018, eq. 9.1), with the policy's optimizer.

    Parameters shared with the actor are left alone: the policy moves along its own gradient only.

    :param reader: Of the policy that the critic belongs to.
    :param batch: The episodes.
    :param rewards_to_go: Shape ``(n_steps,)``.
    :param actor_parameters: Those that the policy's own step moves.
    :param rng: Draws the minibatches.
    :param epochs: Passes over the steps.
    :param batch_size: Steps per gradient step; None for all.
    :param vf_coef: Factor of the loss.
    :param max_grad_norm: The maximum norm of the critic's gradient.
    :return: Mean of the losses, before ``vf_coef``.
    :raises ValueError: If a gradient is NaN or infinite.
    """
    policy = reader.policy
    shared = {id(parameter) for parameter in actor_parameters}
    parameters = [p for p in policy.parameters() if p.requires_grad and id(p) not in shared]
    targets = th.as_tensor(rewards_to_go, dtype=th.float32, device=policy.device)

    losses = []
    for _ in range(epochs):
        for pieces in reader.minibatches(batch, batch_size, rng):
            policy.optimizer.zero_grad()
            targets_of_pieces = [targets[piece] for piece in pieces]
            size = sum(map(len, targets_of_pieces))
            value_loss = 0.0
            for piece, piece_targets in zip(pieces, targets_of_pieces, strict=True):
                piece_loss = F.mse_loss(reader.values_of(batch, piece), piece_targets, reduction="sum") / size
                (vf_coef * piece_loss).backward(inputs=parameters)  # type: ignore[no-untyped-call]
                value_loss += piece_loss.item()
            grad_norm = th.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
            if not np.isfinite(grad_norm):
                raise ValueError(f"The gradient of the critic is {grad_norm} (value loss {value_loss}). {NOT_LEARNED}")
            policy.optimizer.step()
            losses.append(value_loss)
    return float(np.mean(losses))
