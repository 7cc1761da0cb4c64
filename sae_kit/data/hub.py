"""Text or token ids streamed from a data set on the Hugging Face hub, never downloaded whole.

The position is the `datasets` client's own plus the tokens read but not yet handed out, so resuming
does not read the set from its start where its files allow a seek. Several processes share the set
out among themselves document by document (or file by file, where the files divide evenly), so each
packs its own contexts; documents come in the set's order. Blank texts and nulls are left out.
"""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_kit.data.packing import as_context, fingerprint_of
from sae_kit.data.tokens import Split, TokensConfig, TokenSource, check_world
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer

_READ_AT_ONCE = 32  # documents; enough for the tokenizer to use its threads


@runtime_checkable
class Rows(Protocol):
    """The part of `datasets.IterableDataset` that is used."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@final
@dataclass(frozen=True, kw_only=True)
class HubConfig(TokensConfig, kind="hub"):
    """A data set on the hub, of texts or of ready-made token ids."""

    repo: str
    """Hub id, such as Skylion007/openwebtext."""
    name: str | None = None
    """Configuration of the set, if it has several."""
    revision: str | None = None
    """Branch, tag or commit; none: the main branch."""
    text_field: str | None = "text"
    """The column that holds a document's text; null if the set is tokenised."""
    tokens_field: str | None = None
    """The column that holds token ids, of this model's tokenizer; rows are joined as they are."""
    train_split: str = "train"
    """The set's own name of the split to train on."""
    heldout_split: str | None = None
    """The set's own name of the heldout split; null: its first `heldout_documents` are held out."""
    heldout_documents: int = 1000
    """Documents (rows) set aside at the start of the train split if there is no heldout split; of
    every process's own files, where files are shared out.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text_field is None) == (self.tokens_field is None):
            raise ValueError(
                f"text_field={self.text_field!r}, tokens_field={self.tokens_field!r}: give exactly "
                "one of the two, null for the other"
            )
        if self.heldout_split is None and self.heldout_documents < 1:
            raise ValueError(
                f"heldout_documents={self.heldout_documents}: hold out at least 1, or name a "
                "heldout_split"
            )

    def open(self, tokenizer: Tokenizer, *, split: Split, world: World, seed: int) -> "HubStream":
        """The source at its start; the set's order is kept, so `seed` has no part in it.

        Raises ValueError if the hub, the set or the column cannot be had.
        """
        return HubStream(
            lambda: self._rows(split, world),
            tokenizer,
            config=self,
            world=world,
            fingerprint=fingerprint_of("hub", repr(self), split, tokenizer.fingerprint),
        )

    def _rows(self, split: Split, world: World) -> Rows:
        import datasets
        from datasets.distributed import split_dataset_by_node

        own_split = self.train_split if split == "train" else self.heldout_split
        try:
            rows = datasets.load_dataset(
                self.repo,
                self.name,
                split=own_split or self.train_split,
                revision=self.revision,
                streaming=True,
            )
        except Exception as error:  # the clients raise their own, OSError, httpx's and more
            raise _unreachable(self.repo, error) from error
        if rows.column_names is not None:
            field = str(self.text_field or self.tokens_field)  # one of which is given
            if field not in rows.column_names:
                raise _no_column(self.repo, field, rows.column_names)
            rows = rows.select_columns([field])
        if world.size > 1:
            # Before documents are set aside: afterwards, where files are shared out, the client
            # would have each process set aside a part of them, and train on the rest.
            rows = split_dataset_by_node(rows, rank=world.rank, world_size=world.size)
        if self.heldout_split is None:
            n = self.heldout_documents
            rows = rows.skip(n) if split == "train" else rows.take(n)
        return rows


@final
class HubStream(TokenSource):
    """Packs a stream of rows into contexts; after the last row it starts over."""

    config: HubConfig
    n_contexts = None
    n_tokens = None

    def __init__(
        self,
        open_rows: Callable[[], Rows],
        tokenizer: Tokenizer,
        *,
        config: HubConfig,
        world: World,
        fingerprint: str,
    ) -> None:
        """`open_rows` gives the rows of this rank from their start, afresh at every call."""
        self.context_size = config.context_size
        self._open_rows = open_rows
        self._tokenizer = tokenizer
        self.config = config
        self._bos = tokenizer.eot_id if config.prepend_bos else None
        self._body = config.context_size - config.prepend_bos
        self._world = world
        self._fingerprint = fingerprint
        self._pending = np.zeros(0, np.int64)
        self._epoch = 0
        self._rows = open_rows()
        self._iterator = iter(self._rows)
        self._epoch_has_tokens = False

    def __next__(self) -> Int[Tensor, " pos"]:
        """The next context; ValueError if the set holds no text."""
        while len(self._pending) < self._body:
            self._read()
        ids, self._pending = self._pending[: self._body], self._pending[self._body :]
        return as_context(ids, self._bos)

    @property
    def repeats(self) -> bool:
        """Whether the set was begun again for the last context, or before."""
        return self._epoch > 0

    def state_dict(self) -> dict[str, Any]:
        """The client's position and the tokens already read."""
        return {
            "epoch": self._epoch,
            "epoch_has_tokens": self._epoch_has_tokens,
            "rows": self._rows.state_dict(),
            "pending": torch.from_numpy(self._pending.copy()),
            "world_size": self._world.size,
            "contexts": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position. Raises ValueError if it is of another set, tokenizer or world."""
        if state["contexts"] != self._fingerprint:
            raise ValueError(
                f"the saved data position is not of {self.config.repo} with this tokenizer and "
                "data config; start a new run"
            )
        check_world(state["world_size"], self._world)
        self._rows = self._open_rows()
        self._rows.load_state_dict(state["rows"])
        self._iterator = iter(self._rows)
        self._epoch = state["epoch"]
        self._epoch_has_tokens = state["epoch_has_tokens"]
        self._pending = state["pending"].numpy().copy()

    def continue_from(self, states: Sequence[dict[str, Any]]) -> None:
        """Refused: which rows a process reads is fixed by the number of processes."""
        check_world(len(states), self._world)

    def _read(self) -> None:
        """Append the tokens of the next few rows."""
        rows = []
        try:
            for row in self._iterator:
                rows.append(row)
                if len(rows) == _READ_AT_ONCE:
                    break
        except Exception as error:  # of several libraries, with no base in common
            raise _unreachable(self.config.repo, error) from error
        if not rows:
            self._start_over()
            return
        ids = list(self._ids(rows))
        self._epoch_has_tokens = self._epoch_has_tokens or any(map(len, ids))
        self._pending = np.concatenate([self._pending, *ids])

    def _start_over(self) -> None:
        if not self._epoch_has_tokens:
            raise ValueError(
                f"data set {self.config.repo}, rank {self._world.rank} of {self._world.size}: no "
                "text in it; choose another split or column"
            )
        self._epoch += 1
        self._epoch_has_tokens = False
        self._rows = self._open_rows()
        self._iterator = iter(self._rows)

    def _ids(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[np.ndarray]:
        config = self.config
        if config.text_field is not None:
            texts = [text for text in self._values(rows, config.text_field) if self._is_text(text)]
            for ids in self._tokenizer.encode_batch(texts):
                yield np.array([*ids, self._tokenizer.eot_id], np.int64)
        elif config.tokens_field is not None:
            for value in self._values(rows, config.tokens_field):
                yield self._checked(value)

    def _values(self, rows: Iterable[Mapping[str, Any]], field: str) -> Iterator[Any]:
        """What stands in a column; nulls, which many sets have, are left out."""
        for row in rows:
            if field not in row:
                raise _no_column(self.config.repo, field, row)
            if row[field] is not None:
                yield row[field]

    def _is_text(self, value: object) -> bool:
        """Whether a text is not blank; ValueError if it is none."""
        if not isinstance(value, str):
            raise ValueError(
                f"data set {self.config.repo}: column {self.config.text_field!r} holds "
                f"{type(value).__name__}, not text; choose another text_field, or give "
                "tokens_field if these are token ids"
            )
        return bool(value.strip())

    def _checked(self, value: object) -> np.ndarray:
        """A row's token ids, int64; ValueError if they are none, or another tokenizer's."""
        try:
            ids = np.asarray(value)
        except ValueError:  # lists of unequal lengths
            ids = np.array(None)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise ValueError(
                f"data set {self.config.repo}: column {self.config.tokens_field!r} holds "
                f"{reprlib.repr(value)}, not a list of token ids; choose another tokens_field, or "
                "give text_field if this is text"
            )
        n, ids = self._tokenizer.vocab_size, ids.astype(np.int64, copy=False)
        if len(ids) and not 0 <= ids.min() <= ids.max() < n:
            raise ValueError(
                f"data set {self.config.repo}: token ids {ids.min()}..{ids.max()} are not of a "
                f"tokenizer with {n} tokens; use the model the set was made for, or a text_field"
            )
        return ids


def _no_column(repo: str, field: str, columns: Iterable[str]) -> ValueError:
    return ValueError(f"data set {repo} has no column {field!r}; columns: {', '.join(columns)}")


def _unreachable(repo: str, error: Exception) -> ValueError:
    return ValueError(
        f"cannot read the data set {repo} from the hub ({type(error).__name__}: {error}); check "
        "the name and the connection. Without a network: data=docs, or data=text with your files"
    )
