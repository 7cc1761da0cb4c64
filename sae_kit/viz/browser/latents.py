"""Latent pages and latent lists: one shard for some latents, one with every statistic of a site."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae_kit.viz.browser.atlas import Atlas
from sae_kit.viz.browser.labels import Labels
from sae_kit.viz.browser.neighbours import DOWN, UP, Neighbours, best_of_latents
from sae_kit.viz.browser.shards import Shards, numbers, significant
from sae_kit.viz.browser.windows import Windows

PER_SHARD = 32
"""Latents in a shard; the page has the same number from the manifest."""
N_ROLES = 12
"""Quasi-boolean candidates shown of a latent, at most."""


def write_latents(atlas: Atlas, shards: Shards, site: int, labels: Labels) -> None:
    """Everything about each latent of a site, in shards "latents/<site>/<number>"."""
    sides = {side.name: Neighbours(atlas, site, side, labels) for side in (UP, DOWN)}
    top, samples = Windows(atlas, site, "top"), Windows(atlas, site, "sample")
    facts, roles = _facts(atlas, site, labels), _roles(atlas, site, labels)
    for number, first in enumerate(range(0, atlas.d_sae[site], PER_SHARD)):
        last = min(first + PER_SHARD, atlas.d_sae[site])
        kept = zip(range(first, last), top.of(first, last), samples.of(first, last), strict=True)
        shards.write_entries(
            f"latents/{site}/{number}",
            [
                {
                    **{name: column[latent] for name, column in facts.items()},
                    "top": [window for window in strongest if window],
                    "samples": drawn,
                    "roles": roles.get(latent, [])[:N_ROLES],
                    **{name: neighbours.of(latent) for name, neighbours in sides.items()},
                }
                for latent, strongest, drawn in kept
            ],
        )


def write_list(atlas: Atlas, shards: Shards, site: int, labels: Labels) -> None:
    """The statistics of all latents of a site, by column, in shard "lists/<site>"."""
    columns: dict[str, Any] = {
        "label": labels[site],
        "n_active": atlas.n_active(site).tolist(),
        "max": significant(atlas.largest(site)),
        "community": atlas.community(site).tolist(),
        "role": _kinds(atlas, site).tolist(),
    }
    if (mean := atlas.known("mean", site)) is not None:
        columns["mean"] = significant(mean)
    if (cosine := atlas.known("decoder_cosine", site)) is not None:
        columns["decoder"] = numbers(cosine[:, 0])
    for side in (UP, DOWN):
        best = [
            best_of_latents(pair, side.own, atlas.d_sae[site]) for pair in side.pairs(atlas, site)
        ]
        if best:
            for measure, values in zip(atlas.measures, torch.stack(best).amax(0).T, strict=True):
                columns[f"{side.name}_{measure}"] = numbers(values)
    shards.write(f"lists/{site}", columns)


def _facts(atlas: Atlas, site: int, labels: Labels) -> dict[str, Sequence[Any]]:
    """What a page says of a latent that is one value or a short list, by latent."""
    facts: dict[str, Sequence[Any]] = {
        "label": labels[site],
        "n_active": atlas.n_active(site).tolist(),
        "max": significant(atlas.largest(site)),
        "community": atlas.community(site).tolist(),
    }
    if (mean := atlas.known("mean", site)) is not None:
        facts["mean"] = significant(mean)
    histogram, width = atlas.known("histogram", site), atlas.known("bin_width", site)
    if histogram is not None and width is not None:
        facts["histogram"] = histogram.tolist()
        facts["bin_width"] = width.double().tolist()  # powers of two, exact in few digits
    for name in ("promoted", "suppressed"):
        tokens, by = atlas.known(f"logits_{name}", site), atlas.known(f"logits_{name}_by", site)
        if tokens is not None and by is not None:
            facts[name] = _pairs(tokens, by)
    index, cosine = atlas.known("decoder_index", site), atlas.known("decoder_cosine", site)
    if index is not None and cosine is not None:
        facts["decoder"] = [
            [[other, value, labels[site][other]] for other, value in latent]
            for latent in _pairs(index, cosine)
        ]
    return facts


def _pairs(index: Tensor, values: Tensor) -> list[list[list[Any]]]:
    """`[[number, value], ...]` of each row."""
    rows = zip(index.tolist(), numbers(values), strict=True)
    return [[list(pair) for pair in zip(*row, strict=True)] for row in rows]


def _roles(atlas: Atlas, site: int, labels: Labels) -> dict[int, list[list[Any]]]:
    """The candidates a latent has a part in: `[kind, strict, [parent, parent, child]]`, each of
    the three as `[site, latent, label]`; those that passed the strict test first.
    """
    found: dict[int, list[list[Any]]] = {}
    for up, down, rows in atlas.booleans:
        if site not in (up, down):
            continue
        for a, b, child, kind, strict in sorted(rows.tolist(), key=lambda row: -row[4]):
            trio = [[at, one, labels[at][one]] for at, one in ((up, a), (up, b), (down, child))]
            for at, one, _ in trio:
                if at == site:
                    found.setdefault(one, []).append([kind, strict, trio])
    return found


def _kinds(atlas: Atlas, site: int) -> Tensor:
    """What each latent is a child of: 1 for AND, 2 for OR, added; 4 more if strictly so."""
    kinds = torch.zeros(atlas.d_sae[site], dtype=torch.int64)
    for _, down, rows in atlas.booleans:
        if down == site:
            for _, _, child, kind, strict in rows.tolist():
                kinds[child] |= (1 << kind) | (4 if strict else 0)
    return kinds
