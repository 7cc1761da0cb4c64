"""Gated SAE: one linear map decides which latents are active, a rescaled copy says how strongly.

    gate = (x - b_dec) @ W_enc + b_enc
    code = [gate > 0] * relu((x - b_dec) @ W_enc * exp(r_mag) + b_mag)
    loss = mean over rows of  |recon - target|^2  +  l1_coefficient * sum_i relu(gate)_i
                              +  |relu(gate) @ W_dec' + b_dec' - target|^2      (' = held constant)

The penalty acts on the gate alone, so that it does not shrink the code; the last term keeps the
gate in the units of a code that reconstructs.

Source: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders"
(2404.16014), section 3.2 and the pseudo-code of its appendix. Their b_gate is our b_enc. See
sae/l1.py for the coefficient's units.

Limits: an active latent may have magnitude 0, and then counts as silent.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_kit.products import linear
from sae_kit.sae import active, ops
from sae_kit.sae.base import SAE, Inference, Losses, Moment, TrainOutput
from sae_kit.sae.code import SparseCode
from sae_kit.sae.l1 import L1Config


@final
@dataclass(frozen=True, kw_only=True)
class GatedConfig(L1Config, arch="gated"):
    """A Gated SAE."""

    l1_coefficient: float = 2.0
    """Weight of the penalty, in units of the activation (mean input norm sqrt(d_in))."""

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "GatedSAE":
        """See SAEConfig.build."""
        return GatedSAE(self, d_in, d_out, generator=generator)


@final
class GatedSAE(SAE):
    """See the module's docstring."""

    config: GatedConfig

    r_mag: nn.Parameter  # [d_sae]
    b_mag: nn.Parameter  # [d_sae]

    def __init__(
        self,
        config: GatedConfig,
        d_in: int,
        d_out: int | None,
        *,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self.r_mag = nn.Parameter(torch.zeros_like(self.b_enc))
        self.b_mag = nn.Parameter(torch.zeros_like(self.b_enc))

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        gate = linear(self._centred(x), self.encoder_rows, self.b_enc)
        magnitude = (gate - self.b_enc) * self.r_mag.exp() + self.b_mag
        return torch.where(gate > 0, magnitude.relu(), 0.0)

    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train."""
        gate = active.encode(self._centred(x), self.encoder_rows, self.b_enc)
        r_mag, b_mag, b_enc = map(gate.per_latent, (self.r_mag, self.b_mag, self.b_enc))
        magnitude = (gate.values - b_enc) * r_mag.exp() + b_mag
        code = torch.where(gate.values > 0, magnitude.relu(), 0.0)
        recon = self._skipped(x, gate.decode(code, self.W_dec) + self.b_dec)
        held = gate.decode(gate.values, self.W_dec.detach()) + self.b_dec.detach()
        if self.config.skip:
            held = torch.addmm(held, x, self.W_skip.detach().T)
        kept = {"l1": gate.values.sum() / len(x), "gate_recon": held}
        return TrainOutput(recon, gate.code(code), kept)

    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        out: TrainOutput,
        *,
        at: Moment,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """Squared error, `l1` and the error `gate` of the gate, and `aux` while there are dead
        latents. See SAE.losses.
        """
        return Losses(
            ops.squared_error(out.recon, target),
            {
                "l1": self.config.coefficient(at) * out.kept["l1"],
                "gate": ops.squared_error(out.kept["gate_recon"], target),
                **self._aux(x, target, out, dead),
            },
        )

    def inference(self) -> Inference:
        """See SAE.inference."""
        return Inference("gated", {}, self.weights())

    def _init_latents(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Few latents are active at the start, with magnitudes equal to the gates."""
        self.b_enc.sub_(active.start_level(self._centred(x), self.encoder_rows, self.b_enc))
        self.b_mag.copy_(self.b_enc * self.r_mag.exp())
