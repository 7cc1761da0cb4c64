"""Where a perturbation leads: the activations that take the place of a prompt's own.

A path is one curve (or one grid) for every host, whose points are computed when they are needed:
rays along a direction, straight segments between two activations, arcs at constant distance from a
centre, and two-dimensional slices.

Source: Lee and Heimersheim 2024 (rays), Janiak et al. 2024 §2 and appendix (segments,
arcs, slices).
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


class Path(ABC):
    """One sequence of activations for every host."""

    n_points: int
    """How many activations there are for each host."""

    @abstractmethod
    def at(self, points: slice) -> Float[Tensor, "hosts points pos d_model"]:
        """The activations of a range of points."""


@final
class Ray(Path):
    """`base + length * direction / |direction|`, one direction for all lengths.

    A direction that is zero leads nowhere: its host stays at the base. That is how positions which
    are not to be perturbed are left alone.

    Args:
        base: where the ray begins.
        direction: of any length.
        lengths: in units of the activation; 0 is the base, bit for bit.

    Raises:
        ValueError: no lengths, or lengths that do not increase.
    """

    def __init__(
        self,
        base: Float[Tensor, "hosts pos d_model"],
        direction: Float[Tensor, "hosts pos d_model"],
        lengths: Float[Tensor, " points"],
    ) -> None:
        check_increasing(lengths, "lengths")
        self.base, self.lengths = base, lengths.to(base)
        self.n_points = len(lengths)
        # In float64, so that the length is met to the last bit that float32 has.
        exact = direction.double()
        norm = exact.norm(dim=-1, keepdim=True)
        self.unit = (exact / norm.where(norm > 0, 1.0)).to(base.dtype)
        """`[hosts pos d_model]`, of length 1, or 0."""

    def at(self, points: slice) -> Float[Tensor, "hosts points pos d_model"]:
        """See Path."""
        steps = self.lengths[points, None, None] * self.unit[:, None]
        return self.base[:, None] + steps


@final
class Segment(Path):
    """`start + alpha (end - start)`.

    Raises:
        ValueError: no alphas, or alphas that do not increase.
    """

    def __init__(
        self,
        start: Float[Tensor, "hosts pos d_model"],
        end: Float[Tensor, "hosts pos d_model"],
        alphas: Float[Tensor, " points"],
    ) -> None:
        check_increasing(alphas, "alphas")
        self.start, self.end, self.alphas = start, end, alphas.to(start)
        self.n_points = len(alphas)

    def at(self, points: slice) -> Float[Tensor, "hosts points pos d_model"]:
        """See Path. lerp gives both ends exactly."""
        alphas = self.alphas[points, None, None]
        return torch.lerp(self.start[:, None], self.end[:, None], alphas)


@final
class Arc(Path):
    """A segment every point of which is moved to the start's distance from a centre.

        X = centre + (X_segment - centre) |start - centre| / |X_segment - centre|

    so that a path between two activations does not pass through ones of smaller norm.

    Limits: it ends in the direction of `end`, at `end` only if that is as far from the centre. A
    segment through the centre itself has no arc there; that point is the centre.

    Raises:
        ValueError: no alphas, or alphas that do not increase.
    """

    def __init__(
        self,
        start: Float[Tensor, "hosts pos d_model"],
        end: Float[Tensor, "hosts pos d_model"],
        alphas: Float[Tensor, " points"],
        centre: Float[Tensor, " d_model"],
    ) -> None:
        self._segment = Segment(start, end, alphas)
        self.n_points = len(alphas)
        self.centre = centre.to(start)
        self.radius = (start - self.centre).norm(dim=-1)[:, None, :, None]

    def at(self, points: slice) -> Float[Tensor, "hosts points pos d_model"]:
        """See Path. Where alpha is 0 the start itself."""
        offset = self._segment.at(points) - self.centre
        norm = offset.norm(dim=-1, keepdim=True)
        scaled = self.centre + offset * (self.radius / norm.where(norm > 0, 1.0))
        at_start = (self._segment.alphas[points] == 0)[:, None, None]
        return torch.where(at_start, self._segment.start[:, None], scaled)


@final
class Plane(Path):
    """A grid on the plane through three activations.

        X = A + alpha (B - A) + beta (C - P),   P = A + t (B - A),   t = <B-A, C-A> / |B-A|^2

    so A, B and C lie at (0, 0), (1, 0) and (t, 1). Points run along alpha first.

    Raises:
        ValueError: no alphas or betas, ones that do not increase, or A and B that are equal.
    """

    def __init__(
        self,
        a: Float[Tensor, "hosts pos d_model"],
        b: Float[Tensor, "hosts pos d_model"],
        c: Float[Tensor, "hosts pos d_model"],
        alphas: Float[Tensor, " alphas"],
        betas: Float[Tensor, " betas"],
    ) -> None:
        check_increasing(alphas, "alphas")
        check_increasing(betas, "betas")
        self.a, self.across = a, b - a
        squared = self.across.square().sum(-1)
        if (squared == 0).any():
            raise ValueError("b: equals a, so they span no plane; give three different activations")
        self.t = (self.across * (c - a)).sum(-1) / squared
        """`[hosts pos]`: C is at (t, 1)."""
        self.up = c - a - self.t[..., None] * self.across
        self.places = torch.cartesian_prod(betas, alphas).flip(-1).to(a)
        """`[points 2]`: alpha and beta of every point."""
        self.n_points = len(self.places)

    def at(self, points: slice) -> Float[Tensor, "hosts points pos d_model"]:
        """See Path."""
        alpha, beta = self.places[points].T[..., None, None]
        return self.a[:, None] + alpha * self.across[:, None] + beta * self.up[:, None]


@final
class Fixed(Path):
    """Activations that somebody else made."""

    def __init__(self, activations: Float[Tensor, "hosts points pos d_model"]) -> None:
        self.activations = activations
        self.n_points = activations.shape[1]

    def at(self, points: slice) -> Float[Tensor, "hosts points pos d_model"]:
        """See Path."""
        return self.activations[:, points]


def check_increasing(values: Float[Tensor, " n"], what: str) -> None:
    """Raise a ValueError unless there are values, finite, each greater than the one before."""
    if len(values) == 0:
        raise ValueError(f"{what}: none given; give at least one")
    if not values.isfinite().all() or (values.diff() <= 0).any():
        raise ValueError(
            f"{what}: {[round(v, 6) for v in values.tolist()]} do not increase; sort them and "
            "leave out what comes twice"
        )
