"""The policies by themselves: exported, saved, and loaded by the classes of SB3."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import SACPolicy
from torch.distributions import Distribution

from sb3_reinforce import REINFORCE, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_reinforce.policies.recurrent import MlpLstmPolicy, MultiInputLstmPolicy

BOX = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"part": BOX})
DISCRETE = spaces.Discrete(3)
POLICIES = {"MlpPolicy": (MlpPolicy, BOX), "CnnPolicy": (CnnPolicy, IMAGE), "MultiInputPolicy": (MultiInputPolicy, DICT)}


def many(space, n):
    if isinstance(space, spaces.Dict):
        return {key: many(part, n) for key, part in space.items()}
    return np.stack([space.sample() for _ in range(n)])


class Acting(th.nn.Module):
    """SB3's recipe for an export."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, observation):
        return self.policy(observation, deterministic=True)


def export(module, observation):
    dynamic = {0: th.export.Dim.DYNAMIC}
    shapes = {name: dynamic for name in observation} if isinstance(observation, dict) else dynamic
    return th.export.export(module, (observation,), dynamic_shapes={"observation": shapes}).module()


def trace(module, observation):
    return th.jit.trace(module, (observation,), check_trace=False)


class OwnGroups(ActorCriticPolicy):
    """Has an optimizer of its own, with two groups of parameters."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        layers = [*self.mlp_extractor.parameters(), *self.value_net.parameters()]
        groups = [{"params": layers, "weight_decay": 0.3}, {"params": [*self.action_net.parameters()], "weight_decay": 0.0}]
        self.optimizer = th.optim.AdamW(groups, lr=lr_schedule(1))


def test_a_policy_keeps_its_own_optimizer_without_a_critic():
    kwargs = {"env": "CartPole-v1", "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    optimizer = REINFORCE(OwnGroups, baseline=None, **kwargs).policy.optimizer
    assert type(optimizer) is th.optim.AdamW
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(2, 0.3), (2, 0.0)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("make_export", [trace, export])
def test_an_exported_policy_without_a_critic_takes_any_number_of_observations(name, make_export, monkeypatch):
    # An export has no place for checks of PyTorch's distributions
    monkeypatch.setattr(Distribution, "_validate_args", False)
    policy_class, space = POLICIES[name]
    module = Acting(policy_class(space, DISCRETE, lambda _: 1e-3, use_critic=False).eval())
    two, five = (module.policy.obs_to_tensor(many(space, n))[0] for n in (2, 5))
    exported = make_export(module, two)
    for ours, theirs in zip(module(five), exported(five), strict=True):
        assert ours.shape == theirs.shape and th.allclose(ours, theirs)
    assert exported(five)[1].shape == (5, 1)


LSTM_KWARGS = {"lstm_hidden_size": 8, "n_lstm_layers": 2}
OF_SB3 = {
    "MlpPolicy": (MlpPolicy, BOX, ActorCriticPolicy, {"net_arch": [8]}),
    "MlpPolicy, gSDE": (MlpPolicy, BOX, ActorCriticPolicy, {"use_sde": True, "full_std": False}),
    "CnnPolicy": (CnnPolicy, IMAGE, ActorCriticCnnPolicy, {}),
    "CnnPolicy, by the base class": (CnnPolicy, IMAGE, ActorCriticPolicy, {}),
    "MultiInputPolicy": (MultiInputPolicy, DICT, MultiInputActorCriticPolicy, {}),
    "MlpLstmPolicy": (MlpLstmPolicy, BOX, RecurrentActorCriticPolicy, LSTM_KWARGS),
    "MlpLstmPolicy, shared": (
        MlpLstmPolicy,
        BOX,
        RecurrentActorCriticPolicy,
        {**LSTM_KWARGS, "shared_lstm": True, "enable_critic_lstm": False},
    ),
    "MultiInputLstmPolicy": (MultiInputLstmPolicy, DICT, RecurrentMultiInputActorCriticPolicy, LSTM_KWARGS),
}


@pytest.mark.parametrize("name", OF_SB3)
def test_a_saved_policy_with_a_critic_is_loaded_by_the_class_that_it_derives_from(name, tmp_path):
    policy_class, space, base, kwargs = OF_SB3[name]
    action_space = BOX if "use_sde" in kwargs else DISCRETE
    policy = policy_class(space, action_space, lambda _: 1e-3, **kwargs)
    policy.save(tmp_path / "policy")
    for loader in (base, policy_class):
        loaded = loader.load(tmp_path / "policy", device="cpu")
        assert type(loaded) is loader
        for _ in range(10):
            observation = space.sample()
            ours, theirs = (each.predict(observation, deterministic=True)[0] for each in (policy, loaded))
            np.testing.assert_array_equal(ours, theirs)
    # Whoever has not this package can read it too
    assert b"sb3_reinforce" not in (tmp_path / "policy").read_bytes()


def test_a_saved_policy_without_a_critic_is_loaded_without_one(tmp_path):
    policy = MlpPolicy(BOX, DISCRETE, lambda _: 1e-3, use_critic=False)
    policy.save(tmp_path / "policy")
    assert not MlpPolicy.load(tmp_path / "policy", device="cpu").use_critic


class AnyObservations(gym.Env):
    def __init__(self, observation_space):
        self.observation_space, self.action_space = observation_space, DISCRETE


UNFIT = [
    ("MlpLstmPolicy", DICT, "MlpLstmPolicy cannot read the Dict observations of this environment: use MultiInputLstmPolicy"),
    ("CnnLstmPolicy", DICT, "CnnLstmPolicy cannot read .*: use MultiInputLstmPolicy"),
    ("MlpPolicy", DICT, "You must use `MultiInputPolicy`"),
    ("CnnPolicy", DICT, "You must use `MultiInputPolicy`"),
    (MlpPolicy, DICT, "MlpPolicy cannot read the Dict observations of this environment: use MultiInputPolicy"),
    (CnnPolicy, DICT, "CnnPolicy cannot read .*: use MultiInputPolicy"),
    (ActorCriticPolicy, DICT, "ActorCriticPolicy cannot read .*: use MultiInputPolicy"),
    (RecurrentActorCriticPolicy, DICT, "RecurrentActorCriticPolicy cannot read .*: use MultiInputLstmPolicy"),
    ("MultiInputPolicy", BOX, r"for Dict observations, but .* is Box.*: use MlpPolicy, or CnnPolicy for images"),
    ("MultiInputLstmPolicy", IMAGE, "for Dict observations, .*: use MlpLstmPolicy, or CnnLstmPolicy for images"),
    (MaskableActorCriticPolicy, BOX, "is for MaskablePPO; use MlpPolicy with use_masking=True"),
    (MaskableActorCriticCnnPolicy, IMAGE, "is for MaskablePPO; use CnnPolicy with use_masking=True"),
    (MaskableMultiInputActorCriticPolicy, DICT, "is for MaskablePPO; use MultiInputPolicy with use_masking=True"),
    (
        SACPolicy,
        BOX,
        "policy must be a name such as 'MlpPolicy' or a class .* SB3's ActorCriticPolicy, not SACPolicy",
    ),
    (None, BOX, "policy must be a name such as 'MlpPolicy' or a class .*, not None"),
]


@pytest.mark.parametrize("policy, observation_space, message", UNFIT)
def test_a_policy_that_does_not_fit_is_refused_at_once_and_another_named(policy, observation_space, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE(policy, AnyObservations(observation_space))


class Reads(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 2)

    def forward(self, observations):
        return observations["part"]


class OwnExtractorPolicy(ActorCriticPolicy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, features_extractor_class=Reads, **kwargs)


@pytest.mark.parametrize(
    "policy, kwargs", [(MlpPolicy, {"features_extractor_class": Reads}), (OwnExtractorPolicy, {}), (MultiInputPolicy, {})]
)
def test_what_can_read_dict_observations_may(policy, kwargs):
    assert REINFORCE(policy, AnyObservations(DICT), policy_kwargs=kwargs).policy.features_dim == 2
