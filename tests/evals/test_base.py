"""Subjects, their text, and runs with an activation replaced."""

import dataclasses

import pytest
import torch
import toy_subject
from torch.testing import assert_close

from sae_kit.data.tokens import take
from sae_kit.dist import World
from sae_kit.evals import base
from sae_kit.evals.base import logits_with, replaced

MODEL = toy_subject.model()
STREAM = [site for site in MODEL.sites() if ".hook_resid_" in site]


@pytest.fixture(scope="module")
def tokens():
    draw = torch.Generator().manual_seed(3)
    return torch.randint(MODEL.config.n_vocab, (3, 10), generator=draw)


def noisy(acts):
    return acts + 0.5 * torch.randn(acts.shape, generator=torch.Generator().manual_seed(4))


# --- text -----------------------------------------------------------------------------------------


def test_contexts_are_the_heldout_ones_rounded_up_to_whole_contexts(subject):
    contexts = subject.contexts(3 * toy_subject.CONTEXT + 1)
    source = subject.tokens.open(
        toy_subject.tokenizer(), split="heldout", world=World(0, 1), seed=subject.seed
    )
    assert torch.equal(contexts, take(source, 4))


def test_no_context_comes_twice(subject):
    contexts = subject.contexts(10**9)
    assert len(contexts.unique(dim=0)) == len(contexts) > 10


def test_the_seed_orders_the_text(subject):
    other = dataclasses.replace(subject, seed=1)
    assert not torch.equal(subject.contexts(500), other.contexts(500))


def test_a_context_longer_than_the_models_is_refused(subject):
    long = dataclasses.replace(subject.tokens, context_size=129)
    with pytest.raises(ValueError, match="context_size=129 is longer than the model's"):
        subject.contexts(1000, long)


def test_a_pass_with_logits_is_bounded_but_takes_at_least_one_context(subject, monkeypatch):
    vocab = MODEL.config.n_vocab
    monkeypatch.setattr(base, "MAX_LOGITS", 64 * vocab * 3 + 5)
    assert subject.contexts_per_pass(64) == 3
    assert subject.contexts_per_pass(10_000) == 1


# --- SAEs -----------------------------------------------------------------------------------------


def test_saes_that_fit_are_accepted(subject):
    subject.check_saes()


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        ({}, "saes: none given"),
        ({"blocks.7.hook_resid_pre": 32}, "saes: the model has no site 'blocks.7.hook_resid_pre'"),
        ({"blocks.1.mlp.hook_post": 32}, "d_in 32, but the site is 64 wide"),
    ],
)
def test_saes_that_do_not_fit_are_refused(subject, saes, message):
    made = {site: toy_subject.identity_sae(width) for site, width in saes.items()}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(subject, saes=made).check_saes()


# --- replaced activations -------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(6,), (2, 3)])
def test_counting_positions_are_replaced_in_reading_order_and_the_others_untouched(axes):
    acts = torch.arange(2 * 4 * 6.0).view(2, 4, *axes)
    counts = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.bool)
    rows = -torch.arange(3 * 6.0).view(3, 6)
    kept = acts.clone()
    result = replaced(acts, counts, rows)
    assert torch.equal(acts, kept), "the argument belongs to the caller"
    assert torch.equal(result[~counts], acts[~counts])
    assert torch.equal(result[counts].flatten(1), rows)
    assert torch.equal(replaced(acts, counts, rows[0])[counts].flatten(1), rows[:1].expand(3, 6))


@pytest.mark.parametrize("site", STREAM)
def test_a_run_from_a_site_equals_a_run_from_the_tokens_with_that_site_edited(site, tokens):
    acts = noisy(MODEL.run(tokens, capture=[site]).acts[site])
    from_tokens = MODEL.run(tokens, edit={site: lambda _: acts}).logits
    assert_close(logits_with(MODEL, tokens, site, acts), from_tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", ["blocks.0.hook_mlp_out", "blocks.1.attn.hook_z", "hook_embed"])
def test_sites_beside_the_stream_are_replaced_too(site, tokens):
    run = MODEL.run(tokens, capture=[site])
    assert_close(logits_with(MODEL, tokens, site, run.acts[site]), run.logits, atol=1e-5, rtol=1e-5)
    changed = logits_with(MODEL, tokens, site, noisy(run.acts[site]))
    assert (changed - run.logits).abs().max() > 0.1


@pytest.mark.parametrize("site", toy_subject.SITES)
def test_reconstruction_plus_error_term_changes_nothing(site, tokens, subject):
    run = MODEL.run(tokens, capture=[site])
    x = run.acts[site].flatten(0, 1)
    with torch.no_grad():
        recon = subject.saes[site](x)
    whole = recon + (x - recon)
    acts = replaced(run.acts[site], torch.ones_like(tokens, dtype=torch.bool), whole)
    assert_close(logits_with(MODEL, tokens, site, acts), run.logits, atol=1e-4, rtol=1e-5)
