"""Small gymnasium environments with known answers, registered on import."""

import gymnasium as gym

from sb3_reinforce.envs import aliased_gridworld, pixel_copter
from sb3_reinforce.envs.aliased_gridworld import AliasedGridworldEnv
from sb3_reinforce.envs.diamond_hill import DiamondHillEnv
from sb3_reinforce.envs.pixel_copter import PixelCopterEnv
from sb3_reinforce.envs.rock_paper_scissors import RockPaperScissorsEnv
from sb3_reinforce.envs.t_maze import TMazeEnv
from sb3_reinforce.envs.travelling_salesman import TravellingSalesmanEnv

gym.register(id="sb3_reinforce/DiamondHill-v0", entry_point="sb3_reinforce.envs.diamond_hill:DiamondHillEnv")
gym.register(
    id="sb3_reinforce/AliasedGridworld-v0",
    entry_point="sb3_reinforce.envs.aliased_gridworld:AliasedGridworldEnv",
    max_episode_steps=aliased_gridworld.TIME_LIMIT,
)
gym.register(
    id="sb3_reinforce/RockPaperScissors-v0", entry_point="sb3_reinforce.envs.rock_paper_scissors:RockPaperScissorsEnv"
)
gym.register(id="sb3_reinforce/TMaze-v0", entry_point="sb3_reinforce.envs.t_maze:TMazeEnv")
# Variants with entries of their own in RL Zoo's hyperparameters
gym.register(id="sb3_reinforce/TMaze50-v0", entry_point="sb3_reinforce.envs.t_maze:TMazeEnv", kwargs={"length": 50})
gym.register(
    id="sb3_reinforce/TMazeMasked-v0", entry_point="sb3_reinforce.envs.t_maze:TMazeEnv", kwargs={"masks": "observation"}
)
gym.register(
    id="sb3_reinforce/PixelCopter-v0",
    entry_point="sb3_reinforce.envs.pixel_copter:PixelCopterEnv",
    max_episode_steps=pixel_copter.TIME_LIMIT,
)
gym.register(
    id="sb3_reinforce/TravellingSalesman-v0", entry_point="sb3_reinforce.envs.travelling_salesman:TravellingSalesmanEnv"
)

__all__ = [
    "AliasedGridworldEnv",
    "DiamondHillEnv",
    "PixelCopterEnv",
    "RockPaperScissorsEnv",
    "TMazeEnv",
    "TravellingSalesmanEnv",
]
