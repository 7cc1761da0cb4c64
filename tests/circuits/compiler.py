"""From named features to the weights of a GPT-2 without LayerNorm.

Every feature has two channels, f and -f, so that the mean which `norm="linear"` removes is 0 and
the norm does nothing (where features are multiples of 1/4, say, whose sums are exact). Parts read
the first channel and write both. Nothing here is learnt or drawn: what is not asked for is zero.

A neuron is relu(z): the model's GELU is sharpened until it is one at integers, exactly.
Attention scores are 0 or `SHARP` times an integer: a match takes all of the softmax, to the last
bit.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sae_kit.models.gpt2 import GPT2, GPT2Config

SHARP = 256.0
"""exp(-256) is 0 next to 1 in float64, and 0 by itself in float32."""
GELU_SCALE = 64.0
"""gelu(64 n) / 64 is relu(n) for every integer n, in float32 and float64."""

Weights = Mapping[str, float]
"""Feature -> coefficient."""
Edge = tuple[str, str]
"""(sender, receiver)."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A model, prompts it was made for, and what is known about it."""

    model: GPT2
    clean: Tensor
    """`[pairs pos]`; what the model is for happens at the last position."""
    corrupt: Tensor
    answers: tuple[int, ...]
    """One right next token for each pair."""
    wrong: tuple[int, ...]
    edges: frozenset[Edge]
    """Those that the answer changes with when they are set to zero. No other edge can change it."""


@final
class Compiler:
    """Collects heads and neurons; `model` gives the GPT-2."""

    def __init__(
        self,
        features: Sequence[str],
        *,
        n_layer: int,
        n_head: int,
        n_ctx: int,
        n_vocab: int,
        d_head: int,
        n_neurons: int = 1,
    ) -> None:
        """`d_head`: the least width of a head; it grows until all features have their channels."""
        self._channel = {name: i for i, name in enumerate(features)}
        self._d_head = max(d_head, math.ceil(2 * len(features) / n_head))
        self._d_head += self._d_head * n_head % 2  # f and -f: an even number of channels
        self.config = GPT2Config(
            n_layer=n_layer,
            n_head=n_head,
            d_model=n_head * self._d_head,
            d_mlp=n_neurons,
            n_ctx=n_ctx,
            n_vocab=n_vocab,
            tied=False,
            norm="linear",
        )
        self.model = GPT2(self.config).requires_grad_(False).eval()
        for name, parameter in self.model.named_parameters():
            is_gain = name.endswith((".ln1.w", ".ln2.w", "ln_final.w"))
            parameter.fill_(1.0 if is_gain else 0.0)
        self._n_neurons = [0] * n_layer

    def token(self, token: int, writes: Weights) -> None:
        """What a token's embedding says."""
        self.model.W_E[token] += self._written(writes)

    def position(self, position: int, writes: Weights) -> None:
        """What a position's embedding says."""
        self.model.W_pos[position] += self._written(writes)

    def head(
        self,
        layer: int,
        head: int,
        *,
        matches: Iterable[tuple[Weights, Weights]] = (),
        moves: Iterable[tuple[str, Weights]],
    ) -> None:
        """One attention head.

        Args:
            layer: of which block.
            head: its number.
            matches: (of the query, of the key): the score is `SHARP` times the sum of their
                products. Without any, all positions so far are attended to alike.
            moves: (feature read at the key, what is written for it at the query).
        """
        attn = self.model.blocks[layer].attn
        d, width = self._d_head, self.config.d_model
        first = head * d
        for i, (query, key) in enumerate(matches):
            assert i < d
            attn.W_qkv[:, first + i] += self._read(query) * SHARP * math.sqrt(d)
            attn.W_qkv[:, width + first + i] += self._read(key)
        for i, (source, writes) in enumerate(moves):
            assert i < d
            attn.W_qkv[:, 2 * width + first + i] += self._read({source: 1.0})
            attn.W_O[first + i] += self._written(writes)

    def neuron(self, layer: int, reads: Weights, writes: Weights, *, bias: float = 0.0) -> None:
        """Writes relu(what it reads + bias), exact where that is an integer."""
        mlp, i = self.model.blocks[layer].mlp, self._n_neurons[layer]
        mlp.W_in[:, i] = self._read(reads) * GELU_SCALE
        mlp.b_in[i] = bias * GELU_SCALE
        mlp.W_out[i] = self._written(writes) / GELU_SCALE
        self._n_neurons[layer] += 1

    def constant(self, layer: int, writes: Weights) -> None:
        """What an MLP writes whatever it reads."""
        self.model.blocks[layer].mlp.b_out += self._written(writes)

    def logit(self, token: int, reads: Weights) -> None:
        """A token's logit."""
        self.model.W_U[token] += self._read(reads)

    def _read(self, weights: Weights) -> Tensor:
        row = torch.zeros(self.config.d_model)
        for feature, weight in weights.items():
            row[self._channel[feature]] = weight
        return row

    def _written(self, weights: Weights) -> Tensor:
        return self._read(weights) - self._read(weights).roll(self.config.d_model // 2)
