"""The command line of ``sb3-reinforce compare``."""

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import gymnasium as gym

from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.command_line import add_environment_options, import_gym_packages, key_and_value
from sb3_reinforce.zoo.compare.plan import (
    Settings,
    Task,
    claim_folder,
    find_untuned,
    limit_episodes,
    list_tasks,
    make_contenders,
    read_entries,
)
from sb3_reinforce.zoo.compare.pool import Job, Pool
from sb3_reinforce.zoo.compare.report import explain_missing, write_report
from sb3_reinforce.zoo.compare.results import read_results
from sb3_reinforce.zoo.compare.run import PACKAGES, RESULT_FILE, describe_job
from sb3_reinforce.zoo.compare.summary import describe_time_limits, describe_untuned
from sb3_reinforce.zoo.errors import UsageError, UserError
from sb3_reinforce.zoo.experiment import MAX_EPISODE_STEPS

DEFAULT_ALGORITHMS = ["reinforce", "a2c", "ppo"]


def main(arguments: Sequence[str]) -> None:
    """
    Train the contenders side by side, and write the report.

    :param arguments: Command line.
    :raises UserError: If something is wrong with the command line, before anything is trained; or if runs failed, after the
        others are done and the report is written.
    :raises KeyboardInterrupt: If the user interrupts. Finished runs are kept.
    """
    register()
    options = make_parser().parse_args(arguments)
    variants = [parse_variant(variant) for variant in options.variant]
    contenders = make_contenders(options.algos, parse_pairs(options.conf_file, "--conf-file"), variants)
    if options.env_kwargs:
        env_kwargs = {"env_kwargs": dict(options.env_kwargs)}
        contenders = [contender._replace(overrides={**contender.overrides, **env_kwargs}) for contender in contenders]
    import_gym_packages(options.gym_packages)
    folder: Path = options.folder
    thresholds = choose_thresholds(options.env, parse_pairs(options.threshold, "--threshold"))
    entries = read_entries(options.env, contenders)
    settings = Settings(
        seeds=list(range(options.seeds)),
        n_timesteps=options.n_timesteps,
        seconds=options.seconds,
        n_evaluations=options.n_evaluations,
        eval_episodes=options.eval_episodes,
        final_episodes=options.final_episodes,
        entries=entries,
        algorithms={contender.name: contender.algo for contender in contenders},
        time_limits=limit_episodes(entries, options.max_episode_steps),
        untuned=find_untuned(entries, contenders),
        gym_packages=options.gym_packages,
    )
    if options.report_only and not folder.is_dir():
        raise UserError(f"--report-only: there is no folder {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--folder {folder}: {error.strerror}") from error
    for env_id, entries in settings.entries.items():
        for name in settings.algorithms:
            if name not in entries:
                print(f"{name} cannot act on {env_id}, and is left out there")
    for line in describe_untuned(settings):
        print(line)
    failures: dict[str, str] = {}
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            claim_folder(folder, settings)
            if not options.report_only:
                is_timed = options.seconds is not None
                jobs = options.jobs or os.cpu_count() or 1
                pool = Pool(jobs, options.scheduler, options.gpus_per_run, options.retries, PACKAGES, is_timed)
                failures = {str(task): reason for task, reason in train(folder, settings, pool).items()}
            results = read_results(folder, settings, thresholds)
            write_report(folder, results, [word for word in arguments if word != "--report-only"], failures)
    except filelock.Timeout as error:
        raise UserError(f"Another process is at work on {folder}") from error
    for line in describe_time_limits(results):
        print(line)
    print((folder / "report.md").read_text(encoding="utf-8").split("\n")[2])
    print(f"Report: {folder / 'report.html'}")
    if failures:
        missing = explain_missing(folder, results, failures)
        reasons = "; ".join(f"{task}: {missing[task]}" for task in failures)
        raise UserError(f"{len(failures)} runs failed, and the same command does them again: {reasons}")


def train(folder: Path, settings: Settings, pool: Pool) -> dict[Task, str]:
    """
    Do the runs that are not done.

    :param folder: Folder of the comparison.
    :param settings: Its settings.
    :param pool: Where they are done.
    :return: Why runs failed, by run. They are done again by the next call.
    :raises KeyboardInterrupt: If the user interrupts; says what happens next.
    """
    tasks = list_tasks(settings)
    device = "cpu" if pool.gpus_per_run is None else "cuda"
    jobs = {
        Job(
            str(task),
            ("-m", "sb3_reinforce.zoo.compare.run"),
            json.dumps(describe_job(settings, task, device)),
            folder / task.folder,
            RESULT_FILE,
        ): task
        for task in tasks
        if not (folder / task.folder / RESULT_FILE).exists()
    }
    failures: dict[Task, str] = {}

    def note(job: Job, failure: str | None) -> None:
        if failure is not None:
            failures[jobs[job]] = failure

    try:
        pool.run(list(jobs), len(tasks) - len(jobs), note)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the finished runs") from None
    return failures


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser.

    :return: The parser.
    """
    parser = argparse.ArgumentParser(
        "sb3-reinforce compare",
        description="Train algorithms on environments through RL Zoo, with its hyperparameters, and write a report. The same "
        "command goes on where it was interrupted, and trains nothing twice.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--env", nargs="+", required=True, metavar="ID", help="environments")
    add_environment_options(parser)
    parser.add_argument(
        "--algos",
        nargs="*",
        default=DEFAULT_ALGORITHMS,
        metavar="ALGO",
        help="algorithms of RL Zoo, or reinforce-adam: the textbook's step; with nothing behind it, only the variants are "
        "compared. One that has not the actions of an environment is left out there",
    )
    parser.add_argument("--seeds", type=positive_int, default=5, help="number of runs of each pair, seeds count from 0")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "-n", "--n-timesteps", type=positive_int, help="environment steps of each run; those of RL Zoo if not given"
    )
    budget.add_argument("--seconds", type=positive_float, help="seconds of training of each run; schedules decay with time")
    parser.add_argument(
        "--conf-file",
        nargs="+",
        default=[],
        metavar="ALGO=FILE",
        help="hyperparameters instead of RL Zoo's or this package's, or adam",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY:VALUE"),
        help="REINFORCE with other hyperparameters as one more contender, such as --variant no-baseline baseline:None; may "
        "be given several times",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--jobs", type=positive_int, help="runs at a time, one thread each; all cores if not given")
    place.add_argument("--scheduler", metavar="ADDRESS", help="do the runs on a Dask cluster, such as tcp://host:8786")
    parser.add_argument(
        "--gpus-per-run", type=gpu_share, metavar="SHARE", help="train on GPUs: 1, or less to let runs share one; else on CPUs"
    )
    parser.add_argument(
        "--retries", type=int, choices=range(10), default=1, metavar="N", help="how often a run that was killed is done again"
    )
    parser.add_argument("-f", "--folder", type=Path, default=Path("logs/compare"), help="folder of runs and report")
    parser.add_argument("--n-evaluations", type=positive_int, default=20, help="evaluations during each run")
    parser.add_argument("--eval-episodes", type=positive_int, default=10, help="episodes of each of these evaluations")
    parser.add_argument("--final-episodes", type=positive_int, default=100, help="episodes behind each reported score")
    parser.add_argument(
        "--max-episode-steps",
        type=positive_int,
        help="steps after which an evaluation episode ends, in environments without a time limit; "
        f"{MAX_EPISODE_STEPS:,} if not given",
    )
    parser.add_argument(
        "--threshold",
        nargs="+",
        default=[],
        metavar="ID=SCORE",
        help="score to reach; by default that which the environment was registered with",
    )
    parser.add_argument("--report-only", action="store_true", help="train nothing, write the report of the finished runs")
    return parser


def positive_int(text: str) -> int:
    """
    Read a number from the command line.

    :param text: Such as ``20000`` or ``2e4``.
    :return: The number.
    :raises argparse.ArgumentTypeError: If it is no integer above 0.
    """
    value = positive_float(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be an integer, not {text}")
    return int(value)


def positive_float(text: str) -> float:
    """
    Read a number from the command line.

    :param text: The number.
    :return: The number.
    :raises argparse.ArgumentTypeError: If it is no finite number above 0.
    """
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text}") from None
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def gpu_share(text: str) -> float:
    """
    Read a part of a GPU from the command line.

    :param text: The number.
    :return: The number.
    :raises argparse.ArgumentTypeError: If it is not above 0 and at most 1.
    """
    value = positive_float(text)
    if value > 1.0:
        raise argparse.ArgumentTypeError(f"must be at most 1, since a run trains on one GPU, not {text}")
    return value


def parse_variant(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """
    Read a variant in the notation of RL Zoo's ``-params``, where text needs no second pair of quotes.

    :param words: Name, then ``key:value``.
    :return: Name and hyperparameters.
    :raises UsageError: If a word has no colon.
    """
    name, *pairs = words
    try:
        overrides = dict(map(key_and_value, pairs))
    except argparse.ArgumentTypeError:
        overrides = {}
    if not overrides:
        raise UsageError(f"--variant {' '.join(words)}: must be a name and at least one key:value")
    return name, overrides


def parse_pairs(words: Sequence[str], flag: str) -> dict[str, str]:
    """
    Read ``name=value``.

    :param words: The words.
    :param flag: For the message.
    :return: Values by name.
    :raises UsageError: If a word has no ``=``.
    """
    if wrong := [word for word in words if "=" not in word]:
        raise UsageError(f"{flag} {wrong[0]}: must be like NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def choose_thresholds(env_ids: Sequence[str], chosen: dict[str, str]) -> dict[str, float]:
    """
    Find the score to reach in each environment.

    :param env_ids: The environments.
    :param chosen: Scores from the command line.
    :return: Scores by environment, without those that have none.
    :raises UserError: If a score is none, or of an environment that is not compared.
    """
    thresholds = {
        env_id: float(spec.reward_threshold)
        for env_id in env_ids
        if (spec := gym.envs.registry.get(env_id)) is not None and spec.reward_threshold is not None
    }
    for env_id, score in chosen.items():
        if env_id not in env_ids:
            raise UserError(f"--threshold {env_id}={score}: {env_id} is not compared")
        try:
            thresholds[env_id] = float(score)
            if not math.isfinite(thresholds[env_id]):
                raise ValueError
        except ValueError:
            raise UserError(f"--threshold {env_id}={score}: {score!r} is not a number") from None
    return thresholds
