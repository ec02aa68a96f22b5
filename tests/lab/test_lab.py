"""The gradient laboratory: exact by enumeration, equal to the class's own gradient, honest intervals, a model left alone."""

import copy
import dataclasses
import functools
import itertools
import random

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import ACTION_PROBABILITIES, FixedLengthEnv, linear_model, policy_gradient, set_action_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import TRPO
from scipy import stats
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_action_masks import CueEnv, DictEnv
from test_exactness import COMBINATIONS, TEMPERATURE

import sb3_reinforce.lab.gradients
import sb3_reinforce.lab.measurement as measurement_module
from sb3_reinforce import REINFORCE
from sb3_reinforce.envs import diamond_hill
from sb3_reinforce.functional.baselines import ValueBaseline, name_of
from sb3_reinforce.functional.estimator import Estimator
from sb3_reinforce.functional.returns import rewards_to_go, steps_of
from sb3_reinforce.lab import NoiseScaleCallback, measure, refit, statistics
from sb3_reinforce.lab.cloning import unit_weights
from sb3_reinforce.lab.collect import MAX_EPISODE_STEPS, Episodes, collect
from sb3_reinforce.lab.estimators import OWN, choose_estimators, make_estimators
from sb3_reinforce.lab.findings import describe, notes
from sb3_reinforce.lab.gradients import ScoreGradients, compression, take_episodes
from sb3_reinforce.lab.measurement import (
    divergence_of_step,
    estimator_gradients,
    expected_starts,
    measure_episodes,
    prepare,
)
from sb3_reinforce.lab.report import model_section, needed_table, write_report
from sb3_reinforce.rollout.batch import EpisodeBatch, locate_step
from sb3_reinforce.update import make_evaluator
from sb3_reinforce.update.evaluator import PolicyEvaluator

DIAMOND_HILL = "sb3_reinforce/DiamondHill-v0"
GAMMA = 0.9
#: Estimators that are functions of the episodes and the model alone.
FIXED = ["whole", "whole-mean", "whole-loo", "whole-critic", "to-go", "to-go-mean", "to-go-loo", "to-go-time-step"]
FIXED += ["to-go-normalized", "gae-0.95", "gae-0.99", "to-go-critic", "weighted", "weighted-loo", "weighted-critic"]


class DoubleExtractor(FlattenExtractor):
    """Makes a policy compute in double precision, behind SB3's preprocessing in single precision."""

    def forward(self, observations):
        return super().forward(observations).double()


def double_model(env=DIAMOND_HILL):
    """A linear softmax policy in double precision, with a critic that says something."""
    policy_kwargs = {"net_arch": {"pi": [], "vf": [4]}, "features_extractor_class": DoubleExtractor}
    model = REINFORCE("MlpPolicy", env, policy_kwargs=policy_kwargs, gamma=GAMMA, seed=0, device="cpu")
    model.policy.double()
    return model


def as_batch(paths):
    observations = np.concatenate([path.observations for path in paths])
    return EpisodeBatch(
        observations=th.as_tensor(observations),
        actions=th.as_tensor(np.concatenate([path.actions for path in paths]))[:, None],
        rewards=np.concatenate([path.rewards for path in paths]).astype(np.float64),
        episode_lengths=np.array([len(path.actions) for path in paths]),
        cut_steps=np.zeros(0, dtype=np.int64),
        final_observations=None,
        episode_starts=np.array([(0, sum(len(path.actions) for path in paths[:i])) for i in range(len(paths))]),
    )


def hill_model(**kwargs):
    """A linear softmax policy that acts as in the lecture."""
    policy_kwargs = {"net_arch": {"pi": [], "vf": [4]}}
    model = REINFORCE("MlpPolicy", DIAMOND_HILL, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)
    set_action_probabilities(model, ACTION_PROBABILITIES)
    return model


def slow_gradient(estimator, model, episodes):
    """The definition, step by step: weight and bias of a linear softmax policy, ascent direction."""
    gamma, credited, returns, name = estimator.gamma, [], [], name_of(estimator.baseline)
    values = [
        model.policy.predict_values(th.as_tensor(path.observations)).detach().numpy().flatten().tolist() for path in episodes
    ]
    for path in episodes:
        rewards = path.rewards.astype(float).tolist()
        n = len(rewards)
        to_go = [sum(gamma ** (k - t) * rewards[k] for k in range(t, n)) for t in range(n)]
        returns.append(to_go)
        credited.append(to_go if estimator.return_type == "reward_to_go" else [to_go[0]] * n)
    advantages = []
    for i, own in enumerate(credited):
        others = [other for j, other in enumerate(credited) if j != i]
        row = []
        for t, value in enumerate(own):
            baseline = 0.0
            if name == "'value'":
                baseline = values[i][t]
            elif name == "'mean'":
                baseline = np.mean([np.mean(episode) for episode in credited])
            elif name != "None" and others:
                at_time = [episode[t] for episode in others if len(episode) > t]
                baseline = np.mean([np.mean(episode) for episode in others])
                if name == "'time_step'" and at_time:
                    baseline = np.mean(at_time)
            row.append(value - baseline)
            if estimator.gae_lambda < 1.0:
                rewards, nexts = episodes[i].rewards.astype(float), [*values[i][1:], 0.0]
                decay = gamma * estimator.gae_lambda
                row[-1] = sum(decay ** (k - t) * (rewards[k] + gamma * nexts[k] - values[i][k]) for k in range(t, len(own)))
        advantages.append(row)
    if estimator.normalize_advantage:
        flat = np.concatenate(advantages)
        deviation = flat.std(ddof=1) if len(flat) > 1 else 0.0
        advantages = [[(a - flat.mean()) / (deviation + 1e-8) if deviation > 0 else 0.0 for a in row] for row in advantages]

    weight, bias = np.zeros(tuple(model.policy.action_net.weight.shape)), np.zeros(len(model.policy.action_net.bias))
    matrix, offset = (p.detach().numpy() for p in (model.policy.action_net.weight, model.policy.action_net.bias))
    for path, row in zip(episodes, advantages, strict=True):
        for t, (observation, action) in enumerate(zip(path.observations, path.actions, strict=True)):
            logits = matrix @ observation.astype(float) + offset
            probabilities = np.exp(logits - logits.max())
            score = -probabilities / probabilities.sum()
            score[action] += 1.0
            factor = gamma**t if estimator.discounted_weighting and estimator.return_type == "reward_to_go" else 1.0
            weight += factor * row[t] * np.outer(score, observation)
            bias += factor * row[t] * score
    n_averaged = len(episodes) if estimator.loss_reduction == "episode" else sum(map(len, advantages))
    return np.concatenate([weight.flatten(), bias]) / n_averaged


def world(name):
    """A model, all paths of its environment, and their probabilities."""
    if name == "DiamondHill":
        model = double_model()
        set_action_probabilities(model, ACTION_PROBABILITIES)
        return model, diamond_hill.enumerate_paths(ACTION_PROBABILITIES)
    gridworld = pytest.importorskip("sb3_reinforce.envs.aliased_gridworld")
    model = double_model("sb3_reinforce/AliasedGridworld-v0")
    with th.no_grad():
        model.policy.action_net.weight.normal_(generator=th.Generator().manual_seed(1))
        probabilities = model.policy.get_distribution(th.as_tensor(gridworld.OBSERVATIONS)).distribution.probs.numpy()
    return model, gridworld.enumerate_paths(probabilities, limit=3)


# Exact values


@pytest.mark.parametrize(
    ("name", "size"), [("DiamondHill", 1), ("DiamondHill", 2), ("DiamondHill", 3), ("AliasedGridworld", 1)]
)
def test_everything_equals_enumeration(name, size):
    model, paths = world(name)
    batch = as_batch(paths)
    # The larger batches are for those that see them, and what these are compared with
    chosen = [key for key in FIXED if size < 3 or key in ("to-go", "whole") or make_estimators(model, GAMMA)[key].sees_batch]
    known = {key: one for key, one in make_estimators(model, GAMMA).items() if key in chosen}
    episodes = Episodes(model, PolicyEvaluator(model.policy, 7), batch, batch.rewards)
    prepared = prepare(episodes, list(known.values()), [], 0)
    groups = np.array(list(itertools.product(range(len(paths)), repeat=size)))
    probabilities = np.array([path.probability for path in paths])[groups].prod(axis=1)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)

    scores = ScoreGradients(episodes.evaluator)
    *gradients, _ = np.stack([estimator_gradients(scores, batch, group, prepared) for group in groups], axis=1)
    references = {
        key: np.stack([slow_gradient(one.settings, model, [paths[index] for index in group]) for group in groups])
        for key, one in known.items()
    }
    for own, (key, estimator) in zip(gradients, known.items(), strict=True):
        exact = references[key]
        np.testing.assert_allclose(own, exact, atol=1e-9, err_msg=key)
        mean = probabilities @ exact
        covariance = (exact - mean).T @ (probabilities[:, None] * (exact - mean))
        signal, noise = statistics.signal_and_noise(statistics.inner_products(own), probabilities)
        assert signal == pytest.approx(mean @ mean, abs=1e-9), key
        assert noise == pytest.approx(np.trace(covariance), abs=1e-9), key
        if np.linalg.norm(mean) < 1e-12:
            # The batch mean of a single episode is its own return, and nothing is left
            assert (key, size) in (("whole-mean", 1), ("to-go-normalized", 1))
            continue
        exact_scale = size * np.trace(covariance) / (mean @ mean)
        assert statistics.noise_scale(signal, noise, size) == pytest.approx(exact_scale, rel=1e-9), key

        unbiased = "to-go" if estimator.target == "undiscounted" else "whole"
        difference = own - gradients[list(known).index(unbiased)]
        target = probabilities @ references[unbiased]
        bias = statistics.mean_over_pairs(statistics.inner_products(difference), probabilities)
        assert bias == pytest.approx(np.sum((mean - target) ** 2), abs=1e-9), key
        if estimator.is_unbiased:
            assert bias == pytest.approx(0.0, abs=1e-9), key


def switches_of(combination):
    switches = combination._asdict()
    del switches["n_episodes"]
    return switches


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize(
    "combination", [one for one in COMBINATIONS if one.n_episodes == 2], ids=lambda one: "-".join(map(str, one))
)
def test_gradient_of_a_batch_is_that_of_the_class(combination, normalize_advantage):
    # The entropy bonus is part of it, in the rewards or in the loss
    switches = {**switches_of(combination), "normalize_advantage": normalize_advantage, "ent_coef": TEMPERATURE}
    model = linear_model(gamma=GAMMA, n_steps=100, **switches)
    paths = diamond_hill.enumerate_paths(ACTION_PROBABILITIES)
    check_against_train(model, paths)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8])
def test_gradient_of_a_batch_is_that_of_the_class_with_gae(gae_lambda):
    model = linear_model(gamma=GAMMA, gae_lambda=gae_lambda)
    check_against_train(model, diamond_hill.enumerate_paths(ACTION_PROBABILITIES))


def check_against_train(model, paths):
    expected = policy_gradient(model, paths)
    batch = as_batch(paths)
    reader = PolicyEvaluator(model.policy, 4)
    own = prepare(Episodes(model, reader, batch, batch.rewards), [make_estimators(model, model.gamma)[OWN]], [], 0)[0]
    step_weights = own.targets(np.arange(len(batch.episode_lengths)))
    rows = np.stack([step_weights.score_weights / step_weights.n_averaged] * 2), [own.ent_coef / step_weights.n_averaged] * 2
    weight_and_bias = ScoreGradients(reader)(batch, *rows)
    for row in weight_and_bias:
        matrix = np.concatenate([row[:4].reshape(2, 2), row[4:][:, None]], axis=1)
        np.testing.assert_allclose(matrix.flatten(), expected, rtol=1e-6, atol=1e-6)


def test_own_rewards_go_on_after_a_time_limit():
    env = make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [3, 5], "truncate": True})
    model = REINFORCE("MlpPolicy", env, seed=0, n_steps=8, gamma=GAMMA)
    model.learn(16)
    episodes = collect(model, make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [3, 5], "truncate": True}), 20)
    own, bare = prepare(episodes, [make_estimators(model, GAMMA)[key] for key in (OWN, "to-go-critic")], [], 0)
    ends = np.cumsum(episodes.batch.episode_lengths) - 1
    finals = episodes.evaluator.final_values(episodes.batch)
    np.testing.assert_allclose(own.episodes.rewards[ends] - bare.episodes.rewards[ends], GAMMA * finals, rtol=1e-6)
    assert np.array_equal(np.delete(own.episodes.rewards, ends), np.delete(bare.episodes.rewards, ends))


# The gradients


class Unbatchable(th.autograd.Function):
    """The identity, of which PyTorch does not know how to batch the gradient."""

    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float(gradient.new_ones(()).item()) if gradient.sum().item() is not None else gradient


class UnbatchableExtractor(DoubleExtractor):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = th.nn.Parameter(th.ones(()))

    def forward(self, observations):
        return Unbatchable.apply(super().forward(observations) * self.scale)


def test_policies_that_cannot_be_batched_are_looped_over():
    policy_kwargs = {"features_extractor_class": UnbatchableExtractor}
    model = REINFORCE("MlpPolicy", DIAMOND_HILL, policy_kwargs=policy_kwargs, seed=0)
    model.policy.double()
    batch = as_batch(diamond_hill.enumerate_paths(ACTION_PROBABILITIES))
    weights = np.random.default_rng(0).normal(size=(3, len(batch.rewards)))
    scores = ScoreGradients(PolicyEvaluator(model.policy))
    rows = scores(batch, weights)
    assert not scores.is_batched
    singles = np.concatenate([scores(batch, weights[[row]]) for row in range(3)])
    np.testing.assert_allclose(rows, singles, atol=1e-12)


@pytest.mark.parametrize(
    "policy", ["MlpPolicy", "sde", "cnn", "dict", "masks", "masks in the observation", "memory", "memory and masks"]
)
def test_batched_rows_are_those_of_single_passes(policy):
    model, env = a_model(policy)
    episodes = collect(model, env, 20)
    batch = take_episodes(episodes.batch, range(3))
    weights = np.random.default_rng(0).normal(size=(3, len(batch.rewards)))
    scores = ScoreGradients(episodes.evaluator)
    rows = scores(batch, weights, [0.0, 0.5, 0.0])
    assert scores.is_batched != policy.startswith("memory")
    if "masks" in policy:
        allowed = batch.action_masks[np.arange(len(batch.actions)), batch.actions.flatten().long()]
        assert allowed.all() and not batch.action_masks.all()
    episodes.model.policy.optimizer.zero_grad()
    log_prob, entropy = make_evaluator(episodes.model.policy).log_prob_and_entropy(batch, slice(0, len(batch.rewards)))
    (log_prob @ th.as_tensor(weights[1], dtype=th.float32) + 0.5 * entropy.sum()).backward()
    expected = np.concatenate([parameter.grad.numpy().flatten() for parameter in scores.parameters(batch)])
    np.testing.assert_allclose(rows[1], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def a_model(policy):
    if policy.startswith("memory"):
        env, use_masking = (CueEnv, True) if "masks" in policy else (DIAMOND_HILL, False)
        kwargs = {"use_masking": use_masking, "policy_kwargs": {"lstm_hidden_size": 8}}
        return REINFORCE("MlpLstmPolicy", make_vec_env(env, 1), seed=0, n_episodes=4, **kwargs), make_vec_env(env, 2)
    if policy == "masks":
        model = REINFORCE("MlpPolicy", CueEnv(), seed=0, n_episodes=4, use_masking=True)
        return model, make_vec_env(CueEnv, 2)
    if policy == "masks in the observation":
        model = REINFORCE("MultiInputPolicy", DictEnv(), seed=0, n_episodes=4, use_masking=True)
        return model, make_vec_env(DictEnv, 2)
    if policy == "MlpPolicy":
        return REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=4), make_vec_env("CartPole-v1", 2)
    if policy == "sde":
        model = REINFORCE("MlpPolicy", "Pendulum-v1", seed=0, n_episodes=2, use_sde=True)
        return model, make_vec_env("Pendulum-v1", 2)
    from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv

    if policy == "cnn":
        kwargs = {"screen_height": 36, "screen_width": 36, "n_channels": 1, "discrete": True}
        env = make_vec_env(FakeImageEnv, 2, env_kwargs=kwargs)
        return REINFORCE("CnnPolicy", FakeImageEnv(**kwargs), seed=0, n_episodes=2), env
    env = make_vec_env(SimpleMultiObsEnv, 2, env_kwargs={"random_start": True})
    return REINFORCE("MultiInputPolicy", SimpleMultiObsEnv(), seed=0, n_episodes=2), env


def test_policies_with_memory_are_measured(tmp_path):
    model, env = a_model("memory")
    before = [parameter.clone() for parameter in model.policy.parameters()]
    measurement = measure(model, env, n_episodes=40, batch_size=4)
    assert {"to-go", "to-go-critic", "to-go-refit"} & set(measurement.results)
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    model.learn(40, callback=NoiseScaleCallback(every=1))


def test_taken_episodes_keep_their_cuts():
    env = make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [3, 1, 2], "truncate": True})
    model = REINFORCE("MlpPolicy", FixedLengthEnv([2]), seed=0)
    batch = collect(model, env, 20).batch
    chosen = [7, 0, 3]
    taken = take_episodes(batch, chosen)
    starts = np.cumsum(batch.episode_lengths) - batch.episode_lengths
    for index, (own, end) in enumerate(zip(chosen, np.cumsum(taken.episode_lengths), strict=True)):
        length = batch.episode_lengths[own]
        first = end - length
        assert taken.episode_lengths[index] == length
        assert th.equal(taken.observations[first:end], batch.observations[starts[own] : starts[own] + length])
        assert locate_step(taken, first) == locate_step(batch, starts[own])
    assert sorted(taken.cut_steps) == sorted(np.cumsum(taken.episode_lengths) - 1)
    for step, final in zip(taken.cut_steps, taken.final_observations, strict=True):
        # Observations are [time, episode], and the final one belongs to the same episode
        assert th.equal(final, taken.observations[step] + th.tensor([1.0, 0.0]))


def test_long_gradients_are_compressed_to_right_inner_products(monkeypatch):
    monkeypatch.setattr(sb3_reinforce.lab.gradients, "MAX_COORDINATES", 512)
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(3, 5000)).astype(np.float32)
    exact = statistics.inner_products(gradients)
    estimates = np.stack(
        [statistics.inner_products(compression(5000, np.random.default_rng(seed))(gradients)) for seed in range(300)]
    )
    standard_error = estimates.std(axis=0) / np.sqrt(len(estimates))
    assert (np.abs(estimates.mean(axis=0) - exact) < 4 * standard_error).all()
    assert estimates[:, 0, 0].std() / exact[0, 0] == pytest.approx(np.sqrt(2 / 512), rel=0.2)
    short = gradients[:, :512]
    assert compression(512, rng)(short) is short


# The statistics


@given(st.integers(4, 7), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_pairs_by_slow_loops(n, seed):
    gradients = np.random.default_rng(seed).normal(size=(n, 3)) + 1.0
    products = statistics.inner_products(gradients)
    pairs = [gradients[i] @ gradients[j] for i in range(n) for j in range(n) if i != j]
    signal, noise = statistics.signal_and_noise(products)
    assert signal == pytest.approx(np.mean(pairs))
    assert signal + noise == pytest.approx(np.mean(np.sum(gradients**2, axis=1)))
    # The unbiased covariance, estimated in the usual way
    assert noise == pytest.approx(np.trace(np.cov(gradients.T)))
    cosines = [products[i, j] / np.sqrt(products[i, i] * products[j, j]) for i in range(n) for j in range(n) if i != j]
    assert statistics.mean_cosine(products) == pytest.approx(np.mean(cosines))


@given(st.integers(5, 8), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_intervals_by_slow_loops(n, seed):
    """The jackknife with the correction of Efron & Stein (1981), every statistic computed anew without one and without two."""
    rng = np.random.default_rng(seed)
    gradients, others = rng.normal(size=(n, 6)) + 1.0, rng.normal(size=(n, 6)) + 2.0

    def ratio(left_out):
        signal, noise = statistics.signal_and_noise(statistics.inner_products(np.delete(gradients, left_out, axis=0)))
        return signal / noise

    def bias(left_out):
        first, second = (np.delete(part, left_out, axis=0) for part in (gradients - others, others))
        return np.divide(*(statistics.mean_over_pairs(statistics.inner_products(part)) for part in (first, second)))

    def cosine(left_out):
        first, second = (np.delete(part, left_out, axis=0) for part in (gradients, others))
        pairs = ((first, second), (first, None), (second, None))
        dot, one, other = (statistics.mean_over_pairs(statistics.inner_products(*pair)) for pair in pairs)
        return dot / np.sqrt(one * other) if min(one, other) > 0.0 else np.nan

    own, its, difference = (statistics.inner_products(part) for part in (gradients, others, gradients - others))
    cross = statistics.inner_products(gradients, others)
    informative = [np.diag(part).sum() ** 2 / (np.diag(part) ** 2).sum() for part in (own, its, difference)]
    for slow, result, number in (
        (ratio, statistics.signal_to_noise(own), informative[0]),
        (bias, statistics.relative(difference, its), min(informative[1:])),
        (cosine, statistics.cosine(cross, own, its), min(informative[:2])),
    ):
        value, one = slow([]), np.array([slow([i]) for i in range(n)])
        two = [
            n * value - (n - 1) * (one[i] + one[j]) + (n - 2) * slow([i, j]) for i, j in itertools.combinations(range(n), 2)
        ]
        assert result.value == pytest.approx(value)
        if not result.is_bounded:
            assert number < n / 4 or slow is not ratio
            continue
        quadratic = np.sum((two - np.mean(two)) ** 2) / (n * (n - 1))
        variance = np.sum((one - one.mean()) ** 2) * (n - 1) / n - quadratic
        half_width = statistics.student_quantile(number - 1) * np.sqrt(max(variance, quadratic))
        assert (result.low, result.high) == pytest.approx((value - half_width, value + half_width))


@pytest.mark.parametrize("degrees", [3, 4.5, 10, 100, 1e6])
def test_quantiles_of_student(degrees):
    assert statistics.student_quantile(degrees) == pytest.approx(stats.t.ppf(0.95, degrees), rel=0.01)


def naive_bootstrap(products, counts):
    """What a bootstrap does that knows nothing of pairs: an episode that is drawn twice is its own neighbour."""
    n = len(products)
    signals = (((counts @ products) * counts).sum(axis=1) - counts @ np.diag(products)) / (n * (n - 1))
    return signals, counts @ np.diag(products) / n - signals


@pytest.mark.parametrize(("ratio", "naive_fails"), [(1 / 2000, True), (1 / 200, True), (1.0, False)])
def test_intervals_cover(ratio, naive_fails):
    rng = np.random.default_rng(0)
    n, n_parameters, n_repetitions = 100, 60, 200
    spectrum = np.arange(1, n_parameters + 1) ** -0.5
    spectrum *= 1 / spectrum.sum()
    direction = np.sqrt(spectrum) * rng.normal(size=n_parameters)
    mean = direction * np.sqrt(ratio) / np.linalg.norm(direction)
    covered = {"distinct": 0, "naive": 0}
    for _ in range(n_repetitions):
        products = statistics.inner_products(mean + np.sqrt(spectrum) * rng.normal(size=(n, n_parameters)))
        signals, noises = naive_bootstrap(products, rng.multinomial(n, np.full(n, 1 / n), size=300).astype(float))
        naive = statistics.Interval(0.0, *np.quantile(signals / noises, [0.05, 0.95]))
        for name, own in (("distinct", statistics.signal_to_noise(products)), ("naive", naive)):
            episodes = statistics.invert(own)
            covered[name] += episodes.low <= 1 / ratio <= episodes.high
    assert 0.85 <= covered["distinct"] / n_repetitions <= 0.97
    if naive_fails:
        assert covered["naive"] / n_repetitions < 0.6


def test_a_signal_that_is_not_there_is_not_clipped():
    products = statistics.inner_products(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    signal, noise = statistics.signal_and_noise(products)
    assert signal == pytest.approx(-1 / 3)
    assert noise == pytest.approx(4 / 3)
    assert statistics.noise_scale(signal, noise) == np.inf
    ratio = statistics.Interval(-0.1, -0.2, 0.05)
    assert statistics.invert(ratio) == (np.inf, 20.0, np.inf)


@pytest.mark.parametrize("n", [2, 3])
def test_too_few_batches_have_no_interval(n):
    products = statistics.inner_products(np.eye(n) + 1.0)
    ratio = statistics.signal_to_noise(products)
    assert ratio == (pytest.approx(np.divide(*statistics.signal_and_noise(products))), -np.inf, np.inf)
    assert statistics.invert(ratio) == (1 / ratio.value, -np.inf, np.inf)
    assert statistics.relative(products, products) == (1.0, -np.inf, np.inf)


@pytest.mark.parametrize("n_parameters", [1, 5, 60])
@pytest.mark.parametrize("n", [4, 5, 6, 8])
def test_few_batches_do_not_resolve_what_is_not_there(n, n_parameters):
    rng = np.random.default_rng(n)
    gradients = rng.normal(size=(500, n, n_parameters))
    ratios = [statistics.signal_to_noise(statistics.inner_products(own)) for own in gradients]
    assert np.mean([ratio.low > 0.0 for ratio in ratios]) <= 0.05
    assert np.mean([ratio.low <= 0.0 <= ratio.high for ratio in ratios]) >= 0.9


@pytest.mark.parametrize(
    ("n_episodes", "probability"), [(100, 0.01), (100, 0.02), (100, 0.1), (100, 0.2), (300, 0.05), (500, 0.02)]
)
def test_rare_rewards_by_enumeration(n_episodes, probability):
    """A bandit whose one action, taken rarely, pays: what is said depends on how often it was taken alone."""
    exact, covered = probability / (1 - probability), 0.0
    for n_paid, weight in enumerate(stats.binom.pmf(np.arange(n_episodes + 1), n_episodes, probability)):
        if weight > 1e-4:
            paid = np.arange(n_episodes) < n_paid
            ratio = statistics.signal_to_noise(np.outer(paid, paid).astype(float))
            assert ratio.is_bounded == (n_paid >= statistics.MIN_INFORMATIVE)
            covered += weight * (ratio.low <= exact <= ratio.high)
    assert covered >= 0.87


def rare(rng, shape, probability, n_parameters=8):
    """Scores times a reward that is rare, and likelier in one direction."""
    scores = rng.normal(size=(*shape, n_parameters))
    bar = np.sqrt(2) * stats.norm.ppf(1 - probability)
    return scores * (scores[..., :1] + rng.normal(size=(*shape, 1)) > bar)


def uneven(rng, shape, sigma, n_parameters=8):
    """Directions around a mean, of lengths that are log-normal."""
    directions = rng.normal(size=(*shape, n_parameters))
    directions[..., 0] += 1.0
    return directions * rng.lognormal(0.0, sigma, size=(*shape, 1))


@pytest.mark.parametrize(
    ("draw", "parameter", "n_episodes"),
    [(rare, 0.02, 100), (rare, 0.02, 250), (rare, 0.1, 100), (rare, 0.3, 100), (uneven, 0.3, 50), (uneven, 0.6, 100)],
)
def test_intervals_of_heavy_tails_cover(draw, parameter, n_episodes):
    rng = np.random.default_rng(1)
    many = draw(rng, (300_000,), parameter)
    norm = np.sum(many.mean(axis=0) ** 2)
    exact = norm / (np.mean(np.sum(many**2, axis=1)) - norm)
    ratios = [statistics.signal_to_noise(statistics.inner_products(draw(rng, (n_episodes,), parameter))) for _ in range(150)]
    assert np.mean([ratio.low <= exact <= ratio.high for ratio in ratios]) >= 0.84
    assert np.mean([ratio.low > exact for ratio in ratios]) <= 0.1


# The measurement


@pytest.fixture(autouse=True)
def short_refit(monkeypatch):
    """A fifth of the fit is enough for what is tested."""
    monkeypatch.setattr(refit, "N_GRADIENT_STEPS", 120)


@pytest.fixture(scope="module")
def cartpole():
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=8, critic_epochs=2, device="cpu")
    return model.learn(1000)


def state_of(model):
    policy = model.policy
    return copy.deepcopy(
        (
            [parameter.detach().numpy() for parameter in policy.parameters()],
            [None if parameter.grad is None else parameter.grad.numpy() for parameter in policy.parameters()],
            [
                {name: th.as_tensor(value).numpy() for name, value in policy.optimizer.state[parameter].items()}
                for parameter in policy.parameters()
            ],
            policy.optimizer.param_groups[0]["lr"],
            policy.training,
            model.num_timesteps,
            model._n_updates,
            model._last_obs,
            model._last_episode_starts,
            list(model.ep_info_buffer),
            model.get_env().get_attr("np_random")[0].bit_generator.state,
            th.get_rng_state().numpy(),
            np.random.get_state(),
            random.getstate(),
        )
    )


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [(REINFORCE, {}), (REINFORCE, {"natural_gradient": True, "fisher_max_steps": 30}), (A2C, {}), (PPO, {"batch_size": 64})],
)
def test_the_model_is_left_as_it_is(algorithm, kwargs):
    def trained():
        own_env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
        return algorithm("MlpPolicy", own_env, seed=0, device="cpu", n_steps=64, **kwargs).learn(256), own_env

    unmeasured = trained()[0].learn(128, reset_num_timesteps=False)
    model, own_env = trained()
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    env.obs_rms = copy.deepcopy(own_env.obs_rms)
    before, statistics_before = state_of(model), copy.deepcopy((own_env.obs_rms.mean, env.obs_rms.mean, env.ret_rms.var))
    measurement = measure(model, env, 40, batch_size=8, estimators=["all"])
    np.testing.assert_equal(state_of(model), before)
    np.testing.assert_equal((own_env.obs_rms.mean, env.obs_rms.mean, env.ret_rms.var), statistics_before)
    assert env.training
    assert measurement.model_class == algorithm.__name__
    assert len(measurement.returns) == 40
    assert all(np.isfinite(result.kl) and result.kl > 0.0 for result in measurement.results.values())
    # It learns as if nothing had been
    model.learn(128, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.actions, unmeasured.rollout_buffer.actions)


def test_the_same_seed_measures_the_same(cartpole):
    first, second = (
        measure(cartpole, make_vec_env("CartPole-v1", 2), 24, estimators=["to-go-time-step", "to-go-refit"], seed=3)
        for _ in range(2)
    )
    for key, result in first.results.items():
        np.testing.assert_equal(result._replace(estimator=None), second.results[key]._replace(estimator=None))


def test_steps_that_are_tried_out_are_taken_back(cartpole):
    episodes = collect(cartpole, make_vec_env("CartPole-v1", 2), 24)
    before = state_of(episodes.model)[:4]
    estimators = choose_estimators(make_estimators(cartpole, 0.99), ["to-go", OWN], cartpole)
    assert measure_episodes(episodes, estimators, batch_size=8).results[OWN].kl > 0.0
    after = state_of(episodes.model)[:4]
    np.testing.assert_equal([after[0], *after[2:]], [before[0], *before[2:]])


def test_a_critic_never_sees_what_it_is_compared_with(cartpole):
    episodes = collect(cartpole, make_vec_env("CartPole-v1", 2), 20)
    lengths = episodes.batch.episode_lengths
    targets = np.random.default_rng(0).normal(size=lengths.sum())
    folds = [np.arange(0, 20, 2), np.arange(1, 20, 2)]
    values = refit.crossfitted_values(episodes.evaluator, episodes.batch, targets, folds, seed=0)
    own = steps_of(lengths, folds[0])
    targets[own] += 100.0
    changed = refit.crossfitted_values(episodes.evaluator, episodes.batch, targets, folds, seed=0)
    assert np.array_equal(changed[own], values[own])
    assert (np.delete(changed, own) > np.delete(values, own) + 50.0).all()
    # A sanity check of the fit: the time alone explains returns of a constant reward
    returns = rewards_to_go(np.ones(lengths.sum()), lengths, 0.9)
    errors = refit.crossfitted_values(episodes.evaluator, episodes.batch, returns, folds, seed=0) - returns
    assert np.var(errors) < 0.5 * np.var(returns)


def test_updates_are_compared_with_other_episodes():
    """Centred noise: what episodes have too much the others have too little, but an update in its own direction never has."""
    model = hill_model(gamma=1.0, n_episodes=2)
    episodes = collect(model, make_vec_env(DIAMOND_HILL, 4), 60)
    estimator = make_estimators(model, 1.0)["to-go"]
    laboratory = measurement_module._Laboratory(episodes, [estimator], 10, np.random.default_rng(0))
    noise = np.random.default_rng(0).normal(size=laboratory.gradients["to-go"].shape).astype(np.float32)
    for own in laboratory.gradients.values():
        own[:] = noise - noise.mean(axis=0)
    for _ in range(40):
        laboratory.deal(10)
    assert np.mean(laboratory.backwards["to-go"]) > 0.5


def test_scaled_rewards_change_no_ratio(cartpole):
    episodes = collect(cartpole, make_vec_env("CartPole-v1", 2), 60)
    names = ["whole", "whole-loo", "to-go", "to-go-mean", "to-go-loo", "to-go-time-step", "to-go-normalized"]
    names += ["to-go-constant", "to-go-refit"]
    estimators = choose_estimators(make_estimators(cartpole, 0.99), names, cartpole)
    scaled = episodes._replace(batch=episodes.batch._replace(rewards=1024.0 * episodes.batch.rewards))
    first, second = (measure_episodes(one, estimators, batch_size=8) for one in (episodes, scaled))
    for key, result in first.results.items():
        for name in ("ratio", "bias", "backwards"):
            np.testing.assert_allclose(
                getattr(second.results[key], name), getattr(result, name), rtol=1e-3, atol=1e-5, err_msg=f"{key} {name}"
            )
        assert second.results[key].cosines == pytest.approx(result.cosines, abs=1e-4)
        scale = 1.0 if key == "to-go-normalized" else 1024.0**2
        assert second.results[key].noise == pytest.approx(scale * result.noise, rel=1e-3)
    np.testing.assert_allclose(second.target_cosine, first.target_cosine, rtol=1e-3)


def test_measured_values_are_near_the_exact_ones():
    """On DiamondHill, whose noise scales are known: a sample of 300 episodes, and every interval but for a few covers."""
    model = hill_model(gamma=1.0, n_episodes=4)
    paths = diamond_hill.enumerate_paths(ACTION_PROBABILITIES)
    measurement = measure(model, make_vec_env(DIAMOND_HILL, 4), 300, batch_size=4, estimators=FIXED)
    double = double_model()
    set_action_probabilities(double, ACTION_PROBABILITIES)
    with th.no_grad():
        for mine, its in zip(double.policy.parameters(), model.policy.parameters(), strict=True):
            mine.copy_(its)
    missed = []
    for key in ("whole", "to-go", "to-go-critic", "to-go-loo", "to-go-time-step", "to-go-mean"):
        estimator = measurement.results[key].estimator
        size = 4 if estimator.sees_batch else 1
        groups = list(itertools.product(paths, repeat=size))
        probabilities = np.array([np.prod([path.probability for path in group]) for group in groups])
        gradients = np.stack([slow_gradient(estimator.settings, double, group) for group in groups])
        signal, noise = statistics.signal_and_noise(statistics.inner_products(gradients), probabilities)
        exact = statistics.noise_scale(signal, noise, size)
        value, low, high = measurement.results[key].episodes
        assert value == pytest.approx(exact, rel=0.35), key
        if not low <= exact <= high:
            missed.append(key)
    assert len(missed) <= 1


def test_what_is_biased_is_seen_as_such():
    model = hill_model(gamma=1.0, n_episodes=2)
    measurement = measure(model, make_vec_env(DIAMOND_HILL, 4), 400, batch_size=2, estimators=["whole-mean", "whole-loo"])
    # With two episodes and whole returns the batch mean halves the gradient: a quarter in squares
    assert measurement.results["whole-mean"].bias.low <= 0.25 <= measurement.results["whole-mean"].bias.high
    assert measurement.results["whole-mean"].bias.low > 0.0
    assert measurement.results["whole-loo"].bias.low <= 0.0


def test_a_fitted_critic_needs_fewer_episodes(cartpole):
    measurement = measure(cartpole, make_vec_env("CartPole-v1", 4), 120, batch_size=8)
    episodes = {key: result.episodes.value for key, result in measurement.results.items()}
    assert episodes["to-go-refit"] < episodes["to-go-constant"] < episodes["to-go"]
    assert measurement.batch_note == "as asked for"
    assert measurement.results["to-go"].cosines.keys() >= {1, 4, 8, 16, 60}
    # Two batches agree the more the larger they are, as far as SNR / (1 + SNR) says
    cosines = measurement.results["to-go-refit"].cosines
    assert cosines[1] < cosines[8] < cosines[60]


def test_the_batch_is_what_the_model_does(cartpole):
    assert measure(cartpole, make_vec_env("CartPole-v1", 2), 20, estimators=["to-go"]).batch_size == 8
    by_steps = REINFORCE("MlpPolicy", make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [5]}), n_steps=20, seed=0)
    env = make_vec_env(FixedLengthEnv, 1, env_kwargs={"lengths": [5]})
    assert measure(by_steps, env, 20, estimators=["to-go"]).batch_size == 8
    by_steps.n_steps = 500
    measurement = measure(by_steps, make_vec_env(FixedLengthEnv, 1, env_kwargs={"lengths": [5]}), 20, estimators=["to-go"])
    assert measurement.batch_size == 10
    assert "more than half" in measurement.batch_note


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), n_steps=st.integers(1, 12))
def test_expected_starts_are_those_of_all_sequences_of_lengths(lengths, n_steps):
    def count(steps_left):
        # This episode begins, and what follows it
        return 1.0 + np.mean([count(steps_left - length) if steps_left > length else 0.0 for length in lengths])

    assert expected_starts(np.array(lengths), n_steps) == pytest.approx(count(n_steps))


def test_every_environment_brings_what_it_begins():
    # 40 steps of each environment are four episodes of 11, or one of 60
    for length, n_episodes in ((11, 8), (60, 2)):
        env = make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [length]})
        model = REINFORCE("MlpPolicy", env, n_steps=40, max_rollout_steps=100, seed=0, device="cpu")
        model.learn(1)
        assert len(model.rollout_buffer.whole_episodes().episode_lengths) == n_episodes
        other = make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [length]})
        assert measure(model, other, 40, estimators=["to-go"]).batch_size == n_episodes


@pytest.mark.parametrize("n_envs", [20, 15])
def test_as_many_environments_as_episodes(n_envs):
    env = make_vec_env(FixedLengthEnv, n_envs, env_kwargs={"lengths": [4]})
    model = REINFORCE("MlpPolicy", make_vec_env(FixedLengthEnv, 1, env_kwargs={"lengths": [4]}), seed=0, n_episodes=2)
    assert collect(model, env, 20).batch.episode_lengths.tolist() == [4] * 20


def test_a_step_with_the_best_constant_is_tried_out_with_it():
    env_kwargs = {"lengths": [4, 8], "reward": 1.0}
    model = REINFORCE("MlpPolicy", make_vec_env(FixedLengthEnv, 1, env_kwargs=env_kwargs), seed=0, n_episodes=4, device="cpu")
    episodes = collect(model, make_vec_env(FixedLengthEnv, 2, env_kwargs=env_kwargs), 40)
    estimators = choose_estimators(make_estimators(model, 1.0), ["to-go", "to-go-constant"], model)
    laboratory = measurement_module._Laboratory(episodes, estimators, 4, np.random.default_rng(0))
    constant = laboratory.prepared["to-go-constant"]
    values, everyone = constant.episodes.values, np.arange(len(episodes.batch.episode_lengths))
    assert (values > 1.0).all()
    difference = laboratory.prepared["to-go"].targets(everyone).score_weights - constant.targets(everyone).score_weights
    np.testing.assert_allclose(difference, values, atol=1e-6)


@pytest.mark.parametrize("switches", [{}, {"discounted_weighting": True}, {"return_type": "episode"}])
def test_another_discount_is_one_of_all_estimators(switches):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=4, baseline=None, gamma=0.99, device="cpu", **switches)
    measurement = measure(model, make_vec_env("CartPole-v1", 2), 40, gamma=1.0, estimators=["own", "to-go"])
    assert measurement.results["own"].estimator.settings.gamma == 1.0
    assert measurement.gamma == 1.0
    assert model.gamma == 0.99


def test_without_any_reward_nothing_is_resolved(tmp_path):
    kwargs = {"lengths": [4, 8], "reward": 0.0}
    model = REINFORCE("MlpPolicy", FixedLengthEnv(**kwargs), seed=0, n_episodes=4, baseline=None, device="cpu")
    measurement = measure(model, make_vec_env(FixedLengthEnv, 2, env_kwargs=kwargs), 20, estimators=["lecture"])
    assert all(result.signal == 0.0 for key, result in measurement.results.items() if key != "to-go-refit")
    assert "not distinguishable from zero" in write_report(tmp_path, "nothing", [measurement], [])


class LotteryEnv(FixedLengthEnv):
    """Pays at the last of three steps, sometimes."""

    def __init__(self, probability):
        super().__init__([3], reward=0.0)
        self.probability = probability

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + (terminated and self.np_random.random() < self.probability), terminated, truncated, info

    def _observation(self):
        return np.array([self.time, 1.0], dtype=np.float32)


@pytest.mark.parametrize(("probability", "is_bounded"), [(0.02, False), (0.98, False), (0.5, True)])
def test_few_informative_episodes_give_no_interval(probability, is_bounded):
    """Whatever the estimator: with a critic that knows nothing every episode has a gradient, but nothing to learn from."""
    kwargs = {"probability": probability}
    model = REINFORCE("MlpPolicy", make_vec_env(LotteryEnv, 1, env_kwargs=kwargs), seed=0, n_episodes=4, device="cpu")
    env = make_vec_env(LotteryEnv, 4, env_kwargs=kwargs)
    measurement = measure(model, env, 40, estimators=["to-go", "to-go-loo", "to-go-critic", "weighted"])
    for result in measurement.results.values():
        assert result.ratio.is_bounded == is_bounded
        assert is_bounded or not result.bias.is_bounded or result.estimator.key == result.reference
    assert is_bounded or not measurement.target_cosine.is_bounded
    row = model_section(measurement).table.rows[0]
    said = (" ".join(describe(measurement)), " ".join(notes([measurement])), needed_table([measurement]).rows[0][1])
    for text in (*said, row[2], row[3]):
        assert ("oo few informative episodes" in text) == (not is_bounded)


def test_a_natural_step_has_the_divergence_that_it_is_told():
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=8, natural_gradient=True, target_kl=0.02, device="cpu")
    result = measure(model, make_vec_env("CartPole-v1", 2), 40, estimators=["to-go"]).results["to-go"]
    assert 0.005 < result.kl < 0.03


def test_the_natural_step_that_is_tried_out_is_the_one_that_training_takes():
    # Of each step nothing but the reward is its weight
    kwargs = {"natural_gradient": True, "fisher_max_steps": None, "baseline": None, "gamma": 0.0, "device": "cpu"}
    model = REINFORCE("MlpPolicy", FixedLengthEnv([60]), seed=0, n_episodes=20, **kwargs)
    episodes = collect(model, make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [60]}), 20)
    batch = episodes.batch
    assert len(batch.actions) > sb3_reinforce.lab.gradients.MICRO_BATCH_SIZE
    weights = unit_weights(batch)._replace(score_weights=np.random.default_rng(0).normal(size=len(batch.actions)))
    tried = divergence_of_step(episodes, batch, weights, 0.0)
    model.set_logger(Logger(None, []))
    model.rollout_buffer.reset()
    for step, reward in enumerate(weights.score_weights):
        model.rollout_buffer.add(batch.observations[step : step + 1].numpy(), batch.actions[step].numpy(), np.array([reward]))
        if step % 60 == 59:
            model.rollout_buffer.finish_episode(0)
    model.train()
    assert tried == pytest.approx(model.logger.name_to_value["train/kl"], rel=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_episodes": 19}, "n_episodes must be at least 20, not 19"),
        ({"n_episodes": 40, "batch_size": 21}, "batch_size must be from 1 to half of the 40 episodes"),
        ({"n_episodes": 40, "batch_size": 0}, "batch_size must be from 1"),
        ({"estimators": ["to-go", "nonsense"]}, "there is no 'nonsense', choose from lecture, all, whole,"),
        ({"env": "Acrobot-v1"}, "env: is not one that the model can act in. Observation spaces do not match"),
    ],
)
def test_bad_arguments(cartpole, kwargs, message):
    env = make_vec_env(kwargs.pop("env", "CartPole-v1"), 1)
    with pytest.raises(ValueError, match=message):
        measure(cartpole, env, **kwargs)


def test_estimators_that_need_a_critic():
    model = REINFORCE("MlpPolicy", "CartPole-v1", baseline=None, n_episodes=4, seed=0)
    with pytest.raises(ValueError, match="'to-go-critic' needs a critic, which this model with baseline=None does not have"):
        measure(model, make_vec_env("CartPole-v1", 1), 20, estimators=["to-go-critic"])
    results = measure(model, make_vec_env("CartPole-v1", 2), 20).results
    assert "to-go-critic" not in results
    assert {"to-go-refit", OWN} <= set(results)


def test_models_without_a_stochastic_actor():
    with pytest.raises(ValueError, match="model: DQN has no stochastic actor"):
        measure(DQN("MlpPolicy", "CartPole-v1"), make_vec_env("CartPole-v1", 1))


def test_an_algorithm_that_does_not_step_its_policy_with_an_optimizer_is_refused():
    with pytest.raises(ValueError, match="model: TRPO does not step its policy with its optimizer"):
        measure(TRPO("MlpPolicy", "CartPole-v1", device="cpu"), make_vec_env("CartPole-v1"), 20)


def test_the_models_own_environment_is_refused(cartpole):
    with pytest.raises(ValueError, match="env: must not be the model's own"):
        measure(cartpole, cartpole.get_env())


def test_environments_that_never_end():
    env = make_vec_env(FixedLengthEnv, 1, env_kwargs={"lengths": [MAX_EPISODE_STEPS + 10]})
    model = REINFORCE("MlpPolicy", FixedLengthEnv([2]), seed=0)
    with pytest.raises(ValueError, match=r"did not end within 10,000 steps.*gymnasium\.wrappers\.TimeLimit"):
        measure(model, env)


# The gauge in a training


@pytest.mark.parametrize("switches", [{}, {"baseline": "leave_one_out", "normalize_advantage": True}])
def test_the_gauge_changes_nothing(switches):
    def train(callback):
        model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=5, device="cpu", **switches)
        return model.learn(800, callback=callback)

    gauge = NoiseScaleCallback(every=2)
    with_gauge, without = train(gauge), train(None)
    for mine, its in zip(with_gauge.policy.parameters(), without.policy.parameters(), strict=True):
        assert th.equal(mine, its)
    assert gauge.n_rollouts > 3
    assert gauge.noise > 0.0
    assert gauge.weight == pytest.approx(1 - 0.9 ** -(-gauge.n_rollouts // 2))


def test_the_gauge_logs_what_it_says():
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=20, device="cpu")
    gauge = NoiseScaleCallback(every=1, smoothing=0.0)
    logged = {}

    class Watch(NoiseScaleCallback):
        def _on_rollout_end(self):
            super()._on_rollout_end()
            logged.update(self.logger.name_to_value)

    gauge = Watch(every=1, smoothing=0.0)
    model.learn(1, callback=gauge)
    assert logged["lab/signal_to_noise"] == pytest.approx(20 * gauge.signal / gauge.noise)
    assert logged["lab/noise_scale"] == pytest.approx(gauge.noise / gauge.signal)


def expected_gauge(model, n_episodes):
    """What the gauge says on average, signal and noise, over all rollouts of so many episodes, and what is so."""
    gauge = NoiseScaleCallback(every=1, smoothing=0.0)
    gauge.init_callback(model)
    paths, said, gradients = diamond_hill.enumerate_paths(ACTION_PROBABILITIES), [], []
    groups = list(itertools.product(paths, repeat=n_episodes))
    estimator = dataclasses.replace(model.estimator, loss_reduction="episode")
    for group in groups:
        model.rollout_buffer.reset()
        for path in group:
            for observation, action, reward in zip(path.observations, path.actions, path.rewards, strict=True):
                model.rollout_buffer.add(observation[None], np.array([action]), np.array([reward]))
            model.rollout_buffer.finish_episode(0)
        # Every rollout is split in the same way
        gauge.n_rollouts = 0
        gauge.on_rollout_end()
        said.append((gauge.signal, gauge.noise))
        gradients.append(slow_gradient(estimator, model, group))
    probabilities = np.array([np.prod([path.probability for path in group]) for group in groups])
    signal, noise = statistics.signal_and_noise(statistics.inner_products(np.stack(gradients)), probabilities)
    return probabilities @ np.array(said), np.array([signal, n_episodes * noise])


@pytest.mark.parametrize("n_episodes", [2, 3])
@pytest.mark.parametrize("loss_reduction", ["step", "episode"])
@pytest.mark.parametrize(
    "switches",
    [
        *({"baseline": baseline} for baseline in (None, "value", "leave_one_out", "time_step")),
        {"baseline": "leave_one_out", "return_type": "episode"},
        {"baseline": "time_step", "discounted_weighting": True},
    ],
    ids=str,
)
def test_the_gauge_is_unbiased(switches, loss_reduction, n_episodes):
    model = linear_model(gamma=GAMMA, n_episodes=n_episodes, loss_reduction=loss_reduction, **switches)
    said, exact = expected_gauge(model, n_episodes)
    np.testing.assert_allclose(said, exact, rtol=1e-5)


@pytest.mark.parametrize("n_episodes", [2, 3])
def test_the_gauge_of_the_batch_mean_is_that_of_leave_one_out(n_episodes):
    """The same gradient up to a factor, so that their ratio of signal and noise is the same."""
    model = linear_model(gamma=GAMMA, n_episodes=n_episodes, baseline="mean", return_type="episode")
    said, exact = expected_gauge(model, n_episodes)
    np.testing.assert_allclose(said * (1 - 1 / n_episodes) ** 2, exact, rtol=1e-5)


class LuckyStart(FixedLengthEnv):
    """One step; whether action 1 pays or costs 10 is drawn at the start."""

    def __init__(self):
        super().__init__(lengths=[1])

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed, options=options)
        self.luck = self.np_random.choice([-10.0, 10.0])
        return np.zeros(2, np.float32), result[1]

    def step(self, action):
        _, _, *rest = super().step(action)
        return np.zeros(2, np.float32), self.luck * action, *rest


def test_the_gauge_keeps_common_starts_together():
    """All of the gradient is what an episode shares with those from its start: nothing of it is signal."""
    arguments = {"episodes_per_start": 4, "policy_kwargs": {"net_arch": []}, "learning_rate": 0.0, "seed": 0}
    model = REINFORCE("MlpPolicy", make_vec_env(LuckyStart, 4), n_episodes=16, baseline=None, **arguments)
    gauge = NoiseScaleCallback(every=1, smoothing=0.998)
    model.learn(16 * 400, callback=gauge)
    assert abs(gauge.signal) < 0.5 * gauge.noise / 16
    # Of a single start there is nothing to say
    model = REINFORCE("MlpPolicy", make_vec_env(LuckyStart, 4), n_episodes=4, baseline="group", **arguments)
    gauge = NoiseScaleCallback(every=1)
    model.learn(16, callback=gauge)
    assert gauge.weight == 0.0


@pytest.mark.parametrize(("normalize_advantage", "n_episodes"), [(False, 1), (True, 3)])
def test_the_gauge_needs_two_halves(normalize_advantage, n_episodes):
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=n_episodes, normalize_advantage=normalize_advantage)
    message = rf"at least {n_episodes + 1} \(normalize_advantage={normalize_advantage}\), not {n_episodes}"
    with pytest.raises(ValueError, match=message):
        model.learn(1, callback=NoiseScaleCallback())


def test_the_gauge_passes_over_single_episodes():
    env = make_vec_env(FixedLengthEnv, 1, env_kwargs={"lengths": [9]})
    gauge = NoiseScaleCallback(every=1)
    REINFORCE("MlpPolicy", env, n_steps=5, seed=0, device="cpu").learn(20, callback=gauge)
    assert gauge.n_rollouts == 3 and gauge.weight == 0.0


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("smoothing", 1.0)])
def test_bad_arguments_of_the_gauge(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        NoiseScaleCallback(**{name: value})
    with pytest.raises(ValueError, match="NoiseScaleCallback needs whole episodes, as REINFORCE has them, not A2C"):
        A2C("MlpPolicy", "CartPole-v1").learn(10, callback=NoiseScaleCallback())


def test_the_known_knows_what_is_biased(cartpole):
    known = make_estimators(cartpole, 0.9)
    assert {key for key, one in known.items() if not one.is_unbiased} == {
        *("whole-mean", "to-go-mean", "to-go-normalized", "gae-0.95", "gae-0.97", "gae-0.99", OWN)
    }
    assert {key for key, one in known.items() if one.target == "discounted"} == {
        *("whole", "whole-mean", "whole-loo", "whole-critic", "weighted", "weighted-loo", "weighted-critic", "weighted-refit")
    }
    assert all(one.target == "undiscounted" for one in make_estimators(cartpole, 1.0).values())
    assert isinstance(known[OWN].settings.baseline, ValueBaseline)
    assert known[OWN].settings == Estimator(gamma=0.9, baseline=known[OWN].settings.baseline)


class ContinuousEnv(FixedLengthEnv):
    def __init__(self, lengths):
        super().__init__(lengths)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


@pytest.mark.parametrize("lengths", [[[3, 5]], [[3, 5], [4]]], ids=["one environment", "two"])
def test_episodes_share_no_exploration_matrix(monkeypatch, lengths):
    """Alike episodes would make the gradient look less noisy than it is."""
    seen, get_noise = [], StateDependentNoiseDistribution.get_noise

    def note(self, latent):
        matrices = self.exploration_mat[None] if len(latent) == 1 else self.exploration_matrices
        seen.append(matrices[:, 0, 0].tolist())
        return get_noise(self, latent)

    def make_env():
        return DummyVecEnv([functools.partial(ContinuousEnv, of_env) for of_env in lengths])

    model = REINFORCE("MlpPolicy", make_env(), seed=0, use_sde=True, n_episodes=2, device="cpu")
    monkeypatch.setattr(StateDependentNoiseDistribution, "get_noise", note)
    collect(model, make_env(), 20)
    for column, of_env in zip(zip(*seen, strict=True), lengths, strict=True):
        runs = [len(list(group)) for _, group in itertools.groupby(column)]
        assert len(runs) >= 8
        # The last one is that of the episode after the last
        assert runs[:-1] == list(itertools.islice(itertools.cycle(of_env), len(runs) - 1))
