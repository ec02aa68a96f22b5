"""RL Zoo's training in several processes that torchrun started: rank 0 keeps the run folder, the others only train."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.distributed.process_group import ProcessGroup, join_process_group
from sb3_reinforce.zoo import ALGORITHMS
from sb3_reinforce.zoo.commands import chosen_algorithm, take_option
from sb3_reinforce.zoo.errors import UsageError
from sb3_reinforce.zoo.experiment import ExperimentManager

FLAG = "--distributed"


class DistributedExperimentManager(ExperimentManager):
    """
    The experiment manager of one rank.

    :param args: As in ``ExperimentManager``.
    :param ranks: This process among the others.
    :param kwargs: As in ``ExperimentManager``. Evaluations and checkpoints are as far apart as without ranks, in steps of all.
    """

    def __init__(self, *args: Any, ranks: ProcessGroup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranks = ranks
        for name in ("eval_freq", "save_freq"):
            if getattr(self, name) > 0:
                setattr(self, name, max(getattr(self, name) // ranks.size, 1))

    @property
    def _keeps_folder(self) -> bool:
        return self.ranks.rank == 0

    def create_log_folder(self) -> None:
        """Make the folder of the run, on rank 0."""
        if self._keeps_folder:
            super().create_log_folder()

    def create_callbacks(self) -> None:
        """Create what logs, evaluates and saves, on rank 0."""
        if self._keeps_folder:
            super().create_callbacks()  # type: ignore[no-untyped-call]
        else:
            self.callbacks = []

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Create the environments, without files except on rank 0.

        :param n_envs: Number of environments of this rank.
        :param eval_env: Whether they are for evaluation.
        :param no_log: Whether to write no monitor file.
        :return: The environments with all wrappers.
        """
        return super().create_envs(n_envs, eval_env, no_log or not self._keeps_folder)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model, on rank 0.

        :param model: The trained model.
        """
        if self._keeps_folder:
            super().save_trained_model(model)

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self._keeps_folder:
            super()._save_config(saved_hyperparams)

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        # The last that RL Zoo does to the arguments of the algorithm. They are saved without this one
        return {**super()._preprocess_action_noise(hyperparams, saved_hyperparams, env), "distributed": True}


@contextlib.contextmanager
def training_rank(args: list[str]) -> Iterator[tuple[ProcessGroup, list[str]]]:
    """
    Meet the other ranks, and let only rank 0 print.

    :param args: Command line without the flag.
    :return: Context manager that gives this process among the others, and the command line with a seed that all ranks have.
    :raises UsageError: If torchrun has not started this process, or it is not REINFORCE that is to be trained.
    """
    algorithm = chosen_algorithm(args)
    if algorithm not in ALGORITHMS:
        raise UsageError(f"{FLAG}: only {' and '.join(ALGORITHMS)} train in several processes, not {algorithm}")
    if not {"-optimize", "--optimize-hyperparameters"}.isdisjoint(args):
        raise UsageError(f"{FLAG} trains one model; the processes of a search share it by --storage and --study-name")
    try:
        ranks = join_process_group(get_device(take_option(args, "--device")[0] or "auto"))
    except ValueError as error:
        message = str(error).replace("distributed=True", FLAG).replace("train.py", f"-m sb3_reinforce train ... {FLAG}")
        raise UsageError(message) from error
    seed, other_args = take_option(args, "--seed")
    if seed is None or seed == "-1":
        # RL Zoo would draw one on each rank
        args = [*other_args, "--seed", str(ranks.broadcast(int(np.random.randint(2**32 - 1, dtype=np.int64))))]
    with contextlib.ExitStack() as stack:
        if ranks.rank > 0:
            args = [arg for arg in args if arg != "--track"]
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        yield ranks, args
