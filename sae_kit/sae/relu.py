"""ReLU SAE with an L1 penalty: the first architecture, and still the baseline.

    code = relu((x - b_dec) @ W_enc + b_enc)
    loss = mean over rows of  |recon - target|^2  +  l1_coefficient * sum_i code_i

Source: Bricken et al. 2023, "Towards Monosemanticity" (unit-norm decoder, gradient projection,
geometric-median pre-bias); the pre-activation and tied initialisation are those of Bloom's
gpt2-small-res-jb. See sae/l1.py for the coefficient's units.

Limits: the penalty shrinks activations.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.products import linear
from sae_kit.sae import active, ops
from sae_kit.sae.base import SAE, Inference, Losses, Moment, TrainOutput
from sae_kit.sae.code import SparseCode
from sae_kit.sae.l1 import L1Config


@final
@dataclass(frozen=True, kw_only=True)
class ReLUConfig(L1Config, arch="relu"):
    """A ReLU SAE with an L1 penalty."""

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "ReLUSAE":
        """See SAEConfig.build."""
        return ReLUSAE(self, d_in, d_out, generator=generator)


@final
class ReLUSAE(SAE):
    """See the module's docstring."""

    config: ReLUConfig

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        return linear(self._centred(x), self.encoder_rows, self.b_enc).relu()

    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train."""
        found = active.encode(self._centred(x), self.encoder_rows, self.b_enc)
        recon = self._skipped(x, found.decode(found.values, self.W_dec) + self.b_dec)
        # Nothing is negative, so the sum is the L1 norm.
        return TrainOutput(recon, found.code(found.values), {"l1": found.values.sum() / len(x)})

    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        out: TrainOutput,
        *,
        at: Moment,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """Squared error, penalty `l1`, and `aux` while there are dead latents. See SAE.losses."""
        return Losses(
            ops.squared_error(out.recon, target),
            {
                "l1": self.config.coefficient(at) * out.kept["l1"],
                **self._aux(x, target, out, dead),
            },
        )

    def inference(self) -> Inference:
        """See SAE.inference."""
        return Inference("relu", {}, self.weights())

    def _init_latents(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Few latents are active at the start."""
        self.b_enc.sub_(active.start_level(self._centred(x), self.encoder_rows, self.b_enc))
