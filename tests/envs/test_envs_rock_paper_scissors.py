"""RockPaperScissors is the game of the lecture, and its exact returns are those of the environment that is stepped."""

from functools import cache

import gymnasium as gym
import numpy as np
import pytest

from sb3_reinforce.envs.rock_paper_scissors import N_ROUNDS, PAPER, ROCK, SCISSORS, RockPaperScissorsEnv, expected_return


class Chosen:
    """A generator that chooses what it was told to, and notes among how many."""

    def __init__(self, choice):
        self.choice = choice
        self.among = 0

    def integers(self, n):
        self.among = n
        return min(self.choice, n - 1)


def outcomes(counts, move):
    """All equally likely (reward, terminated) of a move after so many of each, from the environment itself."""
    env = RockPaperScissorsEnv()
    results = []
    for choice in range(3):
        env.reset()
        env._counts = list(counts)
        env.np_random = Chosen(choice)
        _, reward, terminated, _, _ = env.step(move)
        if choice < env.np_random.among:
            results.append((reward, terminated))
    return results


@pytest.mark.parametrize(
    ("policy", "value"), [([1, 0, 0], -9), ([0, 0, 1], -9), ([0.5, 0.5, 0], -2.25), ([0.5, 0.25, 0.25], -0.9331)]
)
def test_exact_returns(policy, value):
    assert expected_return(policy) == pytest.approx(value, abs=5e-5)


def test_the_fair_die_earns_zero_and_is_the_best_on_a_grid():
    grid = [(i, j, 30 - i - j) for i in range(31) for j in range(31 - i)]
    returns = {policy: expected_return(np.array(policy) / 30) for policy in grid}
    assert returns.pop((10, 10, 10)) == pytest.approx(0, abs=1e-12)
    assert max(returns.values()) < -1e-3


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("policy", [(0.5, 0.5, 0.0), (0.5, 0.3, 0.2), (0.05, 0.15, 0.8)])
def test_expected_return_is_that_of_the_environment(policy, gamma):
    @cache
    def value(counts):
        total = 0.0
        for move, probability in enumerate(policy):
            after = tuple(count + (move == index) for index, count in enumerate(counts))
            results = outcomes(counts, move)
            total += sum(
                probability / len(results) * (reward + (0.0 if terminated else gamma * value(after)))
                for reward, terminated in results
            )
        return total

    assert expected_return(policy, gamma) == pytest.approx(value((0, 0, 0)), abs=1e-12)


def test_the_opponent_beats_the_most_frequent_move():
    assert outcomes((3, 1, 0), ROCK) == [(-1.0, False)]
    assert outcomes((3, 1, 0), PAPER) == [(0.0, False)]
    assert outcomes((3, 1, 0), SCISSORS) == [(1.0, False)]
    assert sorted(outcomes((2, 0, 2), ROCK)) == [(-1.0, False), (0.0, False)], "against paper, or against rock"
    assert sorted(reward for reward, _ in outcomes((0, 0, 0), SCISSORS)) == [-1.0, 0.0, 1.0]
    assert outcomes((9, 0, 0), ROCK) == [(-1.0, True)]


def test_an_episode_is_ten_rounds_that_look_alike():
    env = gym.make("sb3_reinforce/RockPaperScissors-v0")
    observation, _ = env.reset(seed=0)
    for round_ in range(N_ROUNDS):
        np.testing.assert_array_equal(observation, [1.0])
        observation, _, terminated, truncated, _ = env.step(ROCK)
        assert (terminated, truncated) == (round_ == N_ROUNDS - 1, False)
