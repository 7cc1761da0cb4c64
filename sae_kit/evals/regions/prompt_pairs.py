"""Pairs of prompts that differ in their ending, from a file.

The file is YAML: a list of `{kind: similar | dissimilar, start: "...", a: "...", b: "..."}`; the
prompts are `start + a` and `start + b`. Similar endings call for the same continuation, dissimilar
ones for different ones. The shipped file has pairs of the form that Janiak et al. 2024 use.

Both prompts of a pair have equally many tokens, since an activation takes the other's place at the
same position. Where the endings are one token each, the prompts are equal up to their last token.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import yaml

from sae_kit.config import from_node
from sae_kit.models.tokenizer import Tokenizer

SHIPPED = Path(__file__).parents[2] / "assets" / "prompt_pairs.yaml"

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """Two prompts that differ in their ending."""

    kind: Literal["similar", "dissimilar"]
    start: str
    a: str
    b: str
    """The endings, with the space before them."""

    @property
    def label(self) -> str:
        """A short name for tables and figures."""
        last = self.start.split(" ")[-2:]
        return f"… {' '.join(last)}{self.a} /{self.b}"

    def tokens(self, tokenizer: Tokenizer, *, bos: bool) -> tuple[list[int], list[int]]:
        """Both prompts, behind the end-of-text token if `bos`.

        Raises:
            ValueError: they have different numbers of tokens, or are equal.
        """
        before = [tokenizer.eot_id] if bos else []
        first = [*before, *tokenizer.encode(self.start + self.a)]
        second = [*before, *tokenizer.encode(self.start + self.b)]
        if len(first) != len(second):
            raise ValueError(
                f"pairs: {self.start + self.a!r} and {self.start + self.b!r} have {len(first)} and "
                f"{len(second)} tokens; choose endings of equally many"
            )
        if first == second:
            raise ValueError(f"pairs: {self.start + self.a!r} is compared with itself")
        return first, second


def read_pairs(path: str | None, tokenizer: Tokenizer) -> list[PromptPair]:
    """The pairs of a file; of the shipped one if `path` is None, those that the tokenizer suits.

    Raises:
        ValueError: no such file, one of another form, or pairs that have different lengths.
    """
    file = SHIPPED if path is None else Path(path)
    pairs = [
        from_node(PromptPair, node, where=f"{file}[{i}]") for i, node in enumerate(_read(file))
    ]
    kept = []
    for pair in pairs:
        try:
            pair.tokens(tokenizer, bos=False)
        except ValueError as error:
            if path is not None:
                raise
            log.warning("left out: %s", error)
        else:
            kept.append(pair)
    return kept


def _read(file: Path) -> Sequence[Any]:
    try:
        nodes = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"pairs: {file}: {error.strerror}; give a YAML file of pairs") from error
    except yaml.YAMLError as error:
        raise ValueError(f"pairs: {file} is no YAML: {error}") from error
    if not isinstance(nodes, list) or not nodes:
        raise ValueError(
            f"pairs: {file} is not a list of pairs; see {SHIPPED.name} in sae_kit/assets for one"
        )
    return nodes
