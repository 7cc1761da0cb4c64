"""Pairs and triples of prompts from a subject's held-out text.

A prompt is a context of a few tokens. Pair i is (prompt i, prompt i + 1), as in the code of Janiak
et al. 2024. Few of those end in the same token, so further pairs are found that do, and triples of
which no two do.

Prompts that end in the end-of-text token are passed over: it has nothing of the text in it.

Limits: neighbouring pairs share a prompt, so they are not quite independent.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_kit.evals.base import Subject

N_DRAWN = 8
"""Prompts drawn for each that a pair needs, for pairs of the same ending to be among them."""


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Pairs:
    """Prompts A, and the prompts B to whose activations theirs are moved."""

    a: Int[Tensor, "pairs pos"]
    b: Int[Tensor, "pairs pos"]

    @property
    def same_ending(self) -> Bool[Tensor, " pairs"]:
        """Whether the two end in the same token."""
        return self.a[:, -1] == self.b[:, -1]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What is drawn from the text."""

    prompts: Int[Tensor, "prompts pos"]
    """Each with the next one is a pair."""
    same_ending: Pairs
    """Of the same last token; no prompt is in two of them. At most as many as the others."""
    triples: Int[Tensor, "planes three pos"]
    """Of three different last tokens; no prompt is in two of them."""

    @property
    def neighbours(self) -> Pairs:
        """(prompt i, prompt i + 1)."""
        return Pairs(self.prompts[:-1], self.prompts[1:])

    @staticmethod
    def of(subject: Subject, *, n_pairs: int, n_planes: int, prompt_size: int) -> "Sample":
        """That of a subject; its seed draws it.

        Raises:
            ValueError: there is less text than that, or the model's context is shorter.
        """
        n = max(n_pairs + 1, 3 * n_planes)
        text = replace(subject.tokens, context_size=prompt_size)
        drawn = subject.contexts(N_DRAWN * n * prompt_size, text)
        drawn = drawn[drawn[:, -1] != subject.language_model.tokenizer.eot_id]
        triples = _triples(drawn, n_planes)
        if len(drawn) <= n_pairs or len(triples) < n_planes:
            raise ValueError(
                f"n_pairs: the held-out text has {len(drawn)} prompts of {prompt_size} tokens, and "
                f"n_pairs={n_pairs} with n_slices={n_planes} takes {n}; ask for fewer, or shorter "
                "ones, or give more text"
            )
        return Sample(
            prompts=drawn[: n_pairs + 1],
            same_ending=_same_ending(drawn, n_pairs),
            triples=triples,
        )


def _same_ending(prompts: Int[Tensor, "prompts pos"], n: int) -> Pairs:
    """The first `n` pairs of equal last tokens, or all there are."""
    waiting: dict[int, int] = {}
    found: list[tuple[int, int]] = []
    for i, token in enumerate(prompts[:, -1].tolist()):
        if (first := waiting.pop(token, None)) is None:
            waiting[token] = i
        else:
            found.append((first, i))
    first, second = torch.tensor(found[:n], dtype=torch.long).view(-1, 2).T
    return Pairs(prompts[first], prompts[second])


def _triples(prompts: Int[Tensor, "prompts pos"], n: int) -> Int[Tensor, "planes three pos"]:
    """The first `n` triples of different last tokens, or all there are."""
    found: list[int] = []
    last = prompts[:, -1].tolist()
    for i, token in enumerate(last):
        of_triple = found[len(found) - len(found) % 3 :]
        if token not in [last[other] for other in of_triple]:
            found.append(i)
    found = found[: 3 * min(n, len(found) // 3)]
    return prompts[torch.tensor(found, dtype=torch.long)].view(-1, 3, prompts.shape[1])
