"""Hosts by themselves; tests/evals/test_perturbation.py holds them against full runs."""

import pytest
import torch
from conftest import random_gpt2

from sae_kit.evals.perturb.hosts import Place, first_block

MODEL = random_gpt2()
TOKENS = torch.randint(300, (3, 7), generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([4, 5, 6])


@pytest.mark.parametrize(
    ("site", "block"),
    [
        ("blocks.0.hook_resid_pre", 0),
        ("blocks.4.hook_resid_pre", 4),
        ("blocks.4.hook_resid_mid", 5),
        ("blocks.4.hook_resid_post", 5),
    ],
)
def test_the_first_attention_after_a_site(site, block):
    assert first_block(site) == block


@pytest.mark.parametrize("position", [None, -1, 2])
def test_the_base_put_back_gives_the_model_itself(position):
    place = Place(write="blocks.1.hook_resid_pre", position=position)
    hosts = place.hosts(MODEL, TOKENS, INDEX)
    where = slice(None) if position is None else [position]
    own = MODEL.run(TOKENS, capture=["blocks.2.mlp.hook_pre", place.write])
    torch.testing.assert_close(hosts.base, own.acts[place.write][:, where])
    assert hosts.index.tolist() == [4, 5, 6]
    outcome = hosts.outcome(hosts.base[:, None], sites=["blocks.2.mlp.hook_pre"], logits=True)
    torch.testing.assert_close(outcome.logits[:, 0], own.logits[:, where])
    pre = outcome.acts["blocks.2.mlp.hook_pre"]
    torch.testing.assert_close(pre[:, 0], own.acts["blocks.2.mlp.hook_pre"][:, where])


@pytest.mark.parametrize("position", [None, -1])
def test_without_logits_the_run_ends_at_the_last_site_asked_for(position):
    hosts = Place(write="blocks.1.hook_resid_pre", position=position).hosts(MODEL, TOKENS, INDEX)
    sites = ["blocks.1.hook_mlp_out", "blocks.1.attn.hook_q"]
    outcome = hosts.outcome(hosts.base[:, None], sites=sites, logits=False)
    assert outcome.logits is None
    assert {site: act.shape[-1] for site, act in outcome.acts.items()} == dict.fromkeys(sites, 32)


def test_targets_are_the_tokens_that_come_next():
    hosts = Place(write="blocks.1.hook_resid_pre", position=2).hosts(MODEL, TOKENS, INDEX)
    assert torch.equal(hosts.targets(), TOKENS[:, 3:4])
    every = Place(write="blocks.1.hook_resid_pre", position=None).hosts(MODEL, TOKENS, INDEX)
    assert torch.equal(every.targets()[:, :-1], TOKENS[:, 1:])
