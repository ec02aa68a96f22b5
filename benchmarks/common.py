"""
Shared by the benchmarks: the folder of the results, their provenance, and files that are never half-written.

The results of a benchmark are one CSV with a row for each run. Its last columns record how the run was made: command, date,
commit, hash of the sources, versions and machine. Pages in Markdown are made from the CSV alone.

Nothing heavy is imported here: ``memory.py`` measures a child process, and a child's peak memory starts at its parent's.
"""

import argparse
import datetime
import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS_DIR = REPOSITORY / "benchmarks" / "results"
LOGS_DIR = REPOSITORY / "logs" / "benchmarks"
DISTRIBUTIONS = ("torch", "numpy", "stable-baselines3", "gymnasium")
#: Columns on how a run was made.
PROVENANCE = ["command", "date", "commit", "sources", "versions", "machine"]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="folder that the results are written to")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, write the page of the results again")
    return parser


def positive_int(text: str) -> int:
    value = int(float(text))
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def make_provenance(script: str, arguments: Sequence[str]) -> dict[str, str]:
    """Describe how a result is made, without the folders of the machine."""
    words = list(arguments)
    for option in {"--results-dir", "--folder"}.intersection(words):
        at = words.index(option)
        del words[at : at + 2]
    git = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    versions = [f"{distribution} {metadata.version(distribution)}" for distribution in DISTRIBUTIONS]
    return {
        "command": shlex.join(["python", f"benchmarks/{script}.py", *words]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": git.stdout.strip() or "unknown",
        "sources": hash_sources(),
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "machine": f"{name_cpu()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
    }


def hash_sources() -> str:
    """Hash the sources of the package: unlike the commit, the hash also covers changes that are not committed."""
    digest = hashlib.sha256()
    package = REPOSITORY / "sb3_reinforce"
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def name_cpu() -> str:
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_results(path: Path, columns: Iterable[str] = ()) -> "pd.DataFrame":
    """Read the CSV of a benchmark; without the file, a table without rows that has the columns."""
    import pandas as pd

    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    # Some commits look like numbers
    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(PROVENANCE, str))


def write_results(path: Path, results: "pd.DataFrame", page: str) -> None:
    """Write the CSV of a benchmark, and its page beside it."""
    write_table(path, results)
    write_text(path.with_suffix(".md"), page)


def write_table(path: Path, results: "pd.DataFrame") -> None:
    write_text(path, results.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def measure_missing(
    path: Path, key: Sequence[str], cells: Iterable[tuple[Any, ...]], measure: Callable[..., Any], arguments: Sequence[str]
) -> "pd.DataFrame":
    """
    Measure the cells that have no rows in the CSV yet, which is written after each of them.

    :param cells: Values of the columns ``key``, with which ``measure`` is called.
    """
    import pandas as pd
    from tqdm import tqdm

    results, made_by = read_results(path, key), make_provenance(path.stem, arguments)
    done = set(results[list(key)].itertuples(index=False, name=None))
    for cell in tqdm([cell for cell in cells if cell not in done], desc=path.stem):
        results = replace_rows(results, pd.DataFrame(measure(*cell)).assign(**made_by), key)
        write_table(path, results)
    return results


def replace_rows(results: "pd.DataFrame", new: "pd.DataFrame", key: Sequence[str]) -> "pd.DataFrame":
    """Replace all rows that have the keys of new rows; the new rows go to the place of the first, or to the end."""
    import pandas as pd

    if results.empty:
        return new

    def list_keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
        return list(zip(*(table[name].astype(str).replace("nan", "") for name in key), strict=True))

    replaced = set(list_keys(new))
    kept = [own not in replaced for own in list_keys(results)]
    first = len(kept) if all(kept) else kept.index(False)
    return pd.concat([results[:first], new, results[first:][kept[first:]]], ignore_index=True)


def describe_provenance(results: "pd.DataFrame") -> str:
    """List how the runs were made, a line for each command, with all of its dates and sources."""
    lines = []
    for command, rows in results.groupby("command", sort=False):
        days, commits, sources, versions, machines = (list(dict.fromkeys(rows[key])) for key in PROVENANCE[1:])
        machines = list(dict.fromkeys(machine.partition(", load")[0] for machine in machines))
        lines.append(
            f"- `{command}`: {', '.join(days)}; commit {', '.join(commits)}; sources {', '.join(sources)}; "
            f"{'; '.join([*versions, *machines])}; one thread, CPU."
        )
    return "\n".join(lines)


def make_page(parts: Iterable[str], results: "pd.DataFrame") -> str:
    """Join the paragraphs of a page, and add the provenance of the runs."""
    return "\n\n".join([*parts, "## Provenance", describe_provenance(results)]) + "\n"


def make_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make a table in Markdown, with the keys of the rows as header."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_text(path: Path, text: str) -> None:
    """Write a file beside its destination, and then move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
