"""The layout on disk: what is written is found again, and whatever is damaged is named."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_cache import SITES, contents, write

from sae_kit.data.cache_manifest import (
    ACTIVATIONS,
    CONTEXT,
    MANIFEST,
    Manifest,
    file_crc32,
    open_shard,
    read_manifest,
    shard_path,
    verify_shard,
    weights_hash,
    write_manifest,
)
from sae_kit.models.gpt2 import GPT2


@pytest.fixture(scope="module")
def model(make_gpt2) -> GPT2:
    return make_gpt2()


@pytest.fixture
def cache(model, tmp_path) -> tuple[Path, Manifest]:
    return tmp_path, write(tmp_path, model)


# --- sizes ----------------------------------------------------------------------------------------


def test_columns_lie_side_by_side_in_the_order_of_the_sites(model):
    held = contents(model)
    places = [slice(0, 32), slice(32, 112), slice(112, 144)]
    assert held.columns == dict(zip(SITES, places, strict=True))
    assert held.width == 144


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_disk_space_is_what_is_said(model, tmp_path, dtype, size):
    manifest = write(tmp_path, model, dtype=dtype)
    said = manifest.contents.n_rows * manifest.contents.n_row_bytes
    assert said == 300 * (144 * size + 8)
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    headers = on_disk - said
    assert 0 < headers < 256 * manifest.contents.n_shards


def test_shards_hold_all_rows(model):
    held = contents(model)
    assert held.n_shards == 5
    assert [held.rows_of(i) for i in range(5)] == [64, 64, 64, 64, 44]


# --- the manifest ---------------------------------------------------------------------------------


def test_a_manifest_is_read_as_it_was_written(cache):
    folder, manifest = cache
    assert read_manifest(folder) == manifest
    assert read_manifest(folder).digest == manifest.digest
    assert list(read_manifest(folder).contents.sites) == list(SITES)


def test_digests_tell_caches_apart(cache):
    _, manifest = cache
    held = manifest.contents
    backwards = replace(held, sites=dict(reversed(held.sites.items())))
    others = [
        replace(manifest, contents=backwards),
        replace(manifest, n_contexts=manifest.n_contexts + 1),
        replace(manifest, shards=manifest.shards[::-1]),
    ]
    assert len({other.digest for other in [manifest, *others]}) == 4


def edited(folder: Path, **changed: object) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, **changed}))


def test_a_damaged_manifest_is_named(cache):
    folder, manifest = cache
    edited(folder, n_contexts=manifest.n_contexts + 1)
    with pytest.raises(ValueError, match=r"manifest\.json: checksum differs.* write the cache"):
        read_manifest(folder)
    text = (folder / MANIFEST).read_bytes()
    for broken in (text[: len(text) // 2], b"[]", b"{}", b"\xff"):
        (folder / MANIFEST).write_bytes(broken)
        with pytest.raises(ValueError, match=r"manifest\.json: not a manifest of activations"):
            read_manifest(folder)


def test_another_version_is_refused(cache):
    folder, _ = cache
    edited(folder, version=2)
    with pytest.raises(ValueError, match=r"version 2, and this sae_kit reads .* version 1"):
        read_manifest(folder)


def test_a_folder_without_a_cache_says_how_to_write_one(tmp_path):
    with pytest.raises(ValueError, match=f"--config-name=cache path={tmp_path}/none, or use"):
        read_manifest(tmp_path / "none")


# --- shards ---------------------------------------------------------------------------------------


def test_a_shard_is_a_plain_safetensors_file(cache):
    folder, manifest = cache
    shard, plain = open_shard(folder, manifest, 4), load_file(shard_path(folder, 4))
    assert set(plain) == {ACTIVATIONS, CONTEXT}
    assert torch.equal(shard.acts, plain[ACTIVATIONS])
    assert torch.equal(shard.context, plain[CONTEXT])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "missing": (os.unlink, "cannot be read .No such file"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), r"has \d+ bytes, but"),
    "empty": (lambda path: os.truncate(path, 0), "has 0 bytes, but"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), r"has \d+ bytes, but"),
    "broken header": (lambda path: flip(path, 3), "cannot be read"),
    "other name": (lambda path: flip(path, path.read_bytes().index(b"activations")), "holds"),
    "other shape": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"[64,144]", b"[144,64]")),
        r"holds .*144, 64.* expected .*64, 144",
    ),
    "other type": (
        lambda path: path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"')),
        r"holds .*torch\.int32.* expected .*torch\.float32",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_shard_that_is_not_what_was_written_is_named_on_opening(cache, kind):
    folder, manifest = cache
    damage, said = DAMAGE[kind]
    damage(shard_path(folder, 2))
    open_shard(folder, manifest, 1)
    with pytest.raises(ValueError, match=rf"shard_00002\.safetensors: {said}.*put back a copy"):
        open_shard(folder, manifest, 2)


@pytest.mark.parametrize("place", [-1, -5000, 400])
def test_a_flipped_bit_is_found_by_the_checksum(cache, place):
    folder, manifest = cache
    flip(shard_path(folder, 2), place)
    open_shard(folder, manifest, 2)
    verify_shard(folder, manifest, 1)
    with pytest.raises(ValueError, match=r"shard_00002\.safetensors: checksum differs"):
        verify_shard(folder, manifest, 2)


def test_exchanged_shards_are_found(cache):
    folder, manifest = cache
    one, other = shard_path(folder, 0), shard_path(folder, 1)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard_00000\.safetensors: checksum differs"):
        verify_shard(folder, manifest, 0)


def test_checksums_are_of_the_whole_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"123456789")
    assert file_crc32(path) == 0xCBF43926  # the check value of CRC-32/ISO-HDLC
    path.write_bytes(bytes(10_000_000))
    before = file_crc32(path)
    flip(path, 9_999_999)
    assert file_crc32(path) != before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_what_is_not_touched_is_not_read(cache):
    folder, manifest = cache
    n, width = 8192, manifest.contents.width
    acts = torch.zeros(n, width).repeat(1, 8)
    save_file({ACTIVATIONS: acts, CONTEXT: torch.arange(n)}, shard_path(folder, 0))
    n_bytes = shard_path(folder, 0).stat().st_size
    large = replace(
        manifest,
        contents=replace(manifest.contents, sites={SITES[0]: 8 * width}, n_rows=n, shard_rows=n),
        shards=(replace(manifest.shards[0], n_bytes=n_bytes),),
    )
    before = resident_bytes()
    shard = open_shard(folder, large, 0)
    assert int(shard.context[n // 2]) == n // 2
    assert resident_bytes() - before < n_bytes / 4
    assert n_bytes > 30_000_000


# --- weights --------------------------------------------------------------------------------------


def test_a_hash_is_that_of_the_weights(make_gpt2):
    model = make_gpt2()
    before = weights_hash(model)
    assert before == weights_hash(make_gpt2())
    found = {before, weights_hash(make_gpt2(seed=1)), weights_hash(make_gpt2().bfloat16())}
    weight = model.blocks[2].mlp.b_out.data.view(torch.int32)
    weight[7] ^= 1
    assert len({*found, weights_hash(model)}) == 4
    weight[7] ^= 1
    assert weights_hash(model) == before


def test_a_manifest_does_not_take_the_place_of_one_that_stands(cache, monkeypatch):
    """Written whole or not at all."""
    folder, manifest = cache
    before = (folder / MANIFEST).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(folder, manifest)
    assert (folder / MANIFEST).read_bytes() == before
