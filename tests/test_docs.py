"""README and docs: every block of code needs no more than what the lines before it install."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
LECTURES = REPOSITORY / "docs" / "lectures"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
INSTALL = re.compile(r"pip install ([^`#\n]+)")
#: What a line of a block needs beside the package itself, and what brings it.
NEEDS = {
    r"\bsb3-reinforce [a-z]|-m sb3_reinforce\b|\brl_zoo3\b|\bdask (scheduler|worker)\b": ["zoo"],
    r"progress_bar|tensorboard": ["extra", "zoo"],
    r"Lstm|_lstm\b|sb3_contrib": ["lstm", "zoo"],
    r"envpool": ["envpool"],
    r"ResizeObservation": ["opencv-python", "atari"],
    r"NoFrameskip|ALE/": ["atari"],
    r"dask_jobqueue": ["dask-jobqueue"],
    r"^(?!.*envpool).*(LunarLander|BipedalWalker)": ["box2d", "dev"],
    r"^(?!.*envpool).*(Ant|HalfCheetah|Hopper|Humanoid|Reacher|Swimmer|Walker2d|InvertedPendulum)-v": ["mujoco", "dev"],
    r"\bpython benchmarks/": ["dev"],
}


def missing(text: str, installed: list[str]) -> list[str]:
    """Lines in blocks of a page that need what no line before them installs; `installed` is extended by what does."""
    found = []
    in_block = is_run = False
    for line in text.splitlines():
        if line.startswith("```"):
            in_block, is_run = not in_block, line in ("```", "```python", "```sh")
        elif in_block and is_run and "pip install" not in line:
            words = " ".join(installed)
            found += [
                f"{line}: {' or '.join(brings)}"
                for pattern, brings in NEEDS.items()
                if re.search(pattern, line) and not any(re.search(rf"(?<![\w-]){name}(?![\w-])", words) for name in brings)
            ]
        installed += INSTALL.findall(line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_block_needs_what_is_installed_before_it(page):
    installed: list[str] = []
    if page.parent == LECTURES and page.stem != "README":
        # Their introduction comes first
        missing((LECTURES / "README.md").read_text(), installed)
    assert missing(page.read_text(), installed) == []


def test_what_is_missing_is_found():
    text = (
        '```python\nlearn(9, progress_bar=True)\n```\n`pip install "x[extra]"`\n```\ntensorboard\ntrain --env Hopper-v5\n```\n'
    )
    assert missing(text, []) == ["learn(9, progress_bar=True): extra or zoo", "train --env Hopper-v5: mujoco or dev"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this package."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 and "hatchling" in done.stderr:
        pytest.skip("pip cannot get what builds the wheel: no network?")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def make_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with a wheel and what it requires, linked from this environment; returns its interpreter."""
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (package,) = importlib.metadata.distributions(path=[str(site)])
    done, waiting = set(), [(package, "")]
    while waiting:
        distribution, extra = waiting.pop()
        for requirement in map(Requirement, distribution.requires or []):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *requirement.extras):
                if (requirement.name, wanted) not in done:
                    done.add((requirement.name, wanted))
                    waiting.append((importlib.metadata.distribution(requirement.name), wanted))
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def test_the_first_block_of_the_readme_runs_with_the_wheel_alone(wheel, tmp_path):
    interpreter = make_environment(tmp_path / "venv", wheel)
    readme = (REPOSITORY / "README.md").read_text()
    block = re.search(r"^```\npip install sb3-reinforce\n```\n```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert block is not None and readme.index("```") == block.start()
    assert "learn(100_000" in block[1]
    program = block[1].replace("100_000", "1_000") + "import sb3_reinforce\nprint(sb3_reinforce.__file__)\nimport tqdm\n"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([interpreter, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=variables)
    # The block ran, of this wheel, and where nothing is that the wheel does not ask for
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'tqdm'\n"), done.stderr
    assert done.stdout.endswith(f"{Path('site-packages', 'sb3_reinforce', '__init__.py')}\n")
    assert (tmp_path / "cartpole.zip").is_file()
