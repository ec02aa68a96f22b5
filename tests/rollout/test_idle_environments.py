"""Environments that are done with their part of a rollout stand still, and nobody takes them for environments that act."""

import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers import AtRolloutEnd, CueEnv, FixedLengthEnv, UpdatesByHand
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from tqdm.rich import tqdm

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.idle_environments import IdleEnvironments
from sb3_reinforce.vec_env import make_gymnasium_vec_env

ENGINES = [DummyVecEnv, SubprocVecEnv]


def make_env(*env_fns, engine=DummyVecEnv):
    return engine(list(env_fns), **({"start_method": "fork"} if issubclass(engine, SubprocVecEnv) else {}))


def fixed_length_envs(*lengths_of_env, engine=DummyVecEnv, wrap=lambda env: env, **kwargs):
    return make_env(
        *(lambda of_env=of_env: wrap(FixedLengthEnv(of_env, **kwargs)) for of_env in lengths_of_env), engine=engine
    )


def make_model(env, policy="MlpPolicy", **kwargs):
    kwargs = {"seed": 0, "device": "cpu", "critic_epochs": 1, **kwargs}
    return REINFORCE("MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else policy, env, **kwargs)


def discarded_fraction(model):
    return model.logger.name_to_value["rollout/discarded_fraction"]


class Watch(BaseCallback):
    """Notes the local variables of every step, and calls a function with them."""

    def __init__(self, call=lambda watch: True):
        super().__init__()
        self.call, self.seen = call, []

    def _on_step(self):
        names = ("is_idle", "rewards", "dones", "infos", "new_obs")
        self.seen.append({name: self.locals[name] for name in names})
        return self.call(self) is not False


# Steps


@pytest.mark.filterwarnings("ignore:n_episodes=5 is below")
@pytest.mark.parametrize("budget", [{"n_steps": 30}, {"n_episodes": 5}], ids=str)
@pytest.mark.parametrize("n_envs", [1, 4, 16])
@pytest.mark.parametrize("engine", ENGINES)
def test_monitors_hold_exactly_the_steps_that_count(tmp_path, engine, n_envs, budget):
    kwargs = {"start_method": "fork"} if engine is SubprocVecEnv else {}
    env = make_vec_env(
        "CartPole-v1",
        n_envs,
        seed=0,
        monitor_dir=str(tmp_path),
        monitor_kwargs={"allow_early_resets": False},
        vec_env_cls=engine,
        vec_env_kwargs=kwargs,
    )
    model = make_model(env, **budget)
    model.learn(500 * n_envs**0.5)
    model.learn(100, reset_num_timesteps=False)
    env.close()
    assert load_results(str(tmp_path))["l"].sum() == model.num_timesteps
    assert discarded_fraction(model) == 0.0
    assert model._n_updates > 2


@pytest.mark.parametrize("engine", ENGINES)
def test_an_environment_that_is_done_waits_at_the_start_of_its_next_episode(engine):
    env = fixed_length_envs([3], [10], [2, 5], engine=engine)
    model = make_model(env, n_steps=4)
    watch = Watch()
    model.learn(1, callback=watch)
    # The third is done after 2 + 5 steps, the first after 3 + 3
    assert model.num_timesteps == 6 + 10 + 7
    assert [seen["is_idle"].tolist() for seen in watch.seen[5:8]] == [[False] * 3, [True, False, False], [True, False, True]]
    assert model._last_obs.tolist() == [[0, 2], [0, 1], [0, 2]]
    model.learn(1, reset_num_timesteps=False)
    # The episodes follow each other: nobody was reset. Now the third has episodes of 2 and 5 again
    assert model._last_obs.tolist() == [[0, 4], [0, 2], [0, 4]]
    assert model.num_timesteps == 2 * (6 + 10 + 7)
    env.close()


@pytest.mark.filterwarnings("ignore:n_episodes=1 is below")
@pytest.mark.parametrize("engine", ENGINES)
def test_environments_without_a_part_never_act(engine):
    env = fixed_length_envs([3], [3], engine=engine)
    model = make_model(env, n_episodes=1)
    assert model.learn(6).num_timesteps == 6
    assert model._last_obs.tolist() == [[0, 2], [0, 0]]
    env.close()


def test_a_rollout_without_idle_environments_is_that_of_the_engine():
    env = fixed_length_envs([5], [5])
    env.step = lambda actions: DummyVecEnv.step(env, actions)
    watch = Watch()
    assert make_model(env, n_steps=5).learn(1, callback=watch).num_timesteps == 10
    assert not any(seen["is_idle"].any() for seen in watch.seen)


# Wrappers


class Recorder(gym.Wrapper):
    """Keeps the observations and rewards of every episode; rewards depend on what was done."""

    def __init__(self, env):
        super().__init__(env)
        self.episodes = []

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        self.episodes.append(([observation], []))
        return observation, info

    def step(self, action):
        observation, _, terminated, truncated, info = self.env.step(action)
        first, rewards = self.episodes[-1]
        rewards.append(float(action + len(rewards)))
        first.append(observation)
        return observation, rewards[-1], terminated, truncated, info


class Replay(gym.Env):
    """Plays recorded episodes, whatever the action."""

    action_space = spaces.Discrete(2)

    def __init__(self, episodes, observation_space):
        self.observation_space = observation_space
        self.episodes = iter(episodes)

    def reset(self, *, seed=None, options=None):
        self.observations, self.rewards = next(self.episodes)
        self.time = 0
        return self.observations[0], {}

    def step(self, action):
        self.time += 1
        return self.observations[self.time], self.rewards[self.time - 1], self.time == len(self.rewards), False, {}


def as_dict(env):
    space = spaces.Dict({"a": env.observation_space, "b": env.observation_space})
    return gym.wrappers.TransformObservation(env, lambda observation: {"a": observation, "b": 3 * observation}, space)


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_statistics_are_those_of_one_environment_with_the_same_episodes(engine, is_dict):
    def wrap(env):
        return Recorder(as_dict(env) if is_dict else env)

    env = VecNormalize(fixed_length_envs([4, 9], [2], [17, 1], [6], engine=engine, wrap=wrap), gamma=0.9)
    model = make_model(env, n_steps=8)
    model.learn(150)
    assert discarded_fraction(model) == 0.0 and model._n_updates > 2
    recorded = env.get_attr("episodes")
    env.close()

    whole = [episode for of_env in recorded for episode in of_env[:-1]]
    # The episodes that have not begun
    waiting = [of_env[-1] for of_env in recorded]
    assert sum(len(rewards) for _, rewards in whole) == model.num_timesteps
    assert all(rewards == [] for _, rewards in waiting)
    space = env.venv.observation_space
    alone = VecNormalize(DummyVecEnv([lambda: Replay([*whole, waiting[0]], space)]), gamma=0.9)
    alone.reset()
    for _ in range(model.num_timesteps):
        alone.step(np.zeros(1, dtype=int))
    pairs = [(env.ret_rms, alone.ret_rms)]
    for key in alone.obs_rms if is_dict else [None]:
        ours, others = (env.obs_rms[key], alone.obs_rms[key]) if is_dict else (env.obs_rms, alone.obs_rms)
        others.update(np.stack([first[0] if key is None else first[0][key] for first, _ in waiting[1:]]))
        pairs.append((ours, others))
    for ours, others in pairs:
        assert ours.count == pytest.approx(others.count, abs=1e-6)
        np.testing.assert_allclose(ours.mean, others.mean, rtol=1e-6)
        np.testing.assert_allclose(ours.var, others.var, rtol=1e-6)
    np.testing.assert_array_equal(env.returns, 0.0)


def test_statistics_that_are_not_updated_stay_as_they_are():
    env = VecNormalize(fixed_length_envs([4], [9]), training=False)
    make_model(env, n_steps=4).learn(30)
    assert env.obs_rms.count == env.ret_rms.count == pytest.approx(1e-4)
    env = VecNormalize(fixed_length_envs([4], [9]), norm_obs=False)
    model = make_model(env, n_steps=4).learn(30)
    assert env.ret_rms.count == pytest.approx(model.num_timesteps + 1e-4)


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("order", ["as in RL Zoo", "the other way round"])
def test_stacks_and_monitors_know_nothing_of_the_wait(engine, order, is_dict):
    """The observations that were acted on are those of episodes that were stacked apart from all others."""
    lengths = [[3, 7], [2], [12], [5, 1]]
    env = VecMonitor(VecCheckNan(fixed_length_envs(*lengths, engine=engine, wrap=as_dict if is_dict else lambda env: env)))
    if order == "as in RL Zoo":
        env = normalizer = VecNormalize(env, norm_obs=False)
        env = VecFrameStack(env, 3)
        # Copies what it is given
        env = VecTransposeImage(env) if is_dict else env
    else:
        env = VecFrameStack(env, 3)
        env = normalizer = VecNormalize(env, norm_obs=False)
    model = make_model(env, n_steps=6)
    episodes = [0] * 4
    for _ in range(3):
        # Of what the wrappers hold of idle environments, a callback sees the observation
        watch = Watch(lambda watch: watch.seen[-1].update(old_obs=normalizer.get_original_obs()))
        model.learn(1, callback=watch, reset_num_timesteps=False)
        buffer = model.rollout_buffer
        stored = buffer.observations["b"] / 3 if is_dict else buffer.observations
        for env_idx, ends in enumerate(buffer.episode_ends):
            for start, end in zip([0, *ends], ends, strict=False):
                assert end - start == lengths[env_idx][episodes[env_idx] % len(lengths[env_idx])]
                for step in range(start, end):
                    times = np.arange(step - start - 2, step - start + 1)
                    expected = np.where(times[:, None] < 0, 0, np.stack([times, [episodes[env_idx]] * 3], axis=1))
                    np.testing.assert_array_equal(stored[step, env_idx], expected.flatten())
                episodes[env_idx] += 1
        for seen in watch.seen:
            for key in ["a", "b"] if is_dict else [...]:
                np.testing.assert_array_equal(seen["old_obs"][key][:, -2:], seen["new_obs"][key][:, -2:])
        assert sorted(info["l"] for info in model.ep_info_buffer) == sorted(
            lengths[env_idx][n % len(lengths[env_idx])] for env_idx in range(4) for n in range(episodes[env_idx])
        )
    assert discarded_fraction(model) == 0.0
    env.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_other_wrappers_of_sb3(engine):
    env = VecExtractDictObs(fixed_length_envs([3], [8], engine=engine, wrap=as_dict), "b")
    model = make_model(env, n_steps=2)
    assert model.learn(22).num_timesteps == 22
    np.testing.assert_array_equal(model.rollout_buffer.observations[:3, 0], [[0, 3], [3, 3], [6, 3]])
    env.close()


class OwnWrapper(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


class OwnNormalize(VecNormalize):
    pass


class OwnEngine(DummyVecEnv):
    pass


UNKNOWN = {
    "wrapper": lambda: OwnWrapper(fixed_length_envs([3], [8])),
    "wrapper of a wrapper": lambda: VecMonitor(OwnWrapper(fixed_length_envs([3], [8]))),
    "subclass of a wrapper": lambda: OwnNormalize(fixed_length_envs([3], [8])),
    "subclass of an engine": lambda: fixed_length_envs([3], [8], engine=OwnEngine),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_steps_all(make):
    model = make_model(make(), n_steps=2)
    watch = Watch()
    assert model.learn(16, callback=watch).num_timesteps == 16
    assert discarded_fraction(model) == pytest.approx(5 / 16)
    assert not any(seen["is_idle"].any() for seen in watch.seen)


def test_an_engine_that_steps_all_at_once_reports_the_rest():
    env = make_gymnasium_vec_env("CartPole-v1", 4, seed=0)
    model = make_model(env, n_steps=1)
    model.learn(1)
    assert model.num_timesteps == 4 * model.rollout_buffer.pos
    assert discarded_fraction(model) == 1 - model.rollout_buffer.n_counted_steps / model.num_timesteps > 0
    env.close()


# Callbacks


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor, VecNormalize], ids=["none", "VecMonitor", "VecNormalize"])
@pytest.mark.parametrize("engine", ENGINES)
def test_callbacks_see_nothing_happen_in_idle_environments(engine, wrap):
    env = wrap(fixed_length_envs([3], [9], engine=engine, wrap=Monitor))
    watch = Watch()
    model = make_model(env, n_steps=3)
    model.learn(1, callback=watch)
    assert watch.n_calls == len(watch.seen) == 9
    # The last observation of the first environment is that at which it waits
    waiting = watch.seen[2]["new_obs"][0]
    for seen in watch.seen[3:]:
        assert seen["is_idle"].tolist() == [True, False]
        assert seen["rewards"][0] == 0.0 and seen["rewards"][1] != 0.0
        assert not seen["dones"][0] and "episode" not in seen["infos"][0]
        np.testing.assert_array_equal(seen["new_obs"][0], waiting)
    assert sum("episode" in info for seen in watch.seen for info in seen["infos"]) == 2
    assert model.num_timesteps == 12
    env.close()


def test_callbacks_of_sb3_count_what_happened(tmp_path):
    env = VecNormalize(fixed_length_envs([2], [9]))
    stop = StopTrainingOnMaxEpisodes(3)
    model = make_model(env, n_steps=2)
    save = CheckpointCallback(1, str(tmp_path), save_vecnormalize=True)
    model.learn(1_000, callback=[save, stop])
    # Of 2 environments: 2 * 3 episodes, which are those of three rollouts
    assert stop.n_episodes == 6 and model.num_timesteps == 3 * 11
    last = max(tmp_path.glob("*vecnormalize*"), key=lambda path: int(path.stem.split("_")[-2]))
    again = VecNormalize.load(str(last), DummyVecEnv([lambda: FixedLengthEnv([2])]))
    count = again.obs_rms.count
    again.reset()
    assert again.obs_rms.count == count + 1


@pytest.mark.filterwarnings("ignore:rich is experimental")
@pytest.mark.parametrize("others", [None, lambda *_: True, Watch(), [Watch()]], ids=["none", "function", "callback", "list"])
@pytest.mark.parametrize("is_argument", [True, False])
def test_progress_bars_count_the_steps_that_were_made(monkeypatch, others, is_argument):
    shown, close = [], tqdm.close
    monkeypatch.setattr(tqdm, "close", lambda bar: (shown.append((bar.n, bar.total)), close(bar)))
    model = make_model(fixed_length_envs([2], [9]), n_steps=2)
    for reset_num_timesteps in (True, False):
        # As RL Zoo does
        callback = others if is_argument else [*([others] if isinstance(others, BaseCallback) else []), ProgressBarCallback()]
        model.learn(20, callback, progress_bar=is_argument, reset_num_timesteps=reset_num_timesteps)
    # Bars are closed again when they are thrown away
    assert model.num_timesteps == 44 and set(shown) == {(22, 20)}
    if isinstance(others, Watch):
        assert len(others.seen) > 0


class Talkative(FixedLengthEnv):
    """Can be asked and told something."""

    volume = 1

    def shout(self, times):
        return self.volume * times


@pytest.mark.parametrize("engine", ENGINES)
def test_idle_environments_can_be_asked_and_told(engine):
    env = make_env(*[lambda of_env=of_env: Talkative(of_env) for of_env in ([2], [6])], engine=engine)

    def ask(watch):
        env = watch.training_env
        if watch.n_calls == 5:
            assert env.env_method("shout", 3) == [3, 3]
            env.set_attr("volume", 7)
            assert env.get_attr("volume") == [7, 7] and env.has_attr("shout")
            assert env.env_is_wrapped(Monitor) == [False, False]
            assert env.env_method("shout", 2, indices=0) == [14]

    model = make_model(env, n_steps=2)
    assert model.learn(1, callback=Watch(ask)).num_timesteps == 8
    assert env.env_method("shout", 1) == [7, 7]
    assert model.learn(8).num_timesteps == 8
    env.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("is_error", [True, False])
def test_a_rollout_that_ends_early_leaves_the_environments_as_they_were(engine, is_error, tmp_path):
    env = fixed_length_envs([2], [6], engine=engine)
    before = env.remotes if engine is SubprocVecEnv else [of_env.step for of_env in env.envs]

    def end(watch):
        if watch.n_calls == 4:
            if is_error:
                raise RuntimeError("enough")
            return False

    model = make_model(env, n_steps=2)
    if is_error:
        with pytest.raises(RuntimeError, match="enough"):
            model.learn(100, callback=Watch(end))
    else:
        model.learn(100, callback=Watch(end))
    assert model.num_timesteps == 4 + 2 and model._n_updates == 0
    assert before == (env.remotes if engine is SubprocVecEnv else [of_env.step for of_env in env.envs])
    model.save(tmp_path / "model")
    # The second was in the midst of an episode: both are reset
    model.learn(1, reset_num_timesteps=False)
    assert model.rollout_buffer.observations[0].tolist() == [[0, 2], [0, 1]]
    assert model.num_timesteps == 6 + 8
    model.set_env(env)
    assert model.learn(1).num_timesteps == 8
    env.close()


def test_after_an_error_at_the_first_step_the_environments_are_reset():
    def fail(watch):
        if watch.n_calls == 1:
            raise RuntimeError("at once")

    model = make_model(fixed_length_envs([3], [4]), n_steps=2)
    with pytest.raises(RuntimeError, match="at once"):
        model.learn(1, callback=Watch(fail))
    model.learn(1, reset_num_timesteps=False)
    assert model.rollout_buffer.observations[0].tolist() == [[0, 1], [0, 1]]


def test_a_step_that_an_environment_has_of_its_own_is_there_again():
    env = fixed_length_envs([2], [6])
    calls = []

    def step(action):
        calls.append(action)
        return FixedLengthEnv.step(env.envs[0], action)

    env.envs[0].step = step
    make_model(env, n_steps=2).learn(16)
    assert len(calls) == 4 and env.envs[0].step is step


class Interrupting(FixedLengthEnv):
    """At its third step, interrupts the process that trains."""

    def __init__(self, pid):
        super().__init__([9])
        self.pid = pid

    def step(self, action):
        if self.time == 2:
            # Until that process waits for an answer
            time.sleep(0.2)
            os.kill(self.pid, signal.SIGINT)
        return super().step(action)


def test_processes_can_be_closed_after_an_interrupted_step():
    pid = os.getpid()
    # A shell starts what runs in the background without it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    env = make_env(lambda: Interrupting(pid), lambda: FixedLengthEnv([1]), engine=SubprocVecEnv)
    with pytest.raises(KeyboardInterrupt):
        make_model(env, n_steps=1).learn(100)
    assert env.waiting
    env.close()
    assert not any(process.is_alive() for process in env.processes)


# Learning


def masked_by_method(of_env):
    env = FixedLengthEnv(of_env)
    env.action_masks = lambda: np.array([True, env.time % 2 == 0])
    return env


CASES = {
    "LSTM": (lambda of_env: FixedLengthEnv(of_env), {"policy": "MlpLstmPolicy"}),
    "dict": (lambda of_env: as_dict(FixedLengthEnv(of_env)), {}),
    "masks by a method": (masked_by_method, {"use_masking": True}),
    "masks in the infos": (lambda of_env: CueEnv(), {"use_masking": True}),
    "LSTM, masks": (lambda of_env: CueEnv(), {"use_masking": True, "policy": "MlpLstmPolicy"}),
    "gSDE": (lambda of_env: gym.make("Pendulum-v1", max_episode_steps=of_env[0]), {"use_sde": True, "sde_sample_freq": 2}),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make, kwargs", CASES.values(), ids=CASES)
def test_every_kind_of_policy_waits(make, kwargs, engine):
    lengths = [[5], [3, 8], [11]]
    env = make_env(
        *(lambda of_env=of_env: Monitor(make(of_env), allow_early_resets=False) for of_env in lengths), engine=engine
    )
    policy_kwargs = {"lstm_hidden_size": 4} if "Lstm" in kwargs.get("policy", "") else {}
    model = make_model(env, n_steps=7, policy_kwargs=policy_kwargs, **kwargs)
    watch = Watch()
    model.learn(60, callback=watch)
    assert sum(info["l"] for info in model.ep_info_buffer) == model.num_timesteps
    assert any(seen["is_idle"].any() for seen in watch.seen) and discarded_fraction(model) == 0.0
    env.close()


def test_idle_environments_draw_no_noise_of_gsde(monkeypatch):
    env = make_env(*(lambda n=n: gym.make("Pendulum-v1", max_episode_steps=n) for n in (3, 40)))
    model = make_model(env, n_steps=3, use_sde=True)
    draws, reset_noise = [], model.policy.reset_noise
    monkeypatch.setattr(model.policy, "reset_noise", lambda n_envs: (draws.append(n_envs), reset_noise(n_envs)))
    model.learn(1)
    assert model.num_timesteps == 43
    # At the start of the rollout, and after the end of an episode
    assert draws == [2, 2]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("baseline", ["value", "leave_one_out", "time_step", None])
def test_updates_are_those_of_the_episodes(engine, baseline):
    kwargs = {"truncate": True} if baseline == "value" else {}
    env = fixed_length_envs([5], [3, 8], [11], engine=engine, wrap=Recorder, **kwargs)
    model = make_model(env, n_steps=7, baseline=baseline, learning_rate=1e-3, max_grad_norm=float("inf"))
    steps = []
    model.policy.optimizer.register_step_pre_hook(
        lambda *_: steps.append({name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None})
    )
    by_hand = UpdatesByHand()
    model.learn(80, callback=by_hand)
    of_policy = [step for step in steps if any("action_net" in name for name in step)]
    assert len(of_policy) == len(by_hand.updates) > 2
    for step, update in zip(of_policy, by_hand.updates, strict=True):
        for name in ("action_net.weight", "mlp_extractor.policy_net.0.weight"):
            np.testing.assert_allclose(step[name], update.gradient[name], rtol=1e-3, atol=1e-5)
    env.close()


def test_stepping_all_again_after_each_rollout():
    env = fixed_length_envs([3], [8])
    idle = IdleEnvironments(env)
    observations = env.reset()
    idle.set_idle(np.array([0]))
    assert idle.step(np.zeros(2, dtype=int), observations)[0].tolist() == [[0, 0], [1, 0]]
    idle.resume()
    assert idle.n_idle == 0 and not idle.is_idle.any()
    assert idle.step(np.zeros(2, dtype=int), observations)[0].tolist() == [[1, 0], [2, 0]]


# Others that use the training environment


def returns_at_the_start(model):
    return [float(model.rollout_buffer.returns[0, env_idx]) for env_idx in range(model.n_envs)]


@pytest.mark.parametrize("vec_normalize", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_episodes_are_whole_after_others_have_used_the_environments(engine, vec_normalize):
    env = fixed_length_envs([10], [7], [4], engine=engine, wrap=Monitor)
    env = VecNormalize(env, norm_reward=False) if vec_normalize else env
    model = make_model(env, n_episodes=3, gamma=1.0, baseline=None)
    evaluate = AtRolloutEnd(lambda buffer: evaluate_policy(model, env, n_eval_episodes=4) and returns_at_the_start(model))
    model.learn(80, callback=evaluate)
    assert len(evaluate.seen) > 2 and all(returns == [10.0, 7.0, 4.0] for returns in evaluate.seen)
    evaluate_policy(model, env, n_eval_episodes=4)
    model.learn(1, reset_num_timesteps=False)
    assert returns_at_the_start(model) == [10.0, 7.0, 4.0]
    env.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_callback_that_steps_idle_environments_is_refused(engine):
    env = fixed_length_envs([3], [8], engine=engine, wrap=Monitor)
    model = make_model(env, n_steps=1)
    evaluate = Watch(lambda watch: watch.n_calls < 5 or evaluate_policy(model, env, n_eval_episodes=2))
    with pytest.raises(RuntimeError, match="in a separate environment"):
        model.learn(1, callback=evaluate)
    assert model.learn(1).num_timesteps == 3 + 8
    assert model.rollout_buffer.episode_ends == [[3], [8]]
    env.close()
