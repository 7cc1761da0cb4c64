"""The SAELens layout: our native one, and through SAELens that of SAEBench and Neuronpedia.

    cfg.json                 architecture, widths, and under `metadata` where the SAE comes from
    sae_weights.safetensors  W_enc [d_in d_sae], W_dec [d_sae d_in], b_enc, b_dec
    sparsity.safetensors     optional; `sparsity` [d_sae] = log10(firing frequency + 1e-10)

Written: the inference layout of SAELens 6. Under `metadata.sae_kit` we keep our own config, so that
an SAE comes back as the architecture that was trained. Read: that layout, and the older one, which
is flat and has other names and defaults.

A file that asks for something whose outputs we would not reproduce (input normalisation, another
architecture, ...) is refused, never reinterpreted.

Limits: standard (relu) and topk architectures; half-precision weights are widened to float32.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_kit.checkpoint import save_tensors, write_atomic
from sae_kit.config import from_node, to_dict
from sae_kit.formats.base import Format, SAEInfo
from sae_kit.sae import SAE, SAEConfig

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"

# Our word for a plain architecture -> SAELens' word, and the fields that it alone has. Fields have
# the same names in both.
ARCHITECTURES = {"relu": "standard", "topk": "topk"}
OWN_FIELDS = {"topk": ("k",)}

# What we write and understand of each setting that changes outputs; other values are refused.
NEUTRAL = {
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,
}

# SAELens reads files without a version, or with one below 6, by the rules of its older layout.
LAYOUT_VERSION = "6.0.0"

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@final
class SAELensFormat(Format, name="saelens"):
    """See the module's docstring."""

    def recognises(self, folder: Path) -> bool:
        """See Format.recognises."""
        return (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()

    def inspect(self, folder: Path) -> SAEInfo:
        """See inspect_sae."""
        contents = _read_config(folder / CONFIG)
        told, d_in = _settings(contents, folder / CONFIG)
        config, metadata = _provenance(contents, told, folder / CONFIG)
        tensors = _read_header(folder / WEIGHTS)
        _check_tensors(tensors, d_in, told["d_sae"], folder / WEIGHTS)
        site = metadata.get("hook_name")
        return SAEInfo(folder, self.name, config, d_in, site, metadata, tensors)

    def load(self, folder: Path) -> SAE:
        """See load_sae."""
        info = self.inspect(folder)
        # Every drawn weight is overwritten below; a generator of its own spares the global one.
        sae = info.config.build(info.d_in, generator=torch.Generator().manual_seed(0))
        told, _ = _settings(_read_config(folder / CONFIG), folder / CONFIG)
        if told != (ours := _plain_settings(sae)):
            _refuse(folder / CONFIG, f"metadata.sae_kit makes {ours} of {told}", "undo the edit")
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in info.tensors}
        _check_scaling_factor(stored.pop("scaling_factor", None), folder / WEIGHTS)
        for name, tensor in stored.items():
            if not tensor.isfinite().all():
                _refuse(folder / WEIGHTS, f"{name} holds NaN or infinity", "train or save it again")
        if torch.float64 in {tensor.dtype for tensor in stored.values()}:
            sae = sae.double()
        sae.load_weights(stored)
        sae.metadata = dict(info.metadata)
        return sae

    def save(
        self,
        sae: SAE,
        folder: Path,
        *,
        metadata: Mapping[str, Any],
        sparsity: Float[Tensor, " d_sae"] | None,
    ) -> None:
        """See save_sae."""
        config, weights = _their_config(sae, metadata), sae.inference().weights
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name}: holds NaN or infinity; save an earlier checkpoint")
        if sparsity is not None and (
            sparsity.shape != (sae.d_sae,) or not ((sparsity >= 0) & (sparsity <= 1)).all()
        ):
            raise ValueError(
                f"sparsity: shape {tuple(sparsity.shape)}, from {sparsity.min()} to "
                f"{sparsity.max()}; give the firing frequency in [0, 1] of {sae.d_sae} latents"
            )
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, weights)
        if sparsity is not None:
            save_tensors(folder / SPARSITY, {"sparsity": (sparsity.float() + 1e-10).log10()})
        else:
            (folder / SPARSITY).unlink(missing_ok=True)  # it would speak of the SAE replaced
        write_atomic(folder / CONFIG, json.dumps(config, indent=2, allow_nan=False) + "\n")


@dataclass(frozen=True, kw_only=True)
class _Width:
    d_in: int

    def __post_init__(self) -> None:
        if self.d_in < 1:
            raise ValueError(f"d_in: {self.d_in} is no width; give a positive integer")


def _fields(arch: str) -> tuple[str, ...]:
    """The fields of cfg.json that decide the outputs of a plain architecture."""
    return ("d_sae", "apply_b_dec_to_input", *OWN_FIELDS.get(arch, ()))


# --- writing --------------------------------------------------------------------------------------


def _plain_settings(sae: SAE) -> dict[str, Any]:
    """The plain architecture that computes the outputs: our word for it and all its fields."""
    plain = sae.inference()
    return {
        "arch": plain.arch,
        "d_sae": sae.d_sae,
        "apply_b_dec_to_input": sae.config.apply_b_dec_to_input,
        **plain.fields,
    }


def _their_config(sae: SAE, metadata: Mapping[str, Any]) -> dict[str, Any]:
    settings = _plain_settings(sae)
    arch = settings.pop("arch")
    if arch not in ARCHITECTURES or settings.keys() != set(_fields(arch)):
        raise ValueError(
            f"arch: SAELens cannot express {arch!r} with {settings}; "
            f"it can express {', '.join(ARCHITECTURES)}"
        )
    theirs = {
        "architecture": ARCHITECTURES[arch],
        "d_in": sae.d_in,
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        **settings,
        "normalize_activations": NEUTRAL["normalize_activations"],
        "reshape_activations": NEUTRAL["reshape_activations"],
        "metadata": {
            **metadata,
            "sae_lens_version": LAYOUT_VERSION,
            "sae_kit": {"sae": to_dict(sae.config)},
        },
    }
    if arch == "topk":
        theirs["rescale_acts_by_decoder_norm"] = NEUTRAL["rescale_acts_by_decoder_norm"]
    try:
        json.dumps(theirs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: {error}; give JSON values only") from error
    return theirs


# --- reading the config ---------------------------------------------------------------------------


def _read_config(path: Path) -> dict[str, Any]:
    """The contents of cfg.json, in terms of today's layout."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _refuse(path, "is missing", f"put it beside {WEIGHTS}")
    except (OSError, ValueError) as error:
        _refuse(path, f"cannot be read as JSON ({error})", "download or copy it again")
    if not isinstance(config, dict):
        _refuse(path, "is not a JSON object", "give the cfg.json that SAELens wrote")
    return _modernised(config, path) if _is_old(config) else config


def _is_old(config: Mapping[str, Any]) -> bool:
    metadata = config.get("metadata")
    nested = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    version = config.get("sae_lens_version") or nested
    return not version or int(str(version).split(".")[0]) < 6


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
        new |= {"architecture": "topk", "k": settings.get("k")}
    elif activation != "relu":
        _refuse(path, f"activation_fn is {activation!r}", "only relu and topk can be opened")
    normalise = new.get("normalize_activations")
    if isinstance(normalise, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    if "hook_z" in str(metadata.get("hook_name", "")):
        new.setdefault("reshape_activations", "hook_z")
    return {"architecture": "standard", **new, "metadata": metadata}


def _settings(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], int]:
    """What the file tells every reader: the plain architecture as in _plain_settings, and d_in."""
    for key, value in NEUTRAL.items():
        if config.get(key, value) not in (value, None):
            _refuse(path, f"{key} is {config[key]!r}", f"only {value!r} can be opened")
    theirs = config.get("architecture")
    arch = {word: ours for ours, word in ARCHITECTURES.items()}.get(str(theirs))
    if arch is None:
        known = ", ".join(ARCHITECTURES.values())
        _refuse(path, f"architecture is {theirs!r}", f"only {known} can be opened")
    given = {"apply_b_dec_to_input": True, **config}
    settings = {"arch": arch} | {field: given.get(field) for field in _fields(arch)}
    try:
        from_node(SAEConfig, settings)
        return settings, from_node(_Width, {"d_in": config.get("d_in")}).d_in
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _provenance(
    config: Mapping[str, Any], told: Mapping[str, Any], path: Path
) -> tuple[SAEConfig, dict[str, Any]]:
    """The config the SAE was trained with, as far as the file says, and its metadata."""
    metadata = dict(config.get("metadata") or {})
    own = metadata.pop("sae_kit", None)
    if own is None:
        return from_node(SAEConfig, told), metadata
    metadata.pop("sae_lens_version", None)  # of the layout we wrote, not of anything the SAE met
    try:
        return from_node(SAEConfig, own.get("sae"), where="metadata.sae_kit.sae"), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# --- reading the weights --------------------------------------------------------------------------


def _read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in the file, without reading them."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
            }
    except FileNotFoundError:
        _refuse(path, "is missing", f"put it beside {CONFIG}")
    except (OSError, SafetensorError) as error:
        _refuse(path, f"is damaged or cut short ({error})", "download or copy it again")


def _check_tensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], d_in: int, d_sae: int, path: Path
) -> None:
    expected = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
    }
    optional = {"scaling_factor": (d_sae,)}  # of the older layout; checked to be all ones
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys() - optional.keys())
    if missing or extra:
        _refuse(
            path,
            f"missing tensors {missing}, unknown tensors {extra}",
            f"it must hold {sorted(expected)}; see whether {CONFIG} names the right architecture",
        )
    for name, (dtype, shape) in tensors.items():
        wanted = (expected | optional)[name]
        if shape != wanted:
            what = f"{name} has shape {shape}, but d_in={d_in} and d_sae={d_sae} make it {wanted}"
            _refuse(path, what, f"see whether it belongs to this {CONFIG}")
        if dtype not in FLOATS:
            _refuse(path, f"{name} has type {dtype}", f"it must be one of {', '.join(FLOATS)}")


def _check_scaling_factor(factor: Tensor | None, path: Path) -> None:
    if factor is not None and not (factor == 1).all():
        _refuse(
            path, "scaling_factor is not all ones", "fold it into W_dec and remove it from the file"
        )


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"{path}: {what}; {remedy}")
