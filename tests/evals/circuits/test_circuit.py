"""The graph of a GPT-2, and circuits as sets of its edges: METHODS 9(f), sum rule and bad input."""

import pytest
import torch
from conftest import random_gpt2

from sae_kit.evals.circuits.circuit import Chosen, Circuit, Graph
from sae_kit.evals.circuits.circuit_nodes import Need
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.sae.topk import TopKConfig

SMALL = GPT2Config(n_layer=2, n_head=2, d_model=8, d_mlp=8, n_ctx=6, n_vocab=11)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph(random_gpt2(SMALL))


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_edges", "n_direct"),
    # By hand: one head in one block hears once each for q, k, v; its MLP hears 2, the logits 3.
    [(1, 1, 3 + 2 + 3, 3), (12, 12, 32_491, 432)],
)
def test_sum_rule(n_layer: int, n_head: int, n_edges: int, n_direct: int) -> None:
    width = {"d_model": n_head, "d_mlp": 1, "n_ctx": 1, "n_vocab": 1}
    graph = Graph(GPT2(GPT2Config(n_layer=n_layer, n_head=n_head, **width)))
    by_block = sum(
        3 * n_head * (1 + (n_head + 1) * i) + 1 + (n_head + 1) * i + n_head for i in range(n_layer)
    )
    assert graph.n_edges == by_block + 1 + (n_head + 1) * n_layer == n_edges
    assert int(graph.is_direct.sum()) == 3 * n_head * n_layer == n_direct


def test_everybody_hears_all_that_come_before_and_nobody_else(graph: Graph) -> None:
    heard = {}
    for sender, receiver in graph.names(graph.allowed):
        heard.setdefault(receiver, []).append(sender)
    assert heard["a0.1.k"] == ["embed"]
    assert heard["m0"] == ["embed", "a0.0", "a0.1"]
    assert heard["a1.0.q"] == ["embed", "a0.0", "a0.1", "m0"]
    assert heard["logits"] == ["embed", "a0.0", "a0.1", "m0", "a1.0", "a1.1", "m1"]


def test_names_and_edges_are_the_same_thing(graph: Graph) -> None:
    assert torch.equal(graph.find(graph.names(graph.allowed)), graph.allowed)


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (("embd", "m0"), "sender: the graph has no 'embd'; give embed"),
        (("embed", "a0.0"), "receiver: the graph has no 'a0.0'; give a0.0"),
        (("m0", "a0.1.q"), "edge: a0.1.q does not hear m0"),
        (("logits", "m0"), "sender: the graph has no 'logits'"),
    ],
)
def test_an_unknown_edge_is_refused(graph: Graph, edge: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph.find([edge])


def test_an_unknown_node_is_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match=r"node: the graph has no 'a5\.0'"):
        graph.find_nodes(["a5.0"])


def test_a_circuit_and_its_complement_are_the_model(graph: Graph) -> None:
    part = Circuit.of(graph, graph.find([("embed", "m0"), ("m0", "a1.0.v"), ("a1.0", "logits")]))
    rest = part.complement()
    assert part.n_edges + rest.n_edges == graph.n_edges
    assert torch.equal(part.edges | rest.edges, graph.allowed)
    assert part.direct.sum() == 1 + 3  # of a1.0.v, and the receivers that have none
    assert [graph.senders[i] for i in part.nodes.nonzero()[:, 0]] == ["embed", "m0", "a1.0"]


def test_edges_that_lead_nowhere_are_dead(graph: Graph) -> None:
    alive = [("embed", "m0"), ("m0", "logits")]
    dead = [("embed", "a0.0.q"), ("a0.0", "a1.1.k")]
    circuit = Circuit.of(graph, graph.find(alive + dead))
    assert graph.names(circuit.without_dead().edges) == alive


def test_edges_from_nowhere_are_unfed(graph: Graph) -> None:
    fed = [("embed", "m0"), ("m0", "logits")]
    circuit = Circuit.of(graph, graph.find([*fed, ("a0.0", "a1.1.k"), ("a1.1", "logits")]))
    assert graph.names(circuit.without_unfed().edges) == fed


def test_a_cut_direct_edge_makes_what_is_behind_it_dead_and_unfed(graph: Graph) -> None:
    way = [("embed", "a0.0.v"), ("a0.0", "logits")]
    circuit = Circuit.of(graph, graph.find(way))
    cut = circuit.without_direct(graph.receivers.index("a0.0.v"))
    assert graph.names(cut.without_dead().edges) == [("a0.0", "logits")]
    assert graph.names(cut.without_unfed().edges) == [("embed", "a0.0.v")]


def test_only_the_last_position_of_what_the_logits_hear_matters(graph: Graph) -> None:
    circuit = Circuit.of(graph, graph.find([("a0.0", "a1.0.q"), ("a1.0", "logits")]))
    needs = dict(zip(graph.receivers, circuit.needs.tolist(), strict=True))
    assert needs["logits"] == needs["a1.0.q"] == Need.LAST
    # Queries of the last position, but its keys and values of all: cut, as is the direct edge.
    assert needs["a1.0.k"] == needs["a0.1.q"] == Need.NONE
    whole = dict(zip(graph.receivers, Circuit.full(graph).needs.tolist(), strict=True))
    assert whole["a1.0.k"] == whole["a0.0.q"] == Need.ALL
    assert whole["a1.1.q"] == whole["m1"] == Need.LAST


def test_latents_stand_between_what_comes_before_and_after() -> None:
    model = random_gpt2(SMALL)
    sae = TopKConfig(d_sae=12, k=2).build(8, generator=torch.Generator().manual_seed(0))
    site = "blocks.1.hook_resid_pre"
    graph = Graph(model, {site: Chosen(sae, torch.tensor([3, 5]))})
    latents = [f"{site}/{name}" for name in (3, 5, "rest")]
    heard = [sender for sender, receiver in graph.names(graph.allowed) if receiver == "a1.0.q"]
    assert heard == latents
    with pytest.raises(ValueError, match="past no latents"):
        graph.find([("m0", "a1.0.q")])


@pytest.mark.parametrize("site", ["blocks.1.hook_z", "blocks.7.hook_resid_pre"])
def test_latents_of_another_place_are_refused(site: str) -> None:
    sae = TopKConfig(d_sae=12, k=2).build(8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="is no place of the graph"):
        Graph(random_gpt2(SMALL), {site: Chosen(sae, torch.tensor([0]))})


def test_a_transcoder_is_refused() -> None:
    site = "blocks.1.hook_mlp_out"
    config = TopKConfig(d_sae=12, k=2, apply_b_dec_to_input=False)
    sae = config.build(8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="is a transcoder"):
        Graph(random_gpt2(SMALL), {site: Chosen(sae, torch.tensor([0]))})
