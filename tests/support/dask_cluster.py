"""A Dask cluster on this machine whose processes can be killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TIMEOUT = 60.0


def wait_until(condition, timeout: float = TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Cluster:
    """
    A scheduler and two workers of one thread, in processes of their own and in folders of their own; one says it has a GPU.

    :param folder: Where these folders are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen] = {}
        self.start()

    def start(self) -> None:
        """Start what is not running."""
        file = self.folder / "scheduler.json"
        if not self.is_running("scheduler"):
            file.unlink(missing_ok=True)
            options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
            self.start_process("scheduler", *options, "--scheduler-file", str(file))
            wait_until(lambda: file.exists() and file.read_text())
        self.address = json.loads(file.read_text())["address"]
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", "."]
        new = [name for name in ("left", "right") if not self.is_running(name)]
        for name in new:
            self.start_process(name, self.address, *options, *(["--resources", "GPU=1"] if name == "right" else []))
        for name in new:
            wait_until(lambda name=name: "Registered to" in self.log(name).read_text())

    def start_process(self, name: str, *arguments: str) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "dask", "scheduler" if name == "scheduler" else "worker", *arguments]
        environment = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
        with self.log(name).open("w") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)

    def log(self, name: str) -> Path:
        return self.folder / name / "log"

    def is_running(self, name: str) -> bool:
        return name in self.processes and self.processes[name].poll() is None

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
