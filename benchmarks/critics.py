"""
How much critics that are fitted in other ways would gain: several critics beside the model's own, in the same runs.

Each is fitted after every update of the policy, like the model's own critic, and is compared on the next rollout, which it
has not seen: the variance that it leaves in the returns, and the noise of the gradient, relative to ``as it is``. Since all
are baselines, the expected gradient is the same with each. Finished seeds are not trained again.

    python benchmarks/critics.py
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.nn import functional as F

from sb3_reinforce.functional.returns import rewards_to_go, steps_of, time_steps
from sb3_reinforce.lab.collect import make_lab_evaluator
from sb3_reinforce.lab.gradients import ScoreGradients
from sb3_reinforce.zoo.cli import main as run_command

NAME = "critics"
KEYS = ["env", "seed"]
ENVIRONMENTS = ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "LunarLander-v3"]
#: Width of the layers, whether the time is an input, rollouts that it is fitted on, and passes over them as a factor.
CRITICS = {
    "as it is": (64, False, 1, 1.0),
    "256 units": (256, False, 1, 1.0),
    "time as an input": (64, True, 1, 1.0),
    "last 3 rollouts": (64, False, 3, 1.0),
    "last 3 rollouts, as many steps": (64, False, 3, 1 / 3),
    "256 units, time, last 3 rollouts, as many steps": (256, True, 3, 1 / 3),
}
PLAIN = "as it is"
#: Rollouts from one measurement of the gradient's noise to the next.
EVERY = 5


class Critic:
    """A network that is fitted like the model's own critic."""

    def __init__(self, n_inputs: int, width: int, has_time: bool, n_rollouts: int, passes: float, model: Any) -> None:
        n_inputs += has_time
        self.has_time, self.n_rollouts = has_time, n_rollouts
        self.epochs = max(1, round(passes * model.critic_epochs))
        self.batch_size, self.max_grad_norm = model.critic_batch_size, model.max_grad_norm
        layers = [nn.Linear(n_inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
        self.network = nn.Sequential(*layers)
        self.optimizer = th.optim.Adam(
            self.network.parameters(), lr=model.critic_learning_rate or model.learning_rate, eps=1e-5
        )
        self.rollouts: list[tuple[th.Tensor, th.Tensor]] = []

    def _inputs(self, observations: th.Tensor, times: th.Tensor) -> th.Tensor:
        return th.cat([observations, times / 100.0], dim=1) if self.has_time else observations

    def __call__(self, observations: th.Tensor, times: th.Tensor) -> np.ndarray:
        """Return the values of steps, shape ``(n_steps,)``."""
        with th.no_grad():
            values: np.ndarray = self.network(self._inputs(observations, times)).flatten().double().numpy()
        return values

    def fit(self, observations: th.Tensor, times: th.Tensor, targets: th.Tensor) -> None:
        """Fit the values to the returns of the last rollouts."""
        self.rollouts = [*self.rollouts, (self._inputs(observations, times), targets)][-self.n_rollouts :]
        inputs, wanted = (th.cat(parts) for parts in zip(*self.rollouts, strict=True))
        for _ in range(self.epochs):
            for chosen in th.split(th.randperm(len(inputs)), self.batch_size):
                self.optimizer.zero_grad()
                F.mse_loss(self.network(inputs[chosen]).flatten(), wanted[chosen]).backward()  # type: ignore[no-untyped-call]
                th.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
                self.optimizer.step()


class CompareCritics(BaseCallback):
    """Fits the critics during training, and writes the variance and noise that they leave in its second half to a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def _on_training_start(self) -> None:
        self.critics: dict[str, Critic] = {}
        self.sums = {name: np.zeros(2) for name in CRITICS}
        self.n_rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        batch = model.rollout_buffer.whole_episodes()
        lengths = batch.episode_lengths
        returns = rewards_to_go(batch.rewards, lengths, model.gamma)
        observations = batch.observations.flatten(1).float().cpu()
        times = th.as_tensor(time_steps(lengths), dtype=th.float32)[:, None]
        with th.random.fork_rng(devices=[]):
            th.manual_seed(self.n_rollouts)
            self.critics = self.critics or {
                name: Critic(observations.shape[1], *settings, model) for name, settings in CRITICS.items()
            }
            self.n_rollouts += 1
            if 2 * self.num_timesteps > model._total_timesteps:
                self._note(model, batch, [returns - critic(observations, times) for critic in self.critics.values()])
            for critic in self.critics.values():
                critic.fit(observations, times, th.as_tensor(returns, dtype=th.float32))

    def _note(self, model: Any, batch: Any, rest: Sequence[np.ndarray]) -> None:
        for name, left in zip(CRITICS, rest, strict=True):
            self.sums[name][0] += left.var() * len(left)
        n_episodes = len(batch.episode_lengths)
        if self.n_rollouts % EVERY == 0 and n_episodes > 1:
            scores = ScoreGradients(make_lab_evaluator(model.policy, model))
            gradients = []
            for episode in range(n_episodes):
                weights = np.zeros((len(rest), len(batch.rewards)))
                steps = steps_of(batch.episode_lengths, [episode])
                weights[:, steps] = [left[steps] for left in rest]
                gradients.append(scores(batch, weights))
            noise = np.var(np.stack(gradients), axis=0, ddof=1).sum(axis=1)
            for name, own in zip(CRITICS, noise, strict=True):
                self.sums[name][1] += own

    def _on_training_end(self) -> None:
        found = pd.DataFrame.from_dict(self.sums, orient="index", columns=["variance", "noise"])
        (found / self.sums[PLAIN]).rename_axis("critic").to_csv(self.path)


def measure(env_id: str, seed: int, n_timesteps: int, folder: Path) -> pd.DataFrame:
    path = folder / f"{env_id}_{seed}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    words = ["train", "--env", env_id, "--seed", str(seed), "-n", str(n_timesteps), "-f", str(folder), "--device", "cpu"]
    words += ["--eval-freq", "-1", "--num-threads", "1", "--verbose", "0"]
    if run_command([*words, "-params", f"callback:[{{'critics.CompareCritics': {{'path': {str(path)!r}}}}}]"]) != 0:
        sys.exit(1)
    return pd.read_csv(path).assign(env=env_id, seed=seed)


def make_page(results: pd.DataFrame) -> str:
    rows = []
    for critic, own in results.groupby("critic", sort=False):
        row = {"critic": critic}
        for env, of_env in own.groupby("env", sort=False):
            row[str(env)] = f"{of_env['variance'].mean():.2f}, {of_env['noise'].mean():.2f}"
        rows.append(row)
    seeds = ", ".join(map(str, sorted(results["seed"].unique())))
    parts = [
        "# Critics fitted in other ways",
        "First the variance that a critic leaves in the returns of a rollout that it has not seen, then the noise of the "
        "gradient with this critic (trace of the covariance of the gradients of single episodes). Both are relative to the "
        "critic fitted as in the entry, and from the second half of each run, in which all critics see the same episodes. "
        f"Means over the seeds {seeds}.",
        common.make_table(rows),
    ]
    return common.make_page(parts, results)


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--env", nargs="+", default=ENVIRONMENTS, help="environments")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(100, 105), help="seeds of the runs, for tuning")
    parser.add_argument("--n-timesteps", type=common.positive_int, default=100_000, help="steps of each run")
    parser.add_argument("--folder", type=Path, default=common.LOGS_DIR / NAME, help="folder of the runs")
    options = parser.parse_args(arguments)
    path = options.results_dir / f"{NAME}.csv"
    cells = [(env_id, seed) for seed in options.seeds for env_id in options.env if not options.report_only]
    measure_one = functools.partial(measure, n_timesteps=options.n_timesteps, folder=options.folder)
    results = common.measure_missing(path, KEYS, cells, measure_one, arguments)
    common.write_results(path, results, make_page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
