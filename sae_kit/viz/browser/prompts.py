"""Prompt pages: which latents are active at each token of a prompt, and how they are joined."""

from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from sae_kit.viz.browser.atlas import Atlas, Pair
from sae_kit.viz.browser.labels import Labels
from sae_kit.viz.browser.shards import Shards, numbers, significant

PER_SITE = 16
"""Latents shown of each site at a token, the most active."""


def write_prompts(atlas: Atlas, shards: Shards, labels: Labels) -> dict[str, Any]:
    """Every prompt in a shard "prompts/<number>"; returns the manifest's part: their tokens."""
    arrays = atlas.dashboard.arrays if atlas.dashboard is not None else {}
    pairs = [_Joined(pair) for pair in atlas.pairs]
    listed: list[list[int]] = []
    while (tokens := arrays.get(f"prompt/{len(listed)}/tokens")) is not None:
        number = len(listed)
        places = [_place(atlas, number, position, pairs, labels) for position in range(len(tokens))]
        shards.write(f"prompts/{number}", {"tokens": tokens.tolist(), "places": places})
        listed.append(tokens.tolist())
    return {"prompts": listed}


@final
class _Joined:
    """A pair's rows, to be looked up by their two latents."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        keys = _keys(*pair.index.T)
        self._order = torch.argsort(keys)
        self._keys = keys[self._order]

    def among(
        self, up: Int[Tensor, " n"], down: Int[Tensor, " m"]
    ) -> list[tuple[int, int, int, list[float]]]:
        """Number of the upstream latent, number of the downstream one, n_both, measures."""
        if len(self._keys) == 0 or 0 in (len(up), len(down)):
            return []
        wanted = _keys(up[:, None], down).flatten()
        at = torch.searchsorted(self._keys, wanted).clamp_max(len(self._keys) - 1)
        hits = (self._keys[at] == wanted).nonzero().flatten()
        rows = self._order[at[hits]]
        a, b = hits // len(down), hits % len(down)
        both, measures = self.pair.n_both[rows].tolist(), numbers(self.pair.measures[rows])
        return list(zip(a.tolist(), b.tolist(), both, measures, strict=True))


def _keys(up: Tensor, down: Tensor) -> Tensor:
    return (up << 32) + down


def _place(
    atlas: Atlas, number: int, position: int, pairs: list[_Joined], labels: Labels
) -> dict[str, Any]:
    """Nodes `[site, latent, label, activation, share of its largest]` and edges `[node, node,
    n_both, *measures]` at one token.
    """
    assert atlas.dashboard is not None
    nodes: list[list[Any]] = []
    first, active = [], []
    for site, name in enumerate(atlas.sites):
        first.append(len(nodes))
        values = atlas.dashboard.arrays.get(f"prompt/{number}/activation/{name}")
        latents = atlas.dashboard.arrays.get(f"prompt/{number}/latent/{name}")
        if values is None or latents is None:
            active.append(torch.empty(0, dtype=torch.int64))
            continue
        value = values[position, :PER_SITE]
        value = value[value > 0]
        latent = latents[position, : len(value)].long()
        share = value / atlas.largest(site)[latent].clamp_min(torch.finfo(torch.float32).tiny)
        active.append(latent)
        columns = (latent.tolist(), significant(value), numbers(share))
        nodes += [
            [site, one, labels[site][one], *more] for one, *more in zip(*columns, strict=True)
        ]
    edges = [
        [first[up] + a, first[down] + b, n_both, *measures]
        for joined in pairs
        for up, down in [joined.pair.sites]
        for a, b, n_both, measures in joined.among(active[up], active[down])
    ]
    return {"nodes": nodes, "edges": edges}
