"""Figures of directions and edges needed."""

from sae_kit.viz.interactions import directions, needed_edges

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
