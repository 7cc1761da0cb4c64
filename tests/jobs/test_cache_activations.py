"""The job that writes activations, and the main job trained from them."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import random_gpt2
from safetensors.torch import load_file
from small_cache import digests

from sae_kit import load_model, load_saes
from sae_kit.checkpoint import load_checkpoint
from sae_kit.data import cache_writer
from sae_kit.data.cache_manifest import open_shard, read_manifest, weights_hash
from sae_kit.data.text import TextConfig
from sae_kit.dist import World
from sae_kit.jobs.run_folder import read_config
from sae_kit.jobs.train import train
from sae_kit.models.pretrained import save_model
from sae_kit.train.loop import TrainingError

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
N_ROWS = 5000


@pytest.fixture(scope="module")
def settings(tiny_folder) -> list[str]:
    """Arguments of a small cache in two shards."""
    return [
        "model=local",
        f"model.name={tiny_folder / 'model'}",
        "model.device=cpu",
        "data=text",
        f"data.paths=[{tiny_folder / 'text.txt'}]",
        "data.context_size=32",
        "contexts_per_pass=4",
        f"n_tokens={N_ROWS}",
        "shard_mb=1",
    ]


@pytest.fixture(scope="module")
def from_cache(tiny_saes, written):
    """Arguments of an SAE run of 10 steps on the cache."""
    others = [a for a in tiny_saes if not a.startswith("activations.")]
    return [*others, "activations=cached", f"activations.path={written}"]


@pytest.fixture(scope="module")
def written(composed, settings, tmp_path_factory) -> Path:
    """A finished cache."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch, composed(folder, *settings, name="cache") as cfg:
        patch.setenv("SAE_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert train(cfg).stopped is None
    return folder


# --- writing --------------------------------------------------------------------------------------


def test_what_a_cache_holds(written, tiny_folder):
    names = {path.name for path in written.iterdir()}
    shards = {"shard_00000.safetensors", "shard_00001.safetensors"}
    assert names == {"config.yaml", "provenance.json", "manifest.json", *shards}
    manifest = read_manifest(written)
    held = manifest.contents
    assert held.sites == dict.fromkeys(SITES, 32)
    assert (held.n_rows, held.dtype, held.context_size, held.seed) == (N_ROWS, "float32", 32, 0)
    assert held.shard_rows == 1_000_000 // (64 * 4 + 8)
    assert held.model.name == str(tiny_folder / "model")
    assert held.model.sha256 == weights_hash(load_model(held.model.name).model)
    assert held.data["kind"] == "text"
    assert held.data["paths"] == [str(tiny_folder / "text.txt")]
    assert read_config(written)["task"] == "cache"
    assert json.loads((written / "provenance.json").read_text())[0]["config"]["n_tokens"] == N_ROWS


def test_rows_are_those_of_the_text_in_the_order_of_training(written, tiny_folder):
    lm = load_model(str(tiny_folder / "model"))
    data = TextConfig(paths=(str(tiny_folder / "text.txt"),), context_size=32)
    tokens = data.open(lm.tokenizer, split="train", world=World(0, 1), seed=0)
    contexts = torch.stack([next(tokens) for _ in range(40)])
    counts = contexts != lm.tokenizer.eot_id
    counts[:, 0] = False
    acts = lm.model.run(contexts, capture=SITES).acts
    shard = open_shard(written, read_manifest(written), 0)
    for number, site in enumerate(SITES):
        expected = acts[site][counts]
        found = shard.acts[: len(expected), 32 * number : 32 * (number + 1)]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_space_and_the_way_on_are_said(composed, settings, tmp_path, caplog):
    caplog.set_level("INFO")
    with composed(tmp_path / "run", *settings, "n_tokens=500", name="cache") as cfg:
        train(cfg)
    for said in (
        "at 2 sites, 500 positions in float32: 0.00 GB to write in 1 shards",
        f"if interrupted, go on with: python train.py resume={tmp_path / 'run'}",
        f"python train.py activations=cached activations.path={tmp_path / 'run'}",
    ):
        assert said in caplog.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_space(composed, settings, written, tmp_path, dtype):
    with composed(tmp_path / "run", *settings, f"dtype={dtype}", name="cache") as cfg:
        train(cfg)
    half = sum(path.stat().st_size for path in (tmp_path / "run").glob("shard_*"))
    whole = sum(path.stat().st_size for path in written.glob("shard_*"))
    assert half == pytest.approx(whole * (64 * 2 + 8) / (64 * 4 + 8), rel=0.01)
    kept = load_file(tmp_path / "run" / "shard_00000.safetensors")["activations"]
    assert kept.dtype == getattr(torch, dtype)


def test_a_finished_cache_is_left_as_it_is(composed, settings, written, tmp_path, caplog):
    caplog.set_level("INFO")
    before = digests(written)
    with composed(tmp_path, f"resume={written}") as cfg:
        train(cfg)
    assert "is finished" in caplog.text
    assert digests(written) == before


def test_a_folder_with_a_cache_is_not_taken_again(composed, settings, written):
    before = digests(written)
    with (
        composed(written, *settings, name="cache") as cfg,
        pytest.raises(ValueError, match=f"holds a run already; continue it with resume={written}"),
    ):
        train(cfg)
    assert digests(written) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("n_tokens=0", "n_tokens: 0 is not positive"),
        ("shard_mb=0", "shard_mb: 0 is not positive"),
        ("contexts_per_pass=-1", "contexts_per_pass: -1 is not positive"),
        ("seed=-1", "seed: -1 is negative"),
        ("dtype=float8", "dtype: 'float8' is not one of 'float32', 'bfloat16', 'float16'"),
        ("sites=blocks.9.hook_resid_pre", "sites: 'blocks.9.hook_resid_pre' matches no site"),
        ("sites=blocks.0.attn.hook_pattern", "no fixed width"),
        ("data.context_size=64", "context_size=64 is longer than the model's context of 32"),
        ("n_tokens=1e9", "n_tokens: 1000000000 is more than the "),
    ],
)
def test_settings_that_do_not_fit_fail_before_work_starts(
    composed, settings, tmp_path, changed, message
):
    with (
        composed(tmp_path / "run", *settings, changed, name="cache") as cfg,
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


def n_counting(folder: Path, *, bos: bool, drop_first: bool, drop_special: bool) -> int:
    """Positions of the tiny text that count, looked for one by one."""
    tokenizer = load_model(str(folder / "model")).tokenizer
    data = TextConfig(paths=(str(folder / "text.txt"),), context_size=32, prepend_bos=bos)
    tokens, n = data.open(tokenizer, split="train", world=World(0, 1), seed=0), 0
    for _ in range(tokens.n_contexts):
        for place, token in enumerate(next(tokens).tolist()):
            special = drop_special and token == tokenizer.eot_id
            n += not (special or (drop_first and place == 0))
    return n


@pytest.mark.parametrize(
    ("bos", "drop_first", "drop_special"),
    [(True, True, True), (True, False, True), (False, False, True), (True, False, False)],
)
def test_the_largest_cache_is_the_whole_text_once(
    composed, settings, tiny_folder, tmp_path, bos, drop_first, drop_special
):
    """One position more is refused before work starts, with the number that fits."""
    n = n_counting(tiny_folder, bos=bos, drop_first=drop_first, drop_special=drop_special)
    settings = [
        *settings,
        "contexts_per_pass=64",
        f"data.prepend_bos={bos}",
        f"drop_first_position={drop_first}",
        f"drop_special_tokens={drop_special}",
    ]
    with (
        composed(tmp_path / "more", *settings, f"n_tokens={n + 1}", name="cache") as cfg,
        pytest.raises(ValueError, match=rf"more than the {n} positions .* give n_tokens={n} or"),
    ):
        train(cfg)
    assert not (tmp_path / "more").exists()
    with composed(tmp_path / "all", *settings, f"n_tokens={n}", name="cache") as cfg:
        train(cfg)
    manifest = read_manifest(tmp_path / "all")
    data = TextConfig(paths=(str(tiny_folder / "text.txt"),), context_size=32, prepend_bos=bos)
    tokenizer = load_model(str(tiny_folder / "model")).tokenizer
    tokens = data.open(tokenizer, split="train", world=World(0, 1), seed=0)
    assert (manifest.contents.n_rows, manifest.n_contexts) == (n, tokens.n_contexts)


def test_a_disk_that_is_too_small_is_refused(composed, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with (
        composed(tmp_path / "run", *settings, name="cache") as cfg,
        pytest.raises(ValueError, match=r"path: .*/run needs 0\.0 GB, but its disk has 0\.0 GB"),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_it_is_the_work_of_one_process(composed, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        composed(tmp_path / "run", *settings, name="cache") as cfg,
        pytest.raises(ValueError, match="one process, not of 2; start it without torchrun"),
    ):
        train(cfg)


def test_a_disk_that_fills_up_keeps_what_is_there(
    composed, settings, written, tmp_path, monkeypatch
):
    save = cache_writer.save_tensors

    def full(path, tensors):
        if path.name == "shard_00001.safetensors":
            raise OSError(28, "No space left on device: could not write")
        save(path, tensors)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, composed(folder, *settings, name="cache") as cfg:
        patch.setattr(cache_writer, "save_tensors", full)
        with pytest.raises(TrainingError, match=r"No space left.*\n1 of 2 shards .*resume="):
            train(cfg)
    with composed(tmp_path / "other", f"resume={folder}") as cfg:
        assert train(cfg).stopped is None
    ours, theirs = digests(folder), digests(written)
    for name in ("manifest.json", "shard_00000.safetensors", "shard_00001.safetensors"):
        assert ours[name] == theirs[name]


# --- training from it -----------------------------------------------------------------------------


@pytest.mark.slow
def test_saes_are_trained_from_it(composed, from_cache, written, tmp_path):
    folder = tmp_path / "run"
    with composed(folder, *from_cache) as cfg:
        assert train(cfg).stopped is None
    saes = load_saes(folder)
    assert list(saes) == SITES
    manifest = read_manifest(written)
    for site, sae in saes.items():
        said = sae.metadata["training"]
        assert said["activations"]["path"] == str(written)
        scale = 32**0.5 / manifest.mean_norms[site]
        assert said["folded_input_scale"] == pytest.approx(scale, rel=1e-12)
    state = load_checkpoint(folder / "checkpoints" / "step_10")["task"]["source"]
    assert state == {"position": 320, "cache": manifest.digest}


def test_some_of_its_sites_are_enough(composed, from_cache, tmp_path):
    with composed(tmp_path / "run", *from_cache, f"sites={SITES[1]}") as cfg:
        train(cfg)
    assert list(load_saes(tmp_path / "run")) == SITES[1:]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("sites=blocks.*.hook_resid_post", "has no 'blocks.0.hook_resid_post'"),
        ("activations.drop_special_tokens=false", "give activations.drop_special_tokens=true"),
        ("data.context_size=16", "give data.context_size=32"),
        ("data.prepend_bos=false", "give data.prepend_bos=true"),
        ("model.dtype=bfloat16", "dtype=float32"),
        ("model.centre_writing_weights=true", "centre_writing_weights=false"),
        ("trainer.batch_rows=5001 trainer.n_tokens=1e4", "batch_rows: 5001 rows a step"),
        ("activations.path=nowhere", "--config-name=cache path=nowhere"),
        ("objective=e2e", "activations=live"),
    ],
)
def test_runs_that_do_not_fit_it_fail_before_work_starts(
    composed, from_cache, tmp_path, changed, message
):
    with (
        composed(tmp_path / "run", *from_cache, *changed.split()) as cfg,
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_saes_tell_the_text_of_the_cache(composed, from_cache, tiny_folder, tmp_path, caplog):
    text, other = tiny_folder / "text.txt", tmp_path / "other.txt"
    other.write_text(text.read_text(encoding="utf-8")[::2], encoding="utf-8")
    with composed(
        tmp_path / "run", *from_cache, f"data.paths=[{other}]", f"sites={SITES[1]}"
    ) as cfg:
        train(cfg)
    assert "is of other text" in caplog.text
    assert f"paths: ['{text}'] -> ['{other}']" in caplog.text
    (sae,) = load_saes(tmp_path / "run").values()
    assert sae.metadata["training"]["data"]["paths"] == [str(text)]
    assert sae.metadata["prepend_bos"] is True


def test_weights_that_changed_since_are_found(composed, from_cache, tiny_folder, tmp_path):
    lm = load_model(str(tiny_folder / "model"))
    other = random_gpt2(lm.model.config, seed=1)
    save_model(other, lm.tokenizer, tmp_path / "model")
    with (
        composed(tmp_path / "run", *from_cache, f"model.name={tmp_path / 'model'}") as cfg,
        pytest.raises(ValueError, match=r"model: its weights \(SHA-256 .* are not those of"),
    ):
        train(cfg)
