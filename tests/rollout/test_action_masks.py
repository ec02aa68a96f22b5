"""Forbidden actions have no probability, no gradient and no entropy, wherever the masks come from."""

import itertools
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from helpers import CueEnv, GradientRecorder, enumerate_cue_paths, gradients_of_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_reinforce import REINFORCE, MlpPolicy, MultiInputPolicy
from sb3_reinforce.policies.actor_critic import OptionalCriticMixin
from sb3_reinforce.policies.masked_distribution import action_dims_of, use_action_masks
from sb3_reinforce.rollout import make_action_sampler
from sb3_reinforce.rollout.action_masks import (
    ActionMaskInObservation,
    ActionMaskReader,
    find_mask_source,
    sample_valid_actions,
)
from sb3_reinforce.rollout.samplers import DistributionSampler, ParameterSampler
from sb3_reinforce.vec_env import GymnasiumVecEnv, make_envpool_vec_env

ACTION_SPACES = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
OBSERVATION_SPACE = spaces.Box(-1, 1, (2,), np.float32)
# EnvPool has wheels from Python 3.11 on, and this package supports 3.10
needs_envpool = pytest.mark.skipif(sys.version_info < (3, 11), reason="there is no EnvPool for Python 3.10")


def constant_policy(action_space, logits, policy_class=MlpPolicy):
    """A policy that has these logits everywhere."""
    policy = policy_class(OBSERVATION_SPACE, action_space, lambda _: 1e-3, net_arch=[])
    with th.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.copy_(th.as_tensor(logits))
    policy.set_training_mode(False)
    return policy


def option_logits(action_space, logits):
    """Logits of every option, component by component: a binary entry has 0 for the option 0."""
    if isinstance(action_space, spaces.Discrete):
        return [np.array(logits, dtype=np.float64)]
    if isinstance(action_space, spaces.MultiDiscrete):
        return np.split(np.array(logits, dtype=np.float64), np.cumsum(action_space.nvec)[:-1])
    return [np.array([0.0, logit]) for logit in logits]


def renormalised(action_space, logits, mask):
    """Probabilities of the options of each component, by definition."""
    parts, start = [], 0
    for own in option_logits(action_space, logits):
        legal = mask[start : start + len(own)]
        start += len(own)
        weights = np.where(legal, np.exp(own - own[legal].max()), 0.0)
        parts.append(weights / weights.sum())
    return parts


@st.composite
def logits_and_masks(draw):
    action_space = draw(st.sampled_from(list(ACTION_SPACES.values())))
    n_logits = action_space.n if not isinstance(action_space, spaces.MultiDiscrete) else sum(action_space.nvec)
    logits = draw(st.lists(st.floats(-6, 6, width=32), min_size=int(n_logits), max_size=int(n_logits)))
    mask = []
    for own in option_logits(action_space, logits):
        legal = draw(st.lists(st.booleans(), min_size=len(own), max_size=len(own)).filter(any))
        mask += legal
    return action_space, logits, np.array(mask)


def all_actions(action_space):
    if isinstance(action_space, spaces.Discrete):
        return np.arange(action_space.n)
    sizes = action_space.nvec if isinstance(action_space, spaces.MultiDiscrete) else [2] * action_space.n
    return np.array(list(itertools.product(*map(range, sizes))))


def masked_distribution(policy, mask, n_rows=1):
    observations = th.zeros((n_rows, 2))
    with use_action_masks(policy, th.as_tensor(np.tile(mask, (n_rows, 1)))):
        return policy.get_distribution(observations)


@given(logits_and_masks())
@settings(max_examples=150, deadline=None)
def test_the_masked_distribution_is_the_renormalised_one(example):
    action_space, logits, mask = example
    policy = constant_policy(action_space, logits)
    actions = all_actions(action_space)
    distribution = masked_distribution(policy, mask, len(actions))
    with th.no_grad():
        log_probs = distribution.log_prob(th.as_tensor(actions).float()).numpy()
        entropies = distribution.entropy().numpy()

    parts = renormalised(action_space, logits, mask)
    rows = actions.reshape(len(actions), -1)
    expected = np.array([np.prod([part[option] for part, option in zip(parts, row, strict=True)]) for row in rows])
    np.testing.assert_allclose(np.exp(log_probs), expected, atol=1e-6)
    assert (np.exp(log_probs[expected == 0.0]) == 0.0).all()
    legal_entropy = -sum(float(np.sum(part[part > 0] * np.log(part[part > 0]))) for part in parts)
    np.testing.assert_allclose(entropies, legal_entropy, atol=1e-5)
    mode = distribution.mode()[0].detach().numpy()
    assert expected[np.flatnonzero((actions == mode).reshape(len(actions), -1).all(axis=1))[0]] > 0.0


@given(logits_and_masks())
@settings(max_examples=60, deadline=None)
def test_masks_are_laid_out_as_in_sb3_contrib(example):
    action_space, logits, mask = example
    policy = constant_policy(action_space, logits)
    actions = th.as_tensor(all_actions(action_space))
    contrib = make_masked_proba_distribution(action_space)
    # A binary entry has two logits there
    contrib.proba_distribution(
        th.as_tensor(np.concatenate(option_logits(action_space, logits)))[None].expand(len(actions), -1)
    )
    contrib.apply_masking(np.tile(mask, (len(actions), 1)))
    with th.no_grad():
        ours = masked_distribution(policy, mask, len(actions)).log_prob(actions.float()).exp()
        np.testing.assert_allclose(ours, contrib.log_prob(actions).exp(), atol=1e-6)


class OwnDistribution(MlpPolicy):
    """Its distribution is not known to be a standard one, so that it is asked for its actions."""

    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(latent_pi)


class OwnMultiInput(OptionalCriticMixin, MultiInputActorCriticPolicy):
    """A policy of one's own with the mixin."""


@pytest.mark.parametrize("policy_class", [MlpPolicy, OwnDistribution])
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_draws_have_the_frequencies_of_the_masked_distribution(action_space, policy_class):
    mask = {
        "Discrete": [1, 0, 1, 1],
        "MultiDiscrete": [1, 1, 0, 1, 1, 1, 0, 0, 1],
        "MultiBinary": [1, 1, 0, 1, 1, 0],
    }[type(action_space).__name__]
    logits = np.linspace(-1.0, 1.0, 3 if isinstance(action_space, spaces.MultiBinary) else len(mask))
    mask = np.array(mask, dtype=bool)
    policy = constant_policy(action_space, logits, policy_class)
    n_samples = 10_000
    th.manual_seed(0)
    sample = make_action_sampler(policy, n_samples, np.random.default_rng(0))
    assert isinstance(sample, ParameterSampler if policy_class is MlpPolicy else DistributionSampler)
    drawn = sample(np.zeros((n_samples, 2), np.float32), np.tile(mask, (n_samples, 1))).reshape(n_samples, -1)
    for own, expected in zip(drawn.T, renormalised(action_space, logits, mask), strict=True):
        share = np.bincount(own.astype(int), minlength=len(expected)) / n_samples
        np.testing.assert_allclose(share, expected, atol=2.5 / np.sqrt(n_samples))
        assert (share[expected == 0.0] == 0.0).all()


@given(logits_and_masks())
@settings(max_examples=60, deadline=None)
def test_random_actions_are_allowed_and_uniform(example):
    action_space, logits, mask = example
    n_samples = 2000
    drawn = sample_valid_actions(np.tile(mask, (n_samples, 1)), action_space, np.random.default_rng(0))
    assert drawn.shape == (n_samples, *action_space.shape)
    uniform = renormalised(action_space, np.zeros(len(logits)), mask)
    for own, expected in zip(drawn.reshape(n_samples, -1).T, uniform, strict=True):
        np.testing.assert_allclose(np.bincount(own, minlength=len(expected)) / n_samples, expected, atol=0.06)
        assert (expected[own] > 0.0).all()


@pytest.mark.parametrize("forbidden_logit", [1e9, -1e9, 1e30, 300.0])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2])], ids=str)
def test_a_large_forbidden_logit_changes_nothing(action_space, forbidden_logit):
    logits = [forbidden_logit, 1.0, 2.0, 0.0, 0.5][: 3 if isinstance(action_space, spaces.Discrete) else 5]
    mask = np.array([0, 1, 1, 1, 1][: len(logits)], dtype=bool)
    policy = constant_policy(action_space, logits)
    n_rows = 1000
    sample = make_action_sampler(policy, n_rows, np.random.default_rng(0))
    assert sample(np.zeros((n_rows, 2), np.float32), np.tile(mask, (n_rows, 1))).reshape(n_rows, -1)[:, 0].min() > 0
    inner = masked_distribution(policy, mask).distribution
    first = inner[0] if isinstance(inner, list) else inner
    assert first.probs[0, 0] == 0.0
    np.testing.assert_allclose(first.probs[0, 1:].detach(), [1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-6)


def test_legal_logits_may_be_lower_than_any_number_that_stands_for_forbidden():
    policy = constant_policy(spaces.Discrete(3), [0.0, -1e9, -1e9])
    mask = np.array([False, True, True])
    distribution = masked_distribution(policy, mask)
    np.testing.assert_array_equal(distribution.distribution.probs.detach(), [[0.0, 0.5, 0.5]])
    assert distribution.entropy().item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_forbidden_logits_have_no_derivative_of_any_order(action_space, dtype):
    masks = {
        "Discrete": [[0, 1, 1, 0]],
        "MultiDiscrete": [[1, 0, 0, 1, 1, 1, 1, 0, 0]],
        "MultiBinary": [[1, 0, 0, 1, 1, 1]],
    }[type(action_space).__name__]
    masks = th.tensor(masks, dtype=th.bool)
    policy = constant_policy(action_space, np.zeros(masks.shape[1] if not isinstance(action_space, spaces.MultiBinary) else 3))
    n_logits = policy.action_net.out_features
    if isinstance(action_space, spaces.MultiBinary):
        free = np.array([False, False, True])
    else:
        # An option is free if it is legal and not the only one
        free = masks[0].numpy().copy()
        if isinstance(action_space, spaces.MultiDiscrete):
            free[:2] = False
    logits = th.linspace(-2, 2, n_logits, dtype=dtype)[None].requires_grad_()

    def distribution(values):
        with use_action_masks(policy, masks):
            return policy.action_dist.proba_distribution(values)

    legal = distribution(logits).mode()
    for quantity in (distribution(logits).log_prob(legal), distribution(logits).entropy()):
        (gradient,) = th.autograd.grad(quantity.sum(), logits, create_graph=True)
        assert th.isfinite(gradient).all() and (gradient[0, ~free] == 0.0).all() and (gradient[0, free] != 0.0).all()
        (second,) = th.autograd.grad((gradient * th.arange(1, n_logits + 1)).sum(), logits)
        assert th.isfinite(second).all() and (second[0, ~free] == 0.0).all()

    # The natural step differentiates the KL divergence twice: its Hessian at the policy itself is the Fisher matrix
    fixed = distribution(logits.detach())
    hessian = th.autograd.functional.hessian(lambda values: kl_divergence(fixed, distribution(values)).sum(), logits)[0, :, 0]
    assert th.isfinite(hessian).all() and (hessian[~free] == 0.0).all() and (hessian[:, ~free] == 0.0).all()
    fisher = np.zeros((n_logits, n_logits))
    parts = renormalised(action_space, logits[0].detach().numpy(), masks[0].numpy())
    if isinstance(action_space, spaces.MultiBinary):
        fisher = np.diag([part[0] * part[1] for part in parts])
    else:
        start = 0
        for part in parts:
            end = start + len(part)
            fisher[start:end, start:end] = np.diag(part) - np.outer(part, part)
            start = end
    np.testing.assert_allclose(hessian, fisher, atol=1e-6)
    assert (kl_divergence(fixed, distribution(logits.detach())) == 0.0).all()


# Exactness: all paths of CueEnv


CUE_WEIGHTS = np.array([[0.4, -0.3, 0.7], [-0.6, 0.2, 0.1]])
CUE_BIAS = np.array([0.3, -0.2, 0.5])
GAMMA = 0.9


def cue_model(in_observation: bool, **kwargs: Any) -> REINFORCE:
    policy_kwargs = {"net_arch": [], "optimizer_class": GradientRecorder}
    kwargs = {"baseline": None, "discounted_weighting": True, "loss_reduction": "episode", "n_episodes": 1, **kwargs}
    env = ActionMaskInObservation(CueEnv()) if in_observation else CueEnv()
    model = REINFORCE(
        "MultiInputPolicy" if in_observation else "MlpPolicy",
        env,
        gamma=GAMMA,
        use_masking=True,
        max_grad_norm=float("inf"),
        policy_kwargs=policy_kwargs,
        device="cpu",
        **kwargs,
    )
    model.set_logger(Logger(None, []))
    with th.no_grad():
        model.policy.action_net.weight.copy_(th.as_tensor(CUE_WEIGHTS.T))
        model.policy.action_net.bias.copy_(th.as_tensor(CUE_BIAS))
    return model


def cue_probabilities(observations, mask):
    weights = np.exp(observations[-1] @ CUE_WEIGHTS + CUE_BIAS) * mask
    return weights / weights.sum()


def exact_cue_gradient(temperature: float = 0.0) -> dict[str, np.ndarray]:
    """By differentiating the enumerated expectation."""
    weight, bias = (th.tensor(values, requires_grad=True) for values in (CUE_WEIGHTS.T, CUE_BIAS))
    objective = th.zeros((), dtype=th.float64)
    for path in enumerate_cue_paths(cue_probabilities):
        observations, masks = th.as_tensor(np.array(path.observations)).double(), th.as_tensor(np.array(path.masks))
        weights = th.exp(observations @ weight.T + bias) * masks
        log_probs = th.log((weights / weights.sum(dim=1, keepdim=True))[range(len(path.actions)), path.actions])
        probability = path.probability * th.exp(log_probs.sum() - log_probs.sum().detach())
        rewards = th.as_tensor(path.rewards, dtype=th.float64) - temperature * log_probs
        objective = objective + probability * (rewards * GAMMA ** th.arange(len(rewards))).sum()
    objective.backward()
    return {"action_net.weight": weight.grad.numpy(), "action_net.bias": bias.grad.numpy()}


@pytest.mark.parametrize("in_observation", [True, False])
@pytest.mark.parametrize("switches", [{}, {"return_type": "episode"}, {"baseline": "value"}, {"micro_batch_size": 1}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_expected_gradient_with_masks_is_the_policy_gradient(in_observation, switches, temperature):
    model = cue_model(in_observation, ent_coef=temperature, entropy_in_return=temperature > 0.0, **switches)
    paths = enumerate_cue_paths(cue_probabilities)
    assert sum(path.probability for path in paths) == pytest.approx(1.0)
    for name, exact in exact_cue_gradient(temperature).items():
        expected = sum(path.probability * gradients_of_paths(model, [path])[name] for path in paths)
        np.testing.assert_allclose(expected, exact, atol=1e-6)
        assert np.abs(exact).max() > 0.05


@pytest.mark.parametrize("in_observation", [True, False])
def test_entropy_bonus_is_that_of_the_legal_actions(in_observation):
    path = max(enumerate_cue_paths(cue_probabilities), key=lambda path: len(path.actions))
    gradients = [gradients_of_paths(cue_model(in_observation, ent_coef=coef), [path]) for coef in (0.3, 0.0)]
    bonus = gradients[0]["action_net.bias"] - gradients[1]["action_net.bias"]
    expected = np.zeros(3)
    for t, mask in enumerate(path.masks):
        p = cue_probabilities(path.observations[: t + 1], mask)
        log_p = np.log(np.where(p > 0.0, p, 1.0))
        expected += 0.3 * -p * (log_p - (p * log_p).sum())
    np.testing.assert_allclose(bonus, expected, atol=1e-6)


def test_the_buffer_stores_masks_only_where_the_observations_do_not_hold_them():
    for in_observation in (True, False):
        model = cue_model(in_observation)
        model.learn(20)
        buffer = model.rollout_buffer
        assert (buffer.action_masks is None) == in_observation
        batch = buffer.whole_episodes()
        starts = np.cumsum([0, *batch.episode_lengths[:-1]])
        times = np.arange(len(batch.actions)) - np.repeat(starts, batch.episode_lengths)
        np.testing.assert_array_equal(batch.action_masks, CueEnv.MASKS[times].astype(bool))
        assert not in_observation or set(batch.observations) == {"observation"}


# Sources


class MethodEnv(CueEnv):
    """Its masks come from a method only."""

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], {}

    def step(self, action):
        return *super().step(action)[:4], {}

    def action_masks(self):
        return self.MASKS[self.time].astype(bool)


class DictEnv(CueEnv):
    """Its masks are in its observation already."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Dict({"seen": self.observation_space, "action_mask": spaces.MultiBinary(3)})

    def reset(self, **kwargs):
        return {"seen": super().reset(**kwargs)[0], "action_mask": self.MASKS[0]}, {}

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return {"seen": observation, "action_mask": info["action_mask"]}, reward, terminated, truncated, {}


class OwnMethodVecEnv(VecEnvWrapper):
    """A VecEnv that has the masks of all environments at once."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()

    def action_masks(self):
        return np.stack(self.venv.env_method("action_masks"))


class OneArrayVecEnv(OwnMethodVecEnv):
    """It writes the masks of every step into the same array."""

    def reset(self):
        return self._write(self.venv.reset())

    def step_wait(self):
        return self._write(self.venv.step_wait())

    def _write(self, result):
        self.masks = getattr(self, "masks", np.zeros((self.num_envs, 3), dtype=bool))
        self.masks[:] = super().action_masks()
        return result

    def action_masks(self):
        return self.masks


class CountedDummyVecEnv(DummyVecEnv):
    """Notes which methods of its environments were called."""

    called: tuple[str, ...] = ()

    def env_method(self, method_name, *args, **kwargs):
        self.called = (*self.called, method_name)
        return super().env_method(method_name, *args, **kwargs)


SOURCES = {
    "observation": lambda: DummyVecEnv([DictEnv] * 3),
    "wrapper": lambda: DummyVecEnv([lambda: ActionMaskInObservation(CueEnv())] * 3),
    "wrapped method": lambda: DummyVecEnv([lambda: ActionMaskInObservation(MethodEnv())] * 3),
    "VecEnv": lambda: OwnMethodVecEnv(DummyVecEnv([MethodEnv] * 3)),
    "VecEnv, one array": lambda: OneArrayVecEnv(DummyVecEnv([MethodEnv] * 3)),
    "VecEnv below wrappers": lambda: VecNormalize(VecMonitor(OwnMethodVecEnv(DummyVecEnv([MethodEnv] * 3)))),
    "method": lambda: DummyVecEnv([MethodEnv] * 3),
    "ActionMasker": lambda: DummyVecEnv([lambda: ActionMasker(CueEnv(), lambda env: env.MASKS[env.time])] * 3),
    "info": lambda: DummyVecEnv([CueEnv] * 3),
    "info below wrappers": lambda: VecNormalize(VecMonitor(DummyVecEnv([CueEnv] * 3))),
    "gymnasium, method": lambda: GymnasiumVecEnv(SyncVectorEnv([MethodEnv] * 2)),
    "gymnasium, info": lambda: GymnasiumVecEnv(SyncVectorEnv([CueEnv] * 2)),
    "gymnasium's processes, info": lambda: GymnasiumVecEnv(AsyncVectorEnv([CueEnv] * 2, context="spawn")),
    "processes, method": lambda: SubprocVecEnv([MethodEnv] * 2),
}


@pytest.mark.processes
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_keeps_to_the_masks(source):
    env = SOURCES[source]()
    try:
        policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
        # What is forbidden raises in CueEnv, and so does the mask of an episode that ended
        model = REINFORCE(policy, env, use_masking=True, n_steps=20, seed=0, device="cpu").learn(200)
        buffer = model.rollout_buffer
        batch = buffer.whole_episodes()
        starts = np.repeat(np.cumsum([0, *batch.episode_lengths[:-1]]), batch.episode_lengths)
        expected = CueEnv.MASKS[np.arange(len(starts)) - starts].astype(bool)
        np.testing.assert_array_equal(batch.action_masks, expected)
    finally:
        env.close()


def test_sources_come_in_the_documented_order():
    class Everything(MethodEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict({"seen": self.observation_space, "action_mask": spaces.MultiBinary(3)})

        def reset(self, **kwargs):
            return {"seen": super().reset(**kwargs)[0], "action_mask": np.array([0, 0, 1])}, {"action_mask": [1, 0, 0]}

    engine = CountedDummyVecEnv([Everything])
    env = OwnMethodVecEnv(engine)
    observations = env.reset()
    ask = ([{"action_mask": [0, 0, 0]}], np.array([True]))
    assert find_mask_source(env)(observations, *ask).tolist() == [[0, 0, 1]] and engine.called == ()

    env.observation_space = engine.envs[0].observation_space["seen"]
    assert find_mask_source(env)(observations["seen"], *ask).tolist() == [[True, True, False]]
    assert engine.called == ("action_masks",)
    engine.observation_space = env.observation_space
    np.testing.assert_array_equal(find_mask_source(engine)(observations["seen"], *ask), [[True, True, False]])
    assert engine.called == ("action_masks", "action_masks")

    infos = DummyVecEnv([CueEnv] * 2)
    infos.reset()
    infos.reset_infos = [{"action_mask": [1, 0, 0]}, {"action_mask": [0, 1, 0]}]
    of_last_step = [{"action_mask": [0, 0, 1]}, {"action_mask": [1, 1, 1]}]
    assert find_mask_source(infos)(None, of_last_step, np.array([True, False])) == [[1, 0, 0], [1, 1, 1]]
    assert find_mask_source(infos)(None, of_last_step, np.array([False, True])) == [[0, 0, 1], [0, 1, 0]]


def test_without_use_masking_a_mask_in_the_observation_is_an_observation():
    env = ActionMaskInObservation(gym.make("Taxi-v4"))
    with_masks, without = (REINFORCE("MultiInputPolicy", env, use_masking=chosen) for chosen in (True, False))
    assert without.policy.features_dim == with_masks.policy.features_dim + 6
    assert without.policy.observation_space == env.observation_space
    without.learn(300)
    assert without.rollout_buffer.whole_episodes().action_masks is None


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("baseline", ["value", None])
def test_training_in_all_action_spaces(action_space, baseline):
    class RandomMaskEnv(gym.Env):
        """Every step forbids something else, what is forbidden raises, and episodes are cut by a time limit."""

        def __init__(self):
            self.observation_space, self.action_space = OBSERVATION_SPACE, action_space

        def draw(self):
            sizes = (
                [int(action_space.n)] if isinstance(action_space, spaces.Discrete) else getattr(action_space, "nvec", [2] * 3)
            )
            self.parts = [self.np_random.random(size) < 0.4 for size in sizes]
            for part in self.parts:
                part[self.np_random.integers(len(part))] = True
            return self.np_random.uniform(-1, 1, 2).astype(np.float32), {"action_mask": np.concatenate(self.parts)}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return self.draw()

        def step(self, action):
            components = np.atleast_1d(action).astype(int)
            assert all(part[component] for part, component in zip(self.parts, components, strict=True))
            self.time += 1
            observation, info = self.draw()
            return observation, float(components.sum()), False, self.time == 7, info

    for wrap, policy in ((lambda env: env, "MlpPolicy"), (ActionMaskInObservation, "MultiInputPolicy")):
        env = DummyVecEnv([lambda wrap=wrap: wrap(RandomMaskEnv())] * 2)
        model = REINFORCE(policy, env, use_masking=True, baseline=baseline, n_steps=30, ent_coef=0.01, seed=0, device="cpu")
        model.learn(200)
        batch = model.rollout_buffer.whole_episodes()
        assert baseline is None or len(batch.cut_steps) > 0
        assert baseline is None or policy == "MlpPolicy" or set(batch.final_observations) == {"observation"}


# predict


def test_predict_takes_masks_in_the_conventions_of_sb3_contrib():
    model = REINFORCE("MlpPolicy", CueEnv(), use_masking=True, seed=0, device="cpu")
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.tensor([9.0, 0.0, 0.0]))
    one = np.zeros(2, np.float32)
    several = np.zeros((3, 2), np.float32)
    assert model.predict(one, deterministic=True, action_masks=[1, 1, 1])[0] == 0
    action, state = model.predict(one, action_masks=np.array([False, False, True]))
    assert action == 2 and action.shape == () and state is None
    masks = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.int8)
    assert model.predict(several, action_masks=masks)[0].tolist() == [0, 1, 2]
    assert model.predict(several, action_masks=list(masks))[0].tolist() == [0, 1, 2]
    assert model.predict(several[:1], action_masks=masks[1:2])[0].tolist() == [1]
    # The masks are gone afterwards
    with pytest.warns(UserWarning, match="predict\\(\\) was given no action masks"):
        assert model.predict(one, deterministic=True)[0] == 0
    unmasked = REINFORCE("MlpPolicy", CueEnv(), seed=0, device="cpu")
    assert unmasked.predict(several, action_masks=masks)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_predict_draws_from_the_masked_distribution(policy):
    env = CueEnv() if policy == "MlpPolicy" else ActionMaskInObservation(CueEnv())
    model = REINFORCE(policy, env, use_masking=True, seed=0, device="cpu", policy_kwargs={"net_arch": []})
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.tensor([0.0, 1.0, 2.0]))
    observations, masks = np.zeros((5000, 2), np.float32), np.tile([1, 0, 1], (5000, 1))
    if policy == "MlpPolicy":
        actions, _ = model.predict(observations, action_masks=masks)
    else:
        actions, _ = model.predict({"observation": observations, "action_mask": masks})
    shares = np.bincount(actions, minlength=3) / 5000
    np.testing.assert_allclose(shares, [1 / (1 + np.e**2), 0, np.e**2 / (1 + np.e**2)], atol=0.03)
    assert shares[1] == 0.0


@pytest.mark.filterwarnings("error::UserWarning:sb3_reinforce")
def test_sb3_evaluates_with_the_masks_of_the_wrapper(tmp_path):
    def make_env():
        return make_vec_env(CueEnv, 2, wrapper_class=ActionMaskInObservation)

    callback = EvalCallback(make_env(), eval_freq=50, n_eval_episodes=20, deterministic=False, verbose=0)
    model = REINFORCE("MultiInputPolicy", make_env(), use_masking=True, n_steps=20, seed=0, device="cpu")
    model.learn(500, callback=callback)
    assert callback.n_calls > 0
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=make_env(), device="cpu")
    assert loaded.use_masking and loaded.policy.observation_space == model.policy.observation_space
    mean, _ = evaluate_policy(loaded, make_env(), n_eval_episodes=50, deterministic=False)
    assert -1.25 <= mean <= 1.0
    loaded.learn(100)


# The policy alone


def cue_env():
    return make_vec_env(CueEnv, 2, wrapper_class=ActionMaskInObservation)


def one_step_distribution(policy, observation, **masks):
    """The distribution of a policy at the start of episodes."""
    start = ()
    if hasattr(policy, "lstm_actor"):
        state = (th.zeros(policy.lstm_hidden_state_shape).repeat(1, 2, 1),) * 2
        start = (state, th.ones(2))
    distribution = policy.get_distribution(observation, *start, **masks)
    return distribution[0] if start else distribution


@pytest.mark.parametrize("name", ["MultiInputPolicy", "MultiInputLstmPolicy"])
@pytest.mark.parametrize("baseline", ["value", None])
def test_a_policy_takes_the_observation_that_it_was_trained_on(name, baseline, tmp_path):
    model = REINFORCE(
        name, cue_env(), use_masking=True, baseline=baseline, policy_averaging=0.5, n_steps=20, seed=0, device="cpu"
    ).learn(100)
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy", device="cpu")
    observation = {"observation": np.eye(2, dtype=np.float32), "action_mask": np.array([[0, 1, 1], [1, 0, 1]])}
    for policy in (model.policy, model.averaged_policy, loaded):
        # What is forbidden raises
        evaluate_policy(policy, cue_env(), n_eval_episodes=50, deterministic=False, warn=False)
        one = {key: part[0] for key, part in observation.items()}
        assert {int(policy.predict(one)[0]) for _ in range(200)} == {1, 2}
        tensors, _ = policy.obs_to_tensor(observation)
        probabilities = one_step_distribution(policy, tensors).distribution.probs
        assert probabilities[[0, 1], [0, 1]].tolist() == [0.0, 0.0]
        # Masks that are handed over rule
        rotated = observation["action_mask"][::-1].copy()
        for masks in (rotated, th.as_tensor(rotated), list(rotated)):
            probabilities = one_step_distribution(policy, tensors, action_masks=masks).distribution.probs
            assert probabilities[[0, 1], [1, 0]].tolist() == [0.0, 0.0]
        assert policy.predict(observation, action_masks=[[0, 0, 1], [0, 1, 0]])[0].tolist() == [2, 1]
        # They are gone afterwards
        assert (one_step_distribution(policy, policy.obs_to_tensor(seen(observation))[0]).distribution.probs > 0).all()


def seen(observation):
    return {"observation": observation["observation"]}


@pytest.mark.parametrize("policy_class", [MultiInputPolicy, OwnMultiInput])
def test_every_method_of_a_policy_takes_masks(policy_class):
    space = spaces.Dict({"observation": OBSERVATION_SPACE})
    th.manual_seed(0)
    policy = policy_class(space, spaces.Discrete(3), lambda _: 1e-3)
    with th.no_grad():
        policy.action_net.bias.copy_(th.tensor([0.0, 1.0, 2.0]))
    observation, masks = {"observation": np.ones((4, 2), np.float32)}, np.tile([1, 0, 1], (4, 1))
    plain, _ = policy.obs_to_tensor(observation)
    with_mask, _ = policy.obs_to_tensor({**observation, "action_mask": masks})
    unmasked = policy.get_distribution(plain).distribution.probs[0].detach()
    expected = unmasked[[0, 2]] / unmasked[[0, 2]].sum()
    actions = th.tensor([0, 2, 0, 2])
    for inputs, keywords in ((with_mask, {}), (plain, {"action_masks": masks})):
        np.testing.assert_allclose(
            policy.get_distribution(inputs, **keywords).distribution.probs[0].detach(),
            [expected[0], 0, expected[1]],
            atol=1e-6,
        )
        values, log_probs, entropies = policy.evaluate_actions(inputs, actions, **keywords)
        np.testing.assert_allclose(log_probs.exp().detach(), expected.repeat(2).detach(), atol=1e-6)
        np.testing.assert_allclose(entropies.detach(), -(expected * expected.log()).sum().item(), atol=1e-6)
        drawn, more_values, log_probs = policy(inputs, **keywords)
        np.testing.assert_allclose(log_probs.exp().detach(), expected[drawn // 2].detach(), atol=1e-6)
        assert th.equal(policy.predict_values(inputs), values) and th.equal(more_values, values)
    for bad, message in (
        (masks[:3], "for each of 4 obs"),
        (masks * 0, "of observation 0 allows no"),
        (masks[:, :2], "3 entries"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.get_distribution(plain, action_masks=bad)
        with pytest.raises(ValueError, match=message):
            policy.predict({**observation, "action_mask": bad})
    # After the last step of an episode nothing has to be allowed, and it has a value all the same
    assert policy.predict_values(policy.obs_to_tensor({**observation, "action_mask": masks * 0})[0]).shape == (4, 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_policy_takes_its_masks_as_an_input():
    class Probabilities(th.nn.Module):
        def __init__(self, policy):
            super().__init__()
            self.policy = policy

        def forward(self, observation, mask):
            return self.policy.get_distribution({"observation": observation, "action_mask": mask}).distribution.probs

    policy = MultiInputPolicy(spaces.Dict({"observation": OBSERVATION_SPACE}), spaces.Discrete(3), lambda _: 1e-3)
    inputs = [(th.rand(n, 2), th.tensor([mask] * n)) for n, mask in ((2, [1, 0, 1]), (5, [0, 1, 1]))]
    traced = th.jit.trace(Probabilities(policy), inputs[0], check_trace=False)
    for observation, mask in inputs:
        assert th.allclose(traced(observation, mask), Probabilities(policy)(observation, mask))


@pytest.mark.parametrize("policy_class", [MultiInputActorCriticPolicy, MultiInputPolicy])
def test_a_policy_that_observes_its_mask_sees_it(policy_class):
    space = spaces.Dict({"seen": OBSERVATION_SPACE, "action_mask": spaces.MultiBinary(3)})
    policy = policy_class(space, spaces.Discrete(3), lambda _: 1e-3)
    assert policy.features_dim == 5
    observation = {"seen": np.zeros(2, np.float32), "action_mask": np.array([1, 0, 0], np.int8)}
    assert {int(policy.predict(observation)[0]) for _ in range(200)} == {0, 1, 2}


def test_a_policy_of_sb3_itself_is_masked_through_the_model():
    model = REINFORCE(MultiInputActorCriticPolicy, cue_env(), use_masking=True, n_steps=20, seed=0, device="cpu").learn(100)
    evaluate_policy(model, cue_env(), n_eval_episodes=50, deterministic=False, warn=False)


def test_masks_go_on_top_of_frame_stacks():
    def make_env():
        return ActionMaskInObservation(FrameStackObservation(CueEnv(), 3))

    model = REINFORCE("MultiInputPolicy", make_env(), use_masking=True, n_steps=20, seed=0, device="cpu").learn(100)
    assert model.policy.observation_space["observation"].shape == (3, 2)
    evaluate_policy(model, make_env(), n_eval_episodes=20, deterministic=False, warn=False)

    # A stack of masks is no mask
    class BoxMask(DictEnv):
        def __init__(self):
            super().__init__()
            self.observation_space["action_mask"] = spaces.Box(0, 1, (3,), np.int8)

    with pytest.raises(ValueError, match=r"has shape \(9,\), but .* needs 3 entries.*stack them below the mask"):
        REINFORCE("MultiInputPolicy", VecFrameStack(DummyVecEnv([BoxMask]), 3), use_masking=True)
    # Masks of a method are not stacked
    REINFORCE("MlpPolicy", VecFrameStack(DummyVecEnv([MethodEnv]), 3), use_masking=True, n_steps=20, device="cpu").learn(100)


# The wrapper


@pytest.mark.parametrize("make_env", [CueEnv, MethodEnv, lambda: gym.make("Taxi-v4")], ids=["info", "method", "Taxi"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_wrapper_makes_a_valid_environment(make_env):
    env = ActionMaskInObservation(make_env())
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation) and observation["action_mask"].dtype == np.int8
    if isinstance(env.unwrapped, CueEnv):
        np.testing.assert_array_equal(observation["action_mask"], CueEnv.MASKS[0])
        observation, *_ = env.step(0)
        np.testing.assert_array_equal(observation["action_mask"], CueEnv.MASKS[1])
        assert env.observation_space.contains(observation)
    else:
        check_env(env)


def test_the_wrapper_adds_to_dict_observations():
    class Seen(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = spaces.Dict({"seen": env.observation_space})

        def observation(self, observation):
            return {"seen": observation}

    env = ActionMaskInObservation(Seen(CueEnv()))
    assert set(env.observation_space.spaces) == set(env.reset(seed=0)[0]) == {"seen", "action_mask"}


# VecNormalize


def test_vec_normalize_leaves_the_masks_alone():
    def make_env(**kwargs):
        return VecNormalize(make_vec_env(CueEnv, 2, wrapper_class=ActionMaskInObservation), **kwargs)

    with pytest.raises(ValueError, match="norm_obs_keys"):
        make_env()
    env = make_env(norm_obs_keys=["observation"])
    model = REINFORCE("MultiInputPolicy", env, use_masking=True, n_steps=20, seed=0, device="cpu").learn(200)
    assert evaluate_policy(model, env, n_eval_episodes=5, warn=False)

    class BoxMask(DictEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict({**self.observation_space, "action_mask": spaces.Box(0, 1, (3,), np.int8)})

    normalized = VecNormalize(DummyVecEnv([BoxMask]))
    model = REINFORCE("MultiInputPolicy", normalized, use_masking=True, device="cpu")
    with pytest.raises(ValueError, match="VecNormalize normalises the action masks"):
        model.learn(100)
    model.set_env(VecNormalize(DummyVecEnv([BoxMask]), norm_obs_keys=["seen"]))
    model.learn(100)


# Bad input


class FaultyEnv(CueEnv):
    """Its third mask is what a test says."""

    def __init__(self, mask: Any):
        super().__init__()
        self.mask, self.n_masks = mask, 0

    def reset(self, **kwargs):
        return self.damaged(super().reset(**kwargs))

    def step(self, action):
        return self.damaged(super().step(0 if self.time < 2 else 1))

    def damaged(self, result):
        self.n_masks += 1
        return (*result[:-1], {} if self.mask is None else {"action_mask": self.mask}) if self.n_masks == 3 else result


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([0, 0, 0], "allows no action"),
        ([1, 1], "must have 3 entries, but it has shape \\(2,\\)"),
        ([1, 1, 1, 1], "must have 3 entries"),
        ([0.5, 1.0, 1.0], "must hold booleans, or 0 and 1, but holds 0.5"),
        ([1, 1, 2], "but holds 2"),
        ([np.nan, 1, 1], "but holds nan"),
        (["a", "b", "c"], "must hold booleans, or 0 and 1, but has the type <U1"),
        (None, "must have 3 entries, but there is none"),
    ],
    ids=str,
)
def test_a_mask_that_cannot_be_used_names_environment_and_step(mask, message):
    env = DummyVecEnv([CueEnv, CueEnv, lambda: FaultyEnv(mask)])
    # All three walk on until the third mask
    model = REINFORCE("MlpPolicy", env, use_masking=True, n_steps=50, seed=0, device="cpu")
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.tensor([50.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=f"environment 2 at step 2 of the rollout .*{message}"):
        model.learn(1000)


def test_the_wrapper_refuses_bad_masks():
    with pytest.raises(ValueError, match=r"The action mask that .*FaultyEnv.* gives by its info\['action_mask'\] must have 3"):
        env = ActionMaskInObservation(FaultyEnv([1, 1]))
        env.reset(seed=0)
        env.step(0)
        env.step(0)
    with pytest.raises(ValueError, match=r"has the key 'action_mask' already"):
        ActionMaskInObservation(DictEnv())
    with pytest.raises(ValueError, match="must have 4 entries, but there is none"):
        ActionMaskInObservation(gym.make("FrozenLake-v1").unwrapped).reset()
    with pytest.raises(ValueError, match="needs a Discrete action space"):
        ActionMaskInObservation(gym.make("Pendulum-v1"))


def test_a_component_without_a_legal_option_is_named():
    env = DummyVecEnv([CueEnv])
    env.action_space = spaces.MultiDiscrete([2, 2])
    env.reset()
    env.reset_infos = [{"action_mask": [1, 1, 0, 0]}]
    with pytest.raises(ValueError, match="environment 0 at step 7 of the rollout allows no action for component 1"):
        ActionMaskReader(env)(np.zeros((1, 2)), [{}], np.array([True]), 7)


def test_use_masking_is_refused_before_training():
    with pytest.raises(ValueError, match=r"use_masking=True needs a Discrete action space.*Box"):
        REINFORCE("MlpPolicy", "Pendulum-v1", use_masking=True)
    model = REINFORCE("MlpPolicy", "CartPole-v1", use_masking=True, device="cpu")
    with pytest.raises(ValueError, match="use_masking=True, but the environment gives no masks"):
        model.learn(100)
    assert model.num_timesteps == 0

    class WrongSize(DictEnv):
        def __init__(self):
            super().__init__()
            self.observation_space["action_mask"] = spaces.MultiBinary(4)

    with pytest.raises(ValueError, match=r"'action_mask' of the observation space has shape \(4,\), but .* needs 3 entries"):
        REINFORCE("MultiInputPolicy", DummyVecEnv([WrongSize]), use_masking=True)

    class MaskOnly(DictEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(3)})

    with pytest.raises(ValueError, match="the key 'action_mask' only"):
        REINFORCE("MultiInputPolicy", DummyVecEnv([MaskOnly]), use_masking=True)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([0, 0, 0], "of observation 0 allows no action"),
        ([1, 0], "of observation 0 must have 3 entries"),
        ([1, 0, 7], "of observation 0 must hold booleans, or 0 and 1, but holds 7"),
        (["a", "b", "c"], "of observation 0 must hold booleans, or 0 and 1, but has the type <U1"),
    ],
    ids=str,
)
def test_predict_refuses_bad_masks(masks, message):
    model = REINFORCE("MlpPolicy", CueEnv(), use_masking=True, device="cpu")
    with pytest.raises(ValueError, match=message):
        model.predict(np.zeros(2, np.float32), action_masks=masks)
    with pytest.raises(ValueError, match="an action mask for each of 2 observations, but there are 3"):
        model.predict(np.zeros((2, 2), np.float32), action_masks=np.ones((3, 3)))
    with pytest.raises(ValueError, match="needs a Discrete action space"):
        REINFORCE("MlpPolicy", "Pendulum-v1").predict(np.zeros(3, np.float32), action_masks=[1])


# EnvPool


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "action_space"),
    [
        ("Jumanji/GraphColoring-v1", spaces.Discrete(20)),
        ("Jumanji/Connector-v2", spaces.MultiDiscrete([5] * 10)),
        ("Jumanji/JobShop-v0", spaces.MultiDiscrete([21] * 10)),
        ("Jumanji/Tetris-v0", spaces.Discrete(40)),
        ("Play2048-v1", spaces.Discrete(4)),
    ],
)
def test_masked_environments_of_envpool(env_id, action_space):
    env = make_envpool_vec_env(env_id, 3, seed=0)
    try:
        assert env.action_space == action_space
        model = REINFORCE("MultiInputPolicy", env, use_masking=True, n_steps=20, seed=0, device="cpu").learn(60)
        batch = model.rollout_buffer.whole_episodes()
        assert "action_mask" not in batch.observations and batch.action_masks.shape[1] == sum(action_dims_of(action_space))
        assert 0.0 < batch.action_masks.float().mean() < 1.0
        assert evaluate_policy(model, env, n_eval_episodes=2, deterministic=False, warn=False)
    finally:
        env.close()


@needs_envpool
def test_envpool_gets_the_combination_that_the_mask_allows():
    env = make_envpool_vec_env("Jumanji/Minesweeper-v0", 2, seed=2)
    try:
        env.reset()
        observations, _, dones, _ = env.step(np.array([3 * 10 + 7, 98]))
        assert not dones.any(), "both fields should be free of mines"
        # A field that was opened may not be opened again
        forbidden = observations["action_mask"].reshape(2, 100) == 0
        assert [row.nonzero()[0].tolist() for row in forbidden] == [[37], [98]]
        assert observations["board"][0, 3, 7] >= 0 and observations["board"][1, 9, 8] >= 0
    finally:
        env.close()


# RL Zoo


@pytest.mark.commands
def test_rl_zoo_evaluates_and_enjoys_with_masks(tmp_path, monkeypatch, capsys):
    from sb3_reinforce.zoo.cli import main

    monkeypatch.chdir(tmp_path)
    tiny = ["--env", "Taxi-v4", "-n", "300"]
    assert main(["train", *tiny, "--seed", "0", "--eval-freq", "150", "--eval-episodes", "1", "--save-freq", "-1"]) == 0
    folder = Path("logs/reinforce/Taxi-v4_1")
    assert "use_masking" in (folder / "Taxi-v4/config.yml").read_text()
    assert REINFORCE.load(folder / "Taxi-v4.zip", device="cpu").use_masking

    # What Taxi's mask forbids leaves the state as it is
    moves = []
    step = gym.make("Taxi-v4").unwrapped.__class__.step

    def noted_step(self, action):
        moves.append(bool(self.action_mask(self.s)[action]))
        return step(self, action)

    monkeypatch.setattr("gymnasium.envs.toy_text.taxi.TaxiEnv.step", noted_step)
    capsys.readouterr()
    assert main(["enjoy", *tiny, "--stochastic", "--no-render"]) == 0
    assert main(["record-video", "--env", "Taxi-v4", "-n", "30", "--stochastic", "-o", "videos"]) == 0
    assert len(moves) >= 330 and all(moves)
    assert main(["train", *tiny, "-params", "use_masking:1"]) == 1
    assert "use_masking must be True or False, not 1" in capsys.readouterr().err
    assert main(["train", "--env", "CartPole-v1", "-n", "300", "-params", "use_masking:True", "--eval-freq", "-1"]) == 1
    error = capsys.readouterr().err
    assert "the environment gives no masks" in error and "Traceback" not in error
