"""Circuits that are known exactly, found again: METHODS 9(f) and the gate table, 11.3."""

import math

import pytest
import torch

from circuits.benches import bench_of, feature_sae, pairs_of
from circuits.compiler import Compiled
from circuits.gates import gate
from circuits.induction import induction
from circuits.linear import linear
from circuits.programs import fraction, reverse
from sae_kit.evals.circuits.circuit import Chosen, Circuit, Edge, Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_roc import Truth, area
from sae_kit.evals.circuits.pruning import ORDERS, Greedy, Pruned
from sae_kit.evals.shared.ablations import CorruptedPrompt
from sae_kit.evals.shared.kept import Part
from sae_kit.log import Progress

COMPILED = {
    "reverse": reverse,
    "fraction": fraction,
    "induction": induction,
    "and": lambda: gate("and", (1, 1), (0, 0)),
    "and of three": lambda: gate("and", (1, 1, 1), (0, 0, 0)),
}
OR = {2: lambda: gate("or", (1, 1), (0, 0)), 3: lambda: gate("or", (1, 1, 1), (0, 0, 0))}


def prune(bench: CircuitBench, threshold: float = 1e-3, **how) -> Pruned:
    greedy = Greedy(threshold=threshold, **how)
    return greedy.prune(bench, kept=Part(None), progress=Progress(1, unit="edges"))


def edges(found: Pruned) -> set[Edge]:
    return set(found.circuit.graph.names(found.circuit.edges))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("metric", ["kl", "logit_difference"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_circuits_are_found_exactly(name: str, metric: str, order: str) -> None:
    made: Compiled = COMPILED[name]()
    bench = bench_of(made, metric=metric)
    found = prune(bench, order=order)
    assert edges(found) == made.edges
    assert found.noise == 0
    truth = Truth(bench.graph, bench.graph.find(made.edges))
    assert area(truth.edges([found.circuit])) == area(truth.nodes([found.circuit])) == 1


@pytest.mark.parametrize("name", COMPILED)
def test_side_by_side_finds_what_one_by_one_finds(name: str) -> None:
    bench = bench_of(COMPILED[name](), ablation="corrupt")
    alone, together = (prune(bench, max_versions=n) for n in (1, 1 << 10))
    assert torch.equal(alone.circuit.edges, together.circuit.edges)
    assert torch.equal(alone.trials.edges, together.trials.edges)
    assert torch.equal(alone.trials.effects, together.trials.effects)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", OR)
def test_an_or_gate_keeps_exactly_the_input_that_is_visited_last(n: int, order: str) -> None:
    heads = [f"a0.{i}" for i in range(n)]
    last = heads[-1] if order == "forward" else heads[0]
    found = edges(prune(bench_of(OR[n]()), order=order))
    assert {sender for sender, _ in found} == {"embed", last, "m0"}
    assert {(last, "m0"), ("m0", "logits"), ("embed", f"{last}.v")} <= found


@pytest.mark.parametrize("n", [2, 3])
def test_an_and_gate_keeps_all_inputs(n: int) -> None:
    found = edges(prune(bench_of(gate("and", (1,) * n, (0,) * n))))
    assert {(f"a0.{i}", "m0") for i in range(n)} <= found


def test_what_does_not_change_between_prompts_is_not_found_with_corrupted_activations() -> None:
    """Where the heads look is the same in both prompts: queries and keys fall."""
    found = edges(prune(bench_of(gate("and", (1, 1), (0, 0)), ablation="corrupt")))
    parts = {f"a0.{i}.v" for i in range(2)}
    assert {receiver for sender, receiver in found if sender == "embed"} == parts


def test_in_a_linear_net_an_effect_is_a_product_of_matrices() -> None:
    """METHODS 9(f): the way embed -> m0 -> m2 -> logits, by the weights alone."""
    made = linear()
    bench, model = bench_of(made, ablation="corrupt", metric="logit_difference"), made.model

    def matrix(block: int) -> torch.Tensor:
        mlp, ln = model.blocks[block].mlp, model.blocks[block].ln2
        return centred(torch.diag(ln.w)) @ mlp.W_in @ mlp.W_out

    def centred(m: torch.Tensor) -> torch.Tensor:
        return m - m.mean(0, keepdim=True)  # a row vector times this has its mean taken off first

    graph = bench.graph
    only_way = [("embed", "m0"), ("m0", "m2"), ("m2", "logits")]
    circuit = Circuit.of(graph, graph.find(only_way))
    cut = circuit.without(graph.receivers.index("m2"), [graph.senders.index("m0")])
    last = made.clean[:, -1], made.corrupt[:, -1]
    delta = model.W_E[last[0]] - model.W_E[last[1]]
    out = delta @ matrix(0) @ matrix(2) @ centred(torch.diag(model.ln_final.w)) @ model.W_U.T
    rows = torch.arange(len(delta))
    expected = out[rows, list(made.answers)] - out[rows, list(made.wrong)]
    effect = bench.costs(bench.logits(cut)) - bench.costs(bench.logits(circuit))
    torch.testing.assert_close(effect, expected)


def test_the_latent_that_carries_the_sum_is_found_with_its_edges() -> None:
    """Latents as nodes: behind the heads of an AND, the circuit goes through one of an SAE's."""
    made, site = gate("and", (1, 1), (0, 0)), "blocks.0.hook_resid_mid"
    pairs, how = pairs_of(made), CorruptedPrompt
    latents = {
        site: Chosen(feature_sae(made), torch.tensor([3, 4, 5]))
    }  # the features "bit", "sum" and "out"
    graph = Graph(made.model, latents)
    bench = CircuitBench.of(graph, pairs, how(len(pairs), seed=0), metric="kl")
    inputs = {("embed", f"a0.{i}.v") for i in range(2)} | {(f"a0.{i}", f"{site}/4") for i in (0, 1)}
    assert edges(prune(bench)) == inputs | {(f"{site}/4", "m0"), ("m0", "logits")}


@pytest.mark.parametrize("name", ["reverse", "induction"])
def test_an_infinite_threshold_leaves_the_cost_of_nothing(name: str) -> None:
    bench = bench_of(COMPILED[name](), ablation="corrupt", metric="logit_difference")
    found = prune(bench, threshold=math.inf)
    corrupt = bench.graph.model.run(bench.pairs.corrupt).logits[:, -1]
    assert found.circuit.n_edges == 0
    assert bench.cost(found.circuit) == pytest.approx(bench.costs(corrupt).mean().item())
