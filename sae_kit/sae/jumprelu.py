"""JumpReLU SAE: a latent is active where its pre-activation exceeds a threshold of its own.

    z    = (x - b_dec) @ W_enc + b_enc
    code = z * [z > threshold]
    loss = mean over rows of |recon - target|^2  +  l0_coefficient * d_out * (L0 / target_l0 - 1)^2

The step has no derivative in the threshold t; both the code and L0 (the mean number of active
latents) get a straight-through one, with K the rectangle of height 1 on (-1/2, 1/2):

    d code / d t = -(t / bandwidth) K((z - t) / bandwidth)
    d [z > t] / d t = -(1 / bandwidth) K((z - t) / bandwidth)

Source: Rajamanoharan et al. 2024, "Jumping ahead" (2407.14435), section 3 and equations 9 to 12;
the loss around a target is that of its appendix on targeting an L0, as SAELens and
dictionary_learning have it too. The bandwidth is in units of a code, whose input has a mean norm of
sqrt(d_in), as in Anthropic's update of January 2025, which found 2 to work; here 1 does better
(docs/training.md).

Below the window nothing of this has a gradient, and the auxiliary loss reaches a dead latent only
in rows where its pre-activation is positive. So the biases of dead latents are lifted until they
fire, by the penalty  -LIFT * (sum of their b_enc).  This is what that update's pre-activation loss
(the sum of relu(threshold - z) over rows) does to a bias; done to the encoder's weights as well, as
there, it served planted rows worse (docs/training.md).

Defaults by measurement (docs/training.md).

Limits: thresholds move by at most about the learning rate a step.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sae_kit.sae import active, ops
from sae_kit.sae.base import SAE, Inference, Losses, Moment, SAEConfig, TrainOutput
from sae_kit.sae.code import SparseCode

INITIAL_THRESHOLD = 0.5
"""Where the mean input norm is sqrt(d_in)."""

LIFT = 0.1
"""How hard the biases of dead latents are pulled up. Adam makes steps of the learning rate of it
whatever its size: 1.0 does the same (measured)."""


@final
@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SAEConfig, arch="jumprelu"):
    """A JumpReLU SAE."""

    target_l0: float = 16.0
    """Mean number of active latents that the penalty aims at."""

    l0_coefficient: float = 0.5
    """Weight of the penalty: that of missing the target by its own size, in shares of d_out."""

    bandwidth: float = 1.0
    """Width of the straight-through window around a threshold (mean input norm sqrt(d_in))."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target_l0 > 0:
            raise ValueError(f"target_l0: {self.target_l0} is not positive")
        if self.l0_coefficient < 0:
            raise ValueError(f"l0_coefficient: {self.l0_coefficient} is negative; give 0 or more")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth: {self.bandwidth} is no width; give more than 0")

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "JumpReLUSAE":
        """See SAEConfig.build."""
        return JumpReLUSAE(self, d_in, d_out, generator=generator)


@final
class JumpReLUSAE(SAE):
    """See the module's docstring. A negative threshold counts as 0."""

    config: JumpReLUConfig

    threshold: nn.Parameter  # [d_sae]

    def __init__(
        self,
        config: JumpReLUConfig,
        d_in: int,
        d_out: int | None,
        *,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self._scale_encoder(generator, k=min(config.d_sae, max(1, round(config.target_l0))))
        self.threshold = nn.Parameter(torch.zeros_like(self.b_enc))

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        found = active.encode(
            self._centred(x), self.encoder_rows, self.b_enc, self.threshold.detach().relu()
        )
        above = found.values > found.per_latent(self.threshold.detach().relu())
        return found.code(torch.where(above, found.values, 0.0))

    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train."""
        threshold, width = self.threshold.relu(), self.config.bandwidth
        # Latents just below their thresholds are silent, but move them.
        floor = (threshold.detach() - width / 2).clamp_min(0.0)
        found = active.encode(self._centred(x), self.encoder_rows, self.b_enc, floor)
        own = found.per_latent(self.threshold)
        code, is_active = _Jump.apply(found.values, own, found.per_latent(floor), width)
        recon = self._skipped(x, found.decode(code, self.W_dec) + self.b_dec)
        return TrainOutput(recon, found.code(code), {"l0": is_active.sum() / len(x)})

    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        out: TrainOutput,
        *,
        at: Moment,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """Squared error, penalty `l0`, and `aux` and `lift` while latents are dead and
        `aux_coefficient` is not 0. See SAE.losses.
        """
        missed = (out.kept["l0"] / self.config.target_l0 - 1).square()
        penalties = {
            "l0": self.config.l0_coefficient * self.d_out * missed,
            **self._aux(x, target, out, dead),
        }
        if "aux" in penalties:
            penalties["lift"] = -LIFT * self.b_enc[dead].sum()
        return Losses(ops.squared_error(out.recon, target), penalties)

    def inference(self) -> Inference:
        """See SAE.inference."""
        weights = self.weights()
        return Inference("jumprelu", {}, {**weights, "threshold": weights["threshold"].relu()})

    def _init_latents(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Low thresholds, and biases by which few latents are active."""
        self.threshold.fill_(INITIAL_THRESHOLD)
        level = active.start_level(self._centred(x), self.encoder_rows, self.b_enc)
        self.b_enc.add_(INITIAL_THRESHOLD - level)


class _Jump(torch.autograd.Function):
    """z, t -> z [z > t] and [z > t], with straight-through derivatives in t.

    In a matrix, what lies below the floor, however far, has been set to it: only what exceeds the
    floor is known to be in the window.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, threshold: Tensor, floor: Tensor, width: float
    ) -> tuple[Tensor, Tensor]:
        above = (z > threshold.relu()).to(z.dtype)
        ctx.save_for_backward(z, threshold, floor, above)
        ctx.width = width
        return z * above, above

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_code: Tensor, grad_active: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        z, threshold, floor, above = ctx.saved_tensors
        t = threshold.relu()
        if not ctx.needs_input_grad[1]:
            return grad_code * above, None, None, None
        near = ((z > floor) & (z - t < ctx.width / 2)).to(z.dtype) / ctx.width
        grad = -near * (t * grad_code + grad_active)
        # Where thresholds are one per latent and z a matrix, each latent sums over the rows.
        return grad_code * above, grad.sum_to_size(threshold.shape), None, None
