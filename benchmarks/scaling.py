"""
Steps per second of REINFORCE against the number of environments, the width of the networks and the size of a batch.

Bare stepping of the same vectorised environment with random actions runs in turn with every point. The step size is 0:
all the work of an update is done, but the policy stays the random one that the bare stepping follows, so that episodes
are equally long on both sides and for every point.

    python benchmarks/scaling.py
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import contenders
import numpy as np
from common import COLOURS, make_parser, markdown_table, positive_int, provenance, provenance_line, write_results
from tqdm import tqdm

from sb3_reinforce import REINFORCE

NAME = "scaling"
AXES = {
    "n_envs": "environments",
    "width": "width of the two hidden layers",
    "n_steps": "batch: n_steps of each environment",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--env", default="CartPole-v1", help="environment id")
    powers = [2**exponent for exponent in range(9)]
    parser.add_argument("--n-envs", type=positive_int, nargs="+", default=powers, help="numbers of environments to measure")
    parser.add_argument("--width", type=positive_int, nargs="+", default=[16, 32, 64, 128, 256, 512], help="widths to measure")
    parser.add_argument(
        "--n-steps", type=positive_int, nargs="+", default=[16, 64, 256, 1024, 4096], help="batch sizes (n_steps) to measure"
    )
    parser.add_argument("--base-n-envs", type=positive_int, default=8, help="number of environments on the other two axes")
    parser.add_argument("--base-width", type=positive_int, default=64, help="width on the other two axes")
    parser.add_argument("--base-n-steps", type=positive_int, default=256, help="n_steps on the other two axes")
    parser.add_argument("--steps", type=positive_int, default=20_000, help="environment steps of a point per round")
    parser.add_argument("--warmup-steps", type=positive_int, default=2_000, help="steps of each point before the first round")
    parser.add_argument("--rounds", type=positive_int, default=5, help="times that all points run in turn")
    parser.add_argument("--seed", type=int, default=0, help="seed of environments and models")
    return parser.parse_args(arguments)


class Point:
    """One configuration: a model, and the same vectorised environment without one."""

    def __init__(self, options: argparse.Namespace, axis: str, value: int) -> None:
        self.axis, self.value = axis, value
        configuration = {name: getattr(options, f"base_{name}") for name in AXES} | {axis: value}
        width, n_envs = configuration["width"], configuration["n_envs"]
        self.model = REINFORCE(
            "MlpPolicy",
            contenders.make_venv(options.env, "dummy", n_envs, seed=options.seed),
            learning_rate=0.0,
            n_steps=configuration["n_steps"],
            policy_kwargs={"net_arch": [width, width]},
            seed=options.seed,
            device="cpu",
        )
        self.bare = contenders.make_venv(options.env, "dummy", n_envs, seed=options.seed)
        self.bare_actions = contenders.random_actions(self.bare, options.seed)
        self.rounds: list[dict[str, dict[str, float]]] = []

    def run(self, n_steps: int) -> dict[str, dict[str, float]]:
        """Let both sides make at least so many steps."""
        stepping = contenders.measure_stepping(self.bare, self.bare_actions, n_steps)
        return {
            "bare": {"steps": stepping.steps, "seconds": stepping.seconds},
            "reinforce": contenders.measure_learning(self.model, n_steps),
        }

    def row(self) -> dict[str, Any]:
        """Sum up the rounds."""
        speeds = {
            name: np.array([results[name]["steps"] / results[name]["seconds"] for results in self.rounds])
            for name in ("bare", "reinforce")
        }
        return {
            "axis": self.axis,
            "value": self.value,
            "steps_per_second": {name: float(np.median(speed)) for name, speed in speeds.items()},
            "reinforce_to_bare": float(np.median(speeds["reinforce"] / speeds["bare"])),
            "rounds": self.rounds,
        }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    points = [Point(options, axis, value) for axis in AXES for value in getattr(options, axis)]
    with tqdm(total=len(points) * (options.rounds + 1), desc=options.env) as progress:
        for round_idx in range(options.rounds + 1):
            for point in points:
                progress.set_postfix_str(f"{point.axis}={point.value}, {f'round {round_idx}' if round_idx else 'warm-up'}")
                results = point.run(options.steps if round_idx else options.warmup_steps)
                if round_idx:
                    point.rounds.append(results)
                progress.update()
    return [point.row() for point in points]


def draw(content: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    for panel, (axis, label) in zip(figure.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True):
        rows = [row for row in content["rows"] if row["axis"] == axis]
        values = [row["value"] for row in rows]
        for name, title in (("bare", "bare stepping"), ("reinforce", "REINFORCE")):
            speeds = [row["steps_per_second"][name] for row in rows]
            panel.plot(values, speeds, marker="o", color=COLOURS[name], label=title)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_ylim(bottom=0)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("environment steps per second")
    figure.axes[0].legend()
    figure.suptitle(f"{content['env']}, one thread")
    return figure


def to_markdown(content: dict[str, Any]) -> str:
    base = content["base"]
    sections = []
    for axis, label in AXES.items():
        table = markdown_table(
            [
                {
                    label: row["value"],
                    "bare stepping": f"{row['steps_per_second']['bare']:,.0f}",
                    "REINFORCE": f"{row['steps_per_second']['reinforce']:,.0f}",
                    "REINFORCE / bare": f"{row['reinforce_to_bare']:.2f}",
                }
                for row in content["rows"]
                if row["axis"] == axis
            ]
        )
        sections.append(table)
    parts = [
        f"# Scaling on {content['env']}",
        "Environment steps per second, one thread; medians over rounds in which all points ran in turn. Unless varied: "
        f"{base['n_envs']} environments, `n_steps={base['n_steps']}`, two layers of {base['width']}. The step size is 0, so "
        "that the episodes are those of the random policy on both sides; all the work of the updates is done.",
        *sections,
        f"![Steps per second]({NAME}.png)",
        provenance_line(content["provenance"]),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    made_by = provenance(NAME, arguments, [options.seed])
    contenders.use_one_thread()
    content = {
        "provenance": made_by,
        "env": options.env,
        "base": {name: getattr(options, f"base_{name}") for name in AXES},
        "rows": measure(options),
    }
    markdown = to_markdown(content)
    write_results(options.results_dir, NAME, content, markdown, draw(content))
    print(markdown)


if __name__ == "__main__":
    main(sys.argv[1:])
