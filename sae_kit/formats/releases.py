"""The register of public SAE sets: releases.yaml, read and checked.

    releases()["gpt2-small-res-jb"].saes[8].l0

A release knows what its files do not say (how the model was processed, by how much inputs are
scaled), and its names stand for its repositories in `load_sae` and `load_saes`.

In releases.yaml an entry for all SAEs of a release (site, path, d_sae, neuronpedia) may stand once,
with {layer} and {d_sae} in it for those of each; `site` and `path` are otherwise an SAE's own name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

from omegaconf import OmegaConf

from sae_kit.config import check_counts, from_node
from sae_kit.formats.places import Known
from sae_kit.formats.sites import layer_of
from sae_kit.hub import is_repository_id

FILE = Path(__file__).with_name("releases.yaml")

SHARED = ("site", "path", "d_sae", "neuronpedia")
"""Fields of an SAE that its release may give for all."""


@final
@dataclass(frozen=True, kw_only=True)
class ReleasedSAE:
    """One SAE of a release."""

    id: str
    """Its name within the release."""
    site: str
    """Where it belongs in the model."""
    path: str
    """Its folder or file in the repository."""
    d_sae: int
    """Number of latents."""
    l0: float | None = None
    """Active latents per token."""
    explained_variance: float | None = None
    """Share of the variance of the activations, at most 1."""
    ce_increase: float | None = None
    """Loss of the model with the SAE in place, less that without, in nats per token."""
    input_scale: float | None = None
    """What its inputs are to be multiplied by, if they are."""
    neuronpedia: str | None = None
    """Its page on neuronpedia.org."""

    def __post_init__(self) -> None:
        check_counts(self, "d_sae")
        if layer_of(self.site) is None:
            raise ValueError(f"site: {self.site!r} is not of the form blocks.<layer>.<name>")
        if self.explained_variance is not None and self.explained_variance > 1:
            raise ValueError(f"explained_variance: {self.explained_variance} is more than 1")
        if self.input_scale is not None and self.input_scale <= 0:
            raise ValueError(f"input_scale: {self.input_scale} is not positive")


@final
@dataclass(frozen=True, kw_only=True)
class Release:
    """SAEs that were published together. What is None is not known."""

    name: str
    """What it is loaded by; SAELens' name where it has one."""
    what: str
    """Which SAEs these are, in a line."""
    repo: str
    """Their repository on the hub."""
    architecture: str
    """Our word for how they compute codes."""
    reference: str
    """Address of a paper or page that describes them."""
    saes: tuple[ReleasedSAE, ...]
    model: str = "gpt2-small"
    """The language model, as SAELens names it."""
    context_size: int | None = None
    """Tokens in a context of their training."""
    prepend_bos: bool | None = None
    """Whether contexts began with the end-of-text token."""
    centred: bool | None = None
    """Whether the weights that write to the residual stream were mean-centred."""
    dataset: str | None = None
    """The text, by its name on the hub."""
    note: str | None = None
    """What to know when using them or reading their figures."""

    def __post_init__(self) -> None:
        if not is_repository_id(self.repo.split("/")):
            raise ValueError(f"repo: {self.repo!r} is not of the form owner/name")
        if not self.saes:
            raise ValueError("saes: none; give at least one")
        if len({sae.path for sae in self.saes}) < len(self.saes):
            raise ValueError("saes: two have the same path")

    @property
    def sites(self) -> tuple[str, ...]:
        """Their sites, each once."""
        return tuple(dict.fromkeys(sae.site for sae in self.saes))

    def known_by_path(self) -> dict[str, Known]:
        """What is known of each SAE from elsewhere than its files, by its path."""
        return {sae.path: self._known(sae) for sae in self.saes}

    def _known(self, sae: ReleasedSAE) -> Known:
        processing = None if self.centred is None else {"center_writing_weights": self.centred}
        metadata = {
            "release": f"{self.name}/{sae.id}",
            "hook_name": sae.site,
            "model_name": self.model,
            "model_from_pretrained_kwargs": processing,
            "context_size": self.context_size,
            "prepend_bos": self.prepend_bos,
            "dataset_path": self.dataset,
            "neuronpedia_id": sae.neuronpedia,
        }
        known = {key: value for key, value in metadata.items() if value is not None}
        return Known(site=sae.site, input_scale=sae.input_scale, metadata=known)


@cache
def releases() -> Mapping[str, Release]:
    """Every release by name, in the order of the file."""
    node = OmegaConf.to_container(OmegaConf.load(FILE))
    assert isinstance(node, dict)
    return {str(name): release_of(str(name), fields) for name, fields in node.items()}


def release_of(name: str, fields: Mapping[str, Any]) -> Release:
    """A release from its entry in the file.

    Raises:
        ValueError: a field that is unknown, missing, of the wrong type or out of range.
    """
    own = {key: value for key, value in fields.items() if key not in SHARED}
    shared = {key: fields[key] for key in SHARED if key in fields}
    saes = [
        _sae_node(sae_id, {**shared, **(given or {})})
        for sae_id, given in (fields.get("saes") or {}).items()
    ]
    return from_node(Release, {"name": name, **own, "saes": saes}, where=name)


def _sae_node(sae_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """An SAE's fields, with those for all filled in."""
    known = {"layer": layer_of(sae_id), "d_sae": fields.get("d_sae")}
    filled = {
        key: value.format(**known) if isinstance(value, str) else value
        for key, value in fields.items()
    }
    return {"id": sae_id, "site": sae_id, "path": sae_id, **filled}
