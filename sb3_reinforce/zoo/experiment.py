"""RL Zoo's experiment manager, extended for REINFORCE's command line."""

import copy
import functools
import gc
import glob
import itertools
import os
import re
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import rl_zoo3.exp_manager
import sqlalchemy.exc
import yaml
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from rl_zoo3.utils import get_latest_run_id
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import nn

from sb3_reinforce.checkpoints import write_file
from sb3_reinforce.zoo import ALGORITHMS, hyperparams_path, shipped_configurations
from sb3_reinforce.zoo.config import check_hyperparameters, evaluate_entry, find_idle
from sb3_reinforce.zoo.errors import LIBRARIES, UserError, is_about_request

#: Steps after which an evaluation episode ends in an environment without a time limit.
MAX_EPISODE_STEPS = 10_000
#: Arguments that limit an episode: gymnasium's and the Arcade Learning Environment's.
TIME_LIMITS = ("max_episode_steps", "max_num_frames_per_episode")
#: Errors that configurations, environments, wrappers and algorithms raise for arguments that they lack or cannot use.
CONFIGURATION_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(gym.error.Error, yaml.YAMLError),
)


class ExperimentManager(rl_zoo3.exp_manager.ExperimentManager):
    """
    RL Zoo's experiment manager, which finds and checks the hyperparameters of REINFORCE.

    In addition, for all algorithms: runs that start at the same time get different folders, a search writes its best trial as
    a configuration file, and evaluations have a time limit even if the environment has none.

    :param args: As in RL Zoo.
    :param max_episode_steps: Steps after which an evaluation episode ends in an environment without a time limit, by default
        ``MAX_EPISODE_STEPS``. Must not be set for an environment with a time limit.
    :param seeds_per_trial: Training runs per trial of a search; the trial's value is their mean. The seeds are ``seed``,
        ``seed + 1`` and so on. With a single run only the environments are seeded, as in RL Zoo.
    :param use_envpool: Whether to use EnvPool's environments.
    :param kwargs: As in RL Zoo, but for REINFORCE ``config`` defaults to REINFORCE's own file. It may be the short name of
        another file in this package, such as ``"adam"``.
    """

    def __init__(
        self,
        *args: Any,
        max_episode_steps: int | None = None,
        seeds_per_trial: int = 1,
        use_envpool: bool = False,
        **kwargs: Any,
    ) -> None:
        self.max_episode_steps = max_episode_steps
        self.seeds_per_trial = seeds_per_trial
        self.use_envpool = use_envpool
        super().__init__(*args, **kwargs)
        config = kwargs.get("config")
        if config is None and self.algo in ALGORITHMS:
            self.config = str(hyperparams_path(self.algo))
        elif config in (shipped := shipped_configurations(self.algo)):
            self.config = str(shipped[config])
        # Saved with the run, where enjoy looks for the first
        self.args.__dict__.setdefault("env_kwargs", None)
        if use_envpool:
            self.args.vec_env = "envpool"
        self._made_folder = False
        #: Holds the limit once it has ended an episode; copies of the manager share the list.
        self._noted: list[int] = []
        self._study: optuna.Study | None = None
        #: The error of the last trial if it failed.
        self._trial_error: BaseException | None = None
        #: Description of the task of a search's trials.
        self._task = ""
        self._entry: dict[str, Any] = {}
        #: What the user should know about the overrides.
        self.notes: list[str] = []

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """Create environments and model; a failure leaves no folder that ``enjoy`` would mistake for the latest agent."""
        if self.max_episode_steps is not None and not lacks_time_limit(self.env_name.gym_id, self.eval_env_kwargs):
            raise UserError(
                f"--max-episode-steps: {self.env_name.gym_id} has a time limit of its own; another one for evaluations is "
                "--eval-env-kwargs max_episode_steps:N"
            )
        if self.optimize_hyperparameters:
            for flag, count in {"--n-trials": self.n_trials, "--n-evaluations": self.n_evaluations}.items():
                if count is not None and count < 1:
                    raise UserError(f"{flag}: must be at least 1, not {count}")
        elif self.seeds_per_trial != 1:
            raise UserError("--seeds-per-trial: has a meaning in a search only (optimize)")
        try:
            return super().setup_experiment()
        except BaseException as error:
            if self._made_folder:
                shutil.rmtree(self.save_path)
            if isinstance(error, CONFIGURATION_ERRORS) and is_about_request(error, LIBRARIES):
                where = f"{self.config}, {self.env_name.gym_id}"
                raise UserError(f"{where}: cannot be set up as asked: {type(error).__name__}: {error}") from error
            raise

    def learn(self, model: BaseAlgorithm) -> None:
        """Train the model; a failure before anything is learned or saved leaves no folder."""
        n_updates = model._n_updates
        try:
            super().learn(model)
        except BaseException:
            if self._made_folder and model._n_updates == n_updates and not glob.glob("*.zip", root_dir=self.save_path):
                shutil.rmtree(self.save_path)
            raise

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the entry of the environment and evaluate its expressions; for REINFORCE, check the whole entry."""
        env_id = self.env_name.gym_id
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        overrides = self.custom_hyperparams or {}
        source = f"{self.config}{' with --hyperparams' if overrides else ''}, {env_id}"
        hyperparams = evaluate_entry(hyperparams, source)
        idle = {}
        if self.algo in ALGORITHMS:
            check_hyperparameters(hyperparams, source)
            idle = find_idle(hyperparams)
        if self.continue_training:
            idle |= dict.fromkeys(("policy", "policy_kwargs"), "the loaded agent keeps its policy")
        self.notes = [f"{key}={overrides[key]!r} changes nothing on {env_id}: {idle[key]}" for key in overrides if key in idle]
        for note in self.notes:
            print(note)
        self._entry = copy.deepcopy(dict(saved_hyperparams))
        if self.optimize_hyperparameters:
            n_timesteps = self.n_timesteps if self.n_timesteps > 0 else int(hyperparams["n_timesteps"])
            task = describe_task(self.algo, env_id, hyperparams.get("env_kwargs", self.env_kwargs), self.eval_env_kwargs)
            self._task = f"{n_timesteps} steps of {task}"
            self._study = self._load_study()
            self._check_trials()
        return hyperparams, saved_hyperparams

    def create_log_folder(self) -> None:
        """Create a folder that no other run has; a search's name keeps ``enjoy`` from mistaking it for a run."""
        stem, number, folder = str(self.env_name), get_latest_run_id(self.log_path, self.env_name), self.save_path
        if self.optimize_hyperparameters:
            stem, number = f"{stem}_optimize", 1
            folder = os.path.join(self.log_path, f"{stem}_{number}")
        for next_number in itertools.count(number + 1):
            try:
                os.makedirs(folder)
                break
            except FileExistsError:
                folder = os.path.join(self.log_path, f"{stem}_{next_number}")
        self.save_path, self._made_folder = folder, True
        self.params_path = f"{folder}/{self.env_name}"
        super().create_log_folder()  # type: ignore[no-untyped-call]

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Create the environments, in EnvPool if chosen; evaluation environments always have a time limit."""
        name = "eval_env_kwargs" if eval_env else "env_kwargs"
        env_kwargs = getattr(self, name)
        # Changed for these environments only
        manager = copy.copy(self)
        # ARS trains by evaluating its candidates
        is_limited = (eval_env or self.algo == "ars") and self._lacks_time_limit(env_kwargs)
        if is_limited:
            # Never in EnvPool, where some environments accept a limit but ignore it
            setattr(manager, name, {**env_kwargs, "max_episode_steps": self.max_episode_steps or MAX_EPISODE_STEPS})
        elif self.use_envpool:
            if self.env_wrapper is not None:
                raise UserError(
                    f"{self.config}, {self.env_name.gym_id}, env_wrapper: EnvPool's environments cannot be wrapped one by "
                    "one. Leave out --vec-env envpool, or drop the wrapper with -params env_wrapper:None"
                )
            monitor_file = None if eval_env or no_log else os.path.join(self.save_path, "0")
            manager.vec_env_class = functools.partial(  # type: ignore[assignment]
                manager._make_envpool, env_kwargs=env_kwargs, monitor_file=monitor_file
            )
        env = super(ExperimentManager, manager).create_envs(n_envs, eval_env, no_log)
        if is_limited:
            self._note_cut_episodes(env.unwrapped)
        return env

    def _note_cut_episodes(self, env: VecEnv) -> None:
        """Print a note the first time that the added time limit ends an episode: most episodes end by themselves."""
        step_wait, limit = env.step_wait, self.max_episode_steps or MAX_EPISODE_STEPS

        def step_and_note() -> VecEnvStepReturn:
            obs, rewards, dones, infos = step_wait()
            if not self._noted and any(dones) and any(info.get("episode", {}).get("l", 0) >= limit for info in infos):
                print(describe_time_limit(self.env_name.gym_id, limit))
                self._noted.append(limit)
            return obs, rewards, dones, infos

        env.step_wait = step_and_note  # type: ignore[method-assign]

    def _lacks_time_limit(self, env_kwargs: Mapping[str, Any]) -> bool:
        env_id = self.env_name.gym_id
        if not lacks_time_limit(env_id, env_kwargs):
            return False
        if not self.use_envpool:
            return True
        from sb3_reinforce.vec_env.envpool_vec_env import import_envpool

        # EnvPool has its own time limits; the largest integer means none
        return bool(import_envpool(env_id).make_spec(env_id).config.max_episode_steps == np.iinfo(np.int32).max)

    def _make_envpool(
        self, env_fns: list[Callable[[], gym.Env[Any, Any]]], env_kwargs: dict[str, Any], monitor_file: str | None
    ) -> VecEnv:
        from sb3_reinforce.vec_env import make_envpool_vec_env

        venv = make_envpool_vec_env(self.env_name.gym_id, len(env_fns), self.seed, **env_kwargs)
        with warnings.catch_warnings():
            # It only writes the monitor file: the statistics already exist
            warnings.filterwarnings("ignore", message="The environment is already wrapped with a `Monitor`")
            return VecMonitor(venv, monitor_file, info_keywords=tuple(self.monitor_kwargs.get("info_keywords", ())))

    def objective(self, trial: optuna.Trial) -> float:
        """Train and evaluate a trial, one seed after another."""
        self._study = trial.study
        trial.set_user_attr("task", self._task)
        self._check_trials(before=trial.number)
        try:
            return super().objective(trial) if self.seeds_per_trial == 1 else self._average_over_seeds(trial)
        except optuna.TrialPruned as pruned:
            # RL Zoo also prunes trials that raise an AssertionError or a ValueError
            self._trial_error = pruned.__cause__
            raise

    def _average_over_seeds(self, trial: optuna.Trial) -> float:
        trial.set_user_attr("seeds", self.seeds)
        values: list[float] = []
        for seed in self.seeds:
            set_random_seed(seed)
            # A separate manager, since trials may run in threads
            manager = copy.copy(self)
            manager.seed = seed
            if self.optimization_log_path is not None:
                manager.optimization_log_path = os.path.join(self.optimization_log_path, f"seed_{seed}")
            seed_trial = SeedTrial(trial, values, self.n_evaluations)
            values.append(super(ExperimentManager, manager).objective(seed_trial))  # type: ignore[arg-type]
            trial.set_user_attr("values", values)
            # Models and environments form reference cycles, which Optuna collects only after the last seed
            gc.collect()
        return float(np.mean(values))

    @property
    def seeds(self) -> list[int]:
        """Seeds of each trial of a search."""
        return [(self.seed + index) % 2**32 for index in range(self.seeds_per_trial)]

    def _load_study(self) -> optuna.Study | None:
        """Load the study to continue, if it exists."""
        if self.storage is None:
            return None
        storage = open_storage(self.storage)
        if self.study_name not in optuna.get_all_study_names(storage):
            return None
        return optuna.load_study(study_name=self.study_name, storage=storage)

    def _check_trials(self, before: int = 0) -> None:
        """Reject a study with finished trials, or earlier running ones, whose values are not comparable with this search's."""
        if self._study is None:
            return
        for other in self._study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        ):
            is_running = other.state == TrialState.RUNNING
            if is_running and (other.number >= before or "task" not in other.user_attrs):
                continue
            task = other.user_attrs.get("task", "a task that another program did not note")
            count = len(other.user_attrs.get("seeds", [self.seed]))
            if task != self._task:
                problem = f"the study has trials of {task}, not of {self._task}"
            elif count != self.seeds_per_trial and not is_running:
                problem = f"the study has trials with {count} seeds, not {self.seeds_per_trial} (--seeds-per-trial)"
            else:
                continue
            raise UserError(f"--study-name {self._study.study_name}: {problem}. Choose another --study-name")

    def hyperparameters_optimization(self) -> None:
        """Search and write the best trial; if all trials failed in the user's code, raise the last error."""
        if self.seeds_per_trial > 1:
            print(f"Every trial is trained with the seeds {', '.join(map(str, self.seeds))}, and its value is the mean")
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            if self._study is None or any(trial.state == TrialState.COMPLETE for trial in self._study.trials):
                raise
            if self._trial_error is not None and not is_about_request(self._trial_error, LIBRARIES):
                raise self._trial_error from None
            reason = f" ({self._trial_error})" if self._trial_error is not None else ""
            raise UserError(f"no trial was completed{reason}, so there is no best one: give the search more trials") from error
        self._write_best_trial()

    def _write_best_trial(self) -> None:
        assert self._study is not None
        # Another search may have started on the same new study at the same time
        self._check_trials()
        env_id = self.env_name.gym_id
        path = os.path.join(self.save_path, f"{self.algo}.yml")
        entry = merge_trial(self._entry, HYPERPARAMS_CONVERTER[self.algo](self._study.best_params))
        comment = f"# Best trial of a search in which a trial lasted {self.n_timesteps} steps\n"
        write_file(Path(path), comment + yaml.safe_dump({env_id: entry}, width=1000))
        print(f"Best trial written to {path}")
        command = ["sb3-reinforce", "train", "--algo", self.algo, "--env", env_id, *self._task_options(), "--conf-file", path]
        print(f"Train with it: {shlex.join(command)}")

    def _task_options(self) -> list[str]:
        """Return the options without which the same command would train or evaluate on a different task."""
        arguments = vars(self.args)
        options = {"--gym-packages": arguments.get("gym_packages") or []}
        for name in ("env_kwargs", "eval_env_kwargs"):
            values = arguments.get(name) or {}
            options[f"--{name.replace('_', '-')}"] = [f"{key}:{value!r}" for key, value in values.items()]
        options["--max-episode-steps"] = [] if self.max_episode_steps is None else [str(self.max_episode_steps)]
        options["--vec-env"] = ["envpool"] if self.use_envpool else []
        return [word for flag, words in options.items() if words for word in (flag, *words)]


def open_storage(name: str) -> BaseStorage:
    """Open a storage; when several processes create a database at the same time, all but one fail in Optuna."""
    pauses = [0.5, 1.0, 2.0]
    while True:
        try:
            if not name.endswith(".log"):
                return optuna.storages.RDBStorage(name)
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(name))
        except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.DatabaseError, ImportError, OSError) as error:
            if not (pauses and isinstance(error, sqlalchemy.exc.DatabaseError)):
                reason = getattr(error, "orig", None) or error.__cause__ or error
                raise UserError(
                    f"--storage {name}: must be FILE.log or a database such as sqlite:///FILE.db ({reason})"
                ) from error
            time.sleep(pauses.pop(0))


def lacks_time_limit(env_id: str, env_kwargs: Mapping[str, Any]) -> bool:
    """Check that neither the registration of an environment nor its arguments limit episodes, which may end by themselves."""
    spec = gym.spec(env_id)
    arguments = {"max_episode_steps": spec.max_episode_steps, **spec.kwargs, **env_kwargs}
    # -1 means no limit in gymnasium
    return all((arguments.get(name) or -1) < 0 for name in TIME_LIMITS)


def describe_time_limit(env_id: str, max_episode_steps: int) -> str:
    """Return a note that evaluations have a time limit although the environment has none."""
    return (
        f"{env_id} is registered without a time limit: evaluation episodes end after {max_episode_steps:,} steps at the "
        "latest (--max-episode-steps)"
    )


def describe_task(algo: str, env_id: str, env_kwargs: Mapping[str, Any], eval_env_kwargs: Mapping[str, Any]) -> str:
    """Describe the task of a search's trials; trials with different descriptions are not comparable."""
    text = f"{algo} on {env_id}"
    for words, kwargs in (("with", env_kwargs), ("evaluated with", eval_env_kwargs if eval_env_kwargs != env_kwargs else {})):
        if kwargs:
            text += f" {words} {', '.join(f'{name}={value!r}' for name, value in sorted(kwargs.items()))}"
    # Remove the addresses of objects
    return re.sub(" at 0x[0-9a-f]+", "", text)


class SeedTrial:
    """A trial as RL Zoo sees it while training one of its seeds: reports are means over the seeds so far."""

    def __init__(self, trial: optuna.Trial, earlier: Sequence[float], n_evaluations: int) -> None:
        self._trial = trial
        self._earlier = tuple(earlier)
        self._n_evaluations = n_evaluations

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def report(self, value: float, step: int) -> None:
        """Report an evaluation of this seed, counted from 1; each is a separate step at which the pruner compares trials."""
        # Whole episodes overshoot the budget and may add one evaluation, whose step belongs to the next seed
        if step <= self._n_evaluations:
            self._trial.report(float(np.mean([*self._earlier, value])), len(self._earlier) * self._n_evaluations + step)


def merge_trial(entry: dict[str, Any], sampled: dict[str, Any]) -> dict[str, Any]:
    """Merge the result of a search into an entry, as RL Zoo combined them during the search."""
    merged = {**entry, **sampled}
    if merged.get("noise_type", "") is None:
        # RL Zoo treats a missing type as no noise, but passes null to the constructor
        del merged["noise_type"], merged["noise_std"]
    if isinstance(merged.get("policy_kwargs"), dict):
        merged["policy_kwargs"] = to_source(merged["policy_kwargs"])
    return merged


def to_source(value: Any) -> str:
    """Convert dicts with names as keys, PyTorch's modules, and anything with a suitable ``repr`` to RL Zoo expressions."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={to_source(item)}' for key, item in value.items())})"
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"nn.{value.__name__}"
    return repr(value)
