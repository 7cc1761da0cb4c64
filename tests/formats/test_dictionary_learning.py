import json
from dataclasses import replace

import pytest
import torch
from format_samples.dictionary_learning import D, F, K, theirs
from torch.testing import assert_close

from sae_kit.formats import inspect_sae, load_sae, load_saes, save_sae
from sae_kit.formats.dictionary_learning_config import CLASSES
from sae_kit.sae.batch_topk import BatchTopKConfig
from sae_kit.sae.gated import GatedConfig
from sae_kit.sae.groupmax import GroupMaxConfig
from sae_kit.sae.jumprelu import JumpReLUConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig
from sae_kit.sae.p_anneal import PAnnealConfig
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.relu_weighted import WeightedReLUConfig
from sae_kit.sae.topk import TopKConfig

METADATA = {"model_name": "demo", "hook_name": "blocks.1.hook_resid_pre", "nested": {"l0": [1.5]}}
CONFIGS = [
    ReLUConfig(d_sae=F, l1_coefficient=0.3),
    WeightedReLUConfig(d_sae=F, l1_coefficient=0.3),
    PAnnealConfig(d_sae=F, p_end=0.4),
    GatedConfig(d_sae=F, l1_coefficient=0.3),
    JumpReLUConfig(d_sae=F, target_l0=3.0, bandwidth=0.5),
    TopKConfig(d_sae=F, k=K, k_aux=2),
    BatchTopKConfig(d_sae=F, k=K, row_warmup=0.5),
    MatryoshkaConfig(d_sae=F, k=K, group_fractions=(0.25, 0.75)),
]
BOTH = [
    replace(config, apply_b_dec_to_input=value) for config in CONFIGS for value in (True, False)
]
CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def name_of(config):
    return f"{config.word}-{'pre-bias' if config.apply_b_dec_to_input else 'plain'}"


def build(config):
    sae = config.build(D, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.3)
        for name, tensor in sae.state_dict().items():
            if name == "threshold":
                tensor.fill_(0.2)
    return sae


def rows(n=9, dtype=torch.float32):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(2), dtype=dtype)


def algebra(dict_class, w, x):
    """Code and reconstruction, class by class, as dictionary_learning computes them."""
    centred = x if dict_class in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - w["b_dec"]
    product = centred @ w["W_enc"]
    pre = product + w["b_enc"]
    if dict_class == "GatedAutoEncoder":
        code = (pre > 0) * (product * w["r_mag"].exp() + w["b_mag"]).relu()
    elif dict_class == "AutoEncoderTopK":
        code = torch.where(pre >= pre.topk(K).values[:, -1:], pre, 0.0).relu()
    elif dict_class in ("AutoEncoder", "AutoEncoderNew"):
        code = pre.relu()
    else:
        code = torch.where(pre > w["threshold"], pre, 0.0).relu()
    recon = code @ w["W_dec"] + w["b_dec"]
    if dict_class == "AutoEncoder":
        code = code * w["W_dec"].norm(dim=-1)
    return code, recon


# --- round trip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", BOTH, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(config, dtype, tmp_path):
    sae = build(config).to(dtype)
    folder = tmp_path / "new" / "trainer_0"
    save_sae(sae, folder, metadata=METADATA, format="dictionary_learning")
    again = load_sae(folder)
    assert type(again) is type(sae)
    assert again.config == config
    assert again.metadata == METADATA
    for name, tensor in sae.inference().weights.items():
        found = again.weights()[name]
        assert found.dtype == dtype
        if name in ("b_enc", "b_mag"):  # b_dec may have been taken into it, and out again
            assert_close(found, tensor, **CLOSE)
        else:
            assert torch.equal(found, tensor), name
    x = rows(dtype=dtype)
    assert_close(again.encode(x), sae.encode(x), **CLOSE)
    assert_close(again(x), sae(x), **CLOSE)
    assert sae.encode(x).any()
    info = inspect_sae(folder)
    assert (info.format, info.config, info.d_in) == ("dictionary_learning", config, D)


def test_what_needs_no_moving_of_b_dec_comes_back_bit_exact(tmp_path):
    for config in (CONFIGS[3], CONFIGS[5], CONFIGS[6], CONFIGS[7]):
        sae = build(config)
        save_sae(sae, tmp_path, metadata={}, format="dictionary_learning")
        again = load_sae(tmp_path)
        for name, tensor in sae.weights().items():
            assert torch.equal(again.weights()[name], tensor), name


def unit(config):
    sae = build(config)
    sae.after_step()
    return sae


def own_thresholds():
    sae = build(CONFIGS[6])
    sae.threshold[0] = 0.7
    return sae


@pytest.mark.parametrize(
    ("sae", "dict_class"),
    [
        (unit(CONFIGS[0]), "AutoEncoder"),
        (unit(BOTH[1]), "AutoEncoderNew"),  # b_dec is not subtracted
        (build(CONFIGS[0]), "AutoEncoderNew"),  # its loader would scale an AutoEncoder's codes
        (build(CONFIGS[3]), "GatedAutoEncoder"),
        (build(replace(CONFIGS[3], apply_b_dec_to_input=False)), "GatedAutoEncoder"),
        (build(CONFIGS[4]), "JumpReluAutoEncoder"),
        (build(CONFIGS[5]), "AutoEncoderTopK"),
        (build(replace(CONFIGS[5], apply_b_dec_to_input=False)), "AutoEncoderTopK"),
        (build(CONFIGS[6]), "BatchTopKSAE"),
        (own_thresholds(), "JumpReluAutoEncoder"),
        (build(CONFIGS[7]), "MatryoshkaBatchTopKSAE"),
    ],
)
def test_written_classes_compute_codes_and_outputs(sae, dict_class, tmp_path):
    """By what is in the files alone, read with torch."""
    save_sae(sae, tmp_path, metadata=METADATA, format="dictionary_learning")
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert trainer["dict_class"] == dict_class
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    w = {
        ours: state[name].T if name.endswith(".weight") else state[name]
        for ours, name in CLASSES[dict_class].names.items()
    }
    w.setdefault("threshold", state.get("threshold"))
    code, recon = algebra(dict_class, w, rows())
    assert_close(code, sae.encode(rows()), **CLOSE)
    assert_close(recon, sae(rows()), **CLOSE)
    assert (state.get("k"), trainer.get("k")) == ((K, K) if "k" in trainer else (None, None))


def test_a_file_without_our_record_is_opened_as_what_it_computes(tmp_path):
    sae = build(CONFIGS[5])
    save_sae(sae, tmp_path, metadata=METADATA, format="dictionary_learning")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sae_kit"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = load_sae(tmp_path)
    assert other.config == TopKConfig(d_sae=F, k=K)  # training fields at their defaults
    assert other.metadata["model_name"] == "demo"
    assert torch.equal(other(rows()), sae(rows()))


# --- files of dictionary_learning -----------------------------------------------------------------


@pytest.mark.parametrize("dict_class", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_those_of_the_algebra(dict_class, dtype, tmp_path):
    """b_dec subtracted where it is not, a transposed decoder, TopK taken for ReLU: each changes
    these numbers.
    """
    w, x = theirs(tmp_path, dict_class, dtype=dtype), rows(50)
    sae = load_sae(tmp_path)
    code, recon = algebra(dict_class, w, x)
    assert_close(sae.encode(x), code, **CLOSE)
    assert_close(sae(x), recon, **CLOSE)
    assert sae.config.word == CLASSES[dict_class].trained_as
    assert sae.W_dec.dtype == torch.float32
    assert sae.metadata["model_name"] == "gpt2"


@pytest.mark.parametrize("dict_class", CLASSES)
def test_stopped_runs_are_for_inputs_over_the_norm_factor(dict_class, tmp_path):
    """What they compute for x is what the run computed for x / norm_factor, in units of x."""
    factor, x = 2.5, rows(50)
    w = theirs(tmp_path, dict_class, norm_factor=factor)
    sae = load_sae(tmp_path)
    code, recon = algebra(dict_class, w, x / factor)
    assert_close(sae.encode(x), code * factor, **CLOSE)
    assert_close(sae(x), recon * factor, **CLOSE)
    said = inspect_sae(tmp_path).conversions[0]
    assert said == "biases multiplied by norm_factor 2.5, as at the end of a run"
    assert sae.metadata["conversions"][0] == said


def test_stopped_run_without_normalisation_is_as_it_is(tmp_path):
    w = theirs(tmp_path, "AutoEncoderTopK", norm_factor=1.0)
    contents = torch.load(tmp_path / "ae.pt", weights_only=True)
    torch.save(contents | {"norm_factor": None}, tmp_path / "ae.pt")
    sae = load_sae(tmp_path)
    assert_close(sae(rows()), algebra("AutoEncoderTopK", w, rows())[1])
    assert "conversions" not in sae.metadata


@pytest.mark.parametrize("dict_class", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_of_minus_1_is_unset(dict_class, tmp_path):
    w = theirs(tmp_path, dict_class, threshold=-1.0)
    sae, x = load_sae(tmp_path), rows(50)
    assert_close(sae.encode(x), algebra(dict_class, w, x)[0])
    assert (sae.threshold == 0).all()


def test_threshold_of_topk_is_not_in_use(tmp_path):
    with_, without = (
        theirs(tmp_path / str(threshold), "AutoEncoderTopK", threshold=threshold)
        for threshold in (5.0, -1.0)
    )
    assert torch.equal(with_["W_enc"], without["W_enc"])
    x = rows(50)
    assert torch.equal(load_sae(tmp_path / "5.0").encode(x), load_sae(tmp_path / "-1.0").encode(x))


def test_decoder_of_an_autoencoder_is_normalised_and_reported(tmp_path):
    w = theirs(tmp_path, "AutoEncoder")
    sae = load_sae(tmp_path)
    assert_close(sae.W_dec.norm(dim=-1), torch.ones(F))
    assert not torch.allclose(sae.W_enc, w["W_enc"])
    said = "decoder columns scaled to norm 1, and codes with them, as its loader does"
    assert list(inspect_sae(tmp_path).conversions) == sae.metadata["conversions"] == [said]
    for other in ("AutoEncoderNew", "GatedAutoEncoder"):
        w = theirs(tmp_path / other, other)
        assert torch.equal(load_sae(tmp_path / other).W_dec, w["W_dec"])


def test_decoder_of_norm_0_is_refused(tmp_path):
    theirs(tmp_path, "AutoEncoder")
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    state["decoder.weight"][:, 2] = 0
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt: a decoder column has norm 0"):
        load_sae(tmp_path)


@pytest.mark.parametrize("absent", ["k", "threshold"])
def test_older_topk_files_lack_buffers(absent, tmp_path):
    w = theirs(tmp_path, "AutoEncoderTopK")
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    del state[absent]
    torch.save(state, tmp_path / "ae.pt")
    assert_close(load_sae(tmp_path)(rows()), algebra("AutoEncoderTopK", w, rows())[1])


def test_groups_are_read(tmp_path):
    theirs(tmp_path, "MatryoshkaBatchTopKSAE")
    config = load_sae(tmp_path).config
    assert isinstance(config, MatryoshkaConfig)
    assert config.prefixes == (4, 12)


def test_runs_are_opened_by_layer(tmp_path):
    for layer in (11, 2):
        theirs(tmp_path / f"resid_post_layer_{layer}" / "trainer_0", "AutoEncoderTopK")
    assert list(load_saes(tmp_path)) == ["blocks.2.hook_resid_post", "blocks.11.hook_resid_post"]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dict_class", "tensors", "message"),
    [
        (
            "AutoEncoder",
            {"decoder.weight": torch.zeros(F, D)},
            r"decoder\.weight has shape \(12,",
        ),
        (
            "JumpReluAutoEncoder",
            {"W_dec": torch.zeros(D, F)},
            r"W_dec has shape \(4, 12\).*\(12,",
        ),
        ("AutoEncoderTopK", {"encoder.weight": torch.zeros(D, F)}, r"encoder\.weight has shape"),
        ("AutoEncoderNew", {"decoder.bias": None}, r"missing tensors \['decoder\.bias'\]"),
        ("BatchTopKSAE", {"threshold": None}, r"missing tensors \['threshold'\]"),
        ("AutoEncoder", {"r_mag": torch.zeros(F)}, r"unknown tensors \['r_mag'\]"),
        ("GatedAutoEncoder", {"threshold": torch.zeros(())}, r"unknown tensors \['threshold'\]"),
        ("AutoEncoder", {"bias": torch.zeros(D, dtype=torch.int32)}, "bias has type I32"),
        ("AutoEncoder", {"bias": [0.0] * D}, "bias is a list; give the state_dict alone"),
        ("AutoEncoderTopK", {"k": torch.tensor(3.0)}, "k is F32 of shape"),
        ("AutoEncoderTopK", {"k": torch.tensor([3])}, "k is I64 of shape"),
        ("AutoEncoderTopK", {"k": torch.tensor(4)}, "k is 4, and 3 in its config"),
        (
            "MatryoshkaBatchTopKSAE",
            {"group_sizes": torch.tensor([6, 6])},
            r"group_sizes is \[6, 6\], and \[4, 8\] in its config",
        ),
        ("AutoEncoder", {"bias": torch.full((D,), float("nan"))}, "b_dec holds NaN"),
    ],
)
def test_wrong_tensors_are_named(dict_class, tensors, message, tmp_path):
    theirs(tmp_path, dict_class)
    state = torch.load(tmp_path / "ae.pt", weights_only=True) | tensors
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path)


@pytest.mark.parametrize("other", [name for name in CLASSES if name != "AutoEncoder"])
def test_a_wrong_class_is_named(other, tmp_path):
    theirs(tmp_path, "AutoEncoder")
    settings = {"dict_class": other, "activation_dim": D, "dict_size": F, "k": K}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": settings}))
    with pytest.raises(ValueError, match=r"ae\.pt: missing tensors"):
        load_sae(tmp_path)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), 10**400, "2", torch.tensor(2.0)])
def test_impossible_norm_factor_is_named(factor, tmp_path):
    theirs(tmp_path, "AutoEncoder", norm_factor=factor)
    with pytest.raises(ValueError, match=r"ae\.pt: norm_factor is .* positive number"):
        inspect_sae(tmp_path)


def test_names_of_a_stopped_run_are_texts(tmp_path):
    theirs(tmp_path, "AutoEncoder", norm_factor=2.0)
    contents = torch.load(tmp_path / "ae.pt", weights_only=True)
    contents["ae"][7] = torch.ones(2)
    torch.save(contents, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt: 7 is a Tensor; give the state_dict alone"):
        inspect_sae(tmp_path)


def test_missing_config_and_truncated_weights_are_named(tmp_path):
    theirs(tmp_path, "AutoEncoder")
    path = tmp_path / "ae.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"ae\.pt: "):
        load_sae(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: is missing; put it beside"):
        load_sae(tmp_path)


@pytest.mark.parametrize("key", ["k", "dict_class"])
def test_files_edited_beside_our_record_are_refused(key, tmp_path):
    save_sae(build(CONFIGS[6]), tmp_path, metadata={}, format="dictionary_learning")
    config = json.loads((tmp_path / "config.json").read_text())
    config["trainer"][key] = {"k": 2, "dict_class": "AutoEncoderTopK"}[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"k is 3, and 2 in its config|sae_kit makes .* of"):
        load_sae(tmp_path)


def layer_normed():
    sae = build(CONFIGS[5])
    sae.normalization = "layer_norm"
    return sae


def transcoder():
    config = TopKConfig(d_sae=F, k=K, apply_b_dec_to_input=False)
    return config.build(D, D, generator=torch.Generator())


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (build(GroupMaxConfig(d_sae=F, k=K)), "arch: dictionary_learning cannot .* 'groupmax'"),
        (layer_normed(), "normalization: dictionary_learning cannot express 'topk' with 'layer_n"),
        (transcoder(), "d_out: dictionary_learning has no class for the transcoder 'topk'"),
    ],
)
def test_what_dictionary_learning_cannot_express_is_refused(sae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_sae(sae, tmp_path / "x", metadata={}, format="dictionary_learning")
    assert not (tmp_path / "x").exists()


def test_frequencies_and_odd_metadata_are_refused(tmp_path):
    given = {"format": "dictionary_learning"}
    with pytest.raises(ValueError, match="sparsity: dictionary_learning has no place"):
        save_sae(build(CONFIGS[5]), tmp_path / "x", sparsity=torch.zeros(F), **given)
    with pytest.raises(ValueError, match=r"metadata: .*JSON values only"):
        save_sae(build(CONFIGS[5]), tmp_path / "x", metadata={"a": object()}, **given)
    assert not (tmp_path / "x").exists()
