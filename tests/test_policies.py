"""The policies by themselves: exported, saved, and loaded by SB3's own classes."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.distributions import Distribution

from sb3_reinforce import CnnPolicy, MlpPolicy, MultiInputPolicy

BOX = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"part": BOX})
DISCRETE = spaces.Discrete(3)
POLICIES = {"MlpPolicy": (MlpPolicy, BOX), "CnnPolicy": (CnnPolicy, IMAGE), "MultiInputPolicy": (MultiInputPolicy, DICT)}


def many(space, n):
    if isinstance(space, spaces.Dict):
        return {key: many(part, n) for key, part in space.items()}
    return np.stack([space.sample() for _ in range(n)])


class Acting(th.nn.Module):
    """SB3's recipe for an export."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, observation):
        return self.policy(observation, deterministic=True)


def export(module, observation):
    dynamic = {0: th.export.Dim.DYNAMIC}
    shapes = {name: dynamic for name in observation} if isinstance(observation, dict) else dynamic
    return th.export.export(module, (observation,), dynamic_shapes={"observation": shapes}).module()


def trace(module, observation):
    return th.jit.trace(module, (observation,), check_trace=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("make_export", [trace, export])
def test_an_exported_policy_without_a_critic_takes_any_number_of_observations(name, make_export, monkeypatch):
    # An export has no place for checks of PyTorch's distributions
    monkeypatch.setattr(Distribution, "_validate_args", False)
    policy_class, space = POLICIES[name]
    module = Acting(policy_class(space, DISCRETE, lambda _: 1e-3, use_critic=False).eval())
    two, five = (module.policy.obs_to_tensor(many(space, n))[0] for n in (2, 5))
    exported = make_export(module, two)
    for own, theirs in zip(module(five), exported(five), strict=True):
        assert own.shape == theirs.shape and th.allclose(own, theirs)
    assert exported(five)[1].shape == (5, 1)
