"""Fisher-vector products and conjugate gradients against matrices that are written out."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
    make_proba_distribution,
)

from sb3_reinforce.functional.natural_gradient import conjugate_gradient, fisher_product, flat_gradient, step_of_size
from sb3_reinforce.update.policy_step import mean_divergence

N_STEPS, N_FEATURES = 7, 5


def dense(product, n):
    return th.stack([product(row) for row in th.eye(n, dtype=th.float64)])


class Head:
    """A distribution of SB3 on top of a hidden layer, in float64, and the tensors that its Fisher matrix is made of."""

    def __init__(self, distribution):
        generator = th.Generator().manual_seed(0)
        self.distribution = distribution
        self.hidden = th.nn.Linear(3, N_FEATURES).double()
        self.is_sde = isinstance(distribution, StateDependentNoiseDistribution)
        is_gaussian = isinstance(distribution, DiagGaussianDistribution)
        self.log_std = None
        if self.is_sde:
            self.net, self.log_std = distribution.proba_distribution_net(N_FEATURES, log_std_init=-0.5)
        elif is_gaussian:
            self.net, self.log_std = distribution.proba_distribution_net(N_FEATURES, log_std_init=-0.5)
        else:
            self.net = distribution.proba_distribution_net(N_FEATURES)
        self.net = self.net.double()
        if self.log_std is not None:
            self.log_std = th.nn.Parameter(self.log_std.detach().double())
        self.observations = th.randn(N_STEPS, 3, generator=generator, dtype=th.float64)
        self.parameters = [*self.hidden.parameters(), *self.net.parameters()]
        self.parameters += [] if self.log_std is None else [self.log_std]

    def __call__(self):
        features = th.tanh(self.hidden(self.observations))
        parameters = [self.net(features)]
        parameters += [] if self.log_std is None else [self.log_std]
        parameters += [features] if self.is_sde else []
        return self.distribution.proba_distribution(*parameters)

    def jacobian(self, tensor):
        """Rows: entries of the tensor; columns: parameters."""
        return th.stack([flat_gradient(entry, self.parameters, retain_graph=True) for entry in tensor.flatten()])


def gaussian_fisher(head):
    normal = head().distribution
    variance = normal.variance.detach().flatten()
    mean, std = head.jacobian(normal.mean), head.jacobian(normal.stddev)
    return (mean.T / variance @ mean + 2.0 * std.T / variance @ std) / N_STEPS


def discrete_fisher(head):
    """The mean over steps of the expected outer product of scores, factor by factor."""
    torch_distributions = head().distribution
    torch_distributions = torch_distributions if isinstance(torch_distributions, list) else [torch_distributions]
    total = 0.0
    for factor in torch_distributions:
        support = factor.enumerate_support(expand=True)
        for outcome in support:
            log_prob = factor.log_prob(outcome)
            scores = head.jacobian(log_prob)
            total = total + scores.T * log_prob.detach().exp().flatten() @ scores
    return total / N_STEPS


#: Distribution, its Fisher matrix, and over how many dimensions of an action the divergence is a mean
HEADS = {
    "Gaussian": (lambda: DiagGaussianDistribution(2), gaussian_fisher, 2),
    "squashed": (lambda: SquashedDiagGaussianDistribution(2), gaussian_fisher, 2),
    "gSDE": (lambda: StateDependentNoiseDistribution(2, learn_features=True), gaussian_fisher, 2),
    "Categorical": (lambda: CategoricalDistribution(4), discrete_fisher, 1),
    "MultiCategorical": (lambda: MultiCategoricalDistribution([2, 3]), discrete_fisher, 1),
    "Bernoulli": (lambda: BernoulliDistribution(3), discrete_fisher, 3),
}


@pytest.mark.parametrize("name", HEADS)
def test_fisher_products_are_those_of_the_fisher_matrix(name):
    make_distribution, explicit_fisher, n_dims = HEADS[name]
    th.manual_seed(1)
    head = Head(make_distribution())
    with th.no_grad():
        now = copy.copy(head())
    product = fisher_product(mean_divergence(now, head()), head.parameters)
    n = sum(parameter.numel() for parameter in head.parameters)
    expected = explicit_fisher(head) / n_dims
    assert expected.abs().max() > 0.01
    th.testing.assert_close(dense(product, n), expected, atol=1e-10, rtol=0.0)


def test_every_action_space_has_a_known_fisher_matrix():
    """Whoever adds a space to the class meets this list."""
    for space, name in [
        (spaces.Box(-1, 1, (2,)), "Gaussian"),
        (spaces.Discrete(4), "Categorical"),
        (spaces.MultiDiscrete([2, 3]), "MultiCategorical"),
        (spaces.MultiBinary(3), "Bernoulli"),
    ]:
        assert type(make_proba_distribution(space)) is type(HEADS[name][0]())


def test_divergences_are_means_over_dimensions_and_steps():
    old = DiagGaussianDistribution(2).proba_distribution(th.zeros(3, 2), th.zeros(2))
    new = DiagGaussianDistribution(2).proba_distribution(th.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]]), th.zeros(2))
    assert mean_divergence(old, new).item() == pytest.approx((0.5 * (1 + 4) + 0 + 0.5 * 9) / 6)


def symmetric_positive_definite(seed, n):
    factor = np.random.default_rng(seed).standard_normal((n, n))
    return th.as_tensor(factor @ factor.T + 0.1 * np.eye(n))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8))
def test_conjugate_gradients_solve_as_a_direct_solver_does(seed, n):
    matrix = symmetric_positive_definite(seed, n)
    target = th.as_tensor(np.random.default_rng(seed + 1).standard_normal(n))
    solution = conjugate_gradient(lambda v: matrix @ v, target, 3 * n, tolerance=1e-24)
    th.testing.assert_close(solution, th.linalg.solve(matrix, target), rtol=1e-6, atol=1e-8)


def test_conjugate_gradients_stop_after_max_steps_and_lead_uphill():
    matrix, target, calls = symmetric_positive_definite(3, 20), th.ones(20, dtype=th.float64), []
    solution = conjugate_gradient(lambda v: (calls.append(1), matrix @ v)[1], target, 4)
    assert len(calls) == 4
    assert solution @ target > 0
    better = conjugate_gradient(lambda v: matrix @ v, target, 8)

    def energy(x):
        return 0.5 * x @ matrix @ x - x @ target

    assert energy(better) < energy(solution) < 0


def test_the_direction_under_the_identity_is_the_gradient():
    gradient, calls = th.tensor([3.0, -4.0, 0.5]), []
    direction = conjugate_gradient(lambda v: (calls.append(1), v)[1], gradient, 10)
    assert th.equal(direction, gradient)
    assert len(calls) == 1, "it goes on although nothing is left"


@given(seed=st.integers(0, 1000), target_kl=st.floats(1e-6, 10.0))
def test_the_quadratic_estimate_of_a_step_is_what_was_asked_for(seed, target_kl):
    matrix = symmetric_positive_definite(seed, 4)
    direction = th.as_tensor(np.random.default_rng(seed).standard_normal(4))
    step = step_of_size(direction, float(direction @ matrix @ direction), target_kl)
    assert float(0.5 * step @ matrix @ step) == pytest.approx(target_kl)
    assert th.nn.functional.cosine_similarity(step, direction, dim=0).item() == pytest.approx(1.0)


def test_flat_gradients_are_zero_where_nothing_depends_on_a_parameter():
    used, unused = th.nn.Parameter(th.tensor([2.0])), th.nn.Parameter(th.ones(3))
    assert flat_gradient((used**2).sum(), [unused, used]).tolist() == [0.0, 0.0, 0.0, 4.0]
    assert flat_gradient(th.zeros(()), [unused, used]).tolist() == [0.0] * 4
