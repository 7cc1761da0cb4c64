"""Writes activations to disk, for `sae_kit.data.cache` to train from.

Model passes over the text fill one shard after the other; see `cache_manifest` for the layout. A
shard is written under a hidden name, flushed and renamed, and then it is noted where the text
stands. A writer that was killed goes on after the last shard so noted: it goes back to the pass
that its end fell into, runs it again, and leaves out the rows it has. What comes out is byte for
byte what would have come out without the kill.

No context is written twice: where the text ends before the cache is full, the writer stops.

Limits: one process writes a cache. A shard is in memory twice while it is written. Byte for byte
holds on one machine with one number of threads.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from sae_kit.checkpoint import checkpoints, latest_checkpoint, save_checkpoint
from sae_kit.config import differences, from_node, to_dict
from sae_kit.data.activations import MAX_EMPTY_PASSES, Passes
from sae_kit.data.cache_manifest import (
    ACTIVATIONS,
    CONTEXT,
    PROGRESS,
    Contents,
    Manifest,
    ShardFile,
    file_crc32,
    shard_path,
    write_manifest,
)
from sae_kit.data.tokens import TokenSource
from sae_kit.files import save_tensors
from sae_kit.log import Progress
from sae_kit.models.hooks import Site, torch_dtype

NORM_ROWS = 4096  # rows widened to float64 at once


@final
class RowStream:
    """Rows in reading order. Its position is where the text stood before the pass under way, which
    is run again when a position is restored.
    """

    def __init__(self, passes: Passes, tokens: TokenSource, *, contexts_per_pass: int) -> None:
        self.passes, self.tokens, self.contexts_per_pass = passes, tokens, contexts_per_pass
        self.n_contexts = 0
        """Contexts read, those of the pass under way included."""
        self._rows: Mapping[Site, Tensor] = {}
        self._context = torch.empty(0, dtype=torch.int64)
        self._n_used = 0  # rows of the pass that were handed out
        self._over = False  # whether the pass was the last of the text
        self._before = (tokens.state_dict(), 0)

    def pieces(self, n_rows: int) -> Iterator[tuple[dict[Site, Tensor], Int[Tensor, " rows"]]]:
        """The next `n_rows` rows, or as many as the text still has, in pieces: activations by site,
        and the numbers of their contexts.
        """
        while n_rows > 0:
            if self._n_used == len(self._context) and not self._run_model():
                return
            piece = slice(self._n_used, min(self._n_used + n_rows, len(self._context)))
            self._n_used = piece.stop
            n_rows -= piece.stop - piece.start
            yield {site: rows[piece] for site, rows in self._rows.items()}, self._context[piece]

    def _run_model(self) -> bool:
        """Find the rows of the next pass that has any; False if there is none."""
        for _ in range(MAX_EMPTY_PASSES):
            if self._over:
                return False
            self._before = (self.tokens.state_dict(), self.n_contexts)
            contexts = _take_new(self.tokens, self.contexts_per_pass)
            self._over = len(contexts) < self.contexts_per_pass
            if not contexts:
                return False
            tokens = torch.stack(contexts)
            self._rows, context = self.passes.rows(tokens.to(self.passes.model.device))
            self._context, self._n_used = context.cpu() + self.n_contexts, 0
            self.n_contexts += len(tokens)
            if len(context) > 0:
                return True
        raise ValueError(
            f"data: {MAX_EMPTY_PASSES * self.contexts_per_pass} contexts in a row hold nothing but "
            "special tokens; give other text, or drop_special_tokens=false"
        )

    def state_dict(self) -> dict[str, Any]:
        """The position, as tensors and JSON values."""
        tokens, n_contexts = self._before
        return {"tokens": tokens, "n_contexts": n_contexts, "n_used": self._n_used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position, running the model once."""
        self.tokens.load_state_dict(state["tokens"])
        self.n_contexts, self._over = state["n_contexts"], False
        self._run_model()
        self._n_used = state["n_used"]


def _take_new(tokens: TokenSource, n: int) -> list[Tensor]:
    """The next `n` contexts, or as many as come before one that repeats an earlier one."""
    contexts: list[Tensor] = []
    while len(contexts) < n:
        context = next(tokens)
        if tokens.repeats:
            break
        contexts.append(context)
    return contexts


@final
class CacheWriter:
    """Writes one cache, or what is missing of it."""

    def __init__(self, folder: Path, contents: Contents, rows: RowStream) -> None:
        """Find out what is there already; nothing is written yet.

        Args:
            folder: the cache's.
            contents: what it is to hold.
            rows: where the rows come from, at its start.

        Raises:
            ValueError: what is there is of another model or of other settings, or the disk is too
                small for the rest.
        """
        self.folder, self.contents, self.rows = folder, contents, rows
        self.shards: list[ShardFile] = []
        """Those that are written."""
        self._norms: list[dict[Site, float]] = []  # summed norms by shard and site
        if checkpoints(folder / PROGRESS):
            self._restore(latest_checkpoint(folder / PROGRESS)[1])
        self._check_space()

    @property
    def n_rows(self) -> int:
        """Rows that are written."""
        return min(len(self.shards) * self.contents.shard_rows, self.contents.n_rows)

    @property
    def n_bytes_left(self) -> int:
        """Disk space that what is missing takes."""
        return (self.contents.n_rows - self.n_rows) * self.contents.n_row_bytes

    def write(self) -> Manifest:
        """Write what is missing, with a progress bar.

        Raises:
            ValueError: activations that cannot be kept, or text that ends too early or is without
                tokens that count.
            OSError: the disk refused; every finished shard stays.
        """
        for path in self.folder.glob(".shard_*.tmp"):
            path.unlink()  # a killed writer's
        if not self.shards:
            self._note_progress()  # which says that this folder is to become a cache
        progress = Progress(self.contents.n_rows, done=self.n_rows)
        shape = (self.contents.shard_rows, self.contents.width)
        acts = torch.empty(shape, dtype=torch_dtype(self.contents.dtype))
        context = torch.empty(self.contents.shard_rows, dtype=torch.int64)
        while len(self.shards) < self.contents.n_shards:
            n = self.contents.rows_of(len(self.shards))
            self._fill(acts[:n], context[:n], progress)
            self._norms.append(self._summed_norms(acts[:n]))
            path = shard_path(self.folder, len(self.shards))
            save_tensors(path, {ACTIVATIONS: acts[:n], CONTEXT: context[:n]})
            self.shards.append(ShardFile(n_bytes=path.stat().st_size, crc32=file_crc32(path)))
            self._note_progress()
        progress.close()
        manifest = self._manifest()
        write_manifest(self.folder, manifest)
        shutil.rmtree(self.folder / PROGRESS)
        return manifest

    def _fill(self, acts: Tensor, context: Tensor, progress: Progress) -> None:
        """Put the next rows into the memory of a shard."""
        columns, start = self.contents.columns, 0
        for by_site, numbers in self.rows.pieces(len(acts)):
            places = slice(start, start + len(numbers))
            for site, rows in by_site.items():
                acts[places, columns[site]] = rows
            context[places] = numbers
            start = places.stop
            progress.update(len(numbers))
        if start < len(acts):
            n = self.n_rows + start
            raise ValueError(
                f"n_tokens: {self.contents.n_rows} is more than the {n} positions that the text "
                f"has; delete {self.folder} and begin again with n_tokens={n} or less (a trainer "
                "may read a cache several times), or with more text"
            )

    def _summed_norms(self, acts: Tensor) -> dict[Site, float]:
        """The norms of a shard's rows, as they are kept, summed in float64."""
        sums = {}
        for site, columns in self.contents.columns.items():
            parts = (rows[:, columns].double() for rows in acts.split(NORM_ROWS))
            sums[site] = math.fsum(float(rows.norm(dim=-1).sum()) for rows in parts)
            if not (math.isfinite(sums[site]) and sums[site] > 0):
                raise ValueError(
                    f"sites: activations at {site!r} have mean norm {sums[site] / len(acts)} in "
                    f"{self.contents.dtype}; give dtype=bfloat16 if this is float16, which ends at "
                    "65,504, or choose other sites: the model is broken there"
                )
        return sums

    def _manifest(self) -> Manifest:
        n = self.contents.n_rows
        return Manifest(
            contents=self.contents,
            n_contexts=self.rows.n_contexts,
            mean_norms={
                site: math.fsum(norms[site] for norms in self._norms) / n
                for site in self.contents.sites
            },
            shards=tuple(self.shards),
        )

    def _note_progress(self) -> None:
        state = {
            "contents": to_dict(self.contents),
            "shards": [to_dict(shard) for shard in self.shards],
            "norms": self._norms,
            "rows": self.rows.state_dict(),
        }
        save_checkpoint(self.folder / PROGRESS, len(self.shards), state, keep=2)

    def _restore(self, state: Mapping[str, Any]) -> None:
        if changed := differences(state["contents"], to_dict(self.contents)):
            raise ValueError(
                f"resume: {self.folder} was begun with something else\n  "
                + "\n  ".join(changed)
                + "\nUndo that, or write a new cache."
            )
        self.shards = [from_node(ShardFile, shard) for shard in state["shards"]]
        for number, shard in enumerate(self.shards):
            path = shard_path(self.folder, number)
            if not path.is_file() or path.stat().st_size != shard.n_bytes:
                raise ValueError(f"resume: {path} is missing or damaged; write a new cache")
        self._norms = list(state["norms"])
        self.rows.load_state_dict(state["rows"])

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if self.n_bytes_left > free:
            raise ValueError(
                f"path: {self.folder} needs {self.n_bytes_left / 1e9:,.1f} GB, but its disk has "
                f"{free / 1e9:,.1f} GB free; give a path elsewhere, a smaller n_tokens, fewer "
                "sites or dtype=bfloat16"
            )
