"""Saved SAEs: open them, whatever tool wrote them, and write them for others to open.

A format is one module of this package with one `Format` class, which registers itself; its name is
the word that `format=` takes. Opening needs no word: formats know their own files. A `Format` says
which files are its own (`find`), what they hold (`inspect`), and the weights by our names in our
orientation (`weights`); building the SAE and checking it is the same for all, and here.

What a file means is never changed on the way. Where the same outputs are computed by other weights
than the file's (a decoder normalised as its library does it, a scale folded), `conversions` says
so, in `inspect_sae` and in the SAE's metadata.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.formats.pickles import peek_pt
from sae_kit.formats.places import Header, Place, refuse
from sae_kit.formats.sites import layer_of, site_order
from sae_kit.formats.sources import open_source
from sae_kit.maths import all_finite
from sae_kit.sae import SAE, SAEConfig
from sae_kit.sae.normalization import Normalization

SAES_FOLDER = "saes"
"""Name of the folder inside a run folder that holds one folder per site."""

CONVERSIONS = "conversions"
"""Key of the metadata under which an SAE keeps what was converted when it was opened."""

ORIGIN = "source"
"""Key of the metadata under which an SAE from the hub keeps its repository, commit and path."""

Source = str | Path


@final
@dataclass(frozen=True, kw_only=True)
class SAEInfo:
    """What can be known about a saved SAE without reading its weights."""

    source: str
    """The folder or file, here or on the hub."""

    format: str
    """Name of the format it is in."""

    config: SAEConfig
    """Its architecture. For files of other tools, fields that only training reads are defaults."""

    d_in: int
    """Width of its input."""

    d_out: int | None = None
    """Width of what a transcoder reconstructs; None = an autoencoder."""

    normalization: Normalization = "none"
    """How it normalises each row that it reads."""

    needs_input_scale: bool = False
    """Whether it is for scaled inputs, and nothing beside it says by how much they are scaled."""

    input_scale: float | None = None
    """By how much they are, as its release says."""

    site: str | None
    """The site it was trained on, if the file or its name says so."""

    metadata: Mapping[str, Any]
    """Everything else that is said about where the SAE comes from, in SAELens' vocabulary."""

    conversions: tuple[str, ...] = ()
    """What was done to weights or settings to compute the same outputs here."""

    tensors: Header
    """Type (safetensors' word) and shape of each stored tensor."""


class Format(ABC):
    """A layout of files for one SAE, in a folder or in a single file."""

    name: ClassVar[str]
    _known: ClassVar[dict[str, type["Format"]]] = {}

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            cls.name = name
            Format._known[name] = cls

    @abstractmethod
    def find(self, names: Collection[str]) -> list[str]:
        """Which of these files are (perhaps damaged) SAEs of this format.

        Args:
            names: of files, relative to the place that is looked at.

        Returns:
            One entry per SAE: its folder ("" is the place itself), or its file where one file is an
            SAE.
        """

    @abstractmethod
    def recognises(self, place: Place) -> bool:
        """Whether an SAE that `find` named is of this format, as far as contents have to tell."""

    @abstractmethod
    def site(self, place: Place) -> str | None:
        """The site of an SAE, from its config or where it lies, without reading weights."""

    @abstractmethod
    def inspect(self, place: Place) -> SAEInfo:
        """What is there, checked as far as that goes without reading weights. See inspect_sae."""

    @abstractmethod
    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """The tensors of the SAE that `inspect` described, as its `weights()` has them."""


class WritableFormat(Format, ABC):
    """A format that SAEs can be written in."""

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
    path: Source,
    *,
    metadata: Mapping[str, Any] | None = None,
    sparsity: Float[Tensor, " d_sae"] | None = None,
    format: str = "saelens",
) -> None:
    """Write an SAE into the folder `path` (made if need be; files of the same names are replaced).

    Args:
        sae: the SAE, its input scaling folded in: what is saved takes raw activations.
        path: the folder.
        metadata: JSON values on where it comes from, in SAELens' vocabulary where that has a word
            (`model_name`, `hook_name` for the site, `context_size`, `prepend_bos`, ...); None is
            `sae.metadata`.
        sparsity: how often each latent fires, as a share of rows in [0, 1].
        format: name of the layout.

    Raises:
        ValueError: an unknown format, or an SAE or metadata that the format cannot hold faithfully.
    """
    known = formats()
    writable = {name: one for name, one in known.items() if isinstance(one, WritableFormat)}
    if format not in writable:
        what = "can be read but not written" if format in known else "is unknown"
        raise ValueError(f"format: {format!r} {what}; choose one of {', '.join(writable)}")
    for name, tensor in sae.weights().items():
        if not all_finite(tensor):
            raise ValueError(f"{name}: holds NaN or infinity; save an earlier checkpoint")
    if sparsity is not None and (
        sparsity.shape != (sae.d_sae,) or not ((sparsity >= 0) & (sparsity <= 1)).all()
    ):
        raise ValueError(
            f"sparsity: shape {tuple(sparsity.shape)}, from {sparsity.min()} to "
            f"{sparsity.max()}; give the firing frequency in [0, 1] of {sae.d_sae} latents"
        )
    folder = Path(path)
    _check_room(folder, format, known)
    given = sae.metadata if metadata is None else metadata
    writable[format].save(sae, folder, metadata=given, sparsity=sparsity)


def _check_room(folder: Path, format: str, known: Mapping[str, "Format"]) -> None:
    """Refuse a folder where writing one format would overwrite half of another."""
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; give a folder")
    if not folder.is_dir():
        return
    place = open_source(folder)
    for name, other in known.items():
        if name != format and "" in other.find(place.names()) and other.recognises(place):
            raise ValueError(
                f"{folder}: holds an SAE in the format {name!r}, which one in {format!r} would "
                "partly overwrite; give another folder"
            )


def load_sae(
    source: Source,
    *,
    format: str = "auto",
    revision: str | None = None,
    site: str | None = None,
    input_scale: float | None = None,
) -> SAE:
    """Open a saved SAE; `sae.metadata` says where it comes from.

    Args:
        source: its folder or file here; a release's (`gpt2-small-res-jb/blocks.8.hook_resid_pre`);
            or a folder on the hub (`owner/name/folder`, `hf:owner/name/folder`).
        format: name of its format; auto recognises it from the files.
        revision: branch, tag or commit on the hub; None is the main branch.
        site: where it belongs in the model, if the file does not say so.
        input_scale: for a file whose inputs are to be multiplied by a number that it does not hold
            (SAELens' expected_average_only_in, not folded): that number, which is folded in.

    Raises:
        ValueError: nothing there that any format knows, a damaged file, a tensor of the wrong name
            or shape, or an SAE whose outputs this package would not reproduce.
        ConnectionError: it is on the hub, not in the cache, and the hub cannot be reached.
    """
    known, place = _recognise(open_source(source, revision), format)
    return _open(known, place, site, input_scale)


def inspect_sae(source: Source, *, format: str = "auto", revision: str | None = None) -> SAEInfo:
    """What is saved there, from its config and the header of its weights; no weights are read.

    Raises:
        ValueError, ConnectionError: as load_sae.
    """
    return _inspected(*_recognise(open_source(source, revision), format))


def load_saes(
    source: Source,
    layers: Collection[int] | None = None,
    *,
    format: str = "auto",
    revision: str | None = None,
) -> dict[str, SAE]:
    """Open several SAEs, by site, in the order in which the model computes the sites.

    Args:
        source: a run folder (which has `saes/`), a folder of SAEs, a single SAE, a release, or a
            repository on the hub, of which only the weights of these layers are fetched.
        layers: block numbers to open; None opens all.
        format: as for load_sae.
        revision: as for load_sae.

    Raises:
        ValueError: no SAEs there, a layer that has none, several SAEs at one site, or as load_sae.
        ConnectionError: as load_sae.
    """
    root = open_source(source, revision)
    if any(name.startswith(f"{SAES_FOLDER}/") for name in root.names()):
        root = root.at(SAES_FOLDER)
    found = _by_site(root, format, layers)
    if not found:
        raise ValueError(
            f"{root.where}: holds no SAEs; give a run folder that has {SAES_FOLDER}/<site>/, or a "
            "folder of SAEs"
        )
    if layers is not None:
        available = sorted({layer for site in found if (layer := layer_of(site)) is not None})
        absent = sorted(set(layers) - set(available))
        if absent:
            raise ValueError(f"layers: {absent} have no SAE in {source}; available: {available}")
        found = {site: one for site, one in found.items() if layer_of(site) in set(layers)}
    return {site: _open(*found[site]) for site in sorted(found, key=site_order)}


def _chosen(format: str) -> dict[str, Format]:
    """The formats that may be tried."""
    known = formats()
    if format == "auto":
        return known
    if format not in known:
        raise ValueError(f"format: {format!r} is unknown; choose one of auto, {', '.join(known)}")
    return {format: known[format]}


def _recognise(place: Place, format: str) -> tuple[Format, Place]:
    """The format of the one SAE at a place."""
    chosen, names = _chosen(format), place.names()
    below: list[str] = []
    for one in chosen.values():
        entries = one.find(names)
        for entry in entries:
            if (entry == "" or names == (entry,)) and one.recognises(found := _entry(place, entry)):
                return one, found
        below += entries
    words = ", ".join(chosen)
    if names and names == tuple(set(below)) and names[0].endswith(".pt"):
        held = sorted(peek_pt(place, names[0]))
        refuse(
            place.where,
            f"holds {_listed(held) or 'nothing'}, which is no SAE in a known format ({words})",
            "some formats need the config that was beside it",
        )
    if below:
        raise ValueError(
            f"{place.where}: this is no SAE, but has {len(set(below))} below it; open it with "
            f"load_saes, or one of them, such as {place.file(min(below))}"
        )
    raise ValueError(
        f"{place.where}: holds no SAE in a known format ({words}); it has "
        f"{_listed(names) or 'no files'}, and saelens, say, needs cfg.json and "
        "sae_weights.safetensors"
    )


def _entry(place: Place, name: str) -> Place:
    """The place of what `find` named: this one, or one below it."""
    return place if not name or place.file(name) == place.where else place.at(name)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _by_site(
    root: Place, format: str, layers: Collection[int] | None
) -> dict[str, tuple[Format, Place]]:
    """Every SAE below a place, by its site, or by its folder where nothing says which.

    Where a release says that an SAE is not of these layers, none of its files is looked into.
    """
    found: dict[str, tuple[Format, Place]] = {}
    seen: set[str] = set()
    names = root.names()
    for one in _chosen(format).values():
        for entry in sorted(set(one.find(names)) - seen):
            place = _entry(root, entry)
            site = place.known().site
            is_other = layers is not None and site is not None and layer_of(site) not in layers
            if not is_other and not one.recognises(place):
                continue
            seen.add(entry)
            site = site or one.site(place) or place.where.rsplit("/", 1)[-1]
            if site in found:
                raise ValueError(
                    f"{root.where}: both {found[site][1].where} and {place.where} are SAEs of "
                    f"{site}; open one of them"
                )
            found[site] = (one, place)
    return found


def _open(
    known: Format, place: Place, site: str | None = None, input_scale: float | None = None
) -> SAE:
    """The SAE itself, built from what its format says."""
    info = _inspected(known, place)
    if site is not None:
        if info.site not in (None, site):
            raise ValueError(
                f"site: {site!r} is given, but {place.where} says {info.site!r}; leave site= out"
            )
        info = replace(info, site=site)
    input_scale = info.input_scale if input_scale is None else input_scale
    _check_scale(info, input_scale)
    weights = known.weights(place, info)
    for name, tensor in weights.items():
        if not all_finite(tensor):
            refuse(place.where, f"{name} holds NaN or infinity", "train or save it again")
    sae = info.config.build(info.d_in, info.d_out, generator=None)
    if torch.float64 in {tensor.dtype for tensor in weights.values()}:
        sae = sae.double()
    sae.load_weights(weights)
    if input_scale is not None:
        sae.fold_scales(input_scale, input_scale)
    sae.normalization = info.normalization
    sae.metadata = dict(info.metadata)
    if info.site is not None:
        sae.metadata["hook_name"] = info.site
    conversions = list(info.conversions)
    if input_scale is not None:
        conversions.append(f"input scale {input_scale} folded into the weights")
    if conversions:
        sae.metadata[CONVERSIONS] = conversions
    return sae


def _inspected(known: Format, place: Place) -> SAEInfo:
    """What the files say, and what is known of them from elsewhere, which has the last word."""
    info, said = known.inspect(place), place.known()
    metadata, conversions = dict(info.metadata), list(info.conversions)
    for key, value in said.metadata.items():
        own = metadata.get(key)
        metadata[key] = value
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            metadata[key] = value = {**own, **value}
            own = {**value, **own}  # what it says nothing about is no contradiction
        if own is not None and own != value:
            conversions.append(f"{key} is {value!r} as its release says; the file says {own!r:.80}")
    if said.origin:
        metadata[ORIGIN] = dict(said.origin)
    return replace(
        info,
        site=said.site or info.site,
        input_scale=said.input_scale if info.needs_input_scale else None,
        metadata=metadata,
        conversions=tuple(conversions),
    )


def _check_scale(info: SAEInfo, input_scale: float | None) -> None:
    if info.needs_input_scale and input_scale is None:
        refuse(
            info.source,
            "is for inputs that are scaled to a mean norm of sqrt(d_in), by a number that is not "
            "stored with it",
            f"give load_sae(input_scale=sqrt({info.d_in}) / mean norm of the activations), or "
            "inputs scaled so, with input_scale=1",
        )
    if input_scale is not None and not info.needs_input_scale:
        refuse(
            info.source, f"takes inputs as they are, and input_scale is {input_scale}", "give none"
        )
