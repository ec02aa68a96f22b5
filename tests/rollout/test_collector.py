"""Which episodes count, how long a rollout lasts, and what is done where an episode was cut."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import CueEnv, FixedLengthEnv, GradientRecorder, RandomLengthEnv, learn_and_look
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_reinforce import REINFORCE, MlpPolicy
from sb3_reinforce.rollout import budget as collection
from sb3_reinforce.rollout import make_action_sampler
from sb3_reinforce.rollout.batch import locate_step
from sb3_reinforce.rollout.budget import EpisodeQuota, find_bound, find_time_limit
from sb3_reinforce.rollout.buffers import EpisodeRolloutBuffer
from sb3_reinforce.rollout.samplers import ParameterSampler
from sb3_reinforce.vec_env import make_gymnasium_vec_env


class SpyBuffer(EpisodeRolloutBuffer):
    """Keeps the batches that the model learned from."""

    def whole_episodes(self):
        batch = super().whole_episodes()
        batch = batch._replace(observations=batch.observations.clone())
        if self.outputs is not None:
            self.batches = [*getattr(self, "batches", []), batch]
        return batch


def make_model(env, **kwargs):
    return REINFORCE("MlpPolicy", env, rollout_buffer_class=SpyBuffer, seed=0, device="cpu", **kwargs)


def fixed_length_envs(*lengths_of_env, **kwargs):
    return DummyVecEnv([lambda lengths=lengths: Monitor(FixedLengthEnv(lengths, **kwargs)) for lengths in lengths_of_env])


@pytest.mark.parametrize("n_envs", [1, 3, 8])
@pytest.mark.parametrize("budget", [{"n_episodes": 40}, {"n_steps": 2_000}])
@pytest.mark.parametrize("total_timesteps", [1, 20_000])
def test_short_episodes_are_not_over_counted(n_envs, budget, total_timesteps):
    env = make_vec_env(RandomLengthEnv, n_envs, seed=n_envs)
    model = make_model(env, critic_epochs=1, baseline="mean", **budget)
    while model.num_timesteps < 20_000:
        model.learn(total_timesteps, reset_num_timesteps=False)
    lengths = np.concatenate([batch.episode_lengths for batch in model.rollout_buffer.batches])
    standard_error = 245 / np.sqrt(len(lengths))
    # With n_steps the number of episodes is random, and the mean over all a ratio estimate
    bias = 0 if "n_episodes" in budget else 255 / len(model.rollout_buffer.batches)
    assert lengths.mean() == pytest.approx(255, abs=3 * standard_error + bias)


def test_quota_counts_starts():
    by_episodes = EpisodeQuota(n_steps=0, n_episodes=2)
    assert [by_episodes.accepts(start_step) for start_step in (0, 0, 5)] == [True, True, False]
    by_steps = EpisodeQuota(n_steps=10)
    assert [by_steps.accepts(start_step) for start_step in (0, 9, 10)] == [True, True, False]


def test_episodes_that_start_within_n_steps_are_finished():
    model = make_model(fixed_length_envs([3, 4, 5]), n_steps=7)
    model.learn(1)
    # Starts at steps 0 and 3; the third would start at step 7, when the budget is used up
    assert model.rollout_buffer.batches[0].episode_lengths.tolist() == [3, 4]
    assert model.num_timesteps == 7
    model = make_model(fixed_length_envs([3, 4, 5]), n_steps=8)
    model.learn(1)
    assert model.rollout_buffer.batches[0].episode_lengths.tolist() == [3, 4, 5]


def test_episodes_count_in_the_order_of_their_starts():
    # Starts: both at step 0, then the second environment at steps 2, 4, where it has done its part
    model = make_model(fixed_length_envs([9], [2]), n_episodes=4)
    model.learn(1)
    batch = model.rollout_buffer.batches[0]
    assert batch.episode_lengths.tolist() == [9, 2, 2, 2]
    assert model.num_timesteps == 15
    assert model.logger.name_to_value["rollout/discarded_fraction"] == 0.0
    assert model.logger.name_to_value["rollout/episodes"] == 4
    assert [locate_step(batch, index) for index in (0, 8, 9, 14)] == [(0, 0), (0, 8), (1, 0), (1, 5)]


@pytest.mark.filterwarnings("ignore:n_episodes=2 is below")
def test_fewer_episodes_than_environments():
    model = make_model(fixed_length_envs([5], [2], [3]), n_episodes=2)
    model.learn(1)
    assert model.rollout_buffer.batches[0].episode_lengths.tolist() == [5, 2]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_every_rollout_starts_at_the_start_of_an_episode(n_envs):
    model = make_model(fixed_length_envs(*[[4, 7], [5, 3]][:n_envs]), n_steps=6)
    model.learn(100)
    assert len(model.rollout_buffer.batches) > 3
    for batch in model.rollout_buffer.batches:
        first_steps = np.cumsum(batch.episode_lengths) - batch.episode_lengths
        times = batch.observations[:, 0].numpy()
        np.testing.assert_array_equal(times[first_steps], 0)
        np.testing.assert_array_equal(np.diff(times)[np.diff(times) != 1] < 0, True)


def test_one_environment_is_not_reset_between_rollouts():
    env = fixed_length_envs([4])
    make_model(env, n_steps=4).learn(12)
    assert env.envs[0].unwrapped.episode == 3


def test_only_counted_episodes_enter_the_statistics():
    model = make_model(fixed_length_envs([50], [2]), n_episodes=2)
    model.learn(1)
    assert [info["l"] for info in model.ep_info_buffer] == [2, 50]


def test_the_buffer_grows_and_keeps_what_it_holds():
    model = make_model(fixed_length_envs([1000]), n_steps=3)
    model.learn(1)
    batch = model.rollout_buffer.batches[0]
    np.testing.assert_array_equal(batch.observations[:, 0], np.arange(1000))
    assert model.rollout_buffer.buffer_size >= 1000


def value_after_first_update(model):
    """Make V(s) = 7 everywhere, and let the model believe that it was fitted."""
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(7.0)
    model._n_updates = 1


def learned_returns(model):
    """Of the first update, the episodes of an environment in a row."""
    return learn_and_look(model, 1, lambda buffer: buffer.returns.T[buffer.counted.T])[0]


@pytest.mark.parametrize(
    "truncate, switches, last_return",
    [
        (True, {}, 1 + 0.5 * 7),
        (True, {"bootstrap_at_time_limit": False}, 1),
        (False, {}, 1),
    ],
)
def test_time_limits_are_bootstrapped_and_terminations_are_not(truncate, switches, last_return):
    model = make_model(fixed_length_envs([3], truncate=truncate), n_steps=3, gamma=0.5, **switches)
    value_after_first_update(model)
    returns = learned_returns(model)
    np.testing.assert_allclose(returns, [1.5 + last_return / 4, 1 + last_return / 2, last_return], rtol=1e-6)


def test_never_bootstraps_from_an_untrained_critic():
    model = make_model(fixed_length_envs([3], truncate=True), n_steps=3, gamma=0.5)
    value_after_first_update(model)
    model._n_updates = 0
    np.testing.assert_allclose(learned_returns(model), [1.75, 1.5, 1.0])


def test_a_critic_without_a_loss_stays_untrained():
    model = make_model(fixed_length_envs([3], truncate=True), n_steps=3, gamma=0.5, vf_coef=0.0)
    value_after_first_update(model)
    np.testing.assert_allclose(learned_returns(model), [1.75, 1.5, 1.0])


def test_bootstraps_from_the_true_final_observation():
    envs = fixed_length_envs([3], [5], truncate=True)
    model = make_model(envs, n_episodes=2, gamma=1.0, policy_kwargs={"net_arch": []})
    model._n_updates = 1
    with th.no_grad():
        model.policy.value_net.weight.copy_(th.tensor([[100.0, 0.0]]))
    returns = learned_returns(model)
    # The observation is the time: 3 and 5 at the limits, and 0 after the reset that follows
    np.testing.assert_allclose(returns, [303, 302, 301, 505, 504, 503, 502, 501])


def test_without_a_critic_the_limit_is_the_end():
    model = make_model(fixed_length_envs([3], truncate=True), n_steps=3, gamma=0.5, baseline=None)
    model._n_updates = 1
    np.testing.assert_allclose(learned_returns(model), [1.75, 1.5, 1.0])


# The second environment makes 3 or 2 episodes of 4 steps, the first is cut at the bound
@pytest.mark.parametrize("budget, n_rollout_steps", [({"n_steps": 10}, 62), ({"n_episodes": 3}, 58)])
@pytest.mark.parametrize("baseline", ["value", None])
def test_an_endless_episode_is_cut_with_one_warning(budget, n_rollout_steps, baseline):
    model = make_model(fixed_length_envs([10**9], [4]), baseline=baseline, max_rollout_steps=50, **budget)
    with pytest.warns(UserWarning, match="max_rollout_steps=50.*raise max_rollout_steps.*TimeLimit") as caught:
        model.learn(300)
    assert len([warning for warning in caught if "max_rollout_steps" in str(warning.message)]) == 1
    assert 300 <= model.num_timesteps == model._n_updates * n_rollout_steps
    assert model.rollout_buffer.batches[0].episode_lengths[0] == 50


@pytest.mark.parametrize(
    "n_updates, closing", [(0, "what it had earned until then"), (1, "the value of its last observation")]
)
def test_the_warning_says_how_a_return_was_closed(n_updates, closing):
    # A critic that was never fitted closes nothing
    model = make_model(fixed_length_envs([10**9]), max_rollout_steps=50)
    model._n_updates = n_updates
    with pytest.warns(UserWarning, match=f"each return was closed with {closing}"):
        model.learn(50)


def test_the_default_bound():
    assert find_bound(None, None, 1_000_000, n_episodes=None, n_envs=1) == 1_050_000
    assert find_bound(None, None, 100, n_episodes=None, n_envs=8) == 50_100
    # Episodes per environment, rounded up
    assert find_bound(None, None, None, n_episodes=8, n_envs=1) == 58_000
    assert find_bound(None, None, None, n_episodes=9, n_envs=4) == 53_000
    assert find_bound(None, None, None, n_episodes=1, n_envs=4) == 51_000


class EndlessEnv(FixedLengthEnv):
    def __init__(self):
        super().__init__([10**9])


def limited_env(env, max_episode_steps):
    return env if max_episode_steps is None else gym.wrappers.TimeLimit(env, max_episode_steps)


class TwoArmedEnv(gym.Env):
    """The first action chooses: 0 ends the episode with a reward of 1, 1 goes on and pays 2 at its last step."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.array([1.0, 0.0], np.float32), {}

    def step(self, action):
        self.time += 1
        is_short = self.time == 1 and action == 0
        over = is_short or self.time == self.length
        return np.array([0.0, 1.0], np.float32), 1.0 if is_short else 2.0 * over, over, False, {}


@pytest.mark.parametrize("budget", [{"n_steps": 800}, {"n_episodes": 200}], ids=str)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("max_episode_steps, total_timesteps", [(None, 1), (None, 1e3), (30, 1)])
def test_the_budget_of_learn_does_not_change_the_gradient(budget, n_envs, max_episode_steps, total_timesteps):
    gradients = []
    for seed in range(100, 104):
        env = make_vec_env(lambda: limited_env(TwoArmedEnv(10), max_episode_steps), n_envs)
        model = REINFORCE(
            "MlpPolicy",
            env,
            gamma=1.0,
            baseline="leave_one_out",
            loss_reduction="episode",
            max_grad_norm=1e9,
            policy_kwargs={"net_arch": [], "optimizer_class": GradientRecorder},
            seed=seed,
            device="cpu",
            **budget,
        )
        with th.no_grad():
            model.policy.action_net.weight.zero_()
        model.learn(total_timesteps)
        names = [name for name, _ in model.policy.named_parameters()]
        weight = dict(zip(names, model.policy.optimizer.recorded[0], strict=True))["action_net.weight"]
        gradients.append(-float(weight[1, 0]))
    # Of the logit of the long arm at the first step: p (1 - p) (2 - 1), with p = 1/2
    assert np.mean(gradients) == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("max_episode_steps", [None, 700])
def test_many_short_calls_of_learn_cut_no_episode(n_envs, max_episode_steps, recwarn):
    env = make_vec_env(lambda: limited_env(FixedLengthEnv([700]), max_episode_steps), n_envs)
    model = make_model(env, n_steps=400, critic_epochs=1)
    for total_timesteps in (1_000, 1_000, 1, 50):
        model.learn(total_timesteps, reset_num_timesteps=False)
    lengths = np.concatenate([batch.episode_lengths for batch in model.rollout_buffer.batches])
    assert len(lengths) >= 4 * n_envs and (lengths == 700).all()
    assert not [warning for warning in recwarn if "max_rollout_steps" in str(warning.message)]


def test_only_an_environment_without_a_time_limit_is_bounded(monkeypatch):
    monkeypatch.setattr(collection, "DEFAULT_EXTRA_STEPS", 100)
    model = make_model(make_vec_env(EndlessEnv, 2), n_steps=7)
    with pytest.warns(UserWarning, match="reached max_rollout_steps=107 steps"):
        model.learn(1e1)
    assert model.num_timesteps == 2 * 107
    limited = make_vec_env(lambda: gym.wrappers.TimeLimit(EndlessEnv(), 300), 2)
    assert make_model(limited, n_steps=7).learn(1e1).num_timesteps == 2 * 300


def test_a_bound_of_ones_own_is_kept():
    model = make_model(fixed_length_envs([10**9]), max_rollout_steps=500)
    with pytest.warns(UserWarning, match="max_rollout_steps=500"):
        model.learn(1)
    assert model.num_timesteps == 500


def test_time_limits_are_found():
    def limited(*limits):
        return [lambda limit=limit: gym.wrappers.TimeLimit(FixedLengthEnv([3]), limit) for limit in limits]

    assert find_time_limit(DummyVecEnv(limited(7, 9))) == 9
    assert find_time_limit(VecNormalize(make_vec_env("CartPole-v1", 2))) == 500
    assert find_time_limit(DummyVecEnv([*limited(7), lambda: FixedLengthEnv([3])])) is None
    assert find_time_limit(make_gymnasium_vec_env("CartPole-v1", 1)) == 500
    assert find_time_limit(make_gymnasium_vec_env("CartPole-v1", 2)) == 500
    processes = SubprocVecEnv([lambda: FixedLengthEnv([3])] * 2)
    # Asked for what it does not have, a process would end
    assert find_time_limit(processes) is None
    assert processes.reset().shape == (2, 2)
    processes.close()


def test_fewer_episodes_than_environments_are_warned_of_once():
    with pytest.warns(
        UserWarning, match=r"n_episodes=2 .* environments, 8: .* 6 of them have no episode that counts"
    ) as caught:
        make_model(fixed_length_envs(*[[3]] * 8), n_episodes=2).learn(100)
    assert len([warning for warning in caught if "n_episodes" in str(warning.message)]) == 1


def test_a_budget_below_an_episode_lets_every_environment_finish_one():
    env = make_vec_env(lambda: gym.wrappers.TimeLimit(FixedLengthEnv([10**9]), 50), 4)
    model = make_model(env, n_steps=1).learn(20)
    assert model.num_timesteps == 4 * 50
    assert model.rollout_buffer.batches[0].episode_lengths.tolist() == [50] * 4


def test_no_episode_starts_at_the_bound():
    model = make_model(fixed_length_envs([5], [10]), n_steps=100, max_rollout_steps=10, baseline="leave_one_out")
    model.learn(20)
    assert model.rollout_buffer.batches[0].episode_lengths.tolist() == [5, 5, 10]
    assert model.logger.name_to_value["rollout/episodes"] == 3


def test_cut_episodes_are_bootstrapped_even_without_time_limits(monkeypatch):
    model = make_model(fixed_length_envs([10**9]), n_steps=1, max_rollout_steps=2, gamma=0.5, bootstrap_at_time_limit=False)
    value_after_first_update(model)
    with pytest.warns(UserWarning, match="max_rollout_steps"):
        np.testing.assert_allclose(learned_returns(model), [1 + 0.5 * 4.5, 4.5])


def test_after_a_cut_the_next_rollout_starts_anew():
    model = make_model(fixed_length_envs([10**9]), n_steps=1, max_rollout_steps=5)
    with pytest.warns(UserWarning, match="max_rollout_steps"):
        model.learn(15)
    for number, batch in enumerate(model.rollout_buffer.batches):
        np.testing.assert_array_equal(batch.observations.numpy(), [[t, number] for t in range(5)])


class LinearRewardEnv(gym.Env):
    """The reward of each step is its action times a slope; the observation is always 1."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-100.0, 100.0, (1,), np.float32)

    def __init__(self, *slopes):
        self.slopes = slopes

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        reward = self.slopes[self.time] * float(action[0])
        self.time += 1
        return np.ones(1, np.float32), reward, self.time == len(self.slopes), False, {}


def gradient_of_the_mean(slopes, n_envs, policy="MlpPolicy", n_episodes=1_500, **kwargs):
    """Of the estimate of one large rollout with gSDE, with respect to the mean of the actions."""
    policy_kwargs = {"net_arch": [], "optimizer_class": GradientRecorder}
    if policy == "MlpLstmPolicy":
        policy_kwargs |= {"lstm_hidden_size": 1}
    model = REINFORCE(
        policy,
        make_vec_env(lambda: LinearRewardEnv(*slopes), n_envs),
        n_episodes=n_episodes,
        gamma=1.0,
        loss_reduction="episode",
        use_sde=True,
        max_grad_norm=float("inf"),
        policy_kwargs=policy_kwargs,
        seed=100,
        device="cpu",
        **kwargs,
    )
    model.learn(1)
    names = [name for name, _ in model.policy.named_parameters()]
    return -float(dict(zip(names, model.policy.optimizer.recorded[0], strict=True))["action_net.bias"])


@pytest.mark.parametrize(
    "n_envs, sde_sample_freq, policy",
    [(1, -1, "MlpPolicy"), (4, -1, "MlpPolicy"), (1, 2_000, "MlpPolicy"), (4, 2_000, "MlpPolicy"), (2, -1, "MlpLstmPolicy")],
)
def test_no_two_episodes_share_the_noise_of_gsde(n_envs, sde_sample_freq, policy):
    # With a matrix for several episodes, leave-one-out subtracts an episode's own noise
    found = gradient_of_the_mean([2.0], n_envs, policy, baseline="leave_one_out", sde_sample_freq=sde_sample_freq)
    assert found == pytest.approx(2.0, abs=0.35)


@pytest.mark.parametrize("sde_sample_freq, expected", [(-1, 0.5), (1, -0.5)])
def test_within_an_episode_the_noise_of_gsde_biases_the_gradient(sde_sample_freq, expected):
    """The example of docs/exactness.md: -1.5 + 1 is right, and with common noise the second reward is credited twice."""
    found = gradient_of_the_mean([-1.5, 1.0], 8, n_episodes=4_000, baseline=None, sde_sample_freq=sde_sample_freq)
    assert found == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("lengths", [[[3, 5]], [[3, 5], [4], [2]]], ids=["one environment", "three"])
@pytest.mark.parametrize("sde_sample_freq, period", [(-1, 10**9), (2, 2)])
def test_noise_of_gsde_lasts_no_longer_than_its_episode(monkeypatch, lengths, sde_sample_freq, period):
    seen, get_noise = [], StateDependentNoiseDistribution.get_noise

    def note(self, latent):
        matrices = self.exploration_mat[None] if len(latent) == 1 else self.exploration_matrices
        seen.append(matrices[:, 0, 0].tolist())
        return get_noise(self, latent)

    def make_env(of_env):
        box = spaces.Box(-1.0, 1.0, (1,), np.float32)
        return gym.wrappers.TransformAction(FixedLengthEnv(of_env), lambda action: 0, box)

    env = DummyVecEnv([lambda of_env=of_env: make_env(of_env) for of_env in lengths])
    model = REINFORCE("MlpPolicy", env, seed=0, use_sde=True, sde_sample_freq=sde_sample_freq, n_steps=60, device="cpu")
    monkeypatch.setattr(StateDependentNoiseDistribution, "get_noise", note)
    model.learn(1)
    for numbers, of_env in zip(zip(*seen, strict=True), lengths, strict=True):
        starts = np.cumsum([0, *itertools.islice(itertools.cycle(of_env), 60)])
        for step in range(1, 60):
            is_new = step in starts or step % period == 0
            assert (numbers[step] != numbers[step - 1]) == is_new, step


class ChangeAt(BaseCallback):
    """Changes the policy once, and notes the actions before and after."""

    def __init__(self, change, at=15):
        super().__init__()
        self.change, self.at = change, at
        self.before, self.after = [], []

    def _on_step(self):
        (self.before if self.n_calls <= self.at else self.after).append(self.locals["actions"].copy())
        if self.n_calls == self.at:
            self.change(self.model)
        return True


def with_certain_action(state_dict, certain=1):
    """Parameters with which an action has probability 1, or a Gaussian the mean 50 and hardly any noise."""
    state_dict = {name: value.clone() for name, value in state_dict.items()}
    state_dict["action_net.weight"].zero_()
    if "log_std" in state_dict:
        state_dict["action_net.bias"].fill_(50.0)
        state_dict["log_std"].fill_(-10.0)
    else:
        state_dict["action_net.bias"].fill_(-1e3)[certain] = 1e3
    return state_dict


def change_in_place(model):
    certain = with_certain_action(model.policy.state_dict())
    with th.no_grad():
        for name, parameter in model.policy.named_parameters():
            parameter.copy_(certain[name])


def change_by_the_optimizer(model):
    certain = with_certain_action(model.policy.state_dict())
    for name, parameter in model.policy.named_parameters():
        parameter.grad = parameter.detach() - certain[name]
    th.optim.SGD(model.policy.parameters(), lr=1.0).step()


def change_by_set_parameters(model):
    model.set_parameters({**model.get_parameters(), "policy": with_certain_action(model.policy.state_dict())})


def change_from_a_vector(model):
    state_dict = with_certain_action(model.policy.state_dict())
    names = [name for name, _ in model.policy.named_parameters()]
    model.policy.load_from_vector(th.cat([state_dict[name].flatten() for name in names]).numpy())


def change_by_new_tensors(model):
    model.policy.load_state_dict(with_certain_action(model.policy.state_dict()), assign=True)


def change_by_data(model):
    certain = with_certain_action(model.policy.state_dict())
    for name, parameter in model.policy.named_parameters():
        parameter.data = certain[name]


def change_through_data(model):
    certain = with_certain_action(model.policy.state_dict())
    for name, parameter in model.policy.named_parameters():
        parameter.data.copy_(certain[name])


def change_in_numpy(model):
    certain = with_certain_action(model.policy.state_dict())
    for name, parameter in model.policy.named_parameters():
        parameter.detach().numpy()[:] = certain[name]


class SiLUPolicy(MlpPolicy):
    """Acts in PyTorch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, activation_fn=th.nn.SiLU)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_by_the_optimizer,
        change_by_set_parameters,
        change_from_a_vector,
        change_by_new_tensors,
        change_by_data,
        change_through_data,
        change_in_numpy,
    ],
)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("policy", ["MlpPolicy", SiLUPolicy, "MlpLstmPolicy"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_parameters_that_a_callback_changes_act_from_the_next_step_on(change, env_id, policy, n_envs):
    model = REINFORCE(policy, make_vec_env(env_id, n_envs), n_steps=40, seed=0, device="cpu")
    callback = ChangeAt(change)
    model.learn(1, callback=[callback])
    before, after = np.concatenate(callback.before).flatten(), np.concatenate(callback.after).flatten()
    assert len(np.unique(before)) > 1 and len(after) >= 20
    np.testing.assert_allclose(after, 50.0 if env_id == "Pendulum-v1" else 1, atol=0.01)


NESTINGS = {
    "function": lambda callback: lambda locals_, globals_: callback.on_step(),
    "list": lambda callback: [CheckpointCallback(10**9, "unused"), callback],
    "event": lambda callback: EveryNTimesteps(1, callback),
    "event in a list": lambda callback: CallbackList([EveryNTimesteps(1, CallbackList([callback]))]),
}


@pytest.mark.parametrize("nest", NESTINGS.values(), ids=NESTINGS)
def test_changes_are_noticed_wherever_the_callback_is(nest):
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=40, seed=0, device="cpu")
    callback = ChangeAt(change_in_place)
    if nest is NESTINGS["function"]:
        callback.init_callback(model)
        callback.locals = {"actions": np.zeros(1)}
    model.learn(1, callback=nest(callback))
    assert (model.rollout_buffer.actions[20:40] == 1).all() and not (model.rollout_buffer.actions[:15] == 1).all()


def test_callbacks_of_sb3_cost_no_look_at_the_policy(monkeypatch, tmp_path):
    monkeypatch.setattr(ParameterSampler, "refresh", lambda sampler: pytest.fail("looked for changes"))
    env = make_vec_env("CartPole-v1")
    evaluation = EvalCallback(env, eval_freq=10, n_eval_episodes=1, callback_on_new_best=StopTrainingOnRewardThreshold(1e9))
    callbacks = [evaluation, CheckpointCallback(10**9, str(tmp_path)), EveryNTimesteps(5, StopTrainingOnMaxEpisodes(10**9))]
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=40, seed=0, device="cpu")
    model.learn(1, callback=callbacks)
    model.learn(1)


@pytest.mark.parametrize("policy", ["MlpPolicy", SiLUPolicy, "MlpLstmPolicy"])
def test_a_schedule_of_the_standard_deviation_is_followed_at_every_step(policy):
    class Schedule(BaseCallback):
        def _on_step(self):
            self.model.policy.log_std.data.fill_(-20.0 if self.n_calls % 2 else 0.0)
            return True

    model = REINFORCE(policy, "Pendulum-v1", n_steps=40, seed=0, device="cpu")
    actions = model.learn(1, callback=Schedule()).rollout_buffer.actions[:, 0, 0]
    # The means of an untrained policy are almost 0
    assert np.abs(actions[1::2]).max() < 0.1 < np.abs(actions[2::2]).mean()


@pytest.mark.parametrize("n_units", [8, 300])
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_changes_of_small_and_of_large_layers_are_noticed(policy, n_units):
    lstm_kwargs = {"lstm_hidden_size": n_units} if policy == "MlpLstmPolicy" else {}
    policy_kwargs = {"net_arch": [n_units, n_units], **lstm_kwargs}
    model = REINFORCE(policy, "CartPole-v1", seed=0, policy_kwargs=policy_kwargs, device="cpu")
    model.policy.set_training_mode(False)
    sample = make_action_sampler(model.policy, 2, np.random.default_rng(0))
    observations = np.ones((2, 4), np.float32)
    for parameter in model.policy.parameters():
        with th.no_grad():
            parameter += 0.5
        sample.refresh()
        sample.reset_states(np.ones(2, bool))
        fresh = make_action_sampler(model.policy, 2, np.random.default_rng(0)).actor(observations)
        np.testing.assert_array_equal(sample.actor(observations), fresh)


def test_without_a_change_a_callback_changes_no_action():
    def actions(callback):
        model = REINFORCE("MlpPolicy", make_vec_env("Pendulum-v1", 2), n_steps=30, seed=0, device="cpu")
        return model.learn(1, callback=callback).rollout_buffer.actions.copy()

    np.testing.assert_array_equal(actions(None), actions(ChangeAt(lambda model: None)))


SB3_LOCALS = {"self", "env", "callback", "rollout_buffer", "n_rollout_steps", "n_steps", "obs_tensor", "actions", "values"}
SB3_LOCALS |= {"log_probs", "clipped_actions", "new_obs", "rewards", "dones", "infos", "total_timesteps", "iteration"}


class Locals(BaseCallback):
    """Notes the local variables of every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        self.seen.append(dict(self.locals))
        return True


@pytest.mark.parametrize(
    "env_id, policy", [("CartPole-v1", "MlpPolicy"), ("Pendulum-v1", "MlpPolicy"), ("dict", "MultiInputPolicy")]
)
def test_callbacks_find_the_locals_of_sb3(env_id, policy):
    def make_env():
        if env_id != "dict":
            return gym.make(env_id)
        env = FixedLengthEnv([7])
        return gym.wrappers.TransformObservation(env, lambda obs: {"a": obs}, spaces.Dict({"a": env.observation_space}))

    seen = {}
    for algorithm in (A2C, REINFORCE):
        model = algorithm(policy, make_vec_env(make_env, 2, seed=0), n_steps=6, seed=0, device="cpu")
        callbacks = [Locals(), Locals()]
        # As a child, too
        model.learn(30, callback=callbacks)
        assert [step.keys() for step in callbacks[0].seen] == [step.keys() for step in callbacks[1].seen]
        seen[algorithm] = callbacks[1].seen
        assert seen[algorithm][0]["self"] is model
    missing = SB3_LOCALS - seen[REINFORCE][0].keys()
    assert missing == {"values", "log_probs"}, "docs/migrating.md says which"
    assert SB3_LOCALS <= seen[A2C][0].keys()
    for step, (own, of_a2c) in enumerate(zip(seen[REINFORCE], seen[A2C], strict=False)):
        for name in SB3_LOCALS - missing - {"self", "callback"}:
            assert type(own[name]) is type(of_a2c[name]) or name in ("rollout_buffer", "env"), name
            if isinstance(own[name], np.ndarray | th.Tensor):
                assert own[name].shape == of_a2c[name].shape and own[name].dtype == of_a2c[name].dtype, name
        assert step >= 6 or own["n_steps"] == step
        expected = seen[REINFORCE][step - 1]["new_obs"] if step > 0 else None
        found = own["obs_tensor"]
        if expected is not None and own["n_steps"] > 0:
            for key in expected if isinstance(expected, dict) else [...]:
                np.testing.assert_array_equal(found[key], expected[key])


def test_masks_are_among_the_locals():
    model = REINFORCE("MlpPolicy", DummyVecEnv([CueEnv]), n_episodes=3, use_masking=True, seed=0, device="cpu")
    callback = Locals()
    model.learn(1, callback=callback)
    for step in callback.seen:
        assert step["action_masks"][0, step["actions"][0]]


class StopAt(BaseCallback):
    def __init__(self, n_calls):
        super().__init__()
        self.stop_at = n_calls

    def _on_step(self):
        assert {"new_obs", "rewards", "dones", "infos", "actions", "clipped_actions"} <= self.locals.keys()
        return self.n_calls < self.stop_at


def test_a_callback_can_stop_and_learning_goes_on_at_the_start_of_an_episode():
    model = make_model(fixed_length_envs([4]), n_steps=8)
    model.learn(100, callback=StopAt(6))
    assert model.num_timesteps == 6
    assert model._n_updates == 0
    model.learn(8, reset_num_timesteps=False)
    assert model.rollout_buffer.batches[0].observations[0, 0] == 0
    assert model._n_updates == 1


def test_actions_are_stored_as_drawn_and_clipped_for_the_environment():
    model = REINFORCE("MlpPolicy", "Pendulum-v1", rollout_buffer_class=SpyBuffer, seed=0, policy_kwargs={"log_std_init": 2.0})
    played = []
    step = model.env.step
    model.env.step = lambda actions: (played.append(actions), step(actions))[1]
    model.learn(1)
    drawn, played = model.rollout_buffer.batches[0].actions.numpy(), np.concatenate(played)
    assert np.abs(drawn).max() > 2
    np.testing.assert_array_equal(played, np.clip(drawn, -2, 2))


def test_vec_normalize_is_trained_and_its_observations_are_learned_from():
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    model = make_model(env)
    model.learn(600)
    assert env.obs_rms.count > 600
    assert np.abs(model.rollout_buffer.batches[-1].observations.numpy()).mean() > 0.3


def test_success_rate_is_reported():
    class SuccessEnv(gym.Wrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated, truncated, {**info, "is_success": terminated}

    model = make_model(DummyVecEnv([lambda: Monitor(SuccessEnv(FixedLengthEnv([4])))]), n_steps=8)
    model.learn(1)
    assert list(model.ep_success_buffer) == [True, True]
