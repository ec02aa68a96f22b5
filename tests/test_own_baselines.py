"""The baselines of the literature, and those of users, through the model's own train: exact, saved, and shared by processes."""

import copy
import itertools
import pickle
import threading
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import (
    ACTION_PROBABILITIES,
    CueEnv,
    FixedLengthEnv,
    GradientRecorder,
    enumerate_cue_paths,
    gradients_of_paths,
    linear_model,
    logit_gradient_to_parameters,
    recorded_gradient,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from test_memory_and_masks import SMALL, log_probs_of

from sb3_reinforce import REINFORCE
from sb3_reinforce.envs import aliased_gridworld, diamond_hill
from sb3_reinforce.envs.diamond_hill import DECISION_STATES, SLIP_PROBABILITY
from sb3_reinforce.functional.baselines import Baseline, Episodes, LinearBaseline, MovingAverageBaseline
from sb3_reinforce.lab import check_unbiased

GAMMA = 0.9
LITERATURE = ("moving_average", "linear", "optimal", "greedy", "group")
WITH_COMMON_STARTS = ("greedy", "group")


class Expected(Baseline):
    """What a researcher might write: the expected reward of the next step, by the policy's own probabilities."""

    needs_distribution = True

    def __call__(self, episodes: Episodes) -> np.ndarray:
        probabilities = episodes.distribution.probs.double().numpy()
        return probabilities @ np.arange(probabilities.shape[1]) + episodes.observations[:, 0] + 0.1 * episodes.time_steps


class HalfOfItself(Baseline):
    """Biased: the expected gradient is half of the true one."""

    def __call__(self, episodes: Episodes) -> np.ndarray:
        return 0.5 * episodes.returns


# By enumeration


def paths_by_slip():
    """What the environment may draw, with the paths then: (probability, paths) of a slip, and of none."""
    return [
        (p, [path for path in diamond_hill.enumerate_paths(ACTION_PROBABILITIES, float(slips)) if path.probability > 0])
        for p, slips in ((SLIP_PROBABILITY, True), (1 - SLIP_PROBABILITY, False))
    ]


def rollouts(draws, common_start, n_episodes=2):
    """The probability of each rollout, its paths, and all that the environment could have done with the same draw."""
    if not common_start:
        draws = [(1.0, [path._replace(probability=p * path.probability) for p, paths in draws for path in paths])]
    for probability, paths in draws:
        for chosen in itertools.product(paths, repeat=n_episodes):
            yield probability * float(np.prod([path.probability for path in chosen])), chosen, paths


def rows_of(path, states=DECISION_STATES):
    return [int(np.argmax((states == seen).all(axis=1))) for seen in path.observations]


def greedy_path(paths, probabilities, states=DECISION_STATES):
    (path,) = (p for p in paths if (probabilities[rows_of(p, states)].argmax(axis=1) == p.actions).all())
    return path


def fill(model, episodes, greedy=None, masks=None):
    """Store episodes, as a rollout would, in one environment."""
    buffer = model.rollout_buffer
    buffer.reset()
    for episode in episodes:
        for observation, action, reward in zip(episode.observations, episode.actions, episode.rewards, strict=True):
            mask = None if masks is None else masks(observation)[None]
            buffer.add(observation[None], np.array([action]), np.array([reward]), mask)
        buffer.finish_episode(0)
        if greedy is not None:
            buffer.starts[0].append(0)
            buffer.greedy_rewards = {0: np.array(greedy.rewards, np.float64)}
    model.policy.optimizer.recorded.clear()


def slow_returns(path, return_type):
    n = len(path.rewards)
    to_go = [sum(GAMMA ** (k - t) * float(path.rewards[k]) for k in range(t, n)) for t in range(n)]
    return to_go if return_type == "reward_to_go" else [to_go[0]] * n


def slow_baseline(name, i, t, episodes, return_type, state, greedy):
    """What is subtracted at step t of episode i, as the definition says."""
    credited = [slow_returns(path, return_type) for path in episodes]
    others = [own for j, own in enumerate(credited) if j != i]
    if name == "moving_average":
        return state["sum"] / state["weight"]
    if name == "linear":
        o, time = episodes[i].observations[t].astype(float), t / 100
        return float(np.concatenate([o, o**2, [time, time**2, time**3, 1.0]]) @ state["coefficients"])
    if name == "greedy":
        others = [slow_returns(greedy, return_type)]
    if name in WITH_COMMON_STARTS:
        at_same_time = [own[t] for own in others if len(own) > t]
        if name == "greedy" or return_type == "reward_to_go":
            return np.mean(at_same_time) if at_same_time else np.mean([np.mean(own) for own in others])
        return np.mean([own[0] for own in others])
    above = below = 0.0
    for j, path in enumerate(episodes):
        if j != i:
            both = np.zeros((2, 3, 2))
            for step, (row, action) in enumerate(zip(rows_of(path), path.actions, strict=True)):
                score = np.eye(2)[action] - ACTION_PROBABILITIES[row]
                weight = GAMMA**step if return_type == "reward_to_go" else 1.0
                both[0, row] += weight * credited[j][step] * score
                both[1, row] += weight * score
            of_returns, of_scores = map(logit_gradient_to_parameters, both)
            above, below = above + of_returns @ of_scores, below + of_scores @ of_scores
    return above / below


def reference(name, episodes, return_type, reduction, state, greedy):
    gradient = np.zeros((3, 2))
    for i, path in enumerate(episodes):
        for t, (row, action) in enumerate(zip(rows_of(path), path.actions, strict=True)):
            subtracted = 0.0 if name is None else slow_baseline(name, i, t, episodes, return_type, state, greedy)
            advantage = slow_returns(path, return_type)[t] - subtracted
            weight = GAMMA**t if return_type == "reward_to_go" else 1.0
            gradient[row] += weight * advantage * (np.eye(2)[action] - ACTION_PROBABILITIES[row])
    n = len(episodes) if reduction == "episode" else sum(len(path.actions) for path in episodes)
    return logit_gradient_to_parameters(gradient / n)


def arguments_of(name, return_type="reward_to_go", reduction="episode"):
    switches = {"return_type": return_type, "loss_reduction": reduction, "discounted_weighting": True, "gamma": GAMMA}
    return {**switches, "n_episodes": 2, "episodes_per_start": 2 if name in WITH_COMMON_STARTS else None}


def past_state(name, model, episodes):
    """A state as after earlier rollouts. It stays so while rollouts are enumerated."""
    fill(model, episodes)
    if not model.estimator.baseline.is_fitted:
        return {}
    model.train()
    return copy.deepcopy(model.estimator.baseline.state_dict())


@pytest.mark.parametrize("reduction", ["episode", "step"])
@pytest.mark.parametrize("return_type", ["reward_to_go", "episode"])
@pytest.mark.parametrize("name", LITERATURE)
def test_expected_gradient_on_diamond_hill(name, return_type, reduction):
    model = linear_model(baseline=name, **arguments_of(name, return_type, reduction))
    draws, baseline = paths_by_slip(), model.estimator.baseline
    state = past_state(name, model, [path for _, paths in draws for path in paths])
    expected, slow, exact = np.zeros(6), np.zeros(6), np.zeros(6)
    for probability, episodes, alike in rollouts(draws, name in WITH_COMMON_STARTS):
        greedy = greedy_path(alike, ACTION_PROBABILITIES) if name in WITH_COMMON_STARTS else None
        baseline.load_state_dict(copy.deepcopy(state))
        fill(model, episodes, greedy)
        model.train()
        # The policy stays: its optimizer only records
        expected += probability * recorded_gradient(model)
        slow += probability * reference(name, episodes, return_type, reduction, state, greedy)
        exact += probability * reference(None, episodes, return_type, "episode", {}, None)
    np.testing.assert_allclose(expected, slow, atol=1e-6)
    if reduction == "episode":
        np.testing.assert_allclose(expected, exact, atol=1e-6)
    else:
        assert np.abs(expected - exact).max() > 1e-3


def gridworld_model(baseline, **kwargs):
    policy_kwargs = {"net_arch": {"pi": [], "vf": [4]}, "optimizer_class": GradientRecorder}
    exact = {"max_grad_norm": float("inf"), "device": "cpu", "seed": 0}
    arguments = {**arguments_of(baseline if isinstance(baseline, str) else None), **exact, **kwargs}
    env = gym.make("sb3_reinforce/AliasedGridworld-v0")
    model = REINFORCE("MlpPolicy", env, baseline=baseline, use_masking=True, policy_kwargs=policy_kwargs, **arguments)
    model.set_logger(Logger(None, []))
    with th.no_grad():
        th.manual_seed(1)
        for parameter in model.policy.action_net.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("baseline", [*LITERATURE, Expected()], ids=str)
def test_expected_gradient_with_masks_on_the_gridworld(baseline, micro_batch_size):
    """Nobody walks into walls."""
    if micro_batch_size is not None and baseline not in ("optimal",) and isinstance(baseline, str):
        pytest.skip("micro-batches are evaluated for the distribution and for scores")
    model, states = gridworld_model(baseline, micro_batch_size=micro_batch_size), aliased_gridworld.OBSERVATIONS
    with th.no_grad():
        logits = model.policy.get_distribution(th.as_tensor(states)).distribution.logits.double().numpy()
    unnormalized = np.where(states == 0, np.exp(logits), 0.0)
    probabilities = unnormalized / unnormalized.sum(axis=1, keepdims=True)
    draws = [(0.25, aliased_gridworld.enumerate_paths(probabilities, 2, (cell,))) for cell in aliased_gridworld.START_CELLS]
    exact = np.zeros((4, 5))
    for probability, paths in draws:
        for path in paths:
            for t, (row, action) in enumerate(zip(rows_of(path, states), path.actions, strict=True)):
                score = np.outer(np.eye(4)[action] - probabilities[row], [*states[row], 1.0])
                exact += probability * path.probability * GAMMA**t * slow_returns(path, "reward_to_go")[t] * score
    assert np.abs(exact).max() > 0.01

    def gradient(episodes, greedy):
        model.estimator.baseline.load_state_dict(copy.deepcopy(state))
        fill(model, episodes, greedy, lambda observation: observation == 0)
        model.train()
        return recorded_gradient(model)

    state = {}
    if model.estimator.baseline.is_fitted:
        gradient([path for _, paths in draws for path in paths], None)
        state = copy.deepcopy(model.estimator.baseline.state_dict())
    common_start, expected = baseline in WITH_COMMON_STARTS, np.zeros(20)
    for probability, episodes, alike in rollouts(draws, common_start):
        greedy = greedy_path(alike, probabilities, states) if common_start else None
        expected += probability * gradient(episodes, greedy)
    np.testing.assert_allclose(expected.reshape(4, 5), exact, atol=1e-6)


@pytest.mark.parametrize("baseline", [*LITERATURE, Expected()], ids=str)
def test_expected_gradient_of_a_recurrent_policy_with_masks(baseline):
    policy_kwargs = {**SMALL, "optimizer_class": GradientRecorder}
    arguments = {**arguments_of(baseline if isinstance(baseline, str) else None), "max_grad_norm": float("inf")}
    env = make_vec_env(CueEnv, 1, seed=0)
    settings = {"use_masking": True, "seed": 0, "device": "cpu", "policy_kwargs": policy_kwargs, "micro_batch_size": 4}
    model = REINFORCE("MlpLstmPolicy", env, baseline=baseline, **settings, **arguments)
    model.set_logger(Logger(None, []))
    exact_policy = copy.deepcopy(model.policy).double()

    def probabilities(seen, mask):
        masks = [*CueEnv.MASKS[: len(seen) - 1], mask]
        return log_probs_of(exact_policy, seen, masks)[-1].exp().detach().numpy()

    paths = enumerate_cue_paths(probabilities)
    objective = th.zeros((), dtype=th.float64)
    for path in paths:
        steps = zip(log_probs_of(exact_policy, path.observations, path.masks), path.actions, strict=True)
        log_prob = sum(log_probs[action] for log_probs, action in steps)
        objective = objective + path.probability * th.exp(log_prob - log_prob.detach()) * slow_returns(path, "reward_to_go")[0]

    def is_greedy(path):
        every = range(1, len(path.actions) + 1)
        return all(probabilities(path.observations[:n], path.masks[n - 1]).argmax() == path.actions[n - 1] for n in every)

    by_cue = [[path for path in paths if path.observations[0][cue] == 1] for cue in (0, 1)]
    chances = [sum(path.probability for path in own) for own in by_cue]
    draws = [
        (chance, [path._replace(probability=path.probability / chance) for path in own])
        for chance, own in zip(chances, by_cue, strict=True)
    ]
    state, expected = {}, {}
    if model.estimator.baseline.is_fitted:
        gradients_of_paths(model, paths)
        state = copy.deepcopy(model.estimator.baseline.state_dict())
    for probability, episodes, alike in rollouts(draws, baseline in WITH_COMMON_STARTS):
        model.estimator.baseline.load_state_dict(copy.deepcopy(state))
        greedy = next(path for path in alike if is_greedy(path)) if baseline in WITH_COMMON_STARTS else None
        for name, gradient in gradients_of_paths(model, episodes, greedy).items():
            expected[name] = expected.get(name, 0.0) + probability * gradient
    parameters = dict(exact_policy.named_parameters())
    exact = dict(zip(expected, th.autograd.grad(objective, [parameters[name] for name in expected]), strict=True))
    for name, gradient in exact.items():
        np.testing.assert_allclose(expected[name], gradient, rtol=0, atol=1e-6, err_msg=name)
