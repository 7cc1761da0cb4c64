"""Whole runs of two processes: finished, killed, continued by as many or by one."""

import signal
from pathlib import Path

import pytest
from ranks import free_port, launcher_says
from small_cache import digests

LOST = "another process of the run has ended"


def start(tiny, *arguments: str, size: int = 2):
    port = free_port()
    return [tiny.start(*arguments, env=launcher_says(r, size, port)) for r in range(size)]


def run(tiny, *arguments: str):
    runs = start(tiny, *arguments)
    for one in runs:
        one.wait()
    return runs


def arguments_of(tiny, mode: str, folder: Path, **changed: object) -> list[str]:
    return [*tiny.saes(trainer__parallel=mode, **changed), f"hydra.run.dir={folder}"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["data", "sites"])
def test_killed_and_continued(tiny, tmp_path, mode):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    length = {"trainer__n_tokens": 60 * 64}
    runs = run(tiny, *arguments_of(tiny, mode, whole, **length))
    assert [one.status for one in runs] == [0, 0], runs[0].err + runs[1].err
    assert "CE recovered" in runs[0].out  # the closing table, once
    assert "CE recovered" not in runs[1].out
    assert len(list((whole / "saes").iterdir())) == 2

    first, second = start(tiny, *arguments_of(tiny, mode, killed, **length))
    first.wait_for((killed / "checkpoints" / "step_6").is_dir)
    second.kill(signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    assert first.wait() == 2, first.err
    assert LOST in first.err
    assert f"torchrun --nproc-per-node 2 train.py resume={killed}" in first.err
    assert "Traceback" not in first.err

    again = run(tiny, f"resume={killed}")
    assert [one.status for one in again] == [0, 0], again[0].err + again[1].err
    assert digests(killed / "saes") == digests(whole / "saes")
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["data", "sites"])
def test_continued_by_one(tiny, tmp_path, mode):
    folder = tmp_path / "run"
    first, second = start(tiny, *arguments_of(tiny, mode, folder, trainer__n_tokens=60 * 64))
    first.wait_for((folder / "checkpoints" / "step_6").is_dir)
    first.kill(signal.SIGTERM)
    assert [first.wait(), second.wait()] == [128 + signal.SIGTERM] * 2, first.err + second.err
    alone = tiny.run(f"resume={folder}")
    assert alone.status == 0, alone.err
    assert "resumed from" in alone.out
    assert len(list((folder / "saes").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trainer__batch_rows": 63}, "trainer.batch_rows: 63 rows cannot be shared equally by 2"),
        (
            {"trainer__parallel": "sites", "sites": "blocks.0.hook_resid_pre"},
            "trainer.parallel: 'sites' cannot spread 1 SAEs over 2 processes",
        ),
        ({"trainer__parallel": "layers"}, "parallel: 'layers' is unknown; give data or sites"),
    ],
    ids=["rows", "sites", "word"],
)
def test_what_does_not_fit_is_said_before_work_starts(tiny, tmp_path, changed, message):
    folder = tmp_path / "run"
    runs = run(tiny, *tiny.saes(**changed), f"hydra.run.dir={folder}")
    for one in runs:
        assert one.status == 2
        assert message in one.err
        assert "Traceback" not in one.err
    assert not folder.exists()
