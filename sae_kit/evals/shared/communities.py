"""Communities: groups of nodes of a graph that are joined among themselves more than to others.

Three ways to find them, all on the undirected graph, weights above 0:

- leiden: Traag, Waltman and van Eck (2019), on modularity (Newman and Girvan 2004) with a
  resolution; every community it finds is connected.
- louvain: Blondel et al. (2008), on the same.
- components: the connected components; no weights, no resolution, no chance.

The first two are greedy and begin at random: `detect` runs them from several seeds, keeps the
partition of the highest modularity, and says how far the seeds agree (adjusted Rand index, 1 for
equal partitions, about 0 for unrelated ones).

igraph does the work. Graphs between layers have edges from each layer to the next only; directions
are not used, so modularity here is not that of the directed graph of Balcells et al. (2410.08869).
"""

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    import igraph


@final
@dataclass(frozen=True, eq=False)
class Partition:
    """Which node is in which community."""

    community: Int[Tensor, " nodes"]
    """Numbered by size, the largest first; of equals, the one of the lowest node."""
    modularity: float
    """0 for a graph without edges."""
    agreement: float
    """Mean adjusted Rand index between the partitions of any two seeds; 1 for one seed."""

    @property
    def sizes(self) -> Int[Tensor, " communities"]:
        """Nodes of each community, the largest first."""
        return self.community.bincount()


class CommunityMethod(ABC):
    """A way to find communities."""

    @property
    @abstractmethod
    def n_runs(self) -> int:
        """How often it is run, each time from a seed of its own."""

    @abstractmethod
    def membership(self, graph: "igraph.Graph") -> list[int]:
        """A community for each node, by the random numbers that igraph has been given."""

    @abstractmethod
    def modularity(self, graph: "igraph.Graph", membership: list[int]) -> float:
        """How much better a partition is than chance, of a graph with edges."""

    @final
    def detect(
        self,
        edges: Int[Tensor, "n two"],
        weights: Float[Tensor, " n"],
        *,
        n_nodes: int,
        seed: int,
    ) -> Partition:
        """The communities of a graph.

        Args:
            edges: nodes that are joined.
            weights: of the edges, above 0.
            n_nodes: how many nodes there are; those without edges are communities of one.
            seed: of the first run; others follow from it.

        Raises:
            ValueError: a weight is not above 0, or an edge of a node that is not there.
        """
        _check(edges, weights, n_nodes)
        import igraph

        with _drawing() as begin_from:
            graph = igraph.Graph(n=n_nodes, edges=edges.tolist())
            graph.es["weight"] = weights.tolist()
            found = []
            for i in range(self.n_runs):
                begin_from(seed + i)
                found.append(self.membership(graph))
            quality = [self.modularity(graph, own) if len(edges) else 0.0 for own in found]
            agreements = [
                igraph.compare_communities(one, other, method="adjusted_rand")
                for one, other in itertools.combinations(found, 2)
            ]
        best = max(range(len(found)), key=quality.__getitem__)
        return Partition(
            community=_by_size(torch.tensor(found[best], dtype=torch.int64)),
            modularity=quality[best],
            agreement=sum(agreements) / len(agreements) if agreements else 1.0,
        )


@dataclass(frozen=True, kw_only=True)
class _Seeded(CommunityMethod, ABC):
    """A method that begins at random."""

    resolution: float = 1.0
    """Above 1 for smaller communities, below for larger ones."""
    n_seeds: int = 5
    """Runs, each from a seed of its own; the partition of the highest modularity is kept."""

    def __post_init__(self) -> None:
        if self.resolution <= 0:
            raise ValueError(f"resolution: {self.resolution} is not above 0; give 1, say")
        if self.n_seeds < 1:
            raise ValueError(f"n_seeds: {self.n_seeds}; give 1 or more")

    @property
    def n_runs(self) -> int:
        """See CommunityMethod.n_runs."""
        return self.n_seeds

    @final
    def modularity(self, graph: "igraph.Graph", membership: list[int]) -> float:
        """See CommunityMethod.modularity."""
        return float(graph.modularity(membership, weights="weight", resolution=self.resolution))


@final
@dataclass(frozen=True, kw_only=True)
class Leiden(_Seeded):
    """Iterated until nothing improves."""

    def membership(self, graph: "igraph.Graph") -> list[int]:
        """See CommunityMethod.membership."""
        found = graph.community_leiden(
            objective_function="modularity",
            weights="weight",
            resolution=self.resolution,
            n_iterations=-1,
        )
        return list(found.membership)


@final
@dataclass(frozen=True, kw_only=True)
class Louvain(_Seeded):
    """The last level of its hierarchy."""

    def membership(self, graph: "igraph.Graph") -> list[int]:
        """See CommunityMethod.membership."""
        found = graph.community_multilevel(weights="weight", resolution=self.resolution)
        return list(found.membership)


@final
@dataclass(frozen=True, kw_only=True)
class Components(CommunityMethod):
    """Whatever is joined by any path is one community."""

    @property
    def n_runs(self) -> int:
        """See CommunityMethod.n_runs."""
        return 1

    def membership(self, graph: "igraph.Graph") -> list[int]:
        """See CommunityMethod.membership."""
        return list(graph.connected_components().membership)

    def modularity(self, graph: "igraph.Graph", membership: list[int]) -> float:
        """See CommunityMethod.modularity."""
        return float(graph.modularity(membership, weights="weight"))


def _check(edges: Tensor, weights: Tensor, n_nodes: int) -> None:
    if len(edges) and not (edges.min() >= 0 and edges.max() < n_nodes):
        raise ValueError(f"edges: one is of a node beyond the {n_nodes}; give nodes from 0")
    if not (weights > 0).all():
        raise ValueError(f"weights: the smallest is {weights.min()}; leave out what is not above 0")


@contextmanager
def _drawing() -> Iterator[Callable[[int], None]]:
    """While this is entered, igraph draws from generators of its own; call what it gives to begin
    from a seed.
    """
    import igraph

    def begin_from(seed: int) -> None:
        igraph.set_random_number_generator(random.Random(seed))

    begin_from(0)  # igraph draws in places where one would not expect it, as in comparing
    try:
        yield begin_from
    finally:
        igraph.set_random_number_generator(random)  # its default


def _by_size(membership: Int[Tensor, " nodes"]) -> Int[Tensor, " nodes"]:
    """The same communities with other numbers; see Partition.community."""
    _, own, sizes = membership.unique(return_inverse=True, return_counts=True)
    first = torch.full((len(sizes),), len(membership)).scatter_reduce(
        0, own, torch.arange(len(membership)), "amin"
    )
    order = sorted(range(len(sizes)), key=lambda i: (-int(sizes[i]), int(first[i])))
    number = torch.empty(len(sizes), dtype=torch.int64)
    number[order] = torch.arange(len(sizes))
    return number[own]
