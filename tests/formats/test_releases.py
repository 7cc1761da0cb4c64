import re

import pytest

from sae_kit.formats.releases import release_of, releases
from sae_kit.formats.sites import layer_of
from sae_kit.models.gpt2 import GPT2Config
from sae_kit.sae import SAEConfig

ENTRY = {
    "what": "a set",
    "repo": "owner/name",
    "architecture": "relu",
    "reference": "https://x.org",
    "d_sae": 8,
    "path": "layer_{layer}_{d_sae}",
    "saes": {
        "blocks.0.hook_resid_pre": None,
        "blocks.1.hook_resid_pre": {"d_sae": 16, "l0": 3},
        "b": {"path": "b.pt", "site": "blocks.2.hook_mlp_out"},
    },
}


def test_what_stands_once_is_filled_in_for_each():
    release = release_of("x", ENTRY)
    told = [(sae.id, sae.site, sae.path, sae.d_sae, sae.l0) for sae in release.saes]
    assert told == [
        ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre", "layer_0_8", 8, None),
        ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre", "layer_1_16", 16, 3.0),
        ("b", "blocks.2.hook_mlp_out", "b.pt", 8, None),
    ]
    plain = release_of("x", {key: value for key, value in ENTRY.items() if key != "path"})
    assert plain.saes[0].path == plain.saes[0].id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repo": "name"}, r"x\.repo: 'name' is not of the form owner/name"),
        ({"what": None}, r"x\.what: "),
        ({"centered": True}, r"x\.centered: unknown"),
        ({"context_size": "128"}, r"x\.context_size: "),
        ({"saes": {}}, r"x\.saes: none"),
        ({"path": "same"}, r"x\.saes: two have the same path"),
        ({"d_sae": 0}, r"x\.saes\[0\]\.d_sae: 0 is not positive"),
        ({"saes": {"b": None}}, r"x\.saes\[0\]\.site: 'b' is not of the form blocks"),
        ({"saes": {"blocks.0.a": {"explained_variance": 90}}}, r"explained_variance: 90.* than 1"),
        ({"saes": {"blocks.0.a": {"input_scale": 0}}}, r"input_scale: 0.* is not positive"),
        ({"saes": {"blocks.0.a": {"l1": 0}}}, r"l1: unknown"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        release_of("x", {**ENTRY, **changes})


def test_what_is_known_is_said_and_nothing_else():
    known = release_of("x", {**ENTRY, "centred": False, "prepend_bos": False}).known_by_path()
    assert list(known) == ["layer_0_8", "layer_1_16", "b.pt"]
    assert known["b.pt"].site == "blocks.2.hook_mlp_out"
    assert known["b.pt"].metadata == {
        "release": "x/b",
        "hook_name": "blocks.2.hook_mlp_out",
        "model_name": "gpt2-small",
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
        "prepend_bos": False,
    }


@pytest.mark.parametrize("release", releases().values(), ids=list(releases()))
def test_every_release_is_of_gpt2_small(release):
    config = GPT2Config()
    assert release.architecture in SAEConfig.variants()
    assert re.match(r"https://\S+$", release.reference)
    assert release.context_size is None or release.context_size <= config.n_ctx
    for sae in release.saes:
        layer = layer_of(sae.site)
        assert layer is not None
        assert 0 <= layer < config.n_layer
        assert sae.id == sae.site or layer_of(sae.id) in (None, layer)
        assert sae.l0 is None or 0 < sae.l0 < sae.d_sae
        assert sae.neuronpedia is None or re.fullmatch(r"gpt2-small/\d+-[\w-]+", sae.neuronpedia)


def test_the_public_sets_are_there():
    n_saes = {name: len(release.saes) for name, release in releases().items()}
    openai = [n for name, n in n_saes.items() if "-v5-" in name]
    assert openai == 8 * [12]
    assert n_saes["gpt2-small-res-jb"] == 13
    widths = [sae.d_sae for sae in releases()["gpt2-small-res-jb-feature-splitting"].saes]
    assert widths == [768 * 2**i for i in range(8)]
    assert [n for name, n in n_saes.items() if name.endswith("-ajt")] == 6 * [3]
    assert n_saes["gpt2-small-e2e-apollo"] == 18
    assert all(sae.input_scale for sae in releases()["gpt2-small-mlp-tm"].saes)


def test_copies_say_the_same_as_what_they_are_copies_of():
    flat = releases()["gpt2-small-e2e-apollo"].saes
    by_figures = {(sae.site, sae.l0, sae.ce_increase) for sae in flat}
    copies = [one for name, one in releases().items() if name.endswith("-ajt")]
    assert by_figures == {(s.site, s.l0, s.ce_increase) for one in copies for s in one.saes}
