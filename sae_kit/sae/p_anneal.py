"""ReLU SAE whose penalty goes from L1 towards L0 during training.

    code = relu((x - b_dec) @ W_enc + b_enc)
    loss = mean over rows of  |recon - target|^2  +  l1_coefficient * c * sum_i code_i^p
    c    = sum code / sum code^p  over the batch, held constant

p falls linearly from 1 to p_end. The smaller it is, the less an activation that is large anyway
costs for being larger, so the shrinkage of L1 goes away while the pressure on the number of active
latents stays.

Source: Karvonen et al. 2024, "Measuring progress in dictionary learning" (2408.00113), section 4
(p-annealing), and dictionary_learning's p_anneal for the end of 0.2. Both rescale the coefficient
whenever p changes, by the penalties of a queue of recent batches, so that its strength stays; the
factor c does so at every step, and needs no queue.

Limits: the penalty's slope grows without bound towards activations of 0; below FLOOR it is cut off.
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

FLOOR = 1e-2
"""Activations count as at least this much in the penalty, where the mean input norm is
sqrt(d_in)."""


@final
@dataclass(frozen=True, kw_only=True)
class PAnnealConfig(L1Config, arch="p_anneal"):
    """A ReLU SAE with an annealed L_p penalty."""

    l1_coefficient: float = 0.7
    """Weight of the penalty, in units of the activation (mean input norm sqrt(d_in))."""

    p_end: float = 0.2
    """The exponent at the end of the run."""

    p_start: float = 0.3
    """The share of the run after which the exponent begins to fall."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_end <= 1:
            raise ValueError(f"p_end: {self.p_end} is no exponent; give more than 0 and at most 1")
        if not 0 <= self.p_start < 1:
            raise ValueError(f"p_start: {self.p_start} is no share of the run; give 0 to below 1")

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "PAnnealSAE":
        """See SAEConfig.build."""
        return PAnnealSAE(self, d_in, d_out, generator=generator)

    def exponent(self, at: Moment) -> float:
        """p at a step."""
        gone = (at.step / at.n_steps - self.p_start) / (1 - self.p_start)
        return 1.0 - min(1.0, max(0.0, gone)) * (1.0 - self.p_end)


@final
class PAnnealSAE(SAE):
    """See the module's docstring."""

    config: PAnnealConfig

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        return linear(self._centred(x), self.encoder_rows, self.b_enc).relu()

    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train."""
        found = active.encode(self._centred(x), self.encoder_rows, self.b_enc)
        recon = self._skipped(x, found.decode(found.values, self.W_dec) + self.b_dec)
        l1 = found.values.sum() / len(x)
        lp = _power_sum(found.values, self.config.exponent(at)) / len(x)
        # A batch in which nothing fires has nothing to be measured against.
        strength = torch.where(lp > 0, l1 / lp, 0.0).detach()
        return TrainOutput(recon, found.code(found.values), {"lp": strength * lp})

    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        out: TrainOutput,
        *,
        at: Moment,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """Squared error, penalty `lp`, and `aux` while there are dead latents. See SAE.losses."""
        return Losses(
            ops.squared_error(out.recon, target),
            {
                "lp": self.config.coefficient(at) * out.kept["lp"],
                **self._aux(x, target, out, dead),
            },
        )

    def inference(self) -> Inference:
        """See SAE.inference."""
        return Inference("relu", {}, self.weights())

    def _init_latents(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Few latents are active at the start."""
        self.b_enc.sub_(active.start_level(self._centred(x), self.encoder_rows, self.b_enc))


def _power_sum(activations: Tensor, p: float) -> Tensor:
    """The sum of the p-th powers of the positive ones."""
    if p == 1:
        return activations.sum()
    return torch.where(activations > 0, activations.clamp_min(FLOOR).pow(p), 0.0).sum()
