"""Ablated matches: the effect of ablating a latent on its matches, over all similarities.

Pairs of latents, of which the upstream one fires, are drawn from every bin of similarity, as many
from each as there are, up to equal shares. For every ablated latent a downstream latent is drawn at
random as well, among those that fire: what ablation does to any latent.

Source: the causal check of Balcells et al. 2024 (2410.08869); see `latent_ablation`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.evals.base import Subject
from sae_kit.evals.evolution.activity import Activity
from sae_kit.evals.evolution.cooccurrence import Pairs
from sae_kit.evals.evolution.latent_ablation import Ablation, Effect
from sae_kit.evals.evolution.layer_pairs import LayerPair
from sae_kit.sorting import lexsort

EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the bins of similarity."""
COLUMNS = ("n_positions", "n_active", "mean_change", "mean_square", "share_lost")


@final
@dataclass(frozen=True, eq=False)
class AblatedMatches:
    """Effects of ablations, a row for each pair of latents."""

    index: Int[Tensor, "n two"]
    """The ablated latent, the downstream one."""
    similarity: Float[Tensor, " n"]
    """By the measure asked for; 0 for those drawn at random."""
    is_random: Bool[Tensor, " n"]
    """Whether the downstream latent was drawn at random."""
    effects: Mapping[str, Float[Tensor, " n"]]
    """Fields of latent_ablation.Effect."""

    @property
    def n_matches(self) -> int:
        """Pairs that were not drawn at random."""
        return int((~self.is_random).sum())

    def rank_correlation(self) -> float:
        """Spearman's, of similarity and share lost, of those that are no random pairs and whose
        downstream latent was active (what was not there cannot be lost); 0 where it is not defined.
        """
        from scipy.stats import spearmanr  # half a second to import

        own = ~self.is_random & (self.effects["n_active"] > 0)
        x, y = self.similarity[own], self.effects["share_lost"][own]
        if min(len(x.unique()), len(y.unique())) < 2:
            return 0.0
        return float(spearmanr(x, y).statistic)

    def arrays(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """As a result keeps them."""
        for column in ("index", "similarity", "is_random"):
            yield f"ablation/{name}/{column}", getattr(self, column)
        for column, values in self.effects.items():
            yield f"ablation/{name}/{column}", values

    @staticmethod
    def of_arrays(arrays: Mapping[str, Tensor], name: str) -> "AblatedMatches":
        """From a result; empty if nothing was ablated."""
        if f"ablation/{name}/index" not in arrays:
            return _joined([], [])
        own = {
            c: arrays[f"ablation/{name}/{c}"]
            for c in ("index", "similarity", "is_random", *COLUMNS)
        }
        return AblatedMatches(
            own["index"], own["similarity"], own["is_random"], {c: own[c] for c in COLUMNS}
        )


@final
@dataclass(frozen=True, eq=False)
class Text:
    """The contexts that activities are of."""

    contexts: Int[Tensor, "batch pos"]
    counting: Bool[Tensor, "batch pos"]
    """The positions that are rows of the activities, one after the other."""

    def contexts_of(self, rows: Int[Tensor, " n"], n: int) -> Int[Tensor, " n_contexts"]:
        """Numbers of the contexts that rows of the activities are of, `n` at most: spread evenly
        over all there are.
        """
        places = self.counting.flatten().nonzero().flatten()
        of = (places[rows] // self.contexts.shape[1]).unique()
        return of[torch.linspace(0, len(of) - 1, min(n, len(of))).round().long()]


def ablate_matches(
    subject: Subject,
    pair: LayerPair,
    pairs: Pairs,
    activities: tuple[Activity, Activity],
    text: Text,
    *,
    measure: str,
    n: int,
    n_contexts: int,
) -> AblatedMatches:
    """Ablate the upstream latents of pairs of all similarities.

    Args:
        subject: the model and the SAEs.
        pair: the two sites.
        pairs: the kept pairs, of which some are drawn.
        activities: of both sites' latents.
        text: what they are of.
        measure: of similarity.
        n: pairs drawn, at most.
        n_contexts: contexts run for each ablated latent, of those in which it fires.
    """
    up, down = activities
    generator = torch.Generator().manual_seed(subject.seed)
    alive = down.canonical_order()
    alive = alive[down.n_firing[alive] > 0]
    ablation, columns = Ablation(subject, pair.up, pair.down), up.codes.tocsc()
    rows: list[tuple[int, int, float, bool]] = []
    effects: list[Effect] = []
    for latent, targets in drawn(pairs, measure, up, down, n, generator).items():
        fires = columns.indices[columns.indptr[latent] : columns.indptr[latent + 1]]
        of = text.contexts_of(torch.from_numpy(fires).long(), n_contexts)
        tokens = text.contexts[of].to(subject.device)
        change = ablation.change(latent, tokens, text.counting[of])
        at_random = int(alive[torch.randint(len(alive), (), generator=generator)])
        rows += [(latent, target, similarity, False) for target, similarity in targets]
        rows.append((latent, at_random, 0.0, True))
        for _, target, *_ in rows[len(effects) :]:
            effects.append(change.effect(target, down.largest[target].item()))
    return _joined(rows, effects)


def _joined(rows: list[tuple[int, int, float, bool]], effects: list[Effect]) -> AblatedMatches:
    return AblatedMatches(
        index=torch.tensor([row[:2] for row in rows], dtype=torch.int64).view(-1, 2),
        similarity=torch.tensor([row[2] for row in rows], dtype=torch.float64),
        is_random=torch.tensor([row[3] for row in rows], dtype=torch.bool),
        effects={
            column: torch.tensor([getattr(one, column) for one in effects], dtype=torch.float64)
            for column in COLUMNS
        },
    )


def drawn(
    pairs: Pairs, measure: str, up: Activity, down: Activity, n: int, generator: torch.Generator
) -> dict[int, list[tuple[int, float]]]:
    """Some pairs from every bin of similarity: by upstream latent, the downstream one and the
    similarity.
    """
    rank = [side.canonical_order().argsort() for side in (up, down)]
    order = lexsort(rank[0][pairs.index[:, 0]], rank[1][pairs.index[:, 1]])
    values = pairs.measures[measure][order]
    bins = torch.bucketize(values, torch.tensor(EDGES[1:-1], dtype=values.dtype))
    fires = up.n_firing[pairs.index[order, 0]] > 0
    n_bins = len(EDGES) - 1
    rows = []
    for i in range(n_bins):
        own = order[(bins == i) & (values > 0) & fires]
        # Where n is no multiple of the bins, the larger shares lie evenly among them.
        share = (i + 1) * n // n_bins - i * n // n_bins
        rows.append(own[torch.randperm(len(own), generator=generator)[:share]])
    found: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for row in torch.cat(rows).tolist():
        latent, target = pairs.index[row].tolist()
        found[latent].append((target, pairs.measures[measure][row].item()))
    return found
