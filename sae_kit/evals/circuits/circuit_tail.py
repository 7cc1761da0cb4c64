"""Circuits that differ in the edges into one level, at the cost of what comes behind it.

A circuit's run is kept. To know what comes of cutting edges into a level, only the receivers that
lose them are computed anew, and those behind that hear, along edges still there, something that has
changed; where nothing but the last position matters (queries of heads that only the output hears,
say), at the last position alone. Several circuits, each with one edge fewer than the one before,
run side by side, and so do the nodes of a level, whose sums are one matrix product: where
everything changes (in front of a whole graph), this costs what a full pass does.

What a receiver hears is summed afresh every time, from what senders write: cutting a thousand edges
one by one leaves no more rounding behind than cutting them at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.evals.circuits.circuit import Circuit
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_nodes import Need

DIRECT = -1
"""The sender of a receiver's direct edge."""

Cut = tuple[int, int]
"""(receiver, sender)."""


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value
class _Written:
    """What some nodes of one level write, less what they do when ablated."""

    nodes: list[int]
    """As senders."""
    differences: Float[Tensor, "nodes versions pairs _ d_model"]


@final
class Ahead:
    """What would change in a run: in several versions of it, each with one cut more."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
        """`cuts`: version i lacks the first i + 1 of them."""
        self.cuts = tuple(cuts)
        self.values: dict[int, Float[Tensor, "versions pairs _ width"]] = {}
        """By receiver."""
        self.written: list[_Written] = []
        """By those whose writing changes, from earlier to later levels."""


@final
class Tail:
    """A circuit's run from one level on, ready to go on with fewer edges into this level."""

    @torch.no_grad()
    def __init__(self, bench: CircuitBench, circuit: Circuit, level: int) -> None:
        """`level`: its number. Edges into other levels stay as they are."""
        self._bench, self._graph, self._level = bench, bench.graph, level
        self.circuit = circuit
        """As it is now."""
        traced = bench.trace(circuit)
        self.cost = bench.costs(bench.read(traced)).mean().item()
        """Of this circuit."""
        self._values = traced.values
        outs = zip(traced.outs, bench.ablated.outs, strict=True)
        self._differences = torch.cat([out - ablated for out, ablated in outs])
        # Of this level and behind it: these stay as they are, since what is behind does.
        needs = circuit.needs
        self._needs = [Need(need) for need in needs.tolist()]
        outputs = (circuit.edges * needs[:, None]).amax(0).tolist()
        self._output_needs = [*map(Need, outputs), Need.LAST]

    def is_dead(self, receiver: int) -> bool:
        """Whether nothing depends on what it hears."""
        return self._needs[receiver] is Need.NONE

    @property
    def n_pairs(self) -> int:
        """How many there are."""
        return len(self._bench.pairs)

    def n_positions(self, receiver: int) -> int:
        """How many positions, over all pairs, one version of a receiver takes."""
        return self._at(receiver, self._differences[0])[..., 0].numel()

    @torch.no_grad()
    def without(self, cuts: Sequence[Cut]) -> Ahead:
        """The run without the first of these edges, without the second either, and so on.

        Args:
            cuts: into living receivers of the tail's level, those into one receiver in a row;
                either its direct edge (`DIRECT`), or edges from senders.
        """
        ahead, n_before = Ahead(cuts), 0
        for receiver, own in groupby(cuts, key=lambda cut: cut[0]):
            senders = [sender for _, sender in own]
            n_after = len(cuts) - n_before - len(senders)
            values = self._after(receiver, senders)
            before = self._kept(receiver).expand(n_before, *values.shape[1:])
            after = values[-1].expand(n_after, *values.shape[1:])
            ahead.values[receiver] = torch.cat([before, values, after])
            n_before += len(senders)
        self._write(self._level, ahead)
        for level in range(self._level + 1, len(self._graph.levels)):
            self._read(level, ahead)
            self._write(level, ahead)
        return ahead

    @torch.no_grad()
    def costs(self, ahead: Ahead) -> list[float]:
        """What each version costs."""
        stream = ahead.written[-1].differences[0, :, :, -1]
        stream = stream + self._bench.ablated.outs[-1][0, :, -1]
        logits = self._graph.unembed(stream.flatten(0, 1)).unflatten(0, stream.shape[:2])
        return [self._bench.costs(version).mean().item() for version in logits]

    def go_on(self, ahead: Ahead, version: int, cost: float) -> None:
        """Make a version, which costs this, the run itself."""
        for receiver, value in ahead.values.items():
            self._kept(receiver).copy_(value[version])
        for written in ahead.written:
            n_pos = written.differences.shape[3]
            self._differences[written.nodes, :, -n_pos:] = written.differences[:, version]
        for receiver, sender in ahead.cuts[: version + 1]:
            if sender == DIRECT:
                self.circuit = self.circuit.without_direct(receiver)
            else:
                self.circuit = self.circuit.without(receiver, [sender])
        self.cost = cost

    # --- what follows from a change ---------------------------------------------------------------

    def _after(
        self, receiver: int, senders: Sequence[int]
    ) -> Float[Tensor, "versions pairs _ width"]:
        """What a receiver makes of what it hears without one of these edges after the other."""
        place = self._graph.places[receiver]
        if senders[0] == DIRECT:
            ablated = self._bench.ablated.values[place.level][place.part][place.node]
            return self._at(receiver, ablated)[None]
        heard = self.circuit.edges[receiver].repeat(len(senders), 1)
        for i, sender in enumerate(senders):
            heard[i:, sender] = False
        base = self._at(receiver, self._bench.base[place.level])
        terms = _heard(heard, self._at(receiver, self._differences))
        x = torch.addmm(base.reshape(1, -1), *terms).view(-1, *base.shape)
        read = self._graph.levels[place.level].read
        return read(place.part, [place.node], x.flatten(0, 1)[None])[0].unflatten(0, x.shape[:2])

    def _read(self, level: int, ahead: Ahead) -> None:
        """What the receivers of a later level make of what has changed in front of them."""
        own, changed = self._graph.levels[level], [n for w in ahead.written for n in w.nodes]
        n_parts, first = len(own.parts), self._graph.receivers_of(level).start
        affected = self.circuit.edges[self._graph.receivers_of(level)][:, changed].any(1).tolist()
        alive = [
            first + i for i, is_so in enumerate(affected) if is_so and not self.is_dead(first + i)
        ]
        for need in (Need.LAST, Need.ALL):
            alike = [r for r in alive if self._needs[r] is need]
            if not alike:
                continue
            x = self._hear(alike, changed, ahead)
            for part in range(n_parts):
                own_part = [i for i, r in enumerate(alike) if (r - first) % n_parts == part]
                if own_part:
                    receivers = [alike[i] for i in own_part]
                    nodes = [(r - first) // n_parts for r in receivers]
                    values = own.read(part, nodes, x[own_part].flatten(1, 2))
                    values = values.unflatten(1, x.shape[1:3])
                    ahead.values |= dict(zip(receivers, values, strict=True))

    def _hear(
        self, receivers: list[int], changed: list[int], ahead: Ahead
    ) -> Float[Tensor, "receivers versions pairs _ d_model"]:
        """What receivers of one level, which need the same positions, hear."""
        edges, at = self.circuit.edges[receivers], self._needs[receivers[0]].at
        same = edges.clone()
        same[:, changed] = False
        base = self._bench.base[self._graph.places[receivers[0]].level][:, at]
        terms = _heard(same, self._differences[:, :, at])
        x = torch.addmm(base.reshape(1, -1), *terms)
        x = x[:, None].repeat(1, len(ahead.cuts), 1)
        for written in ahead.written:
            heard = edges[:, written.nodes]
            if heard.any():  # others may have been written at the last position alone
                # In place: these are the largest tensors there are.
                x.flatten(1).addmm_(*_heard(heard, written.differences[..., at, :]))
        return x.view(*x.shape[:2], *base.shape)

    def _write(self, level: int, ahead: Ahead) -> None:
        """What the nodes of a level write, some of whose parts have changed."""
        own, first = self._graph.levels[level], self._graph.senders_of(level).start
        for need in (Need.LAST, Need.ALL):
            nodes = [
                node
                for node in range(len(own.names))
                if self._output_needs[first + node] is need
                and not ahead.values.keys().isdisjoint(self._receivers(level, node))
            ]
            if not nodes:
                continue
            values = [self._part(level, part, nodes, need, ahead) for part in range(len(own.parts))]
            out = own.write(nodes, values).unflatten(1, (len(ahead.cuts), -1))
            ablated = self._bench.ablated.outs[level + 1][nodes][:, None, :, need.at]
            ahead.written.append(_Written([first + node for node in nodes], out - ablated))

    def _part(
        self, level: int, part: int, nodes: list[int], output: Need, ahead: Ahead
    ) -> Float[Tensor, "nodes rows _ width"]:
        """What one part of some nodes has read, in all versions."""
        # Needed even where its direct edge is cut: then it is the ablated one.
        at = self._graph.levels[level].needs(part, output).at
        values = []
        for node in nodes:
            if (value := ahead.values.get(self._receivers(level, node)[part])) is None:
                kept = self._values[level][part][node][:, at]
                value = kept.expand(len(ahead.cuts), *kept.shape)
            values.append(value.flatten(0, 1))
        return torch.stack(values)

    def _receivers(self, level: int, node: int) -> range:
        n = len(self._graph.levels[level].parts)
        first = self._graph.receivers_of(level).start + node * n
        return range(first, first + n)

    def _kept(self, receiver: int) -> Float[Tensor, "pairs _ width"]:
        """What it makes of what it hears now."""
        place = self._graph.places[receiver]
        return self._at(receiver, self._values[place.level][place.part][place.node])

    def _at(self, receiver: int, x: Float[Tensor, "*rows pos width"]) -> Tensor:
        """The positions that a receiver needs."""
        return x[..., self._needs[receiver].at, :]


def _heard(
    heard: Bool[Tensor, "rows senders"], terms: Float[Tensor, "nodes *axes"]
) -> tuple[Float[Tensor, "rows used"], Float[Tensor, "used rest"]]:
    """Weights and terms, whose product is what each row hears; of the terms that any row does.

    There may be terms of more nodes than can be heard: that of the logits comes last.
    """
    used = heard.any(0).nonzero()[:, 0].tolist()
    span = slice(used[0], used[-1] + 1) if used else slice(0)
    # Where most are heard, a copy of them would cost more than the rest.
    some = span if 2 * len(used) > len(heard[0, span]) else used
    return heard[:, some].to(terms), terms[some].flatten(1)
