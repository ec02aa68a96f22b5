"""A critic fitted to the collected episodes: what a well-fitted baseline could be worth."""

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_reinforce.functional.returns import Array, IntArray, steps_of, time_steps
from sb3_reinforce.policies.inspection import actor_features
from sb3_reinforce.rollout.batch import EpisodeBatch, map_observation
from sb3_reinforce.update.evaluator import PolicyEvaluator

N_GRADIENT_STEPS = 600
N_FOLDS = 2
BATCH_SIZE = 512
LEARNING_RATE = 3e-3


def crossfitted_values(
    evaluator: PolicyEvaluator, batch: EpisodeBatch, targets: Array, folds: list[IntArray], seed: int
) -> Array:
    """
    Fit V(s, t) to the returns of some episodes and evaluate it on the others, so that no return is part of its own baseline.

    ``folds`` has the indices of the episodes of each fold. The inputs are the policy's features (of a flat observation the
    observation itself) and the time, as far as the longest episode: with a time limit the value of a state depends on how
    much is left. Targets and result have shape ``(n_steps,)``.
    """
    inputs = critic_inputs(evaluator, batch)
    values = np.empty(len(targets))
    for fold, episodes in enumerate(folds):
        others = np.concatenate([part for index, part in enumerate(folds) if index != fold])
        own, rest = steps_of(batch.episode_lengths, episodes), steps_of(batch.episode_lengths, others)
        values[own] = fit(inputs[rest], targets[rest], inputs[own], seed + fold)
    return values


def critic_inputs(evaluator: PolicyEvaluator, batch: EpisodeBatch) -> th.Tensor:
    """Return features and time, shape ``(n_steps, n_features + 1)``."""
    parts = []
    with th.no_grad():
        for piece in evaluator.micro_batches(batch.episode_lengths):
            observations = map_observation(lambda obs: obs[piece], batch.observations)  # noqa: B023
            parts.append(actor_features(evaluator.policy, observations).flatten(1).float().cpu())
    times = th.as_tensor(time_steps(batch.episode_lengths), dtype=th.float32)[:, None]
    return th.cat([th.cat(parts), times], dim=1)


def fit(inputs: th.Tensor, targets: Array, new_inputs: th.Tensor, seed: int) -> Array:
    """Fit a small network by mean squared error, and evaluate it on new inputs."""
    mean, deviation = float(targets.mean()), float(targets.std()) or 1.0
    scaled = th.as_tensor((targets - mean) / deviation, dtype=th.float32)
    centre, spread = inputs.mean(dim=0), inputs.std(dim=0) + 1e-6
    inputs, new_inputs = (inputs - centre) / spread, (new_inputs - centre) / spread
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        network = nn.Sequential(nn.Linear(inputs.shape[1], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        optimizer = th.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_GRADIENT_STEPS)
        for _ in range(N_GRADIENT_STEPS):
            chosen = th.randint(len(inputs), (min(BATCH_SIZE, len(inputs)),))
            optimizer.zero_grad()
            F.mse_loss(network(inputs[chosen]).flatten(), scaled[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with th.no_grad():
            # In parts: the hidden layers of all steps at once would need ten times the memory
            values: Array = th.cat([network(part).flatten() for part in th.split(new_inputs, BATCH_SIZE)]).double().numpy()
    return values * deviation + mean
