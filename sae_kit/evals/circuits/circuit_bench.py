"""Circuits of a graph, run on pairs of prompts and read.

What a receiver hears is what it would if all senders were ablated, and for every edge that is there
the difference that its sender makes:

    in = ablated in + sum over edges of w (out - ablated out),    w = 1 where the edge is there

(Conmy et al. 2023, 2304.14997; w between 0 and 1 is for gradients and for masks that are learnt.)
With all edges this is the model itself, whatever the ablation, which `ablations.py` says. Biases
behind attention layers are no sender's, and stay.

A circuit's cost is the mean over pairs of a metric of its predictions at the last position, so that
less is better: the KL of its predictions from the model's own, or the negative of a task's metric.
Costs are computed from logits in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.data.pairs import Pairs
from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.shared.ablations import Ablation
from sae_kit.evals.shared.answers import Answers, check_varies

KL = "kl"
"""The metric of which less is better."""
EVERY = slice(None)
MAX_WRITTEN = 1 << 30
"""Numbers that all nodes write on some pairs, at most: 4 GiB of float32, several times."""


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Trace:
    """What happened in one run."""

    outs: Sequence[Float[Tensor, "_ rows pos d_model"]]
    """What nodes wrote: the embedding, then level by level."""
    values: Sequence[Sequence[Float[Tensor, "_ rows pos _"]]]
    """What the parts of a level's nodes made of what they heard, level by level."""

    def select(self, rows: Int[Tensor, " chosen"]) -> "Trace":
        """Some of the rows."""
        return Trace(
            [out[:, rows] for out in self.outs],
            [[value[:, rows] for value in level] for level in self.values],
        )


class Wiring(ABC):
    """Who hears what in a run. One is for one run."""

    @abstractmethod
    def hear(
        self, level: int, outs: Sequence[Float[Tensor, "_ rows pos d_model"]]
    ) -> Float[Tensor, "receivers rows pos d_model"]:
        """What the receivers of a level hear, given what was written before it."""

    def pass_on(
        self, level: int, part: int, value: Float[Tensor, "nodes rows pos width"]
    ) -> Float[Tensor, "nodes rows pos width"]:
        """What becomes of what a level's nodes made of it."""
        return value


def trace(graph: Graph, embed: Float[Tensor, "rows pos d_model"], wiring: Wiring) -> Trace:
    """A run through all levels."""
    outs, values = [embed[None]], []
    for i, level in enumerate(graph.levels):
        x, n = wiring.hear(i, outs), len(level.parts)
        own = [wiring.pass_on(i, j, level.read(j, EVERY, x[j::n])) for j in range(n)]
        values.append(own)
        outs.append(level.write(EVERY, own))
    return Trace(outs, values)


@final
class Whole(Wiring):
    """Everybody hears the whole stream: the model."""

    def __init__(self, graph: Graph) -> None:
        self._levels = graph.levels

    def hear(self, level: int, outs: Sequence[Tensor]) -> Tensor:
        """See Wiring."""
        own = self._levels[level]
        stream = torch.cat(list(outs))[list(own.hears)].sum(0) + own.constant
        return stream.expand(len(own.receivers), -1, -1, -1)


@final
class Weighted(Wiring):
    """Senders are heard as their edges are weighted; see the module's formula."""

    def __init__(
        self,
        bench: "CircuitBench",
        edges: Float[Tensor, "receivers senders"],
        direct: Float[Tensor, " receivers"],
    ) -> None:
        self._graph, self._ablated, self._base = bench.graph, bench.ablated, bench.base
        self._edges, self._direct = edges, direct
        self._differences: list[Tensor] = []

    def hear(self, level: int, outs: Sequence[Tensor]) -> Tensor:
        """See Wiring."""
        self._differences.append(outs[level] - self._ablated.outs[level])
        x, first = self._base[level], 0
        edges = self._edges[self._graph.receivers_of(level)]
        for difference in self._differences:
            end = first + len(difference)
            x = x + torch.tensordot(edges[:, first:end], difference, 1)
            first = end
        return x

    def pass_on(self, level: int, part: int, value: Tensor) -> Tensor:
        """See Wiring: by direct edges, where there are some."""
        n = len(self._graph.levels[level].parts)
        if n == 1:
            return value
        own = self._direct[self._graph.receivers_of(level)][part::n, None, None, None]
        return torch.lerp(self._ablated.values[level][part], value, own)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitBench:
    """A graph's circuits on some pairs."""

    graph: Graph
    pairs: Pairs
    metric: str
    """What costs are made of: one of `answers.METRICS`."""
    clean: Trace
    """Of the clean prompts."""
    ablated: Trace
    """What takes its place."""
    base: Sequence[Float[Tensor, "pairs pos d_model"]]
    """What every level hears when all senders are ablated."""
    answers: Answers

    @staticmethod
    @torch.no_grad()
    def of(graph: Graph, pairs: Pairs, ablation: Ablation, *, metric: str) -> "CircuitBench":
        """Run both prompts of all pairs, which lie where the model does.

        Raises:
            ValueError: what all nodes write on them would not fit into memory.
        """
        _check_size(graph, pairs)
        clean, corrupt = (
            trace(graph, embedded(graph, tokens), Whole(graph))
            for tokens in (pairs.clean, pairs.corrupt)
        )
        ablated = _ablated(graph, ablation, clean, corrupt)
        whole = Whole(graph)
        return CircuitBench(
            graph=graph,
            pairs=pairs,
            metric=metric,
            clean=clean,
            ablated=ablated,
            base=[whole.hear(i, ablated.outs)[0].clone() for i in range(len(graph.levels))],
            answers=Answers(pairs, _logits(graph, clean)),
        )

    def select(self, rows: Int[Tensor, " chosen"]) -> "CircuitBench":
        """Some of the pairs."""
        pairs = self.pairs.select(rows)
        return CircuitBench(
            graph=self.graph,
            pairs=pairs,
            metric=self.metric,
            clean=self.clean.select(rows),
            ablated=self.ablated.select(rows),
            base=[base[rows] for base in self.base],
            answers=Answers(pairs, self.answers.clean.logits[rows]),
        )

    def with_metric(self, metric: str) -> "CircuitBench":
        """The same runs, read by another metric."""
        return replace(self, metric=metric)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of everything here."""
        return self.clean.outs[0]

    def wiring(self, circuit: Circuit) -> Weighted:
        """Who hears what in a circuit."""
        return Weighted(self, circuit.edges.to(self.like), circuit.direct.to(self.like))

    def trace(self, circuit: Circuit) -> Trace:
        """The circuit's run on the clean prompts."""
        return trace(self.graph, self.clean.outs[0][0], self.wiring(circuit))

    def logits(self, circuit: Circuit) -> Float[Tensor, "pairs vocab"]:
        """The circuit's predictions at the last position."""
        return self.read(self.trace(circuit))

    def read(self, traced: Trace) -> Float[Tensor, "pairs vocab"]:
        """The predictions of a run."""
        return _logits(self.graph, traced)

    def costs(self, logits: Float[Tensor, "pairs vocab"]) -> Float[Tensor, " pairs"]:
        """What predictions cost."""
        wide = logits.double()
        values = self.answers.read(wide).metric(self.metric)
        return values if self.metric == KL else -values

    @property
    def clean_cost(self) -> float:
        """What the model's own predictions cost."""
        return self.costs(self.answers.clean.logits).mean().item()

    def cost(self, circuit: Circuit) -> float:
        """What a circuit costs."""
        return self.costs(self.logits(circuit)).mean().item()

    def check(self) -> None:
        """Refuse pairs on which all circuits would do as well.

        Raises:
            ValueError: without any edge the cost is what it is with all of them.
        """
        full, none = (
            self.costs(self.logits(Circuit.of(self.graph, edges)))
            for edges in (self.graph.allowed, torch.zeros_like(self.graph.allowed))
        )
        check_varies(self.metric, full, none)


@torch.no_grad()
def embedded(graph: Graph, tokens: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos d_model"]:
    """What enters the first block."""
    site = "blocks.0.hook_resid_pre"
    return graph.model.run(tokens, capture=[site], stop=site).acts[site]


def _check_size(graph: Graph, pairs: Pairs) -> None:
    n_written = len(graph.senders) * pairs.clean.numel() * graph.model.config.d_model
    if n_written > MAX_WRITTEN:
        raise ValueError(
            f"n_pairs: {len(graph.senders):,} nodes on {len(pairs)} pairs of {pairs.n_pos} tokens "
            f"write {n_written:,} numbers, and there is room for {MAX_WRITTEN:,}; give fewer pairs "
            "(n_pairs, n_heldout), or fewer latents (n_latents, latent_sites)"
        )


def _ablated(graph: Graph, ablation: Ablation, clean: Trace, corrupt: Trace) -> Trace:
    """What the ablation makes of every sender, and of every value behind a direct edge."""

    def of(names: Sequence[str], a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([ablation.of(*each) for each in zip(names, a, b, strict=True)])

    named = [("embed",), *(level.names for level in graph.levels)]
    outs = [of(*each) for each in zip(named, clean.outs, corrupt.outs, strict=True)]
    values: list[list[Tensor]] = []
    for i, level in enumerate(graph.levels):
        n, kept = len(level.parts), []
        if n > 1:
            both = zip(clean.values[i], corrupt.values[i], strict=True)
            kept = [of(level.receivers[j::n], a, b) for j, (a, b) in enumerate(both)]
        values.append(kept)
    return Trace(outs, values)


def _logits(graph: Graph, traced: Trace) -> Tensor:
    logits = graph.unembed(traced.outs[-1][0, :, -1])
    return logits.double()
