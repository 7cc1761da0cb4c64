"""How fast activations are written to disk, checked, and read from it in random order.

    python benchmarks/cache.py [--sites 12 --width 768 --rows 65536 --dtype float32] [--read 12]
                               [--batch-rows 2048] [--folder FOLDER] [--json]

The rows are random numbers, not a model's, so that nothing but the disk and its handling is timed.
"cold" has the operating system forget the files first (Linux only; a virtual machine's host may
remember them), "warm" finds them in its file cache. Reading takes batches as a trainer does, in
random order over all shards, as scaled float32 rows: a first epoch cold, and the faster of two
more. Of the `--sites` in the cache, the first `--read` are read.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from sae_kit.config import provenance
from sae_kit.data.cache import CachedConfig, CachedSource
from sae_kit.data.cache_manifest import (
    ACTIVATIONS,
    CONTEXT,
    Contents,
    Manifest,
    ModelIdentity,
    ShardFile,
    file_crc32,
    row_bytes,
    shard_path,
    verify_shard,
    write_manifest,
)
from sae_kit.dist import World
from sae_kit.files import save_tensors
from sae_kit.models.hooks import torch_dtype
from sae_kit.timing import Stopwatch
from sae_kit.train.allocator import keep_freed_memory

SHARD_BYTES = 500_000_000
CONTEXT_ROWS = 255


def contents_of(options: argparse.Namespace) -> Contents:
    """What the cache holds."""
    sites = {f"blocks.{i}.hook_resid_pre": options.width for i in range(options.sites)}
    return Contents(
        model=ModelIdentity(name="none", revision=None, dtype="float32", centred=False, sha256=""),
        sites=sites,
        dtype=options.dtype,
        n_rows=options.rows,
        shard_rows=min(SHARD_BYTES // row_bytes(sites, options.dtype), options.rows),
        data={},
        seed=0,
        context_size=CONTEXT_ROWS + 1,
        drop_first_position=True,
        drop_special_tokens=True,
    )


def write(folder: Path, contents: Contents) -> tuple[Manifest, float]:
    """A cache of random rows, and the seconds it took to write them."""
    shape = (contents.shard_rows, contents.width)
    acts = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    acts = acts.to(torch_dtype(contents.dtype))
    shards, start = [], time.perf_counter()
    for number in range(contents.n_shards):
        path, n = shard_path(folder, number), contents.rows_of(number)
        context = (torch.arange(n) + number * contents.shard_rows) // CONTEXT_ROWS
        save_tensors(path, {ACTIVATIONS: acts[:n], CONTEXT: context})
        shards.append(ShardFile(n_bytes=path.stat().st_size, crc32=file_crc32(path)))
    seconds = time.perf_counter() - start
    manifest = Manifest(
        contents=contents,
        n_contexts=-(-contents.n_rows // CONTEXT_ROWS),
        mean_norms={site: width**0.5 for site, width in contents.sites.items()},
        shards=tuple(shards),
    )
    write_manifest(folder, manifest)
    return manifest, seconds


def forget(folder: Path) -> None:
    """Have the operating system drop the files from its cache."""
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def verify(folder: Path, manifest: Manifest) -> float:
    """Seconds to compare every checksum."""
    start = time.perf_counter()
    for number in range(manifest.contents.n_shards):
        verify_shard(folder, manifest, number)
    return time.perf_counter() - start


def read(folder: Path, manifest: Manifest, options: argparse.Namespace) -> list[float]:
    """Seconds of each of three epochs, in whole batches."""
    source = CachedSource(
        CachedConfig(path=str(folder)),
        manifest,
        list(manifest.contents.sites)[: options.read],
        batch_rows=options.batch_rows,
        world=World(0, 1),
        seed=0,
        device=torch.device("cpu"),
        stopwatch=Stopwatch(),
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(options.rows // options.batch_rows):
            next(source)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--read", type=int, default=12, help="sites that are read")
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="on the disk to be timed; default: temporary")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()  # as train.py does
    contents = contents_of(options)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        manifest, seconds = write(folder, contents)
        found = {"written": seconds}
        forget(folder)
        found["checked, cold"] = verify(folder, manifest)
        found["checked, warm"] = verify(folder, manifest)
        forget(folder)
        found["read, cold"], *later = read(folder, manifest, options)
        found["read, warm"] = min(later)
    n_bytes = sum(shard.n_bytes for shard in manifest.shards)
    whole = options.rows // options.batch_rows * options.batch_rows
    for label, seconds in found.items():
        share = options.read / options.sites if label.startswith("read") else 1.0
        rows = whole if label.startswith("read") else options.rows
        rate, gigabytes = rows / seconds, share * rows / options.rows * n_bytes / 1e9 / seconds
        if options.json:
            shape = {key: value for key, value in vars(options).items() if key != "folder"}
            line = {"name": label, "rows_per_s": rate, "gb_per_s": gigabytes, **shape}
            print(json.dumps({**line, "folder": str(options.folder), **provenance()}))
        else:
            print(f"{label:<14} {rate:>12,.0f} rows/s {gigabytes:>8.2f} GB/s")


if __name__ == "__main__":
    main()
