"""Ways to find circuits, by word; each gives several, from small to large ones or the other way.

- acdc      the greedy loop (`pruning.py`), one circuit for each threshold
- probing   learnt gates (`probing.py`), one circuit for each threshold as the penalty of an edge
- eap, eap_ig, hisp, random
            the best edges by a score (`edge_scores.py`), as many as 8, 16, 32, ... of them

Edges that lead nowhere, or come from nowhere, are left out where that changes nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import KL, CircuitBench
from sae_kit.evals.circuits.edge_scores import (
    EAP,
    IntegratedEAP,
    NodeImportance,
    RandomScores,
    Scorer,
    best,
)
from sae_kit.evals.circuits.probing import Probe, p_open
from sae_kit.evals.circuits.pruning import Greedy, Trials
from sae_kit.evals.shared.ablations import CorruptedPrompt, Resample
from sae_kit.evals.shared.kept import Part
from sae_kit.log import Progress

LEAST_EDGES = 8
ONE_RUN = (CorruptedPrompt.word, Resample.word)
"""Ablations whose activations are all of one run."""


@final
@dataclass(frozen=True, kw_only=True)
class Search:
    """What methods have to know."""

    thresholds: tuple[float, ...]
    """What an edge has to be worth, in units of the cost."""
    rule: str
    order: str
    gradient_metric: str
    """What is differentiated by those that score edges."""
    ablation: str
    n_ig_steps: int
    n_probe_steps: int
    seed: int


@final
@dataclass(frozen=True, kw_only=True, eq=False)  # eq: tensors have no single truth value
class Found:
    """One circuit."""

    circuit: Circuit
    setting: int | float
    """The threshold, or the number of edges that were asked for."""
    effects: Float[Tensor, "receivers senders"]
    """What is known of edges: by how much the cost grew without one, or its score; 0: nothing."""
    trials: Trials | None = None
    """Of ACDC."""
    n_runs: int = 0
    """Versions of the model that ACDC ran."""
    noise: float = 0.0
    """See Pruned."""


class Method(ABC):
    """A way to find circuits."""

    word: ClassVar[str]
    setting: ClassVar[str]
    """What `Found.setting` is."""
    has_scores: ClassVar[bool] = False
    """Whether effects rank all edges, whichever are in the circuit."""

    def __init__(self, search: Search) -> None:
        self.search = search

    @abstractmethod
    def find(self, bench: CircuitBench, *, kept: Part, progress: Progress) -> Iterator[Found]:
        """Circuits that do on a bench's pairs what the model does.

        Args:
            bench: what they are found on.
            kept: what an earlier call got through.
            progress: counts edges that were tried.
        """

    def n_edges(self, graph: Graph) -> int:
        """How many edges `find` counts."""
        return 0

    def cleaned(self, circuit: Circuit) -> Circuit:
        """Without edges that change nothing."""
        if self.search.ablation in ONE_RUN:
            circuit = circuit.without_unfed()
        return circuit.without_dead()


@final
class GreedyPruning(Method):
    """Cut every edge that is not missed."""

    word, setting = "acdc", "threshold"

    def find(self, bench: CircuitBench, *, kept: Part, progress: Progress) -> Iterator[Found]:
        """See Method."""
        for i, threshold in enumerate(self.search.thresholds):
            greedy = Greedy(threshold=threshold, rule=self.search.rule, order=self.search.order)
            pruned = greedy.prune(bench, kept=kept.part(str(i)), progress=progress)
            yield Found(
                circuit=self.cleaned(pruned.circuit),
                setting=threshold,
                effects=pruned.trials.by_edge(bench.graph),
                trials=pruned.trials,
                n_runs=pruned.n_runs,
                noise=pruned.noise,
            )

    def n_edges(self, graph: Graph) -> int:
        """See Method."""
        return graph.n_edges * len(self.search.thresholds)


@final
class Probing(Method):
    """Learn gates."""

    word, setting = "probing", "threshold"

    def find(self, bench: CircuitBench, *, kept: Part, progress: Progress) -> Iterator[Found]:
        """See Method."""
        for i, threshold in enumerate(self.search.thresholds):
            search = self.search
            probe = Probe(penalty=threshold, n_steps=search.n_probe_steps, seed=search.seed)
            if (record := kept.get(i)) is None:
                record = {"parameters": probe.learn(bench)}
                kept.put(i, record)
            yield Found(
                circuit=self.cleaned(probe.circuit(bench, record["parameters"])),
                setting=threshold,
                effects=p_open(record["parameters"]),
            )


class Scored(Method):
    """Keep the best edges."""

    setting = "n_edges"
    has_scores = True

    def __init__(self, search: Search) -> None:
        """Raises:
        ValueError: the gradient that the scorer goes by is zero.
        """
        super().__init__(search)
        self._scorer = self.scorer()
        if search.gradient_metric == KL and self._scorer.is_first_order:
            raise ValueError(
                f"gradient_metric: {KL} has no gradient at the model's own predictions, which "
                f"{self.word} goes by; give logit_difference, or eap_ig in its place"
            )

    @abstractmethod
    def scorer(self) -> Scorer:
        """What the best are found by."""

    @final
    def find(self, bench: CircuitBench, *, kept: Part, progress: Progress) -> Iterator[Found]:
        """See Method."""
        scores = self._scorer.score(bench.with_metric(self.search.gradient_metric)).cpu()
        n_edges = LEAST_EDGES
        while n_edges < bench.graph.n_edges:
            circuit = self.cleaned(best(bench.graph, scores, n_edges))
            yield Found(circuit=circuit, setting=n_edges, effects=scores)
            n_edges *= 2


@final
class ByEAP(Scored):
    """See EAP."""

    word = "eap"

    def scorer(self) -> Scorer:
        """See Scored."""
        return EAP()


@final
class ByIntegratedEAP(Scored):
    """See IntegratedEAP."""

    word = "eap_ig"

    def scorer(self) -> Scorer:
        """See Scored."""
        return IntegratedEAP(self.search.n_ig_steps)


@final
class ByImportance(Scored):
    """See NodeImportance."""

    word = "hisp"

    def scorer(self) -> Scorer:
        """See Scored."""
        return NodeImportance()


@final
class ByChance(Scored):
    """See RandomScores."""

    word = "random"

    def scorer(self) -> Scorer:
        """See Scored."""
        return RandomScores(self.search.seed)


METHODS: dict[str, type[Method]] = {
    method.word: method
    for method in (GreedyPruning, Probing, ByEAP, ByIntegratedEAP, ByImportance, ByChance)
}
"""By the word that a config names them by."""


def methods_of(words: Sequence[str], search: Search) -> list[Method]:
    """Methods by word.

    Raises:
        ValueError: no word or one twice, one that names no method, or a method that the search does
            not suit.
    """
    if not words or len(set(words)) < len(words):
        raise ValueError(f"methods: {list(words)} is empty or has one twice; give each once")
    for word in words:
        if word not in METHODS:
            close = " or ".join(nearest(word, METHODS) or METHODS)
            raise ValueError(f"methods: {word!r} is unknown; give {close}")
    return [METHODS[word](search) for word in words]
