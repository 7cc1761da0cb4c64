import pytest
import torch
from format_samples.e2e_sae import CONFIG, D_IN, RATIO, SITE, contents, save_pair, save_run
from torch.testing import assert_close

from sae_kit.formats import inspect_sae, load_sae, load_saes
from sae_kit.formats.e2e_sae import PUBLISHED
from sae_kit.sae.relu import ReLUConfig


def reference(w, x, *, normalised=True, pre_bias=False):
    """Code and output by plain algebra."""
    encoder, bias, decoder, decoder_bias = w.values()
    code = ((x - decoder_bias if pre_bias else x) @ encoder.T + bias).clamp_min(0)
    if normalised:
        decoder = decoder / decoder.norm(dim=0)
    return code, code @ decoder.T + decoder_bias


@pytest.fixture
def x():
    return torch.randn(50, D_IN, generator=torch.Generator().manual_seed(3)) * 2


def test_the_decoder_is_normalised(x, tmp_path):
    sae = load_sae(save_pair(tmp_path))
    code, recon = reference(contents(), x)
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), recon, atol=1e-5, rtol=1e-5)
    assert sae.config == ReLUConfig(d_sae=RATIO * D_IN, apply_b_dec_to_input=False)
    assert "decoder columns normalised" in sae.metadata["conversions"][0]
    assert (sae(x) - reference(contents(), x, normalised=False)[1]).abs().max() > 0.1
    assert (sae(x) - reference(contents(), x, pre_bias=True)[1]).abs().max() > 0.1


def test_what_the_config_says(tmp_path):
    info = inspect_sae(save_pair(tmp_path))
    assert (info.format, info.site, info.d_in) == ("e2e_sae", SITE, D_IN)
    assert info.metadata == {
        "model_name": "gpt2-small",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "context_size": 1024,
        "prepend_bos": False,
        "dataset_path": "apollo-research/openwebtext",
        "training": {"objective": {"name": "e2e"}},
    }


@pytest.mark.parametrize(
    ("loss", "objective"),
    [
        # As the three kinds of the paper are configured; what has coefficient 0 is only logged.
        ({"out_to_in": {"coeff": 1.0}, "logits_kl": None, "in_to_orig": None}, "local"),
        ({"out_to_in": {"coeff": 0.0}, "logits_kl": {"coeff": 1.0}, "in_to_orig": None}, "e2e"),
        (
            {
                "out_to_in": {"coeff": 0.0},
                "logits_kl": {"coeff": 0.5},
                "in_to_orig": {"total_coeff": 2.5, "hook_positions": ["blocks.7.hook_resid_pre"]},
            },
            "e2e_downstream",
        ),
        ({"sparsity": {"coeff": 1.0}}, None),
        (None, None),
    ],
)
def test_the_loss_says_what_it_was_trained_for(tmp_path, loss, objective):
    info = inspect_sae(save_pair(tmp_path, config=CONFIG | {"loss": loss}))
    training = {"objective": {"name": objective}}
    assert info.metadata.get("training") == (None if objective is None else training)


def test_models_of_ones_own_are_processed_as_they_were(tmp_path):
    config = CONFIG | {"tlens_model_name": None, "tlens_model_path": "out/model.pt"}
    metadata = inspect_sae(save_pair(tmp_path, config=config)).metadata
    assert "model_name" not in metadata
    assert "model_from_pretrained_kwargs" not in metadata


def test_a_run_is_its_last_file(x, tmp_path):
    sae = load_sae(save_run(tmp_path / "run", 9, 400, 80))
    assert torch.equal(sae.b_dec, contents(seed=400)[f"{SITE.replace('.', '-')}.decoder.bias"])
    assert sae.metadata["model_name"] == "gpt2-small"
    earlier = load_sae(tmp_path / "run" / "samples_80.pt")
    assert_close(earlier(x), reference(contents(seed=80), x)[1], atol=1e-5, rtol=1e-5)
    assert earlier.metadata["model_name"] == "gpt2-small"


def test_runs_and_pairs_in_a_folder_open_by_site(tmp_path):
    other = "blocks.10.hook_resid_pre"
    config = CONFIG | {"saes": {"sae_positions": other}}
    save_run(tmp_path / "run", 9, 400)
    save_pair(tmp_path, "ten", held=contents(other), config=config)
    assert list(load_saes(tmp_path)) == [SITE, other]


def test_a_file_without_a_config_opens_too(x, tmp_path):
    torch.save(contents(), tmp_path / "alone.pt")
    sae = load_sae(tmp_path / "alone.pt")
    assert_close(sae(x), reference(contents(), x)[1], atol=1e-5, rtol=1e-5)
    assert "model_name" not in sae.metadata


def test_published_files_leave_the_site_to_the_config(x, tmp_path):
    held = dict(zip(PUBLISHED, contents().values(), strict=True))
    held["decoder.weight"] = held["decoder.weight"] / held["decoder.weight"].norm(dim=0)
    sae = load_sae(save_pair(tmp_path, held=held))
    assert_close(sae(x), reference(contents(), x)[1], atol=1e-5, rtol=1e-5)
    assert sae.metadata["hook_name"] == SITE
    assert list(load_saes(tmp_path)) == [SITE]
    for positions, site in (([SITE, "blocks.7.x"], None), (["resid_pre"], None), (SITE, SITE)):
        config = {**CONFIG, "saes": {**CONFIG["saes"], "sae_positions": positions}}
        assert inspect_sae(save_pair(tmp_path, held=held, config=config)).site == site
    # Others name their tensors so too; alone, such a file is nobody's.
    alone = save_pair(tmp_path, held=held)
    alone.with_suffix(".yaml").unlink()
    with pytest.raises(ValueError, match="is no SAE in a known format"):
        load_sae(alone)


def test_several_sites_in_a_file_are_named(tmp_path):
    file = save_pair(tmp_path, held=contents() | contents("blocks.2.hook_resid_pre"))
    message = r"holds SAEs of 2 sites \(blocks\.6\.hook_resid_pre, blocks\.2.*in a file of its own"
    with pytest.raises(ValueError, match=message):
        load_sae(file)


STEM = SITE.replace(".", "-")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{STEM}.decoder.weight": torch.zeros(RATIO * D_IN, D_IN)}, "decoder.weight has shape"),
        ({f"{STEM}.decoder.bias": None}, "has no tensor blocks-6-hook_resid_pre.decoder.bias"),
        ({f"{STEM}.encoder.2.bias": torch.zeros(3)}, "unknown tensors"),
        ({f"{STEM}.decoder.weight": torch.full((12, 36), torch.inf)}, "NaN or infinity"),
    ],
)
def test_wrong_tensors_are_named(changes, message, tmp_path):
    held = {name: tensor for name, tensor in (contents() | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=rf"e2e_layer_6\.pt: .*{message}"):
        load_sae(save_pair(tmp_path, held=held))


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        ({"sae_positions": "blocks.2.hook_resid_pre"}, "sae_positions is .*see whether it is the"),
        ({"sae_positions": [7]}, r"sae_positions is \[7\]"),
        ({"dict_size_to_input_ratio": 60.0}, "dict_size_to_input_ratio is 60.0, and the weights"),
        ({"dict_size_to_input_ratio": float("inf")}, "dict_size_to_input_ratio is inf"),
    ],
)
def test_configs_of_other_weights_are_refused(saes, message, tmp_path):
    file = save_pair(tmp_path, config=CONFIG | {"saes": CONFIG["saes"] | saes})
    with pytest.raises(ValueError, match=rf"e2e_layer_6\.yaml: .*{message}"):
        load_sae(file)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- 1",
        "a: !!python/object/apply:os.system ['touch marker']",
        "a: &x [1]\nb: [*x, *x]",
        'a: !!int ""',
        "a: !!bool perhaps",
        "[" * 9000,
        "a: " + "b" * (1 << 19),
    ],
)
def test_configs_that_cannot_be_read_are_named(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = save_pair(tmp_path)
    file.with_suffix(".yaml").write_text(text)
    with pytest.raises(ValueError, match=r"e2e_layer_6\.yaml: (cannot be read as|is not a) YAML"):
        load_sae(file)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_weights_are_named(share, tmp_path):
    file = save_pair(tmp_path)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"e2e_layer_6\.pt: is (damaged|no zip)"):
        load_sae(file)
