"""Samplers against what they are samples of, and KLs along them where these are known."""

import math

import pytest
import torch
from linear_softmax import (
    D,
    covariance,
    fisher,
    given,
    kl_along,
    normal,
    orthogonal,
    pool,
    weights,
)

from sae_kit.evals.directions import directions as module
from sae_kit.evals.directions.directions import DIRECTIONS, Given, unit
from sae_kit.evals.perturb.paths import Ray
from sae_kit.evals.perturb.pool import Gaussian, Pool

W, SIGMA = weights(), covariance()
POOL = pool(SIGMA)
N_HOSTS = 1500
SAME = normal(1, 1, D, seed=9).expand(N_HOSTS, 1, D)
"""One activation many times over, so that only the directions differ."""
REAL = POOL.rows[:4000].view(1000, 4, D)


def cosine(x, y):
    return torch.nn.functional.cosine_similarity(x, y, dim=-1)


def test_every_direction_is_registered_under_its_name():
    assert {name: direction.name for name, direction in DIRECTIONS.items()} == {
        name: name for name in DIRECTIONS
    }


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_perturbation_is_exactly_as_long_as_asked_for(name):
    lengths = torch.tensor([0.3, 2.0, 40.0]).double()
    ray = Ray(REAL, DIRECTIONS[name].of(given(REAL, POOL)), lengths)
    moved = (ray.at(slice(None)) - REAL[:, None]).norm(dim=-1)
    torch.testing.assert_close(moved, lengths[:, None].expand_as(moved), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_draws_belong_to_the_host_and_not_to_its_group(name):
    """METHODS §11.4: random directions do not depend on the batch size."""
    whole = DIRECTIONS[name].of(given(REAL[:6], POOL))
    parts = [
        DIRECTIONS[name].of(
            Given(base=REAL[i], index=i, positions=torch.arange(4) % 5 + 1, pool=POOL, seed=0)
        )
        for i in torch.tensor([4, 1, 0]).split(2)
    ]
    torch.testing.assert_close(torch.cat(parts), whole[[4, 1, 0]], rtol=1e-12, atol=1e-12)


# --- what they are draws of -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cov_mixture", "real_mixture"])
def test_a_mixture_has_mean_zero_and_twice_the_covariance(name):
    """METHODS F2."""
    d = DIRECTIONS[name].of(given(REAL, POOL)).flatten(0, 1)
    assert d.mean(0).norm() < 5 * (2 * SIGMA.trace() / len(d)) ** 0.5
    assert (d.T.cov() - 2 * SIGMA).norm() / (2 * SIGMA).norm() < 0.05


def test_isotropic_directions_have_no_preference():
    d = DIRECTIONS["isotropic"].of(given(REAL, POOL)).flatten(0, 1)
    assert (d.T.cov() - torch.eye(D)).norm() / D**0.5 < 0.08


def test_differences_end_where_they_should():
    """x plus the difference is a draw of its own: of N(mu, Sigma), real, of the median norm, 0."""
    here = given(REAL, POOL)
    ends = {name: REAL + DIRECTIONS[name].of(here) for name in DIRECTIONS}
    drawn = ends["cov_difference"].flatten(0, 1)
    assert (drawn.T.cov() - SIGMA).norm() / SIGMA.norm() < 0.05
    assert (drawn.mean(0) - 2).abs().max() < 0.3
    norms = ends["isotropic_difference"].norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, POOL.median_norm))
    assert ends["toward_zero"].abs().max() == 0
    for name in ("real_difference", "toward_other"):
        end = ends[name][:5].flatten(0, 1)
        assert torch.cdist(end, POOL.rows).min(1).values.max() < 1e-5


def test_toward_other_has_the_position_of_its_host():
    rows = torch.arange(1.0, 21).double()[:, None].expand(20, D)  # a row says its own number
    small = Pool("s", POOL.normal, rows, torch.arange(20) % 5 + 1, 1.0)
    base = torch.zeros(50, 3, D).double()
    there = Given(
        base=base,
        index=torch.arange(50),
        positions=torch.tensor([2, 4, 9]),  # at 9 there is none; the nearest is 5
        pool=small,
        seed=0,
    )
    number = (DIRECTIONS["toward_other"].of(there)[..., 0] - 1).long()
    assert torch.equal(number % 5 + 1, torch.tensor([2, 4, 5]).expand(50, 3))
    assert len(number[:, 0].unique()) == 4


def test_the_two_of_a_real_mixture_are_different():
    two = Pool("s", POOL.normal, POOL.rows[:2], POOL.positions[:2], 1.0)
    d = DIRECTIONS["real_mixture"].of(given(torch.zeros(60, 1, D).double(), two))[:, 0]
    between = POOL.rows[0] - POOL.rows[1]
    assert (cosine(d, between).abs() - 1).abs().max() < 1e-12
    assert {round(c) for c in cosine(d, between).tolist()} == {-1, 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cov_difference", -1 / math.sqrt(2)),
        ("real_difference", -1 / math.sqrt(2)),
        ("cov_mixture", 0.0),
        ("real_mixture", 0.0),
        ("isotropic", 0.0),
        ("toward_zero", -1.0),
    ],
)
def test_differences_point_back_to_the_middle_and_mixtures_do_not(name, expected):
    """METHODS F2: the mean cosine with x - mu; in high dimension it is the same for all tokens."""
    d = 300
    wide = pool(torch.diag(torch.linspace(0.5, 2, d).double()), mean=0.0, n=3000)
    x = wide.rows[:800, None]
    found = cosine(DIRECTIONS[name].of(given(x, wide)), x - wide.normal.mean)
    assert found.mean().item() == pytest.approx(expected, abs=0.02)


# --- what a linear-softmax model makes of them (METHODS F1) ---------------------------------------


@pytest.mark.parametrize("name", DIRECTIONS)
def test_small_perturbations_do_what_the_fisher_matrix_says(name):
    """KL = L^2 d F d / 2, so doubling the length quadruples it: slope 2 on logarithmic axes."""
    base = REAL[:40, :1]
    direction = DIRECTIONS[name].of(given(base, POOL))
    lengths = torch.tensor([1e-3, 2e-3]).double()
    kl = kl_along(Ray(base, direction, lengths), base, W)[..., 0]
    d = unit(direction)[:, 0]
    quadratic = torch.stack([v @ fisher(x, W) @ v for v, x in zip(d, base[:, 0], strict=True)]) / 2
    torch.testing.assert_close(kl[:, 0], 1e-6 * quadratic, rtol=2e-3, atol=1e-14)
    slope = (kl[:, 1].mean() / kl[:, 0].mean()).log2().item()
    assert slope == pytest.approx(2, abs=1e-3)


def mean_kl(name, length=1e-3):
    ray = Ray(SAME, DIRECTIONS[name].of(given(SAME, POOL)), torch.tensor([length]).double())
    return kl_along(ray, SAME, W).mean().item()


def test_isotropic_directions_do_what_the_trace_says():
    expected = 0.5e-6 * fisher(SAME[0, 0], W).trace().item() / D
    assert mean_kl("isotropic") == pytest.approx(expected, rel=0.06)


def test_covariance_shaped_directions_do_what_the_shaped_trace_says():
    """A quotient of means stands for the mean of quotients, at D=16 within some percent."""
    f = fisher(SAME[0, 0], W)
    expected = 0.5e-6 * ((f @ SIGMA).trace() / SIGMA.trace()).item()
    assert mean_kl("cov_mixture") == pytest.approx(expected, rel=0.1)
    assert mean_kl("real_mixture") == pytest.approx(expected, rel=0.1)
    # Here the model reads strongly what varies most, so isotropic directions do less.
    assert mean_kl("isotropic") < 0.6 * expected


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_rotated_copy_has_the_same_curves(name, monkeypatch):
    """W R, R^T x, R^T Sigma R. Draws are turned along, which a symmetric root of Sigma lets pass
    (Cholesky's factor depends on the axes)."""
    r, drawn = orthogonal(), module.standard_normal

    def shaped(self: Gaussian, standard):
        values, vectors = torch.linalg.eigh(self.covariance)
        return standard @ (vectors * values.sqrt()) @ vectors.T

    monkeypatch.setattr(Gaussian, "shaped", shaped)
    lengths = torch.tensor([0.1, 1.0, 8.0]).double()
    base = REAL[:20]
    kl = kl_along(Ray(base, DIRECTIONS[name].of(given(base, POOL)), lengths), base, W)
    monkeypatch.setattr(module, "standard_normal", lambda *given: drawn(*given) @ r)
    turned = Pool(
        "s",
        Gaussian(POOL.normal.mean @ r, r.T @ POOL.normal.covariance @ r, POOL.normal.factor, 0.01),
        POOL.rows @ r,
        POOL.positions,
        POOL.median_norm,
    )
    direction = DIRECTIONS[name].of(given(base @ r, turned))
    again = kl_along(Ray(base @ r, direction, lengths), base @ r, W @ r)
    torch.testing.assert_close(again, kl, rtol=1e-8, atol=1e-10)


def test_a_unit_vector_of_nothing_is_nothing():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]])
    assert torch.equal(unit(x), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
