"""Columns against what they are of."""

import pytest
import torch

from sae_kit.evals.directions.direction_rows import Summary

LENGTHS = torch.tensor([1.0, 2.0, 4.0]).double()
COUNTS = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)) > 0.3
COUNTS[:, 2] = True
SUMMARY = Summary(COUNTS, seed=0)


def noise():
    return torch.rand(12, 1, 5, generator=torch.Generator().manual_seed(2)) + 0.5


def rising():
    """KL is c L^2 and L2 is c L, with c of every token its own."""
    c = noise()
    return {"kl": c * LENGTHS[:, None].square(), "l2": c * LENGTHS[:, None]}


def counted(values):
    """The mean over counting tokens of each point."""
    return torch.stack([values[:, i][COUNTS].mean() for i in range(values.shape[1])])


def test_a_curve_is_described_by_areas_and_crossings():
    values = rising()
    row = SUMMARY.curve(values, None, LENGTHS, [1.0, 1000.0])
    c = counted(noise())[0].item()
    # Trapezoids under L^2 at 0, 1, 2, 4: 0.5, 2.5 and 20; under L exactly 8.
    assert row["kl_area"] == pytest.approx(23 * c)
    assert row["l2_area"] == pytest.approx(8 * c)
    # c L^2 is 1 between 1 and 2 or before 1, on straight lines.
    expected = 1 / c if c >= 1 else 1 + (1 - c) / (3 * c)
    assert row["length_at_1"] == pytest.approx(expected)
    assert (row["reaches_1"], row["reaches_1000"]) == (True, False)
    assert row["length_at_1000"] == row["length_at_1000_high"] == 4.0
    for name in ("kl_area", "l2_area", "length_at_1"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert "kl_area_ratio" not in row


def test_a_ratio_is_of_the_same_prompts():
    values = rising()
    row = SUMMARY.curve(values, values["kl"] / 2, LENGTHS, [])
    ends = [row[f"kl_area_ratio{end}"] for end in ("", "_low", "_high")]
    assert ends == pytest.approx([2.0, 2.0, 2.0])


def test_nothing_is_divided_by_nothing():
    values = rising()
    assert "kl_area_ratio" not in SUMMARY.curve(values, 0 * values["kl"], LENGTHS, [])
    assert "kl_ratio" not in SUMMARY.drawn(values, 0 * values["kl"])
    zero = values["kl"][:, :1] * 0
    assert "sae_ratio" not in SUMMARY.substitution({"kl": zero}, zero)


def test_a_length_of_zero_takes_no_other_lengths_ratio_away():
    values = rising()
    kl = torch.cat([0 * values["kl"][:, :1], values["kl"]], 1)
    ratio = SUMMARY.drawn({"kl": kl}, 2 * kl)["kl_ratio"]
    assert ratio[:, 0].isnan().all()
    torch.testing.assert_close(ratio[:, 1:], torch.full((3, 3), 0.5).double())


def test_what_is_drawn_is_the_mean_with_its_interval_and_quartiles_over_tokens():
    values = rising()
    drawn = SUMMARY.drawn(values, 2 * values["kl"])
    torch.testing.assert_close(drawn["kl"][0], counted(values["kl"]))
    assert (drawn["kl"][1] < drawn["kl"][0]).all()
    assert (drawn["kl"][0] < drawn["kl"][2]).all()
    tokens = values["l2"][:, 1][COUNTS].double()
    quarters = tokens.quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    torch.testing.assert_close(drawn["l2/quartiles"][:, 1], quarters)
    torch.testing.assert_close(drawn["kl_ratio"], torch.full((3, 3), 0.5).double())


def test_a_substitution_is_compared_with_the_reconstruction():
    kl = noise()
    row = SUMMARY.substitution({"kl": kl, "delta_ce": -kl}, 3 * kl)
    assert row["kl"] == pytest.approx(counted(kl)[0].item())
    assert row["delta_ce"] == pytest.approx(-row["kl"])
    assert row["sae_ratio"] == pytest.approx(3)
    assert "sae_ratio" not in SUMMARY.substitution({"kl": kl}, None)
