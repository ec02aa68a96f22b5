"""REINFORCE, the Monte Carlo policy gradient, for Stable-Baselines3."""

import sb3_reinforce.envs  # noqa: F401 (registers the environments)
from sb3_reinforce.policies.actor_critic import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_reinforce.reinforce import REINFORCE

__version__ = "0.1.0"
__all__ = ["REINFORCE", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "__version__"]
