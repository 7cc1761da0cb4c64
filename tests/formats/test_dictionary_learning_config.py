import json

import pytest
import torch

from sae_kit.config import from_node
from sae_kit.formats.dictionary_learning_config import CLASSES, Config, contents_for
from sae_kit.formats.places import LocalPlace
from sae_kit.sae import SAEConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig
from sae_kit.sae.topk import TopKConfig

METADATA = {"hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2", "l0": [1.5]}


@pytest.fixture
def config(tmp_path):
    def read(contents) -> Config:
        (tmp_path / "config.json").write_text(json.dumps(contents))
        return Config.read(LocalPlace(tmp_path), "config.json")

    return read


def build(name, **fields):
    node = {"arch": CLASSES[name].trained_as, "d_sae": 8} | fields
    node |= {"k": 3} if CLASSES[name].has_k else {}
    return from_node(SAEConfig, node).build(4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_written_is_read_back(name, config):
    sae = build(name, aux_coefficient=0.5)
    read = config(contents_for(sae, name, METADATA))
    assert (read.name, read.config(8), read.metadata()) == (name, sae.config, METADATA)
    assert read.widths({}, "ae.pt") == (4, 8)
    assert read.site("anywhere") == METADATA["hook_name"]
    trainer = read.contents["trainer"]
    assert (trainer["layer"], trainer["lm_name"]) == (3, "gpt2")
    assert trainer["submodule_name"] == METADATA["hook_name"]


@pytest.mark.parametrize("name", CLASSES)
def test_what_decides_outputs_is_what_the_architecture_says(name, config):
    """Of an SAE that treats b_dec as the class does."""
    sae = build(name, apply_b_dec_to_input=CLASSES[name].centres)
    plain = sae.inference()
    assert config(contents_for(sae, name, {})).plain_settings(8) == {
        "arch": plain.arch,
        "d_sae": 8,
        "apply_b_dec_to_input": CLASSES[name].centres,
        "skip": False,
        **plain.fields,
    }


def test_groups_of_latents_are_the_prefixes_of_ours(config):
    contents = {"trainer": {"dict_class": "MatryoshkaBatchTopKSAE", "k": 3}}
    contents["trainer"]["group_sizes"] = [1, 2, 5]
    read = config(contents).config(8)
    assert isinstance(read, MatryoshkaConfig)
    assert read.prefixes == (1, 3, 8)
    written = contents_for(
        read.build(4, generator=torch.Generator().manual_seed(0)), "MatryoshkaBatchTopKSAE", {}
    )
    assert written["trainer"]["group_sizes"] == [1, 2, 5]


def test_widths_are_the_encoders_where_the_file_is_silent(config):
    linear = config({"trainer": {"dict_class": "AutoEncoder"}})
    assert linear.widths({"encoder.weight": ("F32", (8, 4))}, "ae.pt") == (4, 8)
    matrix = config({"trainer": {"dict_class": "JumpReluAutoEncoder"}})
    assert matrix.widths({"W_enc": ("F32", (4, 8))}, "ae.pt") == (4, 8)
    with pytest.raises(ValueError, match=r"ae\.pt: has no matrix W_enc; JumpReluAutoEncoder is"):
        matrix.widths({"encoder.weight": ("F32", (8, 4))}, "ae.pt")


def test_settings_of_others_are_kept_as_they_are(config):
    trainer = {"dict_class": "AutoEncoderTopK", "k": 3, "lm_name": "gpt2", "lr": 1e-3, "seed": 0}
    buffer = {"ctx_len": 128, "io": "out"}
    assert config({"trainer": trainer, "buffer": buffer}).metadata() == {
        "model_name": "gpt2",
        "context_size": 128,
        "trainer": trainer,
        "buffer": buffer,
    }
    assert config({"trainer": trainer}).config(8) == TopKConfig(d_sae=8, k=3)


@pytest.mark.parametrize(
    ("submodule", "folder", "site"),
    [
        ("resid_post_layer_8", "x", "blocks.8.hook_resid_post"),
        ("resid_out_layer3", "x", "blocks.3.hook_resid_post"),
        ("mlp_out_layer_0", "x", "blocks.0.hook_mlp_out"),
        ("attn_out_layer11", "x", "blocks.11.hook_attn_out"),
        ("model.layers.5.mlp", "x", "blocks.5.hook_mlp_out"),
        (None, "run/resid_post_layer_8/trainer_0", "blocks.8.hook_resid_post"),
        (None, "resid_post_layer_8", "blocks.8.hook_resid_post"),
        (None, "run/trainer_0", None),
        ("gpt_neox", "x", None),
    ],
)
def test_submodules_and_folders_say_the_site(submodule, folder, site, config):
    trainer = {"dict_class": "AutoEncoder", "submodule_name": submodule}
    assert config({"trainer": trainer}).site(folder) == site
    assert config({"trainer": trainer, "buffer": {"io": "in"}}).site(folder) is None


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "trainer is 'None'"),
        ({"trainer": []}, "trainer is"),
        ({"trainer": {}}, r"trainer\.dict_class: missing"),
        ({"trainer": {"dict_class": "CrossCoder"}}, r"trainer\.dict_class: 'CrossCoder' is unkn"),
        ({"trainer": {"dict_class": "BatchTopKSAE"}}, r"trainer\.k: missing; BatchTopKSAE needs"),
        ({"trainer": {"dict_class": "AutoEncoder", "dict_size": "8"}}, r"dict_size: expected"),
        (
            {"trainer": {"dict_class": "AutoEncoder"}, "buffer": {"io": "in_and_out"}},
            "buffer.io is 'in_and_out'; transcoders",
        ),
        ({"trainer": {"dict_class": "AutoEncoder"}, "sae_kit": 3}, "sae_kit is '3'"),
    ],
)
def test_what_is_not_understood_is_named(contents, message, config):
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        config(contents)


@pytest.mark.parametrize("sizes", [[3, 4], [8, 0], [9, -1], []])
def test_impossible_groups_are_named(sizes, config):
    trainer = {"dict_class": "MatryoshkaBatchTopKSAE", "k": 3, "group_sizes": sizes}
    with pytest.raises(ValueError, match=r"trainer\.group_sizes is .* add up to 8"):
        config({"trainer": trainer}).config(8)


def test_impossible_k_is_named(config):
    read = config({"trainer": {"dict_class": "AutoEncoderTopK", "k": 9}})
    with pytest.raises(ValueError, match=r"config\.json: trainer\.k: 9 does not fit"):
        read.config(8)
