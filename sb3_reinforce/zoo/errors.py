"""The errors that the command line shows in one line; all others keep their traceback."""

import traceback
from collections.abc import Collection

#: Packages whose errors are about what the user asked for.
OWN = ("sb3_reinforce", "rl_zoo3", "huggingface_sb3")
#: Packages that check what these hand on to them.
LIBRARIES = ("stable_baselines3", "sb3_contrib", "gymnasium", "torch", "envpool", "yaml", "importlib", "os", "pathlib")


class UserError(Exception):
    """Something that the user can put right; the message says how."""


class UsageError(UserError):
    """A command line that cannot be read."""


def is_about_request(error: BaseException, libraries: Collection[str] = ()) -> bool:
    """
    Tell whether an error is about what the user asked for, and not from an environment, a callback or a policy of the user.

    The innermost frame is then of this package or RL Zoo, or of libraries that these called without anybody else between.
    """
    packages = _packages(error)
    if packages[-1] in libraries and error.__cause__ is not None:
        # gymnasium raises the TypeError of a constructor once more
        packages += _packages(error.__cause__)
    while packages and packages[-1] in libraries:
        packages.pop()
    return bool(packages) and packages[-1] in OWN


def _packages(error: BaseException) -> list[str]:
    """Name the package of each frame of a traceback, the innermost last."""
    names = [
        frame.f_globals.get("__package__") or frame.f_globals["__name__"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    return [name.partition(".")[0] for name in names]
