"""The evaluation on small models whose degeneracy was planted."""

import dataclasses

import pytest
import torch
import toy_subject

from sae_kit.evals.base import Subject
from sae_kit.evals.degeneracy import MATRICES, Degeneracy
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.pretrained import LanguageModel

SMALL = Degeneracy(n_tokens=1024, tolerances=(1e-4, 1e-9), near=0.0)


@pytest.fixture
def subject(tmp_path, monkeypatch) -> Subject:
    monkeypatch.setenv("SAE_KIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    return toy_subject.subject(tmp_path / "text", {})


def with_model(subject: Subject, model: GPT2) -> Subject:
    lm = LanguageModel(model, subject.language_model.tokenizer, "changed", None, False)
    return dataclasses.replace(subject, language_model=lm)


def copy_of(subject: Subject) -> GPT2:
    model = GPT2(subject.model.config).requires_grad_(False)
    model.load_state_dict(subject.model.state_dict())
    return model.eval()


def row(result, matrix: str, block: int = 1, tolerance: float = 1e-9) -> dict:
    (found,) = [
        row
        for row in result.rows
        if (row.get("matrix"), row["block"], row.get("tolerance")) == (matrix, block, tolerance)
    ]
    return found


def neurons(result, block: int = 1) -> dict:
    (found,) = [r for r in result.rows if r["kind"] == "neurons" and r["block"] == block]
    return found


def test_normalised_inputs_have_one_direction_less_than_channels(subject):
    """LayerNorm removes the mean: 32 channels and a constant have rank 32, not 33."""
    result = SMALL.run(subject)
    for matrix in ("attn.W_qkv", "mlp.W_in"):
        assert row(result, matrix)["rank_inputs"] == 32
    assert row(result, "mlp.W_out")["rank_inputs"] == 65
    assert {r["matrix"] for r in result.rows if r["kind"] == "matrix"} == set(MATRICES)


def test_a_neuron_that_nothing_reads_is_free(subject):
    model = copy_of(subject)
    model.blocks[1].mlp.W_out[3] = 0
    before, after = SMALL.run(subject), SMALL.run(with_model(subject, model))
    assert row(before, "mlp.W_in")["rank_gradients"] == 64
    assert row(after, "mlp.W_in")["rank_gradients"] == 63
    assert row(after, "mlp.W_in")["n_free"] == row(before, "mlp.W_in")["n_free"] + 32


def test_a_duplicated_neuron_frees_directions_and_switches_with_its_twin(subject):
    model = copy_of(subject)
    mlp = model.blocks[1].mlp
    mlp.W_in[:, 5], mlp.b_in[5] = mlp.W_in[:, 9], mlp.b_in[9]
    before, after = SMALL.run(subject), SMALL.run(with_model(subject, model))
    assert row(after, "mlp.W_out")["rank_inputs"] == row(before, "mlp.W_out")["rank_inputs"] - 1
    assert neurons(after)["n_synchronised"] == neurons(before)["n_synchronised"] + 2


def test_a_dead_neuron_is_counted_apart(subject):
    model = copy_of(subject)
    model.blocks[0].mlp.b_in[7] = -1e4
    before, after = SMALL.run(subject), SMALL.run(with_model(subject, model))
    assert neurons(after, 0)["n_never"] == neurons(before, 0)["n_never"] + 1
    assert neurons(after, 0)["n_synchronised"] <= neurons(before, 0)["n_synchronised"]


def test_a_wider_tolerance_frees_more(subject):
    result = SMALL.run(subject)
    for matrix in MATRICES:
        assert (
            row(result, matrix, tolerance=1e-4)["n_free"]
            >= row(result, matrix, tolerance=1e-9)["n_free"]
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerances": ()}, "tolerances"),
        ({"tolerances": (0.0,)}, "tolerances"),
        ({"near": 0.7}, "near: 0.7"),
        ({"n_tokens": 0}, "n_tokens"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Degeneracy(**change)


def test_too_little_text_for_a_rank_is_refused(subject):
    with pytest.raises(ValueError, match=r"n_tokens: 64 tokens .* rank of a layer of 65"):
        dataclasses.replace(SMALL, n_tokens=64).run(subject)


def test_the_models_weights_get_no_gradient(subject):
    SMALL.run(subject)
    assert all(p.grad is None for p in subject.model.parameters())
    assert torch.is_grad_enabled()
