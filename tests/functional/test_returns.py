"""Returns and weights against closed forms and against slow, obvious loops on random episode layouts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_reinforce.functional.returns import (
    discount_weights,
    discounted_sums,
    first_steps,
    generalized_advantages,
    rewards_to_go,
    standardize,
    steps_of,
    time_steps,
    whole_episode_returns,
)

episode_layouts = st.lists(st.integers(1, 12), min_size=1, max_size=6)
discounts = st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0])


@st.composite
def episodes(draw):
    lengths = draw(episode_layouts)
    rewards = draw(st.lists(st.floats(-100, 100), min_size=sum(lengths), max_size=sum(lengths)))
    return np.array(lengths), np.array(rewards)


def split(flat, lengths):
    return np.split(np.asarray(flat), np.cumsum(lengths)[:-1])


def slow_rewards_to_go(rewards, gamma):
    return [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


@given(episode_layouts, st.randoms())
def test_steps_of_episodes(lengths, random):
    order = random.sample(range(len(lengths)), random.randint(1, len(lengths)))
    slow = split(range(sum(lengths)), lengths)
    np.testing.assert_array_equal(first_steps(np.array(lengths)), [steps[0] for steps in slow])
    np.testing.assert_array_equal(steps_of(np.array(lengths), order), np.concatenate([slow[index] for index in order]))


@given(episodes(), discounts)
def test_rewards_to_go(layout, gamma):
    lengths, rewards = layout
    slow = np.concatenate([slow_rewards_to_go(own, gamma) for own in split(rewards, lengths)])
    np.testing.assert_allclose(rewards_to_go(rewards, lengths, gamma), slow, atol=1e-9)


@given(episodes(), discounts)
def test_whole_episode_returns(layout, gamma):
    lengths, rewards = layout
    slow = np.concatenate([[slow_rewards_to_go(own, gamma)[0]] * len(own) for own in split(rewards, lengths)])
    np.testing.assert_allclose(whole_episode_returns(rewards, lengths, gamma), slow, atol=1e-9)


@given(episodes(), discounts, st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.integers(0, 2**32 - 1))
def test_generalized_advantages(layout, gamma, gae_lambda, seed):
    lengths, rewards = layout
    values = np.random.default_rng(seed).normal(size=len(rewards))
    slow = []
    for own_rewards, own_values in zip(split(rewards, lengths), split(values, lengths), strict=True):
        next_values = [*own_values[1:], 0.0]
        deltas = [r + gamma * n - v for r, n, v in zip(own_rewards, next_values, own_values, strict=True)]
        slow += slow_rewards_to_go(deltas, gamma * gae_lambda)
    advantages = generalized_advantages(rewards, values, lengths, gamma, gae_lambda)
    np.testing.assert_allclose(advantages, slow, atol=1e-8)
    if gae_lambda == 1.0:
        np.testing.assert_allclose(advantages, rewards_to_go(rewards, lengths, gamma) - values, atol=1e-8)


@given(episode_layouts)
def test_time_steps_and_discount_weights(lengths):
    slow = [t for length in lengths for t in range(length)]
    np.testing.assert_array_equal(time_steps(np.array(lengths)), slow)
    np.testing.assert_allclose(discount_weights(np.array(lengths), 0.5), [0.5**t for t in slow])


def test_a_huge_reward_leaves_no_trace_in_the_episode_before():
    sums = discounted_sums([1e-8, 1e-8, 1e16, 1.0], np.array([2, 2]), 1.0)
    np.testing.assert_allclose(sums, [2e-8, 1e-8, 1e16, 1.0], rtol=1e-12)


def test_geometric_series():
    n_steps = 1000
    sums = rewards_to_go(np.ones(n_steps), np.array([n_steps]), 0.99)
    steps_left = n_steps - np.arange(n_steps)
    np.testing.assert_allclose(sums, (1 - 0.99**steps_left) / (1 - 0.99), rtol=1e-12)


def test_discount_weights_of_gamma_zero_keep_the_first_step():
    np.testing.assert_array_equal(discount_weights(np.array([3, 1]), 0.0), [1, 0, 0, 1])


@pytest.mark.parametrize(
    "advantages, standardized",
    # The sample deviation divides by one less than their number, as SB3's does: of two steps it is their distance over sqrt(2)
    [([1.0, 2.0, 3.0], [-1, 0, 1]), ([1.0, 5.0], [-(0.5**0.5), 0.5**0.5]), ([0.0, 0.0, 0.0, 8.0], [-0.5, -0.5, -0.5, 1.5])],
)
def test_standardize(advantages, standardized):
    np.testing.assert_allclose(standardize(np.array(advantages)), standardized, atol=1e-7)


@pytest.mark.parametrize("advantages", [[0.1], [0.1, 0.1, 0.1], [1e9 + 0.1] * 7])
def test_standardize_without_variance_gives_zeros(advantages):
    np.testing.assert_allclose(standardize(np.array(advantages)), 0.0, atol=1e-6)
