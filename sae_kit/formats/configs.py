"""What files of other tools say about an SAE, checked: its config, its widths, its settings."""

import sys
from collections.abc import Mapping
from typing import Any

from sae_kit.config import from_node
from sae_kit.formats.places import Header, refuse
from sae_kit.sae import SAEConfig

MAX_WHOLE = 1 << 40
"""More than any width; products of such numbers do not overflow."""


def config_of(settings: Mapping[str, Any], where: str) -> SAEConfig:
    """Our config of an architecture, by its word `arch` and the fields that decide outputs.

    Raises:
        ValueError: naming the file and the field.
    """
    try:
        return from_node(SAEConfig, dict(settings))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def length_of(header: Header, name: str, where: str) -> int:
    """How long a vector is that a file has to hold.

    Raises:
        ValueError: there is none of this name, it is empty, or no vector.
    """
    if name not in header:
        refuse(where, f"has no tensor {name}", "see whether it is the right file")
    shape = header[name][1]
    if len(shape) != 1 or shape[0] < 1:
        refuse(where, f"{name} has shape {shape}", "it must be a vector")
    return shape[0]


def whole_of(contents: Mapping[str, Any], key: str, where: str) -> int:
    """A positive whole number that a config has to hold.

    Raises:
        ValueError: it holds none.
    """
    value = contents.get(key)
    if type(value) is not int or not 1 <= value <= MAX_WHOLE:
        refuse(where, f"{key} is {value!r:.80}", "it must be a positive whole number")
    return value


def positive_of(contents: Mapping[str, Any], key: str, where: str) -> float:
    """A positive number that a config has to hold.

    Raises:
        ValueError: it holds none.
    """
    value: Any = contents.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= sys.float_info.max:
        refuse(where, f"{key} is {value!r:.80}", "it must be a positive number")
    return float(value)
