"""Verdicts on chains whose end is known."""

import pytest
import torch

from sae_kit.evals.loss_landscape.sgld import Estimate
from sae_kit.evals.loss_landscape.verdicts import (
    DIVERGED,
    DRIFTING,
    NO_MINIMUM,
    USABLE,
    Chains,
    interval_of,
    rise_of,
    verdict,
)
from sae_kit.maths import Interval


def test_verdicts():
    assert verdict(Interval(-2.0, -3.0, -1.0), settled=True) == NO_MINIMUM
    assert verdict(Interval(-2.0, -5.0, 1.0), settled=True) == USABLE
    assert verdict(Interval(2.0, 1.0, 3.0), settled=False) == DRIFTING


def test_draws_that_rise_evenly_from_zero_rise_by_their_mean():
    def of(losses: torch.Tensor) -> float:
        return rise_of(Estimate(0.0, losses.mean(1), losses, 1.0, 1.0))

    ramp = 1.0 + torch.linspace(0, 2, 100)[None].expand(3, -1)
    assert of(ramp) == pytest.approx(1.0, abs=0.02)
    assert of(torch.full((3, 100), 2.0)) == 0.0
    assert of(torch.ones(3, 100)) == 0.0


def test_the_interval_over_chains_is_students():
    found = interval_of(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert found.estimate == 2.0
    assert found.high - 2.0 == pytest.approx(4.30265 / 3**0.5, rel=1e-4)  # t(2), table
    assert 2.0 - found.low == pytest.approx(found.high - 2.0)


def test_chains_that_diverged_have_no_coefficient():
    assert Chains(None, None, 7).row(1.2) == {"verdict": DIVERGED, "n_steps": 7}


def test_chains_that_do_not_agree_are_drifting_and_a_still_sample_has_a_finite_r_hat():
    def row(losses: torch.Tensor) -> dict:
        found = Estimate(1.0, losses.double().mean(1), losses, 0.0, float("inf"))
        return Chains(losses, found, losses.shape[1]).row(1.2)

    found = row(torch.tensor([[1.0] * 8, [2.0] * 8]))
    assert found["verdict"] == DRIFTING
    assert found["r_hat"] == 1e6
    assert found["n_steps"] == 8
