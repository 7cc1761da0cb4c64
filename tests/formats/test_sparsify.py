import json
from dataclasses import replace

import pytest
import torch
from format_samples.sparsify import D_IN, F, theirs
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_kit.formats import inspect_sae, load_sae, load_saes, save_sae
from sae_kit.sae.batch_topk import BatchTopKConfig
from sae_kit.sae.groupmax import GroupMaxConfig
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

METADATA = {"model_name": "demo", "hook_name": "blocks.1.hook_resid_pre", "nested": {"l0": [1.5]}}
TOPK = TopKConfig(d_sae=12, k=3, k_aux=2, aux_coefficient=0.1)
GROUPMAX = GroupMaxConfig(d_sae=12, k=3, k_aux=2)
CONFIGS = [
    replace(config, apply_b_dec_to_input=apply)
    for config in (TOPK, GROUPMAX)
    for apply in (True, False)
]
TRANSCODERS = [
    replace(config, apply_b_dec_to_input=False, skip=skip)
    for config in (TOPK, GROUPMAX)
    for skip in (True, False)
]


def build(config, d_in=D_IN, d_out=None):
    sae = config.build(d_in, d_out, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.3)
    return sae


def rows(n=9, dtype=torch.float32):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.fixture
def saved(tmp_path):
    save_sae(build(TOPK), tmp_path / "h.3", metadata=METADATA, format="sparsify")
    return tmp_path / "h.3"


def algebra(w, x, *, k=3, groups=False, centred=True):
    """Code and reconstruction by sparsify's formulas, latent by latent."""
    pre = ((x - w["b_dec"] if centred else x) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    code = torch.zeros_like(pre)
    for row, values in enumerate(pre.tolist()):
        if groups:
            size = len(values) // k
            chosen = [
                max(range(g * size, (g + 1) * size), key=values.__getitem__) for g in range(k)
            ]
        else:
            chosen = sorted(range(len(values)), key=values.__getitem__)[-k:]
        code[row, chosen] = pre[row, chosen]
    recon = code @ w["W_dec"] + w["b_dec"]
    return code, recon + (x @ w["W_skip"].T if "W_skip" in w else 0)


# --- round trip -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "d_out"),
    [*((config, None) for config in CONFIGS), *((config, D_IN) for config in TRANSCODERS)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_bit_exact(config, d_out, dtype, tmp_path):
    sae = build(config, d_out=d_out).to(dtype)
    save_sae(sae, tmp_path / "new" / "h.1", metadata=METADATA, format="sparsify")
    again = load_sae(tmp_path / "new" / "h.1")
    assert type(again) is type(sae)
    assert again.config == config
    assert again.is_transcoder is sae.is_transcoder
    assert again.metadata == METADATA
    for name, tensor in sae.weights().items():
        assert torch.equal(again.weights()[name], tensor), name
        assert again.weights()[name].dtype == dtype
    x = rows(dtype=dtype)
    assert torch.equal(again(x), sae(x))
    assert sae.encode(x).any()
    info = inspect_sae(tmp_path / "new" / "h.1")
    assert (info.format, info.config, info.d_in, info.d_out) == ("sparsify", config, D_IN, d_out)


def test_saving_what_was_loaded_changes_nothing(saved, tmp_path):
    save_sae(load_sae(saved), tmp_path / "again", format="sparsify")
    for name in ("cfg.json", "sae.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_files_hold_sparsifys_names_shapes_and_words(tmp_path):
    sae = build(TRANSCODERS[2], d_out=D_IN)
    save_sae(sae, tmp_path, metadata=METADATA, format="sparsify")
    w = load_file(tmp_path / "sae.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in w.items()} == {
        "encoder.weight": (F, D_IN),
        "encoder.bias": (F,),
        "W_dec": (F, D_IN),
        "b_dec": (D_IN,),
        "W_skip": (D_IN, D_IN),
    }
    x = rows()
    code, recon = algebra(w, x, groups=True, centred=False)
    assert_close(sae.encode(x), code)
    assert_close(sae(x), recon)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config.pop("sae_kit")
    assert config == {
        "activation": "groupmax",
        "normalize_decoder": False,
        "num_latents": F,
        "k": 3,
        "multi_topk": False,
        "skip_connection": True,
        "transcode": True,
        "d_in": D_IN,
    }


def test_a_file_without_our_record_is_opened_as_what_it_computes(saved):
    sae = load_sae(saved)
    config = json.loads((saved / "cfg.json").read_text())
    del config["sae_kit"]
    (saved / "cfg.json").write_text(json.dumps(config))
    other = load_sae(saved)
    assert other.config == TopKConfig(d_sae=F, k=3)  # training fields at their defaults
    assert torch.equal(other(rows()), sae(rows()))


# --- files of sparsify ----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_those_of_the_algebra(activation, transcode, dtype, tmp_path):
    """A decoder taken for its transpose, b_dec not subtracted, groups laid out otherwise: each
    changes these numbers.
    """
    w = theirs(tmp_path, dtype, activation=activation, transcode=transcode)
    sae, x = load_sae(tmp_path), rows(50)
    code, recon = algebra(w, x, groups=activation == "groupmax", centred=not transcode)
    assert_close(sae.encode(x), code)
    assert_close(sae(x), recon)
    assert (sae.config.word, sae.is_transcoder) == (activation, transcode)
    assert sae.W_dec.dtype == torch.float32


def test_skip_connection_of_a_transcoder(tmp_path):
    w, x = theirs(tmp_path, transcode=True, skip_connection=True), rows(50)
    code, recon = algebra(w, x, centred=False)
    sae = load_sae(tmp_path)
    assert_close(sae.encode(x), code)
    assert_close(sae(x), recon)
    assert "conversions" not in sae.metadata


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_old_skip_transcoders_subtracted_b_dec(dtype, tmp_path):
    """They say nothing of `transcode`, and were trained before it was invented."""
    w, x = theirs(tmp_path, dtype, transcode=None, skip_connection=True), rows(50)
    code, recon = algebra(w, x)
    sae = load_sae(tmp_path)
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), recon, atol=1e-5, rtol=1e-5)
    assert sae.is_transcoder
    assert sae.metadata["conversions"] == ["b_dec, subtracted from the input, folded into b_enc"]


def test_old_files_lack_newer_keys_and_have_older_ones(tmp_path):
    w = theirs(
        tmp_path,
        activation=None,
        num_latents=0,
        multi_topk=None,
        skip_connection=None,
        transcode=None,
        signed=False,
    )
    sae, x = load_sae(tmp_path), rows()
    assert sae.config == TopKConfig(d_sae=D_IN * 3, k=3)
    assert_close(sae(x), algebra(w, x)[1])


def test_absent_numbers_are_sparsifys_defaults(tmp_path):
    theirs(tmp_path, k=None, num_latents=None, expansion_factor=None)
    with pytest.raises(ValueError, match=r"d_in=4 and num_latents=128 make it \(128, 4\)"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("folder", "site"),
    [
        ("h.3", "blocks.3.hook_resid_post"),
        ("layers.3.mlp", "blocks.3.hook_mlp_out"),
        ("h.3.attn/seed12", "blocks.3.hook_attn_out"),
        ("embed_tokens", "hook_embed"),
        ("model.layers.11", "blocks.11.hook_resid_post"),
        ("encoder", None),
    ],
)
def test_folders_say_the_site(folder, site, tmp_path):
    theirs(tmp_path / folder)
    info, sae = inspect_sae(tmp_path / folder), load_sae(tmp_path / folder)
    assert info.site == site
    assert sae.metadata.get("hook_name") == site
    assert sae.metadata["multi_topk"] is False  # what has no say in outputs is kept


@pytest.mark.parametrize(
    ("folder", "reads", "writes"),
    [
        ("h.3", "blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"),
        ("h.3.mlp.act", "blocks.3.mlp.hook_pre", "blocks.3.mlp.hook_post"),
        ("h.3.mlp", None, "blocks.3.hook_mlp_out"),
        ("encoder", None, None),
    ],
)
def test_folders_of_transcoders_say_both_sites(folder, reads, writes, tmp_path):
    theirs(tmp_path / folder, transcode=True)
    info = inspect_sae(tmp_path / folder)
    assert info.site == reads
    assert info.metadata.get("hook_name_out") == writes


def test_runs_are_opened_by_layer(tmp_path):
    for layer in (11, 2, 0):
        theirs(tmp_path / f"h.{layer}")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "optimizer_0.pt").write_bytes(b"")
    found = load_saes(tmp_path, layers=[2, 11])
    assert list(found) == ["blocks.2.hook_resid_post", "blocks.11.hook_resid_post"]


def test_seeds_at_one_site_are_told_apart_by_the_user(tmp_path):
    for seed in (0, 1):
        theirs(tmp_path / "h.3" / f"seed{seed}")
    with pytest.raises(ValueError, match=r"both .*seed0 and .*seed1 are SAEs of blocks\.3"):
        load_saes(tmp_path)
    assert list(load_saes(tmp_path / "h.3" / "seed1")) == ["blocks.3.hook_resid_post"]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signed": True}, "signed is True"),
        ({"embed_skip": True}, "embed_skip is True"),
        ({"gram_lookup": True}, "gram_lookup is True"),
        ({"activation": "batchtopk"}, "activation: .*'batchtopk'"),
        ({"d_in": None}, "d_in: missing"),
        ({"d_in": 0}, "d_in: 0 is no width"),
        ({"num_latents": -1}, "num_latents: -1"),
        ({"expansion_factor": 0}, "expansion_factor: 0"),
        ({"k": 13}, "k: 13 does not fit"),
        ({"k": "3"}, "k: expected int"),
        ({"activation": "groupmax", "k": 5}, "k: 5 does not make groups"),
        ({"transcode": 1}, "transcode: expected bool"),
    ],
)
def test_what_is_not_understood_is_refused(changes, message, tmp_path):
    theirs(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"cfg\.json: .*{message}"):
        load_sae(tmp_path)


@pytest.mark.parametrize("key", ["k", "transcode", "activation", "num_latents"])
def test_files_edited_beside_our_record_are_refused(key, saved):
    config = json.loads((saved / "cfg.json").read_text())
    config[key] = {"k": 2, "transcode": True, "activation": "groupmax", "num_latents": 24}[key]
    (saved / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"sae_kit makes .* of|make it"):
        load_sae(saved)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_dec": torch.zeros(D_IN, F)}, r"W_dec has shape \(4, 12\), but .* make it \(12, 4\)"),
        ({"encoder.weight": torch.zeros(D_IN, F)}, r"encoder\.weight has shape"),
        ({"b_dec": None}, r"missing tensors \['b_dec'\]"),
        ({"W_dec": None}, r"missing tensors \['W_dec'\]"),
        ({"W_skip": torch.zeros(D_IN, D_IN)}, r"unknown tensors \['W_skip'\]"),
        ({"b_dec": torch.zeros(D_IN, dtype=torch.int32)}, "b_dec has type I32"),
        ({"b_dec": torch.full((D_IN,), float("nan"))}, "b_dec holds NaN"),
    ],
)
def test_wrong_tensors_are_named(tensors, message, saved):
    path = saved / "sae.safetensors"
    changed = load_file(path) | tensors
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=message):
        load_sae(saved)


def test_missing_config_and_truncated_weights_are_named(saved):
    path = saved / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"sae\.safetensors: is damaged or cut short"):
        load_sae(saved)
    (saved / "cfg.json").unlink()
    with pytest.raises(ValueError, match=r"cfg\.json: is missing; put it beside"):
        load_sae(saved)


def layer_normed():
    sae = build(TOPK)
    sae.normalization = "layer_norm"
    return sae


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (build(BatchTopKConfig(d_sae=F, k=3)), "arch: sparsify cannot .* 'batch_topk'.*'jumprelu'"),
        (build(ReLUConfig(d_sae=F)), "arch: sparsify cannot express 'relu'"),
        (layer_normed(), "normalization: sparsify cannot express 'topk' with 'layer_norm'"),
        (build(TRANSCODERS[0], d_out=5), "d_out: sparsify cannot express 'topk' .* 4 and writes 5"),
    ],
)
def test_what_sparsify_cannot_express_is_refused(sae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_sae(sae, tmp_path / "x", metadata={}, format="sparsify")
    assert not (tmp_path / "x").exists()


def test_frequencies_and_odd_metadata_are_refused(tmp_path):
    with pytest.raises(ValueError, match="sparsity: sparsify has no place"):
        save_sae(build(TOPK), tmp_path / "x", sparsity=torch.zeros(F), format="sparsify")
    with pytest.raises(ValueError, match=r"metadata: .*JSON values only"):
        save_sae(build(TOPK), tmp_path / "x", metadata={"a": object()}, format="sparsify")
    assert not (tmp_path / "x").exists()
