"""Prompts whose run is entered in the middle, with an activation in the place of their own.

Source: the procedure that Lee and Heimersheim 2024, Giglemiani et al. 2024 and Janiak et al. 2024
have in common. See `sae_kit.evals.perturb.perturbation`, which drives it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.perturb.responses import Outcome
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site, check_sites


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where activations are replaced."""

    write: Site
    """A residual-stream site."""
    position: int | None
    """The one position that is replaced (-1 is the last); None: all of them at once."""

    def check(self, model: GPT2, n_pos: int, reads: Collection[Site] = ()) -> None:
        """Refuse a place that the model or prompts of `n_pos` tokens lack, and sites before it.

        Raises:
            ValueError: an unknown site, a write site off the residual stream, a read site that
                does not come after it, or a position outside the prompts.
        """
        known = model.sites()
        check_sites([self.write], known, "write")
        check_sites(reads, known, "read")
        if ".hook_resid_" not in self.write:
            raise ValueError(
                f"write: {self.write!r} is not the whole residual stream, so the model cannot go "
                "on from it; give a hook_resid_pre, hook_resid_mid or hook_resid_post"
            )
        order = list(known)
        for read in reads:
            if order.index(read) < order.index(self.write):
                raise ValueError(
                    f"read: {read!r} comes before {self.write!r}, where activations are written; "
                    "give a later site"
                )
        if n_pos > model.n_ctx:
            raise ValueError(
                f"prompts: {n_pos} tokens, but the model's context holds {model.n_ctx}"
            )
        if self.position is not None and not -n_pos <= self.position < n_pos:
            raise ValueError(
                f"position: {self.position} is outside prompts of {n_pos} tokens; give 0 to "
                f"{n_pos - 1}, or -1 for the last"
            )

    def hosts(
        self, model: GPT2, tokens: Int[Tensor, "hosts context"], index: Int[Tensor, " hosts"]
    ) -> "Hosts":
        """Prompts made ready to have the activation here replaced."""
        if self.position is None:
            return WholeContext(model, tokens, index, self.write)
        return OnePosition(model, tokens, index, self.write, self.position % tokens.shape[1])


class Hosts(ABC):
    """Prompts in whose runs the activation at one site is replaced."""

    base: Float[Tensor, "hosts pos d_model"]
    """What the model itself has at the replaced positions."""

    def __init__(
        self,
        model: GPT2,
        tokens: Int[Tensor, "hosts context"],
        index: Int[Tensor, " hosts"],
        write: Site,
    ) -> None:
        self.model, self.tokens, self.index, self.write = model, tokens, index, write

    @abstractmethod
    def outcome(
        self,
        x: Float[Tensor, "hosts points pos d_model"],
        *,
        sites: Collection[Site],
        logits: bool,
    ) -> Outcome:
        """What comes of `x` in the place of the hosts' own activations.

        Args:
            x: any number of activations for every host.
            sites: whose activations to return.
            logits: whether to return logits; the runs end earlier without.
        """

    @abstractmethod
    def targets(self) -> Int[Tensor, "hosts pos"]:
        """The tokens that come after the replaced positions; where none does, the last token."""

    def _stop(self, sites: Collection[Site], logits: bool) -> Site | None:
        if logits:
            return None
        return [site for site in self.model.sites() if site in sites][-1]


@final
class OnePosition(Hosts):
    """One position of every host is replaced; those before it are the model's own.

    What comes after it is not run: responses are of that position.
    """

    def __init__(
        self,
        model: GPT2,
        tokens: Int[Tensor, "hosts context"],
        index: Int[Tensor, " hosts"],
        write: Site,
        position: int,
    ) -> None:
        super().__init__(model, tokens, index, write)
        self._position = position
        # Every block's keys are known after the last attention; nothing later is needed.
        order = list(model.sites())
        last = [site for site in order if site.endswith("hook_resid_mid")][-1]
        stop = max(write, last, key=order.index)
        upto = tokens[:, : position + 1]
        run = model.run(upto, capture=[write], stop=stop, keep_prefix=True)
        assert run.prefix is not None
        self.base = run.acts[write][:, -1:].clone()
        # Behind the last attention no keys are needed, and a prefix without any has no contexts.
        first = min(first_block(write), model.config.n_layer - 1)
        self._prefix = run.prefix.since(first).first(position).forked()

    def outcome(
        self,
        x: Float[Tensor, "hosts points pos d_model"],
        *,
        sites: Collection[Site],
        logits: bool,
    ) -> Outcome:
        """See Hosts. The points are alternatives for the one position."""
        run = self.model.run(
            start=(self.write, x[:, :, 0]),
            prefix=self._prefix,
            capture=sites,
            stop=self._stop(sites, logits),
        )
        acts = {site: act.flatten(2)[:, :, None] for site, act in run.acts.items()}
        return Outcome(acts, None if run.logits is None else run.logits[:, :, None])

    def targets(self) -> Int[Tensor, "hosts pos"]:
        """See Hosts."""
        return self.tokens[:, min(self._position + 1, self.tokens.shape[1] - 1)][:, None]


@final
class WholeContext(Hosts):
    """All positions are replaced at once."""

    def __init__(
        self,
        model: GPT2,
        tokens: Int[Tensor, "hosts context"],
        index: Int[Tensor, " hosts"],
        write: Site,
    ) -> None:
        super().__init__(model, tokens, index, write)
        self.base = model.run(tokens, capture=[write], stop=write).acts[write]

    def outcome(
        self,
        x: Float[Tensor, "hosts points pos d_model"],
        *,
        sites: Collection[Site],
        logits: bool,
    ) -> Outcome:
        """See Hosts. Every point is a run of its own."""
        hosts, points = x.shape[:2]
        run = self.model.run(
            start=(self.write, x.flatten(0, 1)), capture=sites, stop=self._stop(sites, logits)
        )
        acts = {
            site: act.flatten(2).unflatten(0, (hosts, points)) for site, act in run.acts.items()
        }
        return Outcome(
            acts, None if run.logits is None else run.logits.unflatten(0, (hosts, points))
        )

    def targets(self) -> Int[Tensor, "hosts pos"]:
        """See Hosts."""
        return torch.cat([self.tokens[:, 1:], self.tokens[:, -1:]], 1)


def first_block(site: Site) -> int:
    """The first block whose attention comes after a residual-stream site."""
    _, number, kind = site.split(".")
    return int(number) + (kind != "hook_resid_pre")
