"""Hand-made pairs of prompts."""

import logging

import pytest

from sae_kit.evals.regions.prompt_pairs import SHIPPED, PromptPair, read_pairs
from sae_kit.models.pretrained import load_tokenizer

PAIR = PromptPair(kind="similar", start="the cat", a=" sat", b=" was")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("demo")


def test_the_shipped_pairs_suit_the_demo_model(tokenizer):
    """All of them, each with endings of one token."""
    pairs = read_pairs(None, tokenizer)
    assert len(pairs) == SHIPPED.read_text(encoding="utf-8").count("- {kind:")
    assert [pair.kind for pair in pairs].count("similar") >= 3
    assert [pair.kind for pair in pairs].count("dissimilar") >= 3
    for pair in pairs:
        first, second = pair.tokens(tokenizer, bos=False)
        assert first[:-1] == second[:-1], pair.label


@pytest.mark.parametrize("bos", [False, True])
def test_prompts_differ_in_their_ending_only(tokenizer, bos):
    first, second = PAIR.tokens(tokenizer, bos=bos)
    before = "<|endoftext|>" if bos else ""
    assert tokenizer.decode(first) == f"{before}the cat sat"
    assert tokenizer.decode(second) == f"{before}the cat was"
    assert PAIR.label == "… the cat sat / was"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "- {kind: similar, start: a, a: ' b', b: ' extraordinarily'}",
            "'a b' and 'a extraordinarily' have 2 and .* tokens; choose endings of equally many",
        ),
        ("- {kind: similar, start: a, a: ' b', b: ' b'}", "'a b' is compared with itself"),
        ("- {kind: alike, start: a, a: ' b', b: ' c'}", "'alike' is not one of"),
        ("- {kind: similar, start: a, a: ' b'}", "b: missing"),
        ("kind: similar", "is not a list of pairs"),
        ("[", "is no YAML"),
    ],
)
def test_files_of_another_form_are_refused(tokenizer, tmp_path, text, message):
    file = tmp_path / "pairs.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pairs(str(file), tokenizer)


def test_a_file_that_is_not_there_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"pairs: nowhere.yaml: No such file"):
        read_pairs("nowhere.yaml", tokenizer)


def test_shipped_pairs_that_a_tokenizer_splits_unequally_are_left_out(tiny_tokenizer, caplog):
    """Of words that it has never seen. In a file of one's own this is an error."""
    with caplog.at_level(logging.WARNING):
        pairs = read_pairs(None, tiny_tokenizer)
    assert "choose endings of equally many" in caplog.text
    for pair in pairs:
        first, second = pair.tokens(tiny_tokenizer, bos=True)
        assert len(first) == len(second)
