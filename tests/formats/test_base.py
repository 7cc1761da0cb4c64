import pytest
import torch

from sae_kit import formats
from sae_kit.formats import base
from sae_kit.sae.topk import TopKConfig


def save(path, *, k=2, **metadata):
    sae = TopKConfig(d_sae=8, k=k).build(4, generator=torch.Generator().manual_seed(0))
    formats.save_sae(sae, path, metadata=metadata)


def test_sites_open_in_the_order_the_model_computes_them(tmp_path):
    order = [
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "blocks.2.hook_resid_pre",
        "blocks.2.attn.hook_z",
        "blocks.2.hook_resid_mid",
        "blocks.2.mlp.hook_post",
        "blocks.2.hook_mlp_out",
        "blocks.2.hook_resid_post",
        "blocks.10.hook_resid_pre",
        "ln_final.hook_normalized",
    ]
    for site in sorted(order):
        save(tmp_path / "saes" / site)
    assert list(formats.load_saes(tmp_path)) == order
    assert list(formats.load_saes(tmp_path / "saes")) == order
    assert list(formats.load_saes(tmp_path, layers=[10, 0])) == [order[1], order[8]]


@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning"])
def test_saes_of_no_site_go_by_the_names_of_their_folders(format, tmp_path):
    sae = TopKConfig(d_sae=8, k=2).build(4, generator=torch.Generator().manual_seed(0))
    for name in ("first", "second"):
        formats.save_sae(sae, tmp_path / name, format=format)
    assert list(formats.load_saes(tmp_path)) == ["first", "second"]
    assert list(formats.load_saes(tmp_path / "first")) == ["first"]


def test_absent_layers_are_named(tmp_path):
    for layer in (0, 3):
        save(tmp_path / "saes" / f"blocks.{layer}.hook_resid_pre")
    with pytest.raises(ValueError, match=r"layers: \[1, 7\] .* available: \[0, 3\]"):
        formats.load_saes(tmp_path, layers=[0, 1, 7])


def test_folders_of_other_things_are_passed_over(tmp_path):
    save(tmp_path / "blocks.0.hook_resid_pre")
    (tmp_path / "figures").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert list(formats.load_saes(tmp_path)) == ["blocks.0.hook_resid_pre"]


def test_nothing_there(tmp_path):
    absent = tmp_path / "absent"
    for open_ in (formats.load_sae, formats.inspect_sae, formats.load_saes):
        with pytest.raises(ValueError, match=r"absent: no such folder; give"):
            open_(absent)
    with pytest.raises(ValueError, match=r"no SAE in a known format .*cfg\.json"):
        formats.load_sae(tmp_path)
    with pytest.raises(ValueError, match="holds no SAEs"):
        formats.load_saes(tmp_path)


def test_a_run_is_not_one_sae(tmp_path):
    save(tmp_path / "saes" / "hook_embed")
    with pytest.raises(ValueError, match="open it with load_saes"):
        formats.load_sae(tmp_path)


def test_unknown_format_is_named(tmp_path):
    sae = TopKConfig(d_sae=8, k=2).build(4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"format: 'saelense' is unknown; choose one of .*saelens"):
        formats.save_sae(sae, tmp_path, metadata={}, format="saelense")


@pytest.mark.parametrize(("first", "second"), [("saelens", "sparsify"), ("sparsify", "saelens")])
def test_no_format_is_written_over_another(tmp_path, first, second):
    sae = TopKConfig(d_sae=8, k=2).build(4, generator=torch.Generator().manual_seed(0))
    formats.save_sae(sae, tmp_path, metadata={}, format=first)
    with pytest.raises(ValueError, match=f"holds an SAE in the format '{first}'"):
        formats.save_sae(sae, tmp_path, metadata={}, format=second)
    assert torch.equal(formats.load_sae(tmp_path).W_dec, sae.W_dec)
    formats.save_sae(sae, tmp_path, metadata={}, format=first)  # the same again replaces it


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken: is a file"):
        save(tmp_path / "taken")


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("saelens", "sae_weights.safetensors"),
        ("saelens", "cfg.json"),
        ("sparsify", "sae.safetensors"),
        ("dictionary_learning", "ae.pt"),
    ],
)
def test_a_file_of_two_is_no_sae(format, name, tmp_path):
    sae = TopKConfig(d_sae=8, k=2).build(4, generator=torch.Generator().manual_seed(0))
    formats.save_sae(sae, tmp_path, format=format)
    for open_ in (formats.load_sae, formats.inspect_sae, formats.load_saes):
        with pytest.raises(ValueError, match=rf"{name}: is one file of an SAE, .*give the folder"):
            open_(tmp_path / name)


def test_a_site_that_contradicts_the_file_is_refused(tmp_path):
    save(tmp_path, hook_name="hook_embed")
    assert formats.load_sae(tmp_path, site="hook_embed").metadata["hook_name"] == "hook_embed"
    with pytest.raises(ValueError, match=r"site: 'hook_pos_embed' is given, but .* 'hook_embed'"):
        formats.load_sae(tmp_path, site="hook_pos_embed")


def test_nothing_is_no_source():
    with pytest.raises(ValueError, match="source: is empty"):
        formats.load_sae("")


def test_formats_register_themselves():
    assert {name: one.name for name, one in base.formats().items()}["saelens"] == "saelens"
