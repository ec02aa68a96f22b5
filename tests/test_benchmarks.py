"""The benchmark scripts run end to end on tiny budgets, write well-formed files, and do not repeat finished work."""

import collections
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch as th
import yaml
from made_up_runs import write_result
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce.zoo.compare.plan import RANDOM, Settings, claim_folder, list_tasks

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"
# The processes that a script spawns import it by this path too
sys.path.insert(0, str(BENCHMARKS))

common = importlib.import_module("common")


def run_in_process(name, results_dir, *arguments):
    return importlib.import_module(name).main(["--results-dir", str(results_dir), *map(str, arguments)])


def run_script(name, results_dir, *arguments):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--results-dir", str(results_dir), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def read_results(results_dir, name, figure=False):
    """Check what is common to the files of all scripts, and return the content of the JSON file."""
    content = json.loads((results_dir / f"{name}.json").read_text(), parse_constant=pytest.fail)
    made_by = content.get("provenance") or content["rows"][0]["provenance"]
    assert made_by["command"].startswith(f"python benchmarks/{name}.py --results-dir ")
    assert set(made_by["versions"]) == {"python", "torch", "numpy", "stable_baselines3", "gymnasium", "sb3_reinforce"}
    assert made_by["machine"]["cpu"] and made_by["machine"]["cores"] >= 1
    assert made_by["seeds"]

    table = [line for line in (results_dir / f"{name}.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) >= 3 and table[1].startswith("| --- |")
    assert (results_dir / f"{name}.png").exists() == figure
    for path in results_dir.iterdir():
        assert not path.name.endswith(".unfinished")
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert not [folder for folder in (REPOSITORY, results_dir, sys.prefix) if str(folder) in path.read_text()]
    return content


def test_every_script_has_help(capsys):
    scripts = {path.name: importlib.import_module(path.stem) for path in BENCHMARKS.glob("*.py")}
    # zoo_run.py is a child of zoo_table.py, which tells it what to do on its standard input
    mains = {name: module.main for name, module in scripts.items() if hasattr(module, "main") and name != "zoo_run.py"}
    assert len(mains) > 10
    for name, main in mains.items():
        with pytest.raises(SystemExit) as end:
            main(["--help"])
        assert end.value.code == 0
        assert f"python benchmarks/{name}" in capsys.readouterr().out


def test_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "file.txt"
    common.write_text(path, "old")
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        common.write_text(path, "new")
    assert [(found.name, found.read_text()) for found in path.parent.iterdir()] == [("file.txt", "old")]


def test_paths_of_the_machine_are_cut():
    text = f"{REPOSITORY}/benchmarks/a.py --folder=/home/someone/b in '/tmp/c.yml', a:/home/d, https://example.org/d"
    assert common.without_machine_paths(text) == "benchmarks/a.py --folder=…/b in '…/c.yml', a:…/d, https://example.org/d"


@pytest.mark.parametrize("kind", ["loose", "packed", "detached", "worktree", "none"])
def test_commit_is_read_from_the_files_of_git(tmp_path, monkeypatch, kind):
    git_dir = tmp_path / ".git"
    files = {
        "loose": {".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": "abc\n"},
        "packed": {".git/HEAD": "ref: refs/heads/main\n", ".git/packed-refs": "# pack\nabc refs/heads/main\n"},
        "detached": {".git/HEAD": "abc\n"},
        "worktree": {
            ".git": "gitdir: real/worktrees/one\n",
            "real/worktrees/one/HEAD": "ref: refs/heads/main\n",
            "real/worktrees/one/commondir": "../..\n",
            "real/refs/heads/main": "abc\n",
        },
        "none": {},
    }[kind]
    for name, text in files.items():
        common.write_text(tmp_path / name, text)
    monkeypatch.setattr(common, "REPOSITORY", tmp_path)
    assert common.git_commit() == (None if kind == "none" else "abc")
    assert git_dir.exists() == (kind != "none")


def test_throughput_collects_configurations_in_one_table(tmp_path):
    tiny = ["--steps", 64, "--warmup-steps", 32, "--rounds", 2, "--n-steps", 16]
    run_in_process("throughput", tmp_path, "--env", "CartPole-v1", "--n-envs", 1, *tiny)
    run_in_process("throughput", tmp_path, "--env", "Pendulum-v1", "--n-envs", 2, "--vec-normalize", *tiny)
    run_in_process("throughput", tmp_path, "--env", "CartPole-v1", "--n-envs", 1, *tiny, "--seed", 1)
    run_in_process("throughput", tmp_path, "--env", "Pendulum-v1", "--n-envs", 2, "--bare-actions", "policy", *tiny)

    content = read_results(tmp_path, "throughput", figure=True)
    rows = [(row["env"], row["vec_normalize"], row["bare_actions"], row["provenance"]["seeds"]) for row in content["rows"]]
    assert rows == [
        ("CartPole-v1", False, "random", [1]),
        ("Pendulum-v1", True, "random", [0]),
        ("Pendulum-v1", False, "policy", [0]),
    ]
    for row in content["rows"]:
        assert set(row["reinforce_ratios"]) == {"bare", "a2c", "ppo"}
        assert len(row["rounds"]) == 2
        assert all(result["steps"] >= 64 for results in row["rounds"] for result in results.values())


def test_ppo_gets_a_batch_size_that_divides_the_rollout():
    throughput = importlib.import_module("throughput")
    assert [throughput.ppo_batch_size(size) for size in (256, 64, 96, 40, 7)] == [64, 64, 48, 40, 7]


def test_throughput_of_stepping_only(tmp_path):
    pytest.importorskip("envpool")
    tiny = ["--train-steps", 64, "--steps", 64, "--warmup-steps", 16, "--rounds", 1, "--n-envs", 2, "--n-steps", 8]
    run_in_process("throughput", tmp_path, "--env", "CartPole-v1", *tiny)
    run_in_process("throughput", tmp_path, "--env", "CartPole-v1", "--stepping-only", *tiny)
    (row,) = read_results(tmp_path, "throughput", figure=True)["stepping"]
    (results,) = row["rounds"]
    for engine in ("dummy", "envpool"):
        assert results[engine]["steps"] == 64
        assert 0 < results[engine]["seconds"] <= results[engine]["seconds_with_actions"]
    assert row["stepping"]["ratio"] == pytest.approx(results["dummy"]["seconds"] / results["envpool"]["seconds"])


def test_scaling(tmp_path):
    tiny = ["--steps", 32, "--warmup-steps", 16, "--rounds", 1, "--base-n-envs", 2, "--base-n-steps", 8]
    run_in_process("scaling", tmp_path, "--n-envs", 1, 2, "--width", 16, "--n-steps", 8, *tiny)
    content = read_results(tmp_path, "scaling", figure=True)
    assert [(row["axis"], row["value"]) for row in content["rows"]] == [
        ("n_envs", 1),
        ("n_envs", 2),
        ("width", 16),
        ("n_steps", 8),
    ]
    assert content["base"] == {"n_envs": 2, "width": 64, "n_steps": 8}
    assert all(len(row["rounds"]) == 1 and row["reinforce_to_bare"] > 0 for row in content["rows"])


def test_memory(tmp_path):
    # A process of its own, since this one is already as large as the imports
    run_script("memory", tmp_path, "--steps", 2000, "--sizes", 100, 400, "--rounds", 1)
    content = read_results(tmp_path, "memory", figure=True)
    rollout = content["rollout"]
    assert rollout["steps"] >= 2000 and rollout["n_updates"] == 1
    assert rollout["above_imports_bytes"] == rollout["peak_bytes"] - rollout["peak_after_imports_bytes"] > 0
    assert content["rollout_within_limit"] == (rollout["above_imports_bytes"] < 300_000_000)
    assert [row["batch_size"] >= size for row, size in zip(content["updates"], (100, 400), strict=True)] == [True, True]
    assert {"in one piece", "in micro-batches"} <= set(content["slopes"])


def test_memory_refuses_to_measure_in_a_process_that_is_too_large():
    importlib.import_module("sb3_reinforce")
    with pytest.raises(RuntimeError, match="small"):
        importlib.import_module("memory").measure_rollout_here(10, 10)


def test_time_to_threshold(tmp_path):
    # A process of its own, since RL Zoo patches gymnasium on import; short episodes, since it takes 100
    arguments = ["--env", "sb3_reinforce/DiamondHill-v0", "--threshold", -10, "--max-steps", 3000, "--seeds", 3]
    arguments += ["--reinforce", "n_envs=2", "n_steps=16", "--n-timesteps", "a2c=50"]
    run_script("time_to_threshold", tmp_path, *arguments)
    (row,) = read_results(tmp_path, "time_to_threshold", figure=True)["rows"]
    runs = {run["algo"]: run for run in row["runs"]}
    assert list(runs) == ["reinforce", "ppo", "a2c"]

    assert runs["reinforce"]["hyperparameters"]["n_envs"] == 2 and runs["reinforce"]["n_timesteps"] == 3000
    assert runs["reinforce"]["hyperparameters_from"].startswith("defaults of the class, with {'n_envs': 2")
    assert runs["ppo"]["n_timesteps"] == 1_000_000
    for algo in ("reinforce", "ppo"):
        assert runs[algo]["reached"] and runs[algo]["last_mean"] >= -10
        assert runs[algo]["curve"][-1][1] == runs[algo]["steps"] == row["summary"][algo]["steps"]

    assert not runs["a2c"]["reached"] and runs["a2c"]["steps"] == 50
    assert row["summary"]["a2c"]["seconds"] is None
    table = (tmp_path / "time_to_threshold.md").read_text()
    assert "not reached in 50 steps" in table and "| > " in table


def test_a_threshold_that_luck_reached_is_not_confirmed(monkeypatch):
    time_to_threshold = importlib.import_module("time_to_threshold")
    env = make_vec_env("CartPole-v1")
    scores = iter([99.0, 101.0])
    monkeypatch.setattr(time_to_threshold, "evaluate_policy", lambda *args, **kwargs: (next(scores) + 0.0 * th.rand(1), 0.0))
    callback = time_to_threshold.StopAtThreshold(100.0, 1_000_000, env)
    callback.model = types.SimpleNamespace(ep_info_buffer=collections.deque(maxlen=100), get_env=lambda: env)
    generator, goes_on = th.get_rng_state(), []
    for _ in range(250):
        callback.model.ep_info_buffer.append({"r": 100.0})
        goes_on.append(callback._on_step())
    # The first full window is not confirmed, the next is one without any of its episodes
    assert goes_on.index(False) == 199
    assert callback.reached and callback.seconds > 0.0
    assert th.equal(th.get_rng_state(), generator)


def test_a_task_is_solved_at_the_first_of_three_evaluations_in_a_row():
    memory_tasks = importlib.import_module("memory_tasks")
    callback = memory_tasks.StopWhenSolved(None, memory_tasks.TASKS["CartPoleNoVel-v1"], 10, 0)
    assert not callback.reached
    for index, score in enumerate((480.0, 400.0, 480.0, 500.0)):
        callback.curve.append((100 * index, float(index), score))
        assert not callback.reached
    callback.curve.append((400, 4.0, 475.0))
    assert callback.reached
    assert callback.first_reached() == (200.0, 2.0)


def test_memory_tasks_resume(tmp_path):
    # A process of its own, since RL Zoo patches gymnasium on import
    tiny = ["--task", "CartPoleNoVel-v1", "--seeds", 0, "--max-steps", 100, "--eval-episodes", 1]
    run_script("memory_tasks", tmp_path, *tiny, "--contender", "memory", "recurrent_ppo_same_units")
    before = read_results(tmp_path, "memory_tasks", figure=True)["runs"]
    assert [run["contender"] for run in before.values()] == ["memory", "recurrent_ppo_same_units"]
    for run in before.values():
        assert run["steps"] >= 100 and run["curve"][-1][2] == run["score"] and not run["reached"]
    run_script("memory_tasks", tmp_path, *tiny, "--contender", "memory", "mlp")
    after = read_results(tmp_path, "memory_tasks", figure=True)["runs"]
    assert {key: after[key] for key in before} == before and len(after) == 3
    run_script("memory_tasks", tmp_path, "--speed", "--steps", 100, "--n-steps", 8, "--rounds", 1)
    speed = read_results(tmp_path, "memory_tasks", figure=True)["speed"]
    assert len(speed["rows"]) == 3 and all(row["steps_per_second"] > 0 for row in speed["rows"].values())


def test_a_task_that_was_not_solved_is_bounded_by_what_the_median_run_spent():
    shown = importlib.import_module("memory_tasks").shown
    runs = [{"seconds": seconds, "reached": seconds < 80.0} for seconds in (1.0, 2.0, 90.0, 100.0, 500.0)]
    assert shown(runs, "seconds", ",.1f") == "> 90.0"
    assert shown(runs[:3], "seconds", ",.1f") == "2.0"


def test_cartpole_defaults_keeps_finished_seeds_of_the_same_code(tmp_path, monkeypatch):
    cartpole_defaults = importlib.import_module("cartpole_defaults")
    tiny = ["--timesteps", 64, "--episodes", 1]

    def scores():
        return {run["seed"]: run["mean"] for run in read_results(tmp_path, "cartpole_defaults")["runs"]}

    run_in_process("cartpole_defaults", tmp_path, "--seeds", 0, 1, "--jobs", 2, *tiny)
    assert list(scores()) == [0, 1] and all(score > 0 for score in scores().values())

    path = tmp_path / "cartpole_defaults.json"
    content = json.loads(path.read_text())
    marker = -1.0
    content["runs"][0]["mean"] = marker
    path.write_text(json.dumps(content))
    run_in_process("cartpole_defaults", tmp_path, "--seeds", 0, 2, "--jobs", 1, *tiny)
    assert list(scores()) == [0, 1, 2] and scores()[0] == marker
    assert "**0 of 3 seeds reach 475.**" in (tmp_path / "cartpole_defaults.md").read_text()

    monkeypatch.setattr(cartpole_defaults, "code_hash", lambda: "other sources")
    run_in_process("cartpole_defaults", tmp_path, "--seeds", 0, "--jobs", 1, *tiny)
    assert list(scores()) == [0] and scores()[0] != marker


ENTRIES = {
    "default": {"n_timesteps": 10, "policy": "MlpPolicy"},
    # JSON has no infinite numbers
    "CartPole-v1": {"n_timesteps": 60, "policy": "MlpPolicy", "n_steps": 16, "normalize": True, "max_grad_norm": math.inf},
    "Ant-v5": {"n_timesteps": 60, "policy": "MlpPolicy"},
}


@pytest.fixture
def zoo_table(tmp_path):
    """The script, and the options that keep it away from the repository's own files."""
    hyperparams = tmp_path / "entries" / "tiny.yml"
    common.write_text(hyperparams, yaml.safe_dump(ENTRIES, sort_keys=False))
    return importlib.import_module("zoo_table"), ["--hyperparams", hyperparams, "--log-folder", tmp_path / "logs"]


#: Notes what was trained; environments whose file is there do not finish.
STAND_IN = """
import json, pathlib, sys
order, notes = json.loads(sys.stdin.readline()), pathlib.Path({notes!r})
with open(notes / "trained", "a") as file:
    file.write(json.dumps([order["env"], order["seed"]]) + "\\n")
if (notes / order["env"]).exists():
    sys.exit({failure!r})
run = {{"mean": 100.0 + order["seed"], "training_seconds": 1.0, "sources": {{}}}}
pathlib.Path(sys.argv[1], "run.json").write_text(json.dumps(run))
"""


class FakeRuns:
    """Replaces training by a list of what was trained."""

    def __init__(self, folder):
        self.folder = folder
        self.script = folder / "stand_in.py"
        self.script.write_text(STAND_IN.format(notes=str(folder), failure=f"{REPOSITORY}/somewhere failed"))

    def pop_trained(self):
        """What was trained since the last call."""
        path = self.folder / "trained"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [tuple(json.loads(line)) for line in lines]


@pytest.fixture
def fake_runs(tmp_path, zoo_table, monkeypatch):
    (tmp_path / "fake").mkdir()
    fake_runs = FakeRuns(tmp_path / "fake")
    monkeypatch.setattr(zoo_table[0], "RUN_SCRIPT", fake_runs.script)
    return fake_runs


def rows_of(results_dir):
    return {row["env"]: row for row in read_results(results_dir, "zoo_table")["rows"]}


def test_zoo_table_trains_and_evaluates_through_rl_zoo(tmp_path, zoo_table, monkeypatch):
    monkeypatch.setitem(zoo_table[0].REASONS, "CartPole-v1, tiny", "it is tiny")
    results_dir = tmp_path / "results"
    arguments = ["--env", "CartPole-v1", "--seeds", 0, "--episodes", 2, *zoo_table[1]]
    assert run_in_process("zoo_table", results_dir, *arguments) == 0
    (line,) = (results_dir / "zoo_table_runs.jsonl").read_text().splitlines()
    run = json.loads(line)
    assert run["trained_steps"] >= 60
    # CartPole pays 1 for each step: the scores are not normalised
    assert run["scores"] == run["lengths"] and len(run["scores"]) == 2
    assert "Loading running average" in next((tmp_path / "logs").rglob("output.log")).read_text()
    row = rows_of(results_dir)["CartPole-v1"]
    assert (row["n_seeds"], row["mean"], row["reached"]) == (1, run["mean"], False)
    last = (results_dir / "zoo_table.md").read_text().rstrip().splitlines()[-1]
    assert last.startswith("- CartPole-v1, tiny not reached") and last.endswith("; it is tiny.")
    assert (results_dir / "zoo_table.csv").read_text().startswith("env,conf,steps,n_seeds,mean,std,means,")


def test_zoo_table_never_repeats_a_finished_run(tmp_path, zoo_table, fake_runs):
    results_dir = tmp_path / "results"
    assert run_in_process("zoo_table", results_dir, "--jobs", 1, *zoo_table[1]) == 0
    # One run of each environment first, and three of those that are slow
    expected = [(seed, env) for seed in range(5) for env in ("CartPole-v1", "Ant-v5") if env == "CartPole-v1" or seed < 3]
    assert fake_runs.pop_trained() == [(env, seed) for seed, env in expected]
    row = rows_of(results_dir)["CartPole-v1"]
    assert (row["n_seeds"], row["mean"], row["std"]) == (5, 102.0, pytest.approx(2.5**0.5))
    assert rows_of(results_dir)["Hopper-v5"]["mean"] is None
    table = (results_dir / "zoo_table.md").read_text()
    assert "| Hopper-v5 | no entry | tiny | not run |" in table
    assert "| CartPole-v1 | 60 | tiny | 102.0 ± 1.6 | 100.0, 101.0, 102.0, 103.0, 104.0 |" in table

    # A line that the end of the machine cut is as if it were not there
    runs_path = results_dir / "zoo_table_runs.jsonl"
    runs_path.write_text("\n".join(runs_path.read_text().splitlines())[:-20])
    run_in_process("zoo_table", results_dir, *zoo_table[1])
    assert fake_runs.pop_trained() == [("CartPole-v1", 4)]
    assert rows_of(results_dir)["CartPole-v1"]["n_seeds"] == 5

    run_in_process("zoo_table", results_dir, "--env", "Ant-v5", "--seeds", 0, 3, *zoo_table[1])
    assert fake_runs.pop_trained() == [("Ant-v5", 3)]

    # Another entry is another experiment
    run_in_process("zoo_table", results_dir, "--n-timesteps", 70, "--seeds", 0, "--env", "Ant-v5", *zoo_table[1])
    assert fake_runs.pop_trained() == [("Ant-v5", 0)]
    assert rows_of(results_dir)["CartPole-v1"]["mean"] is None
    run_in_process("zoo_table", results_dir, "--table-only", *zoo_table[1])
    assert fake_runs.pop_trained() == []
    assert rows_of(results_dir)["CartPole-v1"]["n_seeds"] == 5


def test_zoo_table_has_a_row_for_a_shorter_training(tmp_path, zoo_table, fake_runs, monkeypatch):
    results_dir = tmp_path / "results"
    published = zoo_table[0].Published(103.0, "somebody 103 (20)")
    monkeypatch.setattr(zoo_table[0], "SHORTER", {"CartPole-v1": (20, published)})
    arguments = ["--seeds", 3, "--env", "CartPole-v1", *zoo_table[1]]
    run_in_process("zoo_table", results_dir, *arguments)
    assert fake_runs.pop_trained() == [("CartPole-v1", 3)] * 2
    shorter, own = [row for row in read_results(results_dir, "zoo_table")["rows"] if row["env"] == "CartPole-v1"]
    assert (shorter["steps"], shorter["published"], shorter["reached"]) == (20, "somebody 103 (20)", True)
    assert (own["steps"], own["target"], own["reached"]) == (60, 500.0, False)
    assert "- CartPole-v1, 20 steps, tiny" not in (results_dir / "zoo_table.md").read_text()
    assert len({run["entry_hash"] for run in read_results(results_dir, "zoo_table")["runs"]}) == 2

    # Another number of steps for all of them leaves nothing shorter
    run_in_process("zoo_table", results_dir, "--n-timesteps", 70, *arguments)
    assert fake_runs.pop_trained() == [("CartPole-v1", 3)]


def test_zoo_table_has_configurations_side_by_side(tmp_path, zoo_table, fake_runs):
    results_dir = tmp_path / "results"
    other = tmp_path / "entries" / "tiny_adam.yml"
    other_entries = {"CartPole-v1": ENTRIES["CartPole-v1"], "Ant-v5": {"n_timesteps": 70, "policy": "MlpPolicy"}}
    common.write_text(other, yaml.safe_dump(other_entries))
    flag, hyperparams, *others = zoo_table[1]
    arguments = ["--seeds", 0, flag, hyperparams, other, *others]
    run_in_process("zoo_table", results_dir, "--conf", "tiny-adam", *arguments)
    assert sorted(fake_runs.pop_trained()) == [("Ant-v5", 0), ("CartPole-v1", 0)]
    rows = {(row["env"], row["conf"]): row["n_seeds"] for row in read_results(results_dir, "zoo_table")["rows"]}
    # What both have in common is not trained twice
    assert [rows["CartPole-v1", conf] for conf in ("tiny", "tiny-adam")] == [1, 1]
    assert [rows["Ant-v5", conf] for conf in ("tiny", "tiny-adam")] == [0, 1]
    run_in_process("zoo_table", results_dir, *arguments)
    assert fake_runs.pop_trained() == [("Ant-v5", 0)]
    assert (
        "Targets reached: tiny 0 of 17 (15 not run), tiny-adam 0 of 17 (15 not run)."
        in (results_dir / "zoo_table.md").read_text()
    )
    with pytest.raises(SystemExit, match="No entry for adam; there is: tiny, tiny-adam"):
        run_in_process("zoo_table", results_dir, "--conf", "adam", *arguments)


def test_zoo_table_may_ask_for_every_seed(zoo_table):
    module = zoo_table[0]
    for every_seed, reached in ((False, True), (True, False)):
        assert module.reaches([499.0, 502.0], module.Published(500.0, "", every_seed)) == reached
    assert module.reaches([500.0, 500.0], module.Published(500.0, "", True))


def test_zoo_table_scores_random_policies_as_such(tmp_path, zoo_table):
    _, arguments = zoo_table
    world, copter = "sb3_reinforce/AliasedGridworld-v0", "sb3_reinforce/PixelCopter-v0"
    entry = {"n_timesteps": 60, "policy": "MlpPolicy", "n_steps": 10, "baseline": None, "learning_rate": 1e-9}
    common.write_text(arguments[1], yaml.safe_dump({world: entry, copter: entry}, sort_keys=False))
    results_dir = tmp_path / "results"
    run_in_process("zoo_table", results_dir, "--seeds", 0, "--episodes", 40, *arguments)
    runs = {run["env"]: run for run in read_results(results_dir, "zoo_table")["runs"]}
    # Whoever takes the likeliest action always ends in the same place
    assert not runs[world]["deterministic"] and len(set(runs[world]["scores"])) > 2
    assert runs[copter]["deterministic"]
    rows = rows_of(results_dir)
    assert rows[world]["mean"] == runs[world]["mean"]
    assert rows[copter]["mean"] == pytest.approx(runs[copter]["mean"] - runs[copter]["std_over_episodes"])
    assert "worlds of this package: tiny 0 of 2." in (results_dir / "zoo_table.md").read_text()


def test_zoo_table_still_knows_the_runs_of_the_textbooks_entries():
    module = importlib.import_module("zoo_table")
    finished = module.read_runs(common.RESULTS_DIR / "zoo_table_runs.jsonl")
    rows = module.plan_rows([common.HYPERPARAMETERS.with_name("reinforce_adam.yml")], None)
    assert {row.conf for row in rows} == {"reinforce-adam"}
    # What came later
    new = {"Pendulum-v1, 300,000 steps, reinforce-adam", "Taxi-v4, reinforce-adam"}
    new |= {row.name for row in rows if row.env.startswith("sb3_reinforce/")}
    tasks = module.choose_tasks([row for row in rows if row.name not in new], None, None, None)
    assert len(tasks) == 15 * 5 + 3 * 3
    assert [task.key for task in tasks if task.key not in finished] == []


def test_zoo_table_reports_a_crash_and_goes_on(tmp_path, zoo_table, fake_runs):
    results_dir = tmp_path / "results"
    (fake_runs.folder / "CartPole-v1").touch()
    assert run_in_process("zoo_table", results_dir, "--seeds", 0, *zoo_table[1]) == 1
    assert sorted(fake_runs.pop_trained()) == [("Ant-v5", 0), ("CartPole-v1", 0)]
    assert rows_of(results_dir)["Ant-v5"]["n_seeds"] == 1
    assert "- CartPole-v1 seed 0: exit status 1: somewhere failed" in (results_dir / "zoo_table.md").read_text()

    (fake_runs.folder / "CartPole-v1").unlink()
    assert run_in_process("zoo_table", results_dir, "--seeds", 0, *zoo_table[1]) == 0
    assert fake_runs.pop_trained() == [("CartPole-v1", 0)]
    assert "Crashed" not in (results_dir / "zoo_table.md").read_text()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_zoo_table_ends_its_trainings_when_interrupted(tmp_path, zoo_table, how):
    note = tmp_path / "process"
    endless = tmp_path / "endless.py"
    endless.write_text(
        f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(f'{{os.getpid()}}.'); time.sleep(600)"
    )
    # As in a terminal: where the tests run in the background of a shell, their children would ignore the signal
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += f"import sys, zoo_table; zoo_table.RUN_SCRIPT = {str(endless)!r}; "
    program += "sys.exit(zoo_table.main(sys.argv[1:]))"
    arguments = ["--results-dir", tmp_path / "results", "--seeds", 0, 1, "--env", "CartPole-v1", "--jobs", 1, *zoo_table[1]]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))},
    )
    try:
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text().endswith(".")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(how)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()[:-1]), 0)
    assert not (tmp_path / "results" / "zoo_table_runs.jsonl").exists()
    assert rows_of(tmp_path / "results")["CartPole-v1"]["mean"] is None


# Several comparisons together


@pytest.fixture
def two_comparisons(tmp_path):
    """One environment with three seeds, another with two: seed 0 scores 100 with ppo, all else is between it and 0."""
    folders = [tmp_path / "three", tmp_path / "two"]
    for folder, env_id, n_seeds in zip(folders, ["CartPole-v1", "Acrobot-v1"], [3, 2], strict=True):
        folder.mkdir()
        settings = Settings(
            list(range(n_seeds)), None, 60.0, 1, 1, 1, {env_id: {"ppo": {}, "a2c": {}}}, {"ppo": "ppo", "a2c": "a2c"}
        )
        if env_id == "Acrobot-v1":
            settings = settings._replace(untuned={env_id: {"a2c": []}})
        claim_folder(folder, settings)
        for task in list_tasks(settings):
            score = {RANDOM: 0.0, "ppo": 100.0 - 20.0 * task.seed, "a2c": 10.0 + 5.0 * task.seed}[task.contender]
            write_result(folder, task, score)
    return folders


def test_compare_overall(tmp_path, two_comparisons):
    run_in_process("compare_overall", tmp_path / "results", "--folders", *two_comparisons)
    content = read_results(tmp_path / "results", "compare_overall")
    assert content["environments"] == ["CartPole-v1", "Acrobot-v1"]
    # The third seed of CartPole has no counterpart
    np.testing.assert_allclose(content["scores"]["ppo"], [[1.0, 1.0], [0.8, 0.8]])
    np.testing.assert_allclose(content["scores"]["a2c"], [[0.1, 0.1], [0.15, 0.15]])
    # Of four runs the middle two
    assert content["aggregates"]["IQM"]["ppo"][0] == pytest.approx(0.9)
    text = (tmp_path / "results/compare_overall.md").read_text()
    assert "ppo has the highest interquartile mean of the normalised final scores, 0.90" in text
    assert "over the seeds 0, 1, which all comparisons have" in text
    # All ran for 1,000 steps, so that nothing is different there
    assert content["at_equal_steps"]["steps"] == {"CartPole-v1": 1000, "Acrobot-v1": 1000}
    assert content["at_equal_steps"]["scores"] == content["scores"]
    assert "| two | Acrobot-v1 | 60 seconds of training each |" in text
    assert "\n\nWithout an entry for Acrobot-v1, a2c trains there with the entry default.\n\n" in text


def test_compare_overall_reads_curves_where_the_shortest_run_ended(tmp_path, two_comparisons):
    # In one of the comparisons only, so that its few steps do not count
    (tmp_path / "other").mkdir()
    other = Settings(
        [0, 1],
        None,
        60.0,
        1,
        1,
        1,
        {"Taxi-v4": {"ppo": {}, "a2c": {}, "dqn": {}}},
        dict(zip(*[("ppo", "a2c", "dqn")] * 2, strict=True)),
    )
    claim_folder(tmp_path / "other", other)
    for task in list_tasks(other):
        write_result(tmp_path / "other", task, 0.0 if task.contender == RANDOM else 10.0)
    for dqn in (tmp_path / "other").rglob("dqn/seed*/result.json"):
        short = json.loads(dqn.read_text())
        dqn.write_text(json.dumps(short | {"evaluations": short["evaluations"][:2]}))

    path = next(two_comparisons[0].rglob("a2c/seed1/result.json"))
    result = json.loads(path.read_text())
    # Halfway through the others, whose scores then are half of their final ones; those in the report stay
    result["evaluations"] = [evaluation | {"steps": evaluation["steps"] // 2} for evaluation in result["evaluations"]]
    path.write_text(json.dumps(result))
    run_in_process("compare_overall", tmp_path / "results", "--folders", *two_comparisons, tmp_path / "other")
    content = read_results(tmp_path / "results", "compare_overall")
    assert content["at_equal_steps"]["steps"] == {"CartPole-v1": 500, "Acrobot-v1": 1000, "Taxi-v4": 1000}
    np.testing.assert_allclose(content["scores"]["a2c"], [[0.1, 0.1, 1.0], [0.15, 0.15, 1.0]])
    # Half of the best run's 50, and the whole of what the shortest run has
    np.testing.assert_allclose(content["at_equal_steps"]["scores"]["ppo"], [[1.0, 1.0, 1.0], [0.8, 0.8, 1.0]])
    np.testing.assert_allclose(content["at_equal_steps"]["scores"]["a2c"], [[0.1, 0.1, 1.0], [0.3, 0.15, 1.0]])


def test_compare_overall_refuses_what_is_not_finished(tmp_path, two_comparisons, capsys):
    next(two_comparisons[1].rglob("a2c/seed1/result.json")).unlink()
    with pytest.raises(SystemExit, match="two is not finished: 1 runs are missing"):
        run_in_process("compare_overall", tmp_path / "results", "--folders", *two_comparisons)
    with pytest.raises(SystemExit):
        run_in_process("compare_overall", tmp_path / "results", "--folders", tmp_path)
    assert "holds no comparison" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_masks_never_repeats_a_finished_run(tmp_path, monkeypatch):
    masks = importlib.import_module("masks")
    tiny = ["--env", "Taxi-v4", "--steps", 100, "--evaluations", 1, "--episodes", 1, "--final-episodes", 1, "--n-envs", 2]
    run_in_process("masks", tmp_path, "--seeds", 0, *tiny)
    first = read_results(tmp_path, "masks", figure=True)["runs"]
    assert [run["contender"] for run in first] == ["reinforce", "maskable_ppo"]
    assert all(run["steps"] >= 100 and run["seconds"] > 0.0 and run["curve"][0][0] == 0 for run in first)

    run_in_process("masks", tmp_path, "--seeds", 0, 1, *tiny)
    again = read_results(tmp_path, "masks", figure=True)["runs"]
    assert again[:2] == first and [run["seed"] for run in again] == [0, 0, 1, 1]
    assert "| Taxi-v4 | MaskablePPO | 2 |" in (tmp_path / "masks.md").read_text()
    monkeypatch.setattr(masks, "code_hash", lambda: "other sources")
    monkeypatch.setattr(masks, "run", lambda options, env_id, contender, seed: {**first[0], "contender": contender})
    run_in_process("masks", tmp_path, "--seeds", 0, *tiny)
    assert len(read_results(tmp_path, "masks", figure=True)["runs"]) == 2


def test_laboratory(tmp_path, monkeypatch):
    from sb3_reinforce.lab import refit

    monkeypatch.setattr(refit, "N_GRADIENT_STEPS", 20)
    monkeypatch.chdir(tmp_path)
    arguments = ["--env", "CartPole-v1", "--n-timesteps", "1500", "--episodes", "40", "--batch", "8"]
    run_in_process("laboratory", tmp_path / "results", *arguments)
    folder = tmp_path / "results/laboratory/CartPole-v1"
    names = {"provenance.json", *(f"gradients.{suffix}" for suffix in ("html", "md", "csv", "png", "svg"))}
    assert {path.name for path in folder.iterdir()} == names
    table = pd.read_csv(folder / "gradients.csv")
    assert table["model"][0] == "untrained"
    assert 2 <= table["model"].nunique() <= 4
    assert (table.groupby("model")["estimator"].apply(set).map(lambda keys: "to-go-critic" in keys)).all()
    assert str(tmp_path) not in (folder / "gradients.md").read_text()
    content = json.loads((folder / "provenance.json").read_text())
    stages = importlib.import_module("laboratory").choose_stages({int(s): r for s, r in content["training_returns"].items()})
    assert stages == sorted(set(stages))
    # Nothing is done twice
    before = (folder / "gradients.html").stat().st_mtime_ns
    run_in_process("laboratory", tmp_path / "results", *arguments)
    assert (folder / "gradients.html").stat().st_mtime_ns == before
    # But a shorter training is another one
    arguments[3] = "500"
    run_in_process("laboratory", tmp_path / "results", *arguments)
    shorter = json.loads((folder / "provenance.json").read_text())["training_returns"]
    assert max(map(int, shorter)) < 500 < max(map(int, content["training_returns"]))


def test_stages_are_chosen_by_how_far_training_has_come():
    choose_stages = importlib.import_module("laboratory").choose_stages
    assert choose_stages({100: 20.0, 200: 60.0, 300: 260.0, 400: 450.0, 500: 500.0}) == [200, 300, 400]
    # A training that falls back does not make the stages go back
    assert choose_stages({100: 20.0, 200: 400.0, 300: 60.0, 400: 500.0}) == [300, 400]


RANKS_SPEC = {"env": "CartPole-v1", "round": 0, "n_envs": 1, "n_steps": 8, "steps": 60, "warmup_steps": 20, "code_hash": "h"}


def made_up_rank_row(n_ranks, **changes):
    """An update of one second of collection, or two for every fifth, and half a second for all else."""
    measured = {
        "seconds": 17.0,
        "steps_made": 1700 * n_ranks,
        "n_updates": 10,
        "communication": 0.1,
        "waiting": 0.05,
        "collection_seconds": [[1.0, 1.0, 1.0, 1.0, 2.0] * 2],
        "weighing_seconds": 0.1,
        "reductions_per_update": 3.0,
        "reduction_seconds": 0.01 * math.log2(n_ranks) if n_ranks > 1 else 0.0,
        "gather_seconds": 0.02 * n_ranks if n_ranks > 1 else 0.0,
        "load": 0.5,
    }
    return {**RANKS_SPEC, "n_ranks": n_ranks, **measured, **changes}


def test_what_many_ranks_cost_is_computed_from_what_few_did():
    ranks = importlib.import_module("ranks")
    rows = [made_up_rank_row(1), made_up_rank_row(2)]
    assert ranks.expected_seconds(rows, 1) == pytest.approx(1.7, abs=0.05)
    # All wait for a slow one: 2, the rest 0.4, weighing 512 times as much, nine times the reduction, 512 times the gathers
    assert ranks.expected_seconds(rows, 512) == pytest.approx(2.0 + 0.4 + 51.2 + 3 * 0.09 + 2 * 512 * 0.02, abs=0.01)
    (line,) = ranks.expectation_table(rows)
    assert list(line) == ["environment", "2 ranks", "8 ranks", "64 ranks", "512 ranks"]
    assert ranks.expectation_table(rows[:1]) == []


def test_ranks_resumes_and_compares_the_numbers_of_ranks_round_by_round(tmp_path, monkeypatch):
    ranks = importlib.import_module("ranks")
    started = []

    def run(spec):
        started.append((spec["n_ranks"], spec.get("round"), spec.get("seed")))
        if len(started) == 3:
            raise KeyboardInterrupt
        if "threshold" in spec:
            return {"seconds": 2.0, "steps_made": 500, "reached": spec["n_ranks"] == 2, "mean": 480.0}
        return {**made_up_rank_row(spec["n_ranks"], seconds=10.0 + spec["round"]), **spec}

    monkeypatch.setattr(ranks, "run", run)
    arguments = ["--env", "CartPole-v1", "--rounds", 2, "--threshold", "CartPole-v1=475", "--seeds", 0]
    with pytest.raises(KeyboardInterrupt):
        run_in_process("ranks", tmp_path, *arguments)
    run_in_process("ranks", tmp_path, *arguments)
    assert started == [(1, 0, None), (2, 0, None), (1, 1, None), (1, 1, None), (2, 1, None), (1, None, 0), (2, None, 0)]
    run_in_process("ranks", tmp_path, *arguments)
    assert len(started) == 7
    read_results(tmp_path, "ranks")
    text = (tmp_path / "ranks.md").read_text()
    assert "| CartPole-v1 | 2 | 2 | 325 | 2.00 (2.00 to 2.00) | 10.0% | 5.0% |" in text
    assert "computed, not measured" in text
    assert "| CartPole-v1 | 475.0 | 1 | 0 of 1 |  |  |" in text
    assert "| CartPole-v1 | 475.0 | 2 | 1 of 1 | 500 | 2.0 |" in text
    # Another question is not answered by the medians of both
    run_in_process("ranks", tmp_path, "--n-envs", 4, "--threshold", "CartPole-v1=200", *arguments[:4], "--seeds", 0)
    content = read_results(tmp_path, "ranks")
    assert {row["n_envs"] for row in content["speed"]} == {4} and len(content["speed"]) == 4
    assert {row["threshold"] for row in content["threshold"]} == {200.0}


@pytest.mark.parametrize("aim", [{}, {"threshold": 9.0, "max_steps": 30_000, "seed": 0}])
def test_what_one_rank_measures(tmp_path, monkeypatch, aim):
    ranks = importlib.import_module("ranks")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    ranks.work(json.dumps({**RANKS_SPEC, "n_ranks": 1, "output": str(tmp_path / "result.json"), **aim}))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps_made"] >= 60 and result["seconds"] > 0.0
    if aim:
        assert result["reached"]
    else:
        assert len(result["collection_seconds"][0]) == result["n_updates"] > 0
        assert result["communication"] == 0.0
        assert result["weighing_seconds"] > 0.0


def test_earlier_entries_get_the_present_names(tmp_path, monkeypatch):
    earlier_entries = importlib.import_module("earlier_entries")
    known = {"Hopper-v3": {"gamma": 0.3}, "Hopper-v4": {"gamma": 0.4}, "Hopper-v6": {"gamma": 0.6}, "default": {}}
    (tmp_path / "a2c.yml").write_text(yaml.safe_dump(known))
    monkeypatch.setattr(earlier_entries, "RL_ZOO_DIR", tmp_path)
    folder = tmp_path / "new" / "folder"
    earlier_entries.main(["--algos", "a2c", "--env", "Hopper-v5", "Hopper-v3", "-f", str(folder)])
    written = yaml.safe_load((folder / "a2c.yml").read_text())
    assert written == {"Hopper-v5": {"gamma": 0.4}, "Hopper-v3": {"gamma": 0.3}}
    with pytest.raises(SystemExit, match="no entry for Hopper-v2, and none for an earlier version"):
        earlier_entries.main(["--algos", "a2c", "--env", "Hopper-v2", "-f", str(folder)])
