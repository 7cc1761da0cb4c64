"""Quasi-boolean latents: downstream latents that act as AND or OR of two upstream ones.

With A1, A2 the positions at which two upstream latents are active and B those of a downstream one:

- The papers' candidates (Balcells et al. 2024, 2410.08869): AND, if exactly two upstream latents
  have a necessity P(A|B) of `level` or more; OR, if exactly two have a sufficiency P(B|A) of that.
- Confirmed candidates, a stricter test of ours. AND: both necessities are at least `level`, each
  with a lift P(A|B) / P(A) of LEAST_LIFT (a latent that is nearly always active is necessary for
  everything); the two together are sufficient, P(B|A1 and A2) >= `certain`; each without the other
  is not, P(B|A1 not A2) and P(B|A2 not A1) <= 1 - certain; and they are no duplicates of one
  another, J(A1, A2) < DUPLICATE. OR is the dual: both sufficiencies at least `level`, P(A1 or A2|B)
  >= certain, neither necessary by itself (P(A|B) <= certain), no duplicates. It looks at all pairs
  among the upstream latents at `level`, where there are no more than MOST of them.

Candidates are found in one half of the text, and tested in the other, by every condition, on at
least `n_both` positions at which each parent is active with the child. The downstream latent that
one finds after looking at millions of pairs is best where chance helped; the other half does not
know what was looked for.

XOR is neither: no upstream latent is necessary or sufficient for it.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.sparse import csr_array
from torch import Tensor

AND, OR = 0, 1
LEAST_LIFT = 2.0
DUPLICATE = 0.9
MOST = 4  # upstream latents at the level; more of them are many pairs of one thing


@final
@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What it takes."""

    level: float = 0.999
    """Necessity or sufficiency of each parent."""
    certain: float = 0.9
    """Share that counts as certain in the stricter test; 1 - certain counts as hardly ever."""
    n_both: int = 10
    """Positions, in either half, at which each parent is active with the child."""


@final
@dataclass(frozen=True, eq=False)
class Candidates:
    """Triples that are the papers' candidates, or confirmed; by downstream latent."""

    index: Int[Tensor, "n three"]
    """Parent, parent, child."""
    kind: Int[Tensor, " n"]
    """AND or OR."""
    exactly_two: Bool[Tensor, " n"]
    """Whether no third latent is at the level: the papers' candidates."""
    confirmed: Bool[Tensor, " n"]
    """By the stricter test, in the other half."""

    def count(self, kind: int) -> tuple[int, int, int]:
        """Children of the papers' candidates of a kind, of those confirmed, and of any pair's that
        are confirmed.
        """
        own = self.kind == kind
        papers = own & self.exactly_two
        return (
            self._n_children(papers),
            self._n_children(papers & self.confirmed),
            self._n_children(own & self.confirmed),
        )

    def _n_children(self, chosen: Bool[Tensor, " n"]) -> int:
        return len(self.index[chosen, 2].unique())


def find(up: csr_array, down: csr_array, criteria: Criteria) -> Candidates:
    """The candidates of two sites, from where their latents are active.

    Args:
        up: `[rows d_up]`, 1 where a latent of the upstream site is active.
        down: `[rows d_down]` of the downstream one, at the same positions.
        criteria: what it takes.
    """
    half = up.shape[0] // 2
    found = [
        (word, *candidate)
        for word in (AND, OR)
        for candidate in _proposed(up[:half], down[:half], word, criteria)
    ]
    found.sort(key=lambda one: (one[3], one[0], one[1], one[2]))
    test = _Test(up[half:], down[half:], criteria)
    index = torch.tensor([one[1:4] for one in found], dtype=torch.int64).view(-1, 3)
    confirmed = torch.tensor([test.holds(*one[:4]) for one in found], dtype=torch.bool)
    exactly_two = torch.tensor([one[4] for one in found], dtype=torch.bool)
    kind = torch.tensor([one[0] for one in found], dtype=torch.int64)
    kept = exactly_two | confirmed
    return Candidates(
        index=index[kept],
        kind=kind[kept],
        exactly_two=exactly_two[kept],
        confirmed=confirmed[kept],
    )


def _proposed(
    up: csr_array, down: csr_array, kind: int, criteria: Criteria
) -> Iterator[tuple[int, int, int, bool]]:
    """Parent, parent, child, and whether these are all the parents at the level."""
    parents, children = _at_level(up, down, kind, criteria)
    order = np.lexsort((parents, children))
    parents, children = parents[order], children[order]
    starts = np.flatnonzero(np.diff(children, prepend=-1))
    for own in np.split(np.arange(len(children)), starts[1:]):
        if 2 <= len(own) <= MOST:
            for one, other in itertools.combinations(parents[own].tolist(), 2):
                yield one, other, int(children[own[0]]), len(own) == 2


def _at_level(up: csr_array, down: csr_array, kind: int, criteria: Criteria) -> tuple[Any, Any]:
    """Upstream and downstream latents of the pairs at the level."""
    n_up, n_down = (np.asarray(side.sum(0)) for side in (up, down))
    by_latent = up.T.tocsr()
    # Only a latent that was active often enough can have been so together with another.
    rows = np.flatnonzero(n_up >= criteria.n_both)
    found: list[tuple[Any, Any]] = [(rows[:0], rows[:0])]
    for block in np.array_split(rows, max(1, len(rows) // 256)):
        both = (by_latent[block] @ down).tocoo()
        row, column = block[both.row], both.col
        enough = both.data >= criteria.n_both
        of = n_down[column] if kind == AND else n_up[row]
        chosen = enough & (both.data >= criteria.level * of)
        found.append((row[chosen], column[chosen]))
    parents, children = (np.concatenate(side) for side in zip(*found, strict=True))
    return parents, children


@final
class _Test:
    """The stricter test, in one part of the text."""

    def __init__(self, up: csr_array, down: csr_array, criteria: Criteria) -> None:
        self.criteria = criteria
        self._n = up.shape[0]
        self._up, self._down = up.tocsc(), down.tocsc()

    def holds(self, kind: int, one: int, other: int, child: int) -> bool:
        """Whether the triple passes; see the module's docstring."""
        a1, a2, b = (
            _positions(self._up, one),
            _positions(self._up, other),
            _positions(self._down, child),
        )
        both = a1 & a2
        if len(both) >= DUPLICATE * len(a1 | a2):
            return False
        if min(len(a1 & b), len(a2 & b)) < self.criteria.n_both:
            return False
        return self._is_and(a1, a2, b) if kind == AND else self._is_or(a1, a2, b)

    def _is_and(self, a1: set[int], a2: set[int], b: set[int]) -> bool:
        c = self.criteria
        for a in (a1, a2):
            necessity = _share(b, a)
            if necessity < c.level or necessity < LEAST_LIFT * len(a) / self._n:
                return False
        if max(_share(a1, b), _share(a2, b)) > c.certain:
            return False
        alone = max(_share(a1 - a2, b), _share(a2 - a1, b))
        return _share(a1 & a2, b) >= c.certain and alone <= 1 - c.certain

    def _is_or(self, a1: set[int], a2: set[int], b: set[int]) -> bool:
        c = self.criteria
        if min(_share(a1, b), _share(a2, b)) < c.level:
            return False
        if _share(a1, b) < LEAST_LIFT * len(b) / self._n:
            return False
        alone = max(_share(b, a1), _share(b, a2))
        return _share(b, a1 | a2) >= c.certain and alone <= c.certain


def _positions(matrix: Any, latent: int) -> set[int]:
    """Where a latent is active, of a matrix in columns."""
    return set(matrix.indices[matrix.indptr[latent] : matrix.indptr[latent + 1]].tolist())


def _share(of: set[int], within: set[int]) -> float:
    """How much of one set lies in another; 0 of nothing."""
    return len(of & within) / len(of) if of else 0.0
