"""What a training pass is told and what it returns, for every architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.sae.code import SparseCode


@final
@dataclass(frozen=True)
class Moment:
    """Where in a training run a step is: what schedules are functions of."""

    step: int
    """Optimiser steps done so far."""

    n_steps: int
    """Optimiser steps of the whole run."""

    def rise(self, share: float) -> float:
        """How far a linear warm-up over the first `share` of the run has come, from 0 to 1."""
        n = share * self.n_steps
        return 1.0 if self.step >= n else self.step / n


@dataclass(frozen=True)
class TrainOutput:
    """What a training pass produced."""

    recon: Float[Tensor, "rows d_out"]
    """The reconstruction."""

    code: Float[Tensor, "rows d_sae"] | SparseCode
    """The code it was decoded from, in the architecture's natural form."""

    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """What else the architecture's own `losses` wants to know of the pass."""


@final
@dataclass(frozen=True)
class Losses:
    """The loss of one batch, in the two parts that objectives combine differently."""

    mse: Float[Tensor, ""]
    """The error of the reconstruction: squared, summed over channels, averaged over rows."""

    penalties: Mapping[str, Float[Tensor, ""]]
    """Everything else by name, coefficients included: what an objective always keeps."""

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum: what the local objective differentiates."""
        return torch.stack([self.mse, *self.penalties.values()]).sum()

    @property
    def terms(self) -> Mapping[str, Float[Tensor, ""]]:
        """All parts by name, detached: what is logged."""
        parts = {"mse": self.mse, **self.penalties}
        return {name: part.detach() for name, part in parts.items()}
