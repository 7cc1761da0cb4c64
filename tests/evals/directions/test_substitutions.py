"""Distances, angles and norms that substitutions keep; errors whose harm is known."""

from dataclasses import replace

import pytest
import torch
from linear_softmax import D, covariance, given, normal, outcome, pool, weights

from sae_kit.evals.directions.directions import unit
from sae_kit.evals.directions.substitutions import SUBSTITUTIONS
from sae_kit.evals.perturb.responses import KL

W = weights()
POOL = pool(covariance())
X = POOL.rows[:3000].view(1000, 3, D)
RECON = 0.8 * X + 0.3 * normal(1000, 3, D, seed=5)
AS_FAR = ["sae", "isotropic", "cov_mixture", "real_mixture"]


def put(name, recon=RECON, x=X):
    rows = replace(POOL, rows=POOL.rows.to(x.dtype))
    return SUBSTITUTIONS[name].of(given(x, rows), recon)


def norm(x):
    return x.norm(dim=-1)


def cosine(x, y):
    return torch.nn.functional.cosine_similarity(x, y, dim=-1)


def test_every_substitution_is_registered_under_its_name():
    assert list(SUBSTITUTIONS) == [one.name for one in SUBSTITUTIONS.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", AS_FAR)
def test_matched_substitutions_are_as_far_as_the_reconstruction_of_every_token(name, dtype):
    moved = put(name, RECON.to(dtype), X.to(dtype)) - X.to(dtype)
    torch.testing.assert_close(norm(moved), norm(RECON - X).to(dtype), rtol=1e-5, atol=1e-5)


def test_norms_are_corrected_and_shrunk_along_the_line():
    torch.testing.assert_close(norm(put("norm_corrected")), norm(X))
    torch.testing.assert_close(cosine(put("norm_corrected"), RECON), torch.ones(1000, 3).double())
    torch.testing.assert_close(norm(put("shrink_only")), norm(RECON))
    torch.testing.assert_close(cosine(put("shrink_only"), X), torch.ones(1000, 3).double())


@pytest.mark.parametrize(("name", "length"), [("theta_to_sae", RECON), ("theta_to_x", X)])
def test_a_random_turn_keeps_the_angle_exactly(name, length):
    turned = put(name)
    torch.testing.assert_close(cosine(turned, X), cosine(RECON, X), rtol=0, atol=1e-12)
    torch.testing.assert_close(norm(turned), norm(length))
    across = turned - (turned * X).sum(-1, keepdim=True) / X.square().sum(-1, keepdim=True) * X
    error = RECON - (RECON * X).sum(-1, keepdim=True) / X.square().sum(-1, keepdim=True) * X
    assert cosine(across, error).mean().abs() < 0.02, "turned at random, not toward SAE(x)"


def test_ablations_are_constant():
    assert (put("zero") == 0).all()
    torch.testing.assert_close(put("mean"), POOL.normal.mean.expand(1000, 3, D))


def test_a_perfect_reconstruction_moves_nothing():
    for name in (*AS_FAR, "norm_corrected", "shrink_only", "theta_to_sae", "theta_to_x"):
        torch.testing.assert_close(put(name, X), X, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SUBSTITUTIONS)
def test_tokens_without_activation_or_reconstruction_have_no_nan(name):
    for recon, x in ((RECON, torch.zeros_like(X)), (torch.zeros_like(X), X)):
        assert put(name, recon, x).isfinite().all()


# --- planted errors on a linear-softmax model (METHODS §1 f) --------------------------------------


def ratios(error):
    """Mean KL of x + error over that of each baseline, on the same tokens."""
    clean = outcome(X[:, None], W)

    def kl(name):
        return KL()(clean, outcome(put(name, X + error)[:, None], W)).mean().item()

    return {name: kl("sae") / kl(name) for name in AS_FAR[1:]}


def test_an_error_like_a_mixture_is_as_harmful_as_one_and_more_than_an_isotropic_one():
    drawn = POOL.normal.shaped(normal(1000, 3, D, seed=11) - normal(1000, 3, D, seed=12))
    # All of one length: long draws are those with much in the strong channels, so that a direction
    # drawn apart from the length would not be like the error any more.
    found = ratios(0.5 * unit(drawn))
    assert found["cov_mixture"] == pytest.approx(1, abs=0.1)
    assert found["real_mixture"] == pytest.approx(1, abs=0.1)
    assert found["isotropic"] > 1.5


def test_an_isotropic_error_is_as_harmful_as_one_and_less_than_a_mixture():
    found = ratios(0.5 * unit(normal(1000, 3, D, seed=13)))
    assert found["isotropic"] == pytest.approx(1, abs=0.1)
    assert found["cov_mixture"] < 0.7
