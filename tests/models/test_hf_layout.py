"""Hugging Face layout: key maps, sizes, and every way in which a folder can be wrong."""

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hf_layout import KEYS, hf_key, read_config, read_model, write_model


@pytest.fixture(scope="module")
def model(make_gpt2) -> GPT2:
    return make_gpt2()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    write_model(model, tmp_path, eot_id=0, dtype=torch.float32)
    return tmp_path


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def put(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def configure(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_same(a: GPT2, b: GPT2) -> None:
    assert a.config == b.config
    theirs = dict(b.named_parameters())
    for name, p in a.named_parameters():
        assert torch.equal(p, theirs[name]), name


# --- what fits ------------------------------------------------------------------------------------


def test_every_parameter_has_a_name_of_its_own_on_the_other_side(model):
    untied = GPT2(GPT2Config(n_layer=11, d_model=12))
    keys = [hf_key(name) for name, _ in untied.named_parameters()]
    assert len(set(keys)) == len(keys) == 11 * 12 + 4
    assert hf_key("blocks.10.attn.W_O") == "transformer.h.10.attn.c_proj.weight"
    assert len(set(KEYS.values())) == len(KEYS)
    with pytest.raises(KeyError):
        hf_key("blocks.1.attn.W_Q")


def test_a_round_trip_keeps_every_bit_and_the_sizes(model, folder):
    assert_same(read_model(folder), model)


def test_whoever_may_read_its_sizes_may_read_its_weights(folder):
    """safetensors by itself leaves a file that only its owner may read."""
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


def test_a_mean_centred_or_otherwise_untied_model_keeps_its_own_unembedding(make_gpt2, tmp_path):
    model = make_gpt2(GPT2Config(n_layer=1, n_head=2, d_model=8, d_mlp=8, n_vocab=9, tied=False))
    write_model(model, tmp_path, eot_id=0, dtype=torch.float32)
    back = read_model(tmp_path)
    assert_same(back, model)
    assert not torch.equal(back.W_U, back.W_E)


def test_a_model_without_layernorm_keeps_every_bit(make_gpt2, tmp_path):
    model = make_gpt2(replace(SMALL, norm="linear"))
    write_model(model, tmp_path, eot_id=0, dtype=torch.float32)
    assert json.loads((tmp_path / "config.json").read_text())["layer_norm_epsilon"] > 1e11
    gain = tensors_of(tmp_path)["transformer.ln_f.weight"]
    torch.testing.assert_close(gain, model.ln_final.w * 2.0**20)
    assert_same(read_model(tmp_path), model)


@pytest.mark.parametrize("eps", [1e12, 10**12])
def test_another_large_epsilon_is_undone_as_well(eps, make_gpt2, tmp_path):
    """As published models have it: epsilon 1e12, gains a million times as large."""
    model = make_gpt2(replace(SMALL, norm="linear"))
    write_model(model, tmp_path, eot_id=0, dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": eps}))
    tensors = tensors_of(tmp_path)
    for key in [key for key in tensors if ".ln_" in key and key.endswith("weight")]:
        tensors[key] = tensors[key] / 2.0**20 * 1e6
    put(tmp_path, tensors)
    back = read_model(tmp_path)
    assert back.config == model.config
    theirs = dict(model.named_parameters())
    for name, p in back.named_parameters():
        torch.testing.assert_close(p, theirs[name], rtol=1e-6, atol=0)


def test_names_without_prefix_and_old_causal_masks_are_accepted(model, folder):
    bare = {key.removeprefix("transformer."): t for key, t in tensors_of(folder).items()}
    for i in range(3):
        bare[f"h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        bare[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    put(folder, bare)
    assert_same(read_model(folder), model)


def test_a_stored_copy_of_the_embedding_stays_tied_and_a_different_one_unties(model, folder):
    tensors = tensors_of(folder)
    head = tensors["transformer.wte.weight"].clone()
    put(folder, tensors | {"lm_head.weight": head})
    assert_same(read_model(folder), model)
    put(folder, tensors | {"lm_head.weight": head + 1})
    untied = read_model(folder)
    assert not untied.config.tied
    assert torch.equal(untied.W_U, head + 1)
    assert torch.equal(untied.W_E, head)


def test_half_precision_is_read_into_float32(make_gpt2, tmp_path):
    model = make_gpt2()
    write_model(model, tmp_path, eot_id=0, dtype=torch.float16)
    assert all(t.dtype == torch.float16 for t in tensors_of(tmp_path).values())
    assert_same(read_model(tmp_path), model.half().float())


def test_shards_are_read_together(model, folder):
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_same(read_model(folder), model)

    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shards are missing: model-00002-of-00003\.safetensors"):
        read_model(folder)


def test_an_old_pickled_file_is_read_as_tensors(model, folder):
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert_same(read_model(folder), model)


def test_left_out_sizes_are_gpt2_smalls(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": 96, "n_inner": null}')
    assert read_config(tmp_path) == GPT2Config(d_model=96, d_mlp=384)


# --- what does not fit ----------------------------------------------------------------------------


def test_all_misfits_are_named_in_one_error(folder):
    tensors = tensors_of(folder)
    del tensors["transformer.h.1.ln_2.bias"], tensors["transformer.wpe.weight"]
    tensors["score.weight"] = torch.zeros(2, 32)
    c_fc = tensors["transformer.h.2.mlp.c_fc.weight"]
    tensors["transformer.h.2.mlp.c_fc.weight"] = c_fc.T.contiguous()  # as nn.Linear stores it
    tensors["transformer.ln_f.bias"] = torch.zeros(32, dtype=torch.int64)
    put(folder, tensors)
    with pytest.raises(ValueError, match="do not fit") as error:
        read_model(folder)
    for words in (
        str(folder),
        "missing h.1.ln_2.bias [32]",
        "missing wpe.weight [16, 32]",
        "extra score.weight [2, 32]",
        "misshapen h.2.mlp.c_fc.weight [80, 32], config.json says [32, 80]",
        "ln_f.bias holds torch.int64",
    ):
        assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1 + 5


def test_an_untied_model_without_its_unembedding(folder):
    configure(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"missing lm_head\.weight \[300, 32\]"):
        read_model(folder)


def test_one_tensor_under_two_names(folder):
    tensors = tensors_of(folder)
    put(folder, tensors | {"wpe.weight": tensors["transformer.wpe.weight"].clone()})
    with pytest.raises(ValueError, match=r"wpe\.weight is there twice"):
        read_model(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt_neo"),
        ("activation_function", "relu"),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("quantization_config", {"bits": 4}),
        ("n_layer", "three"),
        ("n_layer", True),
        ("n_head", 5),
        ("n_embd", -32),
        ("layer_norm_epsilon", "small"),
        ("layer_norm_epsilon", -1e-5),
        ("layer_norm_epsilon", math.nan),
        ("layer_norm_epsilon", math.inf),
        ("tie_word_embeddings", 1),
    ],
)
def test_an_unsupported_config_names_field_and_value(folder, field, value):
    configure(folder, **{field: value})
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        read_model(folder)
    ours = {"n_embd": "d_model"}.get(field, field)
    assert ours in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize("content", ["{", "[1]", '{"n_layer": 1}', "\xff"])
def test_a_config_that_is_none(folder, content):
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json"):
        read_model(folder)


def test_missing_and_broken_files_are_named(folder):
    whole = folder / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: broken"):
        read_model(folder)
    whole.unlink()
    with pytest.raises(ValueError, match=r"no weights in .*pytorch_model\.bin"):
        read_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json in"):
        read_model(folder)


@pytest.mark.parametrize(
    "name",
    ["../stolen.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "x.bin"],
)
def test_an_index_cannot_point_out_of_its_folder(folder, name):
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder.parent / "stolen.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    with pytest.raises(ValueError, match=r"is not the name of a \.safetensors file beside it"):
        read_model(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="weight_map is missing"):
        read_model(folder)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_file_never_runs_code(folder):
    (folder / "model.safetensors").unlink()
    mark = folder / "executed"
    torch.save({"wte.weight": torch.zeros(1), "x": Touch(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: not a file of tensors only"):
        read_model(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touch(mark)))  # the trap itself works
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"abc", b"<html>none</html>", b"\x80\x02X\x05\x00"])
def test_a_damaged_pickled_file_is_named(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: not a file of tensors only"):
        read_model(folder)


@pytest.mark.parametrize("content", [torch.zeros(2), {"model": {"wte.weight": torch.zeros(2)}}])
def test_a_pickled_file_of_something_else(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: not a file of named tensors"):
        read_model(folder)


def test_weights_too_large_for_half_precision_are_refused(make_gpt2, tmp_path):
    model = make_gpt2()
    model.blocks[1].mlp.b_in[3] = 70_000.0
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.bias .*not finite in torch\.float16"):
        write_model(model, tmp_path, eot_id=0, dtype=torch.float16)
    write_model(model, tmp_path, eot_id=0, dtype=torch.bfloat16)
