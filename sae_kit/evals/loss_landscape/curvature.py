"""The curvature of a small network's loss at its weights: all of it, exactly.

With f(theta, x) the network's outputs, three matrices over all parameters:

- gauss_newton    mean over x of J^T J, J the Jacobian of f: half the Hessian of the behavioural
                  loss mean |f(theta) - f(theta*)|^2 at theta*, whatever the network has learnt
- hessian         of any loss of the parameters
- behavioural     that loss itself

Their null space is what changes nothing, to second order: free parameters of all kinds (unused
inputs, ignored outputs, rescalings, twins, synchronised units) together. At a cut-off of the loss,
a direction counts by how much its curvature confines (`effective_parameters`).

Source: Bushnaq et al. 2024, "Using degeneracy in the loss landscape for mechanistic
interpretability" (2405.10927), section 2 (behavioural loss, effective parameter count at a loss
cut-off) and 3 (its Hessian).

Limits: a matrix of n_parameters^2 in float64, so networks of a few thousand parameters; more are
refused. Outputs are compared by squared differences.
"""

from collections.abc import Callable, Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import parameters_to_vector

MAX_PARAMETERS = 8192
"""Their matrix takes 512 MiB, and its eigenvalues minutes."""
NULL = 1e-10
"""Eigenvalues up to this share of the largest count as zero."""


@final
class Network:
    """A module as a function of its parameters, which are one vector.

    Args:
        module: `[batch d_in]` -> `[batch d_out]`, in float64; every row by itself.

    Raises:
        ValueError: too many parameters, or another precision.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        parameters = dict(module.named_parameters())
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self.theta: Float[Tensor, " d"] = parameters_to_vector(parameters.values()).detach()
        """The module's own."""
        if len(self.theta) > MAX_PARAMETERS:
            raise ValueError(
                f"module: {len(self.theta)} parameters have a curvature of as many squared; give "
                f"one of at most {MAX_PARAMETERS}"
            )
        if self.theta.dtype != torch.float64:
            raise ValueError(
                f"module: {self.theta.dtype} is too coarse for small eigenvalues; give .double()"
            )

    def __call__(
        self, theta: Float[Tensor, " d"], x: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_out"]:
        """The outputs with other parameters."""
        return functional_call(self._module, self._split(theta), (x,))

    def places(self) -> Mapping[str, slice]:
        """Where each tensor lies in the vector of parameters."""
        sizes = torch.tensor([shape.numel() for shape in self._shapes.values()])
        ends = sizes.cumsum(0).tolist()
        pairs = zip(self._shapes, ends, sizes.tolist(), strict=True)
        return {name: slice(end - size, end) for name, end, size in pairs}

    def _split(self, theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}


def behavioural_loss(
    network: Network, x: Float[Tensor, "batch d_in"]
) -> Callable[[Float[Tensor, " d"]], Float[Tensor, ""]]:
    """Mean over inputs of |f(theta, x) - f(theta*, x)|^2, theta* the network's own parameters."""
    clean = network(network.theta, x).detach()

    def loss(theta: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        return (network(theta, x) - clean).square().sum(1).mean()

    return loss


def gauss_newton(
    network: Network, x: Float[Tensor, "batch d_in"], *, batch: int = 64
) -> Float[Tensor, "d d"]:
    """Mean over inputs of J^T J, at the network's own parameters.

    Args:
        network: the network.
        x: the inputs.
        batch: of them at once, whose Jacobians take batch * d_out * d numbers.
    """
    jacobians = vmap(jacrev(lambda theta, one: network(theta, one[None])[0]), in_dims=(None, 0))
    d = len(network.theta)
    total = torch.zeros(d, d, dtype=torch.float64, device=x.device)
    for rows in x.split(batch):
        J = jacobians(network.theta, rows).flatten(0, 1)
        total += J.T @ J
    return total / len(x)


def hessian_of(
    loss: Callable[[Float[Tensor, " d"]], Float[Tensor, ""]], theta: Float[Tensor, " d"]
) -> Float[Tensor, "d d"]:
    """Of a loss at some parameters."""
    # Backwards twice: torch's forward mode scripts its formulas, which it warns of itself.
    found = jacrev(grad(loss))(theta)
    assert isinstance(found, Tensor)
    return found.detach()


def spectrum(matrix: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """Eigenvalues of a symmetric matrix, largest first."""
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0)


def nullity(values: Float[Tensor, " d"], *, tolerance: float = NULL) -> int:
    """How many eigenvalues are at most `tolerance` times the largest in size."""
    return int((values.abs() <= tolerance * values.abs().max()).sum())


def effective_parameters(curvatures: Float[Tensor, " d"], cut_off: float, *, scale: float) -> float:
    """2 d log V / d log e: how many parameters matter at a loss of e, the cut-off.

    V is the volume of the parameters whose loss sum_i h_i d_i^2 is below e, with soft edges:

        V = integral exp(-sum_i h_i d_i^2 / e - |d|^2 / (2 scale^2)) dd

    where the second term bounds the directions without curvature. A direction counts
    h / (h + e / (2 scale^2)). Half of the sum is what `sgld.py` samples, with n beta = 1 / e and
    gamma = 1 / scale^2.

    Args:
        curvatures: h_i, of loss = h d^2; half the eigenvalues of a Hessian.
        cut_off: e, in the loss's units.
        scale: how far parameters may go, a standard deviation in their units.

    Raises:
        ValueError: `cut_off` or `scale` is not positive.
    """
    if not (cut_off > 0 and scale > 0):
        raise ValueError(f"cut_off: {cut_off} and scale: {scale} must be positive")
    h = curvatures.clamp(min=0.0)
    return (h / (h + cut_off / (2 * scale**2))).sum().item()
