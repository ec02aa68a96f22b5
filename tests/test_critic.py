"""Fitting the learned baseline, against a slow and obvious loop."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import FixedLengthEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE, MlpPolicy
from sb3_reinforce.buffers import EpisodeBatch
from sb3_reinforce.critic import fit_critic
from sb3_reinforce.reading import BatchReader

VF_COEF, LEARNING_RATE = 0.7, 0.05


def make_policy():
    th.manual_seed(0)
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    kwargs = {"net_arch": {"pi": [], "vf": [4]}, "optimizer_class": th.optim.SGD}
    return MlpPolicy(observation_space, spaces.Discrete(2), lambda _: LEARNING_RATE, **kwargs)


@pytest.mark.parametrize("batch_size", [None, 3, 4, 9, 10, 11])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_every_minibatch_is_a_step_on_its_own_mean(batch_size, micro_batch_size):
    generator = np.random.default_rng(1)
    observations = th.as_tensor(generator.normal(size=(10, 3)), dtype=th.float32)
    targets = generator.normal(size=10)

    policy, slow = make_policy(), make_policy()
    loss = fit_critic(
        BatchReader(policy, micro_batch_size),
        EpisodeBatch(observations, th.zeros(10, 1), targets, np.array([10]), np.array([]), None, lambda index: (0, index)),
        targets,
        [*policy.action_net.parameters()],
        np.random.default_rng(2),
        epochs=2,
        batch_size=batch_size,
        vf_coef=VF_COEF,
        max_grad_norm=float("inf"),
    )

    critic = [*slow.mlp_extractor.value_net.parameters(), *slow.value_net.parameters()]
    rng, losses = np.random.default_rng(2), []
    for _ in range(2):
        order = rng.permutation(10) if (batch_size or 10) < 10 else np.arange(10)
        for chosen in np.split(order, range(batch_size or 10, 10, batch_size or 10)):
            errors = slow.predict_values(observations[chosen]).flatten() - th.as_tensor(targets[chosen], dtype=th.float32)
            losses.append((errors**2).mean())
            gradients = th.autograd.grad(VF_COEF * losses[-1], critic)
            with th.no_grad():
                for parameter, gradient in zip(critic, gradients, strict=True):
                    parameter -= LEARNING_RATE * gradient
    np.testing.assert_allclose(policy.parameters_to_vector(), slow.parameters_to_vector(), atol=1e-6)
    assert not np.allclose(policy.parameters_to_vector(), make_policy().parameters_to_vector(), atol=1e-3)
    assert loss == pytest.approx(th.stack(losses).mean().item(), rel=1e-5)


def test_the_value_loss_that_is_logged():
    env = DummyVecEnv([lambda: FixedLengthEnv([3])])
    model = REINFORCE("MlpPolicy", env, n_steps=3, gamma=0.5, critic_epochs=1, seed=0, max_rollout_steps=10)
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(2.0)
    model.learn(1)
    # The returns are 1.75, 1.5 and 1
    assert model.logger.name_to_value["train/value_loss"] == pytest.approx((0.25**2 + 0.5**2 + 1.0) / 3)
