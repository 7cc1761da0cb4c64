"""Other models to compare with."""

import dataclasses

import pytest
import torch
import toy_subject

from sae_kit.checkpoint import save_checkpoint
from sae_kit.evals.model_variants import shuffled, variants
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.snapshots import Moment, save_snapshot


@pytest.fixture
def subject(tmp_path):
    (tmp_path / "text").mkdir()
    return toy_subject.subject(tmp_path / "text", {})


def one(subject, word: str):
    (found,) = variants(subject, [word])
    return found


def test_a_random_one_has_the_shape_and_other_weights(subject):
    first, again = one(subject, "random"), one(subject, "random")
    assert first.model.config == subject.model.config
    assert torch.equal(first.model.W_E, again.model.W_E)
    assert not torch.equal(first.model.W_E, subject.model.W_E)
    other = one(dataclasses.replace(subject, seed=1), "random")
    assert not torch.equal(first.model.W_E, other.model.W_E)


def test_a_shuffled_one_has_the_same_values_in_every_tensor(subject):
    theirs = dict(shuffled(subject.model, 0).named_parameters())
    for name, p in subject.model.named_parameters():
        assert torch.equal(p.flatten().sort().values, theirs[name].flatten().sort().values), name
    assert not torch.equal(theirs["blocks.0.mlp.W_in"], subject.model.blocks[0].mlp.W_in)


def test_a_run_stands_for_its_checkpoints_the_first_one_first(subject, tmp_path):
    for step in (5, 20, 100):
        model = GPT2(subject.model.config, generator=torch.Generator().manual_seed(step))
        state = {"task": {"model": model.state_dict()}}
        save_checkpoint(tmp_path / "run" / "checkpoints", step, state, keep=9)
    found = list(variants(subject, [str(tmp_path / "run")]))
    assert [variant.label for variant in found] == ["step 5", "step 20", "step 100"]
    assert [variant.step for variant in found] == [5, 20, 100]
    expected = GPT2(subject.model.config, generator=torch.Generator().manual_seed(20))
    assert torch.equal(found[1].model.W_E, expected.W_E)


def test_a_run_with_snapshots_stands_for_these(subject, tmp_path):
    for step in (0, 20):
        model = GPT2(subject.model.config, generator=torch.Generator().manual_seed(step))
        save_snapshot(
            model, subject.language_model.tokenizer, tmp_path, Moment(step=step, n_tokens=step)
        )
    save_checkpoint(tmp_path / "checkpoints", 20, {"task": {"model": {}}}, keep=1)
    found = list(variants(subject, [str(tmp_path)]))
    assert [(variant.label, variant.step) for variant in found] == [("step 0", 0), ("step 20", 20)]
    torch.testing.assert_close(found[1].model.W_E, model.W_E.detach())


def test_models_that_do_not_fit_are_refused(subject, tmp_path):
    with pytest.raises(ValueError, match="models: demo has 4096 tokens"):
        one(subject, "demo")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        one(subject, str(tmp_path / "run"))
    save_checkpoint(tmp_path / "run" / "checkpoints", 1, {"task": {"saes": {}}}, keep=1)
    with pytest.raises(ValueError, match="no checkpoint of a language model"):
        one(subject, str(tmp_path / "run"))
