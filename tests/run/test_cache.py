"""Activations on disk, in whole runs: killed writers and killed trainers leave no trace."""

import random
import signal
from pathlib import Path

import pytest
from small_cache import digests

RECORD_FLUSHES = 4  # provenance and config, each a file and its folder
NOTE_FLUSHES = 5
SAVE_FLUSHES = 2 + NOTE_FLUSHES  # of a shard: itself, its folder, and the note that follows


def cache(tiny, folder: Path) -> list[str]:
    return [
        "--config-name=cache",
        f"path={folder}",
        "model=local",
        f"model.name={tiny.model}",
        "data=text",
        f"data.paths=[{tiny.text}]",
        "data.context_size=32",
        "contexts_per_pass=2",
        "sites=blocks.*.hook_resid_*",
        "n_tokens=16000",
        "shard_mb=1",
    ]


def lasting(folder: Path) -> dict[str, str]:
    """What must not depend on how a cache got there; provenance.json has times in it."""
    found = digests(folder)
    for name in ("provenance.json", "config.yaml"):
        del found[name]
    return found


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory) -> Path:
    """The cache whose writer was never interrupted."""
    folder = tmp_path_factory.mktemp("reference") / "cache"
    run = tiny.run(*cache(tiny, folder))
    assert run.status == 0, run.err
    assert len(list(folder.glob("shard_*"))) > 10
    return folder


@pytest.mark.slow
def test_killed_between_flushes(tiny, reference, tmp_path):
    draw, folder = random.Random(0), tmp_path / "cache"
    arguments, in_the_middle, start = cache(tiny, folder), 0, RECORD_FLUSHES + NOTE_FLUSHES
    for _ in range(4):
        run = tiny.run(*arguments, die_at_flush=start + draw.randint(1, SAVE_FLUSHES))
        assert run.status == -signal.SIGKILL, run.err
        in_the_middle += any(folder.rglob(".*"))
        arguments, start = [f"resume={folder}"], RECORD_FLUSHES
    assert in_the_middle >= 1
    assert tiny.run(*arguments).status == 0
    assert lasting(folder) == lasting(reference)


@pytest.mark.slow
def test_killed_while_writing(tiny, reference, tmp_path):
    folder, n_killed = tmp_path / "cache", 0
    arguments = cache(tiny, folder)
    for number in (0, 2, 4, 6):
        run = tiny.start(*arguments)
        run.wait_for((folder / f"shard_{number:05d}.safetensors").is_file)
        run.kill(signal.SIGKILL)
        n_killed += run.wait() == -signal.SIGKILL
        arguments = [f"resume={folder}"]
    assert n_killed > 0
    assert tiny.run(*arguments).status == 0
    assert lasting(folder) == lasting(reference)


@pytest.mark.slow
def test_a_killed_trainer_goes_on_in_the_cache(tiny, reference, tmp_path):
    arguments = tiny.saes(
        activations="cached",
        activations__path=reference,
        activations__buffer_rows=None,
        activations__contexts_per_pass=None,
        trainer__n_tokens=80 * 256,  # more than the cache has
        trainer__batch_rows=256,
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert tiny.run(*arguments, f"hydra.run.dir={whole}").status == 0
    run = tiny.start(*arguments, f"hydra.run.dir={killed}")
    run.wait_for((killed / "checkpoints" / "step_39").is_dir)
    run.kill(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, run.err
    again = tiny.run(f"resume={killed}")
    assert again.status == 0, again.err
    assert "all 16,000 positions were read; epoch 2 begins" in again.out
    for name in ("saes", "checkpoints/step_80"):
        assert digests(killed / name) == digests(whole / name)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_damaged_shard_ends_a_run_before_it_starts(tiny, tmp_path):
    folder = tmp_path / "cache"
    assert tiny.run(*cache(tiny, folder)).status == 0
    shard = folder / "shard_00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    arguments = tiny.saes(
        activations="cached",
        activations__path=folder,
        activations__buffer_rows=None,
        activations__contexts_per_pass=None,
    )
    run = tiny.run(*arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert run.status == 2
    assert f"error: {shard}: checksum differs, the file is damaged; put back a copy" in run.err
    assert "Traceback" not in run.err
    assert not (tmp_path / "run").exists()
