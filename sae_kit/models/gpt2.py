"""GPT-2 in one file, with every TransformerLens-named site declared where it is computed.

Source: Radford et al. 2019, as in Hugging Face's GPT2LMHeadModel (pre-LayerNorm, learned positions,
tanh-GELU, linear weights stored input-first, unembedding tied to the embedding). Read `GPT2.run`
first: the model can be entered at any residual-stream site, left at any site, and continued behind
kept keys and values, and computes only what that asks for: no logits when the run stops earlier, no
attention pattern unless it is read or edited.

Limits: dropout and cross-attention are left out, since nothing here trains with them.

Axes: batch, pos (positions run), key (positions attended to: prefix and run), head, d_head,
d_model, d_mlp, vocab.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_kit.models.hooks import (
    Edit,
    Prefix,
    Run,
    Site,
    Stopped,
    Tape,
    check_sites,
    check_tokens,
)
from sae_kit.models.norms import NORMS
from sae_kit.products import linear

KeysValues = tuple[Tensor, Tensor]


@final
@dataclass(frozen=True)
class Past:
    """What a block's attention sees of the positions before: see `Prefix`."""

    keys: Tensor
    """`[batch key head d_head]`, as the values."""
    values: Tensor
    is_forked: bool


@final
@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The sizes of a GPT-2; the defaults are GPT-2 small's."""

    n_layer: int = 12
    """Blocks."""
    n_head: int = 12
    """Attention heads per block."""
    d_model: int = 768
    """Width of the residual stream."""
    d_mlp: int = 3072
    """Hidden neurons per MLP."""
    n_ctx: int = 1024
    """Longest context, in positions."""
    n_vocab: int = 50257
    """Tokens in the vocabulary."""
    eps: float = 1e-5
    """Added to the variance in every LayerNorm."""
    tied: bool = True
    """Whether the unembedding is the embedding's transpose (false for mean-centred copies)."""
    norm: str = "layer"
    """What stands before attention, MLP and unembedding: "layer" (LayerNorm), or "linear" where it
    was removed."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm: {self.norm!r} is unknown; use {' or '.join(NORMS)}")
        for name in ("n_layer", "n_head", "d_model", "d_mlp", "n_ctx", "n_vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model: {self.d_model} is not divisible by n_head {self.n_head}")

    @property
    def d_head(self) -> int:
        """Channels per head."""
        return self.d_model // self.n_head


@final
class Attention(nn.Module):
    """Causal self-attention.

    `W_qkv [d_model, 3 d_model]` and `W_O [d_model, d_model]` are input-first, heads outermost.
    """

    def __init__(self, name: str, config: GPT2Config):
        super().__init__()
        d = config.d_model
        self.n_head, self.d_head = config.n_head, config.d_head
        self.W_qkv = nn.Parameter(torch.empty(d, 3 * d))
        self.b_qkv = nn.Parameter(torch.zeros(3 * d))
        self.W_O = nn.Parameter(torch.empty(d, d))
        self.b_O = nn.Parameter(torch.zeros(d))
        self.name = name

    def forward(self, x: Tensor, tape: Tape, past: Past | None) -> tuple[Tensor, KeysValues]:
        """The output for `x [batch pos d_model]`, and keys and values `[batch key head d_head]`."""
        qkv = linear(x, self.W_qkv.T, self.b_qkv)
        split = "batch pos (three head d_head) -> three batch pos head d_head"
        q, k, v = rearrange(qkv, split, three=3, head=self.n_head)
        q = tape(f"{self.name}.hook_q", q)  # [batch pos head d_head]
        k = tape(f"{self.name}.hook_k", k)  # [batch pos head d_head]
        v = tape(f"{self.name}.hook_v", v)  # [batch pos head d_head]
        if past is not None and past.is_forked:
            mixed = self._mix_forked(q, k, v, past, tape)
        else:
            if past is not None:
                k, v = torch.cat([past.keys, k], 1), torch.cat([past.values, v], 1)
            mixed = self._mix(q, k, v, tape)
        z = tape(f"{self.name}.hook_z", mixed)  # [batch pos head d_head]
        if tape.wants(f"{self.name}.hook_result"):
            W_O = rearrange(self.W_O, "(head d_head) d -> head d_head d", head=self.n_head)
            result = einsum(z, W_O, "batch pos head d_head, head d_head d -> batch pos head d")
            result = tape(f"{self.name}.hook_result", result)  # [batch pos head d_model]
            return result.sum(-2) + self.b_O, (k, v)
        flat = rearrange(z, "batch pos head d_head -> batch pos (head d_head)")
        return linear(flat, self.W_O.T, self.b_O), (k, v)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, tape: Tape) -> Tensor:
        """Values mixed, `[batch pos head d_head]`; a pattern exists only where it is wanted."""
        q, k, v = (rearrange(t, "batch pos head d -> batch head pos d") for t in (q, k, v))
        n_pos, n_key = q.shape[2], k.shape[2]
        site = f"{self.name}.hook_pattern"
        if not tape.wants(site):
            # One query sees every key and needs no mask; a whole context has a fused causal kernel.
            mask = None if n_pos in (1, n_key) else causal_mask(n_pos, n_key, q.device)
            whole = n_pos == n_key > 1
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole)
        else:
            scores = einsum(q, k, "batch head pos d, batch head key d -> batch head pos key")
            scores = scores / math.sqrt(self.d_head)
            scores = scores.masked_fill(~causal_mask(n_pos, n_key, q.device), -torch.inf)
            pattern = tape(site, scores.softmax(-1))  # [batch head pos key]
            z = einsum(pattern, v, "batch head pos key, batch head key d -> batch head pos d")
        return rearrange(z, "batch head pos d -> batch pos head d")

    def _mix_forked(self, q: Tensor, k: Tensor, v: Tensor, past: Past, tape: Tape) -> Tensor:
        """Values mixed where every position sees the past and itself; itself is the last key."""
        to_past = einsum(q, past.keys, "batch pos head d, batch key head d -> batch head pos key")
        to_self = einsum(q, k, "batch pos head d, batch pos head d -> batch head pos")
        scores = torch.cat([to_past, to_self[..., None]], -1) / math.sqrt(self.d_head)
        pattern = tape(f"{self.name}.hook_pattern", scores.softmax(-1))  # [batch head pos key]
        own = rearrange(pattern[..., -1:], "batch head pos one -> batch pos head one")
        pattern = pattern[..., :-1]
        z = einsum(pattern, past.values, "batch head pos key, batch key head d -> batch pos head d")
        return z + own * v


@final
class MLP(nn.Module):
    """Two linear maps, a tanh-GELU between: `W_in [d_model, d_mlp]`, `W_out [d_mlp, d_model]`."""

    def __init__(self, name: str, config: GPT2Config):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(config.d_model, config.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(config.d_mlp))
        self.W_out = nn.Parameter(torch.empty(config.d_mlp, config.d_model))
        self.b_out = nn.Parameter(torch.zeros(config.d_model))
        self.name = name

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        pre = linear(x, self.W_in.T, self.b_in)
        pre = tape(f"{self.name}.hook_pre", pre)  # [batch pos d_mlp]
        post = tape(f"{self.name}.hook_post", F.gelu(pre, approximate="tanh"))  # [batch pos d_mlp]
        return linear(post, self.W_out.T, self.b_out)


@final
class Block(nn.Module):
    """Attention and MLP, each reading a normalised stream and adding to it."""

    def __init__(self, index: int, config: GPT2Config):
        super().__init__()
        self.name = f"blocks.{index}"
        norm = NORMS[config.norm]
        self.ln1 = norm(f"{self.name}.ln1", config.d_model, config.eps)
        self.attn = Attention(f"{self.name}.attn", config)
        self.ln2 = norm(f"{self.name}.ln2", config.d_model, config.eps)
        self.mlp = MLP(f"{self.name}.mlp", config)

    def attend(self, x: Tensor, tape: Tape, past: Past | None) -> tuple[Tensor, KeysValues]:
        """From resid_pre to the stream after attention."""
        out, kept = self.attn(self.ln1(x, tape), tape, past)
        return x + tape(f"{self.name}.hook_attn_out", out), kept  # [batch pos d_model]

    def think(self, x: Tensor, tape: Tape) -> Tensor:
        """From resid_mid to the stream after the MLP."""
        out = self.mlp(self.ln2(x, tape), tape)
        return x + tape(f"{self.name}.hook_mlp_out", out)  # [batch pos d_model]


@final
class GPT2(nn.Module):
    """GPT-2.

    `W_E [n_vocab d_model]`, `W_pos [n_ctx d_model]`, `W_U [n_vocab d_model]` (`W_E` if tied).
    """

    def __init__(self, config: GPT2Config, *, generator: torch.Generator | None = None):
        """Build with initial weights drawn from `generator`; without one they are left empty."""
        super().__init__()
        self.config = config
        self.W_E = nn.Parameter(torch.empty(config.n_vocab, config.d_model))
        self.W_pos = nn.Parameter(torch.empty(config.n_ctx, config.d_model))
        self.blocks = nn.ModuleList(Block(i, config) for i in range(config.n_layer))
        self.ln_final = NORMS[config.norm]("ln_final", config.d_model, config.eps)
        self.W_U = self.W_E if config.tied else nn.Parameter(torch.empty_like(self.W_E))
        self._sites = declare_sites(config.n_layer)
        self._stream = [site for site in self._sites if ".hook_resid_" in site]
        self._order = {site: i for i, site in enumerate(self._sites)}
        if generator is not None:
            self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        # Radford et al. 2019 §2.3: what writes to the stream shrinks with the root of its number.
        writes = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                std = writes if name.endswith(("W_O", "W_out")) else 0.02
                p.normal_(0.0, std, generator=generator)

    @property
    def n_ctx(self) -> int:
        """The longest context, in positions."""
        return self.config.n_ctx

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.W_E.device

    def sites(self) -> Mapping[Site, tuple[str, ...]]:
        """Every site with its axis names, in the order in which a run reaches them."""
        return self._sites

    def width(self, site: Site) -> int:
        """The number of values per position at `site`; heads and their channels are multiplied out.

        Raises:
            ValueError: the model has no such site, or it has no fixed width (an attention pattern).
        """
        check_sites([site], self._sites, "site")
        c = self.config
        sizes = {"d_model": c.d_model, "d_mlp": c.d_mlp, "head": c.n_head, "d_head": c.d_head}
        sizes["one"] = 1
        axes = [axis for axis in self._sites[site] if axis not in ("batch", "pos")]
        if not set(axes) <= set(sizes):
            raise ValueError(f"site: {site!r} has axes {self._sites[site]} and no fixed width")
        return math.prod(sizes[axis] for axis in axes)

    def run(
        self,
        tokens: Int[Tensor, "batch pos"] | None = None,
        *,
        capture: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        start: tuple[Site, Float[Tensor, "batch pos d_model"]] | None = None,
        stop: Site | None = None,
        prefix: Prefix | None = None,
        keep_prefix: bool = False,
    ) -> Run:
        """Run the model, from tokens or from a residual-stream activation.

        Args:
            tokens: token ids; left out when `start` is given.
            capture: sites whose activations to return, as they are after any edit.
            edit: functions applied at sites; each gets the activation and returns what replaces it.
            start: a residual-stream site and the activation there; everything before it is skipped.
            stop: a site after which nothing is computed; the logits are then None.
            prefix: keys and values of earlier positions; the positions run come after them. Behind
                a forked one they are alternatives for the next position (`Prefix.forked`).
            keep_prefix: whether to return keys and values of all positions, for a later `prefix`.

        Raises:
            ValueError: an unknown site, one the run cannot reach, too many positions, a prefix of
                other contexts or blocks, alternatives to be kept as a prefix, or both or neither of
                `tokens` and `start`.
        """
        edit = edit or {}
        if (tokens is None) == (start is None):
            raise ValueError("run: give either tokens or start, not both and not neither")
        first = self._entry(*start) if start is not None else 0
        self._check_reached(first if start is not None else None, capture, edit, stop)
        if tokens is not None:
            check_tokens(tokens, self.config.n_vocab)
        entered = tokens if start is None else start[1]
        assert entered is not None
        n_rows, n_pos = entered.shape[:2]
        places = self._places(n_rows, n_pos, prefix, keep_prefix)
        tape = Tape(capture, edit, stop)
        kept: dict[int, KeysValues] = {}
        logits = None
        try:
            x = self._embed(entered, tape, places) if start is None else entered
            for i, site in enumerate(self._stream[first:], first):
                x = tape(site, x)  # [batch pos d_model]
                layer, part = divmod(i, 3)
                block = self.blocks[layer]
                assert isinstance(block, Block)
                if part == 0:
                    x, keys_values = block.attend(x, tape, past(prefix, layer))
                    if keep_prefix:
                        kept[layer] = keys_values
                elif part == 1:
                    x = block.think(x, tape)
            logits = linear(self.ln_final(x, tape), self.W_U)  # [batch pos vocab]
        except Stopped:
            pass
        return Run(logits, tape.acts, Prefix(kept) if keep_prefix else None)

    def _embed(self, tokens: Tensor, tape: Tape, places: slice) -> Tensor:
        embed = tape("hook_embed", self.W_E[tokens])  # [batch pos d_model]
        pos = self.W_pos[places].expand_as(embed)
        return embed + tape("hook_pos_embed", pos)  # [batch pos d_model]

    def _entry(self, site: Site, x: Tensor) -> int:
        """The index in the residual stream at which a run from `x` at `site` begins."""
        check_sites([site], self._sites, "start")
        if site not in self._stream:
            raise ValueError(
                f"start: {site!r} does not cut the model; start at a hook_resid_pre, _mid or _post"
            )
        if x.shape[-1] != self.config.d_model:
            raise ValueError(
                f"start: the activation is {x.shape[-1]} wide, the model {self.config.d_model}"
            )
        return self._stream.index(site)

    def _places(self, n_rows: int, n_pos: int, prefix: Prefix | None, is_kept: bool) -> slice:
        """The positions that a run takes in its contexts, if it fits the prefix and the model."""
        n_before = prefix.n_pos if prefix is not None else 0
        is_forked = prefix is not None and prefix.is_forked
        if prefix is not None and prefix.n_rows != n_rows:
            raise ValueError(
                f"prefix: holds {prefix.n_rows} contexts, but {n_rows} are being run; choose or "
                "repeat them with prefix.rows"
            )
        if is_forked and is_kept:
            raise ValueError(
                "keep_prefix: what runs behind a forked prefix are alternatives for one position, "
                "which are no prefix together; run the one to keep behind the prefix itself"
            )
        if (length := n_before + (1 if is_forked else n_pos)) > self.config.n_ctx:
            raise ValueError(
                f"tokens: {length} positions, but the model's context holds {self.n_ctx}"
            )
        return slice(n_before, length)

    def _check_reached(
        self,
        first: int | None,
        capture: Collection[Site],
        edit: Collection[Site],
        stop: Site | None,
    ) -> None:
        """Refuse sites that the model lacks or that a run between start and stop never reaches."""
        begin = 0 if first is None else self._order[self._stream[first]]
        end = len(self._order)
        for what, sites in (("stop", [stop] if stop else []), ("capture", capture), ("edit", edit)):
            check_sites(sites, self._sites, what)
            for site in sites:
                if not begin <= self._order[site] <= end:
                    raise ValueError(
                        f"{what}: this run never reaches {site!r} between its start and its stop"
                    )
            if what == "stop" and stop:
                end = self._order[stop]


def past(prefix: Prefix | None, layer: int) -> Past | None:
    """The kept keys and values of a block, or None where nothing came before."""
    if prefix is None:
        return None
    if layer not in prefix.layers:
        raise ValueError(
            f"prefix: keys and values of block {layer} are missing; keep them from a run through it"
        )
    return Past(*prefix.layers[layer], prefix.is_forked)


def causal_mask(n_pos: int, n_key: int, device: torch.device) -> Tensor:
    """`[n_pos n_key]`, true where a query may look; the queries are the last of the positions."""
    return torch.ones(n_pos, n_key, dtype=torch.bool, device=device).tril(n_key - n_pos)


def declare_sites(n_layer: int) -> dict[Site, tuple[str, ...]]:
    """Every site of a GPT-2 with `n_layer` blocks and its axes, in the order of a run."""
    stream, per_head = ("batch", "pos", "d_model"), ("batch", "pos", "head", "d_head")
    scale, hidden = ("batch", "pos", "one"), ("batch", "pos", "d_mlp")
    block = {
        "hook_resid_pre": stream,
        "ln1.hook_scale": scale,
        "ln1.hook_normalized": stream,
        "attn.hook_q": per_head,
        "attn.hook_k": per_head,
        "attn.hook_v": per_head,
        "attn.hook_pattern": ("batch", "head", "pos", "key"),
        "attn.hook_z": per_head,
        "attn.hook_result": ("batch", "pos", "head", "d_model"),
        "hook_attn_out": stream,
        "hook_resid_mid": stream,
        "ln2.hook_scale": scale,
        "ln2.hook_normalized": stream,
        "mlp.hook_pre": hidden,
        "mlp.hook_post": hidden,
        "hook_mlp_out": stream,
        "hook_resid_post": stream,
    }
    blocks = {f"blocks.{i}.{site}": axes for i in range(n_layer) for site, axes in block.items()}
    final_norm = {"ln_final.hook_scale": scale, "ln_final.hook_normalized": stream}
    return {"hook_embed": stream, "hook_pos_embed": stream, **blocks, **final_norm}
