"""The search space of RL Zoo's hyperparameter search for REINFORCE."""

from typing import Any

import optuna
from torch import nn

from sb3_reinforce.arguments import make_schedule

NET_ARCHS: dict[str, list[int]] = {"small": [64], "medium": [64, 64], "large": [256, 256]}
#: The LSTM of a recurrent policy's critic. It cannot use the actor's, which needs a shared feature extractor.
CRITIC_LSTMS: dict[str, dict[str, bool]] = {"own": {}, "none": {"enable_critic_lstm": False}}
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def sample_reinforce_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sample the constructor arguments of a trial, in the form that RL Zoo's search expects.

    All candidates are Monte Carlo. Names and ranges are the same in every trial of a study, as samplers and machines that
    share it require: the critic's arguments are sampled even if the baseline needs no critic. ``natural_gradient`` is not
    searched: it comes from the entry with which the study began, which RL Zoo keeps in the study.
    """
    # RL Zoo stores it as text
    if trial.study.user_attrs.get("natural_gradient") == "True":
        trial.suggest_float("target_kl", 2e-3, 5e-2, log=True)
        trial.suggest_float("cg_damping", 1e-2, 1.0, log=True)
    else:
        trial.suggest_float("learning_rate", 3e-4, 3e-2, log=True)
        trial.suggest_categorical("lr_schedule", ["constant", "linear"])
    trial.suggest_categorical("policy_averaging", [None, 0.8, 0.9, 0.95])
    trial.suggest_int("n_steps_pow", 4, 10)
    trial.suggest_float("one_minus_gamma", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("baseline", ["value", "time_step", "leave_one_out"])
    trial.suggest_int("critic_epochs", 1, 40, log=True)
    trial.suggest_int("critic_batch_size_pow", 6, 12)
    trial.suggest_float("critic_learning_rate", 3e-4, 1e-2, log=True)
    trial.suggest_categorical("normalize_advantage", [True, False])
    trial.suggest_float("ent_coef", 1e-6, 3e-2, log=True)
    trial.suggest_categorical("bootstrap_at_time_limit", [True, False])
    trial.suggest_categorical("net_arch", list(NET_ARCHS))
    trial.suggest_categorical("critic_net_arch", list(NET_ARCHS))
    trial.suggest_categorical("activation_fn", list(ACTIVATIONS))
    trial.suggest_categorical("ortho_init", [True, False])
    if n_actions > 0:
        trial.suggest_float("log_std_init", -2.0, 0.5)

    kwargs = convert_reinforce_params(trial.params)
    if "learning_rate" in kwargs:
        # RL Zoo turns schedules in a file into functions, but not schedules in a trial
        kwargs["learning_rate"] = make_schedule(kwargs["learning_rate"], "learning_rate")
    return kwargs


def convert_reinforce_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Convert the parameters that Optuna stored for a trial to the entries of a configuration file."""
    kwargs = dict(sampled_params)
    policy_kwargs: dict[str, Any] = {
        "net_arch": {"pi": list(NET_ARCHS[kwargs.pop("net_arch")]), "vf": list(NET_ARCHS[kwargs.pop("critic_net_arch")])},
        "activation_fn": ACTIVATIONS[kwargs.pop("activation_fn")],
        # Without it the initial policy is not uniform, as some tasks with sparse rewards require
        "ortho_init": kwargs.pop("ortho_init"),
        # The critic does not train shared layers: on images it needs its own
        "share_features_extractor": False,
    }
    if "log_std_init" in kwargs:
        policy_kwargs["log_std_init"] = kwargs.pop("log_std_init")
    if "critic_lstm" in kwargs:
        policy_kwargs["lstm_hidden_size"] = 2 ** kwargs.pop("lstm_hidden_size_pow")
        policy_kwargs |= CRITIC_LSTMS[kwargs.pop("critic_lstm")]
    if kwargs.pop("lr_schedule", None) == "linear":
        kwargs["learning_rate"] = f"lin_{kwargs['learning_rate']}"
    return {
        "natural_gradient": "target_kl" in kwargs,
        "gamma": 1.0 - kwargs.pop("one_minus_gamma"),
        "gae_lambda": 1.0,
        # Only one budget can be set, and the file may set this one
        "n_episodes": None,
        **{name.removesuffix("_pow"): 2**value if name.endswith("_pow") else value for name, value in kwargs.items()},
        "policy_kwargs": policy_kwargs,
    }


def sample_reinforce_lstm_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sample a trial's constructor arguments for recurrent policies: as ``sample_reinforce_params``, plus the LSTMs."""
    trial.suggest_int("lstm_hidden_size_pow", 4, 8)
    trial.suggest_categorical("critic_lstm", list(CRITIC_LSTMS))
    return sample_reinforce_params(trial, n_actions, n_envs, additional_args)
