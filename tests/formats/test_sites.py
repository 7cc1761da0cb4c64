import pytest

from sae_kit.formats.sites import layer_of, module_of_site, site_of_module, site_order


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("h.3", "blocks.3.hook_resid_post"),
        ("h.11.mlp", "blocks.11.hook_mlp_out"),
        ("h.0.attn", "blocks.0.hook_attn_out"),
        ("h.2.mlp.act", "blocks.2.mlp.hook_post"),
        ("wte", "hook_embed"),
    ],
)
def test_modules_of_gpt2_and_sites_name_each_other(module, site):
    assert site_of_module(module) == site
    assert module_of_site(site) == module
    assert site_of_module(f"transformer.{module}") == site


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("layers.7", "blocks.7.hook_resid_post"),
        ("model.layers.7.self_attn", "blocks.7.hook_attn_out"),
        ("layers.0.mlp.act_fn", "blocks.0.mlp.hook_post"),
        ("embed_tokens", "hook_embed"),
        ("h.x", None),
        ("h.3.ln_1", None),
        ("h.3.mlp.c_fc", None),
        ("blocks.3", None),
        ("", None),
    ],
)
def test_other_modules(module, site):
    assert site_of_module(module) == site


@pytest.mark.parametrize("site", ["blocks.3.hook_resid_pre", "blocks.3.attn.hook_z", "ln_final"])
def test_sites_inside_modules_have_none(site):
    assert module_of_site(site) is None


def test_layers():
    assert layer_of("blocks.12.attn.hook_z") == 12
    assert layer_of("hook_embed") is None


def test_order_is_that_of_computation():
    order = ["hook_embed", "blocks.2.hook_resid_pre", "blocks.2.hook_mlp_out", "blocks.10.x"]
    assert sorted(set(order), key=site_order) == order
