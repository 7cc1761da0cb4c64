"""What a decoder direction says to the output, and which other directions point the same way.

Logit effects: a direction written to the residual stream, taken straight to the logits, past all
later blocks. The last normalisation's mean removal and gain are applied, its division by the scale
is not, so effects of different latents compare but have no absolute size; the mean over the
vocabulary, which changes no probability, is taken off. Source: "logit lens" (nostalgebraist 2020)
of a direction, as in public SAE dashboards.

Limits: what later layers make of a direction is not seen; in early layers the direct path says
little.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.models.gpt2 import GPT2, Block
from sae_kit.models.hooks import Site
from sae_kit.products import linear

MAX_VALUES = 1 << 24
"""Logits or cosines computed at once (64 MiB in float32)."""


@final
@dataclass(frozen=True)
class Extremes:
    """The tokens that each latent promotes and suppresses most, and by how much."""

    promoted: Int[Tensor, "d_sae n"]
    promoted_by: Float[Tensor, "d_sae n"]
    suppressed: Int[Tensor, "d_sae n"]
    suppressed_by: Float[Tensor, "d_sae n"]
    """Negative."""


def to_stream(
    model: GPT2, site: Site, rows: Float[Tensor, "rows width"]
) -> Float[Tensor, "rows d_model"] | None:
    """What directions at `site` add to the residual stream; None where that is not linear."""
    if re.search(r"hook_(resid_\w+|attn_out|mlp_out|embed|pos_embed)$", site):
        return rows
    if inner := re.fullmatch(r"blocks\.(\d+)\.(attn\.hook_z|mlp\.hook_post)", site):
        block = model.blocks[int(inner[1])]
        assert isinstance(block, Block)
        return rows @ (block.attn.W_O if inner[2] == "attn.hook_z" else block.mlp.W_out)
    return None


def logit_effects(
    model: GPT2, directions: Float[Tensor, "d_sae d_model"], *, n: int, n_tokens: int
) -> Extremes:
    """The `n` tokens most promoted and most suppressed among the first `n_tokens`.

    Args:
        model: whose unembedding it is.
        directions: as written to the residual stream.
        n: tokens on each side.
        n_tokens: the tokenizer's; rows of the unembedding beyond them are padding.
    """
    unembedding = model.W_U[:n_tokens]
    centred = unembedding - unembedding.mean(0)
    parts = []
    for rows in directions.split(max(1, MAX_VALUES // n_tokens)):
        final_rows = (rows - rows.mean(-1, keepdim=True)) * model.ln_final.w
        logits = linear(final_rows, centred)
        high, low = logits.topk(n), logits.topk(n, largest=False)
        parts.append((high.indices, high.values, low.indices, low.values))
    return Extremes(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def nearest_directions(
    directions: Float[Tensor, "d_sae width"], n: int
) -> tuple[Int[Tensor, "d_sae n"], Float[Tensor, "d_sae n"]]:
    """The `n` other directions of highest cosine to each, and the cosines. A zero row has 0."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    index, cosine = [], []
    for first, rows in _numbered(unit):
        cosines = linear(rows, unit)
        own = torch.arange(len(rows), device=rows.device)
        cosines[own, first + own] = -torch.inf
        best = cosines.topk(n)
        index.append(best.indices)
        cosine.append(best.values)
    return torch.cat(index).cpu(), torch.cat(cosine).cpu()


def _numbered(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Some rows at a time, with the number of the first."""
    first = 0
    for part in rows.split(max(1, MAX_VALUES // len(rows))):
        yield first, part
        first += len(part)
