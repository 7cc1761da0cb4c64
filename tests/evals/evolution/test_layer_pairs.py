"""layer_pairs: which sites are compared, and which cannot be."""

import pytest
import torch
import toy_subject

from sae_kit.evals.base import Subject
from sae_kit.evals.evolution.layer_pairs import adjacent, named
from sae_kit.sae.topk import TopKConfig

PRE_0, MID_0, PRE_1, MID_1, POST_1 = (
    f"blocks.{i}.hook_resid_{point}"
    for i, point in ((0, "pre"), (0, "mid"), (1, "pre"), (1, "mid"), (1, "post"))
)


def subject(folder, *sites: str) -> Subject:
    return toy_subject.subject(folder, toy_subject.random_saes(sites))


def test_neighbours_are_in_the_order_of_the_model(tmp_path):
    pairs = adjacent(subject(tmp_path, POST_1, PRE_0, PRE_1))
    assert [pair.name for pair in pairs] == [f"{PRE_0}>{PRE_1}", f"{PRE_1}>{POST_1}"]


def test_one_site_has_no_neighbour(tmp_path):
    with pytest.raises(ValueError, match=r"only blocks\.0\.hook_resid_pre has one"):
        adjacent(subject(tmp_path, PRE_0))


@pytest.mark.slow
def test_a_block_that_is_missing_in_between_is_named(tmp_path, monkeypatch):
    own = subject(tmp_path, PRE_0, POST_1)
    sites = [PRE_0, PRE_1, "blocks.2.hook_resid_pre"]
    saes = {PRE_0: own.saes[PRE_0], "blocks.2.hook_resid_pre": own.saes[POST_1]}
    monkeypatch.setattr(type(own.model), "sites", lambda _: dict.fromkeys(sites, ()))
    gap = Subject(language_model=own.language_model, saes=saes, tokens=own.tokens)
    with pytest.raises(
        ValueError, match=r"none at blocks\.1\.hook_resid_pre, between .*eval\.pairs"
    ):
        adjacent(gap)
    assert len(named([f"{PRE_0}>blocks.2.hook_resid_pre"], gap)) == 1


def test_named_pairs_are_sorted_and_may_leave_out_sites(tmp_path):
    own = subject(tmp_path, PRE_0, MID_0, PRE_1)
    pairs = named([f"{MID_0} > {PRE_1}", f"{PRE_0}>{PRE_1}"], own)
    assert [pair.name for pair in pairs] == [f"{PRE_0}>{PRE_1}", f"{MID_0}>{PRE_1}"]


@pytest.mark.parametrize(
    "bad", [f"{PRE_1}>{PRE_0}", PRE_0, f"{PRE_0}>{POST_1}", f"{PRE_0}>{PRE_0}"]
)
def test_what_is_no_pair_of_sites_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=r"is no pair of sites with SAEs, the earlier first"):
        named([bad], subject(tmp_path, PRE_0, PRE_1))


def test_a_pair_given_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one twice"):
        named([f"{PRE_0}>{PRE_1}", f"{PRE_0}> {PRE_1}"], subject(tmp_path, PRE_0, PRE_1))


def test_decoders_of_two_widths_cannot_be_compared(tmp_path):
    hidden = "blocks.0.mlp.hook_post"
    width = toy_subject.model().width(hidden)
    saes = toy_subject.random_saes((PRE_0,))
    saes[hidden] = TopKConfig(d_sae=96, k=4).build(width, generator=torch.Generator())
    with pytest.raises(ValueError, match=rf"widths 32 and {width}"):
        adjacent(toy_subject.subject(tmp_path, saes))
