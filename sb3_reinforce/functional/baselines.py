"""
What is subtracted from the returns: the class of all baselines, and pure functions on arrays for those that come with it.

Subtracting a baseline leaves the expected gradient unchanged as long as its product with the score of the step has mean zero,
as it has where the baseline does not depend on the action taken there (Williams 1992; Sutton & Barto 2018, eq. 13.10). The
layout of the arrays is that of ``returns``.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch as th
from torch import distributions

from sb3_reinforce.functional.returns import Array, IntArray, time_steps


@dataclass(frozen=True, eq=False)
class Episodes:
    """
    Whole episodes, one after another, as a baseline sees them: those of all processes. The arrays must not be changed.

    :param rewards: Of each step, with what the estimator adds to them (entropy, what followed a cut episode), shape
        ``(n_steps,)``.
    :param lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param returns: What the baseline is subtracted from: the reward-to-go of each step, or with ``return_type="episode"`` the
        return of its whole episode, shape ``(n_steps,)``.
    :param rewards_to_go: Of each step, shape ``(n_steps,)``.
    :param gamma: Discount factor of the returns.
    :param values: The critic's V(s) of each step, shape ``(n_steps,)``; None unless ``needs_critic``.
    :param observations: What was acted on, without action masks, shape ``(n_steps, *obs_shape)``, or a dict of such arrays;
        None unless ``needs_observations``.
    :param actions: As the policy drew them, shape ``(n_steps, *action_shape)``; None unless ``needs_observations``.
    :param action_masks: Shape ``(n_steps, n_options)``, True for valid actions; None without masks, or unless
        ``needs_observations``.
    :param distribution: The policy's distribution at every step, on the CPU: PyTorch's ``Categorical``, ``Bernoulli`` or
        ``Normal`` of ``n_steps`` rows (with squashed actions the Gaussian below), a list of ``Categorical`` for MultiDiscrete
        actions; None unless ``needs_distribution``.
    :param score_products: Of each episode the inner products of ``S = sum_t w_t s_t``, where ``s_t`` is the score of a step
        and ``w_t`` its weight, with ``sum_t w_t returns_t s_t`` and with itself, shape ``(n_episodes, 2)``; None unless
        ``needs_scores``.
    """

    rewards: Array
    lengths: IntArray
    returns: Array = dataclasses.field(default_factory=lambda: np.zeros(0))
    rewards_to_go: Array = dataclasses.field(default_factory=lambda: np.zeros(0))
    gamma: float = 1.0
    values: Array | None = None
    observations: Any = None
    actions: Any = None
    action_masks: Any = None
    distribution: Any = None
    score_products: Array | None = None

    @property
    def time_steps(self) -> IntArray:
        """The time of each step in its episode, from 0, shape ``(n_steps,)``."""
        return time_steps(self.lengths)

    def replace(self, **changes: Any) -> "Episodes":
        """
        Copy the episodes with other arrays.

        :param changes: By name.
        :return: The copy, which shares all other arrays.
        """
        return dataclasses.replace(self, **changes)


class Baseline:
    """
    What is subtracted from the returns. Derive from it, and hand an instance or its class path to ``REINFORCE``.

    ``__call__`` is all that a baseline needs. What it learns, it learns in ``fit``, which is called after the policy's step:
    a baseline that has seen the return that it is subtracted from is biased. Its attributes are saved with the model, or what
    ``state_dict`` returns.

    The class attributes say what ``__call__`` and ``fit`` are given, since it costs time: ``needs_critic`` builds a critic and
    fits it; ``needs_observations`` offers observations, actions and masks, which several processes have to exchange;
    ``needs_distribution`` evaluates the policy at every step, ``needs_scores`` differentiates it for each episode.
    """

    needs_critic: ClassVar[bool] = False
    needs_observations: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    #: Whether it compares an episode with others, so that a single one has no baseline
    compares_episodes: ClassVar[bool] = False
    #: Whether what is subtracted from an episode depends on the other episodes of the rollout
    sees_other_episodes: ClassVar[bool] = True
    #: Whether the expected gradient is known to be that without a baseline
    is_unbiased: ClassVar[bool] = False
    #: Whether all processes compute the same numbers from the same episodes; if not, those of process 0 count
    is_deterministic: ClassVar[bool] = False

    def __call__(self, episodes: Episodes) -> Array:
        """
        Compute what is subtracted.

        :param episodes: The episodes of the rollout.
        :return: Of each step, shape ``(n_steps,)``, finite.
        """
        raise NotImplementedError

    def fit(self, episodes: Episodes) -> None:
        """
        Learn from the episodes of a rollout, after the policy's step. Nothing by default.

        :param episodes: Those that ``__call__`` has seen.
        """

    def state_dict(self) -> dict[str, Any]:
        """
        Return what is saved with the model, and can be pickled.

        :return: By default the attributes of the instance.
        """
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore what was saved with a model.

        :param state: That of ``state_dict``.
        """
        vars(self).update(state)

    @property
    def is_fitted(self) -> bool:
        """Whether it learns after an update."""
        return type(self).fit is not Baseline.fit


class NoBaseline(Baseline):
    """Subtracts nothing."""

    needs_observations = sees_other_episodes = False
    is_unbiased = is_deterministic = True

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        return np.zeros_like(episodes.returns)


class ValueBaseline(Baseline):
    """The critic's V(s) (Sutton & Barto 2018, section 13.4), which the algorithm fits after the policy's step."""

    needs_observations = sees_other_episodes = False
    needs_critic = is_unbiased = is_deterministic = True

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        assert episodes.values is not None
        return episodes.values


class MeanBaseline(Baseline):
    """See ``mean_baseline``."""

    needs_observations = False
    is_deterministic = True

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        return mean_baseline(episodes.returns, episodes.lengths)


class LeaveOneOutBaseline(Baseline):
    """See ``leave_one_out_baseline``."""

    needs_observations = False
    compares_episodes = is_unbiased = is_deterministic = True

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        return leave_one_out_baseline(episodes.returns, episodes.lengths)


class TimeStepBaseline(Baseline):
    """See ``time_step_baseline``."""

    needs_observations = False
    compares_episodes = is_unbiased = is_deterministic = True

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        return time_step_baseline(episodes.returns, episodes.lengths)


#: The baselines that have a name.
BASELINES: dict[str | None, type[Baseline]] = {
    "value": ValueBaseline,
    "leave_one_out": LeaveOneOutBaseline,
    "time_step": TimeStepBaseline,
    "mean": MeanBaseline,
    None: NoBaseline,
}


def make_baseline(baseline: Baseline | str | None) -> Baseline:
    """
    Make a baseline of what the user says.

    :param baseline: One of ``BASELINES``, the class path of another (``"my_module:MyBaseline"`` or
        ``"my_module.MyBaseline"``), which is made without arguments, or an instance.
    :return: The baseline.
    :raises ValueError: If there is no such baseline, or it cannot be made; names it.
    """
    if isinstance(baseline, Baseline):
        return baseline
    if isinstance(baseline, str | None) and baseline in BASELINES:
        return BASELINES[baseline]()
    if isinstance(baseline, type):
        raise ValueError(f"baseline must be an instance, not the class {baseline.__name__}: make one, {baseline.__name__}()")
    if not isinstance(baseline, str) or not baseline.replace(":", ".").strip(".").count("."):
        names = ", ".join(map(repr, BASELINES))
        raise ValueError(
            f"baseline must be one of {names}, a class path like 'my_module:MyBaseline', or an instance of a class derived "
            f"from {Baseline.__module__}.Baseline, not {baseline!r}"
        )
    module_name, _, name = baseline.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"baseline={baseline!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Baseline)):
        raise ValueError(f"baseline={baseline!r} is no class derived from {Baseline.__module__}.Baseline")
    try:
        return found()
    except Exception as error:
        raise ValueError(f"baseline={baseline!r} cannot be made without arguments: {error}") from error


def name_of(baseline: Baseline) -> str:
    """
    Name a baseline for messages.

    :param baseline: Any.
    :return: Its name in ``BASELINES``, in quotes if it is a text, or its class path.
    """
    own = type(baseline)
    return next((repr(name) for name, named in BASELINES.items() if named is own), f"{own.__module__}:{own.__qualname__}")


def compute_baseline(baseline: Baseline, episodes: Episodes) -> Array:
    """
    Compute what is subtracted, and check it.

    :param baseline: Computes it, from arrays that cannot be written to. Of a single episode, which it cannot compare with
        others, nothing is subtracted.
    :param episodes: The episodes.
    :return: Shape ``(n_steps,)``.
    :raises ValueError: If it has another shape, is not finite, or the baseline changes the episodes; names the baseline.
    """
    n_steps = len(episodes.rewards)
    if baseline.compares_episodes and len(episodes.lengths) == 1:
        return np.zeros(n_steps)
    fields = {field.name: getattr(episodes, field.name) for field in dataclasses.fields(episodes)}
    read_only = episodes.replace(**{name: _read_only(part) for name, part in fields.items()})
    try:
        with warnings.catch_warnings():
            # PyTorch's, of a tensor that shares the memory of such an array
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            subtracted = np.asarray(baseline(read_only))
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise ValueError(f"baseline {name_of(baseline)} changes the episodes that it is given: copy them first") from error
    if subtracted.shape != (n_steps,):
        raise ValueError(
            f"baseline {name_of(baseline)} gave numbers of shape {subtracted.shape}, but there are {n_steps} steps: it must "
            f"give one of each step, shape ({n_steps},)"
        )
    numbers = subtracted.astype(np.float64, copy=False)
    if not np.isfinite(numbers).all():
        step = int(np.argmin(np.isfinite(numbers)))
        raise ValueError(f"baseline {name_of(baseline)} gave {numbers[step]} at step {step} of {n_steps}: it must be finite")
    return numbers


def _read_only(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _read_only(value) for key, value in part.items()}
    if not isinstance(part, np.ndarray):
        return part
    view = part.view()
    view.setflags(write=False)
    return view


def join_episodes(parts: Sequence[Episodes]) -> Episodes:
    """
    Put the episodes of several processes one after another.

    :param parts: Those of each process, which offer the same.
    :return: All of them.
    """
    if len(parts) == 1:
        return parts[0]
    fields = [field.name for field in dataclasses.fields(Episodes) if field.name != "gamma"]
    return parts[0].replace(**{name: _join([getattr(part, name) for part in parts]) for name in fields})


def _join(parts: list[Any]) -> Any:
    # Of a process without episodes there is no distribution
    parts = [part for part in parts if part is not None] or [None]
    if isinstance(parts[0], dict):
        return {key: _join([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return None if parts[0] is None else join_distributions(parts)


#: What there is one of for each episode, and not for each step.
_OF_EPISODES = ("lengths", "score_products")


def select_episodes(episodes: Episodes, indices: Sequence[int] | IntArray) -> Episodes:
    """
    Pick some episodes.

    :param episodes: All of them.
    :param indices: Which, in this order.
    :return: These, without the others.
    """
    starts = np.cumsum(episodes.lengths) - episodes.lengths
    steps = np.concatenate([np.arange(starts[index], starts[index] + episodes.lengths[index]) for index in indices])
    fields = {field.name: getattr(episodes, field.name) for field in dataclasses.fields(episodes)}
    of_episodes = {name: _select(fields.pop(name), np.asarray(indices)) for name in _OF_EPISODES}
    return episodes.replace(**of_episodes, **{name: _select(part, steps) for name, part in fields.items()})


def _select(part: Any, indices: IntArray) -> Any:
    if isinstance(part, dict):
        return {key: _select(value, indices) for key, value in part.items()}
    if isinstance(part, list):
        return [_select(component, indices) for component in part]
    if isinstance(part, np.ndarray):
        return part[indices] if len(part) > 0 else part
    if isinstance(part, distributions.Distribution):
        names = _PARAMETERS[type(part)]
        return type(part)(**{name: getattr(part, name)[indices] for name in names})
    return part


_PARAMETERS: dict[type, tuple[str, ...]] = {
    distributions.Categorical: ("logits",),
    distributions.Bernoulli: ("logits",),
    distributions.Normal: ("loc", "scale"),
}


def join_distributions(parts: Sequence[Any]) -> Any:
    """
    Put the rows of distributions one after another, without their gradients.

    :param parts: PyTorch's ``Categorical``, ``Bernoulli`` or ``Normal``, or lists of these, all alike.
    :return: The same kind, on the CPU.
    :raises ValueError: If they are of another class.
    """
    if isinstance(parts[0], list):
        return [join_distributions(components) for components in zip(*parts, strict=True)]
    kind: Any = type(parts[0])
    if kind not in _PARAMETERS:
        raise ValueError(f"needs_distribution: a baseline can have a Categorical, Bernoulli or Normal, not {kind.__name__}")
    return kind(**{name: th.cat([getattr(part, name).detach().cpu() for part in parts]) for name in _PARAMETERS[kind]})


def episode_means(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Average the returns of the steps of each episode.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Shape ``(n_episodes,)``.
    """
    first_steps = np.cumsum(episode_lengths) - episode_lengths
    return np.asarray(np.add.reduceat(returns, first_steps) / episode_lengths)


def mean_baseline(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Mean return of the batch, every episode counted once.

    Biased: each episode's own return is part of its baseline. With whole-episode returns and N episodes, the expected
    gradient is exactly ``(1 - 1/N)`` of the true one; with rewards-to-go its direction is off by O(1/N) as well.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Shape ``(n_steps,)``, the same number everywhere.
    """
    return np.full(len(returns), episode_means(returns, episode_lengths).mean())


def leave_one_out_baseline(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Mean return of the other episodes, each counted once (Kool et al. 2019).

    Unbiased, because an episode never sees its own return.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, at least two of them.
    :return: Shape ``(n_steps,)``, constant inside an episode.
    """
    means = episode_means(returns, episode_lengths)
    return np.repeat((means.sum() - means) / (len(means) - 1), episode_lengths)


def time_step_baseline(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Mean return of the other episodes at the same time step.

    Unbiased for the same reason as ``leave_one_out_baseline``, which stands in where no other episode is long enough.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, at least two of them.
    :return: Shape ``(n_steps,)``.
    """
    steps = time_steps(episode_lengths)
    others = np.bincount(steps)[steps] - 1
    sum_of_others = np.bincount(steps, weights=returns)[steps] - returns
    return np.where(others > 0, sum_of_others / np.maximum(others, 1), leave_one_out_baseline(returns, episode_lengths))
