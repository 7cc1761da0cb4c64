"""How strongly each latent fires: a histogram, and contexts drawn from every range of strength.

The largest activation of a latent is known only when all text has been read, and so is the width of
its bins. Here a bin is a power of two wide: whenever an activation lies beyond the last bin, the
latent's bins are joined in pairs and all are twice as wide. Counts stay exact, and in the end
between half and all of the bins lie below the largest activation, which alone decides the width.

A range is several bins. From each range the contexts kept are a uniform random sample of the
latent's firings in it: every place of the text has a random score, the same for all latents, and
the places of highest score are kept; so a sample of two ranges joined is the best of both.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.latents.best import Best
from sae_kit.evals.latents.firings import Firings

N_BINS = 32
N_RANGES = 8


@final
class Spectrum:
    """Histograms and samples of `d_sae` latents, as firings stream by."""

    def __init__(
        self,
        d_sae: int,
        scores: Float[Tensor, " places"],
        *,
        n_samples: int,
        n_before: int,
        n_after: int,
    ) -> None:
        """
        Args:
            d_sae: number of latents.
            scores: a random number for every place of the text, all different.
            n_samples: places kept of each range.
            n_before: tokens whose activations are kept before such a place.
            n_after: and after it.
        """
        self.scores = scores
        self.counts = torch.zeros(d_sae, N_BINS, dtype=torch.int64)
        self.largest = torch.zeros(d_sae)
        self.sum = torch.zeros(d_sae, dtype=torch.float64)
        self.samples = Best(d_sae * N_RANGES, n_samples, n_before=n_before, n_after=n_after)

    @property
    def widths(self) -> Float[Tensor, " d_sae"]:
        """The width of each latent's bins; of one that never fired it means nothing."""
        return _widths(self.largest)

    def update(self, firings: Firings) -> None:
        """Take in the firings at the next places of the text."""
        largest = self.largest.scatter_reduce(0, firings.latent, firings.value, "amax")
        self._widen(largest)
        self.largest = largest
        self.sum.index_add_(0, firings.latent, firings.value.double())
        bins = (firings.value / self.widths[firings.latent]).long()
        self.counts.view(-1).index_add_(
            0, firings.latent * N_BINS + bins, torch.ones_like(firings.latent)
        )
        self.samples.update(
            firings.latent * N_RANGES + bins // (N_BINS // N_RANGES),
            self.scores[firings.place],
            torch.arange(len(bins)),
            firings,
        )

    def _widen(self, largest: Float[Tensor, " d_sae"]) -> None:
        """Join bins until they reach as far as `largest`."""
        fired = self.largest > 0
        n_joins = (_widths(largest) / self.widths).log2().round().where(fired, 0.0)
        while (latents := (n_joins > 0).nonzero().flatten()).numel():
            pairs = self.counts[latents].view(-1, N_BINS // 2, 2)
            self.counts[latents] = torch.cat([pairs.sum(-1), torch.zeros_like(pairs[..., 0])], 1)
            self.samples.merge_pairs(latents, N_RANGES)
            n_joins[latents] -= 1


def _widths(largest: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """The power of two of which between N_BINS / 2 and N_BINS reach just beyond `largest`."""
    _, exponent = torch.frexp(largest)  # largest = m * 2**exponent, 1/2 <= m < 1
    return torch.ldexp(torch.full_like(largest, 1 / N_BINS), exponent)
