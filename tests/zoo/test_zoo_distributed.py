"""``train --distributed``, with and without the processes that it needs."""

import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

from sb3_reinforce import REINFORCE
from sb3_reinforce.distributed.process_group import TORCHRUN_VARIABLES
from sb3_reinforce.zoo.cli import main


def test_ranks_train_one_agent_in_one_folder_of_rank_0(tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "sb3_reinforce", "train", "--env", "CartPole-v1", "--distributed"),
        *("-n", "1200", "--eval-freq", "400", "--eval-episodes", "2", "--save-freq", "500"),
        *("-params", "n_envs:2", "policy_averaging:0.5", "normalize:True"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Training with 2 processes: one policy, one gradient\n") == 1
    assert run.stdout.count("Saving to ") == 1
    assert run.stdout.count("Seed: ") == 1

    (folder,) = (tmp_path / "logs/reinforce").iterdir()
    names = {path.name for path in folder.rglob("*")}
    assert names >= {"best_model.zip", "evaluations.npz", "CartPole-v1.zip", "config.yml", "vecnormalize.pkl", "0.monitor.csv"}
    # Every 400 steps of both ranks together, that is every 100 calls of the callback
    assert 2 <= len(np.load(folder / "evaluations.npz")["timesteps"]) <= 4
    assert any(name.startswith("rl_model_") for name in names)
    model = REINFORCE.load(folder / "CartPole-v1.zip")
    assert not model.distributed
    assert model.num_timesteps >= 1200
    assert model.predict(np.zeros(4, dtype=np.float32))[0] in (0, 1)
    assert "distributed" not in dict(yaml.unsafe_load((folder / "CartPole-v1/config.yml").read_text()))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--distributed needs processes that torchrun started, but RANK"),
        (["--algo", "ppo"], "--distributed: only reinforce and reinforce_lstm train in several processes, not ppo"),
        (["-optimize"], "--distributed trains one model"),
    ],
)
def test_what_cannot_be_trained_together_is_said_in_one_line(monkeypatch, tmp_path, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    for name in TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert main(["train", "--env", "CartPole-v1", "--distributed", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sb3-reinforce: error: {message}")
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_flag_is_not_a_hyperparameter(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--env", "CartPole-v1", "-params", "distributed:True"]) == 1
    assert "distributed: is set by the flag --distributed, not by the file" in capsys.readouterr().err
    assert not (tmp_path / "logs/reinforce").exists()
