"""Numpy's archives (.npz), read as tensors.

    peek_npz(place, "params.npz")    the arrays as tensors on the meta device: shapes and types
    read_npz(place, "params.npz")    the same, with their values

An archive is a zip file with one .npy file per array: a short header, then the elements. Pickled
objects are never read. An array has as many bytes as its header says, and all of them together at
most `MAX_EXPANSION` times the archive's; both are checked before an array is allocated.

Limits: little-endian arrays of types that torch has too; versions 1 and 2 of the header.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from sae_kit.formats.places import Place, damaged, refuse
from sae_kit.formats.zips import Members, fill, open_zip, parsing

MAX_EXPANSION = 16
"""Bytes that a byte of a compressed archive may unpack to; trained weights have about 1.1."""

_NOT_NUMPY = "give a file that numpy.savez wrote"
_PLAIN = "only arrays of plain numbers can be opened"
_NAMES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_TYPES = {np.dtype(name): getattr(torch, name) for name in _NAMES}
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def peek_npz(place: Place, name: str) -> dict[str, Tensor]:
    """The arrays of an archive, on the meta device; none is read.

    Raises:
        ValueError: it is missing, damaged, no archive, or has anything but arrays of numbers in it.
    """
    where = place.file(name)
    with open_zip(place, name, expansion=MAX_EXPANSION, remedy=_NOT_NUMPY) as members:
        arrays = _arrays(members, where)
    with parsing(where):  # of no elements, an array may have axes longer than torch's can be
        return {
            key: torch.empty(array.shape, dtype=array.dtype, device="meta")
            for key, array in arrays.items()
        }


def read_npz(place: Place, name: str) -> dict[str, Tensor]:
    """The arrays of an archive, on the CPU.

    Raises:
        ValueError: as peek_npz.
    """
    where = place.file(name)
    with open_zip(place, name, expansion=MAX_EXPANSION, remedy=_NOT_NUMPY) as members:
        arrays = _arrays(members, where)  # every size is checked before the first array is read
        try:
            return {key: array.read(members, f"{key}.npy") for key, array in arrays.items()}
        except Exception as error:  # whatever hostile bytes may bring about
            damaged(where, error)


@final
@dataclass(frozen=True)
class _Array:
    """What the header of a .npy file says."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    by_columns: bool
    n_header: int

    @staticmethod
    def of(stream: Any, n_bytes: int) -> "_Array":
        version = npy.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of its header")
        shape, by_columns, stored = _HEADERS[version](stream)
        if stored not in _TYPES:
            raise _ForeignError(f"of type {stored.str!r}")
        array = _Array(shape, _TYPES[stored], by_columns, stream.tell())
        expected = array.n_header + math.prod(shape) * stored.itemsize
        if any(n < 0 for n in shape) or n_bytes != expected:
            raise ValueError(f"{n_bytes:,} bytes for an array of shape {shape}")
        return array

    def read(self, members: Members, member: str) -> Tensor:
        """The array, of a header that was checked."""
        shape = self.shape[::-1] if self.by_columns else self.shape
        stored = torch.empty(shape, dtype=self.dtype)
        with members.open(member) as stream:
            stream.read(self.n_header)
            fill(stored, stream.read)
        return stored.permute(tuple(range(stored.ndim))[::-1]) if self.by_columns else stored


class _ForeignError(Exception):
    """An array of a kind that is not read."""


def _arrays(members: Members, where: str) -> dict[str, _Array]:
    """Every array by its name, the headers checked."""
    arrays = {}
    for member, n_bytes in members.sizes.items():
        if not member.endswith(".npy"):
            refuse(where, f"has a member {member[:80]!r}, no array", _NOT_NUMPY)
        key = member.removesuffix(".npy")
        try:
            with members.open(member) as stream:
                arrays[key] = _Array.of(stream, n_bytes)
        except _ForeignError as error:
            refuse(where, f"{key[:80]!r} is an array {error}", _PLAIN)
        except Exception as error:  # whatever hostile bytes may bring about
            damaged(where, error)
    return arrays
