"""What real activations at a site are like: mean, covariance, and a pool of them to draw from.

Perturbation experiments compare with random activations that resemble real ones. `Gaussian` is the
normal distribution N(mu, Sigma) with the moments of real activations; `Pool` has the moments and
some of the activations themselves.

Moments are streamed in float64 over all positions that count, which should leave out position 0:
GPT-2's has a norm some 30 times that of any other and would rule the covariance (METHODS §0.3).

Sigma is made positive definite by adding a ridge to its diagonal, as in the code of Lee and
Heimersheim 2024: 0.01, in squared units of the activation. Where the activations are so small that
this is more than a hundredth of their mean variance (GPT-2's block 0), the ridge is that hundredth.

Limits: Sigma needs more activations than there are channels, or it is singular and random draws lie
in the span of the few that were seen; that is refused. A good estimate takes several times as many.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.maths import StreamingMoments
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site

RIDGE = 0.01
"""Added to the variance of every channel."""
MAX_RIDGE = 0.01
"""The ridge as a share of the mean variance, at most."""
CONTEXTS_PER_PASS = 16


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Gaussian:
    """N(mean, covariance), float64."""

    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]
    """With the ridge."""
    factor: Float[Tensor, "d_model d_model"]
    """Lower triangular; `factor @ factor.T` is the covariance."""
    ridge: float
    """What was added to every variance."""

    @staticmethod
    def of(moments: StreamingMoments, site: Site) -> "Gaussian":
        """That of the activations seen.

        Args:
            moments: with covariance, of more rows than channels.
            site: where they were, for messages.

        Raises:
            ValueError: the covariance is singular all the same: a constant, or no number at all.
        """
        covariance = moments.cov()
        ridge = min(RIDGE, MAX_RIDGE * covariance.diagonal().mean().item())
        covariance = covariance + ridge * torch.eye(moments.width).to(covariance)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed.item() or not factor.isfinite().all():
            raise ValueError(
                f"write: the activations at {site!r} have a singular covariance, so nothing random "
                "can be made to resemble them; choose another site"
            )
        return Gaussian(moments.mean, covariance, factor, ridge)

    def shaped(self, standard: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """Standard normal draws given this covariance, about zero."""
        return standard @ self.factor.T.to(standard)

    def drawn(self, standard: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """Standard normal draws made draws from this distribution."""
        return self.mean.to(standard) + self.shaped(standard)


@final
@dataclass(frozen=True, eq=False)
class Pool:
    """Real activations at one site, and what they are like."""

    site: Site
    normal: Gaussian
    rows: Float[Tensor, "rows d_model"]
    """Some of the activations, chosen at random."""
    positions: Int[Tensor, " rows"]
    """The position of each row in its prompt."""
    median_norm: float
    """Of the rows, in units of the activation."""

    @staticmethod
    def of(
        model: GPT2,
        tokens: Int[Tensor, "prompts context"],
        counts: Bool[Tensor, "prompts context"],
        sites: Sequence[Site],
        *,
        n_rows: int,
        seed: int,
    ) -> "dict[Site, Pool]":
        """The pools of several sites, from one pass over the prompts; the same rows of all.

        Args:
            model: the model.
            tokens: prompts, none of them one of those to be perturbed.
            counts: which of their positions are looked at.
            sites: of the residual stream.
            n_rows: how many activations a pool keeps, at most; the moments are of all.
            seed: draws which.

        Raises:
            ValueError: fewer activations than a covariance takes.
        """
        n, needed = int(counts.sum()), model.config.d_model + 1
        if n < needed:
            per_prompt = max(1.0, n / max(1, len(tokens)))
            raise ValueError(
                f"n_pool_prompts: {len(tokens)} prompts have {n} activations that count, and a "
                f"covariance of {needed - 1} channels takes at least {needed}; give "
                f"{math.ceil(needed / per_prompt)} prompts or more"
            )
        generator = torch.Generator().manual_seed(seed)
        kept = torch.zeros(n, dtype=torch.bool)
        kept[torch.randperm(n, generator=generator)[:n_rows]] = True
        found = {site: _Seen(model.config.d_model, model.device) for site in sites}
        n_before = 0
        for some, where in zip(
            tokens.split(CONTEXTS_PER_PASS), counts.split(CONTEXTS_PER_PASS), strict=True
        ):
            acts = _activations(model, some, where, sites)
            own = kept[n_before : n_before + int(where.sum())]
            n_before += len(own)
            for site, seen in found.items():
                seen.update(acts[site], own)
        positions = counts.nonzero()[:, 1][kept.to(counts.device)].to(model.device)
        return {site: seen.pool(site, positions) for site, seen in found.items()}


@final
class _Seen:
    """What has been seen of one site."""

    def __init__(self, d_model: int, device: torch.device) -> None:
        self._moments = StreamingMoments(d_model, with_cov=True, device=device)
        self._rows: list[Tensor] = []

    def update(self, rows: Float[Tensor, "rows d_model"], kept: Bool[Tensor, " rows"]) -> None:
        self._moments.update(rows)
        self._rows.append(rows[kept.to(rows.device)])

    def pool(self, site: Site, positions: Int[Tensor, " rows"]) -> Pool:
        rows = torch.cat(self._rows)
        median = rows.norm(dim=-1).double().median().item()
        return Pool(site, Gaussian.of(self._moments, site), rows, positions, median)


@torch.no_grad()
def _activations(
    model: GPT2,
    tokens: Int[Tensor, "prompts context"],
    counts: Bool[Tensor, "prompts context"],
    sites: Sequence[Site],
) -> dict[Site, Float[Tensor, "rows d_model"]]:
    """The activations of the counting positions, in reading order."""
    order = list(model.sites())
    tokens, counts = tokens.to(model.device), counts.to(model.device)
    run = model.run(tokens, capture=sites, stop=max(sites, key=order.index))
    return {site: run.acts[site][counts] for site in sites}
