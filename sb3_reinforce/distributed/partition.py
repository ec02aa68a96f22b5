"""Which steps of a training in several processes are those of this process."""

from typing import Any, NamedTuple

from sb3_reinforce.functional.returns import Array, IntArray


class Partition(NamedTuple):
    """
    The steps of this process among those of all processes.

    :param episode_lengths: Steps of each episode of all processes, in their order, shape ``(n_episodes,)``.
    :param start: The first step of this process.
    :param stop: The step after its last.
    """

    episode_lengths: IntArray
    start: int
    stop: int

    @property
    def n_steps(self) -> int:
        """Number of steps of all processes."""
        return int(self.episode_lengths.sum())

    def local_steps(self, steps: Any) -> Any:
        """Pick the steps of this process from a slice or a tensor of indices, and count them from its first step."""
        if isinstance(steps, slice):
            start = min(max(steps.start, self.start), self.stop)
            return slice(start - self.start, max(start, min(steps.stop, self.stop)) - self.start)
        if self.stop - self.start == self.n_steps:
            return steps
        return steps[(steps >= self.start) & (steps < self.stop)] - self.start

    def local_numbers(self, numbers: Array) -> Array:
        """Pick the numbers of this process from those of all steps."""
        return numbers[self.start : self.stop]


def single_partition(episode_lengths: IntArray) -> Partition:
    """The partition of a single process."""
    return Partition(episode_lengths, 0, int(episode_lengths.sum()))
