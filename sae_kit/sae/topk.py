"""TopK SAE: the k largest pre-activations of each row are its code.

    code = relu(top_k((x - b_dec) @ W_enc + b_enc))
    loss = mean over rows of |recon - target|^2  +  auxiliary loss

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (2406.04093): the activation,
the tied initialisation with an encoder scaled so that unit inputs give unit outputs, and the
auxiliary loss (see sae/auxiliary.py).

Negative pre-activations among the k largest are cut off, as in the paper's code and in SAELens; a
row may have fewer than k active latents.

Limits: k is the same for every row.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.sae import ops
from sae_kit.sae.base import Inference, SAEConfig
from sae_kit.sae.code import SparseCode
from sae_kit.sae.row_top import RowTopSAE


@final
@dataclass(frozen=True, kw_only=True)
class TopKConfig(SAEConfig, arch="topk"):
    """A TopK SAE."""

    k: int = 16
    """Number of latents that may be active in a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k: {self.k} does not fit; give 1 to d_sae={self.d_sae}")

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "TopKSAE":
        """See SAEConfig.build."""
        return TopKSAE(self, d_in, d_out, generator=generator)


@final
class TopKSAE(RowTopSAE):
    """See the module's docstring."""

    config: TopKConfig
    screens: ClassVar[bool] = True

    def __init__(
        self, config: TopKConfig, d_in: int, d_out: int | None, *, generator: torch.Generator | None
    ) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self._scale_encoder(generator, k=config.k)

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        values, indices = ops.top_pre_activations(
            self._centred(x), self.encoder_rows, self.b_enc, self.config.k
        )
        return SparseCode(values.relu(), indices, self.d_sae)

    def training_code(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """See RowTopSAE.training_code: in bfloat16 first, where that is asked for."""
        top = ops.screened_top_pre_activations if self.screened else ops.top_pre_activations
        values, indices = top(self._centred(x), self.encoder_rows, self.b_enc, self.config.k)
        return SparseCode(values.relu(), indices, self.d_sae)

    def inference(self) -> Inference:
        """See SAE.inference."""
        return Inference("topk", {"k": self.config.k}, self.weights())
