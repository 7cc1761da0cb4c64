"""Figures of spectra and free parameters."""

import pytest
import torch

from sae_kit.viz.spectra import by_block, free_shares


def test_every_panel_has_a_line_for_each_block():
    spectrum = torch.logspace(0, -12, 20)
    panels = {name: {0: spectrum, 1: 3 * spectrum} for name in ("W, inputs", "W, gradients")}
    axes = by_block(panels, title="t").axes[:2]
    assert [ax.get_title() for ax in axes] == list(panels)
    for ax in axes:
        assert len(ax.lines) == 2
        assert all(max(line.get_ydata()) == 1.0 for line in ax.lines)
        assert all(min(line.get_ydata()) > 1e-9 for line in ax.lines)


def test_shares_are_means_over_blocks():
    rows = [
        {"matrix": matrix, "block": block, "tolerance": t, "share_free": 0.2 * block + t}
        for matrix in ("W_in", "W_out")
        for block in (0, 1)
        for t in (0.001, 0.01)
    ]
    (ax,) = free_shares(rows, title="t").axes
    assert [line.get_label() for line in ax.lines] == ["W_in", "W_out"]
    assert list(ax.lines[0].get_ydata()) == pytest.approx([0.101, 0.11])
