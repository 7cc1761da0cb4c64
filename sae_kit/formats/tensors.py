"""Tensors out of files from outside, bounded by the size of the file that they came in.

A header is checked before a tensor is read, and no tensor is larger than what its file holds.
"""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_kit.formats.places import Header, Place, damaged, refuse

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_INTEGERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_WORDS = {dtype: word for word, dtype in (FLOATS | _INTEGERS).items()}


def header_of(contents: Mapping[str, Any]) -> Header:
    """Type and shape of the tensors among a file's contents; what else it holds is passed over."""
    return {
        name: (_WORDS[value.dtype], tuple(value.shape))
        for name, value in contents.items()
        if isinstance(value, Tensor)
    }


def check_header(
    header: Header,
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    *,
    optional: Mapping[str, tuple[int, ...]] | None = None,
    because: str,
) -> None:
    """Refuse tensors that are missing, unknown, of another shape, or no floating-point numbers.

    Args:
        header: what the file holds.
        expected: what it must hold, by name and shape.
        where: the file, for messages.
        optional: what it may hold as well.
        because: what the shapes follow from, for messages (`d_in=4 and d_sae=8`).

    Raises:
        ValueError: naming the tensor.
    """
    optional = optional or {}
    missing = sorted(expected.keys() - header.keys())
    extra = sorted(header.keys() - expected.keys() - optional.keys())
    if missing or extra:
        refuse(
            where,
            f"missing tensors {missing}, unknown tensors {extra}",
            f"it must hold {sorted(expected)}; see whether its config names the right architecture",
        )
    for name, (dtype, shape) in header.items():
        wanted = {**expected, **optional}[name]
        if shape != wanted:
            what = f"{name} has shape {shape}, but {because} make it {wanted}"
            refuse(where, what, "see whether it belongs to this config")
        if dtype not in FLOATS:
            refuse(where, f"{name} has type {dtype}", f"it must be one of {', '.join(FLOATS)}")


def read_safetensors(place: Place, name: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose header was checked, mapped from it: to be copied.

    Args:
        place: where the file is.
        name: of the file.
        names: ours, by the file's, of the tensors to read.
    """
    path = place.path(name)
    try:
        with safe_open(path, framework="pt") as file:
            return {ours: file.get_tensor(theirs) for theirs, ours in names.items()}
    except (OSError, SafetensorError) as error:
        damaged(place.file(name), error)
