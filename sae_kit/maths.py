"""Pure functions on tensors that several parts measure with, and streaming forms of them.

Conventions: rows are tokens, channels are activation dimensions, divergences are in nats. Sums of
squares run in float64.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGIT_ROWS = 64  # rows of logits compared at once, so that they stay in the processor's cache


def widest_float(device: torch.device) -> torch.dtype:
    """What long sums run in: float64, or float32 where the device has no float64 (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def fvu(x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
    """Fraction of variance unexplained: squared residuals over squared deviations from the mean.

    0 is perfect, 1 is what the mean row achieves. Float64, where the device has it. Rows that are
    all alike have no variance to explain: inf, or NaN if they are met exactly.
    """
    wide = widest_float(x.device)
    x, x_hat = x.to(wide), x_hat.to(wide)
    return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()


def all_finite(x: Float[Tensor, "..."]) -> bool:
    """Whether there is no NaN and no infinity. Unlike x.isfinite(), it needs no memory for it."""
    return x.numel() == 0 or bool(torch.stack(x.aminmax()).isfinite().all())


def cosine_rows(x: Float[Tensor, "*rows d"], y: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
    """Cosine similarity of each row of `x` with the same row of `y`; 0 where a row is zero."""
    return F.cosine_similarity(x, y, dim=-1)


def cross_entropy_rows(
    logits: Float[Tensor, "*rows vocab"], targets: Int[Tensor, "*rows"]
) -> Float[Tensor, "*rows"]:
    """-log p(target) in nats per row. Float32, or float64 if the logits are."""
    rows = logits.flatten(0, -2)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return F.cross_entropy(rows, targets.flatten(), reduction="none").reshape(targets.shape)


@final
class Predictions:
    """Next-token distributions, as logits: what others are compared with.

    With p the probabilities of logits l, and q those of m,

        KL(p || q) = sum_v p_v (l_v - m_v) + logsumexp(m) - logsumexp(l)

    so equal logits give exactly 0. Float32, or float64 if the logits are. The logits are kept as
    they are and widened for some rows at a time: next to them, no second matrix of that size
    exists.

    Limits: the logits are finite; in float32 their rounding adds about 1e-6 to a KL.
    """

    def __init__(self, logits: Float[Tensor, "rows vocab"]) -> None:
        self.logits = logits.detach()
        """[rows vocab]"""
        self.normalisers = torch.cat([rows.logsumexp(-1) for rows in _widened(self.logits)])
        """[rows], logsumexp of the logits."""

    def cross_entropy(self, targets: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """-log p(target) in nats."""
        return self.normalisers - self.logits.gather(-1, targets[:, None])[:, 0]

    def kl(self, other: "Predictions") -> Float[Tensor, " rows"]:
        """KL(these || other) in nats."""
        chunks = zip(_widened(self.logits), _widened(other.logits), strict=True)
        # A softmax sums to 1 better than exp(l - normaliser), and l - m may share a large constant.
        means = [torch.linalg.vecdot(own.softmax(-1), own - others) for own, others in chunks]
        return torch.cat(means) + (other.normalisers - self.normalisers)

    def kl_gradient(
        self, other: "Predictions", weights: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows vocab"]:
        """The gradient of `(weights * self.kl(other)).sum()` in other's logits: weights (q - p)."""
        gradient = torch.empty_like(other.logits)
        chunks = zip(
            _widened(self.logits),
            _widened(other.logits),
            weights.split(LOGIT_ROWS),
            gradient.split(LOGIT_ROWS),
            strict=True,
        )
        for own, others, weight, part in chunks:
            part.copy_((others.softmax(-1) - own.softmax(-1)) * weight[:, None])
        return gradient


def _widened(logits: Tensor) -> Iterator[Tensor]:
    """Some rows at a time, in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return (rows.to(wide) for rows in logits.split(LOGIT_ROWS))


def kl_rows(clean: Predictions, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """KL(clean || the distributions of `logits`) in nats, differentiable in `logits`."""
    return _KL.apply(logits, clean)


class _KL(torch.autograd.Function):
    """The gradient is known: probabilities less clean probabilities. Autograd would keep three
    more matrices of the logits' size to find it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, clean: Predictions) -> Tensor:
        ctx.clean, ctx.other = clean, Predictions(logits)
        return clean.kl(ctx.other)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.clean.kl_gradient(ctx.other, grad), None


@final
@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    values: Float[Tensor, " n"], *, seed: int, n_resamples: int = 1000, level: float = 0.95
) -> Interval:
    """The mean with its percentile bootstrap interval (Efron 1979).

    `values` must be independent: tokens of one context are not, so give one value per context.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    if values.numel() == 0:
        raise ValueError("values: empty; an interval needs at least one value")
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1; give 0.95, say")
    generator = torch.Generator().manual_seed(seed)
    values = values.detach().cpu().double()
    n = len(values)
    means = torch.empty(n_resamples, dtype=torch.float64)
    for i in range(n_resamples):
        means[i] = values[torch.randint(n, (n,), generator=generator)].mean()
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(tails).tolist()
    return Interval(values.mean().item(), low, high)


@final
class StreamingMoments:
    """Count, mean and variance of rows seen in batches, in float64.

    The result does not depend on the batches (to rounding): batches merge by the pairwise update of
    Chan, Golub and LeVeque (1979).

    Args:
        width: number of channels.
        with_cov: also keep the covariance, `width`^2 numbers.
        device: where the sums live; batches come from the same device.
    """

    def __init__(
        self, width: int, *, with_cov: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        self.width, self.with_cov = width, with_cov
        self.count = 0
        """Number of rows seen."""
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        """[width]; zero before the first row."""
        # Sums of products of deviations: the whole matrix, or its diagonal.
        shape = (width, width) if with_cov else (width,)
        self._deviations = torch.zeros(shape, dtype=torch.float64, device=device)

    def update(self, x: Float[Tensor, "rows {self.width}"]) -> None:
        """Take in a batch of rows."""
        if len(x) == 0:
            return
        x = x.detach().double()
        mean = x.mean(0)
        centred = x - mean
        deviations = centred.T @ centred if self.with_cov else centred.square().sum(0)
        self._merge(len(x), mean, deviations)

    def merge(self, other: "StreamingMoments") -> None:
        """Take in what another instance (another process, say) has seen."""
        if (other.width, other.with_cov) != (self.width, self.with_cov):
            raise ValueError("moments of different width or with_cov cannot be merged")
        if other.count:
            self._merge(other.count, other.mean, other._deviations)

    def _merge(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        product = torch.outer(shift, shift) if self.with_cov else shift.square()
        self._deviations = self._deviations + deviations + product * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def var(self) -> Float[Tensor, "{self.width}"]:
        """Unbiased variance per channel; NaN before the second row."""
        sums = self._deviations.diagonal() if self.with_cov else self._deviations
        return self._per_degree_of_freedom(sums)

    def cov(self) -> Float[Tensor, "{self.width} {self.width}"]:
        """Unbiased covariance, as torch.cov; NaN before the second row."""
        if not self.with_cov:
            raise ValueError("with_cov: False keeps no covariance; give with_cov=True")
        return self._per_degree_of_freedom(self._deviations)

    def total_deviation(self) -> Float[Tensor, ""]:
        """Sum over rows and channels of the squared deviation from the mean row."""
        return (self._deviations.diagonal() if self.with_cov else self._deviations).sum()

    def _per_degree_of_freedom(self, sums: Tensor) -> Tensor:
        return sums / (self.count - 1) if self.count > 1 else torch.full_like(sums, math.nan)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "deviations": self._deviations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of an instance of the same shape."""
        if state["deviations"].shape != self._deviations.shape:
            raise ValueError(
                f"deviations: saved with shape {tuple(state['deviations'].shape)}, "
                f"but these are {tuple(self._deviations.shape)}"
            )
        self.count = state["count"]
        self.mean = state["mean"].to(self.mean.device)
        self._deviations = state["deviations"].to(self.mean.device)
