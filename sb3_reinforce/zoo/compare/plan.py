"""The plan of a comparison: algorithms, environments, seeds and budget, checked before anything is trained."""

import argparse
import contextlib
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import pandas as pd
import yaml
from rl_zoo3.utils import ALGOS

from sb3_reinforce.checkpoints import write_file
from sb3_reinforce.zoo import shipped_configurations
from sb3_reinforce.zoo.command_line import check_environment
from sb3_reinforce.zoo.config import suggest
from sb3_reinforce.zoo.errors import LIBRARIES, UserError, is_about_request
from sb3_reinforce.zoo.experiment import MAX_EPISODE_STEPS, ExperimentManager, lacks_time_limit

#: Random actions: the zero of normalised scores.
RANDOM = "random"
SETTINGS_FILE = "comparison.json"


class CannotAct(UserError):
    """The algorithm does not support the action space."""


class Algorithm(NamedTuple):
    """An algorithm of RL Zoo, or a variant of one, to train."""

    #: Name in the report.
    name: str
    #: RL Zoo's name of the algorithm.
    algo: str
    #: File with the hyperparameters, or the short name of one in this package; None for the algorithm's default file.
    conf_file: str | None = None
    #: Hyperparameters that replace the file's.
    overrides: Mapping[str, Any] = {}


class Settings(NamedTuple):
    """
    Settings that must be equal for runs to belong to the same comparison.

    :param seeds: Seeds of the training.
    :param n_timesteps: Budget in environment steps; None for the budget of each entry.
    :param seconds: Budget in seconds of training instead of steps; evaluations do not count.
    :param n_evaluations: Evaluations during a run, evenly spaced over its budget, besides one before it.
    :param eval_episodes: Episodes per evaluation during a run.
    :param final_episodes: Episodes of the evaluations of the final policy and of the best checkpoint.
    :param entries: Hyperparameters by environment and name, in the order of the charts, without algorithms that do not support
        the environment's actions.
    :param algorithms: RL Zoo's algorithm by name.
    :param time_limits: Steps after which an evaluation episode ends, for each environment without a time limit.
    :param untuned: Algorithms that train with the entry ``default``, by environment; each with the other versions of the
        environment for which its file has entries.
    :param gym_packages: Modules that register the environments.
    """

    seeds: list[int]
    n_timesteps: int | None
    seconds: float | None
    n_evaluations: int
    eval_episodes: int
    final_episodes: int
    entries: dict[str, dict[str, dict[str, Any]]]
    algorithms: dict[str, str]
    time_limits: Mapping[str, int] = {}
    untuned: Mapping[str, Mapping[str, list[str]]] = {}
    gym_packages: Sequence[str] = []


class Task(NamedTuple):
    """One run of an algorithm or of ``RANDOM``."""

    env_id: str
    algorithm: str
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of the run, relative to the folder of the comparison."""
        # No id contains the plus sign that replaces the slash, so no two environments share a folder
        return Path("runs", self.env_id.replace("/", "+"), self.algorithm, f"seed{self.seed}")

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.env_id}" + ("" if self.algorithm == RANDOM else f", seed {self.seed}")


def make_algorithms(names: Sequence[str], conf_files: Mapping[str, str], variants: Sequence[Algorithm]) -> list[Algorithm]:
    """List what to train in the order of the charts: algorithms, then variants, each with the file of its algorithm."""
    algorithms = []
    for name, asked_for, _, overrides in [*(Algorithm(name, name) for name in names), *variants]:
        algo, conf_file = split_name(asked_for) or (asked_for, conf_files.get(asked_for))
        algorithms.append(Algorithm(name, algo, conf_file, overrides))
    taken = [RANDOM, *(algorithm.name for algorithm in algorithms)]
    problems = [f"the name {name!r} is taken twice" for name in sorted(set(taken)) if taken.count(name) > 1]
    for name in (variant.name for variant in variants):
        if not name.replace("-", "_").isidentifier():
            problems.append(f"a variant cannot be called {name!r}")
        if name in ALGOS or split_name(name) is not None:
            problems.append(f"a variant cannot be called {name!r}, which is another algorithm")
    idle = set(conf_files) - {one.algo for one in algorithms if one.conf_file == conf_files.get(one.algo)}
    problems += [f"--conf-file for {algo!r}, which is not compared" for algo in sorted(idle)]
    if not algorithms:
        problems.append("nothing to compare: --algos and --variant are empty")
    if problems:
        raise UserError("; ".join(problems))
    return algorithms


def split_name(name: str) -> tuple[str, str] | None:
    """Split a name such as ``reinforce-adam`` into the algorithm and the short name of another file in this package."""
    algo, _, short_name = name.partition("-")
    return (algo, short_name) if short_name in shipped_configurations(algo) else None


def read_entries(env_ids: Sequence[str], algorithms: Sequence[Algorithm]) -> dict[str, dict[str, dict[str, Any]]]:
    """Read the entries of ``Settings``, creating each algorithm on each environment; raise one error with all problems."""
    for env_id in env_ids:
        check_environment(env_id)
    known = [*ALGOS, *(f"{algo}-{short_name}" for algo in ALGOS for short_name in shipped_configurations(algo))]
    problems = [
        f"unknown environment {env_id!r}{suggest(env_id, gym.registry)}" for env_id in env_ids if env_id not in gym.registry
    ]
    algos = [algorithm.algo for algorithm in algorithms]
    problems += [f"unknown algorithm {algo!r}{suggest(algo, known)}" for algo in algos if algo not in ALGOS]
    entries: dict[str, dict[str, dict[str, Any]]] = {}
    left_out: dict[tuple[str, str], str] = {}
    for env_id in env_ids:
        for algorithm in algorithms:
            if env_id not in gym.registry or algorithm.algo not in ALGOS:
                continue
            env_entries = entries.setdefault(env_id, {})
            try:
                env_entries[algorithm.name] = read_entry(env_id, algorithm)
            except CannotAct as error:
                left_out[env_id, algorithm.name] = f"{error} on {env_id}"
            except Exception as error:
                if not is_about_request(error, LIBRARIES):
                    raise
                message = " ".join(str(error).split()) or type(error).__name__
                missing = "nothing under the key " if isinstance(error, KeyError) else ""
                problems.append(f"{algorithm.name} on {env_id}: {missing}{message}")
        kinds = {json.dumps(entry.get("env_kwargs"), sort_keys=True) for entry in entries.get(env_id, {}).values()}
        if len(kinds) > 1:
            problems.append(f"algorithms on {env_id} have different env_kwargs, so their scores cannot be compared")
    active = {name for env_entries in entries.values() for name in env_entries}
    problems += [line for (_, name), line in left_out.items() if name not in active]
    problems += [
        f"no algorithm can act on {env_id}"
        for env_id in entries
        if all((env_id, algorithm.name) in left_out for algorithm in algorithms)
    ]
    if problems:
        raise UserError("nothing was trained: " + "; ".join(dict.fromkeys(problems)))
    return entries


def find_untuned(entries: Mapping[str, Mapping[str, Any]], algorithms: Sequence[Algorithm]) -> dict[str, dict[str, list[str]]]:
    """Find the algorithms that train with the entry ``default``, and other versions of the environment in their files."""
    untuned: dict[str, dict[str, list[str]]] = {}
    for env_id, env_entries in entries.items():
        for algorithm in (algorithm for algorithm in algorithms if algorithm.name in env_entries):
            manager = make_manager(env_id, algorithm.algo, algorithm.conf_file, seed=0)
            known = yaml.safe_load(Path(manager.config).read_text(encoding="utf-8"))
            if env_id not in known and not manager._is_atari:
                stem = env_id.rpartition("-v")[0]
                others = [other for other in known if stem and re.fullmatch(rf"{re.escape(stem)}-v\d+", other)]
                untuned.setdefault(env_id, {})[algorithm.name] = others
    return untuned


def limit_episodes(entries: Mapping[str, Mapping[str, Mapping[str, Any]]], max_episode_steps: int | None) -> dict[str, int]:
    """Find the time limits of evaluations for each environment without its own time limit."""
    # All algorithms on an environment create it with the same arguments
    env_kwargs = {env_id: next(iter(env_entries.values())).get("env_kwargs") for env_id, env_entries in entries.items()}
    unlimited = [env_id for env_id, kwargs in env_kwargs.items() if lacks_time_limit(env_id, kwargs or {})]
    if max_episode_steps is not None and not unlimited:
        raise UserError(f"--max-episode-steps: {', '.join(entries)} have time limits of their own")
    return dict.fromkeys(unlimited, max_episode_steps or MAX_EPISODE_STEPS)


def read_entry(env_id: str, algorithm: Algorithm) -> dict[str, Any]:
    """Read an algorithm's hyperparameters, overrides included, and create it without networks and buffers."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # Such as warnings that batches do not fit the single environment created here
        warnings.simplefilter("ignore")
        manager = make_manager(env_id, algorithm.algo, algorithm.conf_file, seed=0, overrides=dict(algorithm.overrides))
        if not manager.config.endswith((".yml", ".yaml")):
            raise UserError(f"{manager.config} must be a yml file")
        kwargs, entry = preprocess(manager)
        env = manager.create_envs(1, no_log=True)
        try:
            kwargs = manager._preprocess_action_noise(kwargs, entry, env)
            ALGOS[algorithm.algo](env=env, device="cpu", _init_setup_model=False, **kwargs)  # type: ignore[call-arg]
        except AssertionError as error:
            if "action spaces" not in str(error):
                raise
            raise CannotAct(f"{algorithm.name} cannot act in {env.action_space}") from error
        finally:
            env.close()
    for note in manager.notes:
        print(f"{algorithm.name}: {note}")
    return dict(yaml.safe_load(yaml.safe_dump(dict(manager._entry))))


def preprocess(manager: ExperimentManager) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let a manager read its hyperparameters before it creates environments; return algorithm arguments and entry."""
    hyperparameters, entry = manager.read_hyperparameters()
    kwargs, manager.env_wrapper, _, manager.vec_env_wrapper = manager._preprocess_hyperparams(hyperparameters)
    return kwargs, entry


def make_manager(
    env_id: str,
    algo: str,
    conf_file: str | None,
    seed: int,
    log_folder: str = "",
    n_timesteps: int = 0,
    overrides: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
) -> ExperimentManager:
    """Create RL Zoo's experiment manager for one run, without its evaluations."""
    return ExperimentManager(
        argparse.Namespace(algo=algo, env=env_id, seed=seed),
        algo,
        env_id,
        log_folder,
        n_timesteps=n_timesteps,
        eval_freq=-1,
        hyperparams=overrides,
        seed=seed,
        log_interval=-2,
        verbose=0,
        device="cpu",
        config=conf_file,
        max_episode_steps=max_episode_steps,
    )


def list_tasks(settings: Settings) -> list[Task]:
    """List the runs by seed, environment and algorithm: compared runs train close in time, on an equally busy machine."""
    return [Task(env_id, RANDOM, 0) for env_id in settings.entries] + [
        Task(env_id, name, seed) for seed in settings.seeds for env_id, entries in settings.entries.items() for name in entries
    ]


def claim_folder(folder: Path, settings: Settings) -> None:
    """Write the settings of a comparison to its folder, or check that they match the comparison already there."""
    path = folder / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings._asdict()))
    if not path.exists():
        if any(entry.name != ".lock" and entry.suffix != ".unfinished" for entry in folder.iterdir()):
            raise UserError(f"{folder} holds something else than a comparison: choose another --folder")
        write_file(path, json.dumps(wanted, indent=1))
        return
    old, new = (pd.json_normalize(each).iloc[0].to_dict() for each in (read_settings(folder)._asdict(), wanted))
    differences = [
        f"{name}: {str(old.get(name, 'nothing'))[:60]} there, {str(new.get(name, 'nothing'))[:60]} asked for"
        for name in {**old, **new}
        if old.get(name, "nothing") != new.get(name, "nothing")
    ]
    if differences:
        raise UserError(f"{folder} holds a comparison with other settings ({'; '.join(differences)}): choose another --folder")


def read_settings(folder: Path) -> Settings:
    return Settings(**json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8")))
