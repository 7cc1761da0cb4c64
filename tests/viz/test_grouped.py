"""Bars in groups: their heights, intervals, colours and names."""

import pytest
from matplotlib.colors import to_hex

from sae_kit.viz.grouped import BarPanel, grouped_bars
from sae_kit.viz.plots import PALETTE

GROUPS = ["0", "1", "2"]


def panel(**changed):
    settings = {
        "title": "one",
        "groups": GROUPS,
        "bars": {
            "a": [(1.0, 0.5, 2.0), (2.0, 1.0, 2.5), (3.0, 3.0, 3.0)],
            "b": [(4.0, 3.0, 5.0), None, (6.0, 5.0, 7.0)],
        },
        "x": "block",
        "y": "nats",
        **changed,
    }
    return BarPanel(**settings)


def draw(*panels):
    figure = grouped_bars(panels, title="t")
    figure.draw_without_rendering()
    return figure.axes


def test_bars_are_as_high_as_their_values_and_side_by_side():
    (ax,) = draw(panel())
    assert [patch.get_height() for patch in ax.patches] == [1, 2, 3, 4, 6]
    left, right = ax.patches[0], ax.patches[3]
    assert left.get_x() + left.get_width() <= right.get_x()
    assert -0.5 < left.get_x() < right.get_x() + right.get_width() < 0.5
    assert [text.get_text() for text in ax.get_xticklabels()] == GROUPS
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("block", "nats")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_every_bar_has_its_interval():
    (ax,) = draw(panel())
    first = ax.containers[1] if len(ax.containers[1]) == 3 else ax.containers[0]
    (lines,) = first[2]
    ends = [tuple(segment[:, 1]) for segment in lines.get_segments()]
    assert ends == [pytest.approx(pair) for pair in ((0.5, 2.0), (1.0, 2.5), (3.0, 3.0))]


def test_a_kind_has_one_colour_in_all_panels_and_more_kinds_than_colours_are_hatched():
    kinds = {f"k{i}": [(1.0, 1.0, 1.0)] * 3 for i in range(9)}
    one, two = draw(panel(bars=kinds), panel(bars={"k8": kinds["k8"], "k1": kinds["k1"]}))
    looks = {
        (to_hex(patch.get_facecolor(), keep_alpha=False).upper(), patch.get_hatch())
        for patch in one.patches
    }
    assert len(looks) == 9
    assert {colour for colour, _ in looks} == {colour.upper() for colour in PALETTE}
    again = [(to_hex(p.get_facecolor()).upper(), p.get_hatch()) for p in two.patches[::3]]
    assert again == [(PALETTE[1].upper(), "///"), (PALETTE[1].upper(), None)]


def test_axes_may_be_logarithmic_and_have_a_line_to_compare_with():
    (ax,) = draw(panel(log=True, baseline=1.5))
    assert ax.get_yscale() == "log"
    assert [1.5, 1.5] in [list(line.get_ydata()) for line in ax.lines]


def test_long_names_are_turned_so_as_not_to_touch():
    (ax,) = draw(panel(groups=[f"{i}, a rather long name of a set of SAEs" for i in range(3)]))
    assert {text.get_rotation() for text in ax.get_xticklabels()} == {40.0}
    (ax,) = draw(panel())
    assert {text.get_rotation() for text in ax.get_xticklabels()} == {0.0}
