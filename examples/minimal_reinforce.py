"""
REINFORCE in plain PyTorch: the computation of sb3_reinforce, without the code that makes it fast and general.

``python examples/minimal_reinforce.py`` trains on CartPole-v1. docs/equations.md explains each step, and
tests/test_minimal_example.py shows that ten updates lead to the same parameters as ``sb3_reinforce.REINFORCE``.
"""

import gymnasium as gym
import torch
from torch import nn
from torch.distributions import Categorical

GAMMA = 0.99
LEARNING_RATE = 5e-3
CRITIC_EPOCHS = 3
MAX_GRAD_NORM = 0.5


def make_network(n_inputs, n_outputs):
    """Two hidden layers, as SB3's MlpPolicy has for the policy and for the critic."""
    return nn.Sequential(nn.Linear(n_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_outputs))


def collect_episode(env, policy, seed=None):
    """Act with the policy until the episode ends: observations, actions and rewards of its steps."""
    observations, actions, rewards = [], [], []
    observation, _ = env.reset(seed=seed)
    is_over = False
    while not is_over:
        observations.append(torch.as_tensor(observation, dtype=torch.float32))
        with torch.no_grad():
            actions.append(Categorical(logits=policy(observations[-1])).sample())
        observation, reward, terminated, truncated, _ = env.step(actions[-1].item())
        rewards.append(float(reward))
        is_over = terminated or truncated
    return torch.stack(observations), torch.stack(actions), rewards


def rewards_to_go(rewards):
    """``G_t = r_t + gamma * G_{t+1}``, from the last step to the first."""
    returns, present = [], 0.0
    for reward in reversed(rewards):
        present = reward + GAMMA * present
        returns.append(present)
    return torch.tensor(returns[::-1])


def step(optimizer, parameters, loss):
    """Take one clipped gradient step."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    optimizer.step()


def train(env, policy, critic=None, n_updates=100, n_episodes=8, seed=0):
    """Update the policy, and the critic if there is one, in place; yield the mean return of each update's episodes."""
    policy_optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE, eps=1e-5)
    critic_optimizer = None if critic is None else torch.optim.Adam(critic.parameters(), lr=LEARNING_RATE, eps=1e-5)
    for update in range(n_updates):
        episodes = [collect_episode(env, policy, seed if update == i == 0 else None) for i in range(n_episodes)]
        observations, actions = (torch.cat([episode[i] for episode in episodes]) for i in (0, 1))
        returns = torch.cat([rewards_to_go(rewards) for _, _, rewards in episodes])

        baseline = 0.0 if critic is None else critic(observations).squeeze(1).detach()
        log_probs = Categorical(logits=policy(observations)).log_prob(actions)
        step(policy_optimizer, policy.parameters(), -((returns - baseline) * log_probs).mean())

        for _ in range(0 if critic is None else CRITIC_EPOCHS):
            errors = critic(observations).squeeze(1) - returns
            step(critic_optimizer, critic.parameters(), 0.5 * errors.square().mean())
        yield sum(sum(rewards) for _, _, rewards in episodes) / n_episodes


if __name__ == "__main__":
    torch.manual_seed(0)
    for i, mean_return in enumerate(train(gym.make("CartPole-v1"), make_network(4, 2), make_network(4, 1))):
        print(f"update {i}: mean return {mean_return:.1f}")
