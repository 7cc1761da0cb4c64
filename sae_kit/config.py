"""Configs: from a YAML node to a frozen dataclass and back, strictly, and the provenance of a run.

A config is the constructor: one YAML mapping is one frozen dataclass is one object. `from_node`
refuses whatever does not fit (a misspelt key, a missing one, a wrong type) before anything is
built, and names the field by its dotted path. Rules that span fields belong in the dataclass's
`__post_init__`; `from_node` puts the path in front of what it raises.

A `Family` is a set of configs of which YAML picks one by a word (`arch: topk`). Members register
themselves, so adding one is adding one module: no list is edited.

Limits: field types are bool, int, float, str, None, Literal, unions, tuple, dict[str, T], other
config dataclasses and families; anything else is a TypeError for the developer.
"""

import dataclasses
import difflib
import importlib
import math
import os
import pkgutil
import platform
import shlex
import subprocess
import sys
import types
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")

MISSING = "???"  # OmegaConf's spelling of "the user must give this"

VERSIONED = (
    "sae_kit",
    "torch",
    "safetensors",
    "numpy",
    "einops",
    "tokenizers",
    "datasets",
    "huggingface_hub",
    "hydra-core",
    "omegaconf",
)


class Family:
    """Base of a family of configs, one of which is chosen by one word in YAML.

        class SAEConfig(Family, ABC, tag="arch", package="sae_kit.sae"): ...   # the family
        class TopKConfig(SAEConfig, arch="topk"): ...                          # a member

    `tag` is the YAML key that holds the word, `word` a member's value of it. `package` is the
    package (or module) whose modules define the members.
    """

    tag: ClassVar[str]
    word: ClassVar[str]
    _package: ClassVar[str]
    _members: ClassVar[dict[str, type]]

    def __init_subclass__(
        cls, *, tag: str | None = None, package: str | None = None, **words: str
    ) -> None:
        super().__init_subclass__()
        if tag is not None:
            if package is None or words:
                raise TypeError(f"{cls.__name__}: a family takes tag= and package=, nothing else")
            cls.tag, cls._package, cls._members = tag, package, {}
        elif words:
            if set(words) != {getattr(cls, "tag", None)}:
                raise TypeError(f"{cls.__name__}: unknown class keywords {sorted(words)}")
            cls.word = words[cls.tag]
            cls._register()

    @classmethod
    def _register(cls) -> None:
        other = cls._members.get(cls.word)
        # The same definition run again (a reload) replaces itself; two definitions are a mistake.
        if other is not None and _identity(other) != _identity(cls):
            raise TypeError(f"{cls.tag}={cls.word} names both {other} and {cls}")
        cls._members[cls.word] = cls

    @classmethod
    def variants(cls) -> dict[str, type]:
        """The members by word, sorted, after importing every module of the family's package."""
        package = importlib.import_module(cls._package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            importlib.import_module(f"{cls._package}.{module.name}")
        return dict(sorted(cls._members.items()))


def _identity(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def from_node(cls: type[T], node: object, *, where: str = "") -> T:
    """Build the config `cls` from a mapping (plain or OmegaConf).

    Args:
        cls: a config dataclass, or the base of a Family (the tag in `node` picks the member).
        node: the mapping. Integral floats (2e6) pass as int and ints as float; a bool is no int.
        where: the dotted path of `node`, for messages.

    Raises:
        ValueError: unknown, missing or wrongly typed field, or a broken cross-field rule; the
            message starts with the dotted path of the field.
    """
    values = _mapping(node, where)
    if issubclass(cls, Family) and hasattr(cls, "tag"):
        tag = cls.tag
        cls = _member(cls, values, where)
        values.pop(tag, None)
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a config dataclass")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise ValueError(f"{_join(where, key)}: unknown{_known(key, fields)}")
    hints = get_type_hints(cls)
    arguments = {}
    for name, field in fields.items():
        path = _join(where, name)
        if name in values and values[name] != MISSING:
            arguments[name] = _convert(hints[name], values[name], path)
        elif name in values or _is_required(field):
            raise ValueError(f"{path}: missing; give it a value ({_spell(hints[name])})")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(_located(str(error), fields, where)) from error


def to_dict(config: object) -> dict[str, Any]:
    """The config as plain YAML/JSON types; a Family member's tag comes first.

    `from_node(type(config), to_dict(config)) == config`.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} is not a config")
    plain: dict[str, Any] = {}
    if isinstance(config, Family):
        plain[config.tag] = config.word
    for field in dataclasses.fields(config):
        if field.init:
            plain[field.name] = _plain(getattr(config, field.name))
    return plain


def check_counts(config: object, *names: str) -> None:
    """For a config's __post_init__: ValueError unless each of these fields is 1 or more."""
    for name in names:
        if (value := getattr(config, name)) < 1:
            raise ValueError(f"{name}: {value} is not positive; give 1 or more")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two nested plain dicts: "trainer.lr: 0.0003 -> 0.001", one per leaf."""
    return _differences(old, new, "")


def nearest(word: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` candidates that look like `word` (case aside), likeliest first; may be none."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    # 0.5, not difflib's 0.6: "resid_pre" should still find "blocks.0.hook_resid_pre".
    matches = difflib.get_close_matches(word.lower(), list(by_lower), n=n, cutoff=0.5)
    return [by_lower[match] for match in matches]


def provenance() -> dict[str, Any]:
    """Where a result comes from: time (UTC), command line, machine, package versions, git state.

    `git` is {"commit": str, "dirty": bool} of the checkout this package runs from, or None when it
    is installed rather than checked out.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_threads": torch.get_num_threads(),
        "versions": _versions(),
        "git": _git_state(Path(__file__)),
    }


# --- reading a node -------------------------------------------------------------------------------


def _mapping(node: object, where: str) -> dict[str, Any]:
    """A shallow, plain copy of a mapping node, interpolations resolved."""
    if isinstance(node, DictConfig):
        try:
            node = OmegaConf.to_container(node, resolve=True)
        except OmegaConfBaseException as error:
            raise ValueError(f"{where or 'config'}: {error}") from error
    if not isinstance(node, Mapping):
        raise _wrong(where or "config", "a mapping", node)
    for key in node:
        if not isinstance(key, str):
            raise ValueError(f"{where or 'config'}: key {key!r} is not a string; quote it")
    return dict(node)


def _member(cls: type[Family], values: Mapping[str, Any], where: str) -> type:
    """The class that `cls` (a family or a member of one) stands for, given the node's tag."""
    path = _join(where, cls.tag)
    if "word" in cls.__dict__:
        if values.get(cls.tag, cls.word) != cls.word:
            raise ValueError(f"{path}: {values[cls.tag]!r} does not fit here; give {cls.word!r}")
        return cls
    members = cls.variants()
    word = values.get(cls.tag, MISSING)
    if word == MISSING:
        raise ValueError(f"{path}: missing; choose one of: {', '.join(members)}")
    if not isinstance(word, str) or word not in members:
        raise ValueError(f"{path}: {word!r} is unknown{_known(str(word), members)}")
    return members[word]


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or a ValueError naming `where`."""
    if isinstance(value, ListConfig):
        value = OmegaConf.to_container(value, resolve=True)
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return _scalar(hint, value, where)
    if origin is Literal:
        return _literal(arguments, value, where)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict and arguments[0] is str:
        items = _mapping(value, where).items()
        return {key: _convert(arguments[1], item, _join(where, key)) for key, item in items}
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, Family)):
        return from_node(hint, value, where=where)
    raise TypeError(f"{where}: a config field cannot have the type {hint!r}")


_SCALARS = (bool, int, float, str, type(None))


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not finite; give a number")
    if type(value) is hint:
        return value
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    raise _wrong(where, _spell(hint), value)


def _literal(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    close = nearest(str(value), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(map(repr, choices))
    raise ValueError(f"{where}: {value!r} is not one of {listed}{hint}")


def _union(arms: tuple[Any, ...], value: Any, where: str) -> Any:
    if type(value) in arms:  # an exact match wins: 3 stays an int in `float | int`
        return value
    others = [arm for arm in arms if arm is not type(None)]
    if len(others) == 1:  # Optional[T]: T's own message says more than the union's
        return _convert(others[0], value, where)
    for arm in others:
        try:
            return _convert(arm, value, where)
        except ValueError:
            continue
    raise _wrong(where, " or ".join(_spell(arm) for arm in arms), value)


def _tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, f"a list (write [{value}])", value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        hints: tuple[Any, ...] = (arguments[0],) * len(value)
    else:
        hints = arguments
    if len(hints) != len(value):
        raise ValueError(f"{where}: {list(value)!r} has {len(value)} entries; give {len(hints)}")
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(_convert(hint, item, f"{where}[{i}]") for i, (hint, item) in pairs)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    absent = dataclasses.MISSING
    return field.default is absent and field.default_factory is absent


# --- messages -------------------------------------------------------------------------------------


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _known(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = nearest(word, names, n=2)
    guess = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
    return f"{guess} (known: {', '.join(names) or 'none'})"


def _wrong(where: str, expected: str, value: object) -> ValueError:
    return ValueError(f"{where}: expected {expected}, got {type(value).__name__} {value!r}")


def _spell(hint: Any) -> str:
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _located(message: str, fields: Iterable[str], where: str) -> str:
    """Put the path in front of a __post_init__ message, joined to the field it starts with."""
    if not where:
        return message
    starts_with_field = message.split(":", 1)[0].split(" ", 1)[0] in set(fields)
    return f"{where}.{message}" if starts_with_field else f"{where}: {message}"


# --- writing and comparing ------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    lines = []
    for key in dict.fromkeys([*old, *new]):
        path = _join(where, key)
        if key not in new:
            lines.append(f"{path}: {old[key]!r} -> (absent)")
        elif key not in old:
            lines.append(f"{path}: (absent) -> {new[key]!r}")
        elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            lines += _differences(old[key], new[key], path)
        elif old[key] != new[key] and not (_is_nan(old[key]) and _is_nan(new[key])):
            lines.append(f"{path}: {old[key]!r} -> {new[key]!r}")
    return lines


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


# --- provenance -----------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed, so it took no part
    return versions


def _git_state(file: Path) -> dict[str, Any] | None:
    # An installed copy may sit inside somebody else's repository (a .venv there): only a tracked
    # file speaks for this package's own history.
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "HEAD")
    status = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return None
    return {"commit": commit, "dirty": status != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no repository or no answer in 10 s."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
