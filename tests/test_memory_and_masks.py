"""Recurrent policies with masks, in environments that need both."""

import copy

import numpy as np
import pytest
import torch as th
from helpers import CueEnv, GradientRecorder, enumerate_cue_paths, gradients_of_paths
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger

from sb3_reinforce import REINFORCE
from sb3_reinforce.envs.t_maze import TMazeEnv
from sb3_reinforce.policies.recurrent import MlpLstmPolicy
from sb3_reinforce.rollout import make_action_sampler
from sb3_reinforce.rollout.action_masks import ActionMaskInObservation
from sb3_reinforce.rollout.recurrent_samplers import NumpyLstmActor, RecurrentDistributionSampler
from sb3_reinforce.rollout.samplers import ParameterSampler

GAMMA = 0.9
SMALL = {"lstm_hidden_size": 5, "net_arch": [4], "ortho_init": False}


def make_model(in_observation, n_envs=1, **kwargs):
    env = make_vec_env((lambda: ActionMaskInObservation(CueEnv())) if in_observation else CueEnv, n_envs, seed=0)
    name = "MultiInputLstmPolicy" if in_observation else "MlpLstmPolicy"
    policy_kwargs = {**SMALL, **kwargs.pop("policy_kwargs", {})}
    model = REINFORCE(name, env, use_masking=True, gamma=GAMMA, seed=0, device="cpu", policy_kwargs=policy_kwargs, **kwargs)
    model.set_logger(Logger(None, []))
    return model


def log_probs_of(policy, observations, masks):
    """In float64, one step after the other, as a function of the policy's parameters."""
    state, results = None, []
    for observation, mask in zip(observations, masks, strict=True):
        output, state = policy.lstm_actor(th.as_tensor(observation, dtype=th.float64)[None, None], state)
        logits = policy.action_net(policy.mlp_extractor.forward_actor(output[0]))[0]
        allowed = th.as_tensor(np.asarray(mask, dtype=bool))
        results.append(th.log_softmax(logits.masked_fill(~allowed, -th.inf), dim=-1))
    return results


@pytest.mark.parametrize("in_observation", [True, False])
@pytest.mark.parametrize("switches", [{"baseline": None}, {"baseline": "value", "micro_batch_size": 2}], ids=str)
@pytest.mark.filterwarnings("ignore:A recurrent policy is evaluated on whole episodes")
def test_the_expected_gradient_is_the_analytic_one(in_observation, switches):
    exact_kwargs = {"loss_reduction": "episode", "discounted_weighting": True, "max_grad_norm": float("inf"), "n_steps": 100}
    model = make_model(in_observation, policy_kwargs={"optimizer_class": GradientRecorder}, **exact_kwargs, **switches)
    exact_policy = copy.deepcopy(model.policy).double()

    def probabilities(seen, mask):
        masks = [*CueEnv.MASKS[: len(seen) - 1], mask]
        return log_probs_of(exact_policy, seen, masks)[-1].exp().detach().numpy()

    paths = enumerate_cue_paths(probabilities)
    assert sum(path.probability for path in paths) == pytest.approx(1.0)
    objective = th.zeros((), dtype=th.float64)
    expected: dict[str, np.ndarray] = {}
    for path in paths:
        steps = zip(log_probs_of(exact_policy, path.observations, path.masks), path.actions, strict=True)
        log_prob = sum(log_probs[action] for log_probs, action in steps)
        discounted = float(np.sum(np.array(path.rewards) * GAMMA ** np.arange(len(path.rewards))))
        objective = objective + path.probability * th.exp(log_prob - log_prob.detach()) * discounted
        for name, gradient in gradients_of_paths(model, [path]).items():
            expected[name] = expected.get(name, 0.0) + path.probability * gradient

    parameters = dict(exact_policy.named_parameters())
    exact = dict(zip(expected, th.autograd.grad(objective, [parameters[name] for name in expected]), strict=True))
    assert any(name.startswith("lstm_actor.weight_hh") for name in expected)
    for name, gradient in exact.items():
        np.testing.assert_allclose(expected[name], gradient, rtol=0, atol=1e-6, err_msg=name)
        assert name != "action_net.bias" or gradient.abs().max() > 0.01


class OwnDistribution(MlpLstmPolicy):
    """Its distribution is not known to be a standard one, so that it is asked for its actions."""

    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(latent_pi)


@pytest.mark.parametrize("policy_class", [MlpLstmPolicy, OwnDistribution])
def test_draws_remember_and_keep_to_the_masks(policy_class):
    n_samples = 4_000
    env = CueEnv()
    policy = policy_class(env.observation_space, env.action_space, lambda _: 1e-3, **SMALL)
    policy.set_training_mode(False)
    th.manual_seed(0)
    sample = make_action_sampler(policy, n_samples, np.random.default_rng(0))
    assert isinstance(sample, ParameterSampler if policy_class is MlpLstmPolicy else RecurrentDistributionSampler)
    observations = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    expected = log_probs_of(copy.deepcopy(policy).double(), observations, CueEnv.MASKS[:3])
    for observation, mask, log_probs in zip(observations, CueEnv.MASKS[:3], expected, strict=True):
        rows = np.tile(observation, (n_samples, 1)), np.tile(mask.astype(bool), (n_samples, 1))
        share = np.bincount(sample(*rows), minlength=3) / n_samples
        np.testing.assert_allclose(share, log_probs.exp().detach().numpy(), atol=2.5 / np.sqrt(n_samples))
        assert (share[mask == 0] == 0.0).all()


@pytest.mark.parametrize("in_observation", [True, False])
def test_predict_takes_state_and_masks(in_observation):
    model = make_model(in_observation, n_envs=2, n_steps=10, policy_averaging=0.5)
    model.learn(40)
    actor = NumpyLstmActor(model.averaged_policy, 2)
    rng = np.random.default_rng(0)
    state = None
    for step in range(20):
        places = rng.normal(size=(2, 2)).astype(np.float32)
        masks = rng.permuted(np.tile([True, True, False], (2, 1)), axis=1)
        episode_start = rng.random(2) < 0.2
        actor.reset_states(episode_start)
        observations = {"observation": places, "action_mask": masks.astype(np.int8)} if in_observation else places
        given = None if in_observation and step % 2 else masks
        actions, state = model.predict(observations, state, episode_start, deterministic=True, action_masks=given)
        logits = actor({"observation": places} if in_observation else places)
        np.testing.assert_array_equal(actions, np.where(masks, logits, -np.inf).argmax(axis=1))
        assert [part.shape for part in state] == [(1, 2, 5), (1, 2, 5)]


@pytest.mark.parametrize(("name", "solved"), [("MultiInputLstmPolicy", True), ("MultiInputPolicy", False)])
def test_only_memory_solves_a_masked_t_maze(name, solved):
    """What is forbidden ends the episode with -1, so that masks are needed too."""
    env = make_vec_env(lambda: TMazeEnv(length=2, masks="observation"), 16, seed=0)
    step = {"natural_gradient": True, "target_kl": 0.1, "normalize_advantage": True, "n_steps": 16}
    policy_kwargs = {"net_arch": [16], **({"lstm_hidden_size": 16} if solved else {})}
    model = REINFORCE(name, env, use_masking=True, seed=0, device="cpu", policy_kwargs=policy_kwargs, **step)
    model.learn(10_000)
    score, _ = evaluate_policy(model, env, 100)
    assert (score == 1.0) if solved else (abs(score) < 0.3)
