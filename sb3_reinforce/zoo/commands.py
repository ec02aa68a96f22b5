"""The commands that are RL Zoo's own: each sets up what RL Zoo needs, and lets it work on the command line."""

import argparse
import ast
import contextlib
import csv
import functools
import glob
import importlib
import itertools
import os
import re
import runpy
import shutil
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sb3_reinforce.zoo import ALGORITHM, ALGORITHMS, find_resource, hyperparams_path, register
from sb3_reinforce.zoo.errors import UsageError, UserError, is_about_request

#: Before the user's own arguments, which overrule it.
DEFAULT_ALGORITHM = ["--algo", ALGORITHM]
#: Entries of a configuration file that are not environments.
FALLBACKS = ("default", "atari")


def train(args: list[str], name: str = "train") -> None:
    """
    Train an agent with ``rl_zoo3.train``.

    :param args: Command line.
    :param name: The command, for messages.
    :raises UserError: If the algorithm is unknown, the environment needs a package, or something is wrong with the
        hyperparameters.
    """
    register()
    import rl_zoo3.train

    from sb3_reinforce.zoo import distributed, upstream
    from sb3_reinforce.zoo.experiment import ExperimentManager

    check_algorithm(args)
    agent, _ = take_option(args, "-i", "--trained-agent")
    if agent is not None and os.path.isfile(agent):
        check_agent(Path(agent), chosen_algorithm(args), "--trained-agent")
    import_gym_packages(take_list(args, "--gym-packages"))
    check_environment(args)
    max_episode_steps, args = take_time_limit(args)
    seeds_per_trial, args = take_seeds_per_trial(args)
    vec_env, other_args = take_option(args, "--vec-env")
    manager_class: Callable[..., ExperimentManager] = ExperimentManager

    def make_manager(*manager_args: Any, **kwargs: Any) -> ExperimentManager:
        if vec_env == "envpool":
            kwargs["vec_env_type"] = vec_env
        return manager_class(*manager_args, max_episode_steps=max_episode_steps, seeds_per_trial=seeds_per_trial, **kwargs)

    # RL Zoo's parser does not know EnvPool
    zoo_args = other_args if vec_env == "envpool" else args
    with contextlib.ExitStack() as stack:
        if distributed.FLAG in zoo_args and not asks_for_help(zoo_args):
            others = [arg for arg in zoo_args if arg != distributed.FLAG]
            ranks, zoo_args = stack.enter_context(distributed.training_rank(others))
            manager_class = functools.partial(distributed.DistributedExperimentManager, ranks=ranks)
        stack.enter_context(upstream.experiment_manager(make_manager))
        run(name, rl_zoo3.train.train, [*DEFAULT_ALGORITHM, *zoo_args])


def optimize(args: list[str]) -> None:
    """
    Search for hyperparameters with ``rl_zoo3.train --optimize-hyperparameters``.

    :param args: Command line.
    :raises UserError: If the algorithm is unknown, or something is wrong with the hyperparameters.
    """
    train(["--optimize-hyperparameters", *args], name="optimize")


def enjoy(args: list[str]) -> None:
    """
    Run a trained agent with ``rl_zoo3.enjoy``.

    :param args: Command line.
    :raises UserError: If the algorithm is unknown, the environment needs a package, or an agent cannot be downloaded.
    """
    register()
    from sb3_reinforce.zoo import upstream

    with upstream.current_hub_errors():
        import rl_zoo3.enjoy

    check_algorithm(args)
    import_gym_packages(take_list(args, "--gym-packages"))
    check_environment(args)
    if not has_display() and "--no-render" not in args and not asks_for_help(args):
        print("No display: nothing is rendered (--no-render)")
        args = [*args, "--no-render"]
    with explained_download():
        run("enjoy", rl_zoo3.enjoy.enjoy, [*default_folder(args), *args])


def record_video(args: list[str]) -> None:
    """
    Record a trained agent with ``rl_zoo3.record_video``.

    :param args: Command line.
    :raises UserError: If the algorithm is unknown, or the environment needs a package.
    """
    register()
    check_algorithm(args)
    check_environment(args)
    if not has_display():
        # MuJoCo chooses windows by default, even if it cannot open one
        os.environ.setdefault("MUJOCO_GL", "egl")
    run_module("record-video", "rl_zoo3.record_video", [*default_folder(args), *args])


def record_training(args: list[str]) -> None:
    """
    Record an agent at all its checkpoints with ``rl_zoo3.record_training``.

    :param args: Command line.
    :raises UserError: If the algorithm is unknown, the environment needs a package, there is no ffmpeg, or the folder for the
        videos holds anything.
    """
    register()
    from sb3_reinforce.zoo import upstream

    check_algorithm(args)
    check_environment(args)
    output, _ = take_option(args, "-o", "--output-folder")
    # RL Zoo would delete it, whatever is in it
    if output is not None and os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise UserError(f"--output-folder {output}: must be a new or empty folder")
    # ffmpeg takes the names in its list as relative to the list
    absolute_output = [] if output is None else ["--output-folder", os.path.abspath(output)]
    with contextlib.ExitStack() as stack:
        if not asks_for_help(args):
            stack.enter_context(ffmpeg_on_path())
        stack.enter_context(upstream.registering_children())
        run_module("record-training", "rl_zoo3.record_training", [*default_folder(args), *args, *absolute_output])


def benchmark(args: list[str]) -> None:
    """
    Evaluate all trained agents of a folder with ``rl_zoo3.benchmark``.

    :param args: Command line.
    :raises UserError: If an agent cannot be downloaded, or there is no folder of agents.
    """
    register()
    from sb3_reinforce.zoo import upstream

    if not asks_for_help(args):
        log_dir, _ = take_option(args, "--log-dir")
        if log_dir is not None and not os.path.isdir(log_dir):
            raise UserError(f"--log-dir {log_dir}: there is no such folder")
        folder, _ = take_option(args, "--benchmark-dir")
        os.makedirs(folder or "logs/benchmark", exist_ok=True)
    with (
        explained_download(),
        upstream.current_hub_errors(),
        upstream.named_as_folders(),
        upstream.registering_children(),
    ):
        run_module("benchmark", "rl_zoo3.benchmark", args)


def push_to_hub(args: list[str]) -> None:
    """
    Upload a trained agent with ``rl_zoo3.push_to_hub``.

    :param args: Command line.
    :raises UserError: If the algorithm is unknown, or RL Zoo does not fit the installed Hub integration.
    """
    register()
    check_algorithm(args)
    try:
        run_module("push-to-hub", "rl_zoo3.push_to_hub", [*DEFAULT_ALGORITHM, *args])
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            raise
        raise UserError(
            f"rl_zoo3.push_to_hub does not work with the installed sb3-team-hf-integration ({error.msg}), which is for RL Zoo "
            "to mend. Upload the run folder with `hf upload` instead"
        ) from error


def load_from_hub(args: list[str]) -> None:
    """
    Download a trained agent with ``rl_zoo3.load_from_hub``.

    :param args: Command line.
    :raises UserError: If the algorithm is unknown, or the agent cannot be downloaded.
    """
    register()
    from sb3_reinforce.zoo import upstream

    check_algorithm(args)
    with explained_download(), upstream.current_hub_errors():
        run_module("load-from-hub", "rl_zoo3.load_from_hub", [*DEFAULT_ALGORITHM, *args])


def plot_train(args: list[str]) -> None:
    """
    Plot training curves with ``rl_zoo3.plots.plot_train``.

    :param args: Command line.
    :raises UserError: If an environment has no run.
    """
    from rl_zoo3.plots.plot_train import plot_train

    args = name_as_folders(args)
    require_runs(args, ("-a", "--algo"), ("-f", "--exp-folder"))
    plot("plot-train", plot_train, args)


def all_plots(args: list[str]) -> None:
    """
    Compare runs by their evaluations with ``rl_zoo3.plots.all_plots``.

    :param args: Command line.
    :raises UsageError: If an argument is missing.
    :raises UserError: If an algorithm or an environment has no run, or the runs were evaluated too little.
    """
    from rl_zoo3.plots.all_plots import all_plots

    require_options(args, ("-a", "--algos"), ("-e", "--env"), ("-f", "--exp-folders"))
    args = name_as_folders(args)
    require_runs(args, ("-a", "--algos"), ("-f", "--exp-folders"))
    labels, folders = take_list(args, "-l", "--labels"), take_list(args, "-f", "--exp-folders")
    if labels and len(labels) != len(folders):
        raise UsageError(f"-l/--labels: must be one for each of the {len(folders)} --exp-folders, not {len(labels)}")
    try:
        plot("all-plots", all_plots, args)
    except KeyError as error:
        key, _ = take_option(args, "-k", "--key")
        known = "results, ep_lengths, and successes where infos tell is_success"
        raise UserError(f"-k/--key {key}: not in the evaluations of every run, which have {known}") from error
    except IndexError as error:
        raise UserError(
            f"every run needs at least two evaluations of two episodes within --max-timesteps (RL Zoo stopped at {error})"
        ) from error


def plot_from_file(args: list[str]) -> None:
    """
    Plot what ``all-plots`` wrote with ``rl_zoo3.plots.plot_from_file``.

    :param args: Command line.
    :raises UsageError: If an argument is missing.
    :raises UserError: If an algorithm has too few runs, or LaTeX is asked for and missing.
    """
    from rl_zoo3.plots.plot_from_file import plot_from_file

    require_options(args, ("-i", "--input"))
    try:
        plot("plot-from-file", plot_from_file, args)
    except (KeyError, ValueError) as error:
        if not is_about_request(error):
            raise
        raise UserError(
            "every algorithm needs at least two runs in every environment, with two evaluations of two episodes; the table "
            "says what there is, --skip-keys and --skip-envs leave something out (RL Zoo stopped at "
            f"{type(error).__name__}: {error})"
        ) from error
    except RuntimeError as error:
        if "latex" not in str(error).lower():
            raise
        raise UserError(f"-latex needs LaTeX with its usual fonts, and dvipng: {str(error).splitlines()[0]}") from error


def list_environments(args: list[str]) -> None:
    """
    Print the environments with hyperparameters for REINFORCE, and the scores that were measured with them.

    :param args: Command line.
    """
    argparse.ArgumentParser("sb3-reinforce list").parse_args(args)
    entries = yaml.safe_load(hyperparams_path().read_text(encoding="utf-8"))
    scores: dict[tuple[str, str], list[float]] = {}
    with contextlib.suppress(FileNotFoundError), find_resource("benchmarks/results/zoo_table.csv").open(newline="") as file:
        # An environment may also be there with fewer steps than its entry has, or with an entry of another file
        for row in csv.DictReader(file):
            # Where the best policy is a random one, actions were sampled
            if row["algorithm"] == ALGORITHM and (score := row["score"] or row["sampled_score"]):
                scores.setdefault((row["env"], row["budget"]), []).append(float(score))
    print(f"{'environment':<28}{'steps':>12}" + (f"{'score':>24}{'seeds':>8}" if scores else ""))
    for env_id, entry in entries.items():
        if env_id in FALLBACKS:
            continue
        steps = int(entry["n_timesteps"])
        line = f"{env_id:<28}{steps:>12,}"
        if own := scores.get((env_id, f"{steps} steps")):
            # One seed has no standard deviation
            text = f"{statistics.mean(own):,.1f}" + (f" +/- {statistics.stdev(own):,.1f}" if len(own) > 1 else "")
            line += f"{text:>24}{len(own):>8}"
        print(line)
    print(f"Other environments use the entry {' or '.join(FALLBACKS)} of {hyperparams_path()}")


def run(name: str, function: Callable[[], Any], args: list[str]) -> None:
    """
    Call a function that reads the command line.

    :param name: The command, for messages.
    :param function: A function of RL Zoo.
    :param args: Command line.
    :raises UsageError: If an argument that RL Zoo evaluates is not Python.
    """
    argv = sys.argv
    sys.argv = [f"sb3-reinforce {name}", *args]
    try:
        function()
    except Exception as error:
        from sb3_reinforce.zoo import upstream

        argument = upstream.argument_that_is_no_python(error)
        if argument is None:
            raise
        key, colon, value = argument.partition(":")
        problem = (
            f"what stands behind the colon must be Python ({error}); text needs quotes, as in -params \"baseline:'mean'\""
        )
        if not value.strip():
            problem = "nothing stands behind the colon, where no space may be"
        if not colon:
            problem = f"must be KEY:VALUE, such as {key.partition('=')[0]}:0.5"
        raise UsageError(f"{argument}: {problem}") from error
    finally:
        sys.argv = argv


def run_module(name: str, module: str, args: list[str]) -> None:
    """
    Run a module of RL Zoo as a script.

    :param name: The command, for messages.
    :param module: The module.
    :param args: Command line.
    """
    run(name, functools.partial(runpy.run_module, module, run_name="__main__"), args)


def plot(name: str, function: Callable[[], Any], args: list[str]) -> None:
    """
    Call a function that shows figures, and save them where there is no display to show them on.

    :param name: The command, for messages.
    :param function: A function of RL Zoo.
    :param args: Command line.
    """
    import matplotlib
    from matplotlib import pyplot as plt

    if not has_display():
        matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is non-interactive")
        run(name, function, args)
    if not has_display() and "--no-display" not in args:
        for number in plt.get_fignums():
            figure = plt.figure(number)
            title = re.sub(r"[^\w.-]+", "_", str(figure.get_label() or number))
            figure.savefig(f"{name}_{title}.png")
            print(f"No display: saved {name}_{title}.png")
    plt.close("all")


def take_option(args: list[str], *flags: str) -> tuple[str | None, list[str]]:
    """
    Read one option of a command line that RL Zoo will parse.

    :param args: Command line.
    :param flags: The option's names.
    :return: Its value, None if it is not given, and the command line without it.
    """
    parser = argparse.ArgumentParser(add_help=False)
    # An option without its value is for RL Zoo to complain about
    parser.add_argument(*flags, dest="value", nargs="?")
    namespace, others = parser.parse_known_args(args)
    return namespace.value, others


def take_time_limit(args: list[str]) -> tuple[int | None, list[str]]:
    """
    Read ``--max-episode-steps``, which RL Zoo does not have.

    :param args: Command line.
    :return: The limit, None if it is not given, and the command line without it.
    :raises UsageError: If it is no integer above 0.
    """
    text, others = take_option(args, "--max-episode-steps")
    if others == args:
        return None, args
    if text is None or not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--max-episode-steps: must be an integer above 0, not {text or 'nothing'}")
    return int(text), others


def take_seeds_per_trial(args: list[str]) -> tuple[int, list[str]]:
    """
    Read the number of seeds of each trial, which RL Zoo's parser does not know.

    :param args: Command line.
    :return: The number, 1 if it is not given, and the command line without it.
    """
    # Abbreviations are off: --seed is RL Zoo's own
    parser = argparse.ArgumentParser("sb3-reinforce optimize", add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds-per-trial", type=int, default=1)
    namespace, others = parser.parse_known_args(args)
    return namespace.seeds_per_trial, others


def require_options(args: list[str], *options: tuple[str, ...]) -> None:
    """
    Check that a command line has options that RL Zoo needs, but does not ask for.

    :param args: Command line.
    :param options: The names of each option.
    :raises UsageError: If one is missing.
    """
    missing = [flags for flags in options if not take_list(args, *flags)]
    if missing and not asks_for_help(args):
        raise UsageError(f"the following arguments are required: {', '.join('/'.join(flags) for flags in missing)}")


def take_list(args: list[str], *flags: str) -> list[str]:
    """
    Read the values of one option of a command line that RL Zoo will parse.

    :param args: Command line.
    :param flags: The option's names.
    :return: Its values, none if it is not given.
    """
    parser = argparse.ArgumentParser(add_help=False)
    # A flag of plot-from-file that would otherwise be -i with the value qm
    parser.add_argument("-iqm", action="store_true")
    parser.add_argument(*flags, dest="values", nargs="*", default=[])
    values: list[str] = parser.parse_known_args(args)[0].values
    return values


def name_as_folders(args: list[str]) -> list[str]:
    """
    Name environments as RL Zoo names their folders, where it looks for the name that it is given.

    :param args: Command line.
    :return: The same with ``-`` for a slash in the values of ``--env``.
    """
    from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped]

    env_ids = take_list(args, "-e", "--env")

    def rename(arg: str) -> str:
        flag, value = re.fullmatch(r"(--env=|-e|)(.*)", arg, re.DOTALL).groups()  # type: ignore[union-attr]
        return flag + EnvironmentName(value) if value in env_ids else arg

    return [rename(arg) for arg in args]


def require_runs(args: list[str], algo_flags: tuple[str, ...], folder_flags: tuple[str, ...]) -> None:
    """
    Check that there is something to plot, of which RL Zoo makes empty figures otherwise.

    :param args: Command line.
    :param algo_flags: Names of the option for the algorithms.
    :param folder_flags: Names of the option for the folders.
    :raises UserError: If a folder does not exist, or an algorithm or an environment has no run in any of them.
    """
    folders = take_list(args, *folder_flags)
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{'/'.join(folder_flags)} {folder}: there is no such folder")
    algos, env_ids = take_list(args, *algo_flags), take_list(args, "-e", "--env")
    found = {
        (algo, env_id)
        for folder, algo, env_id in itertools.product(folders, algos, env_ids)
        if glob.glob(f"{glob.escape(os.path.join(folder, algo.lower()))}/*{env_id}*/")
    }
    for position, names in enumerate((algos, env_ids)):
        for name in names:
            if folders and not any(name == pair[position] for pair in found):
                others = (env_ids, algos)[position]
                raise UserError(f"there is no run of {name} with {', '.join(others)} in {', '.join(folders)}")


def asks_for_help(args: list[str]) -> bool:
    """
    Tell whether a command line only asks for help.

    :param args: Command line.
    :return: Whether it does.
    """
    return "-h" in args or "--help" in args


def chosen_algorithm(args: list[str]) -> str:
    """
    Find the algorithm of a command line.

    :param args: Command line.
    :return: REINFORCE unless ``--algo`` says otherwise.
    """
    return take_option(args, "--algo")[0] or ALGORITHM


def check_algorithm(args: list[str]) -> None:
    """
    Check the algorithm of a command line.

    :param args: Command line.
    :raises UsageError: If RL Zoo does not have it.
    """
    from rl_zoo3.utils import ALGOS

    algorithm = chosen_algorithm(args)
    if algorithm not in ALGOS:
        raise UsageError(f"unknown algorithm {algorithm!r}, choose from {', '.join(sorted(ALGOS))}")


def check_agent(path: Path, algorithm: str, option: str) -> None:
    """
    Check that a file holds a model of an algorithm, which RL Zoo takes for granted.

    :param path: The file.
    :param algorithm: The algorithm.
    :param option: The option that named the file.
    :raises UserError: If it holds none, or one of another algorithm.
    """
    from rl_zoo3.utils import ALGOS

    from sb3_reinforce.checkpoints import algorithm_of, saved_attributes

    try:
        saved = saved_attributes(path)
        policy = saved["policy_class"]["__module__"]
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"{option} {path}: is no model of SB3: {error}") from error
    # A policy of the user does not tell which of several algorithms it was trained by
    is_known = policy.startswith(("stable_baselines3.", "sb3_contrib.", "sb3_reinforce."))
    if is_known and ALGOS[algorithm].__name__ not in (found := algorithm_of(saved)).split(" or "):
        raise UserError(f"{option} {path}: holds a model of {found}, and --algo is {algorithm}")


def add_environment_options(parser: argparse.ArgumentParser) -> None:
    """
    Add the options for environments of the user, as RL Zoo's ``train`` has them.

    :param parser: The parser.
    """
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import, which register environments"
    )
    parser.add_argument(
        "--env-kwargs", nargs="+", type=key_and_value, default=[], metavar="KEY:VALUE", help="arguments of the environments"
    )


def key_and_value(text: str) -> tuple[str, Any]:
    """
    Read ``key:value`` from the command line.

    :param text: The value is a Python literal, or text, with quotes or without.
    :return: Key and value.
    :raises argparse.ArgumentTypeError: If one is missing.
    """
    key, _, value = text.partition(":")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"must be like KEY:VALUE, not {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def import_gym_packages(modules: Sequence[str]) -> None:
    """
    Import the modules that register environments.

    :param modules: What ``--gym-packages`` lists.
    :raises UserError: If there is no such module. One that is there and lacks another raises what it raises.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            if not is_about_request(error, ["importlib"]):
                raise
            raise UserError(f"--gym-packages {module}: {error}") from error


def check_environment(args: list[str]) -> None:
    """
    Check that the environment of a command line lacks no package that is known.

    :param args: Command line.
    :raises UserError: If it does.
    """
    from sb3_reinforce.zoo.config import find_missing_package

    problem = find_missing_package(take_option(args, "--env")[0] or "")
    if problem is not None:
        raise UserError(problem)


def default_folder(args: list[str]) -> list[str]:
    """
    Find where trained agents are by default.

    :param args: Command line.
    :return: Arguments to come before the user's: RL Zoo's default is a folder of agents from the Hub, where REINFORCE has
        none.
    """
    return [*DEFAULT_ALGORITHM, *(["--folder", "logs"] if chosen_algorithm(args) in ALGORITHMS else [])]


def has_display() -> bool:
    """
    Tell whether windows can be opened.

    :return: False on a Linux machine without a display server.
    """
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextlib.contextmanager
def explained_download() -> Iterator[None]:
    """
    Explain why the Hub does not deliver.

    :raises UserError: Instead of the errors of its client.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(f"The Hugging Face Hub did not deliver: {error}") from error


@contextlib.contextmanager
def ffmpeg_on_path() -> Iterator[None]:
    """
    Let child processes find an ``ffmpeg``: the system's, or the one that moviepy brings along.

    :raises UserError: If there is none.
    """
    if shutil.which("ffmpeg") is not None:
        yield
        return
    import imageio_ffmpeg  # type: ignore[import-untyped]

    path = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] = os.pathsep.join((folder, path))
        try:
            yield
        finally:
            os.environ["PATH"] = path
