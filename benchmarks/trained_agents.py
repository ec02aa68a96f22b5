"""
Train the published agents, and write them in RL Zoo's layout, each with a model card.

    python benchmarks/trained_agents.py
    python benchmarks/trained_agents.py --env CartPole-v1 Pendulum-v1 --seed 0

``sb3-reinforce enjoy --env ENV -f rl-trained-agents`` then finds the agents in the folder, by default ``rl-trained-agents``.
If interrupted, the same command continues with the remaining environments. Uploading is done by hand.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import make_parser, write_text

from sb3_reinforce import __version__
from sb3_reinforce.zoo import hyperparams_path

CARD = """---
library_name: stable-baselines3
tags:
- {env_id}
- deep-reinforcement-learning
- reinforcement-learning
- stable-baselines3
model-index:
- name: REINFORCE
  results:
  - task:
      type: reinforcement-learning
      name: reinforcement-learning
    dataset:
      name: {env_id}
      type: {env_id}
    metrics:
    - type: mean_reward
      value: {mean:.2f} +/- {deviation:.2f}
      name: mean_reward
      verified: false
---

# REINFORCE on {env_id}

An agent of [sb3_reinforce](https://pypi.org/project/sb3-reinforce/) {version}, trained with seed {seed}. Its last evaluation
during training, over {n_episodes} episodes, was {mean:.2f} +/- {deviation:.2f}. One seed says little: the package's table of
results has several for each environment.

```
pip install "sb3-reinforce[zoo]"
sb3-reinforce enjoy --env {env_id} -f rl-trained-agents
sb3-reinforce train --env {env_id} --seed {seed}
```

```yaml
{hyperparameters}
```
"""


def write_card(folder: Path, env_id: str, seed: int, hyperparameters: Mapping[str, Any]) -> None:
    """Write the model card of a run beside its model."""
    last = np.load(folder / "evaluations.npz")["results"][-1]
    text = yaml.safe_dump({env_id: dict(hyperparameters)}, sort_keys=False).strip()
    values = {"mean": last.mean(), "deviation": last.std(), "n_episodes": len(last), "hyperparameters": text}
    write_text(folder / "README.md", CARD.format(env_id=env_id, seed=seed, version=__version__, **values))


def main(arguments: Sequence[str] | None = None) -> None:
    entries = yaml.safe_load(hyperparams_path().read_text())
    env_ids = [name for name in entries if name not in ("default", "atari")]
    parser = make_parser(__doc__)
    parser.add_argument("--env", nargs="+", choices=env_ids, default=env_ids, metavar="ENV", help="by default all entries")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--folder", type=Path, default=Path("rl-trained-agents"), help="where the agents are written")
    parser.add_argument("--steps", type=int, help="of the training; by default those of the entry")
    options = parser.parse_args(arguments)
    for env_id in options.env:
        run = options.folder / "reinforce" / f"{env_id.replace('/', '-')}_1"
        if not (run / "README.md").exists():
            # RL Zoo evaluates every 25,000 steps
            steps = [] if options.steps is None else ["-n", str(options.steps), "--eval-freq", str(options.steps // 2)]
            command = ["train", "--algo", "reinforce", "--env", env_id, "--seed", str(options.seed), *steps]
            subprocess.run([sys.executable, "-m", "sb3_reinforce", *command, "-f", str(options.folder)], check=True)
            write_card(run, env_id, options.seed, entries[env_id])


if __name__ == "__main__":
    main()
