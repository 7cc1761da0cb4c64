"""The SAELens layout: our native one, and through SAELens that of SAEBench and Neuronpedia.

    cfg.json                 architecture, widths, and under `metadata` where the SAE comes from
    sae_weights.safetensors  W_enc [d_in d_sae], W_dec [d_sae d_out], b_dec [d_out], and
                             b_enc [d_sae], or of a gated SAE b_gate, b_mag, r_mag [d_sae];
                             of a jumprelu SAE threshold [d_sae]; W_skip [d_out d_in] if it has one
    sparsity.safetensors     optional; `sparsity` [d_sae] = log10(firing frequency + 1e-10)

Written is what computes the outputs: a BatchTopK SAE, say, is written as the jumprelu SAE that it
is once trained. See formats/saelens_config.py for cfg.json, and for how an SAE comes back as what
it was.

Read as well: the older, flat layout (gpt2-small-res-jb and its kin), and checkpoints of runs under
way, whose weights are still those for scaled inputs; `activation_scaler.json` beside them has the
scale, which is folded in. Where it is lost, load_sae(input_scale=...) takes it.

A file that asks for something whose outputs we would not reproduce (whitened inputs, another
architecture, ...) is refused, never reinterpreted.

Limits: standard, topk, jumprelu, gated and groupmax architectures (the last are opened by this
package alone), as autoencoders or transcoders; half-precision weights are widened to float32.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.files import save_tensors, write_atomic
from sae_kit.formats.base import SAEInfo, WritableFormat
from sae_kit.formats.configs import positive_of
from sae_kit.formats.places import Place, refuse
from sae_kit.formats.plain import RECORD, Plain, check_trained
from sae_kit.formats.saelens_config import (
    IN_TRAINING,
    RESCALE,
    UNFOLDED,
    contents_for,
    modern,
    plain_of,
    provenance,
)
from sae_kit.formats.tensors import check_header, read_safetensors
from sae_kit.sae import SAE

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
SCALER = "activation_scaler.json"  # of checkpoints

FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
"""Tensors [d_sae] of the older layout: each multiplies what a latent writes."""

# Our names of tensors that the file names otherwise, by plain architecture.
RENAMED = {"gated": {"b_enc": "b_gate"}}


@final
@dataclass(frozen=True)
class _Config:
    """cfg.json and what stands beside it, understood."""

    contents: Mapping[str, Any]
    plain: Plain
    counted: bool
    """Whether one threshold for all latents is stored, as while BatchTopK is trained."""
    scale: float | None
    """That is to be folded into the weights, of a checkpoint."""

    @staticmethod
    def read(place: Place) -> "_Config":
        where = place.file(CONFIG)
        contents = modern(place.json(CONFIG), where)
        unfolded = contents.get("normalize_activations") == UNFOLDED
        return _Config(
            contents,
            plain_of(contents, where),
            contents.get("architecture") in IN_TRAINING,
            _scale(place) if unfolded and place.has(SCALER) else None,
        )

    @property
    def needs_scale(self) -> bool:
        return self.contents.get("normalize_activations") == UNFOLDED and self.scale is None

    def conversions(self) -> tuple[str, ...]:
        done = {
            f"input scale {self.scale} folded into the weights": self.scale is not None,
            f"{RESCALE} folded into the weights": bool(self.contents.get(RESCALE)),
            "threshold of a BatchTopK checkpoint given to every latent": self.counted,
        }
        return tuple(what for what, was in done.items() if was)


@final
class SAELensFormat(WritableFormat, name="saelens"):
    """See the module's docstring."""

    def find(self, names: Collection[str]) -> list[str]:
        """Folders that hold either of the two files, and nothing that is another format's."""
        found = {
            folder.rstrip("/")
            for name in names
            for folder, slash, file in [name.rpartition("/")]
            if file == WEIGHTS or (file == CONFIG and _only_config(folder, slash, names))
        }
        return sorted(found)

    def recognises(self, place: Place) -> bool:
        """Names tell; with a config of another name, the weights are another tool's."""
        return place.has(CONFIG) or not place.has("config.json")

    def site(self, place: Place) -> str | None:
        """The file's word; or the folder's name, if it is a site's."""
        metadata = modern(place.json(CONFIG), place.file(CONFIG)).get("metadata")
        site = metadata.get("hook_name") if isinstance(metadata, Mapping) else None
        if isinstance(site, str) and site:
            return site
        name = place.where.rsplit("/", 1)[-1]
        return name if site is None and "hook_" in name else None

    def inspect(self, place: Place) -> SAEInfo:
        """See Format.inspect."""
        read = _Config.read(place)
        config, metadata = provenance(read.contents, read.plain, place.file(CONFIG))
        tensors = place.header(WEIGHTS)
        d_sae = read.plain.settings["d_sae"]
        widths = f"d_in={read.plain.d_in} and d_sae={d_sae}"
        widths += "" if read.plain.d_out is None else f" and d_out={read.plain.d_out}"
        check_header(
            tensors,
            _expected(read),
            place.file(WEIGHTS),
            optional=dict.fromkeys(FINETUNED, (d_sae,)),
            because=widths,
        )
        return SAEInfo(
            source=place.where,
            format=self.name,
            config=config,
            d_in=read.plain.d_in,
            d_out=read.plain.d_out,
            normalization=read.plain.normalization,
            needs_input_scale=read.needs_scale,
            site=self.site(place),
            metadata=metadata,
            conversions=(
                *read.conversions(),
                *(f"{name} multiplied into the decoder" for name in FINETUNED if name in tensors),
            ),
            tensors=tensors,
        )

    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """See Format.weights."""
        read = _Config.read(place)
        names = {theirs: ours for ours, theirs in RENAMED.get(read.plain.arch, {}).items()}
        stored = {name: names.get(name, name) for name in info.tensors}
        weights = read_safetensors(place, WEIGHTS, stored)
        where = place.file(WEIGHTS)
        for name in weights.keys() & FINETUNED:
            weights["W_dec"] = weights["W_dec"] * weights.pop(name)[:, None]
        if read.counted:
            # Double only while it is a running mean.
            line = weights.pop("topk_threshold").to(weights["W_dec"].dtype)
            weights["threshold"] = line.expand(info.config.d_sae).clone()
        if read.scale is not None:
            _fold_scale(weights, read.scale, line=bool(read.contents.get(RESCALE)))
        if read.contents.get(RESCALE):
            _fold_norms(weights, where)
        if RECORD in (read.contents.get("metadata") or {}):
            check_trained(info.config, read.plain, place.file(CONFIG), f"metadata.{RECORD}")
        return weights

    def save(
        self,
        sae: SAE,
        folder: Path,
        *,
        metadata: Mapping[str, Any],
        sparsity: Float[Tensor, " d_sae"] | None,
    ) -> None:
        """See save_sae."""
        config, plain = contents_for(sae, metadata), sae.inference()
        names = RENAMED.get(plain.arch, {})
        weights = {names.get(name, name): tensor for name, tensor in plain.weights.items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, weights)
        if sparsity is not None:
            save_tensors(folder / SPARSITY, {"sparsity": (sparsity.float() + 1e-10).log10()})
        else:
            (folder / SPARSITY).unlink(missing_ok=True)  # it would speak of the SAE replaced
        write_atomic(folder / CONFIG, json.dumps(config, indent=2, allow_nan=False) + "\n")


def _only_config(folder: str, slash: str, names: Collection[str]) -> bool:
    """Whether a folder with cfg.json holds no other format's weights; ours may be missing."""
    others = (".safetensors", ".pt", ".npz")
    inside = [name for name in names if name.startswith(f"{folder}{slash}")]
    return not any(name.endswith(others) for name in inside if not name.endswith(WEIGHTS))


def _expected(read: _Config) -> dict[str, tuple[int, ...]]:
    """The file's tensors and their shapes."""
    plain = read.plain
    d_in, d_out, d_sae = plain.d_in, plain.d_out or plain.d_in, plain.settings["d_sae"]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
    }
    own = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
    shapes |= dict.fromkeys(own.get(plain.arch, ("b_enc",)), (d_sae,))
    if read.counted:
        del shapes["threshold"]
        shapes["topk_threshold"] = ()
    if plain.settings["skip"]:
        shapes["W_skip"] = (d_out, d_in)
    return shapes


def _scale(place: Place) -> float | None:
    given = place.json(SCALER)
    if given.get("scaling_factor") is None:
        return None
    return positive_of(given, "scaling_factor", place.file(SCALER))


def _fold_scale(weights: dict[str, Tensor], scale: float, *, line: bool) -> None:
    """Take the scaling of inputs into the weights.

    A threshold (`line`) on pre-activations times decoder norms is in units of the scaled decoder.
    """
    weights["W_enc"] = weights["W_enc"] * scale
    for name in ("W_dec", "b_dec", *(("threshold",) if line and "threshold" in weights else ())):
        weights[name] = weights[name] / scale


def _fold_norms(weights: dict[str, Tensor], where: str) -> None:
    """Take a rescaling by decoder norms into the weights: codes and outputs stay the same."""
    norms = torch.linalg.vector_norm(weights["W_dec"], dim=-1)
    if not norms.all():
        refuse(where, f"{RESCALE} divides by decoder rows of norm 0", "train or save it again")
    weights["W_enc"] = weights["W_enc"] * norms
    weights["b_enc"] = weights["b_enc"] * norms
    weights["W_dec"] = weights["W_dec"] / norms[:, None]
