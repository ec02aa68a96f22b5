"""Fitting the learned baseline, against a slow and obvious loop."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import FixedLengthEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from test_reinforce import AnySpacesEnv

from sb3_reinforce import REINFORCE

VF_COEF, LEARNING_RATE, N_STEPS, N_EPOCHS = 0.7, 0.05, 10, 2


def make_model(**kwargs):
    env = AnySpacesEnv(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
    policy_kwargs = {"net_arch": {"pi": [], "vf": [4]}, "optimizer_class": th.optim.SGD}
    rates = {"learning_rate": 0.0, "critic_learning_rate": LEARNING_RATE, "critic_epochs": N_EPOCHS, "vf_coef": VF_COEF}
    model = REINFORCE("MlpPolicy", env, gamma=0.0, policy_kwargs=policy_kwargs, seed=0, device="cpu", **rates, **kwargs)
    model.max_grad_norm = float("inf")
    model.set_logger(Logger(None, []))
    return model


@pytest.mark.parametrize("batch_size", [None, 3, 4, 9, 10, 11])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_every_minibatch_is_a_step_on_its_own_mean(batch_size, micro_batch_size):
    generator = np.random.default_rng(1)
    observations, targets = generator.normal(size=(N_STEPS, 3)).astype(np.float32), generator.normal(size=N_STEPS)
    model, slow = make_model(critic_batch_size=batch_size, micro_batch_size=micro_batch_size), make_model().policy
    model.rollout_buffer.reset()
    for observation, reward in zip(observations, targets, strict=True):
        # Without a discount, a reward is the return of its step
        model.rollout_buffer.add(observation[None], np.zeros((1, 1)), np.array([reward]))
    model.rollout_buffer.finish_episode(0)
    micro_batches, steps = [], []

    def note_piece(module, inputs):
        if th.is_grad_enabled():
            micro_batches.append([int(np.argmin(np.abs(observations - row).sum(axis=1))) for row in inputs[0].numpy()])

    def note_step(*_):
        steps.append([*micro_batches])
        micro_batches.clear()

    model.policy.mlp_extractor.value_net.register_forward_pre_hook(note_piece)
    model.policy.optimizer.register_step_pre_hook(note_step)
    model.train()

    of_the_policy, *minibatches = steps
    assert of_the_policy == []
    assert all(len(micro_batch) <= (micro_batch_size or N_STEPS) for of_step in minibatches for micro_batch in of_step)
    minibatches = [np.concatenate(of_step) for of_step in minibatches]
    size = min(batch_size or N_STEPS, N_STEPS)
    sizes = [size] * (N_STEPS // size) + [N_STEPS % size] * (N_STEPS % size > 0)
    assert [len(chosen) for chosen in minibatches] == sizes * N_EPOCHS
    epochs = np.split(np.concatenate(minibatches), N_EPOCHS)
    assert all(sorted(epoch) == list(range(N_STEPS)) for epoch in epochs)
    assert size == N_STEPS or not np.array_equal(*epochs)

    critic, losses = [*slow.mlp_extractor.value_net.parameters(), *slow.value_net.parameters()], []
    for chosen in minibatches:
        values = slow.predict_values(th.as_tensor(observations[chosen])).flatten()
        losses.append(((values - th.as_tensor(targets[chosen], dtype=th.float32)) ** 2).mean())
        gradients = th.autograd.grad(VF_COEF * losses[-1], critic)
        with th.no_grad():
            for parameter, gradient in zip(critic, gradients, strict=True):
                parameter -= LEARNING_RATE * gradient
    np.testing.assert_allclose(model.policy.parameters_to_vector(), slow.parameters_to_vector(), atol=1e-6)
    assert not np.allclose(slow.parameters_to_vector(), make_model().policy.parameters_to_vector(), atol=1e-3)
    assert model.logger.name_to_value["train/value_loss"] == pytest.approx(th.stack(losses).mean().item(), rel=1e-5)


def test_the_value_loss_that_is_logged():
    env = DummyVecEnv([lambda: FixedLengthEnv([3])])
    model = REINFORCE("MlpPolicy", env, n_steps=3, gamma=0.5, critic_epochs=1, seed=0, max_rollout_steps=10)
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(2.0)
    model.learn(1)
    # The returns are 1.75, 1.5 and 1
    assert model.logger.name_to_value["train/value_loss"] == pytest.approx((0.25**2 + 0.5**2 + 1.0) / 3)
