"""A small campaign of tests/fuzz_formats.py, and that it would notice."""

import random
import subprocess
import sys
import time
from pathlib import Path

import fuzz_formats
import pytest
from format_samples import SAMPLES
from mutations import mutate

SCRIPT = Path(fuzz_formats.__file__)


@pytest.mark.slow
def test_mutants_open_or_are_refused():
    """Ten thousand are for the script by hand; these are other ones."""
    command = [sys.executable, SCRIPT, "--mutants", "400", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(line for line in done.stdout.splitlines() if line.startswith("all"))
    n, n_opened, n_refused, n_wrong = map(int, total.split()[1:])
    assert (n, n_wrong) == (400, 0)
    assert min(n_opened, n_refused) > 20, "mutations that do nothing, or spoil everything"


def test_a_mutant_is_its_seed_and_number():
    trees = [fuzz_formats.tree_of(sample)[0] for sample in SAMPLES[::9]]
    for number in range(60):
        first, again = (mutate(random.Random(f"1 {number}"), trees[0], trees) for _ in range(2))
        assert first == again


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("{}/cfg.json: is damaged"), "refused"),
        (ValueError("is damaged"), "ValueError, unnamed"),
        (ValueError("{}: is damaged (MemoryError: )"), "out of memory"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "{}"), "UnicodeDecodeError, unnamed"),
        (KeyError("{}"), "KeyError"),
        (UserWarning("{}"), "UserWarning"),
    ],
)
def test_only_errors_that_name_the_file_are_refusals(error, outcome, tmp_path):
    def reader(source):
        error.args = tuple(str(a).format(source) if "{}" in str(a) else a for a in error.args)
        raise error

    assert outcome in fuzz_formats.outcome_of(reader, tmp_path, tmp_path)


def test_a_command_that_was_run_is_noticed(tmp_path):
    (tmp_path / "marker").touch()
    assert fuzz_formats.attempt(tmp_path, "") == "a command was run"


def test_slow_readers_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_formats, "SECONDS", 0.1)
    with fuzz_formats.watched():
        outcome = fuzz_formats.outcome_of(lambda source: time.sleep(60), tmp_path, tmp_path)
    assert "TooSlowError" in outcome


@pytest.mark.slow
def test_large_allocations_fail():
    code = (
        "import fuzz_formats, pathlib, torch; fuzz_formats.limit_memory(); "
        "path = pathlib.Path('x'); n = fuzz_formats.HEADROOM * 2; "
        "allocate = lambda source: [torch.empty(n, dtype=torch.uint8)]; "
        "print(fuzz_formats.outcome_of(allocate, path, path))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parent
    )
    assert "allocate memory" in done.stdout, done.stdout + done.stderr


def test_links_and_folders_are_laid_out(tmp_path):
    tree = {"a/b": b"1", "a/link": fuzz_formats.Link("b"), "folder": None}
    fuzz_formats.lay_out(tree, tmp_path / "sae")
    assert (tmp_path / "sae/a/link").read_bytes() == b"1"
    assert (tmp_path / "sae/folder").is_dir()
    fuzz_formats.lay_out({"c": b"2"}, tmp_path / "sae")
    assert [path.name for path in (tmp_path / "sae").iterdir()] == ["c"]
