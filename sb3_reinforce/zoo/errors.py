"""The errors that the command line shows on one line; all others keep their traceback."""

import traceback
from collections.abc import Collection

#: Packages whose errors are about the user's request.
OWN = ("sb3_reinforce", "rl_zoo3", "huggingface_sb3")
#: Packages that check what the packages above pass to them.
LIBRARIES = ("stable_baselines3", "sb3_contrib", "gymnasium", "torch", "envpool", "yaml", "importlib", "os", "pathlib")


class UserError(Exception):
    """An error that the user can fix; the message says how."""


class UsageError(UserError):
    """A command line that cannot be parsed."""


def is_about_request(error: BaseException, libraries: Collection[str] = ()) -> bool:
    """
    Check whether an error is about the user's request, and not from the user's environment, callback or policy.

    The innermost frame is then from this package or RL Zoo, or from libraries that they called with no other code in between.
    """
    packages = _packages(error)
    if packages[-1] in libraries and error.__cause__ is not None:
        # gymnasium re-raises the TypeError of a constructor
        packages += _packages(error.__cause__)
    while packages and packages[-1] in libraries:
        packages.pop()
    return bool(packages) and packages[-1] in OWN


def _packages(error: BaseException) -> list[str]:
    """Return the package of each frame of a traceback, the innermost last."""
    names = [
        frame.f_globals.get("__package__") or frame.f_globals["__name__"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    return [name.partition(".")[0] for name in names]
