"""The folder that a site is built into: whole or not at all, and nobody else's files touched.

A site is built in a hidden folder beside its own and takes its name when it is complete; the site
that was there before goes only then. A folder that holds anything but a site of the same subject is
refused.

Limits: a kill leaves the hidden folder behind. Between the two renames, for a moment, there is no
site.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_kit.files import write_atomic

MARKER = "browser.json"
"""Says that a folder is a site, and of what."""
ENTRIES = {MARKER, "index.html", "page", "data"}
"""What a site's folder has in it."""


@contextlib.contextmanager
def building(out: Path, subject: Any) -> Iterator[Path]:
    """A folder to build in, which takes the place of `out` when the block succeeds.

    Args:
        out: the site's folder: absent, empty, or a site of the same subject.
        subject: JSON values that tell what the site is about.

    Raises:
        ValueError: the folder has something else in it; nothing is changed then.
        OSError: the disk refused; what was there before is kept.
    """
    out = Path(out).absolute()
    check(out, subject)
    hidden = out.with_name(f".{out.name}.{os.getpid()}.building")
    before = out.with_name(f".{out.name}.{os.getpid()}.before")
    try:
        hidden.mkdir(parents=True)
        yield hidden
        # Last, so that a folder with a marker is complete.
        write_atomic(hidden / MARKER, json.dumps({"subject": subject}, indent=2) + "\n")
        if out.exists():
            out.rename(before)
        hidden.rename(out)
    finally:
        for leftover in (hidden, before):
            shutil.rmtree(leftover, ignore_errors=True)


def check(out: Path, subject: Any) -> None:
    """See building."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"out: {out} is a file; give a folder")
    found = {entry.name for entry in out.iterdir()}
    if not found:
        return
    if MARKER not in found:
        some = ", ".join(sorted(found)[:3])
        raise ValueError(
            f"out: {out} holds other files ({some}) and nothing was overwritten; give a new or an "
            "empty folder"
        )
    if others := sorted(found - ENTRIES):
        raise ValueError(
            f"out: {out} holds a site and other files ({', '.join(others[:3])}), which rebuilding "
            "would remove; move them, or give another folder"
        )
    try:
        held = json.loads((out / MARKER).read_text(encoding="utf-8"))["subject"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"out: {out / MARKER} cannot be read: {error!r}; give another folder"
        ) from error
    if held != json.loads(json.dumps(subject)):
        raise ValueError(
            f"out: {out} holds the site of other SAEs and nothing was overwritten; give another "
            "folder, or remove that one"
        )
