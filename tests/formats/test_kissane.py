import pytest
import torch
from format_samples.kissane import D_IN, D_SAE, contents, save
from torch.testing import assert_close

from sae_kit.formats import inspect_sae, load_sae, load_saes
from sae_kit.sae.relu import ReLUConfig


def test_b_dec_is_subtracted(tmp_path):
    w = contents(3)
    x = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(9))
    sae = load_sae(save(tmp_path))
    code = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp_min(0)
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), code @ w["W_dec"] + w["b_dec"], atol=1e-5, rtol=1e-5)
    assert sae.config == ReLUConfig(d_sae=D_SAE)
    assert (sae.encode(x) - (x @ w["W_enc"] + w["b_enc"]).clamp_min(0)).abs().max() > 0.1


def test_what_the_files_say(tmp_path):
    info = inspect_sae(save(tmp_path))
    assert (info.format, info.site, info.d_in) == ("kissane", "blocks.3.attn.hook_z", D_IN)
    assert info.metadata == {"model_name": "gpt2-small", "context_size": 128, "prepend_bos": True}


def test_the_config_names_the_site_where_the_file_does_not(tmp_path):
    assert inspect_sae(save(tmp_path, name="mine")).site == "blocks.3.attn.hook_z"


def test_layers_of_a_folder(tmp_path):
    for layer in (0, 2, 11):
        save(tmp_path, layer)
    saes = load_saes(tmp_path, layers=[11, 0])
    assert list(saes) == ["blocks.0.attn.hook_z", "blocks.11.attn.hook_z"]
    assert torch.equal(saes["blocks.11.attn.hook_z"].b_dec, contents(11)["b_dec"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_size": "6"}, "_cfg.json: act_size is '6'; it must be a positive whole number"),
        ({"dict_size": None}, "_cfg.json: dict_size is None"),
        ({"dict_size": 11}, r"\.pt: W_enc has shape \(6, 10\), but act_size=6 and dict_size=11"),
        ({"act_name": "blocks.4.attn.hook_z"}, "act_name is .*is of blocks.3.attn.hook_z"),
    ],
)
def test_configs_of_other_weights_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_sae(save(tmp_path, **changes))


def test_transposed_weights_are_refused(tmp_path):
    held = contents() | {"W_dec": torch.zeros(D_IN, D_SAE)}
    with pytest.raises(ValueError, match=r"\.pt: W_dec has shape \(6, 10\)"):
        load_sae(save(tmp_path, held=held))


def test_a_file_without_its_config_is_of_no_known_format(tmp_path):
    file = save(tmp_path)
    file.with_name(f"{file.stem}_cfg.json").unlink()
    with pytest.raises(
        ValueError, match=r"holds W_dec, W_enc, b_dec, b_enc, which is no SAE .*config"
    ):
        load_sae(file)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_truncated_weights_are_named(share, tmp_path):
    file = save(tmp_path)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"v9\.pt: is damaged"):
        load_sae(file)
