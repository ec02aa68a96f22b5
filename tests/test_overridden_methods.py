"""Whatever a policy overrides between observation and distribution or value acts and is differentiated, or is refused."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import FixedLengthEnv
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor

from sb3_reinforce import REINFORCE, MlpPolicy
from sb3_reinforce.policies.actor_critic import OptionalCriticMixin
from sb3_reinforce.policies.recurrent import MlpLstmPolicy

BASES = {"SB3": ActorCriticPolicy, "ours": MlpPolicy, "sb3-contrib": RecurrentActorCriticPolicy, "LSTM": MlpLstmPolicy}
PLAIN, RECURRENT = ["SB3", "ours"], ["sb3-contrib", "LSTM"]
WARNED = "ignore:.*overrides extract_features, which training calls"


def counting(base, method, change=lambda result: result):
    """A policy class that counts the calls of one of its methods, and changes what it returns."""

    def call(self, *args, **kwargs):
        self.calls[0] += 1
        return change(getattr(base, method)(self, *args, **kwargs))

    return type("Overriding", (base,), {method: call, "calls": [0]})


class CallsWhileCollecting(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.calls = self.model.policy.calls[0]
        self.log_probs, self.values = (getattr(self.model.rollout_buffer, name).copy() for name in ("log_probs", "values"))
        self.parameters = [parameter.detach().clone() for parameter in self.model.policy.parameters()]
        self.calls_before_update = self.model.policy.calls[0]


def learn_and_count(model):
    callback = CallsWhileCollecting()
    model.learn(1, callback=callback)
    return callback, model.policy.calls[0] - callback.calls_before_update


def make_model(policy, algorithm=REINFORCE, **kwargs):
    env = make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [5]})
    return algorithm(policy, env, n_steps=5, seed=0, device="cpu", **kwargs)


def shifted(features):
    return tuple(part + 1.0 for part in features) if isinstance(features, tuple) else features + 1.0


@pytest.mark.filterwarnings(WARNED)
@pytest.mark.parametrize("baseline", ["value", None])
@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("base", BASES)
def test_extract_features_acts_and_is_differentiated(base, share_features_extractor, baseline):
    policy_kwargs = {"share_features_extractor": share_features_extractor}
    model = make_model(counting(BASES[base], "extract_features", shifted), baseline=baseline, policy_kwargs=policy_kwargs)
    seen, calls_of_update = learn_and_count(model)
    assert seen.calls >= 5 and calls_of_update > 0

    # SB3's own evaluation, by the policy that acted
    policy, batch = model.policy, model.rollout_buffer.whole_episodes()
    with th.no_grad():
        for parameter, before in zip(policy.parameters(), seen.parameters, strict=True):
            parameter.copy_(before)
        memory = ()
        if base in RECURRENT:
            state = tuple(th.zeros(policy.lstm_actor.num_layers, 2, policy.lstm_actor.hidden_size) for _ in range(2))
            memory = (RNNStates(state, state), th.zeros(10))
        values, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions.flatten(), *memory)
    np.testing.assert_allclose(seen.log_probs, log_prob.view(2, 5).T, atol=1e-6)
    if baseline == "value":
        np.testing.assert_allclose(seen.values, values.view(2, 5).T, atol=1e-5)


@pytest.mark.filterwarnings(WARNED)
@pytest.mark.parametrize("algorithm", [REINFORCE, A2C])
def test_actions_are_those_of_the_overridden_features(algorithm):
    model = make_model(
        counting(ActorCriticPolicy, "extract_features", lambda features: th.full_like(features, -1.0)), algorithm
    )
    with th.no_grad():
        model.policy.mlp_extractor.policy_net = th.nn.Sequential()
        model.policy.action_net = th.nn.Linear(2, 2, bias=False)
        # Time and episode are at least 0, so that the first action is the likely one wherever the method is not called
        model.policy.action_net.weight.copy_(th.tensor([[50.0, 50.0], [-50.0, -50.0]]))
    model.policy.mlp_extractor.latent_dim_pi = 2
    seen = []

    class Note(BaseCallback):
        def _on_step(self):
            seen.append(self.locals["actions"].copy())
            return True

    model.learn(1, callback=Note())
    assert np.all(np.stack(seen[:5]) == 1)


def test_predict_is_warned_about():
    with pytest.warns(
        UserWarning, match="Overriding overrides extract_features, which training calls, and SB3's predict does not"
    ):
        make_model(counting(MlpPolicy, "extract_features"))


@pytest.mark.filterwarnings(WARNED)
@pytest.mark.parametrize("on_instance", [False, True])
@pytest.mark.parametrize(
    ("base", "method"),
    [
        *((base, method) for base in BASES for method in ("extract_features", "_get_action_dist_from_latent")),
        *((base, method) for base in PLAIN for method in ("get_distribution", "forward")),
    ],
)
def test_what_acts_is_called_in_both(base, method, on_instance):
    if on_instance:
        model = make_model(BASES[base])
        policy, original = model.policy, getattr(model.policy, method)
        policy.calls = [0]

        def call(*args, **kwargs):
            policy.calls[0] += 1
            return original(*args, **kwargs)

        setattr(policy, method, call)
    else:
        model = make_model(counting(BASES[base], method))
    seen, calls_of_update = learn_and_count(model)
    # Values are asked for when the rollout is over
    assert seen.calls >= 5 and seen.calls_before_update + calls_of_update > 5


@pytest.mark.parametrize("base", PLAIN)
def test_predict_values_is_what_is_fitted(base):
    model = make_model(counting(BASES[base], "predict_values"))
    _, calls_of_update = learn_and_count(model)
    assert calls_of_update >= model.critic_epochs


@pytest.mark.parametrize(
    ("base", "method"),
    [
        *((base, method) for base in PLAIN for method in ("evaluate_actions", "_predict", "obs_to_tensor")),
        *((base, method) for base in RECURRENT for method in ("evaluate_actions", "_predict", "obs_to_tensor", "forward")),
        *((base, method) for base in RECURRENT for method in ("get_distribution", "predict_values", "_process_sequence")),
    ],
)
def test_what_would_not_be_called_is_refused(base, method):
    with pytest.raises(ValueError, match=f"^Overriding overrides {method}"):
        make_model(counting(BASES[base], method))
    model = make_model(BASES[base])
    setattr(model.policy, method, getattr(model.policy, method))
    with pytest.raises(ValueError, match=f"^{BASES[base].__name__} overrides {method}"):
        model.learn(1)


def test_a_forward_that_acts_otherwise_is_refused():
    class Tempered(ActorCriticPolicy):
        def forward(self, obs, deterministic=False):
            latent = self.mlp_extractor.forward_actor(self.extract_features(obs))
            distribution = self.action_dist.proba_distribution(self.action_net(latent) * 50.0 + th.tensor([0.0, 1.0]))
            actions = distribution.get_actions(deterministic)
            return actions, self.predict_values(obs), distribution.log_prob(actions)

    with pytest.raises(ValueError, match="Tempered: forward has other log-probabilities than get_distribution"):
        make_model(Tempered).learn(1)


@pytest.mark.parametrize("base", PLAIN)
def test_forward_does_not_act_beside_an_overridden_distribution(base):
    class Both(BASES[base]):
        def forward(self, obs, deterministic=False):
            calls.append(len(obs))
            return super().forward(obs, deterministic)

        def get_distribution(self, obs):
            return super().get_distribution(obs)

    class NotCalled(BaseCallback):
        def _on_step(self):
            assert calls == []
            return True

    calls = []
    make_model(Both).learn(1, callback=NotCalled())
    # Its values are used when the rollout is over
    assert calls == [10]


@pytest.mark.parametrize(
    ("action_space", "use_sde"),
    [
        (spaces.Box(-1, 1, (2, 3)), False),
        (spaces.Box(-1, 1, (2, 3)), True),
        (spaces.MultiDiscrete([2, 3]), False),
        (spaces.MultiBinary(3), False),
    ],
    ids=str,
)
def test_forward_samples_every_kind_of_action(action_space, use_sde):
    class Env(FixedLengthEnv):
        def __init__(self):
            super().__init__([5])
            self.action_space = action_space

        def step(self, action):
            assert np.shape(action) == action_space.shape
            return super().step(action)

    squash = {"policy_kwargs": {"squash_output": True}} if use_sde else {}
    model = REINFORCE(counting(MlpPolicy, "forward"), make_vec_env(Env, 2), n_steps=5, device="cpu", use_sde=use_sde, **squash)
    assert learn_and_count(model)[0].calls >= 5


class HalfExtractor(MlpExtractor):
    def forward(self, features):
        return super().forward(features * 2)


class WholeExtractor(HalfExtractor):
    def forward_actor(self, features):
        return super().forward_actor(features * 2)

    def forward_critic(self, features):
        return super().forward_critic(features * 2)

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)


@pytest.mark.parametrize(("extractor", "is_refused"), [(HalfExtractor, True), (WholeExtractor, False)])
def test_an_extractor_that_overrides_only_forward_is_refused(extractor, is_refused):
    class Policy(MlpPolicy):
        def _build_mlp_extractor(self):
            self.mlp_extractor = extractor(self.features_dim, self.net_arch, self.activation_fn, self.device)

    if is_refused:
        with pytest.raises(ValueError, match="Policy: HalfExtractor overrides forward, but neither forward_actor nor"):
            make_model(Policy)
    else:
        make_model(Policy).learn(1)


@pytest.mark.parametrize("part", ["features_extractor", "mlp_extractor", "action_net"])
def test_a_network_that_is_replaced_on_an_instance_acts(part):
    model, calls = make_model(MlpPolicy), []
    network = getattr(model.policy, part)
    method = "forward_actor" if part == "mlp_extractor" else "forward"
    original = getattr(network, method)
    setattr(network, method, lambda *args: (calls.append(1), original(*args))[1])

    class Count(BaseCallback):
        def _on_step(self):
            self.calls = len(calls)
            return True

    callback = Count()
    model.learn(1, callback=callback)
    assert callback.calls >= 5 and len(calls) > callback.calls


def test_a_method_of_the_users_below_the_mixin_acts():
    users = counting(ActorCriticPolicy, "get_distribution")
    model = make_model(type("Mixed", (OptionalCriticMixin, users), {}))
    seen, calls_of_update = learn_and_count(model)
    assert seen.calls >= 5 and calls_of_update > 0
