"""cfg.json of the SAELens layout: what it says about an SAE, read and written.

Every reader learns from it how outputs are computed (`Plain`, formats/plain.py). Under
`metadata.sae_kit` we keep our own config beside that, so that an SAE comes back as the architecture
that was trained.

Plain architectures are relu (SAELens' standard), jumprelu, topk, gated and groupmax, as
autoencoders, as transcoders, and as transcoders with a skip connection; `WORDS` has the words for
them.

SAELens has no topk and gated transcoders, and no groupmax. The seven words for these
(`topk_transcoder`, ...) are ours alone: SAELens refuses them as architectures that it does not
know, rather than opening the file as something else.

Two layouts are read: that of SAELens 6, which is the one written, and the older one, which is flat
and has other names and defaults. Checkpoints of a run under way are read too: their words for
BatchTopK are those of training, and the scale of their inputs stands beside them, if anywhere.
"""

import json
from collections.abc import Mapping
from typing import Any

from sae_kit.config import from_node, to_dict
from sae_kit.formats.places import refuse
from sae_kit.formats.plain import Plain
from sae_kit.sae import SAE, SAEConfig
from sae_kit.sae.normalization import NORMALIZATIONS, Normalization

# Our words for plain architectures -> the file's for an autoencoder, a transcoder, and a transcoder
# with a skip connection.
WORDS = {
    "relu": ("standard", "transcoder", "skip_transcoder"),
    "jumprelu": ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
    "topk": ("topk", "topk_transcoder", "topk_skip_transcoder"),
    "gated": ("gated", "gated_transcoder", "gated_skip_transcoder"),
    "groupmax": ("groupmax", "groupmax_transcoder", "groupmax_skip_transcoder"),
}
MEANINGS = {word: (arch, kind) for arch, words in WORDS.items() for kind, word in enumerate(words)}

IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
"""Words of checkpoints that hold one threshold for all latents, and are jumprelu once trained."""
MEANINGS |= dict.fromkeys(IN_TRAINING, ("jumprelu", 0))

UNFOLDED = "expected_average_only_in"
"""What normalize_activations is while the scale of the inputs is not in the weights."""

# Fields that a plain architecture alone has. Fields have the same names in both.
OWN_FIELDS = {"topk": ("k",), "groupmax": ("k",)}

RESHAPES = ("none", "hook_z")
"""Whether heads are flattened before the SAE reads them; what our sources give is flat anyway."""

RESCALE = "rescale_acts_by_decoder_norm"
"""Of topk and BatchTopK: pre-activations are multiplied by the norms of the decoder rows before the
choice, codes divided by them before the decoder. Read, and folded into the weights; never written.
"""

# SAELens reads files without a version, or with one below 6, by the rules of its older layout.
LAYOUT_VERSION = "6.0.0"
VERSION = "sae_lens_version"


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
    if plain.d_out is not None and plain.normalization != "none":
        raise ValueError(
            f"normalization: SAELens cannot express the transcoder {sae.config.word!r} with "
            f"{plain.normalization!r}, which is of one site; it can express 'none'"
        )
    word = WORDS[plain.arch][(plain.d_out is not None) + plain.settings["skip"]]
    record: dict[str, Any] = {"sae": to_dict(sae.config)}
    if VERSION in metadata:  # of a file that the SAE once came from; the key is needed for ours
        record[VERSION] = metadata[VERSION]
    contents = {
        "architecture": word,
        "d_in": plain.d_in,
        **({} if plain.d_out is None else {"d_out": plain.d_out}),
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        **own,
        "normalize_activations": plain.normalization,
        "reshape_activations": "hook_z" if _is_hook_z(metadata) else "none",
        "metadata": {
            **metadata,
            VERSION: LAYOUT_VERSION,
            "sae_kit": record,
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


def modern(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The contents of cfg.json, in terms of today's layout."""
    return _modernised(config, where) if _is_old(config) else config


def _is_old(config: Mapping[str, Any]) -> bool:
    metadata = config.get("metadata")
    nested = metadata.get(VERSION) if isinstance(metadata, dict) else None
    major = str(config.get(VERSION) or nested).split(".")[0]
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
    # Of today's layout, in files of others that name no version; SAELens takes them so too.
    "d_out",
    "k",
    RESCALE,
)


def _modernised(old: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config of the older, flat layout in terms of today's."""
    flat = {RENAMED.get(key, key): value for key, value in old.items()}
    metadata = {key: value for key, value in flat.items() if key not in OLD_SETTINGS}
    if isinstance(nested := metadata.get("metadata"), Mapping):  # today's layout, as above
        metadata = {**nested, **metadata}
        del metadata["metadata"]
    else:
        metadata.setdefault("prepend_bos", True)
    new = {key: flat[key] for key in OLD_SETTINGS if flat.get(key) is not None}
    activation = new.pop("activation_fn", "relu")
    settings = new.pop("activation_fn_kwargs", {})
    if activation == "topk":
        k = settings.get("k") if isinstance(settings, Mapping) else None
        new |= {"architecture": "topk", "k": k}
    elif activation != "relu":
        refuse(where, f"activation_fn is {activation!r}", "only relu and topk can be opened")
    normalise = new.get("normalize_activations")
    if isinstance(normalise, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    if _is_hook_z(metadata):
        new.setdefault("reshape_activations", "hook_z")
    return {"architecture": "standard", **new, "metadata": metadata}


def _is_hook_z(metadata: Mapping[str, Any]) -> bool:
    return "hook_z" in str(metadata.get("hook_name", ""))


def plain_of(contents: Mapping[str, Any], where: str) -> Plain:
    """What the file tells every reader; inputs that are to be scaled count as scaled already."""
    normalization = _normalization(contents, where)
    if (reshape := contents.get("reshape_activations") or "none") not in RESHAPES:
        words = " and ".join(RESHAPES)
        refuse(where, f"reshape_activations is {reshape!r}", f"only {words} can be opened")
    word = str(contents.get("architecture"))
    if word not in MEANINGS:
        refuse(where, f"architecture is {word!r}", f"only {', '.join(MEANINGS)} can be opened")
    arch, kind = MEANINGS[word]
    is_transcoder = kind > 0
    if contents.get(RESCALE) and word not in ("topk", *IN_TRAINING):
        refuse(where, f"{RESCALE} is {contents[RESCALE]!r}", "it can be opened for topk only")
    if is_transcoder and normalization != "none":
        refuse(
            where,
            f"normalize_activations is {normalization!r}",
            "a transcoder's input and output are of two sites; only 'none' can be opened",
        )
    # Transcoders never subtract b_dec, and need not say so.
    given = {"apply_b_dec_to_input": not is_transcoder, **contents}
    if is_transcoder and given["apply_b_dec_to_input"]:
        refuse(where, "apply_b_dec_to_input is true", "a transcoder's must be false")
    settings = {"arch": arch, "skip": kind == 2} | {
        field: given.get(field) for field in _fields(arch)
    }
    try:
        from_node(SAEConfig, settings)
        return Plain(
            settings,
            _width(contents, "d_in"),
            _width(contents, "d_out") if is_transcoder else None,
            normalization,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _normalization(contents: Mapping[str, Any], where: str) -> Normalization:
    word = contents.get("normalize_activations") or "none"
    for known in NORMALIZATIONS:
        if word in (known, UNFOLDED):
            return known
    words = ", ".join((*NORMALIZATIONS, UNFOLDED))
    refuse(where, f"normalize_activations is {word!r}", f"only {words} can be opened")


def _width(contents: Mapping[str, Any], name: str) -> int:
    width = contents.get(name)
    if type(width) is not int or width < 1:
        raise ValueError(f"{name}: {width!r} is no width; give a positive integer")
    return width


def provenance(
    contents: Mapping[str, Any], plain: Plain, where: str
) -> tuple[SAEConfig, dict[str, Any]]:
    """The config the SAE was trained with, as far as the file says, and its metadata."""
    given = contents.get("metadata") or {}
    if not isinstance(given, Mapping):
        refuse(where, f"metadata is {str(given)[:80]!r}", "it must be an object")
    metadata = dict(given)
    own = metadata.pop("sae_kit", None)
    if own is None:
        return from_node(SAEConfig, plain.settings), metadata
    metadata.pop(VERSION, None)  # of the layout we wrote, not of anything the SAE met
    if isinstance(own, Mapping) and VERSION in own:
        metadata[VERSION] = own[VERSION]
    try:
        trained = own.get("sae") if isinstance(own, Mapping) else None
        return from_node(SAEConfig, trained, where="metadata.sae_kit.sae"), metadata
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
