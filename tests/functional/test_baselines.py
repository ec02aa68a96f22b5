"""Baselines against closed forms and against slow, obvious loops on random episode layouts."""

import warnings

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from test_returns import episodes, split
from torch import distributions

from sb3_reinforce.functional.baselines import (
    BASELINES,
    Baseline,
    Episodes,
    LinearBaseline,
    MovingAverageBaseline,
    compute_baseline,
    episode_means,
    greedy_baseline,
    group_baseline,
    join_distributions,
    join_episodes,
    leave_one_out_baseline,
    linear_features,
    make_baseline,
    mean_baseline,
    name_of,
    optimal_baseline,
    ridge_regression,
    select_episodes,
    time_step_baseline,
)

LENGTHS = np.array([1, 3, 2])
RETURNS = np.array([4.0, 1.0, 2.0, 3.0, 10.0, 20.0])


def test_closed_forms():
    np.testing.assert_allclose(episode_means(RETURNS, LENGTHS), [4, 2, 15])
    np.testing.assert_allclose(mean_baseline(RETURNS, LENGTHS), [7] * 6)
    np.testing.assert_allclose(leave_one_out_baseline(RETURNS, LENGTHS), [8.5, 9.5, 9.5, 9.5, 3, 3])
    # Nobody else is there at step 2 of the second episode: the mean of the other episodes stands in
    np.testing.assert_allclose(time_step_baseline(RETURNS, LENGTHS), [5.5, 7, 20, 9.5, 2.5, 2])


@given(episodes())
def test_mean_baseline(layout):
    lengths, returns = layout
    slow = np.mean([np.mean(own) for own in split(returns, lengths)])
    np.testing.assert_allclose(mean_baseline(returns, lengths), slow, atol=1e-9)


@given(episodes().filter(lambda layout: len(layout[0]) > 1))
def test_leave_one_out_baseline(layout):
    lengths, returns = layout
    own = split(returns, lengths)
    slow = [np.mean([np.mean(own[j]) for j in range(len(own)) if j != i]) for i in range(len(own)) for _ in own[i]]
    np.testing.assert_allclose(leave_one_out_baseline(returns, lengths), slow, atol=1e-9)


@given(episodes().filter(lambda layout: len(layout[0]) > 1))
def test_time_step_baseline(layout):
    lengths, returns = layout
    own = split(returns, lengths)
    slow = []
    for i in range(len(own)):
        others = [own[j] for j in range(len(own)) if j != i]
        for t in range(len(own[i])):
            at_same_time = [other[t] for other in others if len(other) > t]
            slow.append(np.mean(at_same_time) if at_same_time else np.mean([np.mean(other) for other in others]))
    np.testing.assert_allclose(time_step_baseline(returns, lengths), slow, atol=1e-9)


@given(episodes().filter(lambda layout: len(layout[0]) > 1), st.integers(0, 5), st.floats(-100, 100))
def test_an_episode_never_sees_its_own_return(layout, which, change):
    lengths, returns = layout
    which %= len(lengths)
    own = np.repeat(np.arange(len(lengths)), lengths) == which
    changed = np.where(own, returns + change, returns)
    for baseline in (leave_one_out_baseline, time_step_baseline):
        np.testing.assert_allclose(baseline(changed, lengths)[own], baseline(returns, lengths)[own], atol=1e-9)


# The class, and the baselines that it makes instances of


def make_episodes(lengths, returns, **more):
    return Episodes(np.zeros(len(returns)), np.asarray(lengths), returns=np.asarray(returns, float), **more)


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ("value", "optimal", "greedy", "group", "linear")])
def test_every_name_makes_a_baseline_that_gives_a_number_for_each_step(name):
    subtracted = compute_baseline(make_baseline(name), make_episodes(LENGTHS, RETURNS))
    assert subtracted.shape == (6,) and subtracted.dtype == np.float64


def test_moving_average_is_that_of_past_rollouts():
    baseline = MovingAverageBaseline(decay=0.5)
    episodes = make_episodes(LENGTHS, RETURNS)  # mean over episodes: 7
    np.testing.assert_allclose(baseline(episodes), [0] * 6)
    baseline.fit(episodes)
    np.testing.assert_allclose(baseline(episodes), [7] * 6)
    baseline.fit(make_episodes([1], [1.0]))
    # 0.5 * 0.5 * 7 + 0.5 * 1, divided by the weights that there are, 0.75
    np.testing.assert_allclose(baseline(episodes), [3] * 6)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), not 1"):
        MovingAverageBaseline(1)


def test_linear_features():
    observations, steps = np.array([[1.0, -20.0], [0.5, 3.0]]), np.array([0, 50])
    np.testing.assert_allclose(
        linear_features(observations, steps), [[1, -10, 1, 100, 0, 0, 0, 1], [0.5, 3, 0.25, 9, 0.5, 0.25, 0.125, 1]]
    )
    in_parts = linear_features({"a": observations[:, :1], "b": observations[:, 1]}, steps)
    np.testing.assert_allclose(in_parts, linear_features(observations, steps))


@pytest.mark.parametrize("n_features", [3, 30])
def test_ridge_regression_is_at_its_minimum(n_features):
    rng = np.random.default_rng(0)
    features, targets, regularization = rng.normal(size=(10, n_features)), rng.normal(size=10), 0.3
    x = ridge_regression(features, targets, regularization)
    np.testing.assert_allclose(features.T @ (features @ x - targets) + regularization * x, 0.0, atol=1e-9)


def test_linear_is_exact_on_what_is_linear_and_subtracts_nothing_before():
    rng, lengths = np.random.default_rng(0), np.array([30, 20])
    observations = rng.normal(size=(50, 2))
    returns = 2.0 + observations @ [1.0, -1.0] + observations[:, 0] ** 2 - np.concatenate([np.arange(30), np.arange(20)]) / 10
    episodes = make_episodes(lengths, returns, observations=observations)
    baseline = LinearBaseline()
    np.testing.assert_allclose(baseline(episodes), 0.0)
    baseline.fit(episodes)
    np.testing.assert_allclose(baseline(episodes), returns, atol=1e-3)


def test_optimal_baseline_is_the_constant_of_least_variance_of_the_others():
    products = np.array([[6.0, 2.0], [1.0, 1.0], [0.0, 4.0]])
    np.testing.assert_allclose(optimal_baseline(products, LENGTHS), [1 / 5, 1, 1, 1, 7 / 3, 7 / 3])
    np.testing.assert_allclose(optimal_baseline(np.zeros((3, 2)), LENGTHS), 0.0)


def test_group_baseline_compares_what_began_alike():
    lengths, starts = np.array([1, 3, 2, 2]), np.array([1, 0, 1, 2])
    returns = np.array([4.0, 1.0, 2.0, 3.0, 10.0, 20.0, 5.0, 5.0])
    # Nobody else is in the groups of the second and the last; at step 1 of the third only the mean of the first is left
    np.testing.assert_allclose(group_baseline(returns, lengths, starts, True), [10, 0, 0, 0, 4, 4, 0, 0])
    np.testing.assert_allclose(group_baseline(returns, lengths, starts, False), [15, 0, 0, 0, 4, 4, 0, 0])


def test_greedy_baseline_is_the_return_of_the_deterministic_episode():
    greedy_returns, greedy_lengths = np.array([3.0, 2.0, 9.0]), np.array([2, 1])
    lengths, starts = np.array([3, 2]), np.array([0, 1])
    np.testing.assert_allclose(greedy_baseline(greedy_returns, greedy_lengths, starts, lengths), [3, 2, 2.5, 9, 9])


def test_the_deterministic_returns_are_discounted_as_the_others():
    episodes = make_episodes([1], [0.0], greedy_rewards=np.array([1.0, 2.0, 4.0]), greedy_lengths=np.array([2, 1]), gamma=0.5)
    np.testing.assert_allclose(episodes.greedy_returns, [2, 2, 4])
    np.testing.assert_allclose(episodes.replace(return_type="episode").greedy_returns, [2, 2, 4])


# What a baseline of the user's may do wrong


class Wrong(Baseline):
    def __init__(self, what="shape"):
        self.what = what

    def __call__(self, episodes):
        if self.what == "writes":
            episodes.rewards[0] = 1.0
        if self.what == "writes to a dict":
            episodes.observations["a"] += 1.0
        if self.what == "fails":
            raise ValueError("of its own")
        if self.what in ("nan", "inf"):
            return np.where(np.arange(len(episodes.rewards)) == 2, float(self.what), episodes.returns)
        return np.zeros(2) if self.what == "shape" else episodes.returns


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("shape", r"baseline test_baselines:Wrong gave numbers of shape \(2,\), but there are 6 steps"),
        ("nan", "baseline test_baselines:Wrong gave nan at step 2 of 6: it must be finite"),
        ("inf", "baseline test_baselines:Wrong gave inf at step 2 of 6: it must be finite"),
        ("writes", "baseline test_baselines:Wrong changes the episodes that it is given: copy them first"),
        ("writes to a dict", "baseline test_baselines:Wrong changes the episodes that it is given: copy them first"),
        ("fails", "of its own"),
    ],
)
def test_a_wrong_baseline_is_named(what, message):
    with pytest.raises(ValueError, match=message):
        compute_baseline(Wrong(what), make_episodes(LENGTHS, RETURNS, observations={"a": np.zeros((6, 2))}))


def test_a_tensor_of_what_cannot_be_written_to_raises_no_warning():
    class OnTensors(Baseline):
        def __call__(self, episodes):
            return th.as_tensor(episodes.returns).numpy() * 0.5

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(compute_baseline(OnTensors(), make_episodes(LENGTHS, RETURNS)), RETURNS / 2)


@pytest.mark.parametrize("path", ["test_baselines:Wrong", "test_baselines.Wrong"])
def test_a_class_path_makes_an_instance(path):
    assert isinstance(make_baseline(path), Wrong)
    assert name_of(make_baseline(path)) == "test_baselines:Wrong"


class NeedsArgument(Baseline):
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, episodes):
        return np.zeros(len(episodes.returns))


class SaysNothing(Baseline):
    """Lacks the method that gives the numbers."""


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("best", r"baseline must be one of 'value', .* class path like 'my_module:MyBaseline'.* not 'best'"),
        (3, "baseline must be one of .* not 3"),
        (Wrong, r"baseline must be an instance, not the class Wrong: make one, Wrong\(\)"),
        ("no_such_module:Best", "baseline='no_such_module:Best' cannot be imported: No module named 'no_such_module'"),
        ("test_baselines:Best", "baseline='test_baselines:Best' cannot be imported: .*has no attribute 'Best'"),
        ("numpy:ndarray", "baseline='numpy:ndarray' is no class derived from sb3_reinforce.functional.baselines.Baseline"),
        ("test_baselines:NeedsArgument", "baseline='test_baselines:NeedsArgument' cannot be made without arguments: .*weight"),
        ("test_baselines:SaysNothing", "baseline='test_baselines:SaysNothing' cannot be made without arguments: .*__call__"),
        (":", "baseline must be one of"),
        ("a:", "baseline must be one of"),
    ],
)
def test_what_is_no_baseline_is_refused(baseline, message):
    with pytest.raises(ValueError, match=message):
        make_baseline(baseline)


# Putting episodes together and taking them apart


@pytest.mark.parametrize("kind", ["Categorical", "Bernoulli", "Normal", "list"])
def test_joined_and_selected_episodes(kind):
    def distribution(n):
        if kind == "Normal":
            return distributions.Normal(th.arange(2.0 * n).reshape(n, 2), th.ones(n, 2))
        if kind == "list":
            return [distributions.Categorical(logits=th.arange(k * n).reshape(n, k).float()) for k in (2, 3)]
        return getattr(distributions, kind)(logits=th.arange(2.0 * n).reshape(n, 2))

    def part(lengths, seed, starts):
        n, rng = sum(lengths), np.random.default_rng(seed)
        return Episodes(
            rng.normal(size=n),
            np.array(lengths, dtype=int),
            observations={"a": rng.normal(size=(n, 2))},
            distribution=distribution(n) if n else None,
            score_products=rng.normal(size=(len(lengths), 2)),
            starts=np.array(starts, dtype=int),
        )

    first, none, last = part([2, 1], 0, [0, 1]), part([], 1, []), part([3], 2, [0])
    joined = join_episodes([first, none, last])
    assert joined.lengths.tolist() == [2, 1, 3] and joined.starts.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(joined.rewards, np.concatenate([first.rewards, last.rewards]))
    picked = select_episodes(joined, [2, 0])
    assert picked.lengths.tolist() == [3, 2] and picked.starts.tolist() == [2, 0]
    np.testing.assert_array_equal(
        picked.observations["a"], np.concatenate([last.observations["a"], first.observations["a"][:2]])
    )
    np.testing.assert_array_equal(picked.score_products, joined.score_products[[2, 0]])
    own = picked.distribution if kind == "list" else [picked.distribution]
    expected = last.distribution if kind == "list" else [last.distribution]
    for mine, other in zip(own, expected, strict=True):
        # A Categorical has no mean
        name = "mean" if kind == "Normal" else "probs"
        th.testing.assert_close(getattr(mine, name)[:3], getattr(other, name))


def test_a_distribution_of_another_kind_is_refused():
    with pytest.raises(
        ValueError, match="needs_distribution: a baseline can have a Categorical, Bernoulli or Normal, not Beta"
    ):
        join_distributions([distributions.Beta(th.ones(2), th.ones(2))])
