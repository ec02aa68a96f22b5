"""
The estimator of the policy gradient as one object: it turns the rewards of whole episodes into a weight for each step.

The gradient estimate is ``sum(weights * scores) / n_averaged`` over the steps, where the score of a step is the gradient of
its log-probability. The switches of the estimator decide nothing but these weights, so that the algorithm and the laboratory
share this code. Arrays have the layout of ``returns``.
"""

from dataclasses import dataclass
from typing import NamedTuple

from sb3_reinforce.functional import returns
from sb3_reinforce.functional.baselines import Baseline, Episodes, ValueBaseline, compute_baseline, name_of
from sb3_reinforce.functional.returns import Array


class PolicyGradientTargets(NamedTuple):
    """
    What an estimator computes from episodes.

    :param rewards_to_go: Targets of the critic: the causal return of each step, shape ``(n_steps,)``.
    :param advantages: Return minus baseline, neither normalised nor weighted, shape ``(n_steps,)``.
    :param score_weights: Factor of the score of each step, shape ``(n_steps,)``.
    :param n_averaged: Divisor of the sum over steps: the number of steps, or of episodes.
    """

    rewards_to_go: Array
    advantages: Array
    score_weights: Array
    n_averaged: int


@dataclass(frozen=True)
class Estimator:
    """
    An estimator of the policy gradient, with the switches and defaults of ``REINFORCE``, which documents them.

    :param gamma: Discount factor inside the return, in [0, 1].
    :param gae_lambda: 1 is Monte Carlo; below 1, Schulman et al.'s generalized advantage (2016, eq. 16).
    :param return_type: ``"reward_to_go"`` or ``"episode"``.
    :param discounted_weighting: Weight step t by ``gamma**t``.
    :param baseline: What is subtracted from the returns.
    :param normalize_advantage: Subtract the mean of the advantages and divide by their standard deviation.
    :param loss_reduction: ``"step"`` or ``"episode"``.
    :raises ValueError: If a switch is out of its range or two contradict each other; the message names them.
    """

    gamma: float = 0.99
    gae_lambda: float = 1.0
    return_type: str = "reward_to_go"
    discounted_weighting: bool = False
    baseline: Baseline = ValueBaseline()  # noqa: RUF009 (it has no state)
    normalize_advantage: bool = False
    loss_reduction: str = "step"

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name, choices in (("return_type", ("reward_to_go", "episode")), ("loss_reduction", ("step", "episode"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {getattr(self, name)!r}")
        if self.gae_lambda < 1.0 and (not isinstance(self.baseline, ValueBaseline) or self.return_type != "reward_to_go"):
            raise ValueError(
                f"gae_lambda={self.gae_lambda} mixes critic values into the reward-to-go: it needs baseline='value' and "
                f"return_type='reward_to_go', not baseline={name_of(self.baseline)} and return_type={self.return_type!r}"
            )

    def add_returns(self, episodes: Episodes) -> Episodes:
        """
        Compute the returns that the baseline is subtracted from.

        :param episodes: The episodes, with rewards.
        :return: The same episodes, with returns.
        """
        rewards_to_go = returns.rewards_to_go(episodes.rewards, episodes.lengths, self.gamma)
        credited = rewards_to_go
        if self.return_type == "episode":
            credited = returns.whole_episode_returns(episodes.rewards, episodes.lengths, self.gamma)
        computed = {"returns": credited, "rewards_to_go": rewards_to_go}
        return episodes.replace(**computed, gamma=self.gamma, return_type=self.return_type)

    def step_weights(self, episodes: Episodes) -> Array:
        """
        Compute the factor of each step's advantage.

        :param episodes: The episodes.
        :return: Shape ``(n_steps,)``.
        """
        gamma = self.gamma if self.discounted_weighting and self.return_type == "reward_to_go" else 1.0
        return returns.discount_weights(episodes.lengths, gamma)

    def __call__(self, episodes: Episodes, subtracted: Array | None = None) -> PolicyGradientTargets:
        """
        Compute the weight of each step.

        :param episodes: The episodes, with rewards that include what followed a cut, and with what the baseline needs.
        :param subtracted: What the baseline subtracts, shape ``(n_steps,)``; None to compute it.
        :return: The weights, and what they were computed from.
        :raises ValueError: If the baseline returns numbers that cannot be subtracted.
        """
        episodes = self.add_returns(episodes)
        subtracted = compute_baseline(self.baseline, episodes) if subtracted is None else subtracted
        rewards_to_go, advantages = episodes.rewards_to_go, episodes.returns - subtracted
        if self.gae_lambda < 1.0:
            advantages = returns.generalized_advantages(
                episodes.rewards, subtracted, episodes.lengths, self.gamma, self.gae_lambda
            )
            rewards_to_go = advantages + subtracted
        weights = returns.standardize(advantages) if self.normalize_advantage else advantages
        if self.discounted_weighting and self.return_type == "reward_to_go":
            weights = weights * self.step_weights(episodes)
        n_averaged = len(weights) if self.loss_reduction == "step" else len(episodes.lengths)
        return PolicyGradientTargets(rewards_to_go, advantages, weights, n_averaged)
