"""Latent ablation: what becomes of the next SAE's latents when one latent of this SAE is taken out.

Wherever latent i of the upstream SAE fires, its part of the reconstruction is taken out of the
activation, x' = x - (SAE(x) - SAE(x without i)); what the SAE does not explain stays. The model
runs on from there to the downstream site, and the downstream SAE's code is compared with what it
was. A transcoder's part is taken out where it writes. The clean run goes once through the model up
to the downstream site, the ablated one, where x is the whole residual stream, only through what
lies between the two sites.

Source: the causal check of Balcells et al. 2024 (2410.08869). Between sites with only linear parts
in between, an active ReLU latent j changes by exactly -f_i W_enc[:, j] J W_dec[i].

Limits: of contexts in which the latent fires often, only some are run. What a latent does at
positions after those at which it fires is not recorded.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.evals.base import Subject
from sae_kit.models.hooks import Site
from sae_kit.models.splice import run_with
from sae_kit.sae.base import SAE
from sae_kit.sae.code import SparseCode

ACTIVE_SHARE = 0.01  # of its largest activation, above which a downstream latent counts as active


@final
@dataclass(frozen=True, eq=False)
class Change:
    """The downstream code at the positions at which the ablated latent fires."""

    before: Float[Tensor, "rows d_down"]
    after: Float[Tensor, "rows d_down"]

    def effect(self, latent: int, largest: float) -> "Effect":
        """What became of a downstream latent, whose largest activation in the text is given."""
        before, change = self.before[:, latent].double(), (self.after - self.before)[:, latent]
        active = before > ACTIVE_SHARE * largest
        there = change.double()[active]
        return Effect(
            n_positions=len(before),
            n_active=int(active.sum()),
            mean_change=change.double().mean().item(),
            mean_square=change.double().square().mean().item(),
            share_lost=-(there.sum() / before[active].sum()).item() if active.any() else 0.0,
        )


@final
@dataclass(frozen=True)
class Effect:
    """What ablating one latent did to another, at the positions at which the first fires."""

    n_positions: int
    n_active: int
    """Positions among them at which the downstream latent was above 1 % of its largest."""
    mean_change: float
    """Of the downstream activation, over all of them."""
    mean_square: float
    """Of the same changes."""
    share_lost: float
    """Of its activation where it was active; 1 if it is gone, below 0 if it grew, 0 if it never
    was active."""


@final
class Ablation:
    """Ablates latents of one site and looks at another."""

    def __init__(self, subject: Subject, up: Site, down: Site) -> None:
        self._model = subject.model
        self._sites = up, down
        self._saes = subject.saes[up], subject.saes[down]
        self._written = subject.writes[up]

    @torch.no_grad()
    def change(
        self,
        latent: int,
        tokens: Int[Tensor, "batch pos"],
        counting: Bool[Tensor, "batch pos"],
    ) -> Change:
        """What becomes of the downstream code in some contexts.

        Args:
            latent: of the upstream SAE.
            tokens: the contexts.
            counting: positions at which the latent is ablated and its effect looked at, as far as
                it fires there.

        Raises:
            ValueError: the latent fires at none of them, or there is no such latent.
        """
        (up, down), (sae, reader) = self._sites, self._saes
        if not 0 <= latent < sae.d_sae:
            raise ValueError(f"latent: {latent} is none of the {sae.d_sae} latents at {up}")
        clean = self._model.run(tokens, capture={up, self._written, down}, stop=down)
        rows = _rows(clean.acts[up])
        value = _code_of(sae, rows.float(), latent)
        fires = ((value > 0) & counting.to(value.device).flatten()).nonzero().flatten()
        if len(fires) == 0:
            raise ValueError(f"latent: {latent} of {up} fires in none of the contexts given")
        part = _part(sae, rows[fires].float(), value[fires], latent)
        x = clean.acts[self._written]
        whole = _rows(x)
        without = whole.index_copy(0, fires, whole[fires] - part.to(whole.dtype)).view_as(x)
        ablated = run_with(self._model, tokens, self._written, without, capture=[down], stop=down)
        before, after = (
            reader.encode(_rows(run.acts[down])[fires].float()) for run in (clean, ablated)
        )
        return Change(before.cpu(), after.cpu())


def _rows(acts: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "rows d"]:
    """One for every position; heads and their channels are one vector."""
    return acts.flatten(2).flatten(0, 1)


def _code_of(sae: SAE, rows: Float[Tensor, "rows d_in"], latent: int) -> Float[Tensor, " rows"]:
    """The activation of one latent."""
    code = sae.natural_code(rows)
    if isinstance(code, SparseCode):
        return (code.values * (code.indices == latent)).sum(1)
    return code[:, latent]


def _part(
    sae: SAE, rows: Float[Tensor, "rows d_in"], value: Float[Tensor, " rows"], latent: int
) -> Float[Tensor, "rows d_out"]:
    """What one latent adds to the reconstruction of rows."""
    index = torch.full((len(value), 1), latent, device=value.device)

    def with_value(v: Tensor) -> Tensor:
        return sae.reconstruct(rows, SparseCode(v[:, None], index, sae.d_sae))

    return with_value(value) - with_value(torch.zeros_like(value))
