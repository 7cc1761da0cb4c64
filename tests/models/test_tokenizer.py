"""GPT-2's tokenizer gives GPT-2's ids; a trained one round-trips and splits years in two."""

import json
from pathlib import Path

import pytest

from sae_kit.models.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

TEXTS = [
    "The cat sat on the mat in 1732, and the dog didn't.",
    "  def f(x):\n\n    return x  # naïve, 日本語, emoji 🙂\t\n",
    "",
]


GPT2_FILES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "gpt2_bpe"


@pytest.fixture(scope="module")
def gpt2_tokenizer() -> Tokenizer:
    if not GPT2_FILES.is_dir():
        pytest.skip(f"GPT-2's vocabulary files are not in {GPT2_FILES}")
    return Tokenizer.load(GPT2_FILES)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    text = "the war lasted from the year 1732 to the year 1756 and the cat sat on the mat "
    return train_bpe([text * 5], 320)


def test_gpt2_ids_are_gpt2s(gpt2_tokenizer: Tokenizer) -> None:
    assert gpt2_tokenizer.encode("Hello world") == [15496, 995]
    assert gpt2_tokenizer.vocab_size == 50257
    assert gpt2_tokenizer.eot_id == 50256
    assert gpt2_tokenizer.encode(f"Hello{END_OF_TEXT} world") == [15496, 50256, 995]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("which", ["trained", "gpt2_tokenizer"])
def test_text_round_trips(which: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(which)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_batches_are_the_single_texts(trained: Tokenizer) -> None:
    assert trained.encode_batch(TEXTS) == [trained.encode(text) for text in TEXTS]


def test_token_strings_join_to_the_text(trained: Tokenizer) -> None:
    ids = trained.encode(TEXTS[0])
    assert "".join(trained.str_tokens(ids)) == TEXTS[0]


def test_single_is_a_token_or_none(gpt2_tokenizer: Tokenizer) -> None:
    assert gpt2_tokenizer.single(" world") == 995
    assert gpt2_tokenizer.single("Hello world") is None
    assert gpt2_tokenizer.single("") is None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (" 1732", [" 17", "32"]),
        ("1732", ["17", "32"]),
        (" 173", [" 17", "3"]),
        ("x1756.", ["x", "17", "56", "."]),
    ],
)
def test_digits_come_in_pairs_from_the_left(text: str, tokens: list[str]) -> None:
    digits = [f"{a}{b}" for a in range(10) for b in range(10)]
    tokenizer = train_bpe(
        ["".join(f" {d}" for d in digits) * 3, " ".join("x" + d for d in digits)], 600
    )
    assert tokenizer.str_tokens(tokenizer.encode(text)) == tokens


def test_trained_vocabulary(trained: Tokenizer) -> None:
    assert trained.eot_id == 0
    assert 257 < trained.vocab_size <= 320
    assert trained.single(" the") is not None


def test_vocabulary_too_small_for_the_bytes() -> None:
    with pytest.raises(ValueError, match="vocab_size=256"):
        train_bpe(["a"], 256)


def test_saved_and_loaded(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "new" / "folder")
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.encode_batch(TEXTS) == trained.encode_batch(TEXTS)


def test_other_tokenizers_have_other_fingerprints(trained: Tokenizer) -> None:
    assert trained.fingerprint != train_bpe(["the cat sat " * 9], 320).fingerprint


def test_opens_in_transformers(trained: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.PreTrainedTokenizerFast)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == trained.encode(text)
    assert theirs.eos_token_id == trained.eot_id


def test_vocabulary_files_equal_tokenizer_json(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (pair / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    # Without digits, GPT-2's pre-tokenisation and that of train_bpe are the same.
    assert Tokenizer.load(pair).encode("the cat sat") == trained.encode("the cat sat")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"looked for tokenizer\.json.*encoder\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer file"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    Backend(BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="end"):
        Tokenizer.load(tmp_path)
