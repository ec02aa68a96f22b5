"""
The estimator of the policy gradient as one value: from the rewards of whole episodes to the weight of each step.

The gradient estimate is ``sum(weights * scores) / n_averaged`` over the steps, where the score of a step is the gradient of
its log-probability. Which weights those are is all that the switches of the estimator decide, so that the algorithm and
the laboratory share this code. The layout of the arrays is that of ``returns``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sb3_reinforce.functional import baselines, returns
from sb3_reinforce.functional.returns import Array, IntArray

RETURN_TYPES = ("reward_to_go", "episode")

BASELINES = ("value", "leave_one_out", "time_step", "mean", None)

LOSS_REDUCTIONS = ("step", "episode")


class PolicyGradientTargets(NamedTuple):
    """
    What an estimator makes of some episodes.

    :param rewards_to_go: What a critic is fitted on: the causal return of each step, shape ``(n_steps,)``.
    :param advantages: Return minus baseline, as it is: neither normalised nor weighted, shape ``(n_steps,)``.
    :param score_weights: What the score of each step is multiplied with, shape ``(n_steps,)``.
    :param n_averaged: What the sum over steps is divided by: the number of steps, or of episodes.
    """

    rewards_to_go: Array
    advantages: Array
    score_weights: Array
    n_averaged: int


@dataclass(frozen=True)
class Estimator:
    """
    An estimator of the policy gradient. The switches and their defaults are those of ``REINFORCE``, which documents them.

    :param gamma: Discount factor inside the return, in [0, 1].
    :param gae_lambda: 1 is Monte Carlo; below, Schulman et al.'s generalized advantage (2016, eq. 16).
    :param return_type: ``"reward_to_go"`` or ``"episode"``.
    :param discounted_weighting: Weight step t by ``gamma**t``.
    :param baseline: ``"value"``, ``"leave_one_out"``, ``"time_step"``, ``"mean"`` or None. The second and third compare
        episodes with each other: of a single episode they subtract nothing.
    :param normalize_advantage: Subtract the mean of the advantages and divide by their standard deviation.
    :param loss_reduction: ``"step"`` or ``"episode"``.
    :raises ValueError: If a switch is out of its range or two contradict each other; the message names them.
    """

    gamma: float = 0.99
    gae_lambda: float = 1.0
    return_type: str = "reward_to_go"
    discounted_weighting: bool = False
    baseline: str | None = "value"
    normalize_advantage: bool = False
    loss_reduction: str = "step"

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name, choices in (("return_type", RETURN_TYPES), ("baseline", BASELINES), ("loss_reduction", LOSS_REDUCTIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {getattr(self, name)!r}")
        if self.gae_lambda < 1.0 and (self.baseline != "value" or self.return_type != "reward_to_go"):
            raise ValueError(
                f"gae_lambda={self.gae_lambda} mixes critic values into the reward-to-go: it needs baseline='value' and "
                f"return_type='reward_to_go', not baseline={self.baseline!r} and return_type={self.return_type!r}"
            )

    @property
    def compares_episodes(self) -> bool:
        """Whether the baseline needs at least two episodes."""
        return self.baseline in ("leave_one_out", "time_step")

    def __call__(self, rewards: Array, values: Array | None, episode_lengths: IntArray) -> PolicyGradientTargets:
        """
        Turn episodes into the weight of each step.

        :param rewards: Of each step, what followed a cut episode included, shape ``(n_steps,)``.
        :param values: V(s) of each step, shape ``(n_steps,)``; needed with ``baseline="value"`` only.
        :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
        :return: The weights, and what they were made of.
        """
        rewards_to_go, advantages = self._advantages(rewards, values, episode_lengths)
        weights = returns.standardize(advantages) if self.normalize_advantage else advantages
        if self.discounted_weighting and self.return_type == "reward_to_go":
            weights = weights * returns.discount_weights(episode_lengths, self.gamma)
        n_averaged = len(weights) if self.loss_reduction == "step" else len(episode_lengths)
        return PolicyGradientTargets(rewards_to_go, advantages, weights, n_averaged)

    def _advantages(self, rewards: Array, values: Array | None, episode_lengths: IntArray) -> tuple[Array, Array]:
        if self.gae_lambda < 1.0:
            assert values is not None
            advantages = returns.generalized_advantages(rewards, values, episode_lengths, self.gamma, self.gae_lambda)
            return advantages + values, advantages

        rewards_to_go = returns.rewards_to_go(rewards, episode_lengths, self.gamma)
        credited = rewards_to_go
        if self.return_type == "episode":
            credited = returns.whole_episode_returns(rewards, episode_lengths, self.gamma)
        return rewards_to_go, credited - self._baseline(credited, values, episode_lengths)

    def _baseline(self, credited: Array, values: Array | None, episode_lengths: IntArray) -> Array:
        if self.baseline == "value":
            assert values is not None
            return values
        if self.baseline == "mean":
            return baselines.mean_baseline(credited, episode_lengths)
        if self.baseline is None or len(episode_lengths) == 1:
            return np.zeros_like(credited)
        if self.baseline == "leave_one_out":
            return baselines.leave_one_out_baseline(credited, episode_lengths)
        return baselines.time_step_baseline(credited, episode_lengths)
