"""Bases for the activations at node layers: neurons, principal components, the Local Interaction
Basis.

With f the activation less its mean, G = mean f f^T = U D U^T, R = U D^(-1/2) (directions of
variance up to a tolerance dropped), and J the Jacobian of the next node layer's coordinates,

    M = R^+ (mean over inputs of sum J J^T) R^+^T = V Lambda V^T
    C = R V Lambda^(1/2),    C^+ = Lambda^(-1/2) V^T R^+,    coordinates f C

and directions with Lambda up to the tolerance dropped, since the next layer does not read them.
Layers are done from the last, which has its principal components. In these coordinates the
activations' Gram matrix is Lambda and that of the Jacobians is the identity, so Lambda tells how
much a direction matters.

Source: Bushnaq et al. 2024, "The Local Interaction Basis" (2405.10928), the method of its section 3
(basis "jacobian", centred). The paper carries a constant coordinate to hold biases and means; here
means are subtracted, which leaves the other coordinates as they are.

Limits: float64. Exact Jacobian sums cost a backward pass for every output coordinate and position;
random signs in their place (Hutchinson) cost one for each draw. Where Lambda has equal values the
basis is defined up to a rotation among their directions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.basis.node_network import NodeNetwork, Section
from sae_kit.maths import StreamingMoments

TOLERANCE = 1e-12
"""Eigenvalues up to this share of the largest count as zero."""


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Basis:
    """Coordinates of the activations at one node layer."""

    mean: Float[Tensor, " d"]
    C: Float[Tensor, "d k"]
    """Coordinates are (x - mean) @ C."""
    C_inverse: Float[Tensor, "k d"]
    """And back, up to what the basis drops: coordinates @ C_inverse + mean."""
    importance: Float[Tensor, " k"]
    """Of each direction, largest first: Lambda, or the variance."""

    @property
    def n_directions(self) -> int:
        """How many there are."""
        return self.C.shape[1]

    def coordinates(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        """Of activations."""
        return (x - self.mean) @ self.C

    def activations(self, coordinates: Float[Tensor, "*n k"]) -> Float[Tensor, "*n d"]:
        """Of coordinates."""
        return coordinates @ self.C_inverse + self.mean

    def kept(self, x: Float[Tensor, "*n d"], k: int) -> Float[Tensor, "*n d"]:
        """Activations with all but the `k` most important directions set to their mean; as they
        are where that drops none of the space.
        """
        if k >= len(self.mean):
            return x
        return ((x - self.mean) @ self.C[:, :k]) @ self.C_inverse[:k] + self.mean


def neuron_basis(moments: StreamingMoments) -> Basis:
    """The coordinates as they are, by their variance."""
    variance, order = moments.cov().diagonal().sort(descending=True)
    eye = torch.eye(moments.width, dtype=variance.dtype, device=variance.device)[order]
    return Basis(moments.mean, eye.T, eye, variance)


def principal_components(moments: StreamingMoments, *, tolerance: float = TOLERANCE) -> Basis:
    """Orthonormal directions by their variance, those without any dropped.

    Raises:
        ValueError: the activations do not vary.
    """
    variances, directions = _eigenvectors(moments.cov(), tolerance, "the activations' covariance")
    return Basis(moments.mean, directions, directions.T, variances)


def interaction_basis(
    moments: StreamingMoments,
    jacobians: Float[Tensor, "d d"],
    *,
    tolerance: float = TOLERANCE,
) -> Basis:
    """The Local Interaction Basis of one node layer.

    Args:
        moments: of its activations, with covariance.
        jacobians: mean over inputs of J J^T, with respect to them, of the next layer's coordinates
            (`jacobian_gram`).
        tolerance: see TOLERANCE.

    Raises:
        ValueError: the activations do not vary, or the next layer does not depend on them.
    """
    variances, U = _eigenvectors(moments.cov(), tolerance, "the activations' covariance")
    root = variances.sqrt()
    R, R_inverse = U / root, root[:, None] * U.T
    M = R_inverse @ jacobians @ R_inverse.T
    importance, V = _eigenvectors(M, tolerance, "the whitened Jacobians")
    root = importance.sqrt()
    return Basis(moments.mean, R @ V * root, (V.T @ R_inverse) / root[:, None], importance)


def _eigenvectors(matrix: Tensor, tolerance: float, what: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues above the tolerance, largest first, and their eigenvectors as columns."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    if not values[0] > 0:
        raise ValueError(f"{what} is zero: there is nothing to make a basis of; give other data")
    alive = values > tolerance * values[0]
    return values[alive], vectors[:, alive]


# --- Jacobians ------------------------------------------------------------------------------------


def jacobian_gram(
    section: Section,
    x: Float[Tensor, "batch pos d"],
    following: Basis,
    *,
    n_sources: int | None,
    generator: torch.Generator,
) -> Float[Tensor, "d d"]:
    """Mean over inputs and their positions of sum J J^T, J the Jacobian of the next coordinates.

    Args:
        section: to the next node layer.
        x: the activations at this one.
        following: the basis of the next one.
        n_sources: random sign vectors over all outputs, in the place of each output in turn; None:
            exactly.
        generator: draws them.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        outputs = following.coordinates(section(x)).flatten(1)
    total = torch.zeros(x.shape[-1], x.shape[-1], dtype=x.dtype, device=x.device)
    weight = 1.0 if n_sources is None else 1.0 / n_sources
    for source in _sources(outputs, n_sources, generator):
        (gradient,) = torch.autograd.grad(outputs, x, source.expand_as(outputs), retain_graph=True)
        rows = gradient.flatten(0, 1)
        total += weight * rows.T @ rows
    return total / (x.shape[0] * x.shape[1])


def _sources(
    outputs: Float[Tensor, "batch n"], n_sources: int | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """What outputs are multiplied with: one after another, or random signs."""
    n = outputs.shape[1]
    if n_sources is None:
        yield from torch.eye(n, dtype=outputs.dtype, device=outputs.device)
        return
    for _ in range(n_sources):
        bits = torch.randint(2, outputs.shape, generator=generator)
        yield (2 * bits - 1).to(outputs)


def interaction_bases(
    network: NodeNetwork,
    x: Float[Tensor, "batch pos d"],
    *,
    batch: int,
    n_sources: int | None,
    seed: int,
    tolerance: float = TOLERANCE,
) -> list[Basis]:
    """The Local Interaction Basis of every node layer; principal components at the last.

    Args:
        network: the network.
        x: activations at its first node layer.
        batch: rows of them at once.
        n_sources: see `jacobian_gram`.
        seed: draws them.
        tolerance: see TOLERANCE.
    """
    moments = layer_moments(network, x, batch=batch)
    bases = [principal_components(moments[-1], tolerance=tolerance)]
    generator = torch.Generator().manual_seed(seed)
    for layer in reversed(range(len(network.sections))):
        total: Tensor | None = None
        for rows in x.split(batch):
            with torch.no_grad():
                here = network.activations(rows)[layer]
            found = jacobian_gram(
                network.sections[layer], here, bases[0], n_sources=n_sources, generator=generator
            )
            total = len(rows) * found if total is None else total + len(rows) * found
        assert total is not None
        bases.insert(0, interaction_basis(moments[layer], total / len(x), tolerance=tolerance))
    return bases


@torch.no_grad()
def layer_moments(
    network: NodeNetwork, x: Float[Tensor, "batch pos d"], *, batch: int
) -> list[StreamingMoments]:
    """Mean and covariance at every node layer, over inputs and positions."""
    moments: list[StreamingMoments] = []
    for rows in x.split(batch):
        acts = network.activations(rows)
        if not moments:
            moments = [StreamingMoments(a.shape[-1], with_cov=True, device=a.device) for a in acts]
        for seen, act in zip(moments, acts, strict=True):
            seen.update(act.flatten(0, -2))
    return moments
