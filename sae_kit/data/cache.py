"""Training from activations on disk: written once (`cache_writer`), read by any number of trainers.

Every epoch visits all rows of all shards once, in a pseudo-random order of its own that depends on
nothing but (seed, epoch) and is computed entry by entry (`permutation`): a batch is a random sample
of the whole cache, as mixed as can be, and a position is one number. The rows of a batch come in
the order in which they lie on the disk, and the next batch is fetched while the trainer works on
this one.

Of several processes, each takes its own part of every batch: `size` processes with `batch_rows`
rows each see together what one process with `size * batch_rows` rows sees. The position counts the
rows of all of them, so it can be continued with another number.

Inputs are scaled to a mean norm of sqrt(width) over the whole cache, as its manifest has it.

What was trained on is the cache's text. The run's own `data` must cut contexts as the cache's does,
and is what SAEs are measured on afterwards: where it is other text, a warning says so.

Shards are mapped into memory and read where they are touched: memory is a few batches, and what is
read stays in the operating system's file cache, which several trainers share. Random reading is
fast from there, and bound by the disk's random reads otherwise (docs/cache.md).

Limits: rows only, no tokens and no model: end-to-end objectives need `activations=live`. A shard
that is cut short while it is read ends the process, as with any mapped file. The number of shards
is bounded by the mappings a process may have (65,530 on Linux).
"""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from sae_kit.config import differences, nearest, to_dict
from sae_kit.data.activations import ActivationsConfig, ActivationSource, Batch
from sae_kit.data.cache_manifest import (
    Manifest,
    open_shard,
    read_manifest,
    verify_shard,
    weights_hash,
)
from sae_kit.data.permutation import Permutation
from sae_kit.data.tokens import TokenSource
from sae_kit.dist import World, world
from sae_kit.models.hooks import Hookable, Site, torch_dtype
from sae_kit.timing import Stopwatch

log = logging.getLogger(__name__)

Fetched = tuple[list[Tensor], Tensor]
"""Rows as they lie on the disk: activations, one tensor for every span of columns, and the numbers
of their contexts.
"""


@final
@dataclass(frozen=True, kw_only=True)
class CachedConfig(ActivationsConfig, kind="cached"):
    """Activations that were written to disk before."""

    path: str
    """The cache's folder."""
    scale_inputs: bool = True
    """Whether activations are scaled to a mean norm of sqrt(width)."""
    verify: bool = True
    """Whether every shard is read once at the start and compared with its checksum; sizes and
    headers are compared in any case.
    """

    def open(
        self,
        model: Hookable,
        sites: Sequence[Site],
        tokens: TokenSource,
        *,
        batch_rows: int,
        special_ids: Sequence[int],
        seed: int,
        stopwatch: Stopwatch,
    ) -> "CachedSource":
        """The source at its start; `model` and `tokens` are what the cache is checked against.

        Raises:
            ValueError: there is no such cache, it is damaged, or it is not one of these sites,
                positions, contexts and weights.
        """
        folder, here = Path(self.path), world()
        manifest = read_manifest(folder)
        self._check(manifest, sites, batch_rows * here.size)
        self._check_text(manifest, tokens)
        self._check_model(manifest, model)
        source = CachedSource(
            self,
            manifest,
            sites,
            batch_rows=batch_rows,
            world=here,
            seed=seed,
            device=model.device,
            stopwatch=stopwatch,
        )
        if self.verify:  # after sizes and headers, which take no time
            _verify(folder, manifest, here)
        return source

    def _check(self, manifest: Manifest, sites: Sequence[Site], step_rows: int) -> None:
        """ValueError unless the cache holds what is asked for."""
        contents = manifest.contents
        for site in sites:
            if site not in contents.sites:
                close = nearest(site, contents.sites) or list(contents.sites)[:3]
                raise ValueError(
                    f"sites: the cache at {self.path} has no {site!r} (nearest: "
                    f"{', '.join(close)}; {len(contents.sites)} in all); choose among its sites, "
                    "or write another cache"
                )
        for name in ("drop_first_position", "drop_special_tokens"):
            written = getattr(contents, name)
            if getattr(self, name) != written:
                raise ValueError(
                    f"activations.{name}: {_word(not written)}, but the cache at {self.path} was "
                    f"written with {_word(written)}; give activations.{name}={_word(written)}, or "
                    "write another cache"
                )
        if step_rows > contents.n_rows:
            raise ValueError(
                f"trainer.batch_rows: {step_rows} rows a step are more than the {contents.n_rows} "
                f"in the cache at {self.path}; lower it, or write a larger cache"
            )

    def _check_text(self, manifest: Manifest, tokens: TokenSource) -> None:
        """ValueError unless the cache is of contexts cut as those of `tokens`; a warning if they
        are of other text.
        """
        contents, config = manifest.contents, tokens.config
        if tokens.context_size != contents.context_size:
            raise ValueError(
                f"data.context_size: {tokens.context_size}, but the cache at {self.path} is of "
                f"contexts of {contents.context_size} tokens; give data.context_size="
                f"{contents.context_size}, or write another cache"
            )
        if config is None:
            return
        written = contents.data["prepend_bos"]
        if config.prepend_bos != written:
            raise ValueError(
                f"data.prepend_bos: {_word(config.prepend_bos)}, but the cache at {self.path} was "
                f"written with {_word(written)}; give data.prepend_bos={_word(written)}, or write "
                "another cache"
            )
        if changed := differences(contents.data, to_dict(config)):
            log.warning(
                "data: the cache at %s is of other text; SAEs are trained on the cache's text and "
                "measured on that of data, which they may have seen (cache -> data):\n  %s",
                self.path,
                "\n  ".join(changed),
            )

    def _check_model(self, manifest: Manifest, model: Hookable) -> None:
        """ValueError unless the cache is of these weights."""
        written, sha256 = manifest.contents.model, weights_hash(model)
        if sha256 != written.sha256:
            raise ValueError(
                f"model: its weights (SHA-256 {sha256[:12]}...) are not those of the cache at "
                f"{self.path}, which is of {written.name!r} (revision {written.revision}, "
                f"centre_writing_weights={_word(written.centred)}, dtype={written.dtype}, SHA-256 "
                f"{written.sha256[:12]}...); give that model, or write another cache"
            )


def _word(value: bool) -> str:
    return str(value).lower()


def _verify(folder: Path, manifest: Manifest, here: World) -> None:
    """Compare the checksums of this process's share of the shards."""
    own = range(here.rank, len(manifest.shards), here.size)
    n_bytes = sum(manifest.shards[number].n_bytes for number in own)
    log.info(
        "checking %s GB of activations in %s (activations.verify=false leaves this out)",
        f"{n_bytes / 1e9:,.1f}",
        folder,
    )
    with tqdm(total=n_bytes, desc="checking", unit="B", unit_scale=True, disable=None) as progress:
        for number in own:
            verify_shard(folder, manifest, number)
            progress.update(manifest.shards[number].n_bytes)


@final
class CachedSource(ActivationSource):
    """See the module's docstring."""

    def __init__(
        self,
        config: CachedConfig,
        manifest: Manifest,
        sites: Sequence[Site],
        *,
        batch_rows: int,
        world: World,
        seed: int,
        device: torch.device,
        stopwatch: Stopwatch,
    ) -> None:
        """Map every shard; `sites` are among the manifest's, `batch_rows` are this process's.

        Raises:
            ValueError: a shard is missing or damaged; the message names it.
        """
        contents = manifest.contents
        self.config, self.manifest, self.batch_rows = config, manifest, batch_rows
        self.world, self.seed, self.device, self.stopwatch = world, seed, device, stopwatch
        self.drop_first_position = config.drop_first_position
        self.drop_special_tokens = config.drop_special_tokens
        self.text = contents.data
        self.widths = {site: contents.sites[site] for site in sites}
        self.scales = {
            site: math.sqrt(width) / manifest.mean_norms[site] if config.scale_inputs else 1.0
            for site, width in self.widths.items()
        }
        folder = Path(config.path)
        self._shards = [open_shard(folder, manifest, i) for i in range(contents.n_shards)]
        self._spans = _spans([contents.columns[site] for site in sites])
        self._position = 0  # rows served so far, by all processes
        self._fetcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="activations")
        self._next: Future[Fetched] | None = None
        log.info(
            "activations on disk: %s positions of %s contexts in %d shards, of %s",
            f"{contents.n_rows:,}",
            f"{manifest.n_contexts:,}",
            contents.n_shards,
            contents.data,
        )

    def prepare(self) -> None:
        """Nothing: the scales are in the manifest."""

    def sample(self, site: Site, n_rows: int) -> Float[Tensor, "rows _"]:
        """Rows spread evenly over the cache."""
        total = self.manifest.contents.n_rows
        n, own = min(n_rows, total), self.manifest.contents.columns[site]
        rows = torch.arange(n) * total // n
        acts, _ = self._read(rows, [own], self._memory(n, [own]))
        return acts[0].to(self.device).float() * self.scales[site]

    def __next__(self) -> Batch:
        """This process's part of the next rows of the order."""
        with self.stopwatch("activations"):
            acts, context = (self._next or self._fetch()).result()
            before, step = self._position, self.batch_rows * self.world.size
            self._position += step
            self._next = self._fetch()
            n, total = context.unique().numel(), self.manifest.contents.n_rows
            if (epoch := self._position // total) > before // total:
                log.info("all %s positions were read; epoch %d begins", f"{total:,}", epoch + 1)
            return Batch(self._by_site(acts), n)

    def _fetch(self) -> Future[Fetched]:
        """Begin to read this process's part of the rows at the position."""
        rows, into = self._places(self._position), self._memory(self.batch_rows, self._spans)
        return self._fetcher.submit(self._read, rows, self._spans, into)

    def _places(self, position: int) -> Int[Tensor, " rows"]:
        """The rows that this process takes when `position` rows have been served, sorted."""
        start, total = position + self.world.rank * self.batch_rows, self.manifest.contents.n_rows
        places = torch.arange(start, start + self.batch_rows)
        epochs = places // total
        rows = [
            Permutation(total, seed=(self.seed, epoch))(places[epochs == epoch] % total)
            for epoch in epochs.unique().tolist()
        ]
        return torch.cat(rows).sort().values

    def _memory(self, n_rows: int, spans: Sequence[slice]) -> Fetched:
        """Room for these columns of rows as they lie on the disk.

        Taken by the main thread, whose heap has it from the batch before; a thread of its own would
        get fresh pages every time, which cost more than the reading.
        """
        dtype = torch_dtype(self.manifest.contents.dtype)
        acts = [torch.empty(n_rows, span.stop - span.start, dtype=dtype) for span in spans]
        return acts, torch.empty(n_rows, dtype=torch.int64)

    def _read(self, rows: Int[Tensor, " rows"], spans: Sequence[slice], into: Fetched) -> Fetched:
        """Fill `into` with these columns of these rows, which are sorted."""
        acts, context = into
        n = self.manifest.contents.shard_rows
        cuts = torch.searchsorted(rows, torch.arange(len(self._shards) + 1) * n).tolist()
        for number in (rows // n).unique().tolist():
            shard, here = self._shards[number], slice(cuts[number], cuts[number + 1])
            local = rows[here] - number * n
            for out, span in zip(acts, spans, strict=True):
                torch.index_select(shard.acts[:, span], 0, local, out=out[here])
            torch.index_select(shard.context, 0, local, out=context[here])
        return into

    def _by_site(self, acts: Sequence[Tensor]) -> dict[Site, Tensor]:
        """Scaled float32 rows by site, on the trainer's device, of what `_read` found."""
        columns, found = self.manifest.contents.columns, {}
        moved = [rows.to(self.device) for rows in acts]
        for site, scale in self.scales.items():
            own = columns[site]
            for rows, span in zip(moved, self._spans, strict=True):
                if span.start <= own.start < span.stop:
                    part = rows[:, own.start - span.start : own.stop - span.start]
                    found[site] = part.float() * scale
        return found

    def state_dict(self) -> dict[str, Any]:
        """Rows served by all processes together, and of which cache."""
        return {"position": self._position, "cache": self.manifest.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position, as if never stopped.

        Raises:
            ValueError: it is a position in another cache.
        """
        if state["cache"] != self.manifest.digest:
            raise ValueError(
                f"activations.path: {self.config.path} holds other activations than when the run "
                "was saved; put the cache back, or start a new run"
            )
        self._position, self._next = state["position"], None


def _spans(columns: Sequence[slice]) -> list[slice]:
    """The columns joined where they touch, so that a row is read in as few pieces as can be."""
    spans: list[slice] = []
    for own in sorted(columns, key=lambda own: own.start):
        if spans and spans[-1].stop == own.start:
            spans[-1] = slice(spans[-1].start, own.stop)
        else:
            spans.append(own)
    return spans
