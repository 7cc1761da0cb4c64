"""Your own text: .txt, .jsonl and .parquet files.

A .txt file is one document, a line of .jsonl and a row of .parquet are one each. Files must be
UTF-8. Held out are whole files (`heldout_paths`) or, without any, the last 2 % of every file.

Nulls, as blank texts, are no documents; half a character in .jsonl ("\\ud83d") becomes U+FFFD.

.jsonl and .parquet files are read document by document, and counted before if a part is held out:
they may be larger than memory. Limits: a .txt file is in memory as a whole.
"""

import fnmatch
import glob
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from sae_kit.data.packing import PackedContexts, fingerprint_of, tokenise_once
from sae_kit.data.tokens import ContextStream, Split, TokensConfig
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIXES = (".txt", ".jsonl", ".parquet")
HELDOUT_SHARE = 0.02
PARQUET_BUFFER = 1 << 20  # bytes of a file read at once
PARQUET_ROWS = 256  # rows of a file in memory at once

# Half of a character beyond U+FFFF, which JSON can spell, where a text was cut, and UTF-8 cannot.
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")

Part = Literal["all", "first", "last"]
"""Of a file: everything, all but the last 2 %, or the last 2 %."""


@final
@dataclass(frozen=True, kw_only=True)
class TextConfig(TokensConfig, kind="text"):
    """Local text files."""

    paths: tuple[str, ...]
    """Files, folders (searched for .txt, .jsonl, .parquet that are not hidden) or patterns such as
    books/**/*.txt. What is there under a name is no pattern, whatever is in it.
    """
    text_field: str = "text"
    """The field of .jsonl objects, or column of .parquet files, that holds the text."""
    heldout_paths: tuple[str, ...] = ()
    """Patterns (file names or whole paths) of the files to hold out; none: 2 % of every file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paths:
            raise ValueError("paths: no text named; give files, folders or patterns")

    def open(self, tokenizer: Tokenizer, *, split: Split, world: World, seed: int) -> ContextStream:
        """The source at its start; ValueError if there is no text or a file cannot be read."""
        contexts = self.contexts(tokenizer, split=split, seed=seed)
        return ContextStream(contexts, world=world, config=self)

    def contexts(self, tokenizer: Tokenizer, *, split: Split, seed: int) -> PackedContexts:
        """The contexts by index."""
        parts = select_parts(find_files(self.paths), self.heldout_paths, split)
        name = f"{split} text of {', '.join(self.paths)}"
        if not parts:
            raise ValueError(f"{name}: no file is left after setting aside {self.heldout_paths}")
        digests = [(_digest(path), path.suffix, part) for path, part in parts]
        tokens = tokenise_once(
            (doc for path, part in parts for doc in read_part(path, part, self.text_field)),
            content=fingerprint_of("text", digests, self.text_field),
            name=name,
            tokenizer=tokenizer,
        )
        bos = tokenizer.eot_id if self.prepend_bos else None
        return PackedContexts(tokens, context_size=self.context_size, bos=bos, seed=seed)


def find_files(paths: tuple[str, ...]) -> list[Path]:
    """The files that `paths` name, each once, in sorted order.

    Raises ValueError for a path that names nothing, or a file of another kind.
    """
    found: set[Path] = set()
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            files = [
                file
                for file in path.rglob("*")
                if file.suffix in SUFFIXES
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            ]
        elif path.is_file():  # also one whose name could be read as a pattern
            files = [path]
        else:
            files = [Path(file) for file in glob.glob(str(path), recursive=True)]
        files = [file for file in files if file.is_file()]
        if not files:
            raise ValueError(
                f"paths: no text found: {name!r} (searched {path.absolute()} for "
                f"{', '.join(SUFFIXES)} files)"
            )
        for file in files:
            if file.suffix not in SUFFIXES:
                raise ValueError(
                    f"paths: {file} is none of {', '.join(SUFFIXES)}; rename or convert it"
                )
        found.update(files)
    return sorted(found)


def select_parts(
    files: list[Path], heldout_paths: tuple[str, ...], split: Split
) -> list[tuple[Path, Part]]:
    """Which part of which file belongs to `split`.

    Raises ValueError for a heldout pattern that matches no file.
    """
    if not heldout_paths:
        return [(file, "first" if split == "train" else "last") for file in files]
    heldout = set()
    for pattern in heldout_paths:
        named = {file for file in files if pattern in (file.name, str(file))}
        matched = named or {
            f for f in files if fnmatch.fnmatch(f.name, pattern) or f.match(pattern)
        }
        if not matched:
            names = ", ".join(file.name for file in files)
            raise ValueError(f"heldout_paths: {pattern!r} matches none of: {names}")
        heldout |= matched
    return [(file, "all") for file in files if (file in heldout) == (split == "heldout")]


def read_part(path: Path, part: Part, text_field: str = "text") -> Iterator[str]:
    """The documents of a part of a file; blank ones are left out.

    Raises ValueError naming the file, and the byte, line or field that is wrong.
    """
    documents: Iterable[str]
    if path.suffix == ".txt":
        documents = [_cut_text(_decoded(path.read_bytes(), path), part)]
    elif path.suffix == ".jsonl":
        wanted = _wanted(part, lambda: sum(1 for _ in _lines(path)))
        documents = islice(_jsonl(path, text_field), *wanted)
    else:
        wanted = _wanted(part, lambda: _n_rows(path))
        documents = islice(_parquet(path, text_field), *wanted)
    for document in documents:
        if document.strip():
            yield document


def _cut_text(text: str, part: Part) -> str:
    """A part of a text, cut at a line end, or within the last line if that is longer than 2 %."""
    cut = _first(len(text))
    line_end = text.find("\n", cut)
    if line_end >= 0 and not text[line_end:].isspace():
        cut = line_end + 1
    return {"all": text, "first": text[:cut], "last": text[cut:]}[part]


def _wanted(part: Part, count: Callable[[], int]) -> tuple[int, int | None]:
    """From which to which document a part goes, of as many as `count` finds if it is called."""
    if part == "all":
        return 0, None
    cut = _first(count())
    return (0, cut) if part == "first" else (cut, None)


def _first(n: int) -> int:
    """How many of `n` are not held out; a single one never is."""
    return n - math.ceil(n * HELDOUT_SHARE) if n > 1 else n


def _decoded(data: bytes, path: Path, offset: int = 0) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {offset + error.start} is {data[error.start]:#04x} "
            f"({error.reason}); convert it, for instance with iconv -t utf-8"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = _decoded(line, path, offset)
            offset += len(line)
            if text.strip():
                yield number, text


def _jsonl(path: Path, text_field: str) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        fields = value if isinstance(value, dict) else {}
        text = fields.get(text_field, 0)  # 0: no such field
        if not isinstance(text, str | None):
            raise ValueError(
                f"{path}, line {number} has no text in {text_field!r}; fields: "
                f"{', '.join(fields) or 'none'} (choose one with text_field)"
            )
        yield _HALF_CHARACTER.sub("\ufffd", text or "")


def _parquet_file(path: Path) -> "ParquetFile":
    import pyarrow
    from pyarrow import parquet

    try:
        # Otherwise a whole column of a row group, which may be all of the file, is read at once.
        return parquet.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error


def _n_rows(path: Path) -> int:
    with _parquet_file(path) as file:
        return int(file.metadata.num_rows)


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    with _parquet_file(path) as file:
        if text_field not in file.schema_arrow.names:
            raise ValueError(
                f"{path} has no column {text_field!r}; columns: "
                f"{', '.join(file.schema_arrow.names)} (choose one with text_field)"
            )
        for values in _columns(file, text_field, path):
            for value in values:
                if not isinstance(value, str | None):
                    raise ValueError(
                        f"{path}: column {text_field!r} holds {type(value).__name__}, not text; "
                        "choose another with text_field"
                    )
                yield value or ""


def _columns(file: "ParquetFile", name: str, path: Path) -> Iterator[list[Any]]:
    """The values of a column, some rows at a time."""
    import pyarrow

    try:
        for batch in file.iter_batches(columns=[name], batch_size=PARQUET_ROWS):
            yield batch.column(0).to_pylist()
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}); download or copy it again") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
