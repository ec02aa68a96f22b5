"""Measure the signal and the noise of each estimator's gradient on the same episodes."""

import copy
import itertools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import update_learning_rate

from sb3_reinforce.distributed.partition import single_partition
from sb3_reinforce.functional import baselines as baseline_module
from sb3_reinforce.functional import returns
from sb3_reinforce.functional.baselines import Baseline
from sb3_reinforce.functional.estimator import Estimator, PolicyGradientTargets
from sb3_reinforce.functional.returns import Array, IntArray, first_steps, steps_of
from sb3_reinforce.lab import statistics
from sb3_reinforce.lab.collect import Episodes, check_model, collect, progress
from sb3_reinforce.lab.estimators import (
    BEST_CONSTANT,
    CONTROL_VARIATES,
    DISCOUNTED,
    MODEL_CRITIC,
    OWN,
    REFITTED_CRITIC,
    UNDISCOUNTED,
    NamedEstimator,
    choose_episodes_per_start,
    choose_estimators,
    has_critic,
    key_of,
    make_estimators,
)
from sb3_reinforce.lab.gradients import FloatArray, ScoreGradients, compression, take_episodes
from sb3_reinforce.lab.refit import crossfitted_control_variates, crossfitted_values
from sb3_reinforce.lab.statistics import Interval
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.rollout.batch import EpisodeBatch, PolicyOutputs, describe_episodes
from sb3_reinforce.rollout.common_starts import CommonStarts
from sb3_reinforce.update.advantages import evaluate_rollout
from sb3_reinforce.update.policy_step import Divergence, clipped_norm, clone_tensors, compute_gradient

#: Number of random splits into batches: at the user's batch size, which most results describe, and at every other size.
N_DEALS_AT_BATCH_SIZE = 8
N_DEALS = 2
#: Number of batches whose step is tried.
N_STEPS_TRIED = 8
N_CLOUD_DOTS = 200
#: Sizes of the subsamples that show the estimates from fewer episodes, and the number of subsamples of each size.
FEWER_EPISODES = (50, 100, 200, 500)
N_SUBSAMPLES = 60
#: Estimators whose updates and subsamples appear in the figure.
FEATURED = ("to-go", "to-go-critic", "to-go-constant", "to-go-refit")
UNKNOWN = Interval(np.nan, np.nan, np.nan)


class PreparedEstimator(NamedTuple):
    """
    An estimator with the episodes from which it computes its weights, and the entropy coefficient of its loss.

    ``subtracted`` holds the values of a baseline that was fitted on other episodes; None to call the baseline.
    """

    estimator: NamedEstimator
    episodes: baseline_module.Episodes
    ent_coef: float
    subtracted: Array | None = None

    def targets(self, group: Sequence[int] | IntArray) -> PolicyGradientTargets:
        """Compute the weights of the steps of a batch of episodes, given their indices."""
        subtracted = None if self.subtracted is None else self.subtracted[steps_of(self.episodes.lengths, group)]
        return self.estimator.settings(baseline_module.select_episodes(self.episodes, group), subtracted)


class Result(NamedTuple):
    """
    The signal and the noise of an estimator's gradient.

    :param estimator: The estimator.
    :param signal: Estimate of the squared norm of its expected gradient. Below zero: indistinguishable from zero.
    :param noise: Trace of the covariance of its gradient from one episode. For an estimator that sees its batch: from a batch
        of ``batch_size`` episodes, times that number.
    :param ratio: Signal-to-noise ratio of one episode.
    :param cosines: Mean cosine of two disjoint batches by batch size.
    :param bias: Squared distance of its expected gradient from the one of ``reference``, relative to the squared norm of the
        latter; after the best rescaling if the lengths are not comparable. NaN for the reference itself.
    :param reference: Key of the unbiased estimator of the same target to which it is compared.
    :param backwards: Share of updates with ``batch_size`` episodes that point against the mean gradient of other episodes.
    :param kl: Mean KL divergence of one step of the model with this gradient, in nats.
    :param fewer: The ratio estimated from fewer episodes: quantiles over subsamples, by number of episodes.
    :param cloud: Updates along the mean gradient of other episodes and along the strongest noise, in units of the gradient's
        length, shape ``(n_dots, 2)``.
    """

    estimator: NamedEstimator
    signal: float
    noise: float
    ratio: Interval
    cosines: dict[int, float]
    bias: Interval
    reference: str
    backwards: float
    kl: float
    fewer: dict[int, Interval]
    cloud: FloatArray | None

    @property
    def episodes(self) -> Interval:
        """The gradient noise scale: the number of episodes at which the signal equals the noise."""
        return statistics.invert(self.ratio)

    @property
    def is_resolved(self) -> bool:
        """Whether the gradient can be told from zero."""
        return self.ratio.low > 0.0


class Measurement(NamedTuple):
    """
    The results for a model.

    :param label: Name of the model, such as a stage of its training.
    :param model_class: Algorithm of the model.
    :param returns: Undiscounted returns of the episodes, shape ``(n_episodes,)``.
    :param n_steps: Total number of steps of the episodes.
    :param gamma: Discount factor.
    :param batch_size: Episodes per update.
    :param batch_note: Source of the batch size.
    :param n_parameters: Number of parameters of the actor.
    :param is_compressed: Whether gradients were compressed because of their length.
    :param results: Results by key of the estimator, in the order of the report.
    :param target_cosine: Cosine between the undiscounted-state-distribution gradient (Nota & Thomas 2020) and the gradient of
        the discounted objective; NaN with ``gamma=1``, where they are the same.
    """

    label: str
    model_class: str
    returns: Array
    n_steps: int
    gamma: float
    batch_size: int
    batch_note: str
    n_parameters: int
    is_compressed: bool
    results: dict[str, Result]
    target_cosine: Interval


def measure(
    model: OnPolicyAlgorithm,
    env: GymEnv,
    n_episodes: int = 500,
    batch_size: int | None = None,
    estimators: Sequence[str] = ("lecture",),
    gamma: float | None = None,
    seed: int = 0,
    label: str = "model",
    progress_bar: bool = False,
    baselines: Sequence[Baseline | str] = (),
) -> Measurement:
    """
    Collect episodes once, and measure the signal and the noise of each estimator's gradient on them.

    The model is left unchanged: its parameters, their gradients, its generators, its environment and its statistics.

    :param model: A model of REINFORCE, A2C or PPO, which acts with sampled actions.
    :param env: An environment separate from the model's, wrapped in the same way. It is seeded and reset.
    :param n_episodes: Episodes to collect, at least 20. It takes 200 to 500 to tell estimators with a baseline apart.
    :param batch_size: Episodes per update, at most half of ``n_episodes``; None for the number in the model's updates.
    :param estimators: ``["lecture"]``, ``["all"]``, or names from the table in docs/laboratory.md.
    :param gamma: Discount factor of the estimators; None for the model's.
    :param seed: Seed of the environment, the actions and the resampling.
    :param label: Name of the model in the report.
    :param progress_bar: Whether to show a progress bar (needs tqdm).
    :param baselines: Baselines as ``REINFORCE`` takes them; each adds the estimator reward-to-go minus the baseline. A
        baseline that learns is fitted here, on the other half of the episodes. If one needs common starts, the model's
        ``episodes_per_start`` episodes, or 4, share a start, and the episodes of a start are the unit of all statistics.
    :return: The results.
    :raises ValueError: If an argument is out of range, the model lacks an actor or a critic that is needed, environment and
        model do not match, or an episode does not end.
    """
    check_model(model, n_episodes)
    known = make_estimators(model, model.gamma if gamma is None else gamma, baselines)
    chosen = choose_estimators(known, [*estimators, *map(key_of, baselines)], model)
    each = choose_episodes_per_start(model, chosen)
    check_batch_size(batch_size, n_episodes, each or 1)
    has_greedy = any(one.settings.baseline.needs_greedy_episodes for one in chosen)
    common_starts = None if each is None else CommonStarts(n_episodes // each, each, has_greedy)
    episodes = collect(model, env, n_episodes // (each or 1) * (each or 1), seed, progress_bar, common_starts)
    return measure_episodes(episodes, chosen, batch_size, seed, label, progress_bar)


def check_batch_size(batch_size: int | None, n_episodes: int, episodes_per_start: int = 1) -> None:
    """Raise ``ValueError`` if there are fewer than two batches, or batches would split the episodes of a start."""
    if n_episodes < 2 * episodes_per_start or (batch_size or 0) % episodes_per_start != 0:
        raise ValueError(
            f"batch_size={batch_size} and n_episodes={n_episodes}: {episodes_per_start} episodes have a common start, and a "
            "batch has all episodes of a start"
        )
    if batch_size is not None and not 1 <= batch_size <= n_episodes // 2:
        raise ValueError(
            f"batch_size must be from 1 to half of the {n_episodes} episodes, since two batches are compared, not {batch_size}"
        )


def choose_batch_size(model: OnPolicyAlgorithm, batch_size: int | None, batch: EpisodeBatch) -> tuple[int, str]:
    """Return the number of episodes per update and the source of that number."""
    most = len(batch.episode_lengths) // 2
    if batch_size is not None:
        return batch_size, "as asked for"
    each = 1 if batch.starts is None else int(np.bincount(batch.starts).max())
    own = getattr(model, "n_episodes", None)
    note = f"n_episodes={own}"
    if own is None:
        budget = int(model.n_steps)
        steps = budget * model.n_envs
        if isinstance(model, REINFORCE):
            own = round(model.n_envs * expected_starts(batch.episode_lengths, budget))
        else:
            own = max(1, round(steps / float(batch.episode_lengths.mean())))
        note = f"{steps:,} steps per update"
    if own > most:
        own, note = most, f"{note} would be {own} episodes, more than half of those collected"
    return max(own // each, 1) * each, note


def expected_starts(episode_lengths: IntArray, n_steps: int) -> float:
    """
    Return how many episodes an environment starts in ``n_steps`` on average; ``REINFORCE`` finishes all of them.

    This is the expected number of renewals (Feller 1968, chapter XIII): the probability that an episode starts at step t is
    a sum over the possible lengths of the episode before it. ``episode_lengths`` are the lengths of a sample of episodes.
    """
    probabilities = np.bincount(episode_lengths) / len(episode_lengths)
    begins = np.zeros(n_steps)
    begins[0] = 1.0
    for step in range(1, n_steps):
        longest = min(step, len(probabilities) - 1)
        begins[step] = probabilities[1 : longest + 1] @ begins[step - longest : step][::-1]
    return float(begins.sum())


def measure_episodes(
    episodes: Episodes,
    estimators: Sequence[NamedEstimator],
    batch_size: int | None = None,
    seed: int = 0,
    label: str = "model",
    progress_bar: bool = False,
) -> Measurement:
    """Measure the signal and the noise of the estimators' gradients on collected episodes. See ``measure``."""
    n_episodes = len(episodes.batch.episode_lengths)
    size, note = choose_batch_size(episodes.model, batch_size, episodes.batch)
    laboratory = _Laboratory(episodes, estimators, size, np.random.default_rng(seed))
    half = n_episodes // 2
    each = laboratory.units.shape[1]
    rounded = {other // each * each for other in (size, half, *(4**power for power in range(half.bit_length())))}
    sizes = sorted(other for other in rounded if 0 < other <= half)
    deals = [other for other in sizes for _ in range(N_DEALS_AT_BATCH_SIZE if other == size else N_DEALS)]
    results = {}
    with progress(progress_bar, label, len(deals) + len(estimators)) as bar:
        for other in deals:
            laboratory.deal(other)
            if bar is not None:
                bar.update()
        for estimator in estimators:
            results[estimator.key] = laboratory.result(estimator)
            if bar is not None:
                bar.update()
    return Measurement(
        label=label,
        model_class=type(episodes.model).__name__,
        returns=episodes.returns,
        n_steps=len(episodes.batch.actions),
        gamma=estimators[0].settings.gamma,
        batch_size=size,
        batch_note=note,
        n_parameters=laboratory.n_parameters,
        is_compressed=laboratory.is_compressed,
        results=results,
        target_cosine=laboratory.target_cosine(),
    )


def prepare(
    episodes: Episodes, estimators: Sequence[NamedEstimator], folds: list[IntArray], seed: int
) -> list[PreparedEstimator]:
    """
    Compute the rewards and values that the estimators need; the best constant's values are zeros for now.

    ``folds`` holds the episode indices of two folds; ``seed`` is the seed of the refitted critics.
    """
    model, evaluator, batch, _ = episodes
    critics: dict[str | None, Array] = {BEST_CONSTANT: np.zeros(len(batch.rewards))}
    sources, gamma = {one.critic for one in estimators if one.key != OWN}, estimators[0].settings.gamma
    if MODEL_CRITIC in sources and has_critic(model):
        critics[MODEL_CRITIC] = evaluator.baseline_values(batch)
    to_go = returns.rewards_to_go(batch.rewards, batch.episode_lengths, gamma)
    if REFITTED_CRITIC in sources:
        critics[REFITTED_CRITIC] = crossfitted_values(evaluator, batch, to_go, folds, seed)
    if CONTROL_VARIATES in sources:
        critics[CONTROL_VARIATES] = crossfitted_control_variates(evaluator, batch, to_go, gamma, folds, seed)
    ent_coef = float(
        model.ent_coef_schedule(model._current_progress_remaining) if isinstance(model, REINFORCE) else model.ent_coef
    )
    prepared = []
    for one in estimators:
        baseline = one.settings.baseline
        ent_coef_in_return = ent_coef_in_loss = 0.0
        if one.key == OWN:
            # As in the model's own update
            entropy_in_return = getattr(model, "entropy_in_return", False)
            critic_is_fitted = not isinstance(model, REINFORCE) or model.critic_is_fitted
            outputs = evaluate_rollout(evaluator, batch, baseline, critic_is_fitted, entropy_in_return)
            ent_coef_in_return, ent_coef_in_loss = (ent_coef, 0.0) if entropy_in_return else (0.0, ent_coef)
        else:
            distribution = evaluator.distributions(batch) if baseline.needs_distribution else None
            outputs = PolicyOutputs(critics.get(one.critic), distribution=distribution)
        of_all = describe_episodes(batch._replace(outputs=outputs), one.settings, ent_coef_in_return, evaluator)
        subtracted = crossfit(one.settings, of_all, folds) if one.is_crossfitted else None
        prepared.append(PreparedEstimator(one, of_all, ent_coef_in_loss, subtracted))
    return prepared


def crossfit(settings: Estimator, episodes: baseline_module.Episodes, folds: list[IntArray]) -> Array:
    """Compute the values of a baseline at every step, each fold's with the baseline fitted on the other fold."""
    subtracted = np.empty(len(episodes.rewards))
    for fold, others in itertools.permutations(folds, 2):
        fitted = copy.deepcopy(settings.baseline)
        fitted.fit(settings.add_returns(baseline_module.select_episodes(episodes, others)))
        own = settings.add_returns(baseline_module.select_episodes(episodes, fold))
        subtracted[steps_of(episodes.lengths, fold)] = baseline_module.compute_baseline(fitted, own)
    return subtracted


def estimator_gradients(
    scores: ScoreGradients, batch: EpisodeBatch, episodes: Sequence[int] | IntArray, prepared: Sequence[PreparedEstimator]
) -> FloatArray:
    """
    Compute the gradients of estimators from some episodes of a batch, treated as a separate batch.

    The shape is ``(len(prepared) + 1, n_parameters)``; the last row is the sum of all scores, averaged over episodes.
    """
    own = take_episodes(batch, episodes)
    targets = [one.targets(episodes) for one in prepared]
    weights = [by.score_weights / by.n_averaged for by in targets]
    bonuses = [one.ent_coef / by.n_averaged for one, by in zip(prepared, targets, strict=True)]
    return scores(own, np.stack([*weights, np.full(len(own.rewards), 1 / len(episodes))]), [*bonuses, 0.0])


def n_unusual_returns(batch: EpisodeBatch, gamma: float) -> int:
    """Count the episodes whose discounted return is not the most common one: with rare rewards, the informative episodes."""
    to_go = returns.rewards_to_go(batch.rewards, batch.episode_lengths, gamma)
    _, counts = np.unique(to_go[first_steps(batch.episode_lengths)], return_counts=True)
    return len(batch.episode_lengths) - int(counts.max())


def units_of(batch: EpisodeBatch) -> IntArray:
    """Return the episodes of each start, all starts having equally many, shape ``(n_units, episodes_per_start)``."""
    if batch.starts is None:
        return np.arange(len(batch.episode_lengths))[:, None]
    return np.argsort(batch.starts, kind="stable").reshape(int(batch.starts.max()) + 1, -1)


class _Laboratory:
    """Hold the gradients of single episodes and the results from batches of them."""

    def __init__(
        self, episodes: Episodes, estimators: Sequence[NamedEstimator], batch_size: int, rng: np.random.Generator
    ) -> None:
        batch = episodes.batch
        self.episodes = episodes
        self.batch_size = batch_size
        self.rng = rng
        #: Independent units: the episodes of each start, or single episodes; shape ``(n_units, episodes_per_start)``
        self.units = units_of(batch)
        self.n = len(self.units)
        self.folds = [np.sort(fold) for fold in np.array_split(rng.permutation(self.n), 2)]

        gamma = estimators[0].settings.gamma
        known = make_estimators(episodes.model, gamma)
        # Other estimators are always compared with these
        needed = {one.key: one for one in (*estimators, known["to-go"], known["to-go-constant"])}
        if any(one.target == DISCOUNTED for one in estimators):
            critic = "weighted-critic" if has_critic(episodes.model) else "weighted"
            key = "weighted-refit" if "to-go-refit" in needed else critic
            needed[key] = known[key]
        folds = [np.sort(self.units[fold].ravel()) for fold in self.folds]
        prepared = prepare(episodes, list(needed.values()), folds, int(rng.integers(2**31)))
        self.prepared = {one.estimator.key: one for one in prepared}
        self.seeing = [one for one in prepared if one.estimator.sees_batch]

        self.scores = ScoreGradients(episodes.evaluator)
        self.n_parameters = sum(parameter.numel() for parameter in self.scores.parameters(batch))
        self.compress = compression(self.n_parameters, rng)
        self.gradients = self._episode_gradients([one for one in prepared if not one.estimator.sees_batch])
        self.is_compressed = self.gradients["to-go"].shape[1] < self.n_parameters

        self.products = {key: statistics.inner_products(gradients) for key, gradients in self.gradients.items()}
        self.moments = {key: statistics.signal_and_noise(products) for key, products in self.products.items()}
        self.is_informed = n_unusual_returns(batch, gamma) >= statistics.MIN_INFORMATIVE
        targets = {one.estimator.target for one in prepared}
        self.references = {target: self._choose_reference(target) for target in targets}
        self.cosines: dict[str, dict[int, list[float]]] = {key: {} for key in self.prepared}
        self.backwards: dict[str, list[float]] = {key: [] for key in self.prepared}
        #: For estimators that see their batch: the estimates and intervals from each split into batches
        self.dealt: dict[str, list[tuple[float, float, Interval, Interval]]] = {one.estimator.key: [] for one in self.seeing}

    def _gradients(self, prepared: Sequence[PreparedEstimator], groups: IntArray) -> FloatArray:
        """Compute the gradients of groups of units; the last row holds the mean sums of their scores."""
        batch = self.episodes.batch
        groups_of_episodes = [self.units[group].ravel() for group in groups]
        rows = [self.compress(estimator_gradients(self.scores, batch, group, prepared)) for group in groups_of_episodes]
        return np.stack(rows, axis=1)

    def _episode_gradients(self, prepared: Sequence[PreparedEstimator]) -> dict[str, FloatArray]:
        """Compute every unit's gradient for the estimators that do not see their batch."""
        *gradients, scores = self._gradients(prepared, np.arange(self.n)[:, None])
        by_key = {one.estimator.key: own for one, own in zip(prepared, gradients, strict=True)}
        own, one = by_key["to-go-constant"], self.prepared["to-go-constant"]
        constants = self._best_constants(own, scores)
        own -= constants[:, None].astype(own.dtype) * scores
        # For the step that is tried with it
        of_episodes = np.empty(self.units.size)
        of_episodes[self.units.ravel()] = np.repeat(constants, self.units.shape[1])
        values = np.repeat(of_episodes, self.episodes.batch.episode_lengths)
        self.prepared["to-go-constant"] = one._replace(episodes=one.episodes.replace(values=values))
        return by_key

    def _best_constants(self, gradients: FloatArray, scores: FloatArray) -> Array:
        """Find the constant baseline with the smallest variance (Greensmith et al. 2004, section 4), from other episodes."""
        constants = np.empty(self.n)
        for fold, others in itertools.permutations(self.folds, 2):
            norm = float(np.sum(scores[others].astype(np.float64) ** 2))
            constants[fold] = np.sum(gradients[others].astype(np.float64) * scores[others]) / norm if norm > 0.0 else 0.0
        return constants

    def _choose_reference(self, target: str) -> str:
        """Find the unbiased estimator of a target with the largest signal-to-noise ratio."""
        ratios = {
            key: signal / noise if noise > 0.0 else np.inf
            for key, (signal, noise) in self.moments.items()
            if self.prepared[key].estimator.is_unbiased and self.prepared[key].estimator.target == target
        }
        return max(ratios, key=lambda key: ratios[key])

    def _deal_units(self, size: int) -> IntArray:
        """Divide the units at random into groups of ``size`` episodes."""
        n_units = size // self.units.shape[1]
        return self.rng.permutation(self.n)[: self.n // n_units * n_units].reshape(-1, n_units)

    def deal(self, size: int) -> None:
        """Split the episodes at random into batches, and record the results from the gradients of the batches."""
        groups = self._deal_units(size)
        # In the order of the split even if a batch is one episode: others are compared with it
        batches = {
            key: np.stack([gradients[group].mean(axis=0) for group in groups]) for key, gradients in self.gradients.items()
        }
        # A batch of one episode has no other episodes to see
        if self.seeing and (size > 1 or size == self.batch_size):
            *seen, _ = self._gradients(self.seeing, groups)
            batches |= {one.estimator.key: gradients for one, gradients in zip(self.seeing, seen, strict=True)}
        for key, gradients in batches.items():
            self.cosines[key].setdefault(size, []).append(statistics.mean_cosine(statistics.inner_products(gradients)))
        if size == self.batch_size:
            self._note_batches(groups, batches)

    def _note_batches(self, groups: IntArray, batches: dict[str, FloatArray]) -> None:
        """Record the results besides cosines from batches of the user's size."""
        half = len(groups) // 2
        for key, gradients in batches.items():
            estimator = self.prepared[key].estimator
            reference = self.references[estimator.target]
            # The direction comes from episodes that are not in the updates compared with it
            for updates in (np.arange(half), np.arange(half, len(groups))):
                others = np.setdiff1d(np.arange(self.n), groups[updates])
                direction = self.gradients[reference][others].mean(axis=0)
                self.backwards[key].append(float(np.mean(gradients[updates] @ direction < 0.0)))
            if estimator.sees_batch:
                products = statistics.inner_products(gradients)
                ratio = statistics.signal_to_noise(products, self.batch_size)
                bias = self._bias(estimator, gradients, batches[reference])
                self.dealt[key].append((*statistics.signal_and_noise(products), ratio, bias))

    def _bias(self, estimator: NamedEstimator, gradients: FloatArray, reference: FloatArray) -> Interval:
        """Compare the gradients of an estimator with an unbiased estimator's from the same episodes."""
        scale = 1.0
        if not estimator.keeps_scale:
            # The scale that brings it closest to the reference, as far as it can be estimated
            cross = statistics.mean_over_pairs(statistics.inner_products(gradients, reference))
            norm = statistics.mean_over_pairs(statistics.inner_products(gradients))
            scale = cross / norm if norm > 0.0 else np.nan
        difference = statistics.inner_products(scale * gradients - reference)
        return statistics.relative(difference, statistics.inner_products(reference))

    def result(self, estimator: NamedEstimator) -> Result:
        """Summarise the measurements of an estimator."""
        key, reference = estimator.key, self.references[estimator.target]
        fewer: dict[int, Interval] = {}
        if estimator.sees_batch:
            signals, noises, ratios, biases = zip(*self.dealt[key], strict=True)
            signal, noise, size = float(np.mean(signals)), float(np.mean(noises)), self.batch_size
            ratio = statistics.mean_interval(signal / noise / size if noise > 0.0 else np.inf, ratios)
            bias = statistics.mean_interval(float(np.median([one.value for one in biases])), biases)
        else:
            (signal, noise), size = self.moments[key], self.units.shape[1]
            ratio, bias = statistics.signal_to_noise(self.products[key], size), UNKNOWN
            if key != reference:
                bias = self._bias(estimator, self.gradients[key], self.gradients[reference])
            if key in FEATURED:
                fewer = self._fewer(self.products[key])
        if not self.is_informed:
            ratio, bias = statistics.unbounded(ratio.value), statistics.unbounded(bias.value)
        return Result(
            estimator=estimator,
            signal=signal,
            noise=noise * size,
            ratio=ratio,
            cosines={size: float(np.mean(cosines)) for size, cosines in self.cosines[key].items()},
            bias=bias,
            reference=reference,
            backwards=float(np.mean(self.backwards[key])),
            kl=self._divergence(self.prepared[key]),
            fewer=fewer,
            cloud=self._cloud(key, reference) if key in FEATURED else None,
        )

    def _fewer(self, products: Array) -> dict[int, Interval]:
        """Estimate the ratio from subsamples of the episodes."""
        found = {}
        each = self.units.shape[1]
        for size in (size for size in FEWER_EPISODES if 2 * each <= size < self.n * each):
            ratios = []
            for _ in range(N_SUBSAMPLES):
                chosen = self.rng.choice(self.n, size // each, replace=False)
                signal, noise = statistics.signal_and_noise(products[np.ix_(chosen, chosen)])
                ratios.append(signal / noise / each if noise > 0.0 else np.inf)
            tail = (1 - statistics.COVERAGE) / 2
            found[size] = Interval(*map(float, np.quantile(ratios, [0.5, tail, 1 - tail], method="inverted_cdf")))
        return found

    def _cloud(self, key: str, reference: str) -> FloatArray:
        """Sample updates from one half of the episodes, relative to the mean gradient of the other half."""
        mine, other = np.array_split(self.rng.permutation(self.n), 2)
        direction = self.gradients[reference][other].mean(axis=0).astype(np.float64)
        # Without rewards there is no direction
        length = np.linalg.norm(direction) or 1.0
        signal = self.moments[reference][0]
        # The mean over half of the episodes is longer than the gradient that it estimates
        unit, scale = direction / length, np.sqrt(signal) if signal > 0.0 else length

        noisiest = self.gradients["to-go"][other].astype(np.float64)
        noisiest = noisiest - noisiest.mean(axis=0)
        noisiest -= (noisiest @ unit)[:, None] * unit
        _, vectors = np.linalg.eigh(noisiest @ noisiest.T)
        noise_direction = vectors[:, -1] @ noisiest
        noise_direction /= np.linalg.norm(noise_direction) or 1.0

        draws = [self.rng.choice(mine, self.batch_size // self.units.shape[1], replace=False) for _ in range(N_CLOUD_DOTS)]
        updates = np.stack([self.gradients[key][draw].mean(axis=0) for draw in draws])
        return np.stack([updates @ unit, updates @ noise_direction], axis=1) / scale

    def _divergence(self, prepared: PreparedEstimator) -> float:
        """Try the step that the model would take with this gradient; return the mean KL divergence."""
        divergences = []
        for units in self._deal_units(self.batch_size)[:N_STEPS_TRIED]:
            group = self.units[units].ravel()
            own, targets = take_episodes(self.episodes.batch, group), prepared.targets(group)
            divergences.append(divergence_of_step(self.episodes, own, targets, prepared.ent_coef))
        return float(np.mean(divergences))

    def target_cosine(self) -> Interval:
        """Compare the undiscounted-state-distribution gradient with the gradient of the discounted objective."""
        if DISCOUNTED not in self.references:
            return UNKNOWN
        undiscounted, discounted = self.references[UNDISCOUNTED], self.references[DISCOUNTED]
        cross = statistics.inner_products(self.gradients[undiscounted], self.gradients[discounted])
        cosine = statistics.cosine(cross, self.products[undiscounted], self.products[discounted])
        return cosine if self.is_informed else statistics.unbounded(cosine.value)


def divergence_of_step(episodes: Episodes, batch: EpisodeBatch, targets: PolicyGradientTargets, ent_coef: float) -> float:
    """
    Let the copy of the model take a step with a gradient, measure how far its policy moves, and undo the step.

    Settings, optimizer and step size are the model's at this point of training. The result is the mean KL divergence from the
    old to the new policy over the steps of the batch, in nats.
    """
    model, evaluator = episodes.model, episodes.evaluator
    policy = model.policy
    before = clone_tensors((policy.state_dict(), policy.optimizer.state_dict()))
    update_learning_rate(policy.optimizer, model.lr_schedule(model._current_progress_remaining))
    partition = single_partition(batch.episode_lengths)
    divergence = Divergence(evaluator, batch, slice(0, partition.n_steps), partition)
    gradient = compute_gradient(evaluator, batch, targets, ent_coef)
    try:
        if isinstance(model, REINFORCE):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="A natural step was skipped")
                model._policy_step(evaluator, batch, gradient, partition)
        else:
            clipped_norm(gradient, model.max_grad_norm)
            policy.optimizer.step()
        return divergence.value()
    finally:
        policy.load_state_dict(before[0])
        policy.optimizer.load_state_dict(before[1])
        policy.optimizer.zero_grad()
