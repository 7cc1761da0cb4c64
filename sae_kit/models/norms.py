"""What stands between the residual stream and the parts that read it: LayerNorm, or a linear map.

GPT-2 has LayerNorm. A GPT-2 from which it was removed (Heimersheim 2024, 2409.13710; see
`sae_kit.models.no_ln`) has at the same places a map that is linear but for its bias.

The sites lie before gain and bias, as in TransformerLens' default models.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sae_kit.models.hooks import Tape


class Norm(nn.Module, ABC):
    """Gain `w [d_model]` and bias `b [d_model]` behind something that removes the mean."""

    def __init__(self, name: str, d_model: int, eps: float):
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model))
        self.b = nn.Parameter(torch.zeros(d_model))
        self.eps = eps
        self.scale_site = f"{name}.hook_scale"
        self.normalized_site = f"{name}.hook_normalized"

    @abstractmethod
    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """`x [batch pos d_model]`, normalised."""


@final
class LayerNorm(Norm):
    """Mean and scale removed, then gain and bias. The scale is of every position's own."""

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """See Norm."""
        if not (tape.wants(self.scale_site) or tape.wants(self.normalized_site)):
            return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        centred = x - x.mean(-1, keepdim=True)
        scale = tape(self.scale_site, (centred.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return tape(self.normalized_site, centred / scale) * self.w + self.b


@final
class LinearNorm(Norm):
    """The mean removed, then gain and bias: no scale, which the gain has in it. `eps` is unused.

    `hook_scale` is 1 everywhere.
    """

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """See Norm."""
        centred = x - x.mean(-1, keepdim=True)
        if tape.wants(self.scale_site):
            centred = centred / tape(self.scale_site, torch.ones_like(centred[..., :1]))
        return tape(self.normalized_site, centred) * self.w + self.b


NORMS: dict[str, type[LayerNorm] | type[LinearNorm]] = {"layer": LayerNorm, "linear": LinearNorm}
"""By the words of `GPT2Config.norm`."""
