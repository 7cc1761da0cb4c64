"""Prompt families with known answers, in the tokens of any tokenizer.

A family draws clean/corrupt pairs of equal length with right and wrong next tokens and labelled
positions (`Prompt`), the input of patching and circuit discovery, and whole documents, the input of
language-model training. `grammar.py` has the texts and their sources.

Words that the tokenizer does not keep as one token (with the space before them) are left out and
counted, so that positions line up across prompts; too few left is a ValueError.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import ClassVar, final

from sae_kit.data.grammar import (
    Piece,
    Sentence,
    Split,
    Words,
    draw_docstring,
    draw_greater_than,
    draw_ioi,
)
from sae_kit.models.tokenizer import Tokenizer


@final
@dataclass(frozen=True)
class Prompt:
    """One clean/corrupt pair. All ids are tokens; nothing is prepended."""

    template: str
    """What kind of sentence it is; the labels of one template are at the same positions."""
    clean: tuple[int, ...]
    """The prompt; the answer is the token after its last."""
    corrupt: tuple[int, ...]
    """Same length, the information that the answer needs replaced."""
    answers: tuple[int, ...]
    """Right next tokens (several for greater-than)."""
    wrong: tuple[int, ...]
    """Wrong next tokens to compare with."""
    positions: Mapping[str, int]
    """Label -> index into `clean`; "end" is the last token."""

    def is_aligned(self, other: "Prompt") -> bool:
        """Whether both have one length, and the same labels at the same set of positions.

        ABBA and BABA prompts of one sentence are aligned: their labels changed places.
        """
        return (
            len(self.clean) == len(other.clean)
            and self.positions.keys() == other.positions.keys()
            and set(self.positions.values()) == set(other.positions.values())
        )


class PromptFamily(ABC):
    """Draws prompts and documents. Deterministic in (tokenizer, seed, split, index)."""

    name: str
    left_out: tuple[str, ...] = ()
    """Words not used because the tokenizer splits them."""

    def prompts(self, n: int, *, seed: int, split: Split = "heldout") -> list[Prompt]:
        """`n` prompts, of any length and kind of sentence."""
        return list(islice(self.stream(seed=seed, split=split), n))

    def stream(self, *, seed: int, split: Split = "heldout") -> Iterator[Prompt]:
        """Prompts without end; `prompts` gives the first of them."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        while True:
            yield self.draw(rng, split)

    @abstractmethod
    def draw(self, rng: random.Random, split: Split) -> Prompt:
        """One prompt."""

    @abstractmethod
    def document(self, rng: random.Random, split: Split) -> list[int]:
        """Token ids of a document with the prompts answered, without an end-of-text token."""


@final
class Induction(PromptFamily):
    """A random token sequence, repeated: the second half can only be predicted by copying.

    The corrupted prompt has another first half. Nothing is held out but the draws themselves.
    Labels: first (where the last token stood before), copied (after it: the answer), repeat.
    """

    name = "induction"

    def __init__(self, tokenizer: Tokenizer, *, length: int = 25) -> None:
        """`length`: tokens in the sequence before it repeats, at least 2."""
        if length < 2:
            raise ValueError(f"length={length}: a sequence to repeat has at least 2 tokens")
        self._ids = [i for i in range(tokenizer.vocab_size) if i != tokenizer.eot_id]
        if len(self._ids) < 3:
            raise ValueError(f"a vocabulary of {tokenizer.vocab_size} tokens is too small")
        self._length = length

    def draw(self, rng: random.Random, split: Split) -> Prompt:
        """The sequence and its repetition up to the last token, which is the answer."""
        sequence = rng.choices(self._ids, k=self._length)
        other = rng.choices(self._ids, k=self._length)
        wrong = rng.choice([i for i in rng.sample(self._ids, 2) if i != sequence[-1]])
        return Prompt(
            template="induction",
            clean=(*sequence, *sequence[:-1]),
            corrupt=(*other, *sequence[:-1]),
            answers=(sequence[-1],),
            wrong=(wrong,),
            positions={
                "first": self._length - 2,
                "copied": self._length - 1,
                "repeat": self._length,
                "end": 2 * self._length - 2,
            },
        )

    def document(self, rng: random.Random, split: Split) -> list[int]:
        """A sequence of 8..100 tokens, two or three times over."""
        return rng.choices(self._ids, k=rng.randint(8, 100)) * rng.choice((2, 2, 3))


class _SentenceFamily(PromptFamily):
    """What the families made of sentences share: pieces to ids, words to single tokens."""

    _slots: ClassVar[dict[str, int]]
    """Word list used -> the fewest words it can do with."""
    _max_sentences: ClassVar[int]
    """In a document."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError if too few words are single tokens of `tokenizer`."""
        self._tokenizer = tokenizer
        self._ids = lru_cache(maxsize=4096)(lambda text: tuple(tokenizer.encode(text)))
        every = Words()
        encoded = tokenizer.encode_batch([f" {word}" for word in every.words()])
        whole = {word for word, ids in zip(every.words(), encoded, strict=True) if len(ids) == 1}
        self._words = self._narrowed(every.only(whole))
        left_out: list[str] = []
        for slot, fewest in self._slots.items():
            kept = getattr(self._words, slot)
            if len(kept) < fewest:
                raise ValueError(
                    f"{self.name}: only {len(kept)} of {len(getattr(every, slot))} {slot} are "
                    f"single tokens of this tokenizer; at least {fewest} are needed"
                )
            left_out += [word for word in getattr(every, slot) if word not in kept]
        self.left_out = tuple(left_out)

    @abstractmethod
    def _narrowed(self, words: Words) -> Words:
        """`words` without those that this family cannot use for reasons of its own."""

    @abstractmethod
    def _sentence(self, rng: random.Random, split: Split) -> Sentence:
        """One sentence."""

    def draw(self, rng: random.Random, split: Split) -> Prompt:
        """One prompt."""
        sentence = self._sentence(rng, split)
        clean, positions = self._tokens(sentence.clean)
        corrupt, _ = self._tokens(sentence.corrupt)
        assert len(clean) == len(corrupt), sentence
        return Prompt(
            template=sentence.template,
            clean=clean,
            corrupt=corrupt,
            answers=tuple(self._ids(answer)[0] for answer in sentence.answers),
            wrong=tuple(self._ids(answer)[0] for answer in sentence.wrong),
            positions={**positions, "end": len(clean) - 1},
        )

    def document(self, rng: random.Random, split: Split) -> list[int]:
        """A few sentences, answered."""
        texts = []
        for _ in range(rng.randint(1, self._max_sentences)):
            sentence = self._sentence(rng, split)
            texts.append(sentence.text(rng.choice(sentence.answers)))
        return self._tokenizer.encode(" ".join(texts))

    def _tokens(self, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], dict[str, int]]:
        ids: list[int] = []
        positions = {}
        for piece in pieces:
            if piece.label:
                positions[piece.label] = len(ids)
            ids += self._ids(piece.text)
        return tuple(ids), positions


@final
class IndirectObject(_SentenceFamily):
    """ "Then, Mary and John went to the store. John gave a drink to" -> " Mary"."""

    name = "ioi"
    _slots: ClassVar = {"names": 10, "places": 2, "objects": 4}
    _max_sentences = 3

    def _narrowed(self, words: Words) -> Words:
        return words

    def _sentence(self, rng: random.Random, split: Split) -> Sentence:
        return draw_ioi(self._words, split, rng)


@final
class GreaterThan(_SentenceFamily):
    """ "The war lasted from the year 1732 to the year 17" -> any two digits above 32."""

    name = "greater_than"
    _slots: ClassVar = {"events": 5}
    _max_sentences = 3

    def _narrowed(self, words: Words) -> Words:
        digits = [self._tokenizer.single(f"{year:02d}") for year in range(100)]
        encoded = self._tokenizer.encode_batch(
            [f" {century}{year}" for century, year in words.years]
        )
        years = tuple(
            (century, year)
            for (century, year), ids in zip(words.years, encoded, strict=True)
            if ids == [*self._ids(f" {century}"), digits[int(year)]] and len(ids) == 2
        )
        if None in digits or not years:
            raise ValueError(
                "greater_than: this tokenizer does not split years as ' 17', '32' with a token for "
                "every two digits; GPT-2's tokenizer and those of train_bpe do"
            )
        return replace(words, years=years)

    def _sentence(self, rng: random.Random, split: Split) -> Sentence:
        return draw_greater_than(self._words, split, rng)


@final
class DocstringArguments(_SentenceFamily):
    """A method and its half-written docstring -> the next argument to document."""

    name = "docstring"
    _slots: ClassVar = {"arguments": 15, "functions": 2, "description": 15}
    _max_sentences = 2

    def _narrowed(self, words: Words) -> Words:
        # The first word of a docstring stands right after the quotes, without a space.
        kept = [word for word in words.description if self._tokenizer.single(word) is not None]
        return replace(words, description=tuple(kept))

    def _sentence(self, rng: random.Random, split: Split) -> Sentence:
        return draw_docstring(self._words, split, rng)


def families(tokenizer: Tokenizer) -> dict[str, PromptFamily]:
    """Every family by name. Raises ValueError if the tokenizer suits one of them too badly."""
    made: tuple[PromptFamily, ...] = (
        Induction(tokenizer),
        IndirectObject(tokenizer),
        GreaterThan(tokenizer),
        DocstringArguments(tokenizer),
    )
    return {family.name: family for family in made}
