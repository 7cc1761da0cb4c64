import math

import numpy as np
import pytest
import torch
from format_samples.gemma_scope import D_IN, D_SAE, RES, SECOND, contents, save_npz, save_second
from torch.testing import assert_close

from sae_kit.formats import inspect_sae, load_sae, load_saes
from sae_kit.sae.jumprelu import JumpReLUConfig


def reference(w, x):
    """Code and output by plain algebra; b_dec is not subtracted."""
    z = x @ w["W_enc"] + w["b_enc"]
    code = torch.where(z > w["threshold"], z, 0.0)
    recon = code @ w["W_dec"] + w["b_dec"]
    skip = w.get("affine_skip_connection")
    return code, recon if skip is None else recon + x @ skip


@pytest.fixture
def x():
    return torch.randn(60, D_IN, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("lower", [False, True])
def test_archives_compute_what_their_authors_do(save, lower, x, tmp_path):
    w = contents()
    named = {name.lower() if lower else name: tensor for name, tensor in w.items()}
    sae = load_sae(save_npz(tmp_path / RES, named, save))
    code, recon = reference(w, x)
    assert sae.config == JumpReLUConfig(d_sae=D_SAE, apply_b_dec_to_input=False)
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), recon, atol=1e-5, rtol=1e-5)
    assert "conversions" not in sae.metadata
    assert (sae.encode(x) - reference(w, x - w["b_dec"])[0]).abs().max() > 0.1


def test_embeddings_are_read_as_gemma_scales_them(x, tmp_path):
    w = contents()
    folder = tmp_path / "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    sae = load_sae(save_npz(folder, w))
    root = math.sqrt(D_IN)
    code, recon = reference(w | {"W_enc": w["W_enc"] / root, "W_dec": w["W_dec"] * root}, x)
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), recon, atol=1e-5, rtol=1e-5)
    assert sae.metadata["hook_name"] == "hook_embed"
    assert "sqrt(d_in)" in sae.metadata["conversions"][0]


@pytest.mark.parametrize(
    ("path", "site", "model", "out"),
    [
        (RES, "blocks.20.hook_resid_post", "gemma-2-2b", None),
        ("gemma-scope-9b-it-res/layer_9/a", "blocks.9.hook_resid_post", "gemma-2-9b-it", None),
        ("gemma-scope-2b-pt-mlp/layer_3/a", "blocks.3.hook_mlp_out", "gemma-2-2b", None),
        ("gemma-scope-27b-pt-att/layer_0/a", "blocks.0.attn.hook_z", "gemma-2-27b", None),
        (
            "gemma-scope-2b-pt-transcoders/layer_3/a",
            "blocks.3.ln2.hook_normalized",
            "gemma-2-2b",
            "blocks.3.hook_mlp_out",
        ),
        ("elsewhere/layer_3/a", None, None, None),
        (f"layer_7/embedding/transcoders/{RES}", "blocks.20.hook_resid_post", "gemma-2-2b", None),
    ],
)
def test_sites_and_models_are_those_of_paths(path, site, model, out, tmp_path):
    info = inspect_sae(save_npz(tmp_path / path, contents()))
    assert info.site == site
    assert info.metadata.get("model_name") == model
    assert info.metadata.get("hook_name_out") == out
    assert info.d_out == (D_IN if out else None)
    assert info.tensors["W_enc"] == ("F32", (D_IN, D_SAE))


@pytest.mark.parametrize("skip", [True, False])
def test_transcoders_of_the_second_may_skip(skip, x, tmp_path):
    w = contents(7, skip=skip)
    folder = tmp_path / "google/gemma-scope-2-270m-pt/transcoder/layer_5_width_16k"
    sae = load_sae(save_second(folder, w, architecture="jump_relu", hf_hook_point_in="a.b"))
    code, recon = reference(w, x)
    assert sae.is_transcoder
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), recon, atol=1e-5, rtol=1e-5)
    assert (
        sae.metadata.items()
        >= {
            "model_name": "google/gemma-3-270m",
            "hook_name": "blocks.5.hook_mlp_in",
            "hook_name_out": "blocks.5.hook_mlp_out",
            "hf_hook_name": "a.b",
        }.items()
    )


def test_autoencoders_of_the_second(x, tmp_path):
    w = contents()
    sae = load_sae(save_second(tmp_path / SECOND, w))
    assert_close(sae(x), reference(w, x)[1], atol=1e-5, rtol=1e-5)
    assert not sae.is_transcoder
    assert sae.metadata["hook_name"] == "blocks.9.hook_resid_post"
    assert sae.metadata["model_name"] == "google/gemma-3-1b-it"


def test_half_precision_is_widened(x, tmp_path):
    w = {name: tensor.bfloat16() for name, tensor in contents().items()}
    sae = load_sae(save_second(tmp_path / SECOND, w))
    wide = {name: tensor.float() for name, tensor in w.items()}
    assert sae.W_dec.dtype == torch.float32
    assert_close(sae(x), reference(wide, x)[1], atol=1e-5, rtol=1e-5)


def test_layers_of_a_repository(tmp_path):
    for layer in (3, 20):
        folder = f"google/gemma-scope-2b-pt-res/layer_{layer}/width_16k/average_l0_71"
        save_npz(tmp_path / folder, contents())
    assert list(load_saes(tmp_path, layers=[20])) == ["blocks.20.hook_resid_post"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_dec": torch.zeros(D_IN, D_SAE)}, r"w_dec has shape \(9, 20\)"),
        ({"W_enc": torch.zeros(D_SAE, D_IN)}, r"w_enc has shape \(20, 9\)"),
        ({"W_enc": torch.zeros(())}, r"w_enc has shape \(\)"),
        ({"W_dec": torch.zeros(D_SAE, 2, D_IN)}, "is a cross-layer transcoder"),
        ({"threshold": torch.zeros(D_SAE, dtype=torch.int32)}, "threshold has type I32"),
        ({"threshold": None}, r"missing tensors \['threshold'\]"),
        ({"b_enc": None}, "has no tensor b_enc"),
        ({"w_enc": torch.zeros(D_IN, D_SAE)}, "see which of the same name are meant"),
        ({"b_dec": torch.full((D_IN,), torch.nan)}, "b_dec holds NaN"),
    ],
)
def test_wrong_tensors_are_named(changes, message, tmp_path):
    w = {name: tensor for name, tensor in (contents() | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load_sae(save_npz(tmp_path / RES, w))


def test_other_architectures_are_refused(tmp_path):
    folder = save_second(tmp_path / SECOND, contents(), architecture="topk")
    with pytest.raises(ValueError, match=r"config\.json: architecture is 'topk'"):
        load_sae(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_files_are_named(share, tmp_path):
    for folder, name in (
        (save_npz(tmp_path / RES, contents()), "params.npz"),
        (save_second(tmp_path / SECOND, contents()), "params.safetensors"),
    ):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(ValueError, match=rf"{name}: is (damaged|no zip)"):
            load_sae(folder)
