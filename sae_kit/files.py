"""Files that are whole or not there at all, whatever happens while they are written.

A file is written under a hidden name, flushed to the disk and renamed. Tensors are safetensors,
never code. What several processes need and one is to make, they make in turns.

Limits: a kill leaves the hidden file behind. Turns are those of the processes of one machine, or of
one network folder whose system knows locks.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)


class DamagedFileError(ValueError):
    """A file that is missing, incomplete or damaged; the message names it."""


def write_atomic(path: Path, contents: str | bytes) -> None:
    """Replace the file at `path`: afterwards, even after a kill, it is the old or the new, whole.

    Raises:
        OSError: the disk refused; the old file is untouched.
    """
    path = Path(path)
    data = contents.encode("utf-8") if isinstance(contents, str) else contents
    with _replacing(path) as hidden:
        hidden.write_bytes(data)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors as one safetensors file, atomically; any stride, sharing or device.

    Args:
        path: the file.
        tensors: what it gets.
        metadata: words for its header.

    Raises:
        OSError: the disk refused; an old file at `path` is untouched.
    """
    with _replacing(Path(path)) as hidden:
        write_tensors(hidden, storable(tensors), metadata=metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in memory of their own (not mapped from the file).

    Raises:
        DamagedFileError: the file is missing or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # A clone: memory mapped from the file has another alignment than torch's own, on
            # which the last bit of a product may depend, and it vanishes if the file is cut short.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"{path}: cannot be read: {error}") from error


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def write_tensors(
    path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors that `storable` returned; an OSError says what the disk had against it."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=metadata)
        path.chmod(mode)  # safetensors leaves a file that only its owner may read
    except SafetensorError as error:
        # safetensors wraps the operating system's error in text: "... Os { code: 28, ... }".
        code = re.search(r"code: (\d+)|os error (\d+)", str(error))
        number = int(code[1] or code[2]) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else str(error), str(path)) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A hidden path to write to, which takes the place of `path` when the block succeeds."""
    # Runs of one sweep may write the same cached file at the same time.
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield hidden
        flush(hidden)
        hidden.replace(path)
        flush(path.parent)
    except OSError as error:
        raise refused(error, path) from error
    finally:
        with contextlib.suppress(OSError):  # or it would hide what went wrong
            hidden.unlink()


@contextlib.contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Within, no other process is in a block for the same `path`: one makes the file there, and the
    others find it. A process that fails or ends lets the next one in.

    Raises:
        OSError: the folder does not exist, or cannot be written to.
    """
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with open(lock, "wb") as file:
            _wait_for(file, path)
            if not _is_at(file, lock):  # whoever had it has deleted it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _wait_for(lock: BinaryIO, path: Path) -> None:
    """Hold `lock`, as long as it is open."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that is making %s", path)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is the one that is found at `path` now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def refused(error: OSError, path: Path) -> OSError:
    """An OSError that names the file which could not be written."""
    reason = error.strerror or str(error)
    message = f"{reason}: could not write {path}; what was there before is kept"
    return OSError(error.errno or errno.EIO, message)


def flush(path: Path) -> None:
    """Have the disk hold a file's contents, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"n_bytes": file.tell(), "sha256": digest}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the operating system says against reading `path`, as a DamagedFileError naming it."""
    try:
        yield
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read: {error.strerror}") from error
