"""Behaviour cloning: the pseudo-loss with unit weights, demonstrations of any algorithm, a warm start."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from helpers import ACTION_PROBABILITIES, CueEnv, FixedLengthEnv, SilentEnv, linear_model
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from test_action_masks import SOURCES, MethodEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.envs import diamond_hill
from sb3_reinforce.lab import clone, demonstrate, measure
from sb3_reinforce.lab import cloning as cloning_module
from sb3_reinforce.lab.cloning import as_batch, minibatches, unit_weights
from sb3_reinforce.lab.collect import MAX_EPISODE_STEPS
from sb3_reinforce.update.evaluator import PolicyEvaluator
from sb3_reinforce.update.policy_step import compute_gradient


class Rule:
    """A hand-made expert for CartPole-v1."""

    @staticmethod
    def act(observations):
        return (observations[..., 2] + 0.3 * observations[..., 3] + 0.05 * observations[..., 1] > 0).astype(np.int64)


@pytest.fixture(scope="module")
def expert():
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, n_steps=64, device="cpu")
    model.predict = lambda observation, state=None, start=None, deterministic=True: (Rule.act(observation), None)
    return model


@pytest.fixture(scope="module")
def demonstrations(expert):
    return demonstrate(expert, make_vec_env("CartPole-v1", 2), 6)


def test_the_loss_is_the_policy_gradients_with_weights_1():
    model = linear_model(baseline=None)
    paths = diamond_hill.enumerate_paths(ACTION_PROBABILITIES)
    observations = np.concatenate([path.observations for path in paths])
    actions = np.concatenate([path.actions for path in paths])
    batch = as_batch(model, observations, actions, np.array([len(path.actions) for path in paths]))
    gradient = compute_gradient(PolicyEvaluator(model.policy, 3), batch, unit_weights(batch), ent_coef=0.0)
    mine = th.cat([parameter.grad.flatten() for parameter in gradient.parameters])

    # The mean log-likelihood, differentiated by PyTorch alone
    log_prob = model.policy.get_distribution(th.as_tensor(observations)).log_prob(th.as_tensor(actions))
    its = th.cat([part.flatten() for part in th.autograd.grad(-log_prob.mean(), gradient.parameters)])
    np.testing.assert_allclose(mine, its, atol=1e-6)
    assert gradient.policy_loss == pytest.approx(-float(log_prob.detach().mean()), rel=1e-5)

    # What train() computes if every advantage is 1: a return of 1 at every step, mean over steps
    one_each = [path._replace(rewards=np.eye(1, len(path.actions), len(path.actions) - 1)[0]) for path in paths]
    buffer = model.rollout_buffer
    model.gamma = 1.0
    buffer.reset()
    for path in one_each:
        for observation, action, reward in zip(path.observations, path.actions, path.rewards, strict=True):
            buffer.add(observation[None], np.array([action]), np.array([reward]))
        buffer.finish_episode(0)
    model.train()
    trained = th.cat([part.flatten() for part in model.policy.optimizer.recorded[0] if part is not None])
    np.testing.assert_allclose(trained, its, atol=1e-6)


def test_a_clone_does_what_the_expert_does(demonstrations):
    assert demonstrations.returns.mean() > 300
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=4, device="cpu")
    optimizer_before = model.policy.optimizer.state_dict()
    critic_before = [parameter.clone() for parameter in model.policy.value_net.parameters()]
    cloning = clone(model, *demonstrations[:3], epochs=15, learning_rate=3e-3)
    assert cloning.log_probs[0] == pytest.approx(np.log(0.5), abs=0.05)
    assert cloning.log_probs[cloning.best_epoch] == max(cloning.log_probs) > -0.4
    score, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 2, seed=7), 6)
    assert score > 150
    # A warm start: nothing but the actor is another
    assert model.policy.optimizer.state_dict() == optimizer_before
    assert all(map(th.equal, critic_before, model.policy.value_net.parameters()))
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.policy.parameters())
    model.learn(200)
    assert model._n_updates > 0


def test_a_policy_with_memory_is_cloned(demonstrations):
    model = REINFORCE("MlpLstmPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs={"lstm_hidden_size": 16})
    cloning = clone(model, *demonstrations[:3], epochs=6, batch_size=600, learning_rate=1e-2)
    assert cloning.log_probs[cloning.best_epoch] > cloning.log_probs[0] + 0.1


def test_the_best_policy_is_kept(demonstrations):
    # A step size that breaks everything: the policy before the fit is the best
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    before = [parameter.clone() for parameter in model.policy.parameters()]
    cloning = clone(model, *demonstrations[:3], learning_rate=1e3, patience=2)
    assert cloning.best_epoch == 0
    assert len(cloning.log_probs) == 3
    assert all(map(th.equal, before, model.policy.parameters()))


@pytest.mark.parametrize("algorithm", [DQN, PPO, SAC])
def test_demonstrations_of_any_algorithm(algorithm):
    env_id = "Pendulum-v1" if algorithm is SAC else "CartPole-v1"
    expert = algorithm("MlpPolicy", env_id, seed=0, device="cpu")
    rng_before = th.get_rng_state()
    demonstrations = demonstrate(expert, make_vec_env(env_id, 3), 5, deterministic=False)
    assert th.equal(th.get_rng_state(), rng_before)
    assert len(demonstrations.episode_lengths) == len(demonstrations.returns) == 5
    assert demonstrations.episode_lengths.sum() == len(demonstrations.actions) == len(demonstrations.observations)
    if env_id == "CartPole-v1":
        np.testing.assert_array_equal(demonstrations.returns, demonstrations.episode_lengths)
        # Every episode begins near the origin
        starts = np.cumsum(demonstrations.episode_lengths) - demonstrations.episode_lengths
        assert np.abs(demonstrations.observations[starts]).max() <= 0.05
    model = REINFORCE("MlpPolicy", env_id, seed=0, device="cpu")
    # Steps on their own
    cloning = clone(model, demonstrations.observations, demonstrations.actions, epochs=2)
    assert cloning.log_probs[-1] > cloning.log_probs[0]


def test_squashed_actions_are_cloned_as_the_policy_draws_them():
    kwargs = {"use_sde": True, "policy_kwargs": {"squash_output": True}, "seed": 0, "device": "cpu"}
    model = REINFORCE("MlpPolicy", "Pendulum-v1", **kwargs)
    batch = as_batch(model, np.zeros((3, 3), np.float32), np.array([[-1.8], [0.0], [1.8]], np.float32), None)
    np.testing.assert_allclose(batch.actions.numpy().flatten(), [-0.9, 0.0, 0.9], atol=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_minibatches_hold_every_episode_once(lengths, size):
    lengths = np.array(lengths)
    parts = minibatches(np.arange(len(lengths)), lengths, size)
    assert np.array_equal(np.concatenate(parts), np.arange(len(lengths)))
    ends = np.cumsum([lengths[part].sum() for part in parts])
    # Each ends with the episode that makes a multiple full
    assert all(end // size > (end - lengths[part[-1]]) // size for end, part in zip(ends[:-1], parts[:-1], strict=True))
    if (lengths == 1).all():
        assert all(len(part) == size for part in parts[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"held_out": 0.0}, "held_out must leave"),
        ({"held_out": np.nan}, "held_out must leave"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, not 0.0"),
        ({"learning_rate": np.nan}, "learning_rate must be above 0 and finite, not nan"),
        ({"held_out": 0.01}, "held_out must leave at least one of 6 episodes"),
        ({"episode_lengths": np.array([3])}, "episode_lengths must be above 0 and add up"),
        ({"observations": np.zeros((5, 3))}, r"observation must be of shape \(\d+, 4\).*not \(5, 3\)"),
        ({"observations": {"image": np.zeros((5, 3))}}, "observations must have the parts observation, not image"),
    ],
)
def test_bad_arguments(demonstrations, change, message):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    arguments = dict(zip(("observations", "actions", "episode_lengths"), demonstrations[:3], strict=True))
    with pytest.raises(ValueError, match=message):
        clone(model, **{**arguments, **change})


def test_bad_actions(demonstrations):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"actions must be of shape \(\d+,\), not"):
        clone(model, demonstrations.observations, demonstrations.actions[:, None])


def test_bad_experts(expert):
    with pytest.raises(ValueError, match="n_episodes must be at least 1"):
        demonstrate(expert, make_vec_env("CartPole-v1", 1), 0)
    with pytest.raises(ValueError, match="env: is not one that the model can act in"):
        demonstrate(expert, make_vec_env("Acrobot-v1", 1))


def test_masks_in_the_observation_count():
    model = REINFORCE("MultiInputPolicy", "sb3_reinforce/TMazeMasked-v0", use_masking=True, seed=0, device="cpu")
    demonstrations = demonstrate(model, make_vec_env("sb3_reinforce/TMazeMasked-v0", 2), 20, deterministic=False)
    batch = as_batch(model, *demonstrations[:3])
    masks = demonstrations.observations["action_mask"]
    np.testing.assert_array_equal(batch.action_masks, masks.astype(bool))
    assert not masks.all() and masks[np.arange(len(masks)), demonstrations.actions].all()
    assert set(batch.observations) == set(demonstrations.observations) - {"action_mask"}
    # Uniform over what is allowed
    log_probs = PolicyEvaluator(model.policy).log_probs(batch)
    np.testing.assert_allclose(log_probs, -np.log(masks.sum(axis=1)), atol=0.3)
    cloning = clone(model, *demonstrations[:3], epochs=3)
    assert np.isfinite(cloning.log_probs).all()


def random_choice(observations, action_masks):
    """A function that needs masks, and reuses its arrays."""
    random_choice.actions[:] = (action_masks * random_choice.rng.random(action_masks.shape)).argmax(axis=1)
    return random_choice.actions[: len(action_masks)]


random_choice.rng, random_choice.actions = np.random.default_rng(0), np.zeros(3, dtype=np.int64)


@pytest.mark.parametrize("make_expert", ["REINFORCE", "its policy", "MaskablePPO", "function"])
@pytest.mark.parametrize("source", ["observation", "VecEnv", "method", "info", "info below wrappers"])
def test_experts_are_given_their_masks(source, make_expert):
    """What is forbidden raises in these environments."""
    env, own = SOURCES[source](), SOURCES[source]()
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = REINFORCE(policy, own, use_masking=True, seed=0, device="cpu")
    expert = {
        "REINFORCE": lambda: model,
        "its policy": lambda: model.policy,
        "MaskablePPO": lambda: MaskablePPO(policy, own, seed=0, device="cpu"),
        "function": lambda: random_choice,
    }[make_expert]()
    demonstrations = demonstrate(expert, env, 30, deterministic=False)
    starts = np.cumsum(demonstrations.episode_lengths) - demonstrations.episode_lengths
    times = np.arange(len(demonstrations.actions)) - np.repeat(starts, demonstrations.episode_lengths)
    np.testing.assert_array_equal(demonstrations.action_masks, CueEnv.MASKS[times].astype(bool))
    assert len(set(demonstrations.actions.tolist())) == 3

    # And so is the pupil
    batch = as_batch(model, *demonstrations[:3], action_masks=demonstrations.action_masks)
    np.testing.assert_array_equal(batch.action_masks, demonstrations.action_masks)
    fit = clone(model, *demonstrations[:3], action_masks=demonstrations.action_masks, epochs=2)
    assert fit.log_probs[0] == pytest.approx(np.log(0.5), abs=0.1)


def test_experts_without_their_masks_are_refused():
    env = make_vec_env("CartPole-v1", 1)
    masked = REINFORCE("MlpPolicy", MethodEnv(), use_masking=True, device="cpu")
    masked.observation_space, masked.action_space = env.observation_space, env.action_space
    for expert, name in (
        (MaskablePPO("MlpPolicy", "CartPole-v1", device="cpu"), "MaskablePPO"),
        (masked, "REINFORCE"),
        (random_choice, "function"),
    ):
        with pytest.raises(ValueError, match=f"env: {name} needs action masks.*the environment gives no masks"):
            demonstrate(expert, env, 1)
    # Who can do without is not, and who does not ask for masks is given none
    for expert in (
        lambda observations, action_masks=None: Rule.act(observations),
        REINFORCE("MlpPolicy", "CartPole-v1", device="cpu"),
        REINFORCE("MlpPolicy", "CartPole-v1", device="cpu").policy,
    ):
        assert demonstrate(expert, env, 1).action_masks is None
    assert demonstrate(lambda observations: np.ones(1, dtype=np.int64), DummyVecEnv([MethodEnv]), 1).action_masks is None


def test_functions_demonstrate():
    seen = []

    def act(observations):
        seen.append(observations.copy())
        actions = Rule.act(observations)
        observations[:] = np.nan
        return actions

    demonstrations = demonstrate(act, make_vec_env("CartPole-v1", 1), 2)
    assert demonstrations.returns.mean() > 300
    np.testing.assert_array_equal(demonstrations.observations, np.concatenate(seen))

    torques = np.zeros((1, 1), np.float32)

    def push(observations):
        torques[:] += 0.01
        return torques

    actions = demonstrate(push, make_vec_env("Pendulum-v1", 1), 1).actions
    np.testing.assert_allclose(actions[:, 0], 0.01 * np.arange(1, 201), rtol=1e-4)


def test_demonstrations_that_never_end():
    def act(observations):
        return np.zeros(len(observations), dtype=np.int64)

    make_envs = [lambda: FixedLengthEnv([3]), lambda: FixedLengthEnv([MAX_EPISODE_STEPS + 10])]
    with pytest.raises(ValueError, match=r"did not end within 10,000 steps.*gymnasium\.wrappers\.TimeLimit"):
        demonstrate(act, DummyVecEnv(make_envs), 2)
    # Whose share is done may go on as it likes, and a time limit may be longer
    assert demonstrate(act, DummyVecEnv(make_envs[::-1]), 1).episode_lengths.tolist() == [3]
    limited = TimeLimit(FixedLengthEnv([10 * MAX_EPISODE_STEPS]), MAX_EPISODE_STEPS + 5)
    assert demonstrate(act, limited, 1).episode_lengths.tolist() == [MAX_EPISODE_STEPS + 5]


@pytest.mark.parametrize("env", ["CartPole-v1", None, gym.make_vec("CartPole-v1", 2)], ids=["id", "None", "VectorEnv"])
def test_what_is_no_environment(expert, env):
    for use in (demonstrate, measure):
        with pytest.raises(ValueError, match=r"env: must be an environment or a VecEnv.*not|env is a VectorEnv of gymnasium"):
            use(expert, env)


@pytest.mark.parametrize(
    ("bad_expert", "message"),
    [
        ("model.zip", "expert: must have SB3's predict, or be a function of the observations, not 'model.zip'"),
        (lambda observations: 0, r"expert: its actions must be of shape \(1,\), not \(\)"),
        (lambda observations: ["left"], "expert: its actions must be an array of numbers, not of <U4"),
    ],
)
def test_what_is_no_expert(bad_expert, message):
    with pytest.raises(ValueError, match=message):
        demonstrate(bad_expert, make_vec_env("CartPole-v1", 1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("switches", [{"policy_averaging": 0.9}, {"use_masking": True}, {"natural_gradient": True}], ids=str)
def test_a_fit_that_fails_leaves_the_model_as_it_was(monkeypatch, switches, error):
    model = REINFORCE("MlpPolicy", MethodEnv(), n_episodes=4, seed=0, device="cpu", **switches)
    if model.use_masking:
        model.learn(1)
    model.policy.set_training_mode(True)
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)

    def state():
        own = [model.policy.state_dict(), model.policy.optimizer.state_dict()["state"], model.averaged_policy.state_dict()]
        return copy.deepcopy((own, [parameter.grad for parameter in model.policy.parameters()], model.policy.training))

    before, compute, calls = state(), cloning_module.compute_gradient, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise error("in the middle")
        return compute(*args, **kwargs)

    monkeypatch.setattr(cloning_module, "compute_gradient", fail)
    with pytest.raises(error, match="in the middle"):
        clone(model, np.ones((40, 2), np.float32), np.zeros(40, np.int64), batch_size=8)
    assert str(state()) == str(before)


def of_space(action_space, observation_space=None, **kwargs):
    observation_space = observation_space or spaces.Box(-np.inf, np.inf, (2,), np.float32)
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    return REINFORCE(policy, SilentEnv(observation_space, action_space), n_episodes=1, device="cpu", **kwargs)


BOX = spaces.Box(-1.0, np.array([1.0, 2.0], np.float32), (2,), np.float32)


@pytest.mark.parametrize(
    ("action_space", "actions", "message"),
    [
        (spaces.Discrete(3), [0, 3], "actions must be whole numbers from 0 to 2, as in the model's space, not 3 as at step 1"),
        (spaces.Discrete(3), [0, -1], "not -1 as at step 1"),
        (spaces.Discrete(3), [0.5, 0], "whole numbers.*not 0.5 as at step 0"),
        (spaces.Discrete(3), [np.nan, 0], "not nan as at step 0"),
        (spaces.Discrete(3), ["left", "right"], "actions must be an array of numbers, not of <U5"),
        (spaces.Discrete(3), [[0], [1, 2]], "actions must be an array of numbers: "),
        (spaces.Discrete(3), 1, r"actions must be of shape \(0,\), not \(\)"),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [2, 0]], "not 2 as at step 1"),
        (spaces.MultiBinary(2), [[1, 0], [0, 2]], "whole numbers from 0 to 1.*not 2 as at step 1"),
        (BOX, [[0.0, 2.0], [0.0, 2.5]], "from -1.0 to 2.0.*not 2.5 as at step 1"),
        (BOX, [[2.0, 2.0], [0.0, 0.0]], "not 2.0 as at step 0"),
        (BOX, [[0.0, np.nan], [0.0, 0.0]], "not nan as at step 0"),
    ],
)
def test_actions_outside_the_space(action_space, actions, message):
    for array in (actions, th.tensor(actions) if "array" not in message else actions):
        with pytest.raises(ValueError, match=message) as caught:
            clone(of_space(action_space), np.zeros((2, 2), np.float32), array)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("observation_space", "observations", "message"),
    [
        (BOX, [[0.0, np.nan], [0.0, 0.0]], "observations: observation must be finite numbers, not nan as at step 0"),
        (BOX, [[0.0, 0.0], [np.inf, 0.0]], "not inf as at step 1"),
        (BOX, [{"a": 1}, {"a": 2}], "observations: observation must be an array of numbers, not of object"),
        (spaces.Discrete(3), [0, 3], "whole numbers from 0 to 2.*not 3 as at step 1"),
        (spaces.Box(0, 255, (1,), np.uint8), [[0], [256]], "whole numbers from 0 to 255.*not 256 as at step 1"),
        (spaces.Dict({"a": BOX}), {"a": [[0.0, 0.0], [np.nan, 0.0]]}, "observations: a must be finite.*not nan as at step 1"),
        (spaces.Dict({"a": BOX}), [[0.0, 0.0], [0.0, 0.0]], "observations must have the parts a, not observation"),
    ],
)
def test_observations_outside_the_space(observation_space, observations, message):
    with pytest.raises(ValueError, match=message):
        clone(of_space(spaces.Discrete(2), observation_space), observations, [0, 1])


@pytest.mark.parametrize(
    ("switches", "masks", "message"),
    [
        ({}, [[1, 1]] * 4, "action_masks: the model has use_masking=False"),
        ({"use_masking": True}, [[1, 1]] * 3, "There must be an action mask for each of 4 observations, but there are 3"),
        ({"use_masking": True}, [[1, 1], [0, 0]] * 2, "The action mask of step 1 allows no action"),
        ({"use_masking": True}, [[1, 1], [1, 0]] * 2, "actions: what was done at step 3, 1, is forbidden by its action mask"),
    ],
)
def test_masks_that_do_not_fit(switches, masks, message):
    with pytest.raises(ValueError, match=message):
        clone(of_space(spaces.Discrete(2), **switches), np.zeros((4, 2)), [0, 0, 1, 1], action_masks=masks)


@pytest.mark.parametrize("convert", [np.ndarray.tolist, th.as_tensor, np.float64])
def test_whatever_numpy_makes_an_array_of(demonstrations, convert):
    given = [part[:200] for part in demonstrations[:2]]
    model, other = (REINFORCE("MlpPolicy", "CartPole-v1", seed=0, device="cpu") for _ in range(2))
    expected = clone(model, *given, [120, 80], epochs=2, held_out=0.5)
    assert clone(other, *map(convert, given), convert(np.array([120, 80])), epochs=2, held_out=0.5) == expected


@pytest.mark.parametrize("space", [BOX, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=str)
def test_actions_in_the_space(space):
    actions = np.array([space.sample() for _ in range(20)]).astype(np.float64)
    assert np.isfinite(clone(of_space(space), np.ones((20, 2)), actions, epochs=1).log_probs).all()


def test_what_cannot_be_fitted(demonstrations):
    with pytest.raises(ValueError, match="model: must be a REINFORCE, whose loss is used, not PPO"):
        clone(PPO("MlpPolicy", "CartPole-v1", device="cpu"), *demonstrations[:3])
    model = REINFORCE("MlpPolicy", "CartPole-v1", device="cpu")
    for parameter in model.policy.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match="model: its actor is frozen"):
        clone(model, *demonstrations[:3])


def test_the_average_is_of_the_clone(demonstrations):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=4, policy_averaging=0.9, device="cpu").learn(300)
    clone(model, *demonstrations[:3], epochs=3)
    assert all(map(th.equal, model.averaged_policy.parameters(), model.policy.parameters()))
    assert model.averaged_policy is not model.policy
    model.learn(300)
