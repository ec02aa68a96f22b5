"""
The processes of one training run and their collective operations, by ``torch.distributed``. In a single process every
operation is the identity.

Values are gathered and sums are added. Means are never averaged: processes hold different numbers of steps and episodes.
"""

import atexit
import os
import pickle
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch as th
from torch import distributed

T = TypeVar("T")

#: Environment variables that torchrun sets in the processes that it starts.
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: How long a process waits at its end for gloo's threads, which need milliseconds.
LEAVING_SECONDS = 0.1

#: Messages of gloo, NCCL and PyTorch's store when another process closed its connection or did not answer in time.
LOST_PROCESS = re.compile(
    r"connection (was likely )?(closed|reset|refused)|broken pipe|timed?[ -]?out|remote (process|error)", re.IGNORECASE
)


class ProcessError(RuntimeError):
    """One process failed, so all stop; or the connection to another process is lost."""


class ProcessGroup(NamedTuple):
    """
    The processes of one training run, as seen by one of them.

    Every process calls the same collective operations in the same order. Before each operation, the processes tell each other
    whether one of them has failed since the last one, so that none waits for a process that never arrives: the operation
    raises a ``ProcessError`` that names the failed process.

    :param rank: Rank of this process, from 0. Only process 0 has callbacks, logs and files.
    :param size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, total: int) -> int:
        """Return this process's share of a count. The shares of two processes differ by at most 1."""
        return total // self.size + (self.rank < total % self.size)

    def gather(self, value: T) -> list[T]:
        """Gather the pickled values of all processes in all processes, in the order of the ranks."""
        if self.size == 1:
            return [value]
        pickled = pickle.dumps(value)
        self._check_others()
        values: list[Any] = [None] * self.size
        with _lost_process_named():
            distributed.all_gather_object(values, pickled)
        return [pickle.loads(other) for other in values]

    def broadcast(self, value: T) -> T:
        """Broadcast the value of process 0: process 0 returns the same object, the others a copy."""
        if self.size == 1:
            return value
        pickled = [pickle.dumps(value) if self.rank == 0 else b""]
        self._check_others()
        with _lost_process_named():
            distributed.broadcast_object_list(pickled, src=0)
        return value if self.rank == 0 else pickle.loads(pickled[0])

    def sum(self, tensor: th.Tensor) -> th.Tensor:
        """Sum a tensor over all processes in place. The sum is bitwise identical in all of them."""
        if self.size > 1:
            self._check_others()
            with _lost_process_named():
                distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Sequence[th.nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """
        Sum gradients and a few numbers over all processes in one reduction, and return the sums of the numbers.

        A gradient that is None in some processes counts as zero there; a gradient that is None in all of them stays None.
        """
        if self.size == 1 or not parameters:
            return list(numbers) if self.size == 1 else self.sum(th.tensor(numbers, dtype=th.float64)).tolist()
        has_gradient = [float(parameter.grad is not None) for parameter in parameters]
        gradients = [th.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        head = parameters[0].new_tensor([*has_gradient, *numbers])
        flat = self.sum(th.cat([head, *(gradient.reshape(-1) for gradient in gradients)]))
        head_sum, *gradient_sums = th.split(flat, [len(head), *(parameter.numel() for parameter in parameters)])
        flags, sums = head_sum[: len(parameters)].tolist(), head_sum[len(parameters) :].tolist()
        for parameter, gradient_sum, flag in zip(parameters, gradient_sums, flags, strict=True):
            if flag > 0:
                parameter.grad = gradient_sum.view_as(parameter)
        return sums

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raise a ``ProcessError`` in all processes if this one fails inside the context; the error names it."""
        try:
            yield
        except ProcessError:
            raise
        except Exception as error:
            if self.size == 1:
                raise
            self._check_others(error)

    def device_of(self, device: th.device) -> th.device:
        """Choose a GPU for this process: a different one for each process on a machine if there are enough."""
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        return th.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % th.cuda.device_count())

    def _check_others(self, error: Exception | None = None) -> None:
        """Find out which processes have failed since the last operation, and tell them whether this one has."""
        failures = th.tensor([float(error is not None)])
        with _lost_process_named():
            distributed.all_reduce(failures)
            if failures.item() == 0:
                return
            descriptions: list[Any] = [None] * self.size
            local = None if error is None else " ".join(f"{type(error).__name__}: {error}".split())
            distributed.all_gather_object(descriptions, local)
        failed = [f"Process {rank} failed with {text}" for rank, text in enumerate(descriptions) if text is not None]
        raise ProcessError("; ".join(failed)) from error


#: The process group of training in one process.
SINGLE_PROCESS = ProcessGroup()


def join_process_group(device: th.device) -> ProcessGroup:
    """
    Join the processes that torchrun started, or use the existing process group.

    If every process on the machine has its own GPU, NCCL sums tensors on GPUs and gloo all others. Raises ``ValueError`` in
    a process that torchrun did not start.
    """
    if not distributed.is_available():
        raise ValueError("distributed=True needs a build of PyTorch with torch.distributed")
    if not distributed.is_initialized():
        missing = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
        if missing:
            raise ValueError(
                f"distributed=True needs processes that torchrun started, but {', '.join(missing)} is not set: "
                "torchrun --nproc-per-node 2 train.py"
            )
        if os.environ["WORLD_SIZE"] == "1":
            return SINGLE_PROCESS
        n_local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        has_own_gpu = device.type == "cuda" and th.cuda.device_count() >= n_local
        with _lost_process_named():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if has_own_gpu else "gloo")
        atexit.register(leave_process_group)
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size())


def leave_process_group() -> None:
    """Leave the process group. Without this, a process that ends right after its last operation may abort."""
    if distributed.is_initialized():
        # A gloo thread needs the interpreter to free the last tensors: without one it aborts the process
        time.sleep(LEAVING_SECONDS)
        distributed.destroy_process_group()


@contextmanager
def _lost_process_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if LOST_PROCESS.search(str(error)) is None:
            raise
        first_sentence = str(error).splitlines()[0].partition(". ")[0]
        raise ProcessError(
            "Another process of the training is gone, or did not answer in time: what it printed last says why "
            f"({first_sentence})"
        ) from error
