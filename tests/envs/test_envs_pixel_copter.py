"""PixelCopter is the game of the PyGame Learning Environment: it replays what was recorded from the original."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from sb3_reinforce.envs.pixel_copter import NOTHING, OBSERVATION_NAMES, THRUST, TIME_LIMIT

RECORDED = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "pixelcopter_trace.json.gz").read_bytes()))


class RecordedDraws:
    """In place of a generator: the numbers that the original drew, if they are asked for within the same bounds."""

    def __init__(self, draws):
        self.draws = draws
        self.n_used = 0

    def integers(self, low, high):
        return self._next("integer", low, high)

    def uniform(self, low, high):
        return self._next("uniform", low, high)

    def _next(self, *asked):
        *recorded, value = self.draws[self.n_used]
        self.n_used += 1
        assert list(asked) == recorded
        return value


class CountedDraws:
    """A generator that notes what it was asked for."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.asked = []

    def integers(self, low, high):
        self.asked.append((low, high))
        return self.rng.integers(low, high)

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.rng.uniform(low, high)


def make():
    return gym.make("sb3_reinforce/PixelCopter-v0").unwrapped


@pytest.mark.parametrize("episode", RECORDED["episodes"], ids=lambda episode: f"seed {episode['seed']}")
def test_it_replays_the_original(episode):
    env = make()
    env.np_random = draws = RecordedDraws(episode["draws"])
    observation, _ = env.reset()
    states, observations, rewards, ends, used = [env._state()], [observation], [], [], [draws.n_used]
    for action in episode["actions"]:
        observation, reward, terminated, truncated, _ = env.step(action)
        assert not truncated
        states.append(env._state())
        observations.append(observation)
        rewards.append(reward)
        ends.append(terminated)
        used.append(draws.n_used)
    assert [[round(value, 6) for value in state] for state in states] == episode["observations"]
    assert rewards == episode["rewards"]
    assert ends == episode["terminated"]
    assert used == episode["draws_before_step"], "the same draws at the same steps"
    assert draws.n_used == len(draws.draws)
    np.testing.assert_array_equal(observations, np.array(states, dtype=np.float32))


def test_the_record_is_whole():
    assert len(RECORDED["episodes"]) == 24
    assert sum(len(episode["observations"]) for episode in RECORDED["episodes"]) == 1711
    assert tuple(RECORDED["observation"]) == OBSERVATION_NAMES


def test_terrain_and_blocks_never_end():
    """Further than any recorded episode: a ghost that stays in the middle and cannot crash."""
    env = make()
    env.np_random = draws = CountedDraws(seed=0)
    env.reset()
    assert len(draws.asked) == 2 + 1 + 48
    draws.asked.clear()
    n_steps, earned, n_columns = 3_000, 0.0, []
    for _ in range(n_steps):
        env._y, env._velocity = 24.0, 0.0
        n_columns.append(len(env._column_xs))
        observation, reward, terminated, _, _ = env.step(NOTHING)
        earned += reward + 5.0 * terminated
        assert 1 <= len(env._passages) <= 3
        assert 0 < observation[4] < 72 - 16, "there is a block ahead"
        assert env.observation_space.contains(observation)
        assert env._column_xs == sorted(env._column_xs)
        assert env._column_xs[-1] > 48 - 4, "no gap on the right"
    stretches = draws.asked.count((-0.01, 0.01))
    assert stretches == sum(after > before for before, after in pairwise(n_columns)) >= 5
    assert max(n_columns) == 13 + 48 and min(n_columns) == 14
    assert draws.asked.count((0.0, 0.5)) == 48 * stretches
    n_blocks = draws.asked.count((48, 72))
    assert n_blocks == draws.asked.count((12, 36))
    # A block comes 32 to 56 pixels ahead of the player, a column every 4 pixels or fewer: .64 pixels per step
    assert n_steps * 0.64 / 56 - 1 < n_blocks < n_steps * 0.64 / 32 + 1
    n_passed_columns = earned - n_blocks
    assert n_passed_columns == 48 + 48 * stretches - len(env._column_xs)


def test_a_seed_is_a_flight():
    flights = []
    for seed in (1, 1, 2):
        env = make()
        observations = [env.reset(seed=seed)[0]]
        actions = np.random.default_rng(0).random(20) < 0.1
        observations += [env.step(int(action))[0] for action in actions]
        flights.append(np.array(observations))
    np.testing.assert_array_equal(flights[0], flights[1])
    assert (flights[0] != flights[2]).any()


def test_thrust_lifts_and_nothing_lets_it_sink():
    env = make()
    env.reset(seed=0)
    assert env.step(THRUST)[0][0] < 24.0
    env.reset(seed=0)
    assert env.step(NOTHING)[0][0] > 24.0


def test_time_limit_as_registered():
    assert gym.spec("sb3_reinforce/PixelCopter-v0").max_episode_steps == TIME_LIMIT
    assert gym.make("sb3_reinforce/PixelCopter-v0", max_episode_steps=5).spec.max_episode_steps == 5


def test_render_shows_helicopter_terrain_and_block():
    env = gym.make("sb3_reinforce/PixelCopter-v0", render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    env._blocks = [(30.0, 20)]
    image = env.render()
    assert image.shape == (384, 384, 3)
    assert (image[24 * 8, 16 * 8] == 255).all()
    assert (image[20 * 8, 30 * 8] == 160).all()
    assert (image[0, 0] == image[383, 0]).all() and image[0, 0, 1] > image[0, 0, 0]
    assert (image[24 * 8, 40 * 8] == 0).all()
    env._y, env._blocks = -3.0, [(-3.9, 20)]
    image = env.render()
    assert not (image == 255).all(axis=2).any(), "the helicopter is above the picture"
    assert not (image == 160).all(axis=2).any(), "the block has left it"
