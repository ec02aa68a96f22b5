"""Behaviour cloning: the pseudo-loss with unit weights, demonstrations of any algorithm, a warm start."""

import numpy as np
import pytest
import torch as th
from helpers import ACTION_PROBABILITIES, linear_model
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import REINFORCE
from sb3_reinforce.envs import diamond_hill
from sb3_reinforce.lab import clone, demonstrate
from sb3_reinforce.lab.cloning import as_batch, minibatches, unit_weights
from sb3_reinforce.policy_step import compute_gradient
from sb3_reinforce.reading import BatchReader


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
    gradient = compute_gradient(BatchReader(model.policy, 3), batch, unit_weights(batch), ent_coef=0.0)
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
    log_probs = BatchReader(model.policy).log_probs(batch)
    np.testing.assert_allclose(log_probs, -np.log(masks.sum(axis=1)), atol=0.3)
    cloning = clone(model, *demonstrations[:3], epochs=3)
    assert np.isfinite(cloning.log_probs).all()


def test_the_average_is_of_the_clone(demonstrations):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0, n_episodes=4, policy_averaging=0.9, device="cpu").learn(300)
    clone(model, *demonstrations[:3], epochs=3)
    assert all(map(th.equal, model.averaged_policy.parameters(), model.policy.parameters()))
    assert model.averaged_policy is not model.policy
    model.learn(300)
