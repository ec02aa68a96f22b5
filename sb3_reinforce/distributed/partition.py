"""The steps of this process in distributed training."""

from typing import Any, NamedTuple

from sb3_reinforce.functional.returns import Array, IntArray


class Partition(NamedTuple):
    """
    The steps of this process among the steps of all processes.

    :param episode_lengths: Steps of each episode of all processes, in the order of the processes, shape ``(n_episodes,)``.
    :param start: Index of the first step of this process.
    :param stop: Index after the last step of this process.
    """

    episode_lengths: IntArray
    start: int
    stop: int

    @property
    def n_steps(self) -> int:
        """Total number of steps over all processes."""
        return int(self.episode_lengths.sum())

    def local_steps(self, steps: Any) -> Any:
        """Select the steps of this process from a slice or a tensor of indices, relative to its first step."""
        if isinstance(steps, slice):
            start = min(max(steps.start, self.start), self.stop)
            return slice(start - self.start, max(start, min(steps.stop, self.stop)) - self.start)
        if self.stop - self.start == self.n_steps:
            return steps
        return steps[(steps >= self.start) & (steps < self.stop)] - self.start

    def local_numbers(self, numbers: Array) -> Array:
        """Select this process's values from one value per step of all processes."""
        return numbers[self.start : self.stop]


def single_partition(episode_lengths: IntArray) -> Partition:
    """Return the partition of a single process."""
    return Partition(episode_lengths, 0, int(episode_lengths.sum()))
