"""Checks a configuration before RL Zoo hands it on, where a mistake would show late, and far from its place."""

import ast
import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import gymnasium as gym
import rl_zoo3.exp_manager
import yaml
from stable_baselines3.common.callbacks import BaseCallback

from sb3_reinforce import REINFORCE
from sb3_reinforce.zoo.errors import UserError

SET_BY_FLAGS = {
    "env": "--env",
    "tensorboard_log": "--tensorboard-log",
    "seed": "--seed",
    "verbose": "--verbose",
    "device": "--device",
}
#: What RL Zoo takes out of an entry for itself, and what it may be.
ZOO_KEYS: dict[str, Any] = {
    "n_timesteps": float,
    "n_envs": int,
    "normalize": bool | str | dict,
    "monitor_kwargs": dict | str,
    "env_kwargs": dict,
    "frame_stack": int,
    "env_wrapper": str | list | dict | None,
    "vec_env_wrapper": str | list | dict | None,
    "callback": str | list | dict | None,
}
#: What must be at least 1.
COUNTS = ("n_timesteps", "n_envs", "frame_stack")
#: What RL Zoo evaluates as Python if it is a string; the result must be a dict.
EVALUATED = ("policy_kwargs", "normalize", "monitor_kwargs")
#: The same for other algorithms, where the result may be anything.
ALL_EVALUATED = (*EVALUATED, "replay_buffer_class", "replay_buffer_kwargs")
#: What RL Zoo imports by its name, and calls.
IMPORTED = ("policy", "env_wrapper", "vec_env_wrapper", "callback")
#: Packages whose classes an expression may name.
KNOWN_PACKAGES = ("torch", "numpy", "gymnasium", "stable_baselines3", "sb3_contrib")
#: What an expression may be made of, beside names, attributes and calls of the three functions.
LITERALS = (ast.Expression, ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.Set, ast.keyword, ast.Load)
ARITHMETIC = (ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop)
CONTAINERS = ("dict", "list", "tuple")
SCHEDULES = ("learning_rate", "ent_coef", "critic_learning_rate", "target_kl")
TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}
NUMBER = r"\d+\.?\d*(e[+-]?\d+)?"

ARGUMENTS: dict[str, Any] = {
    name: hint
    for name, hint in get_type_hints(REINFORCE.__init__).items()
    if name not in SET_BY_FLAGS and not name.startswith("_")
}


def check_file(file: str, env_id: str, is_atari: bool) -> None:
    """
    Check that a configuration file has an entry for an environment.

    :param file: Path of a yml file, as RL Zoo takes it.
    :param env_id: The environment.
    :param is_atari: Whether RL Zoo would look for the entry ``atari``.
    :raises UserError: If there is no such file or no such entry.
    """
    try:
        entries = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {error}") from error
    if not isinstance(entries, dict):
        raise UserError(f"{file} must hold a mapping from environments to hyperparameters")
    fallback = "atari" if is_atari else "default"
    entry = entries.get(env_id, entries.get(fallback))
    if not isinstance(entry, dict):
        raise UserError(f"{file} must hold a mapping of hyperparameters for {env_id!r} or {fallback!r}")


def find_missing_package(env_id: str) -> str | None:
    """
    Say what must be installed for an environment.

    :param env_id: An environment, registered or not.
    :return: None if it is registered, or nothing is known to be missing.
    """
    is_atari = re.fullmatch(r"ALE/.+|.+(NoFrameskip|Deterministic)-v\d+", env_id) is not None
    if env_id in gym.registry or not is_atari or importlib.util.find_spec("ale_py") is not None:
        return None
    return f'{env_id} is an Atari environment, which needs two more packages: pip install "sb3-reinforce[atari]"'


def check_module(name: str, short_names: Collection[str]) -> None:
    """
    Check that a configuration that is no yml file is what RL Zoo would import instead.

    :param name: Path of a Python file, or name of a module.
    :param short_names: What it could have been beside these, for the message.
    :raises UserError: If it is neither.
    """
    try:
        exists = os.path.isfile(name) if name.endswith(".py") else importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        exists = False
    if not exists:
        shipped = f", and the files of this package are called {', '.join(short_names)}" if short_names else ""
        raise UserError(f"--conf-file {name}: neither a .yml file nor a .py file nor a module that can be imported{shipped}")


def check_hyperparameters(hyperparameters: Mapping[str, Any], file: str, env_id: str, overrides: Collection[str] = ()) -> None:
    """
    Check an entry as RL Zoo read it.

    :param hyperparameters: The entry with the overrides of the command line.
    :param file: Where the entry comes from.
    :param env_id: The environment that the entry was chosen for.
    :param overrides: Keys that come from the command line instead.
    :raises UserError: If a key is missing, unknown or forbidden, or a value has the wrong type or is out of range; names
        file, environment and key.
    """
    for key, value in hyperparameters.items():
        problem = find_problem(key, value)
        if problem is not None:
            source = "--hyperparams" if key in overrides else file
            raise UserError(f"{source}, {env_id}, {key}: {problem}")
    for key in ("policy", "n_timesteps"):
        if key not in hyperparameters:
            raise UserError(f"{file}, {env_id}, {key}: missing")
    kwargs = {key: value for key, value in hyperparameters.items() if key in ARGUMENTS and key not in (*EVALUATED, "policy")}
    try:
        REINFORCE("MlpPolicy", env=None, _init_setup_model=False, **kwargs)._check_arguments()  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"{file}, {env_id}: {error}") from error


def find_problem(key: str, value: Any) -> str | None:
    """
    Say what is wrong with a hyperparameter.

    :param key: Its name.
    :param value: Its value, as it stands in the file.
    :return: None if nothing is wrong.
    """
    if key in SET_BY_FLAGS:
        return f"cannot stand in the file: use the flag {SET_BY_FLAGS[key]}"
    known = {**ARGUMENTS, **ZOO_KEYS}
    if key not in known:
        similar = difflib.get_close_matches(key, known, n=1)
        return "unknown key" + (f", did you mean {similar[0]}?" if similar else "")
    if isinstance(value, str):
        if key in SCHEDULES:
            return find_schedule_problem(value)
        if key in EVALUATED:
            return find_expression_problem(value)
    if not has_type(value, known[key]):
        return f"must be {describe(known[key])}, not {value!r}{hint_at_yaml(value)}"
    if key in COUNTS and value < 1:
        return f"must be at least 1, not {value!r}"
    return None


def find_schedule_problem(value: str) -> str | None:
    """
    Say what is wrong with a coefficient that is given as text.

    :param value: RL Zoo's notation for a linear decay: ``lin_0.01``.
    :return: None if nothing is wrong.
    """
    if re.fullmatch(f"lin_{NUMBER}", value):
        return None
    return f"must be a number or like lin_0.01, not {value!r}{hint_at_yaml(value)}"


def hint_at_yaml(value: Any) -> str:
    """
    Explain how a number became text.

    :param value: A value of the wrong type.
    :return: Empty if it is something else.
    """
    is_number = isinstance(value, str) and re.fullmatch(NUMBER, value) is not None
    return f" (YAML takes {value} for text: write {float(value)!r})" if is_number else ""


def check_code(hyperparameters: Mapping[str, Any], file: str, env_id: str) -> None:
    """
    Check that an entry of any algorithm makes RL Zoo run nothing but what hyperparameters are for.

    :param hyperparameters: The entry, before RL Zoo evaluates and imports what it names.
    :param file: Where it comes from.
    :param env_id: The environment that it was chosen for.
    :raises UserError: If an expression may do more than name numbers, containers and classes, or a callback is none.
    """
    for key, value in hyperparameters.items():
        problem = None
        if key in ALL_EVALUATED and isinstance(value, str):
            problem = find_forbidden_part(value)
        elif key in IMPORTED:
            names = value if isinstance(value, list) else [value]
            paths = [path for name in names for path in (name if isinstance(name, dict) else [name])]
            problem = next(filter(None, (find_import_problem(key, path) for path in paths if isinstance(path, str))), None)
        if problem is not None:
            raise UserError(f"{file}, {env_id}, {key}: {problem}")


def find_forbidden_part(value: str) -> str | None:
    """
    Say what in a Python expression is not to be evaluated, without evaluating anything.

    :param value: An expression over the names that RL Zoo's experiment manager imports, such as ``nn``.
    :return: None if it holds only literals, arithmetic, ``dict``, ``list``, ``tuple``, and names and attributes of
        ``KNOWN_PACKAGES``.
    """
    try:
        tree = ast.parse(value.lstrip(" \t"), mode="eval")
        nodes: list[ast.AST] = [tree]
        for node in nodes:
            if is_known(node):
                continue
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CONTAINERS:
                nodes += [*node.args, *node.keywords]
            elif isinstance(node, (*LITERALS, *ARITHMETIC)):
                nodes += ast.iter_child_nodes(node)
            else:
                return (
                    f"{ast.unparse(node)!r} is not evaluated: only literals, arithmetic, dict, list, tuple, and classes of "
                    f"{', '.join(KNOWN_PACKAGES)}"
                )
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return f"{value!r} cannot be evaluated: {type(error).__name__}: {error}"
    return None


def is_known(node: ast.AST) -> bool:
    """
    Tell whether a name, with attributes or without, stands for something of a known package.

    :param node: A part of an expression.
    :return: Whether it does, and is no function. A module that a known package has imported, such as ``th.os``, is not its.
    """
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or any(name.startswith("_") for name in path):
        return False
    value = vars(rl_zoo3.exp_manager).get(node.id)
    for position in range(len(path) + 1):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        is_number = isinstance(value, (bool, int, float)) and position > 0
        if not is_number and str(home).partition(".")[0] not in KNOWN_PACKAGES:
            return False
        if position < len(path):
            # What is missing is for the evaluation to complain about
            value = getattr(value, path[position], rl_zoo3.exp_manager.nn)
    return isinstance(value, type) or not callable(value)


def find_import_problem(key: str, path: str) -> str | None:
    """
    Say what is wrong with the name of something that RL Zoo would import and call.

    :param key: The hyperparameter.
    :param path: Module and name, such as ``gymnasium.wrappers.FlattenObservation``, or an alias of a policy.
    :return: None if it is a callback where there must be one, and not of Python's own library anywhere else.
    """
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] in sys.stdlib_module_names:
        return f"{path} is of Python's standard library, where nothing of this kind is"
    if key != "callback":
        return None
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        return f"{path} cannot be imported: {error}"
    is_callback = isinstance(imported, type) and issubclass(imported, BaseCallback)
    return None if is_callback else f"{path} is no callback"


def find_expression_problem(value: str) -> str | None:
    """
    Say what is wrong with a Python expression.

    :param value: An expression over the names that RL Zoo's experiment manager imports, such as ``nn``.
    :return: None if it gives a dict.
    """
    forbidden = find_forbidden_part(value)
    if forbidden is not None:
        return forbidden
    try:
        result = eval(value, dict(vars(rl_zoo3.exp_manager)))
    except Exception as error:
        return f"{value!r} cannot be evaluated: {type(error).__name__}: {error}"
    return None if isinstance(result, dict) else f"must be a dict, not {value!r}"


def has_type(value: Any, hint: Any) -> bool:
    """
    Check a value against a type annotation, with the numeric tower of PEP 484 and without booleans as numbers.

    :param value: Any value.
    :param hint: An annotation as they occur in the constructor of ``REINFORCE``.
    :return: Whether it fits.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(has_type(value, alternative) for alternative in get_args(hint))
    if origin is type:
        return isinstance(value, type)
    if origin is Callable or hint is Callable:
        return callable(value)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def describe(hint: Any) -> str:
    """
    Name the types of an annotation that can stand in a YAML file.

    :param hint: An annotation.
    :return: Such as ``an integer or null``.
    """
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(alternative) or alternative for alternative in alternatives]
    return " or ".join(TYPE_NAMES[kind] for kind in kinds if kind in TYPE_NAMES)
