import math

import pytest
import torch
from format_samples.llama_scope import (
    D_IN,
    D_SAE,
    HYPER,
    NORM,
    NORM_NAME,
    SITE,
    contents,
    letters,
    modules,
    new_threshold_of,
    save_first,
    save_later,
    threshold_of,
)
from safetensors.torch import save_file
from torch.testing import assert_close

from sae_kit.formats import inspect_sae, load_sae, load_saes
from sae_kit.sae.jumprelu import JumpReLUConfig
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

SCALE = math.sqrt(D_IN) / NORM


def reference(w, x, *, threshold, scale=SCALE, norms=None):
    """Code and output by plain algebra."""
    z = x * scale @ w["W_enc"] + w["b_enc"]
    code = torch.where((z if norms is None else z * norms) > threshold, z, 0.0)
    return code, (code @ w["W_dec"] + w["b_dec"]) / scale


def check(sae, x, expected):
    code, recon = expected
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), recon, atol=1e-5, rtol=1e-5)


@pytest.fixture
def x():
    return torch.randn(60, D_IN, generator=torch.Generator().manual_seed(5)) * 2


# --- the first layout -----------------------------------------------------------------------------


def test_scale_and_threshold_are_folded(x, tmp_path):
    w = contents()
    sae = load_sae(save_first(tmp_path / "Llama3_1-8B-Base-L7R-8x", modules(w)))
    check(sae, x, reference(w, x, threshold=0.7 * SCALE))
    assert sae.config == JumpReLUConfig(d_sae=D_SAE, apply_b_dec_to_input=False)
    assert sae.metadata["hook_name"] == SITE
    assert sae.metadata["model_name"] == "meta-llama/Llama-3.1-8B"
    assert sae.metadata["conversions"] == [
        "input scale sqrt(d_in) / mean norm folded into the weights",
        "one threshold, for inputs as they are, given to every latent",
    ]
    unfolded = reference(w, x, threshold=0.7, scale=1.0)
    assert (sae(x) - unfolded[1]).abs().max() > 0.1
    assert (sae.encode(x) - reference(w, x, threshold=0.7)[0]).abs().max() > 0.1


def test_half_precision_is_widened_before_it_is_scaled(x, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in contents().items()}
    sae = load_sae(save_first(tmp_path, modules(half)))
    wide = {name: tensor.float() for name, tensor in half.items()}
    check(sae, x, reference(wide, x, threshold=0.7 * SCALE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_average_activation_norm": None}, "activation_norm is None; it must have the"),
        ({"dataset_average_activation_norm": {"in": 0}}, "activation_norm: in is 0"),
        ({"jump_relu_threshold": "0.7"}, "jump_relu_threshold is '0.7'; it must be a positive"),
        ({"d_model": 9}, r"decoder\.\w+ has shape .*d_model=9"),
        ({"d_sae": 23}, r"coder\.\w+ has shape .*23 latents"),
        ({"norm_activation": "batch-wise"}, "norm_activation is 'batch-wise'; only dataset-wise"),
        ({"norm_activation": ["none"]}, "norm_activation is"),
        ({"hook_point_in": None}, "hook_point_in is None"),
    ],
)
def test_what_is_not_understood_is_refused(changes, message, tmp_path):
    folder = save_first(tmp_path, modules(contents()), HYPER | changes)
    for open_ in (load_sae, inspect_sae):
        with pytest.raises(ValueError, match=message):
            open_(folder)


# --- the later layout -----------------------------------------------------------------------------


def test_thresholds_are_logarithms(x, tmp_path):
    """R1-Distill."""
    w = contents()
    sae = load_sae(save_later(tmp_path, modules(w) | threshold_of(w)))
    check(sae, x, reference(w, x, threshold=w["log_threshold"].exp()))


def test_decoder_norms_are_taken_into_thresholds(x, tmp_path):
    """Llamascopium."""
    w = contents()
    held = letters(w) | new_threshold_of(w)
    norms = w["W_dec"].norm(dim=-1)
    sae = load_sae(save_later(tmp_path, held, sparsity_include_decoder_norm=True))
    line = w["log_threshold"].exp()
    check(sae, x, reference(w, x, threshold=line, norms=norms))
    assert "decoder norms taken into the thresholds" in sae.metadata["conversions"]
    assert (sae.encode(x) - reference(w, x, threshold=line)[0]).abs().max() > 0.1
    plain = load_sae(save_later(tmp_path, held))
    check(plain, x, reference(w, x, threshold=line))


@pytest.mark.parametrize("has_norms", [True, False])
def test_topk(has_norms, x, tmp_path):
    """Where norms decide, codes are those of the library's own inference: of unit decoder rows."""
    w, k = contents(), 3
    settings = {"act_fn": "topk", "top_k": k, "sparsity_include_decoder_norm": has_norms}
    sae = load_sae(save_later(tmp_path, letters(w), **settings))
    norms = w["W_dec"].norm(dim=-1) if has_norms else torch.ones(D_SAE)
    z = (x * SCALE @ w["W_enc"] + w["b_enc"]) * norms
    code = torch.where(z >= z.topk(k).values[:, -1:], z, 0.0).clamp_min(0)
    check(sae, x, (code, (code / norms @ w["W_dec"] + w["b_dec"]) / SCALE))
    assert sae.config == TopKConfig(d_sae=D_SAE, k=k, apply_b_dec_to_input=False)


def test_relu_by_row(x, tmp_path):
    w = contents()
    folder = save_later(
        tmp_path, letters(w), norm=None, act_fn="relu", norm_activation="token-wise"
    )
    sae = load_sae(folder)
    scale = math.sqrt(D_IN) / x.norm(dim=-1, keepdim=True)
    code = (x * scale @ w["W_enc"] + w["b_enc"]).clamp_min(0)
    check(sae, x, (code, (code @ w["W_dec"] + w["b_dec"]) / scale))
    assert sae.config == ReLUConfig(d_sae=D_SAE, apply_b_dec_to_input=False)


def test_without_decoder_bias_and_scale(x, tmp_path):
    w = contents()
    held = letters(w) | new_threshold_of(w)
    del held["b_D"]
    settings = {"use_decoder_bias": False, "norm_activation": "inference"}
    sae = load_sae(save_later(tmp_path, held, norm=None, **settings))
    w["b_dec"] = torch.zeros(D_IN)
    check(sae, x, reference(w, x, threshold=w["log_threshold"].exp(), scale=1.0))
    assert "conversions" not in sae.metadata


def test_a_scale_that_is_not_stored_is_asked_for(x, tmp_path):
    w = contents()
    folder = save_later(tmp_path, modules(w) | threshold_of(w), norm=None)
    assert inspect_sae(folder).needs_input_scale
    with pytest.raises(ValueError, match="give load_sae"):
        load_sae(folder)
    check(
        load_sae(folder, input_scale=SCALE), x, reference(w, x, threshold=w["log_threshold"].exp())
    )


def test_transcoders_have_two_scales(x, tmp_path):
    w, out = contents(), "blocks.7.hook_mlp_out"
    held = letters(w) | new_threshold_of(w)
    held[f"dataset_average_activation_norm.{out}"] = torch.tensor(2.0)
    sae = load_sae(save_later(tmp_path, held, hook_point_out=out))
    code, recon = reference(w, x, threshold=w["log_threshold"].exp())
    check(sae, x, (code, recon * SCALE / (math.sqrt(D_IN) / 2.0)))
    assert sae.is_transcoder
    assert sae.metadata["hook_name_out"] == out


def test_folders_of_a_repository(tmp_path):
    w = contents()
    for layer in (2, 11):
        config = HYPER | {"hook_point_in": f"blocks.{layer}.hook_mlp_out", "hook_point_out": None}
        save_first(tmp_path / f"Llama3_1-8B-Base-L{layer}M-8x", modules(w), config)
    save_later(tmp_path / "L7R", modules(w) | threshold_of(w))
    assert list(load_saes(tmp_path)) == ["blocks.2.hook_mlp_out", SITE, "blocks.11.hook_mlp_out"]


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({"W_D": torch.zeros(D_IN, D_SAE)}, {}, r"W_D has shape \(8, 24\)"),
        ({"W_E": torch.zeros(D_SAE, D_IN)}, {}, r"W_E has shape \(24, 8\)"),
        ({NORM_NAME: torch.ones(3)}, {}, "unknown tensors"),
        ({NORM_NAME: torch.tensor(-1.0)}, {}, r"activation_norm\.blocks.* is -1.0"),
        ({NORM_NAME: torch.tensor(1)}, {}, "has type I64"),
        ({"W_D": torch.zeros(D_SAE, D_IN)}, {"sparsity_include_decoder_norm": True}, "of norm 0"),
        ({}, {"sae_type": "crosscoder"}, "sae_type is 'crosscoder'"),
        ({}, {"use_glu_encoder": True}, "use_glu_encoder is true"),
        ({}, {"act_fn": "batchtopk"}, "act_fn is 'batchtopk'; only jumprelu"),
        ({}, {"act_fn": "topk", "top_k": 3}, "unknown tensors"),
        ({}, {"expansion_factor": "8"}, "expansion_factor is '8'"),
        ({}, {"expansion_factor": 1e308}, "W_D has shape|W_E has shape|b_E has shape"),
        ({}, {"d_model": 10**400}, "d_model is 1000"),
        ({}, {"apply_decoder_bias_to_pre_encoder": 1}, "apply_b_dec_to_input: expected"),
        ({}, {"hook_point_out": "blocks.7.hook_mlp_out"}, "has no dataset_average"),
    ],
)
def test_what_is_not_understood_is_refused_later(tensors, changes, message, tmp_path):
    w = contents()
    folder = save_later(tmp_path, letters(w) | new_threshold_of(w), **changes)
    if tensors:
        held = letters(w) | new_threshold_of(w) | {NORM_NAME: torch.tensor(NORM)} | tensors
        save_file(held, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=message):
        load_sae(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_files_are_named(share, tmp_path):
    file = save_first(tmp_path, modules(contents())) / "checkpoints" / "final.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"final\.safetensors: is damaged"):
        load_sae(tmp_path)
