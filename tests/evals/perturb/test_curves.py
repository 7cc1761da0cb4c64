"""Steps, slopes and distances of curves that are known: METHODS 3(f), 4(f), F7."""

import math

import pytest
import torch

from sae_kit.evals.perturb.curves import (
    auc_step,
    departure_step,
    ks_distance,
    ks_matrix,
    max_slope,
    max_slope_step,
    missed_slope,
    plateau_length,
    plateaus,
    relative,
)

N = 101
STEPS = torch.arange(N, dtype=torch.float64)


def step_at(n0: int) -> torch.Tensor:
    return (n0 < STEPS).double()


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n0", [0, 7, 50, 99])
def test_the_max_slope_step_of_a_step_function_is_where_it_steps(n0):
    assert max_slope_step(step_at(n0)[None], 0.02).tolist() == [n0]


def test_the_max_slope_step_of_a_curve_that_hardly_rises_is_the_last_point():
    curves = torch.stack([torch.zeros(N), 0.019 * STEPS.float(), 0.25 * STEPS.float()])
    assert max_slope_step(curves, 0.02).tolist() == [N - 1, N - 1, 0]


def test_a_curve_departs_where_it_leaves_its_line_by_a_fifth():
    line = 2.0 * STEPS
    bent = torch.where(STEPS <= 40, line, line + 5 * (STEPS - 40))
    # 5 (n - 40) > 0.2 * 2 n  from  n > 200 / 4.6
    curves = torch.stack([line, bent, torch.zeros(N, dtype=torch.float64), -line])
    assert departure_step(curves).tolist() == [N - 1, math.floor(200 / 4.6) + 1, N - 1, N - 1]


def test_the_auc_step_of_a_step_function_is_the_first_point_after_it():
    """There the triangle is n/2 and the area under the curve 1/2: the ratio is n, and falls."""
    assert auc_step(torch.stack([step_at(30), step_at(70)])).tolist() == [31, 71]
    assert auc_step(torch.zeros(1, N)).tolist() == [N - 1]


def test_a_straight_line_has_the_same_ratio_everywhere():
    line = STEPS[None] * 3.0
    assert auc_step(line).item() >= 5


@pytest.mark.parametrize("slope", [0.3, 1.0, 7.5])
def test_the_plateau_of_a_linear_response_is_the_threshold_over_its_slope(slope):
    assert plateau_length(slope * STEPS[None], 20.0).tolist() == [min(N - 1, math.ceil(20 / slope))]


def test_a_plateau_that_never_ends_has_all_points():
    assert plateau_length(torch.zeros(1, N), 20.0).tolist() == [N - 1]


@pytest.mark.parametrize("call", [departure_step, auc_step])
def test_too_few_points_are_refused(call):
    with pytest.raises(ValueError, match="points: 4 on a curve"):
        call(torch.zeros(1, 4))


# --- relative distances ---------------------------------------------------------------------------


def test_relative_distances_end_at_1_and_tiny_ends_are_dropped():
    curves, kept = relative(torch.stack([2 * STEPS, 0 * STEPS, 5 * STEPS]), 0.01)
    assert kept.tolist() == [0, 2]
    torch.testing.assert_close(curves, (STEPS / (N - 1)).expand(2, N))


@pytest.mark.parametrize("k", [4.0, 30.0])
def test_the_slope_of_a_sigmoid(k):
    """F7: r = sigma(k (alpha - 1/2)), scaled to run from 0 to 1, has slope (k/4) / tanh(k/4)."""
    alphas = torch.linspace(0, 1, 4001, dtype=torch.float64)
    r = torch.sigmoid(k * (alphas - 0.5))
    r = (r - r[0]) / (r[-1] - r[0])
    slope, where = max_slope(r[None], alphas)
    assert slope.item() == pytest.approx((k / 4) / math.tanh(k / 4), rel=1e-3)
    assert where.item() == pytest.approx(0.5, abs=1e-3)


def test_few_points_measure_a_slope_low():
    """METHODS 3(e): 50 steps, true 7.50, measured 7.44."""
    alphas = torch.linspace(0, 1, 50, dtype=torch.float64)
    r = torch.sigmoid(30 * (alphas - 0.5))
    slope, _ = max_slope((r / r[-1])[None], alphas)
    assert slope.item() == pytest.approx(7.44, abs=0.01)


@pytest.mark.parametrize("slope", [1.5, 7.5, 40.0])
def test_what_a_grid_misses_of_a_logistic_is_known(slope):
    """With an even number of points the steepest place lies in the middle of two of them."""
    alphas = torch.linspace(0, 1, 50, dtype=torch.float64)
    measured, _ = max_slope(torch.sigmoid(4 * slope * (alphas - 0.5))[None], alphas)
    missed = missed_slope(measured.item(), 50)
    assert measured.item() == pytest.approx(slope * (1 - missed), rel=1e-9)


def test_a_grid_misses_nothing_of_a_constant_and_all_of_a_jump():
    assert missed_slope(0.0, 50) == 0.0
    assert missed_slope(49.0, 50) == missed_slope(49.0000001, 50) == 1.0


@pytest.mark.parametrize(("n", "at"), [(11, 0.42), (50, 0.8)])
def test_a_hard_threshold_has_the_slope_of_the_grid_where_it_is(n, at):
    alphas = torch.linspace(0, 1, n, dtype=torch.float64)
    slope, where = max_slope((alphas > at).double()[None], alphas)
    assert slope.item() == pytest.approx(n - 1)
    assert where.item() == pytest.approx(at, abs=1 / (n - 1))


def test_a_line_has_slope_1():
    alphas = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert max_slope(alphas[None], alphas)[0].item() == pytest.approx(1.0)


def test_the_plateaus_of_a_line_and_of_a_sigmoid():
    """F7: the width from 10 to 90 % of a steep sigmoid is 2 ln 9 / k."""
    alphas = torch.linspace(0, 1, 2001, dtype=torch.float64)
    k = 60.0
    curves = torch.stack([alphas, torch.sigmoid(k * (alphas - 0.5))])
    begin, end = plateaus(curves, alphas)
    assert begin[0].item() == pytest.approx(0.1)
    assert end[0].item() == pytest.approx(0.1)
    assert 1 - (begin[1] + end[1]).item() == pytest.approx(2 * math.log(9) / k, rel=1e-3)


def test_a_jump_has_plateaus_on_both_sides():
    alphas = torch.linspace(0, 1, 101, dtype=torch.float64)
    begin, end = plateaus((alphas > 0.305).double()[None], alphas)
    assert begin.item() == pytest.approx(0.3, abs=0.011)
    assert end.item() == pytest.approx(0.7, abs=0.011)


# --- distributions --------------------------------------------------------------------------------


def test_the_ks_distance_of_a_sample_from_itself_is_0_and_from_a_far_one_1():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert ks_distance(x, x) == 0.0
    assert ks_distance(x, x[torch.randperm(50)]) == 0.0
    assert ks_distance(x, x + 100) == 1.0


def test_the_ks_distance_of_a_shifted_copy_is_the_share_it_passes():
    x = torch.arange(100.0)
    for shift in (1, 10, 37):
        assert ks_distance(x, x + shift) == pytest.approx(shift / 100)


def test_samples_of_other_sizes_and_with_ties():
    assert ks_distance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])) == 0.0
    assert ks_distance(torch.tensor([0.0]), torch.tensor([0.0, 1.0])) == 0.5
    with pytest.raises(ValueError, match="one is empty"):
        ks_distance(torch.tensor([]), torch.tensor([1.0]))


def test_the_ks_matrix_has_zeros_and_its_mirror_image():
    samples = {"a": torch.arange(10.0), "b": torch.arange(10.0) + 3, "c": torch.arange(5.0)}
    found = ks_matrix(samples)
    assert torch.equal(found, found.T)
    assert (found.diagonal() == 0).all()
    assert found[0, 1].item() == pytest.approx(0.3)
