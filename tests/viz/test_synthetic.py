"""Figures of synthetic activations."""

import torch

from sae_kit.viz.synthetic import MEASURES, audited, bundles, distributions


def test_every_type_has_a_panel_and_a_line_at_its_mean_step():
    curves = {name: torch.rand(30, 12).cumsum(1) for name in ("model_generated", "random")}
    steps = {name: torch.full((30,), 4.0 + i) for i, name in enumerate(curves)}
    axes = bundles(curves, steps, y="L2 of there", title="t").axes
    assert {ax.get_ylabel() for ax in axes} == {"L2 of there"}
    assert [ax.get_title() for ax in axes] == ["model generated", "random"]
    for i, ax in enumerate(axes):
        assert len(ax.lines) == 20 + 1
        assert list(ax.lines[-1].get_xdata()) == [4.0 + i, 4.0 + i]


def test_a_distribution_function_ends_at_1():
    samples = {"a": torch.arange(10.0), "b": torch.tensor([3.0, 3.0, 5.0])}
    _, right = distributions(samples, x="steps", title="t").axes
    assert [line.get_ydata()[-1] for line in right.lines] == [1.0, 1.0]
    labels = right.get_legend_handles_labels()[1]
    assert labels == ["a: 4.5 ± 2.9", "b: 3.7 ± 0.9"]


def test_the_audit_has_a_bar_for_each_type():
    rows = [
        {"type": name, **dict.fromkeys(MEASURES, i + 1.0)}
        for i, name in enumerate(("model_generated", "random"))
    ]
    axes = audited(rows, title="t").axes
    assert len(axes) == len(MEASURES)
    assert all([patch.get_width() for patch in ax.patches] == [1.0, 2.0] for ax in axes)
