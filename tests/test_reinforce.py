"""REINFORCE as an SB3 user meets it: spaces, policies, wrappers, callbacks, logs, seeds, and what it says to bad input."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import FixedLengthEnv, UpdatesByHand, optimizer_steps
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_reinforce import REINFORCE, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_reinforce.rollout.buffers import DictEpisodeRolloutBuffer


class AnySpacesEnv(gym.Env):
    """Random observations and rewards, four steps an episode."""

    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps_left = 4
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps_left -= 1
        return self.observation_space.sample(), float(self.np_random.normal()), self.steps_left == 0, False, {}


FLAT = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
ACTION_SPACES = [
    spaces.Discrete(3),
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.Box(-1, 1, (2, 2), np.float32),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
]
OBSERVATION_SPACES = [
    ("MlpPolicy", FLAT),
    ("MlpPolicy", spaces.Box(-1, 1, (2, 2), np.float64)),
    ("MlpPolicy", spaces.Discrete(5)),
    ("MlpPolicy", spaces.MultiDiscrete([3, 4])),
    ("MlpPolicy", spaces.MultiBinary(4)),
    ("CnnPolicy", IMAGE),
    ("MultiInputPolicy", spaces.Dict({"flat": FLAT, "choice": spaces.Discrete(3), "image": IMAGE})),
]


def any_spaces_vec_env(observation_space, action_space, n_envs=2):
    return make_vec_env(lambda: AnySpacesEnv(observation_space, action_space), n_envs)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
@pytest.mark.parametrize("policy, observation_space", OBSERVATION_SPACES[:1] + OBSERVATION_SPACES[-1:])
@pytest.mark.parametrize("baseline", ["value", None])
def test_action_spaces(action_space, policy, observation_space, baseline):
    model = REINFORCE(policy, any_spaces_vec_env(observation_space, action_space), n_episodes=4, baseline=baseline)
    model.learn(40)
    action, _ = model.predict(model.observation_space.sample())
    # SB3 hands out bits as float32, which MultiBinary does not contain
    assert action_space.contains(action.astype(action_space.dtype)) and action.dtype in (action_space.dtype, np.float32)


@pytest.mark.parametrize("policy, observation_space", OBSERVATION_SPACES, ids=lambda x: str(x)[:30])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_observation_spaces(policy, observation_space, n_envs):
    env = any_spaces_vec_env(observation_space, spaces.Discrete(2), n_envs)
    model = REINFORCE(policy, env, n_episodes=3, micro_batch_size=5, critic_batch_size=4)
    model.learn(30)
    assert model._n_updates >= 2


@pytest.mark.parametrize("return_type", ["reward_to_go", "episode"])
@pytest.mark.parametrize("baseline", ["value", "leave_one_out", "time_step", "mean", None])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"discounted_weighting": True, "loss_reduction": "episode", "n_steps": 30},
        {"entropy_in_return": True, "ent_coef": "lin_0.5", "normalize_advantage": True, "n_episodes": 3},
        {"ent_coef": lambda progress: 5.0 * progress, "critic_learning_rate": "lin_0.01", "gamma": 1.0},
    ],
    ids=range(4),
)
def test_every_combination_of_switches_gives_the_gradient_of_its_definition(return_type, baseline, switches):
    env = make_vec_env("CartPole-v1", 2, seed=0)
    switches = switches if "n_episodes" in switches else {"n_steps": 60, **switches}
    # A policy far from the uniform one, at which the entropy has no gradient
    policy_kwargs = {"ortho_init": False, "net_arch": [8]}
    kwargs = {"max_grad_norm": float("inf"), "seed": 0, "device": "cpu", "policy_kwargs": policy_kwargs, **switches}
    assert_updates_are_those_by_hand(REINFORCE("MlpPolicy", env, baseline=baseline, return_type=return_type, **kwargs))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.9])
def test_the_gradient_with_gae(env_id, gae_lambda):
    env = make_vec_env(env_id, 2, seed=0)
    budget = {"n_episodes": 2, "max_rollout_steps": 200}
    kwargs = {**budget, "max_grad_norm": float("inf"), "critic_learning_rate": 1.0, "seed": 0, "device": "cpu"}
    assert_updates_are_those_by_hand(REINFORCE("MlpPolicy", env, gae_lambda=gae_lambda, **kwargs), total_timesteps=450)


def assert_updates_are_those_by_hand(model, total_timesteps=300):
    model.critic_epochs, steps, by_hand = 1, optimizer_steps(model), UpdatesByHand()
    model.learn(total_timesteps, callback=by_hand)
    n_steps = 2 if model.baseline == "value" else 1
    assert len(steps) == n_steps * len(by_hand.updates) == n_steps * model._n_updates > n_steps
    for gradient, update in zip(steps[::n_steps], by_hand.updates, strict=True):
        assert gradient.keys() == update.gradient.keys()
        size = max(np.abs(part).max() for part in update.gradient.values())
        assert size > 0.0
        for name, part in update.gradient.items():
            np.testing.assert_allclose(gradient[name], part, atol=1e-4 * size, rtol=1e-4)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
def test_the_critic_is_fitted_on_advantage_plus_value(gae_lambda):
    model = REINFORCE("MlpPolicy", "CartPole-v1", gae_lambda=gae_lambda, n_steps=20, critic_epochs=1, seed=0, device="cpu")
    by_hand = UpdatesByHand()
    model.learn(1, callback=by_hand)
    # Its first loss is that of the values that were subtracted
    loss = np.mean(by_hand.updates[0].advantages ** 2)
    assert model.logger.name_to_value["train/value_loss"] == pytest.approx(loss, rel=1e-4)


class BringsItsOwnCritic(ActorCriticPolicy):
    """A custom policy that knows nothing of ``use_critic``."""


@pytest.mark.parametrize("policy", ["MlpPolicy", MlpPolicy, BringsItsOwnCritic, ActorCriticPolicy])
@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("baseline", ["value", None])
def test_every_parameter_gets_a_gradient(policy, share_features_extractor, baseline, monkeypatch):
    policy_kwargs = {"share_features_extractor": share_features_extractor, "net_arch": [8]}
    model = REINFORCE(policy, "Pendulum-v1", baseline=baseline, policy_kwargs=policy_kwargs, seed=0, n_episodes=1)
    with_gradient = set()
    step = model.policy.optimizer.step

    def noting_step(*args, **kwargs):
        with_gradient.update(name for name, p in model.policy.named_parameters() if p.grad is not None)
        return step(*args, **kwargs)

    monkeypatch.setattr(model.policy.optimizer, "step", noting_step)
    model.learn(1)
    assert with_gradient == {name for name, _ in model.policy.named_parameters()}
    assert any("value" in name for name in with_gradient) == (baseline == "value")
    obs = th.zeros(1, 3)
    _, values, _ = model.policy(obs)
    assert (values == 0).all() == (baseline is None)
    model.policy.evaluate_actions(obs, th.zeros(1, 1))


@pytest.mark.parametrize(
    "policy_class, space", [(MlpPolicy, FLAT), (CnnPolicy, IMAGE), (MultiInputPolicy, spaces.Dict({"a": FLAT}))]
)
@pytest.mark.parametrize("use_critic", [True, False])
def test_a_policy_can_be_saved_and_loaded_by_itself(policy_class, space, use_critic, tmp_path):
    policy = policy_class(space, spaces.Discrete(2), lambda _: 1e-3, use_critic=use_critic)
    policy.save(tmp_path / "policy.pth")
    loaded = policy_class.load(tmp_path / "policy.pth")
    assert loaded.use_critic == use_critic
    np.testing.assert_array_equal(loaded.parameters_to_vector(), policy.parameters_to_vector())


class SharedLinearExtractor(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.linear = th.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations):
        return self.linear(super().forward(observations))


def test_the_critic_does_not_move_what_it_shares_with_the_actor():
    model = REINFORCE(
        "MlpPolicy", "CartPole-v1", policy_kwargs={"features_extractor_class": SharedLinearExtractor}, seed=0, critic_epochs=3
    )
    steps = optimizer_steps(model)
    model.learn(1)
    policy_step, *critic_steps = steps
    assert "features_extractor.linear.weight" in policy_step and not any("value" in name for name in policy_step)
    critic = {name for name, _ in model.policy.named_parameters() if "value_net" in name}
    assert [set(step) for step in critic_steps] == [critic] * 3


def test_a_large_value_loss_does_not_shrink_the_policy_gradient():
    def policy_parameters(reward_scale, vf_coef):
        env = DummyVecEnv([lambda: FixedLengthEnv([5], reward=reward_scale)])
        model = REINFORCE("MlpPolicy", env, n_steps=5, vf_coef=vf_coef, seed=0, normalize_advantage=True, learning_rate=1e-2)
        model.learn(5)
        return th.cat([p.flatten() for name, p in model.policy.named_parameters() if "value" not in name]).detach()

    assert th.equal(policy_parameters(100.0, 1e-6), policy_parameters(100.0, 1e6))


def test_the_critic_learns_the_returns():
    env = DummyVecEnv([lambda: FixedLengthEnv([10])])
    model = REINFORCE("MlpPolicy", env, n_steps=30, gamma=1.0, seed=0, critic_batch_size=8, critic_epochs=10)
    model.learn(1_500)
    with th.no_grad():
        values = model.policy.predict_values(th.tensor([[0.0, 40.0], [9.0, 40.0]])).flatten().tolist()
    assert values == pytest.approx([10, 1], abs=1.5)


def test_learning_rates_of_policy_and_critic(monkeypatch):
    model = REINFORCE("MlpPolicy", "CartPole-v1", learning_rate=1e-3, critic_learning_rate="lin_0.5", seed=0, critic_epochs=1)
    seen = []
    step = model.policy.optimizer.step
    monkeypatch.setattr(
        model.policy.optimizer, "step", lambda: (seen.append(model.policy.optimizer.param_groups[0]["lr"]), step())
    )
    model.learn(1_000)
    assert seen[::2] == [1e-3] * model._n_updates
    assert 0.5 > seen[1] > seen[3] > 0
    assert model.num_timesteps >= 1_000 and seen[-1] == 0.0


def test_schedules_never_see_what_lies_beyond_their_end():
    seen = []
    env = DummyVecEnv([lambda: FixedLengthEnv([40])])
    model = REINFORCE("MlpPolicy", env, learning_rate=lambda progress: seen.append(progress) or 1e-3, n_steps=30)
    # Three rollouts of one episode each: the last one ends beyond the budget
    model.learn(100)
    assert model.num_timesteps == 120
    assert min(seen) == 0.0


def test_entropy_coefficient_decays():
    class Records(Logger):
        def record(self, key, value, exclude=None):
            seen.setdefault(key, []).append(value)

    class Steps(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            progress_left.append(max(0.0, 1.0 - self.num_timesteps / 2_000))

    seen, progress_left = {}, []
    model = REINFORCE("MlpPolicy", "CartPole-v1", ent_coef="lin_0.5", seed=0)
    model.set_logger(Records(None, []))
    model.learn(2_000, callback=Steps())
    assert len(progress_left) > 3
    np.testing.assert_allclose(seen["train/ent_coef"], 0.5 * np.array(progress_left))


def test_same_seed_same_parameters_bit_for_bit():
    def parameters(seed):
        model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 2), seed=seed, critic_batch_size=32)
        return model.learn(3_000).policy.parameters_to_vector()

    np.testing.assert_array_equal(parameters(5), parameters(5))
    assert not np.array_equal(parameters(5), parameters(6))


LOGGED = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "rollout/episodes",
    "rollout/discarded_fraction",
    "train/policy_loss",
    "train/value_loss",
    "train/entropy_loss",
    "train/explained_variance",
    "train/n_updates",
    "train/std",
    "train/grad_norm",
    "train/return_mean",
    "train/return_std",
    "train/advantage_std",
    "train/ent_coef",
    "train/learning_rate",
    "time/fps",
}


def test_logged_names(tmp_path):
    model = REINFORCE("MlpPolicy", "Pendulum-v1", seed=0)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(1_000, log_interval=1)
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert LOGGED <= set(header)


def test_logged_numbers_of_one_known_rollout():
    env = DummyVecEnv([lambda: FixedLengthEnv([3])])
    model = REINFORCE("MlpPolicy", env, n_steps=3, gamma=0.5, baseline=None, seed=0, max_rollout_steps=10)
    model.set_logger(Logger(None, []))
    model.learn(1)
    logged = model.logger.name_to_value
    returns = np.array([1.75, 1.5, 1.0])
    assert logged["train/return_mean"] == pytest.approx(returns.mean())
    assert logged["train/return_std"] == pytest.approx(returns.std())
    assert logged["train/advantage_std"] == pytest.approx(returns.std())
    assert logged["train/entropy_loss"] == pytest.approx(-np.log(2), abs=1e-3)
    assert logged["train/policy_loss"] == pytest.approx(returns.mean() * np.log(2), abs=2e-2)
    assert logged["train/grad_norm"] > 0
    assert "train/value_loss" not in logged and "train/explained_variance" not in logged


def test_dropout_acts_and_differentiates_the_same_policy():
    class Dropout(FlattenExtractor):
        def forward(self, observations):
            return th.nn.functional.dropout(super().forward(observations), 0.5, self.training)

    model = REINFORCE("MlpPolicy", "CartPole-v1", policy_kwargs={"features_extractor_class": Dropout}, seed=0)
    model.max_grad_norm, steps, by_hand = float("inf"), optimizer_steps(model), UpdatesByHand()
    # By hand, the policy is in the mode in which it acted
    model.learn(1, callback=by_hand)
    for name, part in by_hand.updates[0].gradient.items():
        np.testing.assert_allclose(steps[0][name], part, atol=1e-4)


def test_eval_callback_vec_normalize_and_frame_stack(tmp_path):
    def make_env():
        return VecNormalize(VecFrameStack(make_vec_env("CartPole-v1", 2), 2))

    eval_env = make_env()
    callback = EvalCallback(eval_env, eval_freq=200, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0)
    model = REINFORCE("MlpPolicy", make_env(), seed=0).learn(1_000, callback=callback)
    # The statistics of the training, and rewards as CartPole gives them
    assert 1.0 < eval_env.obs_rms.count <= model.get_vec_normalize_env().obs_rms.count
    assert callback.best_mean_reward >= callback.last_mean_reward >= 8.0
    best = REINFORCE.load(tmp_path / "best_model.zip")
    assert best.observation_space.shape == (8,)
    evaluate_policy(best, eval_env, n_eval_episodes=2)


@pytest.mark.processes
def test_processes_and_images():
    REINFORCE("MlpPolicy", SubprocVecEnv([lambda: gym.make("CartPole-v1")] * 2), n_steps=20).learn(100)
    REINFORCE("CnnPolicy", FakeImageEnv(screen_height=40, screen_width=40, n_channels=1), n_steps=11).learn(30)


def test_progress_bar_and_tensorboard(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", tensorboard_log=str(tmp_path), seed=0)
    model.learn(300, progress_bar=True)
    assert list(tmp_path.glob("REINFORCE_1/events*"))


def test_set_env_and_learning_on():
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0).learn(300)
    model.set_env(gym.make("CartPole-v1"))
    model.learn(300, reset_num_timesteps=False)
    assert model.num_timesteps >= 600


def test_arguments_are_not_changed():
    policy_kwargs = {"net_arch": [8]}
    model = REINFORCE("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, baseline=None)
    assert policy_kwargs == {"net_arch": [8]} == model.policy_kwargs


@pytest.mark.parametrize("micro_batch_size", [None, 16])
def test_n_steps_default(micro_batch_size):
    assert REINFORCE("MlpPolicy", "CartPole-v1", micro_batch_size=micro_batch_size).n_steps == 256
    assert REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=3).n_steps is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_steps": 0}, "n_steps must be .* at least 1, not 0"),
        ({"n_episodes": -1}, "n_episodes must be .* at least 1, not -1"),
        ({"n_steps": 2.5}, "n_steps must be None or a whole number"),
        ({"n_steps": 5, "n_episodes": 5}, "drop n_steps .* or n_episodes"),
        ({"gamma": 1.1}, r"gamma must be in \[0, 1\], not 1.1"),
        ({"gamma": float("nan")}, r"gamma must be in \[0, 1\]"),
        ({"gae_lambda": -0.1}, r"gae_lambda must be in \[0, 1\]"),
        ({"gae_lambda": 0.9, "baseline": None}, "gae_lambda=0.9 .* needs baseline='value'"),
        ({"gae_lambda": 0.9, "return_type": "episode"}, "return_type='reward_to_go'"),
        ({"baseline": "critic"}, "baseline must be one of 'value', .* not 'critic'"),
        ({"return_type": "total"}, "return_type must be one of 'reward_to_go', 'episode', not 'total'"),
        ({"loss_reduction": "sum"}, "loss_reduction must be one of 'step', 'episode', not 'sum'"),
        ({"baseline": "leave_one_out", "n_episodes": 1}, "leave_one_out.*only one"),
        ({"baseline": "time_step", "n_steps": 1}, "time_step.*only one"),
        ({"ent_coef": -0.1}, "ent_coef must never be negative"),
        ({"ent_coef": "lin_-0.1"}, "ent_coef must never be negative"),
        ({"ent_coef": lambda progress: progress - 0.5}, "ent_coef .* -0.5 at progress remaining 0.0"),
        ({"ent_coef": "linear"}, "ent_coef must be a number.*'linear'"),
        ({"ent_coef": "lin_x"}, "ent_coef must be a number.*'lin_x'"),
        ({"ent_coef": "exp_0.1"}, "ent_coef must be a number.*'exp_0.1'"),
        ({"ent_coef": None}, "ent_coef must be a number.*None"),
        ({"critic_learning_rate": "fast"}, "critic_learning_rate must be a number"),
        ({"micro_batch_size": 0}, "micro_batch_size must be"),
        ({"max_rollout_steps": 0}, "max_rollout_steps must be"),
        ({"critic_epochs": 0}, "critic_epochs must be"),
        ({"critic_batch_size": 0}, "critic_batch_size must be"),
        ({"rollout_buffer_class": DictEpisodeRolloutBuffer}, "rollout_buffer_class must derive from .*EpisodeRolloutBuffer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", "CartPole-v1", **arguments)


def test_entropy_in_return_without_entropy_warns():
    with pytest.warns(UserWarning, match="entropy_in_return has no effect with ent_coef=0"):
        REINFORCE("MlpPolicy", "CartPole-v1", entropy_in_return=True)


@pytest.mark.parametrize("baseline", ["leave_one_out", "time_step"])
def test_a_rollout_with_one_episode_falls_back_and_warns_once(baseline):
    env = DummyVecEnv([lambda: FixedLengthEnv([20])])
    model = REINFORCE("MlpPolicy", env, n_steps=10, baseline=baseline, seed=0)
    with pytest.warns(UserWarning, match=f"baseline='{baseline}'.*Raise n_steps") as caught:
        model.learn(60)
    assert len([warning for warning in caught if "single episode" in str(warning.message)]) == 1


class OverriddenDistribution(MlpPolicy):
    """Samples from PyTorch's distribution objects, which check their parameters."""

    def get_distribution(self, obs):
        return super().get_distribution(obs)


class PoisonedEnv(FixedLengthEnv):
    """Gives a number that cannot be learned from, at the third step of its second episode."""

    def __init__(self, reward=1.0, observation=0.0):
        super().__init__([4])
        self.poison = (reward, observation)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.episode == 1 and self.time == 3:
            reward = self.poison[0]
            observation[1] += self.poison[1]
        return observation, reward, *rest


def state_of(model):
    return [th.cat([p.detach().flatten() for p in model.policy.parameters()]), *optimizer_tensors(model)]


def optimizer_tensors(model):
    return [tensor.clone() for state in model.policy.optimizer.state.values() for tensor in state.values()]


def assert_failure_changes_nothing(model, message):
    model.max_rollout_steps = 100
    model.learn(1)
    before = state_of(model)
    assert len(before) > 5
    with pytest.raises(ValueError, match=message):
        model.learn(1, reset_num_timesteps=False)
    for old, new in zip(before, state_of(model), strict=True):
        assert th.equal(old, new)


@pytest.mark.parametrize(
    "poison, message",
    [
        ({"reward": float("nan")}, "reward of environment 1 at step 2 of the rollout is nan"),
        ({"reward": float("inf")}, "reward of environment 1 at step 2 of the rollout is inf"),
        ({"observation": float("nan")}, "observation of environment 1 at step 3 of the rollout is nan"),
        ({"observation": float("-inf")}, "observation of environment 1 at step 3 of the rollout is -inf"),
    ],
)
@pytest.mark.parametrize(
    "policy, policy_kwargs",
    [("MlpPolicy", {}), ("MlpPolicy", {"activation_fn": th.nn.SiLU}), (OverriddenDistribution, {})],
    ids=["numpy", "torch", "distribution"],
)
def test_poisoned_environment(poison, message, policy, policy_kwargs):
    env = DummyVecEnv([lambda: FixedLengthEnv([4]), lambda: PoisonedEnv(**poison)])
    assert_failure_changes_nothing(REINFORCE(policy, env, n_steps=4, seed=0, policy_kwargs=policy_kwargs), message)


def test_poisoned_dict_observation():
    class PoisonedDictEnv(gym.ObservationWrapper):
        def __init__(self):
            super().__init__(PoisonedEnv(observation=float("nan")))
            self.observation_space = spaces.Dict({"only": self.env.observation_space})

        def observation(self, observation):
            return {"only": observation}

    model = REINFORCE("MultiInputPolicy", DummyVecEnv([PoisonedDictEnv]), n_steps=4, seed=0)
    assert_failure_changes_nothing(model, r"observation\['only'\] of environment 0 at step 3")


def test_overflowing_value_loss():
    env = DummyVecEnv([lambda: PoisonedEnv(reward=1e30)])
    model = REINFORCE("MlpPolicy", env, n_steps=4, seed=0, normalize_advantage=True)
    assert_failure_changes_nothing(model, "gradient of the critic is (inf|nan)")


def test_overflowing_policy_loss():
    env = DummyVecEnv([lambda: PoisonedEnv(reward=3e38)])
    assert_failure_changes_nothing(
        REINFORCE("MlpPolicy", env, n_steps=4, seed=0, loss_reduction="episode"), "(policy|log-probability).*(inf|nan|finite)"
    )


def test_log_probability_that_is_not_finite_names_the_step(monkeypatch):
    model = REINFORCE("MlpPolicy", DummyVecEnv([lambda: FixedLengthEnv([4])] * 1 + [lambda: FixedLengthEnv([3])]), n_steps=3)
    model.max_rollout_steps = 10
    distribution = type(model.policy.action_dist)
    log_prob = distribution.log_prob

    def poisoned(self, actions):
        result = log_prob(self, actions)
        result[5] = -float("inf")
        return result

    monkeypatch.setattr(distribution, "log_prob", poisoned)
    with pytest.raises(ValueError, match="environment 1 at step 1 of the rollout"):
        model.learn(1)


@pytest.mark.processes
def test_import_needs_neither_the_zoo_nor_matplotlib():
    heavy = ("rl_zoo3", "matplotlib", "optuna", "envpool", "seaborn", "pandas")
    code = f"import sys, sb3_reinforce; print(*[module for module in {heavy} if module in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_a_compiled_policy_learns_the_same(policy):
    parameters = []
    for is_compiled in (False, True):
        model = REINFORCE(policy, "CartPole-v1", n_episodes=2, seed=0, device="cpu")
        own = model.policy
        if is_compiled:
            model.policy = th.compile(own, backend="eager")
        model.learn(100)
        parameters.append(own.parameters_to_vector())
    np.testing.assert_array_equal(*parameters)


@pytest.mark.parametrize("use_critic, baseline", [(False, "value"), (True, None)])
def test_whether_there_is_a_critic_is_for_the_baseline_to_say(use_critic, baseline):
    with pytest.raises(ValueError, match=f"policy_kwargs: use_critic={use_critic} contradicts baseline"):
        REINFORCE("MlpPolicy", "CartPole-v1", baseline=baseline, policy_kwargs={"use_critic": use_critic})
    model = REINFORCE("MlpPolicy", "CartPole-v1", baseline=baseline, policy_kwargs={"use_critic": not use_critic})
    assert model.policy.use_critic == (not use_critic)
