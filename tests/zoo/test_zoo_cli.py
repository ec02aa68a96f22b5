"""The command ``sb3-reinforce``, headless, on tiny budgets."""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import huggingface_sb3
import numpy as np
import pytest
import yaml
from huggingface_hub.errors import RemoteEntryNotFoundError
from matplotlib import pyplot as plt

from sb3_reinforce import REINFORCE, vec_env
from sb3_reinforce.zoo import commands, hyperparams_path
from sb3_reinforce.zoo.cli import COMMANDS, main

TINY = ["--eval-freq", "200", "--eval-episodes", "2", "--verbose", "0", "--num-threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of three algorithms on CartPole."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for algo in ("reinforce", "ppo", "a2c"):
            for seed in ("1", "2"):
                assert main(["train", "--algo", algo, "--env", "CartPole-v1", "-n", "600", "--seed", seed, *TINY]) == 0
    return folder


@pytest.fixture(autouse=True)
def headless(monkeypatch, tmp_path):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def in_folder(monkeypatch, folder):
    monkeypatch.chdir(folder)
    return folder


def fails(capsys, *args: str) -> str:
    """Run a command that must fail with one line, and return the line."""
    assert main(args) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("sb3-reinforce: error: ")
    assert error.count("\n") == 1
    return error


# The way of a user


def test_train_leaves_what_rl_zoo_leaves(in_folder):
    for algo in ("reinforce", "ppo", "a2c"):
        for run in ("CartPole-v1_1", "CartPole-v1_2"):
            names = ("CartPole-v1.zip", "evaluations.npz", "0.monitor.csv", "CartPole-v1/config.yml", "CartPole-v1/args.yml")
            assert all((in_folder / "logs" / algo / run / name).is_file() for name in names)
    config = (in_folder / "logs/reinforce/CartPole-v1_1/CartPole-v1/config.yml").read_text()
    entry = yaml.safe_load(hyperparams_path().read_text())["CartPole-v1"]
    assert all(f"- {key}\n" in config for key in entry)


def test_enjoy(in_folder, capsys):
    assert main(["enjoy", "--algo", "reinforce", "--env", "CartPole-v1", "-n", "600"]) == 0
    output = capsys.readouterr().out
    assert "No display" in output
    assert "Loading logs/reinforce/CartPole-v1_2/CartPole-v1.zip" in output
    assert "Mean reward" in output


def test_enjoy_another_algorithm(in_folder, capsys):
    assert main(["enjoy", "--algo", "ppo", "--env", "CartPole-v1", "-n", "200", "-f", "logs"]) == 0
    assert "Mean reward" in capsys.readouterr().out


def test_record_video(in_folder, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("MUJOCO_GL")
    assert main(["record-video", "--algo", "reinforce", "--env", "CartPole-v1", "-n", "20", "-o", "videos"]) == 0
    assert [path.suffix for path in Path("videos").iterdir()] == [".mp4"]
    assert os.environ["MUJOCO_GL"] == "egl"


def test_plots(in_folder, capsys):
    arguments = ["-a", "reinforce", "ppo", "a2c", "-e", "CartPole-v1", "-f", "logs"]
    # REINFORCE finishes its last rollout: one run may have an evaluation more, and RL Zoo would drop the other
    assert main(["all-plots", *arguments, "--no-million", "-max", "600", "-o", "results"]) == 0
    assert "REINFORCE" in capsys.readouterr().out
    assert Path("all-plots_Results_CartPole-v1.png").is_file()

    assert main(["plot-from-file", "-i", "results", "-r", "-vs", "-iqm", "-o", "summary.svg"]) == 0
    assert Path("summary.svg").is_file()
    assert Path("plot-from-file_Sensitivity_plot.png").is_file()

    assert main(["plot-train", "-a", "reinforce", "-e", "CartPole-v1", "-f", "logs", "-w", "5"]) == 0
    assert Path("plot-train_Training_Episodic_Reward.png").is_file()


def test_figures_are_not_saved_when_they_are_not_wanted(in_folder, tmp_path, monkeypatch):
    results = in_folder / "logs"
    monkeypatch.chdir(tmp_path)
    # RL Zoo takes abbreviations and values that are glued to their flag
    options = ["-areinforce", "--env=CartPole-v1", "--exp-folder", str(results), "--no-display"]
    assert main(["all-plots", *options]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["all-plots", "-a", "reinforce", "-e", "CartPole-v1", "-f", "logs", "-k", "success"],
            "all_plots stopped at KeyErr",
        ),
        (["all-plots", "-a", "reinforce", "-e", "CartPole-v1", "-f", "logs", "logs", "-l", "x"], "all_plots stopped at Index"),
        # Every algorithm needs two runs
        (["plot-from-file", "-i", "single"], "plot_from_file stopped at"),
        (["plot-from-file", "-i", "nothing"], "plot_from_file stopped at FileNotFoundError"),
    ],
)
def test_what_rl_zoo_cannot_plot_is_said_in_one_line(in_folder, tmp_path, monkeypatch, capsys, args, message):
    shutil.copytree(in_folder / "logs/reinforce/CartPole-v1_1", tmp_path / "logs/reinforce/CartPole-v1_1")
    monkeypatch.chdir(tmp_path)
    if "single" in args:
        assert main(["all-plots", "-a", "reinforce", "-e", "CartPole-v1", "-f", "logs", "-o", "single"]) == 0
    capsys.readouterr()
    error = fails(capsys, *args)
    assert f"rl_zoo3.plots.{message}" in error
    assert "docs/zoo.md" in error
    plt.close("all")


def test_runs_of_environments_with_a_slash_are_plotted_by_the_names_of_their_folders(tmp_path):
    evaluations = ["--eval-freq", "100", "--eval-episodes", "2"]
    assert main(["train", "--env", "sb3_reinforce/DiamondHill-v0", "-n", "400", *evaluations, "--verbose", "0"]) == 0
    runs = ["-a", "reinforce", "-e", "sb3_reinforce-DiamondHill-v0", "-f", "logs"]
    assert main(["plot-train", *runs, "-w", "2"]) == 0
    assert main(["all-plots", *runs]) == 0


def test_python_m_continues_training_with_normalization(tmp_path):
    shared = ["--env", "Pendulum-v1", "-n", "200", "-params", "normalize:True", "--verbose", "0"]
    assert main(["train", "--eval-freq", "-1", *shared]) == 0
    agent = ["-i", "logs/reinforce/Pendulum-v1_1/Pendulum-v1.zip"]
    done = subprocess.run(
        [sys.executable, "-m", "sb3_reinforce", "train", *shared, *agent, "--eval-freq", "-1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Loading saved VecNormalize stats" in done.stdout
    assert (tmp_path / "logs/reinforce/Pendulum-v1_2/Pendulum-v1/vecnormalize.pkl").is_file()


@pytest.fixture
def envpool_or_stand_in(monkeypatch):
    """EnvPool, or where it has no wheels an engine with the same signature."""
    if sys.version_info < (3, 11):
        monkeypatch.setattr(vec_env, "make_envpool_vec_env", vec_env.make_gymnasium_vec_env)


@pytest.mark.usefixtures("envpool_or_stand_in")
def test_envpool_is_a_vec_env_of_train(tmp_path):
    assert main(["train", "--env", "CartPole-v1", "-n", "200", *TINY, "--vec-env", "envpool"]) == 0
    assert "envpool" in (tmp_path / "logs/reinforce/CartPole-v1_1/CartPole-v1/args.yml").read_text()


def test_a_short_name_of_a_configuration(tmp_path, capsys):
    assert main(["train", "--env", "CartPole-v1", "-n", "100", *TINY, "--conf-file", "adam"]) == 0
    assert "reinforce_adam.yml" in capsys.readouterr().out


@pytest.mark.parametrize("algo", ["reinforce", "a2c"])
def test_optimize_writes_a_configuration_to_train_with(algo, tmp_path, capsys):
    budget = ["--n-trials", "1", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    env = ["--algo", algo, "--env", "Pendulum-v1", "-n", "200"]
    # Without them it would be another task
    env += ["--gym-packages", "sb3_reinforce.envs", "--env-kwargs", "g:9.0", "--eval-env-kwargs", "g:9"]
    assert main(["optimize", *env, *budget, "--seed", "7", "--seeds-per-trial", "2"]) == 0
    output = capsys.readouterr().out
    assert "Seed: 7" in output
    assert "    seeds: [7, 8]" in output
    command = shlex.split(output.splitlines()[-1])[4:]
    assert command[-1] == f"logs/{algo}/Pendulum-v1_optimize_1/{algo}.yml"
    assert main([*command, "-n", "200", "--eval-freq", "-1"]) == 0
    assert (tmp_path / f"logs/{algo}/Pendulum-v1_1/Pendulum-v1.zip").is_file()
    options = yaml.unsafe_load((tmp_path / f"logs/{algo}/Pendulum-v1_1/Pendulum-v1/args.yml").read_text())
    assert dict(options)["gym_packages"] == ["sb3_reinforce.envs"]
    assert (dict(options)["env_kwargs"], dict(options)["eval_env_kwargs"]) == ({"g": 9.0}, {"g": 9})


def test_an_interrupted_training_is_saved_and_says_where(tmp_path, monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(REINFORCE, "train", interrupt)
    assert main(["train", "--env", "CartPole-v1", "-n", "1000", "--eval-freq", "-1"]) == 0
    assert "Saving to logs/reinforce/CartPole-v1_1" in capsys.readouterr().out
    assert (tmp_path / "logs/reinforce/CartPole-v1_1/CartPole-v1.zip").is_file()


def test_an_interrupted_command_ends_without_a_traceback(monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "list_environments", interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "sb3-reinforce list: interrupted\n"


def test_an_interrupted_comparison_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    from sb3_reinforce.zoo.compare.pool import Pool

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "run", interrupt)
    assert main(["compare", "--env", "CartPole-v1", "--algos", "a2c"]) == 130
    assert capsys.readouterr().err == ("sb3-reinforce compare: interrupted: the same command goes on from the finished runs\n")


@pytest.mark.parametrize("algo", ["reinforce", "dqn", "ars"])
def test_train_ends_where_the_environment_has_no_time_limit(algo, tmp_path, capsys):
    # An untrained policy hardly ever gets to the goal
    bound = ["-params", "max_rollout_steps:60"] if algo == "reinforce" else []
    budget = ["-n", "100", "--eval-freq", "50", "--eval-episodes", "1", "--max-episode-steps", "30"]
    assert main(["train", "--algo", algo, "--env", "CliffWalking-v1", *budget, *bound, "--verbose", "0"]) == 0
    assert capsys.readouterr().out.count("CliffWalking-v1 is registered without a time limit") == 1
    lengths = np.load(tmp_path / f"logs/{algo}/CliffWalking-v1_1/evaluations.npz")["ep_lengths"]
    assert (lengths <= 30).all()


def test_atari_images_are_trained_on(tmp_path):
    small = ["n_envs:2", "n_steps:16", "max_rollout_steps:32", "micro_batch_size:64", "critic_batch_size:64"]
    assert main(["train", "--env", "PongNoFrameskip-v4", "-n", "150", "--eval-freq", "-1", "-params", *small]) == 0
    model = REINFORCE.load(tmp_path / "logs/reinforce/PongNoFrameskip-v4_1/PongNoFrameskip-v4.zip")
    assert model.observation_space.shape == (4, 84, 84)
    assert not model.policy.share_features_extractor
    assert model._n_updates >= 3
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_the_current_folder_is_searched_for_environments(tmp_path):
    """As the installed command is started: by a script that lies elsewhere."""
    script = tmp_path / "bin/sb3-reinforce"
    script.parent.mkdir()
    script.write_text("import sys\nfrom sb3_reinforce.zoo.cli import main\nsys.exit(main())\n")
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "custom_envs.py").write_text("import gymnasium\ngymnasium.register('Mine-v0', 'x:y')\n")
    # What is installed goes before what lies there by chance
    (folder / "optuna.py").write_text("raise SystemExit('not this one')")
    command = [sys.executable, script, "compare", "--env", "Mine-v1", "--algos", "ppo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "unknown environment 'Mine-v1', did you mean Mine-v0?" in done.stderr


# The list


def test_list_without_scores(monkeypatch, capsys):
    path = commands.hyperparams_path()

    def find(name):
        raise FileNotFoundError(name)

    monkeypatch.setattr(commands, "find_resource", find)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["environment", "steps"]
    assert ["CartPole-v1", "100,000"] in [line.split() for line in lines]
    entries = set(yaml.safe_load(path.read_text())) - set(commands.FALLBACKS)
    assert len(lines) == 1 + len(entries) + 1
    assert str(path) in lines[-1]


def test_list_with_scores(monkeypatch, tmp_path, capsys):
    table = tmp_path / "zoo_table.csv"
    rows = ["CartPole-v1,reinforce,100000 steps,499.0,", "CartPole-v1,reinforce,100000 steps,500.0,"]
    rows += ["CartPole-v1,reinforce,20000 steps,99.0,", "CartPole-v1,reinforce-adam,100000 steps,400.0,"]
    rows += ["Ant-v5,reinforce,1000000 steps,1309.8,", "sb3_reinforce/RockPaperScissors-v0,reinforce,50000 steps,,-0.2"]
    table.write_text("\n".join(["env,algorithm,budget,score,sampled_score", *rows, ""]))
    monkeypatch.setattr(commands, "find_resource", lambda name: table)
    assert main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["CartPole-v1", "100,000", "499.5", "+/-", "0.7", "2"] in lines
    assert ["Ant-v5", "1,000,000", "1,309.8", "1"] in lines
    assert ["sb3_reinforce/RockPaperScissors-v0", "50,000", "-0.2", "1"] in lines
    assert ["Acrobot-v1", "500,000"] in lines


def test_list_with_the_scores_that_are_shipped(capsys):
    assert main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["environment", "steps", "score", "seeds"]
    assert ["InvertedPendulum-v5", "300,000", "1,000.0", "+/-", "0.0", "5"] in lines


# Help


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output and command.summary in output for name, command in COMMANDS.items())
    assert main([]) == 2
    assert capsys.readouterr().out == output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([name, "--help"])
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"sb3-reinforce {name}: {COMMANDS[name].summary}")
    assert "usage: " in output


# Errors


def test_unknown_names_are_explained_in_one_line(capsys):
    assert "unknown command 'trian', did you mean train?" in fails(capsys, "trian")
    assert "choose from train, optimize" in fails(capsys, "xyz")
    assert "you maybe meant CartPole-v1?" in fails(capsys, "train", "--env", "CartPol-v1")
    assert "The logs/reinforce folder was not found" in fails(capsys, "enjoy", "--env", "Acrobot-v1")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--algo", "foo"], "argument --algo: invalid choice: 'foo' (choose from "),
        (["enjoy", "--algo=foo"], "argument --algo: invalid choice: 'foo' (choose from "),
        (["gradients", "--env", "CartPole-v1", "--algo", "foo"], "argument --algo: invalid choice: 'foo' (choose from "),
        (["all-plots", "-e", "CartPole-v1"], "the following arguments are required: -a/--algos, -f/--exp-folders"),
        (["plot-from-file", "-r"], "the following arguments are required: -i/--input"),
        (["train", "--max-episode-steps"], "argument --max-episode-steps: expected one argument"),
        (["train", "--max-episode-steps", "0"], "argument --max-episode-steps: must be an integer above 0, not 0"),
        (["train", "--max-episode-steps", "-3"], "argument --max-episode-steps: must be an integer above 0, not -3"),
        (["train", "--max-episode-steps", "many"], "argument --max-episode-steps: must be an integer above 0, not many"),
        (["train", "--max-episode-steps", "1.5"], "argument --max-episode-steps: must be an integer above 0, not 1.5"),
        (["optimize", "--seeds-per-trial", "0"], "argument --seeds-per-trial: must be an integer above 0, not 0"),
    ],
)
def test_a_wrong_command_line_is_explained_in_its_last_line(tmp_path, capsys, args, message):
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_configuration_is_explained_in_one_line(tmp_path, capsys):
    (tmp_path / "mine.yml").write_text("default: {policy: MlpPolicy, n_timesteps: 100, learning_rate: [1]}")
    error = fails(capsys, "train", "--env", "CartPole-v1", "--conf-file", "mine.yml")
    assert error == (
        "sb3-reinforce: error: mine.yml, CartPole-v1: learning_rate must be a number, a function of the progress remaining, "
        "or like 'lin_0.01', not [1]\n"
    )
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("algo", ["reinforce", "ppo"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"policy_kwargs": "dict(a=open('ran', 'w'))"}, "policy_kwargs: \"open('ran', 'w')\" is not evaluated: only literals"),
        ({"policy_kwargs": "dict(a=9**9**9)"}, "policy_kwargs: '9 ** 9 ** 9' is not evaluated"),
        ({"env_wrapper": {"torch.hub.load": {"repo_or_dir": "x"}}}, "env_wrapper: torch.hub.load is no class derived from"),
        (
            {"vec_env_wrapper": "torch.utils.cpp_extension.load_inline"},
            "vec_env_wrapper: torch.utils.cpp_extension.load_inline",
        ),
        ({"monitor_kwargs": "dict(a=open('ran', 'w'))"}, "monitor_kwargs: \"open('ran', 'w')\" is not evaluated"),
        ({"normalize": "open('ran', 'w')"}, "normalize: \"open('ran', 'w')\" is not evaluated"),
        ({"callback": [{"builtins.open": {"file": "ran", "mode": "w"}}]}, "callback: builtins.open is no class derived from"),
    ],
)
def test_a_configuration_runs_no_code(tmp_path, capsys, algo, entry, message):
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"default": {"policy": "MlpPolicy", "n_timesteps": 100, **entry}}))
    error = fails(capsys, "train", "--algo", algo, "--env", "CartPole-v1", "--conf-file", "mine.yml", "--eval-freq", "-1")
    assert error.startswith(f"sb3-reinforce: error: mine.yml, CartPole-v1, {message}")
    compare = ["compare", "--env", "CartPole-v1", "--algos", algo, "--conf-file", f"{algo}=mine.yml", "-n", "10"]
    assert message in fails(capsys, *compare)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yml"]


@pytest.mark.parametrize("command", ["train", "enjoy", "record-video", "compare"])
def test_what_atari_needs_is_said_in_one_line(monkeypatch, capsys, command):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    for env_id in ("ALE/NoGame-v5", "NoGameNoFrameskip-v4"):
        error = fails(capsys, command, "--env", env_id)
        assert f'{env_id} is an Atari environment, which needs two more packages: pip install "sb3-reinforce[atari]"' in error
    monkeypatch.undo()
    assert "sb3-reinforce[atari]" not in fails(capsys, "train", "--env", "NoGameNoFrameskip-v4")


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        ("rl_zoo3.enjoy", ["enjoy"], 'pip install "sb3-reinforce[zoo]"'),
        ("seaborn", ["plot-from-file", "-i", "x"], 'pip install "sb3-reinforce[zoo]"'),
        ("distributed", ["compare", "--env", "CartPole-v1"], 'pip install "sb3-reinforce[zoo]"'),
        ("envpool", ["train", "--vec-env", "envpool"], 'pip install "sb3-reinforce[envpool]"'),
        ("wandb", ["train", "--track"], "pip install wandb"),
    ],
)
def test_a_missing_dependency_is_explained_in_one_line(monkeypatch, capsys, module, args, message):
    ours = ("sb3_reinforce.zoo.compare.cli", "sb3_reinforce.zoo.compare.pool")
    for name in [name for name in sys.modules if name.startswith("rl_zoo3.plots") or name in ours]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert message in fails(capsys, *args)


@pytest.mark.parametrize(
    "args, parts",
    [
        (["--env-kwargs", "foo:1"], ["reinforce.yml, CartPole-v1: cannot be set up as asked: TypeError", "foo"]),
        (["-params", "policy:'MlpPolcy'"], ["ValueError: Policy MlpPolcy unknown"]),
        (["-params", "policy_kwargs:dict(net_archh=[64])"], ["TypeError", "net_archh"]),
        (["-params", "normalize:dict(norm_obss=True)"], ["TypeError", "norm_obss"]),
        (
            ["-params", "env_wrapper:'gymnasium.wrappers.NoWrapper'"],
            ["with --hyperparams, CartPole-v1, env_wrapper: ", "NoWrapper is no class"],
        ),
        (["-params", "use_sde:True"], ["CartPole-v1", "gSDE"]),
        (["-params", "n_envs:0"], ["with --hyperparams, CartPole-v1, n_envs: must be a number of at least 1, not 0"]),
        (["--algo", "ppo", "-params", "n_envs:'two'"], ["CartPole-v1: cannot be set up as asked: TypeError"]),
        (["-params", "baseline:leave_one_out"], ["baseline:leave_one_out: must be KEY:VALUE", "NameError"]),
        (["-params", "learning_rate:lin_0.01"], ["learning_rate:lin_0.01: ", "text needs quotes"]),
        (["-params", "learning_rate=0.01"], ["learning_rate=0.01: must be KEY:VALUE"]),
        (["-params", "gamma:0.9", "0.01"], [" 0.01: must be KEY:VALUE"]),
        (["-params", "learning_rate:", "0.01"], ["learning_rate:: must be KEY:VALUE"]),
        (["-params", "gamma:1/0"], ["gamma:1/0: must be KEY:VALUE", "(ZeroDivisionError: division by zero)"]),
        (["--env-kwargs", "gravity=1"], ["gravity=1: must be KEY:VALUE"]),
        (["-params", "policy_kwargs:nn.Relu"], ["policy_kwargs:nn.Relu: must be KEY:VALUE, where the value is Python"]),
        (["--device", "gpu"], ["RuntimeError"]),
        (["--algo", "ppo", "-params", "foo:1"], ["ppo.yml, CartPole-v1: ", "TypeError", "foo"]),
        (["--conf-file", "mine"], ["mine, CartPole-v1: cannot be set up as asked: ModuleNotFoundError"]),
        (["--conf-file", "mine.py"], ["mine.py, CartPole-v1: cannot be set up as asked: FileNotFoundError"]),
        (["--conf-file", "mine.yml"], ["mine.yml, CartPole-v1: cannot be set up as asked: FileNotFoundError"]),
        (["--log-folder", "file"], ["NotADirectoryError", "file/reinforce"]),
        (["-optimize", "--n-trials", "0"], ["--n-trials: must be at least 1, not 0"]),
        (["-optimize", "--n-evaluations", "0"], ["--n-evaluations: must be at least 1, not 0"]),
        (["--seeds-per-trial", "2"], ["--seeds-per-trial: has a meaning in a search only"]),
        (
            ["-optimize", "--storage", "study.db"],
            ["--storage study.db: must be FILE.log or a database such as sqlite:///FILE.db"],
        ),
    ],
)
def test_what_cannot_be_set_up_leaves_no_folder(tmp_path, capsys, args, parts):
    (tmp_path / "file").touch()
    error = fails(capsys, "train", "--env", "CartPole-v1", "-n", "300", *args)
    assert all(part in error for part in parts), error
    # An empty folder would be the latest run, for enjoy and all others
    assert list(tmp_path.rglob("CartPole-v1_*")) == []


@pytest.mark.parametrize(
    "args, message",
    [
        (["all-plots", "-a", "reinforse", "-e", "CartPole-v1", "-f", "logs"], "there is no run of reinforse among logs"),
        (["all-plots", "-a", "ppo", "-e", "CartPole-v1", "-f", "logs", "log"], "there is no run of log among logs, log"),
        (["plot-train", "-a", "ppo", "-e", "CartPole-v1", "Typo-v1", "-f", "logs"], "there is no run of Typo-v1 among logs"),
    ],
)
def test_what_is_not_there_is_not_plotted(in_folder, capsys, args, message):
    before = sorted(in_folder.rglob("*"))
    assert message in fails(capsys, *args)
    assert sorted(in_folder.rglob("*")) == before


def test_a_download_that_must_be_trusted_is_explained_in_one_line(monkeypatch, capsys):
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    assert "TRUST_REMOTE_CODE" in fails(capsys, "load-from-hub", "--algo", "ppo", "--env", "CartPole-v1", "-f", "logs")


def test_a_failed_download_is_explained_in_one_line(monkeypatch, capsys):
    def download(repo_id, filename):
        raise RemoteEntryNotFoundError(filename, response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_sb3, "load_from_hub", download)
    error = fails(capsys, "load-from-hub", "--algo", "ppo", "--env", "CartPole-v1", "-f", "logs")
    assert "the Hugging Face Hub did not deliver: " in error


#: A module of a user, with a mistake wherever a name says so.
MINE = """
import gymnasium as gym
from gymnasium import spaces
from sb3_contrib.ppo_recurrent import MlpLstmPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.dqn import MlpPolicy


class Env(gym.Env):
    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)

    def __init__(self, fails="", error=ValueError):
        self.fails, self.error = fails, error
        self.fail("init")
        if fails == "space":
            spaces.Box(1.0, [2.0], (3,))

    def fail(self, where):
        if self.fails == where:
            raise self.error("of the user")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.fail("reset")
        return self.observation_space.sample(), {}

    def step(self, action):
        self.fail("step")
        return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.2), False, {}


class DQNPolicy(MlpPolicy):
    pass


class LSTMPolicy(MlpLstmPolicy):
    pass


class Wrapper(gym.Wrapper):
    def __init__(self, env):
        raise ValueError("of the user")


class Callback(BaseCallback):
    def __init__(self, where):
        super().__init__()
        self.where = where

    def _on_training_start(self):
        if self.where == "start":
            raise ValueError("of the user")

    def _on_step(self):
        if self.where == "step" or self.where == "update" and self.model._n_updates > 0:
            raise ValueError("of the user")
        return True


for error in (ValueError, TypeError, KeyError, AssertionError):
    for where in ("init", "reset", "step"):
        gym.register(f"Fails-{where}-{error.__name__}-v0", Env, kwargs={"fails": where, "error": error}, max_episode_steps=20)
gym.register("Fails-space-v0", Env, kwargs={"fails": "space"}, max_episode_steps=20)
gym.register("Mine-v0", Env, max_episode_steps=20)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_of_the_tests.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for env_id in [env_id for env_id in gym.registry if env_id.startswith(("Fails-", "Mine-"))]:
        del gym.registry[env_id]
    sys.modules.pop("mine_of_the_tests", None)


MY_ERRORS = (ValueError, TypeError, KeyError, AssertionError)


def fails_in_my_code(*args: str) -> None:
    """Run a command that must fail with a traceback that ends in the user's module."""
    with pytest.raises(MY_ERRORS, match=r"of the user|Box high") as info:
        main([*args, "--gym-packages", "mine_of_the_tests"])
    errors = [info.value, *filter(None, [info.value.__cause__])]
    files = [frame.filename for error in errors for frame in traceback.extract_tb(error.__traceback__)]
    assert "mine_of_the_tests.py" in map(os.path.basename, files)


def test_an_agent_of_another_algorithm_is_refused(in_folder, tmp_path, capsys):
    before = sorted((in_folder / "logs").rglob("*"))
    for algo, other, found in (("a2c", "reinforce", "a model"), ("reinforce", "ppo", "no model")):
        agent = f"logs/{other}/CartPole-v1_1/CartPole-v1.zip"
        error = fails(capsys, "train", "--algo", algo, "--env", "CartPole-v1", "-i", agent)
        assert f"--trained-agent {agent}: holds {found} of REINFORCE, and --algo is {algo}" in error
    (tmp_path / "notes.zip").write_text("notes")
    assert "is no model of SB3" in fails(capsys, "train", "--env", "CartPole-v1", "-i", str(tmp_path / "notes.zip"))
    assert "must be a valid path" in fails(capsys, "train", "--env", "CartPole-v1", "-i", "nowhere.zip")
    assert sorted((in_folder / "logs").rglob("*")) == before


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("algo", "policy"), [("dqn", "DQNPolicy"), ("ppo_lstm", "LSTMPolicy")])
def test_an_agent_with_a_policy_of_the_user_goes_on(tmp_path, algo, policy):
    train = [
        "train",
        "--algo",
        algo,
        "--env",
        "Mine-v0",
        "-n",
        "20",
        "--eval-freq",
        "-1",
        "--gym-packages",
        "mine_of_the_tests",
    ]
    assert main([*train, "-params", f"policy:'mine_of_the_tests.{policy}'", "n_envs:1", "normalize:False"]) == 0
    assert main([*train, "-i", f"logs/{algo}/Mine-v0_1/Mine-v0.zip"]) == 0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there is no EnvPool for Python 3.10")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--env", "sb3_reinforce/DiamondHill-v0"], "EnvPool has no task 'sb3_reinforce/DiamondHill-v0'"),
        (["--env", "sb3_reinforce/TMaze-v0"], "EnvPool has no task 'sb3_reinforce/TMaze-v0'"),
        (["--env", "CartPole-v1", "--env-kwargs", "nonsense:1"], "unexpected keyword argument 'nonsense'"),
    ],
)
def test_what_envpool_cannot_do_is_explained_in_one_line(tmp_path, capsys, args, message):
    assert message in fails(capsys, "train", *args, "--vec-env", "envpool")
    assert not list(tmp_path.rglob("*_1"))


@pytest.mark.parametrize("module", ["minigrit", "mine_of_the_tests.nothing", "mine_of_the_tests.py", "./mine", ""])
@pytest.mark.parametrize("command", ["train", "optimize", "enjoy", "compare", "gradients"])
@pytest.mark.usefixtures("mine")
def test_a_gym_package_that_is_not_there_is_named(capsys, command, module):
    error = fails(capsys, command, "--env", "Mine-v0", "--gym-packages", module)
    assert f"error: --gym-packages {module}: " in error
    # It may be mistyped, and somebody else's package
    assert "pip install" not in error


@pytest.mark.parametrize(
    "option",
    [["--gym-packages", "lacks_another_of_the_tests"], ["-params", "env_wrapper:'lacks_another_of_the_tests.Wrapper'"]],
)
def test_a_module_that_lacks_another_keeps_its_traceback(tmp_path, monkeypatch, option):
    (tmp_path / "lacks_another_of_the_tests.py").write_text("import minigrit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'minigrit'"):
        main(["train", "--env", "CartPole-v1", *option])


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("algo", ["reinforce", "a2c", "dqn", "ars"])
@pytest.mark.parametrize("where", ["start", "step"])
def test_a_training_that_fails_at_its_start_leaves_no_folder(tmp_path, algo, where):
    callback = f"callback:[{{'mine_of_the_tests.Callback': {{'where': {where!r}}}}}]"
    fails_in_my_code("train", "--algo", algo, "--env", "Mine-v0", "-n", "100", "-params", callback)
    # It would be the latest run, for enjoy and all others
    assert list(tmp_path.rglob("Mine-v0*")) == []


@pytest.mark.usefixtures("mine")
def test_the_folder_of_a_training_that_fails_later_is_kept(tmp_path):
    callback = "callback:[{'mine_of_the_tests.Callback': {'where': 'update'}}]"
    fails_in_my_code("train", "--algo", "a2c", "--env", "Mine-v0", "-n", "100", "-params", callback)
    assert (tmp_path / "logs/a2c/Mine-v0_1/0.monitor.csv").is_file()


@pytest.mark.usefixtures("mine")
def test_an_error_of_the_environment_of_a_model_keeps_its_traceback(tmp_path):
    REINFORCE("MlpPolicy", importlib.import_module("mine_of_the_tests").Env(), device="cpu").save(tmp_path / "model.zip")
    fails_in_my_code("gradients", "--env", "Fails-init-ValueError-v0", "--model", str(tmp_path / "model.zip"))


def test_what_a_failed_training_saved_is_kept(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("of the user")

    monkeypatch.setattr(REINFORCE, "train", fail)
    with pytest.raises(RuntimeError, match="of the user"):
        main(["train", "--env", "CartPole-v1", "-n", "1000", "--eval-freq", "100", "--eval-episodes", "1"])
    assert (tmp_path / "logs/reinforce/CartPole-v1_1/best_model.zip").is_file()


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("error", MY_ERRORS)
@pytest.mark.parametrize("where", ["init", "reset", "step"])
def test_an_error_of_an_environment_keeps_its_traceback(tmp_path, where, error):
    fails_in_my_code("train", "--env", f"Fails-{where}-{error.__name__}-v0", "-n", "100", "--eval-freq", "-1")
    assert list(tmp_path.rglob("Fails-*")) == []


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    "args",
    [
        ["train", "--env", "Fails-space-v0", "--eval-freq", "-1"],
        ["train", "--env", "Mine-v0", "-params", "env_wrapper:'mine_of_the_tests.Wrapper'"],
        ["optimize", "--env", "Fails-reset-KeyError-v0", "-n", "100", "--n-trials", "1"],
        # RL Zoo prunes such a trial, and there is no other
        ["optimize", "--env", "Fails-step-ValueError-v0", "-n", "100", "--n-trials", "1", "--n-evaluations", "1"],
        ["compare", "--env", "Fails-init-TypeError-v0", "--algos", "ppo", "-n", "100"],
        ["gradients", "--env", "Fails-init-ValueError-v0", "--untrained"],
        ["gradients", "--env", "Fails-step-KeyError-v0", "--untrained", "--episodes", "20"],
    ],
)
def test_an_error_of_the_user_keeps_its_traceback_in_every_command(args):
    fails_in_my_code(*args)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def bug(self):
        raise ValueError("not for the user")

    monkeypatch.setattr(REINFORCE, "train", bug)
    with pytest.raises(ValueError, match="not for the user"):
        main(["train", "--env", "CartPole-v1", "-n", "1000", "--eval-freq", "-1"])


OWN_BASELINE = """
import numpy as np
from sb3_reinforce.functional.baselines import Baseline


class Half(Baseline):
    def __init__(self):
        self.mean = 0.0

    def __call__(self, episodes):
        return np.full(len(episodes.returns), self.mean)

    def fit(self, episodes):
        self.mean = 0.5 * float(episodes.returns.mean())
"""


def test_a_class_path_of_a_baseline_works_in_every_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "baseline_of_mine.py").write_text(OWN_BASELINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    path = "baseline_of_mine:Half"
    entry = {"policy": "MlpPolicy", "n_timesteps": 200, "n_episodes": 2, "baseline": path}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"default": entry}))
    shared = ["--env", "CartPole-v1", "--conf-file", "mine.yml"]
    assert main(["train", *shared, "--eval-freq", "-1", "--verbose", "0"]) == 0
    model = REINFORCE.load(tmp_path / "logs/reinforce/CartPole-v1_1/CartPole-v1.zip")
    assert model.baseline == path and model.estimator.baseline.mean > 0.0
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["enjoy", "--env", "CartPole-v1", "-n", "50", "-f", "logs", "--no-render"]) == 0
    variant = ["--variant", "mine", f"baseline:'{path}'", "n_episodes:4", "n_steps:None"]
    comparison = ["compare", "--env", "CartPole-v1", "--algos", "reinforce", "--seeds", "1", "-n", "300", *variant]
    evaluations = ["--n-evaluations", "1", "--eval-episodes", "2", "--final-episodes", "2"]
    assert main([*comparison, *evaluations, "-f", str(tmp_path / "comparison")]) == 0
    (agent,) = (tmp_path / "comparison").rglob("*mine*/**/CartPole-v1.zip")
    assert REINFORCE.load(agent).baseline == path
    measured = ["gradients", "--env", "CartPole-v1", "-f", "logs", "--episodes", "20", "--batch", "4", "--estimators", "to-go"]
    assert main([*measured, "--baselines", path, "group", "-o", str(tmp_path / "gradients")]) == 0
    rows = (tmp_path / "gradients/gradients.csv").read_text()
    assert path in rows and ",group," in rows
    capsys.readouterr()
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"default": {**entry, "baseline": "baseline_of_mine:Missing"}}))
    error = fails(capsys, "train", *shared)
    assert "mine.yml, CartPole-v1: baseline='baseline_of_mine:Missing' cannot be imported" in error
    error = fails(capsys, *measured, "--baselines", "baseline_of_mine:Missing")
    assert "baseline='baseline_of_mine:Missing' cannot be imported" in error and len(error.splitlines()) == 1
