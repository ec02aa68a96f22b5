"""The policy gradient estimators that the laboratory compares."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_reinforce.functional.baselines import (
    Baseline,
    LeaveOneOutBaseline,
    MeanBaseline,
    NoBaseline,
    TimeStepBaseline,
    ValueBaseline,
    make_baseline,
    name_of,
)
from sb3_reinforce.functional.estimator import Estimator
from sb3_reinforce.policies.inspection import has_standard_distribution
from sb3_reinforce.reinforce import REINFORCE

#: Sources of V(s) for estimators with the baseline ``"value"``.
MODEL_CRITIC, BEST_CONSTANT, REFITTED_CRITIC, CONTROL_VARIATES = "model", "constant", "refit", "control-variates"
#: Key of the model's own settings.
OWN = "own"
#: Targets: the undiscounted-state-distribution gradient (Nota & Thomas 2020), which is not the gradient of any objective,
#: and the gradient of the discounted objective. Without discounting they are the same.
UNDISCOUNTED, DISCOUNTED = "undiscounted", "discounted"


class NamedEstimator(NamedTuple):
    """
    An estimator and the source of its values.

    :param key: Name on the command line.
    :param label: Name in the report.
    :param settings: The estimator.
    :param critic: Source of the values of ``baseline="value"``: the model's own critic, the constant with the smallest
        variance, a refitted critic, or a refitted critic with control variates. The last three are cross-fitted: the value of
        an episode comes from other episodes.
    """

    key: str
    label: str
    settings: Estimator
    critic: str | None = None

    @property
    def sees_batch(self) -> bool:
        """Whether the gradient of an episode depends on the other episodes of its batch."""
        settings = self.settings
        sees_others = settings.baseline.sees_other_episodes and not self.is_crossfitted
        return sees_others or settings.normalize_advantage or settings.loss_reduction != "episode"

    @property
    def is_crossfitted(self) -> bool:
        """Whether the laboratory fits its baseline: the values subtracted from an episode are fitted on other episodes."""
        return self.settings.baseline.is_fitted and self.key != OWN

    @property
    def keeps_scale(self) -> bool:
        """Whether its expected gradient is comparable with others in length, and not only in direction."""
        return not self.settings.normalize_advantage and self.settings.loss_reduction == "episode"

    @property
    def target(self) -> str:
        """Which gradient it estimates, up to its bias if it has one: ``UNDISCOUNTED`` or ``DISCOUNTED``."""
        settings = self.settings
        is_weighted = settings.discounted_weighting or settings.return_type == "episode"
        return DISCOUNTED if settings.gamma < 1.0 and is_weighted else UNDISCOUNTED

    @property
    def is_unbiased(self) -> bool:
        """Whether its expectation is its target."""
        settings = self.settings
        return self.keeps_scale and settings.baseline.is_unbiased and settings.gae_lambda == 1.0 and self.key != OWN


#: Used if a baseline needs common starts and the model has none.
EPISODES_PER_START = 4

#: Keys of the group ``lecture`` in the order of the report; the group ``all`` adds the other estimators.
LECTURE = (
    *("whole", "whole-loo", "to-go", "to-go-mean", "to-go-loo", "to-go-time-step", "to-go-normalized"),
    *("to-go-critic", "to-go-constant", "to-go-refit", OWN),
)
_WHOLE: dict[str, Any] = {"return_type": "episode"}
_WEIGHTED: dict[str, Any] = {"discounted_weighting": True}
_SHARED: dict[str, Any] = {"baseline": NoBaseline(), "loss_reduction": "episode"}
_LOO: dict[str, Any] = {"baseline": LeaveOneOutBaseline()}
_VALUE: dict[str, Any] = {"baseline": ValueBaseline()}
_MEAN: dict[str, Any] = {"baseline": MeanBaseline()}
#: Key, label, arguments of ``Estimator``, and source of the values.
_ESTIMATORS: tuple[tuple[str, str, dict[str, Any], str | None], ...] = (
    ("whole", "whole return", _WHOLE, None),
    ("whole-mean", "whole return - batch mean (biased)", _WHOLE | _MEAN, None),
    ("whole-loo", "whole return - leave-one-out", _WHOLE | _LOO, None),
    ("whole-critic", "whole return - this model's critic", _WHOLE | _VALUE, MODEL_CRITIC),
    ("to-go", "reward-to-go", {}, None),
    ("to-go-mean", "to-go - batch mean (biased)", _MEAN, None),
    ("to-go-loo", "to-go - leave-one-out", _LOO, None),
    ("to-go-time-step", "to-go - same time step", {"baseline": TimeStepBaseline()}, None),
    ("to-go-normalized", "to-go, normalised (biased)", {"normalize_advantage": True}, None),
    *(
        (f"gae-{gae_lambda}", f"GAE with lambda {gae_lambda} (biased)", _VALUE | {"gae_lambda": gae_lambda}, MODEL_CRITIC)
        for gae_lambda in (0.95, 0.97, 0.99)
    ),
    ("to-go-critic", "to-go - this model's critic", _VALUE, MODEL_CRITIC),
    ("to-go-constant", "to-go - best constant", _VALUE, BEST_CONSTANT),
    ("to-go-refit", "to-go - refitted critic", _VALUE, REFITTED_CRITIC),
    ("to-go-control-variates", "to-go - control variates", _VALUE, CONTROL_VARIATES),
    ("weighted", "to-go, weighted by gamma^t", _WEIGHTED, None),
    ("weighted-loo", "weighted to-go - leave-one-out", _WEIGHTED | _LOO, None),
    ("weighted-critic", "weighted to-go - this model's critic", _WEIGHTED | _VALUE, MODEL_CRITIC),
    ("weighted-refit", "weighted to-go - refitted critic", _WEIGHTED | _VALUE, REFITTED_CRITIC),
)


def make_estimators(
    model: OnPolicyAlgorithm, gamma: float, baselines: Sequence[Baseline | str] = ()
) -> dict[str, NamedEstimator]:
    """
    Make all the laboratory's estimators by key, in the order of the report, followed by reward-to-go with other baselines.

    All have the same discount factor, the model's own settings included: gradients of different objectives are not comparable.
    """
    known = [
        NamedEstimator(key, label, Estimator(**{"gamma": gamma, **_SHARED, **arguments}), critic)
        for key, label, arguments, critic in _ESTIMATORS
    ]
    own = dataclasses.replace(own_settings(model), gamma=gamma)
    known.append(NamedEstimator(OWN, "this model's own settings", own, MODEL_CRITIC))
    for baseline in map(make_baseline, baselines):
        name = key_of(baseline)
        settings = Estimator(gamma=gamma, baseline=baseline, loss_reduction="episode")
        known.append(NamedEstimator(name, f"to-go - {name}", settings, MODEL_CRITIC))
    return {one.key: one for one in known}


def key_of(baseline: Baseline | str) -> str:
    """Return the key of the estimator that subtracts a baseline: the baseline's name or class path."""
    return name_of(make_baseline(baseline)).strip("'")


def choose_episodes_per_start(model: OnPolicyAlgorithm, estimators: Sequence[NamedEstimator]) -> int | None:
    """Choose the episodes per start: the model's number, or 4 if it has none; None if no estimator needs common starts."""
    own = getattr(model, "episodes_per_start", None)
    baselines = [one.settings.baseline for one in estimators]
    if any(baseline.needs_common_starts for baseline in baselines):
        return own or EPISODES_PER_START
    if own is not None and any(one.key == OWN for one in estimators):
        return int(own)
    return 1 if any(baseline.needs_greedy_episodes for baseline in baselines) else None


def own_settings(model: OnPolicyAlgorithm) -> Estimator:
    """Return the estimator that a model trains with; for SB3's algorithms, as applied to whole episodes, which they cut."""
    if isinstance(model, REINFORCE):
        return model.estimator
    return Estimator(
        gamma=model.gamma,
        gae_lambda=model.gae_lambda,
        normalize_advantage=bool(getattr(model, "normalize_advantage", False)),
    )


def has_critic(model: OnPolicyAlgorithm) -> bool:
    """Check whether a model has a learned baseline."""
    return not isinstance(model, REINFORCE) or model.estimator.baseline.needs_critic


def choose_estimators(
    estimators: Mapping[str, NamedEstimator], names: Sequence[str], model: OnPolicyAlgorithm
) -> list[NamedEstimator]:
    """
    Select estimators by ``lecture``, ``all`` or their keys, in the order of the report.

    The two groups omit estimators that need a critic that the model does not have. They omit control variates if actions
    depend on each other (gSDE) or the distribution is not one of SB3's.

    :raises ValueError: If an estimator does not exist, or a requested estimator is one that the groups would omit.
    """
    groups = {"lecture": LECTURE, "all": tuple(estimators)}
    chosen: set[str] = set()
    for name in names:
        if name not in groups and name not in estimators:
            raise ValueError(f"estimators: there is no {name!r}, choose from lecture, all, {', '.join(estimators)}")
        for key in groups.get(name, (name,)):
            needs_critic = estimators[key].critic == MODEL_CRITIC and estimators[key].settings.baseline.needs_critic
            reason = ""
            if needs_critic and not has_critic(model):
                own = getattr(model, "baseline", None)
                reason = f"needs a critic, which this model with baseline={own!r} does not have; to-go-refit fits one"
            elif estimators[key].critic == CONTROL_VARIATES and not has_standard_distribution(model.policy):
                reason = (
                    "needs actions whose noise is independent from step to step, from a distribution of SB3 other than gSDE's"
                )
            if not reason:
                chosen.add(key)
            elif name not in groups:
                raise ValueError(f"estimators: {key!r} {reason}")
    return [estimator for key, estimator in estimators.items() if key in chosen]
