"""What a callback finds in ``model.rollout_buffer`` is what SB3's buffer has there."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import AtRolloutEnd, FixedLengthEnv, UpdatesByHand, learn_and_look
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_a2c import EPISODE_LENGTH, NoisyRewardEnv, TorchSampledPolicy

from sb3_reinforce import REINFORCE

ARRAYS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "returns", "advantages")


def copies(buffer):
    return {name: getattr(buffer, name).copy() for name in ARRAYS}


class ConstantValuePolicy(ActorCriticPolicy):
    """Says what a state is worth in ``forward``, which A2C asks while it collects, and nowhere else."""

    value = 0.0

    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, th.full_like(values, self.value), log_prob


class RewardAtTheEndEnv(FixedLengthEnv):
    def __init__(self):
        super().__init__([6])

    def step(self, action):
        observation, _, terminated, *rest = super().step(action)
        return observation, float(terminated), terminated, *rest


@pytest.mark.parametrize("algorithm", [A2C, REINFORCE])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
@pytest.mark.parametrize("gamma", [1.0, 0.99])
@pytest.mark.parametrize("n_episodes", [1, 3])
def test_advantages_and_returns_are_the_closed_form(algorithm, gae_lambda, gamma, n_episodes):
    model = algorithm(ConstantValuePolicy, RewardAtTheEndEnv(), n_steps=6 * n_episodes, gamma=gamma, gae_lambda=gae_lambda)
    for model.policy.value in (0.0, 1.0):
        seen = learn_and_look(model, 6 * n_episodes, lambda buffer: (buffer.advantages.copy(), buffer.returns.copy()))
        # V is the same everywhere: before the end each difference is (gamma - 1) V, and the last one 1 - V
        left = 5 - np.arange(6)
        decay = gamma * gae_lambda
        before_the_end = np.array([sum(decay**k for k in range(n)) for n in left])
        advantages = (gamma - 1) * model.policy.value * before_the_end + decay**left * (1 - model.policy.value)
        expected = np.tile(advantages, n_episodes)[:, None]
        np.testing.assert_allclose(seen[0][0], expected, atol=1e-6)
        np.testing.assert_allclose(seen[0][1], expected + model.policy.value, atol=1e-6)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_all_arrays_equal_those_of_a2c(n_envs):
    shared = {"n_steps": EPISODE_LENGTH, "gamma": 0.9, "seed": 3, "device": "cpu"}
    seen = {}
    for algorithm in (A2C, REINFORCE):
        model = algorithm(TorchSampledPolicy, make_vec_env(NoisyRewardEnv, n_envs), **shared)
        model.set_random_seed(5)
        seen[algorithm] = learn_and_look(model, n_envs * EPISODE_LENGTH, copies)[0]
    for name, expected in seen[A2C].items():
        found = seen[REINFORCE][name]
        assert found.shape == expected.shape and found.dtype == expected.dtype, name
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)


def uneven_model(**kwargs):
    """Counted are 9 and 2 + 2 + 2 steps; the second environment makes three more until the first has finished."""
    env = DummyVecEnv([lambda lengths=lengths: Monitor(FixedLengthEnv(lengths)) for lengths in ([9], [2])])
    arguments = {"n_episodes": 4, "gamma": 0.5, "max_rollout_steps": 20, "seed": 0, **kwargs}
    return REINFORCE("MlpPolicy", env, **arguments)


COUNTED = np.array([[True, step < 6] for step in range(9)])


@pytest.mark.parametrize("baseline", ["value", "leave_one_out", None])
def test_steps_that_were_not_counted_are_marked_and_hold_zeros(baseline):
    def look(buffer):
        assert (buffer.pos, buffer.full, buffer.size()) == (9, True, 9)
        np.testing.assert_array_equal(buffer.counted, COUNTED)
        return copies(buffer)

    model = uneven_model(baseline=baseline)
    arrays = learn_and_look(model, 1, look)[0]
    for name, array in arrays.items():
        assert array.shape[:2] == (9, 2), name
        assert not array[~COUNTED].any(), name
    np.testing.assert_array_equal(arrays["rewards"], COUNTED)
    np.testing.assert_array_equal(np.argwhere(arrays["episode_starts"]), [[0, 0], [0, 1], [2, 1], [4, 1]])
    np.testing.assert_array_equal(arrays["observations"][:, 0, 0], np.arange(9))
    expected = np.zeros((9, 2))
    expected[:, 0] = 2 - 0.5 ** np.arange(8, -1, -1)
    expected[:6, 1] = [1.5, 1.0] * 3
    np.testing.assert_allclose(arrays["returns"], expected, atol=1e-6)
    assert (arrays["log_probs"][COUNTED] < 0).all()
    assert arrays["values"].any() == (baseline == "value")
    if baseline != "leave_one_out":
        np.testing.assert_allclose(arrays["advantages"], arrays["returns"] - arrays["values"], atol=1e-6)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"entropy_in_return": True, "ent_coef": "lin_0.5"},
        {"gae_lambda": 0.9, "normalize_advantage": True},
        {"baseline": "time_step", "return_type": "episode", "discounted_weighting": True},
    ],
    ids=str,
)
def test_the_arrays_are_what_the_update_uses_and_reading_them_changes_nothing(kwargs):
    def trained(*callbacks):
        env = make_vec_env("Pendulum-v1", 3, seed=0)
        model = REINFORCE("MlpPolicy", env, n_steps=210, max_rollout_steps=410, seed=1, micro_batch_size=100, **kwargs)
        model.learn(2_000, callback=[*callbacks])
        return model.policy.parameters_to_vector()

    def flat(buffer):
        return {name: getattr(buffer, name).T[buffer.counted.T] for name in ("advantages", "returns")}

    seen, by_hand = AtRolloutEnd(flat), UpdatesByHand()
    parameters = trained(seen, by_hand)
    assert len(by_hand.updates) == len(seen.seen) >= 2
    for arrays, update in zip(seen.seen, by_hand.updates, strict=True):
        np.testing.assert_allclose(arrays["advantages"], update.advantages, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(arrays["returns"], update.returns, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(parameters, trained())


@pytest.mark.parametrize("kwargs", [{}, {"entropy_in_return": True, "ent_coef": 0.1}], ids=str)
def test_nobody_pays_for_what_nobody_reads_and_nobody_pays_twice(kwargs):
    def passes(look):
        """Forward passes without a gradient, which is none of the update's own. NumPy's copy of the network acts."""
        counts = {"action_net": 0, "value_net": 0}

        class Counting(AtRolloutEnd):
            def _on_step(self):
                for name in counts if self.n_calls == 1 else ():

                    def count(*_, name=name):
                        counts[name] += not th.is_grad_enabled()

                    getattr(self.model.policy, name).register_forward_hook(count)
                return True

        uneven_model(**kwargs).learn(1, callback=Counting(look))
        return counts

    of_the_update = {"action_net": 1 if kwargs else 0, "value_net": 1}
    assert passes(lambda buffer: (buffer.rewards, buffer.episode_starts, buffer.counted)) == of_the_update
    assert passes(lambda buffer: (buffer.values, buffer.returns, buffer.advantages, buffer.values)) == of_the_update
    assert passes(copies) == {"action_net": 1, "value_net": 1}


def test_a_second_update_by_hand_has_the_values_of_the_rollout():
    model = uneven_model(critic_epochs=1, critic_learning_rate=0.1).learn(1)
    before = model.rollout_buffer.values.copy()
    model.train()
    np.testing.assert_array_equal(model.rollout_buffer.values, before)


def test_what_a_callback_writes_to_the_rewards_is_learned_from():
    def double(buffer):
        before = buffer.returns.copy()
        buffer.rewards[:] *= 2
        return before

    model = uneven_model()
    before = learn_and_look(model, 1, double)[0]
    np.testing.assert_allclose(model.rollout_buffer.returns, 2 * before)
    with pytest.raises(ValueError, match=r"write to rollout_buffer\.rewards"):
        model.rollout_buffer.advantages[0] = 1.0
    with pytest.raises(NotImplementedError, match="write to rewards"):
        model.rollout_buffer.compute_returns_and_advantage(th.zeros(2), np.ones(2))


def test_after_the_update_the_arrays_are_still_those_of_before():
    model = uneven_model(critic_learning_rate=0.1)
    seen = learn_and_look(model, 1, lambda buffer: (buffer.values, buffer.returns, buffer.advantages))[0]
    other = uneven_model(critic_learning_rate=0.1).learn(1)
    for array, name in zip(seen, ("values", "returns", "advantages"), strict=True):
        np.testing.assert_array_equal(getattr(other.rollout_buffer, name), array)
    with pytest.raises(RuntimeError, match="log_probs is there until the policy is updated: ask for it in on_rollout_end"):
        _ = other.rollout_buffer.log_probs
    # A copy that somebody took has what was computed before, and not the policy
    first, second = learn_and_look(other, 1, lambda buffer: (copy.deepcopy(buffer), buffer.log_probs, copy.deepcopy(buffer)))[
        0
    ][::2]
    with pytest.raises(RuntimeError, match="log_probs is there until the policy is updated"):
        _ = first.log_probs
    assert (second.log_probs[COUNTED] < 0).all()
    model = uneven_model()
    with pytest.raises(RuntimeError, match="values is there when the rollout is over"):
        _ = model.rollout_buffer.values
    with pytest.raises(RuntimeError, match="there when the rollout is over"):
        next(model.rollout_buffer.get())


class DictEnv(gym.ObservationWrapper):
    def __init__(self, lengths):
        super().__init__(FixedLengthEnv(lengths))
        self.observation_space = spaces.Dict({"only": self.env.observation_space})

    def observation(self, observation):
        return {"only": observation}


@pytest.mark.parametrize("batch_size", [None, 4, 100])
@pytest.mark.parametrize("is_dict", [False, True])
def test_get_gives_every_counted_step_once(batch_size, is_dict):
    make = DictEnv if is_dict else FixedLengthEnv
    env = DummyVecEnv([lambda: make([9]), lambda: make([2])])
    model = REINFORCE(
        "MultiInputPolicy" if is_dict else "MlpPolicy", env, n_episodes=4, gamma=0.5, max_rollout_steps=20, seed=0
    )

    def numbers(buffer, step, env_idx):
        arrays = (buffer.actions[..., 0], buffer.values, buffer.log_probs, buffer.advantages, buffer.returns)
        return [array[step, env_idx] for array in arrays]

    # In the order of whole_episodes
    where = np.argwhere(COUNTED.T)[:, ::-1]

    def look(buffer):
        samples = list(buffer.get(batch_size))
        observations = buffer.observations["only"] if is_dict else buffer.observations
        rows = [[*observations[step, env_idx], *numbers(buffer, step, env_idx)] for step, env_idx in where]
        return samples, np.array(rows)

    samples, expected = learn_and_look(model, 1, look)[0]
    assert all(type(sample) is (DictRolloutBufferSamples if is_dict else RolloutBufferSamples) for sample in samples)
    assert [len(sample.actions) for sample in samples] == ([4, 4, 4, 3] if batch_size == 4 else [15])
    found = []
    for sample in samples:
        observations = sample.observations["only"] if is_dict else sample.observations
        numbers_of_sample = (sample.actions[:, 0], sample.old_values, sample.old_log_prob, sample.advantages, sample.returns)
        found += th.column_stack([observations, *numbers_of_sample]).tolist()
    found, expected = np.array(found), expected.tolist()
    assert not np.allclose(found, expected), "not shuffled"
    np.testing.assert_allclose(np.array(sorted(found.tolist())), np.array(sorted(expected)), rtol=1e-6)
    assert all(sample.actions.dtype == th.float32 for sample in samples)


class PoisonedFinalEnv(FixedLengthEnv):
    """The observation that follows a cut cannot be learned from."""

    def __init__(self, poison):
        super().__init__([4], truncate=True)
        self.poison = poison

    def step(self, action):
        observation, *rest = super().step(action)
        observation[1] += self.poison if self.time == 4 else 0.0
        return observation, *rest


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_final_observation_that_cannot_be_learned_from_is_located(poison, is_dict):
    def make_poisoned():
        env = PoisonedFinalEnv(poison)
        if not is_dict:
            return env
        space = spaces.Dict({"only": env.observation_space})
        return gym.wrappers.TransformObservation(env, lambda observation: {"only": observation}, space)

    env = DummyVecEnv([(lambda: DictEnv([6])) if is_dict else (lambda: FixedLengthEnv([6])), make_poisoned])
    model = REINFORCE("MultiInputPolicy" if is_dict else "MlpPolicy", env, n_steps=3, seed=0, max_rollout_steps=20)
    part = r"\['only'\]" if is_dict else ""
    with pytest.raises(ValueError, match=f"final observation{part} of environment 1 at step 3 of the rollout is {poison}"):
        model.learn(1)
    # Where nothing is bootstrapped, nobody looks at it
    model.bootstrap_at_time_limit = False
    model.learn(1)


def test_rewards_can_be_added_to_in_place():
    class Bonus(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.rollout_buffer.rewards += 1.0
            self.model.rollout_buffer.rewards = self.model.rollout_buffer.rewards * 2.0

    model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=2, gamma=1.0, seed=0, device="cpu")
    model.learn(1, callback=Bonus())
    batch = model.rollout_buffer.whole_episodes()
    np.testing.assert_array_equal(batch.rewards, np.full(len(batch.rewards), 4.0))


class WholeNumbers(FixedLengthEnv):
    def __init__(self, is_dict):
        super().__init__([4, 7])
        space = spaces.Box(0, 255, (2,), np.uint8)
        self.is_dict = is_dict
        self.observation_space = spaces.Dict({"a": space, "b": spaces.Box(-1.0, 1.0, (1,))}) if is_dict else space

    def _observation(self):
        whole = super()._observation().astype(np.uint8)
        return {"a": whole, "b": np.zeros(1, np.float32)} if self.is_dict else whole


@pytest.mark.parametrize("is_dict", [False, True])
def test_what_was_acted_on_is_what_is_stored(is_dict, monkeypatch):
    """VecNormalize makes fractions of whole numbers, whose space stays one of whole numbers."""
    venv = VecNormalize(DummyVecEnv([lambda: WholeNumbers(is_dict)] * 2))
    policy = "MultiInputPolicy" if is_dict else "MlpPolicy"
    model = REINFORCE(policy, venv, n_episodes=4, max_rollout_steps=50, seed=0, device="cpu")
    acted_on, add = [], model.rollout_buffer.add

    def note(obs, *args):
        acted_on.append(np.array(obs["a"] if is_dict else obs))
        add(obs, *args)

    monkeypatch.setattr(model.rollout_buffer, "add", note)
    (stored,) = learn_and_look(model, 1, lambda buffer: copy.deepcopy(buffer.observations))
    (is_counted,) = [model.rollout_buffer.counted]
    stored = stored["a"] if is_dict else stored
    np.testing.assert_array_equal(stored[is_counted], np.array(acted_on)[is_counted])
    assert (stored % 1.0 != 0.0).any()


@pytest.mark.parametrize("baseline", ["value", "leave_one_out", "time_step", None])
def test_returns_and_advantages_follow_the_rewards_of_the_moment(baseline):
    def scale_rewards(buffer):
        before = copies(buffer)
        buffer.rewards[:] *= 10.0
        return before, copies(buffer)

    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, baseline=baseline, seed=0)
    for before, after in learn_and_look(model, 200, scale_rewards):
        counted = after["returns"] != 0.0
        np.testing.assert_allclose(after["returns"], 10.0 * before["returns"], rtol=1e-5)
        values = before["values"] if baseline == "value" else 0.0
        expected = 10.0 * (before["advantages"] + values) - values
        np.testing.assert_allclose(after["advantages"][counted], expected[counted], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(after["values"], before["values"])


def write_in_place(array):
    array += 1.0


def write_to_a_part(array):
    array[:2] = 0.0


def write_through_a_function(array):
    np.clip(array, -1.0, 1.0, out=array)


@pytest.mark.parametrize("write", [write_in_place, write_to_a_part, write_through_a_function])
@pytest.mark.parametrize("name", ["values", "returns", "advantages", "log_probs"])
def test_what_is_computed_names_what_to_write_to(name, write):
    def try_to_write(buffer):
        with pytest.raises(ValueError, match=r"write to rollout_buffer\.rewards"):
            write(getattr(buffer, name))
        with pytest.raises(ValueError, match=r"write to rollout_buffer\.rewards"):
            setattr(buffer, name, np.zeros(getattr(buffer, name).shape))
        result = getattr(buffer, name) * 2.0
        result += 1.0
        copied = getattr(buffer, name).copy()
        copied[0] = 1.0
        copied += 1.0
        return type(result)

    assert learn_and_look(REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16), 1, try_to_write) == [np.ndarray]


@pytest.mark.parametrize("is_dict", [False, True])
def test_callbacks_find_the_locals_of_sb3s_loop(is_dict):
    class Locals(BaseCallback):
        def __init__(self):
            super().__init__()
            self.names, self.last_obs = [], None

        def _on_step(self):
            self.names.append(set(self.locals))
            obs_tensor = self.locals["obs_tensor"]
            parts = obs_tensor if isinstance(obs_tensor, dict) else {"": obs_tensor}
            if self.last_obs is not None:
                for key, part in parts.items():
                    np.testing.assert_array_equal(part.numpy(), self.last_obs[key] if is_dict else self.last_obs)
            self.last_obs = copy.deepcopy(self.locals["new_obs"])
            assert self.locals["self"] is self.model
            return True

    def trained(algorithm):
        env = DummyVecEnv([lambda: DictEnv([5])] if is_dict else [lambda: FixedLengthEnv([5])])
        callback = Locals()
        algorithm("MultiInputPolicy" if is_dict else "MlpPolicy", env, n_steps=10).learn(20, callback=callback)
        return callback

    ours, a2cs = trained(REINFORCE), trained(A2C)
    loop_names = a2cs.names[-1] - {"values", "log_probs", "idx", "done", "terminal_obs", "terminal_value", "next_done"}
    assert loop_names <= ours.names[0]
