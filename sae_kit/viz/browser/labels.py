"""A short name for every latent: the tokens at which it is most active."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sae_kit.viz.browser.atlas import Atlas

Labels = Sequence[Sequence[Sequence[int]]]
"""By site and latent: see `labels`."""
SHARE = 0.25
"""Of the activation of the strongest contexts' peaks, what a second token must have."""


def labels(atlas: Atlas, site: int) -> list[list[int]]:
    """For every latent up to two token ids, the leading one first; none if contexts are not known.

    Each peak among its strongest contexts votes for its token, with its activation as the weight.
    """
    place, acts = atlas.known("top_place", site), atlas.known("top_acts", site)
    if place is None or acts is None:
        return [[] for _ in range(atlas.d_sae[site])]
    tokens = peak_tokens(atlas, place)
    weight = acts[..., n_before(atlas)].float().where(place >= 0, 0.0)
    chosen: list[list[int]] = [[] for _ in tokens]
    for needed in (torch.zeros(len(tokens)), SHARE * weight.sum(1)):
        votes = ((tokens[:, :, None] == tokens[:, None]) * weight[:, None]).sum(-1)
        most, at = votes.max(1)
        token = tokens.gather(1, at[:, None])
        for latent in (most > needed).nonzero().flatten().tolist():
            chosen[latent].append(int(token[latent]))
        weight = weight.where(tokens != token, 0.0)
    return chosen


def peak_tokens(atlas: Atlas, place: Int[Tensor, "latents n"]) -> Int[Tensor, "latents n"]:
    """The token at each place of the text; -1 where there is no place."""
    assert atlas.dashboard is not None
    text = atlas.dashboard.arrays["contexts"].flatten()
    tokens = text[place.long().clamp_min(0)].long()
    return tokens.where(place >= 0, -torch.ones_like(tokens))


def n_before(atlas: Atlas) -> int:
    """How many tokens a window has before its peak."""
    assert atlas.dashboard is not None
    return int(atlas.dashboard.provenance["evaluation"]["n_before"])
