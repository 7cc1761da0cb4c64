"""Rates and areas against ones counted by hand."""

import pytest
import torch
from conftest import random_gpt2

from sae_kit.evals.circuits.circuit import Circuit, Edge, Graph
from sae_kit.evals.circuits.circuit_roc import Truth, area
from sae_kit.models.gpt2 import GPT2Config

# One block of one head: 8 edges, of which the truth has 2; 3 senders, of which 2 are heard in it.
GRAPH = Graph(random_gpt2(GPT2Config(n_layer=1, n_head=1, d_model=2, d_mlp=1, n_ctx=1, n_vocab=2)))
TRUE: list[Edge] = [("embed", "m0"), ("m0", "logits")]
FALSE: list[Edge] = [("embed", "a0.0.q"), ("a0.0", "logits"), ("embed", "logits")]


def circuit(edges: list[Edge]) -> Circuit:
    return Circuit.of(GRAPH, GRAPH.find(edges))


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth(GRAPH, GRAPH.find(TRUE))


def test_the_circuit_itself_has_an_area_of_1(truth: Truth) -> None:
    found = [circuit(TRUE)]
    assert truth.edges(found).tolist() == [[0, 0], [0, 1], [1, 1]]
    assert area(truth.edges(found)) == area(truth.nodes(found)) == 1


def test_nothing_and_everything_have_an_area_of_0(truth: Truth) -> None:
    for edges in ([], GRAPH.names(GRAPH.allowed)):
        assert truth.edges([circuit(edges)]).tolist() == [[0, 0], [1, 1]]
        assert area(truth.edges([circuit(edges)])) == 0


def test_stairs_rise_as_late_as_they_can(truth: Truth) -> None:
    half, wide = circuit(TRUE[:1]), circuit(TRUE + FALSE[:2])
    curve = truth.edges([half, wide])
    assert curve.flatten().tolist() == pytest.approx([0, 0, 0, 0.5, 2 / 6, 1, 1, 1])
    assert area(curve) == pytest.approx(0.5 + 0.5 * 4 / 6)


def test_circuits_that_others_beat_are_left_out(truth: Truth) -> None:
    good, worse = circuit(TRUE[:1]), circuit(TRUE[1:] + FALSE)
    assert torch.equal(truth.edges([worse, good]), truth.edges([good]))


def test_nodes_are_those_that_somebody_hears(truth: Truth) -> None:
    # The head is the one node that is not in the truth.
    assert truth.nodes([circuit([*TRUE, FALSE[0]])]).tolist() == [[0, 0], [0, 1], [1, 1]]
    assert area(truth.nodes([circuit([*TRUE, FALSE[1]])])) == 0


def test_scores_are_all_circuits_above_them(truth: Truth) -> None:
    scores = torch.zeros(GRAPH.allowed.shape)
    for edge, score in zip([TRUE[0], FALSE[0], TRUE[1]], (-3.0, 2.0, 1.0), strict=True):
        scores[GRAPH.find([edge])] = score
    circuits = [circuit(TRUE[:1]), circuit([TRUE[0], FALSE[0]]), circuit([*TRUE, FALSE[0]])]
    assert torch.equal(truth.scored_edges(scores), truth.edges(circuits))
    assert area(truth.scored_edges(scores)) == pytest.approx(0.5 + 0.5 * 5 / 6)


def test_equal_scores_come_all_at_once(truth: Truth) -> None:
    assert area(truth.scored_edges(torch.ones(GRAPH.allowed.shape))) == 0


def test_a_truth_that_says_nothing_is_refused() -> None:
    for edges in (GRAPH.allowed, torch.zeros_like(GRAPH.allowed)):
        with pytest.raises(ValueError, match=r"circuit: \d of 8 edges"):
            Truth(GRAPH, edges)
