"""A GPT-2 as a graph: which node hears which others, edge by edge; and circuits, parts of it.

The residual stream is a sum, so that what a node hears is a sum over nodes before it, and an edge
is a term of that sum (Elhage et al. 2021; Conmy et al. 2023, 2304.14997). Names:

- senders: "embed" (tokens and positions), "a3.2" (head 2 of block 3), "m3" (the MLP of block 3)
- receivers: "a3.2.q", "a3.2.k", "a3.2.v", "m3", and "logits", the final stream

Between the two there are L blocks of H heads' worth of edges:

    sum over l of  3 H (1 + (H + 1) l) + 1 + (H + 1) l + H,    and  1 + (H + 1) L  into the logits

which is 32,491 for GPT-2 small. Besides, each head's queries, keys and values hang on what they
hear by one direct edge each (432): cut, they are what an ablation makes of them, whatever is heard.

SAE latents can be nodes: at a site of the residual stream, everything behind it then hears the
chosen latents and the rest of the stream in the place of everything before; at `hook_attn_out` or
`hook_mlp_out` they stand for the block's heads, or its MLP.

Limits: edges are not split by position; transcoders are no nodes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.evals.circuits.circuit_nodes import REST, Heads, Latents, Level, MLPs, Need, Output
from sae_kit.models.gpt2 import GPT2, Block
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE

EMBED, LOGITS = "embed", "logits"
SAE_SITES = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
"""Of a block: where latents can be nodes."""

Edge = tuple[str, str]
"""(sender, receiver)."""


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """Latents of an SAE that are to be nodes."""

    sae: SAE
    latents: Int[Tensor, " chosen"]


@final
@dataclass(frozen=True)
class Place:
    """Where a receiver is."""

    level: int
    node: int
    """In the level."""
    part: int


@final
class Graph:
    """The nodes of a model, and all edges that there can be."""

    def __init__(self, model: GPT2, latents: Mapping[Site, Chosen] | None = None) -> None:
        """Raises:
        ValueError: latents at a site that is none of the graph's.
        """
        self.model = model
        self.levels: tuple[Level, ...] = tuple(_Builder(model, latents or {}).levels())
        writing = self.levels[:-1]
        self.senders = (EMBED, *(name for level in writing for name in level.names))
        self.receivers = tuple(name for level in self.levels for name in level.receivers)
        self.places = tuple(
            Place(i, node, part)
            for i, level in enumerate(self.levels)
            for node in range(len(level.names))
            for part in range(len(level.parts))
        )
        """Of every receiver."""
        self.is_direct = torch.tensor([len(self.levels[at.level].parts) > 1 for at in self.places])
        """`[receivers]`: which ones hang on what they hear by a direct edge."""
        self.allowed = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        """`[receivers senders]`: every edge that there can be."""
        for i, level in enumerate(self.levels):
            self.allowed[self.receivers_of(i), list(level.hears)] = True

    def senders_of(self, level: int) -> slice:
        """The numbers of a level's nodes as senders; empty for the output."""
        first = 1 + sum(len(one.names) for one in self.levels[:level])
        is_output = level == len(self.levels) - 1
        return slice(first, first if is_output else first + len(self.levels[level].names))

    def receivers_of(self, level: int) -> slice:
        """The numbers of a level's receivers."""
        first = sum(len(one.receivers) for one in self.levels[:level])
        return slice(first, first + len(self.levels[level].receivers))

    @cached_property
    def node_of(self) -> Int[Tensor, " receivers"]:
        """The sender that each receiver belongs to; that of the logits is one past the last."""
        firsts = [self.senders_of(i).start for i in range(len(self.levels))]
        return torch.tensor([firsts[place.level] + place.node for place in self.places])

    @property
    def n_edges(self) -> int:
        """Edges between nodes that there can be; direct ones not counted."""
        return int(self.allowed.sum())

    def names(self, edges: Bool[Tensor, "receivers senders"]) -> list[Edge]:
        """Edges by name."""
        return [(self.senders[s], self.receivers[r]) for r, s in edges.nonzero().tolist()]

    def find(self, edges: Iterable[Edge]) -> Bool[Tensor, "receivers senders"]:
        """Edges given by name.

        Raises:
            ValueError: one that there cannot be: an unknown node, or a sender that comes too late.
        """
        found = torch.zeros_like(self.allowed)
        for sender, receiver in edges:
            s = _number(sender, self.senders, "sender")
            r = _number(receiver, self.receivers, "receiver")
            if not self.allowed[r, s]:
                raise ValueError(
                    f"edge: {receiver} does not hear {sender}; give edges from earlier to later "
                    "nodes, past no latents"
                )
            found[r, s] = True
        return found

    def find_nodes(self, names: Iterable[str]) -> Bool[Tensor, " senders"]:
        """Nodes given by name.

        Raises:
            ValueError: one that the graph lacks.
        """
        found = torch.zeros(len(self.senders), dtype=torch.bool)
        for name in names:
            found[_number(name, self.senders, "node")] = True
        return found

    def unembed(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """The logits that a final stream makes."""
        end = f"blocks.{self.model.config.n_layer - 1}.hook_resid_post"
        logits = self.model.run(start=(end, x[:, None])).logits
        assert logits is not None
        return logits[:, 0]


def _number(name: str, known: Sequence[str], what: str) -> int:
    if name not in known:
        close = " or ".join(nearest(name, known) or known[:3])
        raise ValueError(f"{what}: the graph has no {name!r}; give {close}")
    return known.index(name)


# --- parts of it ----------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Circuit:
    """Some of a graph's edges; what is not heard through them is ablated."""

    graph: Graph
    edges: Bool[Tensor, "receivers senders"]
    direct: Bool[Tensor, " receivers"]
    """Of receivers without a direct edge: true."""

    @staticmethod
    def full(graph: Graph) -> "Circuit":
        """The whole model."""
        return Circuit.of(graph, graph.allowed)

    @staticmethod
    def of(graph: Graph, edges: Bool[Tensor, "receivers senders"]) -> "Circuit":
        """These edges, with the direct edges that they need."""
        assert not (edges & ~graph.allowed).any()
        return Circuit(graph, edges, edges.any(1) | ~graph.is_direct)

    @property
    def n_edges(self) -> int:
        """Direct ones not counted."""
        return int(self.edges.sum())

    @property
    def nodes(self) -> Bool[Tensor, " senders"]:
        """Which senders somebody hears."""
        return self.edges.any(0)

    def complement(self) -> "Circuit":
        """All other edges."""
        return Circuit.of(self.graph, self.graph.allowed & ~self.edges)

    def without(self, receiver: int, senders: Collection[int]) -> "Circuit":
        """Fewer edges into one receiver."""
        edges = self.edges.clone()
        edges[receiver, list(senders)] = False
        return replace(self, edges=edges)

    def without_direct(self, receiver: int) -> "Circuit":
        """One direct edge fewer."""
        direct = self.direct.clone()
        direct[receiver] = False
        return replace(self, direct=direct)

    @cached_property
    def needs(self) -> Int[Tensor, " receivers"]:
        """Which positions of every receiver's sum can change the prediction: values of `Need`."""
        graph = self.graph
        receivers = torch.zeros(len(graph.receivers), dtype=torch.int8)
        senders = torch.zeros(len(graph.senders), dtype=torch.int8)
        for i, level in reversed(list(enumerate(graph.levels))):
            own = graph.receivers_of(i)
            outputs = senders[graph.senders_of(i)].tolist() or [Need.LAST]
            needed = [
                level.needs(part, Need(output))
                for output in outputs
                for part in range(len(level.parts))
            ]
            receivers[own] = torch.tensor(needed, dtype=torch.int8) * self.direct[own]
            heard = self.edges[own] * receivers[own, None]
            senders = torch.maximum(senders, heard.amax(0))
        return receivers

    def without_dead(self) -> "Circuit":
        """Without the edges from which no way leads to the logits. Nothing changes by it."""
        return replace(self, edges=self.edges & (self.needs > Need.NONE)[:, None])

    def without_unfed(self) -> "Circuit":
        """Without the edges to which no way leads from the embedding.

        Nothing changes by it if a node that hears only ablated nodes is as an ablated one: where
        ablated activations are all of one run.
        """
        graph = self.graph
        fed = torch.zeros(len(graph.senders), dtype=torch.bool)
        fed[0] = True
        for i, level in enumerate(graph.levels[:-1]):
            own = graph.receivers_of(i)
            reached = (self.edges[own] & fed).any(1) & self.direct[own]
            fed[graph.senders_of(i)] = reached.view(-1, len(level.parts)).any(1)
        return replace(self, edges=self.edges & fed)


# --- putting it together --------------------------------------------------------------------------


@final
class _Builder:
    """Goes through a model, and keeps track of who is heard in the stream."""

    def __init__(self, model: GPT2, latents: Mapping[Site, Chosen]) -> None:
        self._model, self._latents = model, latents
        self._nothing = torch.zeros_like(model.W_E[0])
        self._stream: tuple[list[int], Tensor] = ([0], self._nothing)
        self._levels: list[Level] = []
        self._n = 1
        check_places(latents, model)
        for site, chosen in latents.items():
            if chosen.sae.is_transcoder:
                raise ValueError(
                    f"latent_sites: the SAE of {site!r} is a transcoder; give an autoencoder"
                )

    def levels(self) -> list[Level]:
        """Level after level."""
        for i, block in enumerate(self._model.blocks):
            assert isinstance(block, Block)
            self._stream = self._seen_by_sae(f"blocks.{i}.hook_resid_pre", *self._stream)
            names = [f"a{i}.{head}" for head in range(self._model.config.n_head)]
            own = self._add(Heads(block, names, *self._stream))
            heads = self._seen_by_sae(f"blocks.{i}.hook_attn_out", own, block.attn.b_O)
            self._stream = (self._stream[0] + heads[0], self._stream[1] + heads[1])
            self._stream = self._seen_by_sae(f"blocks.{i}.hook_resid_mid", *self._stream)
            own = self._add(MLPs(block, [f"m{i}"], *self._stream))
            mlp = self._seen_by_sae(f"blocks.{i}.hook_mlp_out", own, self._nothing)
            self._stream = (self._stream[0] + mlp[0], self._stream[1] + mlp[1])
            self._stream = self._seen_by_sae(f"blocks.{i}.hook_resid_post", *self._stream)
        self._add(Output([LOGITS], *self._stream))
        return self._levels

    def _add(self, level: Level) -> list[int]:
        """The numbers of its nodes."""
        self._levels.append(level)
        self._n += len(level.names)
        return list(range(self._n - len(level.names), self._n))

    def _seen_by_sae(
        self, site: Site, hears: list[int], constant: Tensor
    ) -> tuple[list[int], Tensor]:
        """Who is heard behind a site, and what besides: those before it, or latents."""
        if (chosen := self._latents.get(site)) is None:
            return hears, constant
        names = [f"{site}/{latent}" for latent in [*chosen.latents.tolist(), REST]]
        level = Latents(chosen.sae, chosen.latents, names, hears, constant)
        return self._add(level), self._nothing


def check_places(sites: Iterable[Site], model: GPT2) -> None:
    """Refuse a site where latents can be no nodes.

    Raises:
        ValueError: names the nearest.
    """
    known = [f"blocks.{i}.{site}" for i in range(model.config.n_layer) for site in SAE_SITES]
    for site in sites:
        if site not in known:
            close = " or ".join(nearest(site, known) or SAE_SITES)
            raise ValueError(
                f"latent_sites: {site!r} is no place of the graph; give {close}, or others of "
                f"{', '.join(SAE_SITES)}"
            )
