"""One rank of the tests in test_process_group.py: runs many cases in one process, since starting it costs seconds."""

import functools
import json
import os
import signal
import sys
import warnings
from datetime import timedelta

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from helpers import SilentEnv
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize
from torch import distributed

from sb3_reinforce import REINFORCE
from sb3_reinforce.distributed.process_group import ProcessGroup, leave_process_group
from sb3_reinforce.distributed.synchronization import checksum
from sb3_reinforce.functional.baselines import Baseline

BOX = spaces.Box(-1, 1, (3,), np.float32)
DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})
DISCRETE, GAUSSIAN = spaces.Discrete(3), spaces.Box(-2, 2, (2,), np.float32)
MASKED = {"use_masking": True}
LSTM_KWARGS = {"lstm_hidden_size": 4, "net_arch": [4]}

#: Of each rank the lengths of its episodes, in each of three updates.
EVEN = [[[3, 4], [4, 3]], [[2, 6], [5, 3]], [[4], [4]]]
UNEVEN = [[[1], [9, 30, 2]], [[3, 3, 3], [40]], [[20, 1], [1, 1, 1, 1]]]
WITHOUT = [[[5, 7], []], [[], [6, 2]], [[4, 4, 4], []]]

STARTS = {"n_steps": None, "n_episodes": 8, "episodes_per_start": 2}


class SeesAll(Baseline):
    """Looks at everything that is offered, and learns. It differs between processes: what process 0 computes must count."""

    needs_distribution = needs_critic = True

    def __init__(self):
        self.own = float(os.environ.get("RANK", "0"))
        self.mean = 0.0

    def __call__(self, episodes):
        parts = episodes.distribution if isinstance(episodes.distribution, list) else [episodes.distribution]
        entropy = sum(part.entropy().reshape(len(episodes.rewards), -1).sum(dim=1) for part in parts).double().numpy()
        seen = episodes.observations["a"] if isinstance(episodes.observations, dict) else episodes.observations
        masks = 0.0 if episodes.action_masks is None else episodes.action_masks.sum(axis=1)
        actions = episodes.actions.reshape(len(seen), -1).sum(axis=1)
        looked_at = seen[:, 0] + masks + 0.1 * actions.mean() + episodes.values + 0.01 * episodes.time_steps
        return entropy + looked_at + len(episodes.lengths) + self.mean + self.own

    def fit(self, episodes):
        self.mean += float(episodes.returns.mean())


#: Spaces, lengths of episodes, and arguments beside the defaults.
CASES = {
    "critic": (BOX, DISCRETE, EVEN, {}),
    "uneven": (BOX, DISCRETE, UNEVEN, {"ent_coef": 0.1}),
    "leave-one-out": (BOX, DISCRETE, UNEVEN, {"baseline": "leave_one_out", "normalize_advantage": True}),
    "time step": (
        BOX,
        DISCRETE,
        UNEVEN,
        {"baseline": "time_step", "normalize_advantage": True, "loss_reduction": "episode"},
    ),
    "mean": (BOX, DISCRETE, UNEVEN, {"baseline": "mean", "return_type": "episode"}),
    "none": (BOX, DISCRETE, UNEVEN, {"baseline": None}),
    "none, by episode": (BOX, DISCRETE, UNEVEN, {"baseline": None, "loss_reduction": "episode"}),
    "moving average": (BOX, DISCRETE, UNEVEN, {"baseline": "moving_average"}),
    "linear": (DICT, DISCRETE, UNEVEN, {"baseline": "linear", "return_type": "episode"}),
    "optimal": (BOX, GAUSSIAN, UNEVEN, {"baseline": "optimal", "discounted_weighting": True, "micro_batch_size": 4}),
    "group": (BOX, DISCRETE, UNEVEN, {"baseline": "group", **STARTS}),
    "greedy": (BOX, DISCRETE, EVEN, {"baseline": "greedy", **STARTS, "return_type": "episode"}),
    "own": (BOX, spaces.MultiDiscrete([3, 2]), UNEVEN, {"baseline": "rank_worker:SeesAll"}),
    "own, LSTM with masks": (
        BOX,
        DISCRETE,
        UNEVEN,
        {**MASKED, "baseline": "rank_worker:SeesAll", "policy": "MlpLstmPolicy", "policy_kwargs": LSTM_KWARGS},
    ),
    "own, a rank without episodes": (DICT, GAUSSIAN, WITHOUT, {"baseline": "rank_worker:SeesAll"}),
    "entropy in return": (
        BOX,
        DISCRETE,
        UNEVEN,
        {"ent_coef": 0.3, "entropy_in_return": True, "discounted_weighting": True, "gamma": 0.9},
    ),
    "minibatches": (BOX, DISCRETE, UNEVEN, {"critic_batch_size": 5, "critic_epochs": 3}),
    "micro-batches": (BOX, DISCRETE, UNEVEN, {"micro_batch_size": 4, "critic_batch_size": 9}),
    "Gaussian, lambda": (BOX, GAUSSIAN, UNEVEN, {"gae_lambda": 0.95, "critic_batch_size": 7}),
    "natural": (BOX, DISCRETE, UNEVEN, {"natural_gradient": True}),
    "natural, Fisher steps": (BOX, GAUSSIAN, UNEVEN, {"natural_gradient": True, "fisher_max_steps": 10}),
    "Dict": (DICT, DISCRETE, UNEVEN, {"ent_coef": 0.1}),
    "gSDE": (BOX, GAUSSIAN, UNEVEN, {"use_sde": True}),
    "masks": (BOX, DISCRETE, UNEVEN, {**MASKED, "natural_gradient": True}),
    "averaging": (BOX, DISCRETE, UNEVEN, {"policy_averaging": 0.7}),
    "only the critic": (BOX, DISCRETE, UNEVEN, {"trained": ("value_net", "mlp_extractor.value_net")}),
    "only the critic, natural": (
        BOX,
        GAUSSIAN,
        UNEVEN,
        {"trained": ("value_net", "mlp_extractor.value_net"), "natural_gradient": True},
    ),
    "only the deviation, natural": (BOX, GAUSSIAN, UNEVEN, {"trained": "log_std", "natural_gradient": True}),
    "a rank without episodes": (BOX, DISCRETE, WITHOUT, {"critic_batch_size": 3}),
    "a rank without episodes, natural": (BOX, DISCRETE, WITHOUT, {"natural_gradient": True, "fisher_max_steps": 2}),
    "LSTM": (BOX, DISCRETE, UNEVEN, {"policy": "MlpLstmPolicy", "critic_batch_size": 8, "policy_kwargs": LSTM_KWARGS}),
    "LSTM with masks, natural": (
        BOX,
        DISCRETE,
        UNEVEN,
        {
            **MASKED,
            "policy": "MlpLstmPolicy",
            "natural_gradient": True,
            # Long steps along a matrix from few steps make much of what rounding leaves
            "target_kl": 0.001,
            "fisher_max_steps": 20,
            "micro_batch_size": 6,
            "policy_kwargs": {**LSTM_KWARGS, "shared_lstm": True, "enable_critic_lstm": False},
        },
    ),
}


def make_model(observation_space, action_space, n_envs, **kwargs):
    env = DummyVecEnv([lambda: SilentEnv(observation_space, action_space)] * n_envs)
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    arguments = {"policy": policy, "n_steps": 8, "seed": 3, "device": "cpu", "max_grad_norm": 0.4, **kwargs}
    trained = arguments.pop("trained", "")
    model = REINFORCE(env=env, **arguments)
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    model.set_logger(Logger(None, []))
    return model


def fill(model, lengths_of_envs, seeds):
    """Store episodes of the given lengths, whose content depends on nothing but the seed of the environment."""
    buffer = model.rollout_buffer
    buffer.reset()
    n_envs = len(lengths_of_envs)
    observation_space, action_space = model.observation_space, model.action_space
    steps_of_envs, finals = [], []
    for lengths, seed in zip(lengths_of_envs, seeds, strict=True):
        rng = np.random.default_rng(seed)
        observation_space.seed(seed)
        action_space.seed(seed)
        steps = []
        for _ in range(sum(lengths)):
            action = action_space.sample()
            mask = rng.random(3) < 0.5
            mask[action if isinstance(action_space, spaces.Discrete) else 0] = True
            steps.append((observation_space.sample(), action, rng.normal(), mask))
        steps_of_envs.append(steps)
        finals.append([observation_space.sample() if rng.random() < 0.5 else None for _ in lengths])
    ends_of_envs = [np.cumsum(lengths).tolist() for lengths in lengths_of_envs]
    for t in range(max(len(steps) for steps in steps_of_envs)):
        filler = (observation_space.sample(), action_space.sample(), 0.0, np.ones(3, dtype=bool))
        row = [steps[t] if t < len(steps) else filler for steps in steps_of_envs]
        if isinstance(observation_space, spaces.Dict):
            observations = {key: np.stack([step[0][key] for step in row]) for key in observation_space}
        else:
            observations = np.stack([step[0] for step in row])
        masks = np.stack([step[3] for step in row]) if model.use_masking else None
        actions = np.stack([step[1] for step in row])
        buffer.add(observations, actions, np.array([step[2] for step in row]), masks)
        for env_idx in range(n_envs):
            if t + 1 in ends_of_envs[env_idx]:
                if model.episodes_per_start is not None:
                    buffer.starts[env_idx].append(env_idx)
                    buffer.greedy_rewards[env_idx] = np.random.default_rng(seeds[env_idx]).normal(size=3)
                buffer.finish_episode(env_idx, finals[env_idx][ends_of_envs[env_idx].index(t + 1)])


def vector(model):
    parts = [*model.policy.parameters()]
    if model.policy_averaging is not None:
        parts += [*model.averaged_policy.parameters()]
    return th.cat([part.detach().flatten() for part in parts])


def lengths_for(lengths, size):
    """The lengths for two processes, for any number of them: each further one has a single episode."""
    return [*lengths, *([2 + rank] for rank in range(size - 2))]


def average_rank_means(model):
    """What a wrapper that averages the gradients of processes would do."""

    def average(optimizer, args, kwargs):
        for parameter in model.policy.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()

    model.policy.optimizer.register_step_pre_hook(average)


def difference(name, naively=False):
    """Train with all processes and with one on the same episodes; tell how far the parameters are apart."""
    observation_space, action_space, updates, kwargs = CASES[name]
    rank, size = distributed.get_rank(), distributed.get_world_size()
    alone = make_model(observation_space, action_space, size, **kwargs)
    model = make_model(observation_space, action_space, 1, distributed=not naively, **kwargs)
    if naively:
        average_rank_means(model)
    if hasattr(alone.estimator.baseline, "own"):
        alone.estimator.baseline.own = 0.0
    # The start of a training, without a rollout
    model.learn(0)
    before = vector(model).clone()
    assert th.equal(before, vector(alone))
    for update, lengths in enumerate(updates):
        all_lengths = lengths_for(lengths, size)
        seeds = [100 * update + env_idx for env_idx in range(size)]
        fill(model, all_lengths[rank : rank + 1], seeds[rank : rank + 1])
        fill(alone, all_lengths, seeds)
        model.train()
        alone.train()
    moved = float((vector(alone) - before).abs().max())
    logs = {}
    for key, value in alone.logger.name_to_value.items():
        logs[key] = float(abs(value - model.logger.name_to_value[key]) / (1.0 + abs(value)))
    return {
        "difference": float((vector(model) - vector(alone)).abs().max()),
        "moved": moved,
        "logs": max(logs.values()),
        "worst log": max(logs, key=logs.get),
        "checksum": checksum(model),
    }


def exactness():
    results = {name: difference(name) for name in CASES}
    results["averaged rank means"] = difference("none", naively=True)
    return results


class ShortEpisodes(gym.Env):
    """Episodes of as many steps as the rank has, times two, plus one; something may happen at one of them."""

    def __init__(self, happens=None, at=13):
        self.observation_space, self.action_space = BOX, DISCRETE
        self.happens, self.at = happens, at
        self.n_steps, self.seeds = 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.t = 0
        return self._observation(), {}

    def _observation(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def step(self, action):
        self.t += 1
        self.n_steps += 1
        reward = float(action)
        if self.n_steps == self.at and self.happens is not None:
            reward = self.happens()
        return self._observation(), reward, self.t == 2 * distributed.get_rank() + 1, False, {}


def raise_error():
    raise KeyError("the simulator")


class OnStep(BaseCallback):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def _on_step(self):
        return self.function(self)


class OnRolloutEnd(OnStep):
    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.function(self)


class Unpicklable(VecEnvWrapper):
    """Its infos cannot be sent to another process, after a while."""

    n_steps = 0

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        self.n_steps += 1
        if self.n_steps > 20 and distributed.get_rank() == 1:
            infos = [{**info, "is_success": lambda: True} for info in infos]
        return observations, rewards, dones, infos


def on_one_rank(rank, happens):
    return happens if distributed.get_rank() == rank else None


def make_short(n_envs=2, happens=None, wrap=lambda env: env, **kwargs):
    env = wrap(DummyVecEnv([lambda: Monitor(ShortEpisodes(happens))] * n_envs))
    return REINFORCE("MlpPolicy", env, **{"n_steps": 5, "seed": 3, "device": "cpu", "distributed": True, **kwargs})


def flat(state):
    """All tensors of a state dict in one."""
    if isinstance(state, th.Tensor):
        return state.detach().clone().flatten().float()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return th.cat([th.zeros(0), *map(flat, parts)])


def error_of(model, function):
    """What is raised, and whether everything that learns is as before."""
    before = flat(model.get_parameters())
    try:
        function()
    except Exception as error:
        same = th.equal(before, flat(model.get_parameters()))
        return {
            "error": f"{type(error).__name__}: {error}",
            "as before": same,
            "n_updates": model._n_updates,
            "checksum": checksum(model),
        }
    return {"error": None}


def on_process_0(happens):
    return happens() if distributed.get_rank() == 0 else None


def broadcast_together(processes, make):
    with processes.failing_together():
        processes.broadcast(make())


def update_of_corrupted(**kwargs):
    model = make_model(BOX, GAUSSIAN, 1, distributed=True, **kwargs)
    model.learn(0)
    for seed in range(2):
        fill(model, [[4, 3]], [seed])
        model.train()
    fill(model, [[4, 3]], [9])
    if distributed.get_rank() == 1:
        model.rollout_buffer.actions[2] = 1e30
    return error_of(model, model.train)


def faults():
    results = {}
    for name, happens in (("reward", lambda: float("nan")), ("exception", raise_error)):
        model = make_short(happens=on_one_rank(1, happens))
        results[name] = error_of(model, functools.partial(model.learn, 1000))
    results["log-probability"] = update_of_corrupted()
    results["log-probability in the return"] = update_of_corrupted(ent_coef=0.1, entropy_in_return=True)
    for name, callback in (
        ("callback", OnStep(lambda callback: callback.n_calls < 8 or raise_error())),
        ("callback at the end", OnRolloutEnd(lambda callback: callback.n_calls < 8 or raise_error())),
    ):
        model = make_short()
        results[name] = error_of(model, functools.partial(model.learn, 1000, callback=callback))
    model = make_short(wrap=Unpicklable)
    results["unpicklable"] = error_of(model, functools.partial(model.learn, 1000))
    processes = ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    for name, make in (("unpicklable value", lambda: lambda: 0), ("value that fails", lambda: on_process_0(raise_error))):
        results[name] = error_of(model, functools.partial(broadcast_together, processes, make))
    model = make_short()
    model.learn(1000, callback=OnStep(lambda callback: callback.n_calls < 13))
    results["stopped"] = {"n_steps": model.num_timesteps, "checksum": checksum(model), "n_updates": model._n_updates}
    for name, kwargs in (("learning_rate", {"learning_rate": 0.1}), ("n_envs", {"n_envs": 3})):
        model = make_short(**(kwargs if distributed.get_rank() == 1 else {}))
        results[name] = error_of(model, functools.partial(model.learn, 10))
    wider = spaces.Box(-2, 2, (3,), np.float32)
    for name, other in (("observation_space", (wider, DISCRETE)), ("action_space", (BOX, GAUSSIAN))):
        model = make_model(*(other if distributed.get_rank() == 1 else (BOX, DISCRETE)), 1, distributed=True)
        results[name] = error_of(model, functools.partial(model.learn, 10))
    model = make_short()
    results["total_timesteps"] = error_of(model, lambda: model.learn(10 + distributed.get_rank()))
    try:
        make_short(n_episodes=1, n_steps=None)
    except ValueError as error:
        results["too few episodes"] = str(error)
    return results


def two_processes(folder):
    """What processes do together when nothing fails."""
    results = {}
    rank = distributed.get_rank()

    model = make_short(n_steps=None, n_episodes=5, critic_batch_size=4)
    seen = []
    model.learn(30, callback=OnRolloutEnd(lambda callback: seen.append(callback.model.rollout_buffer.returns.sum())))
    results["episodes"] = {
        "local": sum(map(len, model.rollout_buffer.episode_ends)),
        "logged": model.logger.name_to_value["rollout/episodes"],
        "lengths": [int(info["l"]) for info in model.ep_info_buffer],
        "seeds": [env.unwrapped.seeds[0] for env in model.env.envs],
        "n_seen": len(seen),
        "n_updates": model._n_updates,
        "n_steps": model.num_timesteps,
        "local steps": sum(env.unwrapped.n_steps for env in model.env.envs),
        "checksum": checksum(model),
    }

    path = f"{folder}/model_of_rank_{rank}"
    model.save(path)
    results["written"] = os.path.exists(f"{path}.zip")
    distributed.barrier()
    path = f"{folder}/model_of_rank_0"
    again = REINFORCE.load(path, env=model.env, distributed=True)
    again.learn(30, reset_num_timesteps=False)
    elsewhere = REINFORCE.load(path)
    results["loaded"] = {
        "checksum": checksum(again),
        "n_updates": again._n_updates,
        "distributed": elsewhere.distributed,
        "same": th.equal(vector(elsewhere), vector(model)),
    }

    model = make_short()
    model.learn(30)
    if rank == 1:
        with th.no_grad():
            next(model.policy.parameters()).mul_(1.0 + 1e-6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "total_timesteps=.* at most")
        model.learn(30)
        drifted = [str(warning.message) for warning in caught]
        nothing = CallbackList([])
        nothing.init_callback(model)
        if rank == 1:
            with th.no_grad():
                next(model.policy.parameters()).mul_(1.0 + 1e-6)
        model.collect_rollouts(model.env, nothing, model.rollout_buffer, 5)
        found = [str(warning.message) for warning in caught][len(drifted) :]
    results["drift"] = {"at the start": drifted, "later": found, "checksum": checksum(model)}

    seen_by_statistics = {}
    model = make_short(wrap=lambda env: recording(VecNormalize(env, gamma=0.9), seen_by_statistics))
    model.learn(60)
    model.learn(30)
    results["statistics"] = {
        name: {
            "raw": [array.tolist() for array in seen_by_statistics[name]],
            "mean": np.array(rms.mean).tolist(),
            "var": np.array(rms.var).tolist(),
            "count": rms.count,
        }
        for name, rms in (("observations", model.env.obs_rms), ("returns", model.env.ret_rms))
    }
    return results


def recording(env, seen):
    for name, rms in (("observations", env.obs_rms), ("returns", env.ret_rms)):
        arrays = seen[name] = []

        def update(array, arrays=arrays, rms=rms):
            arrays.append(array.copy())
            RunningMeanStd.update(rms, array)

        rms.update = update
    return env


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_collection():
    make_short(happens=on_one_rank(1, kill)).learn(10_000)


def killed_in_the_fit():
    model = make_short(critic_batch_size=3)
    calls = []

    def count(*_):
        calls.append(1)
        # The first step is the policy's
        if distributed.get_rank() == 1 and len(calls) == 3:
            kill()

    model.policy.optimizer.register_step_pre_hook(count)
    model.learn(10_000)


if __name__ == "__main__":
    th.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
    result = globals()[sys.argv[1]](*sys.argv[2:])
    results = [None] * distributed.get_world_size()
    distributed.all_gather_object(results, result)
    if distributed.get_rank() == 0:
        print(json.dumps(results))
    leave_process_group()
