"""docs/recipes.md: every call makes the updates of its source, repeated here in plain PyTorch on the same episodes."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn.utils import parameters_to_vector

from sb3_reinforce import REINFORCE

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
#: Updates that are repeated; those of Spinning Up have eighty critic steps each.
N_UPDATES = 3


def recipes():
    """The code of each section, by the section's first word."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    code = {re.match(r"\w+", section)[0]: re.search(r"```python\n(.*?)```", section, re.DOTALL)[1] for section in sections}
    return {name: source.replace("\nmodel.learn", "\n# ") for name, source in code.items()}


def make_model(name):
    """Run the page up to a section, without trainings, and return the model of the section."""
    namespace = {}
    for section, source in recipes().items():
        exec(source, namespace)
        if section == name:
            return namespace["model"]
    raise KeyError(name)


class Episodes(BaseCallback):
    """Notes what each update sees: a list of episodes, each with observations, actions and rewards."""

    def __init__(self):
        super().__init__()
        self.updates = []

    def _on_rollout_start(self):
        self.updates.append([])
        self.running = [[] for _ in range(self.training_env.num_envs)]

    def _on_step(self):
        columns = (self.locals["obs_tensor"], th.as_tensor(self.locals["actions"]), self.locals["rewards"])
        for env, (observation, action, reward) in enumerate(zip(*columns, strict=True)):
            self.running[env].append((observation.clone(), action.clone(), float(reward)))
            if self.locals["dones"][env]:
                self.updates[-1].append([*zip(*self.running[env], strict=True)])
                self.running[env] = []
        return True


def discounted(terms, gamma):
    sums = []
    for term in reversed(terms):
        sums.insert(0, term + gamma * (sums[0] if sums else 0.0))
    return th.tensor(sums)


def standardized_sum(policy, episodes, gamma):
    """The loss of the Hugging Face course and of PyTorch's example."""
    ((observations, actions, rewards),) = episodes
    returns = discounted(rewards, gamma)
    returns = (returns - returns.mean()) / (returns.std() + np.finfo(np.float32).eps.item())
    return sum(-log_prob * ret for log_prob, ret in zip(log_probs_of(policy, observations, actions), returns, strict=True))


def plain_sum(policy, episodes, gamma):
    """The loss of Gymnasium's tutorial."""
    ((observations, actions, rewards),) = episodes
    return -th.sum(log_probs_of(policy, observations, actions) * discounted(rewards, gamma))


def log_probs_of(policy, observations, actions):
    return policy.get_distribution(th.stack(observations)).log_prob(th.stack(actions))


@pytest.mark.parametrize(
    ("name", "loss", "gamma", "optimizer", "n_updates", "tolerance"),
    [
        ("Hugging", standardized_sum, 1.0, lambda parameters: th.optim.Adam(parameters, lr=1e-2), N_UPDATES, 1e-5),
        ("PyTorch", standardized_sum, 0.99, lambda parameters: th.optim.Adam(parameters, lr=1e-2), N_UPDATES, 1e-5),
        # Twenty updates, until the decay of the weights is more than the tolerance
        ("Gymnasium", plain_sum, 0.99, lambda parameters: th.optim.AdamW(parameters, lr=1e-4), 20, 2e-6),
    ],
)
def test_an_update_per_episode(name, loss, gamma, optimizer, n_updates, tolerance):
    model = make_model(name)
    model.set_random_seed(0)
    before = parameters_to_vector(model.policy.parameters()).clone()
    policy, episodes = copy.deepcopy(model.policy), Episodes()
    while model._n_updates < n_updates:
        model.learn(1, callback=episodes, reset_num_timesteps=False)
    stepper = optimizer(policy.parameters())
    for update in episodes.updates:
        stepper.zero_grad()
        loss(policy, update, gamma).backward()
        stepper.step()
    reached = parameters_to_vector(model.policy.parameters())
    assert (reached - before).abs().max() > 1e-4
    th.testing.assert_close(parameters_to_vector(policy.parameters()), reached, atol=tolerance, rtol=0)


def critic_and_actor(policy):
    critic = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    of_critic = {id(parameter) for parameter in critic}
    return critic, [parameter for parameter in policy.parameters() if id(parameter) not in of_critic]


def test_spinning_ups_update():
    model = make_model("Spinning")
    model.set_random_seed(0)
    before = parameters_to_vector(model.policy.parameters()).clone()
    policy, episodes = copy.deepcopy(model.policy), Episodes()
    model.n_steps = 400  # Short for a test; the page has 4,000
    while model._n_updates < N_UPDATES:
        model.learn(1, callback=episodes, reset_num_timesteps=False)
    critic, actor = critic_and_actor(policy)
    pi_optimizer, vf_optimizer = th.optim.Adam(actor, lr=3e-4), th.optim.Adam(critic, lr=1e-3)
    for update in episodes.updates:
        observations = th.cat([th.stack(episode[0]) for episode in update])
        actions = th.cat([th.stack(episode[1]) for episode in update])
        advantages, returns = [], []
        for episode_observations, _, rewards in update:
            values = policy.predict_values(th.stack(episode_observations)).detach().flatten().double().tolist()
            deltas = [r + 0.99 * after - now for r, now, after in zip(rewards, values, [*values[1:], 0.0], strict=True)]
            advantages.append(discounted(deltas, 0.99 * 0.97))
            # As SB3, where Spinning Up has the rewards-to-go: the page says so
            returns.append(advantages[-1] + th.tensor(values))
        advantages, returns = th.cat(advantages), th.cat(returns)
        # Spinning Up divides by n, not n - 1: a factor of 1.001 here, which Adam does not see
        advantages = (advantages - advantages.mean()) / advantages.std(unbiased=False)
        pi_optimizer.zero_grad()
        log_probs = policy.get_distribution(observations).log_prob(actions)
        (-(log_probs * advantages).mean()).backward()
        pi_optimizer.step()
        for _ in range(80):
            vf_optimizer.zero_grad()
            ((policy.predict_values(observations).flatten() - returns) ** 2).mean().backward()
            vf_optimizer.step()
    reached = parameters_to_vector(model.policy.parameters())
    assert (reached - before).abs().max() > 1e-2
    th.testing.assert_close(parameters_to_vector(policy.parameters()), reached, atol=1e-4, rtol=0)


def test_sutton_and_bartos_update():
    model = make_model("Sutton")
    model.set_random_seed(0)
    before = parameters_to_vector(model.policy.parameters()).clone()
    policy, episodes = copy.deepcopy(model.policy), Episodes()
    while model._n_updates < N_UPDATES:
        model.learn(1, callback=episodes, reset_num_timesteps=False)
    critic, actor = critic_and_actor(policy)
    for ((observations, actions, rewards),) in episodes.updates:
        returns = discounted(rewards, 0.99)
        values = policy.predict_values(th.stack(observations)).flatten()
        errors = (returns - values).detach()
        discounts = 0.99 ** th.arange(len(rewards))
        ascent = th.autograd.grad((discounts * errors * log_probs_of(policy, observations, actions)).sum(), actor)
        critic_ascent = th.autograd.grad((errors * values).mean(), critic)
        with th.no_grad():
            for parameter, direction in zip([*actor, *critic], [*ascent, *critic_ascent], strict=True):
                parameter += (2e-4 if any(parameter is p for p in actor) else 2e-3) * direction
    reached = parameters_to_vector(model.policy.parameters())
    assert (reached - before).abs().max() > 1e-3
    th.testing.assert_close(parameters_to_vector(policy.parameters()), reached, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["CleanRL", "A2C"])
def test_settings_alone(name):
    model = make_model(name)
    assert isinstance(model, REINFORCE)
    model.learn(1)
    assert model._n_updates == 1
