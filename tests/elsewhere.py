"""A device that is not the CPU, played by the CPU: what an accelerator refuses, it refuses.

Tensors on the device `elsewhere` compute as on the CPU, but may not meet tensors that lie there. A
forgotten `.to(device)`, a draw by a generator of the CPU or a `.numpy()` fails, on any machine.
What accelerators allow is allowed: copies from one to the other, CPU scalars in arithmetic, indices
on the CPU.

    with present():
        x = torch.ones(3, device=ELSEWHERE)

Limits: says nothing of an accelerator's rounding, kernels or speed. It is PyTorch's own place for a
backend written in Python, which PyTorch calls experimental.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

ELSEWHERE = "elsewhere"
_setup_privateuseone_for_python_backend(ELSEWHERE)

aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
NOT_EVEN_SCALARS = {aten.cat, aten.stack}


@contextmanager
def present() -> Iterator[None]:
    """Inside, the device can be named."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(...) is made here, then copied there
    try:
        with _Naming():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


class Elsewhere(Tensor):
    """A tensor on the device, with the one of the CPU that it stands for."""

    held: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        own = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(ELSEWHERE, 0),
        )
        own.held = held
        return own

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _perform(op, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"{ELSEWHERE}: {self.held!r}"


class _Naming(TorchDispatchMode):
    """Sees the operations without a tensor of the device, which may ask for one."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _perform(op, args, kwargs or {})


def _perform(op: Any, args: Any, kwargs: Any) -> Any:
    """The operation on what the tensors stand for, if there it could be done."""
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    is_there = any(isinstance(one, Elsewhere) for one in tensors)
    if is_there:
        _refuse_strangers(op, args, tensors)
    if (asked := kwargs.get("device")) is not None:
        is_there = torch.device(asked).type == ELSEWHERE
        kwargs = {**kwargs, "device": torch.device("cpu")} if is_there else kwargs
    if is_there and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{op}: a generator of the CPU draws {ELSEWHERE}")
    result = op(*map(_held, args), **{name: _held(value) for name, value in kwargs.items()})
    if not is_there:
        return result
    written = _written(op, args)
    return _sent(result) if written is None else written


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _held(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_held, value))
    return value.held if isinstance(value, Elsewhere) else value


def _sent(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_sent, value))
    return Elsewhere(value) if isinstance(value, Tensor) else value


def _refuse_strangers(op: Any, args: Any, tensors: list[Tensor]) -> None:
    kind = op.overloadpacket
    if kind in COPIES:
        return
    strangers = [one for one in tensors if not isinstance(one, Elsewhere)]
    if kind in INDEX and isinstance(args[0], Elsewhere):
        strangers = [one for one in strangers if not any(one is index for index in args[1])]
    if kind not in NOT_EVEN_SCALARS:
        strangers = [one for one in strangers if one.ndim > 0]
    if strangers:
        shapes = [tuple(one.shape) for one in strangers]
        raise RuntimeError(f"{op}: tensors of the CPU, of shapes {shapes}, meet one {ELSEWHERE}")


def _written(op: Any, args: Any) -> Any:
    """What an operation in place returns, its own arguments; None for the others."""
    returned = op._schema.returns
    if not returned or not (returned[0].alias_info and returned[0].alias_info.is_write):
        return None
    changed = [
        value
        for value, argument in zip(args, op._schema.arguments, strict=False)
        if argument.alias_info and argument.alias_info.is_write
    ]
    return changed[0] if len(returned) == 1 else tuple(changed)
