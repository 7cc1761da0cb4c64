"""Figures of slopes: what is counted, and what stands where."""

import pytest
import torch
from region_results import SITE, curves, result

from sae_kit.viz.region_slopes import by_ending, figures

OTHER = "blocks.10.hook_resid_pre"


def drawn(*parts):
    whole = result(*parts)
    return figures(whole, whole.rows)


def names(ax) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def places(container) -> list[tuple[float, float]]:
    """Of the points of an error bar."""
    return [(float(x), float(y)) for x, y in zip(*container[0].get_data(), strict=True)]


def test_pairs_are_grouped_by_their_last_tokens_wherever_they_come_from():
    parts = [
        curves(0, (1.0, 2.0, 3.0), (False, True, False)),
        curves(1, (4.0, 5.0), (True, True), pairs="same ending"),
        curves(2, (9.0,), path="arc"),
        curves(3, (9.0,), site=OTHER),
        curves(4, (9.0,), model="random"),
    ]
    groups = by_ending(result(*parts), result(*parts).rows)
    assert {name: slopes.tolist() for name, slopes in groups.items()} == {
        "different": [1.0, 3.0],
        "the same": [2.0, 4.0, 5.0],
    }


def test_a_group_without_pairs_is_left_out():
    only = result(curves(0, (1.0, 2.0)))
    assert list(by_ending(only, only.rows)) == ["different"]


def test_histograms_count_every_pair_once_and_name_the_median():
    """A slope a little below 1, by rounding, is counted; so is one at the grid's most."""
    slopes = (0.9999, 1.5, 3.0, 49.0)
    ax, _ = drawn(curves(0, slopes), curves(1, (1.0, 1.2), model="random"))["slopes"].axes
    assert names(ax) == ["demo (n = 4, median 2.25)", "random (n = 2, median 1.10)"]
    for patch, n in zip(ax.patches, (4, 2), strict=True):
        heights = torch.tensor(patch.get_xy()[:, 1])
        assert heights.max().item() >= 1 / n
        # An outline visits every bin's height twice.
        assert heights.sum().item() == pytest.approx(2.0, abs=1e-6)


def test_sites_stand_in_the_order_of_the_model():
    parts = [
        curves(i, (1.0 + i,), site=f"blocks.{block}.hook_resid_pre")
        for i, block in enumerate((10, 2, 1))
    ]
    (ax,) = drawn(*parts)["sites"].axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "10"]
    assert places(ax.containers[0]) == [(0.0, 3.0), (1.0, 2.0), (2.0, 1.0)]


def test_models_stand_in_the_order_of_the_rows_with_their_medians():
    parts = [curves(0, (2.0,)), curves(1, (1.0,), model="random"), curves(2, (3.0,), site=OTHER)]
    (ax,) = drawn(*parts)["models"].axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["demo", "random"]
    assert places(ax.containers[0]) == [(0.0, 2.0), (1.0, 1.0)]


def test_snapshots_are_drawn_against_tokens_from_none_on():
    parts = [
        curves(i, (1.0 + i,), model=f"run, step {i}", run="run", n_tokens=n)
        for i, n in enumerate((0, 100, 1000))
    ]
    _, ax = drawn(curves(9, (5.0,)), *parts)["models"].axes
    assert ax.get_xlabel() == "tokens trained on"
    assert places(ax.containers[0]) == [(0.0, 1.0), (100.0, 2.0), (1000.0, 3.0)]
    assert [5.0, 5.0] in [list(line.get_ydata()) for line in ax.lines]


def test_models_of_several_sizes_are_drawn_against_parameters():
    """Of a run the last snapshot; random weights were never trained."""
    parts = [
        curves(0, (2.0,)),
        curves(1, (3.0,), model="big", n_parameters=5000),
        curves(2, (1.0,), model="random"),
        curves(3, (1.1,), model="run, step 0", run="run", n_tokens=0, n_parameters=200),
        curves(4, (1.3,), model="run, step 9", run="run", n_tokens=9, n_parameters=200),
    ]
    *_, ax = drawn(*parts)["models"].axes
    assert ax.get_xlabel() == "parameters"
    assert places(ax.containers[0]) == [(200.0, 1.3), (1000.0, 2.0), (5000.0, 3.0)]


def test_without_neurons_behind_there_is_no_figure_of_them():
    assert "gates" in drawn(curves(0, (2.0,)))
    row, arrays = curves(0, (2.0,))
    del row["gate_flips"]
    assert "gates" not in drawn((row, arrays))


def test_neurons_are_counted_for_each_kind_of_pairs():
    parts = [
        curves(0, (1.0, 2.0)),
        curves(1, (1.0,), pairs="same ending"),
        curves(2, (1.0,), site=SITE, model="random"),
    ]
    flips, crossings, begin = drawn(*parts)["gates"].axes
    assert names(flips) == ["sampled (median 15)", "same ending (median 10)"]
    assert names(crossings) == ["sampled (median 30)", "same ending (median 20)"]
    assert names(begin) == ["sampled (median 1.5)", "same ending (median 1)"]
