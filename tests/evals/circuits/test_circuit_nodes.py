"""What nodes write, added up, is the model's stream; latents and the rest are what they replace."""

import pytest
import torch
from circuits.benches import random_bench, random_pairs
from conftest import random_gpt2

from sae_kit.evals.circuits.circuit import SAE_SITES, Chosen, Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_nodes import Need
from sae_kit.evals.shared.ablations import ABLATIONS
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.sae.base import SAE
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

SMALL = GPT2Config(n_layer=2, n_head=2, d_model=8, d_mlp=8, n_ctx=6, n_vocab=11)
BLOCK = 1


@pytest.fixture(scope="module")
def model() -> GPT2:
    return random_gpt2(SMALL).double()


def sae_of(arch: str) -> SAE:
    config = TopKConfig(d_sae=12, k=4) if arch == "topk" else ReLUConfig(d_sae=12)
    sae = config.build(8, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(1))
    return sae


def test_nodes_add_up_to_the_stream(model: GPT2) -> None:
    bench = random_bench(model)
    sites = [f"blocks.{i}.attn.hook_result" for i in range(2)]
    acts = model.run(bench.pairs.clean, capture=[*sites, "blocks.1.hook_mlp_out"]).acts
    outs = bench.clean.outs  # the embedding, heads, MLP, heads, MLP, what the logits hear
    for block, site in enumerate(sites):
        torch.testing.assert_close(outs[1 + 2 * block], acts[site].movedim(2, 0))
    torch.testing.assert_close(outs[4][0], acts["blocks.1.hook_mlp_out"])


@pytest.mark.parametrize("arch", ["topk", "relu"])
@pytest.mark.parametrize("site", SAE_SITES)
def test_latents_and_the_rest_are_the_model(model: GPT2, site: str, arch: str) -> None:
    """SAE(x) + (x - SAE(x)) = x: METHODS 11.4."""
    where = f"blocks.{BLOCK}.{site}"
    graph = Graph(model, {where: Chosen(sae_of(arch), torch.tensor([1, 4, 7]))})
    pairs = random_pairs(3, 5, SMALL.n_vocab)
    bench = CircuitBench.of(graph, pairs, ABLATIONS["corrupt"](3, seed=0), metric="kl")
    expected = model.run(pairs.clean).logits[:, -1]
    torch.testing.assert_close(bench.logits(Circuit.full(graph)), expected)
    torch.testing.assert_close(bench.answers.clean.logits, expected)


def test_a_cut_latent_is_the_model_with_its_activation_replaced(model: GPT2) -> None:
    site, sae, chosen = "blocks.1.hook_resid_pre", sae_of("relu"), torch.tensor([1, 4, 7])
    graph = Graph(model, {site: Chosen(sae, chosen)})
    pairs = random_pairs(3, 5, SMALL.n_vocab)
    bench = CircuitBench.of(graph, pairs, ABLATIONS["corrupt"](3, seed=0), metric="kl")
    edges = graph.allowed.clone()
    edges[:, graph.senders.index(f"{site}/4")] = False
    x, other = (model.run(t, capture=[site]).acts[site] for t in (pairs.clean, pairs.corrupt))
    change = (sae.encode(other) - sae.encode(x))[..., 4, None] * sae.W_dec[4]
    expected = model.run(start=(site, x + change)).logits[:, -1]
    torch.testing.assert_close(bench.logits(Circuit.of(graph, edges)), expected)


def test_keys_and_values_are_needed_of_all_positions(model: GPT2) -> None:
    heads, mlp = Graph(model).levels[:2]
    assert [heads.needs(part, Need.LAST) for part in range(3)] == [Need.LAST, Need.ALL, Need.ALL]
    assert [heads.needs(part, Need.NONE) for part in range(3)] == [Need.NONE] * 3
    assert mlp.needs(0, Need.LAST) == Need.LAST
