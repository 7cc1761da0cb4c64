"""The shares of a mixture are exact over a block, and each part is read in its own order."""

from pathlib import Path

import pytest
import torch

from sae_kit.data import docs
from sae_kit.data.docs import DocstringCorpus
from sae_kit.data.mixture import MixedContexts, MixtureConfig, SyntheticContexts
from sae_kit.data.packing import fingerprint_of
from sae_kit.data.synthetic import SyntheticDocuments
from sae_kit.data.tokens import Contexts
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer


class Numbered(Contexts):
    """Context i of part p is [p, i]."""

    n_contexts = None
    n_tokens = None

    def __init__(self, part: int) -> None:
        self.part = part
        self.fingerprint = fingerprint_of(part)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([self.part, index])


SHARES = (0.55, 0.302, 0.148)


def mixed(seed: int = 0) -> MixedContexts:
    return MixedContexts([Numbered(p) for p in range(3)], SHARES, seed=seed)


def test_shares_are_exact_in_every_block() -> None:
    contexts = mixed()
    for block in range(2):
        parts = [int(contexts[block * 1000 + i][0]) for i in range(1000)]
        assert [parts.count(p) for p in range(3)] == [550, 302, 148]
        assert parts != sorted(parts)


def test_every_part_is_read_whole_and_once() -> None:
    contexts = mixed()
    seen = [tuple(contexts[i].tolist()) for i in range(3000)]
    expected = {(p, i) for p, share in enumerate(SHARES) for i in range(round(3000 * share))}
    assert len(seen) == len(set(seen))
    assert set(seen) == expected


def test_a_part_that_begins_again_is_told() -> None:
    parts = [Numbered(p) for p in range(3)]
    parts[1].n_contexts = 400
    contexts = MixedContexts(parts, SHARES, seed=0)
    for i in range(3000):
        part, number = contexts[i].tolist()
        assert contexts.repeats(i) == (part == 1 and number >= 400)


def test_the_order_is_fixed_by_the_seed() -> None:
    def order(seed: int) -> list[list[int]]:
        return [mixed(seed)[i].tolist() for i in range(50)]

    assert order(0) == order(0) != order(1)


def test_unequal_mixtures_have_unequal_fingerprints() -> None:
    parts = [Numbered(p) for p in range(2)]
    prints = {
        MixedContexts(parts, (0.5, 0.5), seed=0).fingerprint,
        MixedContexts(parts, (0.4, 0.6), seed=0).fingerprint,
        MixedContexts(parts, (0.5, 0.5), seed=1).fingerprint,
        MixedContexts(parts[::-1], (0.5, 0.5), seed=0).fingerprint,
    }
    assert len(prints) == 4


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_synthetic_contexts_begin_with_a_whole_document(
    word_tokenizer: Tokenizer, prepend_bos: bool
) -> None:
    documents = SyntheticDocuments(word_tokenizer, seed=0)
    contexts = SyntheticContexts(
        documents, word_tokenizer, context_size=64, prepend_bos=prepend_bos
    )
    body = 64 - prepend_bos
    for index in range(20):
        ids = contexts[index].tolist()
        assert len(ids) == 64
        if prepend_bos:
            assert ids.pop(0) == word_tokenizer.eot_id
        first = [*documents[index * body], word_tokenizer.eot_id][:body]
        assert ids[: len(first)] == first


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.1), (1.2, -0.1, -0.1), (0.0, 0.0, 0.0)])
def test_shares_must_add_up(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        MixtureConfig(
            docs_share=shares[0],
            text_share=shares[1],
            synthetic_share=shares[2],
            text_paths=("a.txt",),
        )


def test_a_text_share_needs_text() -> None:
    with pytest.raises(ValueError, match="text_paths: no text named"):
        MixtureConfig(text_paths=())
    MixtureConfig(text_paths=(), text_share=0.0, docs_share=0.9)


def test_all_three_kinds_appear(
    word_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = DocstringCorpus(
        train=("return the number of the result " * 50,),
        heldout=("nothing " * 50,),
        versions={},
        n_files=1,
        n_unreadable=0,
        seconds=0.0,
    )
    monkeypatch.setattr(docs, "docstring_corpus", lambda: corpus)
    for name, word in (("a.txt", "lake"), ("b.txt", "hill")):
        (tmp_path / name).write_text(f"{word} " * 200, encoding="utf-8")
    config = MixtureConfig(
        context_size=32, text_paths=(str(tmp_path / "*.txt"),), text_heldout=("b.txt",)
    )
    expected = {"train": ("return", "lake", "hill"), "heldout": ("nothing", "hill", "lake")}
    for split, (documented, written, absent) in expected.items():
        source = config.open(word_tokenizer, split=split, world=World(0, 1), seed=0)
        texts = [word_tokenizer.decode(next(source)[1:].tolist()) for _ in range(200)]
        kinds = [
            "docs" if documented in text else "text" if written in text else "synthetic"
            for text in texts
        ]
        assert 60 < kinds.count("docs") < 120
        assert 60 < kinds.count("text") < 120
        assert 5 < kinds.count("synthetic") < 40
        assert not any(f"{absent} {absent}" in text for text in texts)
