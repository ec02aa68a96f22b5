"""Fine-tuning and warming up: what requires no gradient stays, and what has nothing to move is skipped."""

import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import FixedLengthEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_reinforce import REINFORCE

CRITIC = ("value_net", "mlp_extractor.value_net", "lstm_critic", "vf_features_extractor")
TRAINED = {
    "action_net": ("action_net",),
    "log_std": ("log_std",),
    "critic": CRITIC,
    "extractor": ("features_extractor", "pi_features_extractor"),
    "LSTM": ("lstm_actor",),
    "nothing": (),
}


class ContinuousEnv(FixedLengthEnv):
    """Rewards large actions."""

    def __init__(self):
        super().__init__([4, 7])
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action.sum()), *rest


class Layer(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.linear = th.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations):
        return self.linear(super().forward(observations))


def is_of(name, prefixes):
    return name.startswith(prefixes) if prefixes else False


def copies(model):
    return {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}


@pytest.mark.parametrize("baseline", ["value", "leave_one_out", "time_step", "mean", None])
@pytest.mark.parametrize("natural_gradient", [False, True])
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_only_what_is_trained_moves(policy, natural_gradient, baseline):
    for trained, prefixes in TRAINED.items():
        policy_kwargs = {"net_arch": [4], "features_extractor_class": Layer}
        model = REINFORCE(
            policy,
            make_vec_env(ContinuousEnv, 2, seed=0),
            baseline=baseline,
            natural_gradient=natural_gradient,
            n_episodes=4,
            policy_averaging=0.5,
            ent_coef=0.01,
            policy_kwargs=policy_kwargs | ({"lstm_hidden_size": 5} if policy == "MlpLstmPolicy" else {}),
            seed=0,
            device="cpu",
        )
        for name, parameter in model.policy.named_parameters():
            parameter.requires_grad_(is_of(name, prefixes))
        before = copies(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.learn(25)
        assert model._n_updates > 0
        moved = {name for name, value in copies(model).items() if not th.equal(value, before[name])}
        assert moved == {name for name in before if is_of(name, prefixes)}, trained
        logged = model.logger.name_to_value
        assert np.isfinite(logged["train/policy_loss"])
        assert ("train/value_loss" in logged) == (baseline == "value" and trained == "critic")


@pytest.mark.parametrize("natural_gradient", [False, True])
def test_all_but_the_critic(natural_gradient):
    model = REINFORCE("MlpPolicy", ContinuousEnv(), natural_gradient=natural_gradient, n_episodes=4, seed=0, device="cpu")
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(not is_of(name, CRITIC))
    before = copies(model)
    model.learn(25)
    moved = {name for name, value in copies(model).items() if not th.equal(value, before[name])}
    assert moved == {name for name in before if not is_of(name, CRITIC)}


@pytest.mark.parametrize("natural_gradient", [False, True])
def test_what_an_optimizer_of_the_users_does_not_have_stays(natural_gradient):
    model = REINFORCE("MlpPolicy", ContinuousEnv(), natural_gradient=natural_gradient, n_episodes=4, seed=0, device="cpu")
    model.policy.optimizer = th.optim.Adam(model.policy.action_net.parameters())
    before = copies(model)
    model.learn(25)
    moved = {name for name, value in copies(model).items() if not th.equal(value, before[name])}
    assert moved == {"action_net.weight", "action_net.bias"}
