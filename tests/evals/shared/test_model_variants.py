"""Other models to compare with."""

import dataclasses

import pytest
import torch
import toy_subject
from conftest import random_gpt2

from sae_kit.evals.shared.model_variants import Variant, variants
from sae_kit.models.pretrained import save_model
from sae_kit.models.snapshots import Moment, save_snapshot
from sae_kit.models.tokenizer import train_bpe


@pytest.fixture
def subject(tmp_path):
    (tmp_path / "text").mkdir()
    return toy_subject.subject(tmp_path / "text", {})


def one(subject, word: str) -> Variant:
    (found,) = variants(subject, [word])
    return found


def test_a_random_one_has_the_shape_and_other_weights(subject):
    variant = one(subject, "random")
    first, again = variant.load(), one(subject, "random").load()
    assert first.config == variant.config == subject.model.config
    assert torch.equal(first.W_E, again.W_E)
    assert not torch.equal(first.W_E, subject.model.W_E)
    other = one(dataclasses.replace(subject, seed=1), "random").load()
    assert not torch.equal(first.W_E, other.W_E)


def test_a_shuffled_one_has_the_same_values_in_every_tensor(subject):
    """METHODS 11.4, the reset network."""
    theirs = dict(one(subject, "shuffled").load().named_parameters())
    for name, p in subject.model.named_parameters():
        assert torch.equal(p.flatten().sort().values, theirs[name].flatten().sort().values), name
        assert len(p) == 1 or not torch.equal(p, theirs[name]), name


def test_a_run_stands_for_its_snapshots_the_first_one_first(subject, tmp_path):
    for step in (20, 0, 1000):
        model = random_gpt2(subject.model.config, seed=step)
        moment = Moment(step=step, n_tokens=8 * step)
        save_snapshot(model, subject.language_model.tokenizer, tmp_path / "run", moment)
    found = variants(subject, ["random", str(tmp_path / "run")])[1:]
    assert [(variant.label, variant.run, variant.n_tokens) for variant in found] == [
        ("run, step 0", "run", 0),
        ("run, step 20", "run", 160),
        ("run, step 1,000", "run", 8000),
    ]
    assert torch.equal(found[1].load().W_E, random_gpt2(subject.model.config, seed=20).W_E)


def test_any_model_that_reads_the_same_tokens_will_do(subject, tmp_path):
    """Of another size, and on the type of numbers of the subject."""
    config = dataclasses.replace(subject.model.config, n_layer=3)
    save_model(random_gpt2(config), subject.language_model.tokenizer, tmp_path / "model")
    lm = dataclasses.replace(
        subject.language_model, model=random_gpt2(subject.model.config).double()
    )
    variant = one(dataclasses.replace(subject, language_model=lm), str(tmp_path / "model"))
    assert (variant.config, variant.n_tokens, variant.run) == (config, -1, "")
    model = variant.load()
    assert model.W_E.dtype == torch.float64
    assert not any(p.requires_grad for p in model.parameters())


def test_models_that_do_not_fit_are_refused(subject, tmp_path):
    with pytest.raises(ValueError, match="models: name: there is no folder 'nowhere'"):
        one(subject, "nowhere")
    with pytest.raises(ValueError, match="models: demo has another vocabulary than toy"):
        one(subject, "demo")
    same_size = train_bpe(["x" * i + "y" * (i % 7) for i in range(1, 60)], 300)
    config = dataclasses.replace(subject.model.config, n_vocab=subject.model.config.n_vocab)
    save_model(random_gpt2(config), same_size, tmp_path / "model")
    with pytest.raises(ValueError, match="another vocabulary"):
        one(subject, str(tmp_path / "model"))
    with pytest.raises(ValueError, match="models: random comes twice"):
        variants(subject, ["random", "random"])
