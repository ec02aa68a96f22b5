"""One training in several processes: equal to that of one process, and over for all when it is over for one."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_reinforce import REINFORCE
from sb3_reinforce.distributed.partition import Partition, single_partition
from sb3_reinforce.distributed.process_group import SINGLE_PROCESS, TORCHRUN_VARIABLES, ProcessGroup
from sb3_reinforce.distributed.synchronization import describe_model, increment
from sb3_reinforce.update.evaluator import count_steps

WORKER = Path(__file__).parents[1] / "support" / "rank_worker.py"


def start_ranks(n_ranks, *args):
    """What torchrun does, without what it costs to start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, WORKER, *args],
            env={**os.environ, **common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n_ranks)
    ]


def results_of_ranks(n_ranks, *args):
    processes = start_ranks(n_ranks, *args)
    try:
        outputs = [process.communicate(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * n_ranks, outputs
    return json.loads(outputs[0][0].splitlines()[-1])


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_take_the_steps_of_one_process_with_all_episodes(n_ranks):
    results = results_of_ranks(n_ranks, "exactness")
    control = [result.pop("averaged rank means") for result in results]
    assert min(outcome["difference"] for outcome in control) > 1e-3, "the comparison would not notice averaged rank means"
    for result in results:
        for name, outcome in result.items():
            assert outcome["moved"] > 1e-2, name
            assert outcome["difference"] <= 1e-6, name
            assert outcome["logs"] <= 1e-5, (name, outcome["worst log"])
            assert outcome["checksum"] == results[0][name]["checksum"], f"{name}: processes are not the same to the last bit"


@pytest.fixture(scope="module")
def faults():
    return results_of_ranks(2, "faults")


@pytest.mark.parametrize(
    ("name", "rank", "message"),
    [
        ("reward", 1, "The reward of environment 0"),
        ("exception", 1, "KeyError: 'the simulator'"),
        ("log-probability", 1, "The log-probability of the action of environment 0 at step 2"),
        ("log-probability in the return", 1, "The log-probability of the action of environment 0 at step 2"),
        ("callback", 0, "KeyError: 'the simulator'"),
        ("callback at the end", 0, "KeyError: 'the simulator'"),
        ("unpicklable", 1, "pickle local object"),
        ("unpicklable value", 0, "pickle local object"),
        ("value that fails", 0, "KeyError: 'the simulator'"),
    ],
)
def test_what_fails_on_one_rank_ends_all_at_the_same_update_and_names_it(faults, name, rank, message):
    outcomes = [result[name] for result in faults]
    for outcome in outcomes:
        assert outcome["error"].startswith(f"ProcessError: Process {rank} failed with ")
        assert message in outcome["error"]
        assert "\n" not in outcome["error"]
        assert outcome == outcomes[0]
    if name.startswith("log-probability"):
        assert outcomes[0]["as before"]
    if name in ("reward", "exception"):
        # The same training, stopped in its third rollout too
        assert outcomes[0]["checksum"] == faults[0]["stopped"]["checksum"]
        assert outcomes[0]["n_updates"] == faults[0]["stopped"]["n_updates"] == 2


def test_a_callback_that_stops_stops_all(faults):
    assert faults[0]["stopped"] == faults[1]["stopped"]


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("learning_rate", "learning_rate is 0.005 in process 0 and 0.1 in process 1"),
        ("n_envs", "n_envs is 2 in process 0 and 3 in process 1"),
        ("total_timesteps", "total_timesteps is 10 in process 0 and 11 in process 1"),
        (
            "observation_space",
            "observation_space is Box(-1.0, 1.0, (3,), float32) in process 0 and Box(-2.0, 2.0, (3,), float32) in process 1",
        ),
        ("action_space", "action_space is Discrete(3) in process 0 and Box(-2.0, 2.0, (2,), float32) in process 1"),
    ],
)
def test_ranks_with_different_models_are_refused_before_anything_is_trained(faults, name, difference):
    for result in faults:
        assert result[name]["error"] == f"ValueError: All processes must train the same model, but {difference}"
        assert result[name]["n_updates"] == 0
        assert result[name]["as before"]


def test_every_rank_needs_an_episode(faults):
    for result in faults:
        assert result["too few episodes"].startswith("n_episodes=1 is below the number of processes, 2")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of_ranks(2, "two_processes", str(tmp_path_factory.mktemp("two_processes")))


def test_episodes_are_divided_and_counted_together(results):
    first, second = (result["episodes"] for result in results)
    assert (first["local"], second["local"]) == (3, 2)
    assert first["logged"] == second["logged"] == 5
    assert first["lengths"] == second["lengths"] == [1, 1, 1, 3, 3] * first["n_updates"]
    assert first["n_steps"] == second["n_steps"] == first["local steps"] + second["local steps"] >= 30
    assert first["checksum"] == second["checksum"]


def test_environments_are_seeded_apart(results):
    assert [result["episodes"]["seeds"] for result in results] == [[3, 4], [5, 6]]


def test_callbacks_are_called_on_rank_0_only_and_may_look_into_the_buffer(results):
    assert [result["episodes"]["n_seen"] for result in results] == [results[0]["episodes"]["n_updates"], 0]


def test_rank_0_saves_and_its_model_goes_on_on_all_ranks_or_anywhere(results):
    assert [result["written"] for result in results] == [True, False]
    first, second = (result["loaded"] for result in results)
    assert first == second
    assert first["n_updates"] > results[0]["episodes"]["n_updates"]
    assert first["same"]
    assert not first["distributed"]


def test_ranks_that_drift_apart_are_brought_together_again(results):
    first, second = (result["drift"] for result in results)
    assert first == second
    assert first["at the start"] == []
    assert len(first["later"]) == 1
    assert "drifted apart" in first["later"][0]


@pytest.mark.parametrize("name", ["observations", "returns"])
def test_merged_statistics_are_those_of_all_raw_data(results, name):
    raw = [np.array(step) for result in results for step in result["statistics"][name]["raw"]]
    everything = RunningMeanStd(shape=raw[0].shape[1:])
    everything.update(np.concatenate(raw))
    for result in results:
        merged = result["statistics"][name]
        assert merged["count"] == pytest.approx(sum(map(len, raw)), abs=1e-3)
        # VecNormalize takes the mean of each step's observations in single precision
        np.testing.assert_allclose(merged["mean"], everything.mean, atol=1e-7)
        np.testing.assert_allclose(merged["var"], everything.var, rtol=1e-6)


@pytest.mark.parametrize("function", ["killed_in_collection", "killed_in_the_fit"])
def test_a_rank_that_is_killed_ends_the_others(function):
    survivor, killed = start_ranks(2, function)
    try:
        start = time.monotonic()
        _, errors = survivor.communicate(timeout=100)
        killed.communicate(timeout=10)
    finally:
        survivor.kill()
        killed.kill()
    assert killed.returncode == -9
    assert survivor.returncode == 1
    assert "ProcessError: Another process of the training is gone, or did not answer in time" in errors
    assert time.monotonic() - start < 100


LOST = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:17153",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Read error [127.0.0.1]:1: Connection reset by peer",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:571] Broken pipe",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 30000ms for recv operation to complete",
    "Application timeout caused pair closure",
    "NCCL error: ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    "The client socket has timed out after 60000ms while trying to connect to (alpha, 29500).",
]
OTHER_CAUSES = [
    th.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("NCCL error in: NCCLUtils.hpp:219, invalid usage, NCCL version 2.14.3"),
    RuntimeError("Tensors must be contiguous"),
]


@pytest.mark.parametrize("error", [*map(RuntimeError, LOST), *OTHER_CAUSES], ids=str)
def test_only_a_lost_process_is_reported_as_one_and_every_cause_is_kept(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    for name in ("all_reduce", "all_gather_object", "broadcast_object_list"):
        monkeypatch.setattr(th.distributed, name, fail)
    processes = ProcessGroup(0, 2)
    for exchange in (lambda: processes.sum(th.ones(1)), lambda: processes.gather(1), lambda: processes.broadcast(1)):
        with pytest.raises(RuntimeError) as raised:
            exchange()
        if error in OTHER_CAUSES:
            assert raised.value is error
        else:
            assert str(raised.value).startswith("Another process of the training is gone, or did not answer in time")
            assert raised.value.__cause__ is error


def test_a_port_in_use_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in zip(TORCHRUN_VARIABLES, ("0", "2", "127.0.0.1", str(port)), strict=True):
            monkeypatch.setenv(name, value)
        with pytest.raises(RuntimeError, match=f"{port}.*EADDRINUSE"):
            REINFORCE("MlpPolicy", "CartPole-v1", distributed=True)
    assert not th.distributed.is_initialized()


def test_without_torchrun_there_are_no_ranks_to_meet(monkeypatch):
    for name in TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"torchrun started, but RANK, .* is not set: torchrun --nproc-per-node 2"):
        REINFORCE("MlpPolicy", "CartPole-v1", distributed=True)


def test_a_single_rank_is_one_process_as_ever(monkeypatch):
    for name in TORCHRUN_VARIABLES:
        monkeypatch.setenv(name, {"RANK": "0", "WORLD_SIZE": "1"}.get(name, "127.0.0.1"))
    models = [
        REINFORCE("MlpPolicy", "CartPole-v1", n_steps=50, seed=0, distributed=distributed).learn(200)
        for distributed in (True, False)
    ]
    assert th.equal(*(th.nn.utils.parameters_to_vector(model.policy.parameters()) for model in models))
    assert not th.distributed.is_initialized()


def test_processes_of_torchrun_that_train_apart_are_warned(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=10)
        model.save(tmp_path / "model")
        # Who only acts need not be told
        REINFORCE.load(tmp_path / "model").predict(np.zeros(4, np.float32))
    with pytest.warns(UserWarning, match="WORLD_SIZE=2, as from torchrun, but distributed=True is not set"):
        model.learn(10)
    monkeypatch.delenv("WORLD_SIZE")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "total_timesteps=.* at most")
        model.learn(10)


def test_alone_nothing_is_sent_or_copied():
    tensor, value = th.ones(3), object()
    assert SINGLE_PROCESS.sum(tensor) is tensor
    assert SINGLE_PROCESS.broadcast(value) is value
    assert SINGLE_PROCESS.gather(value) == [value]
    assert SINGLE_PROCESS.share(7) == 7
    partition, numbers = single_partition(np.array([1, 2])), np.ones(3)
    assert partition.local_steps(tensor) is tensor
    assert partition.local_numbers(numbers).base is numbers


@given(st.integers(0, 1000), st.integers(1, 50))
def test_shares_add_up_and_are_fair(total, size):
    shares = [ProcessGroup(rank, size).share(total) for rank in range(size)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


@given(st.data())
def test_every_chosen_step_belongs_to_one_rank(data):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    n_steps = sum(lengths)
    bounds = [0, *sorted(data.draw(st.lists(st.integers(0, n_steps), max_size=3))), n_steps]
    start, stop = data.draw(st.integers(0, n_steps)), data.draw(st.integers(0, n_steps))
    chosen = slice(start, max(start, stop))
    indices = th.as_tensor(np.arange(n_steps)[chosen], dtype=th.int64)
    everything = np.arange(n_steps)
    found, found_by_index = [], []
    for first, last in itertools.pairwise(bounds):
        part = Partition(np.array(lengths), first, last)
        local = part.local_numbers(everything)
        found += local[part.local_steps(chosen)].tolist()
        found_by_index += local[part.local_steps(indices).numpy()].tolist()
        assert count_steps(part.local_steps(chosen)) == len(part.local_steps(indices))
    assert found == found_by_index == everything[chosen].tolist()


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_increments_are_what_was_added(n_before, n_more, seed):
    rng = np.random.default_rng(seed)
    before, alone = RunningMeanStd(shape=(2,)), RunningMeanStd(epsilon=0.0, shape=(2,))
    for _ in range(n_before):
        before.update(rng.normal(3.0, 2.0, (4, 2)))
    now = before.copy()
    added = rng.normal(-1.0, 0.5, (n_more, 3, 2))
    for numbers in added:
        now.update(numbers)
    more = increment(before, now)
    assert more.count == pytest.approx(3 * n_more, abs=1e-6)
    if n_more > 0:
        alone.update(added.reshape(-1, 2))
        np.testing.assert_allclose(more.mean, alone.mean, atol=1e-9)
        np.testing.assert_allclose(more.var, alone.var, atol=1e-9)
        before.combine(more)
        np.testing.assert_allclose(before.var, now.var, atol=1e-9)


def test_arguments_are_described_alike_in_every_process():
    described = [
        describe_model(REINFORCE("MlpPolicy", "CartPole-v1", lambda _: 0.1, policy_kwargs={"net_arch": {"pi": [width]}}))
        for width in (4, 4, 5)
    ]
    assert described[0] == described[1]
    assert {name for name in described[0] if described[0][name] != described[2][name]} == {
        "policy_kwargs",
        "shapes of the parameters",
    }
