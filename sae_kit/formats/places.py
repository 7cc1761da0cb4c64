"""Where saved SAEs lie: a folder, here or elsewhere, seen as the files below it.

Formats see a `Place` and nothing else of the outside world: the names of the files, a JSON file's
contents, the header of a safetensors file, or a file's path on this disk. So that what a place
costs is up to it: on the hub, names and headers come without the weights.

Whatever comes from outside is bounded before it is read: JSON by `MAX_JSON` bytes, a header by
safetensors' own limit, tensors by the size of their file (formats/tensors.py).
"""

import contextlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, final

from safetensors import SafetensorError, safe_open

MAX_JSON = 1 << 24
"""Bytes of the largest JSON (or YAML) file that is read; configs have some thousand."""

MAX_DEPTH = 6
"""Folders below a place that are looked into."""

MAX_FILES = 20_000
"""Files below a place; the largest repositories of SAEs have some thousand."""

MAX_NESTED = 64
"""Objects and lists inside each other in such a file; whoever walks over them comes to an end."""

MAX_MESSAGE = 600
"""Characters of what is said against a file, which may quote it."""

Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type (safetensors' word, F32 and so on) and shape of each tensor, by name."""


@final
@dataclass(frozen=True)
class Known:
    """What is known of the SAE at a place from elsewhere than its files."""

    site: str | None = None
    """Where it belongs in the model."""
    input_scale: float | None = None
    """The number that its inputs are multiplied by, where its files only say that they are."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What its files do not say or say wrongly, in SAELens' vocabulary."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """The repository, the commit and the path there that the files are from."""


class Place(ABC):
    """A folder of files, or one file. Names are relative, with slashes."""

    @property
    @abstractmethod
    def where(self) -> str:
        """What messages call it; its last parts often say which site an SAE belongs to."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """All files, sorted; for a place that is one file, its name alone."""

    @abstractmethod
    def at(self, name: str) -> "Place":
        """The folder or file of that name below this place; "" is the place itself."""

    @abstractmethod
    def beside(self, name: str) -> "Place | None":
        """For a place that is one file, the file of that name in the same folder, if any is."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """The file on this disk, fetched if need be."""

    @abstractmethod
    def header(self, name: str) -> Header:
        """The header of a safetensors file.

        Raises:
            ValueError: it is no safetensors file, or damaged.
        """

    @abstractmethod
    def known(self) -> Known:
        """What is known of the SAE here from elsewhere than its files."""

    @final
    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.names()

    @final
    def file(self, name: str) -> str:
        """What messages call a file of it."""
        return self.where if PurePosixPath(self.where).name == name else f"{self.where}/{name}"

    @final
    def lacks(self, name: str, remedy: str) -> NoReturn:
        """Raise ValueError for a file that is not there."""
        if self.names() == (PurePosixPath(self.where).name,):
            refuse(self.where, f"is one file of an SAE, {name} another", "give the folder of both")
        refuse(self.file(name), "is missing", remedy)

    @final
    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's object.

        Raises:
            ValueError: there is no such file, or it does not hold a JSON object.
        """
        return self.parsed(name, json.loads, "JSON")

    @final
    def parsed(self, name: str, parse: Callable[[str], Any], language: str) -> dict[str, Any]:
        """A text file's object, by the parser of its language."""
        if not self.has(name):
            self.lacks(name, "put it beside the weights")
        path = self.path(name)  # outside: that it cannot be fetched says nothing about the file
        try:
            if (n_bytes := path.stat().st_size) > MAX_JSON:
                refuse(
                    self.file(name), f"has {n_bytes:,} bytes", f"a config has under {MAX_JSON:,}"
                )
            contents = parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            refuse(
                self.file(name),
                f"cannot be read as {language} ({_short(error)})",
                "download or copy it again",
            )
        if not isinstance(contents, dict):
            refuse(self.file(name), f"is not a {language} object", "give the file that was saved")
        if _is_deep(contents):
            refuse(self.file(name), f"is over {MAX_NESTED} levels deep", "a config has few")
        return contents


@final
class LocalPlace(Place):
    """A folder or file on this disk."""

    def __init__(self, path: Path) -> None:
        """A path that exists."""
        self._path = path

    @property
    def where(self) -> str:
        """See Place.where."""
        return self._path.as_posix()

    def names(self) -> tuple[str, ...]:
        """See Place.names."""
        if self._path.is_file():
            return (self._path.name,)
        if not self._path.is_dir():  # a device, say
            return ()
        names = sorted(itertools.islice(_below(self._path, "", MAX_DEPTH), MAX_FILES + 1))
        if len(names) > MAX_FILES:
            what = f"has over {MAX_FILES:,} files below it"
            refuse(self.where, what, "give a folder that is nearer to the SAEs")
        return tuple(names)

    def at(self, name: str) -> "LocalPlace":
        """See Place.at."""
        return LocalPlace(self._path / name)

    def beside(self, name: str) -> "LocalPlace | None":
        """See Place.beside."""
        other = self._path.with_name(name)
        return LocalPlace(other) if other.is_file() else None

    def path(self, name: str) -> Path:
        """See Place.path."""
        return self._path if self._path.is_file() else self._path / name

    def header(self, name: str) -> Header:
        """See Place.header."""
        if not self.has(name):
            self.lacks(name, "put it beside its config")
        try:
            with safe_open(self.path(name), framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                return {
                    key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()
                }
        except (OSError, SafetensorError) as error:
            damaged(self.file(name), error)

    def known(self) -> Known:
        """Nothing but what the files say."""
        return Known()


def _is_deep(value: Any) -> bool:
    """Whether values are nested beyond the limit."""
    level = [value]
    for _ in range(MAX_NESTED):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _below(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    """Names of the files below a folder, without hidden ones. Links of files are followed, as the
    hub's cache is made of them; those of folders, which may lead anywhere, are not.
    """
    with contextlib.suppress(OSError):  # what may not be looked at cannot be opened either
        for entry in folder.iterdir():
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield prefix + entry.name
            elif entry.is_dir() and not entry.is_symlink() and depth > 1:
                yield from _below(entry, f"{prefix}{entry.name}/", depth - 1)


def folders_with(file: str, names: Iterable[str]) -> list[str]:
    """The folders that hold a file of this name; "" is the place that the names are relative to."""
    parts = (name.rpartition("/") for name in names)
    return sorted(folder for folder, _, own in parts if own == file)


def refuse(where: str | Path, what: str, remedy: str) -> NoReturn:
    """Raise ValueError for a file that cannot be opened."""
    if len(what) > MAX_MESSAGE:
        what = f"{what[:MAX_MESSAGE]}..."
    raise ValueError(f"{where}: {what}; {remedy}") from None


def damaged(where: str | Path, error: BaseException) -> NoReturn:
    """Raise ValueError for a file that its own reader refused."""
    refuse(where, f"is damaged or cut short ({_short(error)})", "download or copy it again")


def _short(error: BaseException) -> str:
    """The first line of what a reader says, which may quote the file at length."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"
