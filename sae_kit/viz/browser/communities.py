"""Community pages: the members of a community over all sites, and how they are joined."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.sorting import lexsort, offsets, rank_in_group
from sae_kit.viz.browser.atlas import Atlas
from sae_kit.viz.browser.labels import Labels
from sae_kit.viz.browser.shards import Shards, numbers

PER_SHARD = 32
MAX_EDGES, MAX_MEMBERS = 400, 160
"""Shown of a community; a graph of more cannot be read."""
MAX_LISTED = 1000
"""Communities named in the list, the largest."""


def write_communities(atlas: Atlas, shards: Shards, labels: Labels) -> dict[str, Any]:
    """Every community, in shards "communities/<number>"; returns the manifest's part."""
    members = _members(atlas)
    if len(members) == 0:
        return {"communities": []}
    n = int(members[:, 0].max()) + 1
    edges, measures = _edges(atlas)
    strength = _strength(atlas, edges, measures)
    own_members, own_edges = (
        offsets(members[:, 0].contiguous(), n),
        offsets(edges[:, 0].contiguous(), n),
    )
    listed, shard = [], []
    for number in range(n):
        inside = members[own_members[number] : own_members[number + 1], 1:]
        entry = _community(
            inside,
            strength[inside[:, 0], inside[:, 1]],
            edges[own_edges[number] : own_edges[number + 1], 1:],
            measures[own_edges[number] : own_edges[number + 1]],
            labels,
        )
        listed.append([number, entry["n"], len(inside[:, 0].unique()), _words(entry["members"])])
        shard.append(entry)
        if len(shard) == PER_SHARD or number == n - 1:
            shards.write_entries(f"communities/{number // PER_SHARD}", shard)
            shard = []
    listed = sorted((one for one in listed if one[1]), key=lambda one: (-one[1], one[0]))
    return {
        "communities": listed[:MAX_LISTED],
        "n_communities": len(listed),
        "communities_per_shard": PER_SHARD,
    }


def _members(atlas: Atlas) -> Int[Tensor, "n three"]:
    """`[community, site, latent]`, sorted."""
    rows = []
    for site in range(len(atlas.sites)):
        community = atlas.community(site)
        latent = (community >= 0).nonzero().flatten()
        rows.append(torch.stack([community[latent], torch.full_like(latent, site), latent], 1))
    found = torch.cat(rows)
    return found[torch.argsort(found[:, 0], stable=True)]


def _edges(atlas: Atlas) -> tuple[Int[Tensor, "n six"], Float[Tensor, "n measures"]]:
    """`[community, site, latent, site, latent, n_both]` and the measures of each pair within a
    community: the strongest by the first measure, sorted by community.
    """
    rows, measures = [torch.empty(0, 6, dtype=torch.int64)], [torch.empty(0, len(atlas.measures))]
    for pair in atlas.pairs:
        of_up, of_down = (atlas.community(site) for site in pair.sites)
        up, down = pair.index.T
        inside = ((of_up[up] == of_down[down]) & (of_up[up] >= 0)).nonzero().flatten()
        up, down = up[inside], down[inside]
        sites = [torch.full_like(up, site) for site in pair.sites]
        rows.append(
            torch.stack([of_up[up], sites[0], up, sites[1], down, pair.n_both[inside].long()], 1)
        )
        measures.append(pair.measures[inside])
    found, values = torch.cat(rows), torch.cat(measures)
    order = lexsort(found[:, 0], -values[:, 0])
    order = order[rank_in_group(found[order, 0]) < MAX_EDGES]
    return found[order], values[order]


def _strength(
    atlas: Atlas, edges: Int[Tensor, "n six"], measures: Float[Tensor, "n measures"]
) -> Float[Tensor, "sites latents"]:
    """By site and latent, the sum over its edges of the first measure."""
    strength = torch.zeros(len(atlas.sites), max(atlas.d_sae))
    for site, latent in ((1, 2), (3, 4)):
        strength.index_put_((edges[:, site], edges[:, latent]), measures[:, 0], accumulate=True)
    return strength


def _community(
    members: Int[Tensor, "n two"],
    strength: Float[Tensor, " n"],
    edges: Int[Tensor, "edges five"],
    measures: Float[Tensor, "edges measures"],
    labels: Labels,
) -> dict[str, Any]:
    """A community's entry: members `[site, latent, label]`, the best joined first, and edges
    `[member, member, n_both, *measures]` between those listed.
    """
    order = torch.argsort(-strength, stable=True)[:MAX_MEMBERS]
    listed = [tuple(one) for one in members[order].tolist()]
    number = {one: i for i, one in enumerate(listed)}
    joined: list[list[Any]] = []
    for (up, a, down, b, n_both), values in zip(edges.tolist(), numbers(measures), strict=True):
        if (up, a) in number and (down, b) in number:
            joined.append([number[up, a], number[down, b], n_both, *values])
    return {
        "n": len(members),
        "members": [[site, latent, labels[site][latent]] for site, latent in listed],
        "edges": joined,
    }


def _words(members: Sequence[Sequence[Any]]) -> list[int]:
    """The tokens that most of the members listed are named by."""
    counts = Counter(label[0] for _, _, label in members if label)
    return [token for token, _ in counts.most_common(3)]
