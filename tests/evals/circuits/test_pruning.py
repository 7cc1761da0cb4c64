"""The greedy loop against one written down in full, and METHODS 9(f): thresholds and dead nodes."""

import pytest
import torch
from circuits.benches import random_bench
from conftest import random_gpt2

from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.pruning import DIRECT, Greedy, Pruned
from sae_kit.evals.shared.kept import Part
from sae_kit.log import Progress
from sae_kit.models.gpt2 import GPT2Config

SMALL = GPT2Config(n_layer=2, n_head=2, d_model=8, d_mlp=8, n_ctx=6, n_vocab=11)
NOTHING = Part(None)


@pytest.fixture(scope="module")
def bench() -> CircuitBench:
    return random_bench(random_gpt2(SMALL).double())


def prune(bench: CircuitBench, *, kept: Part = NOTHING, **how) -> Pruned:
    return Greedy(**how).prune(bench, kept=kept, progress=Progress(1, unit="edges"))


def written_down(bench: CircuitBench, threshold: float, rule: str, order: str) -> tuple:
    """METHODS 9(b): a full run of the model for every edge."""
    graph, circuit = bench.graph, Circuit.full(bench.graph)
    cost, trials = bench.cost(circuit), []

    def falls(smaller: Circuit, edge: tuple[int, int]) -> bool:
        nonlocal cost, circuit
        effect = bench.cost(smaller) - cost
        is_cut = (abs(effect) if rule == "absolute" else effect) < threshold
        trials.append((*edge, effect, is_cut))
        if is_cut:
            cost, circuit = cost + effect, smaller
        return is_cut

    def nodes(level: int) -> list[int]:
        own = list(range(len(graph.levels[level].names)))
        return own[::-1] if order == "backward" else own

    for level in reversed(range(len(graph.levels))):
        n_parts = len(graph.levels[level].parts)
        for node in nodes(level):
            sender = graph.senders_of(level).start + node
            if level < len(graph.levels) - 1 and not circuit.without_dead().edges[:, sender].any():
                circuit = circuit.without_dead()
                continue
            for part in range(n_parts):
                receiver = graph.receivers_of(level).start + node * n_parts + part
                direct = graph.is_direct[receiver]
                if direct and falls(circuit.without_direct(receiver), (receiver, DIRECT)):
                    circuit = circuit.without_dead()
                    continue
                before = [
                    graph.senders_of(i).start + j for i in reversed(range(level)) for j in nodes(i)
                ]
                for other in [*before, 0]:
                    falls(circuit.without(receiver, [other]), (receiver, other))
    return circuit.without_dead(), trials


@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.parametrize(("threshold", "rule"), [(0.03, "signed"), (0.03, "absolute")])
def test_it_is_the_loop_of_full_runs(
    bench: CircuitBench, threshold: float, rule: str, order: str
) -> None:
    circuit, trials = written_down(bench, threshold, rule, order)
    found = prune(bench, threshold=threshold, rule=rule, order=order)
    assert 0 < circuit.n_edges < bench.graph.n_edges
    assert torch.equal(found.circuit.edges, circuit.edges)
    assert torch.equal(found.circuit.direct, circuit.direct)
    assert found.trials.edges.tolist() == [list(trial[:2]) for trial in trials]
    assert found.trials.effects.tolist() == pytest.approx([t[2] for t in trials], abs=1e-10)
    assert found.trials.is_cut.tolist() == [t[3] for t in trials]


@pytest.mark.parametrize(
    ("ablation", "metric"), [("corrupt", "kl"), ("zero", "logit_difference"), ("mean", "kl")]
)
def test_trials_side_by_side_find_what_one_by_one_find(ablation: str, metric: str) -> None:
    bench = random_bench(random_gpt2(SMALL).double(), ablation=ablation, metric=metric)
    alone, together = (prune(bench, threshold=0.03, max_versions=n) for n in (1, 1 << 10))
    assert alone.n_runs == len(alone.trials.effects)
    assert torch.equal(alone.circuit.edges, together.circuit.edges)
    assert torch.equal(alone.trials.edges, together.trials.edges)
    torch.testing.assert_close(alone.trials.effects, together.trials.effects)


def test_a_threshold_of_0_keeps_every_edge_whose_effect_is_positive(bench: CircuitBench) -> None:
    """METHODS 9(f)."""
    found = prune(bench, threshold=0.0)
    assert torch.equal(found.trials.is_cut, found.trials.effects < 0)
    assert (~found.trials.is_cut).any()


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_an_infinite_threshold_leaves_nothing(ablation: str) -> None:
    """METHODS 9(f): the cost is that of the ablated run."""
    bench = random_bench(random_gpt2(SMALL).double(), ablation=ablation)
    found = prune(bench, threshold=float("inf"))
    assert found.circuit.n_edges == 0
    # One trial for each edge into the logits; everything else falls without.
    assert len(found.trials.effects) == len(bench.graph.senders)
    none = Circuit.of(bench.graph, torch.zeros_like(bench.graph.allowed))
    last = found.trials.costs(bench.clean_cost)[-1].item()
    assert last == pytest.approx(bench.cost(none))


def test_costs_are_those_of_the_circuit_that_is_left(bench: CircuitBench) -> None:
    found = prune(bench, threshold=0.03)
    last = found.trials.costs(bench.clean_cost)[-1].item()
    assert last == pytest.approx(bench.cost(found.circuit))
    assert 0 <= found.noise < 1e-12


def test_effects_stand_at_their_edges(bench: CircuitBench) -> None:
    trials = prune(bench, threshold=0.03).trials
    effects = trials.by_edge(bench.graph)
    assert effects[~bench.graph.allowed].count_nonzero() == 0
    for (receiver, sender), effect in zip(trials.edges.tolist(), trials.effects, strict=True):
        if sender != DIRECT:
            assert effects[receiver, sender] == effect


def test_signed_thresholds_lose_what_makes_the_answer_worse() -> None:
    """METHODS 9(e): with a task's metric, edges that lower it are cut; absolute ones keep them."""
    bench = random_bench(random_gpt2(SMALL).double(), metric="logit_difference")
    signed, absolute = (prune(bench, threshold=0.02, rule=r) for r in ("signed", "absolute"))
    kept = signed.trials.effects[~signed.trials.is_cut]
    assert (kept > 0).all()
    assert (signed.trials.effects[signed.trials.is_cut] < -0.02).any()
    assert (absolute.trials.effects[~absolute.trials.is_cut] < -0.02).any()


def test_an_interrupted_loop_goes_on_where_it_was(
    bench: CircuitBench, tmp_path, monkeypatch
) -> None:
    kept = Part(tmp_path / "kept")

    def interrupted(number: int) -> None:
        raise KeyboardInterrupt

    get = Part.get
    with monkeypatch.context() as patch:
        patch.setattr(Part, "get", lambda self, n: get(self, n) if n < 3 else interrupted(n))
        with pytest.raises(KeyboardInterrupt):
            prune(bench, threshold=0.03, kept=kept)
    assert len(list((tmp_path / "kept").iterdir())) == 3
    resumed, whole = prune(bench, threshold=0.03, kept=kept), prune(bench, threshold=0.03)
    for a, b in ((resumed, whole), (prune(bench, threshold=0.03, kept=kept), whole)):
        assert torch.equal(a.circuit.edges, b.circuit.edges)
        assert torch.equal(a.trials.effects, b.trials.effects)
        assert a.n_runs == b.n_runs


def test_progress_counts_every_edge_once(bench: CircuitBench) -> None:
    progress = Progress(bench.graph.n_edges, unit="edges")
    Greedy(threshold=0.03).prune(bench, kept=NOTHING, progress=progress)
    assert progress.done == progress.total


def test_dead_nodes_are_not_tried(bench: CircuitBench) -> None:
    found = prune(bench, threshold=0.3)
    graph: Graph = bench.graph
    heard = {graph.senders[i] for i in found.circuit.nodes.nonzero()[:, 0]}
    silent = {name for level in graph.levels[:-1] for name in level.names} - heard
    tried = {graph.receivers[receiver] for receiver, _ in found.trials.edges.tolist()}
    assert silent
    assert not {r for r in tried if r.removesuffix(".q") in silent}
