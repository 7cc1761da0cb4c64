"""Gemma Scope and Gemma Scope 2: JumpReLU SAEs of DeepMind's Gemma models, a folder each.

    layer_20/width_16k/average_l0_71/params.npz          Gemma Scope
    resid_post/layer_9_width_16k_l0_small/               Gemma Scope 2: params.safetensors, and
                                                         config.json in most folders

    W_enc [d_in d_sae], b_enc, threshold [d_sae], W_dec [d_sae d_out], b_dec; some files have w_enc
    and w_dec; transcoders may have affine_skip_connection [d_in d_out]

    z     = x @ W_enc + b_enc                            nothing is subtracted from x
    recon = (z * [z > threshold]) @ W_dec + b_dec        (+ x @ affine_skip_connection)

SAEs of embeddings read them before Gemma multiplies them by sqrt(d_in), and are converted to those
after it: W_enc / sqrt(d_in), W_dec * sqrt(d_in), b_dec as it is. That is SAELens' conversion.

Source: 2408.05147, and SAELens' loaders. Files do not say what they are of; the names of repository
and folder do, and only that far are site, model and kind known here.

Limits: cross-layer transcoders, whose decoder has an axis more, are refused.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sae_kit.formats.base import Format, SAEInfo
from sae_kit.formats.configs import config_of, length_of
from sae_kit.formats.npz import peek_npz, read_npz
from sae_kit.formats.places import Header, Place, refuse
from sae_kit.formats.tensors import check_header, header_of, read_safetensors

ARCHIVE, WEIGHTS, CONFIG = "params.npz", "params.safetensors", "config.json"

NAMES = {
    "w_enc": "W_enc",
    "b_enc": "b_enc",
    "w_dec": "W_dec",
    "b_dec": "b_dec",
    "threshold": "threshold",
    "affine_skip_connection": "W_skip",
}
"""The files' names of tensors, in lower case -> ours. The last is transposed besides."""

TEXTS = {"dataset_path": "monology/pile-uncopyrighted", "context_size": 1024, "prepend_bos": True}
"""What SAEs of a published repository were trained on, as SAELens has it."""

_FIRST = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
_SECOND = re.compile(r"gemma-scope-2-(\d+[mb])-(pt|it)(?![\w-])")
_LAYER = re.compile(r"layer_(\d+)")

# What is named in the path -> the site within a block that is read.
_FIRST_SITES = {
    "res": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "att": "attn.hook_z",
    "transcoders": "ln2.hook_normalized",
}
_SECOND_SITES = {
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_out": "attn.hook_z",
    "transcoder": "hook_mlp_in",
}


@final
@dataclass(frozen=True)
class _Path:
    """What the names of repository and folders say."""

    site: str | None
    model: str | None
    is_transcoder: bool
    is_embedding: bool

    @staticmethod
    def of(where: str) -> "_Path":
        first, second = _FIRST.search(where), _SECOND.search(where)
        if (repository := first or second) is not None:
            where = where[repository.start() :]  # folders above may be called anything
        layer = _LAYER.search(where)
        kind = next((kind for kind in _SECOND_SITES if f"/{kind}" in where), None)
        within = _FIRST_SITES[first[3]] if first else _SECOND_SITES[kind] if kind else None
        is_embedding = "embedding" in where.split("/")
        site = "hook_embed" if is_embedding else None
        if within and layer and not is_embedding:
            site = f"blocks.{layer[1]}.{within}"
        model = None
        if first:
            model = f"gemma-2-{first[1]}" + ("-it" if first[2] == "it" else "")
        elif second:
            # Of the smallest model, the one without instruction tuning has no suffix on the hub.
            plain = second[1] == "270m" and second[2] == "pt"
            model = f"google/gemma-3-{second[1]}" + ("" if plain else f"-{second[2]}")
        return _Path(site, model, "transcoder" in where, is_embedding)


@final
class GemmaScopeFormat(Format, name="gemma_scope"):
    """See the module's docstring."""

    def find(self, names: Collection[str]) -> list[str]:
        """Folders that hold weights of either name."""
        return sorted(
            {
                folder.rstrip("/")
                for name in names
                for folder, _, file in [name.rpartition("/")]
                if file in (ARCHIVE, WEIGHTS)
            }
        )

    def recognises(self, place: Place) -> bool:
        """Names tell."""
        return True

    def site(self, place: Place) -> str | None:
        """By the path."""
        return _Path.of(place.where).site

    def inspect(self, place: Place) -> SAEInfo:
        """See Format.inspect."""
        path = _Path.of(place.where)
        name, tensors = _header(place)
        where = place.file(name)
        lower = {key.lower(): entry for key, entry in tensors.items()}
        if len(lower) < len(tensors):
            refuse(where, f"has tensors {sorted(tensors)}", "see which of the same name are meant")
        d_sae, d_out = length_of(lower, "b_enc", where), length_of(lower, "b_dec", where)
        shape = lower["w_enc"][1] if "w_enc" in lower else ()
        skip = "affine_skip_connection" in lower
        is_transcoder = path.is_transcoder or skip
        d_in = shape[0] if shape and is_transcoder else d_out
        _check(lower, where, d_in=d_in, d_sae=d_sae, d_out=d_out)
        settings = {
            "arch": "jumprelu",
            "d_sae": d_sae,
            "apply_b_dec_to_input": False,
            "skip": skip,
        }
        return SAEInfo(
            source=place.where,
            format=self.name,
            config=config_of(settings, where),
            d_in=d_in,
            d_out=d_out if is_transcoder else None,
            site=path.site,
            metadata=_metadata(place, path),
            conversions=(
                "W_enc / sqrt(d_in), W_dec * sqrt(d_in): for embeddings as Gemma scales them",
            )
            if path.is_embedding
            else (),
            tensors=tensors,
        )

    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """See Format.weights."""
        names = {stored: NAMES[stored.lower()] for stored in info.tensors}
        if place.has(ARCHIVE):
            arrays = read_npz(place, ARCHIVE)
            weights = {ours: arrays[stored] for stored, ours in names.items()}
        else:
            weights = read_safetensors(place, WEIGHTS, names)
        if "W_skip" in weights:
            weights["W_skip"] = weights["W_skip"].T
        if _Path.of(place.where).is_embedding:
            root = math.sqrt(info.d_in)
            for name, factor in (("W_enc", 1 / root), ("W_dec", root)):
                wide = torch.promote_types(weights[name].dtype, torch.float32)
                weights[name] = weights[name].to(wide) * factor
        return weights


def _header(place: Place) -> tuple[str, Header]:
    """The file of the weights and what is in it."""
    if place.has(ARCHIVE):
        return ARCHIVE, header_of(peek_npz(place, ARCHIVE))
    return WEIGHTS, place.header(WEIGHTS)


def _check(header: Header, where: str, *, d_in: int, d_sae: int, d_out: int) -> None:
    if len(header.get("w_dec", ("", ()))[1]) == 3:
        refuse(where, "is a cross-layer transcoder", "only those of one layer can be opened")
    check_header(
        header,
        {
            "w_enc": (d_in, d_sae),
            "b_enc": (d_sae,),
            "threshold": (d_sae,),
            "w_dec": (d_sae, d_out),
            "b_dec": (d_out,),
        },
        where,
        optional={"affine_skip_connection": (d_in, d_out)},
        because=f"w_enc for inputs of {d_in} and biases of {d_sae} and {d_out}",
    )


def _metadata(place: Place, path: _Path) -> dict[str, Any]:
    """Where the SAE comes from, in SAELens' vocabulary."""
    metadata: dict[str, Any] = {}
    if path.model is not None:
        metadata |= {"model_name": path.model, **TEXTS}
    if path.is_transcoder and path.site is not None:
        metadata["hook_name_out"] = (
            path.site.rsplit(".", path.site.count(".") - 1)[0] + ".hook_mlp_out"
        )
    if place.has(CONFIG) and place.has(WEIGHTS):
        contents = place.json(CONFIG)
        if (word := contents.get("architecture", "jump_relu")) != "jump_relu":
            refuse(place.file(CONFIG), f"architecture is {word!r}", "only jump_relu can be opened")
        for key, name in (
            ("hf_hook_point_in", "hf_hook_name"),
            ("hf_hook_point_out", "hf_hook_name_out"),
        ):
            if isinstance(contents.get(key), str):
                metadata[name] = contents[key]
    return metadata
