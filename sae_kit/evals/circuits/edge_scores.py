"""Scores of all edges at once, from gradients: approximations of what cutting each would cost.

With x_r what receiver r hears, and o_s what sender s writes,

- eap      (o_s clean - o_s ablated) . d cost / d x_r, at the clean run: by how much the cost falls
           with the edge, to first order (Syed et al. 2023, 2310.10348)
- eap_ig   the same with the mean of the gradients of runs whose embedding is moved from ablated to
           clean in equal steps (Hanna et al. 2024, 2403.17806)
- hisp     a node's importance is |(o_s clean - o_s ablated) . d cost / d o_s|, averaged over pairs
           (Michel et al. 2019, 1905.10650, with an ablated activation in the place of zero, as in
           Conmy et al. 2023); an edge has the lesser of its two ends' importance, so that the edges
           above a value are those among the nodes above it
- random   draws, to compare with

Two runs and a backward pass (eap_ig: one for each step) serve all edges.

Limits: the gradient of the KL from the model's own predictions is zero at these, so eap and hisp
need a task's metric. Where a softmax is saturated, gradients say that nothing matters.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench, Whole, Wiring, trace
from sae_kit.evals.shared.draws import generator_of

MAX_GRADIENTS = 1 << 27
"""Values of what receivers hear that are differentiated at once, at most, one pair aside."""


class Scorer(ABC):
    """Says how much each edge matters; the sign does not count when edges are chosen."""

    is_first_order: ClassVar[bool] = False
    """Whether it goes by the gradient at the clean run alone."""

    @abstractmethod
    def score(self, bench: CircuitBench) -> Float[Tensor, "receivers senders"]:
        """Of every edge that there can be; the others have 0. In units of the bench's metric."""


@final
class EAP(Scorer):
    """Edge attribution patching: by how much the cost would grow without the edge."""

    is_first_order = True

    def score(self, bench: CircuitBench) -> Tensor:
        """See Scorer."""
        return -_by_pair(bench, (1.0,)).mean(0)


@final
class IntegratedEAP(Scorer):
    """The same, along a straight line of embeddings."""

    def __init__(self, n_steps: int) -> None:
        """`n_steps`: points on the line; the last of them is the clean run."""
        self._shares = [step / n_steps for step in range(1, n_steps + 1)]

    def score(self, bench: CircuitBench) -> Tensor:
        """See Scorer."""
        return -_by_pair(bench, self._shares).mean(0)


@final
class NodeImportance(Scorer):
    """Head importance: edges among the nodes that matter."""

    is_first_order = True

    def score(self, bench: CircuitBench) -> Tensor:
        """See Scorer."""
        importance = _by_pair(bench, (1.0,)).sum(1).abs().mean(0)
        with_logits = torch.cat([importance, importance.new_tensor([torch.inf])])
        node_of = bench.graph.node_of.to(importance.device)
        lesser = torch.minimum(with_logits[node_of][:, None], importance)
        return lesser * bench.graph.allowed.to(lesser)


@final
class RandomScores(Scorer):
    """Draws: what is left without knowing anything."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, bench: CircuitBench) -> Tensor:
        """See Scorer."""
        drawn = torch.rand(
            bench.graph.allowed.shape, generator=generator_of(self._seed, "edges", 0)
        )
        return drawn.to(bench.like) * bench.graph.allowed.to(bench.like)


def best(graph: Graph, scores: Float[Tensor, "receivers senders"], n_edges: int) -> Circuit:
    """The circuit of the edges with the largest scores, of either sign; the first of equals."""
    possible = graph.allowed.flatten().nonzero()[:, 0]
    sizes = scores.cpu().flatten()[possible].abs()
    kept = possible[sizes.sort(descending=True, stable=True).indices[:n_edges]]
    edges = torch.zeros_like(graph.allowed).flatten()
    edges[kept] = True
    return Circuit.of(graph, edges.view_as(graph.allowed))


@final
class _Watched(Wiring):
    """The model, whose gradients at everything that is heard can be had apart."""

    def __init__(self, graph: Graph) -> None:
        self._whole = Whole(graph)
        self.nudges: list[Float[Tensor, "receivers rows pos d_model"]] = []
        """Zeros that were added to what is heard, level by level."""

    def hear(self, level: int, outs: Sequence[Tensor]) -> Tensor:
        """See Wiring."""
        x = self._whole.hear(level, outs)
        self.nudges.append(torch.zeros_like(x, memory_format=torch.contiguous_format))
        self.nudges[-1].requires_grad_()
        return x + self.nudges[-1]


def _by_pair(
    bench: CircuitBench, shares: Sequence[float]
) -> Float[Tensor, "pairs receivers senders"]:
    """Difference times gradient of every edge, the gradient's mean over runs.

    `shares`: how much of each run's embedding is the clean one; the rest is the ablated one.
    """
    n_each = bench.clean.outs[0][0, 0].numel() * len(bench.graph.receivers)
    groups = torch.arange(len(bench.pairs)).split(max(1, MAX_GRADIENTS // n_each))
    return torch.cat([_of_some(bench.select(rows), shares) for rows in groups])


def _of_some(bench: CircuitBench, shares: Sequence[float]) -> Tensor:
    graph = bench.graph
    clean, ablated = bench.clean.outs, bench.ablated.outs
    differences = torch.cat([a - b for a, b in zip(clean, ablated, strict=True)])
    scores = bench.like.new_zeros(len(bench.pairs), *graph.allowed.shape)
    for share in shares:
        embed = torch.lerp(ablated[0][0], clean[0][0], share)
        for i, gradient in enumerate(_gradients(bench, embed)):
            hears = list(graph.levels[i].hears)
            pattern = "r p t d, s p t d -> p r s"
            scores[:, graph.receivers_of(i), hears] += torch.einsum(
                pattern, gradient, differences[hears]
            )
    return scores / len(shares)


@torch.enable_grad()
def _gradients(bench: CircuitBench, embed: Float[Tensor, "pairs pos d_model"]) -> list[Tensor]:
    """Of each pair's cost, at what receivers hear, level by level."""
    watched = _Watched(bench.graph)
    traced = trace(bench.graph, embed, watched)
    total = bench.costs(bench.read(traced)).sum()
    return list(torch.autograd.grad(total, watched.nudges))
