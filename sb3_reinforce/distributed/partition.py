"""Which of the steps of all processes are those of this process."""

from typing import Any, NamedTuple

from sb3_reinforce.functional.returns import Array, IntArray


class Partition(NamedTuple):
    """
    Where the episodes of this process are among those of all.

    :param episode_lengths: Steps of each episode of all processes, in their order, shape ``(n_episodes,)``.
    :param start: The first step of this process.
    :param stop: The one after its last.
    """

    episode_lengths: IntArray
    start: int
    stop: int

    @property
    def n_steps(self) -> int:
        """Number of steps of all processes."""
        return int(self.episode_lengths.sum())

    def local_steps(self, steps: Any) -> Any:
        """
        Pick those steps that this process has.

        :param steps: Of the episodes of all processes: a slice with start and stop, or a tensor of indices.
        :return: The same kind, counted from the first step of this process.
        """
        if isinstance(steps, slice):
            start = min(max(steps.start, self.start), self.stop)
            return slice(start - self.start, max(start, min(steps.stop, self.stop)) - self.start)
        if self.stop - self.start == self.n_steps:
            return steps
        return steps[(steps >= self.start) & (steps < self.stop)] - self.start

    def local_numbers(self, numbers: Array) -> Array:
        """
        Pick the numbers of the steps that this process has.

        :param numbers: Of the steps of all processes, shape ``(n_steps,)``.
        :return: Shape ``(stop - start,)``.
        """
        return numbers[self.start : self.stop]


def single_partition(episode_lengths: IntArray) -> Partition:
    """Make the partition of one process that has all episodes."""
    return Partition(episode_lengths, 0, int(episode_lengths.sum()))
