"""Every method gives circuits, of one shape, that change nothing by what was cleaned away."""

import dataclasses
import itertools

import pytest
import torch
from circuits.benches import random_bench
from conftest import random_gpt2

from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.circuit_methods import LEAST_EDGES, METHODS, Found, Search, methods_of
from sae_kit.evals.shared.kept import Part
from sae_kit.log import Progress
from sae_kit.models.gpt2 import GPT2Config

SMALL = GPT2Config(n_layer=2, n_head=2, d_model=8, d_mlp=8, n_ctx=6, n_vocab=11)
SEARCH = Search(
    thresholds=(0.1, 0.02),
    rule="signed",
    order="forward",
    gradient_metric="logit_difference",
    ablation="corrupt",
    n_ig_steps=2,
    n_probe_steps=3,
    seed=0,
)


@pytest.fixture(scope="module")
def bench() -> CircuitBench:
    return random_bench(random_gpt2(SMALL).double())


def find(word: str, bench: CircuitBench, kept: Part | None = None) -> list[Found]:
    (method,) = methods_of([word], SEARCH)
    progress = Progress(method.n_edges(bench.graph), unit="edges")
    found = list(method.find(bench, kept=kept or Part(None), progress=progress))
    assert progress.done == progress.total
    return found


@pytest.mark.parametrize("word", METHODS)
def test_circuits_are_parts_of_the_graph_whose_every_edge_leads_on(word: str, bench) -> None:
    for found in find(word, bench):
        edges = found.circuit.edges
        assert bool((edges <= bench.graph.allowed).all())
        assert torch.equal(found.circuit.without_dead().edges, edges)
        assert found.effects.shape == edges.shape
        assert found.effects.isfinite().all()


@pytest.mark.parametrize("word", ["eap", "eap_ig", "hisp", "random"])
def test_scored_circuits_double_and_contain_one_another(word: str, bench) -> None:
    found = find(word, bench)
    assert [one.setting for one in found] == [LEAST_EDGES, 2 * LEAST_EDGES, 4 * LEAST_EDGES]
    for small, large in itertools.pairwise(found):
        assert bool((small.circuit.edges <= large.circuit.edges).all())
        assert small.circuit.n_edges <= small.setting


@pytest.mark.parametrize("word", ["acdc", "probing"])
def test_there_is_a_circuit_for_every_threshold(word: str, bench) -> None:
    assert [one.setting for one in find(word, bench)] == [0.1, 0.02]


@pytest.mark.parametrize("word", ["acdc", "probing"])
def test_what_was_kept_is_not_done_again(word: str, bench, tmp_path) -> None:
    kept = Part(tmp_path / "kept")
    first, again = (find(word, bench, kept) for _ in range(2))
    assert list(kept.folder.rglob("*.safetensors"))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.circuit.edges, b.circuit.edges)
        assert torch.equal(a.effects, b.effects)


@pytest.mark.parametrize("metric", ["kl", "logit_difference"])
@pytest.mark.parametrize("word", METHODS)
def test_a_gradient_that_is_zero_is_refused(word: str, metric: str) -> None:
    search = dataclasses.replace(SEARCH, gradient_metric=metric)
    if metric == "kl" and word in ("eap", "hisp"):
        with pytest.raises(ValueError, match=f"gradient_metric: kl has no gradient .* {word} goes"):
            methods_of([word], search)
    else:
        assert [method.word for method in methods_of([word], search)] == [word]


def test_the_gradient_of_the_kl_is_zero_indeed(bench: CircuitBench) -> None:
    from sae_kit.evals.circuits.edge_scores import EAP

    scores = EAP().score(bench.with_metric("logit_difference"))
    assert EAP().score(bench).abs().max() < 1e-12 * scores.abs().max()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "is empty"),
        (["acdc", "acdc"], "one twice"),
        (["eab"], "'eab' is unknown; give eap"),
    ],
)
def test_words_that_name_no_method_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods_of(words, SEARCH)
