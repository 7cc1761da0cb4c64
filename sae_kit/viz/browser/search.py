"""What search looks things up in: tokens, and contexts.

A token leads to the latents named by it or promoting it; a context to the latents that show it.
Which contexts hold a phrase the page finds by reading the text itself, which is small: two bytes a
token, compressed.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.sorting import lexsort, offsets, rank_in_group
from sae_kit.viz.browser.atlas import Atlas
from sae_kit.viz.browser.labels import Labels, n_before, peak_tokens
from sae_kit.viz.browser.shards import Shards, numbers
from sae_kit.viz.browser.windows import FULL

TOKENS_PER_SHARD = 64
CONTEXTS_PER_SHARD = 16
CONTEXTS_PER_TEXT_SHARD = 256
MAX_LATENTS = 100
"""Latents listed of a token, for each way in which they belong to it."""


def write_search(atlas: Atlas, shards: Shards, labels: Labels) -> None:
    """Shards "vocabulary", "text/<n>", "tokens/<n>" and "contexts/<n>"; none without contexts."""
    if atlas.dashboard is None:
        return
    arrays = atlas.dashboard.arrays
    vocabulary = _vocabulary(arrays["vocabulary"], arrays["vocabulary_ends"])
    shards.write("vocabulary", vocabulary)
    for number, contexts in enumerate(arrays["contexts"].split(CONTEXTS_PER_TEXT_SHARD)):
        shards.write(f"text/{number}", contexts.tolist())
    _write_tokens(atlas, shards, labels, len(vocabulary))
    _write_contexts(atlas, shards, labels)


def _vocabulary(text: Tensor, ends: Tensor) -> list[str]:
    """The text of every token."""
    data, stops = bytes(text.tolist()), ends.tolist()
    return [data[a:b].decode() for a, b in zip([0, *stops[:-1]], stops, strict=True)]


def _write_tokens(atlas: Atlas, shards: Shards, labels: Labels, n_tokens: int) -> None:
    """For each token, latents `[site, latent, label, value]`: "peaks" where it is the peak of the
    latent's strongest contexts, with the share of them; "promoted" with the logit effect.
    """
    found: dict[str, Any] = {}
    for kind, entries in (("peaks", _peaks(atlas)), ("promoted", _promoted(atlas))):
        columns = [torch.cat(column) for column in zip(*entries, strict=True)]
        if columns:
            token, site, latent, value = columns
            order = lexsort(token, -value)
            order = order[rank_in_group(token[order]) < MAX_LATENTS]
            rows = zip(
                site[order].tolist(), latent[order].tolist(), numbers(value[order]), strict=True
            )
            found[kind] = (list(rows), offsets(token[order].contiguous(), n_tokens))
    for number, first in enumerate(range(0, n_tokens, TOKENS_PER_SHARD)):
        last = min(first + TOKENS_PER_SHARD, n_tokens)
        shards.write_entries(
            f"tokens/{number}",
            [
                {
                    kind: [
                        [site, latent, labels[site][latent], value]
                        for site, latent, value in rows[begins[token] : begins[token + 1]]
                    ]
                    for kind, (rows, begins) in found.items()
                }
                for token in range(first, last)
            ],
        )


Entries = list[tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]]
"""Token, site, latent and value, part by part."""


def _peaks(atlas: Atlas) -> Entries:
    """Tokens at the peaks of latents' strongest contexts, each with the share of the contexts."""
    parts: Entries = []
    for site in range(len(atlas.sites)):
        if (place := atlas.known("top_place", site)) is None:
            continue
        tokens = peak_tokens(atlas, place)
        same = tokens[:, :, None] == tokens[:, None]
        share = same.sum(-1) / (place >= 0).sum(-1, keepdim=True).clamp_min(1)
        earlier = torch.ones_like(same[0]).tril(-1)
        first = (place >= 0) & ~(same & earlier).any(-1)  # each token of a latent once
        latent, column = first.nonzero(as_tuple=True)
        at = torch.full_like(latent, site)
        parts.append((tokens[latent, column], at, latent, share[latent, column]))
    return parts


def _promoted(atlas: Atlas) -> Entries:
    """The tokens that latents promote most."""
    parts: Entries = []
    for site in range(len(atlas.sites)):
        tokens, by = atlas.known("logits_promoted", site), atlas.known("logits_promoted_by", site)
        if tokens is None or by is None:
            continue
        latent = torch.arange(len(tokens)).repeat_interleave(tokens.shape[1])
        at = torch.full_like(latent, site)
        parts.append((tokens.flatten().long(), at, latent, by.flatten().float()))
    return parts


def _write_contexts(atlas: Atlas, shards: Shards, labels: Labels) -> None:
    """For each context, the latents that show it: `[site, latent, label, position, activation]`,
    the latter in thousandths of the latent's largest; in shards of their own.
    """
    assert atlas.dashboard is not None
    n_contexts, n_pos = atlas.dashboard.arrays["contexts"].shape
    parts = [torch.empty(0, 5, dtype=torch.int64)]
    for site in range(len(atlas.sites)):
        place, acts = atlas.known("top_place", site), atlas.known("top_acts", site)
        if place is None or acts is None:
            continue
        latent, column = (place >= 0).nonzero(as_tuple=True)
        at = place[latent, column].long()
        peak = acts[latent, column, n_before(atlas)].float() / atlas.largest(site)[latent] * FULL
        peak = peak.round().clamp(0, FULL).long()
        at_site = torch.full_like(latent, site)
        parts.append(torch.stack([at // n_pos, at_site, latent, at % n_pos, peak], 1))
    shown = torch.cat(parts)
    shown = shown[torch.argsort(shown[:, 0], stable=True)]
    begins = offsets(shown[:, 0].contiguous(), n_contexts)
    for number, first in enumerate(range(0, n_contexts, CONTEXTS_PER_SHARD)):
        last = min(first + CONTEXTS_PER_SHARD, n_contexts)
        shards.write_entries(
            f"contexts/{number}",
            [
                [
                    [site, latent, labels[site][latent], position, peak]
                    for _, site, latent, position, peak in rows.tolist()
                ]
                for context in range(first, last)
                for rows in [shown[begins[context] : begins[context + 1]]]
            ],
        )
