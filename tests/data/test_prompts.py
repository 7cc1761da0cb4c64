"""The prompts in tokens: positions point where they say, answers are single tokens."""

import random
from dataclasses import fields, replace

import pytest

from sae_kit.data.prompts import IndirectObject, Induction, Prompt, families
from sae_kit.models.tokenizer import Tokenizer, train_bpe

NAMES = ["induction", "ioi", "greater_than", "docstring"]
TOKENIZERS = ["word_tokenizer", "gpt2_tokenizer"]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def test_there_are_four_families(tokenizer: Tokenizer) -> None:
    assert list(families(tokenizer)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_prompts_depend_on_seed_and_split(name: str, word_tokenizer: Tokenizer) -> None:
    family = families(word_tokenizer)[name]
    again = families(word_tokenizer)[name]
    drawn = family.prompts(20, seed=0)
    assert drawn == again.prompts(20, seed=0)
    assert drawn[:5] == family.prompts(5, seed=0)
    assert drawn != family.prompts(20, seed=1)
    assert drawn != family.prompts(20, seed=0, split="train")


@pytest.mark.parametrize("name", NAMES)
def test_clean_and_corrupt_have_one_length(name: str, tokenizer: Tokenizer) -> None:
    for prompt in families(tokenizer)[name].prompts(50, seed=0):
        assert len(prompt.clean) == len(prompt.corrupt)
        assert prompt.clean != prompt.corrupt
        assert prompt.positions["end"] == len(prompt.clean) - 1
        ids = [*prompt.clean, *prompt.corrupt, *prompt.answers, *prompt.wrong]
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.eot_id not in ids
        assert not set(prompt.answers) & set(prompt.wrong)


@pytest.mark.parametrize("name", NAMES[1:])
def test_prompts_are_what_the_tokenizer_makes_of_the_text(name: str, tokenizer: Tokenizer) -> None:
    for prompt in families(tokenizer)[name].prompts(50, seed=0):
        for ids in (prompt.clean, prompt.corrupt):
            assert tuple(tokenizer.encode(tokenizer.decode(ids))) == ids
        answered = (*prompt.clean, prompt.answers[0])
        assert tuple(tokenizer.encode(tokenizer.decode(answered))) == answered


def test_the_two_orders_of_one_sentence_are_aligned(word_tokenizer: Tokenizer) -> None:
    prompts = families(word_tokenizer)["ioi"].prompts(200, seed=3)
    by_template = {prompt.template: prompt for prompt in prompts}
    assert len(by_template) == 6
    for template, prompt in by_template.items():
        order, sentence = template.split(" ", 1)
        twins = {other for other in by_template if prompt.is_aligned(by_template[other])}
        assert {f"ABBA {sentence}", f"BABA {sentence}"} <= twins
        other = by_template[f"{'BABA' if order == 'ABBA' else 'ABBA'} {sentence}"]
        assert prompt.positions["IO"] == other.positions["S1"]


def test_prompts_of_other_lengths_or_labels_are_not_aligned(tiny_tokenizer: Tokenizer) -> None:
    (short,) = Induction(tiny_tokenizer, length=5).prompts(1, seed=0)
    (long,) = Induction(tiny_tokenizer, length=6).prompts(1, seed=0)
    assert short.is_aligned(short)
    assert not short.is_aligned(long)
    assert not short.is_aligned(replace(short, positions={"end": 8}))
    assert not short.is_aligned(replace(short, positions={**short.positions, "first": 0}))


@pytest.mark.parametrize("name", NAMES)
def test_one_template_has_its_labels_in_one_place(name: str, word_tokenizer: Tokenizer) -> None:
    places: dict[str, dict[str, int]] = {}
    for prompt in families(word_tokenizer)[name].prompts(100, seed=0):
        if name == "docstring":  # whose descriptions may have words of several tokens
            continue
        assert places.setdefault(prompt.template, dict(prompt.positions)) == prompt.positions


def words_at(tokenizer: Tokenizer, prompt: Prompt, *labels: str) -> list[str]:
    return [tokenizer.decode([prompt.clean[prompt.positions[name]]]) for name in labels]


def test_labels_point_at_their_words(tokenizer: Tokenizer) -> None:
    for prompt in families(tokenizer)["ioi"].prompts(30, seed=0):
        io, s1, s2 = words_at(tokenizer, prompt, "IO", "S1", "S2")
        assert s1 == s2
        assert prompt.answers == (tokenizer.single(io),)
        assert prompt.wrong == (tokenizer.single(s1),)
    for prompt in families(tokenizer)["greater_than"].prompts(30, seed=0):
        century, year, end = words_at(tokenizer, prompt, "century", "year", "end")
        assert century == end
        assert len(prompt.answers) == 99 - int(year)
        assert len(prompt.answers) + len(prompt.wrong) == 100
        corrupt_year = prompt.corrupt[prompt.positions["year"]]
        assert tokenizer.decode([corrupt_year]) == "01"
    for prompt in families(tokenizer)["docstring"].prompts(30, seed=0):
        a, b, c, a_doc, b_doc = words_at(
            tokenizer, prompt, "A_def", "B_def", "C_def", "A_doc", "B_doc"
        )
        assert (a, b) == (a_doc, b_doc)
        assert prompt.answers == (tokenizer.single(c),)


def test_induction_repeats(tiny_tokenizer: Tokenizer) -> None:
    for prompt in Induction(tiny_tokenizer, length=7).prompts(20, seed=0):
        sequence = prompt.clean[:7]
        assert (*prompt.clean[7:], *prompt.answers) == sequence
        assert prompt.positions == {"first": 5, "copied": 6, "repeat": 7, "end": 12}
        assert prompt.clean[prompt.positions["first"]] == prompt.clean[prompt.positions["end"]]
        assert prompt.corrupt[7:] == prompt.clean[7:]


def test_induction_documents_repeat_two_or_three_times(tiny_tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(60):
        ids = Induction(tiny_tokenizer).document(rng, "train")
        period = next(p for p in range(1, len(ids)) if ids[p:] == ids[:-p])
        assert len(ids) % period == 0
        assert 8 <= period <= 100
        seen.add(len(ids) // period)
    assert seen == {2, 3}


@pytest.mark.parametrize("name", NAMES[1:])
def test_documents_are_answered_sentences(name: str, word_tokenizer: Tokenizer) -> None:
    family = families(word_tokenizer)[name]
    rng = random.Random(0)
    for _ in range(20):
        text = word_tokenizer.decode(family.document(rng, "train"))
        assert text.rstrip().endswith('"""' if name == "docstring" else ".")


def test_split_words_are_left_out_and_counted(word_tokenizer: Tokenizer) -> None:
    assert families(word_tokenizer)["ioi"].left_out == ()
    names = ["Mary", "John", "Tom", "Anna", "Paul", "Jack", "Jane", "Kate", "Ruth", "Sam", "Ben"]
    known = [f" {name}" for name in names]
    known += [" store", " park", " ring", " ball", " key", " gift"]
    tokenizer = train_bpe(["".join(known)] * 3, 400)
    family = IndirectObject(tokenizer)
    assert {"Elizabeth", "hospital"} <= set(family.left_out)
    assert not {word.strip() for word in known} & set(family.left_out)
    for prompt in family.prompts(20, seed=0):
        assert {tokenizer.decode([i]) for i in (*prompt.answers, *prompt.wrong)} <= set(known)


@pytest.mark.parametrize("name", NAMES[1:])
def test_too_few_words_are_refused(name: str, word_tokenizer: Tokenizer) -> None:
    made = type(families(word_tokenizer)[name])
    with pytest.raises(ValueError, match=rf"{name}: .*(at least \d+ are needed|two digits)"):
        made(train_bpe(["nothing to see here " * 3], 280))


def test_a_sequence_of_one_token_is_no_sequence(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="length=1"):
        Induction(tiny_tokenizer, length=1)


def test_prompts_are_plain_data() -> None:
    names = ["template", "clean", "corrupt", "answers", "wrong", "positions"]
    assert [field.name for field in fields(Prompt)] == names
