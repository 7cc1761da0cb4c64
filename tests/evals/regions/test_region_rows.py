"""Measures of curves that are known, and their medians."""

import pytest
import torch

from sae_kit.evals.regions.region_rows import Measured, from_1_to_0

N = 50
ALPHAS = torch.linspace(0, 1, N)
JUMP = (ALPHAS > 0.31).float()


def along(l2: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two neurons switch at every step."""
    crossings = torch.full_like(l2, 2.0)
    crossings[:, 0] = 0
    return {"l2": l2, "kl": 3 * l2, "gate_flips": 2 * l2, "gate_crossings": crossings}


def measured(l2: torch.Tensor, least: float = 0.01) -> Measured:
    return Measured.of(along(l2), ALPHAS, least_distance=least)


def test_a_constant_curve_is_filtered():
    """METHODS 3(f), F7: it has no relative distance."""
    found = measured(torch.stack([ALPHAS, torch.zeros(N), 0.005 * ALPHAS, JUMP]))
    assert found.kept.tolist() == [0, 3]
    assert found.n_dropped == 2
    assert found.row(seed=0)["n_dropped"] == 2
    assert len(measured(torch.zeros(3, N)).kept) == 0


def test_a_jump_has_the_grids_slope_and_two_plateaus():
    found = measured(7 * JUMP[None]).single(0)
    assert found["max_slope"] == pytest.approx(N - 1)
    assert found["location"] == pytest.approx(0.31, abs=0.02)
    assert found["begin"] + found["end"] == pytest.approx(1.0, abs=0.021)
    assert found["end_kl"] == 21.0
    assert found["gate_flips"] == 14.0
    assert found["gate_crossings"] == 2 * (N - 1)
    # Of the steps up to the border, all but that over it.
    assert found["begin_crossings"] == 2 * (ALPHAS <= 0.31).sum().item() - 2


def test_a_row_has_the_medians_of_the_pairs_kept():
    found = measured(torch.stack([ALPHAS, 0 * ALPHAS, ALPHAS, JUMP]))
    row = found.row(seed=0)
    assert row["n_pairs"] == 3
    assert row["max_slope"] == pytest.approx(1.0, rel=1e-5)
    assert row["max_slope_low"] == pytest.approx(1.0, rel=1e-5)
    assert row["max_slope_high"] == pytest.approx(N - 1)
    assert row["max_slope_q3"] == pytest.approx((1 + N - 1) / 2, rel=1e-5)
    assert row["missed_slope"] == pytest.approx(1 / (3 * (N - 1) ** 2), rel=1e-2)
    assert row == found.row(seed=0)


def test_arrays_are_of_every_pair_kept():
    arrays = measured(torch.stack([2 * ALPHAS, JUMP])).arrays()
    torch.testing.assert_close(arrays["r"], torch.stack([ALPHAS, JUMP]))
    torch.testing.assert_close(arrays["kl"], torch.stack([6 * ALPHAS, 3 * JUMP]))
    assert arrays["max_slope"].shape == arrays["begin_crossings"].shape == (2,)


def test_without_an_mlp_behind_there_are_no_neurons():
    few = {name: values for name, values in along(JUMP[None]).items() if "gate" not in name}
    row = Measured.of(few, ALPHAS, least_distance=0.01).row(seed=0)
    assert not [name for name in row if "gate" in name or "crossings" in name]


def test_scaled_values_begin_at_1_and_end_at_0():
    values = torch.tensor([5.0, 4.0, -2.0, 3.0])
    assert from_1_to_0(values).tolist() == [1.0, 0.5, -2.5, 0.0]
    assert from_1_to_0(-values).tolist() == [1.0, 0.5, -2.5, 0.0]
