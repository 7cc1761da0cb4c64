"""A model that is one linear map and a softmax, whose KLs are known (METHODS §11, F1), and Gaussian
activations to perturb (F2). All in float64.
"""

import torch
from torch import Tensor

from sae_kit.evals.directions.directions import Given
from sae_kit.evals.perturb.paths import Path
from sae_kit.evals.perturb.pool import Gaussian, Pool
from sae_kit.evals.perturb.responses import KL, Outcome
from sae_kit.maths import StreamingMoments

D, VOCAB = 16, 23


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def orthogonal(d: int = D, *, seed: int = 7) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def weights() -> Tensor:
    """`[VOCAB D]`; reads the last four channels four times as strongly as the others."""
    strength = torch.full((D,), 0.05, dtype=torch.float64)
    strength[-4:] = 0.2
    return normal(VOCAB, D, seed=1) * strength


def covariance(strong: float = 25.0) -> Tensor:
    """`[D D]`, with most of the variance in the channels that are read strongly."""
    variance = torch.ones(D, dtype=torch.float64)
    variance[-4:] = strong
    return torch.diag(variance)


def outcome(x: Tensor, w: Tensor) -> Outcome:
    return Outcome({}, x @ w.T)


def kl_along(path: Path, base: Tensor, w: Tensor) -> Tensor:
    """`[hosts points pos]`."""
    return KL()(outcome(base[:, None], w), outcome(path.at(slice(None)), w))


def fisher(x: Tensor, w: Tensor) -> Tensor:
    """`[D D]`: KL(x || x + d) is d F d / 2 for small d."""
    p = (x @ w.T).softmax(-1)
    return w.T @ (torch.diag(p) - torch.outer(p, p)) @ w


def pool(sigma: Tensor, *, mean: float = 2.0, n: int = 20_000, seed: int = 3) -> Pool:
    """Draws of N(mean, sigma)."""
    rows = mean + normal(n, len(sigma), seed=seed) @ torch.linalg.cholesky(sigma).T
    moments = StreamingMoments(len(sigma), with_cov=True)
    moments.update(rows)
    positions = torch.arange(n) % 5 + 1
    median = rows.norm(dim=-1).median().item()
    return Pool("s", Gaussian.of(moments, "s"), rows, positions, median)


def given(base: Tensor, pool: Pool, *, seed: int = 0) -> Given:
    """`base` is `[hosts pos D]`."""
    hosts, n_pos, _ = base.shape
    return Given(
        base=base,
        index=torch.arange(hosts),
        positions=torch.arange(n_pos) % 5 + 1,
        pool=pool,
        seed=seed,
    )
