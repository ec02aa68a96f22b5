"""AliasedGridworld: two cells look alike but need opposite actions, so the best memoryless policy must toss a coin."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_reinforce.envs.paths import FloatArray, Path, make_path

NORTH, EAST, SOUTH, WEST = range(4)
N_ACTIONS = 4
#: Steps after which the registered environment truncates an episode.
TIME_LIMIT = 20
START_CELLS = (0, 1, 3, 4)
#: Walls to the north, east, south and west of each of the five cells.
WALLS = np.array([[1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], dtype=np.float32)
#: Row of ``OBSERVATIONS`` for each cell: the grey cells 1 and 3 share one.
OBSERVATION_OF_CELL = np.array([0, 1, 2, 1, 3])
#: The four observations, in the order of the rows of all policies below.
OBSERVATIONS = WALLS[[0, 1, 2, 4]]
#: Reward for going south from each cell without a wall there: skull, money, skull.
_BELOW = {0: -1.0, 2: 1.0, 4: -1.0}


class AliasedGridworldEnv(gym.Env[FloatArray, np.int64]):
    """
    A corridor of five cells: the money is below the middle one, a skull below each end.

    The agent starts in any cell but the middle one, and sees only the walls around its cell: ``[north, east, south, west]``,
    1 for a wall. The grey cells 1 and 3 look alike, but the money is to the east of one and to the west of the other.
    Actions are 0 (north), 1 (east), 2 (south), 3 (west); a step into a wall changes nothing. The reward is +1 for the money
    and -1 for a skull, which both end the episode, and 0 for every other step. Known from lectures on policy gradients
    (Silver 2015, lecture 7). The registered environment has a time limit of 20 steps; ``gym.make(..., max_episode_steps=n)``
    changes it.

    ===== ======== ======== ======== ======== ========
    row   cell 0   cell 1   cell 2   cell 3   cell 4
    ===== ======== ======== ======== ======== ========
    upper corner   grey     middle   grey     corner
    lower skull             money             skull
    ===== ======== ======== ======== ======== ========
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Discrete(N_ACTIONS)
        self._cell = START_CELLS[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Place the agent in cell 0, 1, 3 or 4, with equal probability."""
        super().reset(seed=seed)
        self._cell = START_CELLS[self.np_random.integers(len(START_CELLS))]
        return WALLS[self._cell].copy(), {}

    def step(self, action: np.int64 | int) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Move to the next cell, or into a wall. A wrapper applies the time limit."""
        self._cell, reward, terminated = _transition(self._cell, int(action))
        return WALLS[self._cell].copy(), reward, terminated, False, {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the corridor, shape ``(80, 200, 3)``: grey cells, money green, skulls red, the agent as a black square."""
        if self.render_mode is None:
            return None
        image = np.full((80, 200, 3), 255, dtype=np.uint8)
        image[40:] = 0
        for cell in (1, 3):
            image[:40, 40 * cell : 40 * (cell + 1)] = 190
        for cell, reward in _BELOW.items():
            image[40:, 40 * cell : 40 * (cell + 1)] = (60, 170, 80) if reward > 0 else (220, 60, 40)
        image[12:28, 40 * self._cell + 12 : 40 * self._cell + 28] = 0
        return image


def _transition(cell: int, action: int) -> tuple[int, float, bool]:
    if WALLS[cell, action]:
        return cell, 0.0, False
    if action == SOUTH:
        return cell, _BELOW[cell], True
    return (cell + 1 if action == EAST else cell - 1), 0.0, False


def enumerate_paths(
    action_probabilities: npt.ArrayLike, limit: int = TIME_LIMIT, starts: Sequence[int] = START_CELLS
) -> list[Path]:
    """
    List all paths that the policy can take, with their probabilities.

    Paths of probability 0 are omitted: the policy that tosses a coin only in the grey cells has 44 within the limit of 20.
    A policy that takes every action everywhere has 2,428 within a limit of 5, and 3.5 times as many for each further step.

    :param action_probabilities: P(action | observation), shape ``(4, 4)``: rows as ``OBSERVATIONS``, columns N, E, S, W.
    :param limit: Time limit in steps; a truncated episode is a path too.
    :param starts: Cells in which an episode may start, all equally likely.
    :return: The paths; their probabilities sum to 1 if the rows do.
    """
    probabilities = np.asarray(action_probabilities, dtype=np.float64)
    paths: list[Path] = []

    def follow(cell: int, probability: float, steps: list[tuple[FloatArray, int, float]]) -> None:
        for action in range(N_ACTIONS):
            path_probability = probability * probabilities[OBSERVATION_OF_CELL[cell], action]
            if path_probability == 0.0:
                continue
            next_cell, reward, terminated = _transition(cell, action)
            so_far = [*steps, (WALLS[cell], action, reward)]
            if terminated or len(so_far) == limit:
                paths.append(make_path(path_probability, so_far))
            else:
                follow(next_cell, path_probability, so_far)

    for start in starts:
        follow(start, 1 / len(starts), [])
    return paths


def expected_return(action_probabilities: npt.ArrayLike, gamma: float = 1.0, limit: int = TIME_LIMIT) -> float:
    """
    Compute the exact expected discounted return of a memoryless policy, by dynamic programming.

    :param action_probabilities: P(action | observation), shape ``(4, 4)``: rows as ``OBSERVATIONS``, columns N, E, S, W.
    :param gamma: Discount factor.
    :param limit: Time limit in steps; later rewards do not count.
    :return: Mean over the four starts.
    """
    probabilities = np.asarray(action_probabilities, dtype=np.float64)[OBSERVATION_OF_CELL]
    values = (probabilities * _action_values(probabilities, gamma, limit)[-1]).sum(axis=1)
    return float(values[list(START_CELLS)].mean())


def expected_return_gradient(
    action_probabilities: npt.ArrayLike, gamma: float = 1.0, limit: int = TIME_LIMIT
) -> npt.NDArray[np.float64]:
    """
    Compute the exact partial derivatives of ``expected_return`` with respect to the sixteen action probabilities.

    This is the policy gradient theorem (Sutton & Barto 2018, eq. 13.5) for a finite horizon: the discounted probability of
    being in a cell at a time, times the value of the action there and then, summed over times and over cells that look alike.
    Each probability varies independently of the others.

    :param action_probabilities: P(action | observation), shape ``(4, 4)``: rows as ``OBSERVATIONS``, columns N, E, S, W.
    :param gamma: Discount factor.
    :param limit: Time limit in steps; later rewards do not count.
    :return: Shape ``(4, 4)``.
    """
    probabilities = np.asarray(action_probabilities, dtype=np.float64)[OBSERVATION_OF_CELL]
    next_cell, _, goes_on = _transition_arrays()
    reached = np.isin(np.arange(len(WALLS)), START_CELLS) / len(START_CELLS)
    gradient = np.zeros((len(OBSERVATIONS), N_ACTIONS))
    for action_values in reversed(_action_values(probabilities, gamma, limit)):
        np.add.at(gradient, OBSERVATION_OF_CELL, reached[:, None] * action_values)
        leaving = gamma * reached[:, None] * probabilities * goes_on
        reached = np.zeros(len(WALLS))
        np.add.at(reached, next_cell, leaving)
    return gradient


def best_deterministic_return(gamma: float = 1.0, limit: int = TIME_LIMIT) -> float:
    """
    Compute the exact expected return of the best of all 256 deterministic memoryless policies.

    :param gamma: Discount factor.
    :param limit: Time limit in steps.
    :return: 1/2 with the defaults: the best policy gets stuck from one of the two grey cells and from one of the corners.
    """
    policies = product(range(N_ACTIONS), repeat=len(OBSERVATIONS))
    return max(expected_return(np.eye(N_ACTIONS)[list(policy)], gamma, limit) for policy in policies)


def best_memoryless_policy() -> npt.NDArray[np.float64]:
    """
    Return the policy that tosses a coin between east and west in the grey cells and goes straight to the money elsewhere.

    Let P(east) = p in the grey cells and let n be the number of tries within the limit. A start to the west of the money fails
    with probability (1 - p)^n, a start to the east with p^n. The sum is convex and symmetric, so p = 1/2 minimises it. North
    and south in the grey cells, and any detour elsewhere, only lose time or lives.

    :return: P(action | observation), shape ``(4, 4)``; its exact expected return is 2045/2048 with the limit of 20.
    """
    return np.array([[0, 1, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]])


def _transition_arrays() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the next cell, the reward and whether the episode continues, each of shape ``(5, 4)``: cell, action."""
    table = [[_transition(cell, action) for action in range(N_ACTIONS)] for cell in range(len(WALLS))]
    next_cell, reward, terminated = (np.array([[entry[i] for entry in row] for row in table]) for i in range(3))
    return next_cell, reward, ~terminated


def _action_values(cell_probabilities: npt.NDArray[np.float64], gamma: float, limit: int) -> list[npt.NDArray[np.float64]]:
    """Compute the action values with 1, ..., ``limit`` steps left, from a policy per cell; all of shape ``(5, 4)``."""
    next_cell, reward, goes_on = _transition_arrays()
    values = np.zeros(len(WALLS))
    action_values = []
    for _ in range(limit):
        action_values.append(reward + gamma * goes_on * values[next_cell])
        values = (cell_probabilities * action_values[-1]).sum(axis=1)
    return action_values
