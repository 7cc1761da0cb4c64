"""Text on this machine: tokenised once into a flat file, then cut into contexts by index.

The flat file is one array of token ids, every document followed by the end-of-text token. It lies
in the cache folder under a name that changes with the text and the tokenizer, and is memory-mapped,
so a corpus larger than memory is no trouble. Of several processes that want the same text, those of
one torchrun or of a sweep, one tokenises it while the others wait.

Contexts are consecutive pieces of that array, visited in a new random order every epoch. The tail
that does not fill a context is the only text never seen.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from sae_kit.data.tokens import Contexts, cache_folder
from sae_kit.files import taking_turns
from sae_kit.models.tokenizer import END_OF_TEXT, Tokenizer

_PIECE_CHARS = 1 << 16
_BATCH_PIECES = 64
# Where a long text may be cut without changing a token: GPT-2's pre-tokenisation never looks across
# the boundary before the last white-space character of a run, unless an end of text follows.
_SAFE_CUT = re.compile(rf"\n(?!{re.escape(END_OF_TEXT)})(?=\S)")

_log = logging.getLogger(__name__)


def fingerprint_of(*parts: object) -> str:
    """A short hash of JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@final
@dataclass(frozen=True)
class FlatTokens:
    """A tokenised corpus."""

    name: str
    """What the user knows the text by, for messages."""
    ids: np.ndarray
    """All token ids [n_tokens], unsigned 16-bit or int32; read-only and not in memory."""
    fingerprint: str
    """Equal for equal text and tokenizer."""


def tokenise_once(
    documents: Iterable[str], *, content: str, name: str, tokenizer: Tokenizer
) -> FlatTokens:
    """Tokenise `documents`, each followed by the end-of-text token, unless a kept copy is found.

    `content` identifies the text (its hash): with the same content and tokenizer the kept file is
    opened and `documents` is not read at all. Another process that is at it is waited for.
    """
    key = fingerprint_of("tokens", content, tokenizer.fingerprint)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32)
    path = cache_folder() / "tokens" / f"{key}.{dtype.name}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with taking_turns(path):
            if not path.is_file():
                _log.info("tokenising %s (once; kept as %s)", name, path)
                _write(path, documents, name, tokenizer, dtype)
    empty = path.stat().st_size == 0  # which cannot be mapped
    ids = np.zeros(0, dtype) if empty else np.memmap(path, dtype=dtype, mode="r")
    return FlatTokens(name, ids, key)


@final
class PackedContexts(Contexts):
    """Contexts cut from one array of token ids, in a random order that changes every epoch."""

    def __init__(
        self, tokens: FlatTokens, *, context_size: int, bos: int | None, seed: int
    ) -> None:
        """`bos`: the token put in front of every context, None for no such token.

        Raises ValueError if the text does not fill one context.
        """
        self._body = context_size - (bos is not None)
        n_tokens = len(tokens.ids)
        if n_tokens < self._body:
            raise ValueError(
                f"{tokens.name}: {n_tokens} tokens of text do not fill one context of "
                f"{context_size}; give more text or a smaller data.context_size"
            )
        if seed < 0:
            raise ValueError(f"seed={seed}: give 0 or more")
        self.tokens = tokens
        self._bos = bos
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._epoch_order)
        self.n_contexts: int = n_tokens // self._body
        self.n_tokens: int = n_tokens
        self.fingerprint = fingerprint_of("packed", tokens.fingerprint, context_size, bos, seed)

    def __getitem__(self, index: int) -> Int[Tensor, " pos"]:
        """Context `index`; epoch `index // n_contexts`."""
        epoch, step = divmod(index, self.n_contexts)
        start = int(self._order(epoch)[step]) * self._body
        return as_context(self.tokens.ids[start : start + self._body], self._bos)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self.n_contexts)


def as_context(ids: np.ndarray, bos: int | None) -> Int[Tensor, " pos"]:
    """int64 tensor of `ids`, with `bos` in front if there is one."""
    start = 0 if bos is None else 1
    context = torch.empty(start + len(ids), dtype=torch.int64)
    context[:start] = bos or 0
    context[start:] = torch.from_numpy(ids.astype(np.int64))
    return context


def pieces_of(text: str, size: int = _PIECE_CHARS) -> Iterator[str]:
    """Pieces of about `size` characters that together tokenise as the whole text does."""
    start = 0
    while len(text) - start > size:
        cut = _SAFE_CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _write(
    path: Path, documents: Iterable[str], name: str, tokenizer: Tokenizer, dtype: np.dtype
) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            tqdm(desc=f"tokenising {name}", unit="char", unit_scale=True, disable=None) as progress,
        ):
            for ids, n_chars in _encoded(documents, tokenizer):
                file.write(np.asarray(ids, dtype).tobytes())
                progress.update(n_chars)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _encoded(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """Token ids and number of characters, piece by piece; the tokenizer gets many at a time."""
    batch: list[tuple[str, bool]] = []
    for document in documents:
        pieces = list(pieces_of(document))
        batch += [(piece, i == len(pieces) - 1) for i, piece in enumerate(pieces)]
        if len(batch) >= _BATCH_PIECES:
            yield from _encode(batch, tokenizer)
            batch = []
    yield from _encode(batch, tokenizer)


def _encode(batch: list[tuple[str, bool]], tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    encoded = tokenizer.encode_batch([piece for piece, _ in batch])
    for (piece, is_last), ids in zip(batch, encoded, strict=True):
        yield [*ids, tokenizer.eot_id] if is_last else ids, len(piece)
