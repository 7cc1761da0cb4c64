"""The shipped circuits have the nodes and edges that METHODS 9(b) says, and files are checked."""

import json

import pytest
import torch

from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.circuits.known_circuits import SHIPPED, read_circuit
from sae_kit.models.gpt2 import GPT2, GPT2Config

TINY = {"d_mlp": 1, "n_ctx": 1, "n_vocab": 1}


@pytest.fixture(scope="module")
def gpt2() -> Graph:
    """Of GPT-2 small's heads and blocks."""
    return Graph(GPT2(GPT2Config(n_layer=12, n_head=12, d_model=12, **TINY)))


def circuit(name: str, graph: Graph) -> Circuit:
    return Circuit.of(graph, read_circuit(name).find(graph))


def heads(found: Circuit) -> set[str]:
    senders = found.graph.senders
    return {senders[i] for i in found.nodes.nonzero()[:, 0] if senders[i].startswith("a")}


def test_shipped_are_those_of_the_paper() -> None:
    assert SHIPPED == ("docstring", "greater_than", "ioi")


def test_ioi_has_26_heads_and_all_mlps(gpt2: Graph) -> None:
    found = circuit("ioi", gpt2)
    assert len(heads(found)) == 26
    assert {"a9.9", "a5.5", "a0.10", "a11.10"} < heads(found)
    edges = set(gpt2.names(found.edges))
    assert {f"m{i}" for i in range(12)} < {sender for sender, _ in edges}
    assert {("a7.3", "a9.9.q"), ("embed", "a2.2.q"), ("a2.2", "a5.5.k"), ("m3", "a9.9.k")} < edges
    assert not {("a7.3", "a9.9.k"), ("embed", "a9.9.q"), ("a9.9", "a10.0.q")} & edges
    assert torch.equal(found.without_dead().edges, found.edges)


def test_greater_than_has_its_heads(gpt2: Graph) -> None:
    found = circuit("greater_than", gpt2)
    first, middle = {"a0.1", "a0.3", "a0.5"}, {"a5.5", "a6.1", "a6.9", "a7.10", "a8.11", "a9.1"}
    assert heads(found) == first | middle
    edges = set(gpt2.names(found.edges))
    assert {("embed", "a0.3.k"), ("a9.1", "logits"), ("a9.1", "m9"), ("m7", "a9.1.q")} < edges
    assert not {("m7", "a9.1.k"), ("a9.1", "m8"), ("embed", "logits")} & edges


def test_docstring_has_37_edges_with_the_direct_ones() -> None:
    config = GPT2Config(n_layer=4, n_head=8, d_model=8, **TINY)
    found = circuit("docstring", Graph(GPT2(config)))
    n_direct = int((found.direct & found.graph.is_direct).sum())
    assert found.n_edges + n_direct == 37
    assert heads(found) == {"a0.5", "a1.2", "a1.4", "a2.0", "a3.0", "a3.6"}


def test_a_circuit_of_a_larger_model_is_refused() -> None:
    graph = Graph(GPT2(GPT2Config(n_layer=2, n_head=2, d_model=2, **TINY)))
    with pytest.raises(ValueError, match="node: the graph has no"):
        read_circuit("ioi").find(graph)


def test_edges_are_read_one_by_one(gpt2: Graph, tmp_path) -> None:
    file = tmp_path / "circuit.json"
    edges = [{"sender": "embed", "receiver": "a0.1.q", "effect": 0.5}]
    file.write_text(json.dumps({"source": "by hand", "edges": edges}))
    assert gpt2.names(read_circuit(str(file)).find(gpt2)) == [("embed", "a0.1.q")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "is no mapping"),
        ("source: [", "is no YAML"),
        ("edges: []", "source: missing"),
        ("{source: a, connections: [{senders: embed, receivers: m0, parts: x}]}", "parts: 'x'"),
        ("{source: a, edges: [{sender: embed}]}", "receiver: missing"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text: str, message: str) -> None:
    file = tmp_path / "circuit.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_circuit(str(file))


def test_a_circuit_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"circuit: iio: .* give a file, or ioi"):
        read_circuit("iio")
