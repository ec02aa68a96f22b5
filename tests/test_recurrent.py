"""Recurrent policies: whole episodes from the zero state, alike in NumPy and PyTorch, while collecting and at the update."""

import copy
import itertools
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import FixedLengthEnv, GradientRecorder, learn_and_look, optimizer_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.distributed.partition import single_partition
from sb3_reinforce.lab.gradients import ScoreGradients
from sb3_reinforce.policies.recurrent import MlpLstmPolicy
from sb3_reinforce.rollout import make_action_sampler
from sb3_reinforce.rollout.batch import EpisodeBatch, map_observation
from sb3_reinforce.rollout.recurrent_samplers import NumpyLstmActor, RecurrentDistributionSampler, TorchLstmActor
from sb3_reinforce.rollout.samplers import ParameterSampler
from sb3_reinforce.update.policy_step import Divergence
from sb3_reinforce.update.recurrent_evaluator import RecurrentPolicyEvaluator, run_lstm_over_episodes

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
OBSERVATION_SPACES = {
    "MlpLstmPolicy": BOX,
    "CnnLstmPolicy": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "MultiInputLstmPolicy": spaces.Dict({"place": BOX, "kind": spaces.Discrete(3)}),
}
CRITICS = {
    "own": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "memoryless": {"enable_critic_lstm": False},
}
SMALL = {"lstm_hidden_size": 5, "net_arch": [4]}


class NoiseEnv(gym.Env):
    """Random observations, rewards that depend on the action and on the one before, episodes of random length."""

    def __init__(self, observation_space=BOX, action_space=None, end_probability=0.1, limit=30):
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(3) if action_space is None else action_space
        self.end_probability, self.limit = end_probability, limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time, self.before = 0, 0.0
        return self.observation_space.sample(), {}

    def step(self, action):
        reward, self.before = float(np.sum(action)) - self.before, float(np.sum(action))
        self.time += 1
        over = bool(self.np_random.random() < self.end_probability)
        return self.observation_space.sample(), reward, over, not over and self.time == self.limit, {}


def make_model(policy="MlpLstmPolicy", env=None, n_envs=3, policy_kwargs=None, **kwargs):
    env = make_vec_env(env or (lambda: NoiseEnv(OBSERVATION_SPACES[policy])), n_envs, seed=0) if n_envs else env
    small = {**SMALL, "features_extractor_kwargs": {"features_dim": 6}} if policy == "CnnLstmPolicy" else SMALL
    model = REINFORCE(
        policy, env, seed=0, device="cpu", policy_kwargs={**small, **(policy_kwargs or {})}, **{"n_steps": 20, **kwargs}
    )
    model.set_logger(Logger(None, []))
    return model


def make_policy(observation_space=BOX, action_space=None, policy_class=MlpLstmPolicy, **kwargs):
    th.manual_seed(0)
    policy = policy_class(observation_space, action_space or spaces.Discrete(3), lambda _: 1e-3, **{**SMALL, **kwargs})
    policy.set_training_mode(False)
    return policy


def random_batch(observation_space, action_space, lengths, cut_episodes=()):
    """Episodes of these lengths with sampled observations and actions; the given ones are cut."""
    observation_space.seed(0)
    action_space.seed(0)

    def observations(n):
        sampled = [observation_space.sample() for _ in range(n)]
        if isinstance(observation_space, spaces.Dict):
            return {key: th.as_tensor(np.stack([obs[key] for obs in sampled])) for key in observation_space}
        return th.as_tensor(np.stack(sampled))

    n_steps = sum(lengths)
    ends = np.cumsum(lengths)
    actions = np.stack([action_space.sample() for _ in range(n_steps)])
    return EpisodeBatch(
        observations=observations(n_steps),
        actions=th.as_tensor(actions).reshape(n_steps, -1),
        rewards=np.zeros(n_steps),
        episode_lengths=np.array(lengths),
        cut_steps=ends[list(cut_episodes)] - 1,
        final_observations=observations(len(cut_episodes)) if cut_episodes else None,
        episode_starts=np.stack([np.zeros(len(lengths), dtype=np.int64), ends - lengths], axis=1),
    )


def episodes_of(batch):
    """Each episode's steps as a slice."""
    ends = np.cumsum(batch.episode_lengths)
    return [slice(int(end - length), int(end)) for end, length in zip(ends, batch.episode_lengths, strict=True)]


def select(observations, steps):
    return map_observation(lambda obs: obs[steps], observations)


def zero_states(policy):
    shape = (policy.lstm_actor.num_layers, 1, policy.lstm_actor.hidden_size)
    return RNNStates((th.zeros(shape), th.zeros(shape)), (th.zeros(shape), th.zeros(shape)))


def contrib_log_probs_entropies_values(policy, batch):
    """sb3-contrib's evaluation, one episode at a time from the zero state."""
    results = []
    for steps in episodes_of(batch):
        actions = batch.actions[steps].float()
        actions = actions.flatten() if isinstance(policy.action_space, spaces.Discrete) else actions
        no_starts = th.zeros(steps.stop - steps.start)
        values, log_prob, entropy = policy.evaluate_actions(
            select(batch.observations, steps), actions, zero_states(policy), no_starts
        )
        results.append((log_prob, entropy, values.flatten()))
    return [th.cat(parts) for parts in zip(*results, strict=True)]


# Evaluating


def one_by_one(lstm, inputs, lengths):
    return th.cat([lstm(episode[:, None])[0][:, 0] for episode in th.split(inputs, lengths)])


def packed(lstm, inputs, lengths):
    sequence = nn.utils.rnn.pack_sequence(list(th.split(inputs, lengths)), enforce_sorted=False)
    outputs, _ = nn.utils.rnn.pad_packed_sequence(lstm(sequence)[0])
    return th.cat([outputs[:length, i] for i, length in enumerate(lengths)])


def all_padded(lstm, inputs, lengths):
    episodes = th.split(inputs, lengths)
    outputs, _ = lstm(nn.utils.rnn.pad_sequence(list(episodes)))
    return th.cat([outputs[:length, i] for i, length in enumerate(lengths)])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), n_layers=st.integers(1, 2))
def test_buckets_padding_packing_and_one_episode_at_a_time_give_the_same_outputs_and_gradients(lengths, n_layers):
    th.manual_seed(0)
    lstm = nn.LSTM(3, 4, n_layers).double()
    weights = th.randn(sum(lengths), 4, dtype=th.float64)
    inputs = th.randn(sum(lengths), 3, dtype=th.float64, requires_grad=True)
    results = []
    for read in (lambda *args: run_lstm_over_episodes(lstm, inputs, np.array(lengths)), one_by_one, packed, all_padded):
        outputs = read(lstm, inputs, lengths)
        gradients = th.autograd.grad((weights * outputs).sum(), [inputs, *lstm.parameters()])
        results.append(th.cat([outputs.flatten(), *(gradient.flatten() for gradient in gradients)]).detach())
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_log_probabilities_entropies_and_values_are_sb3_contribs(name, critic):
    model = make_model(name, policy_kwargs=CRITICS[critic])
    batch = random_batch(OBSERVATION_SPACES[name], spaces.Discrete(3), [7, 1, 12, 3, 30])
    evaluator = RecurrentPolicyEvaluator(model.policy)
    with th.no_grad():
        log_prob, entropy = evaluator.log_prob_and_entropy(batch, slice(0, len(batch.actions)))
        expected = contrib_log_probs_entropies_values(model.policy, batch)
    for ours, theirs in zip((log_prob, entropy, th.as_tensor(evaluator.values(batch))), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


ACTION_SPACES = {
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-1.0, 1.0, (2,), np.float32),
}


@pytest.mark.parametrize(
    ("action_space", "use_sde"),
    # gSDE is for continuous actions
    [
        *((space, False) for space in ACTION_SPACES.values()),
        *((s, True) for s in ACTION_SPACES.values() if type(s) is spaces.Box),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_layers", [1, 2])
def test_every_distribution_is_read_as_sb3_contrib_does(action_space, use_sde, n_layers):
    policy = make_policy(action_space=action_space, use_sde=use_sde, n_lstm_layers=n_layers)
    batch = random_batch(BOX, action_space, [7, 1, 12])
    with th.no_grad():
        ours = RecurrentPolicyEvaluator(policy).log_prob_and_entropy(batch, slice(0, 20))
        theirs = contrib_log_probs_entropies_values(policy, batch)
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-5)
    np.testing.assert_allclose(ours[1], theirs[1], atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    size=st.one_of(st.none(), st.integers(1, 60)),
    minibatch=st.one_of(st.none(), st.integers(1, 60)),
)
def test_micro_batches_and_minibatches_are_whole_episodes_and_cover_each_once(lengths, size, minibatch):
    batch = random_batch(BOX, spaces.Discrete(3), lengths)
    evaluator = RecurrentPolicyEvaluator(make_policy(), size)
    ends = np.cumsum(lengths)
    episode_of = np.repeat(np.arange(len(lengths)), lengths)
    all_steps = th.arange(sum(lengths))

    def is_whole(steps):
        return all(np.count_nonzero(episode_of[steps] == k) == lengths[k] for k in np.unique(episode_of[steps]))

    micro_batches = evaluator.micro_batches(batch.episode_lengths)
    np.testing.assert_array_equal(th.cat([all_steps[micro_batch] for micro_batch in micro_batches]), all_steps)
    assert all(micro_batch.stop in ends for micro_batch in micro_batches)
    for micro_batch in micro_batches:
        assert size is None or micro_batch.stop - micro_batch.start <= size or micro_batch.stop - micro_batch.start in lengths
    # As long as possible: no two neighbours fit together
    for first, second in itertools.pairwise(micro_batches):
        next_length = lengths[int(np.searchsorted(ends, second.start, side="right"))]
        assert size is not None and first.stop - first.start + next_length > size

    drawn = list(evaluator.minibatches(batch.episode_lengths, minibatch, np.random.default_rng(0)))
    chosen = [[all_steps[steps].numpy() for steps in micro_batches] for micro_batches in drawn]
    np.testing.assert_array_equal(np.sort(np.concatenate([s for steps in chosen for s in steps])), all_steps)
    assert all(is_whole(steps) for micro_batches in chosen for steps in micro_batches)
    for micro_batches in chosen:
        total = sum(map(len, micro_batches))
        assert minibatch is None or total <= minibatch or total in lengths
        assert size is None or all(len(steps) <= size or len(steps) in lengths for steps in micro_batches)

    bound = minibatch or sum(lengths)
    subset = evaluator.subsample(batch.episode_lengths, bound, np.random.default_rng(0)).numpy()
    assert is_whole(subset) and len(subset) == len(set(subset)) > 0
    assert len(subset) <= bound or len(subset) in lengths
    assert bound < sum(lengths) or len(subset) == sum(lengths)


def test_every_episode_is_as_likely_to_be_chosen_however_long_it_is():
    lengths = [1, 30, 2, 30, 3, 4]
    batch, evaluator = random_batch(BOX, spaces.Discrete(3), lengths), RecurrentPolicyEvaluator(make_policy())
    rng, counts = np.random.default_rng(0), np.zeros(sum(lengths))
    for _ in range(400):
        counts[evaluator.subsample(batch.episode_lengths, 64, rng)] += 1
    shares = counts[np.cumsum(lengths) - 1] / 400
    # The four longest have 67 steps, the three longest 64
    np.testing.assert_allclose(shares, 0.5, atol=0.1)


def test_minibatches_of_chosen_episodes_are_read_like_the_whole_batch():
    batch = random_batch(BOX, spaces.Discrete(3), [4, 9, 2, 7, 7])
    evaluator = RecurrentPolicyEvaluator(make_policy())
    values = evaluator.values(batch)
    for (steps,) in evaluator.minibatches(batch.episode_lengths, 10, np.random.default_rng(0)):
        np.testing.assert_allclose(evaluator.values_of(batch, steps).detach(), values[steps], atol=1e-6)
        assert len(np.unique(values[steps])) == len(steps)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_the_value_after_a_cut_is_that_of_one_step_more(name, critic):
    policy = make_model(name, policy_kwargs=CRITICS[critic]).policy
    batch = random_batch(OBSERVATION_SPACES[name], spaces.Discrete(3), [4, 9, 2, 7], cut_episodes=(0, 2, 3))
    values = RecurrentPolicyEvaluator(policy, micro_batch_size=5).final_values(batch)
    for cut, episode in enumerate((0, 2, 3)):
        steps = episodes_of(batch)[episode]
        final = select(batch.final_observations, slice(cut, cut + 1))
        observations = select(batch.observations, steps)
        if isinstance(final, dict):
            longer = {key: th.cat([observations[key], final[key]]) for key in final}
        else:
            longer = th.cat([observations, final])
        with th.no_grad():
            expected = policy.predict_values(longer, zero_states(policy).vf, th.zeros(steps.stop - steps.start + 1))[-1]
        np.testing.assert_allclose(values[cut], expected.item(), atol=2e-6)


@pytest.mark.parametrize("policy_kwargs", [{}, {"n_lstm_layers": 2}], ids=str)
def test_fisher_vector_products_are_those_of_pytorchs_second_derivatives(policy_kwargs):
    class DoublePrecision(FlattenExtractor):
        def forward(self, observations):
            return super().forward(observations).double()

    policy = make_policy(features_extractor_class=DoublePrecision, **policy_kwargs).double()
    batch = random_batch(BOX, spaces.Discrete(3), [7, 1, 12, 12])
    parameters = [
        p for name, p in policy.named_parameters() if name.startswith(("lstm_actor", "mlp_extractor.p", "action_net"))
    ]
    direction = th.randn(sum(p.numel() for p in parameters), dtype=th.float64)
    product = Divergence(
        RecurrentPolicyEvaluator(policy), batch, slice(0, 32), single_partition(batch.episode_lengths)
    ).fisher_product(parameters)(direction)

    log_probs = []
    for observations in th.split(batch.observations.double(), batch.episode_lengths.tolist()):
        # PyTorch's LSTM, one episode after the other
        latent = policy.mlp_extractor.forward_actor(policy.lstm_actor(observations)[0])
        log_probs.append(th.log_softmax(policy.action_net(latent), dim=-1))
    new = th.cat(log_probs)
    mean_kl = (new.detach().exp() * (new.detach() - new)).sum(dim=1).mean()
    gradient = th.cat([part.flatten() for part in th.autograd.grad(mean_kl, parameters, create_graph=True)])
    second = th.autograd.grad(gradient @ direction, parameters)
    expected = th.cat([part.flatten() for part in second])
    assert expected.abs().max() > 1e-3
    np.testing.assert_allclose(product, expected, atol=1e-12)


# Collecting


def contrib_parameters(policy, observations, starts):
    """Logits or means by sb3-contrib's code, which carries the state and resets it: ``(time, n_envs, parameters)``."""
    n_layers, _, n_units = policy.lstm_hidden_state_shape
    states = (th.zeros(n_layers, starts.shape[1], n_units), th.zeros(n_layers, starts.shape[1], n_units))
    results = []
    for obs, episode_start in zip(observations, starts, strict=True):
        with th.no_grad():
            distribution, states = policy.get_distribution(th.as_tensor(obs), states, th.as_tensor(episode_start).float())
        results.append(
            distribution.distribution.logits if hasattr(distribution.distribution, "logits") else distribution.mode()
        )
    return np.stack(results)


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), np.float32)], ids=str)
@pytest.mark.parametrize(("n_layers", "n_units", "net_arch"), [(1, 64, [64, 64]), (2, 7, []), (3, 16, [5])])
@pytest.mark.parametrize("make_actor", [NumpyLstmActor, TorchLstmActor])
def test_logits_equal_sb3_contribs_over_hundreds_of_steps_with_resets(make_actor, n_layers, n_units, net_arch, action_space):
    rng = np.random.default_rng(0)
    policy = make_policy(action_space=action_space, n_lstm_layers=n_layers, lstm_hidden_size=n_units, net_arch=net_arch)
    with th.no_grad():
        for parameter in policy.lstm_actor.parameters():
            parameter.mul_(2.0)
        policy.action_net.weight.mul_(100.0)
    observations = rng.normal(size=(400, 5, 3)).astype(np.float32)
    starts = rng.random((400, 5)) < 0.02
    actor = make_actor(policy, 5)
    ours = []
    for obs, episode_start in zip(observations, starts, strict=True):
        actor.reset_states(episode_start)
        ours.append(actor(obs).copy())
    ours = np.stack(ours)
    if isinstance(action_space, spaces.Discrete):
        ours = ours - np.log(np.exp(ours.astype(np.float64)).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(ours, contrib_parameters(policy, observations, starts), atol=1e-5)
    assert ours.std() > 0.1


def test_the_fastest_sampler_that_is_exact_is_chosen():
    def actor_of(policy):
        sampler = make_action_sampler(policy, 2, np.random.default_rng(0))
        return type(sampler.actor) if isinstance(sampler, ParameterSampler) else type(sampler)

    class OwnDistribution(MlpLstmPolicy):
        def _get_action_dist_from_latent(self, latent_pi):
            return super()._get_action_dist_from_latent(latent_pi)

    class OwnFeatures(MlpLstmPolicy):
        pass

    box_actions = spaces.Box(-1.0, 1.0, (2,), np.float32)
    assert actor_of(make_policy()) is NumpyLstmActor
    assert actor_of(make_policy(policy_class=RecurrentActorCriticPolicy)) is NumpyLstmActor
    assert actor_of(make_policy(action_space=box_actions)) is NumpyLstmActor
    assert actor_of(make_policy(lstm_kwargs={"bias": False})) is TorchLstmActor
    assert actor_of(make_policy(activation_fn=nn.ELU)) is TorchLstmActor
    assert actor_of(make_policy(policy_class=OwnFeatures)) is TorchLstmActor
    assert actor_of(make_model("MultiInputLstmPolicy").policy) is TorchLstmActor
    assert actor_of(make_model("CnnLstmPolicy").policy) is TorchLstmActor
    assert actor_of(make_policy(policy_class=OwnDistribution)) is RecurrentDistributionSampler
    assert actor_of(make_policy(action_space=box_actions, use_sde=True)) is RecurrentDistributionSampler


class ParameterRecorder(BaseCallback):
    """Notes the distribution parameters of every step."""

    def _on_rollout_start(self):
        self.recorded = []

    def _on_step(self):
        sampler = self.locals["sample_actions"]
        self.recorded.append(self.parameters_of(sampler))
        return True

    @staticmethod
    def parameters_of(sampler):
        actor = sampler.actor
        hidden = actor.cells[-1].hidden if isinstance(actor, NumpyLstmActor) else actor.state[0][-1].numpy()
        return np.array(hidden)


@pytest.mark.parametrize("name", ["MlpLstmPolicy", "MultiInputLstmPolicy"])
def test_what_acted_is_what_the_update_reads_and_no_state_leaks(name):
    """Episodes that end at different times in several environments, over several rollouts with discarded steps."""
    model = make_model(name, n_envs=4, n_steps=25)
    recorder = ParameterRecorder()
    model.set_logger(Logger(None, []))
    _, callback = model._setup_learn(1000, recorder)
    for _ in range(3):
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 25)
        batch = model.rollout_buffer.whole_episodes()
        policy = model.policy
        with th.no_grad():
            features = policy.extract_features(batch.observations)
            outputs = run_lstm_over_episodes(policy.lstm_actor, features, batch.episode_lengths).numpy()
        acted = np.stack(recorder.recorded)
        acted = np.concatenate([acted[: ends[-1], env_idx] for env_idx, ends in enumerate(model.rollout_buffer.episode_ends)])
        assert len(batch.episode_lengths) > 4 and model.rollout_buffer.pos * 4 > len(acted)
        np.testing.assert_allclose(acted, outputs, atol=1e-6)
        model.train()


# The gradient


class RecallEnv(gym.Env):
    """
    A cue, a step that shows nothing, and a question for recurrent policies. Rewards depend on the history, too.

    The cue is 0 or 1 with probabilities 0.3 and 0.7, then observations are zero. First, action 1 costs 0.2 and asks at once;
    0 makes the agent wait for a step, where 1 leaves with 0.5. The answer is worth 1 if it is the cue, else -1.
    """

    CUE_PROBABILITIES = (0.3, 0.7)

    @staticmethod
    def outcome(cue, actions):
        """Reward of the last action, and whether the episode is over."""
        if len(actions) == 1:
            return -0.2 * actions[0], False
        if actions[0] == 0 and len(actions) == 2:
            return 0.5 * actions[1], actions[1] == 1
        return (1.0 if actions[-1] == cue else -1.0), True


def recall_paths():
    """All ways through ``RecallEnv``: (cue, actions, rewards)."""
    paths = []

    def extend(cue, actions, rewards):
        for action in (0, 1):
            reward, over = RecallEnv.outcome(cue, [*actions, action])
            longer = (cue, [*actions, action], [*rewards, reward])
            if over:
                paths.append(longer)
            else:
                extend(*longer)

    for cue in (0, 1):
        extend(cue, [], [])
    return paths


def recall_observations(cue, n_steps):
    observations = np.zeros((n_steps, 2), dtype=np.float32)
    observations[0, cue] = 1.0
    return observations


def recall_model(**kwargs):
    spaces_of_env = (spaces.Box(0.0, 1.0, (2,), np.float32), spaces.Discrete(2))
    env = DummyVecEnv([lambda: NoiseEnv(*spaces_of_env)])
    policy_kwargs = {"optimizer_class": GradientRecorder, "ortho_init": False, **kwargs.pop("policy_kwargs", {})}
    kwargs = {"max_grad_norm": float("inf"), "loss_reduction": "episode", "discounted_weighting": True, "gamma": 0.9, **kwargs}
    return make_model(env=env, n_envs=None, policy_kwargs=policy_kwargs, n_steps=100, **kwargs)


def recorded_gradients(model, paths):
    """The gradient that the model's ``train`` computes from these ways, ascent direction, by parameter."""
    buffer = model.rollout_buffer
    buffer.reset()
    for cue, actions, rewards in paths:
        for obs, action, reward in zip(recall_observations(cue, len(actions)), actions, rewards, strict=True):
            buffer.add(obs[None], np.array([action]), np.array([reward]))
        buffer.finish_episode(0)
    model.policy.optimizer.recorded.clear()
    model.train()
    recorded = zip(model.policy.named_parameters(), model.policy.optimizer.recorded[0], strict=True)
    return {name: -gradient.double().numpy() for (name, _), gradient in recorded if gradient is not None}


def path_log_probs(policy, cue, actions):
    """In float64, one step after the other, as a function of the policy's parameters."""
    state = None
    results = []
    for obs, action in zip(recall_observations(cue, len(actions)), actions, strict=True):
        output, state = policy.lstm_actor(th.as_tensor(obs, dtype=th.float64)[None, None], state)
        logits = policy.action_net(policy.mlp_extractor.forward_actor(output[0]))
        results.append(th.log_softmax(logits, dim=-1)[0, action])
    return th.stack(results)


@pytest.mark.parametrize("policy_kwargs", [{}, {"n_lstm_layers": 2}, CRITICS["shared"]], ids=["one", "two layers", "shared"])
@pytest.mark.parametrize("baseline", [None, "value"])
def test_the_expected_gradient_of_a_partially_observable_world_is_the_analytic_one(baseline, policy_kwargs):
    model = recall_model(baseline=baseline, policy_kwargs=policy_kwargs)
    exact_policy = copy.deepcopy(model.policy).double()
    objective = th.zeros((), dtype=th.float64)
    expected: dict[str, np.ndarray] = {}
    for cue, actions, rewards in recall_paths():
        log_prob = path_log_probs(exact_policy, cue, actions).sum()
        chance = RecallEnv.CUE_PROBABILITIES[cue]
        discounted = float(np.sum(np.array(rewards) * 0.9 ** np.arange(len(rewards))))
        objective = objective + chance * th.exp(log_prob) * discounted
        for name, gradient in recorded_gradients(model, [(cue, actions, rewards)]).items():
            expected[name] = expected.get(name, 0.0) + chance * float(th.exp(log_prob.detach())) * gradient
    parameters = dict(exact_policy.named_parameters())
    exact = dict(zip(expected, th.autograd.grad(objective, [parameters[name] for name in expected]), strict=True))
    assert any(name.startswith("lstm_actor.weight_hh") for name in expected)
    for name, gradient in exact.items():
        np.testing.assert_allclose(expected[name], gradient, rtol=0, atol=1e-6, err_msg=name)
    assert max(float(gradient.abs().max()) for name, gradient in exact.items() if "weight_hh" in name) > 1e-4


class MemorylessGates(BaseFeaturesExtractor):
    """What an LSTM computes in its first step."""

    def __init__(self, observation_space, lstm):
        super().__init__(observation_space, lstm.hidden_size)
        self.gates = nn.Linear(lstm.input_size, 4 * lstm.hidden_size)
        with th.no_grad():
            self.gates.weight.copy_(lstm.weight_ih_l0)
            self.gates.bias.copy_(lstm.bias_ih_l0 + lstm.bias_hh_l0)

    def forward(self, observations):
        input_gate, _, candidate, output_gate = self.gates(observations).chunk(4, dim=1)
        return output_gate.sigmoid() * (input_gate.sigmoid() * candidate.tanh()).tanh()


def test_an_lstm_that_forgets_everything_is_an_mlp():
    """Without recurrent weights and with closed forget gates: the same gradient, and the same rollout."""
    env = make_vec_env(NoiseEnv, 2, seed=0)
    kwargs = {"n_steps": 20, "baseline": None, "max_grad_norm": float("inf")}
    lstm_model = make_model(env=env, n_envs=None, policy_kwargs={"optimizer_class": GradientRecorder}, **kwargs)
    lstm = lstm_model.policy.lstm_actor
    with th.no_grad():
        lstm.weight_hh_l0.zero_()
        lstm.weight_ih_l0[5:10].zero_()
        lstm.bias_ih_l0[5:10] = -100.0
    mlp_kwargs = {
        "features_extractor_class": MemorylessGates,
        "features_extractor_kwargs": {"lstm": lstm},
        "net_arch": [4],
        "ortho_init": False,
        "optimizer_class": GradientRecorder,
    }
    mlp_model = REINFORCE("MlpPolicy", env, policy_kwargs=mlp_kwargs, seed=0, device="cpu", **kwargs)
    mlp_model.policy.mlp_extractor.load_state_dict(lstm_model.policy.mlp_extractor.state_dict())
    mlp_model.policy.action_net.load_state_dict(lstm_model.policy.action_net.state_dict())
    gradients = []
    for model in (lstm_model, mlp_model):
        env.seed(0)
        model.set_random_seed(0)
        model.set_logger(Logger(None, []))
        model.learn(60)
        named = zip(model.policy.named_parameters(), model.policy.optimizer.recorded[0], strict=True)
        gradients.append({name: gradient for (name, _), gradient in named})
    of_lstm, of_mlp = gradients
    np.testing.assert_array_equal(
        lstm_model.rollout_buffer.whole_episodes().actions, mlp_model.rollout_buffer.whole_episodes().actions
    )
    for of_layer, other in (
        ("lstm_actor.weight_ih_l0", "features_extractor.gates.weight"),
        ("lstm_actor.bias_ih_l0", "features_extractor.gates.bias"),
        ("action_net.weight", "action_net.weight"),
        ("mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.weight"),
    ):
        scale = float(of_mlp[other].abs().max())
        np.testing.assert_allclose(of_lstm[of_layer], of_mlp[other], atol=1e-4 * scale)
        assert scale > 1e-6


@pytest.mark.parametrize("kwargs", [{}, {"entropy_in_return": True, "ent_coef": 0.1}, {"baseline": "leave_one_out"}], ids=str)
@pytest.mark.parametrize("micro_batch_size", [1, 3, 7, 1000])
@pytest.mark.filterwarnings("ignore:A recurrent policy is evaluated on whole episodes")
def test_accumulation_changes_nothing(micro_batch_size, kwargs):
    paths = recall_paths()
    whole = recorded_gradients(recall_model(**kwargs), paths)
    micro_batches = recorded_gradients(recall_model(micro_batch_size=micro_batch_size, **kwargs), paths)
    assert whole.keys() == micro_batches.keys()
    for name, gradient in whole.items():
        np.testing.assert_allclose(micro_batches[name], gradient, atol=1e-6)


def test_an_episode_longer_than_a_micro_batch_is_taken_whole_and_said_once():
    model = make_model(env=lambda: FixedLengthEnv([3, 9]), n_envs=1, micro_batch_size=5)
    with pytest.warns(UserWarning, match="one of 9 steps is longer than micro_batch_size=5") as said:
        model.learn(60)
    assert len([warning for warning in said if "micro_batch_size" in str(warning.message)]) == 1
    quiet = make_model(env=lambda: FixedLengthEnv([3, 5]), n_envs=1, micro_batch_size=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "total_timesteps=.* at most")
        quiet.learn(60)


@pytest.mark.parametrize("critic", CRITICS)
def test_the_critic_is_fitted_without_moving_the_actor(critic):
    model = make_model(policy_kwargs=CRITICS[critic], critic_epochs=3, critic_batch_size=15)
    steps = optimizer_steps(model)
    model.learn(60)
    names = {name for name, _ in model.policy.named_parameters()}
    of_the_critic = {
        name for name in names if name.startswith(("value_net", "mlp_extractor.value_net", "lstm_critic", "critic"))
    }
    moved = [set(step) for step in steps]
    assert moved[0] == names - of_the_critic
    assert moved.count(moved[0]) == model._n_updates
    assert moved.count(of_the_critic) == len(moved) - model._n_updates >= 6 * model._n_updates


def test_a_shared_lstm_is_not_differentiated_for_the_critic():
    policy = make_policy(**CRITICS["shared"])
    batch = random_batch(BOX, spaces.Discrete(3), [3, 4])
    RecurrentPolicyEvaluator(policy).values_of(batch, slice(0, 7)).sum().backward()
    assert all(parameter.grad is None for parameter in policy.lstm_actor.parameters())


@pytest.mark.parametrize("arguments", [{"n_lstm_layers": 2}, {"lstm_kwargs": {"bias": False}}, CRITICS["shared"]], ids=str)
def test_forget_gates_start_open(arguments):
    policy = make_policy(**arguments)
    for lstm in filter(None, (policy.lstm_actor, policy.lstm_critic)):
        for layer in range(lstm.num_layers if lstm.bias else 0):
            biases = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
            assert (biases.reshape(4, 5)[1] == 1.0).all() and (biases.reshape(4, 5)[[0, 2, 3]].abs() < 1.0).all()


# Every part of the class


@pytest.mark.parametrize("policy_class", [MlpLstmPolicy, RecurrentActorCriticPolicy])
@pytest.mark.parametrize("critic", CRITICS)
def test_without_a_learned_baseline_every_parameter_is_the_actors(policy_class, critic):
    model = make_model(policy_class, env=NoiseEnv, baseline="mean", policy_kwargs=CRITICS[critic])
    actors = ("lstm_actor", "mlp_extractor.policy_net", "action_net")
    assert all(name.startswith(actors) for name, _ in model.policy.named_parameters())
    assert len(model.policy.optimizer.param_groups[0]["params"]) == len(list(model.policy.parameters()))
    model.learn(60)
    assert all(parameter.grad is not None for parameter in model.policy.parameters())
    observations = th.zeros(2, 3)
    states = zero_states(model.policy)
    _, values, _, _ = model.policy(observations[:1], states, th.zeros(1))
    assert float(values) == 0.0 == float(model.policy.predict_values(observations[:1], states.vf, th.zeros(1)))


LEARNING = {
    "optimiser": {},
    "natural": {"natural_gradient": True, "fisher_max_steps": 40},
    "averaging": {"policy_averaging": 0.5},
    "entropy in return": {"entropy_in_return": True, "ent_coef": "lin_0.1"},
    "lambda": {"gae_lambda": 0.9},
    "time step": {"baseline": "time_step", "n_episodes": 6, "n_steps": None},
    "whole return": {"return_type": "episode", "baseline": None},
    "micro_batches": {"micro_batch_size": 40, "critic_batch_size": 20},
}


@pytest.mark.parametrize("kwargs", LEARNING.values(), ids=LEARNING)
@pytest.mark.parametrize("name", ["MlpLstmPolicy", "MultiInputLstmPolicy"])
def test_every_switch_learns(name, kwargs):
    model = make_model(name, **kwargs)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(150)
    assert model._n_updates >= 2
    for old, parameter in zip(before, model.policy.parameters(), strict=True):
        assert th.isfinite(parameter).all() and not th.equal(old, parameter)


@pytest.mark.parametrize("kwargs", [{}, {"natural_gradient": True}, {"use_sde": True, "sde_sample_freq": 5}], ids=str)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_continuous_actions_and_normalized_observations(kwargs, n_envs):
    env = make_vec_env(lambda: NoiseEnv(action_space=ACTION_SPACES["Box"], end_probability=0.0, limit=15), n_envs, seed=0)
    model = make_model(env=VecNormalize(env), n_envs=None, **kwargs)
    model.learn(200)
    assert model._n_updates >= 2
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_images():
    model = make_model("CnnLstmPolicy", natural_gradient=True, ent_coef=0.01)
    model.learn(100)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


class CueEnv(gym.Env):
    """The first of three observations says which of two actions the last one asks for."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.cue = 0, int(self.np_random.integers(2))
        return np.array([2 * self.cue - 1], np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == 3
        return np.zeros(1, np.float32), float(over and action == self.cue), over, False, {}


@pytest.mark.parametrize(("name", "solved"), [("MlpLstmPolicy", True), ("MlpPolicy", False)])
def test_only_memory_remembers_a_cue(name, solved):
    policy_kwargs = {"net_arch": [16], **({"lstm_hidden_size": 16} if solved else {})}
    model = REINFORCE(
        name, make_vec_env(CueEnv, 8), n_steps=32, natural_gradient=True, target_kl=0.1, policy_kwargs=policy_kwargs, seed=0
    )
    model.learn(10_000)
    score, _ = evaluate_policy(model, make_vec_env(CueEnv, 4, seed=1), 100)
    assert (score == 1.0) if solved else (score < 0.7)


# At home in SB3


def test_predict_carries_the_state_and_resets_it():
    model = make_model(policy_averaging=0.9)
    model.learn(100)
    actor = NumpyLstmActor(model.averaged_policy, 2)
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (30, 2, 3)).astype(np.float32)
    starts = rng.random((30, 2)) < 0.2
    state = None
    for obs, episode_start in zip(observations, starts, strict=True):
        actor.reset_states(episode_start)
        actions, state = model.predict(obs, state, episode_start, deterministic=True)
        np.testing.assert_array_equal(actions, actor(obs).argmax(axis=1))
        assert [part.shape for part in state] == [(1, 2, 5), (1, 2, 5)]
        np.testing.assert_allclose(state[0][0], actor.cells[0].hidden, atol=1e-6)
    fresh, _ = model.predict(observations[0], deterministic=True)
    np.testing.assert_array_equal(fresh, NumpyLstmActor(model.averaged_policy, 2)(observations[0]).argmax(axis=1))
    single, state = model.predict(observations[0, 0], deterministic=True)
    assert single == fresh[0] and state[0].shape == (1, 1, 5)


def test_evaluation_during_training(tmp_path):
    model = make_model(env=CueEnv, n_envs=2)
    callback = EvalCallback(
        make_vec_env(CueEnv, 3), eval_freq=20, n_eval_episodes=5, best_model_save_path=str(tmp_path), verbose=0
    )
    model.learn(200, callback=callback)
    assert callback.best_mean_reward >= 0.0 and (tmp_path / "best_model.zip").exists()


LSTM_ARGUMENTS = {
    "default": {},
    "sizes": {"lstm_hidden_size": 6, "n_lstm_layers": 2, "lstm_kwargs": {"dropout": 0.1}},
    "shared": CRITICS["shared"],
    "memoryless critic": CRITICS["memoryless"],
}


@pytest.mark.parametrize("baseline", ["value", None])
@pytest.mark.parametrize("arguments", LSTM_ARGUMENTS.values(), ids=LSTM_ARGUMENTS)
def test_models_and_policies_are_saved_and_loaded_with_all_arguments_of_the_lstm(tmp_path, arguments, baseline):
    model = make_model(policy_kwargs=arguments, baseline=baseline, policy_averaging=0.5)
    model.learn(100)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pt")
    loaded = REINFORCE.load(tmp_path / "model", env=model.env)
    policy = MlpLstmPolicy.load(tmp_path / "policy.pt")
    expected = model.policy.state_dict()
    for other in (loaded.policy, policy):
        assert other.state_dict().keys() == expected.keys()
        assert all(th.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())
    observations = np.random.default_rng(0).uniform(-1, 1, (10, 3)).astype(np.float32)
    state = loaded_state = None
    for obs in observations:
        action, state = model.predict(obs[None], state, deterministic=True)
        loaded_action, loaded_state = loaded.predict(obs[None], loaded_state, deterministic=True)
        np.testing.assert_array_equal(action, loaded_action)
        np.testing.assert_array_equal(state, loaded_state)
    loaded.set_logger(Logger(None, []))
    loaded.learn(50, reset_num_timesteps=False)


def test_training_goes_on_after_loading_as_without(tmp_path):
    model = make_model(n_envs=1)
    model.learn(60)
    model.save(tmp_path / "model")
    results = []
    for other in (model, REINFORCE.load(tmp_path / "model", env=make_vec_env(NoiseEnv, 1))):
        other.set_logger(Logger(None, []))
        other.set_env(make_vec_env(NoiseEnv, 1))
        other.set_random_seed(3)
        other.learn(60, reset_num_timesteps=False)
        results.append(nn.utils.parameters_to_vector(other.policy.parameters()).detach())
    assert th.equal(*results)


def test_two_lstms_for_one_critic_are_refused():
    with pytest.raises(ValueError, match="set enable_critic_lstm=False"):
        make_model(policy_kwargs={"shared_lstm": True})


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@pytest.mark.processes
def test_sb3_contrib_is_imported_for_policies_with_memory_only():
    code = (
        "import sys; from sb3_reinforce import REINFORCE; REINFORCE('MlpPolicy', 'CartPole-v1').learn(60);"
        "assert not any(name.startswith('sb3_contrib') for name in sys.modules)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_without_sb3_contrib_one_line_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    monkeypatch.setitem(sys.modules, "sb3_contrib.common.recurrent.policies", None)
    monkeypatch.delitem(sys.modules, "sb3_reinforce.policies.recurrent")
    monkeypatch.delattr("sb3_reinforce.policies.recurrent")
    with pytest.raises(ModuleNotFoundError, match=rf'^{name} needs sb3-contrib: pip install "sb3-reinforce\[lstm\]"$'):
        REINFORCE(name, "CartPole-v1")


def test_an_unknown_policy_is_still_unknown():
    with pytest.raises(ValueError, match="Policy GruPolicy unknown"):
        REINFORCE("GruPolicy", "CartPole-v1")


# What else reads a policy


def test_the_buffer_tells_callbacks_the_log_probabilities_and_values_of_the_policy_that_acted():
    model = make_model(n_envs=3)

    def compare(buffer):
        with th.no_grad():
            expected = contrib_log_probs_entropies_values(model.policy, buffer.whole_episodes())
        np.testing.assert_allclose(buffer.log_probs.T[buffer.counted.T], expected[0], atol=1e-5)
        np.testing.assert_allclose(buffer.values.T[buffer.counted.T], expected[2], atol=1e-5)

    assert len(learn_and_look(model, 150, compare)) >= 2


def test_the_laboratory_differentiates_through_memory():
    model = make_model(n_envs=2, n_steps=30)
    model.learn(60)
    batch = model.rollout_buffer.whole_episodes()
    evaluator = RecurrentPolicyEvaluator(model.policy)
    weights = np.random.default_rng(0).normal(size=(3, len(batch.actions)))
    rows = ScoreGradients(evaluator)(batch, weights)
    parameters = ScoreGradients(evaluator).parameters(batch)
    log_prob = contrib_log_probs_entropies_values(model.policy, batch)[0]
    for row, own_weights in zip(rows, weights, strict=True):
        loss = (th.as_tensor(own_weights, dtype=th.float32) * log_prob).sum()
        expected = th.cat([part.flatten() for part in th.autograd.grad(loss, parameters, retain_graph=True)])
        np.testing.assert_allclose(row, expected, atol=1e-4)


class Cold(MlpLstmPolicy):
    def get_distribution(self, obs, lstm_states, episode_starts):
        distribution, states = super().get_distribution(obs, lstm_states, episode_starts)
        return self.action_dist.proba_distribution(distribution.distribution.logits * 3), states


def test_a_policy_that_acts_in_a_way_of_its_own_is_refused_before_it_does():
    with pytest.raises(ValueError, match=r"Cold overrides get_distribution.*override _get_action_dist_from_latent"):
        REINFORCE(Cold, "CartPole-v1")
    model = REINFORCE("MlpLstmPolicy", "CartPole-v1", n_episodes=1, device="cpu")
    model.policy.get_distribution = model.policy.get_distribution
    with pytest.raises(ValueError, match="MlpLstmPolicy overrides get_distribution"):
        model.learn(1)
