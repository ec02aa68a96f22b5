"""Versions of what the numbers of a run depend on beside its settings."""

import contextlib
from importlib import metadata

PACKAGES = ("sb3-reinforce", "stable-baselines3", "sb3-contrib", "rl-zoo3", "torch", "numpy", "gymnasium", "mujoco", "box2d")


def installed_versions() -> dict[str, str]:
    """Look up the versions of the packages that are installed."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
