"""The parts of ``sb3-reinforce compare`` that need no training: statistics, checks, words, report."""

import math

import numpy as np
import pandas as pd
import pytest
import rliable.metrics
import yaml
from made_up_runs import write_result

from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.cli import main
from sb3_reinforce.zoo.compare import cli, plan, report, statistics, summary
from sb3_reinforce.zoo.compare.plan import RANDOM, Settings, Task
from sb3_reinforce.zoo.compare.results import Results, read_results
from sb3_reinforce.zoo.compare.statistics import Estimate
from sb3_reinforce.zoo.errors import UsageError, UserError


def fails(capsys, *args: str) -> str:
    """Run a command that must fail with one line, and return the line."""
    assert main(["compare", *args]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("sb3-reinforce: error: ")
    assert error.count("\n") == 1
    return error


# Statistics


def test_interval_of_a_mean_by_hand():
    # Mean 4, standard deviation 2, and Student's 97.5 % quantile with two degrees of freedom is 4.3027
    estimate = statistics.mean_with_interval([2.0, 4.0, 6.0])
    half_width = 4.302653 * 2.0 / math.sqrt(3.0)
    np.testing.assert_allclose(estimate, (4.0, 4.0 - half_width, 4.0 + half_width), rtol=1e-6)


def test_one_seed_has_no_interval():
    estimate = statistics.mean_with_interval([3.0])
    assert estimate.value == 3.0
    assert not estimate.has_interval
    assert not estimate.is_above(Estimate(0.0, 0.0, 0.0))
    assert not Estimate(9.0, 9.0, 9.0).is_above(estimate)


def test_overlapping_intervals_tell_nothing():
    assert Estimate(5.0, 4.0, 6.0).is_above(Estimate(2.0, 1.0, 3.9))
    assert not Estimate(5.0, 4.0, 6.0).is_above(Estimate(2.0, 1.0, 4.1))


def test_normalised_scores():
    np.testing.assert_allclose(statistics.normalise(np.array([20.0, 60.0, 100.0, 0.0]), 20.0, 100.0), [0.0, 0.5, 1.0, 0.0])
    np.testing.assert_array_equal(statistics.normalise(np.array([3.0, 5.0]), 5.0, 5.0), [0.0, 0.0])


def test_statistics_over_environments_by_hand():
    first = np.array([[0.0, 1.0], [0.2, 0.8], [0.4, 0.6], [0.6, 0.4]])
    second = np.array([[0.1, 0.5], [0.1, 0.5], [0.1, 0.5], [0.1, 0.5]])
    overall = statistics.over_environments({"first": first, "second": second})
    # Sorted: 0 .2 .4 .4 .6 .6 .8 1, of which the middle four count; means of the environments: .3 and .7
    assert overall.aggregates["IQM"]["first"].value == pytest.approx(0.5)
    assert overall.aggregates["median"]["first"].value == pytest.approx(0.5)
    assert overall.aggregates["optimality gap"]["first"].value == pytest.approx(0.5)
    assert overall.aggregates["IQM"]["second"] == pytest.approx((0.3, 0.3, 0.3))
    # First environment 3 of 4 pairs won, second: 1, .8 and .6 above .5
    assert overall.improvement["first", "second"].value == pytest.approx(0.75)
    shares, low, high = overall.profiles["first"]
    assert shares[np.searchsorted(statistics.PROFILE_SCORES, 0.5)] == pytest.approx(4 / 8)
    assert (low <= shares).all()
    assert (shares <= high).all()
    assert overall.n_seeds == {"first": 4, "second": 4}


def test_probability_of_improvement_is_that_of_rliable():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 4, (5, 3)).astype(float), generator.integers(0, 4, (4, 3)).astype(float)
    expected = rliable.metrics.probability_of_improvement(first, second)
    assert statistics.probability_of_improvement(first, second)[0] == pytest.approx(expected)


def test_bootstrap_is_reproducible_and_leaves_the_generator_alone():
    scores = {"a": np.random.default_rng(0).normal(size=(5, 3))}
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    once = statistics.over_environments(scores)
    assert np.random.random() == expected
    again = statistics.over_environments(scores)
    assert once.aggregates == again.aggregates
    estimate = once.aggregates["IQM"]["a"]
    assert estimate.low < estimate.value < estimate.high


def test_one_seed_over_environments():
    overall = statistics.over_environments({"a": np.array([[0.5, 1.0]]), "b": np.array([[0.25, 0.0]])})
    assert not overall.aggregates["IQM"]["a"].has_interval
    assert not overall.improvement["a", "b"].has_interval
    assert overall.aggregates["median"]["a"].value == 0.75


def test_first_reached():
    assert statistics.first_reached([0, 10, 20], [1.0, 5.0, 3.0], 5.0) == 10.0
    assert statistics.first_reached([0, 10, 20], [1.0, 5.0, 3.0], 6.0) == math.inf


def test_mean_curve_ends_with_the_shortest_run():
    curve = statistics.mean_curve(
        [(np.array([0.0, 10.0]), np.array([0.0, 10.0])), (np.array([0.0, 5.0, 20.0]), np.array([0.0, 10.0, 10.0]))], n_points=3
    )
    np.testing.assert_allclose(curve["position"], [0.0, 5.0, 10.0])
    np.testing.assert_allclose(curve["mean"], [0.0, 7.5, 10.0])
    assert curve["high"][1] - curve["mean"][1] == pytest.approx(12.706205 * 2.5, rel=1e-6)


# Checks before the training


@pytest.fixture
def settings():
    entries = {env_id: {"reinforce": {"n_envs": 1}, "ppo": {}} for env_id in ("CartPole-v1", "Acrobot-v1")}
    return Settings([0, 1, 2], 1000, None, 2, 2, 4, entries, {"reinforce": "reinforce", "ppo": "ppo"})


def test_all_problems_are_said_at_once(capsys, tmp_path):
    error = fails(
        capsys,
        *("--env", "CartPol-v1", "Pendulum-v1", "--algos", "dqn", "pppo", "ppo", "-f", str(tmp_path / "new")),
    )
    assert "unknown environment 'CartPol-v1', did you mean CartPole-v1?" in error
    assert "unknown algorithm 'pppo', did you mean ppo?" in error
    assert "dqn cannot act in Box" in error
    assert not (tmp_path / "new").exists()


def test_no_hyperparameters_for_a_pair(capsys, tmp_path):
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"Acrobot-v1": {"n_timesteps": 1, "policy": "MlpPolicy"}}))
    error = fails(
        capsys, *("--env", "CartPole-v1", "--algos", "ppo", "--conf-file", f"ppo={tmp_path / 'mine.yml'}", "-f", str(tmp_path))
    )
    assert "ppo on CartPole-v1" in error
    assert "mine.yml must hold a mapping of hyperparameters for 'CartPole-v1' or 'default'" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conf-file", "mine.yml"], "--conf-file mine.yml: must be like NAME=VALUE"),
        (["--conf-file", "dqn=mine.yml"], "--conf-file for 'dqn', which is not compared"),
        (["--conf-file", "ppo=missing.yml"], "missing.yml"),
        (["--algos"], "nothing to compare"),
        (["--variant", "alone"], "must be a name and at least one key:value"),
        (["--variant", "ppo", "baseline:None"], "the name 'ppo' is taken twice"),
        (["--variant", "a/b", "baseline:None"], "a variant cannot be called 'a/b'"),
        (["--variant", "dqn", "baseline:None"], "a variant cannot be called 'dqn', which is another algorithm"),
        (["--variant", "hard", "env_kwargs:{'sutton_barto_reward': True}"], "CartPole-v1 have different env_kwargs"),
        (["--variant", "wrong", "basline:None"], "unknown key, did you mean baseline?"),
        (["--threshold", "Acrobot-v1=-100"], "Acrobot-v1 is not compared"),
        (["--threshold", "CartPole-v1=high"], "'high' is not a number"),
        (["--threshold", "CartPole-v1=nan"], "'nan' is not a number"),
        (["--report-only"], "there is no folder"),
    ],
)
def test_bad_arguments(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "--env", "CartPole-v1", "--algos", "reinforce", "ppo", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["-n", "1.5"], ["--seconds", "inf"], ["--jobs", "many"]])
def test_bad_numbers(arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", "--env", "CartPole-v1", *arguments])
    assert exit_info.value.code == 2


def test_variants():
    assert cli.parse_variant(["x", "baseline:None", "gamma:0.9", "return_type:episode", "learning_rate:lin_0.1"]) == (
        "x",
        {"baseline": None, "gamma": 0.9, "return_type": "episode", "learning_rate": "lin_0.1"},
    )
    with pytest.raises(UsageError):
        cli.parse_variant(["x", "baseline"])


def test_entries_hold_the_overrides():
    register()
    contenders = plan.make_contenders(["reinforce", "ppo"], {}, [("bare", {"baseline": None})])
    entries = plan.read_entries(["CartPole-v1"], contenders)["CartPole-v1"]
    assert entries["bare"] == {**entries["reinforce"], "baseline": None}
    assert "clip_range" in entries["ppo"]


def test_a_folder_with_other_settings_is_refused(tmp_path, settings):
    (tmp_path / "new").mkdir()
    # As after a kill in the middle of the first claim
    (tmp_path / "new" / ".comparison.json.unfinished").touch()
    plan.claim_folder(tmp_path / "new", settings)
    plan.claim_folder(tmp_path / "new", settings)
    assert plan.read_settings(tmp_path / "new") == settings
    other = settings._replace(seeds=[0], entries={"CartPole-v1": {"reinforce": {"n_envs": 2}, "ppo": {}}})
    with pytest.raises(UserError) as error:
        plan.claim_folder(tmp_path / "new", other)
    assert "seeds: [0, 1, 2] there, [0] asked for" in str(error.value)
    assert "entries.CartPole-v1.reinforce.n_envs: 1 there, 2 asked for" in str(error.value)
    assert "entries.Acrobot-v1" in str(error.value)
    assert plan.read_settings(tmp_path / "new") == settings


def test_a_folder_with_something_else_is_refused(tmp_path, settings):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="something else"):
        plan.claim_folder(tmp_path, settings)


def test_runs_are_interleaved(settings):
    tasks = plan.list_tasks(settings)
    assert tasks[:2] == [Task("CartPole-v1", RANDOM, 0), Task("Acrobot-v1", RANDOM, 0)]
    assert [task.seed for task in tasks[2:]] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({task.folder for task in tasks}) == len(tasks)


# Report


@pytest.fixture
def results(tmp_path, settings) -> Results:
    """Made up: on CartPole reinforce is clearly better, on Acrobot intervals overlap; ppo is a tenth as fast."""
    scores = {
        ("CartPole-v1", "reinforce"): (400.0, 410.0, 420.0),
        ("CartPole-v1", "ppo"): (100.0, 110.0, 120.0),
        ("Acrobot-v1", "reinforce"): (-90.0, -100.0, -110.0),
        ("Acrobot-v1", "ppo"): (-80.0, -95.0, -110.0),
    }
    for (env_id, contender), values in scores.items():
        for seed, score in enumerate(values):
            write_result(tmp_path, Task(env_id, contender, seed), score, speed=100.0 if contender == "reinforce" else 10.0)
    write_result(tmp_path, Task("CartPole-v1", RANDOM, 0), 20.0)
    write_result(tmp_path, Task("Acrobot-v1", RANDOM, 0), -500.0)
    return read_results(tmp_path, settings, {"CartPole-v1": 200.0})


def test_results_are_read(results):
    assert results.missing == []
    run = results.runs[(results.runs["env"] == "CartPole-v1") & (results.runs["contender"] == "reinforce")].iloc[1]
    assert run["score"] == 410.0
    assert run["stochastic_score"] == 400.0
    assert run["best_score"] == 415.0
    assert run["steps_per_second"] == 100.0
    assert run["steps_to_threshold"] == 500.0
    assert run["seconds_to_threshold"] == 5.0
    assert np.isinf(results.values("steps_to_threshold", "CartPole-v1", "ppo")).all()
    assert np.isnan(results.values("steps_to_threshold", "Acrobot-v1", "ppo")).all()
    np.testing.assert_allclose(results.normalised()["ppo"][0], [80.0 / 400.0, 1.0])


def test_summary_claims_no_more_than_the_intervals_allow(results):
    text = summary.summarise(results, statistics.over_environments(results.normalised()))
    assert "3 seeds, 1,000 environment steps each." in text
    assert "reinforce has the highest final score on CartPole-v1." in text
    assert "no highest final score is claimed: Acrobot-v1 (ppo -95.0, not above reinforce)" in text
    assert "ppo has the highest" not in text
    assert (
        "Steps per second of reinforce over those of the others (median over environments and their range): 10 for ppo" in text
    )


def test_summary_says_which_contender_has_no_interval(results):
    runs = results.runs[(results.runs["contender"] == "reinforce") | (results.runs["seed"] == 0)]
    lonely = results._replace(runs=runs)
    text = summary.summarise(lonely, statistics.over_environments(lonely.normalised()))
    assert "no difference from ppo (0.60) is claimed, since a single run has no interval" in text
    assert "the intervals overlap" not in text


def test_report_without_random_actions(results, tmp_path):
    (tmp_path / Task("Acrobot-v1", RANDOM, 0).folder / "result.json").unlink()
    incomplete = read_results(tmp_path, results.settings, {})
    report.write_report(tmp_path, incomplete, [], {"random on Acrobot-v1": "exit status 1: a | b"})
    markdown = (tmp_path / "report.md").read_text()
    assert "| random on Acrobot-v1 | exit status 1: a \\| b |" in markdown
    assert "-100.0 [-124.8, -75.2] | -95.0 [-132.3, -57.7] | none |" in markdown
    # Only CartPole can be normalised
    assert incomplete.normalised()["ppo"].shape == (3, 1)


def test_summary_of_one_seed_claims_nothing(results):
    one = results._replace(
        settings=results.settings._replace(seeds=[0]),
        runs=results.runs[results.runs["seed"] == 0],
        curves=results.curves[results.curves["seed"] == 0],
    )
    text = summary.summarise(one, statistics.over_environments(one.normalised()))
    assert "One seed says nothing" in text
    assert "since a single run has no interval" in text
    assert "has the highest final score" not in text


def test_report_of_one_seed(results, tmp_path):
    one = results._replace(
        settings=results.settings._replace(seeds=[0]),
        runs=results.runs[results.runs["seed"] == 0],
        curves=results.curves[results.curves["seed"] == 0],
    )
    report.write_report(tmp_path, one, [], {})
    markdown = (tmp_path / "report.md").read_text()
    assert "nan" not in markdown
    assert "| CartPole-v1 | 400.0 | 100.0 | 20.0 |" in markdown


def test_report_files(results, tmp_path):
    report.write_report(tmp_path, results, ["--env", "CartPole-v1", "Acrobot-v1"], {})
    runs, curves = pd.read_csv(tmp_path / "results.csv"), pd.read_csv(tmp_path / "curves.csv")
    assert len(runs) == 12
    assert len(curves) == 36
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for text in (markdown, page):
        assert "sb3-reinforce compare --env CartPole-v1 Acrobot-v1" in text
        assert "n_envs: 1" in text
        assert "410.0 [385.2, 434.8]" in text
    figures = sorted((tmp_path / "figures").iterdir())
    assert {path.suffix for path in figures} == {".png", ".svg"}
    # Two environments with three figures each, and four over all
    assert len(figures) == 2 * (2 * 3 + 4)
    assert all(f"figures/{path.name}" in markdown for path in figures if path.suffix == ".png")
    assert page.count("<img ") == 10
    assert page.count("data:image/svg+xml;base64,") == 10
    assert 'src="figures' not in page


def test_report_names_what_is_missing(results, tmp_path):
    (tmp_path / Task("Acrobot-v1", "ppo", 2).folder / "result.json").unlink()
    incomplete = read_results(tmp_path, results.settings, {})
    report.write_report(tmp_path, incomplete, [], {"ppo on Acrobot-v1, seed 2": "exit status 1: boom"})
    markdown = (tmp_path / "report.md").read_text()
    assert "1 runs are missing" in markdown
    assert "| ppo on Acrobot-v1, seed 2 | exit status 1: boom |" in markdown
    # Statistics over environments need the same seeds in all of them
    assert {name: len(matrix) for name, matrix in incomplete.normalised().items()} == {"reinforce": 3, "ppo": 2}


def test_equal_results_make_equal_files(results, tmp_path):
    report.write_report(tmp_path, results, [], {})
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    report.write_report(tmp_path, results, [], {})
    assert all(path.read_bytes() == content for path, content in first.items())
