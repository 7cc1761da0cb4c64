"""Runs with activations replaced: what is replaced, what follows, and what a gradient sees."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, parts_run, random_gpt2
from torch.testing import assert_close

from sae_kit.models.gpt2 import GPT2
from sae_kit.models.splice import CleanRun, run_with

MODEL = random_gpt2()
STREAM = [site for site in MODEL.sites() if ".hook_resid_" in site]
SITES = [*STREAM[::3], "blocks.0.hook_mlp_out", "blocks.1.attn.hook_z", "blocks.2.mlp.hook_post"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tokens():
    draw = torch.Generator().manual_seed(3)
    return torch.randint(SMALL.n_vocab, (3, 10), generator=draw)


@pytest.fixture(scope="module")
def counts(tokens):
    counts = torch.ones_like(tokens, dtype=torch.bool)
    counts[:, 0] = counts[1, 4] = False
    return counts


@pytest.fixture(scope="module")
def clean(tokens, counts):
    return CleanRun(MODEL, tokens, counts, capture=list(MODEL.sites()))


# --- a site replaced as a whole -------------------------------------------------------------------


@pytest.mark.parametrize("site", STREAM)
def test_starting_at_a_stream_site_is_editing_it(tokens, site):
    acts = MODEL.run(tokens, capture=[site]).acts[site]
    acts = acts + 0.5 * randn(*acts.shape)
    edited = MODEL.run(tokens, edit={site: lambda _: acts}).logits
    assert_close(run_with(MODEL, tokens, site, acts).logits, edited, atol=1e-5, rtol=1e-5)


def test_a_site_that_others_bypass_is_edited_in_a_whole_run(tokens):
    site, after = "blocks.1.hook_attn_out", "blocks.1.hook_resid_mid"
    clean = MODEL.run(tokens, capture=[site, "blocks.1.hook_resid_pre"]).acts
    acts = torch.zeros_like(clean[site])
    run = run_with(MODEL, tokens, site, acts, capture=[after])
    assert torch.equal(run.acts[after], clean["blocks.1.hook_resid_pre"])


@pytest.mark.parametrize("site", ["blocks.0.hook_mlp_out", "blocks.1.attn.hook_z", "hook_embed"])
def test_such_a_sites_own_activations_change_nothing(tokens, site):
    run = MODEL.run(tokens, capture=[site])
    same = run_with(MODEL, tokens, site, run.acts[site].clone())
    assert_close(same.logits, run.logits, atol=1e-5, rtol=1e-5)


# --- the positions that count ---------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_counting_positions_are_replaced_in_reading_order_and_the_others_untouched(
    clean, tokens, counts, site
):
    own, rows = clean.acts[site], randn(27 - 1, MODEL.width(site))
    assert clean.n_rows == len(rows)
    kept = own.clone()
    run = clean.spliced(site, rows, capture=[site])
    spliced = run.acts[site].flatten(2)
    assert torch.equal(spliced[counts], rows)
    assert torch.equal(spliced[~counts], own.flatten(2)[~counts])
    assert torch.equal(clean.select(run.acts[site]), rows)
    assert torch.equal(own, kept), "the clean run is everybody's"
    assert_close(run.logits, MODEL.run(tokens, edit={site: lambda _: run.acts[site]}).logits)


def test_one_row_stands_for_all(clean):
    site = SITES[1]
    row = randn(32)
    one, all_rows = clean.spliced(site, row), clean.spliced(site, row.expand(clean.n_rows, -1))
    assert torch.equal(one.logits, all_rows.logits)


@pytest.mark.parametrize("site", STREAM[::3])
def test_its_own_activations_change_nothing(tokens, counts, site):
    """To the bit, unless the clean run reads inside of attention or a LayerNorm."""
    clean = CleanRun(MODEL, tokens, counts, capture=STREAM)
    run = clean.spliced(site, clean.select(clean.acts[site]))
    assert torch.equal(clean.kl(run), torch.zeros(clean.n_rows))


def test_a_half_precision_model_takes_float32_rows(tokens, counts):
    site = SITES[0]
    clean = CleanRun(random_gpt2().bfloat16(), tokens, counts, capture=[site])
    run = clean.spliced(site, randn(clean.n_rows, 32), capture=[site])
    assert run.acts[site].dtype == torch.bfloat16
    assert clean.kl(run).dtype == torch.float32


# --- a clean run in two parts ---------------------------------------------------------------------

CAPTURED = [
    [SITES[0]],
    ["blocks.2.hook_resid_pre", "blocks.0.hook_resid_post"],
    ["blocks.1.hook_mlp_out"],
    ["blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"],
    ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z"],
    ["hook_embed"],
    ["ln_final.hook_normalized"],
]
OBSERVED = [
    "blocks.2.hook_resid_post",
    "blocks.0.hook_resid_mid",
    "blocks.1.ln2.hook_scale",
    "blocks.1.hook_mlp_out",
    "blocks.2.attn.hook_result",
]


@pytest.mark.parametrize("sites", CAPTURED)
@pytest.mark.parametrize("observed", [[], OBSERVED])
def test_both_parts_are_one_run_bit_for_bit(sites, observed, tokens, counts):
    """Also where what is read makes the model compute another way."""
    clean = CleanRun(MODEL, tokens, counts, capture=sites, observe=observed)
    whole = MODEL.run(tokens, capture=[*sites, *observed])
    assert list(clean.acts) == sites
    assert list(clean.observed) == observed
    for site, acts in [*clean.acts.items(), *clean.observed.items()]:
        assert torch.equal(acts, whole.acts[site]), site
    assert torch.equal(clean.predictions.logits, whole.logits.flatten(0, 1))


PARTS = [f"blocks.{i}.{part}" for i in range(3) for part in ("ln1", "attn", "ln2", "mlp")]


@pytest.mark.parametrize(
    ("site", "last", "goes_on"),
    [
        ("hook_embed", None, "blocks.0.ln1"),
        ("blocks.1.hook_resid_pre", "blocks.0.mlp", "blocks.1.ln1"),
        ("blocks.1.attn.hook_z", "blocks.1.attn", "blocks.1.ln1"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp", "blocks.1.ln2"),
        ("blocks.2.hook_resid_post", "blocks.2.mlp", "ln_final"),
    ],
)
def test_nothing_is_run_before_it_is_asked_for_nor_twice(site, last, goes_on, tokens, counts):
    every = [*PARTS, "ln_final"]
    with parts_run(MODEL) as names:
        clean = CleanRun(MODEL, tokens, counts, capture=[site], observe=OBSERVED)
        n_first = 0 if last is None else every.index(last) + 1
        assert names == every[:n_first]
        names.clear()
        assert len(clean.predictions.logits) == tokens.numel()
        assert names == every[every.index(goes_on) :]
        names.clear()
        assert set(clean.observed) == set(OBSERVED)
        assert names == []


# --- the comparison -------------------------------------------------------------------------------


def test_kl_is_from_the_clean_run_to_the_spliced_one_at_counting_positions(clean, tokens, counts):
    run = clean.spliced(SITES[1], randn(clean.n_rows, 32))
    log_p = MODEL.run(tokens).logits.log_softmax(-1)[counts]
    log_q = run.logits.log_softmax(-1)[counts]
    # torch's argument order is (perturbed, clean)
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    assert_close(clean.kl(run), expected, atol=1e-5, rtol=1e-4)
    reverse = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    assert (expected - reverse).abs().mean() > 0.01


def test_gradients_reach_what_was_put_in_and_nothing_of_the_models(tokens, counts):
    model = random_gpt2().requires_grad_(True)
    site = "blocks.1.hook_resid_mid"
    clean = CleanRun(model, tokens, counts, capture=[site])
    assert not clean.acts[site].requires_grad
    assert not clean.predictions.logits.requires_grad
    rows = randn(clean.n_rows, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(clean.kl(clean.spliced(site, rows)).sum(), rows)
    assert (gradient != 0).any(-1).all()


def test_the_gradient_is_that_of_finite_differences():
    model = random_gpt2().double()
    assert isinstance(model, GPT2)
    tokens = torch.arange(8).view(2, 4)
    counts = torch.tensor([[False, True, True, False], [False, False, True, False]])
    clean = CleanRun(model, tokens, counts, capture=STREAM[4:5])
    own = clean.select(clean.acts[STREAM[4]])
    rows = (own + 0.1 * randn(*own.shape).double()).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r: clean.kl(clean.spliced(STREAM[4], r)), rows, fast_mode=True
    )
