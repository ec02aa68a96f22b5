"""The parts of ``sb3-reinforce compare`` that need no training: statistics, checks, words, report."""

import itertools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import rliable.metrics
import scipy.stats
import yaml
from browsing import open_page
from figure_geometry import find_faults
from made_up_runs import write_result
from rliable import library as rly

from sb3_reinforce.lab import plots
from sb3_reinforce.lab.statistics import Interval
from sb3_reinforce.zoo import register, shipped_configurations
from sb3_reinforce.zoo.cli import main
from sb3_reinforce.zoo.compare import cli, figures, plan, report, run_files, statistics, summary
from sb3_reinforce.zoo.compare.plan import RANDOM, Algorithm, Settings, Task
from sb3_reinforce.zoo.compare.results import Results, read_results
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
    assert not estimate.is_bounded
    assert statistics.compare_means({"one": [3.0], "other": [9.0]}) == {}
    assert statistics.compare_iqm({"one": np.array([[3.0]]), "other": np.array([[9.0]])}) == {}


def scores_of(kind, n_seeds, n_envs, n_sets, n_names=5):
    """Raw scores of as many equal algorithms: of shape (n_sets, n_names, n_seeds, n_envs), random actions having 0."""
    rng = np.random.default_rng(0)
    shape, level = (n_sets, n_names, n_seeds, n_envs), np.linspace(0.35, 0.9, n_envs)
    if kind == "normal":
        return level + 0.12 * rng.standard_normal(shape)
    if kind == "skewed":
        return level + 0.25 - 0.25 * rng.exponential(size=shape)
    assert kind == "solved or not"
    return np.where(rng.random(shape) < 0.5, 1.0, 0.2) + 0.03 * rng.standard_normal(shape)


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("kind", ["skewed", "solved or not"])
def test_the_leader_of_five_equals_is_rarely_declared_above_another(monkeypatch, kind, n_seeds):
    monkeypatch.setattr(statistics, "PERMUTATIONS", 500)
    n_sets, n_false = 250, 0
    for scores in scores_of(kind, n_seeds, 4, n_sets):
        normalised = np.stack([statistics.normalise(own, 0.0, own.max()) for own in np.moveaxis(scores, -1, 0)], axis=-1)
        by_name = dict(zip("abcde", normalised, strict=True))
        estimates = {name: Interval(rliable.metrics.aggregate_iqm(own), 0.0, 0.0) for name, own in by_name.items()}
        n_false += bool(summary.rank(estimates, statistics.compare_iqm(by_name), statistics.LEVEL).behind)
    assert n_false / n_sets < 0.07


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_a_real_difference_is_found(monkeypatch, n_seeds):
    monkeypatch.setattr(statistics, "PERMUTATIONS", 500)
    n_found, n_sets = 0, 50
    for scores in scores_of("normal", n_seeds, 4, n_sets):
        by_name = dict(zip("abcde", scores, strict=True))
        # Two standard deviations of a run
        by_name["a"] = by_name["a"] + 0.24
        n_found += sum(p_value < statistics.LEVEL for pair, p_value in statistics.compare_iqm(by_name).items() if "a" in pair)
    assert n_found / (4 * n_sets) > {3: 0.5, 5: 0.95}[n_seeds]


def splits(column):
    """All ways to deal six runs to two algorithms."""
    return [(column[list(own)], np.delete(column, own)) for own in itertools.combinations(range(6), 3)]


def slow_difference(first, second):
    """Studentised difference of two interquartile means over two environments, three runs each: the middle four of six."""
    means, variance = [], 0.0
    for own in (first, second):
        middle = sorted(np.concatenate(own))[1:-1]
        means.append(sum(middle) / 4)
        for column in own:
            winsorised = [min(max(score, middle[0]), middle[-1]) for score in column]
            variance += 3 * np.var(winsorised, ddof=1) / 4**2
    return abs(means[0] - means[1]) / math.sqrt(variance)


def test_permutations_by_enumeration(monkeypatch):
    rng = np.random.default_rng(0)
    scores = {name: mean + 0.2 * rng.random((3, 2)) for name, mean in (("low", 0.1), ("middle", 0.2), ("high", 0.25))}
    exact = {}
    for pair in itertools.combinations(scores, 2):
        runs = np.concatenate([scores[name] for name in pair])
        observed = slow_difference(*(scores[name].T for name in pair))
        dealt = [tuple(zip(*columns, strict=True)) for columns in itertools.product(splits(runs[:, 0]), splits(runs[:, 1]))]
        assert len(dealt) == 20 * 20
        exact[frozenset(pair)] = np.mean([slow_difference(*both) >= observed - 1e-9 for both in dealt])
    # Holm: the smallest times 3, the next times 2, the largest times 1, and none below the one before
    small, middle, large = sorted(exact, key=exact.get)
    corrected = {small: 3 * exact[small]}
    corrected[middle] = max(2 * exact[middle], corrected[small])
    corrected[large] = max(exact[large], corrected[middle])
    assert len(set(corrected.values())) > 1
    assert statistics.compare_iqm(scores) == pytest.approx(corrected, abs=0.02)
    # Where the correction of the next would be below the one before
    given = {("a", "b"): 0.012, ("a", "c"): 0.011, ("b", "c"): 0.5}
    monkeypatch.setattr(statistics, "permutation_test", lambda first, second: given[first[0, 0], second[0, 0]])
    labelled = {name: np.array([[name], [name]]) for name in "abc"}
    corrected = {("a", "b"): 0.033, ("a", "c"): 0.033, ("b", "c"): 0.5}
    assert statistics.compare_iqm(labelled) == pytest.approx({frozenset(pair): value for pair, value in corrected.items()})


def test_nothing_is_told_apart_where_all_is_the_same():
    same = np.array([[1.0, 0.5], [1.0, 0.6], [1.0, 0.7]])
    assert statistics.compare_iqm({"a": same, "b": same.copy()}) == {frozenset("ab"): 1.0}


def test_the_variance_of_an_iqm_by_hand():
    # Of 0 .2 .4 .4 .6 .6 .8 1 the middle four count, .4 to .6, which winsorises columns to .4 .4 .4 .6 and .6 .6 .6 .4
    scores = np.array([[0.0, 1.0], [0.2, 0.8], [0.4, 0.6], [0.6, 0.4]])
    value, variance = statistics.iqm_and_variance(scores)
    assert value == pytest.approx(rliable.metrics.aggregate_iqm(scores))
    assert variance == pytest.approx(4 * 2 * np.var([0.4, 0.4, 0.4, 0.6], ddof=1) / 4**2)


@pytest.mark.parametrize("kind", ["normal", "skewed"])
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_cover(monkeypatch, n_seeds, kind):
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 300)
    monkeypatch.setattr(statistics, "PROFILE_SCORES", [])
    matrices = scores_of(kind, n_seeds, 4, 200, n_names=1)[:, 0] / 2.0
    truth = rliable.metrics.aggregate_iqm(scores_of(kind, 10_000, 4, 1, n_names=1)[0, 0] / 2.0)
    _, low, high = np.stack([statistics.bootstrap([scores], statistics.aggregate_runs)[:, 0] for scores in matrices], axis=1)
    assert 0.91 <= np.mean((low <= truth) & (truth <= high)) <= 0.99


def test_the_interval_of_a_mean_over_environments_is_students():
    # The optimality gap of scores below 1 is a mean, of which the variance is known; a bootstrap of 2,000 has 2 % of noise
    scores = np.random.default_rng(0).uniform(0.4, 0.6, (3, 4))
    value, low, high = statistics.bootstrap([scores], statistics.aggregate_runs)[:, 2]
    assert value == pytest.approx(1.0 - scores.mean())
    variances = scores.var(axis=0, ddof=1) / 3
    freedom = variances.sum() ** 2 / (variances**2 / 2).sum()
    margin = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variances.sum()) / 4
    np.testing.assert_allclose([low, high], [value - margin, value + margin], atol=0.1 * margin)


def test_means_of_an_environment():
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(100.0, 1.0, 5), "b": rng.normal(100.0, 20.0, 5), "c": rng.normal(20.0, 1.0, 5), "one": [500.0]}
    p_values = statistics.compare_means(values)
    assert set(p_values) == {frozenset("ab"), frozenset("ac"), frozenset("bc")}
    assert p_values[frozenset("ab")] > 0.2
    # The floor: all five above all five by chance, if each run were a coin toss
    assert p_values[frozenset("ac")] == 2**-9
    # Games and Howell's without spread
    assert statistics.compare_means({"a": [500.0] * 3, "b": [20.0] * 3}) == {frozenset("ab"): 2**-5}


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_of_two_equals_hardly_one_is_declared_the_highest_somewhere(n_seeds):
    n_envs, n_false = 9, 0
    for scores in scores_of("solved or not", n_seeds, n_envs, 20, n_names=2):
        p_values = [statistics.compare_means(dict(zip("ab", scores[..., column], strict=True))) for column in range(n_envs)]
        n_false += any(own[frozenset("ab")] < statistics.LEVEL / n_envs for own in p_values)
    assert n_false <= 1


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


def test_statistics_where_one_cannot_act():
    first = np.array([[0.0, 1.0], [0.2, 0.8], [0.4, 0.6], [0.6, 0.4]])
    second = np.array([[0.1, np.nan], [0.1, np.nan], [0.5, np.nan], [0.5, np.nan]])
    third = np.array([[np.nan, 0.7]] * 4)
    overall = statistics.over_environments({"first": first, "second": second, "third": third})
    assert overall.everywhere == {"first"}
    assert overall.aggregates["IQM"]["first"].value == pytest.approx(0.5)
    # Over the first environment alone: of 16 pairs .2 wins two, .4 two, .6 four
    assert overall.aggregates["IQM"]["second"].value == pytest.approx(0.3)
    assert overall.improvement["first", "second"].value == pytest.approx(8 / 16)
    # 1 and .8 beat .7
    assert overall.improvement["first", "third"].value == pytest.approx(0.5)
    assert set(overall.improvement) == {("first", "second"), ("first", "third")}
    assert overall.profiles["second"][0][np.searchsorted(statistics.PROFILE_SCORES, 0.3)] == 0.5


def test_statistics_are_those_of_rliable():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 4, (3, 5, 3)) / 3.0, generator.integers(0, 4, (3, 4, 3)) / 3.0
    for own, other, value in zip(first, second, statistics.probability_of_improvement(first, second), strict=True):
        assert value == pytest.approx(rliable.metrics.probability_of_improvement(own, other))
    for own, row in zip(second, statistics.aggregate_runs(second), strict=True):
        assert row[0] == pytest.approx(rliable.metrics.aggregate_iqm(own))
        assert row[1] == pytest.approx(rliable.metrics.aggregate_median(own))
        assert row[2] == pytest.approx(rliable.metrics.aggregate_optimality_gap(own))
        profile = rly.score_distributions(own, statistics.PROFILE_SCORES)
        np.testing.assert_allclose(row[3:], profile)


def test_the_bootstrap_draws_within_environments():
    scores = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    drawn = statistics.draw_runs(scores, 500, np.random.default_rng(0))
    assert drawn.shape == (500, 3, 2)
    for column, values in enumerate(scores.T):
        found, counts = np.unique(drawn[..., column], return_counts=True)
        assert found.tolist() == values.tolist()
        assert (np.abs(counts / 1500 - 1 / 3) < 0.04).all()
    assert abs(np.corrcoef(drawn[..., 0].ravel(), drawn[..., 1].ravel())[0, 1]) < 0.1


def test_bootstrap_is_reproducible_and_leaves_the_generator_alone():
    scores = {"a": np.random.default_rng(0).random((5, 3))}
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
    assert not overall.aggregates["IQM"]["a"].is_bounded
    assert not overall.improvement["a", "b"].is_bounded
    assert overall.aggregates["median"]["a"].value == 0.75


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.76, 0.74, 0.01], 3),
        ([3.0, 5.5], 2),
        ([-80.0, -110.0, math.nan], 1),
        ([20.0, 500.0], 1),
        ([-160.0, 1264.0], 0),
        ([0.5, 0.5], 3),
        ([500.0, 500.0], 1),
        ([0.0, 0.0], 1),
        ([math.nan], 1),
    ],
)
def test_as_many_digits_as_the_range_needs(values, expected):
    assert statistics.decimals(values) == expected


def test_a_threshold_is_reached_where_the_next_two_evaluations_confirm_it():
    curve = [1.0, 5.0, 3.0, 5.0, 6.0, 4.0, 5.0, 5.5, 7.0, 1.0]
    positions = list(range(0, 100, 10))
    assert statistics.first_reached(positions, curve, 5.0) == 60.0
    assert statistics.first_reached(positions, curve, 5.5) == math.inf
    assert statistics.first_reached(positions, curve, 1.0) == 0.0
    # A score behind the last position only confirms
    assert statistics.first_reached([0, 10], [5.0, 5.0, 5.0], 5.0) == 0.0
    for few in ([], [9.0], [9.0, 9.0]):
        assert statistics.first_reached(positions[: len(few)], few, 5.0) == math.inf


def test_a_noisy_plateau_rarely_reaches_what_is_above_it():
    # Exactly: three of 20 evaluations in a row above one standard deviation, by the number of those that are in a row so far
    above = scipy.stats.norm.sf((200.0 - 180.0) / 20.0)
    in_a_row = np.array([1.0, 0.0, 0.0, 0.0])
    for _ in range(20):
        reached = in_a_row[3] + in_a_row[2] * above
        in_a_row = np.array([in_a_row[:3].sum() * (1.0 - above), in_a_row[0] * above, in_a_row[1] * above, reached])
    assert in_a_row[3] == pytest.approx(0.0599, abs=1e-4)
    assert 1.0 - (1.0 - above) ** 20 == pytest.approx(0.968, abs=1e-3)
    curves = np.random.default_rng(0).normal(180.0, 20.0, (4000, 20))
    reached = [np.isfinite(statistics.first_reached(list(range(20)), curve, 200.0)) for curve in curves]
    assert np.mean(reached) == pytest.approx(in_a_row[3], abs=0.015)


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


def test_who_cannot_act_is_left_out_there():
    register()
    algorithms = plan.make_algorithms(["ppo", "dqn"], {}, [])
    entries = plan.read_entries(["CartPole-v1", "Pendulum-v1"], algorithms)
    assert {env_id: list(own) for env_id, own in entries.items()} == {"CartPole-v1": ["ppo", "dqn"], "Pendulum-v1": ["ppo"]}
    settings = Settings([0, 1], None, 1.0, 1, 1, 1, entries, {"ppo": "ppo", "dqn": "dqn"})
    tasks = plan.list_tasks(settings)
    assert len(tasks) == 2 + 2 * 3
    assert Task("Pendulum-v1", "dqn", 0) not in tasks


def test_a_variant_that_changes_nothing_is_said(capsys):
    register()
    plan.read_entries(
        ["CartPole-v1"],
        plan.make_algorithms([], {}, [Algorithm("fast", "reinforce", None, {"learning_rate": 0.5, "gamma": 0.9})]),
    )
    assert capsys.readouterr().out == (
        "fast: learning_rate=0.5 changes nothing on CartPole-v1: "
        "the natural step has the length target_kl, and the critic has critic_learning_rate\n"
    )


def test_who_has_no_entry_is_said(tmp_path):
    register()
    known = {"policy": "MlpPolicy", "n_timesteps": 1}
    (tmp_path / "mine.yml").write_text(
        yaml.safe_dump(
            {"default": known, "Pendulum-v0": known, "Pendulum-v10": known, "Pendulum-v1x": known, "Pendulum": known}
        )
    )
    (tmp_path / "own.yml").write_text(yaml.safe_dump({"default": known, "Pendulum-v1": known, "Pendulum-v0": known}))
    algorithms = [plan.Algorithm(name, "a2c", str(tmp_path / f"{name}.yml")) for name in ("mine", "own")]
    algorithms.append(plan.Algorithm("dqn", "dqn", str(tmp_path / "mine.yml")))
    entries = plan.read_entries(["Pendulum-v1", "CartPole-v1"], algorithms)
    untuned = plan.find_untuned(entries, algorithms)
    assert untuned == {
        "Pendulum-v1": {"mine": ["Pendulum-v0", "Pendulum-v10"]},
        "CartPole-v1": {"mine": [], "own": [], "dqn": []},
    }


def test_the_atari_entry_is_one(monkeypatch, tmp_path):
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"default": {}, "atari": {}}))
    for is_atari in (True, False):
        manager = SimpleNamespace(config=str(tmp_path / "mine.yml"), _is_atari=is_atari)
        monkeypatch.setattr(plan, "make_manager", lambda *args, manager=manager, **kwargs: manager)
        untuned = plan.find_untuned({"PongNoFrameskip-v4": {"ppo": {}}}, [plan.Algorithm("ppo", "ppo")])
        assert untuned == ({} if is_atari else {"PongNoFrameskip-v4": {"ppo": []}})


def test_rl_zoo_has_entries_for_earlier_versions_of_mujoco():
    register()
    algorithms = plan.make_algorithms(["reinforce", "ppo"], {}, [])
    entries = plan.read_entries(["CartPole-v1", "Hopper-v5"], algorithms)
    assert plan.find_untuned(entries, algorithms) == {"Hopper-v5": {"ppo": ["Hopper-v4"]}}


def test_the_default_entry_is_said_before_the_training(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "train", lambda folder, settings, pool: print("trained") or {})
    cli.main(["--env", "Hopper-v5", "--algos", "reinforce", "ppo", "-f", str(tmp_path / "new")])
    before, _, _ = capsys.readouterr().out.partition("trained")
    assert "Without an entry for Hopper-v5, ppo trains there with the entry default" in before
    assert plan.read_settings(tmp_path / "new").untuned == {"Hopper-v5": {"ppo": ["Hopper-v4"]}}


@pytest.mark.usefixtures("without_figures")
def test_the_default_entry_is_said_for_all_environments_at_once(results, tmp_path):
    one = {"ppo": ["CartPole-v0"]}
    settings = results.settings._replace(untuned={"CartPole-v1": one, "Acrobot-v1": {"ppo": []}})
    report.write_report(tmp_path, results._replace(settings=settings), [], {})
    sentence = (
        "Without an entry for CartPole-v1 and Acrobot-v1, ppo trains there with the entry default, though RL Zoo or the file "
        "that was given has CartPole-v0."
    )
    assert f"\n> {sentence}\n" in (tmp_path / "report.md").read_text()
    both = settings._replace(untuned={"CartPole-v1": one | {"reinforce": []}, "Acrobot-v1": {"ppo": []}})
    assert summary.describe_untuned(both) == [
        "Without an entry for CartPole-v1, ppo and reinforce train there with the entry default, though RL Zoo or the file "
        "that was given has CartPole-v0.",
        "Without an entry for Acrobot-v1, ppo trains there with the entry default.",
    ]
    assert summary.describe_untuned(results.settings) == []


def test_somebody_must_act(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "train", lambda *args: pytest.fail("trained"))
    error = fails(capsys, "--env", "CartPole-v1", "Pendulum-v1", "--algos", "dqn", "-f", str(tmp_path / "new"))
    assert "nothing was trained: no algorithm can act on Pendulum-v1\n" in error
    error = fails(capsys, "--env", "Pendulum-v1", "--algos", "ppo", "dqn", "-f", str(tmp_path / "new"))
    assert "nothing was trained: dqn cannot act in Box(-2.0, 2.0, (1,), float32) on Pendulum-v1\n" in error
    assert not (tmp_path / "new").exists()


def test_no_hyperparameters_for_a_pair(capsys, tmp_path):
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"Acrobot-v1": {"n_timesteps": 1, "policy": "MlpPolicy"}}))
    error = fails(
        capsys, *("--env", "CartPole-v1", "--algos", "ppo", "--conf-file", f"ppo={tmp_path / 'mine.yml'}", "-f", str(tmp_path))
    )
    assert "ppo on CartPole-v1" in error
    assert "Hyperparameters not found" in error and "mine.yml" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conf-file", "mine.yml"], "--conf-file mine.yml: must be like NAME=VALUE"),
        (["--conf-file", "dqn=mine.yml"], "--conf-file for 'dqn', which is not compared"),
        (["--conf-file", "ppo=missing.yml"], "missing.yml"),
        (["--conf-file", "reinforce-adam=adam"], "--conf-file for 'reinforce-adam', which is not compared"),
        (["--algos", "reinforce-adam", "--conf-file", "reinforce=mine.yml"], "--conf-file for 'reinforce', which is not"),
        (["--algos", "reinforce-adm"], "unknown algorithm 'reinforce-adm', did you mean reinforce-adam?"),
        (["--algos", "ppo-adam"], "unknown algorithm 'ppo-adam'"),
        (["--variant", "reinforce-adam", "baseline:None"], "cannot be called 'reinforce-adam', which is another algorithm"),
        (["--algos"], "nothing to compare"),
        (["--variant", "alone"], "must be a name and at least one hyperparameter as key:value"),
        (["--variant", "ppo", "baseline:None"], "the name 'ppo' is taken twice"),
        (["--variant", "a/b", "baseline:None"], "a variant cannot be called 'a/b'"),
        (["--variant", "dqn", "baseline:None"], "a variant cannot be called 'dqn', which is another algorithm"),
        (["--variant", "hard", "env_kwargs:{'sutton_barto_reward': True}"], "CartPole-v1 have different env_kwargs"),
        (["--variant", "wrong", "algo:trp", "gamma:0.9"], "unknown algorithm 'trp', did you mean trpo?"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["--seeds", "0"],
            ["-n", "1.5"],
            ["--seconds", "inf"],
            ["--jobs", "many"],
            ["--jobs", "2", "--scheduler", "tcp://a:1"],
        ),
        *(["--gpus-per-run", "0"], ["--gpus-per-run", "2"], ["--retries", "-1"]),
    ],
)
def test_bad_numbers(arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", "--env", "CartPole-v1", *arguments])
    assert exit_info.value.code == 2


def test_variants():
    overrides = {"baseline": None, "gamma": 0.9, "return_type": "episode", "learning_rate": "lin_0.1"}
    words = ["x", "baseline:None", "gamma:0.9", "return_type:episode", "learning_rate:lin_0.1"]
    assert cli.parse_variant(words) == Algorithm("x", "reinforce", None, overrides)
    assert cli.parse_variant([*words, "algo:trpo"]) == Algorithm("x", "trpo", None, overrides)
    for nothing in (["x", "baseline"], ["x", "algo:trpo"]):
        with pytest.raises(UsageError):
            cli.parse_variant(nothing)


def test_variants_of_other_algorithms_have_their_files():
    variants = [Algorithm(name, algo, None, {"gamma": 0.9}) for name, algo in (("a", "ppo"), ("b", "reinforce-adam"))]
    algorithms = plan.make_algorithms(["reinforce", "ppo"], {"ppo": "mine.yml"}, variants)
    assert [(one.name, one.algo, one.conf_file) for one in algorithms] == [
        ("reinforce", "reinforce", None),
        ("ppo", "ppo", "mine.yml"),
        ("a", "ppo", "mine.yml"),
        ("b", "reinforce", "adam"),
    ]
    with pytest.raises(UserError, match="--conf-file for 'reinforce', which is not compared"):
        plan.make_algorithms([], {"reinforce": "mine.yml"}, variants)


def test_entries_hold_the_overrides():
    register()
    algorithms = plan.make_algorithms(["reinforce", "ppo"], {}, [Algorithm("bare", "reinforce", None, {"baseline": None})])
    entries = plan.read_entries(["CartPole-v1"], algorithms)["CartPole-v1"]
    assert entries["bare"] == {**entries["reinforce"], "baseline": None}
    assert "clip_range" in entries["ppo"]


@pytest.mark.parametrize(("names", "conf_files"), [(["reinforce-adam"], {}), (["reinforce"], {"reinforce": "adam"})])
def test_the_other_file_of_this_package(names, conf_files):
    register()
    (algorithm,) = plan.make_algorithms(names, conf_files, [])
    assert algorithm == plan.Algorithm(names[0], "reinforce", "adam")
    entry = plan.read_entries(["HalfCheetah-v5"], [algorithm])["HalfCheetah-v5"][names[0]]
    assert entry == yaml.safe_load(shipped_configurations("reinforce")["adam"].read_text())["HalfCheetah-v5"]


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


def test_a_comparison_from_before_time_limits_goes_on(tmp_path, settings):
    plan.claim_folder(tmp_path, settings)
    path = tmp_path / plan.SETTINGS_FILE
    content = json.loads(path.read_text())
    del content["time_limits"]
    path.write_text(json.dumps(content))
    plan.claim_folder(tmp_path, settings)
    with pytest.raises(UserError, match=r"time_limits.CartPole-v1: nothing there, 10000 asked for"):
        plan.claim_folder(tmp_path, settings._replace(time_limits={"CartPole-v1": 10_000}))


def test_only_environments_without_a_time_limit_get_one():
    entries = {"CartPole-v1": {"ppo": {}}, "CliffWalking-v1": {"ppo": {}}}
    assert plan.limit_episodes(entries, None) == {"CliffWalking-v1": 10_000}
    assert plan.limit_episodes(entries, 50) == {"CliffWalking-v1": 50}
    own = {"CliffWalking-v1": {"ppo": {"env_kwargs": {"max_episode_steps": 7}}}}
    assert plan.limit_episodes(own, None) == {}
    with pytest.raises(UserError, match="--max-episode-steps: CliffWalking-v1 have time limits of their own"):
        plan.limit_episodes(own, 50)


def test_no_two_environments_share_a_folder():
    # The ids that a slash, a dash and all other characters of gymnasium's ids can make
    ids = ["a/b-v0", "a-b-v0", "a_b-v0", "a:b-v0", "a.b-v0", "a--b-v0", "a/-b-v0", "a-/b-v0"]
    folders = {Task(env_id, "ppo", 0).folder for env_id in ids}
    assert len(folders) == len(ids)
    assert {folder.parts[2:] for folder in folders} == {("ppo", "seed0")}
    assert Task("CartPole-v1", "ppo", 0).folder.as_posix() == "runs/CartPole-v1/ppo/seed0"


def test_runs_are_interleaved(settings):
    tasks = plan.list_tasks(settings)
    assert tasks[:2] == [Task("CartPole-v1", RANDOM, 0), Task("Acrobot-v1", RANDOM, 0)]
    assert [task.seed for task in tasks[2:]] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({task.folder for task in tasks}) == len(tasks)


# Report


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes most of the time of a report."""
    monkeypatch.setattr(figures, "draw_all", lambda *_: iter(()))


@pytest.fixture
def results(tmp_path, settings) -> Results:
    """Made up: on CartPole reinforce is clearly better, on Acrobot intervals overlap; ppo is a tenth as fast."""
    scores = {
        ("CartPole-v1", "reinforce"): (400.0, 410.0, 420.0),
        ("CartPole-v1", "ppo"): (100.0, 110.0, 120.0),
        ("Acrobot-v1", "reinforce"): (-90.0, -100.0, -110.0),
        ("Acrobot-v1", "ppo"): (-80.0, -95.0, -110.0),
    }
    for (env_id, algorithm), values in scores.items():
        for seed, score in enumerate(values):
            write_result(tmp_path, Task(env_id, algorithm, seed), score, speed=100.0 if algorithm == "reinforce" else 10.0)
    write_result(tmp_path, Task("CartPole-v1", RANDOM, 0), 20.0)
    write_result(tmp_path, Task("Acrobot-v1", RANDOM, 0), -500.0)
    return read_results(tmp_path, settings, {"CartPole-v1": 200.0})


def test_results_are_read(results):
    assert results.missing == []
    run = results.runs[(results.runs["env"] == "CartPole-v1") & (results.runs["algorithm"] == "reinforce")].iloc[1]
    assert run["score"] == 410.0
    assert run["stochastic_score"] == 400.0
    assert run["best_score"] == 415.0
    assert run["steps_per_second"] == 100.0
    assert run["steps_to_threshold"] == 500.0
    assert run["seconds_to_threshold"] == 5.0
    assert np.isinf(results.values("steps_to_threshold", "CartPole-v1", "ppo")).all()
    assert np.isnan(results.values("steps_to_threshold", "Acrobot-v1", "ppo")).all()
    np.testing.assert_allclose(results.normalised()["ppo"][0], [80.0 / 400.0, 1.0])


def say(results, overall=None):
    """All that stands at the top of a report, in one string."""
    sentences = summary.findings(results, overall, summary.rank_environments(results))
    assert len(sentences) <= 5
    return " ".join([summary.describe_extent(results), *sentences, *summary.notes(results, overall)])


def test_summary_claims_no_more_than_the_intervals_allow(results):
    text = say(results, statistics.over_environments(results.normalised()))
    assert "3 seeds, 1,000 environment steps each." in text
    assert "reinforce (0.99 [0.92, 1.00])" not in text
    # Three runs of each in two environments: all may fall apart by chance
    assert "No highest final score in an environment is claimed, since each may be chance." in text
    assert "3 seeds are too few to claim a difference in a single one of 2 environments" in text
    assert "It takes 4." in text
    assert "Steps per second of reinforce: 10 times those of ppo (10 to 10) (median over environments and their range)" in text


@pytest.mark.parametrize("n_environments", [1, 2, 3, 4, 9, 100])
def test_the_fewest_seeds_that_can_show_a_difference(n_environments):
    n_seeds, level = statistics.seeds_to_claim(n_environments), statistics.LEVEL / n_environments
    for n, can_claim in ((n_seeds, True), (n_seeds - 1, False)):
        # As far apart as can be
        p_values = statistics.compare_means({"a": [500.0 + 0.01 * seed for seed in range(n)], "b": [-0.01 * n] * n})
        assert (p_values[frozenset("ab")] < level) == can_claim


def test_summary_claims_what_five_seeds_show(tmp_path):
    rng = np.random.default_rng(0)
    means = {
        "CartPole-v1": (410.0, 110.0, 100.0),
        "Acrobot-v1": (-90.0, -180.0, -92.0),
        "Pendulum-v1": (-200.0, -800.0, -750.0),
    }
    scores = {
        (env_id, name): tuple(rng.normal(mean, 8.0, 5))
        for env_id, own in means.items()
        for name, mean in zip(("good", "bad", "mixed"), own, strict=True)
    }
    random_scores = {"CartPole-v1": 20.0, "Acrobot-v1": -500.0, "Pendulum-v1": -1200.0}
    results = make_results(tmp_path, scores)._replace(random_scores=random_scores)
    overall = statistics.over_environments(results.normalised())
    text = say(results, overall)
    leader, bad, mixed = (summary.write(overall.aggregates["IQM"][name]) for name in ("good", "bad", "mixed"))
    assert f"good has the highest interquartile mean of the normalised final scores over all environments, {leader}." in text
    assert f" By a permutation test it is above mixed ({mixed}) and bad ({bad})." in text
    assert "Highest final score in an environment: good on CartPole-v1 and Pendulum-v1; no other is claimed." in text
    assert "too few" not in text
    header, *rows = report.main_table(results, overall, summary.rank_environments(results))
    (cartpole, acrobot, _, together) = rows[0]
    assert header == ["environment", "good", "bad", "mixed", "random"]
    assert cartpole[1].startswith("**4") and cartpole[-1] == "20.0"
    assert not any("≈" in cell for cell in cartpole)
    assert [cell[:2] == "**" for cell in acrobot[1:4]] == [True, False, False]
    assert ["≈" in cell for cell in acrobot[1:4]] == [False, False, True]
    assert together[:2] == ["all, normalised (IQM)", f"**{leader[:4]}**{leader[4:]}"]


def test_summary_says_which_algorithm_has_no_interval(results):
    runs = results.runs[(results.runs["algorithm"] == "reinforce") | (results.runs["seed"] == 0)]
    lonely = results._replace(runs=runs)
    text = say(lonely, statistics.over_environments(lonely.normalised()))
    assert "No difference from ppo (0.60) is claimed, since a single run has no interval" in text
    assert "chance" not in " ".join(summary.describe_aggregate(statistics.over_environments(lonely.normalised())))


@pytest.mark.usefixtures("without_figures")
def test_report_says_over_which_environments_an_algorithm_is_counted(results, tmp_path):
    settings = results.settings._replace(algorithms={**results.settings.algorithms, "dqn": "dqn"})
    settings.entries["CartPole-v1"]["dqn"] = {}
    for seed, score in enumerate((220.0, 230.0, 240.0)):
        write_result(tmp_path, Task("CartPole-v1", "dqn", seed), score)
    together = read_results(tmp_path, settings, {})
    assert together.missing == []
    np.testing.assert_allclose(together.normalised()["dqn"], [[200 / 400, np.nan], [210 / 400, np.nan], [220 / 400, np.nan]])
    assert together.normalised()["ppo"].shape == (3, 2)
    report.write_report(tmp_path, together, [], {})
    markdown = (tmp_path / "report.md").read_text()
    assert (
        "dqn cannot act on Acrobot-v1: its interquartile mean, 0.53 [0.46, 0.59], is over CartPole-v1, and has no" in markdown
    )
    (row,) = [line for line in markdown.splitlines() if line.startswith("| dqn | 0.53")]
    assert row.endswith("| 3 | CartPole-v1 |")
    assert "| 3 | all 2 |" in markdown
    # Its score on CartPole alone must not make it the leader over both
    assert "reinforce has the highest interquartile mean" in markdown
    assert "dqn" not in " ".join(summary.describe_aggregate(statistics.over_environments(together.normalised())))


@pytest.mark.usefixtures("without_figures")
def test_report_without_random_actions(results, tmp_path):
    (tmp_path / Task("Acrobot-v1", RANDOM, 0).folder / "result.json").unlink()
    incomplete = read_results(tmp_path, results.settings, {})
    report.write_report(tmp_path, incomplete, [], {"random on Acrobot-v1": "exit status 1: a | b"})
    markdown = (tmp_path / "report.md").read_text()
    assert "| random on Acrobot-v1 | exit status 1: a \\| b |" in markdown
    assert "| Acrobot-v1 | -100.0 [-124.8, -75.2] ≈ | **-95.0** [-132.3, -57.7] | none |" in markdown
    # Only CartPole can be normalised
    assert incomplete.normalised()["ppo"].shape == (3, 1)


def test_summary_of_one_seed_claims_nothing(results):
    one = results._replace(
        settings=results.settings._replace(seeds=[0]),
        runs=results.runs[results.runs["seed"] == 0],
        curves=results.curves[results.curves["seed"] == 0],
    )
    text = say(one, statistics.over_environments(one.normalised()))
    assert "One seed says nothing" in text
    assert "since a single run has no interval" in text
    assert "Highest final score" not in text


def make_results(folder, scores, thresholds=None, **changes) -> Results:
    """Results with these final scores of each seed, by environment and algorithm."""
    algorithms = {algorithm: "ppo" for _, algorithm in scores}
    entries = {env_id: {name: {} for name in algorithms} for env_id, _ in scores}
    seeds = list(range(max(map(len, scores.values()))))
    settings = Settings(seeds, 1000, None, 2, 2, 4, entries, algorithms)._replace(**changes)
    for (env_id, algorithm), values in scores.items():
        for seed, score in enumerate(values):
            write_result(folder, Task(env_id, algorithm, seed), score)
    return read_results(folder, settings, thresholds or {})


@pytest.mark.usefixtures("without_figures")
def test_similar_ids_keep_their_scores_apart(tmp_path):
    results = make_results(tmp_path, {("a/b-v0", "ppo"): (10.0, 12.0), ("a-b-v0", "ppo"): (70.0, 72.0)})
    report.write_report(tmp_path, results, [], {})
    markdown = (tmp_path / "report.md").read_text()
    assert "| a/b-v0 | 11.0 [-1.7, 23.7] | none |" in markdown
    assert "| a-b-v0 | 71.0 [58.3, 83.7] | none |" in markdown
    # Without the scores of random actions nothing can be normalised
    assert "Over all environments" not in markdown


def test_small_scores_have_the_digits_that_tell_them_apart(tmp_path):
    results = make_results(tmp_path, {("CartPole-v1", "ppo"): (0.76, 0.74), ("CartPole-v1", "a2c"): (0.73, 0.71)})
    runs = results.runs.assign(stochastic_score=0.1, best_score=0.8)
    results = results._replace(runs=runs, random_scores={"CartPole-v1": 0.014})
    (row,) = report.main_table(results, None, summary.rank_environments(results)).rows
    assert row == ["CartPole-v1", "**0.750** [0.623, 0.877]", "0.720 [0.593, 0.847] ≈", "0.014"]
    assert report.other_scores_table(results).rows[1] == ["CartPole-v1", "a2c", "0.720", "0.100", "0.800", "1,000"]


def test_an_exact_tie_has_no_leader(tmp_path):
    scores = {"CartPole-v1": {"a": (500.0, 500.0), "b": (500.0, 500.0), "c": (20.0, 20.0)}}
    scores["Acrobot-v1"] = {"a": (-80.0, -80.0), "b": (-80.0, -80.0), "c": (-500.0, -500.0)}
    flat = {(env_id, name): values for env_id, by_name in scores.items() for name, values in by_name.items()}
    results = make_results(tmp_path, flat)._replace(random_scores={"CartPole-v1": 20.0, "Acrobot-v1": -500.0})
    text = say(results, statistics.over_environments(results.normalised()))
    assert "Highest final score in an environment: an exact tie of a and b on CartPole-v1 and Acrobot-v1." in text
    assert "is an exact tie between a (1.00 [1.00, 1.00]) and b (1.00 [1.00, 1.00])." in text
    assert "has the highest" not in text
    (row, _) = report.main_table(results, None, summary.rank_environments(results)).rows
    assert [cell.startswith("**500.0**") for cell in row[1:]] == [True, True, False, False]


def test_means_that_differ_by_rounding_are_a_tie():
    scores = {"a": [0.7] * 2, "b": [0.7] * 3}
    estimates = {name: statistics.mean_with_interval(values) for name, values in scores.items()}
    assert estimates["a"].value != estimates["b"].value
    assert summary.rank(estimates, statistics.compare_means(scores), statistics.LEVEL).leaders == ["a", "b"]


def test_the_steps_that_were_taken_are_said(results):
    runs = results.runs.copy()
    runs.loc[(runs["algorithm"] == "ppo") & (runs["seed"] == 1), "steps"] = 1330
    results = results._replace(runs=runs)
    assert "1,000 environment steps each (up to 1,330 were taken)." in summary.describe_extent(results)
    steps = [(row[1], row[-1]) for row in report.other_scores_table(results).rows if row[0] == "CartPole-v1"]
    assert steps == [("reinforce", "1,000"), ("ppo", "1,000 to 1,330")]


@pytest.mark.usefixtures("without_figures")
def test_time_limits_unbounded_intervals_and_all_headings_are_there(results, tmp_path):
    settings = results.settings._replace(time_limits={"CartPole-v1": 10_000, "Acrobot-v1": 10_000})
    limited = results._replace(settings=settings, longest_episodes={"CartPole-v1": 10_000, "Acrobot-v1": 9_999})
    report.write_report(tmp_path, limited, [], {})
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "CartPole-v1 is registered without a time limit: evaluation episodes end after 10,000 steps" in text
        assert "Acrobot-v1 is registered" not in text
        assert "know no bounds" in text
    headings = re.findall(r'<th scope="col">(.*?)</th>', (tmp_path / "report.html").read_text())
    assert len(headings) > 15
    assert all(headings)


@pytest.mark.parametrize(
    ("scores", "n_environments"),
    [
        ((-101.0, -100.75, -100.1), 1),
        ((0.001, 0.0012, 0.0013), 2),
        ((-17_000.0, 12_345.0, 1.0), 4),
        ((500.0, 500.0, 500.0), 1),
        ((1e6, 1.000001e6), 3),
    ],
)
def test_no_text_touches_another_or_sticks_out(tmp_path, scores, n_environments):
    names = ("an-algorithm-with-quite-a-long-name", "ppo", "a2c", "trpo", "dqn")
    env_ids = ["sb3_reinforce/AliasedGridworld-v0", *(f"Environment{index}-v0" for index in range(1, n_environments))]
    results = make_results(tmp_path, {(env_id, name): scores for env_id in env_ids for name in names})
    random_scores = {env_id: min(scores) - 1.0 for env_id in env_ids}
    results = results._replace(random_scores=random_scores)
    overall = statistics.over_environments(results.normalised())
    with plots.style():
        drawn = list(figures.draw_all(results, overall))
    assert len(drawn) == 6 + (n_environments > 1)
    for name, _, wide, narrow in drawn:
        assert narrow.get_figwidth() <= plots.NARROW < wide.get_figwidth() <= plots.WIDE + 1e-6
        for figure in (wide, narrow):
            assert find_faults(figure) == [], name


def test_one_exploding_run_flattens_no_curve():
    rng = np.random.default_rng(0)
    good = [[np.linspace(-200.0, 250.0, 20) + rng.normal(0.0, 10.0, 20) for _ in range(3)] for _ in range(6)]
    low, high = figures.robust_limits(good)
    every = np.concatenate([own for runs in good for own in runs])
    assert (low, high) == (every.min(), every.max())
    for index, value in ((0, -1e6), (2, 1e6)):
        stretched = [[own.copy() for own in runs] for runs in good]
        stretched[3][index][10:] = value
        for scores in (stretched, [*stretched[:3], stretched[3][:2] if index < 2 else stretched[3][1:]]):
            low, high = figures.robust_limits(scores)
            assert low <= -190.0 and high >= 240.0
            assert high - low < 3.5 * 450.0
    # A single seed of each: low scores cannot stretch the chart, and the highest ones are what a comparison is about
    low, high = figures.robust_limits([[runs[0]] for runs in good[:5]] + [[np.full(20, -1e6)]])
    assert high - low < 3.5 * 450.0
    assert figures.robust_limits([[np.array([0.0, 1.0])], [np.array([0.0, 100.0])]]) == (0.0, 100.0)
    assert figures.robust_limits([[np.full(3, 5.0)]]) == (5.0, 5.0)


@pytest.mark.parametrize("n_seeds", [4, 5])
def test_few_seeds_are_thin_lines(tmp_path, n_seeds):
    results = make_results(tmp_path, {("CartPole-v1", name): range(n_seeds) for name in ("ppo", "a2c")})
    figure = figures.learning_curves(results, plots.make_styles(["ppo", "a2c"]), "steps", plots.WIDE)
    (axes,) = figure.axes
    assert len(axes.lines) == (2 if n_seeds == 5 else 2 + 2 * 4)
    assert len(axes.collections) == (2 if n_seeds == 5 else 0)
    assert axes.get_legend() is None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ppo", "a2c"]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("Traceback (most recent call last):\n  File x\nValueError: first\nsecond line\nbye", "ValueError: first"),
        (
            "Traceback (most recent call last):\n  a\nKeyError: 1\n\nDuring handling of the above exception, another "
            "exception occurred:\n\nTraceback (most recent call last):\n  b\nmy.Error: why\n\n  note",
            "my.Error: why",
        ),
        (
            "Traceback (most recent call last):\n  a\nValueError: why\nException ignored in: <function f>\n"
            "Traceback (most recent call last):\n  b\nAttributeError: late",
            "ValueError: why",
        ),
        ("usage: x\nx: error: y\n", "x: error: y"),
        ("", "nothing printed"),
    ],
)
def test_the_reason_is_the_last_exception(log, expected):
    assert run_files.explain_failure(1, log) == f"exit status 1: {expected}"
    assert run_files.explain_failure(-9, log) == "ended by signal 9"


def test_a_report_of_failed_runs_alone(tmp_path, settings):
    write_result(tmp_path, Task("CartPole-v1", RANDOM, 0), 20.0)
    for seed, log in enumerate(["Traceback (most recent call last):\n  a\nValueError: why\nbye", "interrupted"]):
        folder = tmp_path / Task("CartPole-v1", "ppo", seed).folder
        folder.mkdir(parents=True)
        (folder / "output.log").write_text(log)
    report.write_report(tmp_path, read_results(tmp_path, settings, {"CartPole-v1": 475.0}), ["--env", "x"], {})
    markdown = (tmp_path / "report.md").read_text()
    assert markdown.startswith("# reinforce and ppo compared\n\nreinforce and ppo on CartPole-v1 and Acrobot-v1, 3 seeds, ")
    assert "No run is finished" in markdown
    assert "| ppo on CartPole-v1, seed 0 | ValueError: why (runs/CartPole-v1/ppo/seed0/output.log) |" in markdown
    assert "| ppo on CartPole-v1, seed 1 | not done yet (runs/CartPole-v1/ppo/seed1/output.log) |" in markdown
    assert "| ppo on CartPole-v1, seed 2 | not done yet |" in markdown
    assert "## Final scores" not in markdown
    assert "n_envs: 1" in markdown
    assert "ValueError: why" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("without_figures")
def test_report_of_one_seed(results, tmp_path):
    one = results._replace(
        settings=results.settings._replace(seeds=[0]),
        runs=results.runs[results.runs["seed"] == 0],
        curves=results.curves[results.curves["seed"] == 0],
    )
    report.write_report(tmp_path, one, [], {})
    markdown = (tmp_path / "report.md").read_text()
    assert "nan" not in markdown
    assert "| CartPole-v1 | **400.0** | 100.0 ≈ | 20.0 |" in markdown
    assert "| CartPole-v1 | reinforce | 400.0 | 390.0 | 405.0 | 1,000 |" in markdown


def test_report_files(results, tmp_path):
    report.write_report(tmp_path, results, ["--env", "CartPole-v1", "Acrobot-v1"], {})
    runs, curves = pd.read_csv(tmp_path / "results.csv"), pd.read_csv(tmp_path / "curves.csv")
    assert len(runs) == 12
    assert len(curves) == 36
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for text in (markdown, page):
        assert "sb3-reinforce compare --env CartPole-v1 Acrobot-v1" in text
        assert "n_envs: 1" in text
        assert "[385.2, 434.8]" in text
    figures = sorted((tmp_path / "figures").iterdir())
    assert {path.suffix for path in figures} == {".png", ".svg"}
    names = {"steps", "seconds", "final", "iqm", "aggregates", "profile", "improvement"}
    assert {path.stem for path in figures} == names
    assert len(figures) == 14
    assert all(f"figures/{path.name}" in markdown for path in figures if path.suffix == ".png")
    # Each for wide and for narrow screens
    assert page.count("<img ") == 7
    assert page.count("data:image/svg+xml;base64,") == 14
    assert 'src="figures' not in page
    # The table comes first, then the figure, then what is found
    order = [page.index(part) for part in ("<table", "<img", "<ul>", "Learning curves")]
    assert order == sorted(order)


def test_report_in_a_browser(results, tmp_path, browser):
    report.write_report(tmp_path, results, ["--env", "CartPole-v1", "Acrobot-v1"], {})
    for width in (360, 1280):
        open_page(browser, tmp_path / "report.html", width)
        assert len(browser.find_elements("css selector", "figure img")) == 7
        assert [cell.text for cell in browser.find_elements("css selector", ".main strong")] == ["410.0", "-95.0", "0.96"]


@pytest.mark.usefixtures("without_figures")
def test_report_names_what_is_missing(results, tmp_path):
    (tmp_path / Task("Acrobot-v1", "ppo", 2).folder / "result.json").unlink()
    incomplete = read_results(tmp_path, results.settings, {})
    report.write_report(tmp_path, incomplete, [], {"ppo on Acrobot-v1, seed 2": "exit status 1: boom"})
    markdown = (tmp_path / "report.md").read_text()
    assert "Missing runs: 1 " in markdown
    assert "| ppo on Acrobot-v1, seed 2 | exit status 1: boom |" in markdown
    # Statistics over environments need the same seeds in all of them
    assert {name: len(matrix) for name, matrix in incomplete.normalised().items()} == {"reinforce": 3, "ppo": 2}


def test_equal_results_make_equal_files(results, tmp_path):
    report.write_report(tmp_path, results, [], {})
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    report.write_report(tmp_path, results, [], {})
    assert all(path.read_bytes() == content for path, content in first.items())
