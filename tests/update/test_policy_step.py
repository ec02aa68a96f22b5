"""The natural step of the model itself: where it goes, how far, for every policy and space, and when it stays."""

import copy
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import (
    ACTION_PROBABILITIES,
    GradientRecorder,
    SilentEnv,
    linear_model,
    optimizer_steps,
    policy_gradient,
    set_action_probabilities,
    store_episodes,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnvMultiBinary
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_recorded import DictWorld

from sb3_reinforce import REINFORCE
from sb3_reinforce.distributed.partition import single_partition
from sb3_reinforce.envs.diamond_hill import DECISION_STATES, enumerate_paths
from sb3_reinforce.update import make_evaluator, policy_step
from sb3_reinforce.update.evaluator import PolicyEvaluator
from sb3_reinforce.update.policy_step import KL_TOLERANCE, MAX_SHORTENINGS, SHORTENING

PATHS = enumerate_paths(ACTION_PROBABILITIES)
DAMPING = 0.05


def natural_model(**kwargs):
    kwargs = {"baseline": None, "cg_max_steps": 50, "cg_damping": DAMPING, **kwargs}
    return linear_model(natural_gradient=True, **kwargs)


def actor_parameters(model):
    # Weights and bias of each logit beside each other, as helpers.policy_gradient has them
    net = model.policy.action_net
    return th.cat([net.weight, net.bias[:, None]], dim=1).detach().double().numpy().flatten()


def updated(model, episodes=PATHS):
    """Update from these episodes through ``train``, and return the step."""
    before = actor_parameters(model)
    store_episodes(model, episodes)
    model.train()
    return actor_parameters(model) - before


def enumerated_fisher(episodes=PATHS):
    """The mean over the steps of the episodes of the expected outer product of scores, action by action."""
    total, n_steps = np.zeros((6, 6)), 0
    for episode in episodes:
        for observation in episode.observations:
            row = next(row for row in range(3) if np.array_equal(DECISION_STATES[row], observation))
            for action in range(2):
                logit_score = -ACTION_PROBABILITIES[row] + np.eye(2)[action]
                score = np.outer(logit_score, [*DECISION_STATES[row], 1.0]).flatten()
                total += ACTION_PROBABILITIES[row, action] * np.outer(score, score)
            n_steps += 1
    return total / n_steps


def gradient_of(**kwargs):
    return policy_gradient(linear_model(baseline=None, **kwargs), PATHS)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("micro_batch_size", [None, 1, 5])
def test_the_models_fisher_matrix_is_the_enumerated_one(micro_batch_size):
    model = natural_model()
    store_episodes(model, PATHS)
    batch, evaluator = model.rollout_buffer.whole_episodes(), PolicyEvaluator(model.policy, micro_batch_size)
    net = model.policy.action_net
    partition = single_partition(batch.episode_lengths)
    divergence = policy_step.Divergence(evaluator, batch, slice(0, len(batch.actions)), partition)
    product = divergence.fisher_product([net.weight, net.bias])
    matrix = np.stack([product(row).numpy() for row in th.eye(6)])
    order = [0, 1, 4, 2, 3, 5]  # weights and bias of each logit beside each other
    np.testing.assert_allclose(matrix[np.ix_(order, order)], enumerated_fisher(), atol=1e-6)


@pytest.mark.parametrize("ent_coef", [0.0, 0.5])
@pytest.mark.parametrize("target_kl", [1e-6, 0.01])
def test_the_step_is_the_damped_natural_gradient_and_its_quadratic_kl_the_target(ent_coef, target_kl):
    model = natural_model(ent_coef=ent_coef, target_kl=target_kl)
    step = updated(model)
    matrix = enumerated_fisher() + DAMPING * np.eye(6)
    direction = np.linalg.solve(matrix, gradient_of(ent_coef=ent_coef))
    assert cosine(step, direction) == pytest.approx(1.0, abs=1e-4)
    assert cosine(step, gradient_of(ent_coef=ent_coef)) < 0.99, "F is the identity here, which would prove little"
    fisher = enumerated_fisher()
    assert 0.5 * step @ fisher @ step == pytest.approx(target_kl, rel=2e-2)
    logged = model.logger.name_to_value
    assert 0.8 * target_kl < logged["train/kl"] < 1.25 * target_kl
    assert logged["train/target_kl"] == target_kl
    assert logged["train/curvature"] == pytest.approx(step @ fisher @ step / (step @ step), rel=1e-3)


def test_the_direction_comes_from_a_random_subset_of_the_steps(monkeypatch):
    states = np.concatenate([episode.observations for episode in PATHS])
    few, subsample = [], PolicyEvaluator.subsample

    def noted(*args):
        few.append(subsample(*args))
        return few[-1]

    monkeypatch.setattr(PolicyEvaluator, "subsample", noted)
    step = updated(natural_model(fisher_max_steps=3, target_kl=1e-6))
    assert len(few) == 1 and len(few[0]) == 3

    def direction(episodes):
        return np.linalg.solve(enumerated_fisher(episodes) + DAMPING * np.eye(6), gradient_of())

    assert cosine(step, direction([SimpleNamespace(observations=states[few[0]])])) == pytest.approx(1.0, abs=1e-4)
    assert cosine(step, direction(PATHS)) < 0.99


def periodic_model(n_contexts, **kwargs):
    """A linear softmax policy on one-hot contexts, of which every episode shows one after the other."""
    env = SilentEnv(spaces.Box(0.0, np.inf, (n_contexts,), np.float32), spaces.Discrete(2))
    arguments = {"baseline": None, "natural_gradient": True, "seed": 1, "device": "cpu", **kwargs}
    model = REINFORCE("MlpPolicy", env, policy_kwargs={"net_arch": []}, **arguments)
    model.set_logger(Logger(None, []))
    return model


def store_periodic(model, n_contexts, lengths, scale):
    rng = np.random.default_rng(0)
    buffer = model.rollout_buffer
    buffer.reset()
    for length in lengths:
        for t in range(length):
            observation = scale * np.eye(n_contexts, dtype=np.float32)[t % n_contexts]
            buffer.add(observation[None], rng.integers(2, size=1), rng.normal(size=1))
        buffer.finish_episode(0)


@settings(deadline=None, max_examples=30)
@given(
    n_contexts=st.integers(1, 7),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    max_steps=st.integers(1, 80),
    scale=st.sampled_from([1.0, 3.0, 10.0]),
    micro_batch_size=st.sampled_from([None, 13]),
)
@example(n_contexts=2, lengths=[2] * 101, max_steps=200, scale=10.0, micro_batch_size=None)
def test_the_divergence_is_that_over_all_steps_whatever_is_periodic(n_contexts, lengths, max_steps, scale, micro_batch_size):
    model = periodic_model(n_contexts, fisher_max_steps=max_steps, micro_batch_size=micro_batch_size)
    store_periodic(model, n_contexts, lengths, scale)
    states = model.rollout_buffer.whole_episodes().observations

    def logits():
        with th.no_grad():
            return model.policy.get_distribution(states).distribution.logits.clone()

    old, _, new = logits(), model.train(), logits()
    divergence = float((old.exp() * (old - new)).sum(dim=1).mean())
    assert divergence == pytest.approx(model.logger.name_to_value["train/kl"], rel=1e-3, abs=1e-6)
    assert divergence <= KL_TOLERANCE * model.target_kl * 1.001
    assert not th.equal(old, new)


def test_both_of_two_alternating_contexts_are_behind_the_fisher_matrix():
    """Every second step, as it was once, would be of one context only, and the step twice as long in the other."""
    model = periodic_model(2, fisher_max_steps=100, target_kl=1e-4)
    store_periodic(model, 2, [2] * 100, 1.0)
    rng = np.random.default_rng(0)
    batch = model.rollout_buffer.whole_episodes()
    chosen = PolicyEvaluator(model.policy).subsample(batch.episode_lengths, 100, rng)
    assert len(set(chosen.tolist())) == 100
    share = float(batch.observations[chosen, 0].mean())
    assert 0.3 < share < 0.7


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_a_bound_that_is_not_reached_changes_nothing(policy):
    def parameters(**kwargs):
        model = REINFORCE(policy, "CartPole-v1", natural_gradient=True, n_steps=30, seed=0, device="cpu", **kwargs)
        model.learn(90)
        return model.policy.parameters_to_vector()

    np.testing.assert_array_equal(parameters(fisher_max_steps=None), parameters(fisher_max_steps=1_000))
    assert not np.array_equal(parameters(), parameters(fisher_max_steps=20))


@pytest.mark.parametrize("fisher_max_steps", [None, 60])
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_micro_batches_change_nothing_about_the_natural_step(policy, fisher_max_steps):
    def logits(micro_batch_size):
        model = REINFORCE(
            policy,
            make_vec_env("CartPole-v1", 2, seed=0),
            natural_gradient=True,
            cg_max_steps=4,
            fisher_max_steps=fisher_max_steps,
            micro_batch_size=micro_batch_size,
            n_steps=50,
            seed=0,
            device="cpu",
        )
        model.learn(1)
        evaluator, batch = make_evaluator(model.policy), model.rollout_buffer.whole_episodes()
        assert len(batch.actions) > 100
        with th.no_grad():
            return evaluator.distribution(batch, slice(0, len(batch.actions))).distribution.logits.numpy().copy()

    whole = logits(None)
    for micro_batch_size in (1, 16, 64):
        np.testing.assert_allclose(logits(micro_batch_size), whole, atol=1e-4)


def bandit_step(scale=1.0, probability=0.5, pays=0, reward=1.0, **kwargs):
    """How the logits of a bandit with one context move, and the model; ``scale`` is of the observation, not of the logits."""
    model = periodic_model(1, n_episodes=64, **kwargs)
    net = model.policy.action_net
    net.bias.requires_grad_(False)
    with th.no_grad():
        net.weight.copy_(th.log(th.tensor([[probability], [1.0 - probability]])) / scale)
        before = net.weight.clone()
    buffer = model.rollout_buffer
    buffer.reset()
    for episode in range(64):
        action = episode % 2
        buffer.add(np.full((1, 1), scale, np.float32), np.array([action]), np.array([reward if action == pays else 0.0]))
        buffer.finish_episode(0)
    model.train()
    return (scale * (net.weight - before)).detach().double().numpy().flatten(), model.logger.name_to_value


@given(exponent=st.floats(-5.0, 3.0))
@settings(deadline=None, max_examples=15)
@example(exponent=-3.0)
def test_the_scale_of_the_observations_does_not_matter_to_the_step(exponent):
    step, _ = bandit_step()
    assert abs(step[0] - step[1]) == pytest.approx(np.sqrt(8 * 0.01), rel=1e-4)  # F is a quarter
    scaled, logged = bandit_step(scale=10.0**exponent)
    np.testing.assert_allclose(scaled, step, rtol=1e-3)
    assert logged["train/kl"] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("reward", [1e-30, 1e-12, 1e12, -1e-30])
def test_the_size_of_the_rewards_does_not_matter_to_the_step(reward):
    step, _ = bandit_step(reward=np.sign(reward))
    np.testing.assert_allclose(bandit_step(reward=reward)[0], step, rtol=1e-3)
    assert np.abs(step).min() > 0.1


@pytest.mark.parametrize("pays", [0, 1])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.99, 0.9997, 1e-3])
def test_a_nearly_deterministic_policy_moves_by_about_as_much(probability, pays):
    _, logged = bandit_step(probability=probability, pays=pays)
    # Where an action grows rarer still, less is left of the divergence than its quadratic estimate says
    assert 0.1 * 0.01 < logged["train/kl"] <= 1.5 * 0.01


def test_what_no_step_behind_the_fisher_matrix_saw_still_moves(monkeypatch):
    model = periodic_model(2, fisher_max_steps=1)
    store_periodic(model, 2, [2], 1.0)
    monkeypatch.setattr(PolicyEvaluator, "subsample", lambda *args: th.tensor([0]))
    model.policy.action_net.bias.requires_grad_(False)
    model.rollout_buffer.rewards[:] = [[0.0], [1.0]]
    model.gamma = 0.0
    before = model.policy.action_net.weight.detach().clone()
    model.train()
    moved = (model.policy.action_net.weight - before).abs().sum(dim=0)
    assert moved[0] == 0.0 and moved[1] > 0.1
    assert 0.0 < model.logger.name_to_value["train/kl"] <= 1.5 * model.target_kl


def test_the_entropy_bonus_turns_the_step():
    assert cosine(updated(natural_model(ent_coef=0.0)), updated(natural_model(ent_coef=2.0))) < 0.99


def exact_divergence(model, episodes=PATHS):
    states = th.as_tensor(np.concatenate([episode.observations for episode in episodes]), dtype=th.float32)
    with th.no_grad():
        new = model.policy.get_distribution(states).distribution.probs.double().numpy()
    rows = [next(r for r in range(3) if np.array_equal(DECISION_STATES[r], state)) for state in states.numpy()]
    old = ACTION_PROBABILITIES[rows]
    return (old * np.log(old / new)).sum(axis=1).mean()


@pytest.mark.parametrize("target_kl", [0.02, 0.5, 3.0])
def test_the_logged_divergence_is_exact_and_bounded(target_kl):
    model = natural_model(target_kl=target_kl, cg_damping=0.0)
    updated(model)
    kl = model.logger.name_to_value["train/kl"]
    assert kl == pytest.approx(exact_divergence(model), rel=1e-3)
    assert 0.0 < kl <= KL_TOLERANCE * target_kl


def test_a_step_is_shortened_until_the_divergence_fits(monkeypatch):
    divergences = iter([9.0, 2.0, 1.6, 1.5, 0.0])
    straight = updated(natural_model(target_kl=1.0))
    original = policy_step.mean_divergence
    monkeypatch.setattr(
        policy_step,
        "mean_divergence",
        lambda old, new: original(old, new) if th.is_grad_enabled() else th.tensor(next(divergences)),
    )
    model = natural_model(target_kl=1.0)
    step = updated(model)
    assert model.logger.name_to_value["train/shortenings"] == 3
    assert model.logger.name_to_value["train/kl"] == 1.5
    np.testing.assert_allclose(step, SHORTENING**3 * straight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", [float("nan"), 1e6])
def test_a_step_that_cannot_be_shortened_enough_is_not_taken(monkeypatch, divergence):
    original, seen = policy_step.mean_divergence, []

    def too_far(old, new):
        if th.is_grad_enabled():
            return original(old, new)
        seen.append(1)
        return th.tensor(divergence)

    monkeypatch.setattr(policy_step, "mean_divergence", too_far)
    model = natural_model()
    with pytest.warns(UserWarning, match="A natural step was skipped.*target_kl"):
        assert not updated(model).any()
    assert len(seen) == MAX_SHORTENINGS + 1
    assert model.logger.name_to_value["train/kl"] == 0.0


def test_a_zero_gradient_and_a_curvature_that_is_no_number_skip_the_step_once_said(monkeypatch):
    model = natural_model(normalize_advantage=True)
    one_step = next(path for path in PATHS if len(path.actions) == 1)
    with pytest.warns(UserWarning, match="skipped.*the gradient is zero") as caught:
        for _ in range(2):
            assert not updated(model, [one_step]).any()
    assert len([warning for warning in caught if "skipped" in str(warning.message)]) == 1
    assert model._n_updates == 3

    monkeypatch.setattr(policy_step, "fisher_product", lambda *args: lambda vector: vector * float("nan"))
    with pytest.warns(UserWarning, match="skipped.*the curvature along it is nan"):
        assert not updated(natural_model()).any()
    monkeypatch.setattr(policy_step, "fisher_product", lambda *args: lambda vector: -vector)
    with pytest.warns(UserWarning, match="skipped.*the curvature along it is -"):
        assert not updated(natural_model()).any()


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing(monkeypatch):
    model = natural_model()
    before = actor_parameters(model)
    episode = PATHS[0]._replace(rewards=[float("nan")] * len(PATHS[0].rewards))
    with pytest.raises(ValueError, match="The gradient of the policy is nan"):
        updated(model, [episode, PATHS[1]])
    np.testing.assert_array_equal(actor_parameters(model), before)


class ScaledExtractor(FlattenExtractor):
    """Hands the first feature on at another scale: the same policies, written down with other parameters."""

    def forward(self, observations):
        return super().forward(observations) * th.tensor([10.0, 1.0])


def probabilities_after_update(scaled, **kwargs):
    policy_kwargs = {"net_arch": {"pi": [], "vf": []}}
    if scaled:
        policy_kwargs["features_extractor_class"] = ScaledExtractor
    env = "sb3_reinforce/DiamondHill-v0"
    model = REINFORCE("MlpPolicy", env, policy_kwargs=policy_kwargs, baseline=None, seed=0, device="cpu", **kwargs)
    model.set_logger(Logger(None, []))
    set_action_probabilities(model, ACTION_PROBABILITIES)
    if scaled:
        with th.no_grad():
            model.policy.action_net.weight[:, 0] /= 10.0
    updated(model)
    with th.no_grad():
        return model.policy.get_distribution(th.as_tensor(DECISION_STATES, dtype=th.float32)).distribution.probs.numpy()


def test_how_the_policy_is_written_down_does_not_matter_to_the_natural_step_but_to_adam():
    natural = {"natural_gradient": True, "target_kl": 0.01, "cg_damping": 0.0, "cg_max_steps": 100}
    plain, scaled = (probabilities_after_update(scaled, **natural) for scaled in (False, True))
    assert np.abs(plain - ACTION_PROBABILITIES).max() > 0.02
    np.testing.assert_allclose(plain, scaled, atol=2e-3)
    plain, scaled = (probabilities_after_update(scaled, learning_rate=0.05) for scaled in (False, True))
    assert np.abs(plain - scaled).max() > 0.02


def test_learning_rate_and_clipping_do_not_matter_to_the_policy():
    def parameters(**kwargs):
        model = REINFORCE("MlpPolicy", "CartPole-v1", natural_gradient=True, n_steps=50, seed=0, device="cpu", **kwargs)
        model.learn(1)
        return th.cat([p.flatten() for name, p in model.policy.named_parameters() if "value" not in name]).detach()

    assert th.equal(parameters(), parameters(learning_rate=1e-5, max_grad_norm=1e-3))


class SharedLayer(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.linear = th.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations):
        return self.linear(super().forward(observations))


def images():
    return FakeImageEnv(screen_height=40, screen_width=40, n_channels=1)


POLICIES = {
    "Gaussian": ("MlpPolicy", "Pendulum-v1", {}),
    "squashed": ("MlpPolicy", "Pendulum-v1", {"policy_kwargs": {"squash_output": True}, "use_sde": True}),
    "gSDE": ("MlpPolicy", "Pendulum-v1", {"use_sde": True, "sde_sample_freq": 16}),
    "Categorical": ("MlpPolicy", "CartPole-v1", {}),
    "MultiCategorical, dict": ("MultiInputPolicy", DictWorld, {}),
    "Bernoulli": ("MlpPolicy", lambda: gym.wrappers.FlattenObservation(IdentityEnvMultiBinary(3, ep_length=10)), {}),
    "shared layer": ("MlpPolicy", "CartPole-v1", {"policy_kwargs": {"features_extractor_class": SharedLayer}}),
    "images": ("CnnPolicy", images, {"n_episodes": 2, "fisher_max_steps": 16, "critic_epochs": 1}),
    "micro-batches": ("MlpPolicy", "CartPole-v1", {"micro_batch_size": 30}),
    "entropy in the return": ("MlpPolicy", "CartPole-v1", {"entropy_in_return": True, "ent_coef": "lin_0.1"}),
    "time step, episode": ("MlpPolicy", "CartPole-v1", {"baseline": "time_step", "loss_reduction": "episode"}),
    "no critic": ("MlpPolicy", "Pendulum-v1", {"baseline": None, "normalize_advantage": True}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_natural_steps_of_the_size_asked_for(name):
    policy, make_env, kwargs = POLICIES[name]
    budget = {} if "n_episodes" in kwargs else {"n_steps": 40}
    model = REINFORCE(
        policy,
        make_vec_env(make_env, 2, seed=0),
        natural_gradient=True,
        target_kl=0.01,
        seed=0,
        device="cpu",
        **budget,
        **kwargs,
    )
    before, steps = copy.deepcopy(dict(model.policy.named_parameters())), optimizer_steps(model)
    model.learn(1)
    logged = model.logger.name_to_value
    assert 0.001 < logged["train/kl"] <= 0.015
    # The optimizer is the critic's alone, and moves nothing else
    assert all("value_net" in name for step in steps for name in step)
    assert bool(steps) == (model.baseline == "value")
    moved = {name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])}
    assert {name for name in moved if "value_net" not in name} == {name for name in before if "value_net" not in name}


def test_target_kl_may_decay():
    model = natural_model(target_kl="lin_0.02")
    model._current_progress_remaining = 0.5
    updated(model)
    assert model.logger.name_to_value["train/target_kl"] == pytest.approx(0.01)
    model._current_progress_remaining = 0.0
    assert not updated(model).any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target_kl": 0.0}, "target_kl"),
        ({"target_kl": -0.1}, "target_kl"),
        ({"target_kl": "0.02"}, "target_kl"),
        ({"target_kl": lambda progress: 0.0}, "target_kl"),
        ({"cg_max_steps": 0}, "cg_max_steps"),
        ({"cg_damping": -0.1}, "cg_damping"),
        ({"cg_damping": float("nan")}, "cg_damping"),
        ({"fisher_max_steps": 0}, "fisher_max_steps"),
    ],
)
def test_bad_settings_of_the_natural_step_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", "CartPole-v1", natural_gradient=True, **kwargs)


@pytest.mark.parametrize("kwargs", [{"target_kl": 0.05}, {"cg_max_steps": 5}, {"cg_damping": 0.2}, {"fisher_max_steps": None}])
def test_settings_without_effect_are_named(kwargs):
    with pytest.warns(UserWarning, match=f"{next(iter(kwargs))}.*no effect without natural_gradient=True"):
        REINFORCE("MlpPolicy", "CartPole-v1", **kwargs)


def test_gradient_recorder_is_not_asked_for_the_policys_step():
    """With the natural step the optimizer is the critic's alone."""
    model = linear_model(natural_gradient=True, baseline="value")
    assert isinstance(model.policy.optimizer, GradientRecorder)
    updated(model)
    names = [name for name, _ in model.policy.named_parameters()]
    for gradients in model.policy.optimizer.recorded:
        assert {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None} <= {
            name for name in names if "value" in name
        }


@pytest.mark.parametrize("action_space", [spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.MultiBinary(3)], ids=str)
def test_the_divergence_is_a_mean_over_the_dimensions_of_an_action(action_space, monkeypatch):
    """As in sb3-contrib's TRPO. The step is that of the sum with three times the target and the damping."""

    def update(**kwargs):
        env = DummyVecEnv([lambda: SilentEnv(spaces.Box(-1.0, 1.0, (2,), np.float32), action_space)])
        model = REINFORCE("MlpPolicy", env, natural_gradient=True, n_steps=64, seed=0, device="cpu", **kwargs)
        buffer = model.rollout_buffer
        rng = np.random.default_rng(0)
        action_space.seed(0)
        for _ in range(64):
            buffer.add(rng.normal(size=(1, 2)), action_space.sample()[None], rng.normal(size=1))
        buffer.finish_episode(0)
        before = model.policy.parameters_to_vector()
        model.set_logger(Logger(None, []))
        model.train()
        return model.policy.parameters_to_vector() - before, model.logger.name_to_value["train/kl"]

    step, kl = update(target_kl=0.01, cg_damping=0.1)
    mean_divergence = policy_step.mean_divergence
    monkeypatch.setattr(policy_step, "mean_divergence", lambda old, new: 3.0 * mean_divergence(old, new))
    of_the_sum, kl_of_the_sum = update(target_kl=0.03, cg_damping=0.3)
    np.testing.assert_allclose(step, of_the_sum, atol=1e-6)
    assert kl_of_the_sum == pytest.approx(3.0 * kl, rel=1e-4)


def test_the_mean_divergence_is_that_of_sb3_contribs_trpo():
    old = DiagGaussianDistribution(2).proba_distribution(th.zeros(5, 2), th.zeros(2))
    new = DiagGaussianDistribution(2).proba_distribution(th.tensor([[0.2, 0.4]]).expand(5, 2), th.zeros(2))
    # m^2 / 2 for a mean that moves by m at a standard deviation of 1
    assert float(policy_step.mean_divergence(old, new)) == pytest.approx((0.02 + 0.08) / 2)
