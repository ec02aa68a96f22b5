"""How a run of ``sb3-reinforce compare`` evaluates: which statistics, seeds, policies and environments."""

import contextlib
import copy
import io

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.zoo.compare import run
from sb3_reinforce.zoo.compare.plan import Settings, Task, preprocess

CARTPOLE = {"n_envs": 1, "n_timesteps": 100, "policy": "MlpPolicy", "n_steps": 20}
PENDULUM = {"n_envs": 1, "n_timesteps": 100, "policy": "MlpPolicy"}


def make_settings(env_id: str, entry: dict) -> Settings:
    return Settings([0], 60, None, 2, 1, 2, {env_id: {"reinforce": entry}}, {"reinforce": "reinforce"})


def train(env_id: str, entry: dict, folder) -> dict:
    folder.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        return run.train(make_settings(env_id, entry), Task(env_id, "reinforce", 0), folder)


class StubModel:
    """Pushes CartPole to the left, and keeps what it was asked for."""

    use_sde = False

    def __init__(self):
        self.deterministic = []

    def get_env(self):
        return None

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.deterministic.append(deterministic)
        return np.zeros(len(observation), dtype=int), None


def test_evaluations_take_the_statistics_of_the_training_and_leave_them_alone():
    train_env = VecNormalize(make_vec_env("CartPole-v1"))
    train_env.obs_rms.mean = np.array([1.0, 2.0, 3.0, 4.0])
    model = REINFORCE("MlpPolicy", train_env, device="cpu")
    before = copy.deepcopy(train_env.obs_rms)
    evaluator = run.Evaluator(VecNormalize(make_vec_env("CartPole-v1"), training=False, norm_reward=False))
    scores = evaluator.score(model, 3, seed=0)
    # One for each step: rewards are not normalised
    assert all(score == int(score) and score >= 8.0 for score in scores)
    for rms in (train_env.obs_rms, evaluator.statistics):
        np.testing.assert_array_equal(rms.mean, before.mean)
        np.testing.assert_array_equal(rms.var, before.var)
        assert rms.count == before.count


def test_reported_scores_are_of_the_same_episodes_with_deterministic_and_sampled_actions(monkeypatch):
    env = make_vec_env("CartPole-v1")
    seeds = []
    original = env.seed
    monkeypatch.setattr(env, "seed", lambda seed: (seeds.append(seed), original(seed)))
    model = StubModel()
    scores = run.report_scores(run.Evaluator(env), model, make_settings("CartPole-v1", CARTPOLE))
    assert seeds == [run.REPORT_SEED, run.REPORT_SEED]
    # The stub knows no difference, so equal episodes have equal scores
    assert scores["deterministic"] == scores["stochastic"]
    half = len(model.deterministic) // 2
    assert model.deterministic == [True] * half + [False] * half


def test_the_best_checkpoint_is_scored_with_its_own_statistics_in_other_episodes(tmp_path, monkeypatch):
    calls = []
    original = run.Evaluator.score

    def score(evaluator, model, n_episodes, seed, deterministic=True):
        original(evaluator, model, 1, seed, deterministic)
        calls.append((seed, deterministic, model.num_timesteps, evaluator.statistics.mean))
        # As if training did harm
        return [-float(len(calls))]

    monkeypatch.setattr(run.Evaluator, "score", score)
    result = train("CartPole-v1", {**CARTPOLE, "normalize": True}, tmp_path / "run")
    seeds, deterministic, steps, means = (list(column) for column in zip(*calls, strict=True))
    n_selections = len(calls) - 4
    # SB3 seeds environments one after the other: those of another evaluation begin where the former end
    selections = [run.SELECTION_SEED + run.MAX_EVAL_ENVS * index for index in range(n_selections)]
    assert seeds == selections + [run.REPORT_SEED] * 4
    assert selections[-1] < run.REPORT_SEED
    assert deterministic == [True] * n_selections + [True, False] * 2
    # The final policy, then the untrained one, which was the best
    assert steps[-4:] == [result["steps"]] * 2 + [0, 0]
    assert result["best"]["steps"] == 0
    np.testing.assert_array_equal(means[-1], means[0])
    np.testing.assert_array_equal(means[-3], means[n_selections - 1])
    assert not np.array_equal(means[0], means[-3])


def test_normalised_rewards_alone(tmp_path):
    result = train("CartPole-v1", {**CARTPOLE, "normalize": {"norm_obs": False}}, tmp_path / "run")
    assert result["final"]["deterministic"][0] >= 8.0


def test_arguments_of_the_environment_reach_the_evaluation(tmp_path):
    settings = make_settings("Pendulum-v1", {**PENDULUM, "env_kwargs": {"g": 3.0}})
    with contextlib.redirect_stdout(io.StringIO()):
        manager = run.restore_manager(settings, Task("Pendulum-v1", "reinforce", 0), tmp_path)
        preprocess(manager)
        env = run.create_eval_env(manager, settings)
    assert env.get_attr("g") == [3.0, 3.0]
    env.close()


@pytest.mark.parametrize("algorithm, kwargs", [(REINFORCE, {}), (REINFORCE, {"policy_averaging": 0.9}), (A2C, {})])
def test_state_dependent_exploration_is_drawn_for_every_episode(monkeypatch, algorithm, kwargs):
    model = algorithm("MlpPolicy", make_vec_env("Pendulum-v1", 3), use_sde=True, device="cpu", **kwargs)
    acting = getattr(model, "averaged_policy", model.policy)
    evaluator = run.Evaluator(make_vec_env("Pendulum-v1", 2))
    # What a rollout has drawn, an evaluation in its midst leaves alone, and PyTorch's generator
    model.policy.reset_noise(3)
    matrices, generator = model.policy.action_dist.exploration_matrices, th.get_rng_state()
    evaluator.score(model, 4, 0)
    assert model.policy.action_dist.exploration_matrices is matrices
    assert th.equal(th.get_rng_state(), generator)

    drawn = []
    original = acting.reset_noise
    monkeypatch.setattr(acting, "reset_noise", lambda n_envs: (drawn.append(n_envs), original(n_envs)))
    evaluator.score(model, 4, 0, deterministic=False)
    # Before the first, and at the end of each
    assert drawn == [2] * 5


@pytest.mark.parametrize("score", [np.nan, -np.inf])
def test_a_score_that_is_not_finite_ends_the_run(score):
    env = DummyVecEnv([lambda: Monitor(gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: score))])
    with pytest.raises(ValueError, match="evaluation episode of CartPole-v1 is NaN or infinite"):
        run.Evaluator(env).score(StubModel(), 1, seed=0)


@pytest.mark.parametrize("n_evaluations", [20, 50, 100])
def test_every_share_of_the_budget_is_evaluated_once(monkeypatch, n_evaluations):
    settings = make_settings("CartPole-v1", CARTPOLE)._replace(n_evaluations=n_evaluations)
    callback = run.ComparisonCallback(settings, 100, run.Evaluator(make_vec_env("CartPole-v1")), "best")
    monkeypatch.setattr(callback.evaluator, "score", lambda *_: [0.0])
    callback.init_callback(REINFORCE("MlpPolicy", "CartPole-v1", device="cpu"))
    monkeypatch.setattr(callback.model, "save", lambda *_, **__: None)
    callback.on_training_start({}, {})
    for steps in range(1, 101):
        callback.model.num_timesteps = steps
        callback.on_step()
    wanted = [100 * number // n_evaluations for number in range(n_evaluations)]
    assert [evaluation["steps"] for evaluation in callback.evaluations] == wanted
