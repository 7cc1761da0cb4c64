"""Streams over numbered contexts: ranks, positions, and the folder where text is kept."""

from pathlib import Path

import pytest
import torch

from sae_kit.config import from_node
from sae_kit.data.tokens import (
    Contexts,
    ContextStream,
    TokensConfig,
    cache_folder,
    check_context,
    check_world,
)
from sae_kit.dist import World


class Numbered(Contexts):
    n_contexts = 10
    n_tokens = 41

    def __init__(self, fingerprint: str = "numbers") -> None:
        self.fingerprint = fingerprint

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.arange(4) + 100 * index


def read(stream: ContextStream, n: int) -> list[int]:
    return [int(next(stream)[0]) // 100 for _ in range(n)]


def test_ranks_take_turns() -> None:
    streams = [ContextStream(Numbered(), world=World(rank, 3)) for rank in range(3)]
    assert [read(stream, 3) for stream in streams] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert (streams[0].context_size, streams[0].n_contexts, streams[0].n_tokens) == (4, 10, 41)


def test_a_position_can_be_left_and_found_again() -> None:
    stream = ContextStream(Numbered(), world=World(1, 2))
    read(stream, 5)
    state = stream.state_dict()
    ahead = read(stream, 5)
    other = ContextStream(Numbered(), world=World(1, 2))
    other.load_state_dict(state)
    assert read(other, 5) == ahead


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 1), (1, 3)])
def test_another_number_of_ranks_goes_on_behind_all(before: int, after: int) -> None:
    old = [ContextStream(Numbered(), world=World(rank, before)) for rank in range(before)]
    read_by = [read(stream, 4 + (rank == 0)) for rank, stream in enumerate(old)]
    furthest = max(i for own in read_by for i in own)
    new = [ContextStream(Numbered(), world=World(rank, after)) for rank in range(after)]
    for stream in new:
        stream.continue_from([one.state_dict() for one in old])
    first = sorted(read(stream, 1)[0] for stream in new)
    assert first == list(range(first[0], first[0] + after))  # nothing is left out between them
    assert furthest < first[0] <= furthest + before + after
    with pytest.raises(ValueError, match="other contexts"):
        ContextStream(Numbered("others"), world=World(0, 1)).continue_from(
            [one.state_dict() for one in old]
        )


def test_positions_of_other_data_or_worlds_are_refused() -> None:
    state = ContextStream(Numbered(), world=World(0, 1)).state_dict()
    with pytest.raises(ValueError, match="other contexts"):
        ContextStream(Numbered("others"), world=World(0, 1)).load_state_dict(state)
    with pytest.raises(ValueError, match="1 processes, this one has 2"):
        ContextStream(Numbered(), world=World(0, 2)).load_state_dict(state)
    check_world(2, World(1, 2))


def test_contexts_longer_than_the_models_are_refused() -> None:
    check_context(16, 16)
    with pytest.raises(
        ValueError, match=r"context_size=17 .* context of 16 .*data\.context_size=16"
    ):
        check_context(17, 16)


def test_kinds_are_chosen_by_a_word() -> None:
    assert {"docs", "text", "hub", "mixture"} <= set(TokensConfig.variants())
    config = from_node(TokensConfig, {"kind": "text", "paths": ["a.txt"], "context_size": 64})
    assert (config.word, config.context_size) == ("text", 64)


@pytest.mark.parametrize("size", [1, 0, -5])
def test_a_context_has_two_tokens(size: int) -> None:
    with pytest.raises(ValueError, match=f"context_size={size}"):
        from_node(TokensConfig, {"kind": "docs", "context_size": size})


def test_where_text_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_KIT_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("SAE_KIT_CACHE")
    assert cache_folder() == tmp_path / "b" / "sae_kit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / ".cache" / "sae_kit"
