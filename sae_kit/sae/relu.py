"""ReLU SAE with an L1 penalty: the first architecture, and still the baseline.

    code = relu((x - b_dec) @ W_enc + b_enc)
    loss = mean over rows of  |recon - target|^2  +  l1_coefficient * sum_i code_i

Source: Bricken et al. 2023, "Towards Monosemanticity" (unit-norm decoder, gradient projection,
geometric-median pre-bias); the pre-activation and tied initialisation are those of Bloom's
gpt2-small-res-jb.

Units. The error is summed over channels, as in Anthropic's update of April 2024; on inputs scaled
to a mean norm of sqrt(d_in) coefficients can be compared across widths and models. Where others
average the error over channels (Bloom; Braun et al. average the penalty as well), their coefficient
is ours over d_in. An active latent gives up l1_coefficient / 2 of its activation, so at L0 latents
a row the penalty costs at least L0 * l1_coefficient^2 / (4 d_in) of the variance.

Limits: the penalty shrinks activations.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.products import linear
from sae_kit.sae import ops
from sae_kit.sae.base import SAE, Inference, Losses, Moment, SAEConfig, TrainOutput
from sae_kit.sae.code import SparseCode


@final
@dataclass(frozen=True, kw_only=True)
class ReLUConfig(SAEConfig, arch="relu"):
    """A ReLU SAE with an L1 penalty."""

    l1_coefficient: float = 2.0
    """Weight of the penalty, in units of the activation (mean input norm sqrt(d_in))."""

    l1_warmup: float = 0.3
    """The share of the run over which the coefficient rises linearly from 0; 0 = none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1_coefficient < 0:
            raise ValueError(f"l1_coefficient: {self.l1_coefficient} is negative; give 0 or more")
        if not 0 <= self.l1_warmup <= 1:
            raise ValueError(f"l1_warmup: {self.l1_warmup} is no share of the run; give 0 to 1")

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator
    ) -> "ReLUSAE":
        """See SAEConfig.build."""
        return ReLUSAE(self, d_in, d_out, generator=generator)


@final
class ReLUSAE(SAE):
    """See the module's docstring. Dense throughout: it starts with half the latents active."""

    config: ReLUConfig

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        return linear(self._centred(x), self.encoder_rows, self.b_enc).relu()

    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train."""
        code = self.encode_rows(x)
        return TrainOutput(self.reconstruct(x, code), code)

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
        assert isinstance(out.code, Tensor)
        # The code is not negative, so its sum is its L1 norm.
        l1 = out.code.sum() / out.code.shape[0]
        coefficient = self.config.l1_coefficient * at.rise(self.config.l1_warmup)
        return Losses(
            ops.squared_error(out.recon, target),
            {"l1": coefficient * l1, **self._aux(x, target, out, dead)},
        )

    def inference(self) -> Inference:
        """See SAE.inference."""
        return Inference("relu", {}, self.weights())
