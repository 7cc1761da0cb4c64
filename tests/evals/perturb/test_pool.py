"""Moments against one-shot ones, position 0, the ridge, and what is too little to estimate."""

import pytest
import torch
from conftest import random_gpt2

from sae_kit.evals.perturb import pool as module
from sae_kit.evals.perturb.pool import Gaussian, Pool
from sae_kit.maths import StreamingMoments

MODEL = random_gpt2()
TOKENS = torch.randint(300, (24, 9), generator=torch.Generator().manual_seed(1))
SITES = ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_mid"]


def counts(tokens=TOKENS):
    """All positions but the first."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    return mask


def pools(**changed):
    settings = {"n_rows": 50, "seed": 0, **changed}
    return Pool.of(MODEL, TOKENS, counts(), SITES, **settings)


def moments_of(rows):
    moments = StreamingMoments(rows.shape[1], with_cov=True)
    moments.update(rows)
    return moments


def gaussian_rows(n, eigenvalues, *, seed=0):
    """Rows of N(1, Q diag(eigenvalues) Q^T), float64, and that covariance."""
    generator = torch.Generator().manual_seed(seed)
    d = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) * eigenvalues.sqrt()
    return 1.0 + rows @ q.T, q @ torch.diag(eigenvalues) @ q.T


@pytest.mark.parametrize("contexts_per_pass", [1, 5, 100])
def test_streamed_moments_are_the_one_shot_ones_without_position_0(contexts_per_pass, monkeypatch):
    monkeypatch.setattr(module, "CONTEXTS_PER_PASS", contexts_per_pass)
    for site, pool in pools().items():
        x = MODEL.run(TOKENS, capture=[site]).acts[site][:, 1:].flatten(0, 1).double()
        torch.testing.assert_close(pool.normal.mean, x.mean(0), rtol=1e-5, atol=1e-6)
        expected = x.T.cov() + pool.normal.ridge * torch.eye(32, dtype=torch.float64)
        torch.testing.assert_close(pool.normal.covariance, expected, rtol=1e-5, atol=1e-5)
        product = pool.normal.factor @ pool.normal.factor.T
        torch.testing.assert_close(product, pool.normal.covariance)


def test_an_outlier_at_position_0_changes_nothing():
    """METHODS §11.5: 40 times the norm, and not in the statistics."""
    outlier = random_gpt2()
    with torch.no_grad():
        outlier.W_pos[0] *= 40
    site = "blocks.0.hook_resid_pre"  # where position 0 cannot have reached the others
    plain, other = (
        Pool.of(model, TOKENS, counts(), [site], n_rows=50, seed=0)[site]
        for model in (MODEL, outlier)
    )
    assert torch.equal(plain.normal.covariance, other.normal.covariance)
    everything = torch.ones_like(TOKENS, dtype=torch.bool)
    swamped = Pool.of(outlier, TOKENS, everything, [site], n_rows=50, seed=0)[site]
    trace = plain.normal.covariance.diagonal().sum()
    assert swamped.normal.covariance.diagonal().sum() > 10 * trace


def test_rows_are_activations_of_their_positions_the_same_at_every_site():
    first, second = (pools()[site] for site in SITES)
    assert torch.equal(first.positions, second.positions)
    assert len(first.rows) == 50
    assert 0 not in first.positions
    acts = MODEL.run(TOKENS, capture=SITES).acts
    for pool in (first, second):
        for row, position in zip(pool.rows, pool.positions.tolist(), strict=True):
            distance = (acts[pool.site][:, position] - row).norm(dim=-1).min()
            assert distance < 1e-4
        assert pool.median_norm == pool.rows.norm(dim=-1).double().median().item()


def test_the_seed_draws_the_rows_and_not_the_moments():
    one, same, other = (pools(seed=seed)[SITES[0]] for seed in (0, 0, 1))
    assert torch.equal(one.rows, same.rows)
    assert not torch.equal(one.rows, other.rows)
    assert torch.equal(one.normal.covariance, other.normal.covariance)
    assert len(pools(n_rows=10_000)[SITES[0]].rows) == 24 * 8


def test_draws_have_the_mean_and_the_covariance():
    rows, covariance = gaussian_rows(50_000, torch.linspace(0.5, 8, 12).double())
    normal = Gaussian.of(moments_of(rows), "s")
    standard = torch.randn(
        50_000, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    drawn = normal.drawn(standard)
    assert (drawn.mean(0) - 1).abs().max() < 0.05
    assert (drawn.T.cov() - covariance).norm() / covariance.norm() < 0.03
    assert torch.equal(normal.drawn(standard), normal.mean + normal.shaped(standard))


def test_a_rank_deficient_covariance_has_a_factor():
    """METHODS F2: chol(Sigma + 0.01 I) is finite. A mean-centred stream is of this kind."""
    rows, covariance = gaussian_rows(5000, torch.tensor([9.0, 4.0, 0.0, 0.0]).double())
    normal = Gaussian.of(moments_of(rows), "s")
    assert normal.ridge == 0.01
    product = normal.factor @ normal.factor.T
    expected = covariance + 0.01 * torch.eye(4, dtype=torch.float64)
    assert (product - expected).norm() / covariance.norm() < 0.1
    assert normal.factor.isfinite().all()


def test_the_ridge_is_never_more_than_a_hundredth_of_small_activations():
    rows, _ = gaussian_rows(5000, torch.tensor([1e-4, 2e-4, 3e-4]).double())
    moments = moments_of(rows)
    normal = Gaussian.of(moments, "s")
    assert normal.ridge == pytest.approx(0.01 * moments.var().mean().item())


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_activations_that_never_vary_are_refused(constant):
    with pytest.raises(ValueError, match=r"write: .*'s' have a singular covariance"):
        Gaussian.of(moments_of(torch.full((100, 5), constant)), "s")


def test_too_few_prompts_are_refused_and_it_says_how_many_are_needed():
    few, mask = TOKENS[:4], counts()[:4]
    with pytest.raises(ValueError, match=r"n_pool_prompts: 4 prompts have 32 .*at least 33") as e:
        Pool.of(MODEL, few, mask, SITES, n_rows=5, seed=0)
    n = int(str(e.value).rsplit("give ", 1)[1].split()[0])
    assert n == 5
    Pool.of(MODEL, TOKENS[:n], counts()[:n], SITES, n_rows=5, seed=0)


def test_prompts_in_which_nothing_counts_are_refused():
    with pytest.raises(ValueError, match="have 0 activations that count"):
        Pool.of(MODEL, TOKENS, torch.zeros_like(counts()), SITES, n_rows=5, seed=0)
