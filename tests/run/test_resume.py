"""A run that is stopped, killed or fails, and then continued, is the run that never was.

Bit for bit: every saved weight, the state of the last checkpoint, and every line of metrics.jsonl.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runner import ROOT, Run

RUNNER_STATUS = 2  # what a user's error ends with
LAST_STEP = 20
START_FLUSHES = 6  # provenance, config and metrics: each a file and its folder
SAVE_FLUSHES = 5  # of a checkpoint: three files, its folder, and the folder it is in


def contents(folder: Path) -> dict[str, bytes]:
    """What a finished run leaves that must not depend on how it got there."""
    files = [folder / "metrics.jsonl", folder / "checkpoints" / f"step_{LAST_STEP}"]
    files += [folder / name for name in ("saes", "evaluation", "model", "config.yaml")]
    every = [path for file in files for path in [file, *sorted(file.rglob("*"))] if path.is_file()]
    # result.json has times in it; arrays and the table beside it say the same.
    kept = [path for path in every if path.name != "result.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def assert_same(folder: Path, reference: Path) -> None:
    ours, theirs = contents(folder), contents(reference)
    assert ours.keys() == theirs.keys()
    for name, data in theirs.items():
        assert ours[name] == data, f"{name} differs"


@pytest.fixture(scope="module", params=["saes", "language_model"])
def task(request, tiny) -> Callable[..., list[str]]:
    """The arguments of each kind of run."""
    return getattr(tiny, request.param)


@pytest.fixture(scope="module")
def reference(task, tiny, tmp_path_factory) -> Path:
    """The run that was never interrupted."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    run = tiny.run(*task(), f"hydra.run.dir={folder}")
    assert run.status == 0, run.err
    assert (folder / "metrics.jsonl").read_text().count("\n") == LAST_STEP // 2
    return folder


def finish(tiny, folder: Path) -> Run:
    run = tiny.run(f"resume={folder}")
    assert run.status == 0, run.err
    return run


@pytest.mark.slow
def test_killed_at_random_moments(task, tiny, reference, tmp_path):
    draw, folder = random.Random(0), tmp_path / "run"
    arguments, n_killed, longest = [*task(), f"hydra.run.dir={folder}"], 0, 0.3
    for _ in range(6):
        run = tiny.start(*arguments)
        time.sleep(draw.uniform(0, longest))
        run.kill(signal.SIGKILL)
        if run.wait() == 0:
            longest /= 2
            shutil.rmtree(folder)
        else:
            assert run.status == -signal.SIGKILL, run.err
            n_killed += 1
            longest *= 1.3
        arguments = [*task(), f"hydra.run.dir={folder}"]
        if (folder / "config.yaml").exists():
            arguments = [f"resume={folder}"]
    assert n_killed > 0
    assert tiny.run(*arguments).status == 0
    assert_same(folder, reference)


@pytest.mark.slow
def test_killed_during_saves(task, tiny, reference, tmp_path):
    """Between two flushes to the disk, at every kind of place, again and again."""
    draw, folder = random.Random(1), tmp_path / "run"
    arguments = [*task(), f"hydra.run.dir={folder}"]
    in_the_middle = 0
    for _ in range(5):
        n = START_FLUSHES + SAVE_FLUSHES + draw.randint(1, SAVE_FLUSHES)
        run = tiny.run(*arguments, die_at_flush=n)
        assert run.status == -signal.SIGKILL, run.err
        in_the_middle += any((folder / "checkpoints").glob(".*"))
        arguments = [f"resume={folder}"]
    assert in_the_middle >= 2
    finish(tiny, folder)
    assert_same(folder, reference)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step(task, tiny, reference, tmp_path, number):
    folder = tmp_path / "run"
    run = tiny.start(*task(), f"hydra.run.dir={folder}")
    run.wait_for((folder / "checkpoints" / "step_3").is_dir)
    run.kill(number)
    assert run.wait() == 128 + number, run.err
    assert f"stopped by {number.name} after step" in run.out
    assert f"python train.py resume={folder}" in run.out
    assert "Traceback" not in run.err
    n_steps = max(int(p.name.removeprefix("step_")) for p in (folder / "checkpoints").iterdir())
    assert f"after step {n_steps};" in run.out
    assert not (folder / "saes").exists()
    again = finish(tiny, folder)
    assert f"(step {n_steps} of {LAST_STEP})" in again.out
    assert_same(folder, reference)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(task, tiny, reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    tensors = folder / "checkpoints" / f"step_{LAST_STEP}" / "tensors.safetensors"
    os.truncate(tensors, tensors.stat().st_size // 2)
    run = finish(tiny, folder)
    assert f"{tensors}: " in run.out
    assert "the file is damaged" in run.out
    assert f"step_18 (step 18 of {LAST_STEP})" in run.out
    assert_same(folder, reference)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(task, tiny, reference, tmp_path):
    folder = tmp_path / "run"
    run = tiny.run(
        *task(), f"hydra.run.dir={folder}", disk_full_at_flush=START_FLUSHES + 2 * SAVE_FLUSHES
    )
    assert run.status == RUNNER_STATUS, run.out
    assert "File too large: could not write" in run.err
    assert "the last good checkpoint is" in run.err
    assert f"python train.py resume={folder}" in run.err
    assert "Traceback" not in run.err
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert left == ["step_3", "step_6"], "the unfinished one left a trace"
    finish(tiny, folder)
    assert_same(folder, reference)


@pytest.mark.slow
def test_a_finished_run_resumed_stays_as_it_is(task, tiny, reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    finish(tiny, folder)
    assert_same(folder, reference)


@pytest.mark.slow
def test_the_command_itself(tiny, tmp_path):
    """A plain `python train.py`, killed half way, and continued by another."""
    reference = tmp_path / "reference"
    assert tiny.run(*tiny.saes(), f"hydra.run.dir={reference}").status == 0
    command, folder = [sys.executable, str(ROOT / "train.py")], tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAE_KIT_CACHE": str(tmp_path / "cache")}
    started = subprocess.Popen(
        [*command, *tiny.saes(), f"hydra.run.dir={folder}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while started.poll() is None and not (folder / "checkpoints" / "step_9").is_dir():
        time.sleep(0.002)
    started.kill()
    assert started.wait() == -signal.SIGKILL
    done = subprocess.run(
        [*command, f"resume={folder}"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert_same(folder, reference)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    folder = tmp_path / "run"
    arguments = tiny.saes(trainer__lr=1e30, trainer__checkpoint_every=1, trainer__log_every=1)
    run = tiny.run(*arguments, f"hydra.run.dir={folder}")
    assert run.status == RUNNER_STATUS
    checkpoints = list((folder / "checkpoints").iterdir())
    assert checkpoints
    for said in ("at step", f"the last good checkpoint is {checkpoints[-1].parent}", "trainer.lr"):
        assert said in run.err
    assert "Traceback" not in run.err
    assert "Infinity" not in (folder / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_site_alone_is_that_site_among_all(tiny, tmp_path):
    weights = {}
    for sites in ("blocks.*.hook_resid_*", "blocks.1.hook_resid_pre"):
        folder = tmp_path / sites.replace("*", "x")
        run = tiny.run(*tiny.saes(sites=sites), f"hydra.run.dir={folder}")
        assert run.status == 0, run.err
        saved = folder / "saes" / "blocks.1.hook_resid_pre" / "sae_weights.safetensors"
        weights[sites] = saved.read_bytes()
    assert len(set(weights.values())) == 1
