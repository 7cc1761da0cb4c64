"""Directions in which activations are perturbed, and what each of them is a baseline for.

A direction is drawn once for every position of a prompt and kept for all lengths; only where it
points matters (`sae_kit.evals.perturb.paths.Ray`). With x the activation, g ~ N(0, I), t, v1, v2 ~
N(mu, Sigma) of real activations, and a, a1, a2 real activations of other prompts:

- isotropic                    g
- isotropic_difference         m g / |g| - x, with m the median norm
- cov_difference               t - x; the baseline of Heimersheim and Mendel 2024
- cov_mixture                  v1 - v2 ~ N(0, 2 Sigma); the paper's improved baseline
- real_difference              a - x
- real_mixture                 a1 - a2
- toward_other                 a - x, with a at the same position as x
- toward_zero                  -x

Every direction with -x in it points back to the middle: its cosine with x - mu is about -1/sqrt(2)
for t, where that of a mixture is 0. So only isotropic directions and mixtures are neutral.

Directions of an SAE are in `sae_kit.evals.directions.sae_directions`.

Source: Lee and Heimersheim 2024 (2410.12555) and its code, where m is the constant 121.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.perturb.pool import Pool
from sae_kit.evals.shared.draws import for_each, standard_normal


@final
@dataclass(frozen=True, kw_only=True, eq=False)  # eq: tensors have no single truth value
class Given:
    """Activations that get directions, and what these are drawn from."""

    base: Float[Tensor, "hosts pos d_model"]
    """The activations themselves."""
    index: Int[Tensor, " hosts"]
    """The number of each host; its draws belong to it."""
    positions: Int[Tensor, " pos"]
    """Where in the prompts the activations are."""
    pool: Pool
    """Real activations of other prompts, at the same site."""
    seed: int

    def normal(self, name: str) -> Float[Tensor, "hosts pos d_model"]:
        """N(0, 1) draws; equal names give equal draws."""
        return standard_normal(self.base, self.index, self.seed, name)

    def uniform(self, name: str) -> Float[Tensor, "hosts pos"]:
        """Draws from [0, 1)."""
        n_pos = self.base.shape[1]
        drawn = for_each(self.index, self.seed, name, lambda g: torch.rand(n_pos, generator=g))
        return drawn.to(self.base.device)

    def real(self, name: str) -> Float[Tensor, "hosts pos d_model"]:
        """Activations out of the pool."""
        return self.pool.rows[self._numbers(name, len(self.pool.rows))]

    def real_pair(
        self, name: str
    ) -> tuple[Float[Tensor, "hosts pos d_model"], Float[Tensor, "hosts pos d_model"]]:
        """Two different activations out of the pool."""
        n = len(self.pool.rows)
        first = self._numbers(name, n)
        further = 1 + self._numbers(f"{name}/second", n - 1)
        return self.pool.rows[first], self.pool.rows[(first + further) % n]

    def real_at_position(self, name: str) -> Float[Tensor, "hosts pos d_model"]:
        """Activations out of the pool that were at the same position, or else at the nearest that
        any of them was at.
        """
        sorted_positions, order = self.pool.positions.sort(stable=True)
        there = sorted_positions.unique()
        nearest = there[(there - self.positions[:, None]).abs().argmin(1)]
        first = torch.searchsorted(sorted_positions, nearest)
        n = torch.searchsorted(sorted_positions, nearest, right=True) - first
        return self.pool.rows[order[first + self._numbers(name, n)]]

    def _numbers(self, name: str, n: int | Int[Tensor, " pos"]) -> Int[Tensor, "hosts pos"]:
        """Draws from 0..n-1."""
        return (self.uniform(name).double() * n).long()


class Direction(ABC):
    """A way to draw a direction for every activation."""

    name: ClassVar[str]

    @abstractmethod
    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        """One for every activation, of any length."""


@final
class Isotropic(Direction):
    """Any direction is as likely as any other. The model reads most of them weakly."""

    name = "isotropic"

    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        return given.normal(self.name)


@final
class IsotropicDifference(Direction):
    """Toward a random point whose norm is the median one."""

    name = "isotropic_difference"

    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        return given.pool.median_norm * unit(given.normal(self.name)) - given.base


@final
class CovDifference(Direction):
    """Toward a random point with the mean and the covariance of real activations."""

    name = "cov_difference"

    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        return given.pool.normal.drawn(given.normal(self.name)) - given.base


@final
class CovMixture(Direction):
    """From one such point to another: N(0, 2 Sigma), and nothing of the activation itself."""

    name = "cov_mixture"

    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        first, second = given.normal(f"{self.name}/first"), given.normal(f"{self.name}/second")
        return given.pool.normal.shaped(first - second)


@final
class RealDifference(Direction):
    """Toward a real activation of another prompt."""

    name = "real_difference"

    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        return given.real(self.name) - given.base


@final
class RealMixture(Direction):
    """From one real activation to another, neither of them the perturbed one."""

    name = "real_mixture"

    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        first, second = given.real_pair(self.name)
        return first - second


@final
class TowardOther(Direction):
    """Toward the activation that another prompt has at the same position."""

    name = "toward_other"

    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        return given.real_at_position(self.name) - given.base


@final
class TowardZero(Direction):
    """Shrinks the activation, and past zero inverts it."""

    name = "toward_zero"

    def of(self, given: Given) -> Float[Tensor, "hosts pos d_model"]:
        return -given.base


DIRECTIONS: dict[str, Direction] = {
    direction.name: direction
    for direction in (
        Isotropic(),
        IsotropicDifference(),
        CovDifference(),
        CovMixture(),
        RealDifference(),
        RealMixture(),
        TowardOther(),
        TowardZero(),
    )
}
"""By name."""


def unit(x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """Each vector scaled to length 1, as exactly as its type allows; zero stays zero."""
    exact = x.double()
    norm = exact.norm(dim=-1, keepdim=True)
    return (exact / norm.where(norm > 0, 1.0)).to(x.dtype)
