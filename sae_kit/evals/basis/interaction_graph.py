"""The graph of a network's interactions: directions of node layers, joined by edges between
neighbouring layers, and the clusters in it.

    weight = log10(E / e)   of edges stronger than e, others left out

with e, for each pair of layers, just below the weakest edge that the network needs: what is far
above it joins more, but not in proportion. Clusters are communities of high modularity
(`communities.py`).

Source: Bushnaq et al. 2024 (2405.10928), section 4, and 2405.10927, section 5.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.evals.shared.communities import CommunityMethod, Partition

SWAPS = 10
"""Attempts of an edge to exchange its end with another's, in a graph that is rewired."""


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class InteractionGraph:
    """Edges that are kept between node layers, with their weights."""

    weights: tuple[Float[Tensor, "_ _"], ...]
    """`[k_there k_here]` of each pair of layers; 0: no edge."""

    @staticmethod
    def of(
        strengths: Sequence[Float[Tensor, "_ _"]], n_needed: Sequence[int]
    ) -> "InteractionGraph":
        """The graph of the strongest edges.

        Args:
            strengths: `[k_there k_here]` of all edges, for each pair of layers.
            n_needed: how many of them to keep.

        Raises:
            ValueError: layers that do not follow one another, or more edges needed than there are.
        """
        if len(n_needed) != len(strengths):
            raise ValueError(f"n_needed: {len(n_needed)} numbers for {len(strengths)} layer pairs")
        for one, following in itertools.pairwise(strengths):
            if one.shape[0] != following.shape[1]:
                raise ValueError(
                    f"strengths: {one.shape[0]} directions are reached, and {following.shape[1]} "
                    "act on the next layer; give neighbouring layers"
                )
        kept = zip(strengths, n_needed, strict=True)
        return InteractionGraph(tuple(_weights(edges, n) for edges, n in kept))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Directions of each node layer."""
        return (self.weights[0].shape[1], *(edges.shape[0] for edges in self.weights))

    def rewired(self, generator: torch.Generator) -> "InteractionGraph":
        """As many edges of every direction to each neighbouring layer, to others at random, with
        the weights in random order: what clusters come of numbers of edges alone.
        """
        return InteractionGraph(tuple(_rewired(edges, generator) for edges in self.weights))

    def strongest(self, n: int) -> "InteractionGraph":
        """The `n` edges of most weight between each pair of layers, to look at."""

        def kept(edges: Tensor) -> Tensor:
            least = edges.flatten().topk(min(n, edges.numel())).values[-1]
            return torch.where(edges >= least, edges, 0.0)

        return InteractionGraph(tuple(kept(edges) for edges in self.weights))

    def clusters(self, method: CommunityMethod, *, seed: int) -> Partition:
        """Communities of directions; nodes are numbered layer after layer."""
        starts = [0, *torch.tensor(self.sizes).cumsum(0).tolist()]
        edges, weights = [], []
        for layer, found in enumerate(self.weights):
            there, here = found.nonzero(as_tuple=True)
            edges.append(torch.stack([here + starts[layer], there + starts[layer + 1]], 1))
            weights.append(found[there, here])
        return method.detect(torch.cat(edges), torch.cat(weights), n_nodes=starts[-1], seed=seed)

    def joined(self) -> Bool[Tensor, " nodes"]:
        """Which directions have any edge."""
        has_edge = [torch.zeros(size, dtype=torch.bool) for size in self.sizes]
        for layer, found in enumerate(self.weights):
            has_edge[layer] |= (found > 0).any(0)
            has_edge[layer + 1] |= (found > 0).any(1)
        return torch.cat(has_edge)


def _weights(strengths: Tensor, n: int) -> Tensor:
    if not 0 <= n <= strengths.numel():
        raise ValueError(f"n_needed: {n} of {strengths.numel()} edges")
    # The weakest edge that is needed has to join, too: e lies just below it.
    order = strengths.flatten().sort(descending=True).values
    above = order[:n][order[:n] > 0]
    if len(above) == 0:
        return torch.zeros_like(strengths)
    least = 0.99 * above[-1]
    return torch.where(strengths >= above[-1], (strengths / least).log10(), 0.0)


def _rewired(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Maslov and Sneppen's (2002): two edges exchange their ends where neither new one is there."""
    there, here = (ends.tolist() for ends in weights.nonzero(as_tuple=True))
    taken = set(zip(there, here, strict=True))
    pairs = torch.randint(max(len(there), 1), (SWAPS * len(there), 2), generator=generator)
    for a, b in pairs.tolist():
        first, second = (there[a], here[b]), (there[b], here[a])
        if first in taken or second in taken:
            continue
        taken -= {(there[a], here[a]), (there[b], here[b])}
        taken |= {first, second}
        here[a], here[b] = here[b], here[a]
    order = torch.randperm(len(there), generator=generator).to(weights.device)
    found = torch.zeros_like(weights)
    found[there, here] = weights[weights != 0][order]
    return found


def purity(
    community: Int[Tensor, " nodes"], label: Int[Tensor, " nodes"]
) -> Float[Tensor, " communities"]:
    """For each community, the share of its nodes that bear its commonest label."""
    counts = torch.zeros(int(community.max()) + 1, int(label.max()) + 1, dtype=torch.float64)
    counts.index_put_((community, label), torch.ones(len(label), dtype=torch.float64), True)
    return counts.max(1).values / counts.sum(1)


def described(
    partition: Partition, label: Int[Tensor, " nodes"]
) -> Iterator[dict[str, int | float | str]]:
    """Rows of kind "cluster", for every cluster of two directions and more: its commonest label,
    and the share of its directions that bear it.
    """
    pure = purity(partition.community, label)
    for number, size in enumerate(partition.sizes.tolist()):
        if size > 1:
            own = label[partition.community == number]
            yield {
                "kind": "cluster",
                "cluster": number,
                "n_directions": size,
                "label": int(own.mode().values),
                "purity": pure[number].item(),
                "modularity": partition.modularity,
                "agreement": partition.agreement,
            }
