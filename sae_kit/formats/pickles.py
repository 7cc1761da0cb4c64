"""Torch's own files (.pt, .pth), read as data: dicts of tensors and plain values.

    peek_pt(place, "ae.pt")    the nested dict, its tensors on the meta device: shapes and types
    read_pt(place, "ae.pt")    the same, tensors with their values

Such a file is a zip file of one pickle stream, which is a program for a small machine, and a member
with the bytes of each storage. The program is run by a machine of our own, which can build dicts,
lists, tuples, numbers, texts, and tensors out of storages of the file, and nothing else. That is
less than torch.load(weights_only=True) can do, which also makes tensors and byte arrays of any
size when it is told to. Nothing is imported or called by name: a word such as os.system, or the
class of a model pickled whole, is an error that quotes the word.

Sizes are checked before anything is allocated. A storage is as long as its member, a tensor no
larger than its storage (a view may not repeat elements), and all tensors together no larger than
the file.

Limits: the zip layout that torch writes since 1.6; little-endian; dense tensors, whatever device
they were on; streams of up to `MAX_STREAM` bytes.
"""

import math
import pickletools
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, UntypedStorage

from sae_kit.formats.places import Place, damaged, refuse
from sae_kit.formats.zips import Members, fill, open_zip

MAX_STREAM = 1 << 22
"""Bytes of the longest pickle stream that is run; twenty tensors take some 2,000."""

MAX_VALUES = 1 << 18
"""Values in a file, each counted as often as it occurs: a list that holds itself has no end."""

MAX_NESTED = 32
"""Dicts, lists and tuples inside each other."""

_STREAM = "data.pkl"
_OLDER = (
    "if torch before 1.6 wrote it and you trust it, write it again with torch.save(torch.load(...))"
)
_PLAIN = "only dicts of tensors and plain values can be opened; save the state_dict of what it is"

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def peek_pt(place: Place, name: str) -> dict[str, Any]:
    """What a file holds, its tensors on the meta device; no tensor is read.

    Raises:
        ValueError: it is missing, damaged, no torch file, or holds anything but a dict, with texts
            as keys, of tensors and plain values.
    """
    return _contents(place, name, _meta_storage)


def read_pt(place: Place, name: str) -> dict[str, Any]:
    """What a file holds, its tensors on the CPU; they may share memory with each other.

    Raises:
        ValueError: as peek_pt.
    """
    peek_pt(place, name)  # every size is checked before the first tensor is read
    return _contents(place, name, _read_storage)


def keys_of(place: Place, name: str) -> Set[str]:
    """The names in a file, to know a format by; none of a file that cannot be opened."""
    try:
        return peek_pt(place, name).keys()
    except ValueError:
        return set()


@final
@dataclass(frozen=True)
class _Storage:
    """A storage that a stream asks for."""

    member: str
    dtype: torch.dtype
    n_elements: int

    @property
    def n_bytes(self) -> int:
        return self.n_elements * self.dtype.itemsize


_Get = Callable[[Members, _Storage], UntypedStorage]


def _meta_storage(members: Members, storage: _Storage) -> UntypedStorage:
    return UntypedStorage(storage.n_bytes, device="meta")


def _read_storage(members: Members, storage: _Storage) -> UntypedStorage:
    flat = torch.empty(storage.n_bytes, dtype=torch.uint8)
    with members.open(storage.member) as stream:
        fill(flat, stream.read)
    return flat.untyped_storage()


def _contents(place: Place, name: str, get: _Get) -> dict[str, Any]:
    where = place.file(name)
    with open_zip(place, name, expansion=1, remedy=_OLDER) as members:
        streams = [member for member in members.sizes if member.split("/")[1:] == [_STREAM]]
        if len(streams) != 1:
            refuse(where, f"is a zip file without a {_STREAM}", "give a file that torch.save wrote")
        if (n_bytes := members.sizes[streams[0]]) > MAX_STREAM:
            refuse(where, f"has {n_bytes:,} bytes that are not tensors", _PLAIN)
        try:
            return _run(members, streams[0].removesuffix(_STREAM), get)
        except _ForeignError as error:
            refuse(where, str(error), _PLAIN)
        except Exception as error:  # whatever hostile bytes may bring about
            damaged(where, error)


class _ForeignError(Exception):
    """The stream asks for what is not done here; `<file>: <message>` is what a user reads."""


def _run(members: Members, folder: str, get: _Get) -> dict[str, Any]:
    order = f"{folder}byteorder"
    if order in members.sizes and members.read(order) != b"little":
        raise _ForeignError("is not little-endian")
    machine = _Machine(_Tensors(members, f"{folder}data/", get))
    found = machine.run(members.read(f"{folder}{_STREAM}"))
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise _ForeignError(f"holds a {type(found).__name__}, and no dict of names")
    _check_ends(found)
    return found


def _check_ends(found: dict[str, Any]) -> None:
    """See that whoever walks over the values, or prints them, comes to an end."""
    left = MAX_VALUES
    within: list[tuple[int, Iterable[Any]]] = [(1, found.values())]
    while within:
        depth, values = within.pop()
        for value in values:
            left -= 1
            if left < 0 or depth > MAX_NESTED:
                raise _ForeignError(f"holds over {MAX_VALUES:,} values, or {MAX_NESTED} deep")
            if isinstance(value, dict):
                within.append((depth + 1, value.values()))
            elif isinstance(value, list | tuple):
                within.append((depth + 1, value))


@final
class _Tensors:
    """Makes tensors out of the storages of a file, within the bytes that are there.

    Arguments come from the stream and may be anything.
    """

    def __init__(self, members: Members, folder: str, get: _Get) -> None:
        self._members, self._folder, self._get = members, folder, get
        self._named: dict[str, _Storage] = {}
        self._made: dict[_Storage, UntypedStorage] = {}
        self._left = sum(members.sizes.values())

    def storage(self, kind: Any, dtype: Any, key: Any, device: Any, n: Any) -> _Storage:
        """What a persistent id names."""
        if _only(kind, str) != "storage":
            raise ValueError("a persistent id that is no storage")
        storage = _Storage(
            f"{self._folder}{_only(key, str)}", _only(dtype, torch.dtype), _only(n, int)
        )
        if (n_bytes := self._members.sizes[storage.member]) != storage.n_bytes:
            raise ValueError(f"{storage.member} has {n_bytes:,} bytes, not {storage.n_bytes:,}")
        if self._named.setdefault(storage.member, storage) != storage:
            raise ValueError(f"{storage.member} has two types")
        return storage

    def tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any
    ) -> Tensor:
        """A view of a storage. The arguments are those of torch._utils._rebuild_tensor_v2."""
        storage = _only(storage, _Storage)
        numbers = [_only(n, int) for n in (offset, *_only(size, tuple), *_only(stride, tuple))]
        if len(size) != len(stride) or min(numbers) < 0:
            raise ValueError("a tensor of impossible size or strides")
        n_elements = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if n_elements > storage.n_elements or (n_elements and last >= storage.n_elements):
            raise ValueError(f"a tensor of {n_elements:,} elements in {storage.n_elements:,}")
        self._left -= n_elements * storage.dtype.itemsize
        if self._left < 0:
            raise ValueError("tensors of more bytes than the file has")
        if storage not in self._made:
            self._made[storage] = self._get(self._members, storage)
        made = self._made[storage]
        empty = torch.empty(0, dtype=storage.dtype, device=made.device)
        return empty.set_(made, offset, size, stride)


@final
@dataclass(frozen=True)
class _Word:
    """A name in the stream that stands for something to be made."""

    make: Callable[..., Any]


def _device(kind: Any, index: Any = None) -> str:
    return _only(kind, str) if index is None else f"{_only(kind, str)}:{_only(index, int)}"


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Tensor:
    return _only(tensor, Tensor)


@final
class _Machine:
    """Runs a pickle stream of protocol 2, as far as it makes plain values and tensors.

    Its state is a stack of values, the stacks set aside by marks, and a memo of values by number.
    """

    def __init__(self, tensors: _Tensors) -> None:
        self._stack: list[Any] = []
        self._aside: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._tensors = tensors
        self._words: dict[str, Any] = {
            "collections OrderedDict": _Word(lambda: {}),  # filled by what follows
            "torch Size": _Word(lambda sizes: _only(sizes, tuple)),
            "torch device": _Word(_device),
            "torch._utils _rebuild_tensor_v2": _Word(tensors.tensor),
            "torch._utils _rebuild_parameter": _Word(_parameter),
        }
        for storage, dtype in _STORAGES.items():
            self._words[f"torch {storage}"] = dtype
            self._words[str(dtype).replace(".", " ")] = str(dtype)  # as a value, of a config

    def run(self, stream: bytes) -> Any:
        """The value that the stream leaves."""
        arg: Any
        for opcode, arg, _ in pickletools.genops(stream):
            name = opcode.name
            if name in _FRESH:
                self._stack.append(_FRESH[name]())
            elif name in _LITERALS:
                self._stack.append(arg)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[arg] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[arg])
            elif name == "GLOBAL":
                if arg not in self._words:
                    raise _ForeignError(f"asks for {arg.replace(' ', '.')[:80]!r}")
                self._stack.append(self._words[arg])
            elif name in ("PROTO", "STOP"):
                continue
            elif name in _WORKS:
                self._work(name)
            else:
                raise _ForeignError(f"uses {name}, as torch.save does not")
        (found,) = self._stack
        return found

    def _work(self, name: str) -> None:
        """An opcode that takes its arguments from the stack."""
        if name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, self._stack = self._stack, self._aside.pop()
        stack = self._stack
        match name:
            case "MARK":
                self._aside.append(stack)
                self._stack = []
            case "TUPLE":
                stack.append(tuple(items))
            case "TUPLE1":
                stack.append((stack.pop(),))
            case "TUPLE2" | "TUPLE3":
                taken = tuple(stack[-int(name[-1]) :])
                stack[-int(name[-1]) :] = [taken]
            case "APPEND":
                last = stack.pop()
                _only(stack[-1], list).append(last)
            case "APPENDS":
                _only(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _only(stack[-1], dict)[_only(key, _KEY)] = value
            case "SETITEMS":
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _only(stack[-1], dict)[_only(key, _KEY)] = value
            case "BINPERSID":
                stack.append(self._tensors.storage(*_only(stack.pop(), tuple)))
            case "REDUCE":
                args, word = _only(stack.pop(), tuple), _only(stack.pop(), _Word)
                stack.append(word.make(*args))
            case "BUILD":
                stack.pop()  # attributes of an OrderedDict, in which modules note their versions
                _only(stack[-1], dict)


_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_WORKS = {"MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}
_WORKS |= {"BINPERSID", "REDUCE", "BUILD"}
_KEY = (str, int, float)


def _only(value: Any, kind: Any) -> Any:
    """The value, if it is of that kind."""
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where the stream needs another kind of value")
    return value
