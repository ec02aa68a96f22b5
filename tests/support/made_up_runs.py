"""Results of a comparison that nobody trained."""

import json
from pathlib import Path

from sb3_reinforce.zoo.compare.plan import RANDOM, Task


def write_result(folder: Path, task: Task, score: float, speed: float = 100.0) -> None:
    folder = folder / task.folder
    folder.mkdir(parents=True)
    result = {**task._asdict(), "versions": {"torch": "1"}, "longest_episode": 10}
    if task.algorithm == RANDOM:
        result |= {"final": {"stochastic": [score, score]}}
    else:
        result |= {
            "steps": 1000,
            "seconds": 1000 / speed,
            "evaluations": [
                {"steps": steps, "seconds": steps / speed, "scores": [score * part - 1.0, score * part + 1.0]}
                for steps, part in ((0, 0.0), (500, 0.5), (1000, 1.0))
            ],
            "final": {"deterministic": [score - 2.0, score + 2.0], "stochastic": [score - 10.0]},
            "best": {"steps": 500, "deterministic": [score + 5.0], "stochastic": [score - 5.0]},
        }
    (folder / "result.json").write_text(json.dumps(result))
