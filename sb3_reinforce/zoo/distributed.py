"""RL Zoo's training in several processes started by torchrun: rank 0 keeps the run folder, the others only train."""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
from typing import Any

import numpy as np
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.distributed.process_group import ProcessGroup, join_process_group
from sb3_reinforce.zoo import ALGORITHMS
from sb3_reinforce.zoo.errors import UsageError
from sb3_reinforce.zoo.experiment import ExperimentManager

FLAG = "--distributed"


class DistributedExperimentManager(ExperimentManager):
    """Experiment manager of one rank. Evaluations and checkpoints keep their usual spacing, in steps of all ranks."""

    def __init__(self, *args: Any, ranks: ProcessGroup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_first = ranks.rank == 0
        for name in ("eval_freq", "save_freq"):
            if getattr(self, name) > 0:
                setattr(self, name, max(getattr(self, name) // ranks.size, 1))

    def create_callbacks(self) -> None:
        if self._is_first:
            super().create_callbacks()  # type: ignore[no-untyped-call]
        else:
            self.callbacks = []

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        # RL Zoo's last change to the algorithm's arguments. The saved arguments do not include this one
        return {**super()._preprocess_action_noise(hyperparams, saved_hyperparams, env), "distributed": True}


def join_ranks(options: argparse.Namespace, args: list[str]) -> tuple[ProcessGroup, list[str]]:
    """Join the other ranks: only rank 0 prints, tracks and keeps its run folder, and all ranks get the same seed."""
    if options.algo not in ALGORITHMS:
        raise UsageError(f"{FLAG}: only {' and '.join(ALGORITHMS)} train in several processes, not {options.algo}")
    if not {"-optimize", "--optimize-hyperparameters"}.isdisjoint(args):
        raise UsageError(f"{FLAG} trains one model; the processes of a search share it by --storage and --study-name")
    try:
        ranks = join_process_group(get_device(options.device))
    except ValueError as error:
        message = str(error).replace("distributed=True", FLAG).replace("train.py", f"-m sb3_reinforce train ... {FLAG}")
        raise UsageError(message) from error
    if options.seed < 0:
        # RL Zoo would draw a different seed on each rank
        args = [*args, "--seed", str(ranks.broadcast(int(np.random.randint(2**32 - 1, dtype=np.int64))))]
    if ranks.rank > 0:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        args = [*(arg for arg in args if arg != "--track"), "--log-folder", folder]
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return ranks, args
