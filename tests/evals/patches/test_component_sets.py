"""Circuits that are known, asked about: METHODS 8(f), §11.3."""

import pytest
import torch
from circuits.compiler import Compiled
from circuits.gates import gate
from circuits.induction import induction
from circuits.programs import fraction, reverse
from toy_pairs import pairs_of, random_model, random_pairs, scenes

from sae_kit.evals.patches.component_sets import (
    QUESTIONS,
    Components,
    SetPatching,
    random_sets,
    sizes,
)
from sae_kit.evals.patches.patch_scores import Scorer

CIRCUITS = {
    "induction": (induction, {"a0.0", "a1.0"}),
    "reverse": (reverse, {"m0", "a1.0"}),
    "fraction": (fraction, {"m0", "a1.0"}),
    "and": (lambda: gate("and", (1, 1), (0, 0)), {"a0.0", "a0.1", "m0"}),
    "or": (lambda: gate("or", (1, 1), (0, 0)), {"a0.0", "a0.1", "m0"}),
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def answers(made: Compiled, circuit: set[str]) -> dict[str, float]:
    """Of the four questions, by the logit difference."""
    own = pairs_of(made)
    stage, runs, both = scenes(made.model, own)
    scorer = Scorer(stage, runs, metric="logit_difference", seed=0)
    sets = SetPatching(Components(made.model, own), both)
    found = {}
    for name, question in QUESTIONS.items():
        measured = scorer.measure(sets.ask(question, circuit))
        score = scorer.scored(both[question.direction].direction, [measured]).score
        found[name] = question.answer(score[0, scorer.place]).item()
    return found


@pytest.mark.parametrize("name", CIRCUITS)
def test_a_known_circuit_is_enough_and_needed(name: str) -> None:
    """§8(f): denoised whole, with its complement noised, and the reverse."""
    make, circuit = CIRCUITS[name]
    found = answers(make(), circuit)
    if name == "reverse":  # where to look is alike in both prompts: m0 is not seen
        assert found == pytest.approx(answers(make(), {"a1.0"}))
    assert found == pytest.approx(dict.fromkeys(QUESTIONS, 1.0), abs=1e-6)


def test_one_input_of_a_gate_is_no_circuit() -> None:
    """§11.3, of sets: half of AND is needed and not enough, half of OR enough and not needed."""
    half = {"a0.0", "m0"}
    # The gate itself is a component, which the circuit has: its output is then what it was.
    inputs_only = {"a0.0"}
    both = answers(gate("and", (1, 1), (0, 0)), inputs_only)
    assert (both["needed_noised"], both["enough_denoised"]) == (1.0, 0.0)
    either = answers(gate("or", (1, 1), (0, 0)), inputs_only)
    assert (either["needed_noised"], either["enough_denoised"]) == (0.0, 1.0)
    assert answers(gate("and", (1, 1), (0, 0)), half)["enough_noised"] == 0.0
    assert answers(gate("or", (1, 1), (0, 0)), half)["enough_noised"] == 1.0


def test_nothing_and_everything() -> None:
    """All components restored leave the embedding corrupted; the last MLP and heads see it."""
    model, own = random_model(double=True), random_pairs()
    stage, runs, both = scenes(model, own)
    components = Components(model, own)
    assert components.names == ["a0.0", "a0.1", "m0", "a1.0", "a1.1", "m1", "a2.0", "a2.1", "m2"]
    sets = SetPatching(components, both)
    for direction in ("denoising", "noising"):
        assert torch.equal(sets.logits(direction, []), both[direction].base.logits)
    # All of them in the clean run: only the direct path of the embedding stays.
    noised = sets.logits("noising", components.names)
    stream = runs.broken.acts["blocks.2.hook_resid_post"]
    clean, broken = (run.acts["blocks.0.hook_resid_pre"] for run in (runs.clean, runs.broken))
    torch.testing.assert_close(noised, stage.logits(stream + clean - broken))


def test_names_are_checked() -> None:
    components = Components(random_model(), random_pairs())
    components.check(["a0.0", "m2"])
    with pytest.raises(ValueError, match="circuit: the model has no component 'a0'"):
        components.check(["a0"])
    with pytest.raises(ValueError, match=r"circuit: .* has one twice"):
        components.check(["m0", "m0"])


def test_sizes_go_from_nothing_to_everything() -> None:
    for n in (1, 2, 9, 54, 156):
        found = sizes(n)
        assert found[0] == 0
        assert found[-1] == n
        assert found == sorted(set(found))
    assert len(sizes(156)) < 16


def test_random_sets_are_drawn_without_looking() -> None:
    names = [f"a{i}" for i in range(30)]
    first, second = (list(random_sets(names, 10, 50, seed=0)) for _ in range(2))
    assert first == second
    assert all(len(set(own)) == 10 for own in first)
    assert {name for own in first for name in own} == set(names)
    assert next(random_sets(names, 10, 1, seed=1)) != first[0]
