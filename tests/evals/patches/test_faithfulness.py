"""Circuits are found in models in which they are known, and asked the right questions."""

import pytest
import torch
from circuits.compiler import Compiled
from circuits.gates import gate
from circuits.induction import induction
from toy_pairs import pairs_of

from sae_kit.evals.patches.component_sets import QUESTIONS, Components
from sae_kit.evals.patches.faithfulness import Faithfulness, ranked
from sae_kit.evals.patches.patch_bench import Bench
from sae_kit.evals.shared.ablations import ABLATIONS


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def bench_of(made: Compiled) -> tuple[Bench, Components]:
    own = pairs_of(made)
    bench = Bench(
        made.model,
        own,
        {},
        kinds=["head_z", "mlp"],
        ablation=ABLATIONS["corrupt"](len(own), seed=0),
        metric="logit_difference",
        seed=0,
    )
    return bench, Components(made.model, own)


def ranking_of(bench: Bench) -> list[str]:
    scores: dict[str, list[float]] = {}
    for direction, scene in bench.scenes.items():
        for groups in bench.groups.values():
            for units in groups:
                found = bench.exchange(direction, units, range(len(units)))
                scored = bench.scorer.scored(scene.direction, list(found.values()))
                for name, score in zip(found, scored.score[:, bench.scorer.place], strict=True):
                    scores.setdefault(name, []).append(score.item())
    return ranked(scores)


def test_the_shortest_ranking_of_induction_is_its_circuit() -> None:
    bench, components = bench_of(induction())
    faithfulness = Faithfulness(bench, components)
    ranking = ranking_of(bench)
    circuit = faithfulness.shortest(ranking, 0.9)
    assert set(circuit) == {"a0.0", "a1.0"}
    rows = faithfulness.set_rows(circuit, [], pairs="first")
    assert [row["answer"] for row in rows] == pytest.approx([1.0] * 4, abs=1e-6)
    # Every one of them is needed, and a component beside them is not.
    by_name = {
        row["component"]: row["answer"] for row in faithfulness.minimality_rows([*circuit, "a1.1"])
    }
    assert by_name == pytest.approx({"a0.0": 1.0, "a1.0": 1.0, "a1.1": 0.0}, abs=1e-6)


@pytest.mark.parametrize(("kind", "adds"), [("and", 1.0), ("or", 0.0)])
def test_minimality_tells_inputs_that_could_be_spared(kind: str, adds: float) -> None:
    """§11.3: both inputs of a gate come first in the ranking; of OR's, each is too much."""
    bench, components = bench_of(gate(kind, (1, 1), (0, 0)))
    faithfulness = Faithfulness(bench, components)
    circuit = faithfulness.shortest(ranking_of(bench), 1.0)
    assert set(circuit) == {"a0.0", "a0.1", "m0"}
    found = {row["component"]: row["answer"] for row in faithfulness.minimality_rows(circuit)}
    assert found == {"a0.0": adds, "a0.1": adds, "m0": 1.0}


def test_all_components_carry_everything_and_none_nothing() -> None:
    bench, components = bench_of(induction())
    rows = list(Faithfulness(bench, components).size_rows({"own": components.names}))
    for question in ("enough_denoised", "enough_noised"):
        own = [row for row in rows if row["question"] == question]
        assert (own[0]["n_components"], own[-1]["n_components"]) == (0, len(components.names))
        assert (own[0]["answer"], own[-1]["answer"]) == pytest.approx((0.0, 1.0), abs=1e-6)
        assert all(row["low"] <= row["answer"] + 1e-9 <= row["high"] + 2e-9 for row in own)


def test_every_question_is_asked_of_every_set() -> None:
    bench, components = bench_of(induction())
    rows = list(
        Faithfulness(bench, components).set_rows(["a0.0"], [["m0"], ["a1.1"]], pairs="heldout")
    )
    assert [(row["question"], row["set"]) for row in rows] == [
        (question, name) for question in QUESTIONS for name in ("circuit", "random 1", "random 2")
    ]


def test_ranks_go_by_the_larger_of_two_scores() -> None:
    assert ranked({"a": [0.1, 0.2], "b": [-1.0, 0.9], "c": [-3.0, -2.0]}) == ["b", "a", "c"]
