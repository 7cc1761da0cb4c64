"""Sites, patterns over them, the tape of a run, and kept prefixes."""

import re

import pytest
import torch

from sae_kit.models.gpt2 import declare_sites
from sae_kit.models.hooks import (
    Prefix,
    Stopped,
    Tape,
    check_sites,
    check_tokens,
    match_sites,
    pair_sites,
    torch_device,
    torch_dtype,
)

SITES = declare_sites(12)


def test_a_wildcard_gives_the_sites_in_the_models_order():
    found = match_sites("blocks.*.hook_resid_pre", SITES)
    assert found == [f"blocks.{i}.hook_resid_pre" for i in range(12)]


def test_patterns_join_without_repeats_in_the_models_order():
    found = match_sites(["ln_final.*", "blocks.1.hook_*_out", "blocks.1.hook_mlp_out"], SITES)
    assert found == [
        "blocks.1.hook_attn_out",
        "blocks.1.hook_mlp_out",
        "ln_final.hook_scale",
        "ln_final.hook_normalized",
    ]


@pytest.mark.parametrize(
    ("pattern", "suggested"),
    [
        ("blocks.99.hook_resid_pre", "hook_resid_pre"),
        ("blocks.*.hook_resid_pst", "hook_resid_post"),
        ("blocks.3.hook_residpre", "blocks.3.hook_resid_pre"),
        ("qqqq", "hook_embed"),
    ],
)
def test_an_unknown_pattern_names_itself_and_the_nearest(pattern, suggested):
    with pytest.raises(ValueError, match="matches no site") as error:
        match_sites(pattern, SITES)
    assert repr(pattern) in str(error.value)
    assert suggested in str(error.value)


def test_no_patterns_at_all_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        match_sites([], SITES)


def test_a_pattern_is_told_by_the_name_of_its_field():
    with pytest.raises(ValueError, match=r"writes: 'blocks\.0\.x' matches no site"):
        match_sites("blocks.0.x", SITES, what="writes")


def test_sites_are_paired_in_the_models_order():
    pairs = pair_sites("blocks.*.ln2.hook_normalized", "blocks.*.hook_mlp_out", SITES)
    blocks = [f"blocks.{i}" for i in range(12)]
    assert pairs == {f"{b}.ln2.hook_normalized": f"{b}.hook_mlp_out" for b in blocks}
    across = pair_sites("blocks.0.hook_resid_pre", ["blocks.3.hook_resid_pre"], SITES)
    assert across == {"blocks.0.hook_resid_pre": "blocks.3.hook_resid_pre"}


@pytest.mark.parametrize(
    ("reads", "writes", "message"),
    [
        ("blocks.*.hook_mlp_out", "blocks.[01].hook_resid_post", "writes: 2 sites match, but 12"),
        ("blocks.*.hook_mlp_out", "blocks.*.hook_attn_out", "0.hook_attn_out does not come after"),
        ("blocks.*.hook_mlp_out", "blocks.*.hook_mlp_out", "or writes=null for autoencoders"),
        ("blocks.*.hook_mlp_out", "blocks.*.hook_mlp", "writes: 'blocks.*.hook_mlp' matches no"),
    ],
)
def test_sites_that_do_not_pair_are_refused(reads, writes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pair_sites(reads, writes, SITES)


def test_check_sites_names_the_argument_the_site_and_the_nearest():
    check_sites(["hook_embed"], SITES, "capture")
    with pytest.raises(ValueError, match=r"capture: .*'blocks.2.hook_q'.*blocks\.2\.attn\.hook_q"):
        check_sites(["hook_embed", "blocks.2.hook_q"], SITES, "capture")


def test_the_tape_captures_what_the_edit_returned():
    tape = Tape({"a"}, {"a": lambda x: x + 1, "b": lambda x: x * 2}, None)
    assert tape("a", torch.zeros(2)).tolist() == [1, 1]
    assert tape("b", torch.ones(2)).tolist() == [2, 2]
    assert tape("c", torch.ones(2)).tolist() == [1, 1]
    assert {site: x.tolist() for site, x in tape.acts.items()} == {"a": [1, 1]}


def test_the_tape_captures_its_stop_site_before_it_stops():
    tape = Tape({"a"}, {"a": lambda x: x + 1}, "a")
    with pytest.raises(Stopped):
        tape("a", torch.zeros(1))
    assert tape.acts["a"].item() == 1


def test_the_tape_wants_captured_edited_and_stop_sites_only():
    tape = Tape({"a"}, {"b": lambda x: x}, "c")
    assert [tape.wants(site) for site in "abcd"] == [True, True, True, False]


def test_an_edit_that_changes_the_shape_is_named():
    tape = Tape((), {"a": lambda x: x[:1]}, None)
    with pytest.raises(ValueError, match=r"edit of 'a': returned shape \(1,\), expected \(2,\)"):
        tape("a", torch.zeros(2))


def test_a_prefix_can_be_cut_and_its_rows_chosen():
    keys = torch.arange(2 * 5 * 3 * 4.0).reshape(2, 5, 3, 4)
    prefix = Prefix({2: (keys, keys + 1000), 3: (keys * 2, keys)})
    assert (prefix.n_rows, prefix.n_pos) == (2, 5)
    cut = prefix.first(3).rows(torch.tensor([1, 1, 0]))
    assert (cut.n_rows, cut.n_pos) == (3, 3)
    assert set(cut.layers) == {2, 3}
    expected = torch.stack([keys[1, :3], keys[1, :3], keys[0, :3]])
    assert torch.equal(cut.layers[2][0], expected)
    assert torch.equal(cut.layers[2][1], expected + 1000)
    assert torch.equal(cut.layers[3][0], expected * 2)
    assert Prefix({}).n_pos == Prefix({}).n_rows == 0


def test_dtype_words():
    assert torch_dtype("bfloat16") is torch.bfloat16
    for word in ("int64", "float31", "nn", ""):
        with pytest.raises(ValueError, match="dtype"):
            torch_dtype(word)


def test_device_words():
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for word in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=f"device: '{word}'"):
            torch_device(word)


@pytest.mark.parametrize("tokens", [torch.zeros(4, dtype=torch.int64), torch.zeros(1, 4)])
def test_tokens_are_integers_by_context_and_position(tokens):
    with pytest.raises(ValueError, match=r"tokens: torch\.(int64|float32) of shape .*integers"):
        check_tokens(tokens, 300)


def test_no_contexts_have_no_wrong_tokens():
    check_tokens(torch.zeros(0, 4, dtype=torch.int64), 300)
