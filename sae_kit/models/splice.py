"""Runs in which the activations at one site are replaced, at the positions that count.

What an SAE's error does to a model is seen by putting its output in the place of the activation.
Only positions that count are replaced (those the SAE is meant for: by default neither position 0
nor end-of-text tokens); the others keep what the model computed.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.maths import Predictions, kl_rows
from sae_kit.models.hooks import Hookable, Run, Site


def run_with(
    model: Hookable,
    tokens: Int[Tensor, "batch pos"],
    site: Site,
    acts: Float[Tensor, "batch pos *axes"],
    *,
    capture: Collection[Site] = (),
    stop: Site | None = None,
) -> Run:
    """The run in which the activations at `site` are `acts`, up to `stop` or to the logits.

    At a residual-stream site the run starts there. Elsewhere it starts from the tokens, since other
    parts of the model bypass the site.
    """
    if _alone(site):
        return model.run(start=(site, acts), capture=capture, stop=stop)
    return model.run(tokens, edit={site: lambda _: acts}, capture=capture, stop=stop)


def _alone(site: Site) -> bool:
    """Whether what comes after the site depends on nothing before it but the site."""
    return ".hook_resid_" in site


@final
class CleanRun:
    """A model's own run on whole contexts, to splice into and to compare with.

    It stops at the last captured site. When somebody wants to know what comes behind (predictions,
    or sites observed), it goes on from the last residual-stream site that it has passed; both parts
    together are, bit for bit, one whole run. No gradient reaches the model's own run; through a
    spliced one it reaches what was put in.
    """

    acts: Mapping[Site, Tensor]
    """The captured activations, `[batch pos *axes]`."""

    def __init__(
        self,
        model: Hookable,
        tokens: Int[Tensor, "batch pos"],
        counts: Bool[Tensor, "batch pos"],
        *,
        capture: Collection[Site],
        observe: Collection[Site] = (),
    ) -> None:
        """Run `model` up to the last site of `capture`.

        Args:
            model: what to run.
            tokens: the contexts.
            counts: true for the positions that count.
            capture: sites whose activations are wanted now; at least one.
            observe: sites whose activations may be asked for later, anywhere in the model.
        """
        self.model, self.tokens = model, tokens.to(model.device)
        # Numbers, found where the mask lies: a GPU would have to be waited for to learn how many.
        places = counts.flatten().nonzero()[:, 0]
        self.n_rows = len(places)
        """How many positions count."""
        self._places = places.to(model.device)
        order = list(model.sites())
        stop = max(capture, key=order.index)
        passed = order[: order.index(stop) + 1]
        self._door = next((site for site in reversed(passed) if _alone(site)), None)
        self._observe = tuple(observe)
        self._wanted = frozenset([*capture, *observe])
        kept = [site for site in passed if site in self._wanted or site == self._door]
        with torch.no_grad():
            self._run = model.run(self.tokens, capture=kept, stop=stop)
        self.acts = {site: self._run.acts[site] for site in capture}

    @cached_property
    def _rest(self) -> Run:
        """The run from the door to the end; a whole one where there is no door."""
        sites = list(self.model.sites())
        behind = sites if self._door is None else sites[sites.index(self._door) :]
        # Captured sites too, though they are known: reading the inside of attention or of a
        # LayerNorm makes the model compute it another way, and both parts are to be one run.
        wanted = [site for site in behind if site in self._wanted]
        with torch.no_grad():
            if self._door is None:
                return self.model.run(self.tokens, capture=wanted)
            entered = self._run.acts[self._door]
            return run_with(self.model, self.tokens, self._door, entered, capture=wanted)

    @cached_property
    def predictions(self) -> Predictions:
        """The next-token distributions at all positions, `[batch * pos, vocab]`."""
        return Predictions(flat_logits(self._rest))

    @cached_property
    def observed(self) -> Mapping[Site, Tensor]:
        """The activations at the observed sites, `[batch pos *axes]`."""
        known = {**self._rest.acts, **self._run.acts}
        return {site: known[site] for site in self._observe}

    def select(self, acts: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "rows width"]:
        """The counting positions of activations on these contexts, in reading order."""
        return acts.flatten(2).flatten(0, 1)[self._places]

    def spliced(
        self,
        site: Site,
        rows: Float[Tensor, "rows width"] | Float[Tensor, " width"],
        *,
        capture: Collection[Site] = (),
    ) -> Run:
        """The run with the counting positions of `site`, which was captured, replaced.

        Args:
            site: where.
            rows: a row for each counting position, in reading order, or one row for all.
            capture: sites after it whose activations to return.
        """
        own = self.acts[site]
        positions = own.flatten(2).flatten(0, 1)
        rows = rows.to(own.dtype).expand(self.n_rows, -1)
        spliced = positions.index_copy(0, self._places, rows).view(own.shape)
        return run_with(self.model, self.tokens, site, spliced, capture=capture)

    def kl(self, run: Run) -> Float[Tensor, " rows"]:
        """KL(clean || the run's) of the predictions at the counting positions, in nats.

        Differentiable in the run.
        """
        return kl_rows(self.predictions, flat_logits(run))[self._places]


def flat_logits(run: Run) -> Float[Tensor, "positions vocab"]:
    """The logits of a run that went to the end, position after position."""
    assert run.logits is not None
    return run.logits.flatten(0, 1)
