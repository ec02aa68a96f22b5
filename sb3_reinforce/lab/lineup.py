"""The estimators that the laboratory puts side by side."""

import dataclasses
from typing import Any, NamedTuple

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_reinforce.functional.estimator import Estimator
from sb3_reinforce.reinforce import REINFORCE

#: What stands in for V(s) where an estimator has the baseline ``"value"``.
MODEL_CRITIC, BEST_CONSTANT, REFITTED_CRITIC = "model", "constant", "refit"
OWN = "own"


class Contender(NamedTuple):
    """
    An estimator and where its values come from.

    :param key: What it is called on the command line.
    :param label: What it is called in the report.
    :param estimator: The estimator.
    :param critic: Source of the values of ``baseline="value"``: the model's own critic, the constant with the smallest
        variance, or a critic that is fitted anew. The last two are cross-fitted: what an episode is compared with comes from
        others.
    """

    key: str
    label: str
    estimator: Estimator
    critic: str | None = None

    @property
    def sees_batch(self) -> bool:
        """Whether the gradient of an episode depends on the other episodes of its batch."""
        estimator = self.estimator
        return (
            estimator.baseline not in ("value", None) or estimator.normalize_advantage or estimator.loss_reduction != "episode"
        )

    @property
    def keeps_scale(self) -> bool:
        """Whether its expected length can be compared with that of others, and not only its direction."""
        return not self.estimator.normalize_advantage and self.estimator.loss_reduction == "episode"

    @property
    def target(self) -> str:
        """Whose gradient it estimates, exactly or up to its bias: they differ with ``gamma`` below 1."""
        return "discounted" if self._discounts_from_the_start else "customary"

    @property
    def is_unbiased(self) -> bool:
        """Whether its expectation is its target."""
        estimator = self.estimator
        return self.keeps_scale and estimator.baseline != "mean" and estimator.gae_lambda == 1.0 and self.key != OWN

    @property
    def _discounts_from_the_start(self) -> bool:
        estimator = self.estimator
        return estimator.gamma < 1.0 and (estimator.discounted_weighting or estimator.return_type == "episode")


#: In the order of the report. What only --estimators all or its name asks for is in EXTRA.
LECTURE = (
    "whole",
    "whole-loo",
    "to-go",
    "to-go-mean",
    "to-go-loo",
    "to-go-time-step",
    "to-go-normalized",
    "to-go-critic",
    "to-go-constant",
    "to-go-refit",
    OWN,
)
EXTRA = ("whole-mean", "whole-critic", "weighted", "weighted-loo", "weighted-critic", "weighted-refit", "gae")


def make_lineup(model: OnPolicyAlgorithm, gamma: float) -> dict[str, Contender]:
    """
    Make all estimators that the laboratory knows.

    :param model: Its own estimator is one of them, but for the discount factor.
    :param gamma: Discount factor of all, since gradients of other objectives cannot be compared.
    :return: By key, in the order of the report.
    """

    def make(key: str, label: str, critic: str | None = None, **switches: Any) -> Contender:
        settings: dict[str, Any] = {"gamma": gamma, "baseline": None, "loss_reduction": "episode", **switches}
        return Contender(key, label, Estimator(**settings), critic)

    whole: dict[str, Any] = {"return_type": "episode"}
    weighted: dict[str, Any] = {"discounted_weighting": True}
    contenders = (
        make("whole", "whole return", **whole),
        make("whole-mean", "whole return - batch mean (biased)", baseline="mean", **whole),
        make("whole-loo", "whole return - leave-one-out", baseline="leave_one_out", **whole),
        make("whole-critic", "whole return - critic (this model's)", MODEL_CRITIC, baseline="value", **whole),
        make("to-go", "reward-to-go"),
        make("to-go-mean", "to-go - batch mean (biased)", baseline="mean"),
        make("to-go-loo", "to-go - leave-one-out", baseline="leave_one_out"),
        make("to-go-time-step", "to-go - same time step", baseline="time_step"),
        make("to-go-normalized", "to-go, normalised (biased)", normalize_advantage=True),
        make("gae", "GAE with lambda 0.95 (biased)", MODEL_CRITIC, baseline="value", gae_lambda=0.95),
        make("to-go-critic", "to-go - critic (this model's)", MODEL_CRITIC, baseline="value"),
        make("to-go-constant", "to-go - best constant", BEST_CONSTANT, baseline="value"),
        make("to-go-refit", "to-go - critic fitted anew", REFITTED_CRITIC, baseline="value"),
        make("weighted", "to-go, weighted by gamma^t", **weighted),
        make("weighted-loo", "weighted to-go - leave-one-out", baseline="leave_one_out", **weighted),
        make("weighted-critic", "weighted to-go - critic (this model's)", MODEL_CRITIC, baseline="value", **weighted),
        make("weighted-refit", "weighted to-go - critic fitted anew", REFITTED_CRITIC, baseline="value", **weighted),
        Contender(OWN, "this model's own settings", dataclasses.replace(own_estimator(model), gamma=gamma), MODEL_CRITIC),
    )
    return {contender.key: contender for contender in contenders}


def own_estimator(model: OnPolicyAlgorithm) -> Estimator:
    """
    Describe the estimator that a model learns with.

    :param model: Of ``REINFORCE``, or an algorithm of SB3 that has its actor and its critic (A2C, PPO).
    :return: The estimator; of SB3's algorithms on whole episodes, which they would cut.
    """
    if isinstance(model, REINFORCE):
        return model.estimator
    return Estimator(
        gamma=model.gamma,
        gae_lambda=model.gae_lambda,
        normalize_advantage=bool(getattr(model, "normalize_advantage", False)),
    )


def has_critic(model: OnPolicyAlgorithm) -> bool:
    """
    Tell whether a model has a learned baseline.

    :param model: See ``own_estimator``.
    :return: Whether it does.
    """
    return not isinstance(model, REINFORCE) or model.baseline == "value"


def choose(lineup: dict[str, Contender], names: list[str], model: OnPolicyAlgorithm) -> list[Contender]:
    """
    Choose the estimators to measure.

    :param lineup: See ``make_lineup``.
    :param names: ``["lecture"]``, ``["all"]``, or keys.
    :param model: Whose critic is used.
    :return: In the order of the report; of the two groups without those that need a critic which the model does not have.
    :raises ValueError: If there is no such estimator, or one that was asked for needs a critic.
    """
    groups = {"lecture": LECTURE, "all": tuple(lineup)}
    chosen: set[str] = set()
    for name in names:
        if name not in groups and name not in lineup:
            raise ValueError(f"estimators: there is no {name!r}, choose from lecture, all, {', '.join(lineup)}")
        for key in groups.get(name, (name,)):
            needs_critic = lineup[key].critic == MODEL_CRITIC and lineup[key].estimator.baseline == "value"
            if needs_critic and not has_critic(model):
                if name in groups:
                    continue
                raise ValueError(
                    f"estimators: {key!r} needs a critic, which this model with baseline={getattr(model, 'baseline', None)!r} "
                    "does not have; to-go-refit fits one"
                )
            chosen.add(key)
    return [contender for key, contender in lineup.items() if key in chosen]
