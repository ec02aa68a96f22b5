"""
The pages in docs/lectures/: every block of code runs, and every number on them is one that it printed or that a file holds.

What is printed below a block of Python must be what the block prints, so only what is exact, or takes no training, is
followed by a block of text. Trainings are shortened, by the constants of SHORTENED alone; commands by options behind them.
"""

import importlib
import itertools
import re
import shlex
import sys

import pandas as pd
import pytest
from comparison_in_process import compare_in_this_process
from doc_blocks import LECTURES, REPOSITORY, blocks_of, prose_of

from sb3_reinforce.zoo.cli import main as run_command
from sb3_reinforce.zoo.compare import cli

RESULTS = REPOSITORY / "benchmarks" / "results"
SHORTENED = {"STEPS": 256}
SHORTER_CLONING = ["--seeds", "0", "--n-timesteps", "256", "--episodes", "2"]
SHORTER_COMPARISON = "--seeds 1 -n 64 --n-evaluations 1 --eval-episodes 1 --final-episodes 1 --jobs 1".split()
sys.path.insert(0, str(REPOSITORY / "benchmarks"))


def shorten(source):
    for name, value in SHORTENED.items():
        source = re.sub(rf"^{name} = [\d_]+$", f"{name} = {value}", source, flags=re.MULTILINE)
    return source


@pytest.mark.parametrize("page", LECTURES, ids=lambda page: page.stem)
def test_python_prints_what_the_page_says(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    found = blocks_of(page)
    assert {language for language, _ in found} <= {"python", "text", "sh", "{toctree}"}
    for (language, source), (next_language, printed) in itertools.pairwise([*found, ("", "")]):
        if language == "python":
            exec(compile(shorten(source), page.name, "exec"), namespace)
            out = capsys.readouterr().out
            if next_language == "text":
                assert shorten(source) == source, "what depends on a training is not printed on a page"
                assert out == printed


def commands():
    return [
        pytest.param(line, id=f"{page.stem}: {line}")
        for page in LECTURES
        for language, source in blocks_of(page)
        if language == "sh"
        for line in source.splitlines()
    ]


@pytest.mark.parametrize("command", commands())
def test_commands_run(command, tmp_path, monkeypatch):
    words = shlex.split(command)
    if words == ["python", "benchmarks/cloning.py"]:
        importlib.import_module("cloning").main(["--results-dir", str(tmp_path), *SHORTER_CLONING])
        assert (tmp_path / "cloning.md").exists()
        return
    compare_in_this_process(monkeypatch)
    if words[:4] == ["python", "benchmarks/compare.py", "lectures", "--part"]:
        monkeypatch.setattr(cli, "write_report", lambda folder, *_: (folder / "report.md").write_text("#\n\nThe report"))
        folders = ["--results-dir", str(tmp_path), "--folder", str(tmp_path / "runs")]
        importlib.import_module("compare").main([*words[2:], *folders, *SHORTER_COMPARISON])
        runs = pd.read_csv(tmp_path / "lectures.csv")
        assert set(runs["part"]) == set(words[4:])
    else:
        assert words[:2] == ["sb3-reinforce", "compare"]
        assert run_command([*words[1:], "-f", str(tmp_path), *SHORTER_COMPARISON]) == 0
        runs = pd.read_csv(tmp_path / "results.csv")
        assert list(runs["algorithm"].unique()) == ["reinforce", "dqn", "ars"]


@pytest.mark.parametrize("page", LECTURES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_results(page):
    known = {line for name in ("lectures", "cloning") for line in (RESULTS / f"{name}.md").read_text().splitlines()}
    prose = prose_of(page)
    tables = [line for line in prose.splitlines() if line.startswith("|")]
    if page.stem == "README":
        assert not re.search(r"\d\.\d{2}", prose.replace("2.636", ""))
        return
    assert not [line for line in tables if line not in known]
