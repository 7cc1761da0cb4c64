"""Figures of decoders' learning coefficients."""

import pytest

from sae_kit.viz.decoders import CUT_OFFS, by_cut_off, coefficients

ROWS = [
    {
        "site": f"blocks.{i}.hook_resid_pre",
        "curvature": 5.0,
        "fall": -2.0 - i,
        "known": 3.0 - i,
        "coefficient": 3.1 - i,
        "coefficient_low": 2.9 - i,
        "coefficient_high": 3.3 - i,
    }
    for i in range(3)
]


def test_bars_are_the_parts_and_points_what_was_sampled():
    (ax,) = coefficients(ROWS, title="t").axes
    assert [bar.get_height() for bar in ax.patches] == [5.0] * 3 + [-2.0, -3.0, -4.0]
    points = next(line for line in ax.lines if len(line.get_xdata()) == 3)
    assert list(points.get_ydata()) == pytest.approx([3.1, 2.1, 1.1])


def test_a_line_for_each_site_and_one_where_it_was_sampled():
    shares = {row["site"]: [0.5] * len(CUT_OFFS) for row in ROWS}
    (ax,) = by_cut_off(shares, used=1.5, title="t").axes
    assert sum(len(line.get_xdata()) == len(CUT_OFFS) for line in ax.lines) == 3
    assert any(list(line.get_xdata()) == [1.5, 1.5] for line in ax.lines)
