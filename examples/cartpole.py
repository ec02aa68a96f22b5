"""Train REINFORCE on CartPole-v1, evaluate it, and print the path of the model: ``make train``."""

import pathlib
import time

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import REINFORCE


def main() -> None:
    """Train, evaluate and save under a new name."""
    # A network this small is faster on one thread
    th.set_num_threads(1)
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=0).learn(100_000, progress_bar=True)
    mean_return, std_return = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1), n_eval_episodes=20)
    path = pathlib.Path("models") / f"cartpole_{time.strftime('%Y-%m-%d_%H-%M-%S')}.zip"
    path.parent.mkdir(exist_ok=True)
    model.save(path)
    print(f"Mean return over 20 deterministic episodes: {mean_return:.1f} +/- {std_return:.1f} (500 is the maximum)")
    print(f"The model is in {path}")


if __name__ == "__main__":
    main()
