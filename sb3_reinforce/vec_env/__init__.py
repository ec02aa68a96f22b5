"""Adapters that turn faster engines into an SB3 ``VecEnv``: EnvPool and gymnasium's vector environments."""

from sb3_reinforce.vec_env.envpool_vec_env import EnvPoolVecEnv, make_envpool_vec_env
from sb3_reinforce.vec_env.gymnasium_vec_env import GymnasiumVecEnv, make_gymnasium_vec_env

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv", "make_envpool_vec_env", "make_gymnasium_vec_env"]
