"""Logit effects against runs of the model, neighbours against the whole matrix of cosines."""

import pytest
import torch
import torch.nn.functional as F
from conftest import random_gpt2
from torch.testing import assert_close

from sae_kit.evals.latents import readout
from sae_kit.evals.latents.readout import logit_effects, nearest_directions, to_stream

MODEL = random_gpt2()
LAST = "blocks.2.hook_resid_post"


def directions(n=12, width=32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(4))


def test_effects_are_differences_of_the_models_own_logits():
    """A direction added to the last residual stream, with the norm's scale held where it was."""
    tokens = torch.tensor([[3, 1, 4]])
    base = MODEL.run(tokens, capture=[LAST]).acts[LAST]
    scale = MODEL.run(tokens, capture=["ln_final.hook_scale"]).acts["ln_final.hook_scale"]

    def logits(acts):
        held = {"ln_final.hook_scale": lambda _: scale}
        return MODEL.run(start=(LAST, acts), edit=held).logits[0, -1]

    n = MODEL.config.n_vocab
    effects = logit_effects(MODEL, directions(), n=n, n_tokens=n)
    for i, direction in enumerate(directions()):
        change = (logits(base + direction) - logits(base)) * scale[0, -1]
        change = change - change.mean()
        assert_close(effects.promoted_by[i], change[effects.promoted[i]], atol=1e-4, rtol=1e-4)
        assert_close(effects.promoted_by[i], change.sort(descending=True).values, atol=1e-4, rtol=0)
        assert_close(effects.suppressed_by[i], change.sort().values, atol=1e-4, rtol=0)


def test_padding_of_the_vocabulary_is_no_token():
    effects = logit_effects(MODEL, directions(), n=5, n_tokens=40)
    assert effects.promoted.max() < 40
    assert effects.suppressed.max() < 40


@pytest.mark.parametrize(
    ("site", "after"),
    [
        ("blocks.1.attn.hook_z", "blocks.1.hook_attn_out"),
        ("blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_mlp_out", "blocks.1.hook_mlp_out"),
    ],
)
def test_what_a_site_adds_to_the_stream_is_what_the_model_makes_of_it(site, after):
    rows, tokens = directions(width=MODEL.width(site)), torch.tensor([[3]])
    clean = MODEL.run(tokens, capture=[site, after]).acts
    for row, written in zip(rows, to_stream(MODEL, site, rows), strict=True):
        add = {site: lambda acts, row=row: acts + row.view(acts.shape)}
        edited = MODEL.run(tokens, capture=[after], edit=add).acts[after]
        assert_close((edited - clean[after])[0, 0], written, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", ["blocks.1.mlp.hook_pre", "blocks.1.ln1.hook_normalized"])
def test_what_reaches_the_stream_otherwise_than_linearly_has_no_effects(site):
    assert to_stream(MODEL, site, directions(width=MODEL.width(site))) is None


def test_neighbours_are_the_largest_cosines_but_for_oneself(monkeypatch):
    monkeypatch.setattr(readout, "MAX_VALUES", 40)  # some rows at a time
    rows = directions()
    rows[3] = 2 * rows[7]
    index, cosine = nearest_directions(rows, 4)
    all_pairs = F.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(-torch.inf)
    assert torch.equal(index, all_pairs.topk(4).indices)
    assert_close(cosine, all_pairs.topk(4).values, atol=1e-5, rtol=0)
    assert index[3, 0] == 7
    assert cosine[3, 0] == pytest.approx(1.0, abs=1e-6)
