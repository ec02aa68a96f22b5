"""The counted episodes of one rollout, one after another, as arrays and tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_reinforce.distributed.partition import Partition
from sb3_reinforce.functional.returns import Array, IntArray

NumpyArray = np.ndarray[Any, np.dtype[Any]]

NumpyObs = NumpyArray | dict[str, NumpyArray]


def map_observation(function: Callable[[Any], Any], observation: Any) -> Any:
    """
    Apply a function to an observation, or to every entry of a dict observation.

    :param function: Takes and returns an array or a tensor.
    :param observation: Array, tensor, or dict of them.
    :return: The result, a dict if the observation is one.
    """
    if isinstance(observation, dict):
        return {key: function(part) for key, part in observation.items()}
    return function(observation)


def _named_parts(name: str, observation: Any) -> dict[str, Any]:
    if isinstance(observation, dict):
        return {f"{name}['{key}']": part for key, part in observation.items()}
    return {name: observation}


class EpisodeBatch(NamedTuple):
    """
    The counted episodes of one rollout, one after another.

    :param observations: Shape ``(n_steps, *obs_shape)``, or a dict of such tensors.
    :param actions: As the policy drew them, before clipping or rescaling. Shape ``(n_steps, action_dim)``.
    :param rewards: Shape ``(n_steps,)``.
    :param episode_lengths: Steps of each episode, shape ``(n_episodes,)``, the episodes of an environment in a row.
    :param cut_steps: Last step of each episode that a time limit or the bound of the rollout cut, shape ``(n_cuts,)``.
    :param final_observations: What followed those steps, shape ``(n_cuts, *obs_shape)``; None if there is no cut.
    :param locate: Turns the index of a step into ``(environment index, step of the rollout)``, for error messages.
    :param action_masks: Shape ``(n_steps, n_options)``, True for what was allowed; None without masks.
    :param part: Where these episodes are among those of all ranks.
    """

    observations: PyTorchObs
    actions: th.Tensor
    rewards: Array
    episode_lengths: IntArray
    cut_steps: IntArray
    final_observations: PyTorchObs | None
    locate: Callable[[int], tuple[int, int]]
    action_masks: th.Tensor | None = None
    part: Partition = Partition()

    def of_all_ranks(self) -> "EpisodeBatch":
        """
        Lay out the episodes of all ranks.

        :return: A batch that knows how long they are, and nothing of what is in them; with one rank itself.
        """
        episode_lengths = self.part.episode_lengths
        if episode_lengths is None:
            return self
        actions = self.actions.new_empty((int(episode_lengths.sum()), 0))
        return self._replace(actions=actions, episode_lengths=episode_lengths, part=Partition())
