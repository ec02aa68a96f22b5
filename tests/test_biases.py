"""
How far an update is off where docs/exactness.md says that it is biased: every outcome of tiny tasks, by its probability.

The bandit has two arms. The one pays 1, the other 100 with probability 0.02 and else nothing, so that the other is better on
average and looks worse in most batches. The policy begins at even odds, and a step is told by how it moves the log-odds of the
better arm: along the gradient of the expected reward with a learning rate of 1 that is (2 - 1) / 2 = 0.5.
"""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import (
    ACTION_PROBABILITIES,
    linear_model,
    logit_gradient_to_parameters,
    parameters_to_logit_gradient,
    policy_gradient,
    set_action_probabilities,
)
from stable_baselines3.common.logger import Logger
from test_exactness import GAMMA, PATHS, TEMPERATURE, exact_gradient, expectation, state_rows

from sb3_reinforce import REINFORCE, MlpPolicy
from sb3_reinforce.functional.baselines import Episodes, NoBaseline, ValueBaseline
from sb3_reinforce.functional.estimator import Estimator

#: Arm, reward, probability
OUTCOMES = ((0, 1.0, 0.5), (1, 0.0, 0.49), (1, 100.0, 0.01))
EXACT_STEP = 0.5


class RareRewardEnv(gym.Env):
    """Has spaces; the tests play."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)


def bandit_model(n_episodes: int, **kwargs) -> REINFORCE:
    policy_kwargs = {"net_arch": [], **kwargs.pop("policy_kwargs", {})}
    arguments = {
        "baseline": None if n_episodes == 1 else "leave_one_out",
        "loss_reduction": "episode",
        "device": "cpu",
        **kwargs,
    }
    model = REINFORCE("MlpPolicy", RareRewardEnv(), n_episodes=n_episodes, policy_kwargs=policy_kwargs, **arguments)
    model.set_logger(Logger(None, []))
    return model


def batches(n_episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each outcome may be in a batch, a row a batch, and the probabilities of these batches."""
    counts = np.array([(n_episodes - n, n - wins, wins) for n in range(n_episodes + 1) for wins in range(n + 1)])
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n_episodes + 1)))])
    log_probabilities = log_factorials[-1] - log_factorials[counts].sum(axis=1) + counts @ np.log([p for *_, p in OUTCOMES])
    return counts, np.exp(log_probabilities)


def expected_step_of_train(model: REINFORCE) -> float:
    """By how much an update of the model moves the log-odds, on average."""
    expected, before = 0.0, {name: part.clone() for name, part in model.policy.state_dict().items()}
    for counts, probability in zip(*batches(model.n_episodes), strict=True):
        with th.no_grad():
            model.policy.load_state_dict(before)
            model.policy.action_net.bias.zero_()
        model.policy.optimizer.state.clear()
        model.rollout_buffer.reset()
        for count, (arm, reward, _) in zip(counts, OUTCOMES, strict=True):
            for _ in range(count):
                model.rollout_buffer.add(np.zeros((1, 1), np.float32), np.array([arm]), np.array([reward]))
                model.rollout_buffer.finish_episode(0)
        model.train()
        worse, better = model.policy.action_net.bias.tolist()
        expected += probability * (better - worse)
    return expected


def gradients(n_episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """What every batch says of the log-odds, by the definition of the estimator, and its probability."""
    counts, probabilities = batches(n_episodes)
    signs, rewards = np.array([-1.0, 1.0, 1.0]), np.array([1.0, 0.0, 100.0])
    sums = counts @ (signs * rewards)
    if n_episodes > 1:
        # Each minus the mean of the others
        sums -= ((counts @ rewards) * (counts @ signs) - sums) / (n_episodes - 1)
    return sums / n_episodes, probabilities


def clipped(log_odds_gradients: np.ndarray, max_grad_norm: float = 0.5) -> np.ndarray:
    """Both logits move by half of what the log-odds do."""
    norms = np.abs(log_odds_gradients) / math.sqrt(2)
    return log_odds_gradients * np.minimum(1.0, max_grad_norm / np.maximum(norms, 1e-12))


def table_of_the_bandit(n_episodes: int) -> tuple[float, float, float]:
    """Expected steps: of the gradient, of the clipped one, and of a step of fixed length, as a fraction of that."""
    found, probabilities = gradients(n_episodes)
    # What is left of a batch in which all rewards are alike is rounding
    signs = np.sign(np.where(np.abs(found) > 1e-9, found, 0.0))
    return tuple(float(probabilities @ steps) for steps in (found, clipped(found), signs))


#: Expected step along the gradient, along the clipped one, and of a step of fixed length, by the number of episodes; docs
#: cite it.
TABLE = {
    1: (0.5, -0.346, -0.49),
    2: (0.5, -0.339, -0.48),
    8: (0.5, -0.407, -0.839),
    32: (0.5, -0.168, -0.45),
    64: (0.5, 0.072, -0.051),
    128: (0.5, 0.224, 0.447),
    512: (0.5, 0.405, 0.773),
}


@pytest.mark.parametrize("n_episodes", TABLE)
def test_the_gradient_of_the_bandit_is_exact_and_what_is_made_of_it_is_not(n_episodes):
    assert table_of_the_bandit(n_episodes) == pytest.approx(TABLE[n_episodes], abs=6e-4)


def test_how_many_episodes_a_step_of_fixed_length_needs_to_have_the_right_sign():
    assert all(table_of_the_bandit(n)[2] < 0.0 for n in range(1, 69))
    assert table_of_the_bandit(69)[2] > 0.0


SGD = {"learning_rate": 1.0, "policy_kwargs": {"optimizer_class": th.optim.SGD}}


@pytest.mark.parametrize("n_episodes", [1, 2, 8])
def test_clipping_biases_an_unbiased_gradient_even_in_sign(n_episodes):
    unclipped = expected_step_of_train(bandit_model(n_episodes, max_grad_norm=float("inf"), **SGD))
    assert unclipped == pytest.approx(EXACT_STEP, abs=1e-4)
    # With the default of max_grad_norm
    assert expected_step_of_train(bandit_model(n_episodes, **SGD)) == pytest.approx(TABLE[n_episodes][1], abs=6e-4)


@pytest.mark.parametrize("n_episodes", [1, 2, 8])
@pytest.mark.parametrize("kwargs", [{"max_grad_norm": float("inf")}, {"natural_gradient": True}], ids=["Adam", "natural"])
@pytest.mark.filterwarnings("ignore:A natural step was skipped")
def test_a_step_of_fixed_length_points_the_wrong_way(n_episodes, kwargs):
    """Adam's first step, and every natural one."""

    def always(reward):
        """The step after a batch in which the better arm won, or lost against the other."""
        model = bandit_model(1, **kwargs)
        model.rollout_buffer.reset()
        model.rollout_buffer.add(np.zeros((1, 1), np.float32), np.array([1]), np.array([reward]))
        model.rollout_buffer.finish_episode(0)
        worse, better = model.policy.action_net.bias.tolist()
        model.train()
        return float(np.diff(model.policy.action_net.bias.detach().numpy())[0]) - (better - worse)

    length = always(1.0)
    assert always(-100.0) == pytest.approx(-length, rel=1e-4)
    assert expected_step_of_train(bandit_model(n_episodes, **kwargs)) / length == pytest.approx(TABLE[n_episodes][2], abs=1e-3)


# The entropy bonus in the loss


def bonus(model: REINFORCE, without: REINFORCE, probabilities: np.ndarray = ACTION_PROBABILITIES) -> np.ndarray:
    """The expected gradient that the bonus adds, of the logits of the three states."""
    for one in (model, without):
        set_action_probabilities(one, probabilities)
    expected = np.zeros((3, 2))
    for path in PATHS:
        # Of the policy that acts now
        rows = state_rows(path)
        ratio = np.prod(probabilities[rows, path.actions] / ACTION_PROBABILITIES[rows, path.actions])
        added = policy_gradient(model, [path]) - policy_gradient(without, [path])
        expected += path.probability * ratio * parameters_to_logit_gradient(added)
    return expected


def entropy_models(**kwargs) -> tuple[REINFORCE, REINFORCE]:
    kwargs = {"baseline": None, "loss_reduction": "episode", "n_episodes": 1, **kwargs}
    without = {name: value for name, value in kwargs.items() if name != "entropy_in_return"}
    return linear_model(ent_coef=TEMPERATURE, **kwargs), linear_model(**without)


#: The bonus in the loss, along the gradient of the expected discounted sum of entropies and at right angles to it, in units of
#: that gradient's norm, by ``gamma``
BONUS = {1.0: (3.025, 1.589), 0.9: (3.069, 1.022)}


@pytest.mark.parametrize("gamma", BONUS)
def test_the_entropy_bonus_in_the_loss_is_not_the_gradient_of_the_expected_entropy(gamma):
    exact = exact_gradient(True, gamma) - exact_gradient(False, gamma)
    found = logit_gradient_to_parameters(bonus(*entropy_models(gamma=gamma, discounted_weighting=True)))
    scale = found @ exact / (exact @ exact)
    off = np.linalg.norm(found - scale * exact) / np.linalg.norm(exact)
    assert (scale, off) == pytest.approx(BONUS[gamma], abs=2e-3)
    # In the return it is
    model, _ = entropy_models(gamma=gamma, discounted_weighting=True, entropy_in_return=True)
    expected = expectation(lambda episodes: policy_gradient(model, episodes), 1)
    np.testing.assert_allclose(expected, exact_gradient(True, gamma), atol=1e-5)


def test_the_entropy_bonus_in_the_loss_is_not_discounted():
    weighted, unweighted = (bonus(*entropy_models(gamma=GAMMA, discounted_weighting=choice)) for choice in (True, False))
    np.testing.assert_allclose(weighted, unweighted, atol=1e-5)


def test_the_entropy_bonus_in_the_loss_is_the_gradient_of_nothing():
    """Second derivatives of a function do not depend on the order in which one differentiates."""
    models, size = entropy_models(gamma=1.0), 0.02
    jacobian = np.zeros((3, 3))
    for row in range(3):
        bonuses = []
        for sign in (-1, 1):
            logits = np.log(ACTION_PROBABILITIES)
            logits[row] += np.array([0.5, -0.5]) * sign * size
            probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            bonuses.append(bonus(*models, probabilities) @ np.array([0.5, -0.5]))
        jacobian[:, row] = (bonuses[1] - bonuses[0]) / (2 * size)
    # How the policy begins decides which states are met later, and not the other way round
    assert np.abs(jacobian[np.tril_indices(3, -1)]).min() > 1e-2
    assert np.abs(jacobian[np.triu_indices(3, 1)]).max() < 1e-4


# Squashed actions


def test_scores_of_saturated_squashed_actions_have_a_mean_that_is_not_zero():
    observation_space, action_space = spaces.Box(0.0, 1.0, (1,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)
    policy = MlpPolicy(observation_space, action_space, lambda _: 1e-3, net_arch=[], use_sde=True, squash_output=True)
    deviations = np.linspace(-8.0, 8.0, 20_001)
    probabilities = np.exp(-(deviations**2) / 2) / np.exp(-(deviations**2) / 2).sum()

    def mean_score(mean):
        """Of the mean of the Gaussian below, whose standard deviation is 1."""
        with th.no_grad():
            for parameter, value in ((policy.action_net.weight, 0.0), (policy.action_net.bias, mean), (policy.log_std, 0.0)):
                parameter.fill_(value)
        distribution = policy.get_distribution(th.ones(len(deviations), 1))
        log_prob = distribution.log_prob(th.tanh(th.as_tensor(mean + deviations, dtype=th.float32))[:, None])
        return th.autograd.grad(log_prob.double() @ th.as_tensor(probabilities), policy.action_net.bias)[0].item()

    assert mean_score(0.0) == pytest.approx(0.0, abs=1e-5)
    assert mean_score(5.0) == pytest.approx(0.0, abs=1e-3)
    # Beyond, the actions that a float32 holds are all alike, and the score is that of the nearest one that can be told from 1
    assert mean_score(7.0) == pytest.approx(-0.04, abs=0.01)
    assert mean_score(8.0) == pytest.approx(-0.26, abs=0.01)


# The whole return minus a learned value


def noise_of(values: np.ndarray | None, **switches) -> float:
    """The variance of the gradient of one episode of DiamondHill, summed over the parameters."""
    baseline = NoBaseline() if values is None else ValueBaseline()
    estimator = Estimator(gamma=GAMMA, loss_reduction="episode", baseline=baseline, **switches)
    mean, square = 0.0, 0.0
    for path in PATHS:
        rows = state_rows(path)
        own_values = None if values is None else values[rows]
        episode = Episodes(np.array(path.rewards, np.float64), np.array([len(rows)]), values=own_values)
        weights = estimator(episode).score_weights
        logit_gradient = np.zeros((3, 2))
        for row, action, weight in zip(rows, path.actions, weights, strict=True):
            logit_gradient[row] += weight * (np.eye(2)[action] - ACTION_PROBABILITIES[row])
        gradient = logit_gradient_to_parameters(logit_gradient)
        mean, square = mean + path.probability * gradient, square + path.probability * gradient @ gradient
    np.testing.assert_allclose(mean, exact_gradient(False), atol=1e-6)
    return float(square - mean @ mean)


def test_the_value_of_what_is_still_to_come_does_not_fit_the_whole_return():
    to_go, whole, visits = np.zeros(3), np.zeros(3), np.zeros(3)
    for path in PATHS:
        for t, row in enumerate(state_rows(path)):
            returns = [sum(GAMMA**k * reward for k, reward in enumerate(path.rewards[start:])) for start in (t, 0)]
            to_go[row] += path.probability * returns[0]
            whole[row] += path.probability * returns[1]
            visits[row] += path.probability
    noises = [noise_of(values, return_type="episode") for values in (None, to_go / visits, whole / visits)]
    assert noises == pytest.approx([139.21, 52.0, 46.55], abs=0.01)
    # What is recommended instead has the same expectation
    assert noise_of(to_go / visits, discounted_weighting=True) == pytest.approx(46.55, abs=0.01)


def test_who_asks_for_it_is_told():
    with pytest.warns(UserWarning, match=r"return_type='episode' with baseline='value'.*discounted_weighting=True"):
        REINFORCE("MlpPolicy", RareRewardEnv(), return_type="episode")


def test_the_longer_an_episode_is_the_less_it_fits():
    """Coins: an episode of n steps, of which each pays 0 or 1. Relative to no baseline, by all sequences of coins."""

    def noise(n_steps, values, return_type):
        baseline = NoBaseline() if values is None else ValueBaseline()
        estimator = Estimator(1.0, 1.0, return_type, baseline=baseline, loss_reduction="episode")
        sequences = np.array(list(itertools.product((0.0, 1.0), repeat=n_steps)))
        episodes = [Episodes(rewards, np.array([n_steps]), values=values) for rewards in sequences]
        found = [estimator(episode).score_weights * (episode.rewards - 0.5) for episode in episodes]
        return np.var(found, axis=0).sum()

    for n_steps, expected in ((2, (0.3, 0.2, 0.1)), (8, (0.345, 0.099, 0.049))):
        to_go, whole = (n_steps - np.arange(n_steps)) / 2, np.full(n_steps, n_steps / 2)
        choices = ((to_go, "episode"), (whole, "episode"), (to_go, "reward_to_go"))
        ratios = [noise(n_steps, *choice) / noise(n_steps, None, "episode") for choice in choices]
        assert ratios == pytest.approx(expected, abs=1e-3)
