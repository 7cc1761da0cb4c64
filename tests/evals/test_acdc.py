"""The evaluation on a small random model: what it reports, writes out, and refuses."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import toy_subject

from sae_kit.evals.acdc import ACDC
from sae_kit.evals.base import Subject
from sae_kit.evals.circuits.circuit import Chosen, Graph
from sae_kit.evals.circuits.known_circuits import read_circuit
from sae_kit.models.gpt2 import GPT2
from sae_kit.result import Result

SMALL = ACDC(
    n_pairs=3,
    n_heldout=4,
    methods=("acdc", "eap", "random"),
    thresholds=(0.3, 0.0),
    models=(),
)


@pytest.fixture(scope="module")
def result(subject: Subject) -> Result:
    return SMALL.run(subject)


def rows(result: Result, kind: str) -> list[dict]:
    return [dict(row) for row in result.rows if row["kind"] == kind]


def test_there_is_a_row_for_every_circuit(result: Result) -> None:
    found = [(row["model"], row["method"]) for row in rows(result, "circuit")]
    assert found[:2] == [("toy", "acdc")] * 2
    assert {method for _, method in found} == {"acdc", "eap", "random"}
    for row, (name, mask) in zip(
        rows(result, "circuit"),
        [(k, v) for k, v in result.arrays.items() if k.endswith("/edges")],
        strict=True,
    ):
        assert name.startswith(f"toy/{row['method']}/")
        assert row["n_edges"] == int(mask.sum())
        assert row["recovered_low"] <= row["recovered"] <= row["recovered_high"]


def test_smaller_thresholds_leave_larger_circuits(result: Result) -> None:
    by_threshold = {row["threshold"]: row["n_edges"] for row in rows(result, "circuit")[:2]}
    assert by_threshold[0.3] < by_threshold[0.0]


def test_the_graph_is_counted(result: Result) -> None:
    # Two blocks of four heads: 12 + 5 in the first, 12 x 6 + 10 in the second, 11 into the logits.
    assert result.scalars["n_edges"] == 12 + 5 + 12 * 6 + 10 + 11
    assert result.scalars["n_direct"] == 24
    assert result.scalars["kl_ablated/toy"] > 0


def test_the_drawn_circuit_is_written_out_and_can_be_read(
    result: Result, subject: Subject, tmp_path: Path
) -> None:
    ((name, text),) = ACDC.files(result).items()
    (tmp_path / name).write_text(text)
    graph = Graph(subject.model)
    found = read_circuit(str(tmp_path / name)).find(graph)
    assert torch.equal(found, result.arrays[f"toy/acdc/{result.scalars['drawn']}/edges"])
    effects = [abs(edge["effect"]) for edge in json.loads(text)["edges"]]
    assert effects == sorted(effects, reverse=True)


@pytest.mark.slow
def test_what_it_found_is_found_again_with_an_area_of_1(
    result: Result, subject: Subject, tmp_path: Path
) -> None:
    file = tmp_path / "circuit.json"
    file.write_text(ACDC.files(result)["circuit.json"])
    again = dataclasses.replace(
        SMALL, methods=("acdc", "random"), circuit=str(file), models=("shuffled",)
    ).run(subject)
    areas = {(row["model"], row["method"]): row for row in rows(again, "auc")}
    assert len(areas) == 4
    assert areas["toy", "acdc"]["auc_edges"] == areas["toy", "acdc"]["auc_nodes"] == 1
    assert areas["toy", "random"]["auc_edges"] < 1
    assert areas["shuffled", "acdc"]["auc_edges"] < 1
    assert set(ACDC.plot(again)) == {"graph", "pareto", "steps", "roc"}


def test_latents_are_nodes_of_the_circuits(subject: Subject, tmp_path: Path) -> None:
    site = "blocks.1.hook_resid_mid"
    result = dataclasses.replace(
        SMALL, latent_sites=(site,), n_latents=3, n_ig_steps=2, methods=("eap",)
    ).run(subject)
    latents = rows(result, "latent")
    assert [row["site"] for row in latents] == [site] * 3
    # The last MLP and the logits hear three latents and the rest in the place of everything before,
    # which the four of them hear.
    assert result.scalars["n_edges"] == 12 + 5 + 12 * 6 + 4 * 10 + 4 + 5
    file = tmp_path / "circuit.json"
    file.write_text(ACDC.files(result)["circuit.json"])
    numbers = torch.tensor([row["latent"] for row in latents])
    graph = Graph(subject.model, {site: Chosen(subject.saes[site], numbers)})
    found = read_circuit(str(file)).find(graph)
    assert torch.equal(found, result.arrays[f"toy/eap/{result.scalars['drawn']}/edges"])
    assert set(ACDC.plot(result)) == {"graph", "pareto"}


def test_another_first_method_is_drawn(subject: Subject) -> None:
    result = dataclasses.replace(SMALL, methods=("eap_ig",), n_ig_steps=2).run(subject)
    assert {row["method"] for row in rows(result, "edge")} == {"eap_ig"}
    assert set(ACDC.plot(result)) == {"graph", "pareto"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_pairs": 0}, "n_pairs"),
        ({"thresholds": ()}, "thresholds: "),
        ({"thresholds": (0.1, -1.0)}, r"thresholds: .* none below 0"),
        ({"thresholds": (0.1, 0.1)}, r"thresholds: .* different"),
        ({"metric": "rank"}, "metric: rank has no gradient"),
        ({"metric": "k1"}, "metric: 'k1' is unknown"),
        ({"ablation": "zeros"}, "ablation: 'zeros' is unknown; give zero"),
        ({"methods": ("adcd",)}, "methods: 'adcd' is unknown; give acdc"),
        ({"n_latents": 0}, "n_latents"),
        ({"latent_sites": ("blocks.0.hook_resid_pre",) * 2}, "latent_sites: .* give each once"),
        ({"gradient_metric": "kl"}, "gradient_metric: kl has no gradient"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "ooi"}, "task: 'ooi' is unknown; give ioi"),
        ({"circuit": "ioi"}, r"node: the graph has no 'a\d"),
        ({"circuit": "nowhere.json"}, r"circuit: nowhere\.json"),
        ({"models": ("nowhere",)}, "'nowhere'"),
        ({"latent_sites": ("blocks.1.hook_resid_pre",)}, "latent_sites: no SAE reads"),
        ({"latent_sites": ("blocks.0.hook_z",)}, "latent_sites: .* is no place of the graph"),
    ],
)
def test_what_does_not_fit_the_subject_is_refused(
    subject: Subject, change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, thresholds=(10.0,), methods=("acdc",), **change).run(subject)


def test_pairs_on_which_nothing_changes_are_refused(folder: Path) -> None:
    """The prompts differ, but the model is one that makes nothing of them."""
    subject = toy_subject.subject(folder, {})
    blind = GPT2(subject.model.config).requires_grad_(False)
    for parameter in blind.parameters():
        parameter.zero_()
    language_model = dataclasses.replace(subject.language_model, model=blind)
    with pytest.raises(ValueError, match=r"metric: kl is .* nothing to recover"):
        SMALL.run(dataclasses.replace(subject, language_model=language_model))
