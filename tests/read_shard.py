"""Reads the browser's shards as a page does."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

CALL = re.compile(rb'browser\.receive\("([\w/]+)","([A-Za-z0-9+/=]*)"\);\n')


def read_entries(site: Path, name: str) -> list[Any]:
    """The values of a shard of entries, of which a page parses one at a time."""
    return [json.loads(entry) for entry in read_shard(site, name)]


def read_shard(site: Path, name: str) -> Any:
    """The values of a shard of the site in a folder."""
    call = CALL.fullmatch((site / "data" / f"{name}.js").read_bytes())
    assert call is not None, "not one call with a name and base64"
    assert call[1].decode() == name
    return json.loads(gzip.decompress(base64.b64decode(call[2])))
