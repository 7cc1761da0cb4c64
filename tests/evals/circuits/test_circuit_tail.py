"""What is computed anew after a cut is what a full run of the smaller circuit computes."""

import pytest
import torch
from circuits.benches import random_bench
from conftest import random_gpt2

from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_tail import DIRECT, Tail
from sae_kit.models.gpt2 import GPT2Config

SMALL = GPT2Config(n_layer=2, n_head=2, d_model=8, d_mlp=8, n_ctx=6, n_vocab=11)


@pytest.fixture(scope="module", params=["corrupt", "zero", "mean"])
def bench(request: pytest.FixtureRequest) -> CircuitBench:
    return random_bench(random_gpt2(SMALL).double(), ablation=request.param)


def some_edges(graph: Graph, share: float, seed: int) -> Circuit:
    drawn = torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(seed))
    return Circuit.of(graph, graph.allowed & (drawn < share)).without_dead()


def test_costs_of_versions_are_those_of_full_runs(bench: CircuitBench) -> None:
    graph = bench.graph
    circuit = some_edges(graph, 0.6, seed=1)
    for level in range(len(graph.levels)):
        tail = Tail(bench, circuit, level)
        assert tail.cost == pytest.approx(bench.cost(circuit), abs=1e-12)
        for receiver in range(len(graph.receivers))[graph.receivers_of(level)]:
            senders = circuit.edges[receiver].nonzero()[:, 0].tolist()
            if tail.is_dead(receiver) or not senders:
                continue
            found = tail.costs(tail.without([(receiver, sender) for sender in senders]))
            expected = [
                bench.cost(circuit.without(receiver, senders[: i + 1])) for i in range(len(senders))
            ]
            assert found == pytest.approx(expected, abs=1e-12)


def test_a_direct_edge_is_cut_as_in_a_full_run(bench: CircuitBench) -> None:
    graph = bench.graph
    circuit = Circuit.full(graph)
    for receiver in graph.is_direct.nonzero()[:, 0].tolist():
        tail = Tail(bench, circuit, graph.places[receiver].level)
        (cost,) = tail.costs(tail.without([(receiver, DIRECT)]))
        assert cost == pytest.approx(bench.cost(circuit.without_direct(receiver)), abs=1e-12)


def test_a_version_that_is_gone_on_with_is_the_new_circuit(bench: CircuitBench) -> None:
    graph = bench.graph
    receiver = graph.receivers.index("a1.0.v")
    tail = Tail(bench, Circuit.full(graph), graph.places[receiver].level)
    ahead = tail.without([(receiver, sender) for sender in (3, 0, 2)])
    cost = tail.costs(ahead)[1]
    tail.go_on(ahead, 1, cost)
    expected = Circuit.full(graph).without(receiver, [3, 0])
    assert torch.equal(tail.circuit.edges, expected.edges)
    assert tail.cost == cost == pytest.approx(bench.cost(expected), abs=1e-12)
    (after,) = tail.costs(tail.without([(receiver, 2)]))
    assert after == pytest.approx(bench.cost(expected.without(receiver, [2])), abs=1e-12)


def test_receivers_on_which_nothing_depends_are_dead(bench: CircuitBench) -> None:
    graph = bench.graph
    edges = graph.allowed.clone()
    edges[:, graph.senders.index("a1.1")] = False
    level = graph.places[graph.receivers.index("a1.1.q")].level
    tail = Tail(bench, Circuit.of(graph, edges), level)
    dead = {
        graph.receivers[r]
        for r in range(len(graph.receivers))[graph.receivers_of(level)]
        if tail.is_dead(r)
    }
    assert dead == {"a1.1.q", "a1.1.k", "a1.1.v"}


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_versions_lack_edges_into_several_receivers_of_a_level(
    bench: CircuitBench, share: float
) -> None:
    graph, circuit = bench.graph, some_edges(bench.graph, share, seed=2)
    for level in range(len(graph.levels)):
        tail = Tail(bench, circuit, level)
        cuts, expected, smaller = [], [], circuit
        for i, receiver in enumerate(range(len(graph.receivers))[graph.receivers_of(level)]):
            if tail.is_dead(receiver):
                continue
            senders = circuit.edges[receiver].nonzero()[:, 0].tolist()
            own = [DIRECT] if graph.is_direct[receiver] and i % 2 else senders
            for sender in own:
                is_direct = sender == DIRECT
                smaller = (
                    smaller.without_direct(receiver)
                    if is_direct
                    else smaller.without(receiver, [sender])
                )
                cuts.append((receiver, sender))
                expected.append(bench.cost(smaller))
        if not cuts:
            continue
        ahead = tail.without(cuts)
        assert tail.costs(ahead) == pytest.approx(expected, abs=1e-12)
        tail.go_on(ahead, len(cuts) - 1, expected[-1])
        assert torch.equal(tail.circuit.edges, smaller.edges)
        assert torch.equal(tail.circuit.direct, smaller.direct)
