"""
What is subtracted from the returns: the base class of all baselines, and the built-in ones as pure functions on arrays.

Subtracting a baseline leaves the expected gradient unchanged as long as its product with the score of the step has mean zero,
which holds if the baseline does not depend on the action taken there (Williams 1992; Sutton & Barto 2018, eq. 13.10). Arrays
have the layout of ``returns``.
"""

import dataclasses
import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch as th
from torch import distributions

from sb3_reinforce.functional.returns import (
    Array,
    IntArray,
    first_steps,
    rewards_to_go,
    steps_of,
    time_steps,
    whole_episode_returns,
)


@dataclass(frozen=True, eq=False)
class Episodes:
    """
    The whole episodes of all processes, one after another, as a baseline sees them. The arrays must not be changed.

    :param rewards: Reward of each step, with what the estimator adds (entropy, what followed a cut episode), shape
        ``(n_steps,)``.
    :param lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param returns: What the baseline is subtracted from: the reward-to-go of each step or, with ``return_type="episode"``, the
        return of its whole episode, shape ``(n_steps,)``.
    :param rewards_to_go: Reward-to-go of each step, shape ``(n_steps,)``.
    :param gamma: Discount factor of the returns.
    :param return_type: ``"reward_to_go"`` or ``"episode"``.
    :param values: The critic's V(s) of each step, shape ``(n_steps,)``; None unless ``needs_critic``.
    :param observations: Observations the policy acted on, without action masks, shape ``(n_steps, *obs_shape)``, or a dict of
        such arrays; None unless ``needs_observations``.
    :param actions: Actions as the policy sampled them, shape ``(n_steps, *action_shape)``; None unless ``needs_observations``.
    :param action_masks: Shape ``(n_steps, n_options)``, True for valid actions; None without masks, or unless
        ``needs_observations``.
    :param distribution: The policy's distribution at every step, on the CPU: PyTorch's ``Categorical``, ``Bernoulli`` or
        ``Normal`` with ``n_steps`` rows (for squashed actions, the Gaussian before squashing), or a list of ``Categorical``
        for MultiDiscrete actions; None unless ``needs_distribution``.
    :param score_products: Inner products of each episode's ``S = sum_t w_t s_t``, where ``s_t`` is the score of a step and
        ``w_t`` its weight, with ``sum_t w_t returns_t s_t`` and with itself, shape ``(n_episodes, 2)``; None unless
        ``needs_scores``.
    :param starts: With ``episodes_per_start``, the index of each episode's start, from 0, shape ``(n_episodes,)``; episodes
        with the same index were reset with the same seed. None otherwise.
    :param greedy_rewards: Reward of each step of the deterministic policy's episodes, one from each start, shape
        ``(n_greedy_steps,)``; None unless ``needs_greedy_episodes``.
    :param greedy_lengths: Steps of each of these episodes, shape ``(n_starts,)``.
    """

    rewards: Array
    lengths: IntArray
    returns: Array = dataclasses.field(default_factory=lambda: np.zeros(0))
    rewards_to_go: Array = dataclasses.field(default_factory=lambda: np.zeros(0))
    gamma: float = 1.0
    return_type: str = "reward_to_go"
    values: Array | None = None
    observations: Any = None
    actions: Any = None
    action_masks: Any = None
    distribution: Any = None
    score_products: Array | None = None
    starts: IntArray | None = None
    greedy_rewards: Array | None = None
    greedy_lengths: IntArray | None = None

    @property
    def time_steps(self) -> IntArray:
        """The time of each step in its episode, from 0, shape ``(n_steps,)``."""
        return time_steps(self.lengths)

    @property
    def greedy_returns(self) -> Array:
        """The ``returns`` of the deterministic policy's episodes, shape ``(n_greedy_steps,)``."""
        assert self.greedy_rewards is not None and self.greedy_lengths is not None
        compute = rewards_to_go if self.return_type == "reward_to_go" else whole_episode_returns
        return compute(self.greedy_rewards, self.greedy_lengths, self.gamma)

    def replace(self, **changes: Any) -> "Episodes":
        """
        Copy the episodes, with some fields replaced.

        :param changes: New values of fields, by name.
        :return: The copy, which shares all other arrays.
        """
        return dataclasses.replace(self, **changes)


class Baseline(ABC):
    """
    Base class of baselines. Derive from it, and pass an instance or the class path to ``REINFORCE``.

    Only ``__call__`` is required. A baseline that learns does so in ``fit``, which is called after the policy's step: a
    baseline that has seen the return that it is subtracted from is biased. Its attributes, or what ``state_dict`` returns, are
    saved with the model.

    The class attributes request what ``__call__`` and ``fit`` are given, since it costs time: ``needs_critic`` builds a critic
    and fits it; ``needs_observations`` provides observations, actions and masks, which several processes have to exchange;
    ``needs_distribution`` evaluates the policy at every step, ``needs_scores`` differentiates it for each episode;
    ``needs_common_starts`` requires ``episodes_per_start`` of at least 2, ``needs_greedy_episodes`` adds an episode of the
    deterministic policy from each start.
    """

    needs_critic: ClassVar[bool] = False
    needs_observations: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    needs_common_starts: ClassVar[bool] = False
    needs_greedy_episodes: ClassVar[bool] = False
    #: Whether it compares an episode with others, so that a single episode has no baseline
    compares_episodes: ClassVar[bool] = False
    #: Whether what is subtracted from an episode depends on the other episodes of the rollout
    sees_other_episodes: ClassVar[bool] = True
    #: Whether the expected gradient is known to be the same as without a baseline
    is_unbiased: ClassVar[bool] = False
    #: Whether all processes compute the same numbers from the same episodes; if not, all use those of process 0
    is_deterministic: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, episodes: Episodes) -> Array:
        """
        Compute the number to subtract at each step.

        :param episodes: The episodes of the rollout.
        :return: Shape ``(n_steps,)``, finite.
        """

    def fit(self, episodes: Episodes) -> None:
        """
        Learn from the episodes of a rollout, after the policy's step. Nothing by default.

        :param episodes: The episodes that ``__call__`` was given.
        """

    def state_dict(self) -> dict[str, Any]:
        """
        Return the state to save with the model; it must be picklable.

        :return: By default the attributes of the instance.
        """
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore the state that was saved with a model.

        :param state: What ``state_dict`` returned.
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


class MovingAverageBaseline(Baseline):
    """
    An exponential average of the returns of past rollouts: reinforcement comparison (Sutton 1984; Williams 1992, section 3).

    The number is the same for all steps. The average is bias-corrected as in Adam (Kingma & Ba 2015, section 3): missing
    rollouts at the beginning do not count as zero. In the first rollout nothing is subtracted.

    :param decay: Decay of the average, in [0, 1): about the last ``1 / (1 - decay)`` rollouts count.
    :raises ValueError: If it is out of its range.
    """

    needs_observations = sees_other_episodes = False
    is_unbiased = is_deterministic = True

    def __init__(self, decay: float = 0.9) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.decay = decay
        self.sum = self.weight = 0.0

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        return np.full(len(episodes.returns), self.sum / self.weight if self.weight > 0.0 else 0.0)

    def fit(self, episodes: Episodes) -> None:
        """See ``Baseline``. Every episode counts once, as in ``mean_baseline``."""
        mean = float(episode_means(episodes.returns, episodes.lengths).mean())
        self.sum = self.decay * self.sum + (1.0 - self.decay) * mean
        self.weight = self.decay * self.weight + 1.0 - self.decay


class LinearBaseline(Baseline):
    """
    A linear function of observation and time, fitted on the last rollout, with the features of ``linear_features`` (Duan et
    al. 2016, section 4 and rllab's ``LinearFeatureBaseline``). In the first rollout nothing is subtracted.

    :param regularization: Added to the diagonal by ridge regression; 1e-5 as in rllab.
    :raises ValueError: If it is not above 0.
    """

    sees_other_episodes = False
    is_unbiased = is_deterministic = True

    def __init__(self, regularization: float = 1e-5) -> None:
        if not regularization > 0.0:
            raise ValueError(f"regularization must be above 0, not {regularization}")
        self.regularization = regularization
        self.coefficients: Array | None = None

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        if self.coefficients is None:
            return np.zeros(len(episodes.returns))
        return linear_features(episodes.observations, episodes.time_steps) @ self.coefficients

    def fit(self, episodes: Episodes) -> None:
        """See ``Baseline``."""
        features = linear_features(episodes.observations, episodes.time_steps)
        self.coefficients = ridge_regression(features, episodes.returns, self.regularization)


class OptimalBaseline(Baseline):
    """See ``optimal_baseline``. Differentiates the policy for each episode, which takes longer than the rest of the update."""

    needs_observations = False
    needs_scores = compares_episodes = is_unbiased = is_deterministic = True

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        assert episodes.score_products is not None
        return optimal_baseline(episodes.score_products, episodes.lengths)


class GreedyBaseline(Baseline):
    """See ``greedy_baseline``."""

    needs_observations = False
    needs_greedy_episodes = is_unbiased = is_deterministic = True

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        assert episodes.starts is not None and episodes.greedy_lengths is not None
        return greedy_baseline(episodes.greedy_returns, episodes.greedy_lengths, episodes.starts, episodes.lengths)


class GroupBaseline(Baseline):
    """See ``group_baseline``."""

    needs_observations = False
    needs_common_starts = compares_episodes = is_unbiased = is_deterministic = True

    def __call__(self, episodes: Episodes) -> Array:
        """See ``Baseline``."""
        assert episodes.starts is not None
        return group_baseline(episodes.returns, episodes.lengths, episodes.starts, episodes.return_type == "reward_to_go")


#: The built-in baselines, by name.
BASELINES: dict[str | None, type[Baseline]] = {
    "value": ValueBaseline,
    "leave_one_out": LeaveOneOutBaseline,
    "time_step": TimeStepBaseline,
    "mean": MeanBaseline,
    "moving_average": MovingAverageBaseline,
    "linear": LinearBaseline,
    "optimal": OptimalBaseline,
    "greedy": GreedyBaseline,
    "group": GroupBaseline,
    None: NoBaseline,
}


def make_baseline(baseline: Baseline | str | None) -> Baseline:
    """
    Make a baseline from the user's argument.

    :param baseline: A name in ``BASELINES``, the class path of another (``"my_module:MyBaseline"`` or
        ``"my_module.MyBaseline"``), which is constructed without arguments, or an instance.
    :return: The baseline.
    :raises ValueError: If there is no such baseline, or it cannot be constructed; names it.
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
    :return: Its name in ``BASELINES``, in quotes if it is a string, or its class path.
    """
    own = type(baseline)
    return next((repr(name) for name, named in BASELINES.items() if named is own), f"{own.__module__}:{own.__qualname__}")


def compute_baseline(baseline: Baseline, episodes: Episodes) -> Array:
    """
    Compute a baseline, and check the result.

    :param baseline: Baseline to call, on read-only arrays. A baseline that compares episodes is not called for a single
        episode: the result is 0.
    :param episodes: The episodes.
    :return: Shape ``(n_steps,)``.
    :raises ValueError: If the result has another shape, is not finite, or the baseline changes the episodes; names it.
    """
    n_steps = len(episodes.rewards)
    if baseline.compares_episodes and len(episodes.lengths) == 1:
        return np.zeros(n_steps)
    fields = {field.name: getattr(episodes, field.name) for field in dataclasses.fields(episodes)}
    read_only = episodes.replace(**{name: _read_only(part) for name, part in fields.items()})
    try:
        with warnings.catch_warnings():
            # PyTorch's warning about a tensor that shares the memory of a read-only array
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
    Concatenate the episodes of several processes.

    :param parts: The episodes of each process, all with the same fields.
    :return: The episodes of all processes.
    """
    if len(parts) == 1:
        return parts[0]
    fields = [field.name for field in dataclasses.fields(Episodes) if field.name not in ("gamma", "return_type")]
    joined = parts[0].replace(**{name: _join([getattr(part, name) for part in parts]) for name in fields})
    if joined.starts is None:
        return joined
    # If the bound cut the rollout short, there may be starts with an episode of the deterministic policy only
    n_starts = [max(len(_array(part.greedy_lengths)), int(_array(part.starts).max(initial=-1)) + 1) for part in parts]
    offsets = np.repeat(np.cumsum(n_starts) - n_starts, [len(part.lengths) for part in parts])
    return joined.replace(starts=joined.starts + offsets)


def _array(numbers: IntArray | None) -> IntArray:
    return np.zeros(0, dtype=np.int64) if numbers is None else numbers


def _join(parts: list[Any]) -> Any:
    # A process without episodes has no distribution
    parts = [part for part in parts if part is not None] or [None]
    if isinstance(parts[0], dict):
        return {key: _join([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return None if parts[0] is None else join_distributions(parts)


#: Fields with a row for each episode, not for each step.
_OF_EPISODES = ("lengths", "score_products", "starts")
#: Fields that all episodes share.
_OF_ALL = ("greedy_rewards", "greedy_lengths")


def select_episodes(episodes: Episodes, indices: Sequence[int] | IntArray) -> Episodes:
    """
    Select some episodes.

    :param episodes: The episodes to select from.
    :param indices: Indices of the selected episodes, in this order.
    :return: The selected episodes.
    """
    steps = steps_of(episodes.lengths, indices)
    names = [field.name for field in dataclasses.fields(episodes) if field.name not in _OF_ALL]
    fields = {name: getattr(episodes, name) for name in names}
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
    Concatenate the rows of distributions, without their gradients.

    :param parts: PyTorch's ``Categorical``, ``Bernoulli`` or ``Normal``, or lists of these, all of the same kind.
    :return: The same kind, on the CPU.
    :raises ValueError: If they belong to another class.
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
    return np.asarray(np.add.reduceat(returns, first_steps(episode_lengths)) / episode_lengths)


def mean_baseline(returns: Array, episode_lengths: IntArray) -> Array:
    """
    Mean return of the batch, with every episode counted once.

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

    Unbiased for the same reason as ``leave_one_out_baseline``, which is used where no other episode is long enough.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, at least two of them.
    :return: Shape ``(n_steps,)``.
    """
    steps = time_steps(episode_lengths)
    others = np.bincount(steps)[steps] - 1
    sum_of_others = np.bincount(steps, weights=returns)[steps] - returns
    return np.where(others > 0, sum_of_others / np.maximum(others, 1), leave_one_out_baseline(returns, episode_lengths))


def linear_features(observations: Any, time_steps: IntArray) -> Array:
    """
    Compute the features of ``LinearBaseline``: the observation o, its square, ``t/100``, ``(t/100)**2``, ``(t/100)**3``, 1.

    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such arrays; clipped to [-10, 10], as in rllab.
    :param time_steps: Shape ``(n_steps,)``.
    :return: Shape ``(n_steps, 2 * n_observed + 4)``.
    """
    parts = observations.values() if isinstance(observations, dict) else [observations]
    rows = [np.asarray(part, dtype=np.float64).reshape(len(time_steps), -1) for part in parts]
    observed, time = np.clip(np.concatenate(rows, axis=1), -10.0, 10.0), time_steps[:, None] / 100.0
    return np.concatenate([observed, observed**2, time, time**2, time**3, np.ones_like(time)], axis=1)


def ridge_regression(features: Array, targets: Array, regularization: float) -> Array:
    """
    Minimise ``|features @ x - targets|**2 + regularization * |x|**2`` (Hoerl & Kennard 1970).

    :param features: Shape ``(n_steps, n_features)``.
    :param targets: Shape ``(n_steps,)``.
    :param regularization: Above 0.
    :return: x, shape ``(n_features,)``.
    """
    n_steps, n_features = features.shape
    if n_features <= n_steps:
        solution = np.linalg.solve(features.T @ features + regularization * np.eye(n_features), features.T @ targets)
    else:
        # The same solution from a smaller system: images have more features than a rollout has steps
        solution = features.T @ np.linalg.solve(features @ features.T + regularization * np.eye(n_steps), targets)
    return np.asarray(solution, dtype=np.float64)


def optimal_baseline(score_products: Array, episode_lengths: IntArray) -> Array:
    """
    Estimate, from the other episodes, the constant that minimises the variance of an episode's gradient.

    With ``S`` the sum of an episode's scores and ``A`` the sum of its scores times its returns, the gradient with the constant
    b is ``A - b S``. Since S has mean zero, the variance is least for ``b = E[A . S] / E[S . S]`` (Greensmith et al. 2004,
    section 4; for whole returns Peters & Schaal 2008, section 3.2). Unbiased, because an episode never sees itself.

    :param score_products: ``A . S`` and ``S . S`` of each episode, shape ``(n_episodes, 2)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, at least two of them.
    :return: Shape ``(n_steps,)``, constant inside an episode; 0 where the others have no gradient.
    """
    products, squares = (score_products.sum(axis=0) - score_products).T
    constants = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0.0)
    return np.repeat(constants, episode_lengths)


def group_baseline(returns: Array, episode_lengths: IntArray, starts: IntArray, by_time_step: bool) -> Array:
    """
    Average the other episodes from the same start (Kool et al. 2019; POMO, Kwon et al. 2020; GRPO, Shao et al. 2024).

    Unbiased, because given what the environment does, an episode's actions are independent of the other episodes' actions.

    :param returns: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param starts: The start of each episode, shape ``(n_episodes,)``.
    :param by_time_step: Whether to average like ``time_step_baseline``, for rewards-to-go, or like ``leave_one_out_baseline``.
    :return: Shape ``(n_steps,)``; 0 in an episode that is the only one from its start.
    """
    average = time_step_baseline if by_time_step else leave_one_out_baseline
    start_of_step, baseline = np.repeat(starts, episode_lengths), np.zeros(len(returns))
    for start in np.unique(starts):
        own, lengths = start_of_step == start, episode_lengths[starts == start]
        if len(lengths) > 1:
            baseline[own] = average(returns[own], lengths)
    return baseline


def greedy_baseline(greedy_returns: Array, greedy_lengths: IntArray, starts: IntArray, episode_lengths: IntArray) -> Array:
    """
    Return of the deterministic policy from the same start (self-critical training, Rennie et al. 2017; Kool et al. 2019) at
    the same time step; the mean return of its episode where that is shorter.

    Unbiased, because the deterministic episode does not depend on the sampled actions.

    :param greedy_returns: Returns of the steps of the deterministic episodes, one episode for each start.
    :param greedy_lengths: Steps of each deterministic episode, shape ``(n_starts,)``.
    :param starts: The start of each episode, an index into ``greedy_lengths``, shape ``(n_episodes,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Shape ``(n_steps,)``.
    """
    steps, start_of_step = time_steps(episode_lengths), np.repeat(starts, episode_lengths)
    means = episode_means(greedy_returns, greedy_lengths)
    at_same_time = np.minimum(steps, greedy_lengths[start_of_step] - 1) + first_steps(greedy_lengths)[start_of_step]
    return np.where(steps < greedy_lengths[start_of_step], greedy_returns[at_same_time], means[start_of_step])
