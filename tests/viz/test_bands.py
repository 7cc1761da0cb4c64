"""Curves in their bands: what is drawn is what was given, a colour bar says what colours are."""

import pytest
from matplotlib.colors import to_hex

from sae_kit.viz.bands import BandPanel, Curve, Shades, bands

X = [0.1, 0.5, 2.0]


def curve(scale=1.0, **look):
    look = {"colour": "#0072B2", "name": "a", **look}
    y = [scale * x for x in X]
    return Curve(X, y, [0.5 * v for v in y], [2.0 * v for v in y], **look)


def draw(*panels, n_columns=2, shades=None):
    figure = bands(panels, n_columns=n_columns, title="t", shades=shades)
    figure.draw_without_rendering()
    return figure


def test_lines_and_bands_are_what_was_given():
    figure = draw(BandPanel("one", [curve()], "x", "y"))
    (ax,) = figure.axes
    (line,) = ax.lines
    assert list(line.get_xdata()) == X
    assert list(line.get_ydata()) == X
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((0.05, 4.0))
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("one", "x", "y")
    assert ax.get_ylim()[0] == 0


def test_one_legend_names_every_look_once():
    panels = [
        BandPanel("one", [curve(), curve(2, name="b", line="--")], "x", "y"),
        BandPanel("two", [curve(3), curve(name=None)], "x", "y"),
    ]
    figure = draw(*panels)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert all(ax.get_legend() is None for ax in figure.axes)


def test_axes_are_as_logarithmic_as_asked_and_have_plain_numbers():
    panel = BandPanel("one", [curve()], "x", "y", log_x=True, log_y=True, baseline=1.0)
    (ax,) = draw(panel).axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert {"0.1", "0.5", "2"} <= {text.get_text() for text in ax.get_xticklabels()}
    assert [1.0, 1.0] in [list(line.get_ydata()) for line in ax.lines]


def test_shades_run_from_dark_to_light_and_stand_beside_the_panels():
    shades = Shades([64.0, 8.0, 8.04, 32.0], "L0")
    brightness = [sum(int(shades[v][i : i + 2], 16) for i in (1, 3, 5)) for v in (8.0, 32.0, 64.0)]
    assert brightness == sorted(brightness)
    assert brightness[-1] < 3 * 220, "the lightest is still seen on white"
    panel = BandPanel("one", [curve(name=None, colour=shades[8.0])], "x", "y")
    figure = draw(panel, panel, shades=shades)
    *_, bar = figure.axes
    assert len(figure.axes) == 3
    assert bar.get_xlabel() == "L0"
    # 8 and 8.04 would be printed over one another.
    assert [text.get_text() for text in bar.get_yticklabels()] == ["8", "32", "64"]
    assert to_hex(figure.axes[0].lines[0].get_color()) == shades[8.0]
    assert not figure.legends


def test_one_number_alone_has_a_shade():
    draw(BandPanel("one", [curve()], "x", "y"), shades=Shades([16.0], "L0"))
