"""How well circuits agree with one that is known: receiver operating characteristics.

Every threshold gives a circuit. Of the known circuit's edges it has a share (true positives), and
of all other edges a share, too (false positives). The curve joins the pairs of shares, from nothing
at (0, 0) to everything at (1, 1), by stairs that rise as late as they can; pairs that another one
beats on both counts are left out. The same for nodes: a node is in a circuit if somebody hears it.

Source: Conmy et al. 2023 (2304.14997), section 4 and its code.

Limits: a known circuit is what somebody found by hand; what it lacks counts as false. With few
thresholds the stairs' area is a lower bound.
"""

from collections.abc import Iterable
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.evals.circuits.circuit import Circuit, Graph


@final
class Truth:
    """What is to be found: a known circuit of a graph."""

    def __init__(self, graph: Graph, edges: Bool[Tensor, "receivers senders"]) -> None:
        """Raises:
        ValueError: all edges of the graph, or none.
        """
        n = int(edges.sum())
        if not 0 < n < graph.n_edges:
            raise ValueError(f"circuit: {n} of {graph.n_edges} edges; give one that is a part")
        self.graph = graph
        self._edges = edges[graph.allowed]
        self._nodes = edges.any(0)

    def edges(self, circuits: Iterable[Circuit]) -> Float[Tensor, "steps 2"]:
        """The curve of circuits' edges: (false, true positive rate)."""
        found = [circuit.edges[self.graph.allowed] for circuit in circuits]
        return _curve(torch.stack(found), self._edges)

    def nodes(self, circuits: Iterable[Circuit]) -> Float[Tensor, "steps 2"]:
        """The curve of circuits' nodes; all of the graph are in it or not."""
        return _curve(torch.stack([circuit.nodes for circuit in circuits]), self._nodes)

    def scored_edges(self, scores: Float[Tensor, "receivers senders"]) -> Float[Tensor, "steps 2"]:
        """The curve of the circuits of all edges with at least some score, for every score."""
        return _scored(scores.abs()[self.graph.allowed], self._edges)

    def scored_nodes(self, scores: Float[Tensor, "receivers senders"]) -> Float[Tensor, "steps 2"]:
        """The curve of these circuits' nodes."""
        return _scored(scores.abs().amax(0), self._nodes)


def area(curve: Float[Tensor, "steps 2"]) -> float:
    """Under its stairs; 1 if one point is (0, 1)."""
    false, true = curve.T
    return ((1 - false[1:]) * true.diff()).sum().item()


def _curve(
    found: Bool[Tensor, "circuits things"], truth: Bool[Tensor, " things"]
) -> Float[Tensor, "steps 2"]:
    """Of circuits one by one."""
    return _stairs((found & ~truth).sum(1), (found & truth).sum(1), truth)


def _scored(
    scores: Float[Tensor, " things"], truth: Bool[Tensor, " things"]
) -> Float[Tensor, "steps 2"]:
    """Of the things with the largest scores, equal ones all at once."""
    values, order = scores.sort(descending=True, stable=True)
    n_true, n_false = truth[order].cumsum(0), (~truth[order]).cumsum(0)
    is_last = torch.cat([values[1:] < values[:-1], torch.ones(1, dtype=torch.bool)])
    return _stairs(n_false[is_last], n_true[is_last], truth)


def _stairs(
    n_false: Int[Tensor, " points"], n_true: Int[Tensor, " points"], truth: Bool[Tensor, " things"]
) -> Float[Tensor, "steps 2"]:
    """Rates that no others beat, rising from (0, 0) to (1, 1)."""
    rates = [n_false / (~truth).sum().clamp(min=1), n_true / truth.sum()]
    points = torch.stack(rates, 1).double().tolist()
    kept = [(0.0, 0.0)]
    for false, true in sorted([*points, (1.0, 1.0)], key=lambda point: (point[0], -point[1])):
        if true > kept[-1][1]:
            kept.append((false, true))
    if kept[-1][0] < 1:
        kept.append((1.0, 1.0))
    return torch.tensor(kept, dtype=torch.float64)
