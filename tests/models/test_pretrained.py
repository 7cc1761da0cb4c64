"""Loading and saving models by name, and the identities of mean-centred writing weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_kit.config import from_node, to_dict
from sae_kit.models import pretrained
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.pretrained import (
    ModelConfig,
    centred_copy,
    load_model,
    load_tokenizer,
    save_model,
)


@pytest.fixture
def folder(make_gpt2, tiny_tokenizer, tmp_path) -> Path:
    save_model(make_gpt2(), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(1))


# --- load and save --------------------------------------------------------------------------------


def test_a_saved_model_loads_as_it_was(make_gpt2, tiny_tokenizer, folder, tokens):
    lm = load_model(str(folder))
    assert torch.equal(lm.model.run(tokens).logits, make_gpt2().run(tokens).logits)
    assert lm.tokenizer.encode("the cat sat") == tiny_tokenizer.encode("the cat sat")
    assert (lm.name, lm.revision, lm.centred) == (str(folder), None, False)
    assert not any(p.requires_grad for p in lm.model.parameters())
    again = folder.parent / "again"
    save_model(lm.model, lm.tokenizer, again)
    for file in sorted(folder.iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_config_loads_what_the_function_loads(folder, tokens):
    config = ModelConfig(name=str(folder), dtype="float64", centre_writing_weights=True)
    lm = config.build()
    assert lm.centred
    assert lm.model.W_E.dtype == torch.float64
    same = load_model(str(folder), dtype="float64", centre_writing_weights=True)
    assert torch.equal(lm.model.run(tokens).logits, same.model.run(tokens).logits)
    assert from_node(ModelConfig, to_dict(config)) == config


def test_the_tokenizer_alone(tiny_tokenizer, folder):
    assert load_tokenizer(str(folder)).fingerprint == tiny_tokenizer.fingerprint


def test_the_demo_model_is_a_folder_inside_the_package(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "DEMO", folder)
    assert load_model("demo").name == "demo"
    monkeypatch.setattr(pretrained, "DEMO", folder / "none")
    with pytest.raises(ValueError, match="'demo' is not in this installation"):
        load_model("demo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no/such/folder"}, "no folder 'no/such/folder'"),
        ({"name": "./missing"}, "no folder './missing'"),
        ({"name": "gpt-2"}, "no hub id .* did you mean 'gpt2'"),
        ({"name": "demo", "dtype": "int8"}, "dtype: 'int8'"),
        ({"name": "demo", "device": "tpu9"}, "device: 'tpu9'"),
        ({"name": "demo", "revision": "main"}, "revision: 'main' has no meaning for 'demo'"),
    ],
)
def test_what_cannot_be_loaded(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_model(**arguments)


def test_what_a_config_refuses():
    for arguments, message in (
        ({"name": " "}, "name: empty"),
        ({"dtype": "half"}, "dtype: 'half'"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig(**{"name": "demo", **arguments})


def test_an_empty_folder_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in"):
        load_model(str(tmp_path))


def test_the_tokenizer_must_be_the_models(make_gpt2, tiny_tokenizer, tmp_path):
    narrow = replace(make_gpt2().config, n_vocab=tiny_tokenizer.vocab_size - 1)
    save_model(make_gpt2(narrow), tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="they belong to different models"):
        load_model(str(tmp_path))


# --- mean-centred writing weights -----------------------------------------------------------------


def writes(model: GPT2) -> list[str]:
    """The sites at which something is, or is added to, the residual stream."""
    return [s for s in model.sites() if "hook_resid" in s or s.endswith(("_out", "embed"))]


@pytest.fixture(scope="module")
def raw(make_gpt2) -> GPT2:
    return make_gpt2().double()


def test_centring_takes_the_mean_out_of_every_stream_activation(raw, tokens):
    centred = centred_copy(raw)
    a, b = raw.run(tokens, capture=raw.sites()), centred.run(tokens, capture=raw.sites())
    for site in writes(raw):
        mean = a.acts[site].mean(-1, keepdim=True)
        assert mean.abs().max() > 0.01, site  # or the identity below would say nothing
        torch.testing.assert_close(a.acts[site] - mean, b.acts[site], atol=1e-10, rtol=0)
    for site in set(raw.sites()) - set(writes(raw)):
        if not site.endswith("hook_result"):  # per-head outputs are centred too; their sum is above
            torch.testing.assert_close(a.acts[site], b.acts[site], atol=1e-10, rtol=0)


def test_centring_keeps_the_predictions(raw, tokens):
    a, b = (m.run(tokens).logits.log_softmax(-1) for m in (raw, centred_copy(raw)))
    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_centring_unties_the_unembedding_and_leaves_the_original_alone(make_gpt2):
    raw, same = make_gpt2(), make_gpt2()
    centred = centred_copy(raw)
    assert not centred.config.tied
    assert torch.equal(centred.W_U, raw.W_E)
    assert all(torch.equal(p, q) for p, q in zip(raw.parameters(), same.parameters(), strict=True))
    again = centred_copy(centred)
    for p, q in zip(again.parameters(), centred.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=0)


def test_centring_what_is_not_written_changes_the_function(raw, tokens):
    """The negative control: the same subtraction anywhere else is no symmetry."""
    wrong = centred_copy(raw).requires_grad_(False)
    for block in wrong.blocks:
        block.mlp.b_in -= block.mlp.b_in.mean()
    changed = (raw.run(tokens).logits - wrong.run(tokens).logits).abs().max()
    assert changed > 1e-3


def test_centring_a_tied_embedding_in_place_would_not_be_enough(raw, tokens):
    """Why the unembedding is untied first: its own mean over d_model matters to the predictions."""
    wrong = centred_copy(raw).requires_grad_(False)
    wrong.W_U.copy_(wrong.W_E)
    a, b = (m.run(tokens).logits.log_softmax(-1) for m in (raw, wrong))
    assert (a - b).abs().max() > 1e-3


def test_loading_centres_in_full_precision(folder, tokens):
    raw = load_model(str(folder), dtype="float64").model
    centred = load_model(str(folder), dtype="float64", centre_writing_weights=True).model
    site = "blocks.2.hook_resid_post"
    a, b = (m.run(tokens, capture=[site]).acts[site] for m in (raw, centred))
    torch.testing.assert_close(a - a.mean(-1, keepdim=True), b, atol=1e-10, rtol=0)
    half = load_model(str(folder), dtype="bfloat16", centre_writing_weights=True).model
    assert torch.equal(half.W_E, centred.W_E.float().bfloat16())


def test_a_centred_model_can_be_saved_and_loaded(raw, tiny_tokenizer, tmp_path, tokens):
    centred = centred_copy(raw)
    save_model(centred, tiny_tokenizer, tmp_path, dtype="float64")
    # float64 on disk, float32 when read: the default precision of every loaded model.
    back = load_model(str(tmp_path)).model
    assert back.config == replace(GPT2Config(), **vars(centred.config))
    a, b = back.run(tokens).logits, raw.run(tokens).logits.float()
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
