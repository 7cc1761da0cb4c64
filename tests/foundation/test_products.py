"""Products by oneDNN are products: the same numbers and gradients as plain algebra in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sae_kit import products
from sae_kit.products import linear

SHAPES = [((5,), 7, 3), ((2, 3), 7, 4), ((1,), 1, 1), ((300,), 65, 129)]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def operands(rows, d_in, d_out, *, transposed):
    weight = draw(d_in, d_out, seed=1).T if transposed else draw(d_out, d_in, seed=1)
    return draw(*rows, d_in), weight, draw(d_out, seed=2)


@pytest.fixture(params=[False, True], ids=["narrow", "AVX-512"], autouse=True)
def machine(request, monkeypatch):
    """Both kinds of machine choose between the same two libraries."""
    monkeypatch.setattr(products, "HAS_AVX512", request.param)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "d_in", "d_out"), SHAPES)
def test_it_is_the_product(rows, d_in, d_out, with_bias, transposed):
    x, weight, bias = operands(rows, d_in, d_out, transposed=transposed)
    expected = x.double() @ weight.double().T + (bias.double() if with_bias else 0.0)
    assert_close(linear(x, weight, bias if with_bias else None), expected.float())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "d_in", "d_out"), SHAPES)
def test_its_gradients_are_the_products_gradients(rows, d_in, d_out, transposed):
    ours = [t.requires_grad_() for t in operands(rows, d_in, d_out, transposed=transposed)]
    exact = [t.detach().double().requires_grad_() for t in ours]
    outer = draw(*rows, d_out, seed=3)
    (linear(*ours) * outer).sum().backward()
    (F.linear(*exact) * outer.double()).sum().backward()
    for mine, wanted in zip(ours, exact, strict=True):
        assert_close(mine.grad, wanted.grad.float(), atol=1e-4, rtol=1e-4)


def test_only_what_is_asked_for_is_differentiated():
    x, weight, bias = operands((4,), 3, 5, transposed=False)
    x.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert_close(x.grad, weight.sum(0).expand(4, 3))
    assert weight.grad is None


def test_nothing_is_recorded_without_gradients():
    x, weight, bias = operands((4,), 3, 5, transposed=False)
    weight.requires_grad_()
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_the_usual_way(dtype):
    x, weight, bias = (t.to(dtype) for t in operands((4,), 3, 5, transposed=False))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_autocast_is_respected():
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*operands((4,), 3, 5, transposed=False)).dtype is torch.bfloat16


def test_no_rows_give_no_rows():
    assert linear(torch.zeros(0, 3), torch.zeros(5, 3)).shape == (0, 5)


def test_without_wide_registers_a_transposed_weight_goes_to_mkl(monkeypatch):
    monkeypatch.setattr(products, "HAS_AVX512", False)
    x, weight, bias = operands((40,), 30, 50, transposed=True)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_without_onednn_it_is_torchs(monkeypatch):
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    x, weight, bias = operands((40,), 30, 50, transposed=False)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("available", [True, False])
def test_bfloat16_is_fast_where_the_processor_has_it(monkeypatch, available):
    monkeypatch.setattr(products, "_has_bf16_instructions", lambda: available)
    assert products.fast_bf16(torch.device("cpu")) is available
    assert not products.fast_bf16(torch.device("mps"))
