"""A bijection for every length, that looks like a random one."""

import math

import pytest
import torch
from torch import Tensor

from sae_kit.data.permutation import Permutation


def order(n: int, *seed: int) -> Tensor:
    return Permutation(n, seed=seed)(torch.arange(n))


def chi_square(counts: Tensor) -> float:
    """In standard deviations from what equally likely cells give."""
    counts = counts.double()
    expected, free = counts.mean(), counts.numel() - 1
    return float(((counts - expected).square() / expected).sum() - free) / math.sqrt(2 * free)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 9, 10, 16, 17, 100, 255, 256, 257, 10_001])
def test_every_number_comes_once(n):
    for seed in range(3):
        found = order(n, seed)
        assert found.dtype == torch.int64
        assert torch.equal(found.sort().values, torch.arange(n))


def test_entries_do_not_depend_on_what_else_is_asked_for():
    whole, some = order(1000, 3, 1), torch.tensor([999, 0, 500, 500])
    assert torch.equal(Permutation(1000, seed=(3, 1))(some), whole[some])


def test_the_order_is_the_seeds():
    assert torch.equal(order(1000, 0, 0), order(1000, 0, 0))
    for seed in [(0, 1), (1, 0), (1, 1), (0, 0, 1)]:
        # Two random orders agree at one place on average.
        assert (order(1000, 0, 0) == order(1000, *seed)).sum() < 8, seed


def test_the_questions_are_left_as_they_are():
    places = torch.arange(10)
    Permutation(10, seed=(0,))(places)
    assert torch.equal(places, torch.arange(10))


@pytest.mark.slow
def test_every_place_is_equally_likely():
    n, n_orders = 20, 4000
    orders = torch.stack([order(n, seed, 5) for seed in range(n_orders)])
    cells = torch.stack([(orders == value).sum(0) for value in range(n)])
    assert abs(chi_square(cells)) < 4


@pytest.mark.slow
def test_every_pair_of_neighbours_is_equally_likely():
    n, n_orders = 10, 4000
    orders = torch.stack([order(n, 11, seed) for seed in range(n_orders)])
    pairs = (orders[:, 0] * n + orders[:, 1]).bincount(minlength=n * n).reshape(n, n)
    assert abs(chi_square(pairs[~torch.eye(n, dtype=torch.bool)])) < 4


def correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]).double())[0, 1])


def test_neither_places_nor_neighbours_nor_epochs_hang_together():
    n = 100_000
    one, two = order(n, 0, 0), order(n, 0, 1)
    for other in (torch.arange(n), one.roll(1), one.roll(317), two):
        assert abs(correlation(one, other)) < 4 / math.sqrt(n)


def test_a_piece_of_the_order_is_spread_as_random_numbers_are():
    """Every 2,048 entries over 100 equal parts of the range."""
    n = 1_000_000
    parts = Permutation(n, seed=(0, 0))(torch.arange(200 * 2048)).reshape(200, 2048) // (n // 100)
    deviations = torch.tensor([chi_square(piece.bincount(minlength=100)) for piece in parts])
    assert abs(deviations.mean()) < 4 / math.sqrt(200)
    assert abs(deviations.std() - 1) < 0.25


def test_long_orders_cost_nothing_to_have():
    n = 10**13
    found = Permutation(n, seed=(1, 2))(torch.arange(n - 5000, n))
    assert found.unique().numel() == 5000
    assert 0 <= found.min() < n / 100
    assert n - n / 100 < found.max() < n


def test_nothing_cannot_be_permuted():
    with pytest.raises(ValueError, match="n: 0 numbers"):
        Permutation(0, seed=(0,))
