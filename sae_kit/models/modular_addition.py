"""A transformer of one layer that adds modulo a prime: the network whose insides are known.

Inputs are two numbers and a "=" sign; the answer is read at the last position. There is no
LayerNorm, and activations are ReLUs. After the attention only the last position is computed, since
nothing reads the others. As three modules one behind another, it can be cut into node layers:

    embeddings [3 pos]  ->  attention, added  ->  MLP, added  ->  unembedding

Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability"
(2301.05217), as set up by Bushnaq et al. 2024 (2405.10928): trained networks compute with a few
frequencies of the discrete Fourier transform.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_kit.config import check_counts

NODE_LAYERS = ("embeddings", "after attention", "after MLP", "logits")


@final
@dataclass(frozen=True, kw_only=True)
class AdditionConfig:
    """Sizes; the defaults are the paper's."""

    prime: int = 113
    """Numbers are below it, sums modulo it."""
    d_model: int = 128
    n_head: int = 4
    d_mlp: int = 512

    def __post_init__(self) -> None:
        check_counts(self, "d_model", "n_head", "d_mlp")
        if self.prime < 3 or any(self.prime % i == 0 for i in range(2, self.prime)):
            raise ValueError(f"prime: {self.prime} is no odd prime; give 13, 23 or 113, say")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model: {self.d_model} is not divisible by n_head {self.n_head}")


@final
class AddedAttention(nn.Module):
    """What the last position reads of all three, added to it: `[batch pos d]` -> `[batch 1 d]`."""

    def __init__(self, config: AdditionConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.d_model, config.d_model) for _ in range(4)
        )

    def forward(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch one d"]:
        """The stream at the last position."""
        last = x[:, -1:]
        q, k, v = (
            made.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for made in (self.query(last), self.key(x), self.value(x))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return last + self.out(mixed.transpose(1, 2).flatten(2))


@final
class AddedMLP(nn.Module):
    """`[batch pos d]` -> the same, with what the MLP adds."""

    def __init__(self, config: AdditionConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.d_model, config.d_mlp)
        self.out = nn.Linear(config.d_mlp, config.d_model)

    def forward(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        """The stream after it."""
        return x + self.out(F.relu(self.hidden(x)))


@final
class AdditionTransformer(nn.Module):
    """The network; `sections` are what lies between its NODE_LAYERS.

    Args:
        config: its sizes.
        generator: draws the initial weights.
    """

    def __init__(self, config: AdditionConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.prime + 1, config.d_model))
        self.positions = nn.Parameter(torch.empty(3, config.d_model))
        unembedding = nn.Linear(config.d_model, config.prime + 1)
        self.sections = nn.ModuleList([AddedAttention(config), AddedMLP(config), unembedding])
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name.endswith("bias"):
                    p.zero_()
                else:
                    p.normal_(0.0, p.shape[-1] ** -0.5, generator=generator)

    def embed(self, pairs: Int[Tensor, "batch two"]) -> Float[Tensor, "batch pos d_model"]:
        """Activations at the first node layer."""
        equals = torch.full_like(pairs[:, :1], self.config.prime)
        return self.embedding[torch.cat([pairs, equals], 1)] + self.positions

    def forward(self, pairs: Int[Tensor, "batch two"]) -> Float[Tensor, "batch vocab"]:
        """Logits over the numbers and the sign."""
        x = self.embed(pairs)
        for section in self.sections:
            x = section(x)
        return x[:, 0]


def all_pairs(prime: int) -> Int[Tensor, "n two"]:
    """Every pair of numbers, the second one changing first."""
    numbers = torch.arange(prime)
    return torch.cartesian_prod(numbers, numbers)
