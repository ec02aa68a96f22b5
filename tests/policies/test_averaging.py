"""The moving average of the policy: its closed form, who acts and who answers, and what is kept of it."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE

DECAY = 0.7


def make_model(env="CartPole-v1", **kwargs):
    kwargs = {"policy_averaging": DECAY, "n_steps": 40, "seed": 0, "device": "cpu", **kwargs}
    return REINFORCE("MlpPolicy", env, **kwargs)


def vector(policy):
    return th.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()


def test_the_average_is_exponential_over_updates():
    model, expected = make_model(), None
    train = model.train

    def noting_train():
        nonlocal expected
        train()
        now = vector(model.policy).double()
        expected = now if expected is None else DECAY * expected + (1 - DECAY) * now

    model.train = noting_train
    model.learn(600)
    assert model._n_updates > 4
    th.testing.assert_close(vector(model.averaged_policy).double(), expected, rtol=1e-5, atol=1e-6)
    assert not th.allclose(vector(model.averaged_policy), vector(model.policy), atol=1e-3)


@pytest.mark.parametrize(("env", "use_sde"), [("CartPole-v1", False), ("Pendulum-v1", True)])
def test_averaging_changes_nothing_about_the_training(env, use_sde):
    with_average = make_model(env, use_sde=use_sde).learn(600)
    without = make_model(env, use_sde=use_sde, policy_averaging=None).learn(600)
    assert th.equal(vector(with_average.policy), vector(without.policy))


def test_without_averaging_both_are_the_same_policy():
    model = make_model(policy_averaging=None)
    assert model.averaged_policy is model.policy
    assert "policy_average" not in model.get_parameters()


def prefer(policy, action):
    with th.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.copy_(th.eye(2)[action] * 50)


def test_the_average_answers_and_the_policy_acts():
    model = make_model()
    prefer(model.averaged_policy, 1)
    prefer(model.policy, 0)
    observation = np.zeros(4, dtype=np.float32)
    assert model.predict(observation, deterministic=True)[0] == 1
    assert model.predict(observation)[0] == 1
    assert model.averaged_policy.predict(observation, deterministic=True)[0] == 1
    assert model.policy.predict(observation, deterministic=True)[0] == 0
    model.train = lambda: None
    model.learn(1)
    assert not model.rollout_buffer.whole_episodes().actions.any()


def test_evaluations_are_of_the_average(tmp_path):
    model = make_model()
    prefer(model.averaged_policy, 1)
    model.train = lambda: None
    callback = EvalCallback(make_vec_env("CartPole-v1", 1), eval_freq=20, n_eval_episodes=3, verbose=0, log_path=str(tmp_path))
    model.learn(1, callback=callback)
    always_right = callback.last_mean_reward
    assert 8 <= always_right <= 11
    assert 8 <= evaluate_policy(model, make_vec_env("CartPole-v1", 1), 3)[0] <= 11


def test_both_policies_are_saved_and_training_goes_on_from_the_acting_one(tmp_path):
    model = make_model().learn(300)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 1))
    assert loaded.policy_averaging == DECAY
    assert th.equal(vector(loaded.policy), vector(model.policy))
    assert th.equal(vector(loaded.averaged_policy), vector(model.averaged_policy))
    observation = model.observation_space.sample()
    assert loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]

    before, average_before = vector(loaded.policy), vector(loaded.averaged_policy)
    train = loaded.train

    def one_update():
        assert th.equal(vector(loaded.policy), before)
        train()
        loaded.train = lambda: None

    loaded.train = one_update
    loaded.learn(1, reset_num_timesteps=False)
    expected = DECAY * average_before + (1 - DECAY) * vector(loaded.policy)
    th.testing.assert_close(vector(loaded.averaged_policy), expected, rtol=1e-5, atol=1e-6)


def test_the_average_can_be_saved_as_a_policy_of_its_own(tmp_path):
    model = make_model().learn(300)
    model.averaged_policy.save(tmp_path / "policy")
    assert th.equal(vector(type(model.policy).load(tmp_path / "policy")), vector(model.averaged_policy))


def test_an_update_that_failed_does_not_enter_the_average():
    model = make_model().learn(100)
    before = vector(model.averaged_policy)
    model.rollout_buffer.rewards[:] = np.nan
    with pytest.raises(ValueError, match="nan"):
        model.train()
    assert th.equal(vector(model.averaged_policy), before)


def test_vec_normalize_gsde_and_the_natural_step():
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    model = make_model(env, use_sde=True, natural_gradient=True).learn(900)
    average, policy = model.averaged_policy, model.policy
    assert average is not policy and average.action_dist is not policy.action_dist
    # Its exploration noise is that of its own standard deviation, not of the first one
    std = average.action_dist.get_std(average.log_std)
    assert th.allclose(average.action_dist.weights_dist.scale, std)
    assert np.isfinite(evaluate_policy(model, env, 2)[0])


def test_a_loaded_average_explores_as_it_was_saved(tmp_path):
    model = make_model("Pendulum-v1", use_sde=True)
    for policy in (model.policy, model.averaged_policy):
        policy.log_std.data.fill_(-4.0)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model")
    other = make_model("Pendulum-v1", use_sde=True)
    other.set_parameters(str(tmp_path / "model"))
    for average in (loaded.averaged_policy, other.averaged_policy):
        assert th.allclose(average.action_dist.weights_dist.scale, average.action_dist.get_std(average.log_std))


def test_noise_of_the_average_touches_no_other_device(monkeypatch):
    original, devices = th.random.fork_rng, []
    monkeypatch.setattr(th.random, "fork_rng", lambda forked: (devices.append(forked), original(forked))[1])
    make_model("Pendulum-v1", use_sde=True)
    assert devices == [[]]


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_decay_out_of_range_is_named(decay):
    with pytest.raises(ValueError, match="policy_averaging"):
        make_model(policy_averaging=decay)
