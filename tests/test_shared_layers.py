"""What the critic shares and does not train is computed once for a fit, in micro-batches, and changes nothing."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import learn_and_look
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_reinforce import AnySpacesEnv

from sb3_reinforce import REINFORCE, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_reinforce.policies.recurrent import CnnLstmPolicy, MlpLstmPolicy

FLAT = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
SMALL = {"features_extractor_kwargs": {"features_dim": 8}}
LSTM = {"lstm_hidden_size": 5}
SHARED_LSTM = {**LSTM, "shared_lstm": True, "enable_critic_lstm": False}
N_STEPS, N_EPOCHS = 12, 3


class Layer(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.linear = th.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations):
        return th.tanh(self.linear(super().forward(observations)))


class SeededEnv(AnySpacesEnv):
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        return super().reset(seed=seed, options=options)


#: Policy, observations, its arguments, and the layer that is not to be computed again.
CACHED = {
    "images": (CnnPolicy, IMAGE, SMALL, "features_extractor"),
    "dict": (MultiInputPolicy, spaces.Dict({"image": IMAGE, "flat": FLAT}), {}, "features_extractor"),
    "own extractor": (MlpPolicy, FLAT, {"features_extractor_class": Layer}, "features_extractor"),
    "LSTM of its own, images": (CnnLstmPolicy, IMAGE, {**SMALL, **LSTM}, "features_extractor"),
    "no LSTM of its own": (
        MlpLstmPolicy,
        FLAT,
        {**LSTM, "features_extractor_class": Layer, "enable_critic_lstm": False},
        "features_extractor",
    ),
    "shared LSTM": (MlpLstmPolicy, FLAT, SHARED_LSTM, "lstm_actor"),
    "shared LSTM, images": (CnnLstmPolicy, IMAGE, {**SMALL, **SHARED_LSTM}, "features_extractor"),
}


def make_model(policy, space, policy_kwargs, **kwargs):
    space = copy.deepcopy(space)
    space.seed(0)
    arguments = {"n_steps": N_STEPS, "critic_epochs": N_EPOCHS, "seed": 0, "device": "cpu", **kwargs}
    return REINFORCE(
        policy, AnySpacesEnv(space, spaces.Discrete(2)), policy_kwargs={"net_arch": [4], **policy_kwargs}, **arguments
    )


def uncached(policy):
    """The same policy, whose method could depend on anything."""
    method = "predict_values" if policy in (CnnPolicy, MlpPolicy, MultiInputPolicy) else "extract_features"
    return type("Uncached", (policy,), {method: lambda self, *args: getattr(policy, method)(self, *args)})


def note_sizes(module):
    sizes = []
    module.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(output[0] if isinstance(output, tuple) else output))
    )
    return sizes


@pytest.mark.filterwarnings("ignore:.*overrides extract_features")
@pytest.mark.parametrize("critic_batch_size", [None, 5])
@pytest.mark.parametrize("name", CACHED)
def test_the_fit_is_the_same_as_without(name, critic_batch_size):
    policy, space, policy_kwargs, _ = CACHED[name]
    fitted = []
    for policy_class in (policy, uncached(policy)):
        # The policy stands still: what it shares is taken as it was when it acted
        settings = {"learning_rate": 0.0, "critic_learning_rate": 0.01, "critic_batch_size": critic_batch_size}
        model = make_model(policy_class, space, policy_kwargs, micro_batch_size=7, **settings)
        model.learn(2 * N_STEPS)
        assert model._n_updates == 2
        fitted.append(model.policy.parameters_to_vector())
    np.testing.assert_allclose(*fitted, atol=1e-5)


@pytest.mark.parametrize("critic_batch_size", [None, 5])
@pytest.mark.parametrize("name", CACHED)
def test_shared_layers_are_computed_once(name, critic_batch_size):
    policy, space, policy_kwargs, layer = CACHED[name]
    n_calls = {}
    for epochs in (1, 4):
        model = make_model(
            policy, space, policy_kwargs, critic_batch_size=critic_batch_size, critic_epochs=epochs, micro_batch_size=7
        )
        module = getattr(model.policy, layer)
        module = module.extractors["image"] if name == "dict" else module
        sizes = note_sizes(module)
        model.learn(N_STEPS)
        n_calls[epochs] = len(sizes)
        assert max(sizes) <= 7
    assert n_calls[1] == n_calls[4] > 0


def test_images_are_seen_as_often_as_in_a2c():
    """Once to act and once to be differentiated."""
    model = make_model(CnnPolicy, IMAGE, SMALL, micro_batch_size=7)
    sizes = note_sizes(model.policy.features_extractor)
    model.learn(2 * N_STEPS)
    assert model._n_updates == 2
    assert sum(sizes) == 2 * model.num_timesteps


@pytest.mark.parametrize("name", ["images", "dict", "own extractor"])
@pytest.mark.parametrize("common_starts", [{}, {"n_steps": None, "n_episodes": 12, "episodes_per_start": 3}], ids=str)
def test_what_is_kept_is_of_the_observation_that_was_acted_on(name, common_starts):
    policy, space, policy_kwargs, _ = CACHED[name]
    envs = DummyVecEnv([lambda: SeededEnv(copy.deepcopy(space), spaces.Discrete(2)) for _ in range(3)])
    # The storage has to grow
    settings = {"n_steps": 2, "seed": 0, "device": "cpu", "policy_kwargs": policy_kwargs, **common_starts}
    model = REINFORCE(policy, envs, learning_rate=0.0, **settings)
    (batch,) = learn_and_look(model, 1, lambda buffer: buffer.whole_episodes())
    with th.no_grad():
        expected = model.policy.extract_features(batch.observations)
        values = model.policy.predict_values(batch.observations).flatten()
    np.testing.assert_allclose(batch.features, expected, atol=1e-5)
    np.testing.assert_allclose(batch.outputs.values, values, atol=1e-5)


@pytest.mark.parametrize(
    ("policy_kwargs", "baseline"), [({"share_features_extractor": False}, "value"), ({}, "leave_one_out")], ids=str
)
def test_nothing_is_kept_that_the_critic_does_not_need(policy_kwargs, baseline):
    model = make_model(CnnPolicy, IMAGE, {**SMALL, **policy_kwargs}, baseline=baseline)
    (batch,) = learn_and_look(model, 1, lambda buffer: buffer.whole_episodes())
    assert batch.features is None


@pytest.mark.parametrize(("frozen", "is_cached"), [(False, False), (True, True)])
def test_layers_that_the_critic_trains_are_computed_for_every_step(frozen, is_cached):
    n_calls = []
    for epochs in (1, 4):
        model = make_model(CnnPolicy, IMAGE, {**SMALL, "share_features_extractor": False}, critic_epochs=epochs)
        extractor = model.policy.vf_features_extractor
        extractor.requires_grad_(not frozen)
        before = [parameter.detach().clone() for parameter in extractor.parameters()]
        sizes = note_sizes(extractor)
        model.learn(N_STEPS)
        moved = any(not th.equal(old, new) for old, new in zip(before, extractor.parameters(), strict=True))
        assert moved != frozen
        n_calls.append(len(sizes))
    assert (n_calls[0] == n_calls[1]) == is_cached
