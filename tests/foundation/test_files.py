"""Files are whole or not there at all."""

import errno
import fcntl
import os
from multiprocessing import get_context
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


def take_a_turn(path: Path, ready: Any, may_end: Any) -> None:
    with taking_turns(path):
        ready.set()
        may_end.wait(60)


def test_processes_take_turns_and_a_killed_one_lets_the_next_in(tmp_path: Path) -> None:
    context = get_context("spawn")
    ready, may_end, path = context.Event(), context.Event(), tmp_path / "made"
    other = context.Process(target=take_a_turn, args=(path, ready, may_end))
    other.start()
    assert ready.wait(60)
    with (tmp_path / ".made.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other.kill()
    with taking_turns(path):
        pass
    other.join()
    assert list(tmp_path.iterdir()) == []


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
