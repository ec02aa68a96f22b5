"""
The natural gradient as pure functions on tensors: Fisher-vector products and conjugate gradients.

The Fisher matrix F is the second derivative of the mean KL divergence between the policy and its neighbours (Kakade 2001;
Amari 1998), so a step s changes the policy by about ``s F s / 2``, however the policy is parametrised. F is never built:
products with it are second derivatives, and conjugate gradients need nothing else (Schulman et al. 2015, appendix C).
"""

import math
from collections.abc import Callable, Sequence

import torch as th

#: Multiplies a flat vector by a symmetric positive semi-definite matrix.
Product = Callable[[th.Tensor], th.Tensor]


def fisher_product(mean_kl: th.Tensor, parameters: Sequence[th.nn.Parameter]) -> Product:
    """
    Make the function that multiplies a vector by F.

    :param mean_kl: Mean KL divergence from a constant copy of the policy to the policy, a scalar that depends on the
        parameters. Its value is 0, and so is its gradient; its second derivative is F.
    :param parameters: Parameters of the policy. Parameters that do not affect the divergence have zero rows and columns. They
        must not be changed before the last product.
    :return: A function that takes and returns a vector of shape ``(n_parameters,)``, in the order of the parameters.
    """
    kl_gradient = flat_gradient(mean_kl, parameters, create_graph=True)
    return lambda vector: flat_gradient(kl_gradient @ vector, parameters, retain_graph=True)


def flat_gradient(
    value: th.Tensor, parameters: Sequence[th.nn.Parameter], create_graph: bool = False, retain_graph: bool | None = None
) -> th.Tensor:
    """
    Differentiate a scalar.

    :param value: The scalar.
    :param parameters: Parameters to differentiate with respect to.
    :param create_graph: Whether the result will be differentiated again.
    :param retain_graph: Whether the value will be differentiated again; the same as ``create_graph`` by default.
    :return: Shape ``(n_parameters,)``, zero where the value does not depend on a parameter.
    """
    if not value.requires_grad:
        return th.cat([th.zeros_like(parameter).flatten() for parameter in parameters])
    gradients = th.autograd.grad(
        value, parameters, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    return th.cat([gradient.reshape(-1) for gradient in gradients])


def conjugate_gradient(product: Product, target: th.Tensor, max_steps: int, tolerance: float = 1e-10) -> th.Tensor:
    """
    Solve ``A x = target`` (Hestenes & Stiefel 1952), from x = 0.

    Every step minimises ``x A x / 2 - x target`` over one more dimension, so that stopping early leaves out the directions in
    which A is smallest, and the solution always has a positive inner product with the target.

    :param product: Multiplies by A, symmetric and positive definite.
    :param target: Shape ``(n,)``.
    :param max_steps: Maximum number of products. In exact arithmetic n are enough.
    :param tolerance: Stop when the squared norm of the residual is below this fraction of the target's.
    :return: x, shape ``(n,)``. Not finite if A is not.
    """
    solution = th.zeros_like(target)
    residual = target.clone()
    direction = target.clone()
    squared_norm = residual @ residual
    enough = tolerance * squared_norm
    for _ in range(max_steps):
        if squared_norm <= enough:
            break
        image = product(direction)
        length = squared_norm / (direction @ image)
        solution = solution + length * direction
        residual = residual - length * image
        previous, squared_norm = squared_norm, residual @ residual
        direction = residual + squared_norm / previous * direction
    return solution


def step_of_size(direction: th.Tensor, curvature: float, target_kl: float) -> th.Tensor:
    """
    Scale a direction so that the quadratic estimate of the KL divergence, ``step F step / 2``, equals ``target_kl``.

    :param direction: Shape ``(n,)``.
    :param curvature: ``direction F direction``, above 0.
    :param target_kl: The divergence, in nats.
    :return: Shape ``(n,)`` (Schulman et al. 2015, appendix C).
    """
    return math.sqrt(2.0 * target_kl / curvature) * direction
