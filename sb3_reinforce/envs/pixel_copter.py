"""PixelCopter: the helicopter game of the PyGame Learning Environment, without pygame."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_reinforce.envs.paths import FloatArray

NOTHING, THRUST = 0, 1
#: Names of the seven entries of the observation, as in the original and in its order; lengths in pixels, time in steps.
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
#: New terrain is added when this many columns are left.
_FEW_COLUMNS = 13
_PIXELS_PER_UNIT = 8


class PixelCopterEnv(gym.Env[FloatArray, np.int64]):
    """
    A helicopter flies through a winding passage with blocks in its way; it rises while it thrusts and otherwise sinks slowly.

    The game is Pixelcopter (48 by 48 pixels, 30 frames a second) of the PyGame Learning Environment (Norman Tasfi, 2016,
    MIT licence), with the same rules, rewards and observations, to the last digit. Actions are 0 (nothing) and 1 (thrust).
    The reward is +1 for each block passed and for each strip of terrain (4 pixels) that scrolls out on the left. Touching a
    block or leaving the passage gives -5 and ends the episode. Flying without a crash earns about 0.175 per step.

    The observation has the seven entries of ``OBSERVATION_NAMES``: height (0 is the top) and vertical velocity, the
    distances to the ceiling and the floor of the passage, the distance to the next block, and the block's position. What the
    original calls the block's top is its centre; what it calls the bottom lies half a block below the real bottom.

    The original ends only with a crash, which a good policy can avoid indefinitely. The environment is registered with a time
    limit of 2,000 steps: a little over a minute of flight and about 350 points, several times what published policies earn.
    This is long enough to tell policies apart, and short enough to run a hundred episodes in seconds.
    ``gym.make(..., max_episode_steps=n)`` changes it.

    All randomness comes from two methods of ``np_random``, one number at a time: ``integers(low, high)`` for a new block and
    ``uniform(low, high)`` for the terrain. To replay a recorded game, set ``np_random`` to an object with these two methods.

    With ``gym.make(..., render_mode="human")`` gymnasium shows the ``"rgb_array"`` frames in a pygame window; only this mode
    needs pygame.
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
        """Fly on for a thirtieth of a second. A wrapper applies the time limit."""
        self._velocity = _DRAG * (self._velocity + (_CLIMB if action == THRUST else _FALL))
        self._y += self._velocity
        # Each position is shifted separately, as in the original: the pixels depend on the last digits
        self._blocks = [(x - _SHIFT, y) for x, y in self._blocks]
        self._column_xs = [x - _SHIFT for x in self._column_xs]
        self._passages = self._passages_around_player()
        crashed = self._crashed()
        reward = float(self._pass_blocks() + self._pass_columns()) - (5.0 if crashed else 0.0)
        return self._observation(), reward, crashed, False, {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the original's frame at eight times its size, shape ``(384, 384, 3)``."""
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
        """Centres of the passage in the columns around the player: one or two, or three where two stretches meet."""
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
        # The original considers the player's height only at the ceiling. It also ends the episode in the top and bottom
        # eighth of the picture, where the passage never goes
        leaves_passage = any(
            self._y - _PLAYER_SIZE <= y - _HALF_PASSAGE or self._y >= y + _HALF_PASSAGE for y in self._passages
        )
        return hits_block or leaves_passage

    def _pass_blocks(self) -> int:
        """Add a new block once the player has passed the last one, which moves on until it has left the picture."""
        passed = len(self._blocks) == 1 and self._blocks[0][0] <= _PLAYER_X
        if passed:
            self._add_block()
        if self._blocks[0][0] <= -_BLOCK_WIDTH:
            del self._blocks[0]
        return int(passed)

    def _pass_columns(self) -> int:
        """Drop the column that has scrolled out on the left, and add new ones out of sight on the right."""
        passed = self._column_xs[0] <= -_COLUMN_WIDTH
        if passed:
            del self._column_xs[0], self._column_ys[0]
            if len(self._column_xs) <= _FEW_COLUMNS:
                self._add_columns(SIZE, 5 * SIZE)
        return int(passed)

    def _observation(self) -> FloatArray:
        return np.array(self._state(), dtype=np.float32)

    def _state(self) -> tuple[float, ...]:
        """Compute the observation at the game's full precision."""
        passage = self._passages[0]
        # A passed block leaves the observation at once, and at most one is ahead
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
    """Check whether two intervals share a whole pixel; as in pygame, their ends are rounded down to whole pixels."""
    start, other_start = int(centre) - size // 2, int(other_centre) - other_size // 2
    return start < other_start + other_size and other_start < start + size


def _visible_pixels(centre: float, size: int) -> slice:
    start = int(centre) - size // 2
    return slice(max(start, 0), max(start + size, 0))
