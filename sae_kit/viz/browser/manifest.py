"""The manifest: what the site is about and what it has, the first thing a page loads."""

import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.result import Result
from sae_kit.viz.browser.atlas import Atlas, Pair
from sae_kit.viz.browser.latents import PER_SHARD
from sae_kit.viz.browser.neighbours import best_of_latents
from sae_kit.viz.browser.search import (
    CONTEXTS_PER_SHARD,
    CONTEXTS_PER_TEXT_SHARD,
    TOKENS_PER_SHARD,
)
from sae_kit.viz.browser.shards import numbers

N_STEPS = 100
"""Thresholds at which the share of latents passed through is known."""

# Model and SAE set, as in gpt2-small/6-res-jb.
NEURONPEDIA = re.compile(r"[\w.-]+/[\w.-]+")


def manifest(atlas: Atlas, extras: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a site.

    Args:
        atlas: what the site shows.
        extras: what other parts of the build know: "communities", "booleans", "prompts".
    """
    text = atlas.dashboard.arrays["contexts"] if atlas.dashboard is not None else None
    return {
        "model": atlas.model,
        "sites": [_site(atlas, number) for number in range(len(atlas.sites))],
        "per_shard": {
            "latents": PER_SHARD,
            "contexts": CONTEXTS_PER_SHARD,
            "text": CONTEXTS_PER_TEXT_SHARD,
            "tokens": TOKENS_PER_SHARD,
        },
        "n_contexts": 0 if text is None else len(text),
        "measures": atlas.measures,
        "pairs": [_pair(atlas, pair) for pair in atlas.pairs],
        "results": [_result(one) for one in (atlas.dashboard, atlas.evolution) if one is not None],
        **extras,
    }


def _site(atlas: Atlas, number: int) -> dict[str, Any]:
    """A site's entry."""
    site, n_active = atlas.sites[number], atlas.n_active(number)
    rows = atlas.dashboard.rows if atlas.dashboard is not None else ()
    row = next((row for row in rows if row["site"] == site), {})
    known = str(row.get("neuronpedia", ""))
    return {
        "name": site,
        "writes": row.get("writes", site),
        "arch": atlas.saes.get(site, {}).get("arch", ""),
        "d_sae": atlas.d_sae[number],
        "n_alive": int((n_active > 0).sum()),
        "n_positions": _n_positions(atlas),
        "l0": round(row["l0"], 2) if "l0" in row else None,
        "neuronpedia": known if NEURONPEDIA.fullmatch(known) else "",
    }


def _n_positions(atlas: Atlas) -> int:
    """Of how many positions n_active is a count."""
    result = atlas.dashboard or atlas.results[0]
    return int(result.scalars.get("n_positions", result.scalars.get("n_tokens", 0)))


def _pair(atlas: Atlas, pair: Pair) -> dict[str, Any]:
    """A pair's entry: for each measure, which share of the latents that ever fired has a
    counterpart at every threshold; `forward` of the earlier site's, `backward` of the later one's.
    """
    up, down = pair.sites
    entry: dict[str, Any] = {"up": up, "down": down}
    for name, own, site in (("forward", 0, up), ("backward", 1, down)):
        best = best_of_latents(pair, own, atlas.d_sae[site])
        alive = best[atlas.n_active(site) > 0]
        entry[name] = {
            measure: numbers(_shares(values))
            for measure, values in zip(atlas.measures, alive.T, strict=True)
        }
    return entry


def _shares(values: Float[Tensor, " n"]) -> Float[Tensor, " steps"]:
    """The share of values at or above 0, 1 / N_STEPS, ..., 1."""
    thresholds = torch.linspace(0, 1, N_STEPS + 1)
    below = torch.searchsorted(values.sort().values.contiguous(), thresholds)
    return 1 - below.double() / max(1, len(values))


def _result(result: Result) -> dict[str, Any]:
    """What numbers come from."""
    subject = result.provenance["subject"]
    tokens = subject.get("tokens", {})
    return {
        "name": result.name,
        "n_tokens": int(result.scalars.get("n_tokens", 0)),
        "text": str(tokens.get("kind", "")),
        "context_size": tokens.get("context_size"),
        "seed": subject.get("seed"),
    }
