"""communities: graphs whose communities are known, seeds, resolutions, bad graphs."""

import itertools
import random

import pytest
import torch

from sae_kit.evals.shared.communities import Components, Leiden, Louvain

METHODS = [Leiden(), Louvain(), Components()]


def cliques(n_cliques: int, size: int) -> torch.Tensor:
    """Edges of cliques that nothing joins."""
    own = torch.tensor(list(itertools.combinations(range(size), 2)))
    return torch.cat([own + i * size for i in range(n_cliques)])


def chain_of_cliques(n_cliques: int, size: int) -> torch.Tensor:
    """Each clique's last node is joined to the first of the next."""
    joints = [[i * size - 1, i * size] for i in range(1, n_cliques)]
    return torch.cat([cliques(n_cliques, size), torch.tensor(joints)])


def ones(edges: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(edges))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [2, 5, 9])
def test_equal_components_are_the_communities_and_q_is_one_minus_one_over_k(method, k):
    edges = cliques(k, 6)
    found = method.detect(edges, ones(edges), n_nodes=6 * k, seed=0)
    assert found.modularity == pytest.approx(1 - 1 / k)
    assert found.community.tolist() == [i // 6 for i in range(6 * k)]
    assert found.agreement == 1


@pytest.mark.parametrize("method", [Leiden(), Louvain()])
def test_joints_between_cliques_do_not_hide_them(method):
    edges = chain_of_cliques(5, 6)
    found = method.detect(edges, ones(edges), n_nodes=30, seed=0)
    assert found.community.tolist() == [i // 6 for i in range(30)]
    assert found.modularity < 1 - 1 / 5
    one = Components().detect(edges, ones(edges), n_nodes=30, seed=0)
    assert one.sizes.tolist() == [30]


@pytest.mark.parametrize("method", [Leiden(), Louvain()])
def test_weights_decide_what_belongs_together(method):
    """A ring of four: which two edges are heavy says which nodes pair."""
    ring = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    across = method.detect(ring, torch.tensor([9.0, 0.1, 9.0, 0.1]), n_nodes=4, seed=0)
    along = method.detect(ring, torch.tensor([0.1, 9.0, 0.1, 9.0]), n_nodes=4, seed=0)
    assert across.community.tolist() == [0, 0, 1, 1]
    assert along.community.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("kind", [Leiden, Louvain])
def test_a_higher_resolution_splits(kind):
    edges = chain_of_cliques(8, 4)
    sizes = [
        len(kind(resolution=r).detect(edges, ones(edges), n_nodes=32, seed=0).sizes)
        for r in (0.05, 1.0, 20.0)
    ]
    assert sizes[0] < sizes[1] == 8 < sizes[2]


@pytest.mark.parametrize("method", METHODS)
def test_nodes_without_edges_are_alone(method):
    edges = torch.tensor([[1, 3]])
    found = method.detect(edges, ones(edges), n_nodes=4, seed=0)
    assert found.sizes.tolist() == [2, 1, 1]
    empty = method.detect(torch.empty(0, 2, dtype=torch.int64), torch.ones(0), n_nodes=3, seed=0)
    assert (empty.sizes.tolist(), empty.modularity) == ([1, 1, 1], 0.0)


def random_graph(n_nodes: int = 60) -> torch.Tensor:
    both = torch.rand(n_nodes, n_nodes, generator=torch.Generator().manual_seed(0)) < 0.1
    return both.triu(1).nonzero()


def test_a_seed_gives_the_same_partition_whatever_python_s_generator_has_drawn():
    edges, found = random_graph(), []
    for i in range(2):
        random.seed(i)
        found.append(Leiden().detect(edges, ones(edges), n_nodes=60, seed=3))
    assert torch.equal(found[0].community, found[1].community)
    assert found[0].agreement == found[1].agreement


def test_seeds_disagree_about_a_graph_without_communities():
    edges = random_graph()
    found = Leiden(n_seeds=6).detect(edges, ones(edges), n_nodes=60, seed=0)
    assert 0 < found.agreement < 0.9


def test_more_seeds_never_give_a_lower_modularity():
    edges = random_graph()
    few, many = (
        Louvain(n_seeds=n).detect(edges, ones(edges), n_nodes=60, seed=0).modularity
        for n in (1, 12)
    )
    assert few < many


def test_bad_graphs_and_settings_are_refused():
    edges = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"weights.*-1.*above 0"):
        Leiden().detect(edges, torch.tensor([-1.0]), n_nodes=2, seed=0)
    with pytest.raises(ValueError, match=r"edges.*beyond the 1"):
        Leiden().detect(edges, torch.ones(1), n_nodes=1, seed=0)
    with pytest.raises(ValueError, match="resolution: 0"):
        Leiden(resolution=0.0)
    with pytest.raises(ValueError, match="n_seeds: 0"):
        Louvain(n_seeds=0)
