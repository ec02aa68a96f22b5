"""
REINFORCE with masks beside sb3-contrib's MaskablePPO: scores at equal steps, and steps per second.

Both see the same observations and the same masks of the same environments, Taxi-v4 in gymnasium and the others in EnvPool.
REINFORCE has its entry in hyperparams/reinforce.yml, or the entry `default`. MaskablePPO has its defaults, which are RL
Zoo's, with its 2,048 steps of a rollout spread over the environments. They run in turn for each seed in one process. The
clock stands still while a policy is evaluated, with its likeliest actions. A finished run of the same code and settings
never runs again: interrupt and start again at will.

    python benchmarks/masks.py
    python benchmarks/masks.py --env Jumanji/Game2048-v1 --seeds 0 1 2
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from common import (
    COLOURS,
    HYPERPARAMETERS,
    code_hash,
    make_parser,
    markdown_table,
    positive_int,
    provenance,
    provenance_line,
    read_json,
    write_results,
)
from contenders import use_one_thread
from sb3_contrib import MaskablePPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from tqdm import tqdm

from sb3_reinforce import REINFORCE
from sb3_reinforce.masking import ActionMaskInObservation, split_observation, unmasked_space
from sb3_reinforce.reinforce import make_schedule
from sb3_reinforce.vec_env import make_envpool_vec_env

NAME = "masks"
CONTENDERS = ("reinforce", "maskable_ppo")
TITLES = {"reinforce": "REINFORCE", "maskable_ppo": "MaskablePPO"}
#: Environments of gymnasium, which get the wrapper; all others are EnvPool's.
GYMNASIUM = ("Taxi-v4",)
#: Steps of a rollout of MaskablePPO over all environments.
PPO_ROLLOUT = 2048
#: What RL Zoo takes out of an entry for itself, or what is chosen here.
OTHER_KEYS = ("policy", "n_timesteps", "n_envs", "env_wrapper", "use_masking")
#: Added to a seed for its evaluation, so that the episodes are not those of the training.
EVALUATION_SEED = 10_000


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--env", nargs="+", default=["Taxi-v4", "Jumanji/Snake-v1"], help="environments with masks")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="seeds, each for both")
    parser.add_argument("--steps", type=positive_int, default=500_000, help="environment steps of each training")
    parser.add_argument("--n-envs", type=positive_int, default=8, help="number of environments")
    parser.add_argument("--evaluations", type=positive_int, default=20, help="evaluations during each training")
    parser.add_argument("--episodes", type=positive_int, default=20, help="episodes of each of these")
    parser.add_argument("--final-episodes", type=positive_int, default=100, help="episodes of the score at the end")
    return parser.parse_args(arguments)


def make_venv(env_id: str, n_envs: int, seed: int) -> VecEnv:
    if env_id in GYMNASIUM:
        return make_vec_env(env_id, n_envs, seed, wrapper_class=ActionMaskInObservation)
    return make_envpool_vec_env(env_id, n_envs, seed)


class MaskMethod(VecEnvWrapper):
    """Takes the masks out of the observations, and hands them out as sb3-contrib asks for them."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, observation_space=unmasked_space(venv.observation_space, venv.action_space))

    def reset(self) -> Any:
        """Start episodes."""
        return self._keep(self.venv.reset())

    def step_wait(self) -> Any:
        """Step every environment."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"], _ = split_observation(info["terminal_observation"])
        return self._keep(observations), rewards, dones, infos

    def _keep(self, observations: Any) -> Any:
        rest, masks = split_observation(observations)
        self.masks = masks.reshape(self.num_envs, -1).astype(bool)
        return rest

    def has_attr(self, attr_name: str) -> bool:
        """Say that there are masks, as sb3-contrib asks."""
        return attr_name == "action_masks" or super().has_attr(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Hand out the masks, or ask the environments."""
        if method_name == "action_masks":
            return list(self.masks)
        return super().env_method(method_name, *args, indices=indices, **kwargs)


class WithMasks:
    """A MaskablePPO that finds its masks in the observation, as `evaluate_policy` needs it."""

    def __init__(self, model: MaskablePPO) -> None:
        self.model = model

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        """Act as SB3's models do."""
        rest, masks = split_observation(observation)
        masks = masks.reshape(len(masks), -1)
        return self.model.predict(rest, state, episode_start, deterministic, action_masks=masks)


def make_model(contender: str, env_id: str, n_envs: int, seed: int) -> BaseAlgorithm:
    venv = make_venv(env_id, n_envs, seed)
    if contender == "maskable_ppo":
        n_steps = max(PPO_ROLLOUT // n_envs, 1)
        return MaskablePPO("MultiInputPolicy", MaskMethod(venv), n_steps=n_steps, seed=seed, device="cpu")
    entries = yaml.safe_load(HYPERPARAMETERS.read_text())
    entry = entries.get(env_id, entries["default"])
    kwargs = {key: value for key, value in entry.items() if key not in OTHER_KEYS}
    kwargs["learning_rate"] = make_schedule(kwargs["learning_rate"], "learning_rate")
    return REINFORCE("MultiInputPolicy", venv, use_masking=True, seed=seed, device="cpu", **kwargs)


class Evaluation(BaseCallback):
    """Evaluates the policy at equal distances, between two rollouts, and keeps the seconds that this took."""

    def __init__(self, venv: VecEnv, n_episodes: int, distance: float) -> None:
        super().__init__()
        self.venv, self.n_episodes, self.distance = venv, n_episodes, distance
        self.seconds = 0.0
        #: Steps and mean score
        self.curve: list[tuple[int, float]] = []

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= len(self.curve) * self.distance:
            start = time.perf_counter()
            self.curve.append((self.num_timesteps, float(np.mean(self.score(self.n_episodes)))))
            self.seconds += time.perf_counter() - start

    def _on_step(self) -> bool:
        return True

    def score(self, n_episodes: int) -> list[float]:
        """Score episodes with the likeliest actions."""
        policy: Any = WithMasks(self.model) if isinstance(self.model, MaskablePPO) else self.model
        scores, _ = evaluate_policy(policy, self.venv, n_episodes, return_episode_rewards=True)
        return [float(score) for score in scores]


def run(options: argparse.Namespace, env_id: str, contender: str, seed: int) -> dict[str, Any]:
    model = make_model(contender, env_id, options.n_envs, seed)
    evaluation_venv = make_venv(env_id, options.n_envs, EVALUATION_SEED + seed)
    evaluation = Evaluation(evaluation_venv, options.episodes, options.steps / options.evaluations)
    start = time.perf_counter()
    model.learn(options.steps, callback=evaluation)
    seconds = time.perf_counter() - start - evaluation.seconds
    scores = evaluation.score(options.final_episodes)
    model.get_env().close()  # type: ignore[union-attr]
    evaluation_venv.close()
    return {
        "env": env_id,
        "contender": contender,
        "seed": seed,
        "steps": model.num_timesteps,
        "seconds": seconds,
        "score": float(np.mean(scores)),
        "curve": evaluation.curve,
    }


def draw(content: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    env_ids = list(dict.fromkeys(run["env"] for run in content["runs"]))
    figure = Figure(figsize=(5 * len(env_ids), 4), layout="constrained")
    for panel, env_id in zip(np.atleast_1d(figure.subplots(1, len(env_ids))), env_ids, strict=True):
        for contender, colour in zip(CONTENDERS, (COLOURS["reinforce"], COLOURS["ppo"]), strict=True):
            runs = [run for run in content["runs"] if (run["env"], run["contender"]) == (env_id, contender)]
            for number, one in enumerate(runs):
                steps, scores = zip(*one["curve"], strict=True)
                panel.plot(steps, scores, color=colour, alpha=0.6, label=None if number else TITLES[contender])
        panel.set_title(env_id)
        panel.set_xlabel("environment steps")
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean score, likeliest actions")
    figure.axes[0].legend()
    return figure


def to_markdown(content: dict[str, Any]) -> str:
    rows = []
    for env_id in dict.fromkeys(run["env"] for run in content["runs"]):
        for contender in CONTENDERS:
            runs = [run for run in content["runs"] if (run["env"], run["contender"]) == (env_id, contender)]
            if runs:
                scores = [run["score"] for run in runs]
                rows.append(
                    {
                        "environment": env_id,
                        "algorithm": TITLES[contender],
                        "seeds": len(runs),
                        "score": f"{np.mean(scores):.2f}",
                        "lowest and highest": f"{min(scores):.2f}, {max(scores):.2f}",
                        "steps/s": f"{np.median([run['steps'] / run['seconds'] for run in runs]):,.0f}",
                        "seconds": f"{np.median([run['seconds'] for run in runs]):.1f}",
                    }
                )
    settings = content["settings"]
    return (
        f"# With action masks\n\n{settings['steps']:,} steps of {settings['n_envs']} environments, then "
        f"{settings['final_episodes']} episodes with the likeliest actions; the last rollout is finished. Steps per second "
        "and seconds are medians over the seeds, without the evaluations.\n\n"
        f"{markdown_table(rows)}\n\n{provenance_line(content['provenance'])}\n"
    )


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    use_one_thread()
    settings = {name: getattr(options, name) for name in ("steps", "n_envs", "evaluations", "episodes", "final_episodes")}
    settings |= {"code_hash": code_hash(), "entries_hash": hashlib.sha256(HYPERPARAMETERS.read_bytes()).hexdigest()[:16]}
    earlier = read_json(options.results_dir / f"{NAME}.json")
    content = {"provenance": provenance(NAME, arguments, options.seeds), "settings": settings}
    content["runs"] = earlier["runs"] if earlier.get("settings") == settings else []
    finished = {(run["env"], run["contender"], run["seed"]) for run in content["runs"]}

    tasks = [(env_id, name, seed) for env_id in options.env for seed in options.seeds for name in CONTENDERS]
    for env_id, contender, seed in (progress := tqdm([task for task in tasks if task not in finished], unit="run")):
        progress.set_postfix_str(f"{TITLES[contender]} on {env_id}, seed {seed}")
        content["runs"].append(run(options, env_id, contender, seed))
        write_results(options.results_dir, NAME, content, to_markdown(content), draw(content))
    write_results(options.results_dir, NAME, content, to_markdown(content), draw(content))
    print(to_markdown(content))


if __name__ == "__main__":
    main(sys.argv[1:])
