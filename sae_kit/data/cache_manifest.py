"""The layout of activations on disk, and how a folder of them is checked.

    manifest.json               what the rows are, and size and checksum of every shard
    shard_00000.safetensors     activations [rows, sum of widths], context [rows] int64
    progress/                   while it is being written: where to go on

A row is one position with its activations at all sites side by side, in the order of the manifest's
sites, so that a random row is one piece of a file whatever the number of sites. `context` is the
number of the context that the row comes from, counted over the cache. Shards hold the positions in
reading order; shuffling is the reader's work.

The manifest is written last: a folder without one is not finished. It ends with a SHA-256 of
itself; shards have a CRC-32, which finds accidental damage at several GB/s.

Limits: version 1 is the only one there is.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sae_kit.config import from_node, to_dict
from sae_kit.files import write_atomic
from sae_kit.models.hooks import Hookable, Site, torch_dtype

FORMAT, VERSION = "sae_kit activations", 1
MANIFEST, PROGRESS = "manifest.json", "progress"
ACTIVATIONS, CONTEXT = "activations", "context"
CONTEXT_BYTES = 8  # of a row, beside its activations
BLOCK_BYTES = 1 << 22  # read at once for a checksum
REMEDY = "put back a copy of this file, or delete the folder and write the cache again"

Dtype = Literal["float32", "bfloat16", "float16"]
"""Types in which activations are kept."""


@final
@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model the activations are of."""

    name: str
    """The name it was asked for by."""
    revision: str | None
    """The hub commit it came from; None for a local one."""
    dtype: str
    """The type it was run in."""
    centred: bool
    """Whether its writing weights were mean-centred."""
    sha256: str
    """See `weights_hash`."""


@final
@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a cache; known before it is written."""

    model: ModelIdentity
    sites: dict[str, int]
    """Width by site, in the order in which they stand in a row."""
    dtype: Dtype
    """The type the activations are kept in."""
    n_rows: int
    """Positions."""
    shard_rows: int
    """Positions in a shard; the last one may have fewer."""
    data: dict[str, Any]
    """The config of the text, with `prepend_bos` among others."""
    seed: int
    """Of the order in which contexts were read."""
    context_size: int
    """Tokens in a context, BOS included."""
    drop_first_position: bool
    """Whether position 0 of every context is left out."""
    drop_special_tokens: bool
    """Whether end-of-text tokens are left out."""

    @property
    def width(self) -> int:
        """Values in a row, over all sites."""
        return sum(self.sites.values())

    @property
    def n_shards(self) -> int:
        """Files."""
        return math.ceil(self.n_rows / self.shard_rows)

    @property
    def n_row_bytes(self) -> int:
        """Disk space of a row."""
        return row_bytes(self.sites, self.dtype)

    @property
    def columns(self) -> dict[Site, slice]:
        """Where the activations at each site stand in a row."""
        found, start = {}, 0
        for site, width in self.sites.items():
            found[site] = slice(start, start + width)
            start += width
        return found

    def rows_of(self, shard: int) -> int:
        """Rows of shard number `shard`."""
        return min(self.shard_rows, self.n_rows - shard * self.shard_rows)


@final
@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """What a shard's file must look like."""

    n_bytes: int
    crc32: int


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished cache."""

    contents: Contents
    n_contexts: int
    """Contexts that were read for it."""
    mean_norms: dict[str, float]
    """Mean norm of the rows at each site, as kept; summed in float64."""
    shards: tuple[ShardFile, ...]
    """In the order of the rows."""

    @property
    def digest(self) -> str:
        """Equal for equal caches."""
        return _digest(to_dict(self))


@final
@dataclass(frozen=True)
class Shard:
    """The tensors of a shard, mapped from the file: what is not touched is not read."""

    acts: Float[Tensor, "rows width"]
    """The activations at all sites, in the type they are kept in."""
    context: Int[Tensor, " rows"]
    """Numbers of the contexts that the rows come from."""


def row_bytes(sites: Mapping[Site, int], dtype: Dtype) -> int:
    """Disk space of a row with these sites, given with their widths."""
    return sum(sites.values()) * torch_dtype(dtype).itemsize + CONTEXT_BYTES


def shard_path(folder: Path, number: int) -> Path:
    """The file of shard `number`."""
    return folder / f"shard_{number:05d}.safetensors"


def weights_hash(model: Hookable | nn.Module) -> str:
    """SHA-256 of a model's weights: names, types, shapes and values, wherever they lie."""
    assert isinstance(model, nn.Module), "a model without weights cannot be told from another"
    digest = hashlib.sha256()
    for name, weight in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_crc32(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


# --- the manifest ---------------------------------------------------------------------------------


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make `folder` a finished cache. Raises OSError where the disk refuses."""
    body = {"format": FORMAT, "version": VERSION, **to_dict(manifest)}
    text = json.dumps({**body, "sha256": _digest(body)}, indent=1)
    write_atomic(folder / MANIFEST, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache.

    Raises:
        ValueError: there is none, it is damaged, or of a version that is not known here.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(_no_manifest(folder))
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        sha256 = body.pop("sha256")
        kind, version = body.pop("format"), body.pop("version")
        intact = sha256 == _digest({"format": kind, "version": version, **body})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a manifest of activations; {REMEDY}") from error
    if kind != FORMAT or version != VERSION:
        raise ValueError(
            f"{path}: says {kind!r}, version {version!r}, and this sae_kit reads {FORMAT!r}, "
            f"version {VERSION}; use the sae_kit that wrote it, or write the cache again"
        )
    if not intact:
        raise ValueError(f"{path}: checksum differs, the file is damaged or edited; {REMEDY}")
    # A text config has values of any type, which a config field cannot have.
    data = body["contents"]["data"]
    plain = {**body, "contents": {**body["contents"], "data": {}}}
    manifest = from_node(Manifest, plain, where=str(path))
    return replace(manifest, contents=replace(manifest.contents, data=data))


def _no_manifest(folder: Path) -> str:
    if (folder / PROGRESS).is_dir():
        return (
            f"activations.path: {folder} is not finished; go on writing it with: "
            f"python train.py resume={folder}"
        )
    return (
        f"activations.path: {folder} holds no activations ({MANIFEST} is missing); write them "
        f"with: python train.py --config-name=cache path={folder}, or use activations=live"
    )


def _digest(body: Mapping[str, Any]) -> str:
    # Not sorted: the order of the sites is that of the columns.
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


# --- shards ---------------------------------------------------------------------------------------


def open_shard(folder: Path, manifest: Manifest, number: int) -> Shard:
    """Map a shard, after checking size and header; the values are not read.

    Raises:
        ValueError: the file is missing, damaged or another one; the message names it.
    """
    contents, path = manifest.contents, shard_path(folder, number)
    _check_size(path, manifest.shards[number].n_bytes)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {REMEDY}") from error
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    n = contents.rows_of(number)
    expected = {
        ACTIVATIONS: (torch_dtype(contents.dtype), (n, contents.width)),
        CONTEXT: (torch.int64, (n,)),
    }
    if found != expected:
        raise ValueError(f"{path}: holds {found}, expected {expected}; {REMEDY}")
    return Shard(tensors[ACTIVATIONS], tensors[CONTEXT])


def verify_shard(folder: Path, manifest: Manifest, number: int) -> None:
    """Read a shard's file and compare its checksum.

    Raises:
        ValueError: it differs; the message names the file.
    """
    path = shard_path(folder, number)
    try:
        intact = file_crc32(path) == manifest.shards[number].crc32
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    if not intact:
        raise ValueError(f"{path}: checksum differs, the file is damaged; {REMEDY}")


def _check_size(path: Path, n_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    if found != n_bytes:
        raise ValueError(f"{path}: has {found} bytes, but {n_bytes} were written; {REMEDY}")
