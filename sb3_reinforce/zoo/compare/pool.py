"""
Runs side by side, each in a process of its own, by Dask: on the cores of this machine, or on a cluster.

What a worker does is to guard one child process, and to send back what it leaves, so that no folder has to be shared.
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
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import IO, Any, NamedTuple

import dask
import torch as th
from dask.typing import Key
from distributed import Client, Future, LocalCluster, Worker, as_completed, get_worker
from distributed.comm.core import connect
from distributed.core import Status
from distributed.security import Security
from distributed.utils import silence_logging_cmgr
from distributed.versions import get_versions
from tqdm import tqdm

from sb3_reinforce.zoo.compare.failures import LOG_FILE, explain_failure
from sb3_reinforce.zoo.errors import UserError

#: The resource that workers with a GPU declare, as ``dask cuda worker`` and Dask's own documentation call it.
GPU = "GPU"
#: Seconds to wait for a scheduler.
CONNECT_SECONDS = 10
#: Seconds between two looks at whether a run is still wanted.
POLL_SECONDS = 0.2


class Job(NamedTuple):
    """
    One run.

    :param name: As the progress and messages call it.
    :param command: Arguments of the Python interpreter; the folder that the process may write into is appended. The process
        reads its instructions from the first line of standard input and ends when that is closed, may report its progress
        on standard output, one fraction a line, and leaves ``result_file`` if it succeeds.
    :param instructions: What it is to do, in one line.
    :param folder: Where what it leaves is kept, also if it fails. What is there is replaced.
    :param result_file: Name of a file that is there only if the run succeeded.
    """

    name: str
    command: Sequence[str]
    instructions: str
    folder: Path
    result_file: str


class Outcome(NamedTuple):
    """
    What a run left.

    :param archive: Its folder, as tar.
    :param failure: Why it failed; None if it succeeded.
    """

    archive: bytes
    failure: str | None


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
    :param packages: Packages that a cluster must have in the same versions as this process, beside Dask's.
    :param is_timed: Whether the runs have a budget in seconds, so that unlike machines are worth a warning.
    :param title: What the progress bar is called.
    """

    jobs: int = 1
    scheduler: str | None = None
    gpus_per_run: float | None = None
    retries: int = 1
    packages: Sequence[str] = ()
    is_timed: bool = False
    title: str = "compare"

    def run(self, jobs: Sequence[Job], n_finished: int, on_end: Callable[[Job, str | None], None]) -> None:
        """
        Do runs, with one progress bar over all.

        :param jobs: The runs, of which the first are done first.
        :param n_finished: Number of runs that need not be done, for the progress.
        :param on_end: Called when a run has ended and its folder is there, with why it failed, None if it succeeded.
        :raises UserError: If there is no such scheduler, or its workers have other versions, before anything is done; if it is
            lost, or a folder cannot be written.
        :raises KeyboardInterrupt: If the user interrupts, or somebody asks this process to end. Whatever raises, the running
            processes are ended.
        """
        if not jobs:
            return
        topic = f"sb3-reinforce-{uuid.uuid4().hex}"
        with (
            interrupted_by_termination(),
            self._connect() as (client, gpus),
            Progress(self.title, jobs, n_finished) as progress,
        ):
            client.subscribe_topic(topic, lambda event: progress.show(*event[1]))
            versions = installed_versions(self.packages)
            futures = {
                client.submit(
                    guard,
                    job._replace(folder=Path()),
                    (topic, index),
                    versions,
                    gpus,
                    # One group of tasks, of which Dask hands out what can start soon
                    key=(topic, index),
                    pure=False,
                    retries=self.retries,
                    # Dask's own order is not that of submission
                    priority=-index,
                    resources=None if self.gpus_per_run is None else {GPU: self.gpus_per_run},
                ): index
                for index, job in enumerate(jobs)
            }
            for future in as_completed(futures, loop=client.loop):
                index = futures.pop(future)
                failure = self._collect(future, jobs[index])
                # Else a worker that is lost later would have it done again
                future.release()
                progress.end(index, failure)
                on_end(jobs[index], failure)

    def _collect(self, future: Future[Outcome], job: Job) -> str | None:
        """
        Fetch what a run left.

        :return: Why it failed, None if it succeeded.
        :raises UserError: If nothing more can be expected.
        """
        try:
            outcome = future.result()
        except CancelledError as error:
            raise UserError(f"{self.scheduler} is lost: the same command goes on from the finished runs") from error
        except OtherVersions as error:
            raise UserError(f"--scheduler {self.scheduler}: {error}") from error
        except Exception as error:
            # What an earlier attempt printed does not explain this one
            shutil.rmtree(job.folder, ignore_errors=True)
            return " ".join(str(error).split())
        try:
            unpack(outcome.archive, job.folder)
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{job.folder}: {error}") from error
        return outcome.failure

    @contextlib.contextmanager
    def _connect(self) -> Iterator[tuple[Client, Sequence[str]]]:
        """Provide a client, and the GPUs of the workers by their name, where workers do not know their own."""
        if self.scheduler is None:
            gpus = [] if self.gpus_per_run is None else list_gpus()[: self.jobs]
            n_workers = max(1, len(gpus))
            with (
                # Watching what threads do is for those who compute in them, and nobody here is gone who was not heard of: a
                # machine that was suspended is not a worker that was lost
                dask.config.set({"distributed.worker.profile.enabled": False, "distributed.scheduler.worker-ttl": None}),
                LocalCluster(
                    processes=False,
                    n_workers=n_workers,
                    threads_per_worker=self.jobs // n_workers,
                    memory_limit=0,
                    resources={GPU: 1} if gpus else {},
                    silence_logs=logging.CRITICAL + 1,
                    # Dask always serves its health: not to the world
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    worker_dashboard_address="127.0.0.1:0",
                ) as cluster,
                Client(cluster, set_as_default=False) as client,
            ):
                yield client, gpus
        else:
            try:
                # A client that could not be made would take its time to give up, and then say so in a traceback
                asyncio.run(reach(self.scheduler))
            except (OSError, ValueError, TypeError, RuntimeError) as error:
                raise UserError(f"--scheduler {self.scheduler}: {' '.join(str(error).split())}") from error
            with (
                # Dask logs how a scheduler was lost, in many lines
                silence_logging_cmgr(logging.CRITICAL + 1),
                Client(self.scheduler, timeout=CONNECT_SECONDS, set_as_default=False) as client,
            ):
                self._check_cluster(client)
                yield client, []

    def _check_cluster(self, client: Client) -> None:
        """
        Check that a cluster can do the runs.

        :raises UserError: If not.
        """
        found: Any = client.get_versions(packages=list(self.packages))
        wanted = installed_versions(self.packages)
        problems = [
            f"{name} has {differences}"
            for name, machine in {"the scheduler": found["scheduler"], **found["workers"]}.items()
            if (differences := list_differences(wanted, machine["packages"]))
        ]
        if problems:
            raise UserError(f"--scheduler {self.scheduler}: other versions than here: {'; '.join(problems)}")
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if not workers:
            print(f"{self.scheduler} has no worker yet: the runs wait for one", file=sys.stderr)
        elif self.gpus_per_run is not None and all(GPU not in worker["resources"] for worker in workers):
            raise UserError(f'--gpus-per-run: no worker of {self.scheduler} has any (dask worker --resources "GPU=1")')
        if self.is_timed:
            # Here, since a scheduler imports this module too, and needs nothing of RL Zoo
            from sb3_reinforce.zoo.compare.run import cpu_model

            processors = sorted(set(client.run(cpu_model).values()))
            if len(processors) > 1:
                print(
                    f"Warning: the same seconds are not the same work on unlike machines ({'; '.join(processors)})",
                    file=sys.stderr,
                )


class Progress:
    """
    The progress bar over all runs.

    :param title: Its name.
    :param jobs: The runs to be done.
    :param n_finished: Number of those that need not be done.
    """

    def __init__(self, title: str, jobs: Sequence[Job], n_finished: int) -> None:
        self.jobs = jobs
        self._n_finished = n_finished
        self._spent: dict[int, float] = {}
        self._ended: set[int] = set()
        self._lock = threading.Lock()
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}, left {remaining}{postfix}]"
        self._bar = tqdm(total=n_finished + len(jobs), initial=n_finished, desc=title, bar_format=bar_format, mininterval=1.0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, index: int, spent: float) -> None:
        """
        Take note of how far a run is.

        :param index: The run.
        :param spent: The part of it that is done.
        """
        with self._lock:
            # The last report may come after the result
            if index not in self._ended:
                self._spent[index] = spent
                self._draw()

    def end(self, index: int, failure: str | None) -> None:
        """
        Take note of the end of a run.

        :param index: The run.
        :param failure: Why it failed, None if it succeeded.
        """
        with self._lock:
            self._ended.add(index)
            self._spent.pop(index, None)
            self._draw()
            if failure is not None:
                self._bar.write(f"FAILED {self.jobs[index].name}: {failure}", file=sys.stderr)

    def _draw(self) -> None:
        self._bar.update(self._n_finished + len(self._ended) + sum(self._spent.values()) - self._bar.n)
        running = ", ".join(self.jobs[index].name for index in sorted(self._spent))
        self._bar.set_postfix_str(f"running: {running or 'none'}", refresh=False)


async def reach(address: str) -> None:
    """
    Check that there is a scheduler, which lets this process in.

    :param address: Its address.
    :raises OSError: If there is none, or it wants other certificates.
    :raises ValueError: If this is no address.
    :raises TypeError: If this process has no certificates where they are needed.
    :raises RuntimeError: If this process must not connect without certificates.
    """
    comm = await connect(address, timeout=CONNECT_SECONDS, **Security().get_connection_args("client"))
    await comm.close()


@contextlib.contextmanager
def interrupted_by_termination() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: a stopped service must end its runs too."""

    def interrupt(signal_number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def guard(job: Job, progress: tuple[str, int], versions: Mapping[str, str], gpus: Sequence[str]) -> Outcome:
    """
    Do one run, in a thread of a worker of Dask.

    :param job: The run.
    :param progress: Where its progress goes: a topic of the cluster's events, and the number of the run.
    :param versions: Versions that its packages must have.
    :param gpus: GPUs of the workers by their name, none where a worker's own environment says what it may use.
    :return: What the run left. That it failed is part of it: Dask would repeat an exception.
    :raises OtherVersions: If this worker, which may have joined late, has other versions.
    :raises RunKilled: If the run was killed by anybody, or is not wanted any more.
    """
    worker = get_worker()
    if differences := list_differences(versions, installed_versions(versions)):
        raise OtherVersions(f"other versions than here: {worker.address} has {differences}")
    topic, index = progress

    def report(spent: float) -> None:
        worker.log_event(topic, [index, spent])

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker.name]
    with tempfile.TemporaryDirectory(dir=worker.local_directory) as name:
        folder = Path(name)
        with (folder / LOG_FILE).open("w", buffering=1) as log:
            child = subprocess.Popen(
                [sys.executable, *job.command, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                # Ctrl-C is for the command only: RL Zoo would save the unfinished model as if nothing had happened
                start_new_session=True,
            )
            with child:
                report(0.0)
                reader = threading.Thread(target=relay, args=(child.stdout, report, log))
                reader.start()
                try:
                    instruct(child, job.instructions)
                    wait(child, worker, worker.get_current_task())
                finally:
                    child.kill()
                    reader.join()
        if (folder / job.result_file).exists():
            return Outcome(pack(folder), None)
        failure = explain_failure(child.returncode, (folder / LOG_FILE).read_text(errors="replace"))
        if child.returncode < 0:
            raise RunKilled(failure)
        return Outcome(pack(folder), failure)


def instruct(child: "subprocess.Popen[str]", instructions: str) -> None:
    """
    Tell a child process what it is to do.

    :param child: The process, whose standard input stays open: it ends when this process is gone.
    :param instructions: What it is to do.
    """
    assert child.stdin is not None
    # A child that did not live to hear it says why on its own
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(f"{instructions}\n")
        child.stdin.flush()


def wait(child: "subprocess.Popen[str]", worker: Worker, key: Key) -> None:
    """
    Wait for the end of a child process, and end it when nobody wants its result.

    :param child: The process.
    :param worker: The worker that this thread belongs to. Dask cannot stop its threads.
    :param key: What it knows the run by.
    """
    while True:
        try:
            child.wait(POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            task = worker.state.tasks.get(key)
            is_leaving = worker.status in (Status.closing, Status.closed, Status.failed)
            if task is None or task.state == "cancelled" or is_leaving:
                child.kill()


def relay(lines: Iterable[str], report: Callable[[float], None], log: IO[str]) -> None:
    """
    Pass on what a child process reports.

    :param lines: Its standard output.
    :param report: Takes the part of the run that is done.
    :param log: Takes what is no report: printed by a library before the process could send such lines elsewhere.
    """
    for line in lines:
        try:
            report(float(line))
        except ValueError:
            log.write(line)


def pack(folder: Path) -> bytes:
    """
    Put a folder into an archive.

    :param folder: The folder.
    :return: Its content as tar: models are compressed already.
    """
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        archive.add(folder, ".")
    return buffer.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """
    Write a folder that is never seen half-written.

    :param archive: Its content.
    :param folder: The folder. What an earlier attempt left there is replaced.
    :raises tarfile.FilterError: If the archive reaches out of the folder.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(unfinished, filter="data")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """
    Look up versions.

    :param packages: Names of packages.
    :return: The versions of these packages and of Dask's, None for those that are not installed.
    """
    names = ["dask", "distributed", *packages]
    found = get_versions(packages=names)["packages"]
    return {name: found[name] for name in names}


def list_differences(wanted: Mapping[str, str | None], found: Mapping[str, str | None]) -> str:
    """
    Compare versions.

    :param wanted: Those of this process.
    :param found: Those of another.
    :return: What differs, nothing if nothing does.
    """
    return ", ".join(
        f"{name} {found.get(name) or 'missing'} (here {version or 'missing'})"
        for name, version in wanted.items()
        if found.get(name) != version
    )


def list_gpus() -> list[str]:
    """
    List the GPUs of this machine.

    :return: What ``CUDA_VISIBLE_DEVICES`` may be for each.
    :raises UserError: If there is none.
    """
    count = th.cuda.device_count()
    if count == 0:
        raise UserError("--gpus-per-run: PyTorch finds no GPU on this machine")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]
