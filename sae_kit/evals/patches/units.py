"""The units that are patched: parts of a model whose activations can be exchanged one by one.

- residual, attn_out, mlp_out   the residual stream, an attention layer's or an MLP's output, at one
                                position: the heat maps of layer by position. Row l of residual is
                                the stream that enters block l; the last row is what leaves the last
- mlp                           an MLP's output, at all positions
- head_z, head_q, head_k, head_v, head_pattern
                                a head's output before W_O, its queries, keys, values, or where it
                                attends, at all positions
- neuron                        a neuron of an MLP, after its nonlinearity, at all positions
- sae                           what an SAE reconstructs, and its error, at all positions
- latent                        a latent of an SAE, at all positions; the error stays as it is

What is exchanged is a unit's value: the activation itself, or latents and the error that SAEs make
of it. Neurons and latents are many: those to patch are chosen by attribution (`is_screened`).

Names of components are "a3.2" (head 2 of block 3) and "m3" (the MLP of block 3).
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.data.pairs import Pairs
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE
from sae_kit.sae.code import SparseCode
from sae_kit.sae.normalization import denormalise

SAEs = Mapping[Site, SAE]


class Units(ABC):
    """All units of one kind at one site."""

    word: ClassVar[str]
    is_screened: ClassVar[bool] = False
    """Whether they are so many that attribution chooses which to patch."""
    needs_saes: ClassVar[bool] = False

    def __init__(self, site: Site, names: Sequence[str]) -> None:
        self.site, self.names = site, tuple(names)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    @abstractmethod
    def of(cls, model: GPT2, pairs: Pairs, saes: SAEs) -> "list[Units]":
        """Those of a model, site by site in its order; every site has as many unless screened."""

    def value(self, act: Float[Tensor, "pairs *axes"]) -> Float[Tensor, "pairs *value"]:
        """The values of all units, given the activation at the site."""
        return act

    @abstractmethod
    def index(self, unit: int) -> tuple[Any, ...]:
        """Where a unit's value lies among the values."""

    def patched(
        self,
        act: Float[Tensor, "pairs *axes"],
        source: Float[Tensor, "pairs *value"],
        units: Sequence[int],
    ) -> Float[Tensor, "pairs *axes"]:
        """The activation with the values of some units taken from `source`."""
        patched = act.clone()
        for unit in units:
            index = self.index(unit)
            patched[index] = source[index]
        return patched

    def gradient(
        self, gradient: Float[Tensor, "pairs *axes"], act: Float[Tensor, "pairs *axes"]
    ) -> Float[Tensor, "pairs *value"]:
        """The gradient in the values, given that in the activation `act`."""
        return gradient

    @final
    def attribution(
        self,
        gradient: Float[Tensor, "pairs *axes"],
        act: Float[Tensor, "pairs *axes"],
        source: Float[Tensor, "pairs *value"],
    ) -> Float[Tensor, "units pairs"]:
        """The first-order change of what the gradient is of, when a unit's value is exchanged."""
        product = (source - self.value(act)) * self.gradient(gradient, act)
        parts = (product[self.index(unit)].flatten(1).sum(1) for unit in range(len(self)))
        return torch.stack([part.double() for part in parts])


# --- at one position ------------------------------------------------------------------------------


class _AtPositions(Units):
    """One unit for each column of the pairs."""

    def __init__(self, site: Site, layer: str, pairs: Pairs) -> None:
        super().__init__(site, [f"{layer}@{name}" for name in unique_names(pairs)])
        self._rows = torch.arange(len(pairs), device=pairs.clean.device)
        self._at = [column.at for column in pairs.columns]

    @final
    def index(self, unit: int) -> tuple[Any, ...]:
        """See Units."""
        return self._rows, self._at[unit]


@final
class Residual(_AtPositions):
    """The stream before every block and behind the last."""

    word = "residual"

    @classmethod
    def of(cls, model: GPT2, pairs: Pairs, saes: SAEs) -> list[Units]:
        """See Units."""
        n = model.config.n_layer
        sites = [f"blocks.{i}.hook_resid_pre" for i in range(n)]
        sites.append(f"blocks.{n - 1}.hook_resid_post")
        return [cls(site, str(i), pairs) for i, site in enumerate(sites)]


class _LayerOut(_AtPositions):
    """What the layers of a kind write."""

    hook: ClassVar[str]
    """The site, within a block."""
    letter: ClassVar[str]
    """Before a layer's number, in the names of units."""

    @final
    @classmethod
    def of(cls, model: GPT2, pairs: Pairs, saes: SAEs) -> list[Units]:
        """See Units."""
        layers = range(model.config.n_layer)
        return [cls(f"blocks.{i}.{cls.hook}", f"{cls.letter}{i}", pairs) for i in layers]


@final
class AttentionOut(_LayerOut):
    """What attention layers write."""

    word, hook, letter = "attn_out", "hook_attn_out", "a"


@final
class MLPOut(_LayerOut):
    """What MLPs write."""

    word, hook, letter = "mlp_out", "hook_mlp_out", "m"


# --- at all positions -----------------------------------------------------------------------------


@final
class WholeMLP(Units):
    """One unit a layer."""

    word = "mlp"

    @classmethod
    def of(cls, model: GPT2, pairs: Pairs, saes: SAEs) -> list[Units]:
        """See Units."""
        layers = range(model.config.n_layer)
        return [cls(f"blocks.{i}.hook_mlp_out", [f"m{i}"]) for i in layers]

    def index(self, unit: int) -> tuple[Any, ...]:
        """See Units."""
        return (slice(None),)


class _OfHeads(Units):
    """One unit for each head of a layer."""

    _hook: ClassVar[str]
    _axis: ClassVar[int] = 2
    _suffix: ClassVar[str] = ""

    @classmethod
    def of(cls, model: GPT2, pairs: Pairs, saes: SAEs) -> list[Units]:
        """See Units."""
        layers, heads = range(model.config.n_layer), range(model.config.n_head)
        return [
            cls(f"blocks.{i}.attn.{cls._hook}", [f"a{i}.{h}{cls._suffix}" for h in heads])
            for i in layers
        ]

    @final
    def index(self, unit: int) -> tuple[Any, ...]:
        """See Units."""
        return (*[slice(None)] * self._axis, unit)


@final
class HeadZ(_OfHeads):
    """What heads found, before W_O."""

    word, _hook = "head_z", "hook_z"


@final
class HeadQ(_OfHeads):
    """Queries."""

    word, _hook, _suffix = "head_q", "hook_q", ".q"


@final
class HeadK(_OfHeads):
    """Keys."""

    word, _hook, _suffix = "head_k", "hook_k", ".k"


@final
class HeadV(_OfHeads):
    """Values."""

    word, _hook, _suffix = "head_v", "hook_v", ".v"


@final
class HeadPattern(_OfHeads):
    """Where heads attend."""

    word, _hook, _suffix, _axis = "head_pattern", "hook_pattern", ".pattern", 1


@final
class Neurons(Units):
    """One unit for each neuron of an MLP."""

    word = "neuron"
    is_screened = True

    @classmethod
    def of(cls, model: GPT2, pairs: Pairs, saes: SAEs) -> list[Units]:
        """See Units."""
        layers, neurons = range(model.config.n_layer), range(model.config.d_mlp)
        return [cls(f"blocks.{i}.mlp.hook_post", [f"m{i}.{n}" for n in neurons]) for i in layers]

    def index(self, unit: int) -> tuple[Any, ...]:
        """See Units."""
        return slice(None), slice(None), unit


# --- of SAEs --------------------------------------------------------------------------------------


@final
class SAEParts(Units):
    """Two units a site: the reconstruction and the error, whose sum is the activation."""

    word = "sae"
    needs_saes = True

    def __init__(self, site: Site, sae: SAE) -> None:
        super().__init__(site, [f"{site}/{part}" for part in ("reconstruction", "error")])
        self._sae = sae

    @classmethod
    def of(cls, model: GPT2, pairs: Pairs, saes: SAEs) -> list[Units]:
        """See Units."""
        return [cls(site, saes[site]) for site in model.sites() if site in saes]

    def value(self, act: Float[Tensor, "pairs *axes"]) -> Float[Tensor, "pairs *value"]:
        """`[pairs 2 pos width]`."""
        flat = act.flatten(2)
        recon = self._sae(flat)
        return torch.stack([recon, flat - recon], 1)

    def index(self, unit: int) -> tuple[Any, ...]:
        """See Units."""
        return slice(None), unit

    def patched(self, act: Tensor, source: Tensor, units: Sequence[int]) -> Tensor:
        """See Units."""
        value = self.value(act)
        change = sum((source[:, unit] - value[:, unit] for unit in units), torch.zeros(()))
        return act + change.view(act.shape)

    def gradient(self, gradient: Tensor, act: Tensor) -> Tensor:
        """See Units: the same for both, since they are added."""
        return gradient.flatten(2)[:, None]


@final
class Latents(Units):
    """One unit for each latent that is ever active on the pairs, clean or corrupted."""

    word = "latent"
    is_screened = True
    needs_saes = True

    def __init__(self, site: Site, sae: SAE, latents: Int[Tensor, " active"]) -> None:
        super().__init__(site, [f"{site}/{i}" for i in latents.tolist()])
        self._sae, self.latents = sae, latents
        self._directions = sae.W_dec[latents]

    @classmethod
    def of(cls, model: GPT2, pairs: Pairs, saes: SAEs) -> list[Units]:
        """See Units."""
        order = [site for site in model.sites() if site in saes]
        fired = {site: torch.zeros(saes[site].d_sae, dtype=torch.bool) for site in order}
        for tokens in (pairs.clean, pairs.corrupt):
            acts = model.run(tokens, capture=order, stop=order[-1]).acts
            for site in order:
                fired[site] |= _fired(saes[site], acts[site]).cpu()
        return [
            cls(site, saes[site], fired[site].nonzero()[:, 0].to(model.device)) for site in order
        ]

    def value(self, act: Float[Tensor, "pairs *axes"]) -> Float[Tensor, "pairs *value"]:
        """`[pairs pos active]`."""
        code = self._sae.natural_code(act.flatten(2).flatten(0, 1))
        if isinstance(code, SparseCode):
            return code.select(self.latents).unflatten(0, act.shape[:2])
        return code[:, self.latents].unflatten(0, act.shape[:2])

    def index(self, unit: int) -> tuple[Any, ...]:
        """See Units."""
        return slice(None), slice(None), unit

    def patched(self, act: Tensor, source: Tensor, units: Sequence[int]) -> Tensor:
        """See Units."""
        change = (source - self.value(act))[..., list(units)] @ self._directions[list(units)]
        return act + (change * self._scale(act)).view(act.shape)

    def gradient(self, gradient: Tensor, act: Tensor) -> Tensor:
        """See Units."""
        return (gradient.flatten(2) * self._scale(act)) @ self._directions.T

    def _scale(self, act: Tensor) -> Tensor:
        """What a row's decoder directions are multiplied by, where the SAE normalises rows."""
        kind, rows = self._sae.normalization, act.flatten(2).flatten(0, 1)
        one = torch.ones_like(rows)
        scale = denormalise(kind, one, rows) - denormalise(kind, torch.zeros_like(one), rows)
        return scale[:, :1].unflatten(0, act.shape[:2])


def _fired(sae: SAE, act: Tensor) -> Bool[Tensor, " d_sae"]:
    code = sae.natural_code(act.flatten(2).flatten(0, 1))
    return code.fired() if isinstance(code, SparseCode) else (code > 0).any(0)


# --- all of them ----------------------------------------------------------------------------------

KINDS: dict[str, type[Units]] = {
    kind.word: kind
    for kind in (
        Residual,
        AttentionOut,
        MLPOut,
        WholeMLP,
        HeadZ,
        HeadQ,
        HeadK,
        HeadV,
        HeadPattern,
        Neurons,
        SAEParts,
        Latents,
    )
}
"""By the word that a config names them by."""


def check_kinds(words: Sequence[str]) -> None:
    """Refuse words that name no kind, or the same twice.

    Raises:
        ValueError: names the nearest.
    """
    for word in words:
        if word not in KINDS:
            close = " or ".join(nearest(word, KINDS) or KINDS)
            raise ValueError(f"units: {word!r} is unknown; give {close}")
    if len(set(words)) < len(words):
        raise ValueError(f"units: {list(words)} has one twice; give each once")


def unique_names(pairs: Pairs) -> list[str]:
    """The names of the columns, those that come twice with their position."""
    times = Counter(column.name for column in pairs.columns)
    return [
        column.name if times[column.name] == 1 else f"{column.name}.{i}"
        for i, column in enumerate(pairs.columns)
    ]
