"""Logs: lines are on disk at once, resuming drops what will be written again, progress is right."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sae_kit.config import from_node
from sae_kit.log import JsonlLogger, LoggerConfig, NoneConfig, Progress, WandbConfig


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- jsonl ----------------------------------------------------------------------------------------


def test_each_line_is_on_disk_as_soon_as_logged(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "metrics.jsonl", resume_step=None)
    for step in (1, 2):
        logger.log({"loss": 0.5, "n": 3}, step=step)
        assert lines(logger.path)[-1] == {"step": step, "loss": 0.5, "n": 3}
    logger.close()
    assert len(lines(logger.path)) == 2


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "m", resume_step=None)
    logger.log({"a": math.nan, "b": -math.inf, "c": 1.0}, step=1)
    logger.close()
    assert lines(logger.path) == [{"step": 1, "a": None, "b": None, "c": 1.0}]


def logged(path: Path, *steps: int) -> None:
    logger = JsonlLogger(path, resume_step=None)
    for step in steps:
        logger.log({"loss": float(step)}, step=step)
    logger.close()


def test_a_new_run_starts_anew(tmp_path: Path) -> None:
    logged(tmp_path / "m", 1, 2)
    logged(tmp_path / "m", 5)
    assert [line["step"] for line in lines(tmp_path / "m")] == [5]


def test_resuming_gives_the_file_of_a_run_never_stopped(tmp_path: Path) -> None:
    logged(tmp_path / "whole", 10, 20, 30, 40)
    logged(tmp_path / "killed", 10, 20, 30)
    with open(tmp_path / "killed", "a") as file:
        file.write('{"step": 40, "lo')  # torn by the kill
    logger = JsonlLogger(tmp_path / "killed", resume_step=20)
    for step in (30, 40):
        logger.log({"loss": float(step)}, step=step)
    logger.close()
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_torn_line_is_dropped_even_where_it_would_be_kept(tmp_path: Path) -> None:
    logged(tmp_path / "m", 10)
    with open(tmp_path / "m", "a") as file:
        file.write('{"step": 20}')  # whole, but without its newline the next would join it
    logger = JsonlLogger(tmp_path / "m", resume_step=20)
    logger.log({}, step=30)
    logger.close()
    assert [line["step"] for line in lines(tmp_path / "m")] == [10, 30]


def test_damaged_lines_are_dropped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m").write_bytes(b'{"step": 1}\n\x00\xff\n[]\n{"loss": 1}\n{"step": 2}\n')
    JsonlLogger(tmp_path / "m", resume_step=5).close()
    assert [line["step"] for line in lines(tmp_path / "m")] == [1, 2]
    assert [record.args[1] for record in caplog.records] == [2, 3, 4]  # type: ignore[index]


def test_resuming_without_a_file_starts_one(tmp_path: Path) -> None:
    JsonlLogger(tmp_path / "m", resume_step=5).close()
    assert (tmp_path / "m").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk always full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "m", resume_step=None)
    logger.close()
    logger._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    with pytest.raises(OSError, match=rf"No space left on device.*{tmp_path}/m"):
        logger.log({"loss": 1.0}, step=1)
    with pytest.raises(OSError, match="No space left"):
        logger.close()  # the line is still in its buffer


# --- services -------------------------------------------------------------------------------------


def test_the_config_chooses_the_service(tmp_path: Path) -> None:
    assert LoggerConfig.variants() == {"none": NoneConfig, "wandb": WandbConfig}
    logger = from_node(LoggerConfig, {"kind": "none"}).build(tmp_path, {})
    logger.log({"loss": 1.0}, step=1)
    logger.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_wandb_is_not_imported_unless_chosen() -> None:
    code = (
        "import sys; from sae_kit.log import LoggerConfig; "
        "LoggerConfig.variants()['none']().build(None, {}); assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wandb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"logger\.kind: 'wandb' needs .*pip install wandb"):
        WandbConfig().build(tmp_path, {})


def test_wandb_without_a_login_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class UsageError(Exception):
        pass

    def init(**_: object) -> None:
        raise UsageError("No API key configured")

    errors = SimpleNamespace(Error=UsageError)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, errors=errors))
    with pytest.raises(ValueError, match=r"logger: .*No API key configured.*logger\.mode=offline"):
        WandbConfig().build(tmp_path, {})


@pytest.mark.slow
def test_wandb_offline_writes_to_the_run_folder_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    # In a process of its own: wandb starts threads and a service, and has warnings of its own.
    code = (
        "import sys; from pathlib import Path; from sae_kit.log import WandbConfig\n"
        "logger = WandbConfig(mode='offline').build(Path(sys.argv[1]), {'sae': {'k': 16}})\n"
        "logger.log({'fvu': 0.25, 'n': 2}, step=int(sys.argv[2])); logger.close()"
    )
    ids = set()
    for step in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path), step]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ids.add((tmp_path / "wandb_id.txt").read_text())
    files = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert files == [f"run-{ids.pop()}.wandb"] * 2  # both parts belong to one run
    assert not ids


# --- progress -------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_every_ten_seconds_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = Progress(10_000, clock=clock)
    for second in range(1, 26):
        clock.now = float(second)
        progress.update(100, FVU=0.123456, L0=16)
    assert capsys.readouterr().err == (
        "10% 1,000/10,000 tokens, 100 tokens/s, ETA 01:30, FVU 0.1235, L0 16\n"
        "20% 2,000/10,000 tokens, 100 tokens/s, ETA 01:20, FVU 0.1235, L0 16\n"
    )
    progress.close()
    assert capsys.readouterr().err.startswith("25% 2,500/10,000 tokens")


def test_rate_is_that_of_the_recent_window() -> None:
    clock = Clock()
    progress = Progress(10**6, done=5000, clock=clock)
    assert progress.rate == 0
    for rate, seconds in ((1000, 100), (10, 60)):  # slows down
        for _ in range(seconds):
            clock.now += 1
            progress.update(rate)
    assert progress.rate == pytest.approx(10)
    assert progress.done == 5000 + 100_600


def test_rate_of_updates_rarer_than_the_window() -> None:
    clock = Clock()
    progress = Progress(10**6, clock=clock)
    for _ in range(3):
        clock.now += 100
        progress.update(500)
    assert progress.rate == pytest.approx(5)


def test_tokens_of_an_earlier_start_count_as_done_but_not_as_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = Progress(10_000, done=9_000, clock=clock)
    clock.now = 10.0
    progress.update(500)
    assert capsys.readouterr().err == "95% 9,500/10,000 tokens, 50 tokens/s, ETA 00:10\n"


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), Clock()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(1000, clock=clock)
    clock.now = 2.0
    progress.update(400, FVU=0.5)
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert last.startswith(" 40%|")
    assert "400/1.00k tokens, 200 tokens/s, ETA 00:03, FVU 0.5" in last
