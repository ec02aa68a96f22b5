"""What is compared: contenders, environments, seeds and budget, checked before anything is trained."""

import argparse
import contextlib
import difflib
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import yaml
from rl_zoo3.utils import ALGOS

from sb3_reinforce.checkpoints import atomic_write
from sb3_reinforce.zoo import shipped_configurations
from sb3_reinforce.zoo.command_line import check_environment
from sb3_reinforce.zoo.errors import LIBRARIES, UserError, is_about_request
from sb3_reinforce.zoo.experiment import MAX_EPISODE_STEPS, ExperimentManager, lacks_time_limit

#: The contender that acts at random: the zero of normalised scores.
RANDOM = "random"
SETTINGS_FILE = "comparison.json"


class CannotAct(UserError):
    """An algorithm has no such action space."""


class Contender(NamedTuple):
    """
    One line of the charts.

    :param name: As the report calls it.
    :param algo: Algorithm of RL Zoo.
    :param conf_file: File with its hyperparameters, or the short name of one of this package's, None for the default of the
        algorithm.
    :param overrides: Hyperparameters that rule instead of those in the file.
    """

    name: str
    algo: str
    conf_file: str | None = None
    overrides: Mapping[str, Any] = {}


class Settings(NamedTuple):
    """
    What must be equal for runs to belong to the same comparison.

    :param seeds: Seeds of the training.
    :param n_timesteps: Budget in environment steps, None for that of each entry.
    :param seconds: Budget in seconds of training, which rules if it is given; evaluations do not count.
    :param n_evaluations: Evaluations during a run, evenly spaced over its budget, beside one before it.
    :param eval_episodes: Episodes of each of them.
    :param final_episodes: Episodes of the evaluations of the final policy and of the best checkpoint.
    :param entries: Hyperparameters by environment and contender, without contenders that cannot act there.
    :param algorithms: Algorithm by contender.
    :param time_limits: Steps after which an evaluation episode ends, by environment, of those that have no limit of their own.
    :param untuned: Contenders that train with the entry ``default``, by environment, each with other versions of the
        environment that its file has entries for.
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

    @property
    def environments(self) -> list[str]:
        """Ids of the environments."""
        return list(self.entries)

    def contenders(self, env_id: str) -> list[str]:
        """
        List who acts in an environment.

        :param env_id: The environment.
        :return: Names in the order of the charts.
        """
        return [name for name in self.algorithms if name in self.entries[env_id]]


class Task(NamedTuple):
    """
    One run.

    :param env_id: The environment.
    :param contender: Name of the contender, or ``RANDOM``.
    :param seed: Seed of the training.
    """

    env_id: str
    contender: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where the run is kept, relative to the folder of the comparison."""
        return Path("runs", file_name(self.env_id), self.contender, f"seed{self.seed}")

    def __str__(self) -> str:
        return f"{self.contender} on {self.env_id}" + ("" if self.contender == RANDOM else f", seed {self.seed}")


def file_name(env_id: str) -> str:
    """
    Name a folder or a file after an environment.

    :param env_id: The environment.
    :return: The id with its only character that cannot stand in a name replaced by one that no id has, as gymnasium allows
        letters, digits, and ``_ - : .`` beside the slash: no two environments share a folder.
    """
    return env_id.replace("/", "+")


def make_contenders(
    algorithms: Sequence[str], conf_files: Mapping[str, str], variants: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[Contender]:
    """
    List the contenders in the order of the charts.

    :param algorithms: Algorithms of RL Zoo; ``reinforce-adam`` is one with another file of this package.
    :param conf_files: Files with hyperparameters by algorithm.
    :param variants: Names and hyperparameters of variants of REINFORCE.
    :return: The algorithms, then the variants.
    :raises UserError: If there is no contender, a name is taken twice, or a file belongs to no contender.
    """
    contenders = [Contender(*(split_name(name) or (name, name, conf_files.get(name)))) for name in algorithms]
    contenders += [Contender(name, "reinforce", conf_files.get("reinforce"), overrides) for name, overrides in variants]
    names = [RANDOM, *(contender.name for contender in contenders)]
    problems = [f"the name {name!r} is taken twice" for name in sorted(set(names)) if names.count(name) > 1]
    problems += [f"a variant cannot be called {name!r}" for name, _ in variants if not name.replace("-", "_").isidentifier()]
    taken = [name for name, _ in variants if name in ALGOS or split_name(name) is not None]
    problems += [f"a variant cannot be called {name!r}, which is another algorithm" for name in taken]
    idle = set(conf_files) - {contender.algo for contender in contenders if split_name(contender.name) is None}
    if not contenders:
        problems.append("nothing to compare: --algos and --variant are empty")
    problems += [f"--conf-file for {algo!r}, which is not compared" for algo in sorted(idle)]
    if problems:
        raise UserError("; ".join(problems))
    return contenders


def split_name(name: str) -> tuple[str, str, str] | None:
    """
    Find an algorithm with another configuration file of this package.

    :param name: As typed, such as ``reinforce-adam``.
    :return: Name, algorithm and short name of the file, None if there is no such file.
    """
    algo, _, short_name = name.partition("-")
    return (name, algo, short_name) if short_name in shipped_configurations(algo) else None


def read_entries(env_ids: Sequence[str], contenders: Sequence[Contender]) -> dict[str, dict[str, dict[str, Any]]]:
    """
    Read the hyperparameters of every pair, and check that every algorithm can be made for every environment.

    :param env_ids: The environments.
    :param contenders: The contenders.
    :return: Hyperparameters by environment and contender, without contenders that have no such action space.
    :raises UserError: If something is wrong, or a contender cannot act in any environment; names all problems at once.
    """
    for env_id in env_ids:
        check_environment(env_id)
    problems = [unknown("environment", env_id, gym.registry) for env_id in env_ids if env_id not in gym.registry]
    algorithms = dict.fromkeys(contender.algo for contender in contenders)
    known = [*ALGOS, *(f"{algo}-{short_name}" for algo in ALGOS for short_name in shipped_configurations(algo))]
    problems += [unknown("algorithm", algo, known) for algo in algorithms if algo not in ALGOS]
    entries: dict[str, dict[str, dict[str, Any]]] = {}
    left_out: dict[tuple[str, str], str] = {}
    for env_id in env_ids:
        for contender in contenders:
            if env_id not in gym.envs.registry or contender.algo not in ALGOS:
                continue
            own = entries.setdefault(env_id, {})
            try:
                own[contender.name] = read_entry(env_id, contender)
            except CannotAct as error:
                left_out[env_id, contender.name] = f"{error} on {env_id}"
            except Exception as error:
                if not is_about_request(error, LIBRARIES):
                    raise
                message = " ".join(str(error).split()) or type(error).__name__
                missing = "nothing under the key " if isinstance(error, KeyError) else ""
                problems.append(f"{contender.name} on {env_id}: {missing}{message}")
        kinds = {json.dumps(entry.get("env_kwargs"), sort_keys=True) for entry in entries.get(env_id, {}).values()}
        if len(kinds) > 1:
            problems.append(f"contenders on {env_id} have different env_kwargs, so their scores cannot be compared")
    active = {name for own in entries.values() for name in own}
    problems += [line for (_, name), line in left_out.items() if name not in active]
    problems += [
        f"no contender can act on {env_id}"
        for env_id in entries
        if all((env_id, contender.name) in left_out for contender in contenders)
    ]
    if problems:
        raise UserError("nothing was trained: " + "; ".join(dict.fromkeys(problems)))
    return entries


def find_untuned(entries: Mapping[str, Mapping[str, Any]], contenders: Sequence[Contender]) -> dict[str, dict[str, list[str]]]:
    """
    Find who has no entry of its own, so that RL Zoo takes ``default``: the defaults of SB3, as a rule.

    :param entries: Hyperparameters by environment and contender, as ``read_entries`` returns them.
    :param contenders: The contenders.
    :return: By environment and contender the other versions of the environment that its file has.
    """
    untuned: dict[str, dict[str, list[str]]] = {}
    for env_id, by_contender in entries.items():
        for contender in contenders:
            if contender.name not in by_contender:
                continue
            manager = make_manager(env_id, contender.algo, contender.conf_file, seed=0)
            known = yaml.safe_load(Path(manager.config).read_text(encoding="utf-8"))
            if env_id not in known and not manager._is_atari:
                stem = env_id.rpartition("-v")[0]
                others = [other for other in known if stem and re.fullmatch(rf"{re.escape(stem)}-v\d+", other)]
                untuned.setdefault(env_id, {})[contender.name] = others
    return untuned


def limit_episodes(entries: Mapping[str, Mapping[str, Mapping[str, Any]]], max_episode_steps: int | None) -> dict[str, int]:
    """
    Find the environments whose evaluations need a time limit.

    :param entries: Hyperparameters by environment and contender.
    :param max_episode_steps: The limit, None for the default.
    :return: Limits by environment.
    :raises UserError: If a limit is given, and all environments have their own.
    """
    # The contenders on an environment have the same arguments for it
    env_kwargs = {env_id: next(iter(by_contender.values())).get("env_kwargs") for env_id, by_contender in entries.items()}
    unlimited = [env_id for env_id, kwargs in env_kwargs.items() if lacks_time_limit(env_id, kwargs or {})]
    if max_episode_steps is not None and not unlimited:
        raise UserError(f"--max-episode-steps: {', '.join(entries)} have time limits of their own")
    return dict.fromkeys(unlimited, max_episode_steps or MAX_EPISODE_STEPS)


def unknown(kind: str, name: str, known: Any) -> str:
    """
    Say that a name is unknown.

    :param kind: What it should be the name of.
    :param name: The name.
    :param known: The names that exist.
    :return: The message, with the most similar name.
    """
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"unknown {kind} {name!r}" + (f", did you mean {similar[0]}?" if similar else "")


def read_entry(env_id: str, contender: Contender) -> dict[str, Any]:
    """
    Read the hyperparameters of a contender, and make its algorithm, without networks and buffers.

    :param env_id: The environment.
    :param contender: The contender.
    :return: The entry, overrides included.
    :raises UserError: If there is no such file or no such entry.
    :raises CannotAct: If the algorithm has no such action space.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # Such as that batches do not fit to the single environment that is made here
        warnings.simplefilter("ignore")
        manager = make_manager(env_id, contender.algo, contender.conf_file, seed=0, overrides=dict(contender.overrides))
        if not manager.config.endswith((".yml", ".yaml")):
            raise UserError(f"{manager.config} must be a yml file")
        kwargs, entry = preprocess(manager)
        env = manager.create_envs(1, no_log=True)
        try:
            kwargs = manager._preprocess_action_noise(kwargs, entry, env)
            ALGOS[contender.algo](env=env, device="cpu", _init_setup_model=False, **kwargs)  # type: ignore[call-arg]
        except AssertionError as error:
            if "action spaces" not in str(error):
                raise
            raise CannotAct(f"{contender.name} cannot act in {env.action_space}") from error
        finally:
            env.close()
    for note in manager.notes:
        print(f"{contender.name}: {note}")
    return dict(yaml.safe_load(yaml.safe_dump(dict(manager._entry))))


def preprocess(manager: ExperimentManager) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Let a manager read its hyperparameters, so that it can make environments as they say.

    :param manager: The manager.
    :return: Arguments of the algorithm, and the entry of the file.
    """
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
    """
    Make RL Zoo's experiment manager for one run.

    :param env_id: The environment.
    :param algo: The algorithm.
    :param conf_file: File with the hyperparameters, None for the default of the algorithm.
    :param seed: Seed of the training.
    :param log_folder: Where the model goes.
    :param n_timesteps: Environment steps, 0 for those of the entry.
    :param overrides: Hyperparameters that rule instead of those in the file.
    :param max_episode_steps: Steps after which an evaluation episode ends, None for the environment's own limit.
    :return: The manager. It makes no evaluations of its own.
    """
    arguments = argparse.Namespace(algo=algo, env=env_id, seed=seed)
    return ExperimentManager(
        arguments,
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
    """
    List the runs, such that what is compared is trained close in time: the machine may be busier later.

    :param settings: The settings.
    :return: The runs, by seed, environment and contender.
    """
    reference = [Task(env_id, RANDOM, 0) for env_id in settings.environments]
    return reference + [
        Task(env_id, contender, seed)
        for seed in settings.seeds
        for env_id in settings.environments
        for contender in settings.contenders(env_id)
    ]


def claim_folder(folder: Path, settings: Settings) -> None:
    """
    Write the settings of a comparison, or check that they are those of the comparison that is there.

    :param folder: Folder of the comparison, which exists and is locked by the caller.
    :param settings: The settings.
    :raises UserError: If the folder holds a comparison with other settings, or anything else; lists the differences.
    """
    path = folder / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings._asdict()))
    if path.exists():
        differences = list(list_differences(json.loads(json.dumps(read_settings(folder)._asdict())), wanted))
        if differences:
            raise UserError(
                f"{folder} holds a comparison with other settings ({'; '.join(differences)}): choose another --folder"
            )
        return
    if any(entry.name != ".lock" and entry.suffix != ".unfinished" for entry in folder.iterdir()):
        raise UserError(f"{folder} holds something else than a comparison: choose another --folder")
    write_text(path, json.dumps(wanted, indent=1))


def read_settings(folder: Path) -> Settings:
    """
    Read the settings of a comparison.

    :param folder: Folder of the comparison.
    :return: The settings.
    """
    return Settings(**json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8")))


def list_differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """
    Compare settings.

    :param old: Those that are there.
    :param new: Those that are wanted.
    :param name: What they are settings of.
    :return: One line for each difference.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from list_differences(old.get(key, "nothing"), new.get(key, "nothing"), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {shorten(old)} there, {shorten(new)} asked for"


def shorten(value: Any) -> str:
    """
    Write a setting in a message.

    :param value: The setting.
    :return: Text of bounded length.
    """
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_text(path: Path, text: str) -> None:
    """
    Write a file that is never seen half-written.

    :param path: The file.
    :param text: Its content.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """
    Write a file that is never seen half-written.

    :param path: The file.
    :param content: Its content.
    """
    with atomic_write(path) as file:
        file.write(content)
