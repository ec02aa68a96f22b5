"""
Runs side by side, each in a process of its own, by Dask: on the cores of this machine, or on a cluster.

A worker starts one child process per run, and sends back what it leaves, so that no folder has to be shared.
"""

import asyncio
import contextlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import NamedTuple

import dask
import torch as th
from dask.typing import Key
from distributed import Client, Future, LocalCluster, Worker, as_completed, get_worker
from distributed.comm.core import connect
from distributed.core import Status
from distributed.security import Security
from distributed.utils import silence_logging_cmgr
from tqdm import tqdm

from sb3_reinforce.zoo.compare.run_files import LOG_FILE, RESULT_FILE, explain_failure, installed_versions
from sb3_reinforce.zoo.errors import UserError

#: The resource that workers with a GPU declare, as ``dask cuda worker`` and Dask's own documentation call it.
GPU = "GPU"
#: Seconds to wait for a scheduler.
CONNECT_SECONDS = 10
#: Seconds between two looks at whether a run is still wanted.
POLL_SECONDS = 0.2


class Job(NamedTuple):
    """
    One run: a process that leaves ``RESULT_FILE`` if it succeeds.

    :param command: Arguments of the Python interpreter; the folder that the process may write into is appended.
    :param instructions: The first line of its standard input. The process ends when that is closed.
    :param folder: Where what it leaves is kept, also if it fails. What is there is replaced.
    """

    name: str
    command: Sequence[str]
    instructions: str
    folder: Path


class RunKilled(Exception):
    """A run that was ended from outside, and may well succeed the next time."""


class OtherVersions(Exception):
    """A worker whose results would not be comparable."""


class Pool(NamedTuple):
    """
    Where runs are done.

    :param jobs: Runs at a time on this machine, if there is no scheduler.
    :param scheduler: Address of the scheduler of a cluster, whose workers do as many runs at a time as they have threads.
    :param gpus_per_run: Part of a GPU that each run takes; None for runs without one.
    :param retries: How often a run is done again that was killed. A run that fails by itself is not: it would fail again.
    """

    jobs: int = 1
    scheduler: str | None = None
    gpus_per_run: float | None = None
    retries: int = 1

    def run(self, jobs: Sequence[Job], n_finished: int, on_end: Callable[[Job, str | None], None]) -> None:
        """
        Do runs in order, with a progress bar. If the user interrupts, or anything fails, the running processes are ended.

        :param n_finished: Number of runs that need not be done, for the progress.
        :param on_end: Called when a run has ended and its folder is there, with why it failed, None if it succeeded.
        """
        if not jobs:
            return
        with (
            interrupted_by_termination(),
            self._connect() as (client, gpus),
            tqdm(total=n_finished + len(jobs), initial=n_finished, desc="compare", unit="run") as progress,
        ):
            group = f"sb3-reinforce-{uuid.uuid4().hex}"
            futures = {
                client.submit(
                    guard,
                    job._replace(folder=Path()),
                    installed_versions(),
                    gpus,
                    # One group of tasks, of which Dask hands out what can start soon
                    key=(group, index),
                    pure=False,
                    retries=self.retries,
                    # Dask's own order is not that of submission
                    priority=-index,
                    resources=None if self.gpus_per_run is None else {GPU: self.gpus_per_run},
                ): job
                for index, job in enumerate(jobs)
            }
            for future in as_completed(futures, loop=client.loop):
                job = futures.pop(future)
                failure = self._collect(future, job)
                # Else a worker that is lost later would have it done again
                future.release()
                progress.update()
                if failure is not None:
                    progress.write(f"FAILED {job.name}: {failure}", file=sys.stderr)
                on_end(job, failure)

    def _collect(self, future: Future[tuple[bytes, str | None]], job: Job) -> str | None:
        """Fetch what a run left, and say why it failed, if it did."""
        try:
            archive, failure = future.result()
        except CancelledError as error:
            raise UserError(f"{self.scheduler} is lost: the same command goes on from the finished runs") from error
        except OtherVersions as error:
            raise UserError(f"--scheduler {self.scheduler}: {error}") from error
        except Exception as error:
            # What an earlier attempt printed does not explain this one
            shutil.rmtree(job.folder, ignore_errors=True)
            return " ".join(str(error).split())
        try:
            unpack(archive, job.folder)
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{job.folder}: {error}") from error
        return failure

    @contextlib.contextmanager
    def _connect(self) -> Iterator[tuple[Client, Sequence[str]]]:
        """Provide a client, and the GPUs of the workers by their name, where workers do not know their own."""
        with contextlib.ExitStack() as stack:
            if self.scheduler is None:
                gpus = [] if self.gpus_per_run is None else list_gpus()[: self.jobs]
                n_workers = max(1, len(gpus))
                # Watching what threads do is for those who compute in them, and a machine that was suspended is not a worker
                # that was lost
                settings = {"distributed.worker.profile.enabled": False, "distributed.scheduler.worker-ttl": None}
                stack.enter_context(dask.config.set(settings))
                cluster = LocalCluster(
                    processes=False,
                    n_workers=n_workers,
                    threads_per_worker=self.jobs // n_workers,
                    memory_limit=0,
                    resources={GPU: 1} if gpus else {},
                    silence_logs=logging.CRITICAL + 1,
                    # Dask always serves a page about its health: to this machine only
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    worker_dashboard_address="127.0.0.1:0",
                )
                yield stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False)), gpus
                return
            try:
                # A client that could not be made leaves its event loop behind
                asyncio.run(reach(self.scheduler))
            except (OSError, ValueError, TypeError, RuntimeError) as error:
                raise UserError(f"--scheduler {self.scheduler}: {' '.join(str(error).split())}") from error
            # Dask logs how a scheduler was lost, in many lines
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL + 1))
            client = stack.enter_context(Client(self.scheduler, timeout=CONNECT_SECONDS, set_as_default=False))
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            if not workers:
                print(f"{self.scheduler} has no worker yet: the runs wait for one", file=sys.stderr)
            elif self.gpus_per_run is not None and all(GPU not in worker["resources"] for worker in workers):
                raise UserError(f'--gpus-per-run: no worker of {self.scheduler} has any (dask worker --resources "GPU=1")')
            yield client, []


async def reach(address: str) -> None:
    """Check that there is a scheduler, which lets this process in."""
    comm = await connect(address, timeout=CONNECT_SECONDS, **Security().get_connection_args("client"))
    await comm.close()


@contextlib.contextmanager
def interrupted_by_termination() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: a stopped service must end its runs too."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def guard(job: Job, versions: Mapping[str, str], gpus: Sequence[str]) -> tuple[bytes, str | None]:
    """
    Do one run, in a thread of a worker of Dask, which may have joined late and must have the same versions.

    :param gpus: GPUs of the workers by their name, none where a worker's own environment says what it may use.
    :return: What the run left, as tar, and why it failed, None if it succeeded: Dask repeats what raises, as if the run was
        killed.
    """
    worker, found = get_worker(), installed_versions()
    if differences := [
        f"{name} {found.get(name, 'missing')} (here {versions.get(name, 'missing')})"
        for name in {**versions, **found}
        if versions.get(name) != found.get(name)
    ]:
        raise OtherVersions(f"other versions than here: {worker.address} has {', '.join(differences)}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker.name]
    with tempfile.TemporaryDirectory(dir=worker.local_directory) as name:
        folder = Path(name)
        with (
            (folder / LOG_FILE).open("w") as log,
            subprocess.Popen(
                [sys.executable, *job.command, name],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env=environment,
                # Ctrl-C is for the command only: RL Zoo would save the unfinished model as if nothing had happened
                start_new_session=True,
            ) as child,
        ):
            try:
                assert child.stdin is not None
                # A child that did not live to hear it says why on its own
                with contextlib.suppress(BrokenPipeError):
                    # Standard input stays open: the child ends when this process is gone
                    child.stdin.write(f"{job.instructions}\n")
                    child.stdin.flush()
                wait(child, worker, worker.get_current_task())
            finally:
                child.kill()
        if (folder / RESULT_FILE).exists():
            return pack(folder), None
        failure = explain_failure(child.returncode, (folder / LOG_FILE).read_text(errors="replace"))
        if child.returncode < 0:
            raise RunKilled(failure)
        return pack(folder), failure


def wait(child: "subprocess.Popen[str]", worker: Worker, key: Key) -> None:
    """Wait for the end of a child process, and end it when nobody wants its result: Dask cannot stop its threads."""
    while True:
        try:
            child.wait(POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            task = worker.state.tasks.get(key)
            is_leaving = worker.status in (Status.closing, Status.closed, Status.failed)
            if task is None or task.state == "cancelled" or is_leaving:
                child.kill()


def pack(folder: Path) -> bytes:
    """Put a folder into a tar archive, uncompressed, since models are compressed already."""
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        archive.add(folder, ".")
    return buffer.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Write a folder that is never seen half-written, in place of what an earlier attempt left there."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(unfinished, filter="data")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)


def list_gpus() -> list[str]:
    """List what ``CUDA_VISIBLE_DEVICES`` may be for each GPU of this machine."""
    count = th.cuda.device_count()
    if count == 0:
        raise UserError("--gpus-per-run: PyTorch finds no GPU on this machine")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]
