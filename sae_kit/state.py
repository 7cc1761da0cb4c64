"""Nested states as a JSON skeleton and named tensors: what a checkpoint consists of.

Limits: strided tensors of real numbers, None, bool, int, float, str, lists, tuples, and mappings
whose keys are str or int. Mappings come back as dicts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]  # nested: tensors, None, bool, int, float, str, lists, tuples, mappings

_REFERENCE, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


def take_apart(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """The JSON skeleton of `value`; its tensors go into `tensors` under generated names."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise TypeError(f"{where}: {value.layout} {value.dtype} tensors cannot be stored")
        name = f"t{len(tensors):04d}"
        tensors[name] = value
        return {_REFERENCE: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        entries = [take_apart(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]
        return {_TUPLE: entries} if isinstance(value, tuple) else entries
    if isinstance(value, Mapping):
        items = []
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where}: key {key!r} is neither str nor int")
            items.append((key, take_apart(item, tensors, f"{where}[{key!r}]")))
        # JSON would turn an optimiser's integer keys into strings; and a user's own "__tensor__"
        # key must not read as a reference.
        marked = any(k in (_REFERENCE, _TUPLE, _ITEMS) or not isinstance(k, str) for k, _ in items)
        return {_ITEMS: items} if marked else dict(items)
    raise TypeError(f"{where}: {type(value).__name__} cannot be stored in a checkpoint")


def put_together(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `take_apart`."""
    if isinstance(skeleton, list):
        return [put_together(item, tensors) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if _REFERENCE in skeleton:
        return tensors[skeleton[_REFERENCE]]
    if _TUPLE in skeleton:
        return tuple(put_together(item, tensors) for item in skeleton[_TUPLE])
    items = skeleton[_ITEMS] if _ITEMS in skeleton else skeleton.items()
    return {key: put_together(item, tensors) for key, item in items}
