"""feature_evolution: how the latents of one layer's SAE become those of the next.

One pass over held-out text keeps the sparse codes of every SAE on disk; then each pair of sites is
compared with only these two in memory. Of each pair are found

- matches: for every latent its best by seven measures, and all pairs above a clamp, with the number
  of positions at which both are active (`cooccurrence`);
- pass-through: the share of latents that the next layer has no match for (disappearing), and of
  those that the layer before has none for (appearing), at every level (`pass_through`);
- quasi-boolean latents, AND and OR of two upstream ones, confirmed in the other half of the text
  (`quasi_boolean`);
- a causal check: latents are ablated, and what becomes of their matches (and of latents drawn at
  random) is held against their similarity (`latent_ablation`).

All matches together are a graph over the latents of all sites, whose communities are found
(`communities`).

Source: Balcells et al. 2024 (2410.08869), "Evolution of SAE features across layers in LLMs".

The table has a row for every pair of sites:

    n_up, n_down          latents that were active at n_both positions or more, on either side; only
                          these are judged
    disappearing, appearing     shares of them, at `level`
    best_up, best_down    median similarity of their best match, downstream and upstream
    n_kept                pairs of latents in the result
    n_and, n_and_held     the papers' candidates for AND, and those of them that held in the other
                          half by the stricter test; n_and_any: all that held. The same for OR
    rank_correlation      Spearman's, of similarity and the share of a match's activation that is
                          lost by ablation; of those of the n_ablated pairs whose match was active
                          where the latent was ablated

Memory: the codes of two sites, see `cooccurrence` (5 GB at 12 sites of 24,576 latents and a million
tokens); on disk, 8 bytes for each active latent of each position of every site, deleted at the end.
A run that was interrupted goes on where it stopped.

Limits: similarity is not identity, and in a short text rare latents have few positions. The ablated
pairs are those whose upstream latent fires in the text often enough to be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.data.activations import LiveConfig, Passes
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.evolution.ablated_matches import AblatedMatches, Text, ablate_matches
from sae_kit.evals.evolution.activity import Activity, Recording, Threshold
from sae_kit.evals.evolution.cooccurrence import MEASURES, RANGES, Keep, Pairs, compare
from sae_kit.evals.evolution.layer_pairs import LayerPair, adjacent, named
from sae_kit.evals.evolution.pass_through import Matches
from sae_kit.evals.evolution.quasi_boolean import AND, OR, Candidates, Criteria, find
from sae_kit.evals.shared.communities import CommunityMethod, Components, Leiden, Louvain, Partition
from sae_kit.evals.shared.kept import Kept, Part
from sae_kit.log import Progress
from sae_kit.models.hooks import Site
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

POSITIONS_PER_SUPPORT = 20  # positions asked for in the text, for each of n_both


@final
@dataclass(frozen=True, kw_only=True)
class FeatureEvolution(Evaluation, name="feature_evolution"):
    """Similarity, pass-through, quasi-boolean latents, communities and ablations across layers."""

    n_tokens: int = 262_144
    """Held-out tokens that are read."""
    contexts_per_pass: int = 16
    """Contexts in one model pass."""
    pairs: tuple[str, ...] = ()
    """Pairs of sites, as "blocks.0.hook_resid_pre>blocks.4.hook_resid_pre"; none: every site with
    the next one."""
    absolute: float = 0.0
    """A latent is active above this activation,"""
    relative: float = 0.2
    """and above this share of its largest activation in the text."""
    n_both: int = 10
    """Positions at which two latents have to be active together for their measures to count."""
    n_top: int = 4
    """Matches kept of each latent, by every measure, on either side."""
    measure: str = "pearson"
    """The similarity that levels, the graph and the causal check go by."""
    least: float = 0.3
    """Every pair of latents is kept that the measure puts at this or above; the graph's edges."""
    level: float = 0.95
    """Similarity from which on a latent is passed on; figures show all levels."""
    boolean_level: float = 0.999
    """Necessity (AND) or sufficiency (OR) of each parent of a quasi-boolean latent."""
    boolean_certain: float = 0.9
    """Share that counts as certain in the stricter test of such latents."""
    communities: Literal["leiden", "louvain", "components"] = "leiden"
    """How communities are found."""
    resolution: float = 1.0
    """Above 1 for smaller communities; components know no resolution."""
    n_seeds: int = 5
    """Runs of Leiden or Louvain; the partition of the highest modularity is kept."""
    n_ablated: int = 60
    """Pairs of latents of each pair of sites, over all similarities, of which the upstream one is
    ablated; 0 for none."""
    n_ablation_contexts: int = 4
    """Contexts in which a latent is ablated, of those in which it fires."""
    drop_first_position: bool = True
    """Whether position 0 of every context is left out."""
    drop_special_tokens: bool = True
    """Whether end-of-text tokens are left out."""

    browsable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "n_tokens", "contexts_per_pass", "n_both", "n_top", "n_seeds")
        check_counts(self, "n_ablation_contexts")
        Threshold(absolute=self.absolute, relative=self.relative)
        if self.measure not in MEASURES:
            raise ValueError(f"measure: {self.measure!r} is none of {', '.join(MEASURES)}")
        for name in ("level", "least", "boolean_level", "boolean_certain"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0 and at most 1")
        if self.n_ablated < 0:
            raise ValueError(f"n_ablated: {self.n_ablated} is negative; give 0 for none")
        self._method()

    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: one row per pair of sites, in the order of the model."""
        subject.check_saes()
        pairs = named(self.pairs, subject) if self.pairs else adjacent(subject)
        used = {site for pair in pairs for site in (pair.up, pair.down)}
        sites = [site for site in subject.model.sites() if site in used]
        reading = LiveConfig(
            drop_first_position=self.drop_first_position,
            drop_special_tokens=self.drop_special_tokens,
        )
        eot = subject.language_model.tokenizer.eot_id
        passes = Passes(reading, subject.model, sites, [eot])
        contexts = subject.contexts(self.n_tokens)
        n_positions = int(passes.counting(contexts).sum())
        if n_positions < POSITIONS_PER_SUPPORT * self.n_both:
            raise ValueError(
                f"n_tokens: {contexts.numel()} tokens have {n_positions} positions that count, too "
                f"few to ask for {self.n_both} of each pair of latents; give "
                f"{POSITIONS_PER_SUPPORT * self.n_both} or more, or a smaller n_both"
            )
        with Kept.of(self, subject) as kept:
            recording = Recording.of(
                subject, passes, contexts, kept, contexts_per_pass=self.contexts_per_pass
            )
            reader = _Reader(self, subject, recording, passes, contexts)
            arrays = reader.compared(pairs, kept.part("pairs"))
            arrays |= {key: x for site in sites for key, x in reader.facts(site)}
        arrays |= {f"bins/{name}": torch.tensor(RANGES[name]) for name in MEASURES}
        graph = _Graph(sites, pairs, arrays, measure=self.measure, least=self.least)
        partition = self._method().detect(
            graph.edges, graph.weights, n_nodes=graph.n_nodes, seed=subject.seed
        )
        return Result(
            name=self.word,
            scalars={
                "n_tokens": contexts.numel(),
                "n_positions": n_positions,
                "n_pairs": len(pairs),
                **graph.summary(partition),
            },
            rows=tuple(self._row(pair, arrays) for pair in pairs),
            arrays={**arrays, **graph.communities(partition)},
            provenance=self.provenance(subject),
        )

    def _method(self) -> CommunityMethod:
        """How communities are found."""
        if self.communities == "components":
            return Components()
        kind = {"leiden": Leiden, "louvain": Louvain}[self.communities]
        return kind(resolution=self.resolution, n_seeds=self.n_seeds)

    def _row(self, pair: LayerPair, arrays: dict[str, Tensor]) -> dict[str, Any]:
        """The pair's row of the table; see the module's docstring."""
        own = {
            key.removeprefix(prefix): x
            for prefix in (f"matches/{pair.name}/", f"boolean/{pair.name}/")
            for key, x in arrays.items()
            if key.startswith(prefix)
        }
        matches = Matches(own["forward"], own["backward"], own["judged_up"], own["judged_down"])
        found = Candidates(own["index"], own["kind"], own["exactly_two"], own["strict"])
        ablated = AblatedMatches.of_arrays(arrays, pair.name)
        row: dict[str, Any] = {
            "up": pair.up,
            "down": pair.down,
            "n_up": int(matches.judged_up.sum()),
            "n_down": int(matches.judged_down.sum()),
            "disappearing": matches.disappearing(self.level),
            "appearing": matches.appearing(self.level),
            "best_up": _median(matches.forward[matches.judged_up]),
            "best_down": _median(matches.backward[matches.judged_down]),
            "n_kept": len(arrays[f"pairs/{pair.name}/index"]),
        }
        for word, kind in (("and", AND), ("or", OR)):
            counts = found.count(kind)
            row |= dict(zip((f"n_{word}", f"n_{word}_held", f"n_{word}_any"), counts, strict=True))
        row |= {
            "n_ablated": ablated.n_matches,
            "rank_correlation": ablated.rank_correlation(),
        }
        return row

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `similarity`, how alike latents of two sites are; `levels`, shares
        that appear and disappear at every level; `flow`, latents from layer to layer; `ablation`,
        effects against similarity; `communities`, their sizes; `alive`, latents seen so far.
        """
        from sae_kit.viz import evolution

        return evolution.figures(result)


@final
class _Reader:
    """Compares pairs of sites, from codes on disk."""

    def __init__(
        self,
        config: FeatureEvolution,
        subject: Subject,
        recording: Recording,
        passes: Passes,
        contexts: Int[Tensor, "batch pos"],
    ) -> None:
        self.config, self._subject, self._recording = config, subject, recording
        self._text = Text(contexts, passes.counting(contexts))
        self._keep = Keep(
            n_top=config.n_top, measure=config.measure, least=config.least, n_both=config.n_both
        )
        self._criteria = Criteria(
            level=config.boolean_level, certain=config.boolean_certain, n_both=config.n_both
        )
        self._held: dict[Site, Activity] = {}

    def compared(self, pairs: Sequence[LayerPair], done: Part) -> dict[str, Tensor]:
        """What is found of every pair; of those that are done already, what is on disk."""
        arrays: dict[str, Tensor] = {}
        found = [done.get(i) for i in range(len(pairs))]
        d_up = [self._recording.d_sae[pair.up] for pair in pairs]
        n_done = sum(n for n, own in zip(d_up, found, strict=True) if own is not None)
        progress = Progress(sum(d_up), done=n_done, unit="latents")
        for i, pair in enumerate(pairs):
            own = found[i]
            if own is None:
                own = dict(self._pair(pair, progress))
                done.put(i, own)
            arrays |= own
        progress.close()
        return arrays

    def facts(self, site: Site) -> Iterator[tuple[str, Tensor]]:
        """What is known of the latents of a site alone."""
        own = self._activity(site)
        yield f"n_active/{site}", own.n_firing
        yield f"max/{site}", own.largest.float()
        yield f"first/{site}", own.first_rows()
        yield f"order/{site}", own.canonical_order()

    def _pair(self, pair: LayerPair, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        """The arrays of one pair of sites."""
        self._held = {site: self._held[site] for site in (pair.up, pair.down) if site in self._held}
        up, down = self._activity(pair.up), self._activity(pair.down)
        rows = tuple(self._subject.saes[site].W_dec for site in (pair.up, pair.down))
        pairs = compare(up, down, (rows[0], rows[1]), self._keep, progress)
        yield f"pairs/{pair.name}/index", pairs.index
        yield f"pairs/{pair.name}/n_both", pairs.n_both
        for measure, values in pairs.measures.items():
            yield f"pairs/{pair.name}/{measure}", values.float()
            yield f"histogram/{pair.name}/{measure}", pairs.histograms[measure]
        yield from self._matches(pair, pairs, up, down)
        found = find(up.active, down.active, self._criteria)
        yield f"boolean/{pair.name}/index", found.index
        yield f"boolean/{pair.name}/kind", found.kind
        yield f"boolean/{pair.name}/exactly_two", found.exactly_two
        yield f"boolean/{pair.name}/strict", found.confirmed
        if self.config.n_ablated:
            yield from self._ablated(pair, pairs, up, down)

    def _matches(
        self, pair: LayerPair, pairs: Pairs, up: Activity, down: Activity
    ) -> Iterator[tuple[str, Tensor]]:
        """How good every latent's best match is."""
        n_both = self.config.n_both
        judged = up.n_active >= n_both, down.n_active >= n_both
        matches = Matches.of(pairs, self.config.measure, *judged)
        for name in ("forward", "backward", "judged_up", "judged_down"):
            yield f"matches/{pair.name}/{name}", getattr(matches, name)

    def _ablated(
        self, pair: LayerPair, pairs: Pairs, up: Activity, down: Activity
    ) -> Iterator[tuple[str, Tensor]]:
        """Effects of ablation."""
        found = ablate_matches(
            self._subject,
            pair,
            pairs,
            (up, down),
            self._text,
            measure=self.config.measure,
            n=self.config.n_ablated,
            n_contexts=self.config.n_ablation_contexts,
        )
        yield from found.arrays(pair.name)

    def _activity(self, site: Site) -> Activity:
        """Of the latents of a site; kept until the next pair needs others."""
        if site not in self._held:
            threshold = Threshold(absolute=self.config.absolute, relative=self.config.relative)
            self._held[site] = Activity.of(self._recording.codes(site), threshold)
        return self._held[site]


@final
class _Graph:
    """The latents of all sites as nodes, in an order that does not depend on their numbers.

    Args:
        sites: whose latents are nodes, in the order of the model.
        pairs: of sites; their kept pairs of latents are edges.
        arrays: what was found of sites and pairs.
        measure: of similarity, the weight of an edge.
        least: similarity from which on there is one.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        pairs: Sequence[LayerPair],
        arrays: Mapping[str, Tensor],
        *,
        measure: str,
        least: float,
    ) -> None:
        self._node: dict[Site, Tensor] = {}
        self.n_nodes = 0
        for site in sites:
            order = arrays[f"order/{site}"]
            self._node[site] = self.n_nodes + order.argsort()
            self.n_nodes += len(order)
        edges, weights = [], []
        for pair in pairs:
            values = arrays[f"pairs/{pair.name}/{measure}"]
            index = arrays[f"pairs/{pair.name}/index"][values >= least]
            ends = self._node[pair.up][index[:, 0]], self._node[pair.down][index[:, 1]]
            edges.append(torch.stack(ends, 1))
            weights.append(values[values >= least])
        joined = torch.cat(edges)
        order = torch.argsort(joined[:, 0] * self.n_nodes + joined[:, 1])
        self.edges: Int[Tensor, "n two"] = joined[order]
        self.weights: Float[Tensor, " n"] = torch.cat(weights)[order]
        self._joined = torch.zeros(self.n_nodes, dtype=torch.bool)
        self._joined[self.edges.flatten()] = True

    def summary(self, partition: Partition) -> dict[str, int | float]:
        """Of the communities of more than one latent."""
        sizes = partition.sizes
        return {
            "n_communities": int((sizes > 1).sum()),
            "n_in_communities": int(self._joined.sum()),
            "largest_community": int(sizes[0]) if len(sizes) and sizes[0] > 1 else 0,
            "modularity": partition.modularity,
            "community_agreement": partition.agreement,
        }

    def communities(self, partition: Partition) -> dict[str, Tensor]:
        """The community of every latent, by site; -1 for latents without any edge."""
        community = torch.where(self._joined, partition.community, -1)
        return {f"community/{site}": community[node] for site, node in self._node.items()}


def _median(values: Tensor) -> float:
    return values.median().item() if len(values) else 0.0
