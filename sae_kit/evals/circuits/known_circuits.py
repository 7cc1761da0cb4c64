"""Circuits that somebody found, from a file: to hold found ones against, or to run again.

The file is YAML (or JSON). Who hears whom is written out edge by edge, or between groups of nodes:

    source: where it comes from
    groups: {movers: [a9.9, a10.0], mlps: [m0, m1]}
    connections: [{senders: embed, receivers: movers, parts: kv}]
    edges: [{sender: embed, receiver: a0.1.q}]

A group's name stands for all its nodes, a node's name for itself; a connection is every edge from
one of its senders to one of its receivers that there can be (from earlier to later). `parts` says
which inputs of heads. What eval=acdc writes (circuit.json) is such a file.

`SHIPPED` are those that Conmy et al. 2023 hold ACDC against: indirect objects (Wang et al. 2022)
and greater-than (Hanna et al. 2023) in GPT-2 small, and docstring arguments (Heimersheim and Janiak
2023) in a model of four attention layers.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
import yaml
from jaxtyping import Bool
from torch import Tensor

from sae_kit.config import from_node, nearest
from sae_kit.evals.circuits.circuit import LOGITS, Graph

FOLDER = Path(__file__).parents[2] / "assets" / "circuits"
SHIPPED = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@final
@dataclass(frozen=True, kw_only=True)
class Connection:
    """Edges from one group to another."""

    senders: str
    receivers: str
    parts: str = "qkv"
    """Of the receivers that are heads."""

    def __post_init__(self) -> None:
        if not self.parts or set(self.parts) - set("qkv"):
            raise ValueError(
                f"parts: {self.parts!r} has others than q, k and v; give some of these"
            )


@final
@dataclass(frozen=True, kw_only=True)
class NamedEdge:
    """One edge."""

    sender: str
    receiver: str
    effect: float = 0.0
    """By how much it is missed; not read."""


@final
@dataclass(frozen=True, kw_only=True)
class KnownCircuit:
    """What a file says."""

    source: str
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    connections: tuple[Connection, ...] = ()
    edges: tuple[NamedEdge, ...] = ()

    def find(self, graph: Graph) -> Bool[Tensor, "receivers senders"]:
        """Its edges in a graph.

        Raises:
            ValueError: a node or an edge that the graph lacks.
        """
        found = graph.find((edge.sender, edge.receiver) for edge in self.edges)
        for connection in self.connections:
            senders = graph.find_nodes(self._nodes(connection.senders))
            receivers = self._receivers(connection, graph)
            found |= graph.allowed & receivers[:, None] & senders
        return found

    def _nodes(self, name: str) -> tuple[str, ...]:
        return self.groups.get(name, (name,))

    def _receivers(self, connection: Connection, graph: Graph) -> Bool[Tensor, " receivers"]:
        names = self._nodes(connection.receivers)
        heard = torch.cat(
            [graph.find_nodes(n for n in names if n != LOGITS), torch.zeros(1).bool()]
        )
        heard[-1] = LOGITS in names
        is_part = [
            not direct or name[-1] in connection.parts
            for name, direct in zip(graph.receivers, graph.is_direct.tolist(), strict=True)
        ]
        return heard[graph.node_of] & torch.tensor(is_part)


def read_circuit(name: str) -> KnownCircuit:
    """A shipped circuit, or one of a file.

    Raises:
        ValueError: no such circuit or file, or one of another form.
    """
    file = FOLDER / f"{name}.yaml" if name in SHIPPED else Path(name)
    try:
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        close = ", ".join(nearest(name, SHIPPED) or SHIPPED)
        raise ValueError(f"circuit: {name}: {error.strerror}; give a file, or {close}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"circuit: {name} is no YAML: {error}") from error
    if not isinstance(node, dict):
        raise ValueError(f"circuit: {name} is no mapping; give source, and connections or edges")
    return from_node(KnownCircuit, node, where=f"circuit: {name}")
