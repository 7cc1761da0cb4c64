"""Matrix products by the faster of the libraries that PyTorch brings along.

On CPUs PyTorch hands float32 products to MKL, which on other vendors' processors does not use their
widest registers; oneDNN, which it brings too, does. On an AMD EPYC with AVX-512 that is twice as
fast, forward and backward, at the same rounding error (benchmarks/products.py).

Limits: other types, other devices and products inside autocast go PyTorch's usual way. The two
libraries round differently, so equal bits are to be had with the same library only, which for a
given machine and PyTorch is always the same one. First derivatives only.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


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


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.numel() > 0
        and weight.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """oneDNN forward and backward."""

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
            _onednn(grad, weight.T, None) if needs_x else None,
            _onednn(rows.T, x.flatten(0, -2).T, None) if needs_weight else None,
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
