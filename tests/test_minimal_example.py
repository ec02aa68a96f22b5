"""``examples/minimal_reinforce.py``, plain PyTorch, reaches the parameters of ``REINFORCE``."""

import ast
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch as th
from torch.nn.utils import parameters_to_vector

from sb3_reinforce import REINFORCE, MlpPolicy

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import minimal_reinforce  # noqa: E402

N_UPDATES, N_EPISODES, SEED = 10, 4, 7


class TorchSampledPolicy(MlpPolicy):
    """Draws from PyTorch's generator, as the example does, because a method on the way to its distribution is overridden."""

    def get_distribution(self, obs):
        return super().get_distribution(obs)


@pytest.mark.parametrize("baseline", [None, "value"])
def test_ten_updates_lead_to_the_same_parameters(baseline):
    model = REINFORCE(
        TorchSampledPolicy,
        gym.make("CartPole-v1"),
        n_episodes=N_EPISODES,
        baseline=baseline,
        bootstrap_at_time_limit=False,
        seed=SEED,
        device="cpu",
    )
    actor = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    critic = [*model.policy.mlp_extractor.value_net, model.policy.value_net] if baseline == "value" else None
    networks = [(actor, minimal_reinforce.make_network(4, 2))]
    if critic is not None:
        networks.append((critic, minimal_reinforce.make_network(4, 1)))
    before = [parameters_to_vector(th.nn.Sequential(*layers).parameters()).clone() for layers, _ in networks]
    for layers, network in networks:
        network.load_state_dict(th.nn.Sequential(*layers).state_dict())

    th.manual_seed(SEED)
    example = minimal_reinforce.train(
        gym.make("CartPole-v1"), *(network for _, network in networks), n_updates=N_UPDATES, n_episodes=N_EPISODES, seed=SEED
    )
    mean_returns = list(example)

    model.set_random_seed(SEED)
    while model._n_updates < N_UPDATES:
        model.learn(1, reset_num_timesteps=False)

    assert len(set(mean_returns)) > 5
    for (layers, network), start in zip(networks, before, strict=True):
        reached = parameters_to_vector(th.nn.Sequential(*layers).parameters())
        assert (reached - start).abs().max() > 0.01
        th.testing.assert_close(parameters_to_vector(network.parameters()), reached, atol=1e-5, rtol=0)


def test_the_example_is_short_and_needs_no_package_of_ours():
    source = (EXAMPLES / "minimal_reinforce.py").read_text()
    assert len(source.splitlines()) <= 80
    modules = [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    assert {module.split(".")[0] for module in modules} == {"gymnasium", "torch"}
