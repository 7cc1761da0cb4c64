"""Clean/corrupt pairs of one shape as tensors: what patching and circuit discovery run on.

A task is one of the prompt families (`sae_kit.data.prompts`) or a user's file of pairs
(`sae_kit.data.prompt_file`). Drawn are two sets that share no prompt: one to find components on,
one to confirm them on. All pairs of both are aligned: equally long, their labels at the same
places, so that a column of a heat map is the same part of the sentence in every pair, also where
two labels changed places (the indirect object first or second).

Families give prompts of their held-out split, which the demo model was not trained on.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.data.prompt_file import read_prompts
from sae_kit.data.prompts import (
    DocstringArguments,
    GreaterThan,
    IndirectObject,
    Induction,
    Prompt,
    PromptFamily,
)
from sae_kit.models.tokenizer import Tokenizer

INDUCTION_LENGTH = 10  # tokens before they repeat: short, so that positions can be told apart
PATIENCE = 1000  # draws for each prompt wanted, before there seem to be no more of them

FAMILIES: dict[str, Callable[[Tokenizer], PromptFamily]] = {
    "ioi": IndirectObject,
    "greater_than": GreaterThan,
    "docstring": DocstringArguments,
    "induction": lambda tokenizer: Induction(tokenizer, length=INDUCTION_LENGTH),
}
"""The tasks that need no file."""

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value
class Column:
    """The same part of the sentence in every pair."""

    name: str
    """Its label; or its token, where all clean prompts have the same one; or "*"."""
    at: Int[Tensor, " pairs"]
    """Its position in each pair."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Aligned pairs; BOS is in front where it was asked for."""

    clean: Int[Tensor, "pairs pos"]
    corrupt: Int[Tensor, "pairs pos"]
    answers: Bool[Tensor, "pairs vocab"]
    """Which next tokens are right."""
    wrong: Bool[Tensor, "pairs vocab"]
    """Which are the wrong ones to compare with."""
    columns: tuple[Column, ...]
    """Every position once, in the order of the first pair."""

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def n_pos(self) -> int:
        """Tokens in a prompt."""
        return self.clean.shape[1]

    def to(self, device: torch.device) -> "Pairs":
        """The same pairs on another device."""
        return self._map(lambda t: t.to(device))

    def select(self, index: Int[Tensor, " chosen"] | slice) -> "Pairs":
        """Some of the pairs."""
        return self._map(lambda t: t[index])

    def _map(self, f: Callable[[Tensor], Tensor]) -> "Pairs":
        return Pairs(
            clean=f(self.clean),
            corrupt=f(self.corrupt),
            answers=f(self.answers),
            wrong=f(self.wrong),
            columns=tuple(Column(column.name, f(column.at)) for column in self.columns),
        )

    @staticmethod
    def of(
        prompts: Sequence[Prompt], tokenizer: Tokenizer, *, n_vocab: int, prepend_bos: bool
    ) -> "Pairs":
        """Aligned prompts as tensors.

        Args:
            prompts: at least one; each `is_aligned` with the first.
            tokenizer: for the names of columns, and BOS.
            n_vocab: logits of the model.
            prepend_bos: whether an end-of-text token stands in front.
        """
        assert all(prompt.is_aligned(prompts[0]) for prompt in prompts)
        bos = torch.full((len(prompts), int(prepend_bos)), tokenizer.eot_id)
        clean, corrupt = (
            torch.cat([bos, torch.tensor([getattr(prompt, side) for prompt in prompts])], 1)
            for side in ("clean", "corrupt")
        )
        labels = _label_at(prompts, n_before=int(prepend_bos))
        return Pairs(
            clean=clean,
            corrupt=corrupt,
            answers=_mask([prompt.answers for prompt in prompts], n_vocab),
            wrong=_mask([prompt.wrong for prompt in prompts], n_vocab),
            columns=tuple(
                _column(clean, at, label, tokenizer) for label, at in _places(labels, clean)
            ),
        )


def draw_pairs(
    task: str,
    tokenizer: Tokenizer,
    *,
    n: int,
    n_heldout: int,
    n_vocab: int,
    prepend_bos: bool,
    seed: int,
) -> tuple[Pairs, Pairs]:
    """`n` pairs, and `n_heldout` others of the same shape.

    Args:
        task: a word of `FAMILIES`, or a .jsonl file of pairs.
        tokenizer: the model's.
        n: pairs to find something on, 1 or more.
        n_heldout: pairs to confirm it on, 1 or more.
        n_vocab: logits of the model.
        prepend_bos: whether an end-of-text token stands in front of every prompt.
        seed: draws them (and so the sentence, where a family has several).

    Raises:
        ValueError: an unknown task, a file that is refused, a tokenizer that does not suit the
            family, or fewer different pairs than that.
    """
    if task.endswith(".jsonl"):
        found = _from_file(task, tokenizer, seed)
    elif task in FAMILIES:
        stream = FAMILIES[task](tokenizer).stream(seed=seed)
        found = _aligned(islice(stream, PATIENCE * (n + n_heldout)), n + n_heldout)
    else:
        close = ", ".join(nearest(task, FAMILIES) or FAMILIES)
        raise ValueError(f"task: {task!r} is unknown; give {close}, or a .jsonl file of pairs")
    if len(found) < n + n_heldout:
        raise ValueError(
            f"task: {task} has {len(found)} different pairs of one shape, and {n} to find "
            f"components on with {n_heldout} to confirm them takes {n + n_heldout}; ask for fewer"
        )
    # Together, so that columns have the same names in both.
    both = Pairs.of(found[: n + n_heldout], tokenizer, n_vocab=n_vocab, prepend_bos=prepend_bos)
    return both.select(slice(0, n)), both.select(slice(n, None))


def _from_file(path: str, tokenizer: Tokenizer, seed: int) -> list[Prompt]:
    """The different pairs of a file that have its commonest length, in an order of the seed's."""
    prompts = read_prompts(path, tokenizer)
    ((length, n),) = Counter(len(prompt.clean) for prompt in prompts).most_common(1)
    if n < len(prompts):
        log.warning(
            "%s: %d of %d pairs are left out, since they are not %d tokens long as most are",
            path,
            len(prompts) - n,
            len(prompts),
            length,
        )
    alike = [prompt for prompt in prompts if len(prompt.clean) == length]
    random.Random(f"pairs/{seed}").shuffle(alike)
    return _aligned(alike, n)


def _aligned(prompts: Iterable[Prompt], n: int) -> list[Prompt]:
    """The first `n` different ones that are aligned with the first of them, or all there are."""
    found: dict[tuple[int, ...], Prompt] = {}
    first: Prompt | None = None
    for prompt in prompts:
        first = first or prompt
        if prompt.is_aligned(first):
            found.setdefault(prompt.clean, prompt)
        if len(found) == n:
            break
    return list(found.values())


def _mask(ids: Sequence[Sequence[int]], n_vocab: int) -> Bool[Tensor, "pairs vocab"]:
    """True where a token is among a pair's."""
    mask = torch.zeros(len(ids), n_vocab, dtype=torch.bool)
    for row, own in zip(mask, ids, strict=True):
        row[list(own)] = True
    return mask


def _label_at(prompts: Sequence[Prompt], *, n_before: int) -> dict[str, Int[Tensor, " pairs"]]:
    """Label -> its position in each prompt, behind `n_before` tokens."""
    return {
        label: torch.tensor([prompt.positions[label] for prompt in prompts]) + n_before
        for label in prompts[0].positions
    }


def _places(
    labels: dict[str, Int[Tensor, " pairs"]], clean: Int[Tensor, "pairs pos"]
) -> Iterable[tuple[str, Int[Tensor, " pairs"]]]:
    """Every position once: (label or "", where it is in each prompt), by the first prompt's order.

    Two labels at one position, such as the century that is the last token, are joined.
    """
    at_first: dict[int, list[str]] = {}
    for label, at in labels.items():
        at_first.setdefault(int(at[0]), []).append(label)
    for position in range(clean.shape[1]):
        if own := at_first.get(position):
            yield "/".join(own), labels[own[0]]
        else:
            yield "", torch.full((len(clean),), position)


def _column(
    clean: Int[Tensor, "pairs pos"], at: Int[Tensor, " pairs"], label: str, tokenizer: Tokenizer
) -> Column:
    """A column with its name."""
    tokens = clean.gather(1, at[:, None])[:, 0]
    if label or bool((tokens != tokens[0]).any()):
        return Column(label or "*", at)
    return Column("BOS" if tokens[0] == tokenizer.eot_id else _shown(tokenizer, tokens[0]), at)


def _shown(tokenizer: Tokenizer, token: Tensor) -> str:
    """A token as a reader sees it in a figure: spaces at its ends trimmed, line breaks drawn."""
    text = tokenizer.decode([int(token)])
    return text.replace("\n", "↵").strip(" ") or "␣"
