"""Matrix products by the faster of the libraries that PyTorch brings along.

On CPUs PyTorch hands float32 products to MKL, which on other vendors' processors does not use their
widest registers; oneDNN, which it brings too, does. On an AMD EPYC with AVX-512 that is twice as
fast, forward and backward, at the same rounding error (benchmarks/products.py). Without AVX-512 it
is a little faster where the weight lies in rows, and up to twice as slow where it is a transposed
view, as the weights of GPT-2 are; there MKL is taken.

Limits: other types, other devices and products inside autocast go PyTorch's usual way. The two
libraries round differently, so equal bits are to be had with the same library only, which for a
given machine, PyTorch and layout of the weight is always the same one. First derivatives only.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
HAS_AVX512 = bool(torch.cpu.get_capabilities().get("avx512_f"))


def linear(
    x: Float[Tensor, "*rows d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "*rows d_out"]:
    """`x @ weight.T + bias`, as `torch.nn.functional.linear`; the weight may be a transposed view.

    Differentiable in all three.
    """
    if not _fits_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        return _Linear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return _onednn(x, weight, None) if _fits_onednn(x, weight) else F.linear(x, weight)


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.numel() > 0
        and weight.numel() > 0
        and (HAS_AVX512 or weight.is_contiguous())
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """oneDNN forward, and the faster one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.T) if needs_x else None,
            _product(rows.T, x.flatten(0, -2).T) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on `device`."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and _has_bf16_instructions()


def _has_bf16_instructions() -> bool:
    capability = torch.cpu.get_capabilities()
    return bool(
        capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("bf16")
    )
