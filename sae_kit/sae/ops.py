"""Sparse products, their gradients, and the small pieces of linear algebra that every SAE shares.

A latent owns one row of each weight matrix: both are stored `[d_sae d_in]`, contiguous, so that
reading or updating a latent touches consecutive memory. On top of that, everything a sparse code
needs is one primitive, a weighted sum of table rows (`F.embedding_bag`):

    reconstruction of a row   = the sum of the decoder rows of its latents
    gradient of a latent's weights = the sum of the batch rows in which it is active

The second is the transpose of the first, reached by sorting the pairs (row, latent) by latent. No
`[rows, d_sae]` matrix is ever formed: pre-activations exist for some rows at a time, until the k
largest are taken. Sums run in a fixed order, so repeating a step gives the same bits.

Limits: first derivatives only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kit.maths import widest_float
from sae_kit.products import fast_bf16, linear

CHUNK = 1 << 23
"""Pre-activations held at once, at most (32 MiB in float32), one row aside."""

GROUP = 8
"""Columns that `largest` sums up in one maximum; measured, and it changes no result."""

# --- sparse encode and decode ---------------------------------------------------------------------


def top_pre_activations(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of `x @ encoder_rows.T + b_enc` in each row (unsorted), and which they are.

    Differentiable in `x`, `encoder_rows` and `b_enc`; the choice of latents is held constant.
    """
    return _TopPreActivations.apply(x, encoder_rows, b_enc, k, _top)


def screened_top_pre_activations(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """As `top_pre_activations`, found by a bfloat16 product and decided in float32.

    The product proposes k + max(8, k / 4) latents a row, the float32 pre-activations of these are
    computed one by one, and the k largest kept: values and gradients are float32's own. What can go
    wrong is that one of the k is not proposed; of rows and latents drawn at random, less than one
    in a million is missed at k = 32 of 24,576, and these are the least of the k.

    Where the device has no fast bfloat16 product, this is `top_pre_activations`.
    """
    screens = fast_bf16(x.device) and x.dtype == torch.float32
    return _TopPreActivations.apply(x, encoder_rows, b_enc, k, _screened_top if screens else _top)


def group_maxima(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The largest of `x @ encoder_rows.T + b_enc` in each of k groups of consecutive latents.

    As `top_pre_activations`, in the order of the groups; k divides d_sae.
    """
    return _TopPreActivations.apply(x, encoder_rows, b_enc, k, _top_of_groups)


def keep_top(pre: Float[Tensor, "rows n"], k: int) -> Float[Tensor, "rows n"]:
    """The matrix with all but the k largest entries of each row set to 0; differentiable."""
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def sparse_decode(
    values: Float[Tensor, "rows k"],
    indices: Int[Tensor, "rows k"],
    decoder_rows: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "rows d_in"]:
    """`out[r] = sum_j values[r, j] * decoder_rows[indices[r, j]]`, differentiable."""
    return _SparseDecode.apply(values, indices, decoder_rows)


Choose = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""[rows d], [n d], [n], k -> values and latents of the k largest pre-activations, [rows k] each."""


class _TopPreActivations(torch.autograd.Function):
    """Encoder product and top-k in one node: the gradient reaches the k chosen pairs, no others."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, encoder_rows: Tensor, b_enc: Tensor, k: int, choose: Choose
    ) -> tuple[Tensor, Tensor]:
        values, indices = choose(x, encoder_rows, b_enc, k)
        ctx.save_for_backward(x, encoder_rows, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, encoder_rows, indices = ctx.saved_tensors
        needs_x, needs_encoder, needs_bias, *_ = ctx.needs_input_grad
        grad = grad.contiguous()
        by_latent = _ByLatent.of(indices, encoder_rows.shape[0])
        return (
            _weighted_rows(encoder_rows, indices, grad) if needs_x else None,
            by_latent.sums(x, grad) if needs_encoder else None,
            by_latent.totals(grad) if needs_bias else None,
            None,
            None,
        )


def _top(x: Tensor, encoder_rows: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _by_chunks(lambda rows: largest(linear(rows, encoder_rows, b_enc), k), x, len(b_enc))


def _top_of_groups(x: Tensor, encoder_rows: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    first = torch.arange(k, device=x.device) * (len(b_enc) // k)

    def decide(rows: Tensor) -> tuple[Tensor, Tensor]:
        values, places = linear(rows, encoder_rows, b_enc).unflatten(-1, (k, -1)).max(-1)
        return values, places + first

    return _by_chunks(decide, x, len(b_enc))


def _screened_top(x: Tensor, encoder_rows: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    half = torch.bfloat16
    encoder_half, b_half = encoder_rows.to(half), b_enc.to(half)
    n_proposed = min(k + max(8, k // 4), len(b_enc))

    def decide(rows: Tensor) -> tuple[Tensor, Tensor]:
        _, proposed = largest(F.linear(rows.to(half), encoder_half, b_half), n_proposed)
        pre = _row_products(rows, encoder_rows, proposed) + b_enc[proposed]
        values, places = pre.topk(k, dim=-1, sorted=False)
        return values, proposed.gather(1, places)

    return _by_chunks(decide, x, len(b_enc))


def _by_chunks(
    choose: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, d_sae: int
) -> tuple[Tensor, Tensor]:
    """Choose for some rows at a time, so that the matrix of all pre-activations never exists."""
    chunks = [choose(rows) for rows in x.split(max(1, CHUNK // d_sae))]
    values, indices = zip(*chunks, strict=True)
    return torch.cat(values), torch.cat(indices)


def largest(
    pre: Float[Tensor, "rows n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest entries of each row (unsorted), and which they are.

    The columns fall into groups of eight, and the k largest entries into the k groups with the
    largest maxima: there are far fewer of both to select from, and maxima over strided groups are
    fast to take. Rows too short to gain by that are left to `torch.topk`.
    """
    n_rows, n = pre.shape
    if n % GROUP or n < 4 * GROUP * k:
        return pre.topk(k, dim=-1, sorted=False)
    groups = pre.view(n_rows, GROUP, n // GROUP)
    best = groups.amax(1).topk(k, dim=-1, sorted=False).indices
    candidates = groups.gather(2, best[:, None, :].expand(n_rows, GROUP, k)).flatten(1)
    values, places = candidates.topk(k, dim=-1, sorted=False)
    return values, (places // k) * (n // GROUP) + best.gather(1, places % k)


class _SparseDecode(torch.autograd.Function):
    """Weighted sum of decoder rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, decoder_rows: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, decoder_rows)
        return _weighted_rows(decoder_rows, indices, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        values, indices, decoder_rows = ctx.saved_tensors
        needs_values, _, needs_decoder = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _row_products(grad, decoder_rows, indices) if needs_values else None,
            None,
            _ByLatent.of(indices, decoder_rows.shape[0]).sums(grad, values)
            if needs_decoder
            else None,
        )


def _weighted_rows(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """[n d], [rows k], [rows k] -> [rows d]: the weighted sum of the listed rows of the table."""
    return F.embedding_bag(indices, table, per_sample_weights=weights.contiguous(), mode="sum")


def _row_products(x: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """[rows d], [n d], [rows k] -> [rows k]: products of each row with its listed table rows.

    This is PyTorch's own derivative of embedding_bag in its weights. Calling it by name spares a
    second forward pass, and a gather of [rows k d] which costs several times as much.
    """
    rows, k = indices.shape
    bag = torch.arange(rows, device=indices.device)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x, table, indices.flatten(), bag * k, bag.repeat_interleave(k), 0
    )
    return products.view(rows, k)


@final
@dataclass(frozen=True)
class _ByLatent:
    """The active latents of a batch, [rows k], sorted by latent: sums run in the order of the rows,
    on every device (`index_add_` adds up as threads arrive on some)."""

    order: Tensor
    """Places in the flattened indices, [rows * k]."""
    first: Tensor
    """Where each latent's places begin in `order`, and where the last one's end: [d_sae + 1]."""
    k: int

    @staticmethod
    def of(indices: Tensor, d_sae: int) -> "_ByLatent":
        latents = indices.flatten()
        order = latents.int().sort(stable=True).indices  # int32 halves the sort
        first = F.pad(torch.bincount(latents, minlength=d_sae).cumsum(0), (1, 0))
        return _ByLatent(order, first, indices.shape[1])

    def sums(self, x: Tensor, weights: Tensor) -> Tensor:
        """[rows d], [rows k] -> [d_sae d]: per latent, the weighted sum of its rows of x."""
        return F.embedding_bag(
            self.order // self.k,
            x.contiguous(),
            self.first,
            per_sample_weights=weights.flatten()[self.order],
            mode="sum",
            include_last_offset=True,
        )

    def totals(self, values: Tensor) -> Tensor:
        """[rows k] -> [d_sae]: per latent, the sum of its values."""
        column = values.reshape(-1, 1)
        bags = F.embedding_bag(self.order, column, self.first, mode="sum", include_last_offset=True)
        return bags[:, 0]


# --- losses ---------------------------------------------------------------------------------------


def squared_error(
    recon: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_in"]
) -> Float[Tensor, ""]:
    """Squared error summed over channels and averaged over rows."""
    return (recon - target).square().sum() / target.shape[0]


def variance(x: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
    """Squared distance to the mean row, summed over channels and averaged over rows."""
    return squared_error(x.mean(0).expand_as(x), x)


# --- decoder norm ---------------------------------------------------------------------------------


def unit_norm_rows_(rows: Float[Tensor, "d_sae d_in"]) -> None:
    """Scale every row to norm 1, in place. A row of zeros stays one."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    rows.div_(norms.clamp_min(torch.finfo(rows.dtype).tiny))


def remove_parallel_(
    grad: Float[Tensor, "d_sae d_in"], unit_rows: Float[Tensor, "d_sae d_in"]
) -> None:
    """Remove from each row of the gradient its component along the (unit) row, in place."""
    parallel = torch.einsum("ij,ij->i", grad, unit_rows)
    grad.addcmul_(unit_rows, parallel[:, None], value=-1)


# --- initialisation -------------------------------------------------------------------------------


def random_unit_rows(
    n_rows: int, d_in: int, generator: torch.Generator
) -> Float[Tensor, "n_rows d_in"]:
    """Rows drawn uniformly from the unit sphere, float32, on the generator's device."""
    rows = torch.randn(n_rows, d_in, generator=generator, device=generator.device)
    unit_norm_rows_(rows)
    return rows


@torch.no_grad()
def geometric_median(
    x: Float[Tensor, "rows d_in"], *, max_steps: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d_in"]:
    """The point with the least summed distance to the rows (Weiszfeld's iteration, in float64
    where the device has it).

    Stops after `max_steps`, or when a step is shorter than `tolerance` times the mean distance.
    """
    points = x.to(widest_float(x.device))
    median = points.mean(0)
    for _ in range(max_steps):
        distances = torch.linalg.vector_norm(points - median, dim=-1)
        scale = distances.mean()
        if scale == 0:
            break  # all rows are the same point
        # The floor keeps a row that is hit exactly from dividing by zero.
        weights = 1 / distances.clamp_min(1e-12 * float(scale))
        moved = (weights @ points) / weights.sum()
        step = torch.linalg.vector_norm(moved - median)
        median = moved
        if step < tolerance * scale:
            break
    return median.to(x.dtype)
