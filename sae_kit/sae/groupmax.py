"""GroupMax SAE: latents fall into k groups, and the largest pre-activation of each is the code.

    code = relu((x - b_dec) @ W_enc + b_enc), all but the largest of each group set to 0
    loss = mean over rows of |recon - target|^2  +  auxiliary loss

Group g of k holds the d_sae / k latents from number g * d_sae / k on. Taking maxima costs far less
than finding the k largest of all; the price is that latents of one group are never active together.

Source: EleutherAI's sparsify (activation "groupmax", pull request 49), whose layout of groups this
is. Initialisation and auxiliary loss are TopK's (2406.04093), the encoder scaled for this
activation.

A group whose pre-activations are all negative has no active latent; a row may have fewer than k.

Limits: k divides d_sae. Which latents share a group is fixed, so their order means something here.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.sae import ops
from sae_kit.sae.base import Inference, SAEConfig
from sae_kit.sae.code import SparseCode
from sae_kit.sae.row_top import RowTopSAE


@final
@dataclass(frozen=True, kw_only=True)
class GroupMaxConfig(SAEConfig, arch="groupmax"):
    """A GroupMax SAE."""

    k: int = 16
    """Number of groups: of latents that may be active in a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.d_sae or self.d_sae % self.k:
            raise ValueError(
                f"k: {self.k} does not make groups of equal size; give a divisor of "
                f"d_sae={self.d_sae}"
            )

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "GroupMaxSAE":
        """See SAEConfig.build."""
        return GroupMaxSAE(self, d_in, d_out, generator=generator)


@final
class GroupMaxSAE(RowTopSAE):
    """See the module's docstring."""

    config: GroupMaxConfig

    def __init__(
        self,
        config: GroupMaxConfig,
        d_in: int,
        d_out: int | None,
        *,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self._scale_encoder(generator, k=config.k, choose=ops.group_maxima)

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        values, indices = ops.group_maxima(
            self._centred(x), self.encoder_rows, self.b_enc, self.config.k
        )
        return SparseCode(values.relu(), indices, self.d_sae)

    def inference(self) -> Inference:
        """See SAE.inference."""
        return Inference("groupmax", {"k": self.config.k}, self.weights())
