"""Circuits that differ in the edges into one receiver, at the cost of what comes behind it.

A circuit's run is kept. To know what comes of cutting edges into a receiver, only the receiver is
computed anew, and those behind it that hear, along edges still there, something that has changed;
where nothing but the last position matters (queries of heads that only the output hears, say), at
the last position alone. Several circuits, each with one edge fewer than the one before, run side by
side.

What a receiver hears is summed afresh every time, from what senders write: cutting a thousand edges
one by one leaves no more rounding behind than cutting them at once.
"""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.circuits.circuit import Circuit
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_nodes import Need


@final
class Ahead:
    """What would change in a run: in several versions of it, each with one cut more."""

    def __init__(self, receiver: int, cut: Sequence[int]) -> None:
        """Args:
        receiver: the edges into it are cut.
        cut: from these senders; none, if it is its direct edge that is cut.
        """
        self.receiver, self.cut = receiver, tuple(cut)
        self.n_versions = max(1, len(cut))
        self.values: dict[int, Float[Tensor, "versions pairs _ width"]] = {}
        """By receiver."""
        self.differences: dict[int, Float[Tensor, "versions pairs _ d_model"]] = {}
        """By node: what it writes, less what it does when ablated."""


@final
class Tail:
    """A circuit's run from one level on, ready to go on with fewer edges into this level."""

    @torch.no_grad()
    def __init__(self, bench: CircuitBench, circuit: Circuit, level: int) -> None:
        """`level`: its number. Edges into other levels stay as they are."""
        self._bench, self._graph = bench, bench.graph
        self.circuit = circuit
        """As it is now."""
        traced = bench.trace(circuit)
        self.cost = bench.costs(bench.read(traced)).mean().item()
        """Of this circuit."""
        self._values = traced.values
        outs = zip(traced.outs, bench.ablated.outs, strict=True)
        self._differences = torch.cat([out - ablated for out, ablated in outs])
        self._heard = {
            r: set(circuit.edges[r].nonzero()[:, 0].tolist())
            for i in range(level, len(self._graph.levels))
            for r in range(len(self._graph.receivers))[self._graph.receivers_of(i)]
        }
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
    def without(self, receiver: int, senders: Sequence[int]) -> Ahead:
        """The run without the first of these edges, without the second either, and so on."""
        ahead = Ahead(receiver, senders)
        fewer = self._at(receiver, self._differences[list(senders)]).cumsum(0)
        ahead.values[receiver] = self._read(receiver, self._hears(receiver, ahead) - fewer)
        return self._follow(ahead)

    @torch.no_grad()
    def without_direct(self, receiver: int) -> Ahead:
        """The run without a direct edge."""
        ahead, place = Ahead(receiver, ()), self._graph.places[receiver]
        ablated = self._bench.ablated.values[place.level][place.part][place.node]
        ahead.values[receiver] = self._at(receiver, ablated)[None]
        return self._follow(ahead)

    @torch.no_grad()
    def costs(self, ahead: Ahead) -> list[float]:
        """What each version costs."""
        stream = ahead.differences[len(self._graph.senders)][:, :, -1]
        stream = stream + self._bench.ablated.outs[-1][0, :, -1]
        logits = self._graph.unembed(stream.flatten(0, 1)).unflatten(0, stream.shape[:2])
        return [self._bench.costs(version).mean().item() for version in logits]

    def go_on(self, ahead: Ahead, version: int, cost: float) -> None:
        """Make a version, which costs this, the run itself."""
        for receiver, value in ahead.values.items():
            place = self._graph.places[receiver]
            kept = self._values[place.level][place.part][place.node]
            self._at(receiver, kept).copy_(value[version])
        for node, difference in ahead.differences.items():
            n_pos = difference.shape[2]
            self._differences[node][:, -n_pos:] = difference[version]
        cut = ahead.cut[: version + 1]
        self._heard[ahead.receiver].difference_update(cut)
        if cut:
            self.circuit = self.circuit.without(ahead.receiver, cut)
        else:
            self.circuit = self.circuit.without_direct(ahead.receiver)
        self.cost = cost

    # --- what follows from a change ---------------------------------------------------------------

    def _follow(self, ahead: Ahead) -> Ahead:
        """Everything behind the receiver, whose new value is known."""
        place = self._graph.places[ahead.receiver]
        self._write(place.level, place.node, ahead)
        for level, node, receivers in self._behind(place.level):
            changed = [
                r
                for r in receivers
                if not self.is_dead(r) and not self._heard[r].isdisjoint(ahead.differences)
            ]
            for r in changed:
                ahead.values[r] = self._read(r, self._hears(r, ahead))
            if changed:
                self._write(level, node, ahead)
        return ahead

    def _behind(self, level: int) -> Iterator[tuple[int, int, range]]:
        """Every node of later levels: its level, its place there, its receivers."""
        for i in range(level + 1, len(self._graph.levels)):
            for node in range(len(self._graph.levels[i].names)):
                yield i, node, self._receivers(i, node)

    def _receivers(self, level: int, node: int) -> range:
        n = len(self._graph.levels[level].parts)
        first = self._graph.receivers_of(level).start + node * n
        return range(first, first + n)

    def _hears(self, receiver: int, ahead: Ahead) -> Tensor:
        """What a receiver hears: `[versions or 1, pairs, positions needed, d_model]`."""
        heard = self._heard[receiver]
        same = sorted(heard - ahead.differences.keys())
        x = self._at(receiver, self._bench.base[self._graph.places[receiver].level])
        x = (x + self._at(receiver, self._differences)[same].sum(0))[None]
        for node in sorted(heard & ahead.differences.keys()):
            x = x + self._at(receiver, ahead.differences[node])
        return x

    def _read(self, receiver: int, x: Float[Tensor, "versions pairs pos d_model"]) -> Tensor:
        """What it makes of it."""
        place = self._graph.places[receiver]
        read = self._graph.levels[place.level].read
        return read(place.part, [place.node], x.flatten(0, 1)[None])[0].unflatten(0, x.shape[:2])

    def _write(self, level: int, node: int, ahead: Ahead) -> None:
        """What a node writes, some of whose parts have changed."""
        own, values = self._graph.levels[level], []
        sender = self._graph.senders_of(level).start + node
        for part, r in enumerate(self._receivers(level, node)):
            if (value := ahead.values.get(r)) is None:
                # Needed even where its direct edge is cut: then it is the ablated one.
                kept = self._values[level][part][node]
                kept = kept[:, own.needs(part, self._output_needs[sender]).at]
                value = kept.expand(ahead.n_versions, *kept.shape)
            values.append(value.flatten(0, 1)[None])
        out = own.write([node], values)[0].unflatten(0, (ahead.n_versions, -1))
        ablated = self._bench.ablated.outs[level + 1][node]
        ahead.differences[sender] = out - ablated[:, self._output_needs[sender].at]

    def _at(self, receiver: int, x: Float[Tensor, "*rows pos width"]) -> Tensor:
        """The positions that a receiver needs."""
        return x[..., self._needs[receiver].at, :]
