"""Local learning coefficients that are known: METHODS 7(f)."""

import math

import pytest
import torch

from sae_kit.evals.loss_landscape.sgld import (
    Diverged,
    Sampler,
    local_learning_coefficient,
    n_beta_of,
    r_hat,
)


def sampler(**settings) -> Sampler:
    defaults = {"n_beta": n_beta_of(1000), "step": 4e-4, "n_chains": 10, "n_draws": 500}
    return Sampler(**{**defaults, "n_burn_in": 200, **settings})


@pytest.mark.parametrize(("rank", "d"), [(1, 1), (3, 3), (2, 6)])
def test_a_quadratic_of_rank_k_has_k_over_2(rank, d):
    def loss(w: torch.Tensor) -> torch.Tensor:
        return w[:, :rank].square().sum(1)

    found = local_learning_coefficient(
        loss, torch.zeros(d, dtype=torch.float64), sampler(step=1e-3, n_draws=1500), seed=0
    )
    assert found.coefficient == pytest.approx(rank / 2, rel=0.15)
    assert found.r_hat < 1.1


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 1), (0, 2), (1, 2), (2, 2), (1, 3)])
def test_monomials(a, b):
    """F15: the loss of x w1^a w2^b at 0 has 1 / (2 max(a, b)), up to logarithms."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = x.square().mean()

    def loss(w: torch.Tensor) -> torch.Tensor:
        return variance * (w[:, 0] ** a * w[:, 1] ** b).square()

    found = local_learning_coefficient(
        loss, torch.zeros(2, dtype=torch.float64), sampler(n_draws=5000), seed=0
    )
    spread = found.by_chain.std().item()
    assert found.coefficient == pytest.approx(1 / (2 * max(a, b)), abs=max(0.12, 3.5 * spread))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "h", "n", "expected"),
    [(2, 1, 5, 1.0), (6, 1, 3, 1.5), (2, 5, 2, 2.0), (3, 3, 3, (18 + 18 + 18 - 18 - 9 + 1) / 8)],
)
def test_reduced_rank_regression(m, h, n, expected):
    """m -> h -> n, true map 0. Aoyagi and Watanabe's values: mh/2, hn/2, mn/2, and the middle case
    (2mn + 2hn + 2mh - n^2 - m^2 - h^2 [+ 1 if m + h + n is odd]) / 8."""

    def loss(w: torch.Tensor) -> torch.Tensor:
        first, second = w[:, : m * h].view(-1, h, m), w[:, m * h :].view(-1, n, h)
        return (second @ first).square().sum((1, 2))

    zero = torch.zeros(m * h + h * n, dtype=torch.float64)
    found = local_learning_coefficient(
        loss, zero, sampler(n_chains=6, n_draws=3000, step=6e-4), seed=0
    )
    assert found.coefficient == pytest.approx(expected, rel=0.4)


@pytest.mark.parametrize(("curvature", "step"), [(1.0, 1e-3), (1.0, 1e-2), (0.01, 1e-3)])
def test_a_pull_and_a_step_of_some_size_change_a_quadratic_as_derived(curvature, step):
    """w <- (1 - e a / 2) w + N(0, e) has variance 1 / (a (1 - e a / 4)), a = n beta h + gamma."""
    n_beta, gamma, d = 100.0, 10.0, 400

    def loss(w: torch.Tensor) -> torch.Tensor:
        return curvature / 2 * w.square().sum(1)

    a = n_beta * curvature + gamma
    found = local_learning_coefficient(
        loss,
        torch.zeros(d, dtype=torch.float64),
        sampler(n_beta=n_beta, gamma=gamma, step=step, n_burn_in=int(8 / (step * a)), n_chains=4),
        seed=0,
    )
    expected = d / 2 * n_beta * curvature / (a * (1 - step * a / 4))
    assert found.coefficient == pytest.approx(expected, rel=0.05)


def test_the_union_of_two_independent_losses_adds():
    def loss(w: torch.Tensor) -> torch.Tensor:
        return w[:, 0].square() + w[:, 1].square()

    def half(w: torch.Tensor) -> torch.Tensor:
        return w[:, 0].square()

    settings = sampler(step=1e-3, n_draws=1500)
    whole, one = (
        local_learning_coefficient(f, torch.zeros(d, dtype=torch.float64), settings, seed=0)
        for f, d in ((loss, 2), (half, 1))
    )
    assert whole.coefficient == pytest.approx(2 * one.coefficient, rel=0.2)


def test_a_point_that_is_no_minimum_has_a_negative_estimate():
    def loss(w: torch.Tensor) -> torch.Tensor:
        return (w[:, 0] - 1.0).square()

    found = local_learning_coefficient(
        loss, torch.zeros(1, dtype=torch.float64), sampler(gamma=0.0), seed=0
    )
    assert found.coefficient < 0


def test_equal_seeds_give_equal_chains():
    def loss(w: torch.Tensor) -> torch.Tensor:
        return w.square().sum(1)

    zero = torch.zeros(2)
    first, again, other = (
        local_learning_coefficient(loss, zero, sampler(n_draws=20), seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.losses, again.losses)
    assert not torch.equal(first.losses, other.losses)
    assert first.losses.shape == (10, 20)


def test_divergence_is_noticed_and_says_what_to_do():
    def loss(w: torch.Tensor) -> torch.Tensor:
        return w.square().sum(1)

    with pytest.raises(ValueError, match=r"step: chains diverged .* give a smaller one"):
        local_learning_coefficient(
            loss, torch.zeros(2, dtype=torch.float64), sampler(step=1.0), seed=0
        )


def test_a_loss_above_what_is_allowed_has_diverged_too():
    def loss(w: torch.Tensor) -> torch.Tensor:
        return w.square().sum(1)

    with pytest.raises(Diverged) as raised:
        local_learning_coefficient(
            loss, torch.zeros(2, dtype=torch.float64), sampler(max_rise=1e-9), seed=0
        )
    assert raised.value.n_steps == 1


def test_an_infinite_loss_is_no_minimum():
    with pytest.raises(ValueError, match="minimum: its loss is inf"):
        local_learning_coefficient(lambda w: w.sum(1) + math.inf, torch.zeros(2), sampler(), seed=0)


def test_chains_that_agree_have_r_hat_1_and_others_more():
    generator = torch.Generator().manual_seed(0)
    traces = torch.randn(6, 400, generator=generator)
    assert r_hat(traces) == pytest.approx(1.0, abs=0.02)
    assert r_hat(traces + 3 * torch.arange(6.0)[:, None]) > 2
    assert r_hat(traces + torch.linspace(0, 10, 400)) > 1.5  # drifting together
    assert r_hat(torch.ones(3, 8)) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 0.0}, "step: 0.0 is not positive"),
        ({"n_beta": -1.0}, "n_beta"),
        ({"n_chains": 1}, "n_chains: 1"),
        ({"gamma": -1.0}, "gamma"),
    ],
)
def test_samplers_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sampler(**change)


def test_the_temperature_of_the_theory():
    assert n_beta_of(1000) == pytest.approx(144.765, abs=1e-3)
    with pytest.raises(ValueError, match="n: 2 data points"):
        n_beta_of(2)
