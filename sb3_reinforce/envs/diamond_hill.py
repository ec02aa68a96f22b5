"""DiamondHill: an environment small enough to write down the policy gradient and enumerate every path."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_reinforce.envs.paths import FloatArray, Path, make_path

LEFT, RIGHT = 0, 1
SLIP_PROBABILITY = 0.1
#: The three observations ``[position, diamond]`` in which the agent acts, in the order of all arrays below.
DECISION_STATES = np.array([[2, 1], [1, 0], [2, 0]], dtype=np.float32)


class DiamondHillEnv(gym.Env[FloatArray, np.int64]):
    """
    A robot on a line of four places: 0 is a fire pit, 1 holds a diamond, 2 is the start and 3 is a flag.

    The observation is ``[position, diamond]``; ``diamond`` is 1 until it is taken. The actions are 0 (left) and 1 (right).

    ====== ====== ===========================================================
    state  action effect
    ====== ====== ===========================================================
    [2, 1] right  the flag: +10, end
    [2, 1] left   the diamond: +3, to [1, 0]
    [1, 0] left   the fire pit: -10, end
    [1, 0] right  to [2, 0] with probability 0.9, else slip into the pit: -10, end
    [2, 0] left   0, end
    [2, 0] right  the flag: +10, end
    ====== ====== ===========================================================
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(low=np.zeros(2, np.float32), high=np.array([3, 1], np.float32))
        self.action_space = spaces.Discrete(2)
        self._state = (2, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Put the robot back at the start and the diamond back in its place."""
        super().reset(seed=seed)
        self._state = (2, 1)
        return np.array(self._state, dtype=np.float32), {}

    def step(self, action: np.int64 | int) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Move left or right."""
        slips = self._state == (1, 0) and action == RIGHT and self.np_random.random() < SLIP_PROBABILITY
        self._state, reward, terminated = _transition(self._state, int(action), slips)
        return np.array(self._state, dtype=np.float32), reward, terminated, False, {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the four places, shape ``(40, 160, 3)``: pit red, flag green, diamond blue, the robot as a black square."""
        if self.render_mode is None:
            return None
        image = np.full((40, 160, 3), 255, dtype=np.uint8)
        position, diamond = self._state
        for place, color in ((0, (220, 60, 40)), (3, (60, 170, 80)), *(((1, (90, 160, 240)),) if diamond else ())):
            image[:, 40 * place : 40 * (place + 1)] = color
        image[12:28, 40 * position + 12 : 40 * position + 28] = 0
        return image


def _transition(state: tuple[int, int], action: int, slips: bool) -> tuple[tuple[int, int], float, bool]:
    if state == (2, 1):
        return ((3, 1), 10.0, True) if action == RIGHT else ((1, 0), 3.0, False)
    if state == (1, 0):
        return ((0, 0), -10.0, True) if action == LEFT or slips else ((2, 0), 0.0, False)
    return ((3, 0), 10.0, True) if action == RIGHT else ((1, 0), 0.0, True)


def enumerate_paths(action_probabilities: npt.ArrayLike, slip_probability: float = SLIP_PROBABILITY) -> list[Path]:
    """
    List all five paths through DiamondHill with their probabilities.

    :param action_probabilities: P(action | state), shape ``(3, 2)``: one row per decision state; columns left, right.
    :param slip_probability: Probability that the robot slips when it goes right in state [1, 0].
    :return: The paths; their probabilities sum to 1 if the rows do.
    """
    probabilities = np.asarray(action_probabilities, dtype=np.float64)
    row_of = {(int(position), int(diamond)): row for row, (position, diamond) in enumerate(DECISION_STATES)}
    paths: list[Path] = []

    def follow(state: tuple[int, int], probability: float, steps: list[tuple[tuple[int, int], int, float]]) -> None:
        for action in (LEFT, RIGHT):
            slippery = state == (1, 0) and action == RIGHT
            for slips, chance in ((True, slip_probability), (False, 1 - slip_probability)) if slippery else ((False, 1.0),):
                next_state, reward, terminated = _transition(state, action, slips)
                so_far = [*steps, (state, action, reward)]
                path_probability = probability * probabilities[row_of[state], action] * chance
                if terminated:
                    paths.append(make_path(path_probability, so_far))
                else:
                    follow(next_state, path_probability, so_far)

    follow((2, 1), 1.0, [])
    return paths


def expected_return(action_probabilities: npt.ArrayLike, gamma: float = 1.0) -> float:
    """
    Compute the exact expected discounted return from the start.

    :param action_probabilities: P(action | state), shape ``(3, 2)``: rows [2, 1], [1, 0], [2, 0]; columns left, right.
    :param gamma: Discount factor.
    :return: ``v([2, 1])`` of the policy.
    """
    return float(_state_values(np.asarray(action_probabilities, dtype=np.float64), gamma)[0])


def expected_return_gradient(action_probabilities: npt.ArrayLike, gamma: float = 1.0) -> npt.NDArray[np.float64]:
    """
    Compute the exact partial derivatives of ``expected_return`` with respect to the six action probabilities.

    This is the policy gradient theorem (Sutton & Barto 2018, eq. 13.5): the discounted probability of being in a state times
    the value of the action there. Each probability varies independently of the others.

    :param action_probabilities: P(action | state), shape ``(3, 2)``: rows [2, 1], [1, 0], [2, 0]; columns left, right.
    :param gamma: Discount factor.
    :return: Shape ``(3, 2)``.
    """
    probabilities = np.asarray(action_probabilities, dtype=np.float64)
    _, middle, high = _state_values(probabilities, gamma)
    stay = 1 - SLIP_PROBABILITY
    action_values = np.array(
        [[3 + gamma * middle, 10.0], [-10.0, -10.0 * SLIP_PROBABILITY + stay * gamma * high], [0.0, 10.0]]
    )
    reach_middle = gamma * probabilities[0, LEFT]
    reach_high = reach_middle * gamma * probabilities[1, RIGHT] * stay
    return np.asarray(np.array([1.0, reach_middle, reach_high])[:, None] * action_values)


def _state_values(probabilities: npt.NDArray[np.float64], gamma: float) -> tuple[float, float, float]:
    high = probabilities[2] @ [0.0, 10.0]
    middle = probabilities[1] @ [-10.0, -10.0 * SLIP_PROBABILITY + (1 - SLIP_PROBABILITY) * gamma * high]
    start = probabilities[0] @ [3 + gamma * middle, 10.0]
    return start, middle, high
