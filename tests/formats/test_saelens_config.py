import json

import pytest
import torch

from sae_kit.config import from_node
from sae_kit.formats.places import LocalPlace
from sae_kit.formats.plain import Plain
from sae_kit.formats.saelens_config import (
    IN_TRAINING,
    MEANINGS,
    WORDS,
    contents_for,
    modern,
    plain_of,
    provenance,
)
from sae_kit.sae import SAEConfig

HERE = "cfg.json"


def build(arch, *, d_out=None, **fields):
    node = {"arch": arch, "d_sae": 7, "apply_b_dec_to_input": d_out is None, **fields}
    node |= {"topk": {"k": 3}, "groupmax": {"k": 7}}.get(arch, {})
    return from_node(SAEConfig, node).build(4, d_out, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", WORDS)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_what_is_written_is_read_back(arch, kind):
    sae = build(arch, d_out=5 if kind else None, skip=kind == 2)
    contents = json.loads(json.dumps(contents_for(sae, {"hook_name": "here"})))
    assert contents["architecture"] == WORDS[arch][kind]
    plain = plain_of(contents, HERE)
    assert plain == Plain.of(sae)
    assert (plain.d_in, plain.d_out) == (4, 5 if kind else None)
    assert provenance(contents, plain, HERE) == (sae.config, {"hook_name": "here"})


def test_every_word_means_one_thing():
    assert len(MEANINGS) == sum(map(len, WORDS.values())) + len(IN_TRAINING)
    for word in MEANINGS.keys() - set(IN_TRAINING):
        arch, kind = MEANINGS[word]
        assert WORDS[arch][kind] == word


def test_words_for_what_saelens_lacks_are_not_among_its_own():
    theirs = {
        *("standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder"),
        *("jumprelu_transcoder", "jumprelu_skip_transcoder"),
        *("batchtopk", "matryoshka_batchtopk"),
    }
    kinds = ("transcoder", "skip_transcoder")
    ours = {f"{arch}_{kind}" for arch in ("topk", "gated", "groupmax") for kind in kinds}
    ours.add("groupmax")
    assert set(MEANINGS) == theirs | ours


@pytest.mark.parametrize("version", [None, "5.1.0", "unknown", 3])
def test_versions_below_6_mean_the_old_layout(version, tmp_path):
    old = {"d_in": 4, "d_sae": 7, "hook_point": "here", "sae_lens_version": version}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    contents = modern(LocalPlace(tmp_path).json("cfg.json"), "cfg.json")
    assert contents["architecture"] == "standard"
    assert contents["metadata"]["hook_name"] == "here"


@pytest.mark.parametrize("version", ["6.0.0", "6.54.12", "12.0"])
def test_later_versions_are_taken_as_they_are(version, tmp_path):
    new = {"d_in": 4, "metadata": {"sae_lens_version": version}}
    (tmp_path / "cfg.json").write_text(json.dumps(new))
    assert modern(LocalPlace(tmp_path).json("cfg.json"), "cfg.json") == new


@pytest.mark.parametrize("kind", [0, 1])
def test_todays_keys_mean_the_same_in_a_file_without_a_version(kind):
    sae = build("topk", d_out=5 if kind else None)
    contents = contents_for(sae, {"hook_name": "here"}) | {"rescale_acts_by_decoder_norm": True}
    del contents["metadata"]["sae_lens_version"]
    read = modern(contents, HERE)
    assert read["rescale_acts_by_decoder_norm"] is True  # it decides outputs
    read = dict(read) | {"rescale_acts_by_decoder_norm": False}
    assert plain_of(read, HERE) == Plain.of(sae)
    assert provenance(read, plain_of(read, HERE), HERE) == (sae.config, {"hook_name": "here"})
