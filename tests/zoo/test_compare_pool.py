"""The runs of a comparison on Dask: stand-ins of runs, and everything that can be killed, by its process id."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest
from dask_cluster import TIMEOUT, Cluster, wait_until
from distributed import Client

from sb3_reinforce.zoo.compare import pool
from sb3_reinforce.zoo.compare.pool import Job, Pool
from sb3_reinforce.zoo.errors import UserError

#: Ends with its parent, as a run does, notes that it was started, and then does what it is told.
STAND_IN = """
import json, os, pathlib, signal, sys, threading, time
order = json.loads(sys.stdin.readline())
def end_with_parent():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
name, folder, notes = order["name"], pathlib.Path(sys.argv[1]), pathlib.Path(order["notes"])
with open(notes / "started", "a") as file:
    file.write(f"{name} {os.getpid()} {os.getppid()}\\n")
exec(order["code"])
(folder / "result.json").write_text(json.dumps({"name": name, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}))
"""
SLOW = "time.sleep(600)"
#: The first attempt waits to be killed, the next does not.
SLOW_AT_FIRST = "time.sleep(600 if (notes / 'started').read_text().count(name + ' ') == 1 else 0)"


class Notes:
    """
    What stand-ins noted.

    :param folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def lines(self) -> list[list[str]]:
        path = self.folder / "started"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def started(self) -> list[str]:
        return [line[0] for line in self.lines]

    def processes(self, name: str, of_parent: bool = False) -> list[int]:
        return [int(line[2 if of_parent else 1]) for line in self.lines if line[0] == name]

    def job(self, name: str, code: str = "") -> Job:
        order = {"name": name, "code": code, "notes": str(self.folder)}
        return Job(name, ("-c", STAND_IN), json.dumps(order), self.folder / "runs" / name)

    def wait_for(self, name: str, times: int = 1) -> int:
        wait_until(lambda: self.started.count(name) >= times)
        return self.processes(name)[-1]


def is_gone(process_id: int) -> bool:
    return not psutil.pid_exists(process_id) or psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE


def do(pool: Pool, jobs: list[Job], n_finished: int = 0) -> dict[str, str | None]:
    """Do runs, and return why they failed, in the order in which they ended."""
    ends: dict[str, str | None] = {}

    def on_end(job: Job, failure: str | None) -> None:
        assert job.name not in ends
        ends[job.name] = failure

    pool.run(jobs, n_finished, on_end)
    return ends


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path)


# This machine


def test_runs_are_done_in_order_and_their_folders_are_kept(notes, capsys):
    jobs = [
        notes.job(name, f"(folder / 'model').mkdir(); (folder / 'model/{name}.zip').write_text('{name}')") for name in "cab"
    ]
    # What an earlier attempt left
    (jobs[0].folder / "model").mkdir(parents=True)
    (jobs[0].folder / "model/old.zip").touch()
    assert do(Pool(jobs=1), jobs, n_finished=2) == {"c": None, "a": None, "b": None}
    assert notes.started == ["c", "a", "b"]
    for job in jobs:
        assert sorted(path.name for path in job.folder.rglob("*")) == sorted(
            ["model", f"{job.name}.zip", "output.log", "result.json"]
        )
    assert sorted(path.name for path in (notes.folder / "runs").iterdir()) == ["a", "b", "c"]
    assert "5/5" in capsys.readouterr().err


def test_so_many_runs_at_a_time(notes):
    # The first waits for the second, and no third is there while they run
    wait = "while name == 'a' and not (notes / 'at-b').exists(): time.sleep(0.01)\n"
    code = "(notes / f'at-{name}').touch()\n" + wait + "time.sleep(0.4); assert len(list(notes.glob('at-*'))) <= 2\n"
    code += "(notes / f'at-{name}').unlink()"
    assert do(Pool(jobs=2), [notes.job(name, code) for name in "abcd"]) == dict.fromkeys("abcd")


def test_a_run_that_fails_is_told_of_and_not_repeated(notes, capsys):
    jobs = [
        notes.job("bad", "print('no report', flush=True); time.sleep(0.3); sys.exit('bad luck')"),
        notes.job("empty", "os._exit(0)"),
        notes.job("good"),
    ]
    failures = do(Pool(jobs=1, retries=3), jobs)
    assert failures == {"bad": "exit status 1: bad luck", "empty": "exit status 0: nothing printed", "good": None}
    assert notes.started == ["bad", "empty", "good"]
    assert (jobs[0].folder / "output.log").read_text() == "no report\nbad luck\n"
    assert "FAILED bad: exit status 1: bad luck" in capsys.readouterr().err


@pytest.mark.parametrize("retries", [0, 2])
def test_a_run_that_is_killed_is_done_again_but_not_without_end(notes, retries):
    jobs = [notes.job("killed", "os.kill(os.getpid(), signal.SIGKILL)"), notes.job("good")]
    # What an earlier attempt left says nothing about this one
    jobs[0].folder.mkdir(parents=True)
    failures = do(Pool(jobs=2, retries=retries), jobs)
    assert not jobs[0].folder.exists()
    assert failures == {"good": None, "killed": "ended by signal 9"}
    assert sorted(notes.started) == ["good", *["killed"] * (1 + retries)]


def test_what_cannot_be_kept_is_not_trained(notes):
    jobs = [notes.job(name) for name in "abc"]
    (notes.folder / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"runs/a: .*(exists|directory)"):
        do(Pool(jobs=1), jobs)
    assert "c" not in notes.started


def test_an_archive_that_reaches_out_of_its_folder_is_refused(tmp_path):
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../evil"))
    (tmp_path / "run").mkdir()
    with pytest.raises(tarfile.FilterError):
        pool.unpack(buffer.getvalue(), tmp_path / "run")
    assert not (tmp_path / "evil").exists()
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize(("share", "n_gpus", "at_a_time"), [(1.0, 2, 2), (1.0, 1, 3), (0.5, 1, 3), (0.5, 2, 4)])
def test_runs_of_this_machine_get_a_gpu_each_or_share_one(notes, monkeypatch, share, n_gpus, at_a_time):
    monkeypatch.setattr(pool, "list_gpus", lambda: ["GPU-a", "GPU-b"][:n_gpus])
    # Each sees how many others run beside it
    code = (
        "(notes / f'gpu-{name}').write_text(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.4)\n"
        "running = [path.read_text() for path in notes.glob('gpu-*')]\n"
        f"assert len(running) <= {at_a_time}, running\n"
        "assert max(map(running.count, running)) <= " + str(int(1 / share)) + ", running\n"
        "time.sleep(0.2); (notes / f'gpu-{name}').unlink()"
    )
    jobs = [notes.job(str(index), code) for index in range(4)]
    assert set(do(Pool(jobs=at_a_time, gpus_per_run=share), jobs).values()) == {None}
    used = {json.loads((job.folder / "result.json").read_text())["gpu"] for job in jobs}
    assert used == set(["GPU-a", "GPU-b"][:n_gpus])


def test_gpus_that_are_not_there(monkeypatch, notes):
    monkeypatch.setattr(pool.th.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="--gpus-per-run: PyTorch finds no GPU"):
        do(Pool(gpus_per_run=1.0), [notes.job("a")])
    monkeypatch.setattr(pool.th.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pool.list_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f")
    assert pool.list_gpus() == ["2", "GPU-8f"]


# A cluster


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(shared_cluster):
    """What an earlier test killed is started again."""
    shared_cluster.start()
    return shared_cluster


#: What a user starts, and somebody ends.
DRIVER = """
import signal, sys
from pathlib import PosixPath
from sb3_reinforce.zoo.compare.pool import Job, Pool
from sb3_reinforce.zoo.errors import UserError
# As in a terminal: where the tests run in the background of a shell, their children would ignore the signal
signal.signal(signal.SIGINT, signal.default_int_handler)
scheduler, jobs = eval(sys.argv[1])
try:
    Pool(2, scheduler).run(jobs, 0, lambda job, failure: None)
except KeyboardInterrupt:
    sys.exit(130)
except UserError as error:
    sys.exit(f"ERROR {error}")
"""


def start_driver(scheduler: str | None, jobs: list[Job]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, repr((scheduler, jobs))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("here", signal.SIGINT),
        ("here", signal.SIGTERM),
        ("here", signal.SIGKILL),
        ("cluster", signal.SIGTERM),
        ("cluster", signal.SIGKILL),
    ],
)
def test_no_process_is_left_when_the_command_is_ended(notes, request, where, how):
    address = None if where == "here" else request.getfixturevalue("cluster").address
    driver = start_driver(
        address, [notes.job("done"), notes.job("first", SLOW), notes.job("second", SLOW), notes.job("third")]
    )
    runs = [notes.wait_for("first"), notes.wait_for("second")]
    driver.send_signal(how)
    _, error = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == (-how if how == signal.SIGKILL else 130)
    assert "Traceback" not in error
    assert "distributed" not in error
    wait_until(lambda: all(map(is_gone, runs)))
    assert "third" not in notes.started
    assert [path.name for path in (notes.folder / "runs").iterdir()] == ["done"]
    if where != "here":
        # The workers are free again
        assert do(Pool(scheduler=address), [notes.job("next"), notes.job("last")]) == {"next": None, "last": None}


def test_a_machine_that_was_suspended_goes_on(notes, monkeypatch):
    # Of minutes, after which a worker that is not heard of is a lost one, a test waits for less
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "2s")
    driver = start_driver(None, [notes.job("first", "time.sleep(8)"), notes.job("second"), notes.job("third")])
    notes.wait_for("third")
    driver.send_signal(signal.SIGSTOP)
    time.sleep(5)
    driver.send_signal(signal.SIGCONT)
    _, error = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == 0, error
    assert sorted(path.name for path in (notes.folder / "runs").iterdir()) == ["first", "second", "third"]
    assert sorted(notes.started) == ["first", "second", "third"]


def test_workers_need_no_folder_in_common(notes, cluster):
    # Each waits for the other, so both workers have one
    code = "(notes / f'at-{name}').touch()\nwhile len(list(notes.glob('at-*'))) < 2: time.sleep(0.01)\n"
    code += "(folder / 'where').write_text(f'{folder} {os.getcwd()}')"
    jobs = [notes.job(name, code) for name in "ab"] + [notes.job("c")]
    assert do(Pool(scheduler=cluster.address), jobs) == {"a": None, "b": None, "c": None}
    assert sorted(notes.started) == ["a", "b", "c"]
    scratch, current = zip(*((job.folder / "where").read_text().split() for job in jobs[:2]), strict=True)
    assert set(current) == {str(cluster.folder / name) for name in ("left", "right")}
    assert all(Path(current[index]) in Path(scratch[index]).parents for index in range(2))
    # Nothing is left where they worked
    assert not any(Path(folder).exists() for folder in scratch)


def test_runs_that_need_a_gpu_go_where_one_is(notes, cluster):
    jobs = [notes.job(name) for name in "abc"]
    assert do(Pool(scheduler=cluster.address, gpus_per_run=1.0), jobs) == dict.fromkeys("abc")
    assert {notes.processes(name, of_parent=True)[0] for name in "abc"} == {cluster.processes["right"].pid}


def test_workers_with_other_versions_are_refused(notes, cluster, monkeypatch):
    here = pool.installed_versions()
    monkeypatch.setattr(pool, "installed_versions", lambda: {**here, "numpy": "1.0", "nothing": "2.0"})
    with pytest.raises(UserError) as error_info:
        do(Pool(scheduler=cluster.address), [notes.job("a")])
    message = str(error_info.value)
    assert f"--scheduler {cluster.address}: other versions than here: tcp://" in message
    assert f"numpy {here['numpy']} (here 1.0), nothing missing (here 2.0)" in message
    assert notes.started == []


def test_a_run_that_is_killed_on_a_cluster_is_done_again(notes, cluster):
    def on_end(job, failure):
        assert failure is None
        if job.name == "quick":
            os.kill(notes.wait_for("slow"), signal.SIGKILL)

    Pool(scheduler=cluster.address).run([notes.job("slow", SLOW_AT_FIRST), notes.job("quick")], 0, on_end)
    assert sorted(notes.started) == ["quick", "slow", "slow"]
    assert cluster.is_running("left")
    assert cluster.is_running("right")


def test_a_run_of_a_lost_worker_is_done_elsewhere_and_no_other_is_done_again(notes, cluster):
    ended = []

    def on_end(job, failure):
        assert failure is None
        ended.append(job.name)
        if len(ended) == 3:
            with Client(cluster.address, set_as_default=False) as client:
                # What has been fetched is nowhere else, so there is nothing of it to be lost
                wait_until(lambda: not any(client.has_what().values()))
            run_id = notes.wait_for("slow")
            (worker_id,) = notes.processes("slow", of_parent=True)
            os.kill(worker_id, signal.SIGKILL)
            # A run must not go on without the worker that wants it
            wait_until(lambda: is_gone(run_id))

    # Each worker has finished runs when one is lost
    code = "(notes / f'at-{name}').touch()\nwhile len(list(notes.glob('at-*'))) < 2: time.sleep(0.01)\n"
    jobs = [notes.job("first", code), notes.job("second", code), notes.job("slow", SLOW_AT_FIRST), notes.job("quick")]
    Pool(scheduler=cluster.address, retries=0).run(jobs, 0, on_end)
    assert ended[3] == "slow"
    assert sorted(notes.started) == ["first", "quick", "second", "slow", "slow"]
    lost, other = notes.processes("slow", of_parent=True)
    assert lost != other
    assert (jobs[2].folder / "result.json").exists()


def test_a_run_that_takes_its_worker_along_is_not_done_without_end(notes, cluster):
    jobs = [notes.job("deadly", "os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)")]
    (failure,) = do(Pool(scheduler=cluster.address, retries=5), jobs).values()
    assert "all those workers died while running it" in failure
    # Once more than Dask allows, which is once in these tests
    assert notes.started == ["deadly", "deadly"]


def test_a_lost_scheduler_ends_the_command_and_the_runs(notes, cluster):
    driver = start_driver(cluster.address, [notes.job("quick"), notes.job("slow", SLOW)])
    notes.wait_for("slow")
    wait_until((notes.folder / "runs/quick/result.json").exists)
    cluster.processes["scheduler"].kill()
    _, error = driver.communicate(timeout=TIMEOUT)
    # After the progress bar, in one line
    bar, _, line = error.partition("ERROR ")
    assert line == f"{cluster.address} is lost: the same command goes on from the finished runs\n"
    assert "distributed" not in bar
    # Before the worker loses patience with its threads, after half a minute
    wait_until(lambda: is_gone(notes.wait_for("slow")), timeout=20.0)
    for name in ("left", "right"):
        cluster.processes[name].wait(timeout=TIMEOUT)


# What is wrong before anything is trained


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:1", "--scheduler tcp://127.0.0.1:1: Timed out"),
        ("tcp://nowhere.invalid:8786", "--scheduler tcp://nowhere.invalid:8786: "),
        ("http://127.0.0.1:1", "--scheduler http://127.0.0.1:1: unknown address scheme"),
        ("nowhere", "--scheduler nowhere: missing port number"),
        ("tls://127.0.0.1:1", "--scheduler tls://127.0.0.1:1: TLS expects"),
    ],
)
def test_a_scheduler_that_cannot_be_reached(notes, monkeypatch, address, message):
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 0.5)
    with pytest.raises(UserError, match=message) as error_info:
        do(Pool(scheduler=address), [notes.job("a")])
    assert "\n" not in str(error_info.value)


def test_what_is_said_of_a_cluster(notes, cluster, capsys, monkeypatch):
    def what_is_said(workers, **changes):
        """Of a cluster with these workers and their resources."""
        there = {name: {"resources": resources} for name, resources in workers.items()}
        with monkeypatch.context() as patch:
            patch.setattr(Client, "scheduler_info", lambda *args, **kwargs: {"workers": there})
            assert do(Pool(scheduler=cluster.address, **changes), [notes.job("quick")]) == {"quick": None}
        # Besides the progress bar
        return [line for line in capsys.readouterr().err.splitlines() if line.strip() and not line.startswith("compare:")]

    assert what_is_said({"a": {}, "b": {}}) == []
    assert what_is_said({}) == [f"{cluster.address} has no worker yet: the runs wait for one"]
    with pytest.raises(UserError, match=f"--gpus-per-run: no worker of {cluster.address} has any"):
        what_is_said({"a": {}}, gpus_per_run=1.0)
    assert what_is_said({"a": {}, "b": {"GPU": 1.0}}, gpus_per_run=1.0) == []
