"""Checkpoints: atomic save, verified load, pruning. Safetensors and JSON, never code.

A checkpoint is a folder `step_<n>` with `tensors.safetensors` (every tensor of the state),
`state.json` (everything else, with references to the tensors) and `manifest.json` (size and
SHA-256 of each file). It is written under a hidden name, flushed to the disk and then renamed, so
a process killed at any moment leaves the earlier checkpoints usable and never half of a new one
under a name that counts.

Several processes write one checkpoint together: process r > 0 adds `tensors.<r>.safetensors` and
`state.<r>.json`, and process 0 the manifest when all have. What each saved is a part, and can be
read by any number of processes (`Parts`).

Limits: one run writes to a folder at a time. Tensors come back on the CPU; tensors that shared
memory come back equal but separate.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

from torch import Tensor

from sae_kit import dist
from sae_kit.files import (
    DamagedFileError,
    describe,
    flush,
    load_tensors,
    reading,
    refused,
    storable,
    write_tensors,
)
from sae_kit.state import State, put_together, take_apart

Found = TypeVar("Found")

logger = logging.getLogger(__name__)

TENSORS, SKELETON, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def save_checkpoint(
    folder: Path,
    step: int,
    state: State,
    *,
    keep: int,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Write `folder/step_<step>` whole or not at all, then prune; returns its path.

    Called by every process of a run, each with its own state.

    Args:
        folder: holds a run's checkpoints; made if absent.
        step: number of finished training steps.
        state: see `sae_kit.state`; this process's part.
        keep: number of checkpoints to leave: this one and the newest other complete ones.
        files: further files to store beside the state, name -> contents; process 0's are kept.

    Raises:
        TypeError: the state holds something that cannot be stored; the message says where.
        OSError: the disk refused (full, read-only); no trace of this checkpoint is left and the
            earlier ones are untouched.
    """
    if keep < 1:
        raise ValueError(f"keep: {keep} would delete the checkpoint just written; give 1 or more")
    folder, files = Path(folder), dict(files or {})
    for name in files:
        if _OWN.fullmatch(name) or name in ("", "..") or Path(name).name != name:
            raise ValueError(f"files: {name!r} is taken or is no plain file name; choose another")
    here = dist.world()
    first, (tensor_file, skeleton_file) = here.rank == 0, _part_files(here.rank)
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(take_apart(state, tensors, "state"))
    final = folder / f"step_{step}"
    hidden = folder / f".step_{step}.new"
    own = {skeleton_file: skeleton, **(files if first else {})}
    try:
        _together(lambda: _make_room(hidden) if first else None)
        parts = _together(lambda: _write_part(hidden, tensor_file, tensors, own))
        entries = {name: entry for part in parts for name, entry in part.items()}
        _together(lambda: _finish(hidden, final, step, entries) if first else None)
    except OSError as error:
        raise refused(error, final) from error
    finally:
        # After a success nothing is there; after a failure or an interrupt this frees the space.
        if first:
            shutil.rmtree(hidden, ignore_errors=True)
    if first:
        _prune(folder, final, keep)
    return final


@final
class Parts(Sequence[State]):
    """What the processes of a run saved in a checkpoint, by number; read when asked for."""

    def __init__(self, path: Path) -> None:
        """The parts in the folder `path`, every file checked against the manifest.

        Raises:
            DamagedFileError: a file is missing, truncated or altered; the message names it.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            others = ", ".join(other.name for _, other in _steps(self.path.parent)) or "none"
            raise DamagedFileError(
                f"{self.path}: no such checkpoint (in {self.path.parent}: {others})"
            )
        self.step, entries = _read_manifest(self.path)
        for name, entry in entries.items():
            _check_file(self.path / name, entry)
        self._n = sum(bool(_OWN.fullmatch(name)) and name.endswith(".json") for name in entries)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        if not 0 <= index < self._n:
            raise IndexError(f"{self.path} has {self._n} parts")
        tensors, skeleton = (self.path / name for name in _part_files(index))
        return put_together(json.loads(skeleton.read_text(encoding="utf-8")), load_tensors(tensors))


def load_checkpoint(path: Path) -> State:
    """What process 0 saved at `path` (a `step_<n>` folder); see `Parts`.

    Raises:
        DamagedFileError: a file is missing, truncated or altered; the message names it.
    """
    return Parts(path)[0]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first, damaged ones included; none if there is none."""
    return [path for _, path in _steps(Path(folder))]


def latest_checkpoint(folder: Path) -> tuple[Path, State]:
    """The newest checkpoint in `folder` that verifies, and what process 0 saved in it.

    Raises:
        ValueError: there is none.
    """
    parts = latest_parts(folder)
    return parts.path, parts[0]


def latest_parts(folder: Path) -> Parts:
    """The newest checkpoint in `folder` that verifies.

    Each damaged one that is passed over is named in a logged warning.

    Raises:
        ValueError: there is none.
    """
    folder, damaged = Path(folder), []
    for _, path in _steps(folder):
        try:
            return Parts(path)
        except DamagedFileError as error:
            logger.warning("passing over a damaged checkpoint: %s", error)
            damaged.append(path.name)
    found = f"only damaged ones ({', '.join(damaged)})" if damaged else "none"
    raise ValueError(f"{folder}: no checkpoint to continue from; found {found}")


_OWN = re.compile(r"(tensors(\.\d+)?\.safetensors)|(state(\.\d+)?\.json)|(manifest\.json)")


def _part_files(rank: int) -> tuple[str, str]:
    """The names of a process's tensors and skeleton."""
    if rank == 0:
        return TENSORS, SKELETON
    return f"tensors.{rank}.safetensors", f"state.{rank}.json"


def _together(action: Callable[[], Found]) -> list[Found]:
    """What `action` returns in every process; what one disk refused is raised in all of them."""
    refused: OSError | None = None
    found: Any = None
    try:
        found = action()
    except OSError as error:
        refused = error
    told = None if refused is None else (refused.errno, refused.strerror or str(refused))
    results = dist.gather((found, told))
    if refused is not None:
        raise refused
    for _, other in results:
        if other is not None:
            raise OSError(*other)
    return [found for found, _ in results]


def _make_room(hidden: Path) -> None:
    hidden.parent.mkdir(parents=True, exist_ok=True)
    _tidy(hidden.parent)
    hidden.mkdir()


def _write_part(
    folder: Path, tensor_file: str, tensors: Mapping[str, Tensor], files: Mapping[str, str | bytes]
) -> dict[str, dict[str, Any]]:
    """Write and flush a process's files; returns their entries in the manifest."""
    write_tensors(folder / tensor_file, storable(tensors))
    for name, contents in files.items():
        data = contents.encode("utf-8") if isinstance(contents, str) else contents
        (folder / name).write_bytes(data)
    entries = {}
    for name in (tensor_file, *files):
        flush(folder / name)
        entries[name] = describe(folder / name)
    return entries


def _finish(hidden: Path, final: Path, step: int, entries: Mapping[str, Any]) -> None:
    """Write the manifest, flush, and give the folder its name."""
    body = {"step": step, "files": entries}
    manifest = {**body, "sha256": _json_digest(body)}
    (hidden / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    flush(hidden / MANIFEST)
    flush(hidden)
    _move_into_place(hidden, final)


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """DamagedFileError unless the file is the one that the manifest's entry describes."""
    with reading(path):
        found = describe(path)
    if found["n_bytes"] != entry["n_bytes"]:
        sizes = f"{found['n_bytes']} bytes, but {entry['n_bytes']} were written"
        raise DamagedFileError(f"{path}: {sizes}; the file is damaged")
    if found != entry:
        raise DamagedFileError(f"{path}: checksum differs; the file is damaged")


def _move_into_place(hidden: Path, final: Path) -> None:
    """Give the finished folder its name, replacing an earlier checkpoint of the same step."""
    replaced = final.with_name(f".{final.name}.old")
    if final.exists():
        # A folder cannot be renamed over another. A kill between these two renames leaves the old
        # one under its hidden name, where `_steps` finds it and from which `_tidy` brings it back.
        final.rename(replaced)
    hidden.rename(final)
    flush(final.parent)
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
        _, files = _read_manifest(path)
        return all((path / name).stat().st_size == files[name]["n_bytes"] for name in files)
    except (DamagedFileError, OSError):
        return False


def _read_manifest(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The step and the entries of files, after checking the manifest against its own checksum."""
    file = path / MANIFEST
    with reading(file):
        text = file.read_bytes()
    try:
        manifest = json.loads(text)
        body = {"step": manifest["step"], "files": manifest["files"]}
        intact = manifest["sha256"] == _json_digest(body)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{file}: not a manifest; the file is damaged") from error
    if not intact or not {TENSORS, SKELETON} <= set(body["files"]):
        raise DamagedFileError(f"{file}: checksum differs; the file is damaged")
    return body["step"], body["files"]


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in `folder` by step, newest (largest) first."""
    found = {}
    # A visible folder overrules the one it replaced, which counts only while there is no other.
    for pattern in (r"\.step_(\d+)\.old", r"step_(\d+)"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if match := re.fullmatch(pattern, path.name):
                found[int(match[1])] = path
    return sorted(found.items(), reverse=True)


def _json_digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
