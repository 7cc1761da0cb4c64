"""Zip files from outside, as torch and numpy write them, bounded before a byte is unpacked.

The directory of a zip file says how large each member is. It is believed only as far as the file
itself can account for: members are stored or deflated, their names differ, and together they have
at most `expansion` times the bytes of the file. Of a member no more is read than was announced,
and its checksum must be right.
"""

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from sae_kit.formats.places import Place, damaged, refuse

CHUNK = 1 << 24
"""Bytes of a tensor that are read at a time."""


@final
class Members:
    """The members of an open zip file, by name."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        """A file whose directory was checked."""
        self._file = file
        self.sizes = {info.filename: info.file_size for info in file.infolist()}
        """Bytes of each, unpacked."""

    def open(self, name: str) -> Any:
        """A member as a stream (zipfile's), at whose end the checksum is compared."""
        return self._file.open(name)

    def read(self, name: str) -> bytes:
        """The whole of a small member."""
        return self._file.read(name)


@contextmanager
def open_zip(place: Place, name: str, *, expansion: int, remedy: str) -> Iterator[Members]:
    """A zip file, its directory checked.

    Args:
        place: where the file is.
        name: of the file.
        expansion: how many times the file's bytes its members may have; 1 = stored as they are.
        remedy: for a file that is no zip file.

    Raises:
        ValueError: it is missing, no zip file, damaged, or claims more than it can hold.
    """
    where = place.file(name)
    if not place.has(name):
        place.lacks(name, "put it where its config says")
    path = place.path(name)
    with parsing(where):
        n_bytes = path.stat().st_size
        with path.open("rb") as raw:
            is_zip = raw.read(4) == b"PK\x03\x04"
    if not is_zip:
        refuse(where, "is no zip file", remedy)
    with parsing(where):
        file = zipfile.ZipFile(path)
    with file:
        _check_directory(file.infolist(), where, n_bytes, expansion)
        yield Members(file)


def _check_directory(
    infos: list[zipfile.ZipInfo], where: str, n_bytes: int, expansion: int
) -> None:
    known = {zipfile.ZIP_STORED} | ({zipfile.ZIP_DEFLATED} if expansion > 1 else set())
    again = "write it again with its own library"
    for member, count in Counter(info.filename for info in infos).items():
        if count > 1:
            refuse(where, f"has {count} members named {member[:80]!r}", again)
    for info in infos:
        if info.compress_type not in known or info.flag_bits & 1:
            refuse(where, f"its member {info.filename[:80]!r} is compressed or encrypted", again)
    if (total := sum(info.file_size for info in infos)) > expansion * n_bytes:
        refuse(where, f"has {n_bytes:,} bytes, and members of {total:,}", again)


@contextmanager
def parsing(where: str) -> Iterator[None]:
    """Around a parser of bytes from outside: whatever it raises at them becomes a ValueError."""
    try:
        yield
    except Exception as error:
        damaged(where, error)


def fill(tensor: Tensor, read: Callable[[int], bytes]) -> None:
    """Fill a contiguous tensor with the rest of a stream.

    Raises:
        EOFError: the stream has fewer bytes, or more.
    """
    target = tensor.reshape(-1).view(torch.uint8).numpy()
    at = 0
    while part := read(CHUNK):
        if at + len(part) > len(target):
            raise EOFError(f"more than {len(target):,} bytes")
        target[at : at + len(part)] = memoryview(part)
        at += len(part)
    if at < len(target):
        raise EOFError(f"{at:,} bytes instead of {len(target):,}")
