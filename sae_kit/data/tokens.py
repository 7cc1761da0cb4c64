"""Token sources: endless streams of contexts, deterministic, sharded by rank and exactly resumable.

A config (`TokensConfig`, chosen by `kind`) opens a `TokenSource`. Text that is on this machine is
tokenised once (`packing.py`) and then read by index, so a position is a single integer; a set on
the hub is streamed (`hub.py`) and its position is the client's own plus the tokens left over.

Documents are joined by the end-of-text token and packed without padding, so a context may begin and
end within a document.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from sae_kit.config import Family
from sae_kit.data.grammar import Split
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer


class TokenSource(ABC):
    """An endless iterator of contexts: int64 tensors [context_size].

    Deterministic in (config, tokenizer, seed, world). `state_dict` is the exact position: a source
    that loads it goes on as if it had never stopped.
    """

    config: "TokensConfig | None"
    """What it was opened by; None for one that was put together by hand."""
    context_size: int
    """Tokens in a context, BOS included."""
    n_contexts: int | None
    """Distinct contexts before they repeat, over all ranks; None if endless or not known."""
    n_tokens: int | None
    """Tokens of text in an epoch, over all ranks, end-of-text tokens included; None likewise."""

    @final
    def __iter__(self) -> Iterator[Int[Tensor, " pos"]]:
        return self

    @abstractmethod
    def __next__(self) -> Int[Tensor, " pos"]:
        """The next context of this rank."""

    @property
    @abstractmethod
    def repeats(self) -> bool:
        """Whether the last context was, wholly or in part, handed out before, to whatever rank."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The position, as tensors and JSON values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position. Raises ValueError if it belongs to other data or another world."""

    @abstractmethod
    def continue_from(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on behind the positions that all processes of a run had, of another number.

        Raises:
            ValueError: they belong to other data, or cannot be shared out anew.
        """


@dataclass(frozen=True, kw_only=True)
class TokensConfig(Family, ABC, tag="kind", package="sae_kit.data"):
    """What text is read, and how it is cut into contexts."""

    context_size: int = 256
    """Tokens in a context, BOS included; at most the model's n_ctx."""
    prepend_bos: bool = True
    """Whether every context begins with the end-of-text token, GPT-2's BOS."""

    def __post_init__(self) -> None:
        if self.context_size < 2:
            raise ValueError(f"context_size={self.context_size}: a context has at least 2 tokens")

    @abstractmethod
    def open(self, tokenizer: Tokenizer, *, split: Split, world: World, seed: int) -> TokenSource:
        """The source at its start. Raises ValueError if there is no text, naming what was searched.

        Text on this machine is tokenised here, unless a kept copy is found.
        """


def take(source: TokenSource, n: int) -> Int[Tensor, "n pos"]:
    """The next `n` contexts of `source`, as one int64 tensor."""
    return torch.stack([next(source) for _ in range(n)])


class Contexts(ABC):
    """Contexts by number, without end: the part of a source that has no position."""

    n_contexts: int | None
    """Distinct contexts in an epoch; None if they never repeat."""
    n_tokens: int | None
    """Tokens of text in an epoch; None likewise."""
    fingerprint: str
    """Equal for equal contexts; a saved position is only good for the same fingerprint."""

    @abstractmethod
    def __getitem__(self, index: int) -> Int[Tensor, " pos"]:
        """Context `index` >= 0, int64."""

    def repeats(self, index: int) -> bool:
        """Whether context `index` is one of an earlier epoch again.

        Here for contexts that all repeat at once, or never.
        """
        return self.n_contexts is not None and index >= self.n_contexts


@final
class ContextStream(TokenSource):
    """Reads `Contexts` in order, every rank its own: rank r of R takes r, r + R, r + 2R, ..."""

    def __init__(
        self, contexts: Contexts, *, world: World, config: TokensConfig | None = None
    ) -> None:
        self.config = config
        self._contexts = contexts
        self._world = world
        self._position = 0
        self.context_size = len(contexts[0])
        self.n_contexts = contexts.n_contexts
        self.n_tokens = contexts.n_tokens

    def __next__(self) -> Int[Tensor, " pos"]:
        context = self._contexts[self._index(self._position)]
        self._position += 1
        return context

    @property
    def repeats(self) -> bool:
        """See TokenSource.repeats."""
        return self._position > 0 and self._contexts.repeats(self._index(self._position - 1))

    def _index(self, position: int) -> int:
        return position * self._world.size + self._world.rank

    def state_dict(self) -> dict[str, Any]:
        """The number of contexts this rank has read, and what they were read from."""
        return {
            "position": self._position,
            "world_size": self._world.size,
            "contexts": self._contexts.fingerprint,
        }

    def continue_from(self, states: Sequence[dict[str, Any]]) -> None:
        """See TokenSource.continue_from."""
        self._check_contexts(states[0])
        furthest = max(state["position"] for state in states) * states[0]["world_size"]
        self._position = -(-furthest // self._world.size)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position. Raises ValueError if text, tokenizer, seed or world have changed."""
        self._check_contexts(state)
        check_world(state["world_size"], self._world)
        self._position = state["position"]

    def _check_contexts(self, state: dict[str, Any]) -> None:
        if state["contexts"] != self._contexts.fingerprint:
            raise ValueError(
                "the saved data position belongs to other contexts: the text, the tokenizer, the "
                "seed or the data config has changed since; start a new run"
            )


def check_world(saved_size: int, world: World) -> None:
    """ValueError if a position was saved by a run with another number of processes."""
    if saved_size != world.size:
        raise ValueError(
            f"the saved data position is of a run with {saved_size} processes, this one has "
            f"{world.size}; resume with the same number"
        )


def check_context(context_size: int, n_ctx: int) -> None:
    """ValueError if contexts are longer than the model's `n_ctx`."""
    if context_size > n_ctx:
        raise ValueError(
            f"context_size={context_size} is longer than the model's context of {n_ctx} tokens; "
            f"set data.context_size={n_ctx} or less"
        )


def cache_folder() -> Path:
    """`SAE_KIT_CACHE` if set, else `sae_kit` in `XDG_CACHE_HOME`, which is ~/.cache if not set.

    Everything in it can be deleted at any time; it is made again when needed.
    """
    chosen = os.environ.get("SAE_KIT_CACHE")
    if chosen:
        return Path(chosen)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "sae_kit"
