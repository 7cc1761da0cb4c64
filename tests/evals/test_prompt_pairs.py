"""Hand-made pairs of prompts."""

import pytest

from sae_kit.evals.prompt_pairs import SHIPPED, PromptPair, read_pairs
from sae_kit.models.pretrained import load_tokenizer

PAIR = PromptPair(kind="similar", start="the cat", a=" sat", b=" was")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("demo")


def test_the_shipped_pairs_suit_the_demo_model(tokenizer):
    pairs = read_pairs(None, tokenizer)
    assert len(pairs) == SHIPPED.read_text(encoding="utf-8").count("- {kind:")
    assert {pair.kind for pair in pairs} == {"similar", "dissimilar"}


def test_prompts_differ_in_their_ending_only(tokenizer):
    first, second = PAIR.tokens(tokenizer)
    assert tokenizer.decode(first) == "the cat sat"
    assert tokenizer.decode(second) == "the cat was"
    assert PAIR.label == "… the cat sat / was"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {kind: similar, start: a, a: ' b', b: ' extraordinarily'}", "tokens; choose different"),
        ("- {kind: similar, start: a, a: ' b', b: ' b'}", "tokens; choose different"),
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
