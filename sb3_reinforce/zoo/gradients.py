"""The command line of ``sb3-reinforce gradients``."""

import argparse
import contextlib
import copy
import io
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import rl_zoo3.import_envs  # noqa: F401 (registers the environments that RL Zoo knows)
import yaml
from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped]
from rl_zoo3.utils import ALGOS, create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

import sb3_reinforce
from sb3_reinforce.lab.collect import as_vec_env, check_model
from sb3_reinforce.lab.estimators import choose_estimators, key_of, make_estimators
from sb3_reinforce.lab.measurement import check_batch_size, measure
from sb3_reinforce.zoo import ALGORITHM, register
from sb3_reinforce.zoo.command_line import add_environment_options, check_agent, import_gym_packages, positive_int
from sb3_reinforce.zoo.errors import LIBRARIES, UsageError, UserError, is_about_request

NAME = "gradients"
N_ENVS = 8
UNTRAINED = "untrained"
RUN_STATISTICS = "vecnormalize.pkl"


class Stage(NamedTuple):
    """A model to measure, and an environment wrapped as in its training."""

    label: str
    model: OnPolicyAlgorithm
    env: VecEnv


def main(arguments: Sequence[str]) -> None:
    """Measure the signal and the noise of a model's gradients, and write a report."""
    register()
    options = make_parser().parse_args(arguments)
    if options.gamma is not None and not 0.0 <= options.gamma <= 1.0:
        raise UsageError(f"--gamma {options.gamma}: must be in [0, 1]")
    import_gym_packages(options.gym_packages)
    try:
        gym.spec(options.env)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise UserError(f"--env {options.env}: {error}") from error
    check_batch_size(options.batch, options.episodes)
    folder = options.output or Path("logs", NAME, options.env.replace("/", "-"))

    stages = make_stages(options)
    for stage in stages:
        check_model(stage.model, options.episodes)
        as_vec_env(stage.model, stage.env)
        gamma = stage.model.gamma if options.gamma is None else options.gamma
        known = make_estimators(stage.model, gamma, options.baselines)
        choose_estimators(known, [*options.estimators, *map(key_of, options.baselines)], stage.model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {folder}: {error.strerror}") from error
    measurements = []
    for label, model, env in stages:
        estimators = (options.episodes, options.batch, options.estimators, options.gamma, options.seed)
        measurements.append(measure(model, env, *estimators, label, progress_bar=True, baselines=options.baselines))
        env.close()
    # Imported once the gradients are out of memory
    from sb3_reinforce.lab.report import write_report

    system, _ = get_system_info(print_info=False)
    command = shlex.join(["sb3-reinforce", "gradients", *arguments])
    origin = [("command", command), ("sb3-reinforce", sb3_reinforce.__version__), *system.items()]
    print(write_report(folder, options.env, measurements, origin))
    print(f"Report: {folder / NAME}.html")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sb3-reinforce gradients",
        description="Collect episodes of a model once, and show what the gradient of each estimator is worth on them. Several "
        "models, such as the checkpoints of a training (train --save-freq), come into one report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--env", required=True, metavar="ID", help="environment")
    add_environment_options(parser)
    add("--algo", default=ALGORITHM, choices=sorted(ALGOS), metavar="ALGO", help="algorithm of the models")
    models = parser.add_mutually_exclusive_group()
    models.add_argument(
        "-f", "--folder", type=Path, metavar="LOGS", help="measure the latest agent in this folder of runs (logs by default)"
    )
    models.add_argument(
        "--model", type=Path, nargs="+", default=[], metavar="FILE", help="measure these models, in the order of their steps"
    )
    statistics_help = "statistics of VecNormalize, one file for each --model; by default those in its run folder or beside it"
    add("--vec-normalize", type=Path, nargs="+", default=[], metavar="FILE", help=statistics_help)
    add("--untrained", action="store_true", help="measure a model before its training too, or alone if no other is asked for")
    add("--episodes", type=positive_int, default=500, help="episodes to collect of each model, at least 20")
    add("--batch", type=positive_int, metavar="N", help="episodes of an update; by default what the model does")
    add("--estimators", nargs="+", default=["lecture"], metavar="NAME", help="lecture, all, or names (docs/laboratory.md)")
    add("--baselines", nargs="+", default=[], metavar="NAME", help="also reward-to-go minus these (docs/baselines.md)")
    add("--gamma", type=float, help="discount factor of the estimators; by default that of the model")
    add("--seed", type=int, default=0, help="seed of environments, actions and resampling")
    add("-o", "--output", type=Path, metavar="DIR", help=f"folder of the report; by default logs/{NAME}/ID")
    return parser


def make_stages(options: argparse.Namespace) -> list[Stage]:
    """Load or create the requested models, in the order of the report."""
    paths = list(options.model)
    statistics: list[Path | None] = list(options.vec_normalize) or [None] * len(paths)
    if len(statistics) != len(paths):
        raise UserError(f"--vec-normalize: must be one file for each --model ({len(paths)}), not {len(statistics)}")
    if options.folder is not None or not (paths or options.untrained):
        folder = options.folder or Path("logs")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                _, path, _ = get_model_path(0, str(folder), options.algo, EnvironmentName(options.env))
        except (AssertionError, ValueError) as error:
            raise UserError(f"-f {folder}: {error}; --model FILE or --untrained need no agent in a folder") from error
        paths.append(Path(path))
        statistics.append(None)
    stages = [make_untrained(options)] if options.untrained else []
    # A shell lists rl_model_100000_steps.zip before rl_model_20000_steps.zip
    loaded = [load_stage(*files, options) for files in zip(paths, statistics, strict=True)]
    return stages + sorted(loaded, key=lambda stage: stage.model.num_timesteps)


def load_stage(path: Path, statistics: Path | None, options: argparse.Namespace) -> Stage:
    """Load a model, and create an environment like the one of its training."""
    if not path.is_file():
        raise UserError(f"--model {path}: there is no such file")
    check_agent(path, options.algo, "--model")
    model = ALGOS[options.algo].load(path, device="cpu")
    # The wrappers that SB3 adds for every model, and RL Zoo for image observations in training only
    env = model._wrap_env(create_env(path, statistics, options))
    label = f"{model.num_timesteps:,} steps" if model.num_timesteps else UNTRAINED
    return Stage(label, model, env)  # type: ignore[arg-type]


def create_env(path: Path, statistics: Path | None, options: argparse.Namespace) -> VecEnv:
    """Create an environment as RL Zoo does for an agent, but with the rewards of training, to which its critic was fitted."""
    folder = path.parent / options.env.replace("/", "-")
    hyperparams, _ = get_saved_hyperparams(str(folder))
    args_file = folder / "args.yml"
    arguments = yaml.load(args_file.read_text(), Loader=yaml.UnsafeLoader) if args_file.is_file() else {}
    if statistics is None:
        statistics = find_statistics(path, folder / RUN_STATISTICS if hyperparams.get("normalize") else None)
    env_kwargs = [hyperparams.get("env_kwargs"), arguments.get("env_kwargs"), options.env_kwargs]
    try:
        env = create_test_env(
            options.env,
            N_ENVS,
            seed=options.seed,
            should_render=False,
            hyperparams=copy.deepcopy(hyperparams),
            env_kwargs={key: value for kwargs in env_kwargs for key, value in dict(kwargs or {}).items()},
            vec_env_cls=DummyVecEnv,
        )
    except (gym.error.Error, AssertionError, ModuleNotFoundError, TypeError, ValueError) as error:
        if not is_about_request(error, LIBRARIES):
            raise
        raise UserError(f"--env {options.env}: cannot be made as for {path}: {error}") from error
    if statistics is not None:
        try:
            env = VecNormalize.load(str(statistics), env)
        except Exception as error:
            raise UserError(f"{statistics}: is no file of VecNormalize for {options.env}: {error}") from error
        env.training = False
    return VecFrameStack(env, hyperparams["frame_stack"]) if hyperparams.get("frame_stack") else env


def find_statistics(path: Path, run_statistics: Path | None) -> Path | None:
    """Find the statistics saved with a model; otherwise warn and use those from the end of its run, if it had any."""
    # Named as by SB3's CheckpointCallback, and by ``sb3-reinforce compare`` for its best checkpoint
    checkpoint = re.fullmatch(r"(.*)_(\d+)_steps", path.stem)
    name = "{}_vecnormalize_{}_steps.pkl".format(*checkpoint.groups()) if checkpoint else f"{path.stem}_{RUN_STATISTICS}"
    saved = path.with_name(name)
    if saved.is_file() or run_statistics is None:
        return saved if saved.is_file() else None
    if not run_statistics.is_file():
        raise UserError(f"--model {path}: neither {saved} nor {run_statistics} has the statistics of its observations")
    if path.stem != run_statistics.parent.name:
        note = f"{saved.name} is missing, so it is measured with the statistics of the end of its run"
        print(f"{path}: {note}", file=sys.stderr)
    return run_statistics


def make_untrained(options: argparse.Namespace) -> Stage:
    """Create a model with RL Zoo's hyperparameters, or with this package's for REINFORCE."""
    # This imports Optuna, which no trained model needs
    from sb3_reinforce.zoo.compare.plan import make_manager

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        overrides = {"env_kwargs": dict(options.env_kwargs)} if options.env_kwargs else None
        manager = make_manager(options.env, options.algo, None, options.seed, folder, overrides=overrides)
        experiment = manager.setup_experiment()
        assert experiment is not None
        env = manager.create_envs(N_ENVS, no_log=True)
    return Stage(UNTRAINED, experiment[0], env)  # type: ignore[arg-type]
