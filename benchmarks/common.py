"""
What the benchmarks share: command line options, provenance, tables, and files that are never half-written.

Nothing heavy is imported here: ``memory.py`` measures a child process, whose peak memory starts from that of its parent.
"""

import argparse
import datetime
import hashlib
import io
import json
import os
import platform
import re
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS_DIR = REPOSITORY / "benchmarks" / "results"
PACKAGE_DIR = REPOSITORY / "sb3_reinforce"
HYPERPARAMETERS = REPOSITORY / "hyperparams" / "reinforce.yml"

DISTRIBUTIONS = {
    "torch": "torch",
    "numpy": "numpy",
    "stable_baselines3": "stable-baselines3",
    "gymnasium": "gymnasium",
    "sb3_reinforce": "sb3-reinforce",
}
#: The folders of an absolute path, of which only the last part is kept in what is written.
ABSOLUTE_FOLDERS = re.compile(r"(?<![\w.~/-])/(?:[^\s/'\":,=]+/)+")

#: One colour per contender in all figures.
COLOURS = {"reinforce": "tab:blue", "ppo": "tab:orange", "a2c": "tab:green", "bare": "tab:gray"}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="folder that the results are written to")
    return parser


def positive_int(text: str) -> int:
    value = int(float(text))
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def provenance(name: str, arguments: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Say by what a result was made, without anything that tells where."""
    return {
        "command": without_machine_paths(shlex.join(["python", f"benchmarks/{name}.py", *arguments])),
        "seeds": list(seeds),
        "date_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {key: metadata.version(distribution) for key, distribution in DISTRIBUTIONS.items()},
        "git_commit": git_commit(),
        "code_hash": code_hash(),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "load_average_at_start": round(os.getloadavg()[0], 2),
        },
        "torch_threads": 1,
        "device": "cpu",
    }


def without_machine_paths(text: str) -> str:
    for folder in (f"{REPOSITORY}{os.sep}", f"{REPOSITORY}"):
        text = text.replace(folder, "")
    return ABSOLUTE_FOLDERS.sub("…/", text)


def git_commit() -> str | None:
    """Read the commit from git's files, which needs no git and disturbs none that runs."""
    git_dir = REPOSITORY / ".git"
    if git_dir.is_file():
        git_dir = REPOSITORY / git_dir.read_text().removeprefix("gitdir:").strip()
    if not (git_dir / "HEAD").exists():
        return None
    head = (git_dir / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    reference = head.removeprefix("ref: ")
    common = git_dir / "commondir"
    refs_dir = git_dir / common.read_text().strip() if common.exists() else git_dir
    if (refs_dir / reference).exists():
        return (refs_dir / reference).read_text().strip()
    packed = refs_dir / "packed-refs"
    lines = packed.read_text().splitlines() if packed.exists() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), None)


def code_hash() -> str:
    """Hash the sources of the package: unlike the commit, it also tells of changes that are not committed."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE_DIR.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE_DIR).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cpu_model() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def provenance_line(made_by: dict[str, Any]) -> str:
    """Sum up a provenance in a line of markdown."""
    versions = ", ".join(f"{package} {version}" for package, version in made_by["versions"].items())
    machine = made_by["machine"]
    return (
        f"`{made_by['command']}`: commit {(made_by['git_commit'] or 'unknown')[:10]}, sources {made_by['code_hash']}; "
        f"{versions}; {machine['cpu']}, {machine['cores']} cores, load {machine['load_average_at_start']} at the start; "
        "one torch thread, CPU."
    )


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Make a table whose header are the keys of the rows."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its destination and put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    replace_file(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a file that an earlier run wrote, or an empty dict if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_results(
    results_dir: Path, name: str, content: dict[str, Any], markdown: str, figure: "Figure | None" = None
) -> None:
    write_json(results_dir / f"{name}.json", content)
    if figure is not None:
        write_figure(results_dir / f"{name}.png", figure)
    write_text(results_dir / f"{name}.md", markdown)


def write_figure(path: Path, figure: "Figure") -> None:
    image = io.BytesIO()
    # Without the version of matplotlib, equal figures are equal files
    figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    replace_file(path, image.getvalue())


def merge_rows(old_rows: list[dict[str, Any]], new_row: dict[str, Any], key_names: Sequence[str]) -> list[dict[str, Any]]:
    """Put a row where the old one with the same key was, or at the end."""

    def key(row: dict[str, Any]) -> list[Any]:
        return [row[name] for name in key_names]

    if key(new_row) in [key(row) for row in old_rows]:
        return [new_row if key(row) == key(new_row) else row for row in old_rows]
    return [*old_rows, new_row]
