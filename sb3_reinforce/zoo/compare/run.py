"""
One run of a comparison, in a separate process: train through RL Zoo, evaluate, and write ``result.json`` at the end.

The process reads its instructions from the first line of its standard input, and ends when that is closed.
"""

import contextlib
import copy
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import get_system_info, set_random_seed
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization, unwrap_vec_normalize

from sb3_reinforce.checkpoints import write_file
from sb3_reinforce.policies.masked_distribution import split_observation
from sb3_reinforce.rollout.action_masks import sample_valid_actions
from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.command_line import import_gym_packages
from sb3_reinforce.zoo.compare.plan import RANDOM, Settings, Task, make_manager, preprocess
from sb3_reinforce.zoo.compare.run_files import RESULT_FILE, installed_versions
from sb3_reinforce.zoo.experiment import ExperimentManager

#: Seeds of the evaluation environments for the first evaluation during a run and for the reported scores, the same for all
#: algorithms. No two evaluations share episodes: later evaluations confirm that a score is reached, and the maximum over the
#: evaluations that select the best checkpoint would overstate its score.
SELECTION_SEED = 1_000_000
REPORT_SEED = 2_000_000
MAX_EVAL_ENVS = 10


class BudgetSpent(Exception):
    """The time budget of training is spent."""


class Evaluator:
    """Score policies in environments separate from the training environments."""

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.vec_normalize = unwrap_vec_normalize(env)
        self.longest_episode = 0

    def score(self, model: BaseAlgorithm, n_episodes: int, seed: int, deterministic: bool = True) -> list[float]:
        """Run episodes, with the VecNormalize statistics of the model's environment if it has them; return the scores."""
        train_env = model.get_env()
        if train_env is not None:
            sync_envs_normalization(train_env, self.env)
        self.env.seed(seed)
        # gSDE's noise stays the same until it is resampled, and predict() never resamples it. An evaluation during a
        # rollout, which is deterministic, must not change the rollout's noise
        draws_noise = model.use_sde and not deterministic
        acting_policy: Any = getattr(model, "averaged_policy", model.policy) if draws_noise else None

        def draw_noise(local_variables: dict[str, Any], _: dict[str, Any]) -> None:
            if draws_noise and local_variables["done"]:
                acting_policy.reset_noise(self.env.num_envs)

        draw_noise({"done": True}, {})
        # Without Monitor's warning: the environments have one, below VecNormalize
        options = {"deterministic": deterministic, "callback": draw_noise, "return_episode_rewards": True, "warn": False}
        scores, lengths = evaluate_policy(model, self.env, n_episodes, **options)  # type: ignore[arg-type]
        assert isinstance(scores, list)
        check_scores(scores, self.env)
        self.longest_episode = max(self.longest_episode, np.max(lengths).item())
        return scores

    @property
    def statistics(self) -> Any:
        """The statistics that normalise observations; None if observations are not normalised."""
        return getattr(self.vec_normalize, "obs_rms", None)


class ComparisonCallback(BaseCallback):
    """Evaluate at even intervals of the budget, save the best checkpoint, and end a run whose time is over."""

    def __init__(self, settings: Settings, n_timesteps: int, evaluator: Evaluator, best_path: Path) -> None:
        super().__init__()
        self.settings = settings
        self.n_timesteps = n_timesteps
        self.evaluator = evaluator
        self.best_path = best_path
        self.best_statistics: Any = None
        self.evaluations: list[dict[str, Any]] = []
        self.next_evaluation = 0.0

    @property
    def seconds(self) -> float:
        """Training time so far, excluding evaluations."""
        return time.perf_counter() - self.start

    @property
    def spent(self) -> float:
        """Fraction of the budget that is spent."""
        if self.settings.seconds is not None:
            return self.seconds / self.settings.seconds
        return self.model.num_timesteps / self.n_timesteps

    def _on_training_start(self) -> None:
        self.start = time.perf_counter()
        if self.settings.seconds is not None:
            # The number of steps within the time is unknown, so schedules decay with time. This replaces a method of the
            # model because the number of steps is a local variable of learn()
            def update_progress(num_timesteps: int, total_timesteps: int) -> None:
                self.model._current_progress_remaining = max(0.0, 1.0 - self.spent)

            self.model._update_current_progress_remaining = update_progress  # type: ignore[method-assign]
        self.evaluate()

    def _on_step(self) -> bool:
        spent = self.spent
        if spent >= 1.0 and self.settings.seconds is not None:
            raise BudgetSpent
        # The last evaluation is of the final policy, after training
        if self.next_evaluation <= spent < 1.0:
            self.evaluate()
        return True

    def evaluate(self) -> None:
        """Evaluate the current policy, and save it if it is the best so far."""
        steps, seconds = self.model.num_timesteps, self.seconds
        # Every environment has a different seed
        seed = SELECTION_SEED + MAX_EVAL_ENVS * len(self.evaluations)
        scores = self.evaluator.score(self.model, self.settings.eval_episodes, seed)
        if all(np.mean(scores) > np.mean(earlier["scores"]) for earlier in self.evaluations):
            self.model.save(self.best_path, exclude=["_update_current_progress_remaining"])
            self.best_statistics = copy.deepcopy(self.evaluator.statistics)
            if self.evaluator.vec_normalize is not None:
                self.evaluator.vec_normalize.save(f"{self.best_path}_vecnormalize.pkl")
        # The training clock resumes where it stopped
        self.start = time.perf_counter() - seconds
        self.evaluations.append({"steps": steps, "seconds": seconds, "scores": scores})
        n_evaluations = self.settings.n_evaluations
        # A share of 0.58 is 28.999999999999996 of 50 evaluations
        self.next_evaluation = (int(self.spent * n_evaluations + 1e-9) + 1) / n_evaluations


def train(settings: Settings, task: Task, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Train an algorithm and evaluate its final policy and best checkpoint."""
    set_random_seed(task.seed)
    manager = restore_manager(settings, task, folder, device)
    experiment = manager.setup_experiment()
    assert experiment is not None
    model, _ = experiment

    evaluator = Evaluator(create_eval_env(manager, settings))
    callback = ComparisonCallback(settings, manager.n_timesteps, evaluator, Path(manager.save_path, "best_model"))
    manager.callbacks.append(callback)
    if settings.seconds is not None:
        manager.n_timesteps = sys.maxsize
    with contextlib.suppress(BudgetSpent):
        manager.learn(model)
    steps, seconds = model.num_timesteps, callback.seconds
    model.__dict__.pop("_update_current_progress_remaining", None)
    callback.evaluate()
    manager.save_trained_model(model)

    final = report_scores(evaluator, model, settings)
    best_index = int(np.argmax([np.mean(evaluation["scores"]) for evaluation in callback.evaluations]))
    best = {"steps": callback.evaluations[best_index]["steps"], **final}
    if best_index < len(callback.evaluations) - 1:
        if evaluator.vec_normalize is not None and callback.best_statistics is not None:
            evaluator.vec_normalize.obs_rms = callback.best_statistics
        best_model = ALGOS[settings.algorithms[task.algorithm]].load(callback.best_path, device=device)
        best |= report_scores(evaluator, best_model, settings)
    evaluator.env.close()
    return {
        "steps": steps,
        "seconds": seconds,
        "evaluations": callback.evaluations,
        "final": final,
        "best": best,
        "longest_episode": evaluator.longest_episode,
    }


def restore_manager(settings: Settings, task: Task, folder: Path, device: str = "cpu") -> ExperimentManager:
    """Create RL Zoo's experiment manager with the hyperparameters with which the comparison began; save them in the folder."""
    register()
    config = folder / "hyperparameters.yml"
    write_file(config, yaml.safe_dump({task.env_id: settings.entries[task.env_id][task.algorithm]}, width=1000))
    manager = make_manager(
        task.env_id,
        settings.algorithms[task.algorithm],
        str(config),
        task.seed,
        str(folder),
        settings.n_timesteps or 0,
        max_episode_steps=settings.time_limits.get(task.env_id),
    )
    manager.device = device
    return manager


def create_eval_env(manager: ExperimentManager, settings: Settings) -> VecEnv:
    """Create the evaluation environments; VecNormalize, if used, does not update and does not normalise rewards."""
    # RL Zoo passes environment arguments in the hyperparameters to the training environments only
    manager.eval_env_kwargs = manager.env_kwargs
    return manager.create_envs(min(MAX_EVAL_ENVS, settings.final_episodes), eval_env=True)


def report_scores(evaluator: Evaluator, model: BaseAlgorithm, settings: Settings) -> dict[str, list[float]]:
    """Evaluate a policy for the report: episode scores with deterministic actions and with sampled actions."""
    set_random_seed(REPORT_SEED)
    return {
        "deterministic": evaluator.score(model, settings.final_episodes, REPORT_SEED),
        "stochastic": evaluator.score(model, settings.final_episodes, REPORT_SEED, deterministic=False),
    }


class RandomPolicy:
    """Act uniformly at random; if the observation has an action mask, among the valid actions."""

    def __init__(self, env: VecEnv) -> None:
        self.n_envs = env.num_envs
        self.action_space = env.action_space
        self.action_space.seed(REPORT_SEED)

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        """Sample one action per environment, with the interface of SB3's models."""
        _, masks = split_observation(observation)
        if masks is not None:
            return sample_valid_actions(masks, self.action_space, self.action_space.np_random), None
        return np.stack([self.action_space.sample() for _ in range(self.n_envs)]), None


def score_random(settings: Settings, task: Task, folder: Path) -> dict[str, Any]:
    """Evaluate random actions in environments wrapped like the first algorithm's."""
    first = next(iter(settings.entries[task.env_id]))
    manager = restore_manager(settings, Task(task.env_id, first, task.seed), folder)
    preprocess(manager)
    env = create_eval_env(manager, settings)
    env.seed(REPORT_SEED)
    scores, lengths = evaluate_policy(RandomPolicy(env), env, settings.final_episodes, return_episode_rewards=True, warn=False)
    check_scores(scores, env)
    env.close()
    return {"final": {"stochastic": scores}, "longest_episode": np.max(lengths).item()}


def check_scores(scores: Any, env: VecEnv) -> None:
    """Raise ``ValueError``, which names the environment, if the score of an episode is NaN or infinite."""
    if not np.isfinite(scores).all():
        raise ValueError(f"The return of an evaluation episode of {env.get_attr('spec')[0].id} is NaN or infinite")


def describe_system(device: str = "cpu") -> dict[str, str]:
    """Describe what a run depends on besides its settings: the versions and the machine."""
    system, _ = get_system_info(print_info=False)
    cpu_info = Path("/proc/cpuinfo")
    lines: list[str] = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor unknown")
    gpu = "" if device == "cpu" else f"{th.cuda.get_device_name(device)}; "
    machine = f"{cpu}, {os.cpu_count()} cores; {gpu}{system['OS']}"
    return installed_versions() | {"Python": system["Python"], "machine": machine}


def end_with_parent() -> None:
    """End this process when its standard input is closed: after a comparison is killed, its runs must not go on training."""
    # Not sys.stdin.read(), whose lock the interpreter needs at its exit
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def describe_job(settings: Settings, task: Task, device: str) -> dict[str, Any]:
    """Describe a run for the process that executes it."""
    return {"settings": settings._asdict(), "task": task._asdict(), "device": device}


def main(arguments: list[str]) -> None:
    """Execute one run in a folder."""
    folder = Path(*arguments)
    instructions = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    th.set_num_threads(1)
    settings, task, device = Settings(**instructions["settings"]), Task(**instructions["task"]), instructions["device"]
    import_gym_packages(settings.gym_packages)
    result = score_random(settings, task, folder) if task.algorithm == RANDOM else train(settings, task, folder, device)
    content = {**task._asdict(), **result, "versions": describe_system(device)}
    write_file(folder / RESULT_FILE, json.dumps(content))


if __name__ == "__main__":
    main(sys.argv[1:])
