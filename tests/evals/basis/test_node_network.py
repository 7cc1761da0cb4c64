"""Cutting networks into node layers."""

import pytest
import torch
from conftest import random_gpt2
from torch import nn

from sae_kit.evals.basis.node_network import NodeNetwork, of_gpt2, of_modules

SITES = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid", "blocks.2.hook_resid_post"]


def test_a_chain_of_modules_is_cut_between_them():
    modules = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)]
    network = of_modules(modules)
    assert network.names == ("0", "1", "2", "3")
    x = torch.randn(4, 1, 3)
    acts = network.activations(x)
    assert [a.shape[-1] for a in acts] == [3, 5, 5, 2]
    torch.testing.assert_close(acts[-1], nn.Sequential(*modules)(x))
    torch.testing.assert_close(network.outputs(acts[1], 1), acts[-1])


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(300, (2, 6), generator=torch.Generator().manual_seed(0))


def test_a_gpt2_is_cut_at_sites_of_its_residual_stream(tokens):
    model = random_gpt2().double()
    expected = model.run(tokens, capture=SITES).acts
    acts = of_gpt2(model, SITES).activations(expected[SITES[0]])
    for site, act in zip(SITES, acts, strict=True):
        torch.testing.assert_close(act, expected[site])


def test_a_first_token_that_all_inputs_share_is_a_part_of_the_network(tokens):
    model = random_gpt2().double()
    tokens[:, 0] = 7
    expected = model.run(tokens, capture=SITES).acts
    prefix = model.run(tokens[:1, :1], keep_prefix=True).prefix
    acts = of_gpt2(model, SITES, prefix).activations(expected[SITES[0]][:, 1:])
    for site, act in zip(SITES, acts, strict=True):
        torch.testing.assert_close(act, expected[site][:, 1:])


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out"], "is not the whole residual stream"),
        (["blocks.1.hook_resid_pre", "blocks.0.hook_resid_pre"], "not in the order of the model"),
        (["blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre"], "each once"),
        (["blocks.1.hook_resid_pre"], "at least two node layers"),
        (["blocks.1.hook_resid_pre", "blocks.9.hook_resid_pre"], "no site"),
    ],
)
def test_cuts_that_are_none_are_refused(sites, message):
    with pytest.raises(ValueError, match=message):
        of_gpt2(random_gpt2().double(), sites)


def test_single_precision_is_refused():
    with pytest.raises(ValueError, match="float32 is too coarse"):
        of_gpt2(random_gpt2(), SITES)


def test_names_and_sections_belong_together():
    with pytest.raises(ValueError, match="2 names and 2 sections"):
        NodeNetwork(("a", "b"), (nn.ReLU(), nn.ReLU()))
