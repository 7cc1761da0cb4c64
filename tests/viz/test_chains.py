"""Figures of chains and the coefficient."""

import pytest
import torch

from sae_kit.viz.chains import by_step_size, in_training, traces


def rows(model: str, train_step: int = -1) -> list[dict]:
    return [
        {
            "model": model,
            "train_step": train_step,
            "step": step,
            "verdict": verdict,
            "coefficient": 10 * step + train_step,
            "coefficient_low": 10 * step + train_step - 1,
            "coefficient_high": 10 * step + train_step + 2,
            "r_hat": 1.0,
            "loss": 3.0 - 0.01 * train_step,
        }
        for step, verdict in ((0.1, "drifting"), (1.0, "usable"))
    ]


def test_a_trace_has_a_line_for_each_chain_and_its_burn_in_in_grey():
    found = {f"step {row['step']}": (row, torch.randn(3, 12)) for row in rows("m")}
    first, second = traces(found, n_burn_in=4, unit="u", title="t").axes
    assert first.get_title() == "step 0.1: drifting (R-hat 1.00)"
    assert "usable" in second.get_title()
    chains = [line for line in second.lines if len(line.get_xdata()) == 12]
    assert len(chains) == 3
    assert list(chains[1].get_ydata()) == pytest.approx(found["step 1.0"][1][1].tolist())
    (burn_in,) = second.patches
    assert burn_in.get_x() + burn_in.get_width() == 4


def test_models_stand_side_by_side_and_markers_tell_verdicts():
    (ax,) = by_step_size([*rows("a"), *rows("b")], title="t").axes
    markers = {line.get_label(): line.get_marker() for line in ax.lines}
    assert markers["usable"] != markers["drifting"]
    places = sorted(line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1)
    assert len(set(places)) == 4


def test_training_is_drawn_in_its_order_with_the_loss_beside_it():
    found = [*rows("late", 100), *rows("early", 0)]
    above, below = in_training(found, title="t").axes
    assert list(below.lines[0].get_xdata()) == [0, 100]
    assert list(below.lines[0].get_ydata()) == pytest.approx([3.0, 2.0])
    assert list(above.lines[0].get_ydata()) == pytest.approx([1.0, 101.0])
