"""Checkpoints that several processes write together."""

import errno
from pathlib import Path

import pytest
import torch
from ranks import in_ranks

from sae_kit import checkpoint
from sae_kit.checkpoint import Parts, checkpoints, latest_checkpoint, save_checkpoint
from sae_kit.dist import World
from sae_kit.files import DamagedFileError


def state_of(rank: int) -> dict[str, object]:
    return {"own": torch.full((3,), float(rank)), "rank": rank, "tuple": (1, None)}


def save(here: World, folder: Path, steps: tuple[int, ...]) -> list[str]:
    return [save_checkpoint(folder, step, state_of(here.rank), keep=2).name for step in steps]


@pytest.mark.slow
def test_every_process_has_its_part(tmp_path):
    assert in_ranks(save, tmp_path, (3, 4, 5), size=3) == [["step_3", "step_4", "step_5"]] * 3
    assert [path.name for path in checkpoints(tmp_path)] == ["step_5", "step_4"]
    assert not list(tmp_path.glob(".*"))
    parts = Parts(tmp_path / "step_5")
    assert len(parts) == 3
    for rank, state in enumerate(parts):
        assert (state["rank"], state["tuple"]) == (rank, (1, None))
        assert torch.equal(state["own"], torch.full((3,), float(rank)))
    assert [state["rank"] for state in parts[1:]] == [1, 2]
    with pytest.raises(IndexError):
        parts[3]
    path, state = latest_checkpoint(tmp_path)
    assert (path, state["rank"]) == (tmp_path / "step_5", 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensors.1.safetensors", "state.1.json"])
def test_a_damaged_part_is_named(tmp_path, name):
    in_ranks(save, tmp_path, (3,))
    file = tmp_path / "step_3" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DamagedFileError, match=f"{name}: checksum differs"):
        Parts(tmp_path / "step_3")
    file.unlink()
    with pytest.raises(DamagedFileError, match=name):
        Parts(tmp_path / "step_3")


def save_with_a_full_disk(here: World, folder: Path) -> str:
    save_checkpoint(folder, 1, state_of(here.rank), keep=1)
    if here.rank == 1:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoint._write_part = full
    try:
        save_checkpoint(folder, 2, state_of(here.rank), keep=1)
    except OSError as error:
        return str(error)
    return "saved"


@pytest.mark.slow
def test_what_one_disk_refuses_none_has_saved(tmp_path):
    for said in in_ranks(save_with_a_full_disk, tmp_path):
        assert "No space left on device: could not write" in said
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    assert len(Parts(tmp_path / "step_1")) == 2
