"""Damage and malice to saved SAEs: one mutation of the files of a sample.

`mutate(random, tree, others)` returns the name of what it did and the changed tree. A tree is the
files by their names: bytes; or a link, by where it leads; or a folder (None) where a file was.
Everything that is drawn comes from `random`, so that a seed is a mutant.
"""

import copy
import io
import json
import math
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import yaml


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    to: str


Tree = dict[str, bytes | Link | None]
Random = random.Random

MARKER = "marker"
"""The file that a command makes which was hidden in a mutant, if it is run."""

DEEP, DIGITS = "@deep@", "@digits@"  # are written as lists in lists, and as a number of many digits

ODD = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 3.5, -0.5, 1e308, 5e-324, math.nan, math.inf),
    *(-math.inf, 10**30, 10**400, -(10**400), 2**31, 2**40, 2**63, -(2**63)),
    *("", "x", "4", "none", "topk", "\ud800", "../../x", "a" * 9000, "../" * 50, DEEP, DIGITS),
    *([], {}, [1], [[]], {"a": 1}, {"in": 1e-320}, [2**40] * 3, {"k": 0}, {"arch": []}),
)
"""Values where others are expected."""


def somewhere(random: Random, raw: bytes) -> int:
    """A place in a file: at its start and its end, where structure is, as often as anywhere."""
    if not raw:
        return 0
    reach = min(len(raw), random.choice((16, 200, 700)))
    at_end = len(raw) - 1 - random.randrange(reach)
    return random.choice((random.randrange(reach), at_end, random.randrange(len(raw))))


def flip(random: Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 9)) if raw else 0):
        changed[somewhere(random, raw)] = random.choice((0, 0xFF, random.randrange(256)))
    return bytes(changed)


def truncate(random: Random, raw: bytes) -> bytes:
    return raw[: somewhere(random, raw)]


def insert(random: Random, raw: bytes) -> bytes:
    at = somewhere(random, raw)
    return raw[:at] + random.randbytes(random.choice((1, 4, 8, 300))) + raw[at:]


def duplicate(random: Random, raw: bytes) -> bytes:
    start, end = sorted((somewhere(random, raw), somewhere(random, raw)))
    return raw[:end] + raw[start:end] + raw[end:]


def blank(random: Random, raw: bytes) -> bytes:
    start, end = sorted((somewhere(random, raw), somewhere(random, raw)))
    return raw[:start] + bytes(end - start) + raw[end:]


def number(random: Random, raw: bytes) -> bytes:
    """Four or eight bytes become a number that may be a length."""
    at, value = somewhere(random, raw), random.choice((0, 1, 2**31 - 1, 2**32 - 1, len(raw), 77))
    return raw[:at] + value.to_bytes(random.choice((4, 8)), "little") + raw[at + 4 :]


BYTES = (flip, truncate, insert, duplicate, blank, number)


# --- values ---------------------------------------------------------------------------------------


Holder = dict[object, object] | list[object]


def spots(holder: Holder) -> list[tuple[Holder, object]]:
    """Where values are, in nested dicts and lists: (the dict or list, the key)."""
    found = []
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        found.append((holder, key))
        if isinstance(holder[key], dict | list):
            found += spots(holder[key])
    return found


def odd_value(random: Random) -> object:
    return copy.deepcopy(random.choice(ODD))  # a copy: it may be edited in its turn


def edit(random: Random, value: dict, odd: Callable[[object], object]) -> dict:
    """Some values replaced, removed, named otherwise, or taken from elsewhere in the dict."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 5))):
        if not (found := spots(value)):
            break
        holder, key = random.choice(found)
        what = random.randrange(8)
        if what <= 4:
            holder[key] = odd(holder[key])
        elif what == 5:
            del holder[key]
        elif what == 6 and isinstance(holder, dict):
            holder[random.choice(("x", "sae_kit", f"{key}_", "__metadata__"))] = holder.pop(key)
        else:
            other, name = random.choice(found)
            holder[key] = copy.deepcopy(other[name])
    return value


def as_text(random: Random, text: str) -> bytes:
    """JSON or YAML, with what no writer would write put in."""
    n = random.choice((40, 900, 50_000))
    text = text.replace(f'"{DEEP}"', "[" * n + "]" * n).replace(f"'{DEEP}'", "[" * n + "]" * n)
    text = text.replace(f'"{DIGITS}"', "9" * 5000).replace(f"'{DIGITS}'", "9" * 5000)
    return text.encode("utf-8", "surrogatepass")


def edit_json(random: Random, raw: bytes) -> bytes:
    """Values of other types and sizes, keys missing, twice or too deep, and NaN."""
    value = edit(random, json.loads(raw), lambda _: odd_value(random))
    text = json.dumps(value)
    if random.random() < 0.15 and text.startswith("{") and value:
        key = random.choice(list(value))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(random.choice(ODD))}}}"
    return as_text(random, random.choice((text, text, text, f"[{text}]", "\ufeff" + text)))


HOSTILE_YAML = (
    f"x: !!python/object/apply:os.system ['touch {MARKER}']",
    "x: &a [1]\ny: [*a, *a]",
    "&a x: *a",
    'x: !!int ""',
    "x: !!binary '%%'",
    "x: 0x" + "f" * 5000,
    "x: 1:99:99",
    "x: 2001-99-99",
    "? [1, 2]\n: 3",
    "<<: 3",
    "x: {" * 700,
    "x:\t- 1",
    "%TAG ! tag:x,2000:\n---\nx: !y 1",
)


def edit_yaml(random: Random, raw: bytes) -> bytes:
    """As edit_json, and what only YAML can express."""
    if random.random() < 0.3:
        return raw + b"\n" + random.choice(HOSTILE_YAML).encode()
    value = edit(random, yaml.safe_load(raw), lambda _: odd_value(random))
    return as_text(random, yaml.dump(value, allow_unicode=False))


def edit_header(random: Random, raw: bytes) -> bytes:
    """Shapes, types and offsets that are not the data's; a header of another length."""
    n = int.from_bytes(raw[:8], "little")
    if random.random() < 0.2:
        n = random.choice((0, 1, n - 1, n + 1, len(raw), 2**31, 2**63, 2**64 - 1))
        return n.to_bytes(8, "little") + raw[8:]
    sizes = (0, 1, -1, 2, 2**31, 2**62, 2**63, 2**64, 1.5, None)

    def odd(value: object) -> object:
        if isinstance(value, str):
            return random.choice(("F64", "F32", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "x", 3))
        if isinstance(value, list):
            return random.choice((value[::-1], value * 2, [], [0, 0], [2**62, 4], [0, 2**40]))
        return random.choice(sizes) if isinstance(value, int) else odd_value(random)

    text = json.dumps(edit(random, json.loads(raw[8 : 8 + n]), odd))
    header = as_text(random, text)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + n :]


# --- zip files ------------------------------------------------------------------------------------


def members_of(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return {one.filename: file.read(one) for one in file.infolist()}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, raw in members.items():
            file.writestr(zipfile.ZipInfo(name), raw, method)  # of no date, not of now
    return written.getvalue()


def edit_directory(random: Random, raw: bytes) -> bytes:
    """Fields of the directory, of members' headers and of the end, each a number."""
    changed = bytearray(raw)
    for _ in range(random.choice((1, 1, 3))):
        starts = (b"PK\x01\x02", 46), (b"PK\x03\x04", 30), (b"PK\x05\x06", 22), (b"PK\x06\x06", 56)
        mark, length = random.choice(starts)
        places = [at for at in range(len(raw)) if raw.startswith(mark, at)]
        if not places:
            continue
        at = random.choice(places) + random.randrange(4, length - 1)
        value = random.choice((0, 1, 8, 12, 0x7FFF, 0xFFFF, random.randrange(1 << 16)))
        changed[at : at + 2] = struct.pack("<H", value)
    return bytes(changed)


def edit_members(random: Random, raw: bytes) -> bytes:
    """Members damaged with right checksums, missing, exchanged, renamed, compressed, too many."""
    members = members_of(raw)
    name, other = random.choice(list(members)), random.choice(list(members))
    what = random.randrange(6)
    if what <= 1:
        members[name] = random.choice(BYTES)(random, members[name])
    elif what == 2:
        del members[name]
    elif what == 3:
        members[name], members[other] = members[other], members[name]
    elif what == 4:
        away = ("../../x", "/etc/x", f"../{name}", f"{name}/../x", "C:\\x", "a" * 3000, f"{name}/")
        members[random.choice(away)] = members.pop(name)
    else:
        members[random.choice((name, "x.npy", "x/data/99"))] = bytes(1 << 22)
    return zipped(members, random.choice((0, 0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))


def edit_array(random: Random, raw: bytes) -> bytes:
    """Arrays of other types, shapes and orders, objects, and headers that lie."""
    arrays = members_of(raw)
    name = random.choice(list(arrays))
    array = np.load(io.BytesIO(arrays[name]))
    others = (
        lambda: np.asfortranarray(array),
        lambda: array[..., :-1],
        lambda: array.T,
        lambda: np.zeros((0, 7), np.float32),
        lambda: array.astype(random.choice((">f4", "f8", "f2", "i4", "c8", "U3", "M8[s]", "?"))),
        lambda: np.array([{"a": COMMAND}], dtype=object),
        lambda: np.zeros(3, dtype=[("a", "f4"), ("b", "i2")]),
        lambda: array * np.float32(random.choice((np.nan, np.inf, 1e30))),
    )
    if random.random() < 0.5:
        written = io.BytesIO()
        np.save(written, random.choice(others)(), allow_pickle=True)
        arrays[name] = written.getvalue()
    else:
        said = str(array.shape).encode()
        lies = (b"(99999999999,)", b"(-1,)", b"(0,%d)" % 2**63, b"(1j,)", b"x" * 9, b"(" * 99)
        lies += (b"(0,%d,%d)" % (2**62, 2**62), b"(True,)", b"()", b"'\\d'")
        lie = random.choice(lies)
        arrays[name] = arrays[name].replace(said, lie.ljust(len(said))[: max(len(said), len(lie))])
    return zipped(arrays)


# --- pickle streams -------------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> object:
        return self.call

    def __deepcopy__(self, memo: object) -> "Call":  # which would otherwise be the call
        return self


COMMAND = Call(os.system, f"touch {MARKER}")


def odd_tensor(random: Random, value: object) -> object:
    """Another tensor where one was; another value where none was."""
    if not isinstance(value, torch.Tensor):
        calls = (COMMAND, Call(bytearray, 1 << 40), Call(torch.empty, 1 << 40), Call(eval, "1"))
        others = ({1: torch.ones(2)}, torch.ones(2), (1, (2,)), b"x", {3})
        return random.choice((odd_value(random), *calls, *others))
    types = (torch.float64, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)
    if value.is_sparse or value.dtype in types[3:] or max(value.shape, default=0) > 1 << 20:
        return value  # it has been here before
    return random.choice(
        (
            lambda: value.new_ones(1).expand(1 << 40),
            lambda: value.new_empty(0, 1 << 40),
            lambda: value.to(random.choice(types)),
            lambda: value[..., :-1] if value.ndim else value[None],
            lambda: value.T.contiguous() if value.ndim == 2 else value[None],
            lambda: value * random.choice((math.nan, math.inf, 0, 1e38, -1)),
            lambda: torch.nn.Parameter(value.float()),
            lambda: value.to_sparse() if value.ndim == 2 else value,
            lambda: value.tolist(),
            lambda: odd_value(random),
        )
    )()


def edit_contents(random: Random, raw: bytes) -> bytes:
    """Other tensors and values, saved by torch; and whole files of something else."""
    held = torch.load(io.BytesIO(raw), weights_only=True)
    written = io.BytesIO()
    if random.random() < 0.1:
        whole = random.choice((COMMAND, [held], torch.nn.Linear(2, 2), held and {1: held}))
        torch.save(whole, written)
    elif random.random() < 0.1:
        return random.choice((pickle.dumps(COMMAND), pickle.dumps({"a": 1}), b"PK\x03\x04" + raw))
    else:
        torch.save(edit(random, dict(held), lambda value: odd_tensor(random, value)), written)
    return written.getvalue()


def edit_stream(random: Random, raw: bytes) -> bytes:
    """The program that makes the contents, with other numbers, names and opcodes."""
    members = members_of(raw)
    (name,) = (name for name in members if name.endswith("data.pkl"))
    stream = bytearray(members[name])
    for _ in range(random.choice((1, 1, 2, 6))):
        marks = [at for at, byte in enumerate(stream) if byte in b"KMJXqh\x86\x85tQR}]"]
        at = random.choice(marks) + random.choice((0, 1, 1, 1, 2))
        odd = random.choice((b"\xff", b"\x00", b"\x8a\xff" + b"\x7f" * 255, b"}", b".", b"(", b"N"))
        stream[at : at + 1] = random.choice((odd, bytes([random.randrange(256)])))
    return zipped(members | {name: bytes(stream)})


# --- files and folders ----------------------------------------------------------------------------


def exchange(random: Random, tree: Tree, name: str, others: list[Tree]) -> None:
    """A file of another SAE in the place of this one, or beside it."""
    other = random.choice(others)
    theirs = random.choice(list(other))
    alike = [one for one in other if one.rpartition(".")[2] == name.rpartition(".")[2]]
    if alike and random.random() < 0.7:
        tree[name] = other[random.choice(alike)]
    else:
        tree[f"{name.rpartition('/')[0]}/{theirs.rpartition('/')[2]}".lstrip("/")] = other[theirs]


def move(random: Random, tree: Tree, name: str, others: list[Tree]) -> None:
    """A file that is missing, a link, a folder, or has another name."""
    raw = tree.pop(name)
    links = (name.rpartition("/")[2], "/dev/zero", "/dev/null", "/etc/passwd", "..", "nowhere", "/")
    what = random.randrange(5)
    if what == 1:
        tree[name] = Link(random.choice(links))
    elif what == 2:
        tree[name] = None
    elif what == 3:
        tree[name + random.choice((".bak", "\n", "~", " ", "..", ".pt", "é\udcff"))] = raw
    elif what == 4:
        tree[f"{name}.real"] = raw
        tree[name] = Link(f"{name.rpartition('/')[2]}.real")


EDITS = {
    "json": (edit_json,),
    "yaml": (edit_yaml,),
    "safetensors": (edit_header,),
    "npz": (edit_directory, edit_members, edit_array, edit_array),
    "pt": (edit_directory, edit_members, edit_contents, edit_contents, edit_stream, edit_stream),
}
"""What understands a file, by how its name ends."""


def mutate(random: Random, tree: Tree, others: list[Tree]) -> tuple[str, Tree]:
    """One mutation of a tree; the others are those of other SAEs."""
    tree = dict(tree)
    configs = [name for name in tree if name.endswith((".json", ".yaml"))]
    name = random.choice(random.choice((configs or list(tree), list(tree))))
    if random.random() < 0.1:
        change = random.choice((exchange, move))
        change(random, tree, name, others)
    else:
        edits = EDITS.get(name.rpartition(".")[2], BYTES)
        change = random.choice(edits if random.random() < 0.7 else BYTES)
        tree[name] = change(random, tree[name])
    return f"{change.__name__} {name}", tree
