"""Byte-level BPE tokenization, GPT-2's own and the demo model's.

A thin class over `tokenizers.Tokenizer`: what the toolkit needs and nothing else. Nothing is ever
added to a text (no BOS, no padding, no truncation); who wants a BOS token puts `eot_id` in front.

`train_bpe` makes the demo model's tokenizer. Its pre-tokenisation is GPT-2's with one change:
digits come in groups of at most two, counted from the left, so " 1732" is always " 17", "32". The
greater-than task (Hanna et al. 2023, arXiv 2305.00586) needs years that split so.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import final

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
N_BYTE_TOKENS = 257
"""Tokens of the smallest vocabulary: every byte, and the end of text."""

# GPT-2's pattern with `\p{N}+` replaced by `\p{N}{1,2}`.
PRE_TOKEN_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

# Names of the two vocabulary files: Hugging Face's, then OpenAI's.
_VOCABULARY_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


@final
class Tokenizer:
    """Text to token ids and back. The same text always gives the same ids."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap `backend`; ValueError if it has no end-of-text token."""
        eot_id = backend.token_to_id(END_OF_TEXT)
        if eot_id is None:
            raise ValueError(
                f"the tokenizer has no {END_OF_TEXT!r} token, which joins documents here; "
                "use GPT-2's tokenizer or one made by train_bpe"
            )
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.eot_id: int = eot_id
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.fingerprint: str = hashlib.sha256(backend.to_str().encode()).hexdigest()
        """Changes whenever any text could be tokenised differently; part of cache keys."""

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read `tokenizer.json`, or GPT-2's vocab.json + merges.txt or encoder.json + vocab.bpe.

        Raises ValueError naming what was looked for.
        """
        folder = Path(folder)
        whole = folder / "tokenizer.json"
        if whole.is_file():
            return cls(_read(whole, lambda: tokenizers.Tokenizer.from_file(str(whole))))
        for vocab_name, merges_name in _VOCABULARY_FILES:
            vocab, merges = folder / vocab_name, folder / merges_name
            if vocab.is_file() and merges.is_file():
                return cls(_read(vocab, lambda v=vocab, m=merges: _gpt2_backend(v, m)))
        pairs = " or ".join(" + ".join(pair) for pair in _VOCABULARY_FILES)
        raise ValueError(f"no tokenizer in {folder}: looked for tokenizer.json, {pairs}")

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as `transformers` reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
        }
        text = json.dumps(config, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; a literal `<|endoftext|>` in it becomes `eot_id`."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, on all cores."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, `<|endoftext|>` written out; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def str_tokens(self, ids: Iterable[int]) -> list[str]:
        """The text of each token by itself."""
        return [self.decode([i]) for i in ids]

    def single(self, text: str) -> int | None:
        """The id of `text` if it is exactly one token, else None."""
        ids = self.encode(text)
        return ids[0] if len(ids) == 1 else None


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens; `<|endoftext|>` is id 0.

    Every byte has a token (ids 1..256), so any text round-trips. Fewer tokens come out when the
    text has too few distinct words. Raises ValueError if `vocab_size` cannot hold the bytes.
    """
    if vocab_size < N_BYTE_TOKENS:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {END_OF_TEXT} need "
            f"{N_BYTE_TOKENS}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return Tokenizer(backend)


def _gpt2_backend(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend


def _read(path: Path, read) -> tokenizers.Tokenizer:
    # `tokenizers` raises bare Exception for a file it cannot parse.
    try:
        return read()
    except Exception as error:
        raise ValueError(f"{path} is not a tokenizer file: {error}") from error
