"""The gradient is the policy gradient: every path of DiamondHill, weighted by its probability, through the model's own loss.

A combination of switches is described by the expected gradient that it gives, compared with the gradient g of the
discounted objective (with the entropy in the rewards where ``entropy_in_return`` says so): ``scale`` is its component along
g in units of g, ``off`` the rest in units of g. Exact is (1, 0). ``exactness.csv`` states both for all combinations with a
fixed number of episodes, ``exactness_n_steps.csv`` for budgets of steps; ``python tests/test_exactness.py`` writes them again
from the reference loops, which know nothing of the package's own code.
"""

import csv
import itertools
import pathlib
from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from helpers import ACTION_PROBABILITIES, linear_model, logit_gradient_to_parameters, policy_gradient, recorded_gradient
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce.envs.diamond_hill import DECISION_STATES, Path, enumerate_paths, expected_return_gradient

GAMMA = 0.9
TEMPERATURE = 0.5
TABLE = pathlib.Path(__file__).with_name("exactness.csv")
TABLE_OF_N_STEPS = pathlib.Path(__file__).with_name("exactness_n_steps.csv")
PATHS = enumerate_paths(ACTION_PROBABILITIES)


class Combination(NamedTuple):
    return_type: str
    discounted_weighting: bool
    baseline: str | None
    loss_reduction: str
    entropy_in_return: bool
    n_episodes: int


COMBINATIONS = [
    Combination(*choice)
    for choice in itertools.product(
        ("reward_to_go", "episode"),
        (True, False),
        ("value", "leave_one_out", "time_step", "mean", None),
        ("episode", "step"),
        (False, True),
        (1, 2),
    )
]


def is_unbiased(combination: Combination) -> bool:
    """What the documentation promises for a fixed number of episodes."""
    discounts_from_the_start = combination.discounted_weighting or combination.return_type == "episode"
    return combination.loss_reduction == "episode" and discounts_from_the_start and combination.baseline != "mean"


def exact_gradient(entropy_in_return: bool, gamma: float = GAMMA) -> np.ndarray:
    """The gradient of the objective itself, by differentiating the enumerated expectation."""
    logits = th.tensor(np.log(ACTION_PROBABILITIES), requires_grad=True)
    log_probs = th.log_softmax(logits, dim=1)
    objective = th.zeros((), dtype=th.float64)
    for path in PATHS:
        rows = state_rows(path)
        path_log_probs = log_probs[rows, path.actions]
        probability = path.probability * th.exp(path_log_probs.sum() - path_log_probs.sum().detach())
        rewards = th.as_tensor(path.rewards, dtype=th.float64)
        if entropy_in_return:
            rewards = rewards - TEMPERATURE * path_log_probs
        objective = objective + probability * (rewards * gamma ** th.arange(len(rewards))).sum()
    objective.backward()
    return logit_gradient_to_parameters(logits.grad.numpy())


def state_rows(path: Path) -> list[int]:
    return [next(row for row in range(3) if np.array_equal(DECISION_STATES[row], state)) for state in path.observations]


def reference_gradient(combination: Combination, episodes: tuple[Path, ...], values: np.ndarray) -> np.ndarray:
    """What the combination computes from these episodes, step by step, as its definition says."""
    credited, weights = [], []
    for path in episodes:
        rewards = [float(reward) for reward in path.rewards]
        if combination.entropy_in_return:
            for t, (row, action) in enumerate(zip(state_rows(path), path.actions, strict=True)):
                rewards[t] -= TEMPERATURE * np.log(ACTION_PROBABILITIES[row, action])
        n = len(rewards)
        to_go = [sum(GAMMA ** (k - t) * rewards[k] for k in range(t, n)) for t in range(n)]
        is_to_go = combination.return_type == "reward_to_go"
        credited.append(to_go if is_to_go else [to_go[0]] * n)
        weights.append([GAMMA**t if combination.discounted_weighting and is_to_go else 1.0 for t in range(n)])

    logit_gradient = np.zeros((3, 2))
    for i, path in enumerate(episodes):
        others = [own for j, own in enumerate(credited) if j != i]
        for t, (row, action) in enumerate(zip(state_rows(path), path.actions, strict=True)):
            advantage = credited[i][t] - reference_baseline(combination.baseline, values[row], credited, others, t)
            score = -ACTION_PROBABILITIES[row]
            score[action] += 1.0
            logit_gradient[row] += weights[i][t] * advantage * score
    n_averaged = len(episodes) if combination.loss_reduction == "episode" else sum(map(len, credited))
    return logit_gradient_to_parameters(logit_gradient / n_averaged)


def reference_baseline(baseline: str | None, value: float, everyone: list, others: list, t: int) -> float:
    if baseline == "value":
        return value
    if baseline == "mean":
        return float(np.mean([np.mean(episode) for episode in everyone]))
    if baseline is None or not others:
        return 0.0
    at_same_time = [episode[t] for episode in others if len(episode) > t]
    if baseline == "time_step" and at_same_time:
        return float(np.mean(at_same_time))
    return float(np.mean([np.mean(episode) for episode in others]))


def expectation(gradient_of_episodes, n_episodes: int) -> np.ndarray:
    return sum(
        np.prod([path.probability for path in episodes]) * gradient_of_episodes(episodes)
        for episodes in itertools.product(PATHS, repeat=n_episodes)
    )


def describe(combination: Combination, expected: np.ndarray) -> tuple[float, float]:
    exact = exact_gradient(combination.entropy_in_return)
    scale = expected @ exact / (exact @ exact)
    return float(scale), float(np.linalg.norm(expected - scale * exact) / np.linalg.norm(exact))


def test_the_differentiated_expectation_agrees_with_the_policy_gradient_theorem():
    partials = expected_return_gradient(ACTION_PROBABILITIES, GAMMA)
    logit_gradient = ACTION_PROBABILITIES * (partials - (ACTION_PROBABILITIES * partials).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(exact_gradient(False), logit_gradient_to_parameters(logit_gradient), atol=1e-12)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c)))
@pytest.mark.filterwarnings("ignore:A rollout held a single episode")
def test_expected_gradient_of_every_combination(combination):
    switches = combination._asdict()
    n_episodes = switches.pop("n_episodes")
    ent_coef = TEMPERATURE if combination.entropy_in_return else 0.0
    model = linear_model(gamma=GAMMA, ent_coef=ent_coef, n_steps=100, **switches)
    values = np.zeros(3)
    if combination.baseline == "value":
        with th.no_grad():
            values = model.policy.predict_values(th.as_tensor(DECISION_STATES)).flatten().numpy()
        assert np.ptp(values) > 0.01, "the critic says the same everywhere, which would prove little"

    expected = expectation(lambda episodes: policy_gradient(model, episodes), n_episodes)
    reference = expectation(lambda episodes: reference_gradient(combination, episodes, values), n_episodes)
    np.testing.assert_allclose(expected, reference, atol=1e-6)

    exact = exact_gradient(combination.entropy_in_return)
    if is_unbiased(combination):
        np.testing.assert_allclose(expected, exact, atol=1e-6)
    elif combination.baseline == "mean" and combination.return_type == "episode" and combination.loss_reduction == "episode":
        np.testing.assert_allclose(expected, (1 - 1 / n_episodes) * exact, atol=1e-6)
    else:
        assert np.abs(expected - exact).max() > 1e-3, "documented as biased, but is not"
    if combination.baseline != "value":
        assert read_table()[combination] == pytest.approx(describe(combination, expected), abs=1e-4)


class BudgetOfSteps(NamedTuple):
    n_steps: int
    baseline: str | None


BUDGETS_OF_STEPS = [
    BudgetOfSteps(*choice) for choice in itertools.product((2, 4, 8), (None, "leave_one_out", "time_step", "mean"))
]


def rollouts_of_n_steps(n_steps: int) -> dict[tuple[int, ...], float]:
    """Which paths one environment goes in a rollout, in any order, and how likely: the last one uses up the budget."""
    finished: dict[tuple[int, ...], float] = {}
    running = {(): 1.0}
    while running:
        longer: dict[tuple[int, ...], float] = {}
        for before, probability in running.items():
            for index, path in enumerate(PATHS):
                paths = tuple(sorted((*before, index)))
                is_over = sum(len(PATHS[i].actions) for i in paths) >= n_steps
                found = finished if is_over else longer
                found[paths] = found.get(paths, 0.0) + probability * path.probability
        running = longer
    return finished


def describe_budget(budget: BudgetOfSteps, gradient_of_episodes) -> tuple[float, ...]:
    """Of the expected sum over episodes, by their expected number, and of the expected mean: ``scale`` and ``off`` of each."""
    total, mean, expected_number = np.zeros(6), np.zeros(6), 0.0
    for indices, probability in rollouts_of_n_steps(budget.n_steps).items():
        gradient = gradient_of_episodes(tuple(PATHS[index] for index in indices))
        total += probability * len(indices) * gradient
        mean += probability * gradient
        expected_number += probability * len(indices)
    combination = Combination("reward_to_go", True, budget.baseline, "episode", False, 0)
    return (*describe(combination, total / expected_number), *describe(combination, mean))


@pytest.mark.parametrize("budget", BUDGETS_OF_STEPS, ids=lambda budget: "-".join(map(str, budget)))
@pytest.mark.filterwarnings("ignore:A rollout held a single episode")
def test_expected_gradient_of_a_budget_of_steps(budget):
    switches = {"discounted_weighting": True, "loss_reduction": "episode", "baseline": budget.baseline}
    model = linear_model(gamma=GAMMA, n_steps=budget.n_steps, **switches)
    found = describe_budget(budget, lambda episodes: policy_gradient(model, episodes))
    with TABLE_OF_N_STEPS.open() as file:
        rows = {(row["n_steps"], row["baseline"]): row for row in csv.DictReader(file)}
    row = rows[str(budget.n_steps), str(budget.baseline)]
    assert found == pytest.approx([float(row[name]) for name in ("sum_scale", "sum_off", "mean_scale", "mean_off")], abs=1e-4)
    if budget.baseline is None:
        # Wald: a random number of terms, whose end nothing foresees
        assert found[:2] == pytest.approx((1.0, 0.0), abs=1e-6)


def paths_in(buffer) -> list[Path]:
    """The path of each episode that a rollout holds; none may be cut."""
    batch = buffer.whole_episodes()
    found = []
    for end, length in zip(np.cumsum(batch.episode_lengths), batch.episode_lengths, strict=True):
        actions, rewards = batch.actions[end - length : end, 0].numpy(), batch.rewards[end - length : end]
        (path,) = (p for p in PATHS if np.array_equal(p.actions, actions) and np.array_equal(p.rewards, rewards))
        found.append(path)
    return found


@pytest.mark.parametrize("total_timesteps", [1, 1_000])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_learn_collects_whole_paths_by_their_probabilities_whatever_its_budget(n_envs, total_timesteps):
    """With the table above: the expected gradient of a rollout of ``learn`` is exact, too."""
    n_episodes = 3_000
    env = make_vec_env("sb3_reinforce/DiamondHill-v0", n_envs, seed=1)
    switches = {"baseline": "leave_one_out", "loss_reduction": "episode", "discounted_weighting": True}
    model = linear_model(env, gamma=GAMMA, n_episodes=n_episodes, **switches)
    model.learn(total_timesteps)
    paths = paths_in(model.rollout_buffer)
    assert len(paths) == n_episodes
    for path in PATHS:
        standard_error = np.sqrt(path.probability * (1 - path.probability) / n_episodes)
        share = sum(other is path for other in paths) / n_episodes
        assert share == pytest.approx(path.probability, abs=4 * standard_error)
    combination = Combination("reward_to_go", True, "leave_one_out", "episode", False, n_episodes)
    model.n_episodes = 20
    model.policy.optimizer.recorded.clear()
    model.learn(1)
    episodes = tuple(paths_in(model.rollout_buffer))
    np.testing.assert_allclose(recorded_gradient(model), reference_gradient(combination, episodes, np.zeros(3)), atol=1e-5)


@pytest.mark.parametrize("loss_reduction", ["step", "episode"])
def test_entropy_bonus_in_the_loss_is_the_gradient_of_the_entropy(loss_reduction):
    path = max(PATHS, key=lambda path: len(path.actions))
    with_bonus = linear_model(ent_coef=0.3, loss_reduction=loss_reduction, baseline=None)
    without = linear_model(ent_coef=0.0, loss_reduction=loss_reduction, baseline=None)
    bonus_gradient = policy_gradient(with_bonus, [path]) - policy_gradient(without, [path])

    p = ACTION_PROBABILITIES
    entropy = -(p * np.log(p)).sum(axis=1, keepdims=True)
    logit_gradient = np.zeros((3, 2))
    for row in state_rows(path):
        logit_gradient[row] += 0.3 * (-p * (np.log(p) + entropy))[row]
    n_averaged = len(path.actions) if loss_reduction == "step" else 1
    np.testing.assert_allclose(bonus_gradient, logit_gradient_to_parameters(logit_gradient / n_averaged), atol=1e-6)


@pytest.mark.parametrize("baseline", ["value", "leave_one_out", None])
@pytest.mark.parametrize("entropy_in_return", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 100])
def test_accumulation_changes_nothing(baseline, entropy_in_return, micro_batch_size):
    switches = {"baseline": baseline, "entropy_in_return": entropy_in_return, "ent_coef": 0.1, "normalize_advantage": True}
    whole = linear_model(n_episodes=5, **switches)
    pieces = linear_model(n_episodes=5, micro_batch_size=micro_batch_size, **switches)
    np.testing.assert_allclose(policy_gradient(pieces, PATHS), policy_gradient(whole, PATHS), atol=1e-6)
    for in_pieces, at_once in zip(pieces.policy.optimizer.recorded, whole.policy.optimizer.recorded, strict=True):
        for piece, reference in zip(in_pieces, at_once, strict=True):
            assert (piece is None) == (reference is None)
            if piece is not None:
                np.testing.assert_allclose(piece, reference, atol=1e-5)


def read_table() -> dict[Combination, tuple[float, float]]:
    def parse(word: str) -> bool | str | None:
        return {"True": True, "False": False, "None": None}.get(word, word)

    with TABLE.open() as file:
        rows = csv.DictReader(file)
        return {
            Combination(*(parse(row[field]) for field in Combination._fields[:-1]), int(row["n_episodes"])): (
                float(row["scale"]),
                float(row["off"]),
            )
            for row in rows
        }


def write_table() -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Combination._fields, "unbiased", "scale", "off"])
        for combination in COMBINATIONS:
            if combination.baseline == "value":
                continue  # depends on the critic where it is biased; like None where it is not
            expected = expectation(lambda e, c=combination: reference_gradient(c, e, np.zeros(3)), combination.n_episodes)
            scale, off = describe(combination, expected)
            writer.writerow([*map(str, combination), is_unbiased(combination), f"{scale:.5f}", f"{abs(off):.5f}"])
    with TABLE_OF_N_STEPS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*BudgetOfSteps._fields, "sum_scale", "sum_off", "mean_scale", "mean_off"])
        for budget in BUDGETS_OF_STEPS:
            combination = Combination("reward_to_go", True, budget.baseline, "episode", False, 0)
            found = describe_budget(budget, lambda e, c=combination: reference_gradient(c, e, np.zeros(3)))
            writer.writerow([*map(str, budget), *(f"{number:.5f}" for number in found)])


if __name__ == "__main__":
    write_table()
