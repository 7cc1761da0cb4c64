"""Synthetic documents are fixed by (seed, split, index) and teach what they are meant to."""

import re

import numpy as np
import pytest

from sae_kit.data.grammar import Split, Words
from sae_kit.data.synthetic import SyntheticDocuments, synthetic_text
from sae_kit.models.tokenizer import Tokenizer


def test_documents_do_not_depend_on_the_order_of_asking(word_tokenizer: Tokenizer) -> None:
    def read(order: range, seed: int = 0, split: Split = "train") -> dict[int, list[int]]:
        documents = SyntheticDocuments(word_tokenizer, seed=seed, split=split)
        return {i: documents[i] for i in order}

    forward = read(range(20))
    assert forward == read(range(19, -1, -1))
    assert forward != read(range(20), seed=1)
    assert forward != read(range(20), split="heldout")


def test_documents_have_no_end_of_text_token(word_tokenizer: Tokenizer) -> None:
    documents = SyntheticDocuments(word_tokenizer, seed=0)
    for i in range(100):
        assert documents[i]
        assert word_tokenizer.eot_id not in documents[i]


def test_every_family_appears_and_years_rise(word_tokenizer: Tokenizer) -> None:
    documents = SyntheticDocuments(word_tokenizer, seed=0)
    texts = [word_tokenizer.decode(documents[i]) for i in range(200)]
    years = [
        m for text in texts for m in re.findall(r"year (\d{4}) to (?:the year )?(\d{4})", text)
    ]
    assert len(years) > 30
    assert all(1100 <= int(first) < int(second) <= 1899 for first, second in years)
    assert any(":param" in text for text in texts)
    assert any("Yesterday" in text for text in texts)


def test_some_random_sequences_follow_ordinary_text(word_tokenizer: Tokenizer) -> None:
    ordinary = np.full(100, 7, np.uint16)
    plain = SyntheticDocuments(word_tokenizer, seed=0)
    mixed = SyntheticDocuments(word_tokenizer, seed=0, ordinary=ordinary)
    n_longer = 0
    for i in range(100):
        before, after = plain[i], mixed[i]
        prefix = len(after) - len(before)
        assert after == [7] * prefix + before
        n_longer += prefix > 0
    assert 2 < n_longer < 25


@pytest.mark.slow
def test_texts_for_a_tokenizer_hold_every_word() -> None:
    assert synthetic_text(0, 30) == synthetic_text(0, 30) != synthetic_text(1, 30)
    texts = synthetic_text(0, 1200)
    joined = "".join(texts)
    assert [word for word in Words().words() if f" {word}" not in joined] == []
    assert [y for y in range(1100, 1900) if f" {y}" not in joined] == []


@pytest.mark.parametrize("year", range(0, 100, 7))
def test_digits_get_tokens(word_tokenizer: Tokenizer, year: int) -> None:
    assert word_tokenizer.single(f"{year:02d}") is not None
