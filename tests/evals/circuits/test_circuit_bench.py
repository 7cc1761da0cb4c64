"""Edge removal: METHODS 9(f), the identities of the add/subtract form."""

import pytest
import torch
from circuits.benches import random_bench, random_pairs
from conftest import random_gpt2

from sae_kit.data.pairs import Pairs
from sae_kit.evals.circuits import circuit_bench
from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.shared.ablations import ABLATIONS
from sae_kit.models.gpt2 import GPT2, GPT2Config

SMALL = GPT2Config(n_layer=2, n_head=2, d_model=8, d_mlp=8, n_ctx=6, n_vocab=11)


@pytest.fixture(scope="module")
def model() -> GPT2:
    return random_gpt2(SMALL).double()


@pytest.fixture(scope="module")
def bench(model: GPT2) -> CircuitBench:
    return random_bench(model)


def nothing(graph: Graph) -> Circuit:
    return Circuit.of(graph, torch.zeros_like(graph.allowed))


def last_logits(model: GPT2, tokens: torch.Tensor) -> torch.Tensor:
    return model.run(tokens).logits[:, -1]


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_with_all_edges_it_is_the_model_whatever_the_ablation(model: GPT2, ablation: str) -> None:
    bench = random_bench(model, ablation=ablation)
    full = Circuit.full(bench.graph)
    torch.testing.assert_close(bench.logits(full), last_logits(model, bench.pairs.clean))
    assert bench.cost(full) == pytest.approx(0, abs=1e-12)


def test_without_edges_it_is_the_corrupted_run(model: GPT2, bench: CircuitBench) -> None:
    corrupt = last_logits(model, bench.pairs.corrupt)
    torch.testing.assert_close(bench.logits(nothing(bench.graph)), corrupt)


@pytest.mark.parametrize("metric", ["logit_difference", "prob_difference"])
def test_the_cost_of_a_task_is_its_metric_negated(model: GPT2, metric: str) -> None:
    bench = random_bench(model, metric=metric)
    logits = last_logits(model, bench.pairs.corrupt)
    right, wrong = logits.log_softmax(-1)[:, 3], logits.log_softmax(-1)[:, 4]
    expected = right - wrong if metric == "logit_difference" else right.exp() - wrong.exp()
    assert bench.cost(nothing(bench.graph)) == pytest.approx(-expected.mean().item())


def test_all_edges_into_the_output_removed_one_by_one_leave_the_corrupted_residual(
    model: GPT2, bench: CircuitBench
) -> None:
    """METHODS 9(f)."""
    circuit = Circuit.full(bench.graph)
    receiver = bench.graph.receivers.index("logits")
    for sender in reversed(range(len(bench.graph.senders))):
        circuit = circuit.without(receiver, [sender])
    site = "blocks.1.hook_resid_post"
    corrupt = model.run(bench.pairs.corrupt, capture=[site]).acts[site]
    torch.testing.assert_close(bench.trace(circuit).outs[-1][0], corrupt)


def test_zero_ablation_of_an_mlp_is_that_of_the_model(model: GPT2) -> None:
    bench = random_bench(model, ablation="zero")
    graph = bench.graph
    edges = graph.allowed.clone()
    edges[:, graph.senders.index("m0")] = False
    site = "blocks.0.hook_mlp_out"
    expected = model.run(bench.pairs.clean, edit={site: torch.zeros_like}).logits[:, -1]
    torch.testing.assert_close(bench.logits(Circuit.of(graph, edges)), expected)


def test_one_head_cut_off_everywhere_is_that_head_patched(model: GPT2, bench: CircuitBench) -> None:
    """Activation patching of a head, by its edges."""
    site, graph = "blocks.0.attn.hook_z", bench.graph
    corrupt = model.run(bench.pairs.corrupt, capture=[site]).acts[site]

    def patch(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z[:, :, :1], corrupt[:, :, 1:]], 2)

    edges = graph.allowed.clone()
    edges[:, graph.senders.index("a0.1")] = False
    expected = model.run(bench.pairs.clean, edit={site: patch}).logits[:, -1]
    torch.testing.assert_close(bench.logits(Circuit.of(graph, edges)), expected)


def test_a_cut_direct_edge_is_a_patched_query(model: GPT2, bench: CircuitBench) -> None:
    site, graph = "blocks.1.attn.hook_q", bench.graph
    corrupt = model.run(bench.pairs.corrupt, capture=[site]).acts[site]

    def patch(q: torch.Tensor) -> torch.Tensor:
        return torch.cat([corrupt[:, :, :1], q[:, :, 1:]], 2)

    cut = Circuit.full(graph).without_direct(graph.receivers.index("a1.0.q"))
    expected = model.run(bench.pairs.clean, edit={site: patch}).logits[:, -1]
    torch.testing.assert_close(bench.logits(cut), expected)


def test_edges_into_an_unused_node_change_nothing(bench: CircuitBench) -> None:
    """METHODS 9(f)."""
    graph = bench.graph
    edges = graph.allowed.clone()
    edges[:, [graph.senders.index("a0.1"), graph.senders.index("m1")]] = False
    circuit = Circuit.of(graph, edges)
    cleaned = circuit.without_dead()
    assert cleaned.n_edges < circuit.n_edges
    assert torch.equal(bench.logits(cleaned), bench.logits(circuit))


def test_edges_from_an_unfed_node_change_nothing_where_ablations_are_of_one_run(
    model: GPT2, bench: CircuitBench
) -> None:
    names = [("embed", "m0"), ("m0", "logits"), ("a0.0", "a1.1.v"), ("a1.1", "logits")]
    for own, is_same in ((bench, True), (random_bench(model, ablation="zero"), False)):
        circuit = Circuit.of(own.graph, own.graph.find(names))
        rounding = own.logits(circuit.without_unfed()) - own.logits(circuit)
        assert (rounding.abs().max() < 1e-12) == is_same


def test_some_pairs_are_as_if_there_were_no_others(bench: CircuitBench) -> None:
    edges = bench.graph.find([("embed", "m0"), ("m0", "a1.0.q"), ("a1.0", "logits")])
    circuit, rows = Circuit.of(bench.graph, edges), torch.tensor([2, 0])
    some = bench.select(rows)
    torch.testing.assert_close(some.logits(circuit), bench.logits(circuit)[rows])
    assert some.cost(circuit) == pytest.approx(bench.costs(bench.logits(circuit))[rows].mean())


def check(model: GPT2, pairs: Pairs, metric: str) -> None:
    how = ABLATIONS["corrupt"](len(pairs), seed=0)
    CircuitBench.of(Graph(model), pairs, how, metric=metric).check()


def test_a_metric_that_is_constant_on_the_pairs_is_refused(model: GPT2) -> None:
    pairs = random_pairs(3, 5, SMALL.n_vocab)
    same = Pairs(
        clean=pairs.clean,
        corrupt=pairs.clean,
        answers=pairs.answers,
        wrong=pairs.wrong,
        columns=(),
    )
    check(model, pairs, "kl")
    for metric in ("kl", "logit_difference"):
        with pytest.raises(ValueError, match=f"metric: {metric} is .* nothing to recover"):
            check(model, same, metric)


def test_more_nodes_than_there_is_room_for_are_refused(model: GPT2, monkeypatch) -> None:
    monkeypatch.setattr(circuit_bench, "MAX_WRITTEN", 7 * 3 * 5 * 8 - 1)  # one less than they write
    with pytest.raises(ValueError, match=r"n_pairs: 7 nodes on 3 pairs of 5 tokens write 840"):
        random_bench(model, n=3)
