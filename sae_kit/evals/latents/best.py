"""The best entries of each of many groups, while entries stream by.

Memory is that of what is kept: `n_groups * m` entries. What is kept does not depend on how the
stream is cut into batches: of equal scores the earlier entry stays.
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.latents.firings import Firings
from sae_kit.sorting import lexsort, rank_in_group

MAX_KEPT = torch.finfo(torch.float16).max
"""Activations around a place are kept in half precision; larger ones as this."""


@final
class Best:
    """For each group, up to `m` places and a latent's activations around them, best first."""

    def __init__(self, n_groups: int, m: int, *, n_before: int, n_after: int) -> None:
        self.n_before, self.n_after = n_before, n_after
        self.score = torch.full((n_groups, m), -torch.inf)
        self.place = torch.full((n_groups, m), -1, dtype=torch.int32)
        """-1 where there is no further entry."""
        self.acts = torch.zeros(n_groups, m, n_before + 1 + n_after, dtype=torch.float16)

    def update(
        self,
        group: Int[Tensor, " n"],
        score: Float[Tensor, " n"],
        entries: Int[Tensor, " n"],
        firings: Firings,
    ) -> None:
        """Take in entries of `firings`, which come after all those before."""
        m = self.score.shape[1]
        better = (score > self.score[group, -1]).nonzero().flatten()
        order = better[lexsort(group[better], -score[better])]
        rank = rank_in_group(group[order])
        order, rank = order[rank < m], rank[rank < m]
        if len(order) == 0:
            return
        groups, row = torch.unique_consecutive(group[order], return_inverse=True)
        new_score = torch.full((len(groups), m), -torch.inf)
        new_place = torch.full((len(groups), m), -1, dtype=torch.int32)
        new_acts = torch.zeros(len(groups), m, self.acts.shape[-1], dtype=torch.float16)
        chosen = entries[order]
        acts = firings.around(chosen, n_before=self.n_before, n_after=self.n_after)
        new_score[row, rank] = score[order]
        new_place[row, rank] = firings.place[chosen].int()
        new_acts[row, rank] = acts.clamp_max(MAX_KEPT).half()
        self._put(
            groups,
            torch.cat([self.score[groups], new_score], 1),
            torch.cat([self.place[groups], new_place], 1),
            torch.cat([self.acts[groups], new_acts], 1),
        )

    def merge_pairs(self, blocks: Int[Tensor, " n"], size: int) -> None:
        """In each of these blocks of `size` groups, join groups 0 and 1 into 0, 2 and 3 into 1 and
        so on; the second half is empty then.
        """
        groups = blocks[:, None] * size + torch.arange(size)
        first, second = groups[:, : size // 2].flatten(), groups[:, size // 2 :].flatten()
        pairs = groups.view(-1, 2)
        self._put(
            first, *(kept[pairs].flatten(1, 2) for kept in (self.score, self.place, self.acts))
        )
        self.score[second] = -torch.inf
        self.place[second] = -1
        self.acts[second] = 0.0

    def _put(self, groups: Tensor, score: Tensor, place: Tensor, acts: Tensor) -> None:
        """Let the groups hold the best of these, of equal scores the first."""
        order = torch.argsort(score, dim=1, descending=True, stable=True)
        order = order[:, : self.score.shape[1]]
        self.score[groups] = score.gather(1, order)
        self.place[groups] = place.gather(1, order)
        width = acts.shape[-1]
        self.acts[groups] = acts.gather(1, order[..., None].expand(-1, -1, width))
