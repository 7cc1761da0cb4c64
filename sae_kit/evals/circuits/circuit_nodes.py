"""The nodes of a model's computational graph: what each makes of the sum that it hears.

A node hears the residual stream as a sum over other nodes, and writes a term of it. Nodes that hear
the same others, and not one another, make a level: the heads of a block, its MLP, the chosen
latents of an SAE, the output. A head hears three sums, one each for its queries, keys and values,
which differ once edges are cut; LayerNorm is applied to each by itself.

Everything is computed with the model's own weights. Shapes are `[nodes rows pos width]`: some nodes
of a level side by side, each on rows of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.models.gpt2 import Block
from sae_kit.models.hooks import Tape
from sae_kit.sae.base import SAE
from sae_kit.sae.code import SparseCode
from sae_kit.sae.normalization import denormalise

REST = "rest"
"""What a stream is besides the chosen latents of its SAE."""

Nodes = Sequence[int] | slice
"""Some nodes of a level, by their place in it."""


class Need(IntEnum):
    """Which positions of something can change the prediction at the last one."""

    NONE = 0
    LAST = 1
    ALL = 2

    @property
    def at(self) -> slice:
        """These positions."""
        return slice(-1, None) if self is Need.LAST else slice(None)


class Level(ABC):
    """Nodes that hear the same others."""

    parts: ClassVar[tuple[str, ...]] = ("",)
    """What a node hears sums for, each; "" where it is one."""

    def __init__(
        self, names: Sequence[str], hears: Sequence[int], constant: Float[Tensor, " d_model"]
    ) -> None:
        """Args:
        names: of the nodes.
        hears: senders, by number.
        constant: what the stream has in it besides them: biases of attention layers.
        """
        self.names, self.hears, self.constant = tuple(names), tuple(hears), constant

    @property
    def receivers(self) -> list[str]:
        """The name of every sum that is heard, node by node."""
        return [f"{name}.{part}" if part else name for name in self.names for part in self.parts]

    @abstractmethod
    def read(
        self, part: int, nodes: Nodes, x: Float[Tensor, "nodes rows pos d_model"]
    ) -> Float[Tensor, "nodes rows pos width"]:
        """What a part of some nodes makes of the sums `x`."""

    def write(
        self, nodes: Nodes, values: Sequence[Float[Tensor, "nodes rows _ width"]]
    ) -> Float[Tensor, "nodes rows _ d_model"]:
        """What nodes add to the stream, given what their parts have read."""
        (value,) = values
        return value

    def needs(self, part: int, output: Need) -> Need:
        """Which positions of a part's sum matter, given those of the output that do."""
        return output


@final
class Heads(Level):
    """The attention heads of a block. The bias behind them is nobody's: it is a constant."""

    parts = ("q", "k", "v")

    def __init__(self, block: Block, names: Sequence[str], hears: Sequence[int], constant: Tensor):
        super().__init__(names, hears, constant)
        attn, n = block.attn, len(names)
        self._norm = block.ln1
        split = "d (three head d_head) -> three head d d_head"
        self._weights = rearrange(attn.W_qkv.detach(), split, three=3, head=n)
        self._biases = rearrange(
            attn.b_qkv.detach(), "(three head d) -> three head 1 d", three=3, head=n
        )
        self._W_O = rearrange(attn.W_O.detach(), "(head d_head) d -> head d_head d", head=n)

    def read(self, part: int, nodes: Nodes, x: Tensor) -> Float[Tensor, "nodes rows pos d_head"]:
        """Queries, keys or values."""
        flat = self._norm(x, silent()).flatten(1, 2)
        value = torch.baddbmm(self._biases[part][nodes], flat, self._weights[part][nodes])
        return value.unflatten(1, x.shape[1:3])

    def write(self, nodes: Nodes, values: Sequence[Tensor]) -> Tensor:
        """See Level. Where there is one query, it is the last position's."""
        q, k, v = values
        z = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return (z.flatten(1, 2) @ self._W_O[nodes]).unflatten(1, z.shape[1:3])

    def needs(self, part: int, output: Need) -> Need:
        """See Level: keys and values are those of all positions."""
        return output if self.parts[part] == "q" or output is Need.NONE else Need.ALL


@final
class MLPs(Level):
    """The one MLP of a block."""

    def __init__(self, block: Block, names: Sequence[str], hears: Sequence[int], constant: Tensor):
        super().__init__(names, hears, constant)
        self._norm, self._mlp = block.ln2, block.mlp

    def read(self, part: int, nodes: Nodes, x: Tensor) -> Tensor:
        """Its output."""
        return self._mlp(self._norm(x, silent()), silent())


@final
class Latents(Level):
    """Chosen latents of an SAE, and the rest: all together they are the stream that they hear.

    Each latent hears a sum of its own, and encodes it by itself. The rest is what its own sum is
    without the latents' terms of it: other latents, the bias, the error.
    """

    def __init__(
        self,
        sae: SAE,
        latents: Int[Tensor, " chosen"],
        names: Sequence[str],
        hears: Sequence[int],
        constant: Tensor,
    ):
        super().__init__(names, hears, constant)
        self._sae, self._latents = sae, latents
        self._directions = sae.W_dec[latents].to(constant)

    def read(self, part: int, nodes: Nodes, x: Tensor) -> Tensor:
        """The latents' terms, and the rest."""
        places = range(*nodes.indices(len(self.names))) if isinstance(nodes, slice) else nodes
        read = [self._read(node, own.flatten(0, 1)) for node, own in zip(places, x, strict=True)]
        return torch.stack(read).view(x.shape)

    def _read(self, node: int, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        active = self._active(x)
        if node == len(self._latents):
            return x - (active @ self._directions) * self._unit(x)
        return active[:, node, None] * self._directions[node] * self._unit(x)

    def _active(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows chosen"]:
        code = self._sae.natural_code(x.to(self._sae.W_dec))
        if isinstance(code, SparseCode):
            return code.select(self._latents).to(x)
        return code[:, self._latents].to(x)

    def _unit(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows 1"]:
        """What a decoder direction is multiplied by, where the SAE normalises rows."""
        kind, one = self._sae.normalization, torch.ones_like(x)
        return (denormalise(kind, one, x) - denormalise(kind, torch.zeros_like(x), x))[:, :1]


@final
class Output(Level):
    """The stream that the prediction is made of."""

    def read(self, part: int, nodes: Nodes, x: Tensor) -> Tensor:
        """See Level."""
        return x


def silent() -> Tape:
    """A tape that records and changes nothing."""
    return Tape((), {}, None)
