"""TMaze: the first observation says which way to turn at the end, so only a recurrent policy can remember it."""

from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_reinforce.envs.paths import FloatArray

FORWARD, LEFT, RIGHT = range(3)
N_ACTIONS = 3
#: The observations: the start with either cue, the corridor, the junction.
CUE_LEFT, CUE_RIGHT, CORRIDOR, JUNCTION = range(4)
MASKS = (None, "method", "observation")

BoolArray: TypeAlias = npt.NDArray[np.bool_]
Observation: TypeAlias = FloatArray | dict[str, npt.NDArray[Any]]


class TMazeEnv(gym.Env[Observation, np.int64]):
    """
    A corridor that ends in a junction; a cue at the start says which turn leads to the reward.

    The observation is one of four, one-hot: cue left, cue right, corridor, junction. An episode starts with either cue, with
    equal probability. Actions are 0 (forward), 1 (left), 2 (right). At the junction the turn that the cue named gives +1 and
    the other turn -1; both end the episode. Every other step gives 0. The task is based on Bakker (*Reinforcement learning
    with long short-term memory*, NeurIPS 2001).

    The first step goes forward whatever the action. Otherwise a memoryless policy could exploit the cue: whenever the cue
    names the turn that the policy does not take, it could wait at the start until the time runs out. As it is, every
    memoryless policy earns exactly 0.

    Without masks, turning in the corridor and going forward at the junction have no effect, and the episode is truncated
    after ``4 * (length + 1)`` steps: the uniform policy needs three steps per cell and nearly always arrives. With masks, such
    moves (at the start too) are invalid: one of them costs -1 and ends the episode. A recurrent policy that neither applies
    nor observes the masks then hardly ever reaches the junction while it explores.

    :param length: Number of steps forward from the start to the junction.
    :param masks: How the environment provides its action mask, an array of booleans of shape ``(3,)``. None: there is no mask.
        ``"method"``: the method ``action_masks`` returns it, as in sb3-contrib. ``"observation"``: the observation is a
        dictionary with the entries ``observation`` and ``action_mask``.
    :param render_mode: ``"rgb_array"``, or None.
    :raises ValueError: If ``length`` is not a whole number of at least 1, or ``masks`` is none of the above.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (gymnasium's own declaration)
    #: Returns the current action mask. Set only with ``masks="method"``: sb3-contrib recognises masked environments by it.
    action_masks: Callable[[], BoolArray]

    def __init__(self, length: int = 10, masks: str | None = None, render_mode: str | None = None) -> None:
        if length < 1 or length != int(length):
            raise ValueError(f"length must be a whole number of at least 1, not {length}")
        if masks not in MASKS:
            raise ValueError(f"masks must be one of {', '.join(map(repr, MASKS))}, not {masks!r}")
        self.length = int(length)
        self.masks = masks
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(N_ACTIONS)
        self.observation_space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (4,), np.float32)
        if masks == "observation":
            self.observation_space = spaces.Dict(
                {"observation": self.observation_space, "action_mask": spaces.MultiBinary(N_ACTIONS)}
            )
        elif masks == "method":
            self.action_masks = self._allowed
        self._cue = CUE_LEFT
        self._position = 0
        self._steps = 0

    @property
    def time_limit(self) -> int:
        """Steps after which an episode is truncated."""
        return 4 * (self.length + 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Go back to the start and draw a new cue."""
        super().reset(seed=seed)
        self._cue = int(self.np_random.integers(CUE_LEFT, CUE_RIGHT + 1))
        self._position = self._steps = 0
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Go forward or turn."""
        self._steps += 1
        reward, terminated = 0.0, False
        if self.masks is not None and not self._allowed()[action]:
            reward, terminated = -1.0, True
        elif self._position == self.length and action != FORWARD:
            named_turn = LEFT if self._cue == CUE_LEFT else RIGHT
            reward, terminated = (1.0 if action == named_turn else -1.0), True
        elif self._position == 0 or (self._position < self.length and action == FORWARD):
            self._position += 1
        return self._observation(), reward, terminated, not terminated and self._steps == self.time_limit, {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the maze, shape ``(60, 20 * (length + 1), 3)``: junction on the right, reward green, agent black."""
        if self.render_mode is None:
            return None
        image = np.full((60, 20 * (self.length + 1), 3), 120, dtype=np.uint8)
        image[20:40] = 255
        image[:, -20:] = 255
        reward_rows = slice(0, 20) if self._cue == CUE_LEFT else slice(40, 60)
        image[reward_rows, -20:] = (60, 170, 80)
        image[25:35, 20 * self._position + 5 : 20 * self._position + 15] = 0
        return image

    def _place(self) -> int:
        if self._position == 0:
            return self._cue
        return JUNCTION if self._position == self.length else CORRIDOR

    def _observation(self) -> Observation:
        place = np.zeros(4, dtype=np.float32)
        place[self._place()] = 1.0
        if self.masks == "observation":
            return {"observation": place, "action_mask": self._allowed().astype(np.int8)}
        return place

    def _allowed(self) -> BoolArray:
        at_junction = self._position == self.length
        return np.array([not at_junction, at_junction, at_junction])


def best_return(length: int = 10, gamma: float = 1.0) -> float:
    """
    Compute the exact expected discounted return of the best policy, which goes straight on and takes the turn of the cue.

    :param length: Number of steps forward from the start to the junction.
    :param gamma: Discount factor.
    :return: ``gamma**length``.
    """
    return gamma**length


def best_memoryless_return() -> float:
    """
    Return the exact expected discounted return of the best memoryless policy: 0 for any length and discount factor.

    At the junction such a policy turns left equally often for both cues, and left is wrong for one of them. Without masks
    every memoryless policy earns exactly 0. With masks, those that make no masked move earn 0 and the others no more.
    """
    return 0.0
