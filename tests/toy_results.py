"""Small results of the forms that the browser is built from, with hostile tokens in them."""

from itertools import pairwise
from typing import Any

import torch

from sae_kit.result import Result
from sae_kit.viz.browser.atlas import MEASURES

SITES = tuple(f"blocks.{i}.hook_resid_pre" for i in range(3))
N_CONTEXTS, N_POS, N_BEFORE, WINDOW = 40, 16, 4, 7

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 1'>",
    "\"quoted' &amp; `${window.hacked = 1}`",
    "\u202eright-to-left override",
    "\u05d0\u05d1\u05d2 \u0627\u0644",  # Hebrew and Arabic letters
    "\x00\x07\x1b[31m\x7f",  # control characters
    "\u200b\ufeff",  # zero width
    "\n\t ",
    " javascript:window.hacked=1",
    "\U0001f600\u0301",
)
"""Tokens that a careless page would run, hide or be rearranged by."""
WORDS = (*HOSTILE, *(f" word{i}" for i in range(50)))


def subject(**changes: Any) -> dict[str, Any]:
    """What the results are of."""
    saes = {site: {"arch": "topk", "d_sae": 70, "d_in": 8, "digest": site} for site in SITES}
    tokens = {"kind": "docs", "context_size": N_POS}
    own = {"model": "toy <b>", "revision": None, "centre_writing_weights": False, "seed": 0}
    return {**own, "saes": saes, "tokens": tokens, **changes}


def dashboard(*, d_sae: int = 70, neuronpedia: str = "gpt2-small/6-res-jb") -> Result:
    """Every latent fires at places of its own; latent 3 never does."""
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(len(WORDS), (N_CONTEXTS, N_POS), generator=generator).int()
    texts = [word.encode() for word in WORDS]
    arrays: dict[str, torch.Tensor] = {
        "contexts": contexts,
        "vocabulary": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8),
        "vocabulary_ends": torch.tensor([len(text) for text in texts]).cumsum(0),
        "prompt/0/tokens": torch.arange(6),
    }
    for site in SITES:
        arrays |= _latents(site, d_sae, generator)
        latent = torch.rand(6, d_sae, generator=generator).topk(4).indices
        latent[latent == 3] = 4  # which fires nowhere
        arrays[f"prompt/0/latent/{site}"] = latent.int()
        arrays[f"prompt/0/activation/{site}"] = torch.tensor([4.0, 3.0, 2.0, 0.0]).repeat(6, 1)
    rows = [
        {"site": site, "d_sae": d_sae, "l0": 4.0, "writes": site, "neuronpedia": neuronpedia}
        for site in SITES
    ]
    scalars = {"n_tokens": contexts.numel(), "n_positions": contexts.numel() - N_CONTEXTS}
    provenance = {"subject": subject(), "evaluation": {"n_before": N_BEFORE}}
    return Result("dashboard", scalars, rows, arrays, provenance)


def _latents(site: str, d_sae: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """What is known of the latents of one site; the window's peak is as large as the largest."""
    fires = torch.arange(d_sae) != 3
    place = torch.rand(d_sae, N_CONTEXTS * N_POS, generator=generator).topk(6).indices.int()
    place[~fires] = -1
    acts = torch.zeros(d_sae, 6, WINDOW, dtype=torch.float16)
    acts[..., N_BEFORE] = torch.tensor([8.0, 7.0, 6.0, 5.0, 4.0, 3.0])
    sample = torch.full((d_sae, 16), -1, dtype=torch.int32)
    sample[:, 8:14] = place
    sample_acts = torch.zeros(d_sae, 16, WINDOW, dtype=torch.float16)
    sample_acts[:, 8:14] = acts
    histogram = torch.zeros(d_sae, 32, dtype=torch.int64)
    histogram[fires, 4:17] = torch.arange(13, 0, -1)
    tokens = torch.rand(d_sae, len(WORDS), generator=generator).topk(5)
    decoder = torch.rand(d_sae, d_sae, generator=generator).topk(4)
    return {
        f"n_active/{site}": histogram.sum(1),
        f"max/{site}": torch.where(fires, 8.0, 0.0),
        f"mean/{site}": torch.where(fires, 3.5, 0.0),
        f"histogram/{site}": histogram,
        f"bin_width/{site}": torch.full((d_sae,), 0.5),
        f"top_place/{site}": place,
        f"top_acts/{site}": acts,
        f"sample_place/{site}": sample,
        f"sample_acts/{site}": sample_acts,
        f"logits_promoted/{site}": tokens.indices.int(),
        f"logits_promoted_by/{site}": tokens.values,
        f"logits_suppressed/{site}": tokens.indices.flip(1).int(),
        f"logits_suppressed_by/{site}": -tokens.values,
        f"decoder_index/{site}": decoder.indices.int(),
        f"decoder_cosine/{site}": decoder.values,
    }


def evolution(*, d_sae: int = 70, **changes: Any) -> Result:
    """Latent i goes on as latent i, and a little as i + 1; latents 0 to 9 are one community."""
    arrays: dict[str, torch.Tensor] = {}
    own = torch.arange(d_sae)
    index = torch.cat([torch.stack([own, own], 1), torch.stack([own[:-1], own[1:]], 1)])
    strong = torch.tensor([0.9] * d_sae + [0.3] * (d_sae - 1))
    for up, down in pairwise(SITES):
        arrays[f"pairs/{up}>{down}/index"] = index
        arrays[f"pairs/{up}>{down}/n_both"] = torch.arange(len(index)) + 1
        for i, measure in enumerate(MEASURES):
            arrays[f"pairs/{up}>{down}/{measure}"] = strong - 0.01 * i
        arrays[f"boolean/{up}>{down}/index"] = torch.tensor([[0, 1, 2], [5, 6, 7]])
        arrays[f"boolean/{up}>{down}/kind"] = torch.tensor([0, 1])
        arrays[f"boolean/{up}>{down}/strict"] = torch.tensor([True, False])
    for site in SITES:
        arrays[f"n_active/{site}"] = torch.full((d_sae,), 50)
        arrays[f"max/{site}"] = torch.full((d_sae,), 8.0)
        arrays[f"community/{site}"] = torch.where(own < 10, own // 10, -1)
    provenance = {"subject": subject(**changes), "evaluation": {}}
    return Result("feature_evolution", {"n_tokens": 640}, [{"pair": "0>1"}], arrays, provenance)
