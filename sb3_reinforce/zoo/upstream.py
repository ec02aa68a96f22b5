"""The names in RL Zoo that the commands replace while they run, since RL Zoo has no other way in."""

import contextlib
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import huggingface_sb3  # type: ignore[import-untyped]
import rl_zoo3.utils

#: The scripts that RL Zoo starts in new processes, and the commands that do the same with REINFORCE registered.
CHILDREN = {("-m", "rl_zoo3.record_video"): "record-video", ("enjoy.py",): "enjoy"}


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """
    Replace a name in a module for the duration of the context.

    :param module: The module.
    :param name: The name.
    :param value: What it stands for meanwhile.
    """
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextlib.contextmanager
def experiment_manager(make_manager: Callable[..., Any]) -> Iterator[None]:
    """
    Let ``rl_zoo3.train.train`` use another experiment manager.

    :param make_manager: Takes the arguments of RL Zoo's ``ExperimentManager``.
    """
    import rl_zoo3.train

    with replaced(rl_zoo3.train, "ExperimentManager", make_manager):
        yield


@contextlib.contextmanager
def registering_children() -> Iterator[None]:
    """Let the processes that RL Zoo starts know the registered algorithm, and run in this interpreter."""
    call = subprocess.call

    def call_command(arguments: Sequence[str], *args: Any, **kwargs: Any) -> int:
        # The names of folders that named_as_folders lets RL Zoo work with
        arguments = [getattr(argument, "gym_id", argument) for argument in arguments]
        for script, command in CHILDREN.items():
            if tuple(arguments[: len(script) + 1]) == ("python", *script):
                arguments = [sys.executable, "-m", "sb3_reinforce", command, *arguments[len(script) + 1 :]]
        return call(arguments, *args, **kwargs)

    with replaced(subprocess, "call", call_command):
        yield


@contextlib.contextmanager
def named_as_folders() -> Iterator[None]:
    """Let ``rl_zoo3.benchmark``, if it is imported now, find agents of environments with a slash: their folders have none."""
    find = rl_zoo3.utils.get_trained_models

    def find_named(folder: str) -> dict[str, tuple[str, str]]:
        name = huggingface_sb3.EnvironmentName
        return {model: (algorithm, name(env_id)) for model, (algorithm, env_id) in find(folder).items()}

    with replaced(rl_zoo3.utils, "get_trained_models", find_named):
        yield


@contextlib.contextmanager
def current_hub_errors() -> Iterator[None]:
    """Let RL Zoo, if it is imported now, notice that the Hub has no such file: it expects the errors of an older client."""
    import requests.exceptions
    from huggingface_hub.errors import HfHubHTTPError

    with replaced(requests.exceptions, "HTTPError", HfHubHTTPError):
        yield


def argument_that_is_no_python(error: Exception) -> str | None:
    """
    Find the argument ``KEY:VALUE`` whose value RL Zoo could not evaluate.

    :param error: What was raised.
    :return: The argument, None if the error has nothing to do with one.
    """
    from rl_zoo3.utils import StoreDict

    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is StoreDict.__call__.__code__:
            return str(frame.f_locals["arguments"])
    return None
