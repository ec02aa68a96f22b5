"""
The parameters after a few updates are those that the first version had.

``python tests/test_recorded.py`` records them anew, which is right only where results are meant to change.
"""

import pathlib
import sys
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnvMultiBinary
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_reinforce import REINFORCE

RECORD = pathlib.Path(__file__).parent / "data" / "recorded_parameters.npz"


class DictWorld(gym.Env):
    """A dict observation and a MultiDiscrete action; the reward says how well the one fits the other."""

    observation_space = spaces.Dict({"place": spaces.Box(-1.0, 1.0, (3,), np.float32), "kind": spaces.Discrete(4)})
    action_space = spaces.MultiDiscrete([3, 4])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        reward = float(action[0] == self.place.argmax()) + float(action[1] == self.kind)
        self.time += 1
        return self._look(), reward, bool(self.np_random.random() < 0.1), self.time == 15, {}

    def _look(self) -> dict[str, Any]:
        self.place = self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)
        self.kind = int(self.np_random.integers(4))
        return {"place": self.place, "kind": self.kind}


class Case(NamedTuple):
    policy: str
    make_env: Any
    n_envs: int
    kwargs: dict[str, Any]


CASES = {
    "defaults": Case("MlpPolicy", "CartPole-v1", 1, {}),
    "eight environments": Case("MlpPolicy", "CartPole-v1", 8, {"n_steps": 16, "normalize_advantage": True, "ent_coef": 0.01}),
    "time step": Case("MlpPolicy", "CartPole-v1", 4, {"n_episodes": 6, "baseline": "time_step", "loss_reduction": "episode"}),
    "whole return": Case("MlpPolicy", "CartPole-v1", 2, {"n_episodes": 5, "return_type": "episode", "baseline": "mean"}),
    "entropy in return": Case(
        "MlpPolicy", "CartPole-v1", 2, {"entropy_in_return": True, "ent_coef": "lin_0.05", "baseline": "leave_one_out"}
    ),
    "no baseline": Case("MlpPolicy", "CartPole-v1", 2, {"baseline": None, "discounted_weighting": True, "gamma": 0.9}),
    "micro-batches": Case(
        "MlpPolicy", "CartPole-v1", 2, {"micro_batch_size": 50, "critic_batch_size": 64, "critic_epochs": 3}
    ),
    "Gaussian, time limit": Case("MlpPolicy", "Pendulum-v1", 4, {"n_steps": 32, "gamma": 0.95, "critic_learning_rate": 1e-3}),
    "lambda": Case("MlpPolicy", "Pendulum-v1", 2, {"gae_lambda": 0.9}),
    "gSDE": Case("MlpPolicy", "Pendulum-v1", 2, {"use_sde": True, "sde_sample_freq": 8}),
    "bound": Case("MlpPolicy", "Pendulum-v1", 2, {"max_rollout_steps": 60}),
    "dict": Case("MultiInputPolicy", DictWorld, 3, {"n_steps": 30}),
    "bits": Case("MlpPolicy", lambda: gym.wrappers.FlattenObservation(IdentityEnvMultiBinary(3, ep_length=10)), 2, {}),
}


def trained(case: Case) -> np.ndarray:
    env: VecEnv = make_vec_env(case.make_env, case.n_envs, seed=0)
    if case.make_env == "Pendulum-v1":
        env = VecNormalize(env)
    # The defaults at the time of the record
    kwargs = {"critic_epochs": 2, **case.kwargs}
    model = REINFORCE(case.policy, env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **kwargs)
    model.learn(3 * 200 * case.n_envs)
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().numpy()


@pytest.mark.filterwarnings("ignore:A rollout reached max_rollout_steps")
@pytest.mark.parametrize("name", CASES)
def test_parameters_are_those_that_were_recorded(name):
    # Processors round differently, by far less than a changed line would
    np.testing.assert_allclose(trained(CASES[name]), np.load(RECORD)[name], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    results = {name: trained(case) for name, case in CASES.items()}
    if "--compare" in sys.argv:
        recorded = np.load(RECORD)
        print({name: bool(np.array_equal(results[name], recorded[name])) for name in CASES})
    else:
        RECORD.parent.mkdir(exist_ok=True)
        np.savez_compressed(RECORD, **results)
