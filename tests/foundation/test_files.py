"""Files are whole or not there at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_kit.files import DamagedFileError, load_tensors, save_tensors, write_atomic


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
