"""Synchronization of the processes around an update: they start from the same model and count their rollouts as one."""

import inspect
import io
import itertools
import os
import re
import warnings
import zlib
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.distributed.process_group import SINGLE_PROCESS, ProcessGroup

#: Arguments that may differ between processes: each has different environments, and only process 0 has logs.
LOCAL_ARGUMENTS = ("self", "policy", "env", "device", "verbose", "tensorboard_log", "_init_setup_model")

#: Running statistics of a ``VecNormalize``, by name.
Statistics = dict[str, RunningMeanStd]


class LocalRollout(NamedTuple):
    """
    Summary of one process's rollout for the others.

    :param goes_on: False if a callback stopped training.
    :param n_steps: Number of steps of all environments of the process.
    :param n_used: Number of steps in counted episodes.
    :param n_episodes: Number of counted episodes.
    :param episode_infos: ``Monitor``'s infos of the counted episodes.
    :param successes: Successes of the counted episodes that report one.
    :param increments: What the rollout adds to the statistics of ``VecNormalize``.
    :param checksum: Checksum of the parameters that collected the rollout.
    """

    goes_on: bool
    n_steps: int
    n_used: int
    n_episodes: int
    episode_infos: list[dict[str, Any]]
    successes: list[Any]
    increments: Statistics
    checksum: int


class Synchronization:
    """One process's side of distributed training. With a single process, nothing here has an effect."""

    def __init__(self, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        self.processes = processes
        self._statistics: Statistics = {}

    def start(self, model: OnPolicyAlgorithm, total_timesteps: int) -> None:
        """
        Check that all processes train the same model, and broadcast the parameters, optimizer and statistics of process 0.

        Call this before the environments are reset, since ``VecNormalize`` already counts the first observations. Raises a
        ``ValueError`` that names the first difference if arguments or spaces differ.
        """
        processes = self.processes
        if processes.size == 1:
            if (n_processes := os.environ.get("WORLD_SIZE", "")) not in ("", "0", "1"):
                warnings.warn(
                    f"WORLD_SIZE={n_processes}, as from torchrun, but distributed=True is not set: each process trains a "
                    "separate model, the same one if the seeds are equal, and all write the same files. Set "
                    "distributed=True (on the command line --distributed), or start one process",
                    UserWarning,
                    stacklevel=3,
                )
            return
        check_same_model(processes.gather({**describe_model(model), "total_timesteps": str(total_timesteps)}))
        self._share_parameters(model)
        self._statistics = processes.broadcast({name: part.copy() for name, part in find_statistics(model).items()})
        self._restore_statistics(model)
        if processes.rank > 0:
            model.set_logger(Logger(None, []))
        elif model.verbose >= 1:
            print(f"Training with {processes.size} processes: one policy, one gradient")

    def begin_rollout(self, model: OnPolicyAlgorithm) -> None:
        """Record the state that all processes share before they collect."""
        assert model.ep_info_buffer is not None and model.ep_success_buffer is not None
        self._n_steps = model.num_timesteps
        self._episode_infos, self._successes = list(model.ep_info_buffer), list(model.ep_success_buffer)

    def finish_rollout(self, model: OnPolicyAlgorithm, goes_on: bool, infos: list[dict[str, Any]]) -> bool:
        """
        Combine the steps, episode statistics and ``VecNormalize`` statistics of all processes.

        :param goes_on: False if a callback stopped training in this process.
        :param infos: Infos at the ends of the counted episodes of this process.
        :return: False if a callback stopped training in any process.
        """
        if self.processes.size == 1:
            return goes_on
        buffer: Any = model.rollout_buffer
        local = LocalRollout(
            goes_on=goes_on,
            n_steps=model.num_timesteps - self._n_steps,
            n_used=buffer.n_counted_steps,
            n_episodes=sum(map(len, buffer.episode_ends)),
            episode_infos=[info["episode"] for info in infos if "episode" in info],
            successes=[info["is_success"] for info in infos if "is_success" in info],
            increments={name: increment(self._statistics[name], now) for name, now in find_statistics(model).items()},
            checksum=checksum(model),
        )
        rollouts = self.processes.gather(local)
        n_steps = sum(rollout.n_steps for rollout in rollouts)
        model.num_timesteps = self._n_steps + n_steps
        for buffered, before, added in (
            (model.ep_info_buffer, self._episode_infos, [rollout.episode_infos for rollout in rollouts]),
            (model.ep_success_buffer, self._successes, [rollout.successes for rollout in rollouts]),
        ):
            assert buffered is not None
            buffered.clear()
            buffered.extend(itertools.chain(before, *added))
        for rollout in rollouts:
            for name, more in rollout.increments.items():
                if more.count > 0:
                    self._statistics[name].combine(more)
        self._restore_statistics(model)
        if len({rollout.checksum for rollout in rollouts}) > 1:
            warnings.warn(
                "The parameters of the processes had drifted apart, as on processors that round differently: all go on with "
                "those of process 0",
                UserWarning,
                stacklevel=3,
            )
            self._share_parameters(model)
        model.logger.record("rollout/episodes", sum(rollout.n_episodes for rollout in rollouts))
        model.logger.record("rollout/discarded_fraction", 1.0 - sum(rollout.n_used for rollout in rollouts) / n_steps)
        return all(rollout.goes_on for rollout in rollouts)

    def _share_parameters(self, model: OnPolicyAlgorithm) -> None:
        file = io.BytesIO()
        if self.processes.rank == 0:
            th.save(model.get_parameters(), file)
        stored = self.processes.broadcast(file.getvalue())
        if self.processes.rank > 0:
            model.set_parameters(th.load(io.BytesIO(stored), map_location=model.device), device=model.device)

    def _restore_statistics(self, model: OnPolicyAlgorithm) -> None:
        for name, statistics in find_statistics(model).items():
            vars(statistics).update(vars(self._statistics[name].copy()))


def describe_model(model: OnPolicyAlgorithm) -> dict[str, str]:
    """Describe what must be the same in all processes, by name of the argument or space."""
    names = [name for name in inspect.signature(type(model)).parameters if name not in LOCAL_ARGUMENTS]
    # SB3 keeps some arguments as private attributes
    values = {name: vars(model).get(name, vars(model).get(f"_{name}")) for name in names}
    values["policy"] = type(model.policy).__name__
    for name in ("observation_space", "action_space", "n_envs", "num_timesteps"):
        values[name] = getattr(model, name)
    # After the spaces, which determine the shapes
    values["shapes of the parameters"] = {name: tuple(part.shape) for name, part in model.policy.state_dict().items()}
    values["VecNormalize"] = sorted(find_statistics(model))
    return {name: re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(value).split())) for name, value in values.items()}


def check_same_model(descriptions: list[dict[str, str]]) -> None:
    """Raise a ``ValueError`` that names the first difference and a process with it."""
    first = descriptions[0]
    for rank, other in enumerate(descriptions[1:], start=1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"All processes must train the same model, but {name} is {first.get(name)} in process 0 and "
                    f"{other.get(name)} in process {rank}"
                )


def find_statistics(model: OnPolicyAlgorithm) -> Statistics:
    """Return the running statistics of the model's ``VecNormalize`` by name; an empty dict without one."""
    wrapper: VecNormalize | None = model.get_vec_normalize_env()
    if wrapper is None:
        return {}
    found: Statistics = {"returns": wrapper.ret_rms}
    observations: Any = getattr(wrapper, "obs_rms", {})
    if isinstance(observations, RunningMeanStd):
        return {**found, "observations": observations}
    return {**found, **{f"observations[{key!r}]": part for key, part in observations.items()}}


def increment(before: RunningMeanStd, now: RunningMeanStd) -> RunningMeanStd:
    """
    Return the statistics of the numbers in ``now`` that are not yet in ``before``; the count is 0 if there are none.

    This inverts the formula of Chan et al. (1979) for combining the statistics of two samples, which SB3 uses.
    """
    more = before.copy()
    more.count = now.count - before.count
    if more.count > 0:
        more.mean = (now.mean * now.count - before.mean * before.count) / more.count
        between = (more.mean - before.mean) ** 2 * before.count * more.count / now.count
        more.var = ((now.var * now.count - before.var * before.count - between) / more.count).clip(min=0.0)
    return more


def checksum(model: OnPolicyAlgorithm) -> int:
    """Return a number that is the same for policies whose parameters are bitwise identical."""
    parameters = th.nn.utils.parameters_to_vector(model.policy.parameters())
    return zlib.crc32(parameters.detach().cpu().numpy().tobytes())
