"""The demo language model's diet: docstrings, your own text, synthetic text, in fixed shares.

Every context comes from one of the three. Out of every 1,000 consecutive contexts each has its
share, in random order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
from jaxtyping import Int
from torch import Tensor

from sae_kit.data.docs import DocsConfig
from sae_kit.data.packing import as_context, fingerprint_of
from sae_kit.data.synthetic import SyntheticDocuments
from sae_kit.data.text import TextConfig
from sae_kit.data.tokens import Contexts, ContextStream, Split, TokensConfig
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer

_BLOCK = 1000


@final
@dataclass(frozen=True, kw_only=True)
class MixtureConfig(TokensConfig, kind="mixture"):
    """Docstrings, local text and synthetic sentences; the three shares of contexts add up to 1."""

    docs_share: float = 0.45
    """Share of contexts from the docstring corpus."""
    text_share: float = 0.45
    """Share of contexts from `text_paths`."""
    synthetic_share: float = 0.1
    """Share of contexts with repeated random sequences and sentences of the prompt families."""
    text_paths: tuple[str, ...]
    """As `paths` of data=text; may be empty if text_share is 0."""
    text_heldout: tuple[str, ...] = ()
    """As `heldout_paths` of data=text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = (self.docs_share, self.text_share, self.synthetic_share)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"docs_share, text_share, synthetic_share = {shares}: give shares that add up to 1"
            )
        if self.text_share > 0 and not self.text_paths:
            raise ValueError("text_paths: no text named; give files, or set text_share to 0")

    def open(self, tokenizer: Tokenizer, *, split: Split, world: World, seed: int) -> ContextStream:
        """The source at its start; ValueError if a part with a share has no text."""
        contexts = self.contexts(tokenizer, split=split, seed=seed)
        return ContextStream(contexts, world=world, config=self)

    def parts(self) -> dict[str, DocsConfig | TextConfig]:
        """The real text in the mixture, by name, as data sets of their own."""
        size, bos = self.context_size, self.prepend_bos
        parts: dict[str, DocsConfig | TextConfig] = {}
        if self.docs_share > 0:
            parts["docs"] = DocsConfig(context_size=size, prepend_bos=bos)
        if self.text_share > 0:
            parts["text"] = TextConfig(
                paths=self.text_paths,
                heldout_paths=self.text_heldout,
                context_size=size,
                prepend_bos=bos,
            )
        return parts

    def contexts(self, tokenizer: Tokenizer, *, split: Split, seed: int) -> "MixedContexts":
        """The contexts by index."""
        texts = [p.contexts(tokenizer, split=split, seed=seed) for p in self.parts().values()]
        shares = [share for share in (self.docs_share, self.text_share) if share > 0]
        parts: list[Contexts] = [*texts]
        if self.synthetic_share > 0:
            ordinary = texts[-1].tokens.ids if texts else ()
            documents = SyntheticDocuments(tokenizer, seed=seed, split=split, ordinary=ordinary)
            parts.append(
                SyntheticContexts(
                    documents,
                    tokenizer,
                    context_size=self.context_size,
                    prepend_bos=self.prepend_bos,
                )
            )
            shares.append(self.synthetic_share)
        return MixedContexts(parts, shares, seed=seed)


@final
class SyntheticContexts(Contexts):
    """Contexts of synthetic documents; each begins with a whole document, the last one is cut."""

    n_contexts = None
    n_tokens = None

    def __init__(
        self,
        documents: SyntheticDocuments,
        tokenizer: Tokenizer,
        *,
        context_size: int,
        prepend_bos: bool,
    ) -> None:
        self._documents = documents
        self._eot_id = tokenizer.eot_id
        self._bos = tokenizer.eot_id if prepend_bos else None
        self._body = context_size - prepend_bos
        self.fingerprint = fingerprint_of(
            "synthetic", documents.fingerprint, context_size, prepend_bos
        )

    def __getitem__(self, index: int) -> Int[Tensor, " pos"]:
        """Context `index`, made on the spot."""
        ids: list[int] = []
        document = index * self._body  # a context has fewer documents than tokens
        while len(ids) < self._body:
            ids += [*self._documents[document], self._eot_id]
            document += 1
        return as_context(np.array(ids[: self._body]), self._bos)


@final
class MixedContexts(Contexts):
    """Contexts of several kinds in fixed shares; every kind is read in its own order."""

    n_contexts = None
    n_tokens = None

    def __init__(self, parts: Sequence[Contexts], shares: Sequence[float], *, seed: int) -> None:
        self._parts = parts
        edges = np.rint(np.cumsum([0.0, *shares]) * _BLOCK).astype(int)
        self._counts = np.diff(edges)
        self._seed = seed
        self._block = lru_cache(maxsize=2)(self._make_block)
        prints = [part.fingerprint for part in parts]
        self.fingerprint = fingerprint_of("mixture", prints, self._counts.tolist(), seed)

    def __getitem__(self, index: int) -> Int[Tensor, " pos"]:
        """Context `index`."""
        part, place = self._place(index)
        return self._parts[part][place]

    def repeats(self, index: int) -> bool:
        """Whether context `index` is one of its part's again; each part has epochs of its own."""
        part, place = self._place(index)
        return self._parts[part].repeats(place)

    def _place(self, index: int) -> tuple[int, int]:
        """The part that context `index` comes from, and its number there."""
        block, step = divmod(index, _BLOCK)
        part, place = (int(x) for x in self._block(block)[step])
        return part, block * int(self._counts[part]) + place

    def _make_block(self, block: int) -> np.ndarray:
        """[_BLOCK 2]: for each context which part it comes from, and its place among those."""
        pairs = [(part, place) for part, n in enumerate(self._counts) for place in range(n)]
        return np.random.default_rng([self._seed, block]).permutation(pairs)
