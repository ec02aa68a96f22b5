"""
Evaluate the final model of a run of RL Zoo, and write the scores of its episodes to evaluation.json in the log folder.

Actions are deterministic unless asked for otherwise, VecNormalize uses the statistics of the training without changing
them, and scores are those of the environment, not normalised.

    python benchmarks/evaluate_run.py --log-folder logs --env CartPole-v1
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch as th
from common import write_json
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import tqdm

from sb3_reinforce import REINFORCE

ALGO = "reinforce"
RESULT = "evaluation.json"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--log-folder", type=Path, required=True, help="folder that was given to train with -f; its latest run is taken"
    )
    parser.add_argument("--env", required=True, help="environment id")
    parser.add_argument("--episodes", type=int, default=100, help="number of episodes")
    parser.add_argument("--n-envs", type=int, default=10, help="environments that are stepped together")
    parser.add_argument("--seed", type=int, default=0, help="seed of the environments, and of sampled actions")
    parser.add_argument("--stochastic", action="store_true", help="sample the actions, where the best policy is a random one")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    th.set_num_threads(1)
    set_random_seed(options.seed)
    env_name = EnvironmentName(options.env)
    _, model_path, run_folder = get_model_path(0, str(options.log_folder), ALGO, env_name)
    hyperparameters, stats_path = get_saved_hyperparams(f"{run_folder}/{env_name}", norm_reward=False, test_mode=True)
    env = create_test_env(
        options.env,
        n_envs=options.n_envs,
        stats_path=stats_path,
        seed=options.seed,
        should_render=False,
        hyperparams=hyperparameters,
        env_kwargs=hyperparameters.get("env_kwargs"),
        vec_env_cls=DummyVecEnv,
    )
    model = REINFORCE.load(model_path, device="cpu")
    start = time.perf_counter()
    with tqdm(total=options.episodes, desc=options.env, unit="episode") as progress:
        scores, lengths = evaluate_policy(
            model,
            env,
            options.episodes,
            deterministic=not options.stochastic,
            return_episode_rewards=True,
            callback=lambda local, _: progress.update(int(local["episode_counts"].sum()) - progress.n),
        )
    seconds = time.perf_counter() - start
    result = {
        "scores": [float(score) for score in scores],
        "lengths": [int(length) for length in lengths],
        "trained_steps": model.num_timesteps,
        "evaluation_seconds": seconds,
    }
    write_json(options.log_folder / RESULT, result)
    print(f"{options.env}: {np.mean(scores):.1f} ± {np.std(scores):.1f} over {len(scores)} episodes")


if __name__ == "__main__":
    main(sys.argv[1:])
