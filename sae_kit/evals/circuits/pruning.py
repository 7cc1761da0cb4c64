"""ACDC's greedy loop: go from the output back, and cut every edge that is not missed.

From the output to the embedding, each receiver's edges are tried one after the other: without the
edge, how much more does the circuit cost than it did a moment ago? If it is less than a threshold,
the edge is cut for good; if not, it stays. Source: Conmy et al. 2023 (2304.14997), algorithm 1, and
its code: a head's direct edge comes first, and with it fall all edges into that receiver; senders
are tried from the latest level to the earliest; edges into receivers on which nothing depends fall
without a trial, since nothing changes.

Trials run side by side: as if all of some edges into a level would be cut, one after the other, of
which those up to the first that stays are what the loop would have found one by one. How many,
adapts to how many in a row were cut.

Limits: greedy, and the order matters. Of two that can do each other's work (OR) one is cut. Effects
within rounding of the threshold go either way; `Pruned.noise` says how large rounding is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_tail import DIRECT, Ahead, Cut, Tail
from sae_kit.evals.shared.kept import Part
from sae_kit.log import Progress

MAX_POSITIONS = 1 << 13
"""Positions of the versions of a receiver that are computed at once, at most, one version aside."""
MAX_LOGITS = 1 << 24
"""Logits computed at once, at most, one version aside."""
Rule = Callable[[float, float], bool]
"""(effect, threshold) -> whether the edge is cut. The effect is by how much the cost grew."""

RULES: dict[str, Rule] = {
    "signed": lambda effect, threshold: effect < threshold,
    "absolute": lambda effect, threshold: abs(effect) < threshold,
}
"""By word. Signed cuts what makes the circuit better, too: with a task's metric negative heads."""

Order = Callable[[Sequence[int]], Sequence[int]]

ORDERS: dict[str, Order] = {
    "forward": lambda numbers: numbers,
    "backward": lambda numbers: numbers[::-1],
}
"""By word: in which order nodes of one level are visited, as receivers and as senders."""


def check_words(rule: str, order: str) -> None:
    """Refuse words that name no rule or order.

    Raises:
        ValueError: names the nearest.
    """
    for what, word, known in (("rule", rule, RULES), ("head_order", order, ORDERS)):
        if word not in known:
            close = " or ".join(nearest(word, known) or known)
            raise ValueError(f"{what}: {word!r} is unknown; give {close}")


@final
@dataclass(frozen=True, kw_only=True, eq=False)  # eq: tensors have no single truth value
class Trials:
    """The edges that were tried, in this order."""

    edges: Int[Tensor, "trials 2"]
    """(receiver, sender); `DIRECT` for a direct edge."""
    effects: Float[Tensor, " trials"]
    """By how much the cost grew without it."""
    is_cut: Bool[Tensor, " trials"]

    def costs(self, start: float) -> Float[Tensor, " trials"]:
        """The circuit's cost after every trial; it starts at this one."""
        return start + torch.where(self.is_cut, self.effects, 0.0).cumsum(0)

    def by_edge(self, graph: Graph) -> Float[Tensor, "receivers senders"]:
        """The effects, each at its edge's place; 0 where there was no trial."""
        effects = torch.zeros(graph.allowed.shape, dtype=self.effects.dtype)
        receivers, senders = self.edges[self.edges[:, 1] != DIRECT].T
        effects[receivers, senders] = self.effects[self.edges[:, 1] != DIRECT]
        return effects


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """What is left of a graph."""

    circuit: Circuit
    trials: Trials
    n_runs: int
    """Versions that were run: the trials, and those run in vain."""
    noise: float
    """The largest difference between two ways of computing the same cost."""


@final
@dataclass(frozen=True, kw_only=True)
class Greedy:
    """How to prune."""

    threshold: float
    """Edges that are missed by less are cut; in units of the cost."""
    rule: str = "signed"
    order: str = "forward"
    max_versions: int = 1 << 10
    """Trials side by side, at most; 1: one by one."""

    def prune(self, bench: CircuitBench, *, kept: Part, progress: Progress) -> Pruned:
        """Go through all edges.

        Args:
            bench: where circuits are run.
            kept: levels that an earlier call got through, whose record goes on.
            progress: counts edges, each level's once.
        """
        graph = bench.graph
        circuit, cost = Circuit.full(graph), bench.clean_cost
        records: list[dict[str, Tensor]] = []
        for number, level in enumerate(reversed(range(len(graph.levels)))):
            if (record := kept.get(number)) is None:
                tail = Tail(bench, circuit, level)
                noise = abs(tail.cost - cost)
                record = {**_Visit(self, tail, progress).to(level), "noise": _number(noise)}
                kept.put(number, record)
            else:
                progress.update(int(graph.allowed[graph.receivers_of(level)].sum()))
            circuit = Circuit(graph, record["left"], record["direct"])
            cost = record["cost"].item()
            records.append(record)

        def all_of(name: str) -> Tensor:
            return torch.cat([record[name] for record in records])

        return Pruned(
            circuit=circuit,
            trials=Trials(
                edges=all_of("edges"), effects=all_of("effects"), is_cut=all_of("is_cut")
            ),
            n_runs=int(all_of("n_runs").sum()),
            noise=all_of("noise").max().item(),
        )

    def is_cut(self, effect: float) -> bool:
        """Whether an edge of this effect falls."""
        return RULES[self.rule](effect, self.threshold)

    def in_order(self, numbers: Sequence[int]) -> Sequence[int]:
        """Nodes of one level as they are visited."""
        return ORDERS[self.order](numbers)


@final
class _Visit:
    """The loop's way through the receivers of one level."""

    def __init__(self, greedy: Greedy, tail: Tail, progress: Progress) -> None:
        self._greedy, self._tail, self._progress = greedy, tail, progress
        self._graph = tail.circuit.graph
        self._edges: list[tuple[int, int]] = []
        self._effects: list[float] = []
        self._is_cut: list[bool] = []
        self._n_runs = 0
        self._n_done = 0

    def to(self, level: int) -> dict[str, Tensor]:
        """Visit all receivers of a level. What happened, and what is left of the circuit."""
        receivers = self._receivers(level)
        waiting, n = [cut for r in receivers for cut in self._first(r)], 1
        while waiting:
            tried = waiting[: min(n, self._most(waiting[:n]))]
            n_cut = self._try(self._tail.without(tried))
            stays = tried[n_cut:][:1]
            waiting = waiting[n_cut + len(stays) :]
            for receiver, sender in stays:
                if sender == DIRECT:
                    waiting = self._others(receiver) + waiting
            n = n_cut + 1 if stays else 2 * len(tried)
            self._report(receivers, waiting)
        self._report(receivers, [])  # of the dead ones, too
        left = self._tail.circuit.without_dead()
        return {
            "edges": torch.tensor(self._edges, dtype=torch.int64).view(-1, 2),
            "effects": torch.tensor(self._effects, dtype=torch.float64),
            "is_cut": torch.tensor(self._is_cut, dtype=torch.bool),
            "n_runs": torch.tensor([self._n_runs]),
            "cost": _number(self._tail.cost),
            "left": left.edges,
            "direct": left.direct,
        }

    def _receivers(self, level: int) -> list[int]:
        """Those of a level, as they are visited."""
        first = self._graph.receivers_of(level).start
        n_parts = len(self._graph.levels[level].parts)
        nodes = self._greedy.in_order(range(len(self._graph.levels[level].names)))
        return [first + node * n_parts + part for node in nodes for part in range(n_parts)]

    def _first(self, receiver: int) -> list[Cut]:
        """What is tried first: its direct edge, which all others fall with; nothing of the dead."""
        if self._tail.is_dead(receiver):
            return []
        return [(receiver, DIRECT)] if self._graph.is_direct[receiver] else self._others(receiver)

    def _others(self, receiver: int) -> list[Cut]:
        """Its edges from senders, from the latest level to the earliest."""
        heard = self._tail.circuit.edges[receiver].tolist()
        found: list[int] = []
        for level in reversed(range(len(self._graph.levels))):
            own = range(len(heard))[self._graph.senders_of(level)]
            found += [sender for sender in self._greedy.in_order(own) if heard[sender]]
        return [(receiver, sender) for sender in found + [0] * heard[0]]

    def _try(self, ahead: Ahead) -> int:
        """How many edges fall: those up to the first that stays."""
        before, n_cut = self._tail.cost, 0
        self._n_runs += len(ahead.cuts)
        for cut, cost in zip(ahead.cuts, self._tail.costs(ahead), strict=True):
            falls = self._greedy.is_cut(cost - before)
            self._edges.append(cut)
            self._effects.append(cost - before)
            self._is_cut.append(falls)
            if not falls:
                break
            before, n_cut = cost, n_cut + 1
        if n_cut:
            self._tail.go_on(ahead, n_cut - 1, before)
        return n_cut

    def _most(self, cuts: Sequence[Cut]) -> int:
        """How many versions are run side by side."""
        n_logits = self._tail.n_pairs * self._graph.model.config.n_vocab
        n_positions = max(self._tail.n_positions(receiver) for receiver, _ in cuts)
        most = min(MAX_POSITIONS // n_positions, MAX_LOGITS // n_logits, self._greedy.max_versions)
        return max(1, most)

    def _report(self, receivers: Sequence[int], waiting: Sequence[Cut]) -> None:
        """Edges into receivers that nothing waits for any more."""
        reached = receivers.index(waiting[0][0]) if waiting else len(receivers)
        done = receivers[self._n_done : reached]
        self._progress.update(int(self._graph.allowed[done].sum()), cost=self._tail.cost)
        self._n_done = reached


def _number(value: float) -> Float[Tensor, "1"]:
    return torch.tensor([value], dtype=torch.float64)
