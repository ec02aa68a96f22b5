"""The travelling salesman: returns are lengths of tours, and the shortest one is that of all permutations."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_reinforce import REINFORCE
from sb3_reinforce.envs.travelling_salesman import TravellingSalesmanEnv, shortest_tour_length

ENV_ID = "sb3_reinforce/TravellingSalesman-v0"


def tour_length(cities, tour):
    return sum(math.dist(cities[a], cities[b]) for a, b in itertools.pairwise([*tour, tour[0]]))


@settings(max_examples=30)
@given(st.integers(3, 7), st.integers(0, 2**32 - 1))
def test_the_shortest_tour_is_that_of_all_permutations(n_cities, seed):
    cities = np.random.default_rng(seed).random((n_cities, 2))
    expected = min(tour_length(cities, (0, *rest)) for rest in itertools.permutations(range(1, n_cities)))
    assert shortest_tour_length(cities) == pytest.approx(expected)


def test_the_shortest_tour_around_a_circle_is_the_circle():
    angles = np.random.default_rng(0).permutation(12) * 2 * np.pi / 12
    assert shortest_tour_length(np.stack([np.cos(angles), np.sin(angles)], axis=1)) == pytest.approx(
        24 * math.sin(math.pi / 12)
    )
    with pytest.raises(ValueError, match="at most 12, not 13"):
        shortest_tour_length(np.zeros((13, 2)))


@given(st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_the_return_is_minus_the_length_of_the_tour(n_cities, seed):
    env = TravellingSalesmanEnv(n_cities)
    observation, _ = env.reset(seed=seed)
    rng, rewards, terminated = np.random.default_rng(seed), [], False
    while not terminated:
        mask, rows = env.action_masks(), observation.reshape(n_cities, 4)
        np.testing.assert_array_equal(mask, rows[:, 3] == 1.0)
        action = rng.choice(np.flatnonzero(mask))
        distance = rows[action, 2]
        observation, reward, terminated, truncated, _ = env.step(action)
        assert observation in env.observation_space and not truncated
        rewards.append(reward)
        if not terminated:
            assert reward == pytest.approx(-distance, abs=1e-6)
    assert sorted(env.tour) == list(range(n_cities))
    assert sum(rewards) == pytest.approx(-tour_length(env.cities, env.tour))
    if n_cities <= 8:
        assert -sum(rewards) >= shortest_tour_length(env.cities) - 1e-9


def test_the_same_seed_has_the_same_cities_and_options_choose_them():
    env = gym.make(ENV_ID, n_cities=4)
    first, second, other = (env.reset(seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    cities = [[0, 0], [0, 1], [1, 1], [1, 0]]
    env.reset(options={"cities": cities})
    assert sum(env.step(action)[1] for action in (1, 2, 3)) == -4.0 == -shortest_tour_length(cities)
    with pytest.raises(ValueError, match=r"cities must have the shape \(4, 2\), not \(3, 2\)"):
        env.reset(options={"cities": cities[:3]})


def test_a_city_that_was_visited_ends_the_episode_and_never_pays():
    env = TravellingSalesmanEnv(5)
    env.reset(seed=0)
    first = env.step(2)[1]
    _, reward, terminated, _, _ = env.step(2)
    assert terminated and reward == pytest.approx(-4 * math.sqrt(2))
    assert first + reward < -5 * math.sqrt(2) + math.sqrt(2)


def test_it_is_an_environment_and_can_be_learned_with_masks():
    check_env(gym.make(ENV_ID).unwrapped)
    model = REINFORCE("MlpPolicy", ENV_ID, n_episodes=8, use_masking=True, seed=0, device="cpu").learn(200)
    assert all(info["l"] == 9 for info in model.ep_info_buffer)


@pytest.mark.parametrize("n_cities", [2, 3.5])
def test_too_few_cities_are_named(n_cities):
    with pytest.raises(ValueError, match=f"n_cities must be a whole number of at least 3, not {n_cities}"):
        TravellingSalesmanEnv(n_cities)
