"""Frequencies of functions that are known."""

import math

import pytest
import torch

from sae_kit.evals.basis.fourier import frequency_shares

P = 11


def waves(*functions):
    """`[p p 1 k]`, of functions of the angles of a and b."""
    angle = 2 * math.pi * torch.arange(P, dtype=torch.float64) / P
    a, b = angle[:, None].expand(P, P), angle[None].expand(P, P)
    return torch.stack([f(a, b).expand(P, P) for f in functions], -1)[:, :, None]


def test_a_wave_of_either_number_or_of_their_sum_has_its_frequency():
    found = frequency_shares(
        waves(
            lambda a, b: (3 * a).cos(),
            lambda a, b: 5 + (2 * b + 1).sin(),
            lambda a, b: (4 * (a + b)).cos(),
            lambda a, b: (a).cos() * (b).cos(),
        )
    )
    assert found.shape == (4, 5)
    assert found.argmax(1).tolist() == [2, 1, 3, 0]
    torch.testing.assert_close(found.max(1).values, torch.ones(4, dtype=torch.float64))


def test_shares_are_those_of_the_variance_and_the_rest_is_mixed():
    found = frequency_shares(
        waves(
            lambda a, b: 2 * (3 * a).cos() + (5 * b).cos(),
            lambda a, b: (3 * a).cos() * (2 * b).cos(),
            lambda a, b: 0 * a + 7,
        )
    )
    assert found[0].tolist() == pytest.approx([0, 0, 0.8, 0, 0.2])
    assert found[1].sum().item() == pytest.approx(0.0, abs=1e-12)
    assert found[2].tolist() == [0.0] * 5


def test_positions_are_taken_together():
    both = torch.cat([waves(lambda a, b: a.cos()), waves(lambda a, b: (2 * b).cos())], 2)
    assert frequency_shares(both)[0].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0])
