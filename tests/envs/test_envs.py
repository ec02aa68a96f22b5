"""All worlds are proper gymnasium environments, and DiamondHill is the one of the lecture."""

import doctest
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from helpers import ACTION_PROBABILITIES
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from sb3_reinforce.envs.diamond_hill import (
    DECISION_STATES,
    LEFT,
    RIGHT,
    enumerate_paths,
    expected_return,
    expected_return_gradient,
)

ENVIRONMENTS = [
    ("DiamondHill-v0", {}),
    ("AliasedGridworld-v0", {}),
    ("RockPaperScissors-v0", {}),
    ("TMaze-v0", {}),
    ("TMaze-v0", {"masks": "method"}),
    ("TMaze-v0", {"masks": "observation"}),
    ("PixelCopter-v0", {}),
    ("TravellingSalesman-v0", {}),
]


@pytest.mark.parametrize(("name", "arguments"), ENVIRONMENTS)
def test_checkers(name, arguments):
    env = gym.make(f"sb3_reinforce/{name}", **arguments)
    check_gymnasium_env(env.unwrapped)
    check_sb3_env(env.unwrapped)


@pytest.mark.parametrize(("name", "arguments"), ENVIRONMENTS)
def test_render_shows_what_happens(name, arguments):
    env = gym.make(f"sb3_reinforce/{name}", render_mode="rgb_array", **arguments)
    env.reset(seed=0)
    first = env.render()
    assert first.dtype == np.uint8 and first.ndim == 3
    seen = [first]
    for action in (0, 1, env.action_space.n - 1, 0, 1):
        *_, terminated, truncated, _ = env.step(action)
        seen.append(env.render())
        if terminated or truncated:
            env.reset()
    assert any((image != first).any() for image in seen)
    assert gym.make(f"sb3_reinforce/{name}", **arguments).unwrapped.render() is None


def test_the_numbers_of_the_docs():
    results = doctest.testfile(str(Path(__file__).parents[2] / "docs" / "environments.md"), module_relative=False)
    assert results.failed == 0 < results.attempted


def test_gymnasium_shows_them_in_a_window(monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("sb3_reinforce/PixelCopter-v0", render_mode="human")
    env.reset(seed=0)
    env.step(1)
    assert env.get_wrapper_attr("window").get_size() == (384, 384)
    env.close()


def test_a_window_without_pygame_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = gym.make("sb3_reinforce/PixelCopter-v0", render_mode="human")
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"^pygame is not installed, run `pip install .*`$"):
        env.reset(seed=0)


def test_expected_return_and_gradient_of_the_lecture():
    assert expected_return(ACTION_PROBABILITIES) == pytest.approx(2.636)
    gradient = expected_return_gradient(ACTION_PROBABILITIES)
    np.testing.assert_allclose(gradient.flatten(), [-0.52, 10, -7, 0.56, 0, 3.78])


def test_best_policy_earns_eleven():
    deterministic = [np.eye(2)[list(choice)] for choice in np.ndindex(2, 2, 2)]
    assert max(map(expected_return, deterministic)) == pytest.approx(11)
    assert expected_return(np.eye(2)[[LEFT, RIGHT, RIGHT]]) == pytest.approx(11)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 1.0])
def test_gradient_is_the_derivative_of_the_expected_return(gamma):
    gradient = expected_return_gradient(ACTION_PROBABILITIES, gamma)
    for entry in np.ndindex(3, 2):
        step = np.zeros((3, 2))
        step[entry] = 1e-6
        difference = expected_return(ACTION_PROBABILITIES + step, gamma) - expected_return(ACTION_PROBABILITIES - step, gamma)
        assert gradient[entry] == pytest.approx(difference / 2e-6, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_paths_are_all_there(gamma):
    paths = enumerate_paths(ACTION_PROBABILITIES)
    assert len(paths) == 5
    assert sum(path.probability for path in paths) == pytest.approx(1)
    mean = sum(path.probability * (path.rewards * gamma ** np.arange(len(path.rewards))).sum() for path in paths)
    assert mean == pytest.approx(expected_return(ACTION_PROBABILITIES, gamma))


def test_simulated_episodes_follow_the_paths():
    env = gym.make("sb3_reinforce/DiamondHill-v0").unwrapped
    rng = np.random.default_rng(0)
    n_episodes, frequency = 20_000, {}
    env.reset(seed=0)
    for _ in range(n_episodes):
        observation, _ = env.reset()
        steps, over = [], False
        while not over:
            row = int(np.flatnonzero((DECISION_STATES == observation).all(axis=1))[0])
            action = int(rng.random() < ACTION_PROBABILITIES[row, RIGHT])
            observation, reward, over, truncated, _ = env.step(action)
            assert not truncated
            steps.append((action, reward))
        frequency[tuple(steps)] = frequency.get(tuple(steps), 0) + 1 / n_episodes
    probability = {
        tuple((int(a), float(r)) for a, r in zip(path.actions, path.rewards, strict=True)): path.probability
        for path in enumerate_paths(ACTION_PROBABILITIES)
    }
    assert frequency.keys() == probability.keys()
    for path, share in frequency.items():
        assert share == pytest.approx(probability[path], abs=0.015)


def test_render_shows_the_robot_and_the_diamond():
    env = gym.make("sb3_reinforce/DiamondHill-v0", render_mode="rgb_array")
    env.reset(seed=0)
    start = env.render()
    assert start.shape == (40, 160, 3)
    env.step(LEFT)
    assert (start[5, 60] != env.render()[5, 60]).any(), "the diamond is taken"
    assert (env.render()[20, 60] == 0).all(), "the robot stands where the diamond was"
    assert gym.make("sb3_reinforce/DiamondHill-v0").unwrapped.render() is None
