"""Objectives: what a code must explain. Independent of the architecture and of the sites.

An objective turns a batch into parts, each with one scalar to differentiate and the sites it
trains. The local objective has one part per site, so that each site's graph is freed before the
next is built; an objective that runs the model through its SAEs would have a single part for all of
them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.config import Family
from sae_kit.data.activations import Batch
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE, Losses, Moment, TrainOutput


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
    """A scalar to differentiate, and the SAEs it trains, by the site they read."""

    total: Float[Tensor, ""]
    outputs: Mapping[Site, SiteOutput]


@final
@dataclass(frozen=True)
class Trained:
    """An SAE in training, and the sites it joins."""

    sae: SAE
    reads: Site
    writes: Site
    """What it reconstructs: `reads` itself, unless it is a transcoder."""


@dataclass(frozen=True, kw_only=True)
class Objective(Family, ABC, tag="name", package="sae_kit.train"):
    """What the SAEs are trained for."""

    needs_contexts: ClassVar[bool]
    """Whether batches must be whole contexts, to run the model on: see `Batch.contexts`."""

    @abstractmethod
    def parts(
        self,
        trained: Sequence[Trained],
        batch: Batch,
        *,
        at: Moment,
        dead: Mapping[Site, Bool[Tensor, " d_sae"]],
    ) -> Iterator[Part]:
        """The batch's parts, each built only when the one before has been differentiated.

        Args:
            trained: the SAEs.
            batch: activations at every site that they read or write.
            at: where in the run this is.
            dead: by the site read, which latents the trainer calls dead.
        """


@final
@dataclass(frozen=True, kw_only=True)
class LocalObjective(Objective, name="local"):
    """Every SAE reconstructs the activation of the site that it writes."""

    needs_contexts: ClassVar[bool] = False

    def parts(
        self,
        trained: Sequence[Trained],
        batch: Batch,
        *,
        at: Moment,
        dead: Mapping[Site, Bool[Tensor, " d_sae"]],
    ) -> Iterator[Part]:
        """One part per SAE."""
        for one in trained:
            x, target = batch.acts[one.reads], batch.acts[one.writes]
            out = one.sae.forward_train(x, at)
            losses = one.sae.losses(x, target, out, at=at, dead=dead[one.reads])
            yield Part(losses.total, {one.reads: SiteOutput(x, target, out, losses)})
