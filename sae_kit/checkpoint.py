"""Checkpoints: atomic save, verified load, pruning. Safetensors and JSON, never code.

A checkpoint is a folder `step_<n>` with `tensors.safetensors` (every tensor of the state),
`state.json` (everything else, with references to the tensors) and `manifest.json` (size and
SHA-256 of each file). It is written under a hidden name, flushed to the disk and then renamed, so
a process killed at any moment leaves the earlier checkpoints usable and never half of a new one
under a name that counts.

Limits: one process writes to a folder at a time. Tensors come back on the CPU; tensors that shared
memory come back equal but separate.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

State = Mapping[str, Any]  # nested: tensors, None, bool, int, float, str, lists, tuples, mappings

TENSORS, SKELETON, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or damaged; the message names the file."""


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that can be saved and continued exactly."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def save_checkpoint(
    folder: Path,
    step: int,
    state: State,
    *,
    keep: int,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Write `folder/step_<step>` whole or not at all, then prune; returns its path.

    Args:
        folder: holds a run's checkpoints; made if absent.
        step: number of finished training steps.
        state: nested mapping of tensors and plain values; dict keys may be any str or int.
        keep: number of checkpoints to leave: this one and the newest other complete ones.
        files: further files to store beside the state, name -> contents.

    Raises:
        TypeError: the state holds something that cannot be stored; the message says where.
        OSError: the disk refused (full, read-only); no trace of this checkpoint is left and the
            earlier ones are untouched.
    """
    if keep < 1:
        raise ValueError(f"keep: {keep} would delete the checkpoint just written; give 1 or more")
    folder, files = Path(folder), dict(files or {})
    for name in files:
        if name in (TENSORS, SKELETON, MANIFEST, "", "..") or Path(name).name != name:
            raise ValueError(f"files: {name!r} is taken or is no plain file name; choose another")
    tensors: dict[str, Tensor] = {}
    files[SKELETON] = json.dumps(_take_apart(state, tensors, "state"))
    final = folder / f"step_{step}"
    hidden = folder / f".step_{step}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        hidden.mkdir()
        _write_files(hidden, step, tensors, files)
        _move_into_place(hidden, final)
    except OSError as error:
        raise _refused(error, final) from error
    finally:
        # After a success nothing is there; after a failure or an interrupt this frees the space.
        shutil.rmtree(hidden, ignore_errors=True)
    _prune(folder, final, keep)
    return final


def load_checkpoint(path: Path) -> State:
    """The state saved at `path` (a `step_<n>` folder), every file checked against the manifest.

    Raises:
        CheckpointError: a file is missing, truncated or altered; the message names it.
    """
    path = Path(path)
    if not path.is_dir():
        others = ", ".join(other.name for _, other in _steps(path.parent)) or "none"
        raise CheckpointError(f"{path}: no such checkpoint (in {path.parent}: {others})")
    for name, entry in _read_manifest(path).items():
        with _reading(path / name):
            found = _describe(path / name)
        if found["n_bytes"] != entry["n_bytes"]:
            sizes = f"{found['n_bytes']} bytes, but {entry['n_bytes']} were written"
            raise CheckpointError(f"{path / name}: {sizes}; the file is damaged")
        if found != entry:
            raise CheckpointError(f"{path / name}: checksum differs; the file is damaged")
    skeleton = json.loads((path / SKELETON).read_text(encoding="utf-8"))
    return _put_together(skeleton, load_tensors(path / TENSORS))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first, damaged ones included; none if there is none."""
    return [path for _, path in _steps(Path(folder))]


def latest_checkpoint(folder: Path) -> tuple[Path, State]:
    """The newest checkpoint in `folder` that verifies, and its state.

    Each damaged one that is passed over is named in a logged warning.

    Raises:
        ValueError: there is none.
    """
    folder, damaged = Path(folder), []
    for _, path in _steps(folder):
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("passing over a damaged checkpoint: %s", error)
            damaged.append(path.name)
    found = f"only damaged ones ({', '.join(damaged)})" if damaged else "none"
    raise ValueError(f"{folder}: no checkpoint to continue from; found {found}")


def write_atomic(path: Path, contents: str | bytes) -> None:
    """Replace the file at `path`: afterwards, even after a kill, it is the old or the new, whole.

    Raises:
        OSError: the disk refused; the old file is untouched.
    """
    path = Path(path)
    data = contents.encode("utf-8") if isinstance(contents, str) else contents
    with _replacing(path) as hidden:
        hidden.write_bytes(data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as one safetensors file, atomically; any stride, sharing or device.

    Raises:
        OSError: the disk refused; an old file at `path` is untouched.
    """
    with _replacing(Path(path)) as hidden:
        _write_tensors(hidden, _storable(tensors))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in memory of their own (not mapped from the file).

    Raises:
        CheckpointError: the file is missing or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # A clone: memory mapped from the file has another alignment than torch's own, on
            # which the last bit of a product may depend, and it vanishes if the file is cut short.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


# --- state <-> JSON skeleton and tensors ----------------------------------------------------------

_REFERENCE, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


def _take_apart(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
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
        entries = [_take_apart(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]
        return {_TUPLE: entries} if isinstance(value, tuple) else entries
    if isinstance(value, Mapping):
        items = []
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where}: key {key!r} is neither str nor int")
            items.append((key, _take_apart(item, tensors, f"{where}[{key!r}]")))
        # JSON would turn an optimiser's integer keys into strings; and a user's own "__tensor__"
        # key must not read as a reference.
        marked = any(k in (_REFERENCE, _TUPLE, _ITEMS) or not isinstance(k, str) for k, _ in items)
        return {_ITEMS: items} if marked else dict(items)
    raise TypeError(f"{where}: {type(value).__name__} cannot be stored in a checkpoint")


def _put_together(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_take_apart`."""
    if isinstance(skeleton, list):
        return [_put_together(item, tensors) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if _REFERENCE in skeleton:
        return tensors[skeleton[_REFERENCE]]
    if _TUPLE in skeleton:
        return tuple(_put_together(item, tensors) for item in skeleton[_TUPLE])
    items = skeleton[_ITEMS] if _ITEMS in skeleton else skeleton.items()
    return {key: _put_together(item, tensors) for key, item in items}


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: on the CPU, contiguous, no memory in common."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        stored[name] = tensor
    return stored


# --- files ----------------------------------------------------------------------------------------


def _write_files(
    folder: Path, step: int, tensors: Mapping[str, Tensor], files: Mapping[str, str | bytes]
) -> None:
    """Fill `folder` and flush it to the disk, the manifest last."""
    _write_tensors(folder / TENSORS, _storable(tensors))
    for name, contents in files.items():
        data = contents.encode("utf-8") if isinstance(contents, str) else contents
        (folder / name).write_bytes(data)
    entries = {}
    for name in (TENSORS, *files):
        _flush(folder / name)
        entries[name] = _describe(folder / name)
    body = {"step": step, "files": entries}
    manifest = {**body, "sha256": _json_digest(body)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _flush(folder / MANIFEST)
    _flush(folder)


def _move_into_place(hidden: Path, final: Path) -> None:
    """Give the finished folder its name, replacing an earlier checkpoint of the same step."""
    replaced = final.with_name(f".{final.name}.old")
    if final.exists():
        # A folder cannot be renamed over another. A kill between these two renames leaves the old
        # one under its hidden name, where `_steps` finds it and from which `_tidy` brings it back.
        final.rename(replaced)
    hidden.rename(final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Clear what killed processes left: unfinished, replaced and half-deleted checkpoints."""
    for path in folder.glob(".step_*.old"):
        final = path.with_name(path.name[1 : -len(".old")])
        if not final.exists():
            path.rename(final)
    for suffix in ("new", "old", "gone"):
        for path in folder.glob(f".step_*.{suffix}"):
            shutil.rmtree(path, ignore_errors=True)


def _prune(folder: Path, written: Path, keep: int) -> None:
    """Leave `written` and the newest others that look complete, `keep` in all."""
    others = [path for _, path in _steps(folder) if path != written]
    # Sizes only: hashing gigabytes of old checkpoints at every save would cost more than the save.
    kept = [path for path in others if _looks_complete(path)][: keep - 1]
    for path in others:
        if path not in kept:
            gone = path.with_name(f".{path.name}.gone")
            try:
                path.rename(gone)  # first, so that a kill leaves no half-deleted checkpoint
            except OSError as error:  # the new checkpoint is safe: no reason to stop a run
                logger.warning("%s could not be removed: %s", path, error.strerror)
            shutil.rmtree(gone, ignore_errors=True)


def _looks_complete(path: Path) -> bool:
    try:
        files = _read_manifest(path)
        return all((path / name).stat().st_size == files[name]["n_bytes"] for name in files)
    except (CheckpointError, OSError):
        return False


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The manifest's file entries, after checking the manifest against its own checksum."""
    file = path / MANIFEST
    with _reading(file):
        text = file.read_bytes()
    try:
        manifest = json.loads(text)
        body = {"step": manifest["step"], "files": manifest["files"]}
        intact = manifest["sha256"] == _json_digest(body)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a manifest; the file is damaged") from error
    if not intact or not {TENSORS, SKELETON} <= set(body["files"]):
        raise CheckpointError(f"{file}: checksum differs; the file is damaged")
    return body["files"]


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in `folder` by step, newest (largest) first."""
    found = {}
    # A visible folder overrules the one it replaced, which counts only while there is no other.
    for pattern in (r"\.step_(\d+)\.old", r"step_(\d+)"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if match := re.fullmatch(pattern, path.name):
                found[int(match[1])] = path
    return sorted(found.items(), reverse=True)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A hidden path to write to, which takes the place of `path` when the block succeeds."""
    # Runs of one sweep may write the same cached file at the same time.
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield hidden
        _flush(hidden)
        hidden.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _refused(error, path) from error
    finally:
        with contextlib.suppress(OSError):  # or it would hide what went wrong
            hidden.unlink()


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path)
        path.chmod(mode)  # safetensors leaves a file that only its owner may read
    except SafetensorError as error:
        # safetensors wraps the operating system's error in text: "... Os { code: 28, ... }".
        code = re.search(r"code: (\d+)|os error (\d+)", str(error))
        number = int(code[1] or code[2]) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else str(error), str(path)) from error


def _refused(error: OSError, path: Path) -> OSError:
    reason = error.strerror or str(error)
    message = f"{reason}: could not write {path}; what was there before is kept"
    return OSError(error.errno or errno.EIO, message)


def _flush(path: Path) -> None:
    """Have the disk hold a file's contents, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"n_bytes": file.tell(), "sha256": digest}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the operating system says against reading `path`, as a CheckpointError naming it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _json_digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
