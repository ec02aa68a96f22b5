"""The benchmark scripts run end to end on tiny budgets, and the committed pages are what the committed tables make."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from made_up_runs import write_result

from sb3_reinforce.zoo.compare.plan import RANDOM

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"
# The processes that a script spawns import it by this path too
sys.path.insert(0, str(BENCHMARKS))

common = importlib.import_module("common")
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


def run_in_process(name, results_dir, *arguments):
    return importlib.import_module(name).main([*map(str, arguments), "--results-dir", str(results_dir)])


def run_script(name, results_dir, *arguments):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--results-dir", str(results_dir), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def read(results_dir, name):
    """Check what is common to the tables of all scripts, and return one."""
    for path in results_dir.rglob("*"):
        assert not path.name.endswith(".unfinished")
        if path.suffix in (".csv", ".md"):
            assert not [folder for folder in (REPOSITORY, results_dir, sys.prefix) if str(folder) in path.read_text()]
    table = common.read_results(results_dir / f"{name}.csv")
    assert list(table.columns[-len(common.PROVENANCE) :]) == common.PROVENANCE
    assert table[common.PROVENANCE].notna().all(axis=None)
    assert (table["sources"] == common.hash_sources()).all()
    return table


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(["--help"])
    assert end.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


# What they share


def test_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "file.txt"
    common.write_text(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        common.write_text(path, "new")
    assert [(found.name, found.read_text()) for found in path.parent.iterdir()] == [("file.txt", "old")]


def test_provenance_does_not_name_the_folder_of_the_results():
    made_by = common.make_provenance(
        "memory", ["--steps", "9", "--results-dir", "/home/a", "--folder", "/home/b", "--rounds", "2"]
    )
    assert list(made_by) == common.PROVENANCE
    assert made_by["command"] == "python benchmarks/memory.py --steps 9 --rounds 2"


def test_rows_are_replaced_by_those_with_the_same_key():
    old = pd.DataFrame({"env": ["a", "a", "b"], "axis": [np.nan, "n", np.nan], "value": [1, 2, 3]})
    new = pd.DataFrame({"env": ["a", "c"], "axis": ["", ""], "value": [4, 5]})
    joined = common.replace_rows(old, new, ["env", "axis"])
    assert joined["value"].tolist() == [4, 5, 2, 3]


def test_commits_that_look_like_numbers_stay_text(tmp_path):
    common.write_text(tmp_path / "a.csv", "seed,commit\n0,12e4567890\n1,0012345678\n")
    assert common.read_results(tmp_path / "a.csv")["commit"].tolist() == ["12e4567890", "0012345678"]


# The committed results


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.csv")), ids=lambda path: path.stem)
def test_committed_pages_are_made_from_the_committed_tables(path, tmp_path):
    name = path.stem
    comparisons = importlib.import_module("comparisons").COMPARISONS
    table = common.read_results(path)
    assert table[common.PROVENANCE].notna().all(axis=None)
    common.write_text(tmp_path / path.name, path.read_text())
    script = "compare" if name in comparisons else name
    arguments = [name] if name in comparisons else ["learning"] if name == "throughput" else []
    run_in_process(script, tmp_path, *arguments, "--report-only")
    assert (tmp_path / f"{name}.md").read_text() == path.with_suffix(".md").read_text()
    pd.testing.assert_frame_equal(common.read_results(tmp_path / path.name), table)


# Comparisons


def train_nothing(folder, settings, pool):
    """Write the results of a comparison; the seed decides the score."""
    from sb3_reinforce.zoo.compare.plan import list_tasks

    tasks = [task for task in list_tasks(settings) if not (folder / task.folder).exists()]
    for task in tasks:
        write_result(folder, task, 0.0 if task.algorithm == RANDOM else {"ppo": 100.0}.get(task.algorithm, 60.0) + task.seed)
    return {}


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Runs a made-up comparison whose runs nobody trains."""
    module, comparisons = importlib.import_module("compare"), importlib.import_module("comparisons")
    monkeypatch.setattr(module.cli, "train", train_nothing)
    # The report of the command has tests of its own
    monkeypatch.setattr(module.cli, "write_report", lambda folder, *_: (folder / "report.md").write_text("#\n\nThe report"))
    monkeypatch.setattr(importlib.import_module("pages").statistics, "BOOTSTRAP_SAMPLES", 100)
    parts = {
        "two": "--env CartPole-v1 --algos reinforce ppo --seeds 2 -n 1000 --threshold CartPole-v1=40",
        "other": "--env Acrobot-v1 --algos reinforce reinforce-adam ppo --seeds 2 --seconds 60",
    }
    comparison = comparisons.Comparison(
        "Made up",
        "For the test.",
        parts,
        columns=("score", "area", "score_minus_std", "sampled_score"),
        dots="score",
        normalised=True,
        figures={"curves.png": "two/CartPole-v1", "all.png": "two"},
    )
    published = {"CartPole-v1": comparisons.Published("12", ppo="99 (10k)")}
    made_up = {
        "made_up": comparison,
        "to_threshold": comparison._replace(to_threshold=True, dots="steps_to_threshold", normalised=False),
        "table": comparison._replace(published=published, normalised=False),
    }
    for name, one in made_up.items():
        monkeypatch.setitem(module.COMPARISONS, name, one)

    def run(*arguments, folder="f"):
        module.main([*arguments, "--results-dir", str(tmp_path / "r"), "--folder", str(tmp_path / folder)])

    return run


def test_a_comparison_is_run_kept_and_shown(tmp_path, compare):
    compare("made_up")
    runs = read(tmp_path / "r", "made_up")
    assert runs.groupby(["part", "algorithm"])["seed"].apply(list).to_dict() == {
        ("other", "ppo"): [0, 1],
        ("other", "random"): [0],
        ("other", "reinforce"): [0, 1],
        ("other", "reinforce-adam"): [0, 1],
        ("two", "ppo"): [0, 1],
        ("two", "random"): [0],
        ("two", "reinforce"): [0, 1],
    }
    own = runs[(runs["part"] == "two") & (runs["algorithm"] == "reinforce")]
    assert own["score"].tolist() == [60.0, 61.0] and own["score_std"].tolist() == [2.0, 2.0]
    assert own["sampled_score"].tolist() == [50.0, 51.0]
    assert set(own["budget"]) == {"1000 steps"} and set(own["threshold"]) == {40.0}
    assert "natural_gradient" in json.loads(own["hyperparameters"].iloc[0])
    assert set(runs.loc[runs["part"] == "other", "budget"].dropna()) == {"60 seconds"}

    page = (tmp_path / "r" / "made_up.md").read_text()
    assert "| CartPole-v1 | reinforce | 1,000 steps | 2 | 60.5" in page and "## other" in page
    assert "interquartile mean of the normalised final scores" in page
    for figure in ("made_up.png", "made_up_aggregates.png", "curves.png", "all.png"):
        assert (tmp_path / "r" / figure).read_bytes().startswith(b"\x89PNG")

    # Only what is asked for is made again, and the rest stays
    before = (tmp_path / "r" / "made_up.md").read_text()
    compare("made_up", "--report-only")
    assert (tmp_path / "r" / "made_up.md").read_text() == before
    compare("made_up", "--part", "two")
    assert len(read(tmp_path / "r", "made_up")) == len(runs)
    with pytest.raises(SystemExit):
        compare("made_up", "--part", "four")


def test_an_algorithm_that_is_made_again_is_read_off_where_the_others_were(tmp_path, compare):
    compare("made_up", "--part", "two")
    runs = read(tmp_path / "r", "made_up")
    at_200 = runs.assign(equal_steps=runs["equal_steps"].where(runs["equal_steps"].isna(), 200))
    common.write_results(tmp_path / "r" / "made_up.csv", at_200, "")
    compare("made_up", "--part", "two", "--algos", "reinforce", folder="again")
    runs = read(tmp_path / "r", "made_up").dropna(subset="equal_steps").set_index(["algorithm", "seed"])
    assert len(runs) == 4 and set(runs["equal_steps"]) == {200}
    assert runs["score_at_equal_steps"].to_dict() != at_200.set_index(["algorithm", "seed"])["score_at_equal_steps"].to_dict()

    # A run that ends before has no score there
    far = at_200.assign(equal_steps=at_200["equal_steps"].where(at_200["equal_steps"].isna(), 10**6))
    common.write_results(tmp_path / "r" / "made_up.csv", far, "")
    compare("made_up", "--part", "two", "--algos", "reinforce", folder="again")
    runs = read(tmp_path / "r", "made_up").dropna(subset="equal_steps")
    assert runs.loc[runs["algorithm"] == "reinforce", "score_at_equal_steps"].isna().all()


def test_runs_that_do_not_reach_the_threshold_bound_the_median(tmp_path, compare):
    compare("to_threshold", "--part", "two")
    rows = [line for line in (tmp_path / "r" / "to_threshold.md").read_text().splitlines() if line.startswith("| Cart")]
    assert "| 0 of 2 | 40 | > 1,000 | > 10.0 |" in rows[0]
    assert "| 2 of 2 | 40 | " in rows[1] and ">" not in rows[1]


def test_a_row_for_each_environment(tmp_path, compare, monkeypatch):
    monkeypatch.setattr(importlib.import_module("compare"), "SNAPSHOTS", (600,))
    monkeypatch.setattr(importlib.import_module("pages"), "SNAPSHOTS", (600, 5000))
    compare("table")
    rows = [line for line in (tmp_path / "r" / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[0].split(" | ")[2:6] == ["600", "5,000", "at the end", "steps"]
    cartpole, acrobot = (row.split(" | ") for row in rows[2:4])
    assert cartpole[4:] == ["60.50 [54.15, 66.85]", "1,000", "", "12", "", "99 (10k)", " |"]
    assert cartpole[2] != "" and cartpole[3] == ""
    assert acrobot[6:] == ["60.50 [54.15, 66.85]", "", "", "", " |"]


def test_environments_of_several_comparisons_are_put_together(monkeypatch):
    pages = importlib.import_module("pages")
    monkeypatch.setattr(pages.statistics, "BOOTSTRAP_SAMPLES", 100)
    tables = []
    for env, n_seeds in (("a", 3), ("b", 2)):
        rows = [{"env": env, "algorithm": "random", "seed": 0, "sampled_score": 0.0}]
        rows += [
            {"env": env, "algorithm": name, "seed": seed, "score": score - 20.0 * seed, "score_at_equal_steps": score / 2.0}
            for name, score in zip([*pages.OVERALL_ALGORITHMS, "dqn"], (100.0, 80.0, 60.0, 50.0, 40.0, 10.0), strict=True)
            for seed in range(n_seeds)
        ]
        table = pd.DataFrame(rows).assign(budget="9 steps", **common.make_provenance("compare", ["made_up"]))
        tables.append(table.assign(equal_steps=np.where(table["algorithm"] == "random", np.nan, 500.0)))
    page = pages.make_overall_page(tables)
    # The third seed of the first has no counterpart
    assert "the seeds 0, 1, which all comparisons have" in page
    assert "| a | 0.90 | 0.70 | 0.50 | 0.40 | 0.30 |" in page
    assert "500 (a) and 500 (b)" in page and "dqn" not in page


def test_equal_runs_and_missing_scores_have_no_panel():
    pages, comparisons = importlib.import_module("pages"), importlib.import_module("comparisons")
    scores = {"same": (1.0, 1.0), "different": (1.0, 2.0), "sampled": (np.nan, np.nan)}
    rows = [
        {"part": "p", "env": env, "algorithm": name, "seed": 0, "budget": "9 steps", "score": score}
        for env, own in scores.items()
        for name, score in zip(("reinforce", "reinforce-adam"), own, strict=True)
    ]
    figure = pages.draw_dots(pd.DataFrame(rows), comparisons.COMPARISONS["zoo_table"])
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["different\n9 steps"]


def test_earlier_entries_get_the_present_names(tmp_path, monkeypatch):
    earlier_entries = importlib.import_module("earlier_entries")
    known = {"Hopper-v3": {"gamma": 0.3}, "Hopper-v4": {"gamma": 0.4}, "Hopper-v6": {"gamma": 0.6}, "default": {}}
    (tmp_path / "a2c.yml").write_text(yaml.safe_dump(known))
    monkeypatch.setattr(earlier_entries, "RL_ZOO_DIR", tmp_path)
    folder = tmp_path / "new" / "folder"
    earlier_entries.main(["--algos", "a2c", "--env", "Hopper-v5", "Hopper-v3", "-f", str(folder)])
    written = yaml.safe_load((folder / "a2c.yml").read_text())
    assert written == {"Hopper-v5": {"gamma": 0.4}, "Hopper-v3": {"gamma": 0.3}}
    with pytest.raises(SystemExit, match="no entry for Hopper-v2, and none for an earlier version"):
        earlier_entries.main(["--algos", "a2c", "--env", "Hopper-v2", "-f", str(folder)])


# The other scripts


def test_throughput_collects_configurations_in_one_table(tmp_path):
    tiny = ["--steps", 64, "--warmup-steps", 32, "--rounds", 2, "--n-steps", 16]
    run_in_process("throughput", tmp_path, "learning", "--n-envs", 1, *tiny)
    run_in_process("throughput", tmp_path, "learning", "--env", "Pendulum-v1", "--n-envs", 2, "--vec-normalize", *tiny)
    run_in_process("throughput", tmp_path, "learning", "--n-envs", 2, "--actions", "policy", *tiny)
    run_in_process("throughput", tmp_path, "learning", "--n-envs", 1, *tiny, "--seed", 1)
    table = read(tmp_path, "throughput")
    groups = table.groupby(["env", "vec_normalize", "actions"])
    assert {key: (list(own["algorithm"].unique()), len(own)) for key, own in groups} == dict.fromkeys(
        [("CartPole-v1", False, "random"), ("Pendulum-v1", True, "random"), ("CartPole-v1", False, "policy")],
        (["bare", "reinforce", "a2c", "ppo"], 8),
    )
    assert set(table["command"].str.contains("--seed 1")) == {True, False}
    assert (table["steps"] >= 64).all() and (table["seconds"] > 0.0).all()


def test_ratios_are_those_of_the_rounds():
    throughput = importlib.import_module("throughput")
    rows = [
        dict.fromkeys(throughput.CONFIGURATION, "")
        | {"algorithm": name, "round": round_number, "steps": 100, "seconds": seconds}
        for round_number, load in enumerate((1.0, 3.0, 10.0))
        for name, seconds in (("reinforce", 0.5 * load), ("a2c", 2.0 * load))
    ]
    (row,) = throughput.tabulate(pd.DataFrame(rows), "algorithm", "reinforce")
    assert row["reinforce / a2c"] == "4.00" and row["reinforce, steps/s"] == "67"


def test_throughput_of_engines_sizes_and_recurrent_policies(tmp_path, monkeypatch):
    throughput = importlib.import_module("throughput")
    monkeypatch.setattr(throughput, "AXES", {"n_envs": [1, 2], "width": [16], "n_steps": [8]})
    monkeypatch.setattr(throughput, "BASE", {"n_envs": 2, "width": 8, "n_steps": 8})
    tiny = ["--train-steps", 64, "--steps", 32, "--warmup-steps", 16, "--rounds", 1, "--n-envs", 2, "--n-steps", 8]
    for kind in ["scaling", "recurrent"] + ["engines"] * bool(importlib.util.find_spec("envpool")):
        run_in_process("throughput", tmp_path, kind, *tiny)
    table = read(tmp_path, "throughput")
    sizes = table[(table["kind"] == "scaling") & (table["algorithm"] == "reinforce")]
    assert list(zip(sizes["axis"], sizes["n_envs"], sizes["width"], sizes["n_steps"], strict=True)) == [
        ("n_envs", 1, 8, 8),
        ("n_envs", 2, 8, 8),
        ("width", 2, 16, 8),
        ("n_steps", 2, 8, 8),
    ]
    assert set(table.loc[table["kind"] == "engines", "engine"]) <= {"dummy", "envpool"}
    assert (table["steps"] >= 32).all()


def test_ppo_gets_a_batch_size_that_divides_the_rollout():
    throughput = importlib.import_module("throughput")
    assert [throughput.ppo_batch_size(size) for size in (256, 64, 96, 40, 7)] == [64, 64, 48, 40, 7]


def test_memory(tmp_path):
    # A process of its own, since this one is already as large as the imports
    run_script("memory", tmp_path, "--steps", 2000, "--sizes", 100, 400, "--rounds", 1)
    table = read(tmp_path, "memory")
    (rollout,) = table[table["measured"] == "rollout"].to_dict("records")
    assert rollout["steps"] >= 2000 and rollout["peak_bytes"] > rollout["bytes_after_imports"] > 0
    updates = table[table["measured"] == "update"]
    assert len(updates) == 4 and updates["micro_batch_size"].isna().sum() == 2
    assert updates["steps"].unique()[0] >= 100 and updates["steps"].unique()[1] >= 400


def test_memory_refuses_to_measure_in_a_process_that_is_too_large():
    importlib.import_module("sb3_reinforce")
    with pytest.raises(RuntimeError, match="small"):
        importlib.import_module("memory").measure_rollout_here(10, 10)


def test_cloning(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("cloning"), "N_STEPS", (10, 15))
    run_in_process("cloning", tmp_path, "--seeds", 0, "--n-timesteps", 64, "--episodes", 2)
    table = read(tmp_path, "cloning")
    assert table["expert_steps"].tolist() == [10, 15] and (table["score"] > 0.0).all()


def test_laboratory_measures_the_checkpoints_of_one_training(tmp_path, monkeypatch):
    laboratory = importlib.import_module("laboratory")
    monkeypatch.chdir(tmp_path)
    run, measured = laboratory.run, []

    def measure_nothing(words):
        if words[0] == "train":
            run(words)
            return
        measured.append([Path(word) for word in words if word.endswith("_steps.zip")])
        report = Path(words[words.index("-o") + 1])
        report.mkdir(parents=True, exist_ok=True)
        columns = "model,mean_return,estimator,episodes,episodes_low,episodes_high,bias,bias_low,noise"
        rows = ["untrained,20.0,to-go,7.5,4.0,inf,0.04,0.01,30.0", "untrained,20.0,to-go-critic,12.0,-inf,inf,,,20.0"]
        (report / "gradients.csv").write_text("\n".join([columns, *rows, ""]))

    monkeypatch.setattr(laboratory, "run", measure_nothing)
    arguments = ["--env", "CartPole-v1", "--n-timesteps", 1500, "--folder", tmp_path / "f"]
    run_in_process("laboratory", tmp_path / "r", *arguments)
    assert read(tmp_path / "r", "laboratory")["env"].tolist() == ["CartPole-v1"] * 2
    page = (tmp_path / "r" / "laboratory.md").read_text()
    assert (
        "| to-go | 7.5 [4, no bound] (20 %) |" in page and "| to-go-critic | 12 [?] |" in page and "| to-go | 1.50 |" in page
    )
    (models,) = measured
    assert 1 <= len(models) <= 3 and all(model.exists() for model in models)
    times = [model.stat().st_mtime_ns for model in models]
    run_in_process("laboratory", tmp_path / "r", *arguments)
    assert measured[1] == models and [model.stat().st_mtime_ns for model in models] == times


def test_critics_are_compared_in_the_same_training(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("critics"), "EVERY", 1)
    arguments = ["--env", "CartPole-v1", "--n-timesteps", 2000, "--folder", tmp_path / "f", "--seeds"]
    run_in_process("critics", tmp_path / "r", *arguments, 100)
    table = read(tmp_path / "r", "critics")
    assert len(table) == 6 and (table[["variance", "noise"]] > 0.0).all(axis=None)
    assert table.loc[table["critic"] == "as it is", ["variance", "noise"]].to_numpy().tolist() == [[1.0, 1.0]]
    # A seed that is there is not trained again
    run_in_process("critics", tmp_path / "r", *arguments, 100, 101)
    assert read(tmp_path / "r", "critics")["seed"].tolist() == [100] * 6 + [101] * 6


def test_stages_are_chosen_by_how_far_training_has_come():
    choose_stages = importlib.import_module("laboratory").choose_stages
    assert choose_stages({100: 20.0, 200: 60.0, 300: 260.0, 400: 450.0, 500: 500.0}) == [200, 300, 400]
    # A training that falls back does not make the stages go back
    assert choose_stages({100: 20.0, 200: 400.0, 300: 60.0, 400: 500.0}) == [300, 400]


def test_numbers_of_processes_are_compared_round_by_round(tmp_path, monkeypatch):
    ranks = importlib.import_module("ranks")

    def run(spec):
        steps = 100 * spec["n_processes"]
        if "threshold" in spec:
            return {"seconds": 2.0, "steps": steps, "reached": spec["n_processes"] == 2}
        return {"seconds": 10.0 * (1 + spec["run"]), "steps": steps, "communication_seconds": 1.0}

    monkeypatch.setattr(ranks, "run", run)
    arguments = ["--env", "CartPole-v1", "--rounds", 2, "--threshold", "CartPole-v1=475", "--seeds", 0]
    run_in_process("ranks", tmp_path, *arguments)
    run_in_process("ranks", tmp_path, *arguments)
    assert len(read(tmp_path, "ranks")) == 6
    text = (tmp_path / "ranks.md").read_text()
    assert "| CartPole-v1 | 2 | 2 | 15 | 2.00 (2.00 to 2.00) | 7.5% |" in text
    assert "| CartPole-v1 | 475 | 1 | 0 of 1 |  |  |" in text
    assert "| CartPole-v1 | 475 | 2 | 1 of 1 | 200 | 2.0 |" in text


AIM = {"env": "sb3_reinforce/RockPaperScissors-v0", "threshold": -1000.0, "n_timesteps": 30_000}


@pytest.mark.parametrize("aim", [{}, AIM])
def test_what_one_process_measures(tmp_path, monkeypatch, aim):
    ranks = importlib.import_module("ranks")
    monkeypatch.setattr(ranks.REINFORCE, "learn", ranks.REINFORCE.learn)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    spec = {"env": "CartPole-v1", "run": 0, "n_envs": 1, "n_steps": 8, "n_timesteps": 60, "warmup_steps": 20, **aim}
    ranks.work(json.dumps({**spec, "n_processes": 1, "output": str(tmp_path / "result.json")}))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] >= 60 and result["seconds"] > 0.0
    if aim:
        assert result["reached"] and result["steps"] < 2_000
    else:
        assert result["communication_seconds"] == 0.0


# Published agents


def test_agents_are_written_as_rl_zoo_finds_them_with_a_card(tmp_path):
    arguments = ["--env", "CartPole-v1", "--steps", 2_000, "--folder", tmp_path / "agents"]
    run_in_process("trained_agents", tmp_path, *arguments)
    run = tmp_path / "agents/reinforce/CartPole-v1_1"
    assert (run / "CartPole-v1.zip").exists()
    card = (run / "README.md").read_text()
    _, front_matter, text = card.split("---\n")
    (result,) = yaml.safe_load(front_matter)["model-index"][0]["results"]
    last = np.load(run / "evaluations.npz")["results"][-1]
    assert result["metrics"][0]["value"] == f"{last.mean():.2f} +/- {last.std():.2f}"
    assert "sb3-reinforce enjoy --env CartPole-v1" in text and "natural_gradient: true" in text
    # What is there is not trained again
    written = (run / "CartPole-v1.zip").stat().st_mtime_ns
    run_in_process("trained_agents", tmp_path, *arguments)
    assert (run / "CartPole-v1.zip").stat().st_mtime_ns == written
