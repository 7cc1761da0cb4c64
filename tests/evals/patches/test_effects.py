"""Effects of units as rows: every unit once, the screened ones chosen by attribution."""

import pytest
import torch
from circuits.linear import linear
from toy_pairs import pairs_of, random_model, random_pairs

from sae_kit.evals.patches.effects import Effects
from sae_kit.evals.patches.patch_bench import Bench
from sae_kit.evals.shared.ablations import ABLATIONS


def bench_of(model, own, kinds: list[str]) -> Bench:
    ablation = ABLATIONS["corrupt"](len(own), seed=0)
    return Bench(model, own, {}, kinds=kinds, ablation=ablation, metric="logit_difference", seed=0)


def effects_of(bench: Bench, word: str, direction: str = "noising") -> Effects:
    attributions = bench.attributions(direction)[word]
    return Effects.of(bench, direction, word, attributions, n_screened=5)


@pytest.fixture(scope="module")
def bench() -> Bench:
    with torch.no_grad():
        return bench_of(random_model(double=True), random_pairs(), ["head_z", "neuron", "residual"])


@torch.no_grad()
def test_a_row_has_all_metrics_raw_and_as_scores(bench: Bench) -> None:
    found = effects_of(bench, "head_z")
    rows = list(found.rows())
    assert [row["unit"] for row in rows] == [f"a{i}.{h}" for i in range(3) for h in range(2)]
    assert [(row["layer"], row["place"]) for row in rows[:3]] == [(0, 0), (0, 1), (1, 0)]
    scorer = bench.scorer
    for i, row in enumerate(rows):
        assert row["score"] == row["logit_difference_score"]
        assert row["low"] <= row["score"] <= row["high"]
        for metric, clean, broken in zip(
            scorer.metrics, scorer.clean[0].tolist(), scorer.broken[0].tolist(), strict=True
        ):
            expected = (clean - row[metric]) / (clean - broken)
            assert row[f"{metric}_score"] == pytest.approx(expected)
        assert row["logit_difference"] == pytest.approx(found.by_pair[i].mean().item())


@torch.no_grad()
def test_many_units_are_screened_by_attribution(bench: Bench) -> None:
    attributions = torch.cat(bench.attributions("noising")["neuron"])
    found = effects_of(bench, "neuron")
    assert len(found.names) == 5
    expected = attributions.abs().sort(descending=True).values[:5]
    torch.testing.assert_close(found.attribution.abs(), expected)
    assert [row["place"] for row in found.rows()] == [0, 1, 2, 3, 4]
    for name, value in zip(found.names, found.attribution, strict=True):
        layer, neuron = name.removeprefix("m").split(".")
        assert attributions[24 * int(layer) + int(neuron)] == value


@torch.no_grad()
def test_what_is_measured_again_on_the_same_pairs_is_the_same(bench: Bench) -> None:
    for word in ("head_z", "neuron"):
        rows = list(effects_of(bench, word).top_rows(bench, 3))
        assert len(rows) == 3
        scores = [abs(row["score"]) for row in rows]
        assert scores == sorted(scores, reverse=True)
        for row in rows:
            for what in ("score", "low", "high"):
                assert row[f"heldout_{what}"] == pytest.approx(row[what])


@torch.no_grad()
def test_in_a_linear_net_attribution_has_no_error() -> None:
    """§8(f), F19."""
    made = linear()
    bench = bench_of(made.model, pairs_of(made), ["residual", "head_z"])
    (row,) = effects_of(bench, "residual").attribution_rows()
    assert row["rms_error"] < 1e-9
    assert row["correlation"] == pytest.approx(1.0)
    # Heads do nothing there, and nothing correlates with nothing.
    assert list(effects_of(bench, "head_z").attribution_rows()) == []
