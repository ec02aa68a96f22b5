"""Shared parts of the commands: option types, and checks of the modules, environments and files that options name."""

import argparse
import ast
import importlib
import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_reinforce.zoo import ALGORITHMS
from sb3_reinforce.zoo.errors import UserError, is_about_request


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def positive_int(text: str) -> int:
    """Parse an integer above 0, such as ``20000`` or ``2e4``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 1 and value.is_integer()):
        raise argparse.ArgumentTypeError(f"must be an integer above 0, not {text}")
    return int(value)


def key_and_value(text: str) -> tuple[str, Any]:
    """Parse ``KEY:VALUE``, where the value is a Python literal, or text with or without quotes."""
    key, _, value = text.partition(":")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"must be like KEY:VALUE, not {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def add_environment_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the user's environments, as in RL Zoo's ``train``."""
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import, which register environments"
    )
    parser.add_argument(
        "--env-kwargs", nargs="+", type=key_and_value, default=[], metavar="KEY:VALUE", help="arguments of the environments"
    )


def import_gym_packages(modules: Sequence[str]) -> None:
    """Import modules that register environments; errors from inside an existing module propagate."""
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            if not is_about_request(error, ["importlib"]):
                raise
            raise UserError(f"--gym-packages {module}: {error}") from error


def check_environment(env_id: str) -> None:
    """Raise an error that says what to install if an Atari environment needs it."""
    is_atari = re.fullmatch(r"ALE/.+|.+(NoFrameskip|Deterministic)-v\d+", env_id) is not None
    if is_atari and env_id not in gym.registry and importlib.util.find_spec("ale_py") is None:
        raise UserError(f'{env_id} is an Atari environment, which needs two more packages: pip install "sb3-reinforce[atari]"')


def check_agent(path: Path, algorithm: str, option: str) -> None:
    """Check that a file holds a model, and that it is a REINFORCE model if and only if that is the algorithm."""
    from sb3_reinforce.checkpoints import is_reinforce, read_attributes

    try:
        holds_reinforce = is_reinforce(read_attributes(path))
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"{option} {path}: is no model of SB3: {error}") from error
    if holds_reinforce != (algorithm in ALGORITHMS):
        found = "a model of REINFORCE" if holds_reinforce else "no model of REINFORCE"
        raise UserError(f"{option} {path}: holds {found}, and --algo is {algorithm}")
