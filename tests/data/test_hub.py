"""Streaming and packing of rows held in memory; test_hub_server.py does it through the clients."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sae_kit.data import hub
from sae_kit.data.hub import HubConfig, HubStream
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer

DOCUMENTS = [f"the cat {i} sat on the mat" + " and the dog" * (i % 7) for i in range(100)]


class MemoryRows:
    """Rows in memory with a position, as a streamed data set has one."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.position = 0
        self.n_opened = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self.position < len(self.rows):
            self.position += 1
            yield self.rows[self.position - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


Open = Callable[..., HubStream]


@pytest.fixture
def stream(tiny_tokenizer: Tokenizer) -> Open:
    """A stream over rows, of `context_size` 16 without BOS."""

    def make(rows: list[dict[str, Any]], world: World | None = None, **fields: Any) -> HubStream:
        config = HubConfig(repo="o/set", context_size=16, **{"prepend_bos": False, **fields})
        return HubStream(
            lambda: MemoryRows(rows),
            tiny_tokenizer,
            config=config,
            world=world or World(0, 1),
            fingerprint="f",
        )

    return make


def texts(documents: list[str]) -> list[dict[str, Any]]:
    return [{"text": document} for document in documents]


def flat(documents: list[str], tokenizer: Tokenizer) -> list[int]:
    return [i for text in documents for i in (*tokenizer.encode(text), tokenizer.eot_id)]


def ids_of(source: HubStream, n: int) -> list[int]:
    return torch.cat([next(source) for _ in range(n)]).tolist()


def test_epochs_follow_without_a_gap(stream: Open, tiny_tokenizer: Tokenizer) -> None:
    expected = flat(DOCUMENTS, tiny_tokenizer)
    n = 2 * len(expected) // 16
    assert ids_of(stream(texts(DOCUMENTS)), n) == (2 * expected)[: 16 * n]


def test_token_rows_are_joined_as_they_are(stream: Open) -> None:
    rows = [{"ids": list(range(i, i + 9))} for i in range(100)]
    source = stream(rows, text_field=None, tokens_field="ids")
    expected = [i for row in rows for i in row["ids"]]
    assert ids_of(source, 50) == expected[:800]


@pytest.mark.parametrize("stop", [0, 1, 30, 95, 150])
def test_resuming_is_never_having_stopped(stream: Open, stop: int) -> None:
    whole, stopped, resumed = (stream(texts(DOCUMENTS)) for _ in range(3))
    expected = ids_of(whole, stop + 90)
    ids_of(stopped, stop) if stop else []
    state = stopped.state_dict()
    ids_of(stopped, 5)  # the state does not change with the source
    resumed.load_state_dict(state)
    assert ids_of(resumed, 90) == expected[16 * stop :]


def test_blank_documents_are_left_out(stream: Open, tiny_tokenizer: Tokenizer) -> None:
    rows = texts(["", "the cat sat on the mat", " \n", "the dog"])
    expected = flat(["the cat sat on the mat", "the dog"], tiny_tokenizer)
    assert ids_of(stream(rows), 1) == (expected * 9)[:16]


def test_null_rows_are_left_out(stream: Open, tiny_tokenizer: Tokenizer) -> None:
    rows = [{"text": None}, *texts(["the cat sat"]), {"text": None}, *texts(["the dog"])]
    expected = flat(["the cat sat", "the dog"], tiny_tokenizer)
    assert ids_of(stream(rows), 1) == (expected * 9)[:16]
    rows = [{"ids": None}, {"ids": [1, 2, 3]}, {"ids": []}, {"ids": None}, {"ids": [4]}]
    source = stream(rows, text_field=None, tokens_field="ids")
    assert ids_of(source, 1) == [1, 2, 3, 4] * 4


@pytest.mark.parametrize("value", [7, 1.5, b"the cat", ["the cat"]])
def test_a_column_without_text_is_named(stream: Open, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"o/set: column 'text' holds {type(value).__name__}, no"):
        next(stream([*texts(["the cat"]), {"text": value}]))


@pytest.mark.parametrize(
    "value", [7, "the cat", [1.5], [1, None], ["1"], [[1], [2]], [[1], [2, 3]]]
)
def test_a_column_without_token_ids_is_named(stream: Open, value: Any) -> None:
    rows = [{"ids": [1, 2]}, {"ids": value}]
    with pytest.raises(ValueError, match=r"o/set: column 'ids' holds .*, not a list of token ids"):
        next(stream(rows, text_field=None, tokens_field="ids"))


def test_rows_without_the_column_are_refused(stream: Open) -> None:
    with pytest.raises(ValueError, match="o/set has no column 'text'; columns: body, id"):
        next(stream([{"body": "the cat", "id": 1}]))


@pytest.mark.parametrize("rows", [[], texts(["", "  "]), [{"text": None}]])
def test_a_set_without_text_is_refused(stream: Open, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="data set o/set, rank 1 of 2: no text in it"):
        next(stream(rows, World(1, 2)))


def test_ids_of_another_tokenizer_are_refused(stream: Open, tiny_tokenizer: Tokenizer) -> None:
    n = tiny_tokenizer.vocab_size
    rows = [{"ids": [0, 1, n - 1]}] * 6 + [{"ids": [0, 1, n]}]
    with pytest.raises(ValueError, match=rf"o/set: token ids 0\.\.{n} are not of a tokenizer with"):
        next(stream(rows, text_field=None, tokens_field="ids"))


def test_a_connection_that_breaks_is_explained(stream: Open, monkeypatch) -> None:
    def broken(self: MemoryRows) -> Iterator[dict[str, Any]]:
        yield {"text": "the cat"}
        raise ConnectionResetError("gone")

    monkeypatch.setattr(MemoryRows, "__iter__", broken)
    with pytest.raises(ValueError, match=r"cannot read the data set o/set .*gone.*data=docs"):
        next(stream([]))


def test_positions_of_other_sets_or_worlds_are_refused(stream: Open) -> None:
    source = stream(texts(DOCUMENTS))
    state = source.state_dict()
    with pytest.raises(ValueError, match="not of o/set with this tokenizer"):
        source.load_state_dict({**state, "contexts": "other"})
    with pytest.raises(ValueError, match="1 processes, this one has 2"):
        stream(texts(DOCUMENTS), World(0, 2)).load_state_dict(state)
    with pytest.raises(ValueError, match="1 processes, this one has 2"):
        stream(texts(DOCUMENTS), World(0, 2)).continue_from([state])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens_field": "ids"}, "give exactly one of the two"),
        ({"text_field": None}, "give exactly one of the two"),
        ({"heldout_documents": 0}, "heldout_documents=0"),
        ({"context_size": 1}, "context_size=1"),
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HubConfig(repo="o/set", **fields)


def test_the_client_is_imported_only_when_used() -> None:
    assert not hasattr(hub, "datasets")
