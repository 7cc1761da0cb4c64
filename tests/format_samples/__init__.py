"""Small saved SAEs of every layout that opens here, laid out as the layout's own tool does it.

One module for each format, by the format's name. It has the makers of files that the format's own
tests use, and `VARIANTS`: what the format's files come as, each with a function that writes one
into an empty folder and returns the place to open. Weights are random, so that every tensor
matters, and latents fire.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """A saved SAE that can be written anew."""

    format: str
    variant: str
    write: Callable[[Path], Path]

    def __str__(self) -> str:
        return f"{self.format}-{self.variant}"


SAMPLES = tuple(
    Sample(name, variant, write)
    for _, name, _ in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
    for variant, write in importlib.import_module(f"{__name__}.{name}").VARIANTS.items()
)
