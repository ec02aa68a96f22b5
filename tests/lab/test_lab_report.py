"""The command ``sb3-reinforce gradients`` as a user runs it, what its report claims, and the report in a browser."""

import math
import shutil

import gymnasium as gym
import matplotlib
import numpy as np
import pandas as pd
import pytest
from browsing import open_page
from figure_geometry import find_faults
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.lab import figures, measure, plots, refit
from sb3_reinforce.lab.estimators import LECTURE, make_estimators
from sb3_reinforce.lab.findings import best_estimators, describe, findings, notes, write_bias, write_episodes
from sb3_reinforce.lab.measurement import Measurement, Result
from sb3_reinforce.lab.report import needed_table, write_report
from sb3_reinforce.lab.statistics import Interval
from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.cli import main
from sb3_reinforce.zoo.errors import UserError
from sb3_reinforce.zoo.gradients import make_parser, make_stages

SMALL = ["--env", "CartPole-v1", "--episodes", "40"]


@pytest.fixture(scope="module", autouse=True)
def short_refit():
    """A fifth of the fit is enough for what is tested, which may run without a command before it."""
    register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit, "N_GRADIENT_STEPS", 50)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=8, device="cpu").learn(400)
    model.save(folder / "early.zip")
    model.learn(2000, reset_num_timesteps=False).save(folder / "late.zip")
    A2C("MlpPolicy", "CartPole-v1", device="cpu").save(folder / "a2c.zip")
    DQN("MlpPolicy", "CartPole-v1", device="cpu").save(folder / "dqn.zip")
    REINFORCE("MlpPolicy", "CartPole-v1", baseline=None, device="cpu").save(folder / "bare.zip")
    return folder


@pytest.fixture(scope="module")
def report(models):
    folder = models / "report"
    names = [str(models / "early.zip"), str(models / "late.zip")]
    assert main(["gradients", *SMALL, "--untrained", "--model", *names, "-o", str(folder)]) == 0
    return folder


def test_all_files_are_there(report):
    assert {path.name for path in report.iterdir()} == {f"gradients.{end}" for end in ("html", "md", "csv", "png", "svg")}
    table = pd.read_csv(report / "gradients.csv")
    # The entry for CartPole-v1, which the untrained model has, has no critic
    assert table["model"][0] == "untrained"
    for label in table["model"].unique()[1:]:
        assert tuple(table[table["model"] == label]["estimator"]) == LECTURE
    assert (table["n_episodes"] == 40).all()
    assert table["kl"].gt(0).all()
    markdown = (report / "gradients.md").read_text()
    assert "sb3-reinforce gradients --env CartPole-v1" in markdown
    assert all(label in markdown for label in ("reward-to-go", "refitted critic", "this model's own settings"))
    html = (report / "gradients.html").read_text()
    assert "http" not in html.replace("http://www.w3.org", "")


def test_the_same_command_writes_the_same_table(models, tmp_path):
    for name in ("first", "second"):
        arguments = [*SMALL, "--model", str(models / "late.zip"), "--estimators", "to-go", "to-go-loo", "--seed", "3"]
        assert main(["gradients", *arguments, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "first/gradients.csv").read_bytes() == (tmp_path / "second/gradients.csv").read_bytes()
    assert (tmp_path / "first/gradients.svg").read_bytes() == (tmp_path / "second/gradients.svg").read_bytes()


def test_other_algorithms(models, tmp_path):
    arguments = [*SMALL, "--model", str(models / "a2c.zip"), "--algo", "a2c", "--batch", "4", "-o", str(tmp_path)]
    assert main(["gradients", *arguments, "--estimators", "to-go-critic", "own"]) == 0
    table = pd.read_csv(tmp_path / "gradients.csv")
    assert list(table["algorithm"].unique()) == ["A2C"]
    assert (table["batch_size"] == 4).all()


@pytest.fixture
def run_of_pendulum(tmp_path, request):
    """A run of RL Zoo, with the normalisation that is asked for."""
    config = tmp_path / "entry.yml"
    entry = "{n_envs: 2, n_timesteps: 1000, policy: MlpPolicy, n_steps: 200, normalize: NORMALIZE}"
    config.write_text(f"Pendulum-v1: {entry.replace('NORMALIZE', request.param)}")
    logs = str(tmp_path / "logs")
    train = ["train", "--env", "Pendulum-v1", "-f", logs, "--conf-file", str(config), "--eval-freq", "-1", "-n", "600"]
    assert main(train) == 0
    return tmp_path / "logs/reinforce/Pendulum-v1_1"


def make_stage(*arguments):
    (stage,) = make_stages(make_parser().parse_args(["--env", "Pendulum-v1", *map(str, arguments)]))
    stage.env.close()
    return stage, unwrap_vec_normalize(stage.env)


@pytest.mark.parametrize("run_of_pendulum", ["true", "dict(norm_obs=False)"], indirect=True)
def test_runs_of_the_zoo_keep_their_statistics(run_of_pendulum):
    stage, normalize = make_stage("-f", run_of_pendulum.parents[1])
    assert normalize.norm_reward
    assert not normalize.training
    assert normalize.ret_rms.count > 600
    if normalize.norm_obs:
        assert normalize.obs_rms.count > 600
    assert stage.label == "800 steps"


@pytest.mark.parametrize("run_of_pendulum", ["true"], indirect=True)
def test_a_model_has_its_own_statistics_if_they_are_there(run_of_pendulum, capsys):
    final, of_run = run_of_pendulum / "Pendulum-v1.zip", run_of_pendulum / "Pendulum-v1/vecnormalize.pkl"
    assert "missing" not in (make_stage("--model", final), capsys.readouterr().err)[1]
    names = {"best_model": "best_model_vecnormalize.pkl", "rl_model_400_steps": "rl_model_vecnormalize_400_steps.pkl"}
    for model, statistics in names.items():
        path = shutil.copy(final, run_of_pendulum / f"{model}.zip")
        _, normalize = make_stage("--model", path)
        assert f"{statistics} is missing" in capsys.readouterr().err
        normalize.ret_rms.count = 12.0
        normalize.norm_reward = False
        normalize.save(run_of_pendulum / statistics)
    # A run that goes on, or was killed, has only those of its checkpoints
    of_run.unlink()
    for model in names:
        _, normalize = make_stage("--model", run_of_pendulum / f"{model}.zip")
        assert normalize.ret_rms.count == 12.0
        assert not normalize.norm_reward
        assert "missing" not in capsys.readouterr().err
    with pytest.raises(UserError, match="has the statistics of its observations"):
        make_stage("--model", final)


def test_a_checkpoint_that_is_no_run_of_the_zoo(tmp_path):
    venv = VecNormalize(make_vec_env("Pendulum-v1", 1))
    callback = CheckpointCallback(400, str(tmp_path), save_vecnormalize=True)
    REINFORCE("MlpPolicy", venv, n_episodes=1, seed=0, device="cpu").learn(400, callback=callback)
    _, normalize = make_stage("--model", tmp_path / "rl_model_400_steps.zip")
    assert normalize.obs_rms.count > 400
    assert not normalize.training
    assert normalize.norm_reward
    (tmp_path / "rl_model_vecnormalize_400_steps.pkl").unlink()
    assert make_stage("--model", tmp_path / "rl_model_400_steps.zip")[1] is None


def test_statistics_may_lie_anywhere(tmp_path):
    venv = VecNormalize(make_vec_env("Pendulum-v1", 1))
    model = REINFORCE("MlpPolicy", venv, n_episodes=1, seed=0, device="cpu").learn(400)
    paths = [tmp_path / "first.zip", tmp_path / "second.zip"]
    for count, path in enumerate(paths, start=1):
        model.num_timesteps = count
        model.save(path)
        venv.ret_rms.count = float(count)
        venv.save(tmp_path / f"{count}.pkl")
    statistics = [tmp_path / "2.pkl", tmp_path / "1.pkl"]
    arguments = ["--env", "Pendulum-v1", "--model", *paths[::-1], "--vec-normalize", *statistics]
    stages = make_stages(make_parser().parse_args(list(map(str, arguments))))
    assert [stage.model.num_timesteps for stage in stages] == [1, 2]
    for count, stage in enumerate(stages, start=1):
        normalize = unwrap_vec_normalize(stage.env)
        assert normalize.ret_rms.count == count
        assert normalize.norm_reward
        assert not normalize.training
        stage.env.close()


@pytest.mark.parametrize("run_of_pendulum", ["true"], indirect=True)
def test_arguments_of_the_environment(run_of_pendulum):
    for models in (["-f", run_of_pendulum.parents[1]], ["--model", run_of_pendulum / "Pendulum-v1.zip"], ["--untrained"]):
        arguments = ["--env", "Pendulum-v1", *models, "--env-kwargs", "g:3.5", "render_mode:rgb_array"]
        (stage,) = make_stages(make_parser().parse_args(list(map(str, arguments))))
        assert set(stage.env.get_attr("g")) == {3.5}
        assert set(stage.env.get_attr("render_mode")) == {"rgb_array"}
        stage.env.close()


def test_models_on_images(tmp_path):
    """Channels come first for the policy, last in the environment."""
    kwargs = {"screen_height": 36, "screen_width": 36, "discrete": True}
    gym.register("Images-v0", FakeImageEnv, max_episode_steps=20, kwargs=kwargs)
    REINFORCE("CnnPolicy", "Images-v0", device="cpu", seed=0).save(tmp_path / "model.zip")
    (stage,) = make_stages(make_parser().parse_args(["--env", "Images-v0", "--model", str(tmp_path / "model.zip")]))
    assert stage.env.observation_space == stage.model.observation_space
    stage.env.close()
    del gym.registry["Images-v0"]


def test_models_come_in_the_order_of_their_steps(models):
    paths = [str(models / "late.zip"), str(models / "early.zip")]
    stages = make_stages(make_parser().parse_args(["--env", "CartPole-v1", "--untrained", "--model", *paths]))
    steps = [stage.model.num_timesteps for stage in stages]
    assert steps == sorted(steps) and steps[0] == 0
    for stage in stages:
        stage.env.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere.zip"], "--model nowhere.zip: there is no such file"),
        (["--model", "MODELS/notes.txt"], "notes.txt: is no model of SB3"),
        (["--model", "MODELS/a2c.zip"], "a2c.zip: holds no model of REINFORCE, and --algo is reinforce"),
        (["--model", "MODELS/late.zip", "--algo", "a2c"], "late.zip: holds a model of REINFORCE, and --algo is a2c"),
        (["--model", "MODELS/dqn.zip", "--algo", "dqn"], "model: DQN has no stochastic actor"),
        (["-f", "MODELS"], "reinforce folder was not found; --model FILE"),
        (["--untrained", "--gamma", "1.5"], "--gamma 1.5: must be in [0, 1]"),
        (["--untrained", "--batch", "21"], "batch_size must be from 1 to half of the 40 episodes"),
        (["--untrained", "--episodes", "19"], "n_episodes must be at least 20, not 19"),
        (["--untrained", "--estimators", "nonsense"], "estimators: there is no 'nonsense'"),
        (["--model", "MODELS/bare.zip", "--estimators", "to-go-critic"], "'to-go-critic' needs a critic"),
        (["--untrained", "--env", "Nonsense-v1"], "--env Nonsense-v1: "),
        (["--untrained", "--env-kwargs", "nonsense:1"], "unexpected keyword argument 'nonsense'"),
        (["--model", "MODELS/late.zip", "--env-kwargs", "nonsense:1"], "unexpected keyword argument 'nonsense'"),
        (["--untrained", "--vec-normalize", "x.pkl"], "--vec-normalize: must be one file for each --model (0), not 1"),
        (["--model", "MODELS/late.zip", "--vec-normalize", "x.pkl"], "x.pkl: is no file of VecNormalize"),
        (["--model", "MODELS/late.zip", "--vec-normalize", "MODELS/notes.txt"], "notes.txt: is no file of VecNormalize"),
        (["--model", "MODELS/late.zip", "--vec-normalize", "MODELS/pendulum.pkl"], "spaces must have the same shape"),
        (["--model", "MODELS/late.zip", "--env", "Acrobot-v1"], "env: is not one that the model can act in"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_collected(models, monkeypatch, capsys, arguments, message):
    (models / "notes.txt").write_text("no model")
    VecNormalize(make_vec_env("Pendulum-v1")).save(models / "pendulum.pkl")
    monkeypatch.chdir(models)
    monkeypatch.setattr("sb3_reinforce.lab.measurement.collect", lambda *_: pytest.fail("collected"))
    arguments = [word.replace("MODELS", str(models)) for word in arguments]
    assert main(["gradients", *SMALL, *arguments, "-o", str(models / "never")]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert len(lines) == 1
    assert not (models / "never").exists()


@pytest.mark.parametrize("word", ["0", "-3", "many", "2.5"])
def test_numbers_of_the_command_line(word, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--env", "CartPole-v1", "--episodes", word])
    assert "must be an integer above 0" in capsys.readouterr().err


# What is claimed


def made_up(ratios: dict[str, tuple[float, float, float]], batch_size: int = 16) -> Measurement:
    """A measurement with these signal-to-noise ratios of one episode."""
    known = make_estimators(REINFORCE("MlpPolicy", "CartPole-v1", device="cpu"), 0.99)
    results = {
        key: Result(known[key], 1.0, 1.0, Interval(*ratio), {}, Interval(0, 0, 0), "to-go", 0.0, 0.01, {}, None)
        for key, ratio in ratios.items()
    }
    returns = np.full(100, 60.0)
    return Measurement(
        "early", "REINFORCE", returns, 6000, 0.99, batch_size, "as asked for", 10, False, results, Interval(1, 1, 1)
    )


def test_a_difference_is_claimed_only_where_intervals_are_apart():
    apart = made_up({"to-go": (0.02, 0.01, 0.03), "to-go-critic": (0.1, 0.05, 0.2), "own": (0.1, 0.05, 0.2)})
    text = " ".join(describe(apart))
    assert (
        "With this model's critic 10 [5.0, 20] episodes are enough, with reward-to-go alone 50 [33, 100] are needed." in text
    )
    overlapping = made_up({"to-go": (0.02, 0.01, 0.06), "to-go-critic": (0.1, 0.05, 0.2), "own": (0.1, 0.05, 0.2)})
    text = " ".join(describe(overlapping))
    assert "No difference between this model's critic and reward-to-go alone is claimed" in text
    assert "are enough" not in text


def test_a_critic_that_harms_is_not_praised():
    harmful = made_up({"to-go": (0.1, 0.08, 0.2), "to-go-critic": (0.02, 0.01, 0.03)})
    text = " ".join(describe(harmful))
    assert "With reward-to-go alone 10 [5.0, 12] episodes are enough, with this model's critic 50 [33, 100] are needed" in text


@pytest.mark.parametrize(
    ("ratio", "batch_size", "words"),
    [
        ((0.1, 0.08, 0.2), 16, "ample"),
        ((0.1, 0.05, 0.2), 16, "whether its batch of 16 episodes is as large lies within the uncertainty"),
        ((0.01, 0.008, 0.02), 16, "is noisier than that, which is often still efficient"),
        ((0.01, -0.01, 0.02), 16, "not distinguishable from zero; more than 50 episodes are needed"),
        (
            (0.01, -0.01, 0.2),
            16,
            "with 100 episodes the gradient of the model's own estimator is not distinguishable from zero.",
        ),
        ((-0.01, -0.02, -0.005), 16, "not distinguishable from zero"),
        ((0.5, 0.3, 0.9), 1, "its batch of 1 episode is"),
        ((0.5, -math.inf, math.inf), 16, "is not distinguishable from zero: too few informative episodes."),
    ],
)
def test_what_is_said_of_the_batch(ratio, batch_size, words):
    text = describe(made_up({"own": ratio}, batch_size))[0]
    assert words in text
    if ratio[1] <= 0.0:
        assert "ample" not in text
        assert "needs" not in text


def test_numbers_in_words():
    assert write_episodes(Interval(8.94, 7.31, 1078.2)) == "8.9 [7.3, 1,078]"
    assert write_episodes(Interval(692.0, 126.0, math.inf)) == "692 [126, unbounded]"
    assert write_episodes(Interval(math.inf, 126.0, math.inf)) == "unresolved (above 126)"
    assert write_episodes(Interval(49.0, -math.inf, math.inf)) == "too few informative episodes"
    assert write_bias(Interval(0.04, 0.01, 0.09)) == "20 % [10 %, 30 %]"
    assert write_bias(Interval(-0.01, -0.05, 0.01)) == "none seen (below 10 %)"
    assert write_bias(Interval(0.3, -math.inf, math.inf)) == "unresolved"
    assert write_bias(Interval(math.nan, math.nan, math.nan)) == "the reference"


# The page in a browser


@pytest.fixture(scope="module")
def measurements(models):
    """Of three models, with all estimators."""
    loaded = [REINFORCE.load(models / name, device="cpu") for name in ("early.zip", "late.zip", "late.zip")]
    return [
        measure(model, make_vec_env("CartPole-v1", 2), 60, estimators=["all"], label=f"{index + 1:,}00,000 steps")
        for index, model in enumerate(loaded)
    ]


def test_no_text_touches_another_or_sticks_out(measurements, monkeypatch):
    # As after another plot with a style of its own
    monkeypatch.setitem(matplotlib.rcParams, "axes.labelsize", 40)
    with plots.style():
        for chosen in (measurements, measurements[:1]):
            for is_narrow in (False, True):
                width = plots.NARROW if is_narrow else plots.HALF
                drawn = [figures.needed_figure(chosen, width), *figures.panels(figures.focus_of(chosen), is_narrow)]
                for figure in drawn:
                    assert figure.get_figwidth() <= (plots.NARROW if is_narrow else plots.WIDE)
                    assert find_faults(figure) == []
            assert find_faults(figures.whole_figure("A title of many words. " * 15, chosen)) == []


@pytest.mark.parametrize("width", [360, 1280])
def test_page_in_a_browser(report, browser, width):
    open_page(browser, report / "gradients.html", width)
    assert browser.title == "What gradients are worth on CartPole-v1"
    assert len(browser.find_elements("css selector", "figure img")) == 4


def test_the_best_estimator_of_each_target_is_bold():
    ratios = {"whole": (0.02, 0.01, 0.03), "whole-loo": (0.1, 0.05, 0.2), "to-go": (0.02, 0.01, 0.03), "own": (0.1, 0.05, 0.2)}
    ratios |= {"to-go-critic": (0.12, 0.06, 0.2), "to-go-loo": (0.2, -0.1, 0.5), "to-go-mean": (0.5, -math.inf, math.inf)}
    best, tied = best_estimators(made_up(ratios))
    assert best == {"whole-loo", "to-go-critic"}
    # What is unresolved may need as few; of what has no interval nothing is known
    assert tied == {"own", "to-go-loo"}
    rows = {row[0]: row[1] for row in needed_table([made_up(ratios)]).rows}
    assert rows["to-go - this model's critic"] == "**8.3** [5.0, 17]"
    assert rows["this model's own settings"] == "10 [5.0, 20] ≈"
    assert rows["reward-to-go"] == "50 [33, 100]"


def test_findings_are_few_and_hints_are_given():
    few = made_up({"to-go": (0.5, -math.inf, math.inf), "own": (0.5, -math.inf, math.inf)})
    models = [few._replace(label=label) for label in ("untrained", "early", "half-way", "late", "solved")]
    said = findings(models, models[2])
    assert len(said) <= 5
    assert [sentence.split(" (")[0] for sentence in said] == ["Half-way", "Untrained", "Solved"]
    assert len(notes(models)) == 5
    assert notes([few]) == [
        "early: too few informative episodes. For some estimators fewer than 8 of the 100 episodes carry the gradient, or "
        "have a return that is not the most common one, and no interval can be trusted. Collect more episodes."
    ]
    assert notes([made_up({"to-go": (0.02, 0.01, 0.03)})]) == []


def test_a_label_is_neither_mathematics_nor_a_table(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", device="cpu")
    measurement = measure(model, make_vec_env("CartPole-v1"), 20, estimators=["to-go"], label="$_$ | 0.1")
    write_report(tmp_path, "CartPole-v1", [measurement])
    text = (tmp_path / "gradients.md").read_text()
    assert "$_$ \\| 0.1" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables[:2]} == {tables[1].count("|")}
