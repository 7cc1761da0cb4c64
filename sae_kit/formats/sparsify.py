"""The layout of EleutherAI's sparsify, in folders named after the hooked module.

    h.3/cfg.json           activation (topk or groupmax), k, widths, whether it is a transcoder
    h.3/sae.safetensors    encoder.weight [d_sae d_in], encoder.bias [d_sae], W_dec [d_sae d_in],
                           b_dec [d_in]; W_skip [d_in d_in] with a skip connection

    code  = relu(x @ encoder.weight.T + encoder.bias), all but the chosen latents set to 0
    recon = code @ W_dec + b_dec  (+ x @ W_skip.T)

where x is less b_dec, unless `transcode` is true. W_dec has latents first, as ours: transposing it,
as the loader of another library does, is wrong even where shapes let it pass.

Source: sparsify 1.3.3. Older files lack some keys, which then have its defaults. Files of before
February 2025 know no `transcode`: their transcoders were trained with b_dec subtracted from the
input (pull request 49), and a skip connection tells them. They are opened as the transcoders that
they are, b_dec folded into the encoder's bias.

Written are topk and groupmax SAEs; what else is asked for is refused. An autoencoder that does not
subtract b_dec is written with `transcode`, which says just that to sparsify. Under `sae_kit`, a key
that sparsify's loader drops, cfg.json keeps how the SAE was trained, and its metadata.

Limits: transcoders write as wide as they read; half precision is widened to float32; the settings
of the run, in config.json a folder or more above, are not looked for.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.config import from_node
from sae_kit.files import save_tensors, write_atomic
from sae_kit.formats.base import SAEInfo, WritableFormat
from sae_kit.formats.places import Place, folders_with, refuse
from sae_kit.formats.plain import RECORD, Plain, Record, check_trained
from sae_kit.formats.sites import site_of_module
from sae_kit.formats.tensors import check_header, read_safetensors
from sae_kit.sae import SAE, SAEConfig

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"

# The file's names of tensors -> ours. The encoder's is transposed besides.
NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
    "W_skip": "W_skip",
}

ARCHITECTURES = ("topk", "groupmax")
"""What it can express, by the same words as ours."""

ELSEWHERE = ("signed", "embed_skip", "gram_lookup")
"""Keys of versions before and after 1.3.3 that change outputs in ways unknown here, where true."""


@final
@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The keys of cfg.json that decide outputs, with sparsify's defaults."""

    d_in: int
    activation: Literal["topk", "groupmax"] = "topk"
    expansion_factor: int = 32
    num_latents: int = 0
    k: int = 32
    skip_connection: bool = False
    transcode: bool = False

    def __post_init__(self) -> None:
        for name, least in (("d_in", 1), ("expansion_factor", 1), ("num_latents", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}: {value} is no width; give {least} or more")


@final
@dataclass(frozen=True)
class _Config:
    """cfg.json, understood."""

    contents: Mapping[str, Any]
    plain: Plain
    record: Record | None
    folds: bool
    """Whether b_dec is to be folded into the bias of the encoder; see the module's docstring."""

    @staticmethod
    def read(place: Place) -> "_Config":
        where, contents = place.file(CONFIG), place.json(CONFIG)
        for key in ELSEWHERE:
            if contents.get(key):
                refuse(where, f"{key} is {contents[key]!r}", "it can be opened where it is false")
        known = {field.name for field in fields(_Settings)}
        record = Record.read(contents, where)
        try:
            given = from_node(_Settings, {k: v for k, v in contents.items() if k in known})
            settings = {
                "arch": given.activation,
                "d_sae": given.num_latents or given.d_in * given.expansion_factor,
                "apply_b_dec_to_input": not (given.transcode or given.skip_connection),
                "skip": given.skip_connection,
                "k": given.k,
            }
            from_node(SAEConfig, settings)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        is_transcoder = given.transcode or given.skip_connection
        if record is not None:
            is_transcoder = record.is_transcoder
        return _Config(
            contents,
            Plain(settings, given.d_in, given.d_in if is_transcoder else None),
            record,
            given.skip_connection and not given.transcode,
        )

    def metadata(self, place: Place) -> dict[str, Any]:
        """Ours in full; of other files, the keys that have no say in outputs, and the sites."""
        if self.record is not None:
            return dict(self.record.metadata)
        settings = {field.name for field in fields(_Settings)}
        metadata = {key: value for key, value in self.contents.items() if key not in settings}
        written = site_of_module(_module(place))
        reads = written if self.plain.d_out is None else _site_read(written)
        sites = {"hook_name": reads}
        if self.plain.d_out is not None:
            sites["hook_name_out"] = written
        return metadata | {key: site for key, site in sites.items() if site is not None}


@final
class SparsifyFormat(WritableFormat, name="sparsify"):
    """See the module's docstring."""

    def find(self, names: Collection[str]) -> list[str]:
        """Folders that hold weights of this name."""
        return folders_with(WEIGHTS, names)

    def recognises(self, place: Place) -> bool:
        """Names tell."""
        return True

    def site(self, place: Place) -> str | None:
        """By our metadata, or the name of the folder; of a transcoder, the site it reads."""
        site = _Config.read(place).metadata(place).get("hook_name")
        return site if isinstance(site, str) else None

    def inspect(self, place: Place) -> SAEInfo:
        """See Format.inspect."""
        read = _Config.read(place)
        tensors = place.header(WEIGHTS)
        d_in, d_sae = read.plain.d_in, read.plain.settings["d_sae"]
        shapes = {
            "encoder.weight": (d_sae, d_in),
            "encoder.bias": (d_sae,),
            "W_dec": (d_sae, d_in),
            "b_dec": (d_in,),
        }
        if read.plain.settings["skip"]:
            shapes["W_skip"] = (d_in, d_in)
        widths = f"d_in={d_in} and num_latents={d_sae}"
        check_header(tensors, shapes, place.file(WEIGHTS), because=widths)
        config = from_node(SAEConfig, read.plain.settings)
        return SAEInfo(
            source=place.where,
            format=self.name,
            config=config if read.record is None else read.record.config,
            d_in=d_in,
            d_out=read.plain.d_out,
            site=self.site(place),
            metadata=read.metadata(place),
            conversions=("b_dec, subtracted from the input, folded into b_enc",)
            if read.folds
            else (),
            tensors=tensors,
        )

    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """See Format.weights."""
        read = _Config.read(place)
        stored = {name: NAMES[name] for name in info.tensors}
        weights = read_safetensors(place, WEIGHTS, stored)
        weights["W_enc"] = weights["W_enc"].T
        if read.folds:
            wide = torch.promote_types(weights["W_enc"].dtype, torch.float32)
            w_enc, b_enc, b_dec = (weights[name].to(wide) for name in ("W_enc", "b_enc", "b_dec"))
            weights["b_enc"] = b_enc - b_dec @ w_enc
        if read.record is not None:
            check_trained(info.config, read.plain, place.file(CONFIG))
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
        _check_expressible(sae, sparsity)
        plain = Plain.of(sae).settings
        contents = {
            "activation": plain["arch"],
            # sparsify rescales the decoder of what it trains on, and rows may have any norm here.
            "normalize_decoder": False,
            "num_latents": plain["d_sae"],
            "k": plain["k"],
            "multi_topk": False,
            "skip_connection": plain["skip"],
            "transcode": not plain["apply_b_dec_to_input"],
            "d_in": sae.d_in,
            RECORD: Record.contents(sae, metadata),
        }
        weights = dict(sae.inference().weights)
        weights["W_enc"] = weights["W_enc"].T
        theirs = {ours: theirs for theirs, ours in NAMES.items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, {theirs[name]: tensor for name, tensor in weights.items()})
        write_atomic(folder / CONFIG, json.dumps(contents, indent=2, allow_nan=False) + "\n")


def _module(place: Place) -> str:
    """The hooked module by the place's name; runs of several seeds have a folder for each below."""
    *above, name = place.where.split("/")
    return above[-1] if above and re.fullmatch(r"seed\d+", name) else name


def _site_read(written: str | None) -> str | None:
    """What the module reads that writes a site, where that is a site: an MLP, say, reads the
    output of a LayerNorm behind its gain, which is none.
    """
    for writes, reads in ((".hook_resid_post", ".hook_resid_pre"), (".hook_post", ".hook_pre")):
        if written is not None and written.endswith(writes):
            return written.removesuffix(writes) + reads
    return None


def _check_expressible(sae: SAE, sparsity: Tensor | None) -> None:
    word, plain = sae.config.word, sae.inference().arch
    if plain not in ARCHITECTURES:
        raise ValueError(
            f"arch: sparsify cannot express {word!r}, which computes what {plain!r} does; it can "
            f"express {' and '.join(ARCHITECTURES)}"
        )
    if sae.normalization != "none":
        raise ValueError(
            f"normalization: sparsify cannot express {word!r} with {sae.normalization!r}; it can "
            "express 'none'"
        )
    if sae.d_out != sae.d_in:
        raise ValueError(
            f"d_out: sparsify cannot express {word!r} that reads width {sae.d_in} and writes "
            f"{sae.d_out}; both have to be the same"
        )
    if sparsity is not None:
        raise ValueError("sparsity: sparsify has no place for firing frequencies; give None")
