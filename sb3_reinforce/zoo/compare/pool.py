"""
Parallel runs by Dask, each in a separate process, on the cores of this machine or on a cluster.

A worker starts one child process per run and sends the output folder back, so no shared folder is needed.
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

#: The resource that workers with a GPU declare, named as in ``dask cuda worker`` and Dask's documentation.
GPU = "GPU"
#: Seconds to wait for a scheduler.
CONNECT_SECONDS = 10
#: Seconds between two checks of whether a run is still wanted.
POLL_SECONDS = 0.2


class Job(NamedTuple):
    """
    One run: a process that writes ``RESULT_FILE`` if it succeeds.

    :param command: Arguments of the Python interpreter; the process's output folder is appended.
    :param instructions: The first line of its standard input. The process ends when standard input is closed.
    :param folder: Folder that receives the output, even if the run fails. Existing contents are replaced.
    """

    name: str
    command: Sequence[str]
    instructions: str
    folder: Path


class RunKilled(Exception):
    """The run was killed from outside and may well succeed next time."""


class OtherVersions(Exception):
    """The results of a worker would not be comparable."""


class Pool(NamedTuple):
    """
    The machine or cluster on which runs are executed.

    :param jobs: Concurrent runs on this machine if there is no scheduler.
    :param scheduler: Address of a cluster's scheduler; its workers execute as many concurrent runs as they have threads.
    :param gpus_per_run: Fraction of a GPU per run; None for runs without a GPU.
    :param retries: Number of retries of a killed run. A run that fails by itself is not retried: it would fail again.
    """

    jobs: int = 1
    scheduler: str | None = None
    gpus_per_run: float | None = None
    retries: int = 1

    def run(self, jobs: Sequence[Job], n_finished: int, on_end: Callable[[Job, str | None], None]) -> None:
        """
        Execute runs in order, with a progress bar. An interrupt or an error here ends the running processes.

        :param n_finished: Number of runs already finished, for the progress bar.
        :param on_end: Called once a run has ended and its folder exists, with the reason for its failure, or None for success.
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
                    # One group of tasks: Dask assigns those that can start soon
                    key=(group, index),
                    pure=False,
                    retries=self.retries,
                    # By default Dask does not follow the order of submission
                    priority=-index,
                    resources=None if self.gpus_per_run is None else {GPU: self.gpus_per_run},
                ): job
                for index, job in enumerate(jobs)
            }
            for future in as_completed(futures, loop=client.loop):
                job = futures.pop(future)
                failure = self._collect(future, job)
                # Otherwise Dask would repeat the run if its worker is lost later
                future.release()
                progress.update()
                if failure is not None:
                    progress.write(f"FAILED {job.name}: {failure}", file=sys.stderr)
                on_end(job, failure)

    def _collect(self, future: Future[tuple[bytes, str | None]], job: Job) -> str | None:
        """Fetch the output of a run, and return the reason for its failure, if it failed."""
        try:
            archive, failure = future.result()
        except CancelledError as error:
            raise UserError(f"{self.scheduler} is lost: the same command goes on from the finished runs") from error
        except OtherVersions as error:
            raise UserError(f"--scheduler {self.scheduler}: {error}") from error
        except Exception as error:
            # The log of an earlier attempt does not explain this failure
            shutil.rmtree(job.folder, ignore_errors=True)
            return " ".join(str(error).split())
        try:
            unpack(archive, job.folder)
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{job.folder}: {error}") from error
        return failure

    @contextlib.contextmanager
    def _connect(self) -> Iterator[tuple[Client, Sequence[str]]]:
        """Yield a client, and the GPUs by worker name if workers do not know their own."""
        with contextlib.ExitStack() as stack:
            if self.scheduler is None:
                gpus = [] if self.gpus_per_run is None else list_gpus()[: self.jobs]
                n_workers = max(1, len(gpus))
                # Profiling the threads is useful only for computations in them, and a machine that was suspended is not a lost
                # worker
                settings = {"distributed.worker.profile.enabled": False, "distributed.scheduler.worker-ttl": None}
                stack.enter_context(dask.config.set(settings))
                cluster = LocalCluster(
                    processes=False,
                    n_workers=n_workers,
                    threads_per_worker=self.jobs // n_workers,
                    memory_limit=0,
                    resources={GPU: 1} if gpus else {},
                    silence_logs=logging.CRITICAL + 1,
                    # Dask always serves a health page: restrict it to this machine
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    worker_dashboard_address="127.0.0.1:0",
                )
                yield stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False)), gpus
                return
            try:
                # Check first: a client that fails to connect leaves its event loop behind
                asyncio.run(reach(self.scheduler))
            except (OSError, ValueError, TypeError, RuntimeError) as error:
                raise UserError(f"--scheduler {self.scheduler}: {' '.join(str(error).split())}") from error
            # Dask logs many lines when a scheduler is lost
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL + 1))
            client = stack.enter_context(Client(self.scheduler, timeout=CONNECT_SECONDS, set_as_default=False))
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            if not workers:
                print(f"{self.scheduler} has no worker yet: the runs wait for one", file=sys.stderr)
            elif self.gpus_per_run is not None and all(GPU not in worker["resources"] for worker in workers):
                raise UserError(f'--gpus-per-run: no worker of {self.scheduler} has any (dask worker --resources "GPU=1")')
            yield client, []


async def reach(address: str) -> None:
    """Check that a scheduler exists and accepts this process."""
    comm = await connect(address, timeout=CONNECT_SECONDS, **Security().get_connection_args("client"))
    await comm.close()


@contextlib.contextmanager
def interrupted_by_termination() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C: a stopped service must end its runs too."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def guard(job: Job, versions: Mapping[str, str], gpus: Sequence[str]) -> tuple[bytes, str | None]:
    """
    Execute one run in a thread of a Dask worker, which may have joined late and must have the same versions.

    :param gpus: GPUs by worker name; empty if the workers' own environments determine their GPUs.
    :return: The run's output folder as a tar archive, and the reason for its failure, or None for success. A failure is not
        raised: Dask would retry the run as if it had been killed.
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
                # Ctrl-C must reach the command only: RL Zoo would save the unfinished model as if it were finished
                start_new_session=True,
            ) as child,
        ):
            try:
                assert child.stdin is not None
                # A child that died before reading its instructions logs the reason itself
                with contextlib.suppress(BrokenPipeError):
                    # Standard input stays open: the child ends when this process ends
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
    """Wait for a child process, and kill it once its result is no longer wanted: Dask cannot stop its threads."""
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
    """Pack a folder into an uncompressed tar archive, since models are already compressed."""
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        archive.add(folder, ".")
    return buffer.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Write a folder so that it is never seen half-written, replacing the output of an earlier attempt."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(unfinished, filter="data")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)


def list_gpus() -> list[str]:
    """List a value of ``CUDA_VISIBLE_DEVICES`` for each GPU of this machine."""
    count = th.cuda.device_count()
    if count == 0:
        raise UserError("--gpus-per-run: PyTorch finds no GPU on this machine")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]
