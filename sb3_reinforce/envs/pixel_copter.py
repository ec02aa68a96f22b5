"""PixelCopter: the helicopter game of the PyGame Learning Environment, without pygame."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_reinforce.envs.paths import FloatArray

NOTHING, THRUST = 0, 1
#: What the seven observations are, in the original's order and under its names; lengths in pixels, time in steps.
OBSERVATION_NAMES = (
    "player_y",
    "player_vel",
    "player_dist_to_ceil",
    "player_dist_to_floor",
    "next_gate_dist_to_player",
    "next_gate_block_top",
    "next_gate_block_bottom",
)
#: Steps after which the registered environment truncates an episode.
TIME_LIMIT = 2_000

SIZE = 48
FRAMES_PER_SECOND = 30
_MILLISECONDS = 1000 / FRAMES_PER_SECOND
_SPEED = 0.0004 * SIZE  # pixels per millisecond
_SHIFT = _SPEED * _MILLISECONDS
_CLIMB = -0.875 * _SPEED * _MILLISECONDS
_FALL = 0.09 * _SPEED * _MILLISECONDS
_DRAG = 0.99
_PLAYER_X = int(0.35 * SIZE)
_PLAYER_SIZE = 0.05 * SIZE
_PLAYER_PIXELS = int(_PLAYER_SIZE)
_BLOCK_WIDTH, _BLOCK_HEIGHT = int(0.1 * SIZE), int(0.2 * SIZE)
_COLUMN_WIDTH = int(0.1 * SIZE)
_HALF_PASSAGE = 0.25 * SIZE
#: New terrain is added when so few columns are left.
_FEW_COLUMNS = 13
_PIXELS_PER_UNIT = 8


class PixelCopterEnv(gym.Env[FloatArray, np.int64]):
    """
    A helicopter in a winding passage, with blocks in its way; it rises while it thrusts, and sinks slowly while it does not.

    The game is Pixelcopter (48 by 48 pixels, 30 frames a second) of the PyGame Learning Environment (Norman Tasfi, 2016,
    MIT licence), with the same rules, rewards and observations, to the last digit. Actions are 0 (nothing) and
    1 (thrust). Each block that was passed is +1, and so is each strip of terrain (4 pixels) that leaves on the left; touching
    a block or leaving the passage is -5 and the end. Without a crash it earns about 0.175 per step.

    The observation has the seven entries of ``OBSERVATION_NAMES``: height (0 is the top) and vertical velocity, the
    distances to the ceiling and the floor of the passage, the distance to the next block, and the block's place. What the
    original calls the block's top is its centre, and what it calls its bottom lies half a block below the real one.

    The original ends only with a crash, which a good policy avoids for any length of time. The environment is
    registered with a time limit of 2,000 steps, somewhat more than a minute of flight and about 350 points, several times
    what published policies earn: far enough to tell policies apart, near enough for a hundred episodes to be run in seconds.
    ``gym.make(..., max_episode_steps=n)`` makes it another.

    All randomness comes from two methods of ``np_random``, one number at a time: ``integers(low, high)`` for a new block, and
    ``uniform(low, high)`` for the terrain. An object with these two methods, set as ``np_random``, replays a recorded game.

    With ``gym.make(..., render_mode="human")`` gymnasium shows what ``"rgb_array"`` draws in a window of pygame's, which is
    needed for nothing else.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_SECOND}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        # No entry comes near these bounds
        self.observation_space = spaces.Box(-SIZE, 2 * SIZE, (len(OBSERVATION_NAMES),), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Start a new flight through a new passage."""
        super().reset(seed=seed)
        self._y = SIZE / 2
        self._velocity = 0.0
        # Centres of the blocks, one or two, and of the passage in each column of terrain, from left to right
        self._blocks: list[tuple[float, int]] = []
        self._column_xs: list[float] = []
        self._column_ys: list[int] = []
        self._add_block()
        self._add_columns(0, 4 * SIZE)
        self._passages = self._passages_around_player()
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Fly on for a thirtieth of a second. The time limit is a wrapper's."""
        self._velocity = _DRAG * (self._velocity + (_CLIMB if action == THRUST else _FALL))
        self._y += self._velocity
        # Each position is moved by itself: as in the original, pixels depend on the last digits
        self._blocks = [(x - _SHIFT, y) for x, y in self._blocks]
        self._column_xs = [x - _SHIFT for x in self._column_xs]
        self._passages = self._passages_around_player()
        crashed = self._crashed()
        reward = float(self._pass_blocks() + self._pass_columns()) - (5.0 if crashed else 0.0)
        return self._observation(), reward, crashed, False, {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the original's picture eight times as large, shape ``(384, 384, 3)``."""
        if self.render_mode is None:
            return None
        image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        for x, y in zip(self._column_xs, self._column_ys, strict=True):
            columns = _visible_pixels(x, _COLUMN_WIDTH)
            image[: y - int(_HALF_PASSAGE), columns] = image[y + int(_HALF_PASSAGE) :, columns] = (120, 220, 90)
        for x, y in self._blocks:
            image[_visible_pixels(y, _BLOCK_HEIGHT), _visible_pixels(x, _BLOCK_WIDTH)] = 160
        image[_visible_pixels(self._y, _PLAYER_PIXELS), _visible_pixels(_PLAYER_X, _PLAYER_PIXELS)] = 255
        return image.repeat(_PIXELS_PER_UNIT, axis=0).repeat(_PIXELS_PER_UNIT, axis=1)

    def _add_block(self) -> None:
        x = self.np_random.integers(SIZE, 3 * SIZE // 2)
        y = self.np_random.integers(SIZE // 4, 3 * SIZE // 4)
        self._blocks.append((float(x), int(y)))

    def _add_columns(self, start: int, end: int) -> None:
        frequency = 4.5 / SIZE + self.np_random.uniform(-0.01, 0.01)
        for x in range(start + _COLUMN_WIDTH // 2, end + _COLUMN_WIDTH // 2, _COLUMN_WIDTH):
            wave = np.sin(frequency * x + self.np_random.uniform(0.0, 0.5))
            self._column_xs.append(float(x))
            self._column_ys.append(int(SIZE / 2 + SIZE / 8 * wave))

    def _passages_around_player(self) -> list[int]:
        """Centres of the passage in the columns around the player: one or two, or three where stretches meet."""
        around = []
        for x, y in zip(self._column_xs, self._column_ys, strict=True):
            if x > _PLAYER_X + _COLUMN_WIDTH:
                break
            if _overlap(_PLAYER_X, _PLAYER_PIXELS, x, _COLUMN_WIDTH):
                around.append(y)
        return around

    def _crashed(self) -> bool:
        hits_block = any(
            _overlap(_PLAYER_X, _PLAYER_PIXELS, x, _BLOCK_WIDTH) and _overlap(self._y, _PLAYER_PIXELS, y, _BLOCK_HEIGHT)
            for x, y in self._blocks
        )
        # The original takes the player's height into account at the ceiling alone. It also ends above an eighth and below
        # seven eighths of the picture, where no passage leads
        leaves_passage = any(
            self._y - _PLAYER_SIZE <= y - _HALF_PASSAGE or self._y >= y + _HALF_PASSAGE for y in self._passages
        )
        return hits_block or leaves_passage

    def _pass_blocks(self) -> int:
        """Replace a block that the player has passed; the old one goes on until it has left."""
        passed = len(self._blocks) == 1 and self._blocks[0][0] <= _PLAYER_X
        if passed:
            self._add_block()
        if self._blocks[0][0] <= -_BLOCK_WIDTH:
            del self._blocks[0]
        return int(passed)

    def _pass_columns(self) -> int:
        """Drop the column that has left on the left, and add new ones while they are still out of sight on the right."""
        passed = self._column_xs[0] <= -_COLUMN_WIDTH
        if passed:
            del self._column_xs[0], self._column_ys[0]
            if len(self._column_xs) <= _FEW_COLUMNS:
                self._add_columns(SIZE, 5 * SIZE)
        return int(passed)

    def _observation(self) -> FloatArray:
        return np.array(self._state(), dtype=np.float32)

    def _state(self) -> tuple[float, ...]:
        """The observation in the full precision of the game."""
        passage = self._passages[0]
        # A passed block is gone from the view at once, and at most one is ahead
        block_x, block_y = self._blocks[-1]
        return (
            self._y,
            self._velocity,
            self._y - (passage - _HALF_PASSAGE),
            passage + _HALF_PASSAGE - self._y,
            block_x - _PLAYER_X,
            block_y,
            block_y + _BLOCK_HEIGHT,
        )


def _overlap(centre: float, size: int, other_centre: float, other_size: int) -> bool:
    """Whether two intervals have a whole pixel in common; as in pygame, their ends are rounded down to whole pixels."""
    start, other_start = int(centre) - size // 2, int(other_centre) - other_size // 2
    return start < other_start + other_size and other_start < start + size


def _visible_pixels(centre: float, size: int) -> slice:
    start = int(centre) - size // 2
    return slice(max(start, 0), max(start + size, 0))
