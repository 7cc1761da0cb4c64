"""Pre-activations above a floor, listed or as a matrix: the same numbers and gradients."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import SparseCode, active


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands():
    """Ten rows, width 6, 40 latents, of which one in twenty is above 0 or so."""
    return draw(10, 6), draw(40, 6, seed=1), draw(40, seed=2) - 6.0


@pytest.fixture(params=[0.0, 1.0], ids=["matrix", "list"])
def dense_from(request, monkeypatch):
    monkeypatch.setattr(active, "DENSE_FROM", request.param)
    return request.param


@pytest.mark.parametrize("floor", [None, 0.3])
def test_relu_sae_and_its_gradients_equal_dense_autograd(dense_from, floor):
    tensors = [*operands(), draw(40, 5, seed=3), draw(40, seed=4)]
    weights = draw(10, 5, seed=5)
    ours, dense = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))

    x, encoder, bias, decoder, gains = ours
    floors = None if floor is None else torch.full((40,), floor, dtype=torch.float64)
    found = active.encode(x, encoder, bias, floors)
    assert (found.pairs is None) is (dense_from == 0.0)
    code = torch.where(found.values > (floor or 0.0), found.values, 0.0)
    recon = found.decode(code * found.per_latent(gains), decoder)

    x, encoder, bias, decoder, gains = dense
    pre = x @ encoder.T + bias
    expected_code = torch.where(pre > (floor or 0.0), pre, 0.0)
    expected = (expected_code * gains) @ decoder
    assert expected_code.any()
    assert_close(recon, expected)

    listed = found.code(code)
    as_matrix = listed.dense() if isinstance(listed, SparseCode) else listed
    assert_close(as_matrix, expected_code)

    (recon * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, dense, strict=True):
        assert_close(one.grad, other.grad)


def test_many_active_latents_make_a_matrix_and_few_a_list():
    x, encoder, bias = operands()
    assert active.encode(x, encoder, bias + 6.0).pairs is None
    assert active.encode(x, encoder, bias).pairs is not None


def test_chunks_of_rows_make_no_difference(monkeypatch):
    monkeypatch.setattr(active, "DENSE_FROM", 1.0)
    whole = active.encode(*operands())
    monkeypatch.setattr(active, "CHUNK", 40 * 3)
    parts = active.encode(*operands())
    assert_close(parts.values, whole.values)
    assert torch.equal(parts.pairs.rows, whole.pairs.rows)
    assert torch.equal(parts.pairs.latents, whole.pairs.latents)


def test_nothing_active_decodes_to_nothing():
    x, encoder, bias = operands()
    found = active.encode(x, encoder, bias - 100.0)
    assert len(found.values) == 0
    assert_close(found.decode(found.values, draw(40, 5)), torch.zeros(10, 5, dtype=torch.float64))


def test_the_start_level_lets_one_in_thirty_two_through():
    x, encoder, bias = draw(500, 6), draw(64, 6, seed=1), draw(64, seed=2)
    level = active.start_level(x, encoder, bias)
    share = (x @ encoder.T + bias >= level).double().mean()
    assert share == pytest.approx(1 / 32, rel=1e-3)
