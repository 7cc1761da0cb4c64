"""ReLU SAE whose L1 penalty is weighted by the norms of a free decoder.

    code = relu((x - b_dec) @ W_enc + b_enc)
    loss = mean over rows of  |recon - target|^2  +  l1_coefficient * sum_i code_i |W_dec_i|

Source: Anthropic's update of April 2024 ("How we train SAEs"; Conerly et al.): the weighted penalty
leaves nothing to be gained by shrinking codes and growing the decoder, so its rows need no norm.
They start in random directions with norm 1, the encoder as their transpose. (Theirs start with
norms of 0.05 to 1, SAELens' with 0.1; at learning rates for short runs a first step would undo so
small a start: docs/training.md.) See sae/l1.py for the coefficient's units.

Limits: the penalty shrinks activations. Codes are in units of their decoder rows, whose norms
differ: compare latents by code times norm.
"""

from dataclasses import dataclass
from typing import ClassVar, final

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
class WeightedReLUConfig(L1Config, arch="relu_weighted"):
    """A ReLU SAE with a decoder-weighted L1 penalty."""

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "WeightedReLUSAE":
        """See SAEConfig.build."""
        return WeightedReLUSAE(self, d_in, d_out, generator=generator)


@final
class WeightedReLUSAE(SAE):
    """See the module's docstring."""

    config: WeightedReLUConfig
    unit_norm: ClassVar[bool] = False

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        return linear(self._centred(x), self.encoder_rows, self.b_enc).relu()

    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train."""
        found = active.encode(self._centred(x), self.encoder_rows, self.b_enc)
        recon = self._skipped(x, found.decode(found.values, self.W_dec) + self.b_dec)
        norms = torch.linalg.vector_norm(self.W_dec, dim=-1)
        l1 = (found.values * found.per_latent(norms)).sum() / len(x)
        return TrainOutput(recon, found.code(found.values), {"l1": l1})

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
