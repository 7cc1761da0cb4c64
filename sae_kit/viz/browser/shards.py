"""Shards: the pieces of data that a page loads when it needs them. See the package's docstring."""

import base64
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

from torch import Tensor

DIGITS = 4
"""Decimal places of the numbers in shards."""


@final
class Shards:
    """Writes shards into a folder, one script each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, value: Any) -> None:
        """Write JSON values under a name such as "latents/3/12".

        Raises:
            OSError: the disk refused.
        """
        # No time in the header: a result makes the same site whenever it is built. Level 4 takes a
        # third of the time of level 6, and 7 % more room.
        packed = base64.b64encode(gzip.compress(_json(value).encode(), compresslevel=4, mtime=0))
        path = self.folder / f"{name}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'browser.receive("%s","%s");\n' % (name.encode("ascii"), packed))

    def write_entries(self, name: str, entries: Iterable[Any]) -> None:
        """Write several values of which a page wants one at a time.

        Each is JSON for itself, in a string: a page parses what it shows and no more, and what it
        keeps of the others is text, which its browser need not look through for garbage.
        """
        self.write(name, [_json(entry) for entry in entries])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def numbers(values: Tensor) -> list[Any]:
    """Numbers as JSON has them, rounded; NaN is 0."""
    if not values.is_floating_point():
        return values.tolist()
    return values.double().nan_to_num(0.0).round(decimals=DIGITS).tolist()


def significant(values: Tensor) -> list[Any]:
    """Numbers of any size, in four significant digits."""
    return [float(f"{value:.4g}") for value in values.double().nan_to_num(0.0).flatten().tolist()]
