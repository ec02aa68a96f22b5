"""
What the pages in docs/lectures/ show and cannot enumerate: small trainings, a few seeds each.

Scores in worlds are exact: the policy that was learned is put into the world's own formula. The others are means over 100
episodes, minus their standard deviation where a course asks for that. A row that is there is not made again.

    python benchmarks/lectures.py
    python benchmarks/lectures.py corridor copter --seeds 0 1
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch as th
from common import make_parser, markdown_table, merge_rows, positive_int, provenance, provenance_line, read_json, write_results
from contenders import use_one_thread
from gymnasium.wrappers import AddRenderObservation, ResizeObservation
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.envs import aliased_gridworld, rock_paper_scissors
from sb3_reinforce.lab import clone, demonstrate
from sb3_reinforce.zoo.cli import main as run_command

NAME = "lectures"
CORRIDOR = "sb3_reinforce/AliasedGridworld-v0"
COPTER = "sb3_reinforce/PixelCopter-v0"
N_ENVS = 8
N_EPISODES = 100
#: Added to a seed for the evaluation, so that the episodes are not those of the training.
EVALUATION_SEED = 10_000
CORRIDOR_SETTINGS: dict[str, Any] = {"n_steps": 32, "learning_rate": "lin_0.01", "baseline": "leave_one_out"}
DICE_SETTINGS: dict[str, Any] = {"n_steps": 40, "learning_rate": "lin_0.003", "gamma": 1.0, "baseline": "time_step"}
#: The course's network, step size and whitening: one episode, one update.
COURSE_SETTINGS: dict[str, Any] = {
    "n_episodes": 1,
    "gamma": 1.0,
    "baseline": None,
    "normalize_advantage": True,
    "loss_reduction": "episode",
    "learning_rate": 0.01,
    "policy_kwargs": {"net_arch": [16], "activation_fn": th.nn.ReLU},
}
COPTER_SETTINGS: dict[str, Any] = {
    "n_steps": 256,
    "natural_gradient": True,
    "normalize_advantage": True,
    "critic_epochs": 5,
    "policy_averaging": 0.9,
}
#: Its defaults are made for millions of steps.
DQN_SETTINGS: dict[str, Any] = {
    "learning_rate": 0.001,
    "learning_starts": 1_000,
    "target_update_interval": 250,
    "exploration_fraction": 0.5,
}
EXPERT_STEPS = 100_000

Scores = dict[str, float]


class Job(NamedTuple):
    """
    A row of a table.

    :param setting: Its name.
    :param n_timesteps: Of the training.
    :param run: Takes seed and steps.
    """

    setting: str
    n_timesteps: int
    run: Callable[[int, int], Scores]


def action_probabilities(model: BaseAlgorithm, observations: npt.NDArray[np.float32], deterministic: bool) -> npt.NDArray[Any]:
    """What a model does in each of some observations, shape ``(n_observations, n_actions)``."""
    if deterministic:
        actions, _ = model.predict(observations, deterministic=True)
        return np.eye(model.action_space.n)[actions]
    with th.no_grad():
        return model.policy.get_distribution(th.as_tensor(observations)).distribution.probs.double().numpy()


def corridor(make: Callable[[VecEnv, int], BaseAlgorithm]) -> Callable[[int, int], Scores]:
    def run(seed: int, n_timesteps: int) -> Scores:
        model = make(make_vec_env(CORRIDOR, N_ENVS, seed=seed), seed).learn(n_timesteps)
        scores = {}
        if isinstance(model, REINFORCE):
            probabilities = action_probabilities(model, aliased_gridworld.OBSERVATIONS, deterministic=False)
            scores["sampled"] = aliased_gridworld.expected_return(probabilities)
        likeliest = action_probabilities(model, aliased_gridworld.OBSERVATIONS, deterministic=True)
        return {**scores, "likeliest action": aliased_gridworld.expected_return(likeliest)}

    return run


def corridor_reinforce(ent_coef: float | str) -> Callable[[int, int], Scores]:
    return corridor(lambda env, seed: REINFORCE("MlpPolicy", env, seed=seed, ent_coef=ent_coef, **CORRIDOR_SETTINGS))


def dice(seed: int, n_timesteps: int) -> Scores:
    env = make_vec_env("sb3_reinforce/RockPaperScissors-v0", N_ENVS, seed=seed)
    model = REINFORCE("MlpPolicy", env, seed=seed, ent_coef=0.01, **DICE_SETTINGS).learn(n_timesteps)
    one = np.ones((1, 1), dtype=np.float32)
    sampled, likeliest = (action_probabilities(model, one, deterministic)[0] for deterministic in (False, True))
    return {
        "sampled": rock_paper_scissors.expected_return(sampled),
        "likeliest action": rock_paper_scissors.expected_return(likeliest),
    }


def score(model: BaseAlgorithm, env: VecEnv, seed: int) -> Scores:
    """Mean, deviation and the difference of the two, with sampled actions and with the likeliest ones."""
    scores = {}
    for name, deterministic in (("sampled", False), ("likeliest action", True)):
        set_random_seed(seed)
        env.seed(EVALUATION_SEED + seed)
        returns, _ = evaluate_policy(model, env, N_EPISODES, deterministic, return_episode_rewards=True)
        scores[f"{name}: mean"] = float(np.mean(returns))
        scores[f"{name}: mean - deviation"] = float(np.mean(returns) - np.std(returns))
    return scores


def cartpole(n_envs: int, **settings: Any) -> Callable[[int, int], Scores]:
    def run(seed: int, n_timesteps: int) -> Scores:
        model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", n_envs, seed=seed), seed=seed, **settings)
        return score(model.learn(n_timesteps), make_vec_env("CartPole-v1", N_ENVS), seed)

    return run


def copter(seed: int, n_timesteps: int) -> Scores:
    env = VecNormalize(make_vec_env(COPTER, N_ENVS, seed=seed), norm_reward=False)
    model = REINFORCE("MlpPolicy", env, seed=seed, **COPTER_SETTINGS).learn(n_timesteps)
    env.training = False
    return score(model, env, seed)


def see(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Let the agent see what is drawn, 40 by 100 pixels, instead of the walls around it."""
    return ResizeObservation(AddRenderObservation(env, render_only=True), (40, 100))


def image(seed: int, n_timesteps: int) -> Scores:
    env_kwargs = {"render_mode": "rgb_array"}
    env, other = (make_vec_env(CORRIDOR, 4, seed, env_kwargs=env_kwargs, wrapper_class=see) for _ in range(2))
    settings = {"n_steps": 64, "learning_rate": 0.001, "baseline": "leave_one_out", "ent_coef": "lin_0.02"}
    model = REINFORCE("CnnPolicy", env, seed=seed, micro_batch_size=256, **settings).learn(n_timesteps)
    scores = score(model, other, seed)
    return {name: scores[f"{name}: mean"] for name in ("sampled", "likeliest action")}


def cloning(n_steps: int) -> Callable[[int, int], Scores]:
    def run(seed: int, n_timesteps: int) -> Scores:
        expert = REINFORCE("MlpPolicy", "CartPole-v1", seed=seed).learn(n_timesteps)
        shown = demonstrate(expert, make_vec_env("CartPole-v1", 1), n_episodes=1, seed=seed)
        pupil = REINFORCE("MlpPolicy", "CartPole-v1", seed=seed)
        fit = clone(pupil, shown.observations[:n_steps], shown.actions[:n_steps], seed=seed)
        scores = score(pupil, make_vec_env("CartPole-v1", N_ENVS), seed)
        return {
            "expert": float(shown.returns.mean()),
            "held-out log-probability": fit.log_probs[fit.best_epoch],
            "pupil": scores["likeliest action: mean"],
            "pupil: mean - deviation": scores["likeliest action: mean - deviation"],
        }

    return run


@cache
def comparison(n_timesteps: int) -> pd.DataFrame:
    """Run the command of the page on imitation. Its seconds are left out: they say something on a quiet machine only."""
    folder = Path("logs", NAME, f"compare_{n_timesteps}")
    words = "compare --env CartPole-v1 --algos reinforce dqn ars --seeds 3 --n-evaluations 4".split()
    if run_command([*words, "-n", str(n_timesteps), "-f", str(folder)]) != 0:
        sys.exit(1)
    return pd.read_csv(folder / "results.csv")


def compared(algo: str) -> Callable[[int, int], Scores]:
    def run(seed: int, n_timesteps: int) -> Scores:
        if seed not in range(3):
            sys.exit(f"compare: the command has the seeds 0, 1 and 2, not {seed}")
        table = comparison(n_timesteps)
        row = table[(table["contender"] == algo) & (table["seed"] == seed)].iloc[0]
        return {"sampled": float(row["stochastic_score"]), "likeliest action": float(row["score"])}

    return run


TASKS = {
    "corridor": [
        Job("REINFORCE, no entropy bonus", 50_000, corridor_reinforce(0.0)),
        Job("REINFORCE, 0.02 throughout", 50_000, corridor_reinforce(0.02)),
        Job("REINFORCE, from 0.02 to 0", 50_000, corridor_reinforce("lin_0.02")),
        Job("REINFORCE, 0.5 throughout", 50_000, corridor_reinforce(0.5)),
        Job("REINFORCE, from 0.5 to 0", 50_000, corridor_reinforce("lin_0.5")),
        Job("DQN", 20_000, corridor(lambda env, seed: DQN("MlpPolicy", env, seed=seed, **DQN_SETTINGS))),
    ],
    "dice": [Job("REINFORCE", 50_000, dice)],
    "cartpole": [
        Job("the class's defaults", 100_000, cartpole(1)),
        Job("as in the course", 100_000, cartpole(1, **COURSE_SETTINGS)),
        Job("as in the course, 8 episodes", 100_000, cartpole(8, **{**COURSE_SETTINGS, "n_episodes": 8})),
    ],
    "copter": [Job("REINFORCE", 1_000_000, copter)],
    "image": [Job("REINFORCE", 8_000, image)],
    "cloning": [Job(f"{n} steps of the expert", EXPERT_STEPS, cloning(n)) for n in (20, 50, 100, 500)],
    "compare": [Job(algo, 20_000, compared(algo)) for algo in ("reinforce", "dqn", "ars")],
}


def make_markdown(task: str, rows: list[dict[str, Any]]) -> str:
    lines: list[dict[str, Any]] = []
    for setting, n_timesteps in dict.fromkeys((row["setting"], row["n_timesteps"]) for row in rows):
        own = [row for row in rows if (row["setting"], row["n_timesteps"]) == (setting, n_timesteps)]
        line = {"setting": setting, "steps": f"{n_timesteps:,}", "seeds": len(own)}
        for name in dict.fromkeys(name for row in rows for name in row["scores"]):
            values = [row["scores"][name] for row in own if name in row["scores"]]
            line[name] = f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]" if values else ""
        lines.append(line)
    # The first row of each code: the others differ in the load of the machine
    sources = {row["provenance"]["code_hash"]: provenance_line(row["provenance"]) for row in reversed(rows)}
    parts = [f"# {task}", "Mean over the seeds, worst and best.", markdown_table(lines), *sources.values()]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("tasks", nargs="*", default=[], help=f"tables to make: {', '.join(TASKS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a training for each")
    parser.add_argument("--n-timesteps", type=positive_int, default=None, help="of each training; by default the task's own")
    options = parser.parse_args(arguments)
    for task in options.tasks:
        if task not in TASKS:
            parser.error(f"there is no {task!r}, choose from {', '.join(TASKS)}")
    use_one_thread()
    for task in options.tasks or TASKS:
        rows = read_json(options.results_dir / NAME / f"{task}.json").get("rows", [])
        for seed in options.seeds:
            for setting, own_timesteps, run in TASKS[task]:
                n_timesteps = options.n_timesteps or own_timesteps
                key = {"setting": setting, "seed": seed, "n_timesteps": n_timesteps}
                if any(key.items() <= row.items() for row in rows):
                    continue
                made_by = provenance(NAME, arguments, options.seeds)
                row = {**key, "scores": run(seed, n_timesteps), "provenance": made_by}
                rows = merge_rows(rows, row, list(key))
                write_results(options.results_dir / NAME, task, {"rows": rows}, make_markdown(task, rows))
                print(task, setting, seed, row["scores"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
