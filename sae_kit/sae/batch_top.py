"""A budget of active latents for a whole batch: what BatchTopK and Matryoshka share.

In training, the n = k * rows largest positive pre-activations of the batch are its code; a row may
have few of them or many. Outside training a row must not see others, so a latent is active where
its pre-activation exceeds a threshold, the running mean of where batches drew the line: the
smallest pre-activation they kept, or 0 where fewer than n were positive. This is the JumpReLU SAE
that such an SAE is saved as. Codes then have k active latents a row on average, as in training.

The run begins with k latents in each row, as a TopK SAE: untrained latents that happen to respond
strongly would take the budget from all others, and training does not quite get over it. On 1M rows
of the demo model's block 3 (d_sae 2048, k 16) FVU is 0.087 without this, 0.081, 0.079 and 0.079
with it for 5, 30 and 50 % of the run; TopK's is 0.082.

Source: Bussmann, Leask and Nanda 2024, "BatchTopK sparse autoencoders" (2412.06410), which takes
the expectation of the smallest kept pre-activation over batches. dictionary_learning keeps a mean
of rate 0.001 that begins at step 1,000, SAELens one of rate 0.01 that begins at 0. While weights
still move, such a mean lags behind: ours goes back over a fiftieth of the run, or ten steps, so
that short runs end with the right number of active latents, too.

The search is exact, and no `[rows d_sae]` matrix is formed or sorted: some rows of the batch tell a
bound that lets through half as many pairs again as are wanted, and the choice is made among those.

Limits: batches cannot be split, or merged, without changing who is active. In the first steps of a
run the threshold is that of other weights; it is meant for trained SAEs.
"""

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.products import fast_bf16, linear
from sae_kit.sae import ops, ragged
from sae_kit.sae.base import SAE, Inference, Moment, SAEConfig
from sae_kit.sae.code import SparseCode
from sae_kit.sae.ragged import Pairs

WINDOW = 0.02
"""Share of the run over which the running mean of the threshold goes back."""

MIN_WINDOW = 10
"""Steps that it goes back at least; a single batch draws the line with some noise."""

N_ASKED = 64
"""Rows that tell the first bound of a search. It changes no result."""

SLACK = 1.5
"""How many times more pairs than wanted the first bound should let through; it changes none."""


@dataclass(frozen=True, kw_only=True)
class BatchTopConfig(SAEConfig, ABC):
    """What SAEs with a budget for the whole batch are configured by."""

    k: int = 16
    """Number of latents that are active in a row, on average over the batch."""

    row_warmup: float = 0.3
    """The share of the run, at its start, in which each row has the k latents to itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.row_warmup <= 1:
            raise ValueError(f"row_warmup: {self.row_warmup} is no share of the run; give 0 to 1")
        if not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k: {self.k} does not fit; give 1 to d_sae={self.d_sae}")


class BatchTopSAE(SAE, ABC):
    """See the module's docstring. Subclasses say what is decoded, and the loss."""

    config: BatchTopConfig
    screens: ClassVar[bool] = True

    threshold: Tensor  # [d_sae], all the same: one per latent is what files hold

    def __init__(
        self,
        config: BatchTopConfig,
        d_in: int,
        d_out: int | None,
        *,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self._scale_encoder(generator, k=config.k)
        self.register_buffer("threshold", torch.zeros_like(self.b_enc.detach()))

    @final
    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        centred, weights = self._centred(x), (self.encoder_rows, self.b_enc)
        with torch.no_grad():
            values, pairs = _above(centred, *weights, self.threshold)
        return ragged.as_code(ragged.pre_activations(centred, *weights, pairs, values), pairs)

    @final
    def inference(self) -> Inference:
        """See SAE.inference."""
        return Inference("jumprelu", {}, self.weights())

    @final
    def _compete(self, x: Tensor, at: Moment) -> tuple[Tensor, Pairs]:
        """The batch's activations [n] and whose they are; the running threshold takes note."""
        by_rows = at.rise(self.config.row_warmup) < 1
        values, pairs, line = (self._top_of_rows if by_rows else self._top_of_batch)(x)
        window = max(MIN_WINDOW, WINDOW * at.n_steps)
        self.threshold.lerp_(line, 1 / min(window, at.step + 1))
        return values, pairs

    def _top_of_rows(self, x: Tensor) -> tuple[Tensor, Pairs, Tensor]:
        """Each row's k largest (0 where not positive), and the mean line between kept and not."""
        top = ops.screened_top_pre_activations if self.screened else ops.top_pre_activations
        values, latents = top(self._centred(x), self.encoder_rows, self.b_enc, self.config.k)
        values = values.relu()
        rows = torch.arange(len(x), device=x.device).repeat_interleave(self.config.k)
        pairs = Pairs(rows, latents.flatten(), len(x), self.d_sae)
        line = values.detach().amin(1).sum() / max(len(x), 1)
        return values.flatten(), pairs, line

    def _top_of_batch(self, x: Tensor) -> tuple[Tensor, Pairs, Tensor]:
        """The batch's k * rows largest, and the line between kept and not."""
        top = screened_top_of_batch if self.screened else top_of_batch
        centred, weights = self._centred(x), (self.encoder_rows, self.b_enc)
        n = self.config.k * len(x)
        values, pairs = top(centred, *weights, n)
        line = values.min() if len(values) == n > 0 else values.new_zeros(())
        return ragged.pre_activations(centred, *weights, pairs, values), pairs, line


# --- the search -----------------------------------------------------------------------------------


@torch.no_grad()
def top_of_batch(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    n: int,
) -> tuple[Float[Tensor, " found"], Pairs]:
    """The n largest positive values of `x @ encoder_rows.T + b_enc`, or all if there are fewer."""
    return _search(x, encoder_rows, b_enc, n)


@torch.no_grad()
def screened_top_of_batch(
    x: Float[Tensor, "rows d_in"],
    encoder_rows: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    n: int,
) -> tuple[Float[Tensor, " found"], Pairs]:
    """As `top_of_batch`, found by a bfloat16 product and decided in float32.

    A quarter more pairs than wanted are proposed; their float32 pre-activations decide. Only a pair
    close to the line can be missed, if at all. Where the device has no fast bfloat16 product, this
    is `top_of_batch`.
    """
    if not (fast_bf16(x.device) and x.dtype == torch.float32):
        return top_of_batch(x, encoder_rows, b_enc, n)
    half = torch.bfloat16
    _, proposed = _search(x.to(half), encoder_rows.to(half), b_enc.to(half), n + n // 4)
    values = ragged.scores(x, encoder_rows, b_enc, proposed)
    positive = (values > 0).nonzero().flatten()
    return _largest(values[positive], proposed.take(positive), n)


def _search(x: Tensor, encoder_rows: Tensor, b_enc: Tensor, n: int) -> tuple[Tensor, Pairs]:
    """The n largest positive pre-activations, computed in the type that is given."""
    n_a_row = n / max(len(x), 1)
    while True:
        n_a_row *= SLACK
        bound = _bound(x, encoder_rows, b_enc, n_a_row)
        values, pairs = _above(x, encoder_rows, b_enc, bound)
        if len(values) >= n or bound == 0:
            return _largest(values, pairs, n)


def _bound(x: Tensor, encoder_rows: Tensor, b_enc: Tensor, n_a_row: float) -> Tensor:
    """What `n_a_row` pre-activations a row exceed, judging by some of the rows; 0 at least."""
    pre = linear(x[:: max(1, len(x) // N_ASKED)], encoder_rows, b_enc)
    n, n_each = int(n_a_row * len(pre)), int(4 * n_a_row)
    if n == 0 or n_each >= pre.shape[1]:
        return pre.new_zeros(())
    # Four times its share is enough to know of each row; what else it has only lowers the bound.
    values, _ = ops.largest(pre, n_each)
    return values.flatten().topk(n, sorted=False).values.min().clamp_min(0)


def _above(x: Tensor, encoder_rows: Tensor, b_enc: Tensor, bound: Tensor) -> tuple[Tensor, Pairs]:
    """The pre-activations above a bound: one for all, or one per latent."""
    found = []
    n_at_once = max(1, ops.CHUNK // len(b_enc))
    for i, part in enumerate(x.split(n_at_once)):
        pre = linear(part, encoder_rows, b_enc)
        rows, latents = (pre > bound).nonzero(as_tuple=True)
        found.append((pre[rows, latents], rows + i * n_at_once, latents))
    values, rows, latents = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, Pairs(rows, latents, len(x), len(b_enc))


def _largest(values: Tensor, pairs: Pairs, n: int) -> tuple[Tensor, Pairs]:
    """The n largest of the values, or all if there are fewer."""
    if len(values) <= n:
        return values, pairs
    chosen = values.topk(n, sorted=False).indices.sort().values
    return values[chosen], pairs.take(chosen)
