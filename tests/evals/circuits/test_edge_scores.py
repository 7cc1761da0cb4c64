"""Gradients against what cutting an edge does, where they must agree."""

import pytest
import torch
from circuits.benches import bench_of, random_bench, random_pairs
from circuits.linear import linear
from conftest import random_gpt2

from sae_kit.evals.circuits import edge_scores
from sae_kit.evals.circuits.circuit import Chosen, Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.edge_scores import (
    EAP,
    IntegratedEAP,
    NodeImportance,
    RandomScores,
    best,
)
from sae_kit.evals.shared.ablations import CorruptedPrompt
from sae_kit.models.gpt2 import GPT2Config
from sae_kit.sae.base import SAEConfig
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

SMALL = GPT2Config(n_layer=2, n_head=2, d_model=8, d_mlp=8, n_ctx=6, n_vocab=11)


@pytest.fixture(scope="module")
def bench() -> CircuitBench:
    return random_bench(random_gpt2(SMALL).double(), metric="logit_difference")


@pytest.mark.parametrize(("scorer", "ablation"), [(EAP(), "corrupt"), (IntegratedEAP(3), "zero")])
def test_in_a_linear_net_scores_are_effects(scorer, ablation: str) -> None:
    """METHODS 11, F19: EAP is exact, edge by edge."""
    made = linear()
    bench = bench_of(made, ablation=ablation, metric="logit_difference")
    graph, full = bench.graph, Circuit.full(bench.graph)
    scores, clean = scorer.score(bench), bench.clean_cost
    assert not scores[~graph.find(made.edges)].any()
    for receiver, sender in graph.find(made.edges).nonzero().tolist():
        effect = bench.cost(full.without(receiver, [sender])) - clean
        assert scores[receiver, sender].item() == pytest.approx(effect, abs=1e-10)


@pytest.mark.parametrize("config", [TopKConfig(d_sae=12, k=4), ReLUConfig(d_sae=12)])
def test_scores_into_latents_add_up_to_those_into_all_that_is_behind(config: SAEConfig) -> None:
    """An SAE's latents and the rest are the stream, so that its gradient is that of their sum."""
    model, site = random_gpt2(SMALL).double(), "blocks.1.hook_resid_pre"
    sae = config.build(8, generator=torch.Generator().manual_seed(0)).double()
    pairs, how = random_pairs(3, 5, SMALL.n_vocab), CorruptedPrompt(3, seed=0)
    graphs = Graph(model), Graph(model, {site: Chosen(sae, torch.arange(12))})
    plain, split = (
        EAP().score(CircuitBench.of(graph, pairs, how, metric="logit_difference"))
        for graph in graphs
    )
    before = len(["embed", "a0.0", "a0.1", "m0"])
    is_behind = torch.tensor([name[1] == "1" or name == "logits" for name in graphs[0].receivers])
    into_latents = [site in name for name in graphs[1].receivers]
    expected = plain[is_behind, :before].sum(0)
    assert expected.abs().min() > 1e-6
    torch.testing.assert_close(split[into_latents, :before].sum(0), expected)


def test_eap_is_the_derivative_of_the_cost_by_the_edge(bench: CircuitBench) -> None:
    """By finite differences of the weights of circuit_bench's formula."""
    from sae_kit.evals.circuits.circuit_bench import Weighted, trace

    scores, step = EAP().score(bench), 1e-5

    def cost(weights: torch.Tensor) -> float:
        wiring = Weighted(bench, weights, weights.new_ones(len(weights)))
        return bench.costs(bench.read(trace(bench.graph, bench.clean.outs[0][0], wiring))).mean()

    ones = bench.graph.allowed.double()
    for edge in bench.graph.allowed.nonzero()[::11]:
        receiver, sender = edge.tolist()
        more, less = ones.clone(), ones.clone()
        more[receiver, sender] += step
        less[receiver, sender] -= step
        expected = (cost(less) - cost(more)) / (2 * step)
        assert scores[receiver, sender].item() == pytest.approx(expected.item(), abs=1e-7)


def test_integrated_scores_of_the_embedding_add_up_to_the_whole_difference() -> None:
    """Completeness: a path integral of the gradient is the difference of its ends. The error of a
    sum for it falls with the number of its terms.
    """
    bench = random_bench(random_gpt2(SMALL).double(), metric="logit_difference", n=2)
    none = Circuit.of(bench.graph, torch.zeros_like(bench.graph.allowed))
    whole = bench.cost(none) - bench.clean_cost
    errors = [abs(IntegratedEAP(n).score(bench)[:, 0].sum().item() - whole) for n in (4, 32)]
    assert errors[1] < errors[0] / 4


def test_importance_is_that_of_the_lesser_end(bench: CircuitBench) -> None:
    scores, graph = NodeImportance().score(bench), bench.graph
    to_logits = scores[graph.receivers.index("logits")]  # senders' own
    for receiver, sender in graph.allowed.nonzero().tolist():
        node = int(graph.node_of[receiver])
        own = to_logits[node] if node < len(graph.senders) else torch.tensor(torch.inf)
        assert scores[receiver, sender] == torch.minimum(own, to_logits[sender])


def test_importance_is_the_derivative_by_what_a_node_writes(bench: CircuitBench) -> None:
    """A node's edges all at once, pair by pair."""
    by_pair = torch.stack(
        [EAP().score(bench.select(torch.tensor([i]))).sum(0) for i in range(len(bench.pairs))]
    )
    scores = NodeImportance().score(bench)[bench.graph.receivers.index("logits")]
    torch.testing.assert_close(scores, by_pair.abs().mean(0))


def test_groups_of_pairs_change_nothing(bench: CircuitBench, monkeypatch) -> None:
    whole = EAP().score(bench)
    monkeypatch.setattr(edge_scores, "MAX_GRADIENTS", 1)
    torch.testing.assert_close(EAP().score(bench), whole)


def test_impossible_edges_have_no_score(bench: CircuitBench) -> None:
    for scorer in (EAP(), IntegratedEAP(2), NodeImportance(), RandomScores(0)):
        assert not scorer.score(bench)[~bench.graph.allowed].any()


def test_the_model_gets_no_gradients(bench: CircuitBench) -> None:
    EAP().score(bench)
    assert all(p.grad is None for p in bench.graph.model.parameters())


def test_the_best_edges_are_those_of_the_largest_scores_of_either_sign(bench) -> None:
    scores = EAP().score(bench)
    circuit = best(bench.graph, scores, 9)
    assert circuit.n_edges == 9
    assert scores[circuit.edges].abs().min() >= scores[circuit.complement().edges].abs().max()


def test_among_equals_only_possible_edges_are_chosen(bench: CircuitBench) -> None:
    circuit = best(bench.graph, torch.zeros(bench.graph.allowed.shape), 9)
    assert circuit.n_edges == 9
    assert bool((circuit.edges <= bench.graph.allowed).all())
