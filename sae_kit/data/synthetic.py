"""Synthetic text that teaches a small language model the circuits later experiments look for.

Documents of the train split of the prompt families (repeated random sequences, indirect-object and
greater-than sentences, documented arguments) for the model, and texts for its tokenizer, so that
every name and every pair of digits gets its own token.
"""

import random
from collections.abc import Sequence
from typing import final

import numpy as np

from sae_kit.data.grammar import (
    CENTURIES,
    Split,
    Words,
    draw_docstring,
    draw_greater_than,
    draw_ioi,
)
from sae_kit.data.prompts import families
from sae_kit.models.tokenizer import Tokenizer


@final
class SyntheticDocuments:
    """An infinite list of documents as token ids; document i depends on (seed, split, i) only."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        seed: int,
        split: Split = "train",
        ordinary: Sequence[int] | np.ndarray = (),
    ) -> None:
        """`ordinary`: tokens of ordinary text, of which some random sequences get a piece in front.

        That way the model learns to copy anywhere in a context.
        """
        self._families = families(tokenizer)
        self._names = tuple(self._families)
        self._seed = seed
        self._split: Split = split
        self._ordinary = ordinary
        self.fingerprint = f"{tokenizer.fingerprint}/{split}/{seed}"
        """Equal for equal documents, given the ordinary text."""

    def __getitem__(self, index: int) -> list[int]:
        """Token ids of document `index`, without an end-of-text token."""
        rng = random.Random(f"synthetic/{self._split}/{self._seed}/{index}")
        name = rng.choice(self._names)
        ids = self._families[name].document(rng, self._split)
        if name == "induction" and len(self._ordinary) > 40 and rng.random() < 0.3:
            n = rng.randint(4, 40)
            start = rng.randrange(len(self._ordinary) - n)
            ids = [int(i) for i in self._ordinary[start : start + n]] + ids
        return ids


def synthetic_text(seed: int, n: int) -> list[str]:
    """`n` short texts for training a tokenizer on.

    Half are sentences of the train split, half lists of the words that should become single tokens,
    " 17"-style centuries and all pairs of digits among them; 20 words a list, equally often each.
    """
    rng = random.Random(f"synthetic_text/{seed}")
    words = Words()
    wanted = [f" {word}" for word in words.words()]
    wanted += [f" {century}{year:02d}" for century in CENTURIES for year in range(100)]
    texts = []
    for i in range(n):
        if i % 2:
            texts.append("".join(rng.choices(wanted, k=20)))
            continue
        draw = rng.choice((draw_ioi, draw_greater_than, draw_docstring))
        sentence = draw(words, "train", rng)
        texts.append(sentence.text(rng.choice(sentence.answers)))
    return texts
