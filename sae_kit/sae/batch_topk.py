"""BatchTopK SAE: the k * rows largest pre-activations of a whole batch are its code.

    code = relu((x - b_dec) @ W_enc + b_enc), all but the k * rows largest of the batch set to 0
    loss = mean over rows of |recon - target|^2  +  auxiliary loss

Source: Bussmann, Leask and Nanda 2024, "BatchTopK sparse autoencoders" (2412.06410): rows that take
more latents get them, at the same mean L0. Once trained it is a JumpReLU SAE with one threshold for
all latents; see sae/batch_top.py for the activation, and for what the threshold is. Initialisation
and auxiliary loss are TopK's (2406.04093).

Limits: k is a mean, and a single row may take hundreds of latents.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.sae import ops, ragged
from sae_kit.sae.base import Losses, Moment, TrainOutput
from sae_kit.sae.batch_top import BatchTopConfig, BatchTopSAE


@final
@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(BatchTopConfig, arch="batch_topk"):
    """A BatchTopK SAE."""

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "BatchTopKSAE":
        """See SAEConfig.build."""
        return BatchTopKSAE(self, d_in, d_out, generator=generator)


@final
class BatchTopKSAE(BatchTopSAE):
    """See the module's docstring."""

    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train."""
        values, pairs = self._compete(x, at)
        recon = self._skipped(x, ragged.decode(values, pairs, self.W_dec) + self.b_dec)
        return TrainOutput(recon, ragged.as_code(values, pairs))

    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        out: TrainOutput,
        *,
        at: Moment,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """Squared error, and `aux` while there are dead latents. See SAE.losses."""
        return Losses(ops.squared_error(out.recon, target), self._aux(x, target, out, dead))
