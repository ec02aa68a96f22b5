"""
Write RL Zoo's entries for earlier versions of environments under the names of the current versions.

RL Zoo has no entries for the version 5 MuJoCo environments, and trains there with ``default``: SB3's defaults, without
normalised observations. The entries tuned for version 4 make a fairer comparison; ``sb3-reinforce compare`` accepts the files
that this command writes.

    python benchmarks/earlier_entries.py --algos a2c ppo trpo --env HalfCheetah-v5 Hopper-v5 Swimmer-v5 Walker2d-v5
    sb3-reinforce compare --conf-file a2c=logs/earlier_entries/a2c.yml ppo=logs/earlier_entries/ppo.yml ...
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rl_zoo3
import yaml

RL_ZOO_DIR = Path(rl_zoo3.__file__).parent / "hyperparams"


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", required=True, help="algorithms of RL Zoo")
    parser.add_argument("--env", nargs="+", required=True, metavar="ID", help="environments, with their versions")
    parser.add_argument("-f", "--folder", type=Path, default=Path("logs/earlier_entries"), help="where the files go")
    return parser.parse_args(arguments)


def rename(entries: Mapping[str, Any], env_id: str) -> dict[str, Any]:
    """Return the entry of an environment, or else of its latest earlier version."""
    name, _, version = env_id.rpartition("-v")
    for number in range(int(version), -1, -1):
        if (known := f"{name}-v{number}") in entries:
            return dict(entries[known])
    raise SystemExit(f"RL Zoo has no entry for {env_id}, and none for an earlier version")


def main(arguments: Sequence[str]) -> None:
    options = parse_options(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for algo in options.algos:
        entries = yaml.safe_load((RL_ZOO_DIR / f"{algo}.yml").read_text(encoding="utf-8"))
        renamed = {env_id: rename(entries, env_id) for env_id in options.env}
        (options.folder / f"{algo}.yml").write_text(yaml.safe_dump(renamed), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
