"""The command ``sb3-reinforce compare`` as a user runs it, on tiny budgets, and its report in a browser."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from browsing import open_page
from dask_cluster import Cluster
from PIL import Image
from selenium.webdriver.common.by import By
from stable_baselines3 import PPO

from sb3_reinforce import REINFORCE
from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.cli import main
from sb3_reinforce.zoo.compare import plan, run
from sb3_reinforce.zoo.compare.plan import Settings, Task
from sb3_reinforce.zoo.compare.run_files import RESULT_FILE

SMALL = ["--n-evaluations", "2", "--eval-episodes", "2", "--final-episodes", "3"]
#: What may differ between two runs of the same command.
TIMES = ["seconds", "steps_per_second", "seconds_to_threshold"]


def arguments(folder: Path, *others: str) -> list[str]:
    return ["compare", "--env", "CartPole-v1", "--seeds", "1", "-f", str(folder), *SMALL, *others]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    """Three algorithms, of which one normalises observations and one has two files, and a variant."""
    folder = tmp_path_factory.mktemp("comparison") / "comparison"
    config = folder.parent / "ppo.yml"
    config.write_text("default: {n_envs: 2, n_timesteps: 1000, policy: MlpPolicy, n_steps: 64, normalize: true}")
    others = ["--algos", "reinforce", "reinforce-adam", "a2c", "ppo", "--conf-file", f"ppo={config}", "-n", "600"]
    assert main([*arguments(folder, *others), "--variant", "no-baseline", "baseline:None"]) == 0
    return folder


def test_report_and_models_are_there(comparison):
    runs = pd.read_csv(comparison / "results.csv")
    assert set(runs["algorithm"]) == {"reinforce", "reinforce-adam", "a2c", "ppo", "no-baseline"}
    assert (runs["steps"] >= 600).all()
    assert runs["score"].between(1, 500).all()
    curves = pd.read_csv(comparison / "curves.csv")
    # Before the training, in its middle and after it
    assert (curves.groupby("algorithm").size() == 3).all()
    assert (curves.groupby("algorithm")["steps"].first() == 0).all()
    assert (comparison / "report.md").read_text().count("One seed says nothing") == 1
    final = comparison / Task("CartPole-v1", "ppo", 0).folder / "ppo/CartPole-v1_1"
    assert PPO.load(final / "CartPole-v1.zip").num_timesteps >= 600
    assert (final / "CartPole-v1/vecnormalize.pkl").is_file()
    assert (final / "best_model.zip").is_file()
    variant = comparison / Task("CartPole-v1", "no-baseline", 0).folder / "reinforce/CartPole-v1_1"
    assert REINFORCE.load(variant / "CartPole-v1.zip").baseline is None


def test_agents_of_a_comparison_can_be_shown(comparison, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    folder = comparison / Task("CartPole-v1", "ppo", 0).folder
    assert main(["enjoy", "--algo", "ppo", "--env", "CartPole-v1", "-n", "100", "-f", str(folder)]) == 0
    assert "Loading" in capsys.readouterr().out


def test_a_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(arguments(tmp_path / "file")) == 1
    assert f"--folder {tmp_path / 'file'}: File exists" in capsys.readouterr().err


def test_finished_runs_are_not_trained_again(comparison, capsys):
    times = {path: path.stat().st_mtime_ns for path in comparison.rglob(RESULT_FILE)}
    assert len(times) == 6
    config = comparison.parent / "ppo.yml"
    others = ["--algos", "reinforce", "reinforce-adam", "a2c", "ppo", "--conf-file", f"ppo={config}", "-n", "600"]
    others += ["--variant", "no-baseline", "baseline:None"]
    assert main(arguments(comparison, *others)) == 0
    assert {path: path.stat().st_mtime_ns for path in comparison.rglob(RESULT_FILE)} == times
    assert "Report: " in capsys.readouterr().out
    assert main(arguments(comparison, *others, "--seeds", "2")) == 1
    assert "seeds: [0] there, [0, 1] asked for" in capsys.readouterr().err


#: A comparison that is made in several ways.
TWO = ["--algos", "reinforce", "a2c", "-n", "600"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The comparison made on this machine, without an interruption."""
    folder = tmp_path_factory.mktemp("plain") / "comparison"
    assert main(arguments(folder, *TWO)) == 0
    return folder


def assert_equal(first: Path, second: Path) -> None:
    """Check that two comparisons have the same results, times aside."""
    for name, times in (("results.csv", TIMES), ("curves.csv", ["seconds"])):
        tables = [pd.read_csv(path / name).drop(columns=times) for path in (first, second)]
        pd.testing.assert_frame_equal(*tables)


def test_killed_and_started_again(tmp_path, plain):
    """Kill the command by its process id between two results, and compare with the same command left alone."""
    folder, others = tmp_path / "killed", [*TWO, "--jobs", "1"]
    command = [sys.executable, "-m", "sb3_reinforce", *arguments(folder, *others)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = folder / Task("CartPole-v1", "reinforce", 0).folder / RESULT_FILE
    second = folder / Task("CartPole-v1", "a2c", 0).folder
    deadline = time.monotonic() + 300
    children: list[psutil.Process] = []
    while not (first.exists() and children) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert first.exists()
    assert not second.exists()
    assert children
    # A run must not go on without the command that wants it
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive

    written = first.stat().st_mtime_ns
    assert main(arguments(folder, *others)) == 0
    assert first.stat().st_mtime_ns == written
    assert_equal(folder, plain)


def test_two_workers_in_two_folders_give_the_same(tmp_path, plain):
    cluster = Cluster(tmp_path)
    try:
        folder = tmp_path / "comparison"
        assert main(arguments(folder, *TWO, "--scheduler", cluster.address)) == 0
    finally:
        cluster.stop()
    assert_equal(folder, plain)
    files = [sorted(path.relative_to(root) for path in (root / "runs").rglob("*")) for root in (folder, plain)]
    assert files[0] == files[1]


def test_a_run_ends_when_nobody_waits_for_it(tmp_path):
    register()
    entries = plan.read_entries(["CartPole-v1"], [plan.Algorithm("ppo", "ppo")])
    settings = Settings([0], 10_000_000, None, 1, 1, 1, entries, {"ppo": "ppo"})
    command = [sys.executable, "-m", "sb3_reinforce.zoo.compare.run", str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    process.stdin.write(json.dumps(run.describe_job(settings, Task("CartPole-v1", "ppo", 0), "cpu")) + "\n")
    process.stdin.flush()
    deadline = time.monotonic() + 300
    # It trains once its best checkpoint is there
    while not list(tmp_path.rglob("best_model.zip")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    assert not (tmp_path / RESULT_FILE).exists()


def test_a_failed_run_does_not_sink_the_others(tmp_path, capsys):
    folder = tmp_path / "comparison"
    # What PPO is given here it only finds out about in its first update
    config = tmp_path / "ppo.yml"
    config.write_text("default: {n_timesteps: 1000, policy: MlpPolicy, n_steps: 64, target_kl: wrong}")
    others = ["--algos", "ppo", "reinforce", "--conf-file", f"ppo={config}", "-n", "300"]
    assert main(arguments(folder, *others)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 runs failed, and the same command does them again: ppo on CartPole-v1, seed 0: exit status 1: TypeError" in error
    markdown = (folder / "report.md").read_text()
    assert "## Missing runs" in markdown
    assert re.search(
        r"\| ppo on CartPole-v1, seed 0 \| exit status 1: TypeError: .* \(runs/CartPole-v1/ppo/seed0/output.log\)", markdown
    )
    assert list(pd.read_csv(folder / "results.csv")["algorithm"]) == ["reinforce"]


def test_all_runs_fail(tmp_path, capsys):
    folder, config = tmp_path / "comparison", tmp_path / "ppo.yml"
    config.write_text("default: {n_timesteps: 1000, policy: MlpPolicy, n_steps: 64, target_kl: wrong}")
    command = arguments(folder, "--algos", "ppo", "--conf-file", f"ppo={config}", "-n", "300")
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "1 runs failed" in captured.err.splitlines()[-1]
    assert "runs/CartPole-v1/ppo/seed0/output.log" in captured.err.splitlines()[-1]
    assert f"Report: {folder / 'report.html'}" in captured.out
    # The reason is still there when nothing is tried again
    assert main([*command, "--report-only"]) == 0
    assert re.search(r"\| ppo on CartPole-v1, seed 0 \| TypeError: .*output.log\) \|", (folder / "report.md").read_text())


def test_an_environment_without_a_time_limit(tmp_path, capsys):
    folder = tmp_path / "comparison"
    command = arguments(folder, "--algos", "a2c", "ars", "-n", "40", "--max-episode-steps", "20")
    command[command.index("CartPole-v1")] = "CliffWalking-v1"
    assert main(command) == 0
    line = "CliffWalking-v1 is registered without a time limit: evaluation episodes end after 20 steps at the latest"
    assert line in capsys.readouterr().out
    assert line in (folder / "report.md").read_text()
    # A step costs 1, one over the cliff 100
    runs = pd.read_csv(folder / "results.csv")
    assert runs["stochastic_score"].between(-20 * 100, -1).all()
    assert set(runs["algorithm"]) == {"a2c", "ars"}


OWN_ENV = """
import gymnasium as gym
from gymnasium import spaces


class Env(gym.Env):
    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)

    def __init__(self, reward):
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), self.reward, self.steps == 5, False, {}


gym.register("EndsByItself-v0", Env)
"""


def test_an_environment_of_the_user_that_ends_by_itself(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_env_of_the_tests.py").write_text(OWN_ENV)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = arguments(tmp_path / "comparison", "--algos", "a2c", "-n", "20", "--gym-packages", "own_env_of_the_tests")
    command[command.index("CartPole-v1")] = "EndsByItself-v0"
    assert main(command) == 1
    assert "a2c on EndsByItself-v0: Env.__init__() missing 1 required positional argument" in capsys.readouterr().err
    assert main([*command, "--env-kwargs", "reward:3.0"]) == 0
    runs = pd.read_csv(tmp_path / "comparison/results.csv")
    assert list(runs["score"]) == list(runs["stochastic_score"]) == [15.0]
    # No time limit was needed
    assert "time limit" not in capsys.readouterr().out + (tmp_path / "comparison/report.md").read_text()
    assert main([*command, "--env-kwargs", "reward:2.0"]) == 1
    assert "env_kwargs.reward: 3.0 there, 2.0 asked for" in capsys.readouterr().err


def test_budget_in_seconds(tmp_path):
    assert main(arguments(tmp_path / "comparison", "--algos", "reinforce", "--seconds", "2")) == 0
    run = pd.read_csv(tmp_path / "comparison/results.csv").iloc[0]
    assert run["seconds"] >= 2.0
    assert run["steps"] > 300
    curve = pd.read_csv(tmp_path / "comparison/curves.csv")
    assert 1.0 <= curve["seconds"][1] < run["seconds"]


# The page in a browser


def check_shadows(browser, width: int) -> None:
    """Where a table goes on beyond its box, its edge is darker than where it ends."""
    boxes = browser.find_elements(By.CSS_SELECTOR, ".scroll")
    cut = [box for box in boxes if browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", box)]
    assert bool(cut) == (width == 360)
    for box in cut:
        edges = []
        for position in ("0", "arguments[0].scrollWidth"):
            browser.execute_script(f"arguments[0].scrollLeft = {position}", box)
            image = np.asarray(Image.open(io.BytesIO(box.screenshot_as_png)).convert("L"))
            # Between the lines of a table there is nothing but its background
            edges.append(np.median(image[:, -2]))
        assert edges[0] < 230 < edges[1]


@pytest.mark.parametrize("width", [360, 1280])
def test_page_in_a_browser(comparison, browser, width):
    open_page(browser, comparison / "report.html", width)
    assert "reinforce" in browser.title
    assert len(browser.find_elements(By.CSS_SELECTOR, "figure img")) == len(list((comparison / "figures").glob("*.svg")))
    check_shadows(browser, width)
