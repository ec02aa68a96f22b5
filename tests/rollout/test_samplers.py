"""All ways of sampling draw from the same distribution, and nothing but the action is computed while collecting."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_reinforce import REINFORCE, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_reinforce.rollout import make_action_sampler
from sb3_reinforce.rollout import samplers as sampling
from sb3_reinforce.rollout.samplers import DistributionSampler, NumpyMlpActor, TorchActor

ACTION_SPACES = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "box2d": spaces.Box(-1, 1, (2, 2), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
OBSERVATION_SPACE = spaces.Box(-5, 5, (2, 3), np.float64)
IMAGES = spaces.Box(0, 255, (1, 36, 36), np.uint8)


def make_policy(action_space, policy_class=MlpPolicy, observation_space=OBSERVATION_SPACE, **kwargs):
    th.manual_seed(0)
    policy = policy_class(observation_space, action_space, lambda _: 1e-3, **kwargs)
    # The initial policy has no biases and acts almost uniformly, which would hide mistakes
    with th.no_grad():
        for linear in (module for module in policy.modules() if isinstance(module, nn.Linear)):
            linear.bias.normal_(std=0.3)
        policy.action_net.weight.mul_(50)
        if isinstance(action_space, spaces.Box) and not policy.use_sde:
            policy.log_std.copy_(th.linspace(-1, 0.5, len(policy.log_std)))
    policy.set_training_mode(False)
    return policy


def observations(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *OBSERVATION_SPACE.shape))


def parameters_of(distribution):
    inner = distribution.distribution
    if isinstance(inner, list):
        return th.cat([part.logits for part in inner], dim=1)
    return inner.logits if hasattr(inner, "logits") else inner.mean


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("net_arch", [[], [8], [64, 64], [7, 5, 3]], ids=str)
@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("n_envs", [1, 5])
def test_numpy_and_torch_give_the_same_distribution_parameters(action_space, net_arch, activation_fn, n_envs):
    policy = make_policy(action_space, net_arch=net_arch, activation_fn=activation_fn)
    obs = observations(n_envs)
    in_numpy, in_torch = NumpyMlpActor(policy, n_envs)(obs), TorchActor(policy)(obs)
    np.testing.assert_allclose(in_numpy, in_torch, rtol=1e-4, atol=1e-5)
    with th.no_grad():
        reference = parameters_of(policy.get_distribution(th.as_tensor(obs)))
    if isinstance(action_space, spaces.Discrete):
        in_numpy = th.log_softmax(th.as_tensor(in_numpy), dim=1).numpy()
    if not isinstance(action_space, spaces.MultiDiscrete):
        np.testing.assert_allclose(in_numpy, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(7),
        spaces.MultiBinary((2, 3)),
        spaces.Dict({"z": spaces.Discrete(5), "a": OBSERVATION_SPACE, "b": spaces.MultiBinary(4)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 5])
def test_numpy_and_torch_see_the_same_in_other_observations(space, n_envs):
    policy_class = MultiInputPolicy if isinstance(space, spaces.Dict) else MlpPolicy
    policy = make_policy(spaces.Discrete(4), policy_class, space)
    space.seed(0)
    samples = [space.sample() for _ in range(n_envs)]
    if isinstance(space, spaces.Dict):
        obs = {key: np.stack([sample[key] for sample in samples]) for key in space}
    else:
        obs = np.stack(samples)
    np.testing.assert_allclose(NumpyMlpActor(policy, n_envs)(obs), TorchActor(policy)(obs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("policy_class", [MlpPolicy, ActorCriticPolicy])
def test_samples_have_the_frequencies_and_moments_of_the_distribution(action_space, policy_class):
    policy = make_policy(action_space, policy_class)
    n_samples = 100_000
    obs = observations(1, seed=1)
    sample = make_action_sampler(policy, n_samples, np.random.default_rng(0))
    assert isinstance(sample.actor, NumpyMlpActor)
    drawn = sample(np.repeat(obs, n_samples, axis=0))
    assert drawn.shape == (n_samples, *action_space.shape)
    drawn = drawn.reshape(n_samples, -1)
    with th.no_grad():
        exact = policy.get_distribution(th.as_tensor(obs)).distribution
    five_sigma = 5 / np.sqrt(n_samples)
    if isinstance(action_space, spaces.Box):
        mean, std = exact.mean[0].numpy(), exact.stddev[0].numpy()
        np.testing.assert_allclose((drawn.mean(axis=0) - mean) / std, 0, atol=five_sigma)
        np.testing.assert_allclose(drawn.std(axis=0) / std, 1, atol=five_sigma)
        np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(drawn.shape[1]), atol=five_sigma)
        return
    if isinstance(action_space, spaces.MultiBinary):
        probabilities = [[1 - p, p] for p in exact.probs[0].tolist()]
    else:
        parts = exact if isinstance(exact, list) else [exact]
        probabilities = [part.probs[0].tolist() for part in parts]
    for own, expected in zip(drawn.T, probabilities, strict=True):
        share = np.bincount(own.astype(int), minlength=len(expected)) / n_samples
        np.testing.assert_allclose(share, expected, atol=five_sigma / 2)
        assert 0.05 < max(expected) < 0.95, "hardly a distribution"


@pytest.mark.parametrize("action_space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3, 4])], ids=str)
@pytest.mark.parametrize("block_size", [1, 10**9], ids=["large action space", "small"])
def test_both_ways_to_draw_gumbel_noise_have_the_frequencies_of_the_distribution(action_space, block_size, monkeypatch):
    monkeypatch.setattr(sampling, "NOISE_BLOCK_SIZE", block_size)
    monkeypatch.setattr(sampling, "NOISE_BLOCK_STEPS", 256 if block_size == 1 else 1)
    policy = make_policy(action_space)
    n_samples = 50_000
    sample = make_action_sampler(policy, n_samples, np.random.default_rng(0))
    drawn = sample(np.repeat(observations(1), n_samples, axis=0)).reshape(n_samples, -1)
    with th.no_grad():
        exact = policy.get_distribution(th.as_tensor(observations(1))).distribution
    for own, part in zip(drawn.T, exact if isinstance(exact, list) else [exact], strict=True):
        share = np.bincount(own, minlength=part.probs.shape[1]) / n_samples
        np.testing.assert_allclose(share, part.probs[0], atol=5 / np.sqrt(n_samples) / 2)


def test_multi_discrete_parts_are_independent():
    policy = make_policy(spaces.MultiDiscrete([2, 2]))
    sample = make_action_sampler(policy, 40_000, np.random.default_rng(0))
    drawn = sample(np.repeat(observations(1), 40_000, axis=0))
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03


def test_noise_differs_between_steps_and_environments():
    policy = make_policy(spaces.Box(-1, 1, (1,), np.float32))
    sample = make_action_sampler(policy, 2, np.random.default_rng(0))
    obs = np.repeat(observations(1), 2, axis=0)
    drawn = np.stack([sample(obs) for _ in range(600)]).reshape(600, 2)
    assert len(np.unique(drawn)) == 1200


def noise_of_first_steps(policy, n_envs, n_steps, rng):
    sample = make_action_sampler(policy, n_envs, rng)
    return np.stack([sample(np.zeros((n_envs, *OBSERVATION_SPACE.shape))) for _ in range(n_steps)])


class CountingGenerator:
    """Counts the random numbers that are asked of a generator."""

    def __init__(self):
        self.rng, self.n_drawn, self.largest = np.random.default_rng(0), 0, 0

    def _draw(self, size, function):
        self.n_drawn += int(np.prod(size))
        self.largest = max(self.largest, int(np.prod(size)))
        return function(size)

    def gumbel(self, size):
        return self._draw(size, lambda size: self.rng.gumbel(size=size))

    def standard_exponential(self, size):
        return self._draw(size, self.rng.standard_exponential)

    def logistic(self, size):
        return self._draw(size, lambda size: self.rng.logistic(size=size))

    def standard_normal(self, size, dtype):
        return self._draw(size, lambda size: self.rng.standard_normal(size, dtype=dtype))


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(30_000),
        spaces.MultiDiscrete([20_000, 10_000]),
        spaces.MultiBinary(30_000),
        spaces.Box(-1, 1, (30_000,), np.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_noise_for_many_actions_is_drawn_for_the_steps_that_are_made(action_space, n_envs):
    policy = make_policy(action_space, net_arch=[2])
    rng = CountingGenerator()
    noise_of_first_steps(policy, n_envs, 5, rng)
    assert rng.n_drawn == 5 * n_envs * 30_000
    assert rng.largest == n_envs * 30_000


@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(5), spaces.MultiBinary(5), spaces.Box(-1, 1, (5,), np.float32)], ids=str
)
def test_how_noise_is_cut_into_blocks_changes_no_action(action_space, monkeypatch):
    policy = make_policy(action_space)
    expected = noise_of_first_steps(policy, 3, 300, np.random.default_rng(1))
    for n_steps in (1, 77, 500):
        monkeypatch.setattr(sampling, "NOISE_BLOCK_STEPS", n_steps)
        np.testing.assert_array_equal(noise_of_first_steps(policy, 3, 300, np.random.default_rng(1)), expected)


def test_small_action_spaces_draw_ahead():
    rng = CountingGenerator()
    noise_of_first_steps(make_policy(spaces.Discrete(7)), 8, 1, rng)
    assert rng.n_drawn == 256 * 7 * 8


class OverriddenDistribution(MlpPolicy):
    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(latent_pi)


class OverriddenExtractor(MlpPolicy):
    def _build_mlp_extractor(self):
        super()._build_mlp_extractor()


DISCRETE = spaces.Discrete(2)


def hooked_policy():
    policy = make_policy(DISCRETE)
    policy.action_net.register_forward_hook(lambda *_: None)
    return policy


@pytest.mark.parametrize(
    "policy, expected",
    [
        (make_policy(DISCRETE), NumpyMlpActor),
        (make_policy(DISCRETE, ActorCriticPolicy), NumpyMlpActor),
        (make_policy(DISCRETE, use_critic=False), NumpyMlpActor),
        (make_policy(DISCRETE, OverriddenExtractor), TorchActor),
        (make_policy(DISCRETE, activation_fn=nn.SiLU), TorchActor),
        (make_policy(DISCRETE, observation_space=spaces.Box(0, 255, (36, 36, 1), np.uint8)), TorchActor),
        (make_policy(DISCRETE, CnnPolicy, IMAGES), TorchActor),
        (make_policy(DISCRETE, MultiInputPolicy, spaces.Dict({"a": OBSERVATION_SPACE})), NumpyMlpActor),
        (make_policy(DISCRETE, MultiInputPolicy, spaces.Dict({"a": OBSERVATION_SPACE, "b": IMAGES})), TorchActor),
        (make_policy(DISCRETE, MultiInputPolicy, spaces.Dict({"a": spaces.MultiDiscrete([2, 3])})), TorchActor),
        (make_policy(DISCRETE, observation_space=spaces.Discrete(5)), NumpyMlpActor),
        (make_policy(DISCRETE, observation_space=spaces.Discrete(5, start=-1)), TorchActor),
        (make_policy(DISCRETE).double(), TorchActor),
        (make_policy(spaces.Discrete(20_000)), TorchActor),
        (make_policy(spaces.Discrete(2_315)), NumpyMlpActor),
        (hooked_policy(), TorchActor),
        (make_policy(DISCRETE, OverriddenDistribution), DistributionSampler),
        (make_policy(ACTION_SPACES["box"], use_sde=True), DistributionSampler),
    ],
)
def test_the_quick_path_is_taken_only_by_policies_of_exactly_that_form(policy, expected):
    sampler = make_action_sampler(policy, 1, np.random.default_rng(0))
    chosen = sampler if isinstance(sampler, DistributionSampler) else sampler.actor
    assert type(chosen) is expected


def test_a_method_replaced_on_the_instance_is_respected():
    policy = make_policy(DISCRETE)
    policy.get_distribution = policy.get_distribution
    assert isinstance(make_action_sampler(policy, 1, np.random.default_rng(0)), DistributionSampler)


@pytest.mark.parametrize("policy_class", [MlpPolicy, OverriddenExtractor, OverriddenDistribution])
def test_critic_and_log_prob_are_never_evaluated_while_collecting(policy_class, monkeypatch):
    model = REINFORCE(policy_class, make_vec_env("CartPole-v1", 2), n_steps=50, seed=0)
    counts = {"critic": 0, "log_prob": 0, "distribution": 0}

    def counted(key, function):
        def call(*args, **kwargs):
            counts[key] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(model.policy.value_net, "forward", counted("critic", model.policy.value_net.forward))
    distribution_class: type[Distribution] = type(model.policy.action_dist)
    monkeypatch.setattr(distribution_class, "log_prob", counted("log_prob", distribution_class.log_prob))
    monkeypatch.setattr(
        distribution_class, "proba_distribution", counted("distribution", distribution_class.proba_distribution)
    )
    while_collecting = {}
    model.learn(1, callback=lambda *_: while_collecting.update(counts) is None)
    assert while_collecting["critic"] == while_collecting["log_prob"] == 0
    if policy_class is not OverriddenDistribution:
        assert while_collecting["distribution"] == 0
    assert counts["critic"] > 0 and counts["log_prob"] > 0, "the counter counts nothing"


def test_actions_do_not_depend_on_the_global_generators():
    def actions(disturb):
        model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=1)
        if disturb:
            np.random.seed(99)
            th.manual_seed(99)
        model.learn(1)
        return model.rollout_buffer.actions[: model.rollout_buffer.pos].copy()

    np.testing.assert_array_equal(actions(False), actions(True))


def test_without_a_seed_the_generator_starts_from_that_of_pytorch():
    def actions(seed):
        th.manual_seed(seed)
        model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 1, seed=0), n_steps=50)
        model.policy.load_state_dict(initial)
        model.learn(1)
        return model.rollout_buffer.actions[:50].flatten().tolist()

    initial = REINFORCE("MlpPolicy", "CartPole-v1").policy.state_dict()
    assert actions(4) == actions(4) != actions(5)


class TupleActionEnv(gym.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Tuple([spaces.Discrete(2)])


def test_unsupported_action_space_gets_sb3s_message():
    with pytest.raises(AssertionError, match="only supports"):
        REINFORCE("MlpPolicy", TupleActionEnv())


class MatchTheSignEnv(gym.Env):
    """One step: the observation is all low or all high, and the action should be -0.5 or 0.5 accordingly."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, observation_space):
        self.observation_space = observation_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sign = self.np_random.choice([-1, 1])
        return self._observe(self.observation_space), {}

    def step(self, action):
        return self._observe(self.observation_space), -float((action[0] - 0.5 * self.sign) ** 2), True, False, {}

    def _observe(self, space):
        if isinstance(space, spaces.Dict):
            return {key: self._observe(part) for key, part in space.items()}
        return (space.low if self.sign < 0 else space.high).copy()


FLAT = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = IMAGES
SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 16}}


@pytest.mark.parametrize(
    "policy, observation_space, kwargs",
    [
        (MlpPolicy, FLAT, {}),
        (OverriddenExtractor, FLAT, {}),
        (OverriddenDistribution, FLAT, {}),
        ("MlpPolicy", FLAT, {"use_sde": True, "sde_sample_freq": 1}),
        ("MlpPolicy", FLAT, {"use_sde": True, "sde_sample_freq": 1, "policy_kwargs": {"squash_output": True}}),
        ("CnnPolicy", IMAGE, {"learning_rate": 1e-3, "policy_kwargs": SMALL_CNN}),
        ("CnnPolicy", IMAGE, {"learning_rate": 2e-3, "policy_kwargs": {**SMALL_CNN, "share_features_extractor": False}}),
        ("MultiInputPolicy", spaces.Dict({"flat": FLAT, "image": IMAGE}), {"learning_rate": 1e-3, "n_episodes": 64}),
        ("MultiInputPolicy", spaces.Dict({"flat": FLAT}), {"baseline": "leave_one_out", "normalize_advantage": True}),
    ],
)
def test_every_path_learns(policy, observation_space, kwargs):
    env = make_vec_env(lambda: MatchTheSignEnv(observation_space), 2)
    model = REINFORCE(policy, env, seed=1, device="cpu", **{"learning_rate": 1e-2, "n_episodes": 32, **kwargs})
    model.learn(4_800)
    unwrapped = env.envs[0].unwrapped
    for unwrapped.sign in (-1, 1):
        action, _ = model.predict(unwrapped._observe(observation_space), deterministic=True)
        assert action * unwrapped.sign > 0.2
