import torch

from sae_kit.sae import SparseCode
from sae_kit.sae.code import firings

# Row 0: latents 3 and 1; row 1: latent 0 only (the second place is not in use).
CODE = SparseCode(torch.tensor([[2.0, 5.0], [7.0, 0.0]]), torch.tensor([[3, 1], [0, 2]]), 5)
DENSE = torch.tensor([[0.0, 5.0, 0.0, 2.0, 0.0], [7.0, 0.0, 0.0, 0.0, 0.0]])


def test_dense():
    assert torch.equal(CODE.dense(), DENSE)


def test_l0_counts_places_in_use():
    assert CODE.l0().tolist() == [2, 1]


def test_fired_ignores_places_not_in_use():
    assert CODE.fired().tolist() == [True, True, False, True, False]


def test_select_returns_columns_in_the_order_asked_for():
    latents = torch.tensor([3, 4, 0])
    assert torch.equal(CODE.select(latents), DENSE[:, latents])


def test_from_dense_is_the_inverse_of_dense():
    again = SparseCode.from_dense(DENSE)
    assert again.values.shape == (2, 2)  # as wide as the fullest row
    assert torch.equal(again.dense(), DENSE)


def test_from_dense_of_silence():
    silent = SparseCode.from_dense(torch.zeros(3, 5))
    assert torch.equal(silent.dense(), torch.zeros(3, 5))
    assert not silent.fired().any()


def test_leading_axes_are_kept():
    deep = SparseCode(CODE.values[:, None], CODE.indices[:, None], 5)
    assert torch.equal(deep.dense(), DENSE[:, None])
    assert deep.l0().tolist() == [[2], [1]]
    assert torch.equal(deep.select(torch.tensor([1])), DENSE[:, None, 1:2])
    assert torch.equal(SparseCode.from_dense(DENSE[:, None]).dense(), DENSE[:, None])


def test_firings_are_the_same_of_either_form():
    def entries(code: SparseCode | torch.Tensor) -> set[tuple[float, ...]]:
        return set(zip(*(column.tolist() for column in firings(code)), strict=True))

    rows, latents = (DENSE > 0).nonzero(as_tuple=True)
    expected = zip(rows.tolist(), latents.tolist(), DENSE[rows, latents].tolist(), strict=True)
    assert entries(CODE) == entries(DENSE) == set(expected)
