"""pass_through: shares of planted copies, and of latents that are none."""

import pytest
import torch
from scipy.sparse import csr_array

from sae_kit.evals.evolution.activity import Activity, Threshold
from sae_kit.evals.evolution.cooccurrence import Keep, Pairs, compare
from sae_kit.evals.evolution.pass_through import Matches


def drawn(d: int, *, seed: int, n: int = 3000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, d, generator=generator)
    return values * (torch.rand(n, d, generator=generator) < 0.1)


def compared(up: torch.Tensor, down: torch.Tensor) -> Pairs:
    sides = [Activity.of(csr_array(codes.numpy()), Threshold()) for codes in (up, down)]
    decoders = [torch.eye(codes.shape[1], 64) for codes in (up, down)]
    return compare(sides[0], sides[1], (decoders[0], decoders[1]), Keep(n_top=1, n_both=1))


def matched(up: torch.Tensor, down: torch.Tensor) -> Matches:
    fired = [(codes > 0).any(0) for codes in (up, down)]
    return Matches.of(compared(up, down), "pearson", fired[0], fired[1])


def test_a_permuted_copy_passes_everything_on():
    up = drawn(20, seed=0)
    found = matched(up, up[:, torch.randperm(20, generator=torch.Generator().manual_seed(1))])
    assert found.disappearing(0.999) == found.appearing(0.999) == 0


def test_planted_shares_are_found():
    """Of 20 upstream latents 15 go on, and downstream 10 more appear."""
    up = drawn(20, seed=0)
    found = matched(up, torch.cat([up[:, 5:], drawn(10, seed=1)], 1))
    assert found.disappearing(0.9) == pytest.approx(5 / 20)
    assert found.appearing(0.9) == pytest.approx(10 / 25)


def test_a_higher_level_leaves_fewer_matches():
    up = drawn(20, seed=0)
    noisy = up + torch.linspace(0, 1, 20) * drawn(20, seed=1)
    found = matched(up, noisy)
    shares = [found.disappearing(level) for level in (0.5, 0.7, 0.9, 0.99)]
    assert shares == sorted(shares)
    assert shares[0] < 0.3 < 0.7 < shares[-1]


def test_latents_that_never_fired_are_not_judged():
    up = drawn(20, seed=0)
    up[:, :5] = 0
    found = matched(up, torch.cat([up, torch.zeros(3000, 20)], 1))
    assert found.disappearing(0.9) == found.appearing(0.9) == 0


def test_without_any_latent_the_shares_are_zero():
    nothing = torch.zeros(50, 3)
    found = matched(nothing, nothing)
    assert (found.disappearing(0.5), found.appearing(0.5)) == (0, 0)
