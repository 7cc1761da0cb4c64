import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_kit.formats import inspect_sae, load_sae, save_sae
from sae_kit.sae import Inference, SAEConfig
from sae_kit.sae.batch_topk import BatchTopKConfig
from sae_kit.sae.gated import GatedConfig
from sae_kit.sae.groupmax import GroupMaxConfig
from sae_kit.sae.jumprelu import JumpReLUConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig
from sae_kit.sae.p_anneal import PAnnealConfig
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.relu_weighted import WeightedReLUConfig
from sae_kit.sae.topk import TopKConfig, TopKSAE

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "saelens_v3"
METADATA = {"model_name": "demo", "hook_name": "blocks.1.hook_resid_pre", "prepend_bos": True}
CONFIGS = [
    ReLUConfig(d_sae=7, l1_coefficient=0.3, l1_warmup=0.25, apply_b_dec_to_input=False),
    TopKConfig(d_sae=7, k=3, k_aux=2, aux_coefficient=0.1),
    BatchTopKConfig(d_sae=7, k=3, row_warmup=0.5),
    MatryoshkaConfig(d_sae=7, k=3, group_fractions=(0.4, 0.6)),
    JumpReLUConfig(d_sae=7, target_l0=3.0, bandwidth=0.5),
    GatedConfig(d_sae=7, l1_coefficient=0.3),
    WeightedReLUConfig(d_sae=7, l1_coefficient=0.3),
    PAnnealConfig(d_sae=7, p_end=0.4),
    GroupMaxConfig(d_sae=7, k=1, k_aux=2),
]
TRANSCODERS = [
    replace(config, apply_b_dec_to_input=False, skip=skip)
    for config in CONFIGS
    for skip in (True, False)
]


def build(config, d_in=4, d_out=None):
    sae = config.build(d_in, d_out, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
        for tensor in (*sae.buffers(), *(p for n, p in sae.named_parameters() if n == "threshold")):
            tensor.fill_(0.2)
    return sae


def name_of(config):
    return f"{config.word}{'-skip' if config.skip else ''}"


@pytest.fixture
def saved(tmp_path):
    save_sae(build(CONFIGS[1]), tmp_path, metadata=METADATA)
    return tmp_path


def edit(folder, **changes):
    """Change keys of cfg.json; a value of None removes the key."""
    path = folder / "cfg.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))


def edit_weights(folder, **changes):
    """Change tensors; a value of None removes one."""
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


# --- round trip -----------------------------------------------------------------------------------


def test_every_architecture_is_tested():
    assert {config.word for config in CONFIGS} == set(SAEConfig.variants())


@pytest.mark.parametrize(
    ("config", "d_out"),
    [
        *(pytest.param(config, None, id=config.word) for config in CONFIGS),
        *(pytest.param(config, 5, id=f"transcoder-{name_of(config)}") for config in TRANSCODERS),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_bit_exact(config, d_out, dtype, tmp_path):
    sae = build(config, d_out=d_out).to(dtype)
    save_sae(sae, tmp_path / "new" / "folder", metadata=METADATA)
    again = load_sae(tmp_path / "new" / "folder")
    assert type(again) is type(sae)
    assert again.config == config
    assert again.metadata == METADATA
    for name, tensor in sae.weights().items():
        assert torch.equal(again.weights()[name], tensor), name
        assert again.weights()[name].dtype == dtype
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(2), dtype=dtype)
    assert torch.equal(again(x), sae(x))
    assert sae.encode(x).any()
    info = inspect_sae(tmp_path / "new" / "folder")
    assert (info.config, info.d_in, info.d_out) == (config, 4, d_out)


def test_saving_what_was_loaded_changes_nothing(saved, tmp_path):
    sae = load_sae(saved)
    save_sae(sae, tmp_path / "again", metadata=sae.metadata)
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_files_hold_the_documented_names_shapes_and_values(tmp_path):
    sae = build(CONFIGS[1])
    frequency = torch.tensor([0.0, 1.0, 0.5, 0.1, 0.0, 0.0, 0.25])
    save_sae(sae, tmp_path, metadata=METADATA, sparsity=frequency)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "W_enc": (4, 7),
        "W_dec": (7, 4),
        "b_enc": (7,),
        "b_dec": (4,),
    }
    assert torch.equal(tensors["W_enc"], sae.W_enc)
    sparsity = load_file(tmp_path / "sparsity.safetensors")["sparsity"]
    assert_close(sparsity[:3], torch.tensor([-10.0, 0.0, -0.30103]))
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "topk"
    assert config["k"] == 3
    assert config["rescale_acts_by_decoder_norm"] is False
    assert config["metadata"].items() >= METADATA.items()
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6


@pytest.mark.parametrize(
    ("config", "word", "own"),
    [
        (CONFIGS[0], "standard", ["b_enc"]),
        (CONFIGS[2], "jumprelu", ["b_enc", "threshold"]),
        (CONFIGS[3], "jumprelu", ["b_enc", "threshold"]),
        (CONFIGS[4], "jumprelu", ["b_enc", "threshold"]),
        (CONFIGS[5], "gated", ["b_gate", "b_mag", "r_mag"]),
        (CONFIGS[6], "standard", ["b_enc"]),
        (CONFIGS[7], "standard", ["b_enc"]),
    ],
)
def test_architectures_are_written_as_what_computes_their_outputs(config, word, own, tmp_path):
    sae = build(config)
    save_sae(sae, tmp_path, metadata=METADATA)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert tensors.keys() == {"W_enc", "W_dec", "b_dec", *own}
    assert all(tensors[name].shape == (7,) for name in own)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == word
    edit(tmp_path, metadata={"sae_lens_version": "6.0.0"})  # for a reader that knows no sae_kit
    plain = load_sae(tmp_path)
    assert plain.config.word == {"standard": "relu"}.get(word, word)
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    assert_close(plain.encode(x), sae.encode(x))
    assert_close(plain(x), sae(x))


@pytest.mark.parametrize("config", TRANSCODERS[:6], ids=name_of)
def test_transcoders_have_two_widths(config, tmp_path):
    save_sae(build(config, d_out=5), tmp_path, metadata=METADATA)
    contents = json.loads((tmp_path / "cfg.json").read_text())
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert (contents["d_in"], contents["d_out"]) == (4, 5)
    assert contents["apply_b_dec_to_input"] is False
    assert tensors["W_dec"].shape == (7, 5)
    assert tensors["b_dec"].shape == (5,)
    assert ("W_skip" in tensors) is config.skip
    assert not config.skip or tensors["W_skip"].shape == (5, 4)
    edit(tmp_path, d_out=6)
    with pytest.raises(ValueError, match=r"d_in=4 and d_sae=7 and d_out=6 make it"):
        load_sae(tmp_path)


def test_metadata_that_the_layout_has_a_use_for_comes_back(tmp_path):
    """The version of the layout that a file came with, and a hook_name that is no text."""
    metadata = {"sae_lens_version": "3.4.0", "hook_name": ["a", 3]}
    save_sae(build(CONFIGS[1]), tmp_path, metadata=metadata)
    assert load_sae(tmp_path).metadata == metadata
    assert inspect_sae(tmp_path).site is None


def test_normalised_transcoders_are_refused(tmp_path):
    sae = build(TRANSCODERS[1], d_out=5)
    sae.normalization = "layer_norm"
    with pytest.raises(ValueError, match="SAELens cannot express the transcoder 'relu' with 'laye"):
        save_sae(sae, tmp_path / "x", metadata={})
    assert not (tmp_path / "x").exists()


def test_saving_without_sparsity_removes_that_of_the_sae_replaced(tmp_path):
    sae = build(CONFIGS[1])
    save_sae(sae, tmp_path, metadata={}, sparsity=torch.zeros(7))
    save_sae(sae, tmp_path, metadata={})
    assert not (tmp_path / "sparsity.safetensors").exists()


def test_inspect_reads_no_weights(saved):
    path = saved / "sae_weights.safetensors"
    raw = path.read_bytes()
    n_header = int.from_bytes(raw[:8], "little") + 8
    path.write_bytes(raw[:n_header] + b"\xff" * (len(raw) - n_header))  # all NaN
    info = inspect_sae(saved)
    assert info.config == CONFIGS[1]
    assert (info.d_in, info.site, info.format) == (4, "blocks.1.hook_resid_pre", "saelens")
    assert info.metadata == METADATA
    assert info.tensors["W_enc"] == ("F32", (4, 7))
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        load_sae(saved)


# --- what is refused on saving --------------------------------------------------------------------


@pytest.mark.parametrize("plain", [("temporal", {}), ("topk", {"k": 3, "jitter": 1})])
def test_what_saelens_cannot_express_is_refused(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(TopKSAE, "inference", lambda self: Inference(*plain, self.weights()))
    with pytest.raises(ValueError, match=f"SAELens cannot express '{plain[0]}'"):
        save_sae(build(CONFIGS[1]), tmp_path / "x", metadata={})
    assert not (tmp_path / "x").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    sae = build(CONFIGS[1])
    with torch.no_grad():
        sae.W_dec[0, 0] = float("nan")
    with pytest.raises(ValueError, match="W_dec: holds NaN"):
        save_sae(sae, tmp_path, metadata={})


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_metadata_that_is_not_json_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match=r"metadata: .*JSON values only"):
        save_sae(build(CONFIGS[1]), tmp_path, metadata={"thing": value})


@pytest.mark.parametrize("frequency", [torch.zeros(3), torch.full((7,), -2.0)])
def test_sparsity_must_be_a_frequency_per_latent(frequency, tmp_path):
    with pytest.raises(ValueError, match=r"sparsity: .*\[0, 1\] of 7 latents"):
        save_sae(build(CONFIGS[1]), tmp_path, metadata={}, sparsity=frequency)


# --- what is refused on loading -------------------------------------------------------------------


@pytest.mark.parametrize("open_", [load_sae, inspect_sae])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_truncated_weights_are_named(open_, share, saved):
    path = saved / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors: is damaged or cut short"):
        open_(saved)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_missing_files_are_named(name, saved):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: is missing; put it beside"):
        load_sae(saved)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_config_that_is_no_json_object(text, saved):
    (saved / "cfg.json").write_text(text)
    with pytest.raises(ValueError, match=r"cfg\.json: (cannot be read as JSON|is not a JSON obj)"):
        load_sae(saved)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"W_dec": torch.zeros(4, 7)},
            r"W_dec has shape \(4, 7\), but d_in=4 and d_sae=7 .*\(7, 4",
        ),
        ({"b_enc": None}, r"missing tensors \['b_enc'\], unknown tensors \[\]"),
        ({"threshold": torch.zeros(7)}, r"unknown tensors \['threshold'\]"),
        ({"b_dec": torch.zeros(4, dtype=torch.int32)}, "b_dec has type I32"),
        ({"scaling_factor": torch.ones(4)}, r"scaling_factor has shape \(4,\)"),
    ],
)
def test_wrong_tensors_are_named(tensors, message, saved):
    edit_weights(saved, **tensors)
    with pytest.raises(ValueError, match=rf"sae_weights\.safetensors: .*{message}"):
        load_sae(saved)


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_latents_scaled_after_training_write_as_much(name, saved):
    """Codes stay what they are; what each latent writes is multiplied."""
    before, factor = load_sae(saved), torch.arange(1.0, 8.0)
    edit_weights(saved, **{name: factor})
    after, x = load_sae(saved), torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(after.encode(x), before.encode(x))
    assert_close(after(x), (before.encode(x) * factor) @ before.W_dec + before.b_dec)
    assert after.metadata["conversions"] == [f"{name} multiplied into the decoder"]
    assert inspect_sae(saved).conversions == (f"{name} multiplied into the decoder",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "architecture is 'temporal'; only standard, transcoder"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations is 'covarian"),
        ({"normalize_activations": ["none"]}, "normalize_activations is"),
        ({"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'"),
        (
            {"architecture": "standard", "rescale_acts_by_decoder_norm": True},
            "rescale_acts_by_decoder_norm is True; it can be opened for topk only",
        ),
        ({"k": 4}, "metadata.sae_kit makes .*'k': 3.* of .*'k': 4"),
        ({"apply_b_dec_to_input": False}, "metadata.sae_kit makes"),
        ({"architecture": "standard"}, "metadata.sae_kit makes"),
        ({"k": 99}, "k: 99 does not fit"),
        ({"k": None}, "k: expected int"),
        ({"d_sae": 0}, "d_sae: 0"),
        ({"d_in": "4"}, "d_in: '4' is no width"),
        ({"d_in": True}, "d_in: True is no width"),
        ({"d_in": -4}, "d_in: -4"),
        ({"metadata": {"sae_lens_version": "6.0.0", "sae_kit": {}}}, r"metadata\.sae_kit\.sae"),
        ({"metadata": {"sae_lens_version": "6.0.0", "sae_kit": 3}}, r"metadata\.sae_kit\.sae"),
        (
            {"architecture": "transcoder", "apply_b_dec_to_input": False},
            "d_out: None is no width",
        ),
        ({"architecture": "topk_transcoder", "d_out": 4}, "apply_b_dec_to_input is true"),
    ],
)
def test_what_is_not_understood_is_refused(changes, message, saved):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=rf"cfg\.json: .*{message}"):
        load_sae(saved)


# --- files of other tools -------------------------------------------------------------------------


def test_file_without_our_metadata(saved):
    sae = load_sae(saved)
    edit(saved, metadata={"sae_lens_version": "6.54.12", "hook_name": "somewhere"}, extra_key=1)
    other = load_sae(saved)
    assert other.config == TopKConfig(d_sae=7, k=3)  # training fields at their defaults
    assert other.metadata == {"sae_lens_version": "6.54.12", "hook_name": "somewhere"}
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(other(x), sae(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rescaling_by_decoder_norms_is_folded_in(dtype, saved):
    """Against SAELens' definition: chosen and coded times the norms, decoded over the norms."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (4, 7), "W_dec": (7, 4), "b_enc": (7,), "b_dec": (4,)}
    w = {
        name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()
    }
    edit_weights(saved, **w)
    edit(saved, metadata={"sae_lens_version": "6.0.0"}, rescale_acts_by_decoder_norm=True)
    sae = load_sae(saved)
    x = torch.randn(50, 4, generator=generator, dtype=dtype)
    norms = w["W_dec"].norm(dim=-1)
    pre = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    code = torch.where(pre >= pre.topk(3).values[:, -1:], pre, 0.0).relu()
    assert_close(sae.encode(x), code)
    assert_close(sae(x), (code / norms) @ w["W_dec"] + w["b_dec"])
    assert_close(sae.W_dec.norm(dim=-1), torch.ones(7, dtype=dtype))

    w["W_dec"][2] = 0
    edit_weights(saved, **w)
    with pytest.raises(ValueError, match="divides by decoder rows of norm 0"):
        load_sae(saved)


def test_transcoder_of_others_need_not_say_what_is_clear(tmp_path):
    save_sae(build(TRANSCODERS[1], d_out=5), tmp_path, metadata=METADATA)
    edit(tmp_path, apply_b_dec_to_input=None, metadata={"sae_lens_version": "6.0.0"})
    assert load_sae(tmp_path).config == ReLUConfig(d_sae=7, apply_b_dec_to_input=False)


def test_half_precision_is_widened(saved):
    tensors = load_file(saved / "sae_weights.safetensors")
    edit_weights(saved, **{name: tensor.bfloat16() for name, tensor in tensors.items()})
    sae = load_sae(saved)
    assert sae.W_dec.dtype == torch.float32
    assert torch.equal(sae.W_dec, tensors["W_dec"].bfloat16().float())


def test_old_layout_has_its_own_names_and_defaults(saved):
    old = {
        "d_in": 4,
        "d_sae": 7,
        "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_layer": 3,
        "l1_coefficient": 8e-5,
        "normalize_activations": False,
    }
    (saved / "cfg.json").write_text(json.dumps(old))
    sae = load_sae(saved)
    assert sae.config == ReLUConfig(d_sae=7)  # standard, and b_dec is subtracted
    assert sae.metadata["hook_name"] == "blocks.3.hook_resid_pre"
    assert sae.metadata["prepend_bos"] is True
    assert sae.metadata["l1_coefficient"] == 8e-5


@pytest.mark.parametrize("config", [CONFIGS[4], CONFIGS[5]], ids=name_of)
def test_old_layout_names_its_architecture(config, tmp_path):
    sae = build(config)
    save_sae(sae, tmp_path, metadata={})
    (tmp_path / "cfg.json").write_text(
        json.dumps({"d_in": 4, "d_sae": 7, "architecture": config.word})
    )
    assert load_sae(tmp_path).config == type(config)(d_sae=7)
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(load_sae(tmp_path)(x), sae(x))


def test_old_layout_topk(saved):
    old = {"d_in": 4, "d_sae": 7, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}
    (saved / "cfg.json").write_text(json.dumps(old))
    assert load_sae(saved).config == TopKConfig(d_sae=7, k=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
        ({"activation_fn": "topk"}, "k: expected int"),
        ({"architecture": "temporal"}, "architecture is 'temporal'"),
    ],
)
def test_old_layout_not_understood_is_refused(changes, message, saved):
    (saved / "cfg.json").write_text(json.dumps({"d_in": 4, "d_sae": 7, **changes}))
    with pytest.raises(ValueError, match=rf"cfg\.json: {message}"):
        load_sae(saved)


@pytest.mark.parametrize("name", ["L1_x8", "L5_x8"])
def test_saes_trained_by_others(name):
    """Real SAEs of SAELens 3.4.0, against the algebra that its documentation gives."""
    folder = FIXTURES / name
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {FIXTURES}")
    sae = load_sae(folder)
    assert sae.config == ReLUConfig(d_sae=1024, apply_b_dec_to_input=False)
    assert sae.metadata["hook_name"] == f"blocks.{name[1]}.hook_resid_pre"
    assert sae.metadata["prepend_bos"] is False

    w = load_file(folder / "sae_weights.safetensors")
    x = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    code = (x @ w["W_enc"] + w["b_enc"]).relu()
    assert_close(sae.encode(x), code)
    assert_close(sae(x), code @ w["W_dec"] + w["b_dec"])
