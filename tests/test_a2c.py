"""A2C with ``gae_lambda=1`` and ``n_steps`` = episode length is the special case of fixed-length episodes."""

import numpy as np
import pytest
import torch as th
from helpers import FixedLengthEnv
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE, MlpPolicy

EPISODE_LENGTH = 7


class TorchSampledPolicy(MlpPolicy):
    """Draws from PyTorch's generator, as A2C does, because a method on the way to its distribution is overridden."""

    def get_distribution(self, obs):
        return super().get_distribution(obs)


class NoisyRewardEnv(FixedLengthEnv):
    def __init__(self):
        super().__init__([EPISODE_LENGTH])

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action) + self.np_random.normal(), *rest


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("optimizer", [th.optim.RMSprop, th.optim.Adam, th.optim.SGD])
def test_parameters_equal_those_of_a2c(n_envs, normalize_advantage, optimizer):
    shared = {
        "n_steps": EPISODE_LENGTH,
        "learning_rate": 1e-2,
        "gamma": 0.9,
        "gae_lambda": 1.0,
        "vf_coef": 0.7,
        "ent_coef": 0.03,
        "max_grad_norm": float("inf"),
        "normalize_advantage": normalize_advantage,
        "seed": 3,
        "device": "cpu",
    }
    policy_kwargs = {"optimizer_class": optimizer, "net_arch": [16]}
    a2c = A2C(
        TorchSampledPolicy,
        make_vec_env(NoisyRewardEnv, n_envs),
        use_rms_prop=False,
        policy_kwargs=dict(policy_kwargs),
        **shared,
    )
    reinforce = REINFORCE(
        TorchSampledPolicy, make_vec_env(NoisyRewardEnv, n_envs), critic_epochs=1, policy_kwargs=dict(policy_kwargs), **shared
    )
    before = a2c.policy.parameters_to_vector()
    np.testing.assert_array_equal(before, reinforce.policy.parameters_to_vector())

    n_updates = 10
    for model in (a2c, reinforce):
        # Both draw from PyTorch's generator, one model after the other
        model.set_random_seed(5)
        model.learn(n_updates * n_envs * EPISODE_LENGTH)
        assert model._n_updates == n_updates
    after = a2c.policy.parameters_to_vector()
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(reinforce.policy.parameters_to_vector(), after, atol=2e-5)
