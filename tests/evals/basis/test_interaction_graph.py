"""Graphs whose clusters are planted."""

import pytest
import torch

from sae_kit.evals.basis.interaction_graph import InteractionGraph, described, purity
from sae_kit.evals.shared.communities import Components, Leiden, Partition


def planted(strong: float = 100.0, weak: float = 1e-6) -> list[torch.Tensor]:
    """Two blocks of 3 directions in each of three layers."""
    block = torch.kron(torch.eye(2), torch.ones(3, 3)).double()
    uneven = torch.kron(torch.ones(2, 2), 1 + torch.arange(9).view(3, 3) / 9)  # alike in both
    return [torch.where(block > 0, strong * uneven, weak) for _ in range(2)]


@pytest.mark.parametrize("method", [Leiden(resolution=0.5), Components()])
def test_blocks_that_hardly_touch_are_two_clusters(method):
    graph = InteractionGraph.of(planted(), [18, 18])
    found = graph.clusters(method, seed=0)
    assert found.community.tolist() == 3 * [0, 0, 0, 1, 1, 1]
    # 1/2 for two equal blocks; the resolution weighs what chance would bring.
    expected = 0.75 if isinstance(method, Leiden) else 0.5
    assert found.modularity == pytest.approx(expected, abs=0.01)
    assert graph.joined().all()


def test_weights_are_decades_above_the_weakest_edge_that_is_needed():
    strengths = torch.tensor([[1000.0, 10.0], [1.0, 0.0]], dtype=torch.float64)
    (found,) = InteractionGraph.of([strengths], [2]).weights
    assert (found > 0).tolist() == [[True, True], [False, False]]
    assert (found[0, 0] - found[0, 1]).item() == pytest.approx(2.0)


def test_edges_of_no_strength_are_none_however_many_are_needed():
    strengths = torch.tensor([[1.0, 0.0]])
    graph = InteractionGraph.of([strengths], [2])
    assert (graph.weights[0] > 0).tolist() == [[True, False]]
    assert graph.joined().tolist() == [True, False, True]
    assert not InteractionGraph.of([strengths], [0]).joined().any()


def test_nodes_are_numbered_layer_after_layer():
    first = torch.zeros(2, 3)
    second = torch.zeros(4, 2)
    first[1, 2], second[3, 1] = 1.0, 1.0
    graph = InteractionGraph.of([first, second], [1, 1])
    assert graph.sizes == (3, 2, 4)
    chain = graph.clusters(Components(), seed=0)
    assert (chain.community == 0).nonzero()[:, 0].tolist() == [2, 4, 8]


def test_the_purity_of_a_community_is_the_share_of_its_commonest_label():
    found = purity(torch.tensor([0, 0, 0, 1, 1, 0]), torch.tensor([4, 4, 2, 3, 3, 4]))
    assert found.tolist() == [0.75, 1.0]


def test_layers_that_are_no_neighbours_are_refused():
    with pytest.raises(ValueError, match="2 directions are reached, and 3"):
        InteractionGraph.of([torch.zeros(2, 2), torch.zeros(2, 3)], [1, 1])
    with pytest.raises(ValueError, match="n_needed: 9 of 4 edges"):
        InteractionGraph.of([torch.zeros(2, 2)], [9])
    with pytest.raises(ValueError, match="n_needed: 2 numbers for 1"):
        InteractionGraph.of([torch.zeros(2, 2)], [1, 1])


def test_a_rewired_graph_has_the_same_numbers_of_edges_without_the_clusters():
    graph = InteractionGraph.of(planted(), [18, 18])
    rewired = graph.rewired(torch.Generator().manual_seed(0))
    for own, other in zip(graph.weights, rewired.weights, strict=True):
        assert torch.equal(own.flatten().sort().values, other.flatten().sort().values)
        for dim in (0, 1):
            assert torch.equal((own > 0).sum(dim), (other > 0).sum(dim))
        assert not torch.equal(own > 0, other > 0)
    method = Leiden()
    chance = rewired.clusters(method, seed=0).modularity
    assert chance < graph.clusters(method, seed=0).modularity - 0.1


def test_a_graph_without_edges_has_none_to_rewire():
    empty = InteractionGraph((torch.zeros(2, 3),))
    assert not empty.rewired(torch.Generator().manual_seed(0)).joined().any()


def test_the_strongest_edges_of_each_pair_of_layers_are_kept():
    weights = (torch.tensor([[3.0, 2.0], [1.0, 0.0]]), torch.tensor([[0.5, 0.1]]))
    found = InteractionGraph(weights).strongest(2).weights
    assert found[0].tolist() == [[3.0, 2.0], [0.0, 0.0]]
    assert torch.equal(found[1], weights[1])


def test_clusters_of_two_and_more_are_described_by_their_commonest_label():
    partition = Partition(torch.tensor([0, 0, 0, 1, 1, 2]), 0.3, 0.9)
    first, second = described(partition, torch.tensor([4, 4, 2, 7, 7, 4]))
    assert (first["n_directions"], first["label"], first["purity"]) == (3, 4, pytest.approx(2 / 3))
    assert (second["n_directions"], second["label"], second["purity"]) == (2, 7, 1.0)
    assert first["modularity"] == 0.3
