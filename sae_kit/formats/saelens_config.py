"""cfg.json of the SAELens layout: what it says about an SAE, read and written.

Every reader learns from it how outputs are computed (`Plain`): a plain architecture, its widths and
its fields. Under `metadata.sae_kit` we keep our own config beside that, so that an SAE comes back
as the architecture that was trained.

Plain architectures are relu (SAELens' standard), jumprelu, topk and gated, as autoencoders, as
transcoders, and as transcoders with a skip connection; `WORDS` has the words for them.

SAELens has no topk and gated transcoders. The four words for these (`topk_transcoder`, ...) are
ours alone: SAELens refuses them as architectures that it does not know, rather than opening the
file as something else.

Two layouts are read: that of SAELens 6, which is the one written, and the older one, which is flat
and has other names and defaults.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

from sae_kit.config import from_node, to_dict
from sae_kit.sae import SAE, SAEConfig

# Our words for plain architectures -> the file's for an autoencoder, a transcoder, and a transcoder
# with a skip connection.
WORDS = {
    "relu": ("standard", "transcoder", "skip_transcoder"),
    "jumprelu": ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
    "topk": ("topk", "topk_transcoder", "topk_skip_transcoder"),
    "gated": ("gated", "gated_transcoder", "gated_skip_transcoder"),
}
MEANINGS = {word: (arch, kind) for arch, words in WORDS.items() for kind, word in enumerate(words)}

# Fields that a plain architecture alone has. Fields have the same names in both.
OWN_FIELDS = {"topk": ("k",)}

# What we write and understand of each setting that changes outputs; other values are refused.
NEUTRAL = {"normalize_activations": "none", "reshape_activations": "none"}

RESCALE = "rescale_acts_by_decoder_norm"
"""Of topk: pre-activations are multiplied by the norms of the decoder rows before the choice, codes
divided by them before the decoder. Read, and folded into the weights; never written."""

# SAELens reads files without a version, or with one below 6, by the rules of its older layout.
LAYOUT_VERSION = "6.0.0"


@final
@dataclass(frozen=True)
class Plain:
    """The plain architecture that computes an SAE's outputs."""

    settings: Mapping[str, Any]
    """Our word for it as `arch`, and the config fields that decide outputs."""

    d_in: int
    """Width of what it reads."""

    d_out: int | None
    """Width of what it reconstructs; None = an autoencoder."""

    @staticmethod
    def of(sae: SAE) -> "Plain":
        """That of an SAE at hand."""
        plain = sae.inference()
        settings = {
            "arch": plain.arch,
            "d_sae": sae.d_sae,
            "apply_b_dec_to_input": sae.config.apply_b_dec_to_input,
            "skip": sae.config.skip,
            **plain.fields,
        }
        return Plain(settings, sae.d_in, sae.d_out if sae.is_transcoder else None)

    @property
    def arch(self) -> str:
        """Our word for it."""
        return str(self.settings["arch"])


def _fields(arch: str) -> tuple[str, ...]:
    """The fields of cfg.json that decide the outputs of a plain architecture."""
    return ("d_sae", "apply_b_dec_to_input", *OWN_FIELDS.get(arch, ()))


# --- writing --------------------------------------------------------------------------------------


def contents_for(sae: SAE, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What cfg.json is to hold.

    Raises:
        ValueError: an architecture that the layout has no word for, or metadata that is not JSON.
    """
    plain = Plain.of(sae)
    own = {key: value for key, value in plain.settings.items() if key not in ("arch", "skip")}
    if plain.arch not in WORDS or own.keys() != set(_fields(plain.arch)):
        raise ValueError(
            f"arch: SAELens cannot express {plain.arch!r} with {own}; "
            f"it can express {', '.join(WORDS)}"
        )
    word = WORDS[plain.arch][(plain.d_out is not None) + plain.settings["skip"]]
    contents = {
        "architecture": word,
        "d_in": plain.d_in,
        **({} if plain.d_out is None else {"d_out": plain.d_out}),
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        **own,
        **NEUTRAL,
        "metadata": {
            **metadata,
            "sae_lens_version": LAYOUT_VERSION,
            "sae_kit": {"sae": to_dict(sae.config)},
        },
    }
    if word == "topk":
        contents[RESCALE] = False
    try:
        json.dumps(contents, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: {error}; give JSON values only") from error
    return contents


# --- reading --------------------------------------------------------------------------------------


def read_contents(path: Path) -> dict[str, Any]:
    """The contents of cfg.json, in terms of today's layout."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse(path, "is missing", "put it beside the weights")
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be read as JSON ({error})", "download or copy it again")
    if not isinstance(config, dict):
        refuse(path, "is not a JSON object", "give the cfg.json that SAELens wrote")
    return _modernised(config, path) if _is_old(config) else config


def _is_old(config: Mapping[str, Any]) -> bool:
    metadata = config.get("metadata")
    nested = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    major = str(config.get("sae_lens_version") or nested).split(".")[0]
    return not major.isdecimal() or int(major) < 6


RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}

# Keys of the flat layout that say how outputs are computed; all others are where it comes from.
OLD_SETTINGS = (
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "activation_fn",
    "activation_fn_kwargs",
)


def _modernised(old: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A config of the older, flat layout in terms of today's."""
    flat = {RENAMED.get(key, key): value for key, value in old.items()}
    metadata = {key: value for key, value in flat.items() if key not in OLD_SETTINGS}
    metadata.setdefault("prepend_bos", True)
    new = {key: flat[key] for key in OLD_SETTINGS if flat.get(key) is not None}
    activation = new.pop("activation_fn", "relu")
    settings = new.pop("activation_fn_kwargs", {})
    if activation == "topk":
        k = settings.get("k") if isinstance(settings, Mapping) else None
        new |= {"architecture": "topk", "k": k}
    elif activation != "relu":
        refuse(path, f"activation_fn is {activation!r}", "only relu and topk can be opened")
    normalise = new.get("normalize_activations")
    if isinstance(normalise, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    if "hook_z" in str(metadata.get("hook_name", "")):
        new.setdefault("reshape_activations", "hook_z")
    return {"architecture": "standard", **new, "metadata": metadata}


def plain_of(contents: Mapping[str, Any], path: Path) -> Plain:
    """What the file tells every reader."""
    for key, value in NEUTRAL.items():
        if contents.get(key, value) not in (value, None):
            refuse(path, f"{key} is {contents[key]!r}", f"only {value!r} can be opened")
    word = str(contents.get("architecture"))
    if word not in MEANINGS:
        refuse(path, f"architecture is {word!r}", f"only {', '.join(MEANINGS)} can be opened")
    arch, kind = MEANINGS[word]
    is_transcoder = kind > 0
    if contents.get(RESCALE) and word != "topk":
        refuse(path, f"{RESCALE} is {contents[RESCALE]!r}", "it can be opened for topk only")
    # Transcoders never subtract b_dec, and need not say so.
    given = {"apply_b_dec_to_input": not is_transcoder, **contents}
    if is_transcoder and given["apply_b_dec_to_input"]:
        refuse(path, "apply_b_dec_to_input is true", "a transcoder's must be false")
    settings = {"arch": arch, "skip": kind == 2} | {
        field: given.get(field) for field in _fields(arch)
    }
    try:
        from_node(SAEConfig, settings)
        return Plain(
            settings,
            _width(contents, "d_in"),
            _width(contents, "d_out") if is_transcoder else None,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _width(contents: Mapping[str, Any], name: str) -> int:
    width = contents.get(name)
    if type(width) is not int or width < 1:
        raise ValueError(f"{name}: {width!r} is no width; give a positive integer")
    return width


def provenance(
    contents: Mapping[str, Any], plain: Plain, path: Path
) -> tuple[SAEConfig, dict[str, Any]]:
    """The config the SAE was trained with, as far as the file says, and its metadata."""
    metadata = dict(contents.get("metadata") or {})
    own = metadata.pop("sae_kit", None)
    if own is None:
        return from_node(SAEConfig, plain.settings), metadata
    metadata.pop("sae_lens_version", None)  # of the layout we wrote, not of anything the SAE met
    try:
        trained = own.get("sae") if isinstance(own, Mapping) else None
        return from_node(SAEConfig, trained, where="metadata.sae_kit.sae"), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def refuse(path: Path, what: str, remedy: str) -> NoReturn:
    """Raise ValueError for a file that cannot be opened."""
    raise ValueError(f"{path}: {what}; {remedy}")
