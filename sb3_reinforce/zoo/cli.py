"""The command ``sb3-reinforce``."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sb3_reinforce.zoo.errors import UsageError, UserError, is_about_request

PROGRAM = "sb3-reinforce"


class Command(NamedTuple):
    """An entry in the table of commands."""

    #: One line for the list of commands.
    summary: str
    #: Differences from RL Zoo, for the command's own help.
    note: str = ""
    #: ``module:function``, imported when the command is called; by default the function of that name in ``zoo.commands``.
    entry_point: str = ""


TIME_LIMIT_NOTE = (
    "--max-episode-steps N ends evaluation episodes where the environment has no time limit, by default after 10,000 steps."
)
DEFAULT_ALGO_NOTE = "--algo is reinforce by default, and agents of reinforce are looked for in logs (-f)."
COMMANDS = {
    "train": Command(
        "train an agent",
        "--algo is reinforce by default, for which --conf-file is by default the file of this package, and adam that with the "
        f"textbook's step. --vec-env may also be envpool: environments in C++. {TIME_LIMIT_NOTE} With "
        "--distributed, several processes train one agent: torchrun --nproc-per-node 2 -m sb3_reinforce train --distributed.",
    ),
    "optimize": Command(
        "search for hyperparameters, and write the best trial as a configuration file",
        "The same as train --optimize-hyperparameters. --seeds-per-trial K trains every trial with K seeds (1 if not given), "
        "whose mean is its value. At the end the best trial is written into the folder of the search, ready for train "
        "--conf-file. Machines share a search by --storage (sqlite:///FILE.db or FILE.log) and --study-name. "
        f"{TIME_LIMIT_NOTE}",
    ),
    "enjoy": Command("run a trained agent", DEFAULT_ALGO_NOTE),
    "record-video": Command("record a trained agent", DEFAULT_ALGO_NOTE),
    "plot-train": Command("plot training curves"),
    "all-plots": Command(
        "plot and tabulate evaluations of several algorithms",
        "Every run needs at least two evaluations of two episodes (train --eval-freq). Runs with fewer evaluations than "
        "others are dropped, which -max prevents. Without a display the figures are saved in the current folder.",
    ),
    "plot-from-file": Command(
        "plot what all-plots -o wrote, also with rliable", "Every algorithm needs at least two runs in every environment."
    ),
    "compare": Command("train algorithms side by side, and write a report", entry_point="sb3_reinforce.zoo.compare.cli:main"),
    "gradients": Command(
        "measure what the gradients of a model are worth, and write a report", entry_point="sb3_reinforce.zoo.gradients:main"
    ),
    "load-from-hub": Command("download a trained agent"),
    "list": Command("list the environments with hyperparameters", entry_point="sb3_reinforce.zoo.commands:list_environments"),
}

#: Errors by which this package and RL Zoo inform the user.
EXPLAINED = (AssertionError, FileNotFoundError, ModuleNotFoundError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param argv: Command line without the program; by default the command line of the process.
    :return: Exit status: 0 for success, 1 for an error, 2 for a command line that cannot be parsed.
    :raises SystemExit: If the command's own parser exits.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(describe_commands())
        return 0 if args else 2
    name, *rest = args
    try:
        run_command(name, rest)
    except KeyboardInterrupt as interrupt:
        print(": ".join([f"{PROGRAM} {name}: interrupted", *interrupt.args]), file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"{PROGRAM}: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def run_command(name: str, args: list[str]) -> None:
    """Look a command up in the table and call it."""
    if name not in COMMANDS:
        similar = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"choose from {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name!r}, {hint}")
    command = COMMANDS[name]
    # RL Zoo looks for custom_envs in the current folder. It comes last, so that its files cannot shadow installed packages.
    # `python -m` puts it first, unless the user asked for a safe path
    if not getattr(sys.flags, "safe_path", False) and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    if "-h" in args or "--help" in args:
        print(f"{PROGRAM} {name}: {command.summary}. {command.note}\n", flush=True)
    entry_point = command.entry_point or f"sb3_reinforce.zoo.commands:{name.replace('-', '_')}"
    module, function = entry_point.split(":")
    getattr(importlib.import_module(module), function)(args)


def explain(error: BaseException) -> str | None:
    """Turn an error into one line; None if it needs its traceback, as a bug or an error in the user's code does."""
    from gymnasium.error import DependencyNotInstalled

    from sb3_reinforce.distributed.process_group import ProcessError

    message = " ".join(str(error).split())
    if isinstance(error, UserError):
        return message
    if type(error).__module__.startswith("huggingface_hub."):
        return f"the Hugging Face Hub did not deliver: {message}"
    if isinstance(error, ImportError | DependencyNotInstalled) and "pip install" in message:
        return message
    if isinstance(error, ProcessError):
        # The failure on this rank may be a bug, about which the other ranks' tracebacks say nothing
        return message if error.__cause__ is None or explain(error.__cause__) else None
    if not isinstance(error, EXPLAINED) or not is_about_request(error, ["importlib"]):
        return None
    # Modules that the user names are imported elsewhere
    return f'{message}: pip install "sb3-reinforce[zoo]"' if isinstance(error, ModuleNotFoundError) else message


def describe_commands() -> str:
    """Return the help text of the program."""
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        (
            f"usage: {PROGRAM} COMMAND [ARGUMENTS]",
            "",
            "RL Zoo with REINFORCE in it: all its algorithms, all its flags.",
            "",
            *(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()),
            "",
            f"{PROGRAM} COMMAND --help tells more.",
        )
    )
