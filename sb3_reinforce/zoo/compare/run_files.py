"""What is known of a run without RL Zoo: its files, the versions it depends on, and why it has no result."""

import contextlib
from importlib import metadata

LOG_FILE = "output.log"
#: Is there only if the run succeeded.
RESULT_FILE = "result.json"
#: What the numbers of a run depend on.
PACKAGES = ("sb3-reinforce", "stable-baselines3", "sb3-contrib", "rl-zoo3", "torch", "numpy", "gymnasium", "mujoco", "box2d")
TRACEBACK = "Traceback (most recent call last):"
#: Python's note on what happens while it ends, which is never why it ends.
IGNORED = "Exception ignored in"


def installed_versions() -> dict[str, str]:
    """Look up the versions of the packages that are installed."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def explain_failure(return_code: int, log: str) -> str:
    """Say why a run ended without a result: by its exit status, negative for a signal, and what it printed."""
    if return_code < 0:
        return f"ended by signal {-return_code}"
    lines = log.strip().splitlines() or ["nothing printed"]
    return f"exit status {return_code}: {last_exception(log) or lines[-1].strip()}"


def last_exception(log: str) -> str | None:
    """Find the first line of the last exception of a Python program, behind which warnings and more may stand."""
    lines = log.splitlines()
    starts = [
        index
        for index, line in enumerate(lines)
        if line == TRACEBACK and not (index > 0 and lines[index - 1].startswith(IGNORED))
    ]
    behind = lines[starts[-1] + 1 :] if starts else []
    return next((line for line in behind if line and not line.startswith(" ")), None)
