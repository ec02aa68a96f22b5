"""REINFORCE with recurrent policies in RL Zoo: another algorithm, of the same class."""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import rl_zoo3.import_envs  # noqa: F401 (registers the environments without velocities)
import yaml
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE
from sb3_reinforce.policies.recurrent import LstmMixin
from sb3_reinforce.zoo import hyperparams_path, register
from sb3_reinforce.zoo.cli import main
from sb3_reinforce.zoo.config import check_hyperparameters
from sb3_reinforce.zoo.experiment import ExperimentManager

ENTRIES = yaml.safe_load(hyperparams_path("reinforce_lstm").read_text())
ALGO = ["--algo", "reinforce_lstm", "--env", "CartPoleNoVel-v1"]
QUIET = ["--verbose", "0", "--num-threads", "1"]
TINY = ["-n", "300", "--eval-freq", "150", "--eval-episodes", "2", *QUIET, "-params", "n_steps:8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *ALGO, *TINY]) == 0
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.chdir(folder)
    return folder


def test_it_is_registered_beside_reinforce():
    register()
    assert ALGOS["reinforce_lstm"] is ALGOS["reinforce"] is REINFORCE
    assert HYPERPARAMS_SAMPLER["reinforce_lstm"] is not HYPERPARAMS_SAMPLER["reinforce"]


@pytest.mark.parametrize("env_id", ENTRIES)
def test_an_entry_is_valid_and_recurrent(env_id, tmp_path):
    entry = ENTRIES[env_id]
    check_hyperparameters(entry, env_id)
    register()
    manager = ExperimentManager(argparse.Namespace(), "reinforce_lstm", "CartPole-v1", str(tmp_path), verbose=0)
    assert manager.config == str(hyperparams_path("reinforce_lstm"))
    kwargs, *_ = manager._preprocess_hyperparams(dict(entry))
    model = REINFORCE(env=make_vec_env("CartPole-v1" if env_id == "default" else env_id), device="cpu", **kwargs)
    assert isinstance(model.policy, LstmMixin)


def test_train_takes_its_own_entry(in_folder):
    run = in_folder / "logs/reinforce_lstm/CartPoleNoVel-v1_1"
    names = ("CartPoleNoVel-v1.zip", "best_model.zip", "evaluations.npz", "CartPoleNoVel-v1/config.yml")
    assert all((run / name).is_file() for name in names)
    config = (run / "CartPoleNoVel-v1/config.yml").read_text()
    assert all(f"- {key}\n" in config for key in ENTRIES["CartPoleNoVel-v1"])
    assert isinstance(REINFORCE.load(run / "CartPoleNoVel-v1.zip").policy, LstmMixin)


def test_enjoy_hands_the_state_on(in_folder, capsys, monkeypatch):
    states = []
    predict = REINFORCE.predict

    def note(self, observation, state=None, **kwargs):
        result = predict(self, observation, state, **kwargs)
        states.append((state, result[1]))
        return result

    monkeypatch.setattr(REINFORCE, "predict", note)
    assert main(["enjoy", *ALGO, "-n", "50"]) == 0
    assert "Loading logs/reinforce_lstm/CartPoleNoVel-v1_1/CartPoleNoVel-v1.zip" in capsys.readouterr().out
    assert states[0][0] is None and len(states) == 50
    for (_, returned), (given, _) in itertools.pairwise(states):
        assert given is returned and given[0].shape == (1, 1, 64)


def test_record_video(in_folder):
    assert main(["record-video", *ALGO, "-n", "20", "-o", "videos"]) == 0
    assert [path.suffix for path in Path("videos").iterdir()] == [".mp4"]


def test_gradients_finds_agent_and_environment(in_folder):
    # A process of its own: this one has RL Zoo's environments anyway
    command = [sys.executable, "-m", "sb3_reinforce", "gradients", *ALGO, "--episodes", "20", "--estimators", "own"]
    ended = subprocess.run([*command, "-f", "logs", "-o", "gradients"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    table = pd.read_csv("gradients/gradients.csv")
    assert list(table["algorithm"].unique()) == ["REINFORCE"]
    assert table["model"][0].endswith(" steps")


def test_optimize_searches_the_lstm_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    budget = ["-n", "200", "--n-trials", "1", "--n-jobs", "1", "--n-evaluations", "1", "--eval-episodes", "2"]
    assert main(["optimize", *ALGO, *budget, *QUIET, "--seed", "1"]) == 0
    (best,) = Path("logs/reinforce_lstm").glob("**/*.yml")
    entry = yaml.safe_load(best.read_text())["CartPoleNoVel-v1"]
    assert "lstm_hidden_size" in str(entry["policy_kwargs"])
    assert main(["train", *ALGO, "-n", "100", "--conf-file", str(best), *QUIET]) == 0


@pytest.mark.parametrize("n_actions", [0, 2])
def test_the_sampler_and_the_converter_agree(n_actions):
    def objective(trial):
        kwargs = HYPERPARAMS_SAMPLER["reinforce_lstm"](trial, n_actions, 8, {})
        converted = HYPERPARAMS_CONVERTER["reinforce_lstm"](trial.params)
        assert kwargs["policy_kwargs"] == converted["policy_kwargs"]
        assert kwargs.keys() == converted.keys()
        env = "CartPole-v1" if n_actions == 0 else "Pendulum-v1"
        model = REINFORCE("MlpLstmPolicy", env, device="cpu", **kwargs)
        assert model.policy.lstm_actor.hidden_size == converted["policy_kwargs"]["lstm_hidden_size"]
        return 0.0

    register()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=8)


def test_compare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--seeds", "1", "-n", "200", "--n-evaluations", "1", "--eval-episodes", "2", "--final-episodes", "2"]
    assert main(["compare", "--env", "CartPoleNoVel-v1", "--algos", "reinforce_lstm", "reinforce", *options, "-f", "out"]) == 0
    (result,) = Path("out").glob("runs/CartPoleNoVel-v1/reinforce_lstm/*/result.json")
    assert np.isfinite(json.loads(result.read_text())["final"]["deterministic"]).all()
