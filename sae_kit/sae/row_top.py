"""A fixed number of active latents for every row: what TopK and GroupMax share.

They differ in how a row's latents are chosen; the loss is the squared error with TopK's auxiliary
loss of dead latents (Gao et al. 2024, 2406.04093).

Limits: every row has the same budget, whatever it holds.
"""

from abc import ABC
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.sae import ops
from sae_kit.sae.base import SAE, Losses, Moment, TrainOutput
from sae_kit.sae.code import SparseCode


class RowTopSAE(SAE, ABC):
    """See the module's docstring. Subclasses say which latents are active: `encode_rows`."""

    def training_code(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """The code in a training step, where it may be found in another way."""
        return self.encode_rows(x)

    @final
    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train."""
        code = self.training_code(x)
        return TrainOutput(self.reconstruct(x, code), code)

    @final
    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        out: TrainOutput,
        *,
        at: Moment,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """Squared error, and `aux` while there are dead latents. See SAE.losses."""
        return Losses(ops.squared_error(out.recon, target), self._aux(x, target, out, dead))
