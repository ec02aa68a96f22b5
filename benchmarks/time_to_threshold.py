"""
Seconds and environment steps until the mean of the last 100 training episodes reaches a threshold, and that of 100 other
episodes confirms it.

PPO and A2C run with RL Zoo's tuned hyperparameters, REINFORCE with its entry in hyperparams/reinforce_adam.yml, the
textbook's step, or with the defaults of the class if it has none. RL Zoo itself builds environments and models of all
three. They run in turn for each seed in one process. The clock starts when `learn` is called, stands still while other
episodes are played, and stops in a callback at the threshold.

    python benchmarks/time_to_threshold.py
    python benchmarks/time_to_threshold.py --env Acrobot-v1 --threshold -100 --reinforce n_envs=8 n_steps=64
"""

import argparse
import ast
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from common import (
    COLOURS,
    HYPERPARAMETERS,
    make_parser,
    markdown_table,
    merge_rows,
    positive_int,
    provenance,
    provenance_line,
    read_json,
    write_results,
)
from contenders import use_one_thread
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization
from tqdm import tqdm

from sb3_reinforce import REINFORCE

NAME = "time_to_threshold"
CONTENDERS = ("reinforce", "ppo", "a2c")
WINDOW = 100
EVALUATION_SEED = 10_000
N_EVAL_ENVS = 10
#: Points that are kept of each learning curve.
CURVE_POINTS = 200

ALGOS["reinforce"] = REINFORCE


def key_and_value(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, not {text}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--env", default="CartPole-v1", help="environment id")
    parser.add_argument("--threshold", type=float, default=475.0, help=f"mean of the last {WINDOW} training episodes to reach")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="seeds, each for all contenders")
    parser.add_argument("--max-steps", type=positive_int, default=500_000, help="steps after which a run is given up")
    parser.add_argument(
        "--reinforce", type=key_and_value, nargs="+", default=[], metavar="KEY=VALUE", help="hyperparameters to set otherwise"
    )
    parser.add_argument(
        "--n-timesteps",
        type=key_and_value,
        nargs="+",
        default=[],
        metavar="ALGO=STEPS",
        help="horizon of an algorithm's schedules and end of its runs, instead of the one that RL Zoo tuned it for",
    )
    return parser.parse_args(arguments)


class StopAtThreshold(BaseCallback):
    """
    Ends the training when the mean over a full window of training episodes reaches a threshold, or at a number of steps.

    The window is the one behind ``rollout/ep_rew_mean``: of REINFORCE it holds the episodes that count. The highest of many
    windows may be there by luck, so as many other episodes must be there as well, with sampled actions as in training. If
    they are not, no episode counts again.

    :param env: Environments for those episodes.
    """

    def __init__(self, threshold: float, max_steps: int, env: VecEnv) -> None:
        super().__init__()
        self.threshold = threshold
        self.max_steps = max_steps
        self.env = env
        self.start = time.perf_counter()
        self.paused = 0.0
        self.reached = False
        self.mean: float | None = None
        #: Seconds, steps and mean score
        self.curve: list[tuple[float, int, float]] = []
        self.last_episode: dict[str, Any] | None = None
        self.last_not_confirmed: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Of training, so far."""
        return time.perf_counter() - self.start - self.paused

    def _on_step(self) -> bool:
        episodes = self.model.ep_info_buffer
        if episodes and episodes[-1] is not self.last_episode:
            self.last_episode = episodes[-1]
            self.mean = sum(episode["r"] for episode in episodes) / len(episodes)
            self.curve.append((self.seconds, self.num_timesteps, self.mean))
            fresh = len(episodes) == WINDOW and all(episode is not self.last_not_confirmed for episode in episodes)
            if fresh and self.mean >= self.threshold:
                self.reached = self.confirm()
                self.last_not_confirmed = self.last_episode
        return not self.reached and self.num_timesteps < self.max_steps

    def confirm(self) -> bool:
        """Play other episodes, the same on all ranks, without a trace in the training."""
        pause_start = time.perf_counter()
        train_env = self.model.get_env()
        assert train_env is not None
        sync_envs_normalization(train_env, self.env)
        self.env.seed(EVALUATION_SEED)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(EVALUATION_SEED)
            score, _ = evaluate_policy(self.model, self.env, WINDOW, deterministic=False, warn=False)
        self.paused += time.perf_counter() - pause_start
        return bool(score >= self.threshold)


def reinforce_config(env_id: str, max_steps: int, folder: Path) -> tuple[Path, str]:
    """Return the file with REINFORCE's hyperparameters for RL Zoo, and where they come from."""
    config = HYPERPARAMETERS.with_name("reinforce_adam.yml")
    if env_id in yaml.safe_load(config.read_text()):
        return config, "hyperparams/reinforce_adam.yml"
    defaults = folder / "defaults.yml"
    defaults.write_text(yaml.safe_dump({env_id: {"policy": "MlpPolicy", "n_timesteps": max_steps}}))
    return defaults, "defaults of the class"


def run(algo: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config, source = None, "RL Zoo"
        overrides = dict(options.reinforce) if algo == "reinforce" else {}
        if algo == "reinforce":
            config, source = reinforce_config(options.env, options.max_steps, Path(folder))
        zoo_output = io.StringIO()
        with contextlib.redirect_stdout(zoo_output):
            manager = ExperimentManager(
                argparse.Namespace(),
                algo,
                options.env,
                folder,
                n_timesteps=int(dict(options.n_timesteps).get(algo, 0)),
                eval_freq=-1,
                hyperparams=overrides,
                seed=seed,
                verbose=0,
                device="cpu",
                config=None if config is None else str(config),
            )
            experiment = manager.setup_experiment()
        assert experiment is not None
        model, hyperparameters = experiment
        with contextlib.redirect_stdout(zoo_output):
            eval_env = manager.create_envs(N_EVAL_ENVS, eval_env=True)
        callback = StopAtThreshold(options.threshold, options.max_steps, eval_env)
        callback.start = time.perf_counter()
        model.learn(manager.n_timesteps, callback=[*manager.callbacks, callback])
        seconds = callback.seconds
        eval_env.close()
        assert model.env is not None
        model.env.close()
    kept = callback.curve[:: max(1, len(callback.curve) // CURVE_POINTS)] + callback.curve[-1:]
    return {
        "algo": algo,
        "seed": seed,
        "reached": callback.reached,
        "seconds": callback.curve[-1][0] if callback.reached else seconds,
        "steps": model.num_timesteps,
        "last_mean": callback.mean,
        "n_timesteps": manager.n_timesteps,
        "hyperparameters": dict(hyperparameters),
        "hyperparameters_from": source + (f", with {overrides}" if overrides else ""),
        "curve": [[round(seconds, 3), steps, round(mean, 2)] for seconds, steps, mean in kept],
    }


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over seeds, a run that did not get there counting as longer than any; None if that is the median."""
    summary: dict[str, Any] = {}
    for algo in CONTENDERS:
        own = [one for one in runs if one["algo"] == algo]
        summary[algo] = {"n_reached": sum(one["reached"] for one in own), "n_seeds": len(own)}
        for unit in ("seconds", "steps"):
            median = float(np.median([one[unit] if one["reached"] else np.inf for one in own]))
            summary[algo][unit] = median if np.isfinite(median) else None
            # What was spent in vain is a lower bound of what would have been needed
            summary[algo][f"{unit}_at_least"] = float(np.median([one[unit] for one in own]))
    return summary


def ratio(summary: dict[str, Any], rival: str, unit: str) -> str:
    ours = summary["reinforce"][unit]
    if ours is None:
        return "REINFORCE not reached"
    if summary[rival][unit] is None:
        return f"> {summary[rival][f'{unit}_at_least'] / ours:.2f}"
    return f"{summary[rival][unit] / ours:.2f}"


def to_markdown(content: dict[str, Any]) -> str:
    parts = [
        "# Time to threshold\n\nFrom the call of `learn` until the mean score of the last "
        f"{WINDOW} training episodes reaches the threshold (never before {WINDOW} episodes), and {WINDOW} other episodes, "
        "during which the clock stands still, confirm it; one thread, contenders in turn for each seed. A run ends without it "
        "at the number of steps that its schedules are made for, or at the cap."
    ]
    for row in content["rows"]:
        summary = row["summary"]
        seeds = sorted({one["seed"] for one in row["runs"]})
        by_seed = {(one["algo"], one["seed"]): one for one in row["runs"]}
        table = markdown_table(
            [
                {"": algo.upper()}
                | {f"seed {seed}": _shown(by_seed[algo, seed], by_seed[algo, seed]["reached"]) for seed in seeds}
                | {
                    "reached": f"{summary[algo]['n_reached']} of {summary[algo]['n_seeds']}",
                    "median": "not reached" if summary[algo]["seconds"] is None else _shown(summary[algo], True),
                }
                | {f"{unit} / REINFORCE's": ratio(summary, algo, unit) for unit in ("seconds", "steps")}
                for algo in CONTENDERS
            ]
        )
        used = [
            f"- {algo.upper()}: {by_seed[algo, seeds[0]]['hyperparameters_from']}, horizon "
            f"{by_seed[algo, seeds[0]]['n_timesteps']:,} steps: `{by_seed[algo, seeds[0]]['hyperparameters']}`"
            for algo in CONTENDERS
        ]
        parts.append(f"## {row['env']}, threshold {row['threshold']:g}, cap {row['max_steps']:,} steps\n\n{table}")
        parts += ["\n".join(used), provenance_line(row["provenance"])]
    return "\n\n".join([*parts, f"![Learning curves against seconds]({NAME}.png)"]) + "\n"


def _shown(run_or_median: dict[str, Any], reached: bool) -> str:
    if not reached:
        return f"not reached in {run_or_median['steps']:,.0f} steps"
    return f"{run_or_median['seconds']:.1f} s, {run_or_median['steps']:,.0f} steps"


def draw(rows: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(rows), 4.5), layout="constrained")
    for panel, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        labelled = set()
        for one in row["runs"]:
            if not one["curve"]:
                continue
            seconds, _, means = zip(*one["curve"], strict=True)
            label = None if one["algo"] in labelled else one["algo"].upper()
            labelled.add(one["algo"])
            panel.plot(seconds, means, color=COLOURS[one["algo"]], alpha=0.7, label=label)
            if one["reached"]:
                panel.plot(seconds[-1], means[-1], marker="*", markersize=10, color=COLOURS[one["algo"]])
        panel.axhline(row["threshold"], linestyle=":", color="black", label="threshold")
        panel.set_title(row["env"])
        panel.set_xlabel("seconds of learning, one thread")
        panel.set_ylabel(f"mean score of the last {WINDOW} training episodes")
        panel.grid(alpha=0.3)
        panel.legend()
    return figure


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    made_by = provenance(NAME, arguments, options.seeds)
    use_one_thread()
    runs = []
    with tqdm(total=len(options.seeds) * len(CONTENDERS), desc=options.env, unit="run") as progress:
        for seed in options.seeds:
            for algo in CONTENDERS:
                progress.set_postfix_str(f"{algo}, seed {seed}")
                runs.append(run(algo, seed, options))
                progress.update()
    row = {"env": options.env, "threshold": options.threshold, "max_steps": options.max_steps, "provenance": made_by}
    row |= {"summary": summarize(runs), "runs": runs}

    old_rows = read_json(options.results_dir / f"{NAME}.json").get("rows", [])
    content = {"rows": merge_rows(old_rows, row, ["env"])}
    markdown = to_markdown(content)
    write_results(options.results_dir, NAME, content, markdown, draw(content["rows"]))
    print(markdown)


if __name__ == "__main__":
    main(sys.argv[1:])
