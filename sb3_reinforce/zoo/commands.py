"""The commands that wrap RL Zoo's: each sets up what RL Zoo needs and passes the command line on."""

import argparse
import contextlib
import functools
import glob
import importlib
import itertools
import os
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sb3_reinforce.zoo import ALGORITHM, ALGORITHMS, find_resource, hyperparams_path, register
from sb3_reinforce.zoo.command_line import check_agent, check_environment, import_gym_packages, positive_int
from sb3_reinforce.zoo.errors import UsageError, UserError

#: Entries of a configuration file that are not environments.
FALLBACKS = ("default", "atari")


def train(args: list[str], name: str = "train") -> None:
    """Train an agent with ``rl_zoo3.train``."""
    register()
    import rl_zoo3.train

    from sb3_reinforce.zoo import distributed
    from sb3_reinforce.zoo.experiment import ExperimentManager

    parser = argparse.ArgumentParser(f"sb3-reinforce {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--max-episode-steps", type=positive_int)
    parser.add_argument("--seeds-per-trial", type=positive_int, default=1)
    parser.add_argument("--vec-env")
    parser.add_argument(distributed.FLAG, action="store_true")
    own, args = parser.parse_known_args(args)
    use_envpool = own.vec_env == "envpool"
    if own.vec_env is not None and not use_envpool:
        args = [*args, "--vec-env", own.vec_env]
    options = read_options(args)
    if os.path.isfile(options.trained_agent):
        check_agent(Path(options.trained_agent), options.algo, "--trained-agent")
    manager_class: Callable[..., ExperimentManager] = ExperimentManager
    if own.distributed and not asks_for_help(args):
        ranks, args = distributed.join_ranks(options, args)
        manager_class = functools.partial(distributed.DistributedExperimentManager, ranks=ranks)
    # RL Zoo has no other hook
    rl_zoo3.train.ExperimentManager = functools.partial(  # type: ignore[assignment, attr-defined]
        manager_class,
        max_episode_steps=own.max_episode_steps,
        seeds_per_trial=own.seeds_per_trial,
        use_envpool=use_envpool,
    )
    run(name, rl_zoo3.train.train, ["--algo", ALGORITHM, *args])


def optimize(args: list[str]) -> None:
    """Search for hyperparameters with ``rl_zoo3.train --optimize-hyperparameters``."""
    train(["--optimize-hyperparameters", *args], name="optimize")


def enjoy(args: list[str]) -> None:
    """Run a trained agent with ``rl_zoo3.enjoy``."""
    register()
    import rl_zoo3.enjoy

    folder = default_folder(read_options(args))
    if not has_display() and "--no-render" not in args and not asks_for_help(args):
        print("No display: nothing is rendered (--no-render)")
        args = [*args, "--no-render"]
    run("enjoy", rl_zoo3.enjoy.enjoy, [*folder, *args])


def record_video(args: list[str]) -> None:
    """Record a trained agent with ``rl_zoo3.record_video``."""
    register()
    if not has_display():
        # By default MuJoCo renders with windows, even if it cannot open one
        os.environ.setdefault("MUJOCO_GL", "egl")
    run_module("record-video", "rl_zoo3.record_video", [*default_folder(read_options(args)), *args])


def load_from_hub(args: list[str]) -> None:
    """Download a trained agent with ``rl_zoo3.load_from_hub``."""
    register()
    run_module("load-from-hub", "rl_zoo3.load_from_hub", ["--algo", ALGORITHM, *args])


def plot_train(args: list[str]) -> None:
    """Plot training curves with ``rl_zoo3.plots.plot_train``."""
    check_runs("plot-train", args, ("-a", "--algo"), ("-f", "--exp-folder"))
    plot("plot-train", "plot_train", args)


def all_plots(args: list[str]) -> None:
    """Compare runs by their evaluations with ``rl_zoo3.plots.all_plots``."""
    check_runs("all-plots", args, ("-a", "--algos"), ("-f", "--exp-folders"))
    plot("all-plots", "all_plots", args)


def plot_from_file(args: list[str]) -> None:
    """Plot the output of ``all-plots`` with ``rl_zoo3.plots.plot_from_file``."""
    if not asks_for_help(args):
        parser = argparse.ArgumentParser("sb3-reinforce plot-from-file", add_help=False)
        parser.add_argument("-i", "--input", required=True)
        parser.parse_known_args(args)
    plot("plot-from-file", "plot_from_file", args)


def list_environments(args: list[str]) -> None:
    """Print the environments with hyperparameters for REINFORCE, and the scores measured with them."""
    argparse.ArgumentParser("sb3-reinforce list").parse_args(args)
    entries = yaml.safe_load(hyperparams_path().read_text(encoding="utf-8"))
    scores = pd.DataFrame()
    with contextlib.suppress(FileNotFoundError):
        runs = pd.read_csv(find_resource("benchmarks/results/zoo_table.csv"))
        # If the best policy is stochastic, the score is from sampled actions
        runs["score"] = runs["score"].fillna(runs["sampled_score"])
        scores = runs[runs["algorithm"] == ALGORITHM].groupby(["env", "budget"])["score"].agg(["mean", "std", "count"])
    print(f"{'environment':<28}{'steps':>12}" + ("" if scores.empty else f"{'score':>24}{'seeds':>8}"))
    for env_id, entry in entries.items():
        if env_id in FALLBACKS:
            continue
        steps = int(entry["n_timesteps"])
        line = f"{env_id:<28}{steps:>12,}"
        # The table may also have the environment with fewer steps than its entry
        if (env_id, f"{steps} steps") in scores.index:
            mean, deviation, n_seeds = scores.loc[(env_id, f"{steps} steps")]
            # A single seed has no standard deviation
            spread = f" +/- {deviation:,.1f}" if n_seeds > 1 else ""
            line += f"{mean:,.1f}{spread}".rjust(24) + f"{n_seeds:>8.0f}"
        print(line)
    print(f"Other environments use the entry {' or '.join(FALLBACKS)} of {hyperparams_path()}")


def run(name: str, function: Callable[[], Any], args: list[str]) -> None:
    """Call a function of RL Zoo that parses the command line."""
    from rl_zoo3.utils import StoreDict

    argv, sys.argv = sys.argv, [f"sb3-reinforce {name}", *args]
    try:
        function()
    except Exception as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is StoreDict.__call__.__code__:
                raise UsageError(
                    f"{frame.f_locals['arguments']}: must be KEY:VALUE, where the value is Python, and text needs quotes, as "
                    f"in \"baseline:'mean'\" ({type(error).__name__}: {error})"
                ) from error
        raise
    finally:
        sys.argv = argv


def run_module(name: str, module: str, args: list[str]) -> None:
    """Run a module of RL Zoo as a script."""
    run(name, functools.partial(runpy.run_module, module, run_name="__main__"), args)


def plot(name: str, module: str, args: list[str]) -> None:
    """Draw figures with RL Zoo, and save them if there is no display to show them."""
    import matplotlib
    from matplotlib import pyplot as plt

    function = getattr(importlib.import_module(f"rl_zoo3.plots.{module}"), module)
    if not has_display():
        matplotlib.use("Agg")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is non-interactive")
            run(name, function, args)
    except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"rl_zoo3.plots.{module} stopped at {type(error).__name__}: {error} (docs/zoo.md says what it needs)"
        ) from error
    if not has_display() and "--no-display" not in args:
        for number in plt.get_fignums():
            figure = plt.figure(number)
            title = re.sub(r"[^\w.-]+", "_", str(figure.get_label() or number))
            figure.savefig(f"{name}_{title}.png")
            print(f"No display: saved {name}_{title}.png")
    plt.close("all")


def check_runs(name: str, args: list[str], algo_flags: tuple[str, str], folder_flags: tuple[str, str]) -> None:
    """Check that there is something to plot; otherwise RL Zoo would draw empty figures."""
    if asks_for_help(args):
        return
    parser = argparse.ArgumentParser(f"sb3-reinforce {name}", add_help=False)
    parser.add_argument(*algo_flags, dest="algos", nargs="+", required=True)
    parser.add_argument("-e", "--env", dest="env_ids", nargs="+", required=True)
    parser.add_argument(*folder_flags, dest="folders", nargs="+", required=True)
    options, _ = parser.parse_known_args(args)
    runs = [
        run
        for run in itertools.product(options.folders, options.algos, options.env_ids)
        if glob.glob(f"{glob.escape(os.path.join(run[0], run[1].lower()))}/*{run[2]}*/")
    ]
    for word in (*options.algos, *options.env_ids, *options.folders):
        if not any(word in run for run in runs):
            raise UserError(f"there is no run of {word} among {', '.join(options.folders)} (-a, -e, -f)")


def read_options(args: list[str]) -> argparse.Namespace:
    """Parse and check the options that this package needs from a command line that RL Zoo will parse."""
    parser = argparse.ArgumentParser("sb3-reinforce", add_help=False)
    parser.add_argument("--algo", default=ALGORITHM)
    parser.add_argument("--env", default="")
    parser.add_argument("--gym-packages", nargs="*", default=[])
    parser.add_argument("-i", "--trained-agent", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=-1)
    options, _ = parser.parse_known_args(args)
    import_gym_packages(options.gym_packages)
    check_environment(options.env)
    return options


def asks_for_help(args: list[str]) -> bool:
    """Check whether a command line only asks for help."""
    return "-h" in args or "--help" in args


def default_folder(options: argparse.Namespace) -> list[str]:
    """Return options that look for REINFORCE agents where ``train`` saves them: RL Zoo's folder of Hub agents has none."""
    return ["--algo", ALGORITHM, *(["--folder", "logs"] if options.algo in ALGORITHMS else [])]


def has_display() -> bool:
    """Check whether windows can be opened: not on a Linux machine without a display server."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
