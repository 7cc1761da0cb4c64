"""Objectives: what a code must explain. Independent of the architecture and of the sites.

An objective turns a batch into parts, each with one scalar to differentiate and the sites it
trains. The local objective has one part per site, so that each site's graph is freed before the
next is built; an objective that runs the model through its SAEs would have a single part for all of
them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.config import Family
from sae_kit.data.activations import Batch
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE, Losses, TrainOutput


@final
@dataclass(frozen=True)
class SiteOutput:
    """What a batch did at one site."""

    x: Float[Tensor, "rows d_in"]
    """The rows encoded."""
    target: Float[Tensor, "rows d_out"]
    """The rows to reconstruct."""
    out: TrainOutput
    losses: Losses


@final
@dataclass(frozen=True)
class Part:
    """A scalar to differentiate, and the sites whose SAEs it trains."""

    total: Float[Tensor, ""]
    outputs: Mapping[Site, SiteOutput]


@dataclass(frozen=True, kw_only=True)
class Objective(Family, ABC, tag="name", package="sae_kit.train"):
    """What the SAEs are trained for."""

    @abstractmethod
    def parts(
        self,
        saes: Mapping[Site, SAE],
        batch: Batch,
        *,
        step: int,
        dead: Mapping[Site, Bool[Tensor, " d_sae"]],
    ) -> Iterator[Part]:
        """The batch's parts, each built only when the one before has been differentiated."""


@final
@dataclass(frozen=True, kw_only=True)
class LocalObjective(Objective, name="local"):
    """Every SAE reconstructs the activation that it reads."""

    def parts(
        self,
        saes: Mapping[Site, SAE],
        batch: Batch,
        *,
        step: int,
        dead: Mapping[Site, Bool[Tensor, " d_sae"]],
    ) -> Iterator[Part]:
        """One part per site."""
        for site, sae in saes.items():
            x = batch.acts[site]
            out = sae.forward_train(x)
            losses = sae.losses(x, x, out, step=step, dead=dead[site])
            yield Part(losses.total, {site: SiteOutput(x, x, out, losses)})
