"""How well every method finds the compiled circuits: areas under the curves, as a table.

    PYTHONPATH=tests python -m circuits.areas

Zero ablation, KL for acdc and probing, the logit difference for the rest; the edges' area, then the
nodes'. "permuted" is acdc on the same model with every tensor's values in random order.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from circuits.benches import bench_of
from circuits.compiler import Compiled
from circuits.gates import gate
from circuits.induction import induction
from circuits.programs import fraction, reverse
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_methods import METHODS, Search, methods_of
from sae_kit.evals.circuits.circuit_roc import Truth, area
from sae_kit.evals.shared.kept import Part
from sae_kit.evals.shared.model_variants import shuffled
from sae_kit.log import Progress

MODELS: dict[str, Callable[[], Compiled]] = {
    "reverse": reverse,
    "fraction": fraction,
    "induction": induction,
    "AND": lambda: gate("and", (1, 1), (0, 0)),
    "OR": lambda: gate("or", (1, 1), (0, 0)),
    "XOR": lambda: gate("xor", (1, 0), (0, 0)),
}
SEARCH = Search(
    thresholds=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    rule="signed",
    order="forward",
    gradient_metric="logit_difference",
    ablation="zero",
    n_ig_steps=8,
    n_probe_steps=100,
    seed=0,
)


def areas(bench: CircuitBench, truth: Truth, word: str) -> tuple[float, float]:
    """Of edges and of nodes, by one method."""
    (method,) = methods_of([word], SEARCH)
    found = list(method.find(bench, kept=Part(None), progress=Progress(1, unit="edges")))
    if method.has_scores:
        scores = found[0].effects
        return area(truth.scored_edges(scores)), area(truth.scored_nodes(scores))
    circuits = [one.circuit for one in found]
    return area(truth.edges(circuits)), area(truth.nodes(circuits))


def table() -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
    """A row for each model, method by method."""
    for name, make in MODELS.items():
        made = make()
        bench = bench_of(made)
        truth = Truth(bench.graph, bench.graph.find(made.edges))
        found = {word: areas(bench, truth, word) for word in METHODS}
        permuted = replace(made, model=shuffled(made.model, seed=0))
        yield name, found | {"permuted": areas(bench_of(permuted), truth, "acdc")}


def main() -> None:
    print("| model | " + " | ".join([*METHODS, "permuted"]) + " |")
    print("|---" * (len(METHODS) + 2) + "|")
    for name, found in table():
        cells = [f"{edges:.2f}, {nodes:.2f}" for edges, nodes in found.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
