"""Fitting the learned baseline."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F

from sb3_reinforce.reading import NOT_LEARNED, BatchReader
from sb3_reinforce.returns import Array


def fit_critic(
    reader: BatchReader,
    observations: PyTorchObs,
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
    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
    :param rewards_to_go: Shape ``(n_steps,)``.
    :param actor_parameters: Those that the policy's own step moves.
    :param rng: Draws the order of the steps where they are taken in minibatches.
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
    n_steps = len(targets)
    batch_size = min(batch_size or n_steps, n_steps)

    losses = []
    for _ in range(epochs):
        order = th.as_tensor(rng.permutation(n_steps), device=policy.device) if batch_size < n_steps else None
        for start in range(0, n_steps, batch_size):
            policy.optimizer.zero_grad()
            size = min(batch_size, n_steps - start)
            value_loss = 0.0
            for piece in reader.pieces(size):
                chosen: Any = piece if order is None else order[start:][piece]
                piece_loss = F.mse_loss(reader.values_of(observations, chosen), targets[chosen], reduction="sum") / size
                (vf_coef * piece_loss).backward(inputs=parameters)  # type: ignore[no-untyped-call]
                value_loss += piece_loss.item()
            grad_norm = th.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
            if not np.isfinite(grad_norm):
                raise ValueError(f"The gradient of the critic is {grad_norm} (value loss {value_loss}). {NOT_LEARNED}")
            policy.optimizer.step()
            losses.append(value_loss)
    return float(np.mean(losses))
