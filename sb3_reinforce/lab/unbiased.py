"""Compute the exact bias and variance of a baseline from every rollout of environments small enough to list them all."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th

from sb3_reinforce.envs import aliased_gridworld, diamond_hill
from sb3_reinforce.envs.paths import Path
from sb3_reinforce.functional.baselines import (
    BASELINES,
    Baseline,
    Episodes,
    NoBaseline,
    make_baseline,
    name_of,
    select_episodes,
)
from sb3_reinforce.functional.estimator import Estimator
from sb3_reinforce.functional.returns import Array, IntArray, steps_of
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.rollout.batch import EpisodeBatch, describe_episodes
from sb3_reinforce.update import make_evaluator
from sb3_reinforce.update.advantages import evaluate_rollout

GAMMA = 0.9
#: Time limit of AliasedGridworld: enough to find the money.
TIME_LIMIT = 2
#: Maps P(action | observation) to a list of the environment's possible draws: the probability of each, and its paths.
Enumeration = Callable[[Array], list[tuple[float, list[Path]]]]


def _enumerate_diamond_hill(probabilities: Array) -> list[tuple[float, list[Path]]]:
    slip = diamond_hill.SLIP_PROBABILITY
    return [(p, diamond_hill.enumerate_paths(probabilities, float(slips))) for p, slips in ((slip, True), (1 - slip, False))]


def _enumerate_gridworld(probabilities: Array) -> list[tuple[float, list[Path]]]:
    cells = aliased_gridworld.START_CELLS
    return [(1 / len(cells), aliased_gridworld.enumerate_paths(probabilities, TIME_LIMIT, (cell,))) for cell in cells]


#: Environments whose paths can all be listed: the observations in which the agent acts, one per row of the probabilities;
#: the actions that are valid there, None for all; the function that lists the paths. In the gridworld, masks exclude steps
#: into walls, so that masks are checked too.
ENVIRONMENTS: dict[str, tuple[Any, Any, Enumeration]] = {
    "sb3_reinforce/DiamondHill-v0": (diamond_hill.DECISION_STATES, None, _enumerate_diamond_hill),
    "sb3_reinforce/AliasedGridworld-v0": (
        aliased_gridworld.OBSERVATIONS,
        aliased_gridworld.OBSERVATIONS == 0,
        _enumerate_gridworld,
    ),
}


class EnumeratedGradient(NamedTuple):
    """
    The gradient of the discounted objective with a baseline: the sum over steps, averaged over episodes.

    :param environment: Id of the environment.
    :param return_type: As in ``REINFORCE``.
    :param baseline: Name of the baseline.
    :param expected: The expected gradient, shape ``(n_parameters,)``.
    :param exact: The gradient of the objective, shape ``(n_parameters,)``.
    :param variance: Trace of the covariance of a rollout's gradient.
    """

    environment: str
    return_type: str
    baseline: str
    expected: Array
    exact: Array
    variance: float

    @property
    def bias(self) -> float:
        """Distance of the expected gradient from the exact gradient, relative to the length of the exact gradient."""
        return float(np.linalg.norm(self.expected - self.exact) / np.linalg.norm(self.exact))


class BaselineCheck(NamedTuple):
    """
    The exact bias and variance of a baseline, and of others for comparison.

    :param baseline: Name of the baseline.
    :param results: First the baseline's results for each environment and return type, then the results of the others.
    """

    baseline: str
    results: list[EnumeratedGradient]

    @property
    def own(self) -> list[EnumeratedGradient]:
        """The results of the baseline itself."""
        return [result for result in self.results if result.baseline == self.baseline]

    def assert_unbiased(self, tolerance: float = 1e-6) -> None:
        """
        Assert that the baseline is unbiased in all environments, with both return types.

        :param tolerance: Largest bias that counts as rounding.
        :raises AssertionError: If the baseline is biased; the message says where and by how much.
        """
        biased = [one for one in self.own if not one.bias <= tolerance]
        if biased:
            words = "; ".join(f"{one.environment}, return_type={one.return_type!r}: {one.bias:.3g}" for one in biased)
            raise AssertionError(
                f"baseline {self.baseline} is biased, in units of the exact gradient: {words}. What is subtracted from the "
                "return of a step must have mean zero in product with the score of the step: it must not depend on its action"
            )

    def __str__(self) -> str:
        """Format a table of bias and variance; the variance is relative to the variance without a baseline."""
        lines = [f"{'environment':34} {'return_type':13} {'baseline':20} {'bias':>9} {'variance':>9}"]
        plain = {(one.environment, one.return_type): one.variance for one in self.results if one.baseline == "None"}
        for one in self.results:
            unit = plain.get((one.environment, one.return_type), 1.0)
            columns = f"{one.environment:34} {one.return_type:13} {one.baseline:20}"
            lines.append(f"{columns} {one.bias:9.2g} {one.variance / unit:9.3f}")
        return "\n".join(lines)


def check_unbiased(
    baseline: Baseline | str | None, n_episodes: int = 2, compared: Sequence[str | None] | None = None
) -> BaselineCheck:
    """
    Compute the exact bias and variance of the gradient with a baseline by listing all rollouts of two small environments.

    A fitted baseline is fitted once, on one episode per path, and then kept fixed: how it learns is not checked. If it needs
    common starts, all episodes of a rollout share one start.

    :param baseline: The baseline, as ``REINFORCE`` takes it. It is copied.
    :param n_episodes: Episodes per rollout, at least 2; the number of rollouts grows exponentially with it.
    :param compared: Names of baselines to show for comparison; all by default.
    :return: Bias and variance of each baseline.
    :raises ValueError: If there is no such baseline, its values cannot be subtracted, or ``n_episodes`` is too small.
    """
    if n_episodes < 2:
        raise ValueError(f"n_episodes must be at least 2, since baselines compare episodes, not {n_episodes}")
    own = make_baseline(baseline)
    names = [name for name in (BASELINES if compared is None else compared) if make_baseline(name).__class__ is not type(own)]
    results = []
    for one in (own, *map(make_baseline, names)):
        for environment in ENVIRONMENTS:
            for return_type in ("reward_to_go", "episode"):
                results.append(enumerate_gradients(environment, return_type, one, n_episodes))
    return BaselineCheck(name_of(own), results)


def enumerate_gradients(environment: str, return_type: str, baseline: Baseline, n_episodes: int) -> EnumeratedGradient:
    """Compute the mean and variance of the gradient with copies of a baseline in one of ``ENVIRONMENTS``."""
    baseline = copy.deepcopy(baseline)
    estimator = Estimator(GAMMA, 1.0, return_type, True, baseline, loss_reduction="episode")
    draws, episodes, scores = _list_paths(environment, estimator)
    baseline.fit(episodes)
    plain = Estimator(GAMMA, 1.0, return_type, True, NoBaseline(), loss_reduction="episode")
    exact, mean, square = (np.zeros(scores.shape[1]) for _ in range(3))
    for probability, indices, _ in _list_rollouts(draws, 1, False):
        exact += probability * _gradient(plain, episodes, scores, indices)
    has_common_starts = baseline.needs_common_starts or baseline.needs_greedy_episodes
    for probability, indices, greedy in _list_rollouts(draws, n_episodes, has_common_starts):
        rollout = episodes
        if has_common_starts:
            first = int(episodes.lengths[:greedy].sum())
            rewards = episodes.rewards[first : first + episodes.lengths[greedy]]
            starts = np.zeros(len(episodes.lengths), dtype=np.int64)
            rollout = episodes.replace(starts=starts, greedy_rewards=rewards, greedy_lengths=np.array([len(rewards)]))
        if vars(baseline):
            # State that a call leaves in the baseline must not pass from one rollout to the next
            estimator = dataclasses.replace(estimator, baseline=copy.deepcopy(baseline))
        gradient = _gradient(estimator, rollout, scores, indices)
        mean += probability * gradient
        square += probability * gradient**2
    return EnumeratedGradient(environment, return_type, name_of(baseline), mean, exact, float(square.sum() - mean @ mean))


class _Draw(NamedTuple):
    """A possible draw of an environment: its probability, its paths as pairs of index and probability, and the greedy path."""

    probability: float
    paths: list[tuple[int, float]]
    greedy: int


def _list_paths(environment: str, estimator: Estimator) -> tuple[list[_Draw], Episodes, Array]:
    """List all paths as episodes, with the score of each of their steps, for a random linear policy."""
    observations, masks, enumerate_paths = ENVIRONMENTS[environment]
    model = REINFORCE(
        "MlpPolicy",
        gym.make(environment),
        baseline=estimator.baseline,
        n_episodes=2,
        episodes_per_start=2,
        use_masking=masks is not None,
        policy_kwargs={"net_arch": {"pi": [], "vf": [4]}},
        seed=0,
        device="cpu",
    )
    with th.random.fork_rng(devices=[]), th.no_grad():
        th.manual_seed(0)
        for parameter in model.policy.action_net.parameters():
            parameter.normal_()
    evaluator = make_evaluator(model.policy)

    def rows_of(path: Path) -> list[int]:
        return [int(np.argmax((observations == row).all(axis=1))) for row in path.observations]

    def batch_of(paths: Sequence[Path]) -> EpisodeBatch:
        rows = [row for path in paths for row in rows_of(path)]
        return EpisodeBatch(
            observations=th.as_tensor(observations[rows]),
            actions=th.as_tensor(np.concatenate([path.actions for path in paths]))[:, None],
            rewards=np.concatenate([path.rewards for path in paths]).astype(np.float64),
            episode_lengths=np.array([len(path.actions) for path in paths]),
            cut_steps=np.zeros(0, dtype=np.int64),
            final_observations=None,
            episode_starts=np.array([(0, 0)] * len(paths)),
            action_masks=None if masks is None else th.as_tensor(masks[rows]),
        )

    everywhere = [Path(1.0, row[None], np.zeros(1, dtype=np.int64), np.zeros(1)) for row in observations]
    probabilities = evaluator.distributions(batch_of(everywhere)).probs.double().numpy()
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    draws: list[_Draw] = []
    listed: list[Path] = []
    for probability, paths in enumerate_paths(probabilities):
        possible = [path for path in paths if path.probability > 0.0]
        best = [bool((probabilities[rows_of(path)].argmax(axis=1) == path.actions).all()) for path in possible]
        indices = range(len(listed), len(listed) + len(possible))
        own = [(index, path.probability) for index, path in zip(indices, possible, strict=True)]
        draws.append(_Draw(probability, own, indices[best.index(True)]))
        listed += possible
    batch = batch_of(listed)
    batch = batch._replace(outputs=evaluate_rollout(evaluator, batch, estimator.baseline, False, False))
    # Scores of a linear softmax policy in double precision: d log-probability / d logits, times the inputs
    rows = [row for path in listed for row in rows_of(path)]
    by_logits = np.eye(probabilities.shape[1])[np.concatenate([path.actions for path in listed])] - probabilities[rows]
    inputs = np.column_stack([observations[rows].astype(np.float64), np.ones(len(rows))])
    scores = (by_logits[:, :, None] * inputs[:, None, :]).reshape(len(rows), -1)
    return draws, estimator.add_returns(describe_episodes(batch, estimator, 0.0, evaluator)), scores


def _list_rollouts(draws: list[_Draw], n_episodes: int, has_common_start: bool) -> Iterator[tuple[float, IntArray, int]]:
    """Yield each rollout's probability, its paths, and the deterministic policy's path if the episodes share a start."""
    if not has_common_start:
        everything = [(index, draw.probability * p) for draw in draws for index, p in draw.paths]
        draws = [_Draw(1.0, everything, 0)]
    for draw in draws:
        for rollout in itertools.product(draw.paths, repeat=n_episodes):
            indices, probabilities = zip(*rollout, strict=True)
            yield draw.probability * float(np.prod(probabilities)), np.array(indices), draw.greedy


def _gradient(estimator: Estimator, episodes: Episodes, scores: Array, indices: IntArray) -> Array:
    targets = estimator(select_episodes(episodes, indices))
    gradient: Array = targets.score_weights @ scores[steps_of(episodes.lengths, indices)] / targets.n_averaged
    return gradient
