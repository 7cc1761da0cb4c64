"""Packing loses nothing, repeats nothing, and tokenises a text once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_kit.data.packing import FlatTokens, PackedContexts, as_context, pieces_of, tokenise_once
from sae_kit.models.tokenizer import Tokenizer


def flat(n: int, name: str = "numbers") -> FlatTokens:
    return FlatTokens(name, np.arange(n, dtype=np.uint16), f"numbers {n}")


@pytest.mark.parametrize("which", ["word_tokenizer", "gpt2_tokenizer"])
@pytest.mark.parametrize("seed", range(5))
def test_pieces_tokenise_as_the_whole(
    which: str, seed: int, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(which)
    rng = np.random.default_rng(seed)
    parts = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\n  ",
        " \n",
        "\t",
        "\r\n",
        "word",
        "Mary",
        "1732",
        "...",
        "é",
        "<|endoftext|>",
    ]
    text = "".join(rng.choice(parts, 400))
    pieces = list(pieces_of(text, 20))
    assert len(pieces) > 5
    assert "".join(pieces) == text
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_text_without_a_line_end_stays_whole() -> None:
    assert list(pieces_of("word " * 100, 10)) == ["word " * 100]
    assert list(pieces_of("", 10)) == [""]


def test_documents_are_joined_by_end_of_text(tiny_tokenizer: Tokenizer) -> None:
    # Enough documents for several batches, one of them long enough for several pieces.
    documents = [f"the cat {i}\n" for i in range(200)] + ["the mat\nand the dog\n" * 9000]
    tokens = tokenise_once(documents, content="c", name="n", tokenizer=tiny_tokenizer)
    expected = [
        i
        for document in documents
        for i in [*tiny_tokenizer.encode(document), tiny_tokenizer.eot_id]
    ]
    assert tokens.ids.tolist() == expected
    assert not tokens.ids.flags.writeable


def test_text_is_tokenised_once(tiny_tokenizer: Tokenizer, own_cache: Path) -> None:
    def documents(text: str):
        read.append(text)
        yield text

    read: list[str] = []
    first = tokenise_once(documents("a"), content="c1", name="n", tokenizer=tiny_tokenizer)
    again = tokenise_once(documents("b"), content="c1", name="n", tokenizer=tiny_tokenizer)
    other = tokenise_once(documents("c"), content="c2", name="n", tokenizer=tiny_tokenizer)
    assert read == ["a", "c"]
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert np.array_equal(first.ids, again.ids)
    assert {file.suffix for file in (own_cache / "tokens").iterdir()} == {".uint16"}


def test_a_tokenisation_that_breaks_off_leaves_nothing(
    tiny_tokenizer: Tokenizer, own_cache: Path
) -> None:
    def documents():
        yield "the cat " * 100
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        tokenise_once(documents(), content="c", name="n", tokenizer=tiny_tokenizer)
    assert list((own_cache / "tokens").iterdir()) == []


def test_several_at_once_tokenise_once(tiny_tokenizer: Tokenizer, own_cache: Path) -> None:
    """The first fails half way, the second does the work, and the others find it done."""
    begun, read = threading.Event(), []

    def documents(number: int):
        read.append(number)
        yield "the cat"
        begun.set()
        time.sleep(0.2)  # while the others come
        if len(read) == 1:
            raise OSError("the disk is gone")

    def tokenise(number: int) -> list[int]:
        if number > 0:
            begun.wait()
        texts = documents(number)
        return tokenise_once(texts, content="c", name="n", tokenizer=tiny_tokenizer).ids.tolist()

    with ThreadPoolExecutor(4) as pool:
        first, *others = [pool.submit(tokenise, number) for number in range(4)]
        with pytest.raises(OSError, match="the disk is gone"):
            first.result(timeout=60)
        found = [other.result(timeout=60) for other in others]
    assert found == [[*tiny_tokenizer.encode("the cat"), tiny_tokenizer.eot_id]] * 3
    assert len(read) == 2
    assert [file.suffix for file in (own_cache / "tokens").iterdir()] == [".uint16"]


def test_large_vocabularies_are_kept_in_32_bits(
    gpt2_tokenizer: Tokenizer, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokenise_once(["Hello"], content="a", name="n", tokenizer=gpt2_tokenizer).ids
    assert (ids.dtype, ids.tolist()) == (np.uint16, [15496, 50256])
    monkeypatch.setattr(tiny_tokenizer, "vocab_size", (1 << 16) + 1)
    ids = tokenise_once(["Hello"], content="b", name="n", tokenizer=tiny_tokenizer).ids
    assert ids.dtype == np.int32


@pytest.mark.parametrize("bos", [None, 0, 299])
def test_an_epoch_is_every_token_once(bos: int | None) -> None:
    body = 7
    contexts = PackedContexts(flat(100), context_size=body + (bos is not None), bos=bos, seed=3)
    assert (contexts.n_contexts, contexts.n_tokens) == (14, 100)
    for epoch in range(3):
        epoch_contexts = [contexts[epoch * 14 + i] for i in range(14)]
        if bos is not None:
            assert {int(c[0]) for c in epoch_contexts} == {bos}
        bodies = torch.stack([c[-body:] for c in epoch_contexts])
        assert bodies.dtype == torch.int64
        assert bodies.flatten().sort().values.tolist() == list(range(98))
        assert (bodies.diff(dim=1) == 1).all()  # consecutive text


def test_the_order_changes_with_epoch_and_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        contexts = PackedContexts(flat(100), context_size=5, bos=None, seed=seed)
        return [int(contexts[epoch * 20 + i][0]) for i in range(20)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != sorted(order(0, 0))


def test_fingerprints_tell_contexts_apart() -> None:
    def fingerprint(tokens: FlatTokens, size: int, bos: int | None, seed: int) -> str:
        return PackedContexts(tokens, context_size=size, bos=bos, seed=seed).fingerprint

    reference = (flat(100), 5, None, 0)
    others = [
        (flat(101), 5, None, 0),
        (flat(100), 6, None, 0),
        (flat(100), 5, 0, 0),
        (flat(100), 5, None, 1),
    ]
    assert fingerprint(*reference) == fingerprint(*reference)
    assert len({fingerprint(*case) for case in [reference, *others]}) == 5


def test_too_little_text_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="my book: 9 tokens of text do not fill one context of 11"):
        PackedContexts(flat(9, "my book"), context_size=11, bos=0, seed=0)
    assert PackedContexts(flat(10), context_size=11, bos=0, seed=0).n_contexts == 1


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seed=-1"):
        PackedContexts(flat(9), context_size=3, bos=None, seed=-1)


def test_context_with_and_without_bos() -> None:
    ids = np.array([65535, 1], np.uint16)
    assert as_context(ids, None).tolist() == [65535, 1]
    assert as_context(ids, 0).tolist() == [0, 65535, 1]
    assert as_context(ids, 9).tolist() == [9, 65535, 1]
