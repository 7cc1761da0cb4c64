"""The sentences: right answers are right, twins are twins, and the splits do not overlap."""

import random
import re
from collections.abc import Callable

import pytest

from sae_kit.data.grammar import (
    Sentence,
    Split,
    Words,
    draw_docstring,
    draw_greater_than,
    draw_ioi,
)

WORDS = Words()
FEW = Words(
    names=WORDS.names[:9],
    objects=WORDS.objects[:5],
    events=WORDS.events[:5],
    arguments=WORDS.arguments[:12],
    years=WORDS.years[:20],
)
"""So few that every combination soon comes up."""
DRAWS = [draw_ioi, draw_greater_than, draw_docstring]
Draw = Callable[[Words, Split, random.Random], Sentence]


def many(draw: Draw, split: Split, n: int = 50, words: Words = WORDS) -> list[Sentence]:
    rng = random.Random(0)
    return [draw(words, split, rng) for _ in range(n)]


def label(sentence: Sentence, name: str) -> str:
    (piece,) = [piece for piece in sentence.clean if piece.label == name]
    return piece.text.strip()


def text_of(pieces: tuple) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("draw", DRAWS)
def test_twins_differ_in_labelled_words_only(draw: Draw) -> None:
    for sentence in many(draw, "train"):
        assert len(sentence.clean) == len(sentence.corrupt)
        changed = 0
        for clean, corrupt in zip(sentence.clean, sentence.corrupt, strict=True):
            assert clean.label == corrupt.label
            assert clean.label or clean.text == corrupt.text
            changed += clean.text != corrupt.text
        assert changed > 0


@pytest.mark.parametrize("draw", DRAWS)
def test_no_answer_is_wrong(draw: Draw) -> None:
    for sentence in many(draw, "heldout"):
        assert sentence.answers
        assert sentence.wrong
        assert not set(sentence.answers) & set(sentence.wrong)


@pytest.mark.parametrize("draw", DRAWS)
def test_drawing_is_deterministic_in_the_generator(draw: Draw) -> None:
    assert many(draw, "train", 20) == many(draw, "train", 20)


def test_ioi_names_the_receiver() -> None:
    orders = set()
    for sentence in many(draw_ioi, "train"):
        io, s1, s2 = (label(sentence, name) for name in ("IO", "S1", "S2"))
        assert s1 == s2 != io
        assert sentence.answers == (f" {io}",)
        assert sentence.wrong == (f" {s1}",)
        text = text_of(sentence.clean)
        first = "ABBA" if text.index(f" {io}") < text.index(f" {s1}") else "BABA"
        assert sentence.template.startswith(first)
        orders.add(first)
    assert orders == {"ABBA", "BABA"}


def test_ioi_corruption_has_three_other_names() -> None:
    for sentence in many(draw_ioi, "train"):
        names = {piece.text for piece in sentence.clean if piece.label}
        others = {piece.text for piece in sentence.corrupt if piece.label}
        assert len(others) == 3
        assert not names & others


def test_greater_than_answers_are_the_later_years() -> None:
    for sentence in many(draw_greater_than, "train"):
        century, year = label(sentence, "century"), int(label(sentence, "year"))
        assert text_of(sentence.clean).endswith(f" {century}")
        assert [int(answer) for answer in sentence.answers] == list(range(year + 1, 100))
        assert [int(answer) for answer in sentence.wrong] == list(range(year + 1))
        start = re.search(r"year (\d\d)01 to", text_of(sentence.corrupt))
        assert start is not None
        assert start[1] == century


def test_docstring_asks_for_the_next_argument() -> None:
    for sentence in many(draw_docstring, "train"):
        text = sentence.text(sentence.answers[0])
        signature = re.search(r"\(self, (.*)\):", text)
        assert signature is not None
        arguments = signature[1].split(", ")
        assert len(set(arguments)) == 6
        assert re.findall(r":param (\w+):", text) == arguments[2:5]
        assert sorted(sentence.wrong) == sorted(f" {a}" for a in arguments if a != arguments[4])
        compile(text, "docstring", "exec")  # it is Python
        corrupt = text_of(sentence.corrupt)
        documented = re.findall(r":param (\w+):", corrupt)
        assert not any(f" {name}," in corrupt for name in documented)


def combination(draw: Draw, sentence: Sentence) -> tuple[str, ...]:
    if draw is draw_ioi:
        words = {piece.text.strip() for piece in sentence.clean} & set(WORDS.objects)
        return (*sorted([label(sentence, "IO"), label(sentence, "S1")]), *words)
    if draw is draw_greater_than:
        return tuple(label(sentence, name) for name in ("noun", "century", "year"))
    return tuple(label(sentence, name) for name in ("A_def", "B_def", "C_def"))


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
def test_heldout_combinations_are_not_in_train_but_their_words_are(draw: Draw) -> None:
    train = {combination(draw, s) for s in many(draw, "train", 400, FEW)}
    heldout = {combination(draw, s) for s in many(draw, "heldout", 100, FEW)}
    assert len(heldout) > 5
    assert not train & heldout
    assert {word for words in heldout for word in words} <= {w for words in train for w in words}


def test_heldout_ioi_templates_are_not_in_train() -> None:
    train, heldout = (
        {sentence.template for sentence in many(draw_ioi, split)} for split in ("train", "heldout")
    )
    assert len(heldout) > 1
    assert not train & heldout


def test_words_are_listed_once_and_can_be_narrowed() -> None:
    for name in ("names", "places", "objects", "events", "arguments", "functions", "description"):
        words = getattr(WORDS, name)
        assert len(set(words)) == len(words)
    fewer = WORDS.only({"Mary", "John", "store"})
    assert (fewer.names, fewer.places, fewer.objects) == (("John", "Mary"), ("store",), ())
    assert fewer.years == WORDS.years
