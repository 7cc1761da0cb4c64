"""What the data tests share: a tokenizer that knows the prompt words, a cache of their own."""

from pathlib import Path

import pytest

from sae_kit.data.grammar import Words
from sae_kit.models.tokenizer import Tokenizer, train_bpe

GPT2_FILES = Path(__file__).parents[3] / "shared" / "fixtures" / "gpt2_bpe"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps tokenised text out of the user's cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAE_KIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def word_tokenizer() -> Tokenizer:
    """Every word of the prompt families is one token of this one."""
    words = Words().words()
    years = [str(year) for year in range(1100, 1900)]
    spaced = "".join(f" {word}" for word in (*words, *years))
    return train_bpe([spaced, "\n".join(words)] * 20, 1800)


@pytest.fixture(scope="session")
def gpt2_tokenizer() -> Tokenizer:
    if not GPT2_FILES.is_dir():
        pytest.skip(f"GPT-2's vocabulary files are not in {GPT2_FILES}")
    return Tokenizer.load(GPT2_FILES)
