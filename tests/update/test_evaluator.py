"""Reading a batch off a policy."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import FixedLengthEnv, GradientRecorder, learn_and_look
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from sb3_reinforce import REINFORCE
from sb3_reinforce.update import evaluator as reading
from sb3_reinforce.update.evaluator import PolicyEvaluator


def squashing_model(**kwargs):
    kwargs = {"use_sde": True, "policy_kwargs": {"squash_output": True}, "n_steps": 20, "seed": 0, **kwargs}
    return REINFORCE("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), device="cpu", **kwargs)


def test_the_entropy_estimate_of_squashed_actions():
    model = squashing_model()
    model.learn(1)
    evaluator, batch = PolicyEvaluator(model.policy), model.rollout_buffer.whole_episodes()
    log_prob, entropy = evaluator.log_prob_and_entropy(batch, slice(0, 40))
    assert log_prob.std() > 0.1 and log_prob.abs().min() > 0
    # Its value is that of SB3's estimate, its gradient the score function's
    np.testing.assert_allclose(entropy.detach(), -log_prob.detach(), rtol=1e-6)
    parameter = model.policy.action_net.weight
    weights = th.arange(40.0)
    gradient = th.autograd.grad((weights * entropy).sum(), parameter, retain_graph=True)[0]
    expected = th.autograd.grad(-(weights * log_prob.detach() * log_prob).sum(), parameter)[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("micro_batch_size", [None, 7])
def test_the_entropy_of_squashed_actions_is_logged(micro_batch_size):
    model = squashing_model(micro_batch_size=micro_batch_size, ent_coef=0.1)
    model.set_logger(Logger(None, []))
    (mean,) = learn_and_look(model, 1, lambda buffer: buffer.log_probs[buffer.counted].mean())
    assert model.logger.name_to_value["train/entropy_loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_the_memory_of_an_update_is_bounded_with_many_actions(policy, monkeypatch):
    monkeypatch.setattr(reading, "MAX_MICRO_BATCH_NUMBERS", 8_000)

    def gradient(micro_batch_size):
        env = make_vec_env(lambda: gym.wrappers.TransformAction(FixedLengthEnv([10]), lambda _: 0, spaces.Discrete(70)), 2)
        policy_kwargs = {"net_arch": [2], "optimizer_class": GradientRecorder}
        if policy == "MlpLstmPolicy":
            policy_kwargs |= {"lstm_hidden_size": 2}
        model = REINFORCE(
            policy, env, n_steps=100, micro_batch_size=micro_batch_size, policy_kwargs=policy_kwargs, seed=0, device="cpu"
        )
        sizes, train = [], model.train

        def train_and_note_sizes():
            model.policy.action_net.register_forward_hook(lambda module, inputs, logits: sizes.append(logits.numel()))
            train()

        model.train = train_and_note_sizes
        model.learn(1)
        return sizes, next(grad for grad in reversed(model.policy.optimizer.recorded[0]) if grad is not None)

    sizes, found = gradient(None)
    assert len(sizes) == 2 and sum(sizes) == 200 * 70 and max(sizes) <= 8_000
    sizes, expected = gradient(1_000)
    assert sizes == [200 * 70]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
