"""``compare`` in the process of a test: each of its child processes would spend most of its time on imports."""

import json

from sb3_reinforce.zoo.compare import cli, run
from sb3_reinforce.zoo.compare.plan import RANDOM, list_tasks
from sb3_reinforce.zoo.compare.run_files import RESULT_FILE


def compare_in_this_process(monkeypatch):
    monkeypatch.setattr(cli, "train", train_in_this_process)


def train_in_this_process(folder, settings, pool):
    for task in list_tasks(settings):
        own = folder / task.folder
        own.mkdir(parents=True)
        is_random = task.algorithm == RANDOM
        result = run.score_random(settings, task, own) if is_random else run.train(settings, task, own)
        (own / RESULT_FILE).write_text(json.dumps({**task._asdict(), **result, "versions": run.describe_system()}))
    return {}
