"""Which of the steps of all processes are those of this process."""

from typing import Any, NamedTuple

import torch as th

from sb3_reinforce.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sb3_reinforce.functional.returns import Array, IntArray


class Partition(NamedTuple):
    """
    Where the episodes of one rank are among those of all; by default it has all of them.

    :param ranks: The processes.
    :param episode_lengths: Of all episodes in the order of the ranks, shape ``(n_episodes,)``; None with one rank.
    :param start: The first step of this rank, counted over all.
    :param stop: The one after its last.
    """

    ranks: ProcessGroup = SINGLE_PROCESS
    episode_lengths: IntArray | None = None
    start: int = 0
    stop: int = 0

    def own(self, steps: Any) -> Any:
        """
        Pick those steps that this rank has.

        :param steps: Of the episodes of all ranks: a slice, or a tensor of indices.
        :return: The same kind, counted from the first step of this rank.
        """
        if self.episode_lengths is None:
            return steps
        if isinstance(steps, slice):
            chosen = range(*steps.indices(int(self.episode_lengths.sum())))
            first = chosen.start + max(0, -(-(self.start - chosen.start) // chosen.step)) * chosen.step
            return slice(first - self.start, max(first, min(chosen.stop, self.stop)) - self.start, chosen.step)
        return steps[(steps >= self.start) & (steps < self.stop)] - self.start

    def of(self, numbers: Array) -> Array:
        """
        Pick the numbers of those steps that this rank has.

        :param numbers: Of the steps of all ranks, shape ``(n_steps,)``.
        :return: Shape ``(stop - start,)``.
        """
        return numbers if self.episode_lengths is None else numbers[self.start : self.stop]


def count_steps(steps: slice | th.Tensor, n_steps: int) -> int:
    """
    Count chosen steps.

    :param steps: A slice, or a tensor of indices.
    :param n_steps: Number of those that they are chosen from.
    :return: How many are chosen.
    """
    return len(range(n_steps)[steps]) if isinstance(steps, slice) else len(steps)
