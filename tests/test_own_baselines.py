"""The baselines of the literature, and those of users, through the model's own train: exact, and saved with it."""

import copy
import itertools
import threading
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import (
    ACTION_PROBABILITIES,
    CueEnv,
    FixedLengthEnv,
    GradientRecorder,
    enumerate_cue_paths,
    gradients_of_paths,
    linear_model,
    logit_gradient_to_parameters,
    recorded_gradient,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from test_memory_and_masks import SMALL, log_probs_of

from sb3_reinforce import REINFORCE
from sb3_reinforce.envs import aliased_gridworld, diamond_hill
from sb3_reinforce.envs.diamond_hill import DECISION_STATES, SLIP_PROBABILITY
from sb3_reinforce.functional.baselines import Baseline, Episodes, MovingAverageBaseline
from sb3_reinforce.lab import check_unbiased, measure
from sb3_reinforce.update import make_evaluator

GAMMA = 0.9
LITERATURE = ("moving_average", "linear", "optimal", "greedy", "group")
WITH_COMMON_STARTS = ("greedy", "group")


class Expected(Baseline):
    """What a researcher might write: the expected reward of the next step, by the policy's own probabilities."""

    needs_distribution = True

    def __call__(self, episodes: Episodes) -> np.ndarray:
        probabilities = episodes.distribution.probs.double().numpy()
        return probabilities @ np.arange(probabilities.shape[1]) + episodes.observations[:, 0] + 0.1 * episodes.time_steps


class HalfOfItself(Baseline):
    """Biased: the expected gradient is half of the true one."""

    def __call__(self, episodes: Episodes) -> np.ndarray:
        return 0.5 * episodes.returns


# By enumeration


def paths_by_slip():
    """What the environment may draw, with the paths then: (probability, paths) of a slip, and of none."""
    return [
        (p, [path for path in diamond_hill.enumerate_paths(ACTION_PROBABILITIES, float(slips)) if path.probability > 0])
        for p, slips in ((SLIP_PROBABILITY, True), (1 - SLIP_PROBABILITY, False))
    ]


def rollouts(draws, common_start, n_episodes=2):
    """The probability of each rollout, its paths, and all that the environment could have done with the same draw."""
    if not common_start:
        draws = [(1.0, [path._replace(probability=p * path.probability) for p, paths in draws for path in paths])]
    for probability, paths in draws:
        for chosen in itertools.product(paths, repeat=n_episodes):
            yield probability * float(np.prod([path.probability for path in chosen])), chosen, paths


def rows_of(path, states=DECISION_STATES):
    return [int(np.argmax((states == seen).all(axis=1))) for seen in path.observations]


def greedy_path(paths, probabilities, states=DECISION_STATES):
    (path,) = (p for p in paths if (probabilities[rows_of(p, states)].argmax(axis=1) == p.actions).all())
    return path


def fill(model, episodes, greedy=None, masks=None):
    """Store episodes, as a rollout would, in one environment."""
    buffer = model.rollout_buffer
    buffer.reset()
    for episode in episodes:
        for observation, action, reward in zip(episode.observations, episode.actions, episode.rewards, strict=True):
            mask = None if masks is None else masks(observation)[None]
            buffer.add(observation[None], np.array([action]), np.array([reward]), mask)
        buffer.finish_episode(0)
        if greedy is not None:
            buffer.starts[0].append(0)
            buffer.greedy_rewards = {0: np.array(greedy.rewards, np.float64)}
    model.policy.optimizer.recorded.clear()


def slow_returns(path, return_type):
    n = len(path.rewards)
    to_go = [sum(GAMMA ** (k - t) * float(path.rewards[k]) for k in range(t, n)) for t in range(n)]
    return to_go if return_type == "reward_to_go" else [to_go[0]] * n


def slow_baseline(name, i, t, episodes, return_type, state, greedy):
    """What is subtracted at step t of episode i, as the definition says."""
    credited = [slow_returns(path, return_type) for path in episodes]
    others = [own for j, own in enumerate(credited) if j != i]
    if name == "moving_average":
        return state["sum"] / state["weight"]
    if name == "linear":
        o, time = episodes[i].observations[t].astype(float), t / 100
        return float(np.concatenate([o, o**2, [time, time**2, time**3, 1.0]]) @ state["coefficients"])
    if name == "greedy":
        others = [slow_returns(greedy, return_type)]
    if name in WITH_COMMON_STARTS:
        at_same_time = [own[t] for own in others if len(own) > t]
        if name == "greedy" or return_type == "reward_to_go":
            return np.mean(at_same_time) if at_same_time else np.mean([np.mean(own) for own in others])
        return np.mean([own[0] for own in others])
    above = below = 0.0
    for j, path in enumerate(episodes):
        if j != i:
            both = np.zeros((2, 3, 2))
            for step, (row, action) in enumerate(zip(rows_of(path), path.actions, strict=True)):
                score = np.eye(2)[action] - ACTION_PROBABILITIES[row]
                weight = GAMMA**step if return_type == "reward_to_go" else 1.0
                both[0, row] += weight * credited[j][step] * score
                both[1, row] += weight * score
            of_returns, of_scores = map(logit_gradient_to_parameters, both)
            above, below = above + of_returns @ of_scores, below + of_scores @ of_scores
    return above / below


def reference(name, episodes, return_type, reduction, state, greedy):
    gradient = np.zeros((3, 2))
    for i, path in enumerate(episodes):
        for t, (row, action) in enumerate(zip(rows_of(path), path.actions, strict=True)):
            subtracted = 0.0 if name is None else slow_baseline(name, i, t, episodes, return_type, state, greedy)
            advantage = slow_returns(path, return_type)[t] - subtracted
            weight = GAMMA**t if return_type == "reward_to_go" else 1.0
            gradient[row] += weight * advantage * (np.eye(2)[action] - ACTION_PROBABILITIES[row])
    n = len(episodes) if reduction == "episode" else sum(len(path.actions) for path in episodes)
    return logit_gradient_to_parameters(gradient / n)


def arguments_of(name, return_type="reward_to_go", reduction="episode"):
    switches = {"return_type": return_type, "loss_reduction": reduction, "discounted_weighting": True, "gamma": GAMMA}
    return {**switches, "n_episodes": 2, "episodes_per_start": 2 if name in WITH_COMMON_STARTS else None}


def past_state(name, model, episodes):
    """A state as after earlier rollouts. It stays so while rollouts are enumerated."""
    fill(model, episodes)
    if not model.estimator.baseline.is_fitted:
        return {}
    model.train()
    return copy.deepcopy(model.estimator.baseline.state_dict())


@pytest.mark.parametrize("reduction", ["episode", "step"])
@pytest.mark.parametrize("return_type", ["reward_to_go", "episode"])
@pytest.mark.parametrize("name", LITERATURE)
def test_expected_gradient_on_diamond_hill(name, return_type, reduction):
    model = linear_model(baseline=name, **arguments_of(name, return_type, reduction))
    draws, baseline = paths_by_slip(), model.estimator.baseline
    state = past_state(name, model, [path for _, paths in draws for path in paths])
    expected, slow, exact = np.zeros(6), np.zeros(6), np.zeros(6)
    for probability, episodes, alike in rollouts(draws, name in WITH_COMMON_STARTS):
        greedy = greedy_path(alike, ACTION_PROBABILITIES) if name in WITH_COMMON_STARTS else None
        baseline.load_state_dict(copy.deepcopy(state))
        fill(model, episodes, greedy)
        model.train()
        # The policy stays: its optimizer only records
        expected += probability * recorded_gradient(model)
        slow += probability * reference(name, episodes, return_type, reduction, state, greedy)
        exact += probability * reference(None, episodes, return_type, "episode", {}, None)
    np.testing.assert_allclose(expected, slow, atol=1e-6)
    if reduction == "episode":
        np.testing.assert_allclose(expected, exact, atol=1e-6)
    else:
        assert np.abs(expected - exact).max() > 1e-3


def gridworld_model(baseline, **kwargs):
    policy_kwargs = {"net_arch": {"pi": [], "vf": [4]}, "optimizer_class": GradientRecorder}
    exact = {"max_grad_norm": float("inf"), "device": "cpu", "seed": 0}
    arguments = {**arguments_of(baseline if isinstance(baseline, str) else None), **exact, **kwargs}
    env = gym.make("sb3_reinforce/AliasedGridworld-v0")
    model = REINFORCE("MlpPolicy", env, baseline=baseline, use_masking=True, policy_kwargs=policy_kwargs, **arguments)
    model.set_logger(Logger(None, []))
    with th.no_grad():
        th.manual_seed(1)
        for parameter in model.policy.action_net.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize(
    ("baseline", "micro_batch_size"),
    [*((name, None) for name in LITERATURE), (Expected(), None), (Expected(), 2), ("optimal", 2)],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_expected_gradient_with_masks_on_the_gridworld(baseline, micro_batch_size):
    """Nobody walks into walls."""
    model, states = gridworld_model(baseline, micro_batch_size=micro_batch_size), aliased_gridworld.OBSERVATIONS
    with th.no_grad():
        logits = model.policy.get_distribution(th.as_tensor(states)).distribution.logits.double().numpy()
    unnormalized = np.where(states == 0, np.exp(logits), 0.0)
    probabilities = unnormalized / unnormalized.sum(axis=1, keepdims=True)
    draws = [(0.25, aliased_gridworld.enumerate_paths(probabilities, 2, (cell,))) for cell in aliased_gridworld.START_CELLS]
    exact = np.zeros((4, 5))
    for probability, paths in draws:
        for path in paths:
            for t, (row, action) in enumerate(zip(rows_of(path, states), path.actions, strict=True)):
                score = np.outer(np.eye(4)[action] - probabilities[row], [*states[row], 1.0])
                exact += probability * path.probability * GAMMA**t * slow_returns(path, "reward_to_go")[t] * score
    assert np.abs(exact).max() > 0.01

    def gradient(episodes, greedy):
        model.estimator.baseline.load_state_dict(copy.deepcopy(state))
        fill(model, episodes, greedy, lambda observation: observation == 0)
        model.train()
        return recorded_gradient(model)

    state = {}
    if model.estimator.baseline.is_fitted:
        gradient([path for _, paths in draws for path in paths], None)
        state = copy.deepcopy(model.estimator.baseline.state_dict())
    common_start, expected = baseline in WITH_COMMON_STARTS, np.zeros(20)
    for probability, episodes, alike in rollouts(draws, common_start):
        greedy = greedy_path(alike, probabilities, states) if common_start else None
        expected += probability * gradient(episodes, greedy)
    np.testing.assert_allclose(expected.reshape(4, 5), exact, atol=1e-6)


@pytest.mark.parametrize(
    "baseline", [*LITERATURE, Expected()], ids=lambda one: one if isinstance(one, str) else type(one).__name__
)
def test_expected_gradient_of_a_recurrent_policy_with_masks(baseline):
    policy_kwargs = {**SMALL, "optimizer_class": GradientRecorder}
    arguments = {**arguments_of(baseline if isinstance(baseline, str) else None), "max_grad_norm": float("inf")}
    env = make_vec_env(CueEnv, 1, seed=0)
    settings = {"use_masking": True, "seed": 0, "device": "cpu", "policy_kwargs": policy_kwargs, "micro_batch_size": 4}
    model = REINFORCE("MlpLstmPolicy", env, baseline=baseline, **settings, **arguments)
    model.set_logger(Logger(None, []))
    exact_policy = copy.deepcopy(model.policy).double()

    def probabilities(seen, mask):
        masks = [*CueEnv.MASKS[: len(seen) - 1], mask]
        return log_probs_of(exact_policy, seen, masks)[-1].exp().detach().numpy()

    paths = enumerate_cue_paths(probabilities)
    objective = th.zeros((), dtype=th.float64)
    for path in paths:
        steps = zip(log_probs_of(exact_policy, path.observations, path.masks), path.actions, strict=True)
        log_prob = sum(log_probs[action] for log_probs, action in steps)
        objective = objective + path.probability * th.exp(log_prob - log_prob.detach()) * slow_returns(path, "reward_to_go")[0]

    def is_greedy(path):
        every = range(1, len(path.actions) + 1)
        return all(probabilities(path.observations[:n], path.masks[n - 1]).argmax() == path.actions[n - 1] for n in every)

    by_cue = [[path for path in paths if path.observations[0][cue] == 1] for cue in (0, 1)]
    chances = [sum(path.probability for path in own) for own in by_cue]
    draws = [
        (chance, [path._replace(probability=path.probability / chance) for path in own])
        for chance, own in zip(chances, by_cue, strict=True)
    ]
    state, expected = {}, {}
    if model.estimator.baseline.is_fitted:
        gradients_of_paths(model, paths)
        state = copy.deepcopy(model.estimator.baseline.state_dict())
    for probability, episodes, alike in rollouts(draws, baseline in WITH_COMMON_STARTS):
        model.estimator.baseline.load_state_dict(copy.deepcopy(state))
        greedy = next(path for path in alike if is_greedy(path)) if baseline in WITH_COMMON_STARTS else None
        for name, gradient in gradients_of_paths(model, episodes, greedy).items():
            expected[name] = expected.get(name, 0.0) + probability * gradient
    parameters = dict(exact_policy.named_parameters())
    exact = dict(zip(expected, th.autograd.grad(objective, [parameters[name] for name in expected]), strict=True))
    for name, gradient in exact.items():
        np.testing.assert_allclose(expected[name], gradient, rtol=0, atol=1e-6, err_msg=name)


# Common starts


class StartEnv(gym.Env):
    """The seed decides the first observation and the noise of the steps; episodes end at random."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start, self.time = self.np_random.normal(), 0
        return np.array([self.start, 0.0], np.float32), {}

    def step(self, action):
        self.time += 1
        noise = self.np_random.normal()
        over = self.np_random.random() < 0.2
        return np.array([self.start, noise], np.float32), float(noise), over, self.time == 12, {}


class DeafEnv(StartEnv):
    """Does not care for the seed."""

    def reset(self, *, seed=None, options=None):
        return super().reset()


@pytest.mark.parametrize(
    ("engine", "n_envs", "n_episodes", "each"),
    [*((DummyVecEnv, *sizes) for sizes in [(4, 8, 4), (3, 8, 4), (2, 6, 3), (5, 4, 2), (1, 4, 2)]), (SubprocVecEnv, 3, 8, 4)],
)
def test_episodes_of_a_start_begin_alike_and_have_the_same_noise(engine, n_envs, n_episodes, each):
    env = VecNormalize(VecFrameStack(make_vec_env(StartEnv, n_envs, vec_env_cls=engine), 2), norm_obs=False, norm_reward=False)
    arguments = {"n_episodes": n_episodes, "episodes_per_start": each, "baseline": "group", "seed": 0, "device": "cpu"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_episodes=4 is below the number of environments")
        model = REINFORCE("MlpPolicy", env, **arguments)
    starts_of_rollouts = []
    for _ in range(2):
        model.learn(1, reset_num_timesteps=False)
        batch = model.rollout_buffer.whole_episodes()
        assert sorted(batch.starts.tolist()) == sorted(np.repeat(np.arange(n_episodes // each), each).tolist())
        ends = np.cumsum(batch.episode_lengths)
        rewards = [batch.rewards[end - n : end] for end, n in zip(ends, batch.episode_lengths, strict=True)]
        first = [float(batch.observations[end - n, 2]) for end, n in zip(ends, batch.episode_lengths, strict=True)]
        by_start = {start: {first[i] for i in np.flatnonzero(batch.starts == start)} for start in set(batch.starts.tolist())}
        assert all(len(seen) == 1 for seen in by_start.values()), "every episode of a start begins alike"
        starts_of_rollouts += [seen.pop() for seen in by_start.values()]
        for start in by_start:
            alike = [rewards[i] for i in np.flatnonzero(batch.starts == start)]
            # What is random does not depend on the actions here, so that whole episodes are alike
            for other in alike[1:]:
                np.testing.assert_array_equal(other, alike[0])
        np.testing.assert_allclose(model.rollout_buffer.advantages, 0.0, atol=1e-6)
    assert len(set(starts_of_rollouts)) == len(starts_of_rollouts), "different starts are different"
    env.close()


def test_the_deterministic_episode_is_that_of_predict():
    env = make_vec_env("CartPole-v1", 2, seed=0)
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=3, seed=0, device="cpu", learning_rate=0.0)
    model.learn(1)
    batch = model.rollout_buffer.whole_episodes()
    assert sorted(batch.starts.tolist()) == [0, 1, 2]
    seeds = np.random.default_rng(0).integers(2**31, size=3)
    other = gym.make("CartPole-v1")
    ends = np.cumsum(batch.episode_lengths)
    for start, rewards in enumerate(batch.greedy_rewards):
        observation, _ = other.reset(seed=int(seeds[start]))
        episode = int(np.flatnonzero(batch.starts == start)[0])
        np.testing.assert_array_equal(batch.observations[ends[episode] - batch.episode_lengths[episode]], observation)
        n, over = 0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, _, terminated, truncated, _ = other.step(int(action))
            n, over = n + 1, terminated or truncated
        assert rewards.tolist() == [1.0] * n
    n_greedy = sum(map(len, batch.greedy_rewards))
    assert model.num_timesteps >= model.rollout_buffer.n_counted_steps + n_greedy
    counted = model.rollout_buffer.n_counted_steps / model.num_timesteps
    assert model.logger.name_to_value["rollout/discarded_fraction"] == 1.0 - counted
    assert len(model.ep_info_buffer) == 3, "the deterministic episodes are no training episodes"


def test_the_bound_of_a_rollout_holds_for_all_waves():
    env = make_vec_env(FixedLengthEnv, 2, env_kwargs={"lengths": [10]})
    arguments = {"n_episodes": 6, "episodes_per_start": 2, "max_rollout_steps": 15, "seed": 0, "device": "cpu"}
    model = REINFORCE("MlpPolicy", env, baseline="leave_one_out", **arguments)
    with pytest.warns(UserWarning, match="max_rollout_steps=15"):
        model.learn(1)
    batch = model.rollout_buffer.whole_episodes()
    assert batch.episode_lengths.tolist() == [10, 5, 10, 5] and batch.starts.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "group"}, "baseline='group' compares episodes from the same start: set episodes_per_start to 2 or more"),
        ({"baseline": "group", "episodes_per_start": 1, "n_episodes": 4}, "set episodes_per_start to 2 or more, not 1"),
        ({"episodes_per_start": 2}, "episodes_per_start=2 needs n_episodes, a multiple of 2, and n_episodes is None"),
        ({"episodes_per_start": 3, "n_episodes": 4}, "episodes_per_start=3 needs n_episodes, a multiple of 3, .* is 4"),
        ({"episodes_per_start": 0, "n_episodes": 4}, "episodes_per_start must be None or a whole number of at least 1, not 0"),
        ({"baseline": "greedy"}, "baseline='greedy' needs n_episodes, a multiple of 1, and n_episodes is None"),
        ({"baseline": "optimal", "n_episodes": 1}, "baseline='optimal' compares episodes with each other"),
    ],
)
def test_starts_that_cannot_be_had_are_refused_before_training(arguments, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", "CartPole-v1", **arguments)


def test_engines_and_environments_that_cannot_restart_are_refused():
    from sb3_reinforce.vec_env import GymnasiumVecEnv

    env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"))
    for arguments, name in (
        ({"baseline": "greedy"}, "baseline='greedy'"),
        ({"episodes_per_start": 2}, "episodes_per_start=2"),
    ):
        with pytest.raises(
            ValueError, match=f"{name} needs environments that can be reset with equal seeds.*GymnasiumVecEnv is"
        ):
            REINFORCE("MlpPolicy", env, n_episodes=4, **arguments)
    model = REINFORCE("MlpPolicy", make_vec_env(DeafEnv, 2), n_episodes=4, episodes_per_start=2, seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"The first observation of environments 0 and 1 differ, though both were reset"):
        model.learn(1)


# Saved with the model


class Counter(Baseline):
    """Counts what it was fitted on."""

    def __init__(self) -> None:
        self.n_fitted, self.seen = 0, np.zeros(2)

    def __call__(self, episodes: Episodes) -> np.ndarray:
        return np.full(len(episodes.rewards), float(self.n_fitted))

    def fit(self, episodes: Episodes) -> None:
        self.n_fitted += 1
        self.seen = self.seen + episodes.lengths[:2]


class WithLock(Counter):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def learned(baseline, **kwargs):
    return REINFORCE("MlpPolicy", "CartPole-v1", baseline=baseline, n_episodes=2, seed=0, device="cpu", **kwargs).learn(60)


@pytest.mark.parametrize("given", ["instance", "path", "moving_average", "linear"])
def test_state_is_saved_and_loaded(tmp_path, given):
    baseline = {"instance": Counter(), "path": f"{__name__}:Counter"}.get(given, given)
    model = learned(baseline)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=gym.make("CartPole-v1"))
    state, restored = model.estimator.baseline.state_dict(), loaded.estimator.baseline.state_dict()
    assert state.keys() == restored.keys() and len(state) > 0
    for name, value in state.items():
        np.testing.assert_array_equal(restored[name], value)
    if given in ("instance", "path"):
        assert restored["n_fitted"] == model._n_updates > 0
    loaded.learn(30)
    assert loaded.estimator.baseline.state_dict() is not state


def test_a_baseline_of_another_class_begins_anew(tmp_path):
    learned("moving_average").save(tmp_path / "model")
    assert REINFORCE.load(tmp_path / "model", baseline="linear").estimator.baseline.coefficients is None
    assert REINFORCE.load(tmp_path / "model", baseline=MovingAverageBaseline(0.5)).estimator.baseline.decay == 0.5
    with pytest.raises(
        ValueError, match="baseline='moving_average', which has no critic: it cannot become one with baseline='v"
    ):
        REINFORCE.load(tmp_path / "model", baseline="value")


def test_what_cannot_be_pickled_is_missing_and_named(tmp_path):
    model = learned(WithLock())
    with pytest.warns(
        UserWarning, match="The baseline test_own_baselines:WithLock is not saved with the model: it could not be"
    ):
        model.save(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"model.* test_own_baselines:WithLock, is missing \(it could not be pickled.* give it"
    ):
        REINFORCE.load(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", baseline=WithLock(), env=gym.make("CartPole-v1"))
    th.testing.assert_close(loaded.policy.state_dict(), model.policy.state_dict())
    loaded.learn(30)


def test_a_class_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "from sb3_reinforce.functional.baselines import NoBaseline\nclass Mine(NoBaseline):\n    pass\n"
    (tmp_path / "passing_module.py").write_text(code)
    import passing_module

    learned(passing_module.Mine()).save(tmp_path / "instance")
    learned("passing_module:Mine").save(tmp_path / "path")
    (tmp_path / "passing_module.py").unlink()
    monkeypatch.delitem(__import__("sys").modules, "passing_module")
    with pytest.raises(ValueError, match=r"passing_module:Mine, is missing \(ModuleNotFoundError: No module named"):
        REINFORCE.load(tmp_path / "instance")
    with pytest.raises(ValueError, match="baseline='passing_module:Mine' cannot be imported: No module named"):
        REINFORCE.load(tmp_path / "path")


def test_a_failing_baseline_leaves_the_policy_as_it_was():
    class Failing(Counter):
        def fit(self, episodes):
            raise RuntimeError("not fitted")

    model = REINFORCE("MlpPolicy", "CartPole-v1", baseline=Failing(), n_episodes=2, seed=0, device="cpu")
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(RuntimeError, match="not fitted"):
        model.learn(1)
    th.testing.assert_close(model.policy.state_dict(), before)
    assert model._n_updates == 0


def test_callbacks_find_the_advantages_until_the_update():
    from stable_baselines3.common.callbacks import BaseCallback

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = self.model.rollout_buffer
            counted = buffer.counted
            n_fitted = self.model.estimator.baseline.n_fitted
            np.testing.assert_allclose((buffer.returns - buffer.advantages)[counted], n_fitted, atol=1e-4)

    model = REINFORCE("MlpPolicy", "CartPole-v1", baseline=Counter(), n_episodes=2, seed=0, device="cpu")
    model.learn(60, callback=Look())
    with pytest.raises(RuntimeError, match="there until the policy is updated"):
        _ = model.rollout_buffer.advantages


def test_a_baseline_with_a_critic_has_its_values_fitted():
    class HalfOfTheCritic(Baseline):
        needs_critic = True

        def __call__(self, episodes):
            return 0.5 * episodes.values

    model = REINFORCE("MlpPolicy", "CartPole-v1", baseline=HalfOfTheCritic(), n_episodes=2, seed=0, device="cpu")
    before = copy.deepcopy(model.policy.value_net.state_dict())
    model.learn(1)
    assert not th.equal(model.policy.value_net.weight, before["weight"])
    assert "use_critic" not in model.policy_kwargs


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_baseline_may_keep_what_it_was_given(n_envs):
    class Memory(Baseline):
        needs_observations = True

        def __init__(self):
            self.kept = []

        def __call__(self, episodes):
            return np.zeros(len(episodes.rewards))

        def fit(self, episodes):
            arrays = [episodes.observations, episodes.actions, episodes.rewards, episodes.returns, episodes.lengths]
            self.kept.append([(array, array.copy()) for array in arrays])

    memory = Memory()
    REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", n_envs), baseline=memory, n_episodes=4, seed=0, device="cpu").learn(300)
    assert len(memory.kept) > 2
    for array, copied in itertools.chain(*memory.kept):
        np.testing.assert_array_equal(array, copied)


@pytest.mark.parametrize(
    ("space", "use_sde"),
    [
        (spaces.Box(-1, 1, (2,)), False),
        (spaces.Box(-1, 1, (2,)), True),
        (spaces.MultiDiscrete([2, 3]), False),
        (spaces.MultiBinary(2), False),
    ],
    ids=str,
)
def test_every_action_space_has_its_distribution(space, use_sde):
    class Sees(Baseline):
        needs_distribution = True

        def __call__(self, episodes):
            parts = episodes.distribution if isinstance(episodes.distribution, list) else [episodes.distribution]
            assert all(len(part.mean) == len(episodes.rewards) or len(part.probs) == len(episodes.rewards) for part in parts)
            log_prob = sum(
                part.log_prob(th.as_tensor(episodes.actions[:, i] if len(parts) > 1 else episodes.actions).float())
                for i, part in enumerate(parts)
            )
            assert th.isfinite(log_prob).all()
            return np.zeros(len(episodes.rewards))

    class AnyActions(FixedLengthEnv):
        def __init__(self):
            super().__init__([3, 4])
            self.action_space = space

    REINFORCE("MlpPolicy", AnyActions(), baseline=Sees(), n_episodes=2, micro_batch_size=2, use_sde=use_sde, seed=0).learn(1)


# Proof for everyone


def test_check_unbiased_finds_what_is_unbiased():
    check = check_unbiased(Expected(), compared=["leave_one_out", "mean", None])
    check.assert_unbiased()
    by_name = {name: [one for one in check.results if one.baseline == name] for name in ("'leave_one_out'", "'mean'", "None")}
    assert all(one.bias < 1e-12 for name in ("'leave_one_out'", "None") for one in by_name[name])
    whole = [one for one in by_name["'mean'"] if one.return_type == "episode"]
    assert [one.bias for one in whole] == pytest.approx([0.5, 0.5])
    assert "AliasedGridworld" in str(check) and len(str(check).splitlines()) == 1 + 4 * 4


@pytest.mark.parametrize("name", [name for name in LITERATURE])
def test_check_unbiased_of_the_literature(name):
    check_unbiased(name, compared=[]).assert_unbiased(1e-9)


def test_a_biased_baseline_is_caught_with_its_exact_bias():
    check = check_unbiased(HalfOfItself(), compared=[None])
    for one in check.own:
        np.testing.assert_allclose(one.expected, one.exact / 2, atol=1e-12)
        plain = next(o for o in check.results if o.baseline == "None" and o[:2] == one[:2])
        assert one.variance == pytest.approx(plain.variance / 4)
    with pytest.raises(AssertionError, match=r"test_own_baselines:HalfOfItself is biased, .*DiamondHill.*'episode': 0.5"):
        check.assert_unbiased()


def test_check_unbiased_of_one_that_learns_while_it_is_asked():
    """A running mean of all that it has seen, the present returns among it, is biased, whatever was enumerated before."""

    class Running(Baseline):
        def __init__(self):
            self.seen = []

        def __call__(self, episodes):
            self.seen.append(float(episodes.returns.mean()))
            return np.full(len(episodes.returns), np.mean(self.seen))

    check = check_unbiased(Running(), compared=["mean"])
    with pytest.raises(AssertionError, match="is biased"):
        check.assert_unbiased()
    # As the mean of the batch with equal lengths, it contains one half of the own return
    own = next(one for one in check.own if one.return_type == "episode" and "Aliased" in one.environment)
    assert own.bias == pytest.approx(0.5, abs=0.05)


def test_check_unbiased_needs_two_episodes():
    with pytest.raises(ValueError, match="n_episodes must be at least 2"):
        check_unbiased(None, n_episodes=1)


# On the user's own problem


def test_the_laboratory_measures_baselines_on_the_same_episodes():
    model = REINFORCE("MlpPolicy", "sb3_reinforce/DiamondHill-v0", baseline=None, n_episodes=8, seed=0, device="cpu")
    env = make_vec_env("sb3_reinforce/DiamondHill-v0", 4)
    baselines = [Expected(), "linear", "moving_average", "optimal", "leave_one_out"]
    measurement = measure(model, env, 60, estimators=["to-go", "to-go-loo"], baselines=baselines)
    assert list(measurement.results) == [
        *("to-go", "to-go-loo", "test_own_baselines:Expected", "linear", "moving_average", "optimal", "leave_one_out")
    ]
    loo, again = measurement.results["to-go-loo"], measurement.results["leave_one_out"]
    assert again.signal == loo.signal and again.noise == loo.noise
    assert measurement.results["linear"].noise < measurement.results["to-go"].noise
    assert not measurement.results["test_own_baselines:Expected"].estimator.is_unbiased, "it is not known to be"


def test_the_laboratory_deals_the_episodes_of_a_start_together():
    model = REINFORCE("MlpPolicy", make_vec_env(StartEnv, 1), baseline=None, n_episodes=6, seed=0, device="cpu")
    measurement = measure(model, make_vec_env(StartEnv, 3), 50, baselines=["group", "greedy"], estimators=["to-go"])
    # Of eight episodes in 12 starts, as many as fit
    assert measurement.batch_size == 4 and len(measurement.returns) == 48
    # Episodes of a start are all alike here
    assert measurement.results["group"].noise == pytest.approx(0.0, abs=1e-9)
    assert measurement.results["to-go"].noise > 0.1
    with pytest.raises(ValueError, match="batch_size=6 and n_episodes=50: 4 episodes have a common start"):
        measure(model, make_vec_env(StartEnv, 3), 50, batch_size=6, baselines=["group"])


@pytest.mark.parametrize("micro_batch_size", [1, 2, None])
def test_score_products_are_those_of_the_definition(micro_batch_size):
    paths = [path for _, own in paths_by_slip() for path in own]
    model = linear_model(baseline="optimal", **arguments_of("optimal"))
    fill(model, paths)
    batch = model.rollout_buffer.whole_episodes()
    rng = np.random.default_rng(0)
    returns, weights = rng.normal(size=(2, len(batch.rewards)))
    products = make_evaluator(model.policy, micro_batch_size).score_products(batch, returns, weights)
    ends = np.cumsum(batch.episode_lengths)
    for path, end, (with_returns, alone) in zip(paths, ends, products, strict=True):
        both, steps = np.zeros((2, 3, 2)), slice(end - len(path.actions), end)
        rows = zip(rows_of(path), path.actions, returns[steps], weights[steps], strict=True)
        for row, action, credited, weight in rows:
            score = np.eye(2)[action] - ACTION_PROBABILITIES[row]
            both[:, row] += np.array([weight * credited, weight])[:, None] * score
        of_returns, of_scores = map(logit_gradient_to_parameters, both)
        assert with_returns == pytest.approx(of_returns @ of_scores, rel=1e-4, abs=1e-5)
        assert alone == pytest.approx(of_scores @ of_scores, rel=1e-4, abs=1e-5)
