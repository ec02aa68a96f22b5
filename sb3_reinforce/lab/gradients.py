"""Gradients of single episodes and of small batches, those of many estimators in one pass over a policy."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_reinforce.distributed.partition import Partition
from sb3_reinforce.functional.returns import Array, IntArray
from sb3_reinforce.rollout.batch import EpisodeBatch, map_observation
from sb3_reinforce.update.evaluator import PolicyEvaluator

FloatArray = npt.NDArray[np.floating[Any]]

#: Longer gradients are compressed to so many numbers, which leaves inner products right but for about one per cent.
MAX_COORDINATES = 16_384
#: Steps that are differentiated at once: more are no faster, and need more memory.
MICRO_BATCH_SIZE = 1_024


def first_steps(episode_lengths: IntArray) -> IntArray:
    """
    Find where each episode begins.

    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :return: Index of its first step, shape ``(n_episodes,)``.
    """
    return np.cumsum(episode_lengths) - episode_lengths


def steps_of(episode_lengths: IntArray, episodes: Sequence[int] | IntArray) -> IntArray:
    """
    List the steps of some episodes, one episode after another.

    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``.
    :param episodes: Indices of those that are wanted, in the order that is wanted.
    :return: Indices of their steps, shape ``(n_steps,)``.
    """
    starts = first_steps(episode_lengths)
    return np.concatenate([np.arange(starts[index], starts[index] + episode_lengths[index]) for index in episodes])


def take_episodes(batch: EpisodeBatch, episodes: Sequence[int] | IntArray) -> EpisodeBatch:
    """
    Take some episodes out of a batch.

    :param batch: The batch.
    :param episodes: Indices of the episodes, in the order that is wanted.
    :return: A batch of these episodes only.
    """
    steps = steps_of(batch.episode_lengths, episodes)
    new_index = np.full(len(batch.actions), -1)
    new_index[steps] = np.arange(len(steps))
    cuts = np.flatnonzero(new_index[batch.cut_steps] >= 0)
    index = th.as_tensor(steps, device=batch.actions.device)
    finals = batch.final_observations
    own: dict[str, Any] = {
        "rewards": batch.rewards[steps],
        "episode_lengths": batch.episode_lengths[np.asarray(episodes)],
        "cut_steps": new_index[batch.cut_steps[cuts]],
        "final_observations": None if len(cuts) == 0 else map_observation(lambda obs: obs[cuts], finals),
        "locate": lambda step: batch.locate(int(steps[step])),
        "part": Partition(),
    }
    # Whatever else a batch has, it has for each step
    rest = {name: value for name, value in batch._asdict().items() if name not in own and value is not None}
    return batch._replace(**own, **{name: map_observation(lambda part: part[index], value) for name, value in rest.items()})


class ScoreReader:
    """
    Differentiates weighted sums of log-probabilities: the sums over steps that all estimators of the policy gradient are.

    :param reader: Of the policy, whose own gradients stay as they are. Its pieces bound the memory.
    """

    def __init__(self, reader: PolicyEvaluator) -> None:
        self.reader = reader
        self.is_batched = True
        self._parameters: list[th.nn.Parameter] | None = None

    def parameters(self, batch: EpisodeBatch) -> list[th.nn.Parameter]:
        """
        Find the parameters of the actor.

        :param batch: Any episodes of the policy.
        :return: Those that a log-probability depends on.
        """
        if self._parameters is None:
            candidates = [parameter for parameter in self.reader.policy.parameters() if parameter.requires_grad]
            log_prob, _ = self.reader.log_prob_and_entropy(batch, next(iter(self.reader.pieces(batch))))
            gradients = th.autograd.grad(log_prob.sum(), candidates, allow_unused=True)
            self._parameters = [p for p, gradient in zip(candidates, gradients, strict=True) if gradient is not None]
        return self._parameters

    def __call__(self, batch: EpisodeBatch, weights: Array, entropy_weights: Sequence[float] | None = None) -> FloatArray:
        """
        Compute the gradients of ``sum_t weights[k, t] log pi(a_t | s_t) + entropy_weights[k] H(pi(. | s_t))``.

        One forward pass serves all rows (PyTorch's ``is_grads_batched``). Where a policy has an operation that PyTorch cannot
        batch, the rows are differentiated one after another.

        :param batch: The episodes.
        :param weights: A row of weights for each gradient, shape ``(n_rows, n_steps)``.
        :param entropy_weights: Of the entropy of every step, for each row; None for none.
        :return: Ascent directions, shape ``(n_rows, n_parameters)``.
        """
        parameters = self.parameters(batch)
        total: th.Tensor | None = None
        for piece in self.reader.pieces(batch):
            log_prob, entropy = self.reader.log_prob_and_entropy(batch, piece)
            outputs, seeds = [log_prob], [_rows(weights[:, piece], log_prob)]
            if entropy_weights is not None and any(entropy_weights):
                outputs.append(entropy)
                seeds.append(_rows(entropy_weights, entropy)[:, None].expand(-1, len(entropy)))
            rows = self._differentiate(outputs, seeds, parameters)
            total = rows if total is None else total + rows
        assert total is not None
        result: FloatArray = total.cpu().numpy()
        return result

    def _differentiate(self, outputs: list[th.Tensor], seeds: list[th.Tensor], parameters: list[th.nn.Parameter]) -> th.Tensor:
        n_rows = len(seeds[0])
        if self.is_batched and n_rows > 1:
            try:
                with warnings.catch_warnings():
                    # An operation without a batching rule is looped over by PyTorch itself: slower, and as right
                    warnings.filterwarnings("ignore", message=".*batching rule")
                    gradients = th.autograd.grad(outputs, parameters, seeds, retain_graph=True, is_grads_batched=True)
                return th.cat([gradient.reshape(n_rows, -1) for gradient in gradients], dim=1)
            except RuntimeError:
                self.is_batched = False
        rows = []
        for row in range(n_rows):
            single = th.autograd.grad(outputs, parameters, [seed[row] for seed in seeds], retain_graph=row < n_rows - 1)
            rows.append(th.cat([gradient.reshape(-1) for gradient in single]))
        return th.stack(rows)


def _rows(values: Any, like: th.Tensor) -> th.Tensor:
    return th.as_tensor(np.ascontiguousarray(values), dtype=like.dtype, device=like.device)


def compression(n_parameters: int, rng: np.random.Generator) -> Callable[[FloatArray], FloatArray]:
    """
    Make the function that shortens the gradients of large networks, so that those of hundreds of episodes fit into memory.

    Every parameter is added to a random one of ``MAX_COORDINATES`` sums with a random sign, which leaves all inner products
    right in expectation (Charikar et al. 2002; as feature hashing, Weinberger et al. 2009, lemma 2); the relative error of a
    squared norm is about ``sqrt(2 / MAX_COORDINATES)``.

    :param n_parameters: Length of a gradient.
    :param rng: Draws sums and signs.
    :return: Takes gradients of shape ``(n_rows, n_parameters)`` and returns as many rows; the identity for small networks.
    """
    if n_parameters <= MAX_COORDINATES:
        return lambda gradients: gradients
    target = rng.integers(MAX_COORDINATES, size=n_parameters)
    order = np.argsort(target, kind="stable")
    signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), size=n_parameters)[order]
    present, starts = np.unique(target[order], return_index=True)

    def compress(gradients: FloatArray) -> FloatArray:
        compressed = np.zeros((len(gradients), MAX_COORDINATES), dtype=gradients.dtype)
        compressed[:, present] = np.add.reduceat(gradients[:, order] * signs, starts, axis=1)
        return compressed

    return compress


#: Weights of the log-probability of each step and of the entropy of all steps, of shapes ``(n_rows, n_steps)``, ``(n_rows,)``.
Rows = tuple[Array, Sequence[float] | None]


def group_gradients(
    scores: ScoreReader,
    batch: EpisodeBatch,
    groups: Sequence[Sequence[int]] | IntArray,
    rows_of: Callable[[EpisodeBatch, IntArray], Rows],
) -> Iterator[FloatArray]:
    """
    Compute gradients of groups of episodes, each group on its own.

    :param scores: Differentiates the policy.
    :param batch: All episodes.
    :param groups: Indices of the episodes of each group.
    :param rows_of: Takes the episodes of a group and the indices of their steps in the batch, and returns the weights that
        each gradient gives to these steps.
    :return: For every group an array of shape ``(n_rows, n_parameters)``.
    """
    for group in groups:
        own = take_episodes(batch, group)
        yield scores(own, *rows_of(own, steps_of(batch.episode_lengths, group)))
