"""Parts of a run that do not need RL Zoo: its files, the versions that it depends on, and why it has no result."""

import contextlib
from importlib import metadata

LOG_FILE = "output.log"
#: Exists only if the run succeeded.
RESULT_FILE = "result.json"
#: Packages on which the results of a run depend.
PACKAGES = ("sb3-reinforce", "stable-baselines3", "sb3-contrib", "rl-zoo3", "torch", "numpy", "gymnasium", "mujoco", "box2d")
TRACEBACK = "Traceback (most recent call last):"
#: Python's note on an exception during its exit, which is never the reason for the exit.
IGNORED = "Exception ignored in"


def installed_versions() -> dict[str, str]:
    """Look up the versions of the packages that are installed."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def explain_failure(return_code: int, log: str) -> str:
    """Explain why a run ended without a result, from its exit status (negative for a signal) and its log."""
    if return_code < 0:
        return f"ended by signal {-return_code}"
    lines = log.strip().splitlines() or ["nothing printed"]
    return f"exit status {return_code}: {last_exception(log) or lines[-1].strip()}"


def last_exception(log: str) -> str | None:
    """Find the first line of the last exception of a Python program; warnings and other output may follow it."""
    lines = log.splitlines()
    starts = [
        index
        for index, line in enumerate(lines)
        if line == TRACEBACK and not (index > 0 and lines[index - 1].startswith(IGNORED))
    ]
    behind = lines[starts[-1] + 1 :] if starts else []
    return next((line for line in behind if line and not line.startswith(" ")), None)
