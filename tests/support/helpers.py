"""What several test files share: tiny environments, a policy that can be written down, slow reference loops."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_reinforce import REINFORCE
from sb3_reinforce.envs.diamond_hill import DECISION_STATES, Path

LEFT_PROBABILITIES = np.array([0.7, 0.4, 0.8])
ACTION_PROBABILITIES = np.stack([LEFT_PROBABILITIES, 1 - LEFT_PROBABILITIES], axis=1)


class GradientRecorder(th.optim.Optimizer):
    """An optimizer that notes the gradients it is given and moves nothing."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.recorded: list[list[th.Tensor | None]] = []

    def step(self, closure: Any = None) -> None:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.recorded.append([None if p.grad is None else p.grad.clone() for p in parameters])


def optimizer_steps(model: REINFORCE) -> list[dict[str, np.ndarray]]:
    """A list that grows with every step of the optimizer, by the gradient of each parameter that has one."""
    steps: list[dict[str, np.ndarray]] = []

    def note(*_: Any) -> None:
        named = model.policy.named_parameters()
        steps.append({name: parameter.grad.numpy().copy() for name, parameter in named if parameter.grad is not None})

    model.policy.optimizer.register_step_pre_hook(note)
    return steps


class AtRolloutEnd(BaseCallback):
    """Notes what a function finds in the rollout buffer at the end of each rollout."""

    def __init__(self, look: Callable[[Any], Any]) -> None:
        super().__init__()
        self.look = look
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.seen.append(self.look(self.model.rollout_buffer))


def learn_and_look(model: REINFORCE, total_timesteps: int, look: Callable[[Any], Any]) -> list[Any]:
    """Train, and return what the function found at the end of each rollout."""
    callback = AtRolloutEnd(look)
    model.learn(total_timesteps, callback=callback)
    return callback.seen


class UpdateByHand(NamedTuple):
    """
    An update, computed step by step from the definitions: flat arrays, the episodes of an environment in a row.

    :param returns: What the critic is fitted on.
    :param advantages: Return minus baseline.
    :param gradient: Of the loss, by the name of the parameter.
    """

    returns: np.ndarray
    advantages: np.ndarray
    gradient: dict[str, np.ndarray]


class UpdatesByHand(BaseCallback):
    """Computes each update of a policy without recurrence, from the rollout and the model's arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[UpdateByHand] = []

    def _on_rollout_start(self) -> None:
        self.finals: dict[tuple[int, int], np.ndarray] = {}
        self.n_steps = 0

    def _on_step(self) -> bool:
        for env_idx, info in enumerate(self.locals["infos"]):
            if info.get("TimeLimit.truncated", False):
                self.finals[env_idx, self.n_steps] = info["terminal_observation"]
        self.n_steps += 1
        return True

    def _on_rollout_end(self) -> None:
        model, buffer = self.model, self.model.rollout_buffer
        gamma, ent_coef = model.gamma, model.ent_coef_schedule(model._current_progress_remaining)
        episodes, log_probs, entropies = [], [], []
        for env_idx, ends in enumerate(buffer.episode_ends):
            for start, end in zip([0, *ends], ends, strict=False):
                observations = th.as_tensor(buffer.observations[start:end, env_idx])
                actions = th.as_tensor(buffer.actions[start:end, env_idx].reshape(-1, *model.action_space.shape))
                values, log_prob, entropy = model.policy.evaluate_actions(observations, actions)
                rewards, values = buffer.rewards[start:end, env_idx].astype(float), values.detach().flatten().double().numpy()
                if model.entropy_in_return:
                    rewards -= ent_coef * log_prob.detach().numpy()
                bootstraps = model.baseline == "value" and model.bootstrap_at_time_limit and model._n_updates > 0
                if bootstraps and (env_idx, end - 1) in self.finals:
                    final = th.as_tensor(self.finals[env_idx, end - 1])[None]
                    rewards[-1] += gamma * model.policy.predict_values(final).item()
                episodes.append((rewards, values))
                log_probs.append(log_prob)
                entropies.append(entropy)
        lengths = [len(rewards) for rewards, _ in episodes]
        to_go = [
            [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))] for rewards, _ in episodes
        ]
        whole = [[returns[0]] * len(returns) for returns in to_go]
        credited = whole if model.return_type == "episode" else to_go
        returns, advantages = np.concatenate(to_go), []
        for n, (rewards, values) in enumerate(episodes):
            others = [credited[m] for m in range(len(episodes)) if m != n]
            for t in range(lengths[n]):
                at_the_same_time = [other[t] for other in others if len(other) > t]
                baseline = {
                    "value": values[t],
                    "mean": np.mean([np.mean(episode) for episode in credited]),
                    "leave_one_out": np.mean([np.mean(other) for other in others]) if others else 0.0,
                    "time_step": np.mean(at_the_same_time or [np.mean(other) for other in others]) if others else 0.0,
                    None: 0.0,
                }[model.baseline]
                advantages.append(credited[n][t] - baseline)
                if model.gae_lambda < 1.0:
                    differences = rewards + gamma * np.append(values[1:], 0.0) - values
                    decay = gamma * model.gae_lambda
                    advantages[-1] = sum(decay**k * difference for k, difference in enumerate(differences[t:]))
        weights = np.array(advantages)
        if model.gae_lambda < 1.0:
            returns = weights + np.concatenate([values for _, values in episodes])
        if model.normalize_advantage:
            weights = (weights - weights.mean()) / (weights.std(ddof=1) + 1e-8)
        if model.discounted_weighting and model.return_type == "reward_to_go":
            weights = weights * np.concatenate([gamma ** np.arange(length) for length in lengths])
        loss = -(th.as_tensor(weights) * th.cat(log_probs).double()).sum()
        if not model.entropy_in_return:
            loss = loss - ent_coef * th.cat(entropies).double().sum()
        loss = loss / (len(episodes) if model.loss_reduction == "episode" else sum(lengths))
        names, parameters = zip(*model.policy.named_parameters(), strict=True)
        gradients = th.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(names, gradients, strict=True)
        gradient = {name: part.numpy() for name, part in pairs if part is not None}
        self.updates.append(UpdateByHand(returns, np.array(advantages), gradient))


def linear_model(env: str = "sb3_reinforce/DiamondHill-v0", **kwargs: Any) -> REINFORCE:
    """A linear softmax policy on DiamondHill, which can represent any probabilities in its three states."""
    policy_kwargs = {"net_arch": {"pi": [], "vf": [4]}, "optimizer_class": GradientRecorder}
    kwargs = {"max_grad_norm": float("inf"), "normalize_advantage": False, "critic_epochs": 1, "device": "cpu", **kwargs}
    model = REINFORCE("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, **kwargs)
    model.set_logger(Logger(None, []))
    model._n_updates = 1
    set_action_probabilities(model, ACTION_PROBABILITIES)
    return model


def set_action_probabilities(model: REINFORCE, action_probabilities: np.ndarray) -> None:
    """Solve for the weights of a linear policy that acts so on DiamondHill."""
    logits = np.log(action_probabilities)
    states = np.column_stack([DECISION_STATES.astype(np.float64), np.ones(3)])
    solution = np.linalg.solve(states, logits)
    with th.no_grad():
        model.policy.action_net.weight.copy_(th.as_tensor(solution[:2].T))
        model.policy.action_net.bias.copy_(th.as_tensor(solution[2]))


def store_episodes(model: REINFORCE, episodes: Sequence[Path]) -> None:
    """Fill the rollout buffer of a model with one environment."""
    buffer = model.rollout_buffer
    buffer.reset()
    for episode in episodes:
        for observation, action, reward in zip(episode.observations, episode.actions, episode.rewards, strict=True):
            buffer.add(observation[None], np.array([action]), np.array([reward]))
        buffer.finish_episode(0)


def policy_gradient(model: REINFORCE, episodes: Sequence[Path]) -> np.ndarray:
    """The gradient that the model's own ``train`` computes from these episodes: ascent direction, flat."""
    store_episodes(model, episodes)
    model.policy.optimizer.recorded.clear()
    model.train()
    return recorded_gradient(model)


def recorded_gradient(model: REINFORCE) -> np.ndarray:
    """The policy's gradient of the first update since the record was cleared: ascent direction, flat."""
    names = [name for name, _ in model.policy.named_parameters()]
    gradients = dict(zip(names, model.policy.optimizer.recorded[0], strict=True))
    weight, bias = gradients["action_net.weight"], gradients["action_net.bias"]
    return -th.cat([weight, bias[:, None]], dim=1).double().numpy().flatten()


def logit_gradient_to_parameters(logit_gradient: np.ndarray) -> np.ndarray:
    """Chain rule from the logits of the three states, shape (3, 2), to weights and bias of the linear policy, flat."""
    states = np.column_stack([DECISION_STATES.astype(np.float64), np.ones(3)])
    return (logit_gradient.T @ states).flatten()


class SilentEnv(gym.Env):
    """Has spaces, and is never asked for anything else."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


def parameters_to_logit_gradient(gradient: np.ndarray) -> np.ndarray:
    """The inverse: from weights and bias of the linear policy to the logits of the three states, shape (3, 2)."""
    states = np.column_stack([DECISION_STATES.astype(np.float64), np.ones(3)])
    return np.linalg.solve(states.T, gradient.reshape(2, 3).T)


class FixedLengthEnv(gym.Env):
    """Episodes of given lengths, one after the other; the observation is [time, episode], the reward the action."""

    def __init__(self, lengths: Sequence[int], truncate: bool = False, reward: float = 1.0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.lengths = lengths
        self.truncate = truncate
        self.reward = reward
        self.episode = -1
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.time = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        over = self.time >= self.lengths[self.episode % len(self.lengths)]
        return self._observation(), self.reward, over and not self.truncate, over and self.truncate, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.time, self.episode], dtype=np.float32)


class RandomLengthEnv(gym.Env):
    """Episodes of 10 or 500 steps, by the toss of a coin at their start, with reward 1 per step."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps_left = 500 if self.np_random.random() < 0.5 else 10
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps_left -= 1
        return np.zeros(1, np.float32), 1.0, self.steps_left == 0, False, {}


class CuePath(NamedTuple):
    """One way through ``CueEnv``."""

    observations: list[np.ndarray]
    masks: list[np.ndarray]
    actions: list[int]
    rewards: list[float]
    probability: float


class CueEnv(gym.Env):
    """
    Two steps look alike, and only the first observation tells what is right at the last one; masks are in the infos.

    The cue is 0 or 1, with probabilities 0.3 and 0.7, seen as [1, 0] or [0, 1]; later observations are [0, 0]. First, 0 walks
    on and 1 leaves with a reward of 0.5, 2 is forbidden. Second, 0 costs nothing, 2 costs 0.25, 1 is forbidden. Last, 1 is
    right with cue 0 and 2 with cue 1, which gives 1 or -1; 0 is forbidden. What is forbidden raises, and the mask of the
    last info of an episode allows nothing.
    """

    MASKS = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0]], dtype=np.int8)
    CUE_PROBABILITIES = (0.3, 0.7)

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue, self.time = int(self.np_random.random() >= self.CUE_PROBABILITIES[0]), 0
        return np.eye(2, dtype=np.float32)[self.cue], {"action_mask": self.MASKS[0]}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.MASKS[self.time, action], f"action {action} is forbidden at step {self.time}"
        reward, over = self.outcome(self.cue, self.time, int(action))
        self.time = 3 if over else self.time + 1
        return np.zeros(2, np.float32), reward, over, False, {"action_mask": self.MASKS[self.time]}

    @staticmethod
    def outcome(cue: int, time: int, action: int) -> tuple[float, bool]:
        if time == 0:
            return (0.5, True) if action == 1 else (0.0, False)
        if time == 1:
            return (-0.25 if action == 2 else 0.0), False
        return (1.0 if action == cue + 1 else -1.0), True


def enumerate_cue_paths(probabilities: Callable[[list[np.ndarray], np.ndarray], np.ndarray]) -> list[CuePath]:
    """
    All ways through ``CueEnv``.

    :param probabilities: Takes the observations of the episode so far and the mask, gives the probabilities of the actions.
    """

    def extend(cue: int, path: CuePath) -> list[CuePath]:
        time = len(path.actions)
        observation = np.eye(2, dtype=np.float32)[cue] if time == 0 else np.zeros(2, np.float32)
        seen, paths = [*path.observations, observation], []
        for action in np.flatnonzero(CueEnv.MASKS[time]).tolist():
            reward, over = CueEnv.outcome(cue, time, action)
            longer = CuePath(
                seen,
                [*path.masks, CueEnv.MASKS[time]],
                [*path.actions, action],
                [*path.rewards, reward],
                path.probability * float(probabilities(seen, CueEnv.MASKS[time])[action]),
            )
            paths += [longer] if over else extend(cue, longer)
        return paths

    return [path for cue, p in enumerate(CueEnv.CUE_PROBABILITIES) for path in extend(cue, CuePath([], [], [], [], p))]


def gradients_of_paths(model: REINFORCE, paths: Sequence[CuePath], greedy: CuePath | None = None) -> dict[str, np.ndarray]:
    """The gradient that the model's own ``train`` computes from these episodes, ascent direction, by parameter."""
    buffer = model.rollout_buffer
    buffer.reset()
    for path in paths:
        for observation, mask, action, reward in zip(path.observations, path.masks, path.actions, path.rewards, strict=True):
            whole = {"observation": observation[None], "action_mask": mask[None]}
            seen = whole if isinstance(model.observation_space, spaces.Dict) else observation[None]
            buffer.add(seen, np.array([action]), np.array([reward]), mask[None].astype(bool))
        buffer.finish_episode(0)
        if greedy is not None:
            buffer.starts[0].append(0)
            buffer.greedy_rewards = {0: np.array(greedy.rewards)}
    model.policy.optimizer.recorded.clear()
    model.train()
    recorded = zip(model.policy.named_parameters(), model.policy.optimizer.recorded[0], strict=True)
    return {name: -gradient.double().numpy() for (name, _), gradient in recorded if gradient is not None}
