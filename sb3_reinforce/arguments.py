"""Checks of the algorithm's arguments: numbers, switches, budgets, schedules and spaces."""

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.functional.baselines import Baseline, ValueBaseline, name_of
from sb3_reinforce.functional.estimator import Estimator
from sb3_reinforce.rollout.common_starts import check_restartable


def is_number(value: Any) -> bool:
    """True for Python's and NumPy's real numbers, False for ``True``."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole_number(value: Any) -> bool:
    """True for Python's and NumPy's integers, False for ``True`` and ``2.0``."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


#: Fewer updates than this cause a warning.
MIN_UPDATES = 20


class Numbers(NamedTuple):
    """A set of valid numbers; ``words`` complete the message "must be ..."."""

    words: str
    contains: Callable[[Any], bool]


COUNT = Numbers("a whole number of at least 1", lambda value: is_whole_number(value) and value >= 1)
COUNT_OR_NONE = Numbers(f"None or {COUNT.words}", lambda value: value is None or COUNT.contains(value))
UNIT_INTERVAL = Numbers("in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
NOT_NEGATIVE = Numbers("at least 0 and finite", lambda value: is_number(value) and 0 <= value < np.inf)

NUMERIC_ARGUMENTS = {
    "n_steps": COUNT_OR_NONE,
    "n_episodes": COUNT_OR_NONE,
    "episodes_per_start": COUNT_OR_NONE,
    "gamma": UNIT_INTERVAL,
    "gae_lambda": UNIT_INTERVAL,
    "vf_coef": NOT_NEGATIVE,
    "critic_epochs": COUNT,
    "critic_batch_size": COUNT_OR_NONE,
    "micro_batch_size": COUNT_OR_NONE,
    "max_rollout_steps": COUNT_OR_NONE,
    "cg_max_steps": COUNT,
    "cg_damping": NOT_NEGATIVE,
    "fisher_max_steps": COUNT_OR_NONE,
    "policy_averaging": Numbers(
        "in (0, 1), or None for no averaging", lambda value: value is None or (is_number(value) and 0 < value < 1)
    ),
    "max_grad_norm": Numbers("above 0 (float('inf') for no clipping)", lambda value: is_number(value) and value > 0),
    "sde_sample_freq": Numbers("a whole number of at least -1", lambda value: is_whole_number(value) and value >= -1),
    "stats_window_size": COUNT,
    "seed": Numbers(
        "None or a whole number from 0 to 2**32 - 1",
        lambda value: value is None or (is_whole_number(value) and 0 <= value < 2**32),
    ),
}


#: Boolean arguments.
SWITCHES = (
    "discounted_weighting",
    "normalize_advantage",
    "entropy_in_return",
    "bootstrap_at_time_limit",
    "natural_gradient",
    "use_masking",
    "use_sde",
)


def check_budget(
    n_steps: int | None, n_episodes: int | None, n_envs: int | None, n_processes: int, comparing_baseline: str | None
) -> str | None:
    """
    Return a warning about environments in which no episode would count, or None.

    ``n_envs`` counts the environments of all processes; None for a model without one. Raises ``ValueError`` for two budgets,
    for fewer episodes than processes, and if ``comparing_baseline`` has no second episode to compare with.
    """
    if n_steps is not None and n_episodes is not None:
        raise ValueError(
            f"n_steps={n_steps} and n_episodes={n_episodes} are both set, but only one can rule the rollout: "
            "drop n_steps to count episodes, or n_episodes to count steps (None drops it)"
        )
    if n_episodes is not None and n_episodes < n_processes:
        raise ValueError(
            f"n_episodes={n_episodes} is below the number of processes, {n_processes}: raise it, or start fewer processes"
        )
    if comparing_baseline is not None and (n_episodes == 1 or (n_steps == 1 and n_envs == 1)):
        raise ValueError(
            f"baseline={comparing_baseline} compares episodes with each other, but an update has only one: "
            "raise n_episodes or n_steps, or choose another baseline"
        )
    if n_episodes is None or n_envs is None or n_episodes >= n_envs:
        return None
    unused = n_envs - n_episodes
    return (
        f"n_episodes={n_episodes} is below the number of environments, {n_envs}: in every rollout {unused} of them have "
        f"no episode that counts. Raise n_episodes to {n_envs}, or use fewer environments."
    )


def check_common_starts(
    episodes_per_start: int | None, n_episodes: int | None, baseline: Baseline, env: VecEnv | None, n_processes: int
) -> None:
    """
    Raise ``ValueError``, which names the argument, if episodes should have common starts but cannot.

    ``n_episodes`` counts the episodes of all processes; ``env`` is None for a model without one.
    """
    if baseline.needs_common_starts and (episodes_per_start is None or episodes_per_start < 2):
        raise ValueError(
            f"baseline={name_of(baseline)} compares episodes from the same start: set episodes_per_start to 2 or more, not "
            f"{episodes_per_start}"
        )
    if episodes_per_start is None and not baseline.needs_greedy_episodes:
        return
    argument = f"baseline={name_of(baseline)}"
    if episodes_per_start is not None:
        argument = f"episodes_per_start={episodes_per_start}"
    each = episodes_per_start or 1
    if n_episodes is None or n_episodes % each != 0:
        raise ValueError(f"{argument} needs n_episodes, a multiple of {each}, and n_episodes is {n_episodes}")
    if n_episodes // each < n_processes:
        raise ValueError(f"{argument} gives {n_episodes // each} starts for {n_processes} processes: raise n_episodes")
    if env is not None:
        check_restartable(env, argument)


#: Settings that have an effect only with ``natural_gradient``, and their defaults.
NATURAL_STEP_DEFAULTS = {"target_kl": 0.01, "cg_max_steps": 10, "cg_damping": 0.1, "fisher_max_steps": 2_000}


def explain_ignored_settings(arguments: Mapping[str, Any]) -> str | None:
    """Return a warning that names the settings of the natural step without effect, or None."""
    changed = [name for name, default in NATURAL_STEP_DEFAULTS.items() if arguments[name] != default]
    if not changed or arguments["natural_gradient"]:
        return None
    return f"{', '.join(changed)}: no effect without natural_gradient=True"


def check_arguments(arguments: Mapping[str, Any], n_envs: int | None, n_processes: int) -> list[str]:
    """
    Check the arguments of the algorithm, whose names may start with an underscore as in SB3, and return warnings.

    ``n_envs`` counts the environments of all processes; None for a model without one. Raises ``ValueError``, which names the
    argument, for a value out of its range and for two arguments that contradict each other.
    """
    for name, accepted in NUMERIC_ARGUMENTS.items():
        value = arguments.get(name, arguments.get(f"_{name}"))
        if not accepted.contains(value):
            raise ValueError(f"{name} must be {accepted.words}, not {value!r}")
    for name in SWITCHES:
        # "False" would silently mean True
        if not isinstance(arguments[name], bool | np.bool_):
            raise ValueError(f"{name} must be True or False, not {arguments[name]!r}")
    estimator = Estimator(**{field.name: arguments[field.name] for field in dataclasses.fields(Estimator)})
    ent_coef = make_schedule(arguments["ent_coef"], "ent_coef")
    if arguments["critic_learning_rate"] is not None:
        make_schedule(arguments["critic_learning_rate"], "critic_learning_rate")
    if make_schedule(arguments["target_kl"], "target_kl")(1.0) <= 0.0:
        raise ValueError(f"target_kl must be above 0, not {arguments['target_kl']}: a step that changes nothing is none")
    starts = (arguments["episodes_per_start"], arguments["n_episodes"])
    check_common_starts(*starts, estimator.baseline, arguments["env"], n_processes)
    compared = name_of(estimator.baseline) if estimator.baseline.compares_episodes else None
    warnings = [
        check_budget(arguments["n_steps"], arguments["n_episodes"], n_envs, n_processes, compared),
        explain_ignored_settings(arguments),
    ]
    if estimator.return_type == "episode" and isinstance(estimator.baseline, ValueBaseline):
        warnings.append(
            "return_type='episode' with baseline='value' subtracts the value of what is still to come from the return of "
            "the whole episode: unbiased, but noisy. return_type='reward_to_go' with discounted_weighting=True has the "
            "same expected gradient and less noise"
        )
    if arguments["entropy_in_return"] and ent_coef(1.0) == ent_coef(0.0) == 0.0:
        warnings.append("entropy_in_return has no effect with ent_coef=0: set ent_coef above 0")
    return [warning for warning in warnings if warning is not None]


def explain_few_updates(total_timesteps: float, n_steps: int, n_envs: int) -> str | None:
    """Return a warning if there would be fewer than ``MIN_UPDATES`` updates, or None: A2C and PPO make hundreds."""
    if total_timesteps > (MIN_UPDATES - 1) * n_steps * n_envs:
        return None
    n_updates = math.ceil(total_timesteps / (n_steps * n_envs))
    advice = "lower n_steps" + (" or take fewer environments" if n_envs > 1 else "")
    return (
        f"total_timesteps={total_timesteps}: the policy takes at most {n_updates} gradient step{'s' * (n_updates > 1)}, each "
        f"after n_steps={n_steps} steps of every environment (n_envs={n_envs}). For more gradient steps, {advice}"
    )


class CheckedSchedule(FloatSchedule):
    """A coefficient as a function of the progress remaining. Raises ``ValueError`` where it is negative or infinite."""

    def __init__(self, schedule: Schedule, name: str) -> None:
        super().__init__(schedule)
        self.name = name

    def __call__(self, progress_remaining: float) -> float:
        try:
            coefficient = super().__call__(progress_remaining)
        except Exception as error:
            raise ValueError(
                f"{self.name} fails at progress remaining {progress_remaining} with {type(error).__name__}: {error}"
            ) from error
        if not 0.0 <= coefficient < np.inf:
            raise ValueError(
                f"{self.name} must never be negative or infinite, but is {coefficient} at progress remaining "
                f"{progress_remaining}"
            )
        return coefficient


def make_schedule(value: float | str | Schedule, name: str) -> CheckedSchedule:
    """
    Turn a coefficient into a function of the progress remaining (from 1 to 0).

    :param value: A number, a function, or ``"lin_0.01"`` for a linear decay from 0.01 to 0 (RL Zoo's notation).
    :param name: Name of the argument, for the error message.
    :raises ValueError: If the value is none of these, or the schedule fails, or starts or ends below 0.
    """
    function: Any = value
    if isinstance(value, str) and value.startswith("lin_"):
        with contextlib.suppress(ValueError):
            function = LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    elif is_number(value):
        function = ConstantSchedule(float(function))
    if not callable(function):
        raise ValueError(f"{name} must be a number, a function of the progress remaining, or like 'lin_0.01', not {value!r}")
    schedule = CheckedSchedule(function, name)
    for progress_remaining in (1.0, 0.0):
        schedule(progress_remaining)
    return schedule


def check_env_type(env: Any) -> None:
    """Refuse vector environments that SB3 would mistake for a single environment, and name the adapter."""
    if any(cls.__module__.startswith("envpool.") for cls in type(env).__mro__):
        raise ValueError(
            "env is an EnvPool, which must become a VecEnv: sb3_reinforce.vec_env.make_envpool_vec_env(env_id, n_envs), or "
            "EnvPoolVecEnv of the same module for one that you make yourself"
        )
    if isinstance(env, gym.vector.VectorEnv):
        raise ValueError(
            f"env is a VectorEnv of gymnasium ({type(env).__name__}), which must become a VecEnv: "
            "sb3_reinforce.vec_env.GymnasiumVecEnv(env)"
        )


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuse spaces that SB3's policies misread or fail on inside PyTorch, and name the wrapper that helps."""
    observation_parts = {"observation space": observation_space}
    if isinstance(observation_space, spaces.Dict):
        observation_parts = {f"observation space at key {key!r}": part for key, part in observation_space.items()}
    for name, space in {**observation_parts, "action space": action_space}.items():
        is_action = name == "action space"
        flaw = None
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
            flaw = "does not start at 0, as SB3's policies take for granted: shift it"
        elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1:
            flaw = f"has {space.nvec.ndim} dimensions, where SB3's policies need one: flatten it"
        elif isinstance(space, spaces.Box) and is_action and not np.issubdtype(space.dtype, np.floating):
            flaw = "holds whole numbers, where the policy draws real ones: round them, or choose MultiDiscrete"
        elif isinstance(space, spaces.Box) and not is_action and space.shape == ():
            flaw = "has no dimension, where SB3's policies need one: reshape it to (1,)"
        if flaw is not None:
            in_one_line = " ".join(str(space).split())
            wrapper = "TransformAction" if is_action else "TransformObservation"
            raise ValueError(f"The {name} {in_one_line} {flaw}, for example with gymnasium.wrappers.{wrapper}")


#: Default budget of a rollout.
DEFAULT_N_STEPS = 256


class DerivedArguments(OnPolicyAlgorithm):
    """Values derived from the current arguments of REINFORCE: a callback may change the arguments during training."""

    n_episodes: int | None
    return_type: str
    discounted_weighting: bool
    normalize_advantage: bool
    loss_reduction: str
    target_kl: float | str | Schedule
    critic_learning_rate: float | str | Schedule | None
    _baseline: Baseline

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = make_schedule(self.learning_rate, "learning_rate")

    @property  # type: ignore[override]
    def n_steps(self) -> int | None:
        """The budget in steps of each environment; None if ``n_episodes`` is set. The default is not saved as a choice."""
        chosen: int | None = vars(self)["n_steps"]
        return DEFAULT_N_STEPS if chosen is None and self.n_episodes is None else chosen

    @n_steps.setter
    def n_steps(self, n_steps: int | None) -> None:
        vars(self)["n_steps"] = n_steps

    @property
    def ent_coef_schedule(self) -> Schedule:
        """``ent_coef`` as a function of the progress remaining, from its current value."""
        return make_schedule(self.ent_coef, "ent_coef")

    @property
    def critic_lr_schedule(self) -> Schedule:
        """``critic_learning_rate`` as a function of the progress remaining; the policy's schedule if it is None."""
        if self.critic_learning_rate is None:
            return self.lr_schedule
        return make_schedule(self.critic_learning_rate, "critic_learning_rate")

    @property
    def target_kl_schedule(self) -> Schedule:
        """``target_kl`` as a function of the progress remaining, from its current value."""
        return make_schedule(self.target_kl, "target_kl")

    @property
    def critic_is_fitted(self) -> bool:
        """Whether updates have fitted the critic: never with ``vf_coef=0``."""
        return self._n_updates > 0 and self.vf_coef > 0.0

    @property
    def estimator(self) -> Estimator:
        """The arguments that turn the rewards of an episode into the weights of its steps, as one object."""
        return Estimator(
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            return_type=self.return_type,
            discounted_weighting=self.discounted_weighting,
            baseline=self._baseline,
            normalize_advantage=self.normalize_advantage,
            loss_reduction=self.loss_reduction,
        )
