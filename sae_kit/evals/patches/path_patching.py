"""Path patching: the effect that one component has through the input of another.

A receiver's input is the residual stream, a sum over senders: the embedding, heads, MLPs.
Exchanging one term of it changes the receiver as if its sender had changed for it alone:

- direct: in <- in + (out of the sender, exchanged - as it was); everything between is frozen.
- total: the sender is exchanged, and everything between sender and receiver is computed anew; the
  receiver gets its input from there.

Either way the receiver's output then goes through the rest of the run that is patched, in which
nothing else has changed. Receivers are a head's queries, keys or values ("a3.2.q"), an MLP ("m3"),
and the final stream ("logits"). Source: Wang et al. 2022 (2211.00593), Goldowsky-Dill et al. 2023
(2304.05969).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.evals.patches.scenes import Scene
from sae_kit.evals.patches.units import HeadZ, Units, WholeMLP
from sae_kit.models.gpt2 import GPT2, Block
from sae_kit.models.hooks import Site

EMBEDDING = "embed"
"""The name of what enters block 0."""


@final
@dataclass(frozen=True, kw_only=True)
class Receiver:
    """Whose input is exchanged."""

    name: str
    reads: Site
    """The residual-stream site that is its input."""
    site: Site
    """Where its value is."""
    index: tuple[Any, ...]
    """Which part of the activation there."""
    n_blocks_before: int
    """Blocks whose parts all send to it."""
    hears_attention: bool
    """Whether the heads of the block behind these do, too."""


def receivers(model: GPT2) -> dict[str, Receiver]:
    """Every receiver of a model by name, in the order of a run."""
    everywhere = (slice(None), slice(None))
    found: list[Receiver] = []
    for i in range(model.config.n_layer):
        block = f"blocks.{i}"
        found += [
            Receiver(
                name=f"a{i}.{head}.{part}",
                reads=f"{block}.hook_resid_pre",
                site=f"{block}.attn.hook_{part}",
                index=(*everywhere, head),
                n_blocks_before=i,
                hears_attention=False,
            )
            for head in range(model.config.n_head)
            for part in "qkv"
        ]
        found.append(
            Receiver(
                name=f"m{i}",
                reads=f"{block}.hook_resid_mid",
                site=f"{block}.hook_mlp_out",
                index=everywhere,
                n_blocks_before=i,
                hears_attention=True,
            )
        )
    end = f"blocks.{model.config.n_layer - 1}.hook_resid_post"
    found.append(
        Receiver(
            name="logits",
            reads=end,
            site=end,
            index=everywhere,
            n_blocks_before=model.config.n_layer,
            hears_attention=False,
        )
    )
    return {receiver.name: receiver for receiver in found}


def check_receivers(names: Sequence[str], model: GPT2) -> None:
    """Refuse names that no receiver has, or one twice.

    Raises:
        ValueError: names the nearest.
    """
    known = receivers(model)
    for name in names:
        if name not in known:
            close = " or ".join(nearest(name, known) or ["logits", "a0.0.q", "m0"])
            raise ValueError(f"receivers: the model has no receiver {name!r}; give {close}")
    if len(set(names)) < len(names):
        raise ValueError(f"receivers: {list(names)} has one twice; give each once")


@final
class Senders:
    """Everything that writes to the residual stream, in one scene."""

    def __init__(self, scene: Scene) -> None:
        stage = scene.stage
        self.scene = scene
        self._heads = HeadZ.of(stage.model, stage.pairs, {})
        self._mlps = WholeMLP.of(stage.model, stage.pairs, {})
        self._embedding = _Embedding()
        self._changes: dict[str, Tensor] = {}

    def of(self, receiver: Receiver) -> list[str]:
        """Those that a receiver hears, in the order of a run."""
        n = receiver.n_blocks_before
        names = [EMBEDDING]
        for heads, mlps in zip(self._heads[:n], self._mlps[:n], strict=True):
            names += [*heads.names, *mlps.names]
        return names + (list(self._heads[n].names) if receiver.hears_attention else [])

    def units(self, name: str) -> tuple[Units, int]:
        """A sender as a unit that can be exchanged."""
        for units in (self._embedding, *self._heads, *self._mlps):
            if name in units.names:
                return units, units.names.index(name)
        raise KeyError(name)

    def change(self, name: str) -> Float[Tensor, "pairs pos d_model"]:
        """What exchanging a sender adds to the stream."""
        if name not in self._changes:
            units, unit = self.units(name)
            act = self.scene.base.acts[units.site]
            self._changes[name] = self._written(units, self.scene.source(units) - act, unit)
        return self._changes[name]

    def _written(self, units: Units, change: Tensor, unit: int) -> Tensor:
        """What a change of a unit's activation writes."""
        if not isinstance(units, HeadZ):
            return change
        block = self.scene.stage.model.blocks[self._heads.index(units)]
        assert isinstance(block, Block)
        W_O = rearrange(block.attn.W_O, "(head d_head) d -> head d_head d", head=len(units))[unit]
        return einsum(change[:, :, unit], W_O, "pairs pos d_head, d_head d -> pairs pos d")


@final
class _Embedding(Units):
    """Tokens and positions: what enters block 0."""

    word = EMBEDDING

    def __init__(self) -> None:
        super().__init__("blocks.0.hook_resid_pre", [EMBEDDING])

    @classmethod
    def of(cls, model: GPT2, pairs: Any, saes: Any) -> list[Units]:
        """See Units."""
        return [cls()]

    def index(self, unit: int) -> tuple[Any, ...]:
        """See Units."""
        return (slice(None),)


class Path(ABC):
    """What a receiver gets to see when a sender is exchanged."""

    word: ClassVar[str]

    @abstractmethod
    def values(
        self, senders: Senders, names: Sequence[str], receiver: Receiver
    ) -> Float[Tensor, "rows *axes"]:
        """The activation at the receiver's site for each of the senders, `[senders * pairs ...]`.

        Only the receiver's own part of it counts.
        """


@final
class Direct(Path):
    """Straight through the residual stream."""

    word = "direct"

    def values(
        self, senders: Senders, names: Sequence[str], receiver: Receiver
    ) -> Float[Tensor, "rows *axes"]:
        """See Path."""
        stream = senders.scene.base.acts[receiver.reads]
        x = torch.cat([stream + senders.change(name) for name in names])
        return read(senders.scene, receiver, x)


@final
class Total(Path):
    """By all paths from the sender to the receiver."""

    word = "total"

    def values(
        self, senders: Senders, names: Sequence[str], receiver: Receiver
    ) -> Float[Tensor, "rows *axes"]:
        """See Path."""
        scene, found = senders.scene, []
        for name in names:
            units, unit = senders.units(name)
            act, source = scene.base.acts[units.site], scene.source(units)
            start = scene.stage.entry(units.site)
            run = scene.stage.model.run(
                start=(start, scene.base.acts[start]),
                edit={units.site: _constant(units.patched(act, source, [unit]))},
                capture=[receiver.site],
                stop=receiver.site,
            )
            found.append(run.acts[receiver.site])
        return torch.cat(found)


PATHS: dict[str, type[Direct] | type[Total]] = {path.word: path for path in (Direct, Total)}
"""By their words."""


def effects(
    senders: Senders, receiver: Receiver, path: Path
) -> Iterator[tuple[str, Float[Tensor, "pairs vocab"]]]:
    """Every sender that a receiver hears, with the logits when it is exchanged for it alone."""
    scene, names = senders.scene, senders.of(receiver)
    n_at_once = scene.n_at_once()
    for i in range(0, len(names), n_at_once):
        some = names[i : i + n_at_once]
        logits = received(scene, receiver, path.values(senders, some, receiver))
        yield from zip(some, logits.split(len(scene.stage.pairs)), strict=True)


def read(
    scene: Scene, receiver: Receiver, x: Float[Tensor, "rows pos d_model"]
) -> Float[Tensor, "rows *axes"]:
    """The activation at a receiver's site when the stream it reads is `x`."""
    run = scene.stage.model.run(
        start=(receiver.reads, x), capture=[receiver.site], stop=receiver.site
    )
    return run.acts[receiver.site]


def received(
    scene: Scene, receiver: Receiver, values: Float[Tensor, "rows *axes"]
) -> Float[Tensor, "rows vocab"]:
    """The logits when nothing but a receiver's own part of an activation is as in `values`."""
    own = scene.base.acts[receiver.site]
    own = own.repeat(len(values) // len(own), *[1] * (own.ndim - 1))
    x = own.clone()
    x[receiver.index] = values[receiver.index]
    changed = scene.stage.changed(receiver.site, x, own)
    if not changed.any():
        return scene.base.logits.repeat(len(x) // len(scene.base.logits), 1)
    first = int(changed.nonzero()[0])
    return scene.run_with(receiver.site, scene.stage.since(receiver.site, x, first), first=first)


def _constant(act: Tensor) -> Any:
    return lambda _: act
