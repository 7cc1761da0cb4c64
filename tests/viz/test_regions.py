"""Figures of stable regions."""

import torch

from sae_kit.viz.regions import by_site, curves, hand_made, plane, slopes


def test_every_model_has_a_panel_of_curves():
    values = torch.rand(30, 9).cumsum(1)
    axes = curves({"demo": values, "random": values}, title="t").axes
    assert [ax.get_title() for ax in axes] == ["demo", "random"]
    assert all(len(ax.lines) == 25 + 2 for ax in axes)


def test_slopes_are_counted_between_1_and_the_grids_most():
    (ax,) = slopes({"demo": torch.tensor([0.99, 1.5, 3.0, 48.9])}, cap=49, title="t").axes
    (label,) = [one for one in ax.get_legend_handles_labels()[1] if "median" in one]
    assert label == "demo: median 1.50"
    counted = ax.patches[0].get_xy()[:, 1]
    assert counted.max() >= 1


def test_sites_stand_in_the_order_of_the_model():
    rows = [
        {
            "site": f"blocks.{i}.hook_resid_pre",
            "path": path,
            "max_slope": 1.0 + i,
            "max_slope_low": 0.9 + i,
            "max_slope_high": 1.1 + i,
        }
        for i in (10, 2, 1)
        for path in ("line", "arc")
    ]
    (ax,) = by_site(rows, title="t").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "10"]


def test_similar_and_dissimilar_pairs_have_panels_of_their_own():
    rows = [{"pair": f"p{i}", "likeness": kind} for i, kind in enumerate(("similar", "dissimilar"))]
    r = [torch.linspace(0, 1, 5)] * 2
    axes = hand_made(rows, r, r, title="t").axes
    assert [ax.get_title() for ax in axes] == ["similar endings", *2 * ["dissimilar endings"]]


def test_a_plane_is_red_green_and_blue_where_its_activations_are():
    distances = torch.ones(3, 7, 7)
    sides = torch.linspace(-0.25, 1.25, 7)
    places = ((1, 1), (1, 5), (5, 3))
    for i, place in enumerate(places):
        distances[i][place] = 0.0
    figure = plane(distances, 0.5, sides, title="t")
    together = figure.axes[3].images[0].get_array()
    for i, (row, column) in enumerate(places):
        assert together[row, column].tolist() == [float(i == j) for j in range(3)]
