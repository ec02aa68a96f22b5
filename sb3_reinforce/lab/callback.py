"""A rough estimate of the gradient noise while a model learns."""

import dataclasses
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_reinforce.functional.baselines import LeaveOneOutBaseline, MeanBaseline
from sb3_reinforce.functional.returns import steps_of
from sb3_reinforce.lab import statistics
from sb3_reinforce.lab.collect import Episodes, make_lab_evaluator
from sb3_reinforce.lab.estimators import OWN, make_estimators
from sb3_reinforce.lab.gradients import ScoreGradients
from sb3_reinforce.lab.measurement import prepare, units_of
from sb3_reinforce.reinforce import REINFORCE

#: Number of random splits of a rollout's episodes into two halves: more splits hardly make the signal less noisy.
N_SPLITS = 4


class NoiseScaleCallback(BaseCallback):
    """
    Log the gradient noise scale, in episodes, of the training rollouts.

    This is a rough estimate: a rollout has few episodes, and earlier rollouts come from other policies. Signal and noise are
    smoothed separately, since the mean of their ratio would be biased (McCandlish et al. 2018, appendix A.1). The estimate
    tends to be right within a factor of two halfway through training, and too low late in training. ``measure`` returns
    intervals. Training is exactly the same with and without the callback.

    The signal is the inner product of the gradients of two halves of the episodes, each computed as a separate batch: within
    a batch, the baselines ``leave_one_out`` and ``time_step`` make the episodes' gradients depend on each other, which would
    double the signal of two episodes. The noise is the rest of the squared norm of the gradient of all episodes. Both are
    unbiased with every unbiased baseline, for the gradient that is summed over the steps of an episode and averaged over
    episodes. With ``baseline="mean"`` they are computed with ``leave_one_out``, which for whole returns gives the same
    gradient up to a factor. With ``normalize_advantage`` they are approximate: each half is standardised separately.

    The callback logs ``lab/noise_scale`` (in episodes; missing while the signal cannot be told from zero) and
    ``lab/signal_to_noise`` (of the batch; below zero in that case).

    :param every: Measure one in this many rollouts. With 4 it takes 6 % of the training time on CartPole-v1, 20 % with a
        recurrent policy.
    :param smoothing: Weight of earlier rollouts, in [0, 1): 0.9 averages over about ten measured rollouts.
    :raises ValueError: If an argument is out of range, the algorithm is not ``REINFORCE``, or ``n_episodes`` is too small:
        the callback needs two episodes, or four with ``normalize_advantage``. It skips rollouts of ``n_steps`` with fewer
        episodes, and rollouts whose episodes all share one start (``episodes_per_start``).
    """

    def __init__(self, every: int = 4, smoothing: float = 0.9) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing must be in [0, 1), not {smoothing}")
        self.every = every
        self.smoothing = smoothing
        self.n_rollouts = 0
        self.weight = 0.0
        self.signal = 0.0
        self.noise = 0.0

    def _init_callback(self) -> None:
        if not isinstance(self.model, REINFORCE):
            raise ValueError(
                f"NoiseScaleCallback needs whole episodes, as REINFORCE has them, not {type(self.model).__name__}"
            )
        self.min_episodes = 4 if self.model.normalize_advantage else 2
        if self.model.n_episodes is not None and self.model.n_episodes < self.min_episodes:
            raise ValueError(
                f"NoiseScaleCallback compares two halves of the episodes of a rollout, and needs n_episodes of at least "
                f"{self.min_episodes} (normalize_advantage={self.model.normalize_advantage}), not {self.model.n_episodes}"
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1
        if (self.n_rollouts - 1) % self.every:
            return
        model: Any = self.model
        batch = model.rollout_buffer.whole_episodes()
        n_episodes = len(batch.episode_lengths)
        # Episodes with a common start stay together, since they are not independent
        units = units_of(batch)
        if n_episodes < self.min_episodes or len(units) < 2:
            return
        evaluator = make_lab_evaluator(model.policy, model)
        own_baseline = model.estimator.baseline
        baseline = LeaveOneOutBaseline() if isinstance(own_baseline, MeanBaseline) else own_baseline
        settings = dataclasses.replace(model.estimator, loss_reduction="episode", baseline=baseline)
        own = make_estimators(model, model.gamma)[OWN]._replace(settings=settings)
        (prepared,) = prepare(Episodes(model, evaluator, batch, batch.rewards), [own], [], 0)

        # A separate generator leaves training unchanged
        rng = np.random.default_rng(self.n_rollouts)
        splits = [np.array_split(rng.permutation(len(units)), 2) for _ in range(N_SPLITS)]
        halves = [units[half].ravel() for split in splits for half in split]
        weights = np.zeros((1 + len(halves), len(batch.rewards)))
        for row, group in zip(weights, [np.arange(n_episodes), *halves], strict=True):
            steps = steps_of(batch.episode_lengths, group)
            row[steps] = prepared.targets(group).score_weights / len(group)
        gradient, *of_halves = ScoreGradients(evaluator)(batch, weights).astype(np.float64)
        signal = float(np.mean([first @ second for first, second in zip(of_halves[::2], of_halves[1::2], strict=True)]))
        noise = n_episodes * (float(gradient @ gradient) - signal)

        old, new = self.smoothing, 1 - self.smoothing
        self.weight = old * self.weight + new
        self.signal = old * self.signal + new * signal
        self.noise = old * self.noise + new * noise
        self.logger.record("lab/signal_to_noise", n_episodes * self.signal / self.noise if self.noise > 0.0 else np.inf)
        if self.signal > 0.0:
            self.logger.record("lab/noise_scale", statistics.noise_scale(self.signal, self.noise))
