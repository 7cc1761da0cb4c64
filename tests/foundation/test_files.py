"""Files are whole or not there at all."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_kit.files import (
    DamagedFileError,
    load_tensors,
    save_tensors,
    taking_turns,
    write_atomic,
)


def test_write_atomic_replaces_or_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    write_atomic(file, "old ü")
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*config\.yaml"):
        write_atomic(file, "newer")
    assert file.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "wb")
fcntl.flock(file, fcntl.LOCK_EX)
print("mine", flush=True)
sys.stdin.read()
"""


def test_a_turn_waits_for_a_process_that_has_it_until_that_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    command, done = [sys.executable, "-S", "-c", HOLDER, str(tmp_path / ".made.lock")], []

    def take_turn() -> None:
        with taking_turns(tmp_path / "made"):
            done.append(True)

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        ours = threading.Thread(target=take_turn)
        ours.start()
        ours.join(0.1)
        assert not done
        other.kill()
        ours.join(60)
    assert done
    assert "waiting for another process that is making" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_turns_never_overlap_though_each_deletes_the_lock(tmp_path: Path) -> None:
    inside, most = [], []

    def take_turns() -> None:
        for _ in range(20):
            with taking_turns(tmp_path / "made"):
                inside.append(True)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()

    takers = [threading.Thread(target=take_turns) for _ in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(60)
    assert most == [1] * 80


def test_saved_tensors_come_back_in_their_own_memory(tmp_path: Path) -> None:
    file, tensors = tmp_path / "t.safetensors", {"a/b.c": torch.arange(4.0)[::2]}
    save_tensors(file, tensors)
    found = load_tensors(file)
    file.write_bytes(b"")
    assert list(found) == ["a/b.c"]
    assert torch.equal(found["a/b.c"], tensors["a/b.c"])
    with pytest.raises(DamagedFileError, match=r"t\.safetensors: cannot be read"):
        load_tensors(file)
    with pytest.raises(DamagedFileError, match=r"absent\.safetensors: cannot be read"):
        load_tensors(tmp_path / "absent.safetensors")
