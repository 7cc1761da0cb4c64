"""acdc: which edges of a model's graph make a circuit that does a task as the model does.

A task is pairs of prompts, clean and corrupt, that call for different answers (`data/pairs.py`).
Everything that is not heard along a circuit's edges is ablated (`circuit_bench.py`). Circuits are
found on some pairs by several methods (`circuit_methods.py`), each at several sizes, and confirmed
on pairs that share no prompt with these. At `latent_sites` latents of SAEs are nodes
(`circuit.py`), the same ones in all models: those that `latent_choice.py` finds on the first pairs.

Rows of kind "circuit" (one for each model, method and setting): n_edges, n_nodes, the mean `cost`
on the pairs it was found on (of acdc also n_trials, and n_runs: circuits that were run for them);
on held-out ones `kl` from the model's own predictions in nats, `recovered` = 1 - kl / (kl without
any edge), both with 95 % bootstrap intervals over pairs, and `score`, the mean of `gradient_metric`
(in scalars: of the model and without any edge).
Rows of kind "edge": those of the drawn circuit, the smallest of the first method's that recovers
`ENOUGH`, or else the one that recovers most, each with its effect.
Rows of kind "latent": the chosen latents, each with its attribution.
Rows of kind "auc" where a known circuit is given: areas under the curves of `circuit_roc.py`.

Arrays: of every circuit `<model>/<method>/<number>/edges` as a mask `[receivers senders]`, and for
acdc `.../costs`, the cost after every trial.

Source: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability"
(2304.14997). Departures are listed in docs/circuits.md.

Limits: of one position of the answer, the last; edges are not split by position. A circuit is one
of several that would do: see `pruning.py`. A circuit with latents can be held against another run's
(`circuit`) only where both have chosen the same.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.data.pairs import Pairs, draw_pairs
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.circuits.circuit import Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_judge import Judge
from sae_kit.evals.circuits.circuit_methods import Found, Method, Search, methods_of
from sae_kit.evals.circuits.circuit_roc import Truth, area
from sae_kit.evals.circuits.known_circuits import read_circuit
from sae_kit.evals.circuits.latent_choice import Attributed, choose, saes_at
from sae_kit.evals.shared.ablations import ABLATIONS, check_ablation
from sae_kit.evals.shared.answers import check_metric
from sae_kit.evals.shared.kept import Kept, Part
from sae_kit.evals.shared.model_variants import Variant, variants
from sae_kit.log import Progress
from sae_kit.models.hooks import Site
from sae_kit.result import Result
from sae_kit.sae.base import SAE

if TYPE_CHECKING:
    import matplotlib.figure

ENOUGH = 0.8
"""Of what there is to recover."""

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class ACDC(Evaluation, name="acdc"):
    """Circuits, found by machine."""

    figure_formats: ClassVar[tuple[str, ...]] = ("png", "svg")

    task: str = "ioi"
    """A word of `data.pairs.FAMILIES`, or a .jsonl file of pairs."""
    n_pairs: int = 16
    """To find circuits on."""
    n_heldout: int = 32
    """To confirm them on."""
    methods: tuple[str, ...] = ("acdc", "eap", "eap_ig", "hisp", "random")
    """See circuit_methods.py; the first one's circuit is drawn."""
    thresholds: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)
    """Of acdc and probing: what an edge has to be worth, in units of `metric`."""
    metric: str = "kl"
    """What acdc and probing go by: one of answers.METRICS."""
    gradient_metric: str = "logit_difference"
    """What methods that score edges go by, and circuits are judged by besides."""
    ablation: str = "corrupt"
    """What is heard instead: see ablations.py."""
    rule: Literal["signed", "absolute"] = "signed"
    """Whether acdc cuts edges that are missed by less, or whose effect of either sign is less."""
    head_order: Literal["forward", "backward"] = "forward"
    """In which order acdc tries the heads of a block."""
    n_ig_steps: int = 8
    """Of eap_ig, and of the choice of latents: points on the way from ablated to clean."""
    n_probe_steps: int = 100
    """Of probing: steps of Adam."""
    circuit: str | None = None
    """A known circuit to hold those found against: see known_circuits.py."""
    latent_sites: tuple[str, ...] = ()
    """Where latents of the subject's SAEs are nodes: of `circuit.SAE_SITES`, block by block."""
    n_latents: int = 16
    """Of each of these SAEs; see latent_choice.py."""
    models: tuple[str, ...] = ("shuffled",)
    """Other models to do the same with: see model_variants.py."""

    def __post_init__(self) -> None:
        check_counts(self, "n_pairs", "n_heldout", "n_ig_steps", "n_probe_steps", "n_latents")
        check_metric(self.metric)
        check_metric(self.gradient_metric)
        check_ablation(self.ablation)
        bad = [threshold for threshold in self.thresholds if threshold < 0]
        if bad or not self.thresholds or len(set(self.thresholds)) < len(self.thresholds):
            raise ValueError(
                f"thresholds: {list(self.thresholds)}; give different ones, none below 0"
            )
        if len(set(self.latent_sites)) < len(self.latent_sites):
            raise ValueError(f"latent_sites: {list(self.latent_sites)}; give each once")
        self._methods(seed=0)

    def _methods(self, seed: int) -> list[Method]:
        search = Search(
            thresholds=self.thresholds,
            rule=self.rule,
            order=self.head_order,
            gradient_metric=self.gradient_metric,
            ablation=self.ablation,
            n_ig_steps=self.n_ig_steps,
            n_probe_steps=self.n_probe_steps,
            seed=seed,
        )
        return methods_of(self.methods, search)

    def run(self, subject: Subject) -> Result:
        """See Evaluation.run; of the subject's SAEs only those at `latent_sites` are looked at.

        Raises:
            ValueError: a task, circuit or model that there is not, a latent site without an SAE, or
                pairs on which `metric` or `gradient_metric` does not change.
        """
        methods = self._methods(subject.seed)
        known = None if self.circuit is None else read_circuit(self.circuit)
        saes = saes_at(self.latent_sites, subject.saes, subject.model)
        if saes:
            subject.check_saes()
        pairs = self._pairs(subject)
        chosen = self._chosen(saes, subject, pairs[0])
        latents = {one.site: one.nodes for one in chosen}
        graph = Graph(subject.model, latents)
        truth = None if known is None else Truth(graph, known.find(graph))
        own = self._benches(graph, pairs, subject.seed)
        for bench in own:
            bench.check()
            bench.with_metric(self.gradient_metric).check()
        report = _Report(self, truth, subject.seed)
        with Kept.of(self, subject) as kept:
            report.add(Variant.own(subject), own, methods, kept)
            for variant in variants(subject, self.models):
                benches = self._benches(Graph(variant.load(), latents), pairs, subject.seed)
                report.add(variant, benches, methods, kept)
        drawn = report.drawn()
        size = {"n_edges": graph.n_edges, "n_direct": int(graph.is_direct.sum())}
        return Result(
            name=self.word,
            scalars=size | report.scalars,
            rows=[*report.circuits, *report.areas, *drawn, *chain(*(c.rows() for c in chosen))],
            arrays=report.arrays,
            provenance=self.provenance(subject),
        )

    def _pairs(self, subject: Subject) -> tuple[Pairs, Pairs]:
        """To find circuits on, and to confirm them."""
        first, second = draw_pairs(
            self.task,
            subject.language_model.tokenizer,
            n=self.n_pairs,
            n_heldout=self.n_heldout,
            n_vocab=subject.model.config.n_vocab,
            prepend_bos=subject.tokens.prepend_bos,
            seed=subject.seed,
        )
        return first.to(subject.device), second.to(subject.device)

    def _chosen(self, saes: Mapping[Site, SAE], subject: Subject, pairs: Pairs) -> list[Attributed]:
        """The latents that are nodes, SAE by SAE."""
        if not saes:
            return []
        how = ABLATIONS[self.ablation](len(pairs), seed=subject.seed)
        bench = CircuitBench.of(Graph(subject.model), pairs, how, metric=self.gradient_metric)
        return choose(bench, saes, how, n=self.n_latents, n_steps=self.n_ig_steps)

    def _benches(
        self, graph: Graph, both: Sequence[Pairs], seed: int
    ) -> tuple[CircuitBench, CircuitBench]:
        first, second = (
            CircuitBench.of(
                graph, pairs, ABLATIONS[self.ablation](len(pairs), seed=seed), metric=self.metric
            )
            for pairs in both
        )
        return first, second

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `graph`, `pareto`, `steps`, `roc`."""
        from sae_kit.viz import circuits

        return circuits.figures(result)

    @staticmethod
    def files(result: Result) -> Mapping[str, str]:
        """The drawn circuit, as `known_circuits.py` reads it."""
        settings, subject = result.provenance["evaluation"], result.provenance["subject"]
        edges = [
            {key: row[key] for key in ("sender", "receiver", "effect")}
            for row in result.rows
            if row["kind"] == "edge"
        ]
        source = f"eval=acdc, task {settings['task']}, model {subject['model']}"
        return {"circuit.json": json.dumps({"source": source, "edges": edges}, indent=1) + "\n"}


@final
class _Report:
    """What is found, model by model."""

    def __init__(self, evaluation: ACDC, truth: Truth | None, seed: int) -> None:
        self._evaluation, self._truth, self._seed = evaluation, truth, seed
        self.circuits: list[dict[str, Any]] = []
        self.areas: list[dict[str, Any]] = []
        self.arrays: dict[str, Tensor] = {}
        self.scalars: dict[str, float] = {}
        self._found: list[tuple[dict[str, Any], Found]] = []

    def add(
        self,
        variant: Variant,
        benches: tuple[CircuitBench, CircuitBench],
        methods: Sequence[Method],
        kept: Kept,
    ) -> None:
        """Everything about one model."""
        first, second = benches
        judge = Judge(second, self._evaluation.gradient_metric, seed=self._seed)
        own = kept.part(variant.label.replace("/", "_"))
        progress = Progress(sum(m.n_edges(first.graph) for m in methods), unit="edges")
        for method in methods:
            found = list(self._of_method(variant, method, first, judge, own, progress))
            if self._truth is not None:
                self._compare(variant, method, found, self._truth)
        progress.close()
        names = {f"{name}/{variant.label}": value for name, value in judge.ends.items()}
        self.scalars |= names

    def _of_method(
        self,
        variant: Variant,
        method: Method,
        bench: CircuitBench,
        judge: Judge,
        kept: Part,
        progress: Progress,
    ) -> Iterator[Found]:
        circuits = method.find(bench, kept=kept.part(method.word), progress=progress)
        for number, found in enumerate(circuits):
            row = {
                "kind": "circuit",
                "model": variant.label,
                "method": method.word,
                method.setting: found.setting,
                "n_edges": found.circuit.n_edges,
                "n_nodes": int(found.circuit.nodes.sum()),
                "cost": bench.cost(found.circuit),
                **judge.judged(found.circuit),
            }
            name = f"{variant.label}/{method.word}/{number}"
            self.arrays[f"{name}/edges"] = found.circuit.edges
            if found.trials is not None:
                row |= {"n_trials": len(found.trials.effects), "n_runs": found.n_runs}
                self.arrays[f"{name}/costs"] = found.trials.costs(bench.clean_cost)
                if found.noise > 0.1 * found.setting:
                    log.warning(
                        "%s: a threshold of %g is not far from rounding, %.1g; edges about it are "
                        "kept or cut by chance",
                        variant.label,
                        found.setting,
                        found.noise,
                    )
            self.circuits.append(row)
            self._found.append((row, found))
            yield found

    def _compare(
        self, variant: Variant, method: Method, found: Sequence[Found], truth: Truth
    ) -> None:
        """With the known circuit."""
        if method.has_scores:
            scores = found[0].effects
            curves = {"edges": truth.scored_edges(scores), "nodes": truth.scored_nodes(scores)}
        else:
            circuits = [one.circuit for one in found]
            curves = {"edges": truth.edges(circuits), "nodes": truth.nodes(circuits)}
        name = f"roc/{variant.label}/{method.word}"
        self.arrays |= {f"{name}/{kind}": curve for kind, curve in curves.items()}
        areas = {f"auc_{kind}": area(curve) for kind, curve in curves.items()}
        row = {"kind": "auc", "model": variant.label, "method": method.word}
        self.areas.append({**row, **areas})

    def drawn(self) -> list[dict[str, Any]]:
        """The edges of the circuit that is drawn, the ones with the largest effects first."""
        row, method = self.circuits[0], self._evaluation.methods[0]
        own = [f for f in self._found if (f[0]["model"], f[0]["method"]) == (row["model"], method)]
        recovered = [one["recovered"] for one, _ in own]
        n_edges = [one["n_edges"] for one, _ in own]
        enough = [i for i, share in enumerate(recovered) if share >= ENOUGH]
        number = (
            min(enough, key=n_edges.__getitem__)
            if enough
            else max(range(len(own)), key=recovered.__getitem__)
        )
        self.scalars["drawn"] = number
        found = own[number][1]
        about = {"kind": "edge", "model": row["model"], "method": method}
        edges = found.circuit.graph.names(found.circuit.edges)
        effects = found.effects[found.circuit.edges].tolist()
        rows = [
            {**about, "sender": sender, "receiver": receiver, "effect": effect}
            for (sender, receiver), effect in zip(edges, effects, strict=True)
        ]
        return sorted(rows, key=lambda one: -abs(one["effect"]))
