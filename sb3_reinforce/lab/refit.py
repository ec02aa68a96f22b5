"""
Models fitted to the collected episodes: a critic, which shows what a well-fitted baseline could achieve, and control variates.

With a control variate, the baseline of a step also accounts for the later actions:
``b_t = V(s_t, t) + sum_{k > t} gamma^(k - t) g(s_k, k) u_k``. Here ``u_k`` is the score with respect to the parameters of the
distribution that the action was drawn from. Given everything before it, its mean is zero, so the gradient stays unbiased for
every g. The noise is lower if ``g(s, t) u`` is close to what the action is worth. These are the trajectory-wise control
variates of Cheng et al. (2020, arXiv:1908.03263) with an action value that is linear in u.
"""

import itertools
from typing import Any

import numpy as np
import torch as th
from torch import distributions, nn
from torch.nn import functional as F

from sb3_reinforce.functional.returns import Array, IntArray, rewards_to_go, steps_of, time_steps
from sb3_reinforce.policies.inspection import actor_features
from sb3_reinforce.rollout.batch import EpisodeBatch, select_steps
from sb3_reinforce.update.evaluator import PolicyEvaluator

N_GRADIENT_STEPS = 600
BATCH_SIZE = 512
LEARNING_RATE = 3e-3


def crossfitted_values(
    evaluator: PolicyEvaluator, batch: EpisodeBatch, targets: Array, folds: list[IntArray], seed: int
) -> Array:
    """
    Fit V(s, t) to the returns of some episodes and evaluate it on the others, so that no return affects its own baseline.

    ``folds`` holds the episode indices of two folds. The inputs are the policy's features (for a flat observation, the
    observation itself) and the time, up to the longest episode: with a time limit, the value of a state depends on the time
    left. Targets and result have shape ``(n_steps,)``.
    """
    return _crossfit(evaluator, batch, targets, np.zeros((len(targets), 0)), folds, seed)[:, 0]


def crossfitted_control_variates(
    evaluator: PolicyEvaluator, batch: EpisodeBatch, targets: Array, gamma: float, folds: list[IntArray], seed: int
) -> Array:
    """
    Fit V and g of a control variate to the returns of some episodes, and evaluate the baseline on the others.

    Arguments and result are as in ``crossfitted_values``; ``gamma`` is the discount factor of the returns.
    """
    scores = distribution_scores(evaluator.distributions(batch), batch.actions.cpu())
    fitted = _crossfit(evaluator, batch, targets, scores, folds, seed)
    effects = (fitted[:, 1:] * scores).sum(axis=1)
    return np.asarray(fitted[:, 0] + rewards_to_go(effects, batch.episode_lengths, gamma) - effects)


def distribution_scores(distribution: Any, actions: th.Tensor) -> Array:
    """
    Compute the gradient of each action's log-probability with respect to the logits, or to the mean in standard deviations.

    ``distribution`` comes from ``PolicyEvaluator.distributions``, ``actions`` has shape ``(n_steps, *action_shape)``, and the
    result has shape ``(n_steps, n_scores)``.
    """
    parts = distribution if isinstance(distribution, list) else [distribution]
    actions = actions.reshape(len(actions), -1)
    if isinstance(parts[0], distributions.Categorical):
        chosen = zip(parts, actions.long().unbind(dim=1), strict=True)
        scores = [F.one_hot(own, part.logits.shape[-1]) - part.probs for part, own in chosen]
    elif isinstance(parts[0], distributions.Bernoulli):
        scores = [actions - distribution.probs]
    else:
        scores = [(actions - distribution.loc) / distribution.scale]
    return th.cat(scores, dim=1).double().numpy()


def _crossfit(
    evaluator: PolicyEvaluator, batch: EpisodeBatch, targets: Array, scores: Array, folds: list[IntArray], seed: int
) -> Array:
    """Fit V and g for each fold on the other fold; return shape ``(n_steps, 1 + n_scores)``."""
    inputs = critic_inputs(evaluator, batch)
    fitted = np.empty((len(targets), 1 + scores.shape[1]))
    for fold, (episodes, others) in enumerate(itertools.permutations(folds, 2)):
        own, rest = steps_of(batch.episode_lengths, episodes), steps_of(batch.episode_lengths, others)
        fitted[own] = fit(inputs[rest], targets[rest], scores[rest], inputs[own], seed + fold)
    return fitted


def critic_inputs(evaluator: PolicyEvaluator, batch: EpisodeBatch) -> th.Tensor:
    """Return features and time, shape ``(n_steps, n_features + 1)``."""
    parts = []
    with th.no_grad():
        for piece in evaluator.micro_batches(batch.episode_lengths):
            observations = select_steps(batch.observations, piece)
            parts.append(actor_features(evaluator.policy, observations).flatten(1).float().cpu())
    times = th.as_tensor(time_steps(batch.episode_lengths), dtype=th.float32)[:, None]
    return th.cat([th.cat(parts), times], dim=1)


def fit(inputs: th.Tensor, targets: Array, scores: Array, new_inputs: th.Tensor, seed: int) -> Array:
    """Fit a small network's ``V + g u`` by mean squared error, and evaluate V and g on new inputs."""
    mean, deviation = float(targets.mean()), float(targets.std()) or 1.0
    scaled = th.as_tensor((targets - mean) / deviation, dtype=th.float32)
    # V has the factor 1
    factors = th.as_tensor(np.column_stack([np.ones(len(targets)), scores]), dtype=th.float32)
    n_outputs = factors.shape[1]
    centre, spread = inputs.mean(dim=0), inputs.std(dim=0) + 1e-6
    inputs, new_inputs = (inputs - centre) / spread, (new_inputs - centre) / spread
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        layers = [nn.Linear(inputs.shape[1], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_outputs)]
        network = nn.Sequential(*layers)
        optimizer = th.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_GRADIENT_STEPS)
        for _ in range(N_GRADIENT_STEPS):
            chosen = th.randint(len(inputs), (min(BATCH_SIZE, len(inputs)),))
            optimizer.zero_grad()
            predicted = (network(inputs[chosen]) * factors[chosen]).sum(dim=1)
            F.mse_loss(predicted, scaled[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with th.no_grad():
            # In chunks: the hidden layers of all steps at once would need ten times the memory
            outputs: Array = th.cat([network(part) for part in th.split(new_inputs, BATCH_SIZE)]).double().numpy()
    outputs *= deviation
    outputs[:, 0] += mean
    return outputs
