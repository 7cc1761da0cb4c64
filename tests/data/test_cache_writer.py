"""What is written is the model's own, and a killed writer's cache is that of one never killed."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_cache import (
    EOT,
    N_POS,
    SITES,
    RandomContexts,
    context_of_rows,
    digests,
    passes,
    rows_in_order,
    stream,
    write,
    writer,
)
from torch import Tensor
from torch.testing import assert_close

from sae_kit.checkpoint import load_checkpoint, save_checkpoint
from sae_kit.data import cache_writer
from sae_kit.data.cache_manifest import (
    ACTIVATIONS,
    CONTEXT,
    PROGRESS,
    Manifest,
    file_crc32,
    read_manifest,
    shard_path,
    verify_shard,
)
from sae_kit.data.cache_writer import RowStream
from sae_kit.models.gpt2 import GPT2


@pytest.fixture(scope="module")
def model(make_gpt2) -> GPT2:
    return make_gpt2()


def stored(folder: Path, manifest: Manifest) -> tuple[Tensor, Tensor]:
    shards = [load_file(shard_path(folder, i)) for i in range(manifest.contents.n_shards)]
    return torch.cat([s[ACTIVATIONS] for s in shards]), torch.cat([s[CONTEXT] for s in shards])


# --- what is written ------------------------------------------------------------------------------


def test_rows_are_the_models_own_in_reading_order(model, tmp_path):
    """Against one run for each context: no passes, no drops but those that are looked for here."""
    manifest = write(tmp_path, model)
    acts, context = stored(tmp_path, manifest)
    assert context.tolist() == context_of_rows(300)
    row = 0
    for index in range(int(context[-1])):
        tokens = RandomContexts()[index]
        run = model.run(tokens[None], capture=SITES)
        for pos in range(1, N_POS):
            if tokens[pos] != EOT:
                for site, columns in manifest.contents.columns.items():
                    expected = run.acts[site][0, pos].flatten()
                    assert_close(acts[row, columns], expected, atol=1e-5, rtol=1e-5)
                row += 1
    assert row == 300 - int((context == context[-1]).sum())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_are_kept_in_the_type_asked_for(model, tmp_path, dtype):
    manifest = write(tmp_path, model, dtype=dtype)
    acts, _ = stored(tmp_path, manifest)
    rows = rows_in_order(model, 300)
    expected = torch.cat([rows[site] for site in SITES], dim=1).to(getattr(torch, dtype))
    assert torch.equal(acts, expected)


@pytest.mark.parametrize("shard_rows", [23, 299, 300])
def test_the_size_of_shards_changes_nothing_else(model, tmp_path, shard_rows):
    one = write(tmp_path / "one", model)
    other = write(tmp_path / "other", model, shard_rows=shard_rows)
    for x, y in zip(stored(tmp_path / "one", one), stored(tmp_path / "other", other), strict=True):
        assert torch.equal(x, y)
    assert other.mean_norms == pytest.approx(one.mean_norms, rel=1e-14)
    assert other.n_contexts == one.n_contexts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mean_norms_are_those_of_all_rows_as_they_are_kept(model, tmp_path, dtype):
    manifest = write(tmp_path, model, dtype=dtype)
    acts, _ = stored(tmp_path, manifest)
    for site, columns in manifest.contents.columns.items():
        norms = acts[:, columns].double().square().sum(1).sqrt()
        assert manifest.mean_norms[site] == pytest.approx(float(norms.mean()), rel=1e-13)


def test_the_manifest_says_what_lies_there(model, tmp_path):
    manifest = write(tmp_path, model)
    assert read_manifest(tmp_path) == manifest
    assert manifest.n_contexts >= context_of_rows(300)[-1] + 1
    for number, shard in enumerate(manifest.shards):
        path = shard_path(tmp_path, number)
        assert (path.stat().st_size, file_crc32(path)) == (shard.n_bytes, shard.crc32)
        verify_shard(tmp_path, manifest, number)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"manifest.json", *(f"shard_0000{i}.safetensors" for i in range(5))}


def test_how_far_it_is_is_shown(model, tmp_path, capsys):
    write(tmp_path, model)
    assert "100% 300/300 tokens" in capsys.readouterr().err


# --- killed and continued -------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing in the package catches it."""


def killing(function: Callable, n: int, *, before: bool) -> Callable:
    """`function`, after or before whose n-th call the process is gone."""
    n_calls = 0

    def called(*arguments, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == n and before:
            raise Killed
        result = function(*arguments, **options)
        if n_calls == n:
            raise Killed
        return result

    return called


PLACES = [
    ("save_tensors", 1, True),
    ("save_tensors", 2, False),  # a shard that nobody has noted
    ("save_tensors", 5, False),
    ("save_checkpoint", 1, False),
    ("save_checkpoint", 3, True),
    ("save_checkpoint", 3, False),
    ("save_checkpoint", 6, False),
    ("write_manifest", 1, True),
    ("write_manifest", 1, False),
    ("_take_new", 5, True),  # within a shard
]


@pytest.mark.parametrize(("name", "n", "before"), PLACES)
def test_a_killed_writer_is_continued_byte_for_byte(model, tmp_path, monkeypatch, name, n, before):
    whole = write(tmp_path / "whole", model)
    with monkeypatch.context() as patch:
        patch.setattr(cache_writer, name, killing(getattr(cache_writer, name), n, before=before))
        with pytest.raises(Killed):
            write(tmp_path / "killed", model)
    (tmp_path / "killed" / ".shard_00003.safetensors.123.tmp").write_bytes(b"half a shard")
    assert writer(tmp_path / "killed", model).write() == whole
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_killed_again_and_again(model, tmp_path, monkeypatch):
    write(tmp_path / "whole", model)
    n_kills = 0
    while not (tmp_path / "killed" / "manifest.json").exists():
        with monkeypatch.context() as patch:
            killer = killing(cache_writer.save_checkpoint, 1 + n_kills % 2, before=False)
            patch.setattr(cache_writer, "save_checkpoint", killer)
            try:
                write(tmp_path / "killed", model)
            except Killed:
                n_kills += 1
    assert n_kills >= 4
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_shards_that_are_there_are_not_written_again(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killer = killing(cache_writer.save_checkpoint, 4, before=False)
        patch.setattr(cache_writer, "save_checkpoint", killer)
        with pytest.raises(Killed):
            write(tmp_path, model)
    before = [shard_path(tmp_path, i).stat().st_mtime_ns for i in range(3)]
    again = writer(tmp_path, model)
    assert (len(again.shards), again.n_rows) == (3, 192)
    assert again.n_bytes_left == 108 * again.contents.n_row_bytes
    again.write()
    assert [shard_path(tmp_path, i).stat().st_mtime_ns for i in range(3)] == before


@pytest.fixture
def half(model, tmp_path, monkeypatch) -> Path:
    """A cache with two of its five shards."""
    with monkeypatch.context() as patch:
        killer = killing(cache_writer.save_checkpoint, 3, before=False)
        patch.setattr(cache_writer, "save_checkpoint", killer)
        with pytest.raises(Killed):
            write(tmp_path, model)
    return tmp_path


def test_half_a_cache_is_none_and_says_how_to_finish_it(half):
    with pytest.raises(ValueError, match=f"not finished; .* python train.py resume={half}"):
        read_manifest(half)


def test_another_model_does_not_continue_it(half, make_gpt2):
    with pytest.raises(ValueError, match=r"begun with something else\n  model\.sha256: '"):
        writer(half, make_gpt2(seed=1))


def test_other_settings_do_not_continue_it(half, model):
    with pytest.raises(ValueError, match=r"dtype: 'float32' -> 'bfloat16'\nUndo that"):
        writer(half, model, dtype="bfloat16")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"x")])
def test_a_shard_that_has_gone_is_named(half, model, damage):
    damage(shard_path(half, 1))
    with pytest.raises(ValueError, match=r"shard_00001\.safetensors is missing or damaged"):
        writer(half, model)


def test_a_damaged_note_is_passed_over(half, model, tmp_path_factory, caplog):
    whole = tmp_path_factory.mktemp("whole")
    write(whole, model)
    notes = sorted((half / PROGRESS).iterdir())
    assert [note.name for note in notes] == ["step_1", "step_2"]
    (notes[1] / "state.json").write_text("{}")
    write(half, model)
    assert "damaged" in caplog.text
    assert digests(half) == digests(whole)


# --- the stream of rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_before", [0, 1, 54, 55, 56, 200])
def test_a_position_is_left_and_found_again(model, tmp_path, n_before):
    """54 rows: the first pass. Through the disk, as the writer's."""
    rows = RowStream(passes(model), stream(), contexts_per_pass=4)
    for _ in rows.pieces(n_before):
        pass
    state = load_checkpoint(save_checkpoint(tmp_path, 1, rows.state_dict(), keep=1))
    other = RowStream(passes(model), stream(), contexts_per_pass=4)
    other.load_state_dict(state)
    ahead = [list(source.pieces(100)) for source in (rows, other)]
    for name in SITES:
        one, same = (torch.cat([piece[name] for piece, _ in pieces]) for pieces in ahead)
        assert torch.equal(one, same)
    one, same = (torch.cat([context for _, context in pieces]) for pieces in ahead)
    assert one.tolist() == same.tolist() == context_of_rows(n_before + 100)[n_before:]
    assert rows.n_contexts == other.n_contexts


# --- text that ends -------------------------------------------------------------------------------

ENDING = 53 * (N_POS - 1) - 2 * 18  # rows of 53 contexts, every third with two that do not count


@pytest.fixture
def ending(monkeypatch) -> None:
    """The text has 53 contexts, which come again and again."""
    get = RandomContexts.__getitem__
    monkeypatch.setattr(RandomContexts, "n_contexts", 53)
    monkeypatch.setattr(RandomContexts, "__getitem__", lambda self, i: get(self, i % 53))


def test_all_of_a_text_fits_and_no_more(ending, model, tmp_path):
    manifest = write(tmp_path / "all", model, n_rows=ENDING)
    assert manifest.n_contexts == 53
    acts, context = stored(tmp_path / "all", manifest)
    assert context.tolist() == context_of_rows(ENDING)
    assert len(acts[:, :32].unique(dim=0)) == ENDING
    message = rf"n_tokens: {ENDING + 1} is more than the {ENDING} positions .* n_tokens={ENDING} or"
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "more", model, n_rows=ENDING + 1)


def test_a_killed_writer_finds_the_same_end(ending, model, tmp_path, monkeypatch):
    write(tmp_path / "whole", model, n_rows=ENDING)
    for n_rows in (ENDING, ENDING + 1):
        folder = tmp_path / str(n_rows)
        with monkeypatch.context() as patch:
            killer = killing(cache_writer.save_checkpoint, 12, before=False)  # 11 shards are there
            patch.setattr(cache_writer, "save_checkpoint", killer)
            with pytest.raises(Killed):
                write(folder, model, n_rows=n_rows)
        if n_rows == ENDING:
            write(folder, model, n_rows=n_rows)
            assert digests(folder) == digests(tmp_path / "whole")
        else:
            with pytest.raises(ValueError, match=f"more than the {ENDING} positions"):
                write(folder, model, n_rows=n_rows)


def test_text_of_special_tokens_alone_ends(model, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_writer, "MAX_EMPTY_PASSES", 3)
    monkeypatch.setattr(RandomContexts, "__getitem__", lambda self, i: torch.full((N_POS,), EOT))
    with pytest.raises(ValueError, match="12 contexts in a row hold nothing but special tokens"):
        write(tmp_path, model)


# --- what cannot be kept --------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_refused_before_work(model, tmp_path, monkeypatch):
    needed = 300 * (144 * 4 + 8)

    def disk(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    disk(needed - 1)
    with pytest.raises(ValueError, match=r"needs 0\.0 GB, but its disk has 0\.0 GB free; give a"):
        writer(tmp_path, model)
    assert list(tmp_path.iterdir()) == []
    disk(needed)
    writer(tmp_path, model)


def test_only_what_is_missing_needs_space(half, model, monkeypatch):
    free = (300 - 128) * (144 * 4 + 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    writer(half, model)


def test_values_beyond_float16_are_named(make_gpt2, tmp_path):
    model = make_gpt2()
    model.blocks[1].attn.b_O.fill_(7e4)
    for dtype in ("float32", "bfloat16"):
        manifest = write(tmp_path / dtype, model, dtype=dtype)
        assert math.isfinite(manifest.mean_norms[SITES[2]])
    message = r"blocks\.2\.hook_resid_mid' have mean norm inf in float16; give dtype=bfloat16"
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "float16", model, dtype="float16")


def test_a_broken_model_is_named(make_gpt2, tmp_path):
    model = make_gpt2()
    model.blocks[1].attn.b_O.fill_(math.nan)
    with pytest.raises(ValueError, match=r"have mean norm nan in float32; .* the model is broken"):
        write(tmp_path, model)


def test_the_order_of_sites_is_that_of_the_contents(model, tmp_path):
    manifest = write(tmp_path, model, sites=SITES[::-1])
    acts, _ = stored(tmp_path, manifest)
    columns = manifest.contents.columns
    assert columns[SITES[2]] == slice(0, 32)
    for site, rows in rows_in_order(model, 300).items():
        assert torch.equal(acts[:, columns[site]], rows)
    other = replace(manifest.contents, sites=dict(reversed(manifest.contents.sites.items())))
    assert other.columns != columns
