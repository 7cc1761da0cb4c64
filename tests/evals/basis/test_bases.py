"""Local Interaction Basis: METHODS 6(f), on networks small enough to know everything."""

import pytest
import torch
from torch import nn

from sae_kit.evals.basis.bases import (
    Basis,
    interaction_bases,
    interaction_basis,
    jacobian_gram,
    layer_moments,
    neuron_basis,
    principal_components,
)
from sae_kit.evals.basis.node_network import NodeNetwork, of_modules
from sae_kit.maths import StreamingMoments

N = 400


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def dense(d_in: int, d_out: int, *, seed: int) -> nn.Linear:
    layer = nn.Linear(d_in, d_out).double().requires_grad_(False)
    layer.weight.copy_(draw(d_out, d_in, seed=seed) / d_in**0.5)
    layer.bias.copy_(draw(d_out, seed=seed + 1))
    return layer


def network() -> NodeNetwork:
    first, second, third = dense(6, 8, seed=1), dense(8, 5, seed=3), dense(5, 4, seed=5)
    return of_modules([nn.Sequential(first, nn.Tanh()), nn.Sequential(second, nn.Tanh()), third])


@pytest.fixture
def x() -> torch.Tensor:
    return draw(N, 1, 6, seed=9) @ torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)) + 2.0


def bases_of(net: NodeNetwork, x: torch.Tensor, **settings) -> list[Basis]:
    return interaction_bases(net, x, **{"batch": 150, "n_sources": None, "seed": 0, **settings})


def moments_of(x: torch.Tensor) -> StreamingMoments:
    moments = StreamingMoments(x.shape[-1], with_cov=True)
    moments.update(x.flatten(0, -2))
    return moments


# --- what holds in these coordinates --------------------------------------------------------------


def test_the_gram_matrix_of_activations_is_lambda_and_that_of_jacobians_the_identity(x):
    net = network()
    bases = bases_of(net, x)
    acts = net.activations(x)
    for layer in range(3):
        basis = bases[layer]
        coordinates = basis.coordinates(acts[layer]).flatten(0, 1)
        gram = torch.cov(coordinates.T)
        scale = basis.importance[0]
        torch.testing.assert_close(gram / scale, torch.diag(basis.importance) / scale)
        jacobians = jacobian_gram(
            net.sections[layer],
            acts[layer],
            bases[layer + 1],
            n_sources=None,
            generator=generator(),
        )
        identity = basis.C_inverse @ jacobians @ basis.C_inverse.T
        torch.testing.assert_close(identity, torch.eye(basis.n_directions, dtype=x.dtype))


def test_every_coordinate_has_mean_zero(x):
    net = network()
    for basis, act in zip(bases_of(net, x), net.activations(x), strict=True):
        mean = basis.coordinates(act).flatten(0, 1).mean(0)
        assert mean.abs().max() < 1e-10 * basis.importance[0].sqrt()


def test_lambda_and_coordinates_do_not_depend_on_the_basis_of_the_layer(x):
    """Activations f B with Jacobians J B^-T, B any invertible matrix."""
    net = network()
    B = draw(8, 8, seed=20)
    inverse = torch.linalg.inv(B)
    mixed = NodeNetwork(
        net.names,
        (
            lambda x: net.sections[0](x) @ B,
            lambda x: net.sections[1](x @ inverse),
            net.sections[2],
        ),
    )
    plain, other = bases_of(net, x)[1], bases_of(mixed, x)[1]
    torch.testing.assert_close(other.importance, plain.importance)
    act = net.activations(x)[1]
    torch.testing.assert_close(
        other.coordinates(act @ B).abs(), plain.coordinates(act).abs(), rtol=1e-6, atol=1e-8
    )


def test_a_narrower_next_layer_leaves_exactly_the_surplus_out(x):
    bases = bases_of(network(), x)
    # 8 -> 5: at most five directions matter at every input together only if the map is linear.
    net = of_modules([dense(6, 8, seed=1), dense(8, 5, seed=3)])
    assert [basis.n_directions for basis in bases_of(net, x)] == [5, 5, 5]
    assert bases[3].n_directions == 4


def test_a_linear_networks_jacobian_is_diagonal_in_these_coordinates(x):
    net = of_modules([dense(6, 8, seed=1), dense(8, 7, seed=3), dense(7, 6, seed=5)])
    bases = bases_of(net, x)
    for section, here, there in zip(net.sections, bases, bases[1:], strict=False):
        origin = here.activations(torch.zeros(1, here.n_directions, dtype=x.dtype))
        steps = here.activations(torch.eye(here.n_directions, dtype=x.dtype))
        jacobian = there.coordinates(section(steps)) - there.coordinates(section(origin))
        size = jacobian.abs()
        off = size - torch.diag(size.diagonal())
        assert off.max() < 1e-7 * size.max()


# --- truncation, baselines ------------------------------------------------------------------------


def test_what_is_dropped_makes_no_difference_to_the_next_layer(x):
    net = of_modules([dense(6, 8, seed=1), dense(8, 3, seed=3)])
    basis = bases_of(net, x)[1]
    act = net.activations(x)[1]
    assert basis.n_directions == 3
    kept = basis.kept(act, 3)
    assert (kept - act).abs().max() > 0.1
    torch.testing.assert_close(net.sections[1](kept), net.sections[1](act))


def test_principal_components_are_those_of_the_covariance(x):
    moments = moments_of(x)
    basis = principal_components(moments)
    expected = torch.linalg.eigvalsh(torch.cov(x.flatten(0, 1).T)).flip(0)
    torch.testing.assert_close(basis.importance, expected)
    torch.testing.assert_close(basis.C_inverse @ basis.C, torch.eye(6, dtype=x.dtype))
    rank_deficient = torch.cat([x, x[..., :2]], -1)
    assert principal_components(moments_of(rank_deficient)).n_directions == 6


def test_neurons_are_kept_by_their_variance(x):
    basis = neuron_basis(moments_of(x))
    kept = basis.kept(x, 1)
    torch.testing.assert_close(kept[..., 5], x[..., 5])  # drawn with the largest variance
    torch.testing.assert_close(kept[..., :5], x[..., :5].mean(0).expand(N, 1, 5))


def test_nothing_dropped_is_nothing_changed(x):
    basis = bases_of(network(), x)[0]
    assert basis.kept(x, 6) is x


def test_there_is_no_basis_of_what_does_not_vary(x):
    constant = moments_of(torch.ones(5, 1, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="covariance is zero"):
        principal_components(constant)
    with pytest.raises(ValueError, match="whitened Jacobians is zero"):
        interaction_basis(moments_of(x), torch.zeros(6, 6, dtype=torch.float64))


# --- cost -----------------------------------------------------------------------------------------


def test_batches_change_nothing(x):
    net = network()
    for whole, parts in zip(bases_of(net, x), bases_of(net, x, batch=37), strict=True):
        torch.testing.assert_close(whole.importance, parts.importance)


def test_random_signs_come_to_the_exact_sum_as_they_grow_more(x):
    """The error falls with the root of their number."""
    net = network()
    bases = bases_of(net, x)
    act = net.activations(x)[1]

    def gram(n_sources: int | None) -> torch.Tensor:
        return jacobian_gram(
            net.sections[1], act, bases[2], n_sources=n_sources, generator=generator(3)
        )

    exact = gram(None)
    errors = [((gram(n) - exact).norm() / exact.norm()).item() for n in (1, 100)]
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.02


def test_sums_run_over_positions_of_inputs_and_outputs():
    """A section that mixes positions: J is of all outputs with respect to each input position."""
    mixing = draw(3, 4, seed=1)

    def section(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ts,bsd->btd", mixing, x)

    x = draw(50, 4, 2, seed=2)
    moments = layer_moments(NodeNetwork(("a", "b"), (section,)), x, batch=50)
    following = neuron_basis(moments[1])
    gram = jacobian_gram(section, x, following, n_sources=None, generator=generator())
    expected = mixing.square().sum() / 4 * torch.eye(2, dtype=x.dtype)
    torch.testing.assert_close(gram, expected)
