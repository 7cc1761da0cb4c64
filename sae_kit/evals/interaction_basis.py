"""interaction_basis: do a model's layers interact through fewer directions in another basis?

Node layers are sites of the residual stream. At each, activations are described in three bases
(neurons, principal components, the Local Interaction Basis; `bases.py`), and by the latents of an
SAE where the subject has one. Then

- directions: the k most important directions of one node layer are kept, the others set to their
  mean, and the model runs on. How much does its prediction change? (An SAE keeps its k latents
  of the greatest mean contribution, and loses its error.)
- edges: between neighbouring node layers, how strongly do directions act on one another
  (`interactions.py`), and how few of the strongest edges keep the prediction as it is?
- graph: do these edges, of all node layers together, fall into clusters (`interaction_graph.py`)?

Source: Bushnaq et al. 2024, "The Local Interaction Basis" (2405.10928), which finds fewer edges in
small networks, and no gain in language models.

Rows of kind "directions": site, basis, k, and kl, the mean KL(clean || ablated) in nats per token
with its 95 % bootstrap interval over contexts. Rows of kind "edges": site and the next one, basis,
n_edges of all, n_needed of the strongest that leave KL below `tolerance` (found to 10 %), and the
share of edges
stronger than a thousandth of the strongest. Rows of kind "graph": basis, n_edges that are needed,
n_directions that they join, n_clusters of two directions and more and the size of the largest,
modularity of the clusters (Leiden), the same of the graph with its edges rewired at random
(modularity_rewired), and agreement of clusters from different seeds.

Arrays: importance/<site>/<basis>; edges/<site>/<basis>, strengths `[k_there k_here]`;
cluster/<basis>, of all directions, layer after layer.

The bases are fitted on some contexts and tested on others. The first token of every context is the
end-of-text token: it is a part of the network, not of the data (`node_network.of_gpt2`).

Limits: float64, so that small eigenvalues are more than rounding. Jacobian sums use random signs.
Time grows with the squared width, edges with its third power.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.basis.bases import (
    Basis,
    interaction_bases,
    layer_moments,
    neuron_basis,
    principal_components,
)
from sae_kit.evals.basis.basis_bench import Bench, Latents
from sae_kit.evals.basis.interaction_graph import InteractionGraph
from sae_kit.evals.basis.interactions import Quadrature, edges, fewest, strongest, through_edges
from sae_kit.evals.shared.communities import Leiden
from sae_kit.evals.shared.draws import generator_of
from sae_kit.log import Progress
from sae_kit.models.hooks import Site, match_sites
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

NEURONS, PCA, LIB, LATENTS = "neurons", "PCA", "LIB", "SAE latents"
ROUGH = 0.1
"""How much too large `n_needed` may be, as a share of it."""
WEAK = 1e-3
"""An edge below this share of the strongest counts as none in `share_strong`."""
DRAWN = 100
"""Edges of each pair of layers in the figure of the graph."""


@final
@dataclass(frozen=True, kw_only=True)
class InteractionBasis(Evaluation, name="interaction_basis"):
    """Directions and edges that a model needs, in several bases."""

    sites: str | tuple[str, ...] = "blocks.[0-2].hook_resid_pre"
    """Node layers, at least two; of the residual stream."""
    context_size: int = 12
    """Tokens in a context, the end-of-text token before them included."""
    n_contexts: int = 128
    """On which bases and edges are fitted."""
    n_test_contexts: int = 16
    """On which ablations are measured; of edges, on the first batch of them."""
    n_sources: int = 2
    """Random sign vectors for a batch's Jacobians."""
    kept: tuple[int, ...] = (1, 4, 16, 64, 128, 192, 224, 248)
    """Numbers of directions kept, as far as there are as many."""
    n_edge_contexts: int = 8
    """On which edges are measured."""
    tolerance: float = 0.1
    """Nats that the loss of edges may cost."""
    resolution: float = 1.0
    """Of clusters: above 1 for smaller ones, below for larger ones."""
    batch: int = 2
    """Contexts at once."""

    def __post_init__(self) -> None:
        counts = ("n_contexts", "n_test_contexts", "n_sources", "n_edge_contexts", "batch")
        check_counts(self, *counts)
        if self.context_size < 2:
            raise ValueError(f"context_size: {self.context_size}; give 2 tokens or more")
        if self.n_edge_contexts > self.n_contexts:
            raise ValueError(
                f"n_edge_contexts: {self.n_edge_contexts} is more than n_contexts="
                f"{self.n_contexts}, of which they are a part"
            )
        if list(self.kept) != sorted(set(self.kept)) or min(self.kept, default=0) < 1:
            raise ValueError(f"kept: {list(self.kept)}; give increasing numbers from 1 on")
        if self.tolerance <= 0:
            raise ValueError(f"tolerance: {self.tolerance} nats; give a positive number")
        Leiden(resolution=self.resolution)  # refuses what makes no sense

    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: rows of directions by site, then of edges."""
        if subject.saes:
            subject.check_saes()
        sites = match_sites(self.sites, subject.model.sites())
        if len(sites) < 2:
            raise ValueError(f"sites: {sites} is one node layer; give patterns that match several")
        bench = Bench(
            subject,
            sites,
            context_size=self.context_size,
            n_contexts=self.n_contexts,
            n_test_contexts=self.n_test_contexts,
            batch=self.batch,
        )
        # A node layer's bases, its directions, and its edges each count as one.
        progress = Progress(3 * len(sites) - 1, unit="steps")
        bases = self._bases(bench)
        progress.update(len(sites))
        rows: list[dict[str, Any]] = []
        arrays: dict[str, Tensor] = {}
        for site in sites:
            rows += self._directions(bench, site, bases[site], subject)
            arrays |= {f"importance/{site}/{name}": b.importance for name, b in bases[site].items()}
            progress.update(1)
        for number in range(len(sites) - 1):
            found, strengths = self._edges(bench, number, bases)
            rows += found
            arrays |= strengths
            progress.update(1)
        progress.close()
        for name in (NEURONS, PCA, LIB):
            graph = _graph(rows, arrays, name)
            row, arrays[f"cluster/{name}"] = self._clusters(name, graph, subject.seed)
            rows.append(row)
        return Result(
            name=self.word,
            scalars={
                f"n_needed/{row['basis']}": row["n_needed"]
                for row in rows
                if row["kind"] == "graph"
            },
            rows=tuple(rows),
            arrays=arrays,
            provenance=self.provenance(subject),
        )

    def _bases(self, bench: "Bench") -> dict[Site, dict[str, Basis]]:
        """Every basis of every node layer."""
        inputs = bench.fitted[bench.network.names[0]]
        moments = layer_moments(bench.network, inputs, batch=self.batch)
        least = inputs.shape[-1] + 1
        if (n := moments[0].count) < least:
            raise ValueError(
                f"n_contexts: {self.n_contexts} contexts have {n} activations, and a covariance of "
                f"{least - 1} channels takes at least {least}; give "
                f"{-(-least // (self.context_size - 1))} or more"
            )
        interaction = interaction_bases(
            bench.network,
            inputs,
            batch=self.batch,
            n_sources=self.n_sources,
            seed=bench.seed,
        )
        return {
            site: {NEURONS: neuron_basis(m), PCA: principal_components(m), LIB: lib}
            for site, m, lib in zip(bench.network.names, moments, interaction, strict=True)
        }

    def _directions(
        self, bench: "Bench", site: Site, bases: Mapping[str, Basis], subject: Subject
    ) -> list[dict[str, Any]]:
        """KL against the number of directions kept at one node layer."""
        x = bench.tested[site]
        kept = {name: basis.kept for name, basis in bases.items()}
        sizes = {name: basis.n_directions for name, basis in bases.items()}
        if (sae := subject.saes.get(site)) is not None and not sae.is_transcoder:
            latents = Latents(sae, bench.fitted[site])
            kept[LATENTS], sizes[LATENTS] = latents.kept, sae.d_sae
        rows = []
        for name, ablate in kept.items():
            for k in self.kept:
                if k <= sizes[name]:
                    row = {"kind": "directions", "site": site, "basis": name, "k": k}
                    rows.append({**row, **bench.interval(bench.kl(site, ablate(x, k)))})
        return rows

    def _edges(
        self, bench: "Bench", number: int, bases: Mapping[Site, Mapping[str, Basis]]
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """How few edges do, between one node layer and the next."""
        site, following = bench.network.names[number : number + 2]
        section = bench.network.sections[number]
        fitted = bench.fitted[site][: self.n_edge_contexts]
        rows: list[dict[str, Any]] = []
        arrays = {}
        for name in bases[site]:
            here, there = bases[site][name], bases[following][name]
            signs = torch.Generator().manual_seed(bench.seed)
            rule = Quadrature.gradient()
            found = edges(section, fitted, here, there, rule, batch=self.batch, signs=signs)

            cost = EdgeCost(bench, number, here, there, found)
            n_edges = found.numel()
            needed = cost.fewest(n_edges, self.tolerance)
            rows.append(
                {
                    "kind": "edges",
                    "site": site,
                    "next": following,
                    "basis": name,
                    "n_edges": n_edges,
                    "n_needed": needed,
                    "share_strong": (found > WEAK * found.max()).double().mean().item(),
                }
            )
            arrays[f"edges/{site}/{name}"] = found
        return rows, arrays

    def _clusters(
        self, basis: str, graph: InteractionGraph, seed: int
    ) -> tuple[dict[str, Any], Int[Tensor, " nodes"]]:
        """A row of kind "graph", and every direction's cluster."""
        method = Leiden(resolution=self.resolution)
        found = graph.clusters(method, seed=seed)
        rewired = graph.rewired(generator_of(seed, f"rewired {basis}", 0))
        large = found.sizes[found.sizes > 1]
        row = {
            "kind": "graph",
            "basis": basis,
            "n_needed": sum(int((edges > 0).sum()) for edges in graph.weights),
            "n_directions": int(graph.joined().sum()),
            "n_clusters": len(large),
            "largest_cluster": int(large.max()) if len(large) else 1,
            "modularity": found.modularity,
            "modularity_rewired": rewired.clusters(method, seed=seed).modularity,
            "agreement": found.agreement,
        }
        return row, found.community

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `directions` kept against KL, `edges` needed, the `modularity` of
        their graphs, and the `graph` of LIB, of which the strongest edges are drawn.
        """
        from sae_kit.viz import interactions

        model = result.provenance["subject"]["model"]
        tolerance = result.provenance["evaluation"]["tolerance"]
        return {
            "directions": interactions.directions(
                [row for row in result.rows if row["kind"] == "directions"],
                title=f"Directions that {model} needs of each layer (95 % intervals over contexts)",
            ),
            "edges": interactions.needed_edges(
                [row for row in result.rows if row["kind"] == "edges"],
                title=f"Edges between layers that keep {model} within {tolerance} nats",
            ),
            "modularity": interactions.modularity(
                [row for row in result.rows if row["kind"] == "graph"],
                title=f"Clusters among the edges that {model} needs (Leiden)",
            ),
            "graph": interactions.clustered_graph(
                _graph(result.rows, result.arrays, LIB).strongest(DRAWN).weights,
                result.arrays[f"cluster/{LIB}"],
                layers=list(dict.fromkeys(_ends(result.rows))),
                title=f"The {DRAWN} strongest edges of each pair of layers of {model}, in LIB",
            ),
        }


def _graph(
    rows: Sequence[Mapping[str, Any]], arrays: Mapping[str, Tensor], basis: str
) -> InteractionGraph:
    """Of the edges that a basis needs."""
    own = [row for row in rows if (row["kind"], row["basis"]) == ("edges", basis)]
    strengths = [arrays[f"edges/{row['site']}/{basis}"] for row in own]
    return InteractionGraph.of(strengths, [row["n_needed"] for row in own])


def _ends(rows: Sequence[Mapping[str, Any]]) -> Iterator[Site]:
    """The node layers that edges join."""
    for row in rows:
        if row["kind"] == "edges":
            yield from (row["site"], row["next"])


@final
class EdgeCost:
    """What it costs to keep only some edges between two node layers: KL, in nats per token."""

    def __init__(
        self,
        bench: Bench,
        number: int,
        here: Basis,
        there: Basis,
        strengths: Float[Tensor, "k_there k_here"],
    ) -> None:
        """`number`: of the first of the two layers."""
        self._bench, self._here, self._there, self._strengths = bench, here, there, strengths
        self._site, self._next = bench.network.names[number : number + 2]
        self._section = bench.network.sections[number]

    def __call__(self, n: int) -> float:
        """Of keeping the `n` strongest."""
        kept = strongest(self._strengths, n)
        x = self._bench.first_batch(self._site)
        through = through_edges(self._section, x, self._here, self._there, kept)
        return self._bench.kl(self._next, through).mean().item()

    def fewest(self, n_edges: int, tolerance: float) -> int:
        """How many of the strongest cost no more than `tolerance` nats above all of them."""
        enough = self(n_edges) + tolerance
        return fewest(n_edges, lambda n: self(n) <= enough, within=ROUGH)
