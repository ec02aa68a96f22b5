"""RockPaperScissors: the opponent counts the agent's moves, so only the uniform policy cannot be exploited."""

from functools import cache
from math import factorial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_reinforce.envs.paths import FloatArray

ROCK, PAPER, SCISSORS = range(3)
N_MOVES = 3
N_ROUNDS = 10


class RockPaperScissorsEnv(gym.Env[FloatArray, np.int64]):
    """
    Ten rounds against an opponent that plays the move that beats the agent's most frequent move so far.

    The opponent breaks ties uniformly at random; in the first round all moves are tied. The observation is always ``[1]``.
    Actions are 0 (rock), 1 (paper), 2 (scissors). The reward is +1 for a win, -1 for a loss and 0 for a draw. The tenth round
    ends the episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(N_MOVES)
        self._counts = [0] * N_MOVES

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Reset the opponent's counts."""
        super().reset(seed=seed)
        self._counts = [0] * N_MOVES
        return np.ones(1, dtype=np.float32), {}

    def step(self, action: np.int64 | int) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Play one round."""
        expected = _most_frequent(tuple(self._counts))
        reward = _reward(int(action), expected[self.np_random.integers(len(expected))])
        self._counts[action] += 1
        return np.ones(1, dtype=np.float32), reward, sum(self._counts) == N_ROUNDS, False, {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the counts of rock (red), paper (green) and scissors (blue) as bars, shape ``(100, 120, 3)``."""
        if self.render_mode is None:
            return None
        image = np.full((100, 120, 3), 255, dtype=np.uint8)
        for move, color in enumerate(((220, 60, 40), (60, 170, 80), (90, 160, 240))):
            image[100 - 100 * self._counts[move] // N_ROUNDS :, 40 * move + 8 : 40 * move + 32] = color
        return image


def _most_frequent(counts: tuple[int, ...]) -> list[int]:
    return [move for move, count in enumerate(counts) if count == max(counts)]


def _reward(action: int, expected: int) -> float:
    """Return the reward of a move against an opponent that plays what beats the move it expects."""
    opponent = (expected + 1) % N_MOVES
    return {0: 0.0, 1: 1.0, 2: -1.0}[(action - opponent) % N_MOVES]


def expected_return(action_probabilities: npt.ArrayLike, gamma: float = 1.0) -> float:
    """
    Compute the exact expected discounted return of a memoryless policy.

    The moves of such a policy are independent, so their counts before each round are multinomial.

    :param action_probabilities: P(rock), P(paper) and P(scissors), shape ``(3,)``.
    :param gamma: Discount factor.
    :return: The expected discounted sum over the ten rounds. With ``gamma=1`` it lies between -9 (any deterministic policy)
        and 0 (the uniform policy).
    """
    probabilities = np.asarray(action_probabilities, dtype=np.float64)
    counts, coefficients, rewards = _rounds()
    chances = coefficients * np.prod(probabilities**counts, axis=1)
    return float((gamma ** counts.sum(axis=1) * chances) @ (rewards @ probabilities))


@cache
def _rounds() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """List all counts of moves before a round, shape ``(n, 3)``, their numbers of orders, and each move's expected reward."""
    counts = [
        (rocks, papers, played - rocks - papers)
        for played in range(N_ROUNDS)
        for rocks in range(played + 1)
        for papers in range(played + 1 - rocks)
    ]
    orders = [factorial(sum(c)) / (factorial(c[ROCK]) * factorial(c[PAPER]) * factorial(c[SCISSORS])) for c in counts]
    rewards = [
        [np.mean([_reward(action, expected) for expected in _most_frequent(c)]) for action in range(N_MOVES)] for c in counts
    ]
    return np.array(counts), np.array(orders), np.array(rewards)
