import os

import pytest
import torch
from format_samples.openai import D_IN, D_SAE, K, contents, save
from torch.testing import assert_close

from sae_kit.formats import inspect_sae, load_sae, load_saes
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig


def rows(n=64):
    """Rows of any mean and size, as activations are."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n, D_IN, generator=generator) * 3 + torch.randn(n, 1, generator=generator)


def layer_norm(x, *, unbiased=True):
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=int(unbiased))
    return (x - mean) / (std + 1e-5), mean, std


def reference(w, x, *, k=None, unbiased=True):
    """Code and output by plain algebra; normalised where there is a k."""
    mean, std = 0.0, 1.0
    if k is not None:
        x, mean, std = layer_norm(x, unbiased=unbiased)
    z = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    if k is not None:
        z = torch.where(z >= z.topk(k).values[:, -1:], z, 0.0)
    code = z.clamp_min(0)
    return code, (code @ w["decoder.weight"].T + w["pre_bias"]) * std + mean


def test_topk_files_are_normalised_by_row(tmp_path):
    w, x = contents(), rows()
    sae = load_sae(save(tmp_path, w))
    code, recon = reference(w, x, k=K)
    assert sae.config == TopKConfig(d_sae=D_SAE, k=K)
    assert sae.normalization == "layer_norm"
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), recon, atol=1e-5, rtol=1e-5)
    assert (code > 0).any(1).all()


def test_the_deviation_is_the_unbiased_one(tmp_path):
    w, x = contents(), rows()
    biased = reference(w, x, k=K, unbiased=False)
    sae = load_sae(save(tmp_path, w))
    assert (sae.encode(x) - biased[0]).abs().max() > 0.01
    assert (sae(x) - biased[1]).abs().max() > 0.01


@pytest.mark.parametrize("named", [True, False])
def test_relu_files_are_not_normalised(named, tmp_path):
    w, x = contents("ReLU"), rows()
    if not named:
        del w["activation"]  # as the oldest
    sae = load_sae(save(tmp_path, w))
    code, recon = reference(w, x)
    assert sae.config == ReLUConfig(d_sae=D_SAE)
    assert sae.normalization == "none"
    assert_close(sae.encode(x), code, atol=1e-5, rtol=1e-5)
    assert_close(sae(x), recon, atol=1e-5, rtol=1e-5)


def test_files_saved_anew_have_their_activation_twice(tmp_path):
    again = contents() | {"activation.k": K, "activation.postact_fn": "ReLU"}
    w, x = contents(), rows()
    assert torch.equal(
        load_sae(save(tmp_path / "a", again))(x), load_sae(save(tmp_path / "b", w))(x)
    )
    del again["activation_state_dict"]
    assert load_sae(save(tmp_path / "c", again)).config == TopKConfig(d_sae=D_SAE, k=K)


@pytest.mark.parametrize(
    ("path", "site"),
    [
        ("resid_post_mlp_v5_32k/autoencoders/6.pt", "blocks.6.hook_resid_post"),
        ("any/resid_post_attn_v5_128k/autoencoders/11.pt", "blocks.11.hook_resid_mid"),
        ("x/y/resid_delta_attn_v5_32k/autoencoders/0.pt", "blocks.0.hook_attn_out"),
        ("resid_delta_mlp/autoencoders/3.pt", "blocks.3.hook_mlp_out"),
        ("mlp_post_act_v4/autoencoders/3.pt", "blocks.3.mlp.hook_post"),
        ("mlp_post_act_v4/other/3.pt", None),
        ("3.pt", None),
    ],
)
def test_sites_are_those_of_paths(path, site, tmp_path):
    file = tmp_path / path
    info = inspect_sae(save(file.parent, contents(), file.name))
    assert info.site == site
    assert (info.d_in, info.format) == (D_IN, "openai")
    expected = {
        "model_name": "gpt2-small",
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
        "context_size": 64,
        "prepend_bos": False,
    }
    assert info.metadata == (expected if site else {})
    if site is None:
        assert load_sae(file, site="blocks.9.hook_mlp_out").metadata == {
            "hook_name": "blocks.9.hook_mlp_out"
        }


def test_files_of_a_folder_open_by_layer(tmp_path):
    folder = tmp_path / "resid_post_mlp_v5_32k" / "autoencoders"
    for layer in (0, 2, 10):
        save(folder, contents(seed=layer), f"{layer}.pt")
    saes = load_saes(tmp_path, layers=[2, 10])
    assert list(saes) == ["blocks.2.hook_resid_post", "blocks.10.hook_resid_post"]
    assert torch.equal(saes["blocks.10.hook_resid_post"].b_dec, contents(seed=10)["pre_bias"])


def test_inspecting_reads_no_weights(tmp_path):
    file = save(tmp_path, contents())
    raw, data = file.read_bytes(), contents()["latent_bias"].numpy().tobytes()
    file.write_bytes(raw.replace(data, bytes(len(data))))
    assert inspect_sae(file).tensors["latent_bias"] == ("F32", (D_SAE,))
    with pytest.raises(ValueError, match=r"6\.pt: is damaged .*Bad CRC"):
        load_sae(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "Identity"}, "activation is 'Identity'; only TopK and ReLU"),
        ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "postact_fn is 'Identity'"),
        ({"activation_state_dict": {"k": 0}}, "k: 0 does not fit"),
        ({"activation_state_dict": None}, "k: expected int"),
        ({"pre_bias": torch.zeros(1, D_IN)}, r"pre_bias has shape \(1, 16\); it must be a vector"),
        ({"decoder.weight": torch.zeros(D_SAE, D_IN)}, r"decoder\.weight has shape \(40, 16\)"),
        ({"encoder.weight": torch.zeros(D_IN, D_SAE)}, r"encoder\.weight has shape \(16, 40\)"),
        ({"latent_bias": torch.zeros(D_SAE, dtype=torch.int64)}, "latent_bias has type I64"),
        ({"encoder.bias": torch.zeros(D_SAE)}, r"unknown tensors \['encoder\.bias'\]"),
        ({"pre_bias": torch.full((D_IN,), float("nan"))}, "b_dec holds NaN or infinity"),
    ],
)
def test_what_is_not_understood_is_refused(changes, message, tmp_path):
    file = save(tmp_path, contents() | changes)
    with pytest.raises(ValueError, match=rf"6\.pt: .*{message}"):
        load_sae(file)


def test_files_of_unknown_tensors_list_them(tmp_path):
    file = save(tmp_path, {f"layer.{i}": torch.ones(2) for i in range(9)})
    message = r"6\.pt: holds layer\.0, layer\.1, .*layer\.4 and 4 more, which is no SAE in a known"
    with pytest.raises(ValueError, match=message):
        load_sae(file)
    with pytest.raises(ValueError, match="is no SAE in a known format"):
        load_sae(file, format="openai")


def test_hostile_files_run_nothing(tmp_path):
    marker = tmp_path / "marker"

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    file = save(tmp_path, contents() | {"activation": Command()})
    for open_ in (load_sae, inspect_sae):
        with pytest.raises(ValueError, match=r"6\.pt: asks for 'posix\.system'"):
            open_(file)
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_truncated_files_are_named(share, tmp_path):
    file = save(tmp_path, contents())
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"6\.pt: is (damaged|no zip)"):
        load_sae(file)


def test_other_files_beside_it_are_passed_over(tmp_path):
    save(tmp_path / "resid_post_mlp_v5_32k" / "autoencoders", contents())
    save(tmp_path, {"optimizer": {"lr": 1e-3}}, "state.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04")
    assert list(load_saes(tmp_path)) == ["blocks.6.hook_resid_post"]
