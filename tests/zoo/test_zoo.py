"""REINFORCE in RL Zoo: registration, configuration, search, and what the experiment manager adds."""

import argparse
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3.exp_manager
import sqlalchemy.exc
import torch
import yaml
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import VecMonitor
from torch import nn

from sb3_reinforce import REINFORCE, vec_env
from sb3_reinforce.policies.actor_critic import MlpPolicy
from sb3_reinforce.vec_env.base import EngineVecEnv
from sb3_reinforce.zoo import ALGORITHMS, find_resource, hyperparams_path, register, shipped_configurations
from sb3_reinforce.zoo.config import (
    ELSEWHERE,
    EXPRESSIONS,
    IMPORTED,
    check_hyperparameters,
    evaluate,
    evaluate_entry,
)
from sb3_reinforce.zoo.errors import UserError
from sb3_reinforce.zoo.experiment import ExperimentManager, SeedTrial, lacks_time_limit, merge_trial, to_source
from sb3_reinforce.zoo.search import convert_reinforce_params, sample_reinforce_params

N_TIMESTEPS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 500_000,
    "MountainCar-v0": 1_000_000,
    "MountainCarContinuous-v0": 100_000,
    "Taxi-v4": 500_000,
    "Pendulum-v1": 1_000_000,
    "LunarLander-v3": 1_000_000,
    "LunarLanderContinuous-v3": 1_000_000,
    "BipedalWalker-v3": 2_000_000,
    "Ant-v5": 1_000_000,
    "HalfCheetah-v5": 1_000_000,
    "Hopper-v5": 1_000_000,
    "Walker2d-v5": 1_000_000,
    "Swimmer-v5": 1_000_000,
    "Humanoid-v5": 1_000_000,
    "Reacher-v5": 1_000_000,
    "InvertedPendulum-v5": 300_000,
    "InvertedDoublePendulum-v5": 1_000_000,
    "sb3_reinforce/AliasedGridworld-v0": 50_000,
    "sb3_reinforce/RockPaperScissors-v0": 50_000,
    "sb3_reinforce/PixelCopter-v0": 2_000_000,
    "sb3_reinforce/TravellingSalesman-v0": 300_000,
}
DISCRETE = ("default", "atari", "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3", "Taxi-v4")
DISCRETE += tuple(env_id for env_id in N_TIMESTEPS if env_id.startswith("sb3_reinforce/"))
ENTRIES = yaml.safe_load(hyperparams_path().read_text())
FILES = [hyperparams_path(), shipped_configurations("reinforce")["adam"]]


class AnyEnv(gym.Env):
    """An environment of which only the spaces matter."""

    def __init__(self, policy: str, is_discrete: bool) -> None:
        vector = spaces.Box(-1.0, 1.0, (3,))
        self.observation_space = {
            "CnnPolicy": spaces.Box(0, 255, (4, 84, 84), np.uint8),
            "MlpPolicy": vector,
            "MultiInputPolicy": spaces.Dict({"observation": vector, "action_mask": spaces.MultiBinary(2)}),
        }[policy]
        self.action_space = spaces.Discrete(2) if is_discrete else spaces.Box(-1.0, 1.0, (2,))


def make_manager(folder: Path, env_id: str = "CartPole-v1", cls: type = ExperimentManager, **kwargs):
    register()
    kwargs = {"eval_freq": -1, "log_interval": -1, "seed": 1, "verbose": 0, **kwargs}
    return cls(argparse.Namespace(), "reinforce", env_id, str(folder), **kwargs)


def write_config(folder: Path, text: str) -> str:
    path = folder / "config.yml"
    path.write_text(text)
    return str(path)


def test_register_adds_to_the_same_dicts_and_may_be_repeated():
    before = {name: algo for name, algo in ALGOS.items() if name not in ALGORITHMS}
    register()
    register()
    assert ALGOS["reinforce"] is rl_zoo3.exp_manager.ALGOS["reinforce"] is REINFORCE
    assert {name: algo for name, algo in ALGOS.items() if name not in ALGORITHMS} == before
    assert HYPERPARAMS_SAMPLER["reinforce"] is sample_reinforce_params
    assert HYPERPARAMS_CONVERTER["reinforce"] is convert_reinforce_params


def test_the_package_and_its_help_need_neither_rl_zoo_nor_matplotlib():
    code = """
import sys
sys.modules.update({name: None for name in ("rl_zoo3", "matplotlib", "optuna", "yaml", "seaborn")})
import sb3_reinforce.zoo.cli
assert sb3_reinforce.zoo.cli.main(["--help"]) == 0
assert sb3_reinforce.zoo.cli.main(["train", "--env", "CartPole-v1"]) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert 'pip install "sb3-reinforce[zoo]"' in done.stderr


def test_rl_zoos_own_manager_trains_reinforce(tmp_path):
    manager = make_manager(
        tmp_path, cls=rl_zoo3.exp_manager.ExperimentManager, n_timesteps=300, config=str(hyperparams_path())
    )
    model, _ = manager.setup_experiment()
    manager.learn(model)
    manager.save_trained_model(model)
    assert isinstance(model, REINFORCE)
    assert REINFORCE.load(f"{manager.save_path}/CartPole-v1.zip").num_timesteps >= 300


# Configuration


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_covers_the_environments(path):
    entries = yaml.safe_load(path.read_text())
    n_timesteps = {env_id: entry["n_timesteps"] for env_id, entry in entries.items() if env_id not in ("default", "atari")}
    # Adam's entry was tuned and measured with a larger budget
    assert n_timesteps == N_TIMESTEPS | ({} if path == hyperparams_path() else {"BipedalWalker-v3": 5_000_000})
    assert {"default", "atari"} <= set(entries)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_entry_is_valid_and_builds_a_model(path, name, tmp_path):
    entry = yaml.safe_load(path.read_text())[name]
    check_hyperparameters(entry, path.name)
    kwargs, *_ = make_manager(tmp_path)._preprocess_hyperparams(dict(entry))
    model = REINFORCE(env=AnyEnv(entry["policy"], name in DISCRETE), device="cpu", **kwargs)
    if entry["policy"] == "CnnPolicy":
        assert not model.policy.share_features_extractor


def test_a_resource_is_found_or_the_error_says_what_to_do():
    assert find_resource("hyperparams/reinforce.yml") == hyperparams_path()
    with pytest.raises(FileNotFoundError, match="reinstall"):
        find_resource("hyperparams/nothing.yml")


def check(**entry) -> None:
    """Check an entry as the manager does."""
    entry = evaluate_entry({"policy": "MlpPolicy", "n_timesteps": 9, **entry}, "mine.yml, CartPole-v1")
    check_hyperparameters(entry, "mine.yml, CartPole-v1")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("lerning_rate", 0.1, "unknown key, did you mean learning_rate?"),
        ("xyz", 0.1, "unknown key"),
        ("seed", 1, "is set by the flag --seed, not by the file"),
        ("device", "cpu", "is set by the flag --device, not by the file"),
        ("distributed", True, "is set by the flag --distributed, not by the file"),
        ("policy_kwargs", "'dict()'", "\"'dict()'\" is text in text"),
        ("normalize", "'open()'", "\"'open()'\" is text in text"),
    ],
)
def test_a_wrong_hyperparameter_is_explained(key, value, problem):
    with pytest.raises(UserError, match=f"^{re.escape(f'mine.yml, CartPole-v1, {key}: {problem}')}$"):
        check(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("n_steps", "64", "n_steps must be None or a whole number of at least 1, not '64'"),
        ("learning_rate", "1e-3", "learning_rate must be a number"),
        ("n_steps", 64.0, "n_steps must be None or a whole number of at least 1, not 64.0"),
        ("gamma", True, "gamma must be in [0, 1], not True"),
        ("gamma", 2.0, "gamma must be in [0, 1], not 2.0"),
        ("baseline", "leave-one-out", "baseline must be one of 'value', 'leave_one_out'"),
        ("normalize_advantage", 1, "normalize_advantage must be True or False, not 1"),
        ("use_sde", "false", "use_sde must be True or False, not 'false'"),
        ("learning_rate", None, "learning_rate must be a number"),
        ("ent_coef", "linear_0.1", "ent_coef must be a number, a function of the progress remaining, or like 'lin_0.01'"),
        ("ent_coef", False, "ent_coef must be a number"),
        ("critic_learning_rate", [0.1], "critic_learning_rate must be a number"),
        ("target_kl", -1, "target_kl must never be negative"),
        ("n_episodes", 4, None),
    ],
)
def test_what_the_constructor_refuses_is_said_in_its_words(key, value, problem):
    if problem is None:
        problem = "n_steps=2 and n_episodes=4 are both set"
    with pytest.raises(UserError, match=f"^{re.escape(f'mine.yml, CartPole-v1: {problem}')}"):
        check(**{"n_steps": 2, "natural_gradient": True, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 1),
        ("learning_rate", "lin_5e-3"),
        ("learning_rate", lambda progress: progress),
        ("critic_learning_rate", None),
        ("n_episodes", None),
        ("n_timesteps", 1e6),
        ("frame_stack", None),
        ("policy_kwargs", "dict(activation_fn=nn.ReLU)"),
        ("policy_kwargs", {"net_arch": [8]}),
        ("policy_kwargs", None),
        ("normalize", " dict(norm_reward=False)"),
        ("normalize", "False"),
        ("normalize", True),
        ("max_grad_norm", float("inf")),
        ("rollout_buffer_class", dict),
    ],
)
def test_a_right_hyperparameter_is_accepted(key, value):
    check(**{key: value})


def test_all_unknown_keys_are_listed_with_their_names_here():
    entry = {"batch_size": 64, "n_epochs": 10, "clip_range": 0.2, "gama": 1.0, "gamma": 0.9}
    with pytest.raises(UserError) as error_info:
        check(**entry)
    assert str(error_info.value) == (
        "mine.yml, CartPole-v1, "
        "batch_size: unknown key, here critic_batch_size, since the policy takes one step on the whole rollout; "
        "n_epochs: unknown key, here critic_epochs, since the policy takes one step per rollout; "
        "clip_range: unknown key, leave it out, since one step per rollout has no ratio to clip; "
        "gama: unknown key, did you mean gamma?"
    )


@pytest.mark.parametrize("algo", ["a2c", "ppo", "trpo"])
def test_every_argument_of_the_neighbours_is_known_or_explained(algo):
    theirs = set(inspect.signature(ALGOS[algo]).parameters) - {"_init_setup_model"}
    ours = set(inspect.signature(REINFORCE).parameters)
    assert theirs - ours <= set(ELSEWHERE)
    assert not ours & set(ELSEWHERE)
    page = (Path(__file__).parents[2] / "docs/zoo.md").read_text()
    table = page[page.index("| A2C, PPO or TRPO | here |") :].split("\n\n")[0]
    assert all(f"`{name}`" in table for name in theirs - ours)
    # Whatever an explanation names exists
    names = {name for text in ELSEWHERE.values() for name in re.findall(r"here (\w+)", text)}
    assert names <= ours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CartPole-v1: {policy: MlpPolicy, n_timesteps: 9, gama: 1.0}", "config.yml, CartPole-v1, gama: unknown key"),
        ("default: {policy: MlpPolicy, n_timesteps: 9, verbose: 1}", "config.yml, CartPole-v1, verbose: is set by"),
        ("default: {policy: MlpPolicy}", "config.yml, CartPole-v1, n_timesteps: missing$"),
        ("default: {policy: MlpPolicy, n_timesteps: 9, gamma: 2.0}", "config.yml, CartPole-v1: gamma must be in"),
        ("Acrobot-v1: {policy: MlpPolicy, n_timesteps: 9}", "config.yml, CartPole-v1: .*Hyperparameters not found"),
        ("- CartPole-v1", "config.yml, CartPole-v1: cannot be set up as asked: AttributeError"),
        ("default: 5", "config.yml, CartPole-v1: cannot be set up as asked: TypeError"),
        ("{", "config.yml, CartPole-v1: cannot be set up as asked: ParserError"),
    ],
)
def test_a_wrong_file_stops_before_a_run_folder_is_made(tmp_path, text, message):
    manager = make_manager(tmp_path / "logs", config=write_config(tmp_path, text))
    with pytest.raises(UserError, match=message):
        manager.setup_experiment()
    assert not (tmp_path / "logs").exists()


def test_a_short_name_is_that_of_a_file_of_this_package(tmp_path):
    manager = make_manager(tmp_path, config="adam")
    assert Path(manager.config) == hyperparams_path().with_name("reinforce_adam.yml")
    hyperparams, _ = manager.read_hyperparameters()
    assert hyperparams == yaml.safe_load(FILES[1].read_text())["CartPole-v1"]
    # PPO has no such file
    register()
    other = ExperimentManager(argparse.Namespace(), "ppo", "CartPole-v1", str(tmp_path), config="adam")
    with pytest.raises(UserError, match=r"adam, CartPole-v1: .*No module named 'adam'"):
        other.setup_experiment()


@pytest.mark.parametrize(
    ("overrides", "key"), [({"gama": 1.0}, "gama: unknown"), ({"policy_kwargs": "a"}, "policy_kwargs: 'a' is")]
)
def test_an_override_is_not_blamed_on_the_file_alone(tmp_path, overrides, key):
    config = write_config(tmp_path, "CartPole-v1: {policy: MlpPolicy, n_timesteps: 9}")
    with pytest.raises(UserError, match=f"config.yml with --hyperparams, CartPole-v1, {key}"):
        make_manager(tmp_path, config=config, hyperparams=overrides).setup_experiment()


def test_a_value_that_the_constructor_refuses_is_not_blamed_on_the_file_alone(tmp_path):
    with pytest.raises(UserError, match=r"reinforce\.yml with --hyperparams, CartPole-v1: gamma must be in"):
        make_manager(tmp_path, hyperparams={"gamma": 2.0}).setup_experiment()


@pytest.mark.parametrize(
    ("entry", "overrides", "idle"),
    [
        ("natural_gradient: true, critic_learning_rate: 0.01", {"learning_rate": 0.5}, {"learning_rate"}),
        ("natural_gradient: true", {"learning_rate": 0.5}, set()),
        ("natural_gradient: false", {"learning_rate": 0.5}, set()),
        ("learning_rate: 0.5", {"natural_gradient": True, "critic_learning_rate": 0.1}, set()),
        (
            "natural_gradient: true, baseline: mean",
            {"learning_rate": 0.5, "max_grad_norm": 1.0},
            {"learning_rate", "max_grad_norm"},
        ),
        ("natural_gradient: true", {"max_grad_norm": 1.0}, set()),
        ("baseline: null", {"vf_coef": 1.0, "critic_epochs": 7, "ent_coef": 0.1}, {"vf_coef", "critic_epochs"}),
        ("baseline: mean", {"baseline": "value", "critic_epochs": 7}, set()),
        ("return_type: episode", {"discounted_weighting": True}, {"discounted_weighting"}),
        ("gamma: 0.9", {"discounted_weighting": True, "sde_sample_freq": 4}, {"sde_sample_freq"}),
        ("gamma: 1.0", {"discounted_weighting": True}, {"discounted_weighting"}),
    ],
)
def test_an_override_without_effect_is_said_and_has_none(tmp_path, capsys, entry, overrides, idle):
    config = write_config(tmp_path, f"Pendulum-v1: {{policy: MlpPolicy, n_timesteps: 9, n_envs: 2, n_steps: 8, {entry}}}")
    parameters = {}
    for hyperparams in (overrides, {key: value for key, value in overrides.items() if key not in idle}):
        manager = make_manager(tmp_path, "Pendulum-v1", config=config, hyperparams=hyperparams, n_timesteps=400)
        model, _ = manager.setup_experiment()
        output = capsys.readouterr().out
        said = set(re.findall(r"^(\w+)=.* changes nothing on Pendulum-v1: ", output, re.MULTILINE))
        assert said == (idle if hyperparams is overrides else set())
        if idle:
            model.learn(400)
            parameters[len(parameters)] = torch.cat([p.detach().flatten() for p in model.policy.parameters()])
    if idle:
        assert torch.equal(parameters[0], parameters[1])


def test_the_policy_of_a_loaded_agent_is_not_changed_silently(tmp_path, capsys):
    manager = make_manager(tmp_path)
    model, _ = manager.setup_experiment()
    model.save(tmp_path / "agent.zip")
    hyperparams = {"policy_kwargs": {"net_arch": [3]}, "gamma": 0.5}
    continued = make_manager(tmp_path, trained_agent=str(tmp_path / "agent.zip"), hyperparams=hyperparams)
    capsys.readouterr()
    continued.setup_experiment()
    notes = [line for line in capsys.readouterr().out.splitlines() if "changes nothing" in line]
    assert notes == ["policy_kwargs={'net_arch': [3]} changes nothing on CartPole-v1: the loaded agent keeps its policy"]


def test_an_environment_without_an_entry_uses_the_default_and_says_so(tmp_path, capsys):
    hyperparams, _ = make_manager(tmp_path, env_id="sb3_reinforce/DiamondHill-v0").read_hyperparameters()
    assert hyperparams == ENTRIES["default"]
    assert "Using 'default' hyperparameters" in capsys.readouterr().out


# What a file may make RL Zoo run


@pytest.mark.parametrize(
    "expression",
    [
        "dict(net_arch=[64, 64], activation_fn=nn.ReLU, log_std_init=-2.0)",
        "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5, betas=(0.9, 0.999)))",
        "{'a': [2 * 32, 7 // 2, 7 % 4], 'b': 1 - 1 / 128, 'c': th.optim.SGD, 'd': True, 'e': tuple([1]), 'f': None}",
        "HerReplayBuffer",
        "dict([('a', list((1, 2))), ('b', 1e999)])",
        " dict(\n  features_extractor_class=th.nn.Linear,\n)",
    ],
)
def test_what_hyperparameters_need_is_evaluated_as_rl_zoo_does(expression):
    assert evaluate(expression) == eval(expression.strip(), vars(rl_zoo3.exp_manager))


def test_classes_of_the_known_packages_have_their_full_names():
    classes = [CombinedExtractor, RecurrentActorCriticPolicy, MlpPolicy, nn.Tanh]
    assert evaluate(f"[{', '.join(f'{cls.__module__}.{cls.__name__}' for cls in classes)}]") == classes


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("dict(a=__import__('os').system('touch ran'))", "__import__('os').system('touch ran')"),
        ("dict(a=nn.ReLU())", "nn.ReLU()"),
        ("th.hub.load('x', 'y')", "th.hub.load('x', 'y')"),
        ("dict(features_extractor_class=th.hub.load)", "th.hub.load"),
        ("dict(a=torch.utils.cpp_extension.load_inline)", "torch.utils.cpp_extension.load_inline"),
        ("dict(a=nn.init.orthogonal_)", "nn.init.orthogonal_"),
        ("dict(a=stable_baselines3.common.env_util.make_vec_env)", "stable_baselines3.common.env_util.make_vec_env"),
        ("dict(a=th.os)", "th.os"),
        ("dict(a=th.Tensor)", "th.Tensor"),
        ("dict(a=gym.Env)", "gym.Env"),
        ("dict(a=os)", "os"),
        ("importlib.import_module", "importlib.import_module"),
        ("dict(a=eval)", "eval"),
        ("[x for x in (1,)]", "[x for x in (1,)]"),
        ("(lambda: 1)()", "(lambda: 1)()"),
        ("().__class__", "().__class__"),
        ("nn.ReLU.__base__", "nn.ReLU.__base__"),
        ("nn.ReLU.forward", "nn.ReLU.forward"),
        ("'a'.join(['b'])", "'a'.join(['b'])"),
        ("f'{1}'", "f'{1}'"),
        ("dict(a=[1][0])", "[1][0]"),
        ("dict(a=(b := 1))", "(b := 1)"),
        ("dict(list(print(1)))", "print(1)"),
        ("dict(*print(1))", "*print(1)"),
        ("dict(**print(1))", "dict(**print(1))"),
        ("{**print(1)}", "{**print(1)}"),
        ("dict", "dict"),
        ("1 if True else 2", "1 if True else 2"),
        # What would never end, or fill the memory
        ("dict(a=9**9**9)", "9 ** 9 ** 9"),
        ("1 << 10**10", "1 << 10 ** 10"),
        ("[64] * 2", "[64] * 2"),
        ("[0] * 10000000000", "[0] * 10000000000"),
        ("10000000000 * 'a'", "10000000000 * 'a'"),
        ("10000000000 * (True, )", "10000000000 * (True,)"),
        ("'%10000000000d' % 1", "'%10000000000d' % 1"),
    ],
)
def test_nothing_else_is_evaluated(expression, part):
    with pytest.raises(
        UserError, match=f"^{re.escape(f'{part!r} is not evaluated: only literals, arithmetic without powers')}"
    ):
        evaluate(expression)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("nn.Relu", "did you mean nn.ReLU?"), ("RMSProp", "did you mean RMSpropTFLike?"), ("np.inf", "and sb3_reinforce")],
)
def test_a_misspelt_class_is_named(name, hint):
    with pytest.raises(UserError, match=f"{re.escape(hint)}$"):
        evaluate(f"dict(a={name})")


@pytest.mark.parametrize(
    "expression",
    ["", "dict(", "a = 1", "(" * 10_000 + ")" * 10_000, "-" * 50_000 + "1", "1\0", "1 / 0", "dict([1])", "{[]: 1}"],
)
def test_what_is_no_expression_is_refused(expression):
    with pytest.raises(UserError, match="cannot be evaluated") as error_info:
        evaluate(expression)
    assert len(str(error_info.value)) < 300


def test_all_files_of_rl_zoo_pass():
    paths = [hyperparams_path(), *(Path(rl_zoo3.__file__).parent / "hyperparams").glob("*.yml")]
    assert len(paths) > 10
    for path in paths:
        for entry in yaml.safe_load(path.read_text()).values():
            entry = {key: value for key, value in entry.items() if key not in IMPORTED}
            evaluated = evaluate_entry(entry, path.name)
            for key in set(EXPRESSIONS) & entry.keys():
                is_text = isinstance(entry[key], str)
                assert evaluated[key] == (eval(entry[key].strip(), vars(rl_zoo3.exp_manager)) if is_text else entry[key])


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("callback", [{"os.system": {"command": "touch ran"}}], "os.system is no class derived from stable_baselines3"),
        ("callback", {"yaml.unsafe_load": {"stream": "!!python/object/apply:os.getcwd []"}}, "yaml.unsafe_load is no class"),
        ("callback", "subprocess.Popen", "subprocess.Popen is no class derived from stable_baselines3.common.callbacks"),
        ("callback", "no_such_module.Callback", "no_such_module.Callback cannot be imported: No module named"),
        ("callback", "stable_baselines3.common.callbacks.NoCallback", "stable_baselines3.common.callbacks.NoCallback is no"),
        (
            "env_wrapper",
            "gymnasium.wrappers.TimeLimits",
            "gymnasium.wrappers.TimeLimits is no class derived from gymnasium.core.Wrapper, did you mean TimeLimit?",
        ),
        ("callback", "NoModule", "NoModule must be named with its module"),
        ("callback", ".os.system", ".os.system must be named with its module"),
        ("callback", 5, "5 is no class"),
        ("callback", "stable_baselines3.common.monitor.Monitor", "stable_baselines3.common.monitor.Monitor is no class"),
        ("env_wrapper", ["gymnasium.wrappers.FlattenObservation", "subprocess.run"], "subprocess.run is no class"),
        ("env_wrapper", "torch.hub.load", "torch.hub.load is no class derived from gymnasium.core.Wrapper"),
        ("vec_env_wrapper", {"torch.utils.cpp_extension.load_inline": {}}, "torch.utils.cpp_extension.load_inline is no"),
        ("vec_env_wrapper", "gymnasium.wrappers.FlattenObservation", "gymnasium.wrappers.FlattenObservation is no class"),
        ("policy", "builtins.exec", "builtins.exec is no class derived from stable_baselines3.common.policies.BasePolicy"),
        ("policy", None, "None is no class"),
        ("replay_buffer_kwargs", "dict(a=print())", "'print()' is not evaluated"),
    ],
)
def test_what_is_imported_is_what_it_should_be(key, value, problem):
    with pytest.raises(UserError, match=re.escape(f"mine.yml, CartPole-v1, {key}: {problem}")):
        evaluate_entry({key: value}, "mine.yml, CartPole-v1")


def test_wrappers_and_callbacks_are_accepted():
    callback = {"stable_baselines3.common.callbacks.CheckpointCallback": {"save_freq": 10, "save_path": "x"}}
    wrapper = ["rl_zoo3.wrappers.TimeFeatureWrapper", {"gymnasium.wrappers.FlattenObservation": {}}]
    entry = {"callback": [callback], "env_wrapper": wrapper, "vec_env_wrapper": None, "policy": "MlpPolicy"}
    assert evaluate_entry(entry, "") == entry
    # A configuration in Python holds the things themselves
    for entry in ({"callback": CheckpointCallback(10, "x")}, {"env_wrapper": [FlattenObservation]}, {"policy": MlpPolicy}):
        assert evaluate_entry(entry, "") == entry


# Time limits


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "expected"),
    [
        ("CartPole-v1", {}, False),
        ("CartPole-v1", {"max_episode_steps": -1}, True),
        ("CliffWalking-v1", {}, True),
        ("CliffWalking-v1", {"max_episode_steps": 5}, False),
        ("PongNoFrameskip-v4", {}, False),
        ("PongNoFrameskip-v4", {"max_num_frames_per_episode": None}, True),
    ],
)
def test_what_bounds_an_episode(env_id, env_kwargs, expected):
    assert lacks_time_limit(env_id, env_kwargs) == expected


def count_steps(env) -> int:
    """Length of an episode that only its time limit ends: up, against the wall."""
    env.reset()
    for steps in itertools.count(1):
        _, _, dones, infos = env.step(np.zeros(env.num_envs, dtype=int))
        if dones[0]:
            assert infos[0]["TimeLimit.truncated"]
            return steps


@pytest.mark.parametrize("vec_env_type", ["dummy", "envpool"])
def test_evaluations_end_where_the_environment_has_no_time_limit(tmp_path, capsys, vec_env_type):
    if vec_env_type == "envpool" and sys.version_info < (3, 11):
        pytest.skip("EnvPool has no wheels for this Python")
    engine = {"use_envpool": True} if vec_env_type == "envpool" else {"vec_env_type": vec_env_type}
    manager = make_manager(tmp_path, "CliffWalking-v1", **engine)
    lengths = []
    for _ in range(2):
        env = manager.create_envs(1, eval_env=True)
        lengths.append(count_steps(env))
        env.close()
    assert lengths == [10_000, 10_000]
    assert capsys.readouterr().out.count("evaluation episodes end after 10,000 steps at the latest") == 1
    # Training is not cut by the evaluation's limit
    assert manager.env_kwargs == {}


@pytest.mark.parametrize("vec_env_type", ["dummy", "subproc"])
def test_a_time_limit_is_mentioned_when_it_ends_an_episode(tmp_path, capsys, vec_env_type):
    manager = make_manager(tmp_path, "CliffWalking-v1", vec_env_type=vec_env_type, max_episode_steps=20)
    env = manager.create_envs(1, eval_env=True)
    env.reset()
    # Off the cliff to the goal: up, eleven times to the right, down
    for action in (0, *[1] * 11, 2):
        _, _, dones, _ = env.step(np.array([action]))
    assert dones[0]
    assert "time limit" not in capsys.readouterr().out
    assert count_steps(env) == 20
    assert "CliffWalking-v1 is registered without a time limit: evaluation episodes end after 20" in capsys.readouterr().out
    env.close()


def test_a_time_limit_of_its_own_is_not_overruled(tmp_path):
    with pytest.raises(UserError, match="--max-episode-steps: CartPole-v1 has a time limit of its own"):
        make_manager(tmp_path, max_episode_steps=7).setup_experiment()
    env = make_manager(tmp_path).create_envs(1, eval_env=True)
    assert env.get_attr("_max_episode_steps") == [500]


# Run folders


def test_runs_that_start_together_have_folders_of_their_own(tmp_path):
    managers = [make_manager(tmp_path) for _ in range(3)]
    assert len({manager.save_path for manager in managers}) == 1
    for manager in managers:
        manager.create_log_folder()
    assert [Path(manager.params_path).relative_to(tmp_path).as_posix() for manager in managers] == [
        f"reinforce/CartPole-v1_{number}/CartPole-v1" for number in (1, 2, 3)
    ]
    assert all(Path(manager.params_path).is_dir() for manager in managers)


# EnvPool


@pytest.fixture
def envpool_or_stand_in(monkeypatch):
    """EnvPool, or where it has no wheels an engine with the same signature."""
    if sys.version_info < (3, 11):
        monkeypatch.setattr(vec_env, "make_envpool_vec_env", vec_env.make_gymnasium_vec_env)


@pytest.mark.usefixtures("envpool_or_stand_in")
def test_envpool_steps_the_environments_and_writes_the_monitor_file(tmp_path):
    manager = make_manager(tmp_path, n_timesteps=400, eval_freq=200, n_eval_episodes=1, use_envpool=True)
    model, _ = manager.setup_experiment()
    manager.learn(model)
    assert isinstance(model.env.unwrapped, EngineVecEnv)
    assert isinstance(model.env, VecMonitor)
    assert len((Path(manager.save_path) / "0.monitor.csv").read_text().splitlines()) > 5
    assert np.load(Path(manager.save_path) / "evaluations.npz")["results"].shape[0] >= 2
    assert "envpool" in (Path(manager.params_path) / "args.yml").read_text()


def test_envpool_refuses_wrappers_of_single_environments(tmp_path):
    manager = make_manager(tmp_path, use_envpool=True, hyperparams={"env_wrapper": "gymnasium.wrappers.FlattenObservation"})
    with pytest.raises(UserError, match="CartPole-v1, env_wrapper: EnvPool"):
        manager.setup_experiment()


# Search


@pytest.mark.parametrize("n_actions", [0, 2])
def test_a_stored_trial_gives_back_what_was_sampled(n_actions):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen, averagings = set(), set()
    for _ in range(20):
        trial = study.ask()
        sampled = sample_reinforce_params(trial, n_actions, 8, {})
        converted = convert_reinforce_params(trial.params)
        schedule, rate = sampled.pop("learning_rate"), converted.pop("learning_rate")
        decays = isinstance(rate, str)
        seen.add(decays)
        assert sampled == converted
        assert schedule(1.0) == (float(rate.removeprefix("lin_")) if decays else rate)
        assert schedule(0.0) == (0.0 if decays else rate)
        assert 3e-4 <= schedule(1.0) <= 3e-2
        assert sampled["gae_lambda"] == 1.0
        assert not sampled["natural_gradient"]
        assert "target_kl" not in sampled
        averagings.add(sampled["policy_averaging"])
        assert np.log2(sampled["n_steps"]).is_integer()
        assert ("log_std_init" in sampled["policy_kwargs"]) == (n_actions > 0)
        REINFORCE(env=AnyEnv("MlpPolicy", n_actions == 0), policy="MlpPolicy", learning_rate=schedule, device="cpu", **sampled)
    assert seen == {True, False}
    assert averagings == {None, 0.8, 0.9, 0.95}
    # On images the critic needs layers of its own, since it leaves shared ones alone
    model = REINFORCE("CnnPolicy", AnyEnv("CnnPolicy", n_actions == 0), device="cpu", policy_kwargs=sampled["policy_kwargs"])
    assert not model.policy.share_features_extractor


def test_a_search_of_a_natural_step_chooses_what_that_uses(tmp_path, recwarn):
    params = {"natural_gradient": True, "learning_rate": 0.1, "policy_averaging": 0.99}
    manager, study = search(tmp_path, None, hyperparams=params)
    for trial in study.trials:
        assert 0.002 <= trial.params["target_kl"] <= 0.05
        assert 0.01 <= trial.params["cg_damping"] <= 1.0
        assert not {"learning_rate", "lr_schedule", "natural_gradient"} & set(trial.params)
    best = yaml.safe_load(Path(manager.save_path, "reinforce.yml").read_text())["Pendulum-v1"]
    assert best["natural_gradient"]
    for name in ("target_kl", "cg_damping", "critic_learning_rate", "policy_averaging"):
        assert best[name] == study.best_params[name]
    config = f"{manager.save_path}/reinforce.yml"
    model, _ = make_manager(tmp_path, env_id="Pendulum-v1", config=config).setup_experiment()
    assert model.natural_gradient
    assert model.target_kl == best["target_kl"]
    assert not [warning for warning in recwarn if "no effect" in str(warning.message)]


def optimize(manager: ExperimentManager) -> optuna.Study:
    """Search, and return the study that RL Zoo asked Optuna for."""
    studies, create_study = [], optuna.create_study
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna, "create_study", lambda **kwargs: (studies.append(create_study(**kwargs)), studies[-1])[1])
        assert manager.setup_experiment() is None
        manager.hyperparameters_optimization()
    (study,) = studies
    return study


def search(folder: Path, storage: str | None, **kwargs) -> tuple[ExperimentManager, optuna.Study]:
    manager = make_manager(
        folder,
        env_id="Pendulum-v1",
        n_timesteps=200,
        optimize_hyperparameters=True,
        n_trials=2,
        n_eval_episodes=1,
        sampler="random",
        pruner="none",
        storage=storage,
        study_name=None if storage is None else "study",
        no_optim_plots=True,
        **kwargs,
    )
    return manager, optimize(manager)


@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "{}/study.log"])
def test_searches_share_a_study_and_write_its_best_trial(tmp_path, storage):
    storage = storage.format(tmp_path)
    search(tmp_path / "logs", storage)
    _, study = search(tmp_path / "logs", storage)
    config = tmp_path / "logs/reinforce/Pendulum-v1_optimize_2/reinforce.yml"
    best = yaml.safe_load(config.read_text())["Pendulum-v1"]
    assert len(study.trials) == 4
    assert best["critic_learning_rate"] == study.best_params["critic_learning_rate"]
    assert best["n_timesteps"] == ENTRIES["Pendulum-v1"]["n_timesteps"]

    trained = make_manager(tmp_path / "logs", env_id="Pendulum-v1", config=str(config), n_timesteps=200)
    assert trained.save_path.endswith("/Pendulum-v1_1")
    model, _ = trained.setup_experiment()
    trained.learn(model)
    assert model.gamma == 1.0 - study.best_params["one_minus_gamma"]
    assert model.policy_kwargs["log_std_init"] == study.best_params["log_std_init"]


def test_a_study_that_is_complete_already_still_gives_its_best_trial(tmp_path):
    storage = f"{tmp_path}/study.log"
    first, _ = search(tmp_path / "logs", storage)
    second, study = search(tmp_path / "logs", storage, max_total_trials=2)
    assert len(study.trials) == 2
    configs = [Path(manager.save_path, "reinforce.yml").read_text() for manager in (first, second)]
    assert configs[0] == configs[1]


def test_a_search_overrules_the_budget_of_the_file(tmp_path):
    _, study = search(tmp_path, None, hyperparams={"n_episodes": 2, "n_steps": None})
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 2


def test_a_search_without_a_completed_trial_says_so(tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        REINFORCE("MlpPolicy", "CartPole-v1", n_steps=-1)

    def prune(*args, **kwargs):
        raise optuna.TrialPruned

    for learn in (diverge, prune):
        monkeypatch.setattr(REINFORCE, "learn", learn)
        with pytest.raises(UserError, match="no trial was completed"):
            search(tmp_path, None)


def test_a_search_in_which_code_of_the_user_fails_says_where(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("of the user")

    monkeypatch.setattr(REINFORCE, "learn", fail)
    with pytest.raises(ValueError, match="of the user"):
        search(tmp_path, None)


@pytest.fixture
def short_rollouts(monkeypatch):
    """A search space of two algorithms in which a few hundred steps are several updates, and none overshoots them by far."""
    register()
    for algo in ("reinforce", "a2c"):

        def sample(trial, *args):
            return {"n_steps": 8, "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.02)}

        monkeypatch.setitem(HYPERPARAMS_SAMPLER, algo, sample)
        monkeypatch.setitem(HYPERPARAMS_CONVERTER, algo, lambda params: {"n_steps": 8, **params})


def seeded_search(
    folder: Path, algo: str = "reinforce", env_id: str = "CartPole-v1", **kwargs
) -> tuple[ExperimentManager, optuna.Study]:
    kwargs = {"n_trials": 1, "n_timesteps": 600, "seed": 5, "seeds_per_trial": 2, "verbose": 0, "sampler": "random", **kwargs}
    options = {"optimize_hyperparameters": True, "no_optim_plots": True, "n_eval_episodes": 2, "n_evaluations": 2}
    manager = ExperimentManager(argparse.Namespace(), algo, env_id, str(folder), **options, **kwargs)
    return manager, optimize(manager)


def refused_search(folder: Path, storage: str, algo: str = "reinforce", env_id: str = "Pendulum-v1", **kwargs) -> str:
    """Search in a study that has other trials, and return what is said."""
    with pytest.raises(UserError) as error_info:
        kwargs = {"n_timesteps": 20, **kwargs}
        seeded_search(folder, algo, env_id, seeds_per_trial=1, storage=storage, study_name="study", **kwargs)
    assert not folder.exists()
    return str(error_info.value)


@pytest.mark.usefixtures("short_rollouts")
def test_a_study_of_another_environment_or_algorithm_is_refused(tmp_path):
    shared = {"storage": f"{tmp_path}/study.log", "study_name": "study", "seeds_per_trial": 1, "n_timesteps": 20}
    seeded_search(tmp_path / "logs", **shared)
    refusal = "--study-name study: the study has trials of 20 steps of reinforce on CartPole-v1, not of {}. Choose another"
    cases = [
        ({}, "20 steps of reinforce on Pendulum-v1"),
        ({"algo": "ppo"}, "20 steps of ppo on Pendulum-v1"),
        ({"algo": "a2c", "env_id": "CartPole-v1"}, "20 steps of a2c on CartPole-v1"),
        ({"env_id": "CartPole-v1", "env_kwargs": {"x": 1, "a": "b"}}, "20 steps of reinforce on CartPole-v1 with a='b', x=1"),
        ({"env_id": "CartPole-v1", "eval_env_kwargs": {"x": 1}}, "20 steps of reinforce on CartPole-v1 evaluated with x=1"),
        # Where nothing would be left to do but to write the best trial
        ({"max_total_trials": 1}, "20 steps of reinforce on Pendulum-v1"),
        ({"max_total_trials": 1, "env_id": "CartPole-v1", "n_timesteps": 30}, "30 steps of reinforce on CartPole-v1"),
    ]
    for kwargs, task in cases:
        assert refused_search(tmp_path / "others", shared["storage"], **kwargs) == f"{refusal.format(task)} --study-name"


@pytest.mark.usefixtures("short_rollouts")
def test_a_study_of_another_program_is_refused_once_it_has_a_trial(tmp_path):
    storage = f"{tmp_path}/study.log"
    backend = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    study = optuna.create_study(storage=backend, study_name="study", direction="maximize")
    study.enqueue_trial({"learning_rate": 0.015})
    seeded_search(tmp_path / "logs", storage=storage, study_name="study", seeds_per_trial=1, n_timesteps=20)
    assert [trial.params for trial in study.trials] == [{"learning_rate": 0.015}]
    study.add_trial(optuna.trial.create_trial(value=1e9))
    message = refused_search(tmp_path / "others", storage, env_id="CartPole-v1")
    assert "has trials of a task that another program did not note, not of 20 steps of reinforce on CartPole-v1" in message


@pytest.mark.usefixtures("short_rollouts")
def test_of_two_searches_that_begin_a_study_together_the_first_trial_decides(tmp_path, monkeypatch):
    storage, learn, refusals = f"{tmp_path}/study.log", REINFORCE.learn, []
    options = {"optimize_hyperparameters": True, "no_optim_plots": True, "storage": storage, "study_name": "study", "seed": 1}

    def search_on(env_id):
        manager = ExperimentManager(argparse.Namespace(), "reinforce", env_id, str(tmp_path), n_timesteps=20, **options)
        manager.setup_experiment()
        manager.hyperparameters_optimization()

    def learn_while_another_begins(*args, **kwargs):
        monkeypatch.setattr(REINFORCE, "learn", learn)
        with pytest.raises(UserError) as error_info:
            search_on("Pendulum-v1")
        refusals.append(str(error_info.value))
        return learn(*args, **kwargs)

    monkeypatch.setattr(REINFORCE, "learn", learn_while_another_begins)
    search_on("CartPole-v1")
    assert "has trials of 20 steps of reinforce on CartPole-v1, not of 20 steps of reinforce on Pendulum-v1" in refusals[0]
    backend = optuna.storages.journal.JournalFileBackend(storage)
    trials = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend)).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"]
    written = [path.parent.name for path in tmp_path.glob("reinforce/*/reinforce.yml")]
    assert written == ["CartPole-v1_optimize_1"]


@pytest.mark.usefixtures("short_rollouts")
@pytest.mark.parametrize("algo", ["reinforce", "a2c"])
def test_the_value_of_a_trial_is_the_mean_of_trainings_with_its_seeds(tmp_path, capsys, monkeypatch, algo):
    _, study = seeded_search(tmp_path, algo, optimization_log_path=str(tmp_path / "trials"))
    assert "trained with the seeds 5, 6" in capsys.readouterr().out
    trial = study.best_trial
    assert trial.user_attrs["seeds"] == [5, 6]
    values = trial.user_attrs["values"]
    assert trial.value == np.mean(values)
    assert values[0] != values[1]
    # After every evaluation of every seed, the mean over seeds so far
    first, second = (
        np.load(tmp_path / f"trials/seed_{seed}/trial_0/evaluations.npz")["results"].mean(axis=1) for seed in (5, 6)
    )
    assert trial.intermediate_values == {
        **{1: first[0], 2: first[1]},
        **{3: (values[0] + second[0]) / 2, 4: (values[0] + second[1]) / 2},
    }
    # Said seeds are used seeds: what comes before does not matter
    monkeypatch.setattr(optuna.samplers.RandomSampler, "sample_independent", lambda *args: trial.params["learning_rate"])
    again = seeded_search(tmp_path, algo, seed=6)[1].best_trial
    assert again.params == trial.params
    assert again.user_attrs["values"][0] == values[1]


@pytest.mark.usefixtures("short_rollouts")
def test_evaluations_end_with_every_seed_of_every_trial(tmp_path, monkeypatch, capsys):
    given, create_envs = [], rl_zoo3.exp_manager.ExperimentManager.create_envs

    def note(self, n_envs, eval_env=False, no_log=False):
        if eval_env:
            given.append(self.eval_env_kwargs)
            if not self.eval_env_kwargs:
                raise RuntimeError("An untrained policy may walk against the wall for ever")
        return create_envs(self, n_envs, eval_env, no_log)

    monkeypatch.setattr(rl_zoo3.exp_manager.ExperimentManager, "create_envs", note)
    # A2C, whose training ends there
    seeded_search(tmp_path, "a2c", env_id="CliffWalking-v1", n_trials=2, max_episode_steps=20, n_timesteps=20)
    assert given == [{"max_episode_steps": 20}] * 4
    assert capsys.readouterr().out.count("registered without a time limit") == 1


class PruneAt(optuna.pruners.BasePruner):
    """Prunes every trial at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step >= self.step


@pytest.mark.usefixtures("short_rollouts")
def test_a_trial_is_pruned_before_its_last_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(ExperimentManager, "_create_pruner", lambda manager, method: PruneAt(3))
    storage = f"{tmp_path}/study.log"
    with pytest.raises(UserError, match="no trial was completed"):
        seeded_search(tmp_path, seeds_per_trial=3, storage=storage, study_name="study")
    backend = optuna.storages.journal.JournalFileBackend(storage)
    (trial,) = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend)).trials
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert len(trial.user_attrs["values"]) == 1
    assert trial.user_attrs["seeds"] == [5, 6, 7]


def test_what_overshoots_a_budget_does_not_take_the_step_of_the_next_seed():
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    first = SeedTrial(trial, [], 2)
    for step, value in enumerate((1.0, 2.0, 9.0), start=1):
        first.report(value, step)
    SeedTrial(trial, [9.0], 2).report(1.0, 1)
    assert study.trials[0].intermediate_values == {1: 1.0, 2: 2.0, 3: 5.0}


@pytest.mark.usefixtures("short_rollouts")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_seeds_of_trials_that_run_in_threads(tmp_path, n_jobs):
    # Which trial ends first is up to the threads, and RL Zoo's pruner may stop the other
    options = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "study", "pruner": "none"}
    manager, study = seeded_search(tmp_path, n_trials=2, n_jobs=n_jobs, **options)
    assert [trial.user_attrs["seeds"] for trial in study.trials] == [[5, 6]] * 2
    assert all(trial.value == np.mean(trial.user_attrs["values"]) for trial in study.trials)
    assert manager.seed == 5
    with pytest.raises(UserError, match="--study-name study: the study has trials with 2 seeds, not 1"):
        seeded_search(tmp_path, seeds_per_trial=1, **options)


class LateStorage(optuna.storages.RDBStorage):
    """A storage whose tables another process creates at the same time."""

    attempts = 0

    def __init__(self, *args, **kwargs):
        LateStorage.attempts += 1
        if LateStorage.attempts == 1:
            raise sqlalchemy.exc.IntegrityError("INSERT INTO alembic_version", {}, Exception("UNIQUE constraint failed"))
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("postgresql+psycopg2://nowhere/study", "must be .*import of psycopg2 halted;"),
        ("FOLDER/file/study.log", "must be .*Not a directory|must be .*File exists"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named(tmp_path, monkeypatch, storage, message):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    (tmp_path / "file").touch()
    storage = storage.replace("FOLDER", str(tmp_path))
    with pytest.raises(UserError, match=f"--storage {re.escape(storage)}: ({message})"):
        search(tmp_path, storage)


def test_two_processes_may_create_the_database_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(LateStorage, "attempts", 0)
    monkeypatch.setattr(optuna.storages, "RDBStorage", LateStorage)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert len(search(tmp_path, f"sqlite:///{tmp_path}/study.db")[1].trials) == 2
    assert LateStorage.attempts > 1


def test_policy_arguments_are_written_as_rl_zoo_reads_them():
    policy_kwargs = {"net_arch": {"pi": [64], "vf": []}, "activation_fn": nn.ReLU, "log_std_init": -1.5, "name": "a'b"}
    assert eval(to_source(policy_kwargs), vars(rl_zoo3.exp_manager)) == policy_kwargs


def test_a_trial_replaces_what_the_entry_has():
    entry = {"policy": "MlpPolicy", "policy_kwargs": "dict(a=1)", "gamma": 0.9}
    assert merge_trial(entry, {"gamma": 0.8, "policy_kwargs": {"b": 2}}) == {
        "policy": "MlpPolicy",
        "policy_kwargs": "dict(b=2)",
        "gamma": 0.8,
    }
    assert merge_trial(entry, {"noise_type": None, "noise_std": 0.1}) == entry
