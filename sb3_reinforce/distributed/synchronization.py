"""What the ranks of one training do together around the updates: start alike, and end every rollout as one."""

import inspect
import io
import os
import re
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.distributed.process_group import ProcessGroup

#: Arguments that may differ: ranks have environments of their own, and only rank 0 has logs.
OWN_ARGUMENTS = ("self", "policy", "env", "device", "verbose", "tensorboard_log", "_init_setup_model")

#: The running statistics of a ``VecNormalize``, by name.
Statistics = dict[str, RunningMeanStd]


class RolloutReport(NamedTuple):
    """
    What a rank says of its rollout.

    :param goes_on: False if a callback stopped the training.
    :param n_steps: Steps of all its environments.
    :param n_used: Those of counted episodes.
    :param n_episodes: Counted episodes.
    :param episode_infos: Of those with ``Monitor``.
    :param successes: Of those that say whether they succeeded.
    :param increments: What the rollout adds to the statistics of ``VecNormalize``.
    :param checksum: Of the parameters that acted.
    """

    goes_on: bool
    n_steps: int
    n_used: int
    n_episodes: int
    episode_infos: list[dict[str, Any]]
    successes: list[Any]
    increments: Statistics
    checksum: int


class NotingDeque(deque[Any]):
    """
    A deque that also notes what is added to it.

    :param items: What it starts with, and how much it holds.
    """

    def __init__(self, items: deque[Any]) -> None:
        super().__init__(items, items.maxlen)
        self.added: list[Any] = []

    def append(self, item: Any) -> None:
        """
        Add an item.

        :param item: The item.
        """
        super().append(item)
        self.added.append(item)

    def __reduce__(self) -> Any:
        # A callback may save the model during a rollout
        return deque, (list(self), self.maxlen)

    def extend(self, items: Iterable[Any]) -> None:
        """
        Add several items.

        :param items: The items.
        """
        for item in items:
            self.append(item)


class Synchronization:
    """
    One training in several processes, as one of them takes part in it.

    :param ranks: The processes. With one, everything here is as if it were not there.
    """

    def __init__(self, ranks: ProcessGroup) -> None:
        self.ranks = ranks
        self._statistics: Statistics = {}

    def start(self, model: OnPolicyAlgorithm, total_timesteps: int) -> None:
        """
        See that all ranks train the same model, and give all of them that of rank 0: parameters, optimizer, statistics.

        To be called before the environments are reset, since ``VecNormalize`` already counts the first observations.

        :param model: Of this rank.
        :param total_timesteps: That ``learn`` was called with.
        :raises ValueError: If the ranks differ in arguments or spaces; names the first difference.
        """
        ranks = self.ranks
        if ranks.size == 1:
            if (n_processes := os.environ.get("WORLD_SIZE", "")) not in ("", "0", "1"):
                warnings.warn(
                    f"WORLD_SIZE={n_processes}, as from torchrun, but distributed=True is not set: each process trains a "
                    "model of its own, the same one if the seeds are equal, and all write the same files. Set "
                    "distributed=True (on the command line --distributed), or start one process",
                    UserWarning,
                    stacklevel=3,
                )
            return
        compare(ranks.gather(lambda: {**describe(model), "total_timesteps": str(total_timesteps)}))
        self._share_parameters(model)
        self._statistics = ranks.broadcast(lambda: copied(statistics_of(model)))
        for name, statistics in statistics_of(model).items():
            vars(statistics).update(vars(self._statistics[name].copy()))
        if ranks.rank > 0:
            model.set_logger(Logger(None, []))
        elif model.verbose >= 1:
            print(f"Training with {ranks.size} ranks: one policy, one gradient")

    def collect(self, model: OnPolicyAlgorithm, collect: Callable[[], bool]) -> bool:
        """
        Let all ranks collect, and put together what they counted.

        :param model: Of this rank. Its number of steps, statistics of episodes and of ``VecNormalize`` are those of all ranks
            afterwards.
        :param collect: Collects with the environments of this rank; False if a callback stopped the training.
        :return: False if a callback stopped it on any rank.
        :raises RankError: If anything failed on a rank, which is named.
        """
        if self.ranks.size == 1:
            return collect()
        num_timesteps = model.num_timesteps
        infos, successes = model.ep_info_buffer, model.ep_success_buffer
        assert infos is not None and successes is not None
        model.ep_info_buffer, model.ep_success_buffer = noted = NotingDeque(infos), NotingDeque(successes)

        def report() -> RolloutReport:
            goes_on = collect()
            buffer: Any = model.rollout_buffer
            return RolloutReport(
                goes_on=goes_on,
                n_steps=model.num_timesteps - num_timesteps,
                n_used=buffer.n_counted_steps,
                n_episodes=sum(map(len, buffer.episode_ends)),
                episode_infos=noted[0].added,
                successes=noted[1].added,
                increments={name: increment(self._statistics[name], now) for name, now in statistics_of(model).items()},
                checksum=checksum(model),
            )

        try:
            reports = self.ranks.gather(report)
        finally:
            model.ep_info_buffer, model.ep_success_buffer = infos, successes
        for rank_report in reports:
            infos.extend(rank_report.episode_infos)
            successes.extend(rank_report.successes)
        n_steps = sum(rank_report.n_steps for rank_report in reports)
        model.num_timesteps = num_timesteps + n_steps
        self._merge_statistics(model, reports)
        if len({rank_report.checksum for rank_report in reports}) > 1:
            warnings.warn(
                "The ranks' parameters had drifted apart, as on processors that round differently: all go on with rank 0's",
                UserWarning,
                stacklevel=3,
            )
            self._share_parameters(model)
        model.logger.record("rollout/episodes", sum(rank_report.n_episodes for rank_report in reports))
        n_used = sum(rank_report.n_used for rank_report in reports)
        model.logger.record("rollout/discarded_fraction", 1.0 - n_used / n_steps)
        return all(rank_report.goes_on for rank_report in reports)

    def _share_parameters(self, model: OnPolicyAlgorithm) -> None:
        def stored_parameters() -> bytes:
            file = io.BytesIO()
            th.save(model.get_parameters(), file)
            return file.getvalue()

        stored = self.ranks.broadcast(stored_parameters)
        if self.ranks.rank > 0:
            model.set_parameters(th.load(io.BytesIO(stored), map_location=model.device), device=model.device)

    def _merge_statistics(self, model: OnPolicyAlgorithm, reports: list[RolloutReport]) -> None:
        for rank_report in reports:
            for name, more in rank_report.increments.items():
                if more.count > 0:
                    self._statistics[name].combine(more)
        for name, statistics in statistics_of(model).items():
            vars(statistics).update(vars(self._statistics[name].copy()))


def describe(model: OnPolicyAlgorithm) -> dict[str, str]:
    """
    Write down what must be the same on all ranks.

    :param model: A model that is set up.
    :return: Values by the names of arguments and spaces.
    """
    names = [name for name in inspect.signature(type(model)).parameters if name not in OWN_ARGUMENTS]
    # SB3 keeps some arguments as private attributes
    values = {name: vars(model).get(name, vars(model).get(f"_{name}")) for name in names}
    values["policy"] = type(model.policy).__name__
    for name in ("observation_space", "action_space", "n_envs", "num_timesteps"):
        values[name] = getattr(model, name)
    # After the spaces, which they follow from
    values["shapes of the parameters"] = {name: tuple(part.shape) for name, part in model.policy.state_dict().items()}
    values["VecNormalize"] = sorted(statistics_of(model))
    return {name: " ".join(in_words(value).split()) for name, value in values.items()}


def in_words(value: Any) -> str:
    """
    Describe a value such that equal ones have equal descriptions, in another process too.

    :param value: An argument of the model.
    :return: A schedule by what it gives, everything else as ``repr`` does, but without addresses.
    """
    if callable(value) and not isinstance(value, type):
        try:
            return str([float(value(progress_remaining)) for progress_remaining in (1.0, 0.5, 0.0)])
        except (TypeError, ValueError):
            pass
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def compare(descriptions: list[dict[str, str]]) -> None:
    """
    Refuse to train different models as one.

    :param descriptions: Of each rank.
    :raises ValueError: If they differ; names the first difference and a rank that has it.
    """
    first = descriptions[0]
    for rank, other in enumerate(descriptions[1:], start=1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"All ranks must train the same model, but {name} is {first.get(name)} on rank 0 and {other.get(name)} on "
                    f"rank {rank}"
                )


def statistics_of(model: OnPolicyAlgorithm) -> Statistics:
    """
    Find the running statistics of ``VecNormalize``.

    :param model: Knows its environment.
    :return: By name, those that the model's own wrapper goes on to use; none without a wrapper.
    """
    wrapper: VecNormalize | None = model.get_vec_normalize_env()
    if wrapper is None:
        return {}
    found: Statistics = {"returns": wrapper.ret_rms}
    observations: Any = getattr(wrapper, "obs_rms", {})
    if isinstance(observations, RunningMeanStd):
        return {**found, "observations": observations}
    return {**found, **{f"observations[{key!r}]": part for key, part in observations.items()}}


def copied(statistics: Statistics) -> Statistics:
    """
    Copy statistics.

    :param statistics: By name.
    :return: The same names with statistics of their own.
    """
    return {name: part.copy() for name, part in statistics.items()}


def increment(before: RunningMeanStd, now: RunningMeanStd) -> RunningMeanStd:
    """
    Take away what was known before, so that what several ranks have in common is not counted several times.

    The inverse of how Chan et al. (1979) combine the statistics of two samples, which is what SB3 does.

    :param before: Statistics.
    :param now: The same with more numbers in them.
    :return: The statistics of these numbers alone. Their count is 0 if there are none.
    """
    more = before.copy()
    more.count = now.count - before.count
    if more.count > 0:
        more.mean = (now.mean * now.count - before.mean * before.count) / more.count
        between = (more.mean - before.mean) ** 2 * before.count * more.count / now.count
        more.var = ((now.var * now.count - before.var * before.count - between) / more.count).clip(min=0.0)
    return more


def checksum(model: OnPolicyAlgorithm) -> int:
    """
    Sum up a policy in a number.

    :param model: Any model.
    :return: The same for parameters that are the same to the last bit.
    """
    total = 0
    for parameter in model.policy.parameters():
        total = zlib.crc32(parameter.detach().cpu().contiguous().numpy().tobytes(), total)
    return total
