"""TravellingSalesman: every episode has different cities, so a tour is judged by the shortest one."""

import itertools
import math
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Observation: TypeAlias = npt.NDArray[np.float32]

#: The dynamic programme needs time and memory for every subset of the cities.
MAX_EXACT_CITIES = 12


class TravellingSalesmanEnv(gym.Env[Observation, np.int64]):
    """
    Visit every city once and return to the first, on a short tour.

    The cities are drawn uniformly from the unit square at every reset; the same seed gives the same cities. The tour starts
    at city 0. An action is the next city, and the reward is minus the distance to it. The last step also pays for the way
    back, so the return of an episode is minus the length of the tour. As in sb3-contrib, ``action_masks`` returns the cities
    left to visit. An invalid action ends the episode and costs as much as the longest way that could be left.

    The observation has a row for every city: its position relative to the current city (two numbers), its distance, and 1
    if it is left to visit. It is flattened to shape ``(4 * n_cities,)``.

    Returns differ more between sets of cities than between policies, so the task suits baselines that compare episodes with
    the same start (Kool et al. 2019; Kwon et al. 2020).

    :param n_cities: Number of cities, at least 3.
    :param render_mode: ``"rgb_array"``, or None.
    :raises ValueError: If ``n_cities`` is not a whole number of at least 3.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(self, n_cities: int = 10, render_mode: str | None = None) -> None:
        if n_cities < 3 or n_cities != int(n_cities):
            raise ValueError(f"n_cities must be a whole number of at least 3, not {n_cities}")
        self.n_cities = int(n_cities)
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(self.n_cities)
        row = np.array([1.0, 1.0, math.sqrt(2.0), 1.0], dtype=np.float32)
        low = np.array([-1.0, -1.0, 0.0, 0.0], dtype=np.float32)
        self.observation_space = spaces.Box(np.tile(low, self.n_cities), np.tile(row, self.n_cities))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """
        Draw new cities.

        :param seed: Seed of the cities.
        :param options: ``{"cities": array of shape (n_cities, 2)}`` sets the cities.
        :raises ValueError: If the cities have another shape.
        """
        super().reset(seed=seed)
        cities = (options or {}).get("cities")
        self.cities: FloatArray = self.np_random.random((self.n_cities, 2)) if cities is None else np.array(cities, float)
        if self.cities.shape != (self.n_cities, 2):
            raise ValueError(f"options: cities must have the shape ({self.n_cities}, 2), not {self.cities.shape}")
        self.tour = [0]
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Travel to a city."""
        if not self.action_masks()[action]:
            n_moves_left = self.n_cities + 1 - len(self.tour)
            return self._observation(), -math.sqrt(2.0) * n_moves_left, True, False, {}
        reward = -math.dist(self.cities[self.tour[-1]], self.cities[action])
        self.tour.append(int(action))
        is_over = len(self.tour) == self.n_cities
        if is_over:
            reward -= math.dist(self.cities[action], self.cities[0])
        return self._observation(), reward, is_over, False, {}

    def action_masks(self) -> BoolArray:
        """Return the mask of the cities that are left to visit, shape ``(n_cities,)``."""
        mask = np.ones(self.n_cities, dtype=np.bool_)
        # At the end no city is left, but the rollout would reject a mask without a valid action
        if len(self.tour) < self.n_cities:
            mask[self.tour] = False
        return mask

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the tour so far and the cities, unvisited ones in grey, shape ``(300, 300, 3)``."""
        if self.render_mode is None:
            return None
        image = np.full((300, 300, 3), 255, dtype=np.uint8)
        columns, rows = (10 + 280 * self.cities.T).astype(int)
        tour = [*self.tour, 0] if len(self.tour) == self.n_cities else self.tour
        for a, b in itertools.pairwise(tour):
            image[np.linspace(rows[a], rows[b], 400).astype(int), np.linspace(columns[a], columns[b], 400).astype(int)] = 0
        for city in range(self.n_cities):
            colour = (60, 170, 80) if city == self.tour[-1] else 0 if city in self.tour else 160
            image[rows[city] - 4 : rows[city] + 5, columns[city] - 4 : columns[city] + 5] = colour
        return image

    def _observation(self) -> Observation:
        relative = self.cities - self.cities[self.tour[-1]]
        is_left = np.ones(self.n_cities)
        is_left[self.tour] = 0.0
        return np.column_stack([relative, np.hypot(*relative.T), is_left]).astype(np.float32).ravel()


def shortest_tour_length(cities: npt.ArrayLike) -> float:
    """
    Compute the length of the shortest tour by dynamic programming (Bellman 1962; Held & Karp 1962).

    For every set of cities and every last city in it, the shortest path from city 0 through the set follows from the shortest
    paths through one city fewer.

    :param cities: Positions of at most 12 cities, shape ``(n_cities, 2)``.
    :return: The length.
    :raises ValueError: If there are more than 12 cities.
    """
    positions = np.asarray(cities, dtype=np.float64)
    n = len(positions)
    if n > MAX_EXACT_CITIES:
        raise ValueError(f"cities: the shortest tour is computed for at most {MAX_EXACT_CITIES}, not {n}")
    distances = np.hypot(*(positions[:, None] - positions).T)
    # Bit k of a set stands for city k + 1; shortest[set, k] is the shortest path that ends there
    shortest = np.full((1 << (n - 1), n - 1), np.inf)
    for k in range(n - 1):
        shortest[1 << k, k] = distances[0, k + 1]
    for visited in range(1, 1 << (n - 1)):
        for k in range(n - 1):
            before = visited & ~(1 << k)
            if visited >> k & 1 and before:
                shortest[visited, k] = np.min(shortest[before] + distances[1:, k + 1])
    return float(np.min(shortest[-1] + distances[1:, 0]))
