"""Gradients of single episodes and small batches, for many estimators in one pass over a policy."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_reinforce.functional.returns import Array, IntArray, steps_of
from sb3_reinforce.rollout.batch import EpisodeBatch, PolicyOutputs, select_steps
from sb3_reinforce.update.evaluator import PolicyEvaluator

FloatArray = npt.NDArray[np.floating[Any]]

#: Longer gradients are compressed to this many numbers, which changes inner products by about one per cent.
MAX_COORDINATES = 16_384
#: Steps that are differentiated at once: more steps are no faster and take more memory.
MICRO_BATCH_SIZE = 1_024


def take_episodes(batch: EpisodeBatch, episodes: Sequence[int] | IntArray) -> EpisodeBatch:
    """Make a batch of some episodes of a batch, in the order of ``episodes``."""
    steps = steps_of(batch.episode_lengths, episodes)
    new_index = np.full(len(batch.actions), -1)
    new_index[steps] = np.arange(len(steps))
    cuts = np.flatnonzero(new_index[batch.cut_steps] >= 0)
    index = th.as_tensor(steps, device=batch.actions.device)
    own: dict[str, Any] = {
        "rewards": batch.rewards[steps],
        "episode_lengths": batch.episode_lengths[np.asarray(episodes)],
        "cut_steps": new_index[batch.cut_steps[cuts]],
        "final_observations": None if len(cuts) == 0 else select_steps(batch.final_observations, cuts),
        "episode_starts": batch.episode_starts[np.asarray(episodes)],
        "outputs": PolicyOutputs(),
        "starts": None if batch.starts is None else batch.starts[np.asarray(episodes)],
        "greedy_rewards": batch.greedy_rewards,
    }
    # Every other field has one entry per step
    rest = {name: value for name, value in batch._asdict().items() if name not in own and value is not None}
    return batch._replace(**own, **{name: select_steps(value, index) for name, value in rest.items()})


class ScoreGradients:
    """
    Differentiate weighted sums of log-probabilities over steps, the form of every policy gradient estimator.

    The ``.grad`` of the policy's parameters is unchanged, and the evaluator's micro-batches bound memory use.
    """

    def __init__(self, evaluator: PolicyEvaluator) -> None:
        self.evaluator = evaluator
        self.is_batched = True
        self._parameters: list[th.nn.Parameter] | None = None

    def parameters(self, batch: EpisodeBatch) -> list[th.nn.Parameter]:
        """Return the parameters of the actor: the ones on which a log-probability depends."""
        if self._parameters is None:
            candidates = [parameter for parameter in self.evaluator.policy.parameters() if parameter.requires_grad]
            log_prob, _ = self.evaluator.log_prob_and_entropy(
                batch, next(iter(self.evaluator.micro_batches(batch.episode_lengths)))
            )
            gradients = th.autograd.grad(log_prob.sum(), candidates, allow_unused=True)
            self._parameters = [p for p, gradient in zip(candidates, gradients, strict=True) if gradient is not None]
        return self._parameters

    def __call__(self, batch: EpisodeBatch, weights: Array, entropy_weights: Sequence[float] | None = None) -> FloatArray:
        """
        Compute the gradients of ``sum_t weights[k, t] log pi(a_t | s_t) + entropy_weights[k] H(pi(. | s_t))``.

        One forward pass serves all rows (PyTorch's ``is_grads_batched``). If a policy has an operation that PyTorch cannot
        batch, the rows are differentiated one by one. ``weights`` has shape ``(n_rows, n_steps)``, and the result
        ``(n_rows, n_parameters)``, in the direction of ascent.
        """
        parameters = self.parameters(batch)
        total: th.Tensor | None = None
        for piece in self.evaluator.micro_batches(batch.episode_lengths):
            log_prob, entropy = self.evaluator.log_prob_and_entropy(batch, piece)
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
                    # PyTorch loops over an operation without a batching rule: slower, but just as correct
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
    Make a function that compresses the gradients of large networks, so that gradients of hundreds of episodes fit in memory.

    Every parameter is added with a random sign to a random one of ``MAX_COORDINATES`` sums, which preserves all inner products
    in expectation (Charikar et al. 2002; as feature hashing, Weinberger et al. 2009, lemma 2). The relative error of a squared
    norm is about ``sqrt(2 / MAX_COORDINATES)``. The function takes and returns rows; for small networks it is the identity.
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
