"""Paths through environments that are small enough to enumerate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


class Path(NamedTuple):
    """
    One possible episode of an environment, from start to end.

    :param probability: Probability of the path under the policy and the environment together.
    :param observations: Observations in which the agent acted, shape ``(n_steps, n_features)``.
    :param actions: Shape ``(n_steps,)``.
    :param rewards: Shape ``(n_steps,)``.
    """

    probability: float
    observations: FloatArray
    actions: npt.NDArray[np.int64]
    rewards: FloatArray


def make_path(probability: float, steps: Sequence[tuple[Any, int, float]]) -> Path:
    """Make a path from the observation, action and reward of each step."""
    observations, actions, rewards = zip(*steps, strict=True)
    return Path(
        float(probability),
        np.array(observations, dtype=np.float32),
        np.array(actions, dtype=np.int64),
        np.array(rewards, dtype=np.float32),
    )
