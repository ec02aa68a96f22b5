"""Runs of a comparison side by side, each in a process of its own, with one progress bar over all."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from sb3_reinforce.zoo.compare.failures import LOG_FILE, explain_failure
from sb3_reinforce.zoo.compare.plan import Task
from sb3_reinforce.zoo.compare.run import RESULT_FILE


class RunFailed(Exception):
    """A run ended without a result; the message says why."""


class Pool:
    """
    Does the runs of a comparison that have no result yet.

    :param folder: Folder of the comparison.
    :param jobs: Runs at a time.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder
        self.jobs = jobs
        self._stopped = False
        self._n_finished = 0
        self._lock = threading.Lock()
        self._children: dict[Task, subprocess.Popen[str]] = {}
        self._spent: dict[Task, float] = {}

    def run(self, tasks: Sequence[Task]) -> dict[Task, str]:
        """
        Do what is not done.

        :param tasks: All runs of the comparison.
        :return: Why runs failed, by run. They are done again by the next call.
        :raises KeyboardInterrupt: If the user interrupts; the running processes are ended first.
        """
        missing = [task for task in tasks if not (self.folder / task.folder / RESULT_FILE).exists()]
        self._n_finished = len(tasks) - len(missing)
        failures: dict[Task, str] = {}
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}, left {remaining}{postfix}]"
        with (
            tqdm(
                total=len(tasks), initial=self._n_finished, desc="compare", bar_format=bar_format, mininterval=1.0
            ) as progress,
            ThreadPoolExecutor(self.jobs) as executor,
        ):
            self._progress = progress
            try:
                futures = {executor.submit(self._run, task): task for task in missing}
                for future in as_completed(futures):
                    task = futures[future]
                    try:
                        future.result()
                    except Exception as error:
                        failures[task] = str(error)
                        progress.write(f"FAILED {task}: {error}", file=sys.stderr)
            except BaseException:
                self._stop()
                executor.shutdown(cancel_futures=True)
                raise
        return failures

    def _run(self, task: Task) -> None:
        """
        Do one run.

        :raises RunFailed: If it ends without a result.
        """
        folder = self.folder / task.folder
        # What an earlier attempt left without a result
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "sb3_reinforce.zoo.compare.run", str(self.folder)]
        command += [task.env_id, task.contender, str(task.seed)]
        with (folder / LOG_FILE).open("w") as log:
            with self._lock:
                if self._stopped:
                    return
                child = self._children[task] = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    # Ctrl-C is for this process only: RL Zoo would save the unfinished model as if nothing had happened
                    start_new_session=True,
                )
            assert child.stdout is not None
            self._show(task, 0.0)
            for line in child.stdout:
                try:
                    self._show(task, float(line))
                except ValueError:
                    # Printed by a library before the run could send such lines elsewhere
                    log.write(line)
            return_code = child.wait()
        with self._lock:
            del self._children[task]
        self._show(task, 1.0)
        if not (folder / RESULT_FILE).exists() and not self._stopped:
            raise RunFailed(explain_failure(return_code, (folder / LOG_FILE).read_text(errors="replace")))

    def _show(self, task: Task, spent: float) -> None:
        with self._lock:
            self._spent[task] = spent
            self._progress.update(self._n_finished + sum(self._spent.values()) - self._progress.n)
            running = ", ".join(str(running) for running in self._children)
            self._progress.set_postfix_str(f"running: {running or 'none'}", refresh=False)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for child in self._children.values():
                child.terminate()
