"""Baselines against closed forms and against slow, obvious loops on random episode layouts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_returns import episodes, split

from sb3_reinforce.functional.baselines import episode_means, leave_one_out_baseline, mean_baseline, time_step_baseline

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
