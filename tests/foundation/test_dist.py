"""The world: from the process group, else from the launcher, else one process alone."""

from pathlib import Path

import pytest
import torch

from sae_kit.dist import World, world


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_alone() -> None:
    assert world() == World(rank=0, size=1)


def test_launcher_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    assert world() == World(0, 1)  # half an environment is no launcher
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world() == World(rank=2, size=4)


def test_group_overrules_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        assert world() == World(0, 1)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ValueError, match=r"(?i)rank|size"):
        world()
