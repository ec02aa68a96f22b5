"""Every numeric argument has a type and a range, and every space that SB3's policies would misread is refused."""

import dataclasses
import inspect
import math
import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from test_reinforce import AnySpacesEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.arguments import NUMERIC_ARGUMENTS, SWITCHES
from sb3_reinforce.functional.baselines import make_baseline
from sb3_reinforce.functional.estimator import Estimator

SCHEDULES = ["learning_rate", "ent_coef", "critic_learning_rate", "target_kl"]
MAY_BE_NONE = {
    "episodes_per_start",
    "n_steps",
    "n_episodes",
    "critic_batch_size",
    "micro_batch_size",
    "max_rollout_steps",
    "fisher_max_steps",
}
MAY_BE_NONE |= {"policy_averaging", "seed"}


def make(**arguments):
    return REINFORCE("MlpPolicy", "CartPole-v1", **arguments)


def test_the_estimator_has_the_defaults_of_the_algorithm():
    parameters = inspect.signature(REINFORCE).parameters
    for field in dataclasses.fields(Estimator):
        default, wanted = field.default, parameters[field.name].default
        assert default == wanted or type(default) is type(make_baseline(wanted)), field.name


def test_the_table_has_every_numeric_argument():
    parameters = inspect.signature(REINFORCE).parameters.values()
    numeric = {p.name for p in parameters if any(kind in str(p.annotation).split(" | ") for kind in ("<class 'int'>", "int"))}
    numeric |= {p.name for p in parameters if "float" in str(p.annotation)}
    assert numeric - {"verbose"} == {*NUMERIC_ARGUMENTS, *SCHEDULES}


def test_what_is_on_or_off_is_a_boolean():
    parameters = inspect.signature(REINFORCE).parameters.values()
    assert {p.name for p in parameters if p.annotation in (bool, "bool")} == {*SWITCHES, "distributed", "_init_setup_model"}
    for name in SWITCHES:
        for value in (1, 0, "false", None, []):
            with pytest.raises(ValueError, match=f"^{name} must be True or False, not {re.escape(repr(value))}$"):
                REINFORCE("MlpPolicy", "Pendulum-v1", **{name: value})
    assert make(normalize_advantage=np.bool_(True)).normalize_advantage


@pytest.mark.parametrize("name", NUMERIC_ARGUMENTS)
@pytest.mark.parametrize("value", [True, "5", "a", [1], float("nan"), -2, complex(1)], ids=repr)
def test_values_of_the_wrong_type_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        make(**{name: value})


@pytest.mark.parametrize("name", NUMERIC_ARGUMENTS)
def test_none_is_refused_where_it_means_nothing(name):
    if name in MAY_BE_NONE:
        make(**{name: None})
    else:
        with pytest.raises(ValueError, match=f"^{name} must be .*, not None"):
            make(**{name: None})


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("n_steps", [1, np.int64(3)], [0, 2.0, np.float64(2.0), float("inf")]),
        ("n_episodes", [1], [0, 1.0]),
        ("gamma", [0, 1, 0.5, np.float32(0.5)], [-1e-9, 1.001]),
        ("gae_lambda", [0.0, 1], [1.1]),
        ("vf_coef", [0.0, 3], [-1, -1e-9, float("inf")]),
        ("critic_epochs", [1], [0, 1.5]),
        ("max_grad_norm", [1e-3, 2, float("inf")], [0, -1, -float("inf")]),
        ("sde_sample_freq", [-1, 0, 4], [-2, 4.0]),
        ("stats_window_size", [1], [0, 10.0]),
        ("seed", [0, 2**32 - 1], [-1, 2**32, 1.0]),
    ],
)
def test_ranges(name, good, bad):
    for value in good:
        make(**{name: value})
    for value in bad:
        with pytest.raises(ValueError, match=f"^{name} must be .*, not "):
            make(**{name: value})


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("value", [True, "fast", -1, float("nan"), [1.0]], ids=repr)
def test_schedules_of_the_wrong_type_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must "):
        make(**{name: value})


FAILING_SCHEDULES = {
    "ZeroDivisionError: float division by zero": lambda progress: 1e-3 / progress,
    "ValueError: math domain error": lambda progress: math.log(progress),
    "TypeError: float.. argument must be": lambda progress: None,
    "KeyError: 1.0": lambda progress: {}[progress],
}


@pytest.mark.filterwarnings("ignore:target_kl. no effect")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("message", FAILING_SCHEDULES)
def test_a_schedule_that_fails_is_named(name, message):
    with pytest.raises(ValueError, match=f"^{name} fails at progress remaining [01].0 with {message}"):
        make(**{name: FAILING_SCHEDULES[message]})


@pytest.mark.parametrize(
    "value, message", [(float("nan"), "but is nan"), (-1.0, "but is -1.0"), ("a", "fails at .* ValueError")]
)
@pytest.mark.parametrize("name", ["learning_rate", "critic_learning_rate", "ent_coef"])
def test_a_schedule_that_fails_later_is_named_and_changes_nothing(name, value, message):
    model = make(n_steps=10, seed=0, **{name: lambda progress: 0.01 if progress in (0.0, 1.0) else value})
    before = model.policy.parameters_to_vector()
    with pytest.raises(ValueError, match=f"^{name} .*{message}"):
        model.learn(1000)
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), before)


def test_the_learning_rate_may_decay():
    model = make(learning_rate="lin_0.01", n_steps=20, seed=0, normalize_advantage=True)
    assert model.lr_schedule(1.0) == pytest.approx(0.01) and model.lr_schedule(0.25) == pytest.approx(0.0025)
    assert model.critic_lr_schedule(0.25) == pytest.approx(0.0025)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    model.learn(200)
    assert model.logger.name_to_value["train/learning_rate"] == 0.0
    assert make(learning_rate=np.float32(0.5)).lr_schedule(1.0) == 0.5


def test_arguments_are_checked_on_loading_too(tmp_path):
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match="max_grad_norm must be above 0"):
        REINFORCE.load(tmp_path / "model", max_grad_norm=0)


FLAT = spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize(
    "observation_space, action_space, message",
    [
        (FLAT, spaces.Discrete(3, start=5), r"action space Discrete\(3, start=5\) does not start at 0.*TransformAction$"),
        (FLAT, spaces.MultiDiscrete([2, 3], start=[0, 1]), r"action space MultiDiscrete\(\[2 3\].* does not start at 0"),
        (
            FLAT,
            spaces.MultiDiscrete([[2, 3], [4, 5]]),
            r"MultiDiscrete\(\[\[2 3\] \[4 5\]\]\) has 2 dimensions.*flatten",
        ),
        (FLAT, spaces.Box(0, 5, (2,), np.int32), r"action space Box\(0, 5, \(2,\), int32\) holds whole numbers"),
        (spaces.Discrete(3, start=1), spaces.Discrete(2), r"observation space Discrete\(3, start=1\).*TransformObservation$"),
        (
            spaces.MultiDiscrete([2, 2], start=[1, 1]),
            spaces.Discrete(2),
            "observation space MultiDiscrete.*not start at 0",
        ),
        (spaces.MultiDiscrete([[2], [3]]), spaces.Discrete(2), "observation space MultiDiscrete.*has 2 dimensions"),
        (
            spaces.Box(-1, 1, (), np.float32),
            spaces.Discrete(2),
            r"observation space Box\(.*, \(\), float32\) has no dim",
        ),
        (
            spaces.Dict({"good": FLAT, "bad": spaces.Box(-1, 1, (), np.float32)}),
            spaces.Discrete(2),
            r"observation space at key 'bad' Box\(-1.0, 1.0, \(\), float32\) has no dimension.*reshape it to \(1,\)",
        ),
    ],
)
def test_spaces_that_would_be_misread_are_refused_in_one_line(observation_space, action_space, message):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    env = make_vec_env(lambda: AnySpacesEnv(observation_space, action_space), 2)
    with pytest.raises(ValueError, match=message) as refusal:
        REINFORCE(policy, env)
    assert "\n" not in str(refusal.value)


def test_the_wrapper_that_is_named_helps():
    class Shifted(AnySpacesEnv):
        def __init__(self):
            super().__init__(FLAT, spaces.Discrete(3, start=5))

    env = make_vec_env(lambda: gym.wrappers.TransformAction(Shifted(), lambda action: action + 5, spaces.Discrete(3)), 2)
    REINFORCE("MlpPolicy", env, n_episodes=4).learn(40)


@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (), np.float32), spaces.Box(-1, 1, (2,), np.float64)], ids=str)
def test_spaces_that_look_odd_and_are_not(action_space):
    model = REINFORCE("MlpPolicy", make_vec_env(lambda: AnySpacesEnv(FLAT, action_space), 2), n_episodes=4).learn(40)
    assert model.predict(FLAT.sample())[0].shape == action_space.shape


class Sets(BaseCallback):
    """Sets an attribute before the first update, as SB3's users do where it takes no schedule."""

    def __init__(self, name, value):
        super().__init__()
        self.name, self.value = name, value

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        setattr(self.model, self.name, self.value)


@pytest.mark.parametrize(
    "name, value, kwargs",
    [
        ("ent_coef", 5.0, {}),
        ("target_kl", 0.001, {"natural_gradient": True}),
        ("critic_learning_rate", 0.1, {}),
    ],
)
def test_what_a_callback_sets_is_used(name, value, kwargs):
    parameters = []
    for given, callback in (({}, Sets(name, value)), ({name: value}, None), ({}, None)):
        model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=4, seed=0, device="cpu", **kwargs, **given)
        model.learn(1, callback=callback)
        parameters.append(model.policy.parameters_to_vector())
    np.testing.assert_array_equal(parameters[0], parameters[1])
    assert not np.array_equal(parameters[0], parameters[2])


@pytest.mark.parametrize("natural_gradient", [False, True])
def test_another_learning_rate_is_the_critics_too(natural_gradient, tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=4, seed=0, device="cpu", natural_gradient=natural_gradient)
    model.save(tmp_path / "model")
    model = REINFORCE.load(tmp_path / "model", env=model.env, learning_rate=0.0)
    before = [parameter.clone() for parameter in model.policy.value_net.parameters()]
    model.learn(1)
    assert all(map(th.equal, before, model.policy.value_net.parameters()))
    model = REINFORCE.load(tmp_path / "model", learning_rate="lin_0.01")
    assert model.critic_lr_schedule(0.5) == model.lr_schedule(0.5) == pytest.approx(0.005)


def test_modules_among_the_arguments_of_a_policy_stay_the_users():
    encoder = th.nn.Linear(4, 8)

    class Encoded(BaseFeaturesExtractor):
        def __init__(self, observation_space, modules):
            super().__init__(observation_space, 8)
            self.encoder = modules["encoder"]
            modules.clear()

        def forward(self, observations):
            return self.encoder(observations)

    policy_kwargs = {
        "features_extractor_class": Encoded,
        "features_extractor_kwargs": {"modules": {"encoder": encoder}},
    }
    model = REINFORCE("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, device="cpu")
    assert model.policy.features_extractor.encoder is encoder
    # What a policy does to its arguments stays its own
    assert model.policy_kwargs["features_extractor_kwargs"] == {"modules": {"encoder": encoder}}


class Forbids(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions):
        return super().evaluate_actions(obs, actions)


class ForbidsEverywhere(Forbids):
    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(latent_pi)


def test_a_policy_that_evaluates_in_a_way_of_its_own_but_does_not_act_so_is_refused():
    with pytest.raises(ValueError, match="Forbids overrides evaluate_actions, but neither get_distribution nor"):
        REINFORCE(Forbids, "CartPole-v1")
    REINFORCE(ForbidsEverywhere, "CartPole-v1", n_episodes=1, device="cpu").learn(1)


def few_updates(n_envs, total_timesteps, **kwargs):
    model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", n_envs), **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(total_timesteps)
        model.learn(total_timesteps, reset_num_timesteps=False)
    return [str(warning.message) for warning in caught if "gradient step" in str(warning.message)]


def test_few_updates_are_warned_about_once_at_the_start():
    (warning,) = few_updates(8, 4_000)
    assert "at most 2 gradient steps, each after" in warning
    assert "n_steps=256 steps of every environment (n_envs=8)" in warning
    assert "lower n_steps or take fewer environments" in warning
    # The number is right: updates that the budget allows
    assert few_updates(1, 1)[0].startswith("total_timesteps=1: the policy takes at most 1 gradient step, each after")


def test_a_callback_may_end_a_training_without_a_budget():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=8)
    assert model.learn(float("inf"), callback=lambda *_: model.num_timesteps < 50).num_timesteps == 50


def test_enough_updates_are_not_warned_about():
    assert few_updates(2, 20 * 2 * 8, n_steps=8) == []
    assert few_updates(2, 20 * 2 * 8 - 16, n_steps=8) != []
    # Nobody knows how many steps an episode has
    assert few_updates(1, 1, n_episodes=2) == []
