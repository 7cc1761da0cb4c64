"""Figures of directions and edges needed."""

import torch

from sae_kit.viz.interactions import (
    BASES,
    clustered_graph,
    directions,
    kept_accuracy,
    modularity,
    needed_edges,
)

SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")


def test_every_basis_has_a_curve_where_it_has_rows():
    rows = [
        {"site": site, "basis": basis, "k": k, "kl": 1 / k, "kl_low": 0.9 / k, "kl_high": 1.1 / k}
        for site in SITES
        for basis in ("neurons", "LIB")
        for k in (1, 4, 16)
        if (site, basis) != (SITES[1], "LIB")
    ]
    figure = directions(rows, title="t")
    assert [ax.get_title() for ax in figure.axes] == list(SITES)
    labels = [ax.get_legend_handles_labels()[1] for ax in figure.axes]
    assert labels == [["neurons", "LIB"], ["neurons"]]


def test_a_bar_is_as_high_as_its_number():
    rows = [
        {"site": site, "basis": basis, "n_edges": 100, "n_needed": 10 * i + j}
        for i, site in enumerate(SITES)
        for j, basis in enumerate(("neurons", "PCA", "LIB"))
    ]
    (ax,) = needed_edges(rows, title="t").axes
    assert sorted(patch.get_height() for patch in ax.patches) == [0, 1, 2, 10, 11, 12]


def test_modularity_stands_beside_that_of_the_rewired_graph():
    rows = [
        {"basis": basis, "n_clusters": i, "modularity": 0.2 + i, "modularity_rewired": 0.1 * i}
        for i, basis in enumerate(("neurons", "LIB"))
    ]
    (ax,) = modularity(rows, title="t").axes
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == [0.2, 1.2, 0.0, 0.1]
    assert "1 clusters" in ax.get_xticklabels()[1].get_text()


def test_directions_alone_in_their_cluster_are_in_no_group():
    weights = [torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
    figure = clustered_graph(weights, torch.tensor([0, 1, 0, 2]), layers=["a", "b"], title="t")
    (ax,) = figure.axes
    assert [line.get_label() for line in ax.lines][-1] == "cluster 1 (2 directions)"
    assert len(ax.collections[0].get_segments()) == 2


def test_labels_stand_beside_their_directions():
    weights = [torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
    figure = clustered_graph(
        weights,
        torch.tensor([0, 1, 0, 1]),
        layers=["a", "b"],
        title="t",
        labels=torch.tensor([7, 8, 9, 6]),
        cluster_names=["one", "two"],
    )
    (ax,) = figure.axes
    assert sorted(text.get_text() for text in ax.texts) == ["6", "7", "8", "9"]
    assert {"one", "two"} <= {line.get_label() for line in ax.lines}


def test_accuracy_has_the_standard_error_of_a_share():
    rows = [
        {"site": "a", "basis": basis, "k": k, "accuracy": 0.5} for basis in BASES for k in (1, 2)
    ]
    (ax,) = kept_accuracy(rows, n_tested=100, chance=0.1, title="t").axes
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.45, 0.55)
