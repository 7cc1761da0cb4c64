"""The evaluation as a whole: what it measures, what it refuses, what it says of known circuits."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import toy_subject

from sae_kit.evals.base import Subject
from sae_kit.evals.patching import Patching
from sae_kit.result import Result

SMALL = {"n_prompts": 4, "n_heldout": 3, "n_top": 3, "n_random_sets": 1}


def rows_of(result: Result, kind: str) -> list:
    return [row for row in result.rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def result(subject: Subject) -> Result:
    return Patching(task="greater_than", receivers=("a1.2.k", "logits"), **SMALL).run(subject)


def test_every_kind_of_unit_is_exchanged_in_both_directions(result: Result) -> None:
    units = rows_of(result, "unit")
    n_pos = 2 * (len({row["place"] for row in units if row["units"] == "residual"}))
    counts = {
        word: sum(row["units"] == word for row in units)
        for word in dict.fromkeys(row["units"] for row in units)
    }
    assert counts == {
        "residual": 3 * n_pos,
        "attn_out": 2 * n_pos,
        "mlp_out": 2 * n_pos,
        "mlp": 4,
        "head_z": 16,
        "head_q": 16,
        "head_k": 16,
        "head_v": 16,
        "head_pattern": 16,
        "neuron": 6,
        "sae": 12,
        "latent": 6,
    }
    for row in units:
        assert row["low"] <= row["score"] <= row["high"]


def test_the_last_stream_at_the_last_position_is_everything(result: Result) -> None:
    """§8(e): trivially so, in both directions."""
    last = [row for row in rows_of(result, "unit") if row["unit"] == "2@end"]
    assert [row["score"] for row in last] == pytest.approx([1.0, 1.0], rel=1e-4)


def test_an_sae_and_its_error_are_to_first_order_the_activation(result: Result) -> None:
    """Their attributions add up to those of the stream at all positions."""
    for direction in ("denoising", "noising"):
        own = [row for row in rows_of(result, "unit") if row["direction"] == direction]
        parts = [row["attribution"] for row in own if row["unit"].startswith("blocks.0.hook_resid")]
        parts = parts[:2]
        stream = [r["attribution"] for r in own if (r["units"], r["layer"]) == ("residual", 0)]
        assert sum(parts) == pytest.approx(sum(stream), rel=1e-3, abs=1e-5)


def test_paths_lead_to_the_receivers_asked_for(result: Result) -> None:
    paths = rows_of(result, "path")
    senders = {
        receiver: {row["sender"] for row in paths if row["receiver"] == receiver}
        for receiver in ("a1.2.k", "logits")
    }
    block = {"a0.0", "a0.1", "a0.2", "a0.3", "m0"}
    assert senders["a1.2.k"] == {"embed", *block}
    assert len(senders["logits"]) == 11
    assert len(paths) == 2 * (6 + 11)


def test_the_embedding_is_everything_in_total(result: Result) -> None:
    scores = [
        row["score"]
        for row in rows_of(result, "path")
        if (row["path"], row["receiver"], row["sender"]) == ("total", "logits", "embed")
    ]
    assert scores == pytest.approx([1.0], rel=1e-4)


@pytest.mark.slow
def test_a_named_circuit_is_the_one_asked_about(subject: Subject) -> None:
    everything = ("m0", "m1", *(f"a{i}.{h}" for i in range(2) for h in range(4)))
    named = Patching(task="ioi", units=(), circuit=everything, **SMALL)
    found = named.run(replace(subject, saes={}))
    assert found.scalars["n_circuit"] == 10
    assert found.scalars["enough_noised"] == pytest.approx(1.0)  # nothing else is ablated
    assert found.scalars["needed_denoised"] == pytest.approx(1.0)
    assert {row["units"] for row in rows_of(found, "unit")} == {"head_z", "mlp"}
    receivers = {row["receiver"] for row in rows_of(found, "path")}
    assert len(receivers) == 7
    assert "logits" in receivers


@pytest.mark.slow
def test_without_saes_there_are_none_of_their_units(subject: Subject) -> None:
    evaluation = Patching(task="induction", receivers=("logits",), **SMALL)
    found = evaluation.run(replace(subject, saes={}))
    words = {row["units"] for row in rows_of(found, "unit")}
    assert "neuron" in words
    assert not words & {"sae", "latent"}


def write(folder: Path, *pairs: dict) -> str:
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(pair) for pair in pairs))
    return str(file)


PAIR = {"clean": "Mary and John", "corrupt": "Mary and Paul", "answer": " Mary", "wrong": " John"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupt": "Mary and Paul met"}, "choose words of equally many tokens"),
        ({"answer": " Mary met"}, "is 2 tokens"),
        ({"corrupt": "Mary and John"}, "clean and corrupt are the same"),
        ({"wrong": " Mary"}, "are answer and wrong"),
    ],
)
def test_pairs_that_are_none_are_refused(
    subject: Subject, tmp_path: Path, change: dict, message: str
) -> None:
    task = write(tmp_path, PAIR | change)
    with pytest.raises(ValueError, match=message):
        Patching(task=task, **SMALL).run(subject)


def test_a_task_with_too_few_pairs_is_refused(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 different pairs of one shape"):
        Patching(task=write(tmp_path, PAIR), **SMALL).run(subject)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "ioo"}, "task: 'ioo' is unknown; give ioi"),
        ({"circuit": ("a9.0",)}, "circuit: the model has no component 'a9.0'"),
        ({"receivers": ("a1.9.q",)}, "receivers: the model has no receiver"),
        ({"ablation": "mean", "n_prompts": 0}, "n_prompts: 0 is not positive"),
        ({"ablation": "means"}, "ablation: 'means' is unknown; give mean"),
        ({"ablation": "resample", "n_heldout": 1}, "resample needs others; give 2 or more"),
        ({"metric": "rank"}, "metric: rank has no gradient"),
        ({"metric": "logits"}, "metric: 'logits' is unknown"),
        ({"units": ("heads",)}, "units: 'heads' is unknown; give head"),
        ({"circuit": ()}, "circuit: empty"),
        ({"enough": 0.0}, "enough: 0.0 is no share"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    subject: Subject, settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Patching(**(SMALL | settings)).run(subject)


def test_units_of_saes_need_saes_that_fit(subject: Subject) -> None:
    latents = Patching(units=("latent",), **SMALL)
    with pytest.raises(ValueError, match="units: latent is of SAEs, and there are none"):
        latents.run(replace(subject, saes={}))
    sae = next(iter(toy_subject.random_saes().values()))
    with pytest.raises(ValueError, match=r"no site 'blocks\.7\.hook_resid_pre'"):
        latents.run(replace(subject, saes={"blocks.7.hook_resid_pre": sae}))


def test_a_metric_that_is_the_same_on_all_pairs_is_refused(
    subject: Subject, tmp_path: Path
) -> None:
    """Prompts that end alike, in a model whose attention is cut: the answer cannot change."""
    model = copy.deepcopy(subject.model)
    for block in model.blocks:
        block.attn.W_O.zero_()
    lm = replace(subject.language_model, model=model)
    names = ("Mary", "John", "Paul", "Mark", "Adam", "Anna", "Jane")
    pairs = [PAIR | {"clean": f" {name} and", "corrupt": " Ruth and"} for name in names]
    with pytest.raises(ValueError, match="so there is nothing to recover"):
        Patching(task=write(tmp_path, *pairs), **SMALL).run(replace(subject, language_model=lm))
