"""Saved SAEs: open them, whatever tool wrote them, and write them for others to open.

A format is one module of this package with one `Format` class, which registers itself; its name is
the word that `save_sae(format=...)` takes. Opening needs no word: formats know their own files.

Where SAEs lie: `<run>/saes/<site>/`, one folder each, named after the site.

Limits: local folders only.
"""

import importlib
import pkgutil
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sae_kit.sae import SAE, SAEConfig

SAES_FOLDER = "saes"
"""Name of the folder inside a run folder that holds one folder per site."""


@final
@dataclass(frozen=True)
class SAEInfo:
    """What can be known about a saved SAE without reading its weights."""

    path: Path
    """The folder."""

    format: str
    """Name of the format it is in."""

    config: SAEConfig
    """Its architecture. For files of other tools, fields that only training reads are defaults."""

    d_in: int
    """Width of its input."""

    d_out: int | None
    """Width of what a transcoder reconstructs; None = an autoencoder."""

    site: str | None
    """The site it was trained on, if the file says so."""

    metadata: Mapping[str, Any]
    """Everything else the file says about where the SAE comes from."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """Type (safetensors' word) and shape of each stored tensor."""


class Format(ABC):
    """A layout of files for one SAE in one folder."""

    name: ClassVar[str]
    _known: ClassVar[dict[str, type["Format"]]] = {}

    def __init_subclass__(cls, *, name: str) -> None:
        super().__init_subclass__()
        cls.name = name
        Format._known[name] = cls

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Whether the folder holds (perhaps damaged) files of this format."""

    @abstractmethod
    def inspect(self, folder: Path) -> SAEInfo:
        """See inspect_sae."""

    @abstractmethod
    def load(self, folder: Path) -> SAE:
        """See load_sae."""

    @abstractmethod
    def save(
        self,
        sae: SAE,
        folder: Path,
        *,
        metadata: Mapping[str, Any],
        sparsity: Float[Tensor, " d_sae"] | None,
    ) -> None:
        """See save_sae."""


def formats() -> dict[str, Format]:
    """Every format by name, after importing every module of this package once."""
    package = importlib.import_module("sae_kit.formats")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {name: known() for name, known in sorted(Format._known.items())}


def save_sae(
    sae: SAE,
    path: str | Path,
    *,
    metadata: Mapping[str, Any],
    sparsity: Float[Tensor, " d_sae"] | None = None,
    format: str = "saelens",
) -> None:
    """Write an SAE into the folder `path` (made if need be; files of the same names are replaced).

    Args:
        sae: the SAE, its input scaling folded in: what is saved takes raw activations.
        path: the folder.
        metadata: JSON values on where it comes from, in SAELens' vocabulary where that has a word
            (`model_name`, `hook_name` for the site, `context_size`, `prepend_bos`, ...).
        sparsity: how often each latent fires, as a share of rows in [0, 1].
        format: name of the layout.

    Raises:
        ValueError: an unknown format, or an SAE or metadata that the format cannot hold faithfully.
    """
    known = formats()
    if format not in known:
        raise ValueError(f"format: {format!r} is unknown; choose one of {', '.join(known)}")
    known[format].save(sae, Path(path), metadata=metadata, sparsity=sparsity)


def load_sae(path: str | Path) -> SAE:
    """Open a saved SAE; `sae.metadata` says where it comes from.

    Raises:
        ValueError: nothing there that any format knows, a damaged file, a tensor of the wrong name
            or shape, or an SAE whose outputs this package would not reproduce.
    """
    folder = Path(path)
    return _recognise(folder).load(folder)


def inspect_sae(path: str | Path) -> SAEInfo:
    """What is saved at `path`, from its config and the header of its weights; no weights are read.

    Raises:
        ValueError: as load_sae.
    """
    folder = Path(path)
    return _recognise(folder).inspect(folder)


def load_saes(path: str | Path, layers: Collection[int] | None = None) -> dict[str, SAE]:
    """Open the SAEs of a run, by site, in the order in which the model computes the sites.

    Args:
        path: a run folder (which has `saes/`) or a folder of SAE folders.
        layers: block numbers to open; None opens all.

    Raises:
        ValueError: no SAEs there, a layer that has none, or as load_sae.
    """
    folders = dict(_sae_folders(Path(path)))
    if layers is not None:
        available = sorted({layer for site in folders if (layer := _layer(site)) is not None})
        absent = sorted(set(layers) - set(available))
        if absent:
            raise ValueError(f"layers: {absent} have no SAE in {path}; available: {available}")
        folders = {site: folder for site, folder in folders.items() if _layer(site) in set(layers)}
    return {site: load_sae(folders[site]) for site in sorted(folders, key=_site_order)}


def _recognise(folder: Path) -> Format:
    known = formats()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the local folder of a saved SAE")
    for one in known.values():
        if one.recognises(folder):
            return one
    if (folder / SAES_FOLDER).is_dir():
        raise ValueError(f"{folder}: this is a run, not one SAE; open it with load_saes")
    raise ValueError(
        f"{folder}: holds no SAE in a known format ({', '.join(known)}); "
        "for saelens it needs cfg.json and sae_weights.safetensors"
    )


def _sae_folders(path: Path) -> list[tuple[str, Path]]:
    """(site, folder) of each SAE below `path`."""
    root = path / SAES_FOLDER if (path / SAES_FOLDER).is_dir() else path
    if not root.is_dir():
        raise ValueError(f"{path}: no such folder; give a run folder or a folder of SAE folders")
    known = formats().values()
    found = [
        (folder.name, folder)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and any(one.recognises(folder) for one in known)
    ]
    if not found:
        raise ValueError(f"{root}: holds no SAEs; give a run folder that has {SAES_FOLDER}/<site>/")
    return found


# Sites in the order in which a block computes them; a name that is none of these comes last.
_WITHIN_BLOCK = (
    "hook_resid_pre",
    "ln1.",
    "attn.",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.",
    "mlp.",
    "hook_mlp_out",
    "hook_resid_post",
)


def _layer(site: str) -> int | None:
    match = re.match(r"blocks\.(\d+)\.", site)
    return int(match[1]) if match else None


def _site_order(site: str) -> tuple[int, int, str]:
    layer = _layer(site)
    if layer is None:
        return (sys.maxsize if site.startswith("ln_final") else -1, 0, site)
    name = site.split(".", 2)[2]
    ranks = (rank for rank, start in enumerate(_WITHIN_BLOCK) if name.startswith(start))
    return (layer, next(ranks, len(_WITHIN_BLOCK)), site)
