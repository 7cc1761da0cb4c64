"""Edges between node layers: METHODS 6(f), integrals and ablations with known answers."""

import pytest
import torch
from torch import nn

from sae_kit.evals.basis.bases import Basis, interaction_bases, layer_moments, neuron_basis
from sae_kit.evals.basis.interactions import (
    Quadrature,
    contributions,
    edges,
    fewest,
    strongest,
    through_edges,
)
from sae_kit.evals.basis.node_network import NodeNetwork, of_modules

GRADIENT, EXACT = Quadrature.gradient(), Quadrature.gauss_legendre(8)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(d_in: int, d_out: int, *, seed: int) -> nn.Linear:
    layer = nn.Linear(d_in, d_out).double().requires_grad_(False)
    layer.weight.copy_(draw(d_out, d_in, seed=seed) / d_in**0.5)
    layer.bias.copy_(draw(d_out, seed=seed + 1))
    return layer


def plain(network: NodeNetwork, x: torch.Tensor) -> list[Basis]:
    return [neuron_basis(moments) for moments in layer_moments(network, x, batch=64)]


def interaction(network: NodeNetwork, x: torch.Tensor) -> list[Basis]:
    return interaction_bases(network, x, batch=64, n_sources=None, seed=0)


# --- integrals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("quadrature", [EXACT, Quadrature.trapezoid(200), Quadrature.trapezoid(3)])
def test_weights_sum_to_one_and_nodes_lie_on_the_way(quadrature):
    assert sum(quadrature.weights) == pytest.approx(1.0)
    assert all(0 <= node <= 1 for node in quadrature.nodes)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_gauss_legendre_is_exact_for_polynomials(n):
    rule = Quadrature.gauss_legendre(n)
    degree = 2 * n - 1
    value = sum(w * a**degree for a, w in zip(rule.nodes, rule.weights, strict=True))
    assert value == pytest.approx(1 / (degree + 1))


def test_contributions_sum_to_the_change_from_the_mean():
    """Completeness of integrated gradients, before squaring."""
    net = of_modules([nn.Sequential(dense(4, 5, seed=1), nn.Tanh(), dense(5, 3, seed=3))])
    x = draw(10, 2, 4, seed=5)
    here, there = plain(net, x)
    added = contributions(net.sections[0], x, here, there, Quadrature.gauss_legendre(30)).sum(-1)
    mean = here.mean.expand(10, 2, 4)
    change = there.coordinates(net.sections[0](x)) - there.coordinates(net.sections[0](mean))
    torch.testing.assert_close(added, change, rtol=1e-6, atol=1e-6)
    # Of each output position; what an input position adds is summed over.
    assert added.shape == (10, 2, 3)
    gradient = contributions(net.sections[0], x, here, there, GRADIENT).sum(-1)
    assert (gradient - change).abs().max() > 0.01


def test_of_a_linear_map_every_quadrature_says_the_same():
    net = of_modules([dense(4, 3, seed=1)])
    x = draw(50, 1, 4, seed=5)
    here, there = plain(net, x)
    found = [edges(net.sections[0], x, here, there, rule, batch=7) for rule in (GRADIENT, EXACT)]
    torch.testing.assert_close(*found)
    weight = there.C.T @ net.sections[0].weight @ here.C
    second_moment = here.coordinates(x).square().mean((0, 1))
    torch.testing.assert_close(found[0], weight.square() * second_moment)


def test_batches_change_nothing():
    net = of_modules([nn.Sequential(dense(4, 3, seed=1), nn.ReLU())])
    x = draw(20, 1, 4, seed=5)
    here, there = plain(net, x)
    whole, parts = (edges(net.sections[0], x, here, there, EXACT, batch=b) for b in (20, 3))
    torch.testing.assert_close(whole, parts)


def test_random_signs_have_the_right_mean():
    mixing = draw(3, 4, seed=1)
    layer = dense(4, 3, seed=2)

    def section(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ts,bsd->btd", mixing, layer(x).tanh())

    x = draw(3000, 4, 4, seed=5)
    here, there = plain(NodeNetwork(("a", "b"), (section,)), x)
    signs = torch.Generator().manual_seed(0)
    exact = edges(section, x, here, there, GRADIENT, batch=3000)
    drawn = edges(section, x, here, there, GRADIENT, batch=3000, signs=signs)
    torch.testing.assert_close(drawn, exact, rtol=0.15, atol=0.02 * exact.max().item())
    assert (drawn - exact).abs().max() > 1e-6


# --- structure ------------------------------------------------------------------------------------


def test_a_linear_networks_edges_are_diagonal_in_the_interaction_basis():
    net = of_modules([dense(6, 8, seed=1), dense(8, 7, seed=3), dense(7, 6, seed=5)])
    x = draw(200, 1, 6, seed=7)
    bases = interaction(net, x)
    for section, act, here, there in zip(
        net.sections, net.activations(x), bases, bases[1:], strict=False
    ):
        found = edges(section, act, here, there, GRADIENT, batch=100)
        off = found - torch.diag(found.diagonal())
        assert off.max() < 1e-7 * found.max()
    # Not so in the basis of neurons.
    here, there = plain(net, x)[:2]
    found = edges(net.sections[0], x, here, there, GRADIENT, batch=100)
    assert (found > 1e-3 * found.max()).double().mean() > 0.5


def test_two_blocks_that_do_not_touch_have_no_edges_between_them():
    """A modular MLP on data whose blocks are exactly independent: all pairs of two samples."""
    layers: list[nn.Module] = []
    for seed in range(3):
        layer = dense(8, 8, seed=10 * seed)
        layer.weight[:4, 4:] = 0
        layer.weight[4:, :4] = 0
        layers.append(nn.Sequential(layer, nn.ReLU()))
    net = of_modules(layers)
    one, other = draw(17, 4, seed=7), draw(17, 4, seed=8)
    pairs = torch.cartesian_prod(torch.arange(17), torch.arange(17))
    x = torch.cat([one[pairs[:, 0]], other[pairs[:, 1]]], -1)[:, None]
    bases = interaction(net, x)
    acts = net.activations(x)
    for layer in (1, 2):
        here, there = bases[layer], bases[layer + 1]
        found = edges(net.sections[layer], acts[layer], here, there, GRADIENT, batch=100)
        # Which block a direction reads: where its weights are.
        of_here, of_there = (
            basis.C_inverse[:, :4].norm(dim=1) > basis.C_inverse[:, 4:].norm(dim=1)
            for basis in (here, there)
        )
        across = found[of_there[:, None] != of_here[None]]
        assert across.max() < 1e-12 * found.max()


def test_an_orthogonal_rotation_of_the_last_layer_changes_no_earlier_edge():
    first = nn.Sequential(dense(5, 6, seed=1), nn.Tanh())
    second = nn.Sequential(dense(6, 4, seed=3), nn.Tanh())
    rotation = torch.linalg.qr(draw(4, 4, seed=8))[0]
    x = draw(150, 1, 5, seed=7)
    found = []
    for turn in (torch.eye(4, dtype=x.dtype), rotation):
        net = NodeNetwork(("a", "b", "c"), (first, lambda x, turn=turn: second(x) @ turn))
        bases = interaction(net, x)
        found.append(edges(first, x, bases[0], bases[1], GRADIENT, batch=150))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-8)


# --- ablation -------------------------------------------------------------------------------------


def test_all_edges_kept_is_the_section_itself_and_none_is_the_mean():
    section = nn.Sequential(dense(4, 5, seed=1), nn.ReLU())
    net = of_modules([section])
    x = draw(30, 2, 4, seed=5)
    here, there = plain(net, x)
    every = torch.ones(5, 4, dtype=torch.bool)
    torch.testing.assert_close(through_edges(section, x, here, there, every), section(x))
    nothing = through_edges(section, x, here, there, ~every)
    torch.testing.assert_close(nothing, section(here.mean).expand(30, 2, 5))


def test_a_direction_sees_what_its_own_edges_bring():
    layer = dense(3, 2, seed=1)
    net = of_modules([layer])
    x = draw(30, 1, 3, seed=5)
    here, there = plain(net, x)
    kept = torch.tensor([[True, False, False], [False, True, True]])
    got = there.coordinates(through_edges(layer, x, here, there, kept))
    for i in range(2):
        alone = there.coordinates(layer(here.activations(here.coordinates(x) * kept[i])))
        torch.testing.assert_close(got[..., i], alone[..., i])


def test_the_strongest_edges_are_kept_and_ties_have_an_order():
    strengths = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    assert strongest(strengths, 0).sum() == 0
    assert strongest(strengths, 2).tolist() == [[True, False], [False, True]]
    assert strongest(strengths, 3).tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("answer", [0, 1, 2, 37, 99, 100])
def test_bisection_finds_the_fewest(answer):
    asked: list[int] = []

    def is_enough(n: int) -> bool:
        asked.append(n)
        return n >= answer

    assert fewest(100, is_enough) == answer
    assert len(asked) == len(set(asked)) <= 14


@pytest.mark.parametrize("answer", [1, 300, 5000, 65000])
def test_a_rough_answer_is_enough_and_within_what_was_asked_for(answer):
    asked: list[int] = []

    def is_enough(n: int) -> bool:
        asked.append(n)
        return n >= answer

    found = fewest(65536, is_enough, within=0.05)
    assert answer <= found <= 1.05 * answer
    assert len(asked) <= 16
