"""Objectives: what a code must explain. Independent of the architecture and of the sites.

An objective turns a batch into parts, each with one scalar to differentiate and the sites it
trains. Those of this package have one part per site, so that each site's graph is freed before the
next is built, and an SAE trained among several is the one trained alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.config import Family
from sae_kit.data.activations import Batch
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE, Moment, TrainOutput


@final
@dataclass(frozen=True)
class SiteOutput:
    """What a batch did at one site."""

    x: Float[Tensor, "rows d_in"]
    """The rows encoded."""
    target: Float[Tensor, "rows d_out"]
    """The rows to reconstruct."""
    out: TrainOutput
    total: Float[Tensor, ""]
    """The site's share of what is differentiated."""
    terms: Mapping[str, Float[Tensor, ""]]
    """What the total is the sum of, by name, detached: what is logged."""
    measures: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """What else is worth logging, by name, detached."""


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


def local_part(one: Trained, batch: Batch, at: Moment, dead: Bool[Tensor, " d_sae"]) -> Part:
    """The part of an SAE that reconstructs the activation of the site that it writes."""
    x, target = batch.acts[one.reads], batch.acts[one.writes]
    out = one.sae.forward_train(x, at)
    losses = one.sae.losses(x, target, out, at=at, dead=dead)
    site = SiteOutput(x, target, out, losses.total, losses.terms)
    return Part(losses.total, {one.reads: site})


@dataclass(frozen=True, kw_only=True)
class Objective(Family, ABC, tag="name", package="sae_kit.train"):
    """What the SAEs are trained for."""

    needs_contexts: ClassVar[bool]
    """Whether batches must come with the model's runs on whole contexts: see `Batch.runs`."""

    @abstractmethod
    def observes(self, writes: Collection[Site], known: Collection[Site]) -> list[Site]:
        """The sites whose activations in the model's own run are compared with, beside those that
        the SAEs read and write.

        Args:
            writes: the sites that the SAEs write.
            known: every site of the model, in the order of a run.

        Raises:
            ValueError: this objective has no meaning at one of the sites.
        """

    @abstractmethod
    def pace(self, at: Moment) -> float:
        """What multiplies the learning rate at this moment of the run."""

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

    def observes(self, writes: Collection[Site], known: Collection[Site]) -> list[Site]:
        """None."""
        return []

    def pace(self, at: Moment) -> float:
        """See Objective.pace."""
        return 1.0

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
            yield local_part(one, batch, at, dead[one.reads])
