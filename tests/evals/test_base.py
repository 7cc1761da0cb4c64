"""Subjects: their text, and whether SAEs fit the model."""

import dataclasses

import pytest
import torch
import toy_subject

from sae_kit.data.tokens import take
from sae_kit.dist import World
from sae_kit.evals import base
from sae_kit.sae.topk import TopKConfig

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
    vocab = subject.model.config.n_vocab
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
        ({"blocks.1.mlp.hook_post": 32}, "hook_post' is 64 wide, and the SAE reads 32"),
    ],
)
def test_saes_that_do_not_fit_are_refused(subject, saes, message):
    made = {site: toy_subject.identity_sae(width) for site, width in saes.items()}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(subject, saes=made).check_saes()


# --- several sets of them -------------------------------------------------------------------------


def compared(subject, **sets):
    return dataclasses.replace(
        subject,
        saes={},
        compared=tuple(base.Compared(label=label, saes=saes) for label, saes in sets.items()),
    )


def test_one_set_is_a_set_without_a_label(subject):
    (one,) = subject.sets
    assert (one.label, one.saes) == ("", subject.saes)


def test_every_compared_set_is_checked_and_described(subject):
    site = toy_subject.SITES[0]
    good, bad = toy_subject.random_saes((site,)), {site: toy_subject.identity_sae(16)}
    both = compared(subject, a=good, b=good)
    both.check_saes()
    assert [one.label for one in both.sets] == ["a", "b"]
    assert both.description()["compared"]["b"][site]["d_in"] == 32
    assert "compared" not in subject.description()
    with pytest.raises(ValueError, match=r"is 32 wide, and the SAE reads 16"):
        compared(subject, a=good, b=bad).check_saes()
    with pytest.raises(ValueError, match="saes: none given in b"):
        compared(subject, a=good, b={}).check_saes()


def test_sets_are_told_apart_and_stand_in_the_place_of_saes(subject):
    one = base.Compared(label="a", saes=subject.saes)
    with pytest.raises(ValueError, match="compared: there are saes as well"):
        dataclasses.replace(subject, compared=(one,))
    with pytest.raises(ValueError, match="are not all different"):
        dataclasses.replace(subject, saes={}, compared=(one, one))


# --- transcoders ----------------------------------------------------------------------------------

READS, WRITES = "blocks.1.ln2.hook_normalized", "blocks.1.mlp.hook_post"


def transcoder(d_out: int = 64, **metadata):
    config = TopKConfig(d_sae=16, k=2, apply_b_dec_to_input=False)
    sae = config.build(32, d_out, generator=torch.Generator().manual_seed(0))
    sae.metadata = metadata
    return sae


def test_a_transcoder_says_where_its_output_belongs(subject):
    saes = {READS: transcoder(hook_name_out=WRITES), **subject.saes}
    both = dataclasses.replace(subject, saes=saes)
    both.check_saes()
    assert both.writes == {READS: WRITES, **{site: site for site in subject.saes}}


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (transcoder(), "does not say which site it writes; set hook_name_out"),
        (transcoder(hook_name_out="blocks.1.hook_out"), r"hook_name_out\): the model has no site"),
        (transcoder(32, hook_name_out=WRITES), rf"d_out 32, but '{WRITES}' is 64 wide"),
    ],
)
def test_transcoders_that_do_not_fit_are_refused(subject, sae, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(subject, saes={READS: sae}).check_saes()
