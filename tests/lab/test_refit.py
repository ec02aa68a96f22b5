"""Control variates: what is subtracted has mean zero with every score, whatever was fitted, and takes out what it can."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import FixedLengthEnv
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from torch import distributions

from sb3_reinforce import REINFORCE
from sb3_reinforce.functional.baselines import Baseline
from sb3_reinforce.functional.returns import rewards_to_go
from sb3_reinforce.lab import check_unbiased, measure, refit
from sb3_reinforce.lab.collect import collect
from sb3_reinforce.lab.estimators import choose_estimators, make_estimators


class AnyControlVariate(Baseline):
    """A function of time and observation that nobody fitted."""

    needs_distribution = is_deterministic = True
    sees_other_episodes = False

    def __init__(self, includes_own_action=False):
        self.includes_own_action = includes_own_action

    def __call__(self, episodes):
        scores = refit.distribution_scores(episodes.distribution, th.as_tensor(episodes.actions))
        observed = episodes.observations.reshape(len(scores), -1).sum(axis=1)
        g = np.sin(1.0 + observed[:, None] + 2.0 * episodes.time_steps[:, None] + np.arange(scores.shape[1]))
        effects = (g * scores).sum(axis=1)
        later = rewards_to_go(effects, episodes.lengths, episodes.gamma) - effects
        return later + effects if self.includes_own_action else later


def test_every_control_variate_is_unbiased():
    check_unbiased(AnyControlVariate()).assert_unbiased()


def test_the_action_of_the_step_itself_does_not_belong_into_it():
    with pytest.raises(AssertionError):
        check_unbiased(AnyControlVariate(includes_own_action=True)).assert_unbiased()


@pytest.mark.parametrize(
    ("distribution", "actions"),
    [
        (distributions.Categorical(logits=th.tensor([[0.3, -1.0, 0.2], [0.0, 2.0, -8.0]])), th.tensor([[2.0], [1.0]])),
        (distributions.Bernoulli(logits=th.tensor([[0.3, -1.0], [0.0, 2.0]])), th.tensor([[1.0, 0.0], [0.0, 0.0]])),
        ([distributions.Categorical(logits=th.tensor([[0.3, -1.0]])) for _ in range(2)], th.tensor([[1.0, 0.0]])),
    ],
    ids=["Categorical", "Bernoulli", "MultiDiscrete"],
)
def test_scores_are_the_gradient_of_the_logits(distribution, actions):
    parts = distribution if isinstance(distribution, list) else [distribution]
    gradients = []
    for index, part in enumerate(parts):
        logits = part.logits.clone().requires_grad_()
        own = actions[:, index] if isinstance(part, distributions.Categorical) else actions
        type(part)(logits=logits).log_prob(own).sum().backward()
        gradients.append(logits.grad)
    np.testing.assert_allclose(refit.distribution_scores(distribution, actions), th.cat(gradients, dim=1), atol=1e-6)


def test_scores_of_a_gaussian_are_those_of_its_mean_in_units_of_its_deviation():
    normal, actions = distributions.Normal(th.tensor([[1.0, -2.0]]), th.tensor([[0.5, 3.0]])), th.tensor([[2.0, 1.0]])
    mean = normal.loc.clone().requires_grad_()
    distributions.Normal(mean, normal.scale).log_prob(actions).sum().backward()
    np.testing.assert_allclose(refit.distribution_scores(normal, actions), mean.grad * normal.scale, rtol=1e-6)


class PaidForActions(FixedLengthEnv):
    """Six steps, each with the action as its reward: all that a return has of noise comes from the actions."""

    def __init__(self):
        super().__init__(lengths=[6])
        self.action_space = spaces.Box(-10.0, 10.0, (1,), np.float32)

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(0)
        return observation, float(action[0]), terminated, truncated, info


def test_what_later_actions_were_worth_is_taken_out():
    model = REINFORCE("MlpPolicy", PaidForActions(), gamma=0.9, n_episodes=4, seed=0, device="cpu")
    episodes = collect(model, make_vec_env(PaidForActions, 2), 200)
    batch, lengths = episodes.batch, episodes.batch.episode_lengths
    folds = [np.arange(0, 200, 2), np.arange(1, 200, 2)]
    to_go = rewards_to_go(batch.rewards, lengths, 0.9)
    subtracted = refit.crossfitted_control_variates(episodes.evaluator, batch, to_go, 0.9, folds, seed=0)
    rest = to_go - subtracted
    # The reward of the step itself is left, and nothing else
    np.testing.assert_allclose(np.corrcoef(rest, batch.rewards)[0, 1], 1.0, atol=0.06)
    values = refit.crossfitted_values(episodes.evaluator, batch, to_go, folds, seed=0)
    assert np.var(rest) < 0.5 * np.var(to_go - values)


def test_nothing_that_is_subtracted_was_fitted_to_the_episode():
    model = REINFORCE("MlpPolicy", PaidForActions(), n_episodes=4, seed=0, device="cpu")
    episodes = collect(model, make_vec_env(PaidForActions, 2), 20)
    folds, targets = [np.arange(0, 20, 2), np.arange(1, 20, 2)], np.random.default_rng(0).normal(size=120)
    arguments = (episodes.evaluator, episodes.batch)
    before = refit.crossfitted_control_variates(*arguments, targets, 0.9, folds, seed=0)
    own = np.arange(120) // 6 % 2 == 0
    changed = refit.crossfitted_control_variates(*arguments, np.where(own, targets + 100.0, targets), 0.9, folds, seed=0)
    assert np.array_equal(changed[own], before[own]) and not np.allclose(changed[~own], before[~own])


def test_the_laboratory_measures_them_as_unbiased(monkeypatch):
    monkeypatch.setattr(refit, "N_GRADIENT_STEPS", 120)
    model = REINFORCE("MlpPolicy", PaidForActions(), n_episodes=4, seed=0, device="cpu")
    names = ["to-go-refit", "to-go-control-variates"]
    measured = measure(model, make_vec_env(PaidForActions, 2), 120, batch_size=4, estimators=names).results
    assert measured["to-go-control-variates"].noise < 0.7 * measured["to-go-refit"].noise
    assert make_estimators(model, 0.9)["to-go-control-variates"].is_unbiased


def test_noise_that_lasts_is_refused():
    model = A2C("MlpPolicy", "Pendulum-v1", use_sde=True, device="cpu")
    known = make_estimators(model, 0.9)
    assert "to-go-control-variates" not in {one.key for one in choose_estimators(known, ["all"], model)}
    with pytest.raises(
        ValueError, match="'to-go-control-variates' needs actions whose noise is independent from step to step"
    ):
        choose_estimators(known, ["to-go-control-variates"], model)
