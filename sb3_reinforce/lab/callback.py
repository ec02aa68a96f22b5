"""A rough gauge of the noise in the gradient, while a model learns."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_reinforce.lab import statistics
from sb3_reinforce.lab.gradients import MICRO_BATCH_SIZE, ScoreReader, steps_of, take_episodes
from sb3_reinforce.reading import make_reader
from sb3_reinforce.reinforce import REINFORCE


class NoiseScaleCallback(BaseCallback):
    """
    Logs how many episodes the gradient needs until its signal equals its noise, from the rollouts that are learned from.

    A rough gauge: a rollout has few episodes, and those of earlier rollouts are of other policies. Signal and noise are
    smoothed apart, for the mean of their ratio would be biased (McCandlish et al. 2018, appendix A.1). It tends to be right
    within a factor of two half-way through a training, and to say too little late. ``measure`` says what is so, at a stated
    uncertainty. The training is exactly the same with and without it.

    Logged are ``lab/noise_scale`` (episodes; missing while no signal can be told from zero) and ``lab/signal_to_noise`` (of
    the batch, below zero in that case).

    :param every: Rollouts from one to the next that is looked at. The gradient is computed once more for these: at 4, a few
        per cent of the time of a training.
    :param smoothing: Weight of what was seen before, in [0, 1): 0.9 averages over about ten rollouts that were looked at.
    :raises ValueError: If an argument is out of its range, or the algorithm is not ``REINFORCE``.
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

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1
        if (self.n_rollouts - 1) % self.every:
            return
        model: Any = self.model
        batch = model.rollout_buffer.whole_episodes()
        n_episodes = len(batch.episode_lengths)
        # Of two episodes the mean product is that of a single pair: noisy, but as unbiased as any
        if n_episodes < 2:
            return
        reader = make_reader(model.policy, min(model.micro_batch_size or MICRO_BATCH_SIZE, MICRO_BATCH_SIZE))
        # The update finds them in the buffer, and does not compute them again
        weights = model._weigh(model.rollout_buffer, batch).step_weights.weights
        scores = ScoreReader(reader)
        gradients = []
        for episode in range(n_episodes):
            steps = steps_of(batch.episode_lengths, [episode])
            gradients.append(scores(take_episodes(batch, [episode]), weights[None, steps])[0])
        signal, noise = statistics.signal_and_noise(statistics.inner_products(np.stack(gradients)))

        kept = self.smoothing
        self.weight = kept * self.weight + 1 - kept
        self.signal = kept * self.signal + (1 - kept) * signal
        self.noise = kept * self.noise + (1 - kept) * noise
        self.logger.record("lab/signal_to_noise", n_episodes * self.signal / self.noise if self.noise > 0.0 else np.inf)
        if self.signal > 0.0:
            self.logger.record("lab/noise_scale", statistics.noise_scale(self.signal, self.noise))
