"""Small gymnasium environments with known answers, registered on import."""

import gymnasium as gym

from sb3_reinforce.envs.diamond_hill import DiamondHillEnv

gym.register(id="sb3_reinforce/DiamondHill-v0", entry_point="sb3_reinforce.envs.diamond_hill:DiamondHillEnv")

__all__ = ["DiamondHillEnv"]
