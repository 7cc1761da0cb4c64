"""A classifier taken apart: how few directions and edges keep its answers, in three bases.

For neurons, principal components and the Local Interaction Basis, fitted on some inputs, and on
others whose answers are known,

- accuracy with only the k most important directions of a node layer kept, the others at their mean
- the fewest of the strongest edges between two node layers that cost no more than some accuracy

Source: Bushnaq et al. 2024, "The Local Interaction Basis" (2405.10928), section 4: its experiments
with networks for modular addition and pictures.

Limits: the answer is the largest output at the one position of the last node layer. Edges of one
pair of layers are left out at a time, all others stay.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.basis.bases import (
    Basis,
    interaction_bases,
    layer_moments,
    neuron_basis,
    principal_components,
)
from sae_kit.evals.basis.interaction_graph import InteractionGraph
from sae_kit.evals.basis.interactions import Quadrature, edges, fewest, strongest, through_edges
from sae_kit.evals.basis.node_network import NodeNetwork


@final
class Dissection:
    """A network in float64, cut into node layers, with its bases.

    Args:
        network: its last node layer holds an output for each answer, at one position.
        fitted: activations at the first node layer, on which bases and edges are fitted.
        tested: others, on which accuracy is measured.
        answers: the right ones for `tested`.
        batch: inputs at once.
    """

    def __init__(
        self,
        network: NodeNetwork,
        fitted: Float[Tensor, "n pos d"],
        tested: Float[Tensor, "m pos d"],
        answers: Int[Tensor, " m"],
        *,
        batch: int,
    ) -> None:
        self.network, self._answers, self._batch = network, answers, batch
        self._fitted, self._tested = network.activations(fitted), network.activations(tested)
        self.base: float = self.accuracy(self._tested[-1], len(network.names) - 1)
        """Accuracy of the network as it is."""
        moments = layer_moments(network, fitted, batch=batch)
        self.bases: Mapping[str, Sequence[Basis]] = {
            "neurons": [neuron_basis(one) for one in moments],
            "PCA": [principal_components(one) for one in moments],
            "LIB": interaction_bases(network, fitted, batch=batch, n_sources=None, seed=0),
        }
        """By name, of every node layer."""

    def accuracy(self, x: Float[Tensor, "m _ _"], layer: int) -> float:
        """On the tested inputs, from their activations at a node layer."""
        found = self.network.outputs(x, layer)[:, 0].argmax(1)
        return (found == self._answers).double().mean().item()

    def kept(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Accuracy with so many directions of a node layer kept: rows of kind "kept"."""
        for layer, site in enumerate(self.network.names[:-1]):
            for name, bases in self.bases.items():
                for k in (k for k in numbers if k <= bases[layer].n_directions):
                    found = self.accuracy(bases[layer].kept(self._tested[layer], k), layer)
                    yield {"kind": "kept", "site": site, "basis": name, "k": k, "accuracy": found}

    def edges(self, basis: str, *, cost: float) -> tuple[list[dict[str, Any]], InteractionGraph]:
        """Rows of kind "edges", how many are needed between two node layers; and their graph.

        Args:
            basis: its name.
            cost: the share of accuracy that leaving out edges may cost.
        """
        rows, strengths, needed = [], [], []
        bases = self.bases[basis]
        for layer, section in enumerate(self.network.sections):
            here, there = bases[layer : layer + 2]
            rule = Quadrature.gradient()
            found = edges(section, self._fitted[layer], here, there, rule, batch=self._batch)
            strengths.append(found)
            needed.append(self._needed(basis, layer, found, cost))
            about = {"kind": "edges", "site": self.network.names[layer], "basis": basis}
            rows.append({**about, "n_needed": needed[-1], "n_edges": found.numel()})
        return rows, InteractionGraph.of(strengths, needed)

    def _needed(self, basis: str, layer: int, strengths: Tensor, cost: float) -> int:
        here, there = self.bases[basis][layer : layer + 2]
        section, x = self.network.sections[layer], self._tested[layer]

        def is_enough(n: int) -> bool:
            through = through_edges(section, x, here, there, strongest(strengths, n))
            return self.accuracy(through, layer + 1) >= self.base - cost

        return fewest(strengths.numel(), is_enough)


def class_shares(
    coordinates: Float[Tensor, "n k"], answers: Int[Tensor, " n"], n_classes: int
) -> Float[Tensor, "k classes"]:
    """For each direction and class, the share of the direction's variance that is explained by
    whether an input is of the class: a squared correlation; 0 of what does not vary.
    """
    classes = torch.nn.functional.one_hot(answers, n_classes).to(coordinates)
    a, b = coordinates - coordinates.mean(0), classes - classes.mean(0)
    scale = a.square().sum(0)[:, None] * b.square().sum(0)
    return torch.where(scale > 0, (a.T @ b).square() / scale, 0.0)
