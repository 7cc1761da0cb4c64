"""The loss of an SAE as a function of its decoder: quadratic, so that all about it is known.

Codes come from the encoder and do not change with the decoder. Measured in units of its own error,

    L(D) = mean over rows |r - Z D|^2 / 2,      D = 0 at the SAE as it is

with r the error of the reconstruction over its root mean square per channel, Z the codes, each
latent's divided by its root mean square over all rows, and D the change of its decoder row, the
other way round. That is minus the log-likelihood of a Gaussian code in nats, up to a constant: half
the width at D = 0. It does not change when activations are scaled, or a latent is scaled up and its
decoder row down.

    L(D) = L(0) - tr(D^T P) + tr(D^T G D) / 2,      P = mean Z^T r,    G = mean Z^T Z

The curvature is G, once for every channel. So the learning coefficient without a pull is rank(G)
times half the width, and what chains come to with one is a sum over the eigenvalues g of G:

    curvature    width/2 sum n beta g / a,        a = n beta g + gamma
    fall         - n beta sum q (n beta / a - n beta^2 g / (2 a^2))

(`sgld.py` has what a step of some size makes of the first.) q is the square of P along an
eigenvector; the fall is how far the loss drops from the SAE to where the pull lets it: zero at a
minimum, which a decoder is if no other one reconstructs these rows better from the same codes.

Source: the coefficient is that of Lau et al. 2023 (2308.12108); for a linear model with Gaussian
noise it is textbook Bayesian regression.

Limits: the decoder's bias and the encoder stand still, so free directions of both together (a
latent scaled against its decoder row, say) are not seen. Latents that never fire are free and are
left out. The Gram matrix is of all others: at most 8,192.
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.loss_landscape.ranks import rank
from sae_kit.evals.loss_landscape.sgld import Sampler
from sae_kit.sae import ops
from sae_kit.sae.base import SAE

Kind = Literal["reconstruction", "behaviour"]
"""Of the loss: the distance from the activations, or from the SAE's own reconstruction of them,
whose minimum every SAE is (P = 0)."""

MAX_LATENTS = 8192
"""Whose Gram matrix is decomposed: 512 MiB, and minutes."""
CHUNK = 1024
"""Rows whose codes are a matrix at once."""
NULL = 1e-10
"""Eigenvalues up to this share of the largest count as zero."""


@final
@dataclass(frozen=True, kw_only=True)
class Known:
    """What chains must come to."""

    curvature: float
    """The learning coefficient of the loss's second order, at least 0."""
    fall: float
    """What is added where the SAE is no minimum, at most 0."""

    @property
    def coefficient(self) -> float:
        """The whole."""
        return self.curvature + self.fall


@final
class DecoderLoss:
    """An SAE's loss on some rows, by the change of the decoder rows of all latents that fire.

    Args:
        sae: whose decoder is moved; it is left as it is.
        x: what it reads.
        target: what it reconstructs; x itself but for a transcoder.
        kind: of the loss.

    Raises:
        ValueError: nothing to measure: no latent fires, there is no error, or too many latents.
    """

    @torch.no_grad()
    def __init__(
        self,
        sae: SAE,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        *,
        kind: Kind,
    ) -> None:
        if sae.normalization != "none":
            raise ValueError(
                f"saes: normalization {sae.normalization!r} scales every row of the output by a "
                "factor of its own, which this loss does not have; give an SAE without"
            )
        code = sae.encode_sparse(x)
        error = target - sae(x)
        self.sigma: float = error.double().square().mean().sqrt().item()
        """Root mean square of the error, per channel, in units of the activations."""
        squares = torch.zeros(sae.d_sae, dtype=torch.float64, device=x.device)
        squares.index_add_(0, code.indices.flatten(), code.values.double().square().flatten())
        fired = code.fired().nonzero()[:, 0]
        self.fired: Int[Tensor, " n_fired"] = fired[squares[fired].argsort(stable=True)]
        """Which latents fire, the weakest first: not by their numbers, since draws follow it."""
        n = len(self.fired)
        if not 0 < n <= MAX_LATENTS:
            raise ValueError(
                f"n_tokens: {n} latents fire on {len(x)} rows; between 1 and {MAX_LATENTS} can be "
                "decomposed: give more or fewer tokens"
            )
        if not self.sigma > 0:
            raise ValueError("saes: the reconstruction has no error, in whose units the loss is")
        self.width, self.n_data = sae.d_out, len(x)
        place = torch.zeros(sae.d_sae, dtype=torch.int64, device=x.device)
        place[self.fired] = torch.arange(n, device=x.device)
        # A place that is not in use may name a latent that never fires; its value is 0.
        self._indices = place[code.indices]
        scale = (squares[self.fired] / len(x)).sqrt()
        self._values = code.values / scale.to(code.values)[self._indices]
        self._error = error / self.sigma if kind == "reconstruction" else torch.zeros_like(error)
        gram, self._slope = self._products()
        self._eigenvalues, self._vectors = torch.linalg.eigh(gram)

    @property
    def start(self) -> Float[Tensor, " d"]:
        """The SAE as it is: no change."""
        return self._error.new_zeros(len(self.fired) * self.width)

    @property
    def initial(self) -> float:
        """The loss of the SAE as it is: half the width, or 0 of its behaviour."""
        return self._error.double().square().sum(1).mean().item() / 2

    def __call__(self, w: Float[Tensor, "chains d"]) -> Float[Tensor, " chains"]:
        """Of every chain's changes, in nats per row."""
        losses = []
        for change in w.view(len(w), -1, self.width).unbind():
            moved = ops.sparse_decode(self._values, self._indices, change)
            losses.append((self._error - moved).square().sum(1).mean() / 2)
        return torch.stack(losses)

    def spectrum(self) -> Float[Tensor, " n_fired"]:
        """Eigenvalues of G, largest first; each is that of as many directions as the width."""
        return self._eigenvalues.flip(0).clamp(min=0)

    def limit(self) -> float:
        """The learning coefficient without a pull, of endlessly much data: rank times width / 2."""
        return rank(self.spectrum(), NULL) * self.width / 2

    def known(self, sampler: Sampler) -> Known:
        """What settled chains of this sampler come to; its step included."""
        g = self._eigenvalues.clamp(min=0)
        q = (self._vectors.T @ self._slope).square().sum(1)
        n_beta = sampler.n_beta
        a = n_beta * g + sampler.gamma
        curvature = self.width / 2 * (n_beta * g / (a * (1 - sampler.step * a / 4))).sum()
        fall = -n_beta * (q * (n_beta / a - n_beta**2 * g / (2 * a.square()))).sum()
        return Known(curvature=curvature.item(), fall=fall.item())

    def _products(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n width"]]:
        """G and P, in float64."""
        n = len(self.fired)
        gram = torch.zeros(n, n, dtype=torch.float64, device=self._error.device)
        slope = gram.new_zeros(n, self.width)
        chunks = (t.split(CHUNK) for t in (self._values, self._indices, self._error))
        for values, indices, error in zip(*chunks, strict=True):
            codes = gram.new_zeros(len(values), n)
            codes.scatter_add_(1, indices, values.double())
            gram += codes.T @ codes
            slope += codes.T @ error.double()
        return gram / self.n_data, slope / self.n_data
