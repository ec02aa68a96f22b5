"""Check a configuration before RL Zoo uses it: it must run no code, and every key must have a meaning."""

import ast
import difflib
import importlib
import inspect
import operator
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any

import gymnasium as gym
import rl_zoo3.exp_manager
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnvWrapper

import sb3_reinforce
from sb3_reinforce import REINFORCE
from sb3_reinforce.arguments import is_number
from sb3_reinforce.functional.baselines import make_baseline
from sb3_reinforce.zoo.errors import UserError, is_about_request

SET_BY_FLAGS = {
    "env": "--env",
    "tensorboard_log": "--tensorboard-log",
    "seed": "--seed",
    "verbose": "--verbose",
    "device": "--device",
    "distributed": "--distributed",
}
#: Keys whose values RL Zoo evaluates as Python if they are text.
EXPRESSIONS = ("policy_kwargs", "normalize", "monitor_kwargs", "replay_buffer_class", "replay_buffer_kwargs")
#: Keys whose values RL Zoo imports by name and calls, with the required base class.
IMPORTED = {"policy": BasePolicy, "env_wrapper": gym.Wrapper, "vec_env_wrapper": VecEnvWrapper, "callback": BaseCallback}
#: Other keys of an entry that RL Zoo uses itself.
ZOO_KEYS = ("n_timesteps", "n_envs", "frame_stack", "env_kwargs", "normalize", "monitor_kwargs", *IMPORTED)
#: Packages whose classes an expression may name, by the names that RL Zoo's evaluation knows or by full names.
KNOWN_PACKAGES = ("torch.nn.", "torch.optim.", "stable_baselines3.", "sb3_contrib.", "sb3_reinforce.")
NAMES = vars(rl_zoo3.exp_manager) | {
    package.__name__: package for package in (torch, stable_baselines3, sb3_contrib, sb3_reinforce)
}
CONTAINERS: dict[str, Callable[..., Any]] = {"dict": dict, "list": list, "tuple": tuple}
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
#: Arguments of A2C, PPO and TRPO that REINFORCE does not have.
ELSEWHERE = {
    "batch_size": "here critic_batch_size, since the policy takes one step on the whole rollout",
    "n_epochs": "here critic_epochs, since the policy takes one step per rollout",
    "clip_range": "leave it out, since one step per rollout has no ratio to clip",
    "clip_range_vf": "leave it out, since the critic is not clipped",
    "use_rms_prop": 'here policy_kwargs: "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5))"',
    "rms_prop_eps": 'here policy_kwargs: "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5))"',
    "n_critic_updates": "here critic_epochs",
    "sub_sampling_factor": "here fisher_max_steps, a number of steps",
    "line_search_shrinking_factor": "leave it out, since it is fixed",
    "line_search_max_iter": "leave it out, since it is fixed",
}
DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(REINFORCE).parameters.items()
    if name not in SET_BY_FLAGS and not name.startswith("_")
}


def evaluate_entry(entry: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Evaluate the expressions in any algorithm's entry, and check the classes it names, so that RL Zoo runs no code."""
    evaluated = dict(entry)
    for key, value in entry.items():
        try:
            if key in IMPORTED:
                check_classes(key, value)
            elif key in EXPRESSIONS and isinstance(value, str):
                evaluated[key] = evaluate(value)
                if isinstance(evaluated[key], str):
                    # RL Zoo would evaluate it again
                    raise UserError(f"{value!r} is text in text")
        except UserError as error:
            raise UserError(f"{source}, {key}: {error}") from error
    return evaluated


def evaluate(expression: str) -> Any:
    """Evaluate an expression such as ``dict(activation_fn=nn.ReLU)`` as RL Zoo would, but without running any code."""
    try:
        return _value_of(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, MemoryError, RecursionError) as error:
        raise UserError(f"{expression[:80]!r} cannot be evaluated: {type(error).__name__}: {error}") from error


def _value_of(node: ast.expr) -> Any:
    hint = ""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_value_of(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value_of(item) for item in items)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_value_of(key): _value_of(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in CONTAINERS:
            if all(keyword.arg for keyword in keywords):
                return CONTAINERS[name](*map(_value_of, args), **{str(item.arg): _value_of(item.value) for item in keywords})
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            if is_number(number := _value_of(operand)):
                return -number
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in OPERATORS:
            # Numbers only: a list or a text could be repeated a billion times
            if all(map(is_number, numbers := [_value_of(left), _value_of(right)])):
                return OPERATORS[type(operation)](*numbers)
        case ast.Name() | ast.Attribute():
            path = ast.unparse(node)
            if (found := find_class(path)) is not None:
                return found
            hint = suggest(path, [name for name in (*NAMES, *(f"nn.{name}" for name in vars(torch.nn))) if find_class(name)])
    raise UserError(
        f"{ast.unparse(node)!r} is not evaluated: only literals, arithmetic without powers, dict, list, tuple, and classes of "
        f"torch.nn, torch.optim, stable_baselines3, sb3_contrib and sb3_reinforce{hint}"
    )


def find_class(path: str) -> type | None:
    """Find a class of a known package, such as ``nn.ReLU`` or ``stable_baselines3.common.torch_layers.NatureCNN``."""
    name, *attributes = path.split(".")
    value = NAMES.get(name)
    for attribute in attributes:
        value = vars(value).get(attribute) if isinstance(value, ModuleType) else None
    is_known = isinstance(value, type) and f"{value.__module__}.".startswith(KNOWN_PACKAGES)
    return value if is_known else None


def check_classes(key: str, value: Any) -> None:
    """Check what RL Zoo would import and call: a name, a mapping of a name to arguments, a list of these, a policy alias."""
    items = [] if value is None and key != "policy" else value if isinstance(value, list) else [value]
    for path in [name for item in items for name in (item if isinstance(item, dict) else [item])]:
        found, base, hint = path, IMPORTED[key], ""
        if isinstance(path, str):
            module_name, _, name = path.rpartition(".")
            if key == "policy" and not module_name:
                continue
            if module_name[:1] in ("", "."):
                raise UserError(f"{path} must be named with its module")
            try:
                module = importlib.import_module(module_name)
            except ImportError as error:
                if not is_about_request(error, ["importlib"]):
                    raise
                raise UserError(f"{path} cannot be imported: {error}") from error
            found = getattr(module, name, None)
            hint = "" if found is not None else suggest(name, vars(module))
        # A configuration in Python may hold the class itself, or a callback
        if not (issubclass(found, base) if isinstance(found, type) else found is path and isinstance(found, base)):
            raise UserError(f"{path} is no class derived from {base.__module__}.{base.__name__}{hint}")


def check_hyperparameters(entry: Mapping[str, Any], source: str) -> None:
    """Check the keys of a REINFORCE entry, and its constructor arguments with the constructor's own checks."""
    known = (*DEFAULTS, *ZOO_KEYS)
    problems = [f"{key}: missing" for key in ("policy", "n_timesteps") if key not in entry]
    problems += [
        f"{key}: must be a number of at least 1, not {entry[key]!r}"
        for key in ("n_envs", "n_timesteps")
        if key in entry and not (is_number(entry[key]) and entry[key] >= 1)
    ]
    for key in entry:
        if key in SET_BY_FLAGS:
            problems.append(f"{key}: is set by the flag {SET_BY_FLAGS[key]}, not by the file")
        elif key not in known:
            problems.append(f"{key}: unknown key{f', {ELSEWHERE[key]}' if key in ELSEWHERE else suggest(key, known)}")
    if problems:
        raise UserError(f"{source}, {'; '.join(problems)}")
    arguments = {key: value for key, value in entry.items() if key in DEFAULTS and key not in (*EXPRESSIONS, "policy")}
    try:
        model = REINFORCE("MlpPolicy", env=None, _init_setup_model=False, **arguments)  # type: ignore[arg-type]
        model._setup_lr_schedule()
        model._check_arguments()
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def find_idle(entry: Mapping[str, Any]) -> dict[str, str]:
    """Explain which arguments of REINFORCE have no effect given the others, except those about which the constructor warns."""
    values = {**DEFAULTS, **entry}
    idle: dict[str, str] = {}
    has_critic = make_baseline(values["baseline"]).needs_critic
    if not has_critic:
        critic = ("critic_epochs", "critic_batch_size", "critic_learning_rate", "vf_coef", "bootstrap_at_time_limit")
        idle |= dict.fromkeys(critic, f"baseline={values['baseline']!r} has no critic")
    if values["natural_gradient"]:
        step = "the natural step has the length target_kl"
        if not has_critic:
            idle |= dict.fromkeys(("learning_rate", "max_grad_norm"), f"{step}, and there is no critic")
        elif values["critic_learning_rate"] is not None:
            idle["learning_rate"] = f"{step}, and the critic has critic_learning_rate"
    if values["return_type"] == "episode":
        idle["discounted_weighting"] = "return_type='episode' discounts from the first step anyway"
    if values["gamma"] == 1:
        idle["discounted_weighting"] = "gamma is 1"
    if not values["use_sde"]:
        idle["sde_sample_freq"] = "use_sde is False"
    return idle


def suggest(name: str, known: Collection[str]) -> str:
    """Return a "did you mean" hint to append to a message; empty if no known name is similar."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {similar[0]}?" if similar else ""
