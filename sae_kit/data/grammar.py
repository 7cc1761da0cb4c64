"""Sentences with a known right answer, as text: the tasks of circuit analysis, no tokenizer needed.

Each `draw_*` function returns one `Sentence`: a prompt in labelled pieces, a corrupted version of
it, the right and the wrong next words, and how the text goes on. `prompts.py` turns them into token
ids, `synthetic.py` into text to train a language model on.

- indirect object (Wang et al. 2022, arXiv 2211.00593): "Then, Mary and John went to the store. John
  gave a drink to" -> " Mary"; corrupted by three other names in place of the three.
- greater-than (Hanna et al. 2023, arXiv 2305.00586): "The war lasted from the year 1732 to the year
  17" -> two digits above 32; corrupted by the start year 1701.
- docstring arguments (Heimersheim & Janiak 2023): the third argument to be documented; corrupted by
  other names in the definition and in the docstring.

The corruptions are those of Conmy et al. 2023 (arXiv 2304.14997).

Splits: the heldout split uses combinations of words (and, for IOI, templates) that the train split
never shows; every word itself occurs in train.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple, final

Split = Literal["train", "heldout"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Adam Alex Alice Amy Andrew Anna Anthony Ben Charles Chris Clara Daniel David Dorothy Edward "
    "Elizabeth Emily Emma Frank George Harry Helen Henry Jack James Jane Jason Jennifer Jim John "
    "Joseph Julia Kate Kevin Laura Lisa Lucy Mark Martin Mary Matthew Michael Paul Peter Rachel "
    "Richard Robert Rose Ruth Sam Sarah Simon Steven Susan Thomas Tom Victoria William"
)
PLACES = _words(
    "church city farm garden hospital hotel house kitchen library market museum office park river "
    "school shop station store table theatre town village"
)
OBJECTS = _words(
    "ball basket bell book bottle box card coat cup dish drink flower gift hat key kiss lamp "
    "letter map paper pen picture ring rope stone watch"
)
EVENTS = _words(
    "affair alliance attack battle campaign captivity conflict crisis dispute empire expedition "
    "fashion festival fight friendship game government journey marriage mission movement "
    "negotiation partnership peace period plan plot practice programme project quarrel reign "
    "rebellion regime revolution rule school search service siege struggle study tour trade "
    "treaty trial trip union visit voyage war work"
)
ARGUMENTS = _words(
    "array axis base body cache callback category chain child client code color column command "
    "config content count data date default depth device end error event field file filter flag "
    "format frame graph group handler height image index input item key label layer length level "
    "limit line link list mask matrix message method mode model name node number object offset "
    "option order output parent path pattern point port position prefix process query range rate "
    "request result root row scale scope seed shape size source stack start state step string "
    "style table target task text time title token tree type unit user value version view weight "
    "width window"
)
FUNCTIONS = _words(
    "add apply build check clear close copy create draw fit find get join load make merge open "
    "parse plot read remove run save set show sort split update use write"
)
DESCRIPTION = _words(
    "first last new old main local common given single whole next current public real full early "
    "small large long short high low water land paper market power group order part place point "
    "change form result cause case side body hand house line name number way world work"
)

CENTURIES = tuple(range(11, 19))


@final
@dataclass(frozen=True)
class Words:
    """The words the sentences are made of; `prompts.py` leaves out those that are not one token."""

    names: tuple[str, ...] = NAMES
    places: tuple[str, ...] = PLACES
    objects: tuple[str, ...] = OBJECTS
    events: tuple[str, ...] = EVENTS
    arguments: tuple[str, ...] = ARGUMENTS
    functions: tuple[str, ...] = FUNCTIONS
    description: tuple[str, ...] = DESCRIPTION
    years: tuple[tuple[str, str], ...] = tuple(
        (f"{century}", f"{year:02d}") for century in CENTURIES for year in range(2, 99)
    )
    """(century, two digits); the first and last years leave no room below or above."""

    def words(self) -> tuple[str, ...]:
        """Every word once, the digits aside."""
        lists = [getattr(self, field.name) for field in fields(self) if field.name != "years"]
        return tuple(dict.fromkeys(word for words in lists for word in words))

    def only(self, allowed: set[str]) -> "Words":
        """These lists with the words not in `allowed` left out; the years unchanged."""
        kept = {
            field.name: tuple(word for word in getattr(self, field.name) if word in allowed)
            for field in fields(self)
            if field.name != "years"
        }
        return replace(self, **kept)


class Piece(NamedTuple):
    """Part of a prompt; a labelled piece is a single word whose position matters."""

    text: str
    label: str = ""


@final
@dataclass(frozen=True)
class Sentence:
    """A prompt, its corrupted twin and its answers; every text begins with a space where due."""

    template: str
    """Sentences of one template and the same word lists have the same length in pieces."""
    clean: tuple[Piece, ...]
    corrupt: tuple[Piece, ...]
    """As many pieces, with the same labels."""
    answers: tuple[str, ...]
    """Right next words; probability on any of them counts."""
    wrong: tuple[str, ...]
    after: str
    """How the text goes on after an answer."""

    def text(self, answer: str) -> str:
        """The whole clean text with `answer` filled in."""
        return "".join(piece.text for piece in self.clean) + answer + self.after


# A, B: the two names in order of appearance; S: the one who gives. The answer is the other one.
_IOI_TEMPLATES: dict[Split, tuple[str, ...]] = {
    "train": (
        "When{A} and{B} went to the{P},{S} gave a{O} to",
        "After{A} and{B} came to the{P},{S} handed a{O} to",
        "While{A} and{B} were at the{P},{S} gave a{O} to",
        "One day{A} and{B} met at the{P}, and{S} brought a{O} to",
        "Then,{A} and{B} had a long talk at the{P}. Later{S} sent a{O} to",
        "Yesterday{A} and{B} walked to the{P}.{S} showed a{O} to",
        "Once{A} and{B} had left the{P},{S} offered a{O} to",
        "Then,{A} and{B} found a{O} near the{P}.{S} gave it to",
        "The night before,{A} and{B} sat in the{P}.{S} threw a{O} to",
    ),
    "heldout": (
        "Then,{A} and{B} went to the{P}.{S} gave a{O} to",
        "When{A} and{B} came to the{P},{S} handed a{O} to",
        "Yesterday{A} and{B} met at the{P}, and{S} sent a{O} to",
    ),
}


def draw_ioi(words: Words, split: Split, rng: random.Random) -> Sentence:
    """Indirect-object sentence, its kind ABBA (the answer is the first name) or BABA (the second).

    Labels: IO, S1, S2.
    """
    while True:
        io, s = rng.sample(words.names, 2)
        thing = rng.choice(words.objects)
        if _in_split("|".join([*sorted((io, s)), thing]), split):
            break
    order = rng.choice(("ABBA", "BABA"))
    template = rng.choice(_IOI_TEMPLATES[split])
    place = rng.choice(words.places)
    others = rng.sample([name for name in words.names if name not in (io, s)], 3)

    def fill(io: str, s1: str, s2: str) -> tuple[Piece, ...]:
        first, second = Piece(f" {io}", "IO"), Piece(f" {s1}", "S1")
        if order == "BABA":
            first, second = second, first
        slots = {
            "A": first,
            "B": second,
            "S": Piece(f" {s2}", "S2"),
            "P": Piece(f" {place}"),
            "O": Piece(f" {thing}"),
        }
        return _fill(template, slots)

    return Sentence(
        template=f"{order} {template}",
        clean=fill(io, s, s),
        corrupt=fill(*others),
        answers=(f" {io}",),
        wrong=(f" {s}",),
        after=".",
    )


_YEAR_TEMPLATES = (
    "The{N} lasted from the year{C}{Y} to the year{D}",
    "The{N} lasted from the year{C}{Y} to{D}",
)


def draw_greater_than(words: Words, split: Split, rng: random.Random) -> Sentence:
    """Greater-than sentence. Labels: noun, century, year."""
    while True:
        noun = rng.choice(words.events)
        century, year = rng.choice(words.years)
        if _in_split(f"{noun}|{century}{year}", split):
            break
    template = rng.choice(_YEAR_TEMPLATES)

    def fill(year: str) -> tuple[Piece, ...]:
        slots = {
            "N": Piece(f" {noun}", "noun"),
            "C": Piece(f" {century}", "century"),
            "Y": Piece(year, "year"),
            "D": Piece(f" {century}"),
        }
        return _fill(template, slots)

    above = tuple(f"{y:02d}" for y in range(int(year) + 1, 100))
    below = tuple(f"{y:02d}" for y in range(int(year) + 1))
    return Sentence(
        template=template,
        clean=fill(year),
        corrupt=fill("01"),
        answers=above,
        wrong=below,
        after=".",
    )


def draw_docstring(words: Words, split: Split, rng: random.Random) -> Sentence:
    """A method definition whose docstring is about to document the third matching argument.

    Six arguments after self: two before, three that are documented, one after. Labels: A_def,
    B_def, C_def in the definition, A_doc, B_doc in the docstring. Wrong: the other arguments.
    """
    while True:
        arguments = rng.sample(words.arguments, 6)
        if _in_split("|".join(arguments[2:5]), split):
            break
    describe = [w for w in words.description if w not in arguments]
    function = rng.choice(words.functions)
    texts = [rng.sample(describe, n) for n in (3, 2, 2, 2)]
    spare = [word for word in words.arguments if word not in arguments]
    others = rng.sample(spare, 5)  # disjoint, or the corrupted docstring would hint at an answer

    def fill(defined: Sequence[str], documented: Sequence[str]) -> tuple[Piece, ...]:
        names = [*arguments[:2], *defined, arguments[5]]
        labels = ("", "", "A_def", "B_def", "C_def", "")
        pieces = [Piece(f"def {function}(self")]
        for name, label in zip(names, labels, strict=True):
            pieces += [Piece(","), Piece(f" {name}", label)]
        pieces.append(Piece(f'):\n    """{" ".join(texts[0])}\n\n    :param'))
        for name, label, text in zip(documented, ("A_doc", "B_doc"), texts[1:3], strict=True):
            pieces += [Piece(f" {name}", label), Piece(f": {' '.join(text)}\n    :param")]
        return tuple(pieces)

    a, b, c = arguments[2:5]
    return Sentence(
        template="docstring",
        clean=fill((a, b, c), (a, b)),
        corrupt=fill(others[:3], others[3:]),
        answers=(f" {c}",),
        wrong=tuple(f" {name}" for name in arguments if name != c),
        after=f': {" ".join(texts[3])}\n    """\n',
    )


def _fill(template: str, slots: dict[str, Piece]) -> tuple[Piece, ...]:
    """Cut "The{N} lasted" into its pieces."""
    pieces = []
    for part in template.replace("}", "{").split("{"):
        if part:
            pieces.append(slots.get(part) or Piece(part))
    return tuple(pieces)


def _in_split(combination: str, split: Split) -> bool:
    digest = hashlib.sha256(combination.encode()).digest()
    return (digest[0] % 10 == 0) == (split == "heldout")
