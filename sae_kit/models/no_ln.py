"""GPT-2 without LayerNorm: its scales replaced by constants, one after another, then by nothing.

LayerNorm is (x - mean) / scale * w + b, with the scale each position's own. Removing one means to
take a constant for the scale: its mean over ordinary positions. What is left is linear but for the
bias, and once all are removed the model is one with `GPT2Config.norm` "linear".

Source: Heimersheim 2024, "You can remove GPT2's LayerNorm by fine-tuning" (2409.13710). As there,

- the first LayerNorm of a block is removed for queries and keys, and for values, apart;
- position 0, whose scale is some 30 times that of others, keeps a constant of its own until the
  end; so do the values of end-of-text tokens, which get the one of position 0.

A removal needs no other model: it is an edit of the sites `hook_scale` and `attn.hook_v` of a run
(`Removal.edits`), so weights, sites and training loop are those of any GPT-2. In the paper's
released code the special scale is laid along the channels; here it is a position's, as meant.

Limits: a prefix must hold position 0, or none of the special scales be in use.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.maths import StreamingMoments
from sae_kit.models.gpt2 import GPT2, Attention, Block
from sae_kit.models.hooks import Edit, Site
from sae_kit.models.norms import LinearNorm, Norm

EOT, FIRST = "end-of-text scale", "first position's scale"
"""The two special scales, as names of what is removed."""

CONTEXTS_PER_PASS = 8


def norm_names(n_layer: int) -> list[str]:
    """Every LayerNorm by name, in the order of a run: "blocks.0.ln1" to "ln_final"."""
    return [f"blocks.{i}.{ln}" for i in range(n_layer) for ln in ("ln1", "ln2")] + ["ln_final"]


def removable(n_layer: int) -> set[str]:
    """All that can be removed: norms ("blocks.0.ln2", "ln_final"), "blocks.0.ln1.qk" and
    "blocks.0.ln1.v", and the two special scales.
    """
    halves = [f"blocks.{i}.ln1.{half}" for i in range(n_layer) for half in ("qk", "v")]
    return {*(f"blocks.{i}.ln2" for i in range(n_layer)), *halves, "ln_final", EOT, FIRST}


@final
@dataclass(frozen=True)
class Scales:
    """The constants that take the place of LayerNorm's scales, by norm."""

    ordinary: Mapping[str, float]
    """Mean scale over all positions but 0 and end-of-text tokens."""
    first: Mapping[str, float]
    """Mean scale at position 0."""

    def __post_init__(self) -> None:
        for what, scales in (("ordinary", self.ordinary), ("first", self.first)):
            for name, scale in scales.items():
                if not 0 < scale < float("inf"):
                    raise ValueError(f"{what}: the scale of {name} is {scale}; it must be positive")

    @staticmethod
    @torch.no_grad()
    def measure(model: GPT2, contexts: Int[Tensor, "batch pos"], *, eot_id: int) -> "Scales":
        """The mean scales of `model`'s LayerNorms over some contexts.

        Raises:
            ValueError: the model has no LayerNorm, or there is no ordinary position.
        """
        if model.config.norm != "layer":
            raise ValueError(
                f"norm: the model's is {model.config.norm!r}, so there is no LayerNorm"
            )
        ordinary = contexts != eot_id
        ordinary[:, 0] = False
        if not ordinary.any():
            raise ValueError(
                f"contexts: {contexts.numel()} tokens with no ordinary position among them; give "
                "contexts of at least two tokens"
            )
        names = norm_names(model.config.n_layer)
        sites = [f"{name}.hook_scale" for name in names]
        seen = {name: (StreamingMoments(1), StreamingMoments(1)) for name in names}
        for tokens, where in zip(
            contexts.split(CONTEXTS_PER_PASS), ordinary.split(CONTEXTS_PER_PASS), strict=True
        ):
            acts = model.run(tokens.to(model.device), capture=sites).acts
            for name, (others, first) in seen.items():
                scale = acts[f"{name}.hook_scale"].cpu()
                others.update(scale[where])
                first.update(scale[:, 0])
        return Scales(
            {name: others.mean.item() for name, (others, _) in seen.items()},
            {name: first.mean.item() for name, (_, first) in seen.items()},
        )


@final
@dataclass(frozen=True)
class Removal:
    """Which of a model's LayerNorms are removed, and what is in their place."""

    scales: Scales
    removed: frozenset[str]
    """Of `removable`. Values are removed after queries and keys of the same block."""
    eot_id: int

    def edits(self, model: GPT2, tokens: Int[Tensor, "batch pos"]) -> dict[Site, Edit]:
        """What makes a run of `model` on `tokens` one without the removed LayerNorms.

        Raises:
            ValueError: a name that the model has not, or values removed before queries and keys.
        """
        n_layer = model.config.n_layer
        if unknown := self.removed - removable(n_layer):
            raise ValueError(
                f"removed: {sorted(unknown)} are no LayerNorms of {n_layer} blocks; see removable()"
            )
        edits: dict[Site, Edit] = {}
        for name in norm_names(n_layer):
            if name in self.removed:
                edits[f"{name}.hook_scale"] = _Constant(self._scale(name, model, tokens))
        for i in range(n_layer):
            edits |= self._ln1_edits(f"blocks.{i}", model, tokens)
        return edits

    def _ln1_edits(self, name: str, model: GPT2, tokens: Tensor) -> dict[Site, Edit]:
        block = model.get_submodule(name)
        assert isinstance(block, Block)
        qk, v = (f"{name}.ln1.{half}" in self.removed for half in ("qk", "v"))
        if not qk and not v:
            return {}
        if not qk:
            raise ValueError(f"removed: {name}.ln1.v without {name}.ln1.qk; remove that first")
        scale = self._scale(f"{name}.ln1", model, tokens)
        constant = _Constant(scale)
        edits: dict[Site, Edit] = {f"{name}.ln1.hook_scale": constant}
        site = f"{name}.attn.hook_v"
        if not v:
            edits[site] = _Rescaled(block, scale, lambda: constant.own)
        elif EOT not in self.removed:
            first = self.scales.first[f"{name}.ln1"]
            special = (tokens == self.eot_id)[..., None]
            edits[site] = _Rescaled(block, scale, lambda: torch.where(special, first, scale))
        return edits

    def _scale(
        self, norm: str, model: GPT2, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos one"]:
        """The constants at every position."""
        scale = model.W_E.new_full((*tokens.shape, 1), self.scales.ordinary[norm])
        if FIRST not in self.removed:
            scale[:, 0] = self.scales.first[norm]
        return scale

    @property
    def is_complete(self) -> bool:
        """Whether nothing of LayerNorm is left, special scales included."""
        return self.removed == removable(len(self.scales.ordinary) // 2)

    @torch.no_grad()
    def linear_copy(self, model: GPT2) -> GPT2:
        """The model that `edits` make of `model`, as one without LayerNorm.

        Raises:
            ValueError: some LayerNorm or special scale is not removed yet.
        """
        if not self.is_complete:
            left = removable(model.config.n_layer) - self.removed
            raise ValueError(
                f"removed: {len(left)} of the norms and special scales are still there (such as "
                f"{min(left)}); remove all before the model is made linear"
            )
        linear = GPT2(replace(model.config, norm="linear")).to(model.device, model.W_E.dtype)
        linear.load_state_dict(model.state_dict())
        for name in norm_names(model.config.n_layer):
            norm_of(linear, name).w.div_(self.scales.ordinary[name])
        return linear.requires_grad_(model.W_E.requires_grad)


@final
class _Constant:
    """An edit of `hook_scale`: a constant in the place of each position's own, which is kept."""

    def __init__(self, scale: Float[Tensor, "batch pos one"]) -> None:
        self._scale = scale
        self.own: Tensor

    def __call__(self, own: Tensor) -> Tensor:
        self.own = own
        return self._scale.to(own.dtype)


@final
class _Rescaled:
    """An edit of `hook_v`: values as they are with another scale in the block's first LayerNorm.

    v = (x - mean) / scale * w @ W_V + (b @ W_V + b_V), of which the first term is rescaled.
    """

    def __init__(
        self, block: Block, scale: Float[Tensor, "batch pos one"], other: Callable[[], Tensor]
    ) -> None:
        """`other` gives the other scale, once the run has come so far."""
        self._attn, self._bias, self._scale, self._other = block.attn, block.ln1.b, scale, other

    def __call__(self, v: Tensor) -> Tensor:
        offset = value_offset(self._attn, self._bias)
        factor = (self._scale / self._other())[..., None].to(v.dtype)
        return (v - offset) * factor + offset


def value_offset(attn: Attention, bias: Float[Tensor, " d_model"]) -> Float[Tensor, "head d_head"]:
    """What the values of an attention are where its normalised input is `bias` alone."""
    d_model = len(bias)
    flat = bias @ attn.W_qkv[:, 2 * d_model :] + attn.b_qkv[2 * d_model :]
    return rearrange(flat, "(head d_head) -> head d_head", head=attn.n_head)


def norm_of(model: GPT2, name: str) -> Norm:
    """The norm of this name, "blocks.0.ln1" or "ln_final"."""
    norm = model.get_submodule(name)
    assert isinstance(norm, Norm)
    return norm


@torch.no_grad()
def folded_copy(model: GPT2) -> GPT2:
    """The same function with nothing left of the norms: gains, biases and the removal of the mean
    are in the weights behind them.

        W' = (I - 11^T / d) diag(w) W,    bias' = b W + bias

    The norms stay, with gain 1 and bias 0; the mean they remove makes no difference any more. An
    unembedding has no bias, so the last norm keeps one, b / w.

    Raises:
        ValueError: the model has LayerNorm, which cannot be folded: its scale is not constant.
    """
    if model.config.norm != "linear":
        raise ValueError(
            "norm: the model has LayerNorm, whose scale differs from position to position; remove "
            "it first (Removal.linear_copy)"
        )
    folded = GPT2(replace(model.config, tied=False)).to(model.device, model.W_E.dtype)
    folded.load_state_dict(model.state_dict())
    for block in folded.blocks:
        assert isinstance(block, Block)
        _fold(block.ln1, block.attn.W_qkv, block.attn.b_qkv)
        _fold(block.ln2, block.mlp.W_in, block.mlp.b_in)
    last = folded.ln_final
    alive = last.w != 0  # a channel without gain has its bias alone, and keeps both
    gain = torch.where(alive, last.w, 1.0)
    scaled = folded.W_U * gain
    folded.W_U.copy_(scaled)
    last.b.div_(gain)
    last.w.copy_(alive.to(last.w.dtype))
    return folded.requires_grad_(model.W_E.requires_grad)


def _fold(norm: Norm, W: Tensor, bias: Tensor) -> None:
    bias.add_(norm.b @ W)
    scaled = norm.w[:, None] * W
    W.copy_(scaled - scaled.mean(0))
    norm.w.fill_(1.0)
    norm.b.fill_(0.0)


@torch.no_grad()
def logit_parts(
    model: GPT2, tokens: Int[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, "batch pos vocab"]]:
    """What the embeddings, every attention and every MLP add to the logits; exact, since nothing
    but a linear map comes after them.

    Returns:
        Site of the part (or "ln_final.b") -> its logits. They sum to those of the run.

    Raises:
        ValueError: the model has LayerNorm.
    """
    if not isinstance(model.ln_final, LinearNorm):
        raise ValueError(
            "norm: the model has LayerNorm before its unembedding, through which parts do not add "
            "up; give a model without"
        )
    outputs = [
        f"blocks.{i}.{out}"
        for i in range(model.config.n_layer)
        for out in ("hook_attn_out", "hook_mlp_out")
    ]
    parts = ["hook_embed", "hook_pos_embed", *outputs]
    acts = model.run(tokens, capture=parts).acts
    gain, bias = model.ln_final.w, model.ln_final.b
    logits = {
        site: ((acts[site] - acts[site].mean(-1, keepdim=True)) * gain) @ model.W_U.T
        for site in parts
    }
    constant = (bias @ model.W_U.T).expand(*tokens.shape, -1)
    return {**logits, "ln_final.b": constant}
