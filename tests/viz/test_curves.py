import pytest
from matplotlib.figure import Figure

from sae_kit.viz.curves import Measure, curves
from sae_kit.viz.plots import PALETTE

X, Y = Measure("l0", "L0", log=True), Measure("fvu", "FVU", log=True)


def rows(n_groups=2):
    return [
        {"name": f"g{g}", "l0": l0, "fvu": 1 / (l0 + g), "kl": 0.1 * l0}
        for g in range(n_groups)
        for l0 in (32, 8, 16)
    ]


def draw(table, ys):
    figure = curves(table, X, ys, group="name", title="t")
    assert isinstance(figure, Figure)
    return figure


def test_each_group_is_a_line_in_the_order_of_x():
    figure = draw(rows(), [Y])
    (ax,) = figure.axes
    first, second = ax.get_lines()
    assert list(first.get_xdata()) == [8, 16, 32]
    assert list(second.get_ydata()) == pytest.approx([1 / 9, 1 / 17, 1 / 33])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["g0", "g1"]


def test_intervals_are_drawn_where_there_are_any():
    table = [{**row, "fvu_low": 0.5 * row["fvu"], "fvu_high": 2 * row["fvu"]} for row in rows(1)]
    (ax,) = draw(table, [Y]).axes
    (drawn,) = ax.containers
    assert list(drawn[0].get_xdata()) == [8, 16, 32]
    (arms,) = drawn[2]
    ends = [tuple(segment[:, 1]) for segment in arms.get_segments()]
    assert ends == [
        pytest.approx((1 / 16, 1 / 4)),
        *(pytest.approx((x, 4 * x)) for x in (1 / 32, 1 / 64)),
    ]


def test_a_row_without_the_measure_is_left_out():
    table = [row | {"fvu": row["fvu"]} for row in rows(1)]
    del table[0]["fvu"]
    (ax,) = draw(table, [Y]).axes
    assert list(ax.get_lines()[0].get_xdata()) == [8, 16]


def test_axes_are_labelled_and_as_logarithmic_as_asked():
    kl = Measure("kl", "KL (nats per token)")
    one, two = draw(rows(), [Y, kl]).axes
    assert (one.get_xlabel(), one.get_ylabel()) == ("L0", "FVU")
    assert (one.get_xscale(), one.get_yscale()) == ("log", "log")
    assert (two.get_xscale(), two.get_yscale()) == ("log", "linear")


def test_a_group_looks_the_same_in_every_panel_and_no_two_groups_do():
    one, two = draw(rows(n_groups=10), [Y, Y]).axes

    def looks(ax):
        return [
            (line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.get_lines()
        ]

    assert looks(one) == looks(two)
    assert len(set(looks(one))) == 10
    assert {colour for colour, *_ in looks(one)} == set(PALETTE)


def test_logarithmic_axes_have_plain_numbers():
    figure = draw(rows(), [Y])
    figure.draw_without_rendering()
    labels = {text.get_text() for text in figure.axes[0].get_xticklabels()}
    assert {"10", "20"} <= labels
    assert not any("e" in label for label in labels)
