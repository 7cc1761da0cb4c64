"""What circuits recover, at both ends."""

import pytest
import torch
from circuits.benches import random_bench
from conftest import random_gpt2

from sae_kit.evals.circuits.circuit import Circuit
from sae_kit.evals.circuits.circuit_judge import Judge
from sae_kit.models.gpt2 import GPT2Config

SMALL = GPT2Config(n_layer=2, n_head=2, d_model=8, d_mlp=8, n_ctx=6, n_vocab=11)


def test_the_model_recovers_everything_and_no_edges_nothing() -> None:
    bench = random_bench(random_gpt2(SMALL).double(), n=8)
    graph = bench.graph
    judge = Judge(bench, "logit_difference", seed=0)
    full = judge.judged(Circuit.full(graph))
    assert full["kl"] == pytest.approx(0, abs=1e-12)
    assert full["recovered_low"] == pytest.approx(1)
    assert full["score"] == pytest.approx(judge.ends["score_clean"])
    none = judge.judged(Circuit.of(graph, torch.zeros_like(graph.allowed)))
    assert none["recovered"] == none["recovered_low"] == none["recovered_high"] == 0
    assert none["kl"] == judge.ends["kl_ablated"] > 0
    assert none["kl_low"] < none["kl"] < none["kl_high"]
    assert none["score"] == judge.ends["score_ablated"] != judge.ends["score_clean"]


def test_a_part_is_judged_by_means_over_pairs() -> None:
    bench = random_bench(random_gpt2(SMALL).double(), n=8)
    part = Circuit.of(bench.graph, bench.graph.find([("embed", "m0"), ("m0", "logits")]))
    judge = Judge(bench, "prob", seed=0)
    found = judge.judged(part)
    assert found["kl"] == pytest.approx(bench.cost(part))
    assert found["recovered"] == pytest.approx(1 - bench.cost(part) / judge.ends["kl_ablated"])
    assert found["recovered_low"] < found["recovered"] < found["recovered_high"]
    assert found["score"] == pytest.approx(-bench.with_metric("prob").cost(part))
