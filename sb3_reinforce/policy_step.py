"""How the policy moves once the weight of each step is known."""

from typing import NamedTuple

import numpy as np
import torch as th

from sb3_reinforce.buffers import EpisodeBatch
from sb3_reinforce.estimators import StepWeights
from sb3_reinforce.reading import NOT_LEARNED, BatchReader


class PolicyGradient(NamedTuple):
    """
    The gradient of the pseudo-loss, which lies in ``grad`` of the parameters.

    :param parameters: Those that have a gradient.
    :param policy_loss: The pseudo-loss ``-(weight * log_prob)``, reduced, without the entropy bonus.
    :param entropy: Mean entropy over the steps.
    """

    parameters: list[th.nn.Parameter]
    policy_loss: float
    entropy: float


def compute_gradient(reader: BatchReader, batch: EpisodeBatch, step_weights: StepWeights, ent_coef: float) -> PolicyGradient:
    """
    Differentiate the pseudo-loss ``-(weight * log_prob)`` minus the entropy bonus (Williams 1992, section 4).

    :param reader: Of the policy; its pieces are accumulated.
    :param batch: The episodes.
    :param step_weights: Of their steps.
    :param ent_coef: Coefficient of the entropy bonus.
    :return: The gradient.
    :raises ValueError: If a log-probability is not finite.
    """
    policy = reader.policy
    n_steps = len(batch.actions)
    weights = th.as_tensor(step_weights.weights, dtype=th.float32, device=policy.device)
    n_averaged = step_weights.n_averaged

    policy.optimizer.zero_grad()
    policy_loss = entropy = 0.0
    for piece in reader.pieces(n_steps):
        log_prob, piece_entropy = reader.log_prob_and_entropy(batch, piece)
        piece_loss = -(weights[piece] * log_prob).sum() / n_averaged
        loss = piece_loss - ent_coef * piece_entropy.sum() / n_averaged if ent_coef > 0.0 else piece_loss
        loss.backward()  # type: ignore[no-untyped-call]
        policy_loss += piece_loss.item()
        entropy += piece_entropy.sum().item()
    parameters = [parameter for parameter in policy.parameters() if parameter.grad is not None]
    return PolicyGradient(parameters, policy_loss, entropy / n_steps)


def clipped_norm(gradient: PolicyGradient, max_grad_norm: float) -> float:
    """
    Clip a gradient.

    :param gradient: Changed in place.
    :param max_grad_norm: The maximum norm; ``float("inf")`` for no clipping.
    :return: The norm before.
    :raises ValueError: If it is not finite.
    """
    grad_norm = th.nn.utils.clip_grad_norm_(gradient.parameters, max_grad_norm).item()
    if not np.isfinite(grad_norm):
        raise ValueError(f"The gradient of the policy is {grad_norm} (policy loss {gradient.policy_loss}). {NOT_LEARNED}")
    return grad_norm
