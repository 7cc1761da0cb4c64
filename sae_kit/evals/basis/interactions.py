"""How strongly the directions of one node layer act on those of the next, and how few of these
edges a network needs.

With F the section between two node layers in the coordinates of their bases, f the coordinates at
the first, positions s there and t here,

    E_ij = mean over inputs and t of  [ sum_s int_0^1 da  dF_it/df_sj (a f)  f_sj ]^2

the square of what direction j adds to direction i, by integrated gradients from the mean activation
(where all coordinates are 0) to the activation itself. The integral is a weighted sum over some a:

- gradient          a = 1 alone; what the paper's results on modular addition and GPT-2 use
- gauss_legendre    n nodes, exact for polynomials of degree up to 2n - 1
- trapezoid         n + 1 nodes, the ends a little inside

Source: Bushnaq et al. 2024 (2405.10928), section 3 and the released code ("squared" edges).

A backward pass is needed for every direction and position of the second layer; with random signs
over the positions (Hutchinson), one for every direction.

Limits: edges have no sign.
The paper's integral starts where its constant coordinate is 0, too; ours where the biases are as
they are, so that what directions add is measured from the mean activation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.evals.basis.bases import Basis
from sae_kit.evals.basis.node_network import Section

MAX_ROWS = 2048
"""Positions of all inputs that run through a section at once, where many versions of some do."""


@final
@dataclass(frozen=True)
class Quadrature:
    """Where on the way from the mean an integral is evaluated, and with what weight."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]

    @staticmethod
    def gradient() -> "Quadrature":
        """The end alone."""
        return Quadrature((1.0,), (1.0,))

    @staticmethod
    def gauss_legendre(n: int) -> "Quadrature":
        """Of `n` nodes."""
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return Quadrature(tuple((nodes + 1) / 2), tuple(weights / 2))

    @staticmethod
    def trapezoid(n: int) -> "Quadrature":
        """Of `n` intervals, the ends a thousandth of one inside."""
        inside = 1e-3 / (n + 1)
        nodes = np.linspace(inside, 1 - inside, n + 1)
        weights = np.full(n + 1, 1 / n)
        weights[[0, -1]] /= 2
        return Quadrature(tuple(nodes), tuple(weights))


def contributions(
    section: Section,
    x: Float[Tensor, "batch pos d"],
    here: Basis,
    there: Basis,
    quadrature: Quadrature,
) -> Float[Tensor, "batch pos_there k_there k_here"]:
    """What each direction here adds to each direction there; over directions here they sum to the
    change of the section's output from the mean to `x`, as well as the quadrature integrates.
    """
    coordinates = here.coordinates(x).detach()
    total: Tensor | None = None
    for node, weight in zip(quadrature.nodes, quadrature.weights, strict=True):
        point = (node * coordinates).requires_grad_()
        with torch.enable_grad():
            outputs = there.coordinates(section(here.activations(point)))
        flat = outputs.flatten(1)
        rows = []
        for i in range(flat.shape[1]):
            (gradient,) = torch.autograd.grad(flat[:, i].sum(), point, retain_graph=True)
            rows.append((gradient * coordinates).sum(1))
        found = weight * torch.stack(rows, 1).unflatten(1, outputs.shape[1:])
        total = found if total is None else total + found
    assert total is not None
    return total


def edges(
    section: Section,
    x: Float[Tensor, "inputs pos d"],
    here: Basis,
    there: Basis,
    quadrature: Quadrature,
    *,
    batch: int,
    signs: torch.Generator | None = None,
) -> Float[Tensor, "k_there k_here"]:
    """The strengths of all edges between two node layers: see the module's docstring.

    Args:
        section: between the layers.
        x: activations at the first.
        here, there: the layers' bases.
        quadrature: of the integral.
        batch: inputs at once; they take batch * pos * k_there * k_here numbers.
        signs: draws signs over the positions of the second layer, which are then summed; None:
            every position in turn. What comes out has the same mean.
    """
    total = torch.zeros(there.n_directions, here.n_directions, dtype=x.dtype, device=x.device)
    n_rows = 0
    for rows in x.split(batch):
        with torch.no_grad():
            size = section(rows[:1]).shape[1]
        n_rows += len(rows) * size
        if signs is None:
            added = contributions(section, rows, here, there, quadrature)
        else:
            drawn = 2 * torch.randint(2, (len(rows), size, 1), generator=signs) - 1
            summed = _Signed(section, drawn.to(x))
            added = contributions(summed, rows, here, _unmeaned(there), quadrature)
        total += added.square().sum((0, 1))
    return total / n_rows


@final
class _Signed:
    """A section whose output positions are summed, each with a sign of its own."""

    def __init__(self, section: Section, signs: Float[Tensor, "batch pos one"]) -> None:
        self._section, self._signs = section, signs

    def __call__(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch one d_next"]:
        return (self._section(x) * self._signs).sum(1, keepdim=True)


def _unmeaned(basis: Basis) -> Basis:
    """The same directions, from the origin: what is differentiated has no use for a mean."""
    return replace(basis, mean=torch.zeros_like(basis.mean))


# --- ablation -------------------------------------------------------------------------------------


@torch.no_grad()
def through_edges(
    section: Section,
    x: Float[Tensor, "batch pos d"],
    here: Basis,
    there: Basis,
    kept: Bool[Tensor, "k_there k_here"],
) -> Float[Tensor, "batch _ _"]:
    """The section's output where every direction there sees only the directions here that `kept`
    joins it with; the others are at their mean.

    Limits: every different set of directions has a run of the section, some of them at once.
    """
    coordinates = here.coordinates(x)
    masks, which = kept.unique(dim=0, return_inverse=True)
    chosen: Tensor | None = None
    at_once = max(1, MAX_ROWS // (x.shape[0] * x.shape[1]))
    for first, some in zip(range(0, len(masks), at_once), masks.split(at_once), strict=True):
        masked = (coordinates * some[:, None, None]).flatten(0, 1)
        outputs = there.coordinates(section(here.activations(masked)))
        outputs = outputs.unflatten(0, (len(some), len(x)))
        if chosen is None:
            chosen = torch.empty_like(outputs[0])
        for number in range(len(some)):
            own = which == first + number
            chosen[..., own] = outputs[number][..., own]
    assert chosen is not None
    return there.activations(chosen)


def strongest(strengths: Float[Tensor, "k_there k_here"], n: int) -> Bool[Tensor, "k_there k_here"]:
    """The `n` strongest edges; of equal ones the first."""
    order = strengths.flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(strengths.numel(), dtype=torch.bool, device=strengths.device)
    kept[order[:n]] = True
    return kept.view(strengths.shape)


def fewest(n: int, is_enough: Callable[[int], bool], *, within: float = 0.0) -> int:
    """The smallest number up to `n` that is enough, by bisection; `n` if no smaller one is.

    Args:
        n: the largest number, which is enough.
        is_enough: tells of a number.
        within: how much too large the answer may be, as a share of it; saves questions.

    Limits: exact where more is never worse, which is not sure of ablations; then a number that is
    enough, of which a smaller one that was asked about is not.
    """
    low, high = -1, n  # low is not enough, high is
    while high - low > 1 and (high > low * (1 + within) or low < 1):
        # Between numbers of different size the middle is the geometric one.
        middle = round(math.sqrt(low * high)) if low >= 1 else (low + high) // 2
        middle = min(max(middle, low + 1), high - 1)
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high
