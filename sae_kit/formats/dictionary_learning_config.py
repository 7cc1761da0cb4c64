"""config.json of dictionary_learning: which class, which settings, and where the SAE comes from.

`trainer` holds the settings of the trainer that made the SAE, of which its loader reads dict_class
and k; `buffer` those of its activations. What else is there differs from version to version.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from sae_kit.config import from_node, to_dict
from sae_kit.formats.places import Header, Place, refuse
from sae_kit.formats.plain import RECORD, Record
from sae_kit.formats.sites import layer_of, site_of_module
from sae_kit.sae import SAE, SAEConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig

_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_MATRICES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


@final
@dataclass(frozen=True)
class Class:
    """One of its classes. Tensors that it calls `.weight` have the axes the other way round."""

    trained_as: str
    """Our word for the architecture."""

    centres: bool
    """Whether b_dec is subtracted from the input."""

    names: Mapping[str, str]
    """Its names of tensors, by ours."""

    has_k: bool = False
    """Whether it has k, and one threshold for all latents."""

    @property
    def is_batch(self) -> bool:
        """Whether latents are active above that threshold, rather than the k largest."""
        return self.has_k and self.trained_as != "topk"

    @property
    def arch(self) -> str:
        """Our word for the plain architecture that it computes."""
        return "jumprelu" if self.is_batch else self.trained_as


AUTOENCODER = "AutoEncoder"

CLASSES = {
    AUTOENCODER: Class("relu", True, _LINEAR | {"b_dec": "bias"}),
    "AutoEncoderNew": Class("relu", False, _LINEAR | {"b_dec": "decoder.bias"}),
    "GatedAutoEncoder": Class(
        "gated",
        True,
        {
            "W_enc": "encoder.weight",
            "b_enc": "gate_bias",
            "b_mag": "mag_bias",
            "r_mag": "r_mag",
            "W_dec": "decoder.weight",
            "b_dec": "decoder_bias",
        },
    ),
    "JumpReluAutoEncoder": Class("jumprelu", False, _MATRICES | {"threshold": "threshold"}),
    "AutoEncoderTopK": Class("topk", True, _LINEAR | {"b_dec": "b_dec"}, has_k=True),
    "BatchTopKSAE": Class("batch_topk", True, _LINEAR | {"b_dec": "b_dec"}, has_k=True),
    "MatryoshkaBatchTopKSAE": Class("matryoshka", True, _MATRICES, has_k=True),
}

# Names of sites in its demo and in the public sets that were trained by it.
_SUBMODULE = re.compile(r"(resid_post|resid_out|attn_out|mlp_out)_?layer_?(\d+)")
_SITES = {
    "resid_post": "hook_resid_post",
    "resid_out": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}


@final
@dataclass(frozen=True, kw_only=True)
class _Trainer:
    """The keys of `trainer` that are understood."""

    dict_class: str
    activation_dim: int | None = None
    dict_size: int | None = None
    k: int | None = None
    group_sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.dict_class not in CLASSES:
            raise ValueError(
                f"dict_class: {self.dict_class!r} is unknown; only {', '.join(CLASSES)} can be "
                "opened"
            )
        if CLASSES[self.dict_class].has_k and self.k is None:
            raise ValueError(f"k: missing; {self.dict_class} needs it")


@final
@dataclass(frozen=True)
class Config:
    """config.json, understood."""

    contents: Mapping[str, Any]
    trainer: _Trainer
    record: Record | None
    where: str
    """The file, for messages."""

    @staticmethod
    def read(place: Place, name: str) -> "Config":
        """From the file of that name.

        Raises:
            ValueError: it is missing, damaged, or asks for something that is unknown here.
        """
        contents, where = place.json(name), place.file(name)
        given = contents.get("trainer")
        if not isinstance(given, Mapping):
            refuse(where, f"trainer is {str(given)[:80]!r}", "it must be an object")
        if (words := _words(contents, "buffer").get("io")) == "in_and_out":
            refuse(where, f"buffer.io is {words!r}", "transcoders of this kind cannot be opened")
        known = {key: given[key] for key in _Trainer.__dataclass_fields__ if key in given}
        try:
            trainer = from_node(_Trainer, known, where="trainer")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return Config(contents, trainer, Record.read(contents, where), where)

    @property
    def name(self) -> str:
        """The name of its class."""
        return self.trainer.dict_class

    @property
    def known(self) -> Class:
        """Its class."""
        return CLASSES[self.name]

    def widths(self, header: Header, where: str) -> tuple[int, int]:
        """d_in and d_sae: as this file says, or else as the encoder has them."""
        d_in, d_sae = self.trainer.activation_dim, self.trainer.dict_size
        name = self.known.names["W_enc"]
        if d_in is None or d_sae is None:
            _, shape = header.get(name, ("", ()))
            if len(shape) != 2:
                refuse(where, f"has no matrix {name}", f"{self.name} is what its config names")
            d_in, d_sae = shape[::-1] if name.endswith(".weight") else shape
        return d_in, d_sae

    def shapes(self, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of real numbers that its class must have, by its names."""
        ours = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, theirs in self.known.names.items():
            shape = ours.get(name, (d_sae,))
            shapes[theirs] = shape[::-1] if theirs.endswith(".weight") else shape
        return shapes | ({"threshold": ()} if self.known.is_batch else {})

    @property
    def optional(self) -> dict[str, tuple[int, ...]]:
        """Shapes of those that it may have: versions differ in TopK's threshold."""
        return {"threshold": ()} if self.known.has_k and not self.known.is_batch else {}

    def config(self, d_sae: int) -> SAEConfig:
        """As it was trained: in full by our record, or with training fields at their defaults."""
        if self.record is not None:
            return self.record.config
        fields: dict[str, Any] = {
            "arch": self.known.trained_as,
            "d_sae": d_sae,
            "apply_b_dec_to_input": self.known.centres,
        }
        if self.known.has_k:
            fields["k"] = self.trainer.k
        sizes = self.trainer.group_sizes
        if self.known.trained_as == "matryoshka" and sizes is not None:
            if sum(sizes) != d_sae or min(sizes, default=0) < 1:
                refuse(
                    self.where,
                    f"trainer.group_sizes is {list(sizes)}",
                    f"positive sizes that add up to {d_sae} are needed",
                )
            fields["group_fractions"] = [size / d_sae for size in sizes]
        try:
            return from_node(SAEConfig, fields)
        except ValueError as error:
            raise ValueError(f"{self.where}: trainer.{error}") from error

    def plain_settings(self, d_sae: int) -> dict[str, Any]:
        """What decides outputs, as it tells everybody; see `Plain`."""
        settings = {
            "arch": self.known.arch,
            "d_sae": d_sae,
            "apply_b_dec_to_input": self.known.centres,
            "skip": False,
        }
        return settings | ({"k": self.trainer.k} if self.known.arch == "topk" else {})

    def check_counts(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Refuse weights whose k or groups are not those of this file."""
        sizes = self.trainer.group_sizes
        said = {"k": self.trainer.k, "group_sizes": None if sizes is None else list(sizes)}
        for name, value in said.items():
            if name in tensors and value is not None and tensors[name].tolist() != value:
                refuse(
                    where,
                    f"{name} is {tensors[name].tolist()}, and {value} in its config",
                    "see whether the two files belong together",
                )

    def metadata(self) -> dict[str, Any]:
        """Ours in full; of other files, all they say, and the model and context length in words
        that others read.
        """
        if self.record is not None:
            return dict(self.record.metadata)
        trainer, buffer = _words(self.contents, "trainer"), _words(self.contents, "buffer")
        words = {"model_name": trainer.get("lm_name"), "context_size": buffer.get("ctx_len")}
        found = {key: value for key, value in words.items() if value is not None}
        return found | {"trainer": trainer} | ({"buffer": buffer} if buffer else {})

    def site(self, where: str) -> str | None:
        """By our metadata, the name of the submodule, or of one of the last two folders."""
        if self.record is not None:
            site = self.record.metadata.get("hook_name")
            return site if isinstance(site, str) else None
        if _words(self.contents, "buffer").get("io") == "in":  # of a submodule, which is named
            return None
        module = str(_words(self.contents, "trainer").get("submodule_name"))
        sites = (_site_of(name) for name in (module, *reversed(where.split("/")[-2:])))
        return next((site for site in sites if site is not None), None)


def _words(contents: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = contents.get(key)
    return dict(found) if isinstance(found, Mapping) else {}


def _site_of(name: str) -> str | None:
    match = _SUBMODULE.fullmatch(name)
    return f"blocks.{match[2]}.{_SITES[match[1]]}" if match else site_of_module(name)


def contents_for(sae: SAE, name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json is to hold, for a class of that name.

    Raises:
        ValueError: metadata that is not JSON.
    """
    record, config = Record.contents(sae, metadata), sae.config
    site, model = metadata.get("hook_name"), metadata.get("model_name")
    trainer: dict[str, Any] = {
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        "layer": layer_of(site) if isinstance(site, str) else None,
        "lm_name": model if isinstance(model, str) else None,
        "submodule_name": site if isinstance(site, str) else None,
    }
    if CLASSES[name].has_k:
        trainer["k"] = to_dict(config)["k"]
    if isinstance(config, MatryoshkaConfig) and CLASSES[name].has_k:
        ends = (0, *config.prefixes)
        trainer["group_sizes"] = [end - start for start, end in itertools.pairwise(ends)]
    return {"trainer": trainer, RECORD: record}
