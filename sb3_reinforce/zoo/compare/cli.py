"""The command line of ``sb3-reinforce compare``."""

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import filelock
import gymnasium as gym

from sb3_reinforce.zoo import ALGORITHM, command_line, register
from sb3_reinforce.zoo.command_line import key_and_value, positive_float, positive_int
from sb3_reinforce.zoo.compare import plan
from sb3_reinforce.zoo.compare.plan import Algorithm, Settings
from sb3_reinforce.zoo.compare.pool import Job, Pool
from sb3_reinforce.zoo.compare.report import explain_missing, write_report
from sb3_reinforce.zoo.compare.results import read_results
from sb3_reinforce.zoo.compare.run import describe_job
from sb3_reinforce.zoo.compare.run_files import RESULT_FILE
from sb3_reinforce.zoo.compare.summary import describe_time_limits, describe_untuned
from sb3_reinforce.zoo.errors import UsageError, UserError
from sb3_reinforce.zoo.experiment import MAX_EPISODE_STEPS

DEFAULT_ALGORITHMS = ["reinforce", "a2c", "ppo"]


def main(arguments: Sequence[str]) -> None:
    """
    Train the algorithms side by side and write the report.

    :raises UserError: If the command line is wrong, before anything is trained; or if runs failed, after the other runs are
        done and the report is written.
    """
    register()
    options = make_parser().parse_args(arguments)
    folder: Path = options.folder
    settings = make_settings(options)
    thresholds = choose_thresholds(options.env, parse_pairs(options.threshold, "--threshold"))
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
            plan.claim_folder(folder, settings)
            if not options.report_only:
                pool = Pool(options.jobs or os.cpu_count() or 1, options.scheduler, options.gpus_per_run, options.retries)
                failures = train(folder, settings, pool)
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


def make_settings(options: argparse.Namespace) -> Settings:
    """Read and check the hyperparameters of everything in the comparison."""
    variants = [parse_variant(variant) for variant in options.variant]
    algorithms = plan.make_algorithms(options.algos, parse_pairs(options.conf_file, "--conf-file"), variants)
    if options.env_kwargs:
        overrides = {"env_kwargs": dict(options.env_kwargs)}
        algorithms = [algorithm._replace(overrides={**algorithm.overrides, **overrides}) for algorithm in algorithms]
    command_line.import_gym_packages(options.gym_packages)
    entries = plan.read_entries(options.env, algorithms)
    return Settings(
        seeds=list(range(options.seeds)),
        n_timesteps=options.n_timesteps,
        seconds=options.seconds,
        n_evaluations=options.n_evaluations,
        eval_episodes=options.eval_episodes,
        final_episodes=options.final_episodes,
        entries=entries,
        algorithms={algorithm.name: algorithm.algo for algorithm in algorithms},
        time_limits=plan.limit_episodes(entries, options.max_episode_steps),
        untuned=plan.find_untuned(entries, algorithms),
        gym_packages=options.gym_packages,
    )


def train(folder: Path, settings: Settings, pool: Pool) -> dict[str, str]:
    """Run the unfinished runs, and return the reasons for failures by name. The next call repeats the failed runs."""
    tasks = plan.list_tasks(settings)
    device = "cpu" if pool.gpus_per_run is None else "cuda"
    command = ("-m", "sb3_reinforce.zoo.compare.run")
    jobs = [
        Job(str(task), command, json.dumps(describe_job(settings, task, device)), folder / task.folder)
        for task in tasks
        if not (folder / task.folder / RESULT_FILE).exists()
    ]
    failures: dict[str, str] = {}

    def note(job: Job, failure: str | None) -> None:
        if failure is not None:
            failures[job.name] = failure

    try:
        pool.run(jobs, len(tasks) - len(jobs), note)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the finished runs") from None
    return failures


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sb3-reinforce compare",
        description="Train algorithms on environments through RL Zoo, with its hyperparameters, and write a report. The same "
        "command goes on where it was interrupted, and trains nothing twice.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, budget, place = parser.add_argument, parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    add("--env", nargs="+", required=True, metavar="ID", help="environments")
    command_line.add_environment_options(parser)
    algos_help = "algorithms of RL Zoo, or reinforce-adam: the textbook's step; without a value, only the variants are "
    algos_help += "compared. An algorithm that cannot act in an environment is left out there"
    add("--algos", nargs="*", default=DEFAULT_ALGORITHMS, metavar="ALGO", help=algos_help)
    add("--seeds", type=positive_int, default=5, help="number of runs of each pair, seeds count from 0")
    n_timesteps_help = "environment steps of each run; those of RL Zoo if not given"
    budget.add_argument("-n", "--n-timesteps", type=positive_int, help=n_timesteps_help)
    budget.add_argument("--seconds", type=positive_float, help="seconds of training of each run; schedules decay with time")
    conf_help = "hyperparameters instead of RL Zoo's or this package's, or adam"
    add("--conf-file", nargs="+", default=[], metavar="ALGO=FILE", help=conf_help)
    variant_help = "other hyperparameters for REINFORCE, such as no-baseline baseline:None, or for the algorithm named by "
    variant_help += "algo, such as trpo-mc algo:trpo gae_lambda:1.0; may be given several times"
    add("--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY:VALUE"), help=variant_help)
    place.add_argument("--jobs", type=positive_int, help="runs at a time, one thread each; all cores if not given")
    place.add_argument("--scheduler", metavar="ADDRESS", help="do the runs on a Dask cluster, such as tcp://host:8786")
    gpus_help = "train on GPUs: 1, or less to let runs share one; else on CPUs"
    add("--gpus-per-run", type=gpu_share, metavar="SHARE", help=gpus_help)
    retries_help = "how often a run that was killed is done again"
    add("--retries", type=int, choices=range(10), default=1, metavar="N", help=retries_help)
    add("-f", "--folder", type=Path, default=Path("logs/compare"), help="folder of runs and report")
    add("--n-evaluations", type=positive_int, default=20, help="evaluations during each run")
    add("--eval-episodes", type=positive_int, default=10, help="episodes of each of these evaluations")
    add("--final-episodes", type=positive_int, default=100, help="episodes behind each reported score")
    limit_help = "steps after which an evaluation episode ends, in environments without a time limit; "
    limit_help += f"{MAX_EPISODE_STEPS:,} if not given"
    add("--max-episode-steps", type=positive_int, help=limit_help)
    threshold_help = "score to reach; by default that which the environment was registered with"
    add("--threshold", nargs="+", default=[], metavar="ID=SCORE", help=threshold_help)
    add("--report-only", action="store_true", help="train nothing, write the report of the finished runs")
    return parser


def gpu_share(text: str) -> float:
    """Parse a fraction of a GPU."""
    value = positive_float(text)
    if value > 1.0:
        raise argparse.ArgumentTypeError(f"must be at most 1, since a run trains on one GPU, not {text}")
    return value


def parse_variant(words: Sequence[str]) -> Algorithm:
    """Parse a variant with hyperparameters in the notation of RL Zoo's ``-params``, where text needs no quotes."""
    name, *pairs = words
    try:
        overrides = dict(map(key_and_value, pairs))
    except argparse.ArgumentTypeError:
        overrides = {}
    algo = str(overrides.pop("algo", ALGORITHM))
    if not overrides:
        raise UsageError(f"--variant {' '.join(words)}: must be a name and at least one hyperparameter as key:value")
    return Algorithm(name, algo, overrides=overrides)


def parse_pairs(words: Sequence[str], flag: str) -> dict[str, str]:
    """Parse ``NAME=VALUE`` pairs into values by name."""
    if wrong := [word for word in words if "=" not in word]:
        raise UsageError(f"{flag} {wrong[0]}: must be like NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def choose_thresholds(env_ids: Sequence[str], chosen: dict[str, str]) -> dict[str, float]:
    """Return the threshold score by environment, from the command line or else from the registration, if it has one."""
    thresholds = {
        env_id: float(threshold) for env_id in env_ids if (threshold := gym.spec(env_id).reward_threshold) is not None
    }
    for env_id, score in chosen.items():
        if env_id not in env_ids:
            raise UserError(f"--threshold {env_id}={score}: {env_id} is not compared")
        try:
            thresholds[env_id] = float(score)
        except ValueError:
            thresholds[env_id] = math.nan
        if not math.isfinite(thresholds[env_id]):
            raise UserError(f"--threshold {env_id}={score}: {score!r} is not a number")
    return thresholds
