"""
What the processes of one training share, by ``torch.distributed``; the identity in one process.

Numbers are gathered and sums are added up, but nothing is ever averaged over ranks: they hold different numbers of steps and
episodes, and a mean of their means would be the mean of something else.
"""

import atexit
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from torch import distributed

T = TypeVar("T")

#: What torchrun tells the processes that it starts.
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: How long a process that ends waits for the threads of gloo, which need milliseconds.
LEAVING_SECONDS = 0.1

#: What gloo, NCCL and PyTorch's store say where another process closed its connection, or has not answered in time.
LOST_PROCESS = re.compile(
    r"connection (was likely )?(closed|reset|refused)|broken pipe|timed?[ -]?out|remote (process|error)", re.IGNORECASE
)


class ProcessError(RuntimeError):
    """Something failed on one rank, so that all of them stop; or another rank is gone."""


class ProcessGroup(NamedTuple):
    """
    The processes of one training, as one of them sees it.

    :param rank: The number of this process, from 0. Rank 0 alone has callbacks, logs and files.
    :param size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, total: int) -> int:
        """
        Divide something that can be counted.

        :param total: How much there is.
        :return: How much of it is this rank's. No two ranks differ by more than 1.
        """
        return total // self.size + (self.rank < total % self.size)

    def gather(self, compute: Callable[[], T]) -> list[T]:
        """
        Let every rank compute something, and hand all results to all.

        :param compute: Called once; its result is pickled.
        :return: The results in the order of the ranks.
        :raises ProcessError: If it failed on a rank, which is named, or its result cannot be pickled; or if a rank is gone.
        """
        if self.size == 1:
            return [compute()]
        # Pickled before the exchange, in which a rank that failed would leave the others waiting
        packed, error = _attempt(lambda: pickle.dumps(compute()))
        results: list[Any] = [None] * self.size
        with _peers_expected():
            distributed.all_gather_object(results, (packed, None if error is None else _describe(error)))
        _refuse([description for _, description in results], error)
        return [pickle.loads(packed) for packed, _ in results]

    def broadcast(self, compute: Callable[[], T]) -> T:
        """
        Let rank 0 compute something, and hand it to all.

        :param compute: Called once on rank 0; its result is pickled.
        :return: The same object on rank 0, a copy of it elsewhere.
        :raises ProcessError: If it failed, or its result cannot be pickled; or if a rank is gone.
        """
        if self.size == 1:
            return compute()
        value: Any
        value, error = _attempt(compute) if self.rank == 0 else (None, None)
        packed, error = _attempt(lambda: pickle.dumps(value)) if error is None else (None, error)
        results: list[Any] = [(packed, None if error is None else _describe(error))]
        with _peers_expected():
            distributed.broadcast_object_list(results, src=0)
        _refuse([results[0][1]], error)
        received: T = value if self.rank == 0 else pickle.loads(results[0][0])
        return received

    def sum(self, tensor: th.Tensor) -> th.Tensor:
        """
        Add up a tensor over all ranks.

        :param tensor: Of the same shape everywhere; changed in place.
        :return: The sum, to the last bit the same on all ranks.
        :raises ProcessError: If a rank is gone.
        """
        if self.size > 1:
            with _peers_expected():
                distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(
        self, parameters: Sequence[th.nn.Parameter], compute: Callable[[], Sequence[float]], n_numbers: int
    ) -> Sequence[float]:
        """
        Let every rank compute its part of a gradient, and add the parts up, in a single reduction.

        :param parameters: Their ``grad`` may be None on some ranks; it is None afterwards where it was on all.
        :param compute: Called once; adds to ``grad`` and returns numbers, which are added up as well.
        :param n_numbers: How many.
        :return: The sums of the numbers.
        :raises ProcessError: If it failed on a rank, which is named; or if a rank is gone.
        """
        if self.size == 1:
            return compute()
        if not parameters:
            return [sum(numbers) for numbers in zip(*self.gather(compute), strict=True)]
        numbers, error = _attempt(compute)
        # A rank that failed takes part all the same: the others would wait for it
        failed = np.arange(self.size) == (self.rank if error is not None else -1)
        has_gradient = [parameter.grad is not None for parameter in parameters]
        parts = [*failed.tolist(), *has_gradient, *(numbers or [0.0] * n_numbers)]
        gradients = [th.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = th.cat([parameters[0].new_tensor(parts), *(gradient.reshape(-1) for gradient in gradients)])
        parts_sum, *gradient_sums = th.split(self.sum(flat), [len(parts), *(parameter.numel() for parameter in parameters)])
        failures, gradient_flags, sums = np.split(parts_sum.cpu().numpy(), [self.size, self.size + len(parameters)])
        if failures.any():
            self.gather(lambda: _raise(error))
        for parameter, gradient_sum, flag in zip(parameters, gradient_sums, gradient_flags, strict=True):
            if flag > 0:
                parameter.grad = gradient_sum.view_as(parameter)
        return [float(number) for number in sums]

    def device_of(self, device: th.device) -> th.device:
        """
        Choose a GPU of its own for each rank of a machine, as far as there are enough.

        :param device: The one that was asked for.
        :return: The same, with a number if it is a GPU without one.
        """
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        return th.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % th.cuda.device_count())


#: One process, as ever.
SINGLE_PROCESS = ProcessGroup()


def join_process_group(device: th.device) -> ProcessGroup:
    """
    Meet the other processes that torchrun started, or take the process group that there is already.

    :param device: Of the model. With a GPU for every rank of the machine, what lies on them is added up by NCCL, the rest
        by gloo.
    :return: This process among them.
    :raises ValueError: If torchrun has not started this process.
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
        with _peers_expected():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if has_own_gpu else "gloo")
        atexit.register(leave_process_group)
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size())


def leave_process_group() -> None:
    """Leave the process group. A process that ends without this, or right after its last exchange, may abort."""
    if distributed.is_initialized():
        # A thread of gloo lets go of the last tensors, which it needs the interpreter for: one that is gone ends the process
        time.sleep(LEAVING_SECONDS)
        distributed.destroy_process_group()


@contextmanager
def _peers_expected() -> Iterator[None]:
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


def _attempt(compute: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return compute(), None
    except Exception as error:
        return None, error


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _refuse(descriptions: Sequence[str | None], own_error: Exception | None) -> None:
    failed = [f"Rank {rank} failed with {text}" for rank, text in enumerate(descriptions) if text is not None]
    if failed:
        raise ProcessError("; ".join(failed)) from own_error
