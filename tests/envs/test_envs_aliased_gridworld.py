"""AliasedGridworld is the corridor of the lecture, and its exact returns are those of the environment that is stepped."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_reinforce.envs.aliased_gridworld import (
    EAST,
    NORTH,
    OBSERVATIONS,
    SOUTH,
    START_CELLS,
    WALLS,
    WEST,
    best_deterministic_return,
    best_memoryless_policy,
    enumerate_paths,
    expected_return,
    expected_return_gradient,
)

UNIFORM = np.full((4, 4), 0.25)
GREY = 1

policies = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).dirichlet(np.ones(4), size=4))


def make():
    return gym.make("sb3_reinforce/AliasedGridworld-v0")


def start_in(env, cell):
    for _ in range(200):
        observation, _ = env.reset()
        if env.unwrapped._cell == cell:
            return observation
    pytest.fail(f"no episode of 200 starts in cell {cell}")


def test_exact_returns_of_the_lecture():
    assert best_deterministic_return() == 0.5
    assert expected_return(best_memoryless_policy()) == 2045 / 2048
    assert expected_return(UNIFORM) == pytest.approx(-0.3847, abs=5e-5)


@settings(max_examples=200, deadline=None)
@given(policies)
def test_no_memoryless_policy_beats_the_coin(policy):
    assert expected_return(policy) < 2045 / 2048


def test_the_coin_in_the_grey_cells_is_fair():
    def biased(east):
        policy = best_memoryless_policy()
        policy[GREY] = 0.0
        policy[GREY, [EAST, WEST]] = east, 1 - east
        return expected_return(policy)

    returns = [biased(east) for east in np.linspace(0, 1, 101)]
    assert int(np.argmax(returns)) == 50
    assert returns[0] == returns[-1] == 0.5


def test_with_the_cell_in_view_every_start_leads_to_the_money():
    env = make()
    env.reset(seed=0)
    for cell in START_CELLS:
        start_in(env, cell)
        for action in [EAST if cell < 2 else WEST] * abs(cell - 2):
            _, reward, terminated, _, _ = env.step(action)
            assert (reward, terminated) == (0.0, False)
        assert env.step(SOUTH)[1:3] == (1.0, True)


def test_four_observations_of_walls_and_the_grey_cells_look_alike():
    assert len(np.unique(WALLS, axis=0)) == len(OBSERVATIONS) == 4
    np.testing.assert_array_equal(WALLS[1], WALLS[3])
    env = make()
    env.reset(seed=0)
    for cell in START_CELLS:
        observation = start_in(env, cell)
        np.testing.assert_array_equal(observation, WALLS[cell])
        for action in np.flatnonzero(observation):
            after, reward, terminated, _, _ = env.step(action)
            np.testing.assert_array_equal(after, observation)
            assert (reward, terminated) == (0.0, False), "who walks into a wall stays"


def test_start_is_uniform_over_four_cells():
    env = make().unwrapped
    env.reset(seed=0)
    cells = []
    for _ in range(8_000):
        env.reset()
        cells.append(env._cell)
    share = np.bincount(cells, minlength=5) / len(cells)
    np.testing.assert_allclose(share, [0.25, 0.25, 0, 0.25, 0.25], atol=0.02)


def test_time_limit_truncates_after_twenty_steps():
    env = make()
    env.reset(seed=0)
    for _ in range(19):
        assert not any(env.step(NORTH)[2:4])
    assert env.step(NORTH)[2:4] == (False, True)


@settings(max_examples=20, deadline=None)
@given(policies, st.sampled_from([0.0, 0.7, 1.0]), st.integers(1, 5))
def test_paths_are_all_there(policy, gamma, limit):
    paths = enumerate_paths(policy, limit)
    assert sum(path.probability for path in paths) == pytest.approx(1)
    mean = sum(path.probability * (path.rewards * gamma ** np.arange(len(path.rewards))).sum() for path in paths)
    assert mean == pytest.approx(expected_return(policy, gamma, limit))


def test_paths_of_the_coin_within_the_full_limit():
    paths = enumerate_paths(best_memoryless_policy())
    assert len(paths) == 44
    assert max(len(path.actions) for path in paths) == 20
    assert sum(path.probability * path.rewards.sum() for path in paths) == 2045 / 2048


def test_the_environment_follows_the_paths():
    limit = 3
    env = gym.make("sb3_reinforce/AliasedGridworld-v0", max_episode_steps=limit)
    env.reset(seed=0)
    seen = set()
    for path in enumerate_paths(UNIFORM, limit):
        for cell in START_CELLS:
            observation = start_in(env, cell)
            steps = []
            for expected, action, reward in zip(path.observations, path.actions, path.rewards, strict=True):
                if (observation != expected).any():
                    break
                observation, got, terminated, truncated, _ = env.step(action)
                if got != reward:
                    break
                steps.append((action, reward))
                if terminated or truncated:
                    seen.add((cell, *steps))
                    break
    # Each path is one that the environment takes from one of its starts, and no path of it is missing
    assert len(seen) == len(enumerate_paths(UNIFORM, limit)) == 202


@pytest.mark.parametrize("limit", [1, 4, 20])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_gradient_is_the_derivative_of_the_expected_return(gamma, limit):
    policy = np.random.default_rng(0).dirichlet(np.ones(4), size=4)
    gradient = expected_return_gradient(policy, gamma, limit)
    for entry in np.ndindex(4, 4):
        step = np.zeros((4, 4))
        step[entry] = 1e-6
        difference = expected_return(policy + step, gamma, limit) - expected_return(policy - step, gamma, limit)
        assert gradient[entry] == pytest.approx(difference / 2e-6, abs=1e-6)
