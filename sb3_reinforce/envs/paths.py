"""Paths through environments that are small enough to enumerate them."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


class Path(NamedTuple):
    """
    One way through an environment, from the start of an episode to its end.

    :param probability: Of the whole path, the policy's and the environment's randomness together.
    :param observations: In which the agent acted, shape ``(n_steps, n_features)``.
    :param actions: Shape ``(n_steps,)``.
    :param rewards: Shape ``(n_steps,)``.
    """

    probability: float
    observations: FloatArray
    actions: npt.NDArray[np.int64]
    rewards: FloatArray
