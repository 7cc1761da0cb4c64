"""Clean/corrupt pairs from a user's own file, checked line by line.

The file is JSON Lines, one pair a line:

    {"clean": "The Eiffel Tower stands in", "corrupt": "The Colosseum stands in",
     "answer": " Paris", "wrong": " Rome"}

`answer` and `wrong` may be lists: any of the answers is right. Each word of them is one token, and
the prompts of a pair have equally many, so that every position has its counterpart.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_kit.data.prompts import Prompt
from sae_kit.models.tokenizer import Tokenizer

KEYS = ("clean", "corrupt", "answer", "wrong")


def read_prompts(path: str | Path, tokenizer: Tokenizer) -> list[Prompt]:
    """The pairs of a file, in its order; blank lines are skipped.

    Raises:
        ValueError: no such file, no pair in it, or a pair that is none: prompts that are equal or
            of different lengths, answers of several tokens or that are wrong too. The message
            names the line.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; give a .jsonl file of pairs") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    prompts = [
        _prompt(line, tokenizer, where=f"{file}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not prompts:
        raise ValueError(f"{file}: no pairs; give one a line, with {', '.join(KEYS)}")
    return prompts


def _prompt(line: str, tokenizer: Tokenizer, *, where: str) -> Prompt:
    """The pair in one line."""
    pair = _fields(line, where=where)
    clean, corrupt = (tuple(tokenizer.encode(pair[key])) for key in ("clean", "corrupt"))
    if len(clean) != len(corrupt):
        raise ValueError(
            f"{where}: clean has {len(clean)} tokens and corrupt {len(corrupt)} "
            f"({tokenizer.str_tokens(clean)} and {tokenizer.str_tokens(corrupt)}); choose words of "
            "equally many tokens"
        )
    if not clean:
        raise ValueError(f"{where}: clean is empty; give a prompt")
    if clean == corrupt:
        raise ValueError(f"{where}: clean and corrupt are the same; change what the answer needs")
    answers, wrong = (
        _single_tokens(pair[key], tokenizer, where=f"{where}: {key}") for key in ("answer", "wrong")
    )
    if both := set(answers) & set(wrong):
        raise ValueError(f"{where}: {tokenizer.str_tokens(both)} are answer and wrong; keep one")
    return Prompt(
        template=str(len(clean)),
        clean=clean,
        corrupt=corrupt,
        answers=answers,
        wrong=wrong,
        positions={"end": len(clean) - 1},
    )


def _fields(line: str, *, where: str) -> Mapping[str, Any]:
    """The four values of a line: two strings, and two that may be lists."""
    try:
        pair = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg}); write one object a line") from error
    found = sorted(pair) if isinstance(pair, dict) else type(pair).__name__
    if not isinstance(pair, dict) or set(pair) != set(KEYS):
        raise ValueError(f"{where}: found {found}; give {', '.join(KEYS)}, and nothing else")
    for key in ("clean", "corrupt"):
        if not isinstance(pair[key], str):
            raise ValueError(f"{where}: {key} is {pair[key]!r}; give a string")
    return pair


def _single_tokens(words: object, tokenizer: Tokenizer, *, where: str) -> tuple[int, ...]:
    """The ids of one word or several, each of which must be one token."""
    listed = [words] if isinstance(words, str) else words
    if not isinstance(listed, list) or not listed or not all(isinstance(w, str) for w in listed):
        raise ValueError(f"{where}: {words!r}; give a string or a list of strings")
    ids = []
    for word in listed:
        if (token := tokenizer.single(word)) is None:
            spaced = tokenizer.single(f" {word}") is not None
            remedy = f"did you mean {f' {word}'!r}?" if spaced else "choose a word that is one"
            pieces = tokenizer.str_tokens(tokenizer.encode(word))
            raise ValueError(f"{where}: {word!r} is {len(pieces)} tokens {pieces}; {remedy}")
        ids.append(token)
    return tuple(dict.fromkeys(ids))
