"""README and docs: every block of code runs with what the lines before it install; links and names lead somewhere."""

import ast
import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import matplotlib
import pytest
import torch
import yaml
from comparison_in_process import compare_in_this_process
from doc_blocks import DOCS, LECTURES, PAGES, REPOSITORY, anchors_of, blocks_of, name_of, prose_of, text_of
from packaging.requirements import Requirement
from stable_baselines3 import A2C, PPO

from sb3_reinforce import REINFORCE
from sb3_reinforce.zoo.cli import COMMANDS
from sb3_reinforce.zoo.cli import main as run_command

PROJECT = (REPOSITORY / "pyproject.toml").read_text()
URL, SITE = (re.search(rf'^{name} = "(.*)"$', PROJECT, re.MULTILINE)[1] for name in ("Repository", "Documentation"))
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
            in_block, is_run = not in_block, line in ("```", "```python", "```sh", "```{code-cell}")
        elif in_block and is_run and "pip install" not in line:
            words = " ".join(installed)
            found += [
                f"{line}: {' or '.join(brings)}"
                for pattern, brings in NEEDS.items()
                if re.search(pattern, line) and not any(re.search(rf"(?<![\w-]){name}(?![\w-])", words) for name in brings)
            ]
        installed += INSTALL.findall(line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_needs_what_is_installed_before_it(page):
    installed: list[str] = []
    if page in LECTURES and page.stem != "README":
        # Their introduction comes first
        missing(text_of(page.with_name("README.md")), installed)
    assert missing(text_of(page), installed) == []


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
    # pip fetches hatchling anew for an isolated build: only that failure is the network's, every other one fails the test
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
    installing, block = re.findall(r"^```\w*\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[:2]
    assert installing == "pip install sb3-reinforce\n"
    assert "learn(100_000" in block
    program = block.replace("100_000", "1_000") + "import sb3_reinforce\nprint(sb3_reinforce.__file__)\nimport tqdm\n"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([interpreter, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=variables)
    # The block ran, of this wheel, and where nothing is that the wheel does not ask for
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'tqdm'\n"), done.stderr
    assert done.stdout.endswith(f"{Path('site-packages', 'sb3_reinforce', '__init__.py')}\n")
    assert (tmp_path / "cartpole.zip").is_file()


#: Steps of the trainings on the pages, at most.
N_STEPS = 300

#: Blocks that need what no test has: SLURM, and somebody who presses Enter.
NOT_RUN = ("SLURMCluster",)

PAGES_WITH_PYTHON = [
    page for page in PAGES if page not in LECTURES and any(block.language == "python" for block in blocks_of(page))
]


@pytest.fixture
def one_process(monkeypatch):
    """What torchrun would say to the only process."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    yield
    leave_process_group()


def leave_process_group():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=name_of)
def test_python_runs(page, monkeypatch, tmp_path, one_process):
    """Cells and blocks one after the other, as a reader would run them, with short trainings."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    for algorithm in (REINFORCE, A2C, PPO):
        monkeypatch.setattr(algorithm, "learn", shortened(algorithm.learn))
    monkeypatch.setattr(subprocess, "run", functools.partial(run_in_this_process, monkeypatch, subprocess.run))
    namespace = {"__name__": "__main__"}
    for language, source in blocks_of(page):
        if language == "python" and not any(word in source for word in NOT_RUN):
            exec(compile(re.sub(r"\bSTEPS = [\d_]+", f"STEPS = {N_STEPS}", source), page.name, "exec"), namespace)
            leave_process_group()


def shortened(learn):
    def learn_briefly(self, total_timesteps, *args, **kwargs):
        return learn(self, min(total_timesteps, N_STEPS), *args, **kwargs)

    return learn_briefly


def run_in_this_process(monkeypatch, run, command, **kwargs):
    """A comparison, in place of the processes that a notebook starts."""
    if "compare" not in command:
        return run(command, **kwargs)
    assert command[:3] == [sys.executable, "-m", "sb3_reinforce"]
    compare_in_this_process(monkeypatch)
    shorter = "--seeds 1 -n 64 --n-evaluations 1 --eval-episodes 1 --final-episodes 1 --jobs 1"
    assert run_command([*command[3:], *shorter.split()]) == 0
    return subprocess.CompletedProcess(command, 0, "", "")


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=name_of)
def test_blocks_are_of_known_languages(page):
    known = {"", "python", "pycon", "sh", "text", "yaml", "bibtex", "{eval-rst}", "{toctree}"}
    assert {language.split(" ")[0] for language, _ in blocks_of(page)} <= known | {"{include}"}
    for language, source in blocks_of(page):
        if language == "yaml":
            yaml.safe_load(source)


def commands_of(page):
    """The command lines of a page, prompts and loops of the shell taken away."""
    for language, source in blocks_of(page):
        if language in ("", "sh"):
            for line in source.replace("\\\n", " ").splitlines():
                command = re.sub(r"^\s*(\w+\$\s+)?([A-Z_]+=\S+ )*", "", line)
                if command and not re.match(r"(for|do|done)\b|#", command):
                    yield shlex.split(command, comments=True)


@functools.cache
def help_of(name):
    """The help text of a command of sb3-reinforce."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run_command([name, "--help"])
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_known(page):
    for words in commands_of(page):
        program, *rest = words
        if program == "torchrun" and "-m" in rest:
            program, *rest = rest[rest.index("-m") + 1 :]
        if program in ("sb3-reinforce", "sb3_reinforce"):
            assert rest[0] in COMMANDS, words
            for word in rest[1:]:
                if re.match(r"--?[a-z]", word):
                    assert re.search(rf"(?<![\w-]){word.split('=')[0]}(?![\w-])", help_of(rest[0])), (words, word)
        elif program == "python":
            assert (REPOSITORY / rest[0]).is_file(), words
        elif program == "make":
            assert re.search(rf"^{rest[0]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), words
        elif program == "pip":
            for extra in re.findall(r"sb3-reinforce\[([\w,]+)\]|\.\[(\w+)\]", " ".join(rest)):
                for name in "".join(extra).split(","):
                    assert re.search(rf"^{name} = \[", PROJECT, re.MULTILINE), words
        else:
            assert program in ("torchrun", "dask"), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(SITE):
            where = DOCS / re.sub(r"^/?(en/latest)?/?", "", path.removeprefix(SITE)).replace(".html", ".md")
            where = DOCS / "index.md" if where == DOCS else where
        elif path.startswith(URL):
            where = REPOSITORY / re.sub(r"^/?((blob|tree)/main/)?", "", path.removeprefix(URL))
        elif path.startswith(f"https://raw.githubusercontent.com/{URL.removeprefix('https://github.com/')}/main/"):
            where = REPOSITORY / path.split("/main/")[1]
        elif ":" in path:
            continue
        else:
            where = (page.parent / path).resolve() if path else page
        assert where.exists(), target
        if anchor and where.suffix == ".md":
            assert anchor in anchors_of(where), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_that_are_named_exist(page):
    for name, path in re.findall(r"\[`(test_\w+)`\]\(([^)#]+)\)", prose_of(page)):
        assert re.search(rf"^def {name}\(", (page.parent / path).read_text(), re.MULTILINE), name


def documented_objects():
    """What the pages of the API document: modules, classes."""
    for page in sorted((DOCS / "api").glob("*.md")):
        yield from re.findall(r"auto(?:module|class|function):: (sb3_reinforce\S*)", page.read_text())


@pytest.mark.parametrize("name", list(documented_objects()))
def test_what_the_api_pages_document_exists(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_every_page_is_on_the_site():
    tables = "\n".join(page.read_text() for page in DOCS.rglob("*.md") if "{toctree}" in page.read_text())
    for page in PAGES[1:]:
        assert (page.stem == "index" and page.parent == DOCS) or re.search(rf"^(\w+/)*{page.stem}$", tables, re.MULTILINE), (
            page
        )


def test_the_readme_is_short_and_its_images_are_absolute():
    readme = (REPOSITORY / "README.md").read_text()
    assert len(readme.splitlines()) <= 130
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)\s]+)\)", readme))


def test_the_defaults_in_the_readme_are_those_of_the_class():
    readme = (REPOSITORY / "README.md").read_text()
    defaults = {name: parameter.default for name, parameter in inspect.signature(REINFORCE).parameters.items()}
    for name in ("learning_rate", "natural_gradient", "baseline", "normalize_advantage"):
        (written,) = re.findall(rf"^\| `{name}` \| `?([^|`]+)`? \|", readme, re.MULTILINE)
        assert ast.literal_eval(written) == defaults[name]
    assert f"`target_kl` ({defaults['target_kl']})" in readme
    assert f"{REINFORCE('MlpPolicy', 'CartPole-v1').n_steps} steps per environment" in readme
