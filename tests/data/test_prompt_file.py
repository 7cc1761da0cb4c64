"""A user's pairs: what is read, and what each mistake is told."""

import json
from pathlib import Path

import pytest

from sae_kit.data.prompt_file import read_prompts
from sae_kit.models.tokenizer import Tokenizer

GOOD = {
    "clean": "Then, Mary and John",
    "corrupt": "Then, Tom and Ruth",
    "answer": " Anna",
    "wrong": [" Paul", " Jack"],
}


def write(folder: Path, *lines: object) -> Path:
    file = folder / "pairs.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return file


def test_pairs_are_read_in_order(tmp_path: Path, word_tokenizer: Tokenizer) -> None:
    other = {**GOOD, "clean": "Then, Mary and Kate", "answer": [" Anna", " Ben"]}
    first, second = read_prompts(write(tmp_path, GOOD, "", other), word_tokenizer)
    assert word_tokenizer.decode(first.clean) == GOOD["clean"]
    assert word_tokenizer.decode(first.corrupt) == GOOD["corrupt"]
    assert word_tokenizer.str_tokens(first.answers) == [" Anna"]
    assert word_tokenizer.str_tokens(first.wrong) == [" Paul", " Jack"]
    assert first.positions == {"end": len(first.clean) - 1}
    assert word_tokenizer.str_tokens(second.answers) == [" Anna", " Ben"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupt": "Then, Tom and Ruth and"}, "tokens and corrupt .*equally many"),
        ({"corrupt": GOOD["clean"]}, "are the same"),
        ({"clean": "", "corrupt": ""}, "clean is empty"),
        ({"answer": "Mary John"}, r"answer: 'Mary John' is \d+ tokens"),
        ({"answer": " Mary John"}, r"answer: .* is 2 tokens .*choose a word that is one"),
        ({"wrong": [" Paul", " Anna"]}, "are answer and wrong"),
        ({"answer": []}, "give a string or a list"),
        ({"answer": 3}, "give a string or a list"),
        ({"clean": 3}, "clean is 3; give a string"),
        ({"answers": " Mary"}, "found .*answers.*give clean, corrupt, answer, wrong"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    change: dict[str, object], message: str, tmp_path: Path, word_tokenizer: Tokenizer
) -> None:
    file = write(tmp_path, GOOD, {**GOOD, **change})
    with pytest.raises(ValueError, match=rf"pairs\.jsonl:2: .*{message}"):
        read_prompts(file, word_tokenizer)


def test_a_forgotten_space_is_suggested(tmp_path: Path, gpt2_tokenizer: Tokenizer) -> None:
    file = write(tmp_path, {**GOOD, "answer": "Ruth"})
    assert gpt2_tokenizer.single("Ruth") is None
    with pytest.raises(ValueError, match=r"did you mean ' Ruth'\?"):
        read_prompts(file, gpt2_tokenizer)


@pytest.mark.parametrize("line", ["{", "[]", "3"])
def test_what_is_no_object_is_refused(line: str, tmp_path: Path, word_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: (not JSON|found)"):
        read_prompts(write(tmp_path, line), word_tokenizer)


def test_what_cannot_be_read_is_refused(tmp_path: Path, word_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_prompts(tmp_path / "absent.jsonl", word_tokenizer)
    with pytest.raises(ValueError, match="no pairs"):
        read_prompts(write(tmp_path, "", " "), word_tokenizer)
    (tmp_path / "latin.jsonl").write_bytes(b'{"clean": "caf\xe9"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.jsonl", word_tokenizer)
