"""Spectra of networks whose free directions are known: METHODS 7(f)."""

import math

import pytest
import torch
from torch import nn

from sae_kit.evals.loss_landscape.curvature import (
    Network,
    behavioural_loss,
    effective_parameters,
    gauss_newton,
    hessian_of,
    nullity,
    spectrum,
)
from sae_kit.evals.loss_landscape.sgld import Sampler, local_learning_coefficient


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(d_in: int = 3, d_hidden: int = 4, d_out: int = 2, *, act: nn.Module | None = None):
    module = nn.Sequential(nn.Linear(d_in, d_hidden), act or nn.Tanh(), nn.Linear(d_hidden, d_out))
    module.double().requires_grad_(False)
    for i, p in enumerate(module.parameters()):
        p.copy_(draw(*p.shape, seed=i + 1))
    return module


def free(module: nn.Module, x: torch.Tensor) -> int:
    return nullity(spectrum(gauss_newton(Network(module), x)))


X = draw(200, 3, seed=9)


def test_of_a_linear_map_it_is_the_inputs_gram_matrix_for_each_output():
    layer = nn.Linear(3, 2, bias=False).double()
    found = gauss_newton(Network(layer), X, batch=7)
    expected = torch.kron(torch.eye(2, dtype=X.dtype), X.T @ X / len(X))
    torch.testing.assert_close(found, expected)


def test_twice_of_it_is_the_hessian_of_the_behavioural_loss():
    network = Network(mlp())
    loss = behavioural_loss(network, X)
    assert loss(network.theta).item() == 0.0
    assert loss(network.theta + 0.1).item() > 0
    hessian = hessian_of(loss, network.theta)
    torch.testing.assert_close(hessian, 2 * gauss_newton(network, X))


def test_a_smooth_network_in_general_position_has_no_free_direction():
    assert free(mlp(), X) == 0


def test_inputs_of_low_rank_free_a_direction_for_each_missing_one_and_unit():
    flat = X.clone()
    flat[:, 2] = flat[:, 0] - 2 * flat[:, 1]
    assert free(mlp(), flat) == 4  # (3 - 2) * d_hidden


def test_a_unit_that_nothing_reads_frees_its_inputs_and_bias():
    module = mlp()
    module[2].weight[:, 1] = 0
    assert free(module, X) == 3 + 1


def test_a_dead_unit_frees_its_outputs_too():
    module = mlp(act=nn.ReLU())
    before = free(module, X)
    assert before == 4  # of every unit, the scale: c * in, out / c
    module[0].bias[1] = -1e3
    assert free(module, X) == 3 + (3 + 1 + 2)


def test_twins_leave_only_their_sum():
    """Of two equal units, the outputs' difference is free, and one set of inputs' combinations."""
    module = mlp()
    module[0].weight[1], module[0].bias[1] = module[0].weight[0], module[0].bias[0]
    # Outputs: 2 of 4. Inputs: both sets move f through out_0 * u and out_1 * v, which span two
    # dimensions of outputs unless the units' output weights are parallel.
    assert free(module, X) == 2
    module[2].weight[:, 1] = 3 * module[2].weight[:, 0]
    assert free(module, X) == 2 + (3 + 1)


def test_synchronised_units_free_more_than_others():
    """Two ReLUs that are on together are one linear map of three inputs (a bias is one) to two
    outputs there: six numbers that matter of the ten that they have, and the outer bias."""
    x = X[:, :2]
    module = mlp(2, 2, 2, act=nn.ReLU())
    module[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    module[0].bias.zero_()
    positive = torch.cat([x.abs(), -x.abs()])  # both on, or both off
    together, apart = free(module, positive), free(module, x)
    assert apart == 2  # the scale of each unit
    assert together == 12 - (6 + 2)


def test_networks_that_do_not_touch_add():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = mlp(2, 3, 1), mlp(1, 2, 1, act=nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.one(x[:, :2]), self.other(x[:, 2:])], 1)

    both = Both()
    network = Network(both)
    whole = gauss_newton(network, X)
    n_one = sum(p.numel() for p in both.one.parameters())
    assert whole[:n_one, n_one:].abs().max() == 0
    parts = [
        spectrum(gauss_newton(Network(part), x))
        for part, x in ((both.one, X[:, :2]), (both.other, X[:, 2:]))
    ]
    torch.testing.assert_close(spectrum(whole), torch.cat(parts).sort(descending=True).values)
    for cut_off in (1e-4, 1.0):
        counts = [effective_parameters(values, cut_off, scale=1.0) for values in parts]
        total = effective_parameters(spectrum(whole), cut_off, scale=1.0)
        assert total == pytest.approx(sum(counts))


def test_the_places_of_tensors_in_the_vector():
    module = mlp()
    network = Network(module)
    places = network.places()
    for name, p in module.named_parameters():
        assert torch.equal(network.theta[places[name]], p.flatten())


# --- effective parameters -------------------------------------------------------------------------


def test_far_below_every_curvature_all_directions_with_any_count():
    h = torch.tensor([4.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    assert effective_parameters(h, 1e-9, scale=1.0) == pytest.approx(3.0, abs=1e-6)
    assert effective_parameters(h, 1e9, scale=1.0) == pytest.approx(0.0, abs=1e-6)
    counts = [effective_parameters(h, 10.0**k, scale=1.0) for k in range(-6, 4)]
    assert counts == sorted(counts, reverse=True)


def test_it_is_the_slope_of_the_volume():
    """By its definition, with the integral done: V ~ prod (h_i / e + 1 / (2 s^2))^(-1/2)."""
    h, scale, e = draw(6).abs(), 0.7, 0.3

    def log_volume(log_e: float) -> float:
        return -0.5 * (h / math.exp(log_e) + 1 / (2 * scale**2)).log().sum().item()

    at, step = math.log(e), 1e-5
    slope = (log_volume(at + step) - log_volume(at - step)) / (2 * step)
    assert effective_parameters(h, e, scale=scale) == pytest.approx(2 * slope, rel=1e-6)


def test_half_of_it_is_what_sampling_finds():
    """Linear regression: the behavioural loss is exactly quadratic."""
    layer = nn.Linear(3, 2).double().requires_grad_(False)
    network = Network(layer)
    x = X * torch.tensor([1.0, 0.1, 0.01], dtype=X.dtype)
    matrix = gauss_newton(network, x)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        away = theta - network.theta
        return (away @ matrix * away).sum(1)

    elsewhere = network.theta + draw(len(network.theta), seed=5)
    exact = behavioural_loss(network, x)(elsewhere)
    torch.testing.assert_close(loss(elsewhere[None])[0], exact)
    n_beta, gamma = 200.0, 10.0
    sampler = Sampler(
        n_beta=n_beta, gamma=gamma, step=1e-3, n_chains=20, n_burn_in=600, n_draws=600
    )
    found = local_learning_coefficient(loss, network.theta, sampler, seed=0)
    h = spectrum(matrix)
    expected = effective_parameters(h, 1 / n_beta, scale=gamma**-0.5) / 2
    assert found.coefficient == pytest.approx(expected, rel=0.1)
    assert nullity(h) == 0
    assert expected < 0.9 * len(h) / 2  # the weakest input hardly counts


# --- refused --------------------------------------------------------------------------------------


def test_what_is_too_large_or_too_coarse_is_refused():
    with pytest.raises(ValueError, match=r"10100 parameters .* at most 8192"):
        Network(nn.Linear(100, 100).double())
    with pytest.raises(ValueError, match=r"float32 is too coarse .*double"):
        Network(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"cut_off: 0\.0"):
        effective_parameters(torch.ones(2, dtype=torch.float64), 0.0, scale=1.0)
