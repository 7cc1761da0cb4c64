"""From what a person types to the place where an SAE lies.

A source is a local path. What exists here is never looked for elsewhere.
"""

from pathlib import Path

from sae_kit.formats.places import LocalPlace, Place


def open_source(source: str | Path) -> Place:
    """The place that a source names.

    Raises:
        ValueError: there is no such place.
    """
    path = Path(source).expanduser()
    if path.exists():
        return LocalPlace(path)
    raise ValueError(f"{source}: no such folder; give the local folder of a saved SAE")
