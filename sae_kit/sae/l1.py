"""What architectures with an L1-like penalty have in common: its coefficient, and how it warms up.

Units. Errors are summed over channels, as in Anthropic's update of April 2024; on inputs scaled to
a mean norm of sqrt(d_in) coefficients can be compared across widths and models. Where others
average the error over channels (Bloom; Braun et al. average the penalty as well), their coefficient
is ours over d_in. An active latent gives up l1_coefficient / 2 of its activation, so at L0 latents
a row the penalty costs at least L0 * l1_coefficient^2 / (4 d_in) of the variance.
"""

from abc import ABC
from dataclasses import dataclass

from sae_kit.sae.base import Moment, SAEConfig


@dataclass(frozen=True, kw_only=True)
class L1Config(SAEConfig, ABC):
    """A penalty on the sum of a row's activations, or on something measured against it."""

    l1_coefficient: float = 2.5
    """Weight of the penalty, in units of the activation (mean input norm sqrt(d_in))."""

    l1_warmup: float = 0.3
    """The share of the run over which the coefficient rises linearly from 0; 0 = none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1_coefficient < 0:
            raise ValueError(f"l1_coefficient: {self.l1_coefficient} is negative; give 0 or more")
        if not 0 <= self.l1_warmup <= 1:
            raise ValueError(f"l1_warmup: {self.l1_warmup} is no share of the run; give 0 to 1")

    def coefficient(self, at: Moment) -> float:
        """The weight of the penalty at a step."""
        return self.l1_coefficient * at.rise(self.l1_warmup)
