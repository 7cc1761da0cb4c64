"""Data sets from the hub, through the real clients, from a server on 127.0.0.1."""

import json
from collections.abc import Callable

import pyarrow as pa
import pytest
from hub_server import Hub
from pyarrow import parquet

N_DOCUMENTS = 120
HELD_OUT = 10

READ = """
import json
from pathlib import Path
from sae_kit.checkpoint import (load_checkpoint, save_checkpoint)
from sae_kit.config import from_node
from sae_kit.data.tokens import TokensConfig
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer

def answer(config, *, n=1, split="train", world=(0, 1), resume=None, save=None):
    config = from_node(TokensConfig, {{"kind": "hub", "context_size": 16}} | config)
    try:
        source = config.open(tokenizer, split=split, world=World(*world), seed=0)
        if resume is not None:
            source.load_state_dict(load_checkpoint(folder / f"step_{{resume}}"))
        contexts = [next(source).tolist() for _ in range(n)]
        if save is not None:
            save_checkpoint(folder, save, source.state_dict(), keep=9)
        return contexts
    except ValueError as error:
        return str(error)

folder = Path({folder!r})
tokenizer = Tokenizer.load(folder)
for asked in json.loads({asked!r}):
    print(json.dumps(answer(**asked)))
"""


@pytest.fixture
def documents() -> list[str]:
    return [f"the cat {i} sat on the mat" + " and the dog" * (i % 7) for i in range(N_DOCUMENTS)]


@pytest.fixture
def stocked(hub, documents, tiny_tokenizer) -> Hub:
    """A hub with the documents as text, in two formats, and as token ids."""
    ids = [[*tiny_tokenizer.encode(text), tiny_tokenizer.eot_id] for text in documents]
    columns = {"texts": {"text": documents, "url": ["u"] * N_DOCUMENTS}, "ids": {"input_ids": ids}}
    half = N_DOCUMENTS // 2
    for name, column in columns.items():
        folder = hub.folder / "datasets" / "sae-kit" / name / "data"
        folder.mkdir(parents=True)
        for i in range(2):
            table = pa.table({key: x[i * half : (i + 1) * half] for key, x in column.items()})
            parquet.write_table(table, folder / f"train-0000{i}-of-00002.parquet", row_group_size=9)
    folder = hub.folder / "datasets" / "sae-kit" / "lines"
    folder.mkdir(parents=True)
    lines = [json.dumps({"body": text}) + "\n" for text in documents]
    (folder / "train.jsonl").write_text("".join(lines[HELD_OUT:]))
    (folder / "validation.jsonl").write_text("".join(lines[:HELD_OUT]))
    return hub


SETS = {
    "texts": {"repo": "sae-kit/texts", "heldout_documents": HELD_OUT},
    "lines": {"repo": "sae-kit/lines", "text_field": "body", "heldout_split": "validation"},
    "ids": {
        "repo": "sae-kit/ids",
        "text_field": None,
        "tokens_field": "input_ids",
        "heldout_documents": HELD_OUT,
    },
}


@pytest.fixture
def read(stocked, tiny_tokenizer, tmp_path) -> Callable[..., list]:
    """Answers each of several questions in one new process: contexts, or an error's text.

    A question is a config and perhaps `n` (contexts), `split`, `world`, and the numbers of the
    checkpoint to `resume` from and to `save`.
    """
    tiny_tokenizer.save(tmp_path)

    def read(*asked: dict, offline: bool = False) -> list:
        code = READ.format(asked=json.dumps(asked), folder=str(tmp_path))
        said = stocked.python(code, cache=tmp_path / "cache", offline=offline)
        return [json.loads(line) for line in said.splitlines()]

    return read


def packed(documents: list[str], tokenizer, n: int) -> list[list[int]]:
    """The first `n` contexts of 16 with BOS, the documents repeated without end."""
    ids = [i for text in documents for i in (*tokenizer.encode(text), tokenizer.eot_id)]
    while len(ids) < 15 * n:
        ids += ids
    return [[tokenizer.eot_id, *ids[15 * i : 15 * (i + 1)]] for i in range(n)]


@pytest.mark.slow
def test_streamed_sets_are_packed_and_resumed_in_mid_stream(read, documents, tiny_tokenizer):
    n_tokens = sum(len(tiny_tokenizer.encode(text)) + 1 for text in documents[HELD_OUT:])
    n_first = n_tokens // 15 - 20
    assert n_first > 60  # well past the first of the two files
    expected = packed(documents[HELD_OUT:], tiny_tokenizer, n_first + 40)  # into a second epoch
    sets = list(enumerate(SETS.values()))
    first = read(*({"config": config, "n": n_first, "save": i} for i, config in sets))
    then = read(*({"config": config, "n": 40, "resume": i} for i, config in sets))
    for a, b in zip(first, then, strict=True):
        assert a == expected[:n_first]
        assert b == expected[n_first:]


@pytest.mark.slow
def test_splits_are_apart_and_ranks_share_the_documents_out(read, documents, tiny_tokenizer):
    held = {"split": "heldout", "n": 5}
    *heldout, even, odd = read(
        *({"config": config, **held} for config in SETS.values()),
        *({"config": SETS["lines"], "world": (rank, 2), "n": 20} for rank in (0, 1)),
    )
    assert heldout == 3 * [packed(documents[:HELD_OUT], tiny_tokenizer, 5)]
    assert even == packed(documents[HELD_OUT::2], tiny_tokenizer, 20)
    assert odd == packed(documents[HELD_OUT + 1 :: 2], tiny_tokenizer, 20)


@pytest.mark.slow
def test_no_process_trains_on_held_out_documents_where_files_are_shared_out(
    read, documents, tiny_tokenizer
):
    ranks = [{"config": SETS["texts"], "world": (rank, 2), "n": 20} for rank in (0, 1)]
    half = N_DOCUMENTS // 2
    first, second = read(*ranks)
    assert first == packed(documents[HELD_OUT:half], tiny_tokenizer, 20)
    assert second == packed(documents[half + HELD_OUT :], tiny_tokenizer, 20)


@pytest.mark.slow
def test_what_cannot_be_had_is_named(read):
    missing, column, split = read(
        {"config": {"repo": "sae-kit/none"}},
        {"config": {"repo": "sae-kit/texts", "text_field": "body"}},
        {"config": {"repo": "sae-kit/texts", "train_split": "trian"}},
    )
    assert "sae-kit/none" in missing
    assert "data=docs" in missing
    assert "no column 'body'; columns: text, url" in column
    assert "sae-kit/texts" in split
    assert "trian" in split


@pytest.mark.slow
def test_without_a_network_what_works_is_said(read):
    (said,) = read({"config": SETS["texts"]}, offline=True)
    assert "cannot read the data set sae-kit/texts from the hub" in said
    assert "data=docs" in said
    assert "data=text" in said
