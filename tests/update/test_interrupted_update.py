"""An update that does not end, for whatever reason, has not begun."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from torch.optim.swa_utils import AveragedModel

from sb3_reinforce import REINFORCE, MlpPolicy

NOBODY = float("inf")


class Alarm:
    """Raises at the k-th call from when it is set."""

    def __init__(self):
        self.calls_left = NOBODY

    def set(self, at, error):
        self.calls_left, self.error = at, error

    def __call__(self):
        self.calls_left -= 1
        if self.calls_left == 0:
            raise self.error


class InterruptedAdam(th.optim.Adam):
    alarm = Alarm()

    def step(self, closure=None):
        super().step(closure)
        self.alarm()


class InterruptedPolicy(MlpPolicy):
    alarm = Alarm()

    def _get_action_dist_from_latent(self, latent_pi):
        self.alarm()
        return super()._get_action_dist_from_latent(latent_pi)


def make_model(policy=MlpPolicy, **kwargs):
    env = make_vec_env("CartPole-v1", 2, seed=0)
    arguments = {"n_steps": 30, "critic_epochs": 3, "policy_averaging": 0.7, "seed": 0, "device": "cpu", **kwargs}
    return REINFORCE(policy, env, policy_kwargs={"optimizer_class": InterruptedAdam, "net_arch": [8]}, **arguments)


def tensors_of(state):
    if isinstance(state, th.Tensor):
        return [state.detach().clone().flatten().double()]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for part in parts for tensor in tensors_of(part)]


def learned(model):
    states = (part.state_dict() for part in (model.policy, model.policy.optimizer, model.averaged_policy))
    learning_rates = [group["lr"] for group in model.policy.optimizer.param_groups]
    return np.concatenate([*tensors_of(list(states)), learning_rates, [model._n_updates]])


#: Distributions in an update: of the gradient, two of the divergence (old, new) for F, and those of the steps that are tried
LINE_SEARCH, SECOND_EPOCH = 4, 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=repr)
@pytest.mark.parametrize("moment", ["policy step", "second epoch of the critic", "line search", "average"])
def test_whatever_is_raised_everything_is_as_before_and_goes_on(moment, error, monkeypatch):
    natural = {"natural_gradient": True} if moment == "line search" else {}
    policy = InterruptedPolicy if moment == "line search" else MlpPolicy
    model, undisturbed = (make_model(policy, critic_learning_rate=1e-3, **natural) for _ in range(2))
    for each in (model, undisturbed):
        # A policy that overrides a method draws from PyTorch's generator
        each.set_random_seed(5)
        each.learn(60)
        each.collect_rollouts(each.env, *_without_callback(each))
    before = learned(model)
    moments = {
        "policy step": (InterruptedAdam.alarm, 1),
        "second epoch of the critic": (InterruptedAdam.alarm, SECOND_EPOCH),
        "line search": (InterruptedPolicy.alarm, LINE_SEARCH),
    }
    if moment == "average":
        update = AveragedModel.update_parameters
        monkeypatch.setattr(AveragedModel, "update_parameters", lambda *args: (update(*args), _raise(error)))
    else:
        alarm, at = moments[moment]
        alarm.set(at, error)
    with pytest.raises(type(error)):
        model.train()
    monkeypatch.undo()
    np.testing.assert_array_equal(learned(model), before)
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    for each in (model, undisturbed):
        each.train()
    np.testing.assert_array_equal(learned(model), learned(undisturbed))
    assert not np.array_equal(learned(model), before)


def _raise(error):
    raise error


def _without_callback(model):
    callback = model._init_callback(None)
    return callback, model.rollout_buffer, model.n_steps
