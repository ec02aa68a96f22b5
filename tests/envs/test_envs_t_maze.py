"""TMaze: exactly 0 for memoryless policies, 1 for recurrent ones, and masks from three sources."""

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce.envs.t_maze import (
    CORRIDOR,
    CUE_LEFT,
    CUE_RIGHT,
    FORWARD,
    JUNCTION,
    LEFT,
    RIGHT,
    TMazeEnv,
    best_memoryless_return,
    best_return,
)


def start_with(env, cue):
    for _ in range(200):
        observation, _ = env.reset()
        seen = observation["observation"] if isinstance(observation, dict) else observation
        if seen[cue] == 1.0:
            return observation
    pytest.fail(f"no episode of 200 shows cue {cue}")


def exact_return(policy, length, masks, gamma=1.0):
    """Mean over both cues of the memoryless policy (rows: observations) by running all sequences of actions."""
    env = TMazeEnv(length, masks)

    def follow(cue, actions):
        observation, reward, terminated, truncated = start_with(env, cue), 0.0, False, False
        for action in actions:
            observation, reward, terminated, truncated, _ = env.step(action)
        discounted = gamma ** max(len(actions) - 1, 0) * reward
        if terminated or truncated:
            return discounted
        probabilities = policy[int(np.argmax(observation))]
        return discounted + sum(probabilities[a] * follow(cue, [*actions, a]) for a in range(3) if probabilities[a] > 0)

    return (follow(CUE_LEFT, []) + follow(CUE_RIGHT, [])) / 2


@pytest.mark.parametrize("masks", [None, "method"])
@pytest.mark.parametrize("length", [1, 2])
def test_best_deterministic_memoryless_policy_earns_zero(length, masks):
    returns = [exact_return(np.eye(3)[list(choice)], length, masks) for choice in np.ndindex(3, 3, 3, 3)]
    assert max(returns) == best_memoryless_return() == 0.0
    if masks is None:
        assert set(returns) == {0.0}, "every memoryless policy, not only the best"


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_every_stochastic_memoryless_policy_earns_zero_whatever_the_time_limit_cuts(gamma):
    rng = np.random.default_rng(0)
    for _ in range(5):
        policy = rng.dirichlet(np.ones(3), size=4)
        assert exact_return(policy, 1, None, gamma) == pytest.approx(0.0, abs=1e-12)
    # Dawdling at the start for one cue only must not pay either: the corridor often lasts until the limit here
    dawdler = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0, 1, 0]])
    assert exact_return(dawdler, 2, None, gamma) == pytest.approx(0.0, abs=1e-12)


def test_without_memory_or_masks_forbidden_moves_cost_the_episode():
    uniform = np.full((4, 3), 1 / 3)
    # Forward is one of three, twice; at the junction two of three are allowed, and of these one is right
    assert exact_return(uniform, 2, "method") == pytest.approx(-(1 - (1 / 3) ** 2) - (1 / 3) ** 2 / 3)


@pytest.mark.parametrize("masks", [None, "method", "observation"])
@pytest.mark.parametrize("length", [1, 2, 10, 50])
def test_with_memory_the_best_policy_earns_one(length, masks):
    env = gym.make("sb3_reinforce/TMaze-v0", length=length, masks=masks).unwrapped
    env.reset(seed=0)
    for cue, turn in ((CUE_LEFT, LEFT), (CUE_RIGHT, RIGHT)):
        start_with(env, cue)
        for _ in range(length):
            assert env.step(FORWARD)[1:4] == (0.0, False, False)
        assert env.step(turn)[1:4] == (1.0, True, False)
        start_with(env, cue)
        for _ in range(length):
            env.step(FORWARD)
        assert env.step(LEFT + RIGHT - turn)[1:4] == (-1.0, True, False)
    assert best_return(length) == 1.0
    assert best_return(length, gamma=0.5) == 0.5**length


def test_the_cue_is_in_the_first_observation_only():
    env = TMazeEnv(length=3)
    env.reset(seed=0)
    for cue in (CUE_LEFT, CUE_RIGHT):
        places = [np.argmax(start_with(env, cue))]
        for action in (LEFT, RIGHT, FORWARD, LEFT, FORWARD, FORWARD):
            observation, *_ = env.step(action)
            assert observation.sum() == 1.0
            places.append(np.argmax(observation))
        assert places == [cue, CORRIDOR, CORRIDOR, CORRIDOR, CORRIDOR, JUNCTION, JUNCTION]


def test_both_cues_are_as_likely():
    env = TMazeEnv()
    env.reset(seed=0)
    assert np.mean([env.reset()[0][CUE_LEFT] for _ in range(4_000)]) == pytest.approx(0.5, abs=0.03)


def test_time_limit_leaves_the_uniform_policy_time_enough():
    env = TMazeEnv(length=10)
    env.reset(seed=0)
    assert env.time_limit == 44
    for _ in range(43):
        assert env.step(LEFT)[1:4] == (0.0, False, False)
    assert env.step(LEFT)[1:4] == (0.0, False, True)
    rng = np.random.default_rng(0)
    arrived = []
    for _ in range(300):
        env.reset()
        over = False
        while not over:
            _, _, terminated, truncated, _ = env.step(rng.integers(3))
            over = terminated or truncated
        arrived.append(terminated)
    assert np.mean(arrived) > 0.9


def test_masks_by_the_method_of_sb3_contrib():
    env = make_vec_env("sb3_reinforce/TMaze-v0", n_envs=2, env_kwargs={"length": 1, "masks": "method"}, seed=0)
    assert is_masking_supported(env)
    env.reset()
    np.testing.assert_array_equal(get_action_masks(env), [[True, False, False]] * 2)
    env.step(np.array([FORWARD, FORWARD]))
    np.testing.assert_array_equal(get_action_masks(env), [[False, True, True]] * 2)


@pytest.mark.parametrize("masks", [None, "observation"])
def test_no_method_where_none_was_asked_for(masks):
    assert not is_masking_supported(make_vec_env("sb3_reinforce/TMaze-v0", env_kwargs={"masks": masks}))


def test_masks_in_the_observation():
    env = TMazeEnv(length=2, masks="observation")
    observation, _ = env.reset(seed=0)
    for allowed in ([1, 0, 0], [1, 0, 0], [0, 1, 1]):
        np.testing.assert_array_equal(observation["action_mask"], allowed)
        assert observation["observation"].shape == (4,)
        observation, *_ = env.step(FORWARD)


@pytest.mark.parametrize("masks", ["method", "observation"])
def test_a_forbidden_move_ends_the_episode(masks):
    env = TMazeEnv(length=2, masks=masks)
    for n_forward, action in ((0, LEFT), (1, RIGHT), (2, FORWARD)):
        env.reset(seed=0)
        for _ in range(n_forward):
            env.step(FORWARD)
        assert env.step(action)[1:4] == (-1.0, True, False)


@pytest.mark.parametrize("length", [0, -3, 1.5])
def test_length_must_be_a_positive_whole_number(length):
    with pytest.raises(ValueError, match=rf"^length must be a whole number of at least 1, not {length}$"):
        TMazeEnv(length=length)


@pytest.mark.parametrize("masks", ["info", True, ""])
def test_masks_must_be_known(masks):
    with pytest.raises(ValueError, match=r"^masks must be one of None, 'method', 'observation', not "):
        TMazeEnv(masks=masks)
