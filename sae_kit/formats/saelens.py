"""The SAELens layout: our native one, and through SAELens that of SAEBench and Neuronpedia.

    cfg.json                 architecture, widths, and under `metadata` where the SAE comes from
    sae_weights.safetensors  W_enc [d_in d_sae], W_dec [d_sae d_out], b_dec [d_out], and
                             b_enc [d_sae], or of a gated SAE b_gate, b_mag, r_mag [d_sae];
                             of a jumprelu SAE threshold [d_sae]; W_skip [d_out d_in] if it has one
    sparsity.safetensors     optional; `sparsity` [d_sae] = log10(firing frequency + 1e-10)

Written is what computes the outputs: a BatchTopK SAE, say, is written as the jumprelu SAE that it
is once trained. See formats/saelens_config.py for cfg.json, and for how an SAE comes back as what
it was.

A file that asks for something whose outputs we would not reproduce (input normalisation, another
architecture, ...) is refused, never reinterpreted.

Limits: standard, topk, jumprelu and gated architectures, as autoencoders or transcoders;
half-precision weights are widened to float32.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_kit.files import save_tensors, write_atomic
from sae_kit.formats.base import Format, SAEInfo
from sae_kit.formats.saelens_config import (
    RESCALE,
    Plain,
    contents_for,
    plain_of,
    provenance,
    read_contents,
    refuse,
)
from sae_kit.sae import SAE

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"

# Our names of tensors that the file names otherwise, by plain architecture.
RENAMED = {"gated": {"b_enc": "b_gate"}}

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
        contents = read_contents(folder / CONFIG)
        plain = plain_of(contents, folder / CONFIG)
        config, metadata = provenance(contents, plain, folder / CONFIG)
        tensors = _read_header(folder / WEIGHTS)
        _check_tensors(tensors, plain, folder / WEIGHTS)
        return SAEInfo(
            path=folder,
            format=self.name,
            config=config,
            d_in=plain.d_in,
            d_out=plain.d_out,
            site=metadata.get("hook_name"),
            metadata=metadata,
            tensors=tensors,
        )

    def load(self, folder: Path) -> SAE:
        """See load_sae."""
        info = self.inspect(folder)
        contents = read_contents(folder / CONFIG)
        plain = plain_of(contents, folder / CONFIG)
        # Every drawn weight is overwritten below; a generator of its own spares the global one.
        sae = info.config.build(info.d_in, info.d_out, generator=torch.Generator().manual_seed(0))
        if plain != (ours := Plain.of(sae)):
            refuse(
                folder / CONFIG,
                f"metadata.sae_kit makes {ours.settings} of {plain.settings}",
                "undo the edit",
            )
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in info.tensors}
        for name, tensor in stored.items():
            if not tensor.isfinite().all():
                refuse(folder / WEIGHTS, f"{name} holds NaN or infinity", "train or save it again")
        _check_scaling_factor(stored.pop("scaling_factor", None), folder / WEIGHTS)
        if torch.float64 in {tensor.dtype for tensor in stored.values()}:
            sae = sae.double()
        names = {theirs: ours for ours, theirs in RENAMED.get(plain.arch, {}).items()}
        weights = {names.get(name, name): tensor for name, tensor in stored.items()}
        sae.load_weights(weights)
        if contents.get(RESCALE):
            _fold_norms(sae, folder / WEIGHTS)
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
        config, plain = contents_for(sae, metadata), sae.inference()
        names = RENAMED.get(plain.arch, {})
        weights = {names.get(name, name): tensor for name, tensor in plain.weights.items()}
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


def _read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in the file, without reading them."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
            }
    except FileNotFoundError:
        refuse(path, "is missing", f"put it beside {CONFIG}")
    except (OSError, SafetensorError) as error:
        refuse(path, f"is damaged or cut short ({error})", "download or copy it again")


def _check_tensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], plain: Plain, path: Path
) -> None:
    expected = _expected(plain)
    optional = {"scaling_factor": (plain.settings["d_sae"],)}  # of the older layout; see below
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys() - optional.keys())
    if missing or extra:
        refuse(
            path,
            f"missing tensors {missing}, unknown tensors {extra}",
            f"it must hold {sorted(expected)}; see whether {CONFIG} names the right architecture",
        )
    for name, (dtype, shape) in tensors.items():
        wanted = (expected | optional)[name]
        if shape != wanted:
            widths = f"d_in={plain.d_in} and d_sae={plain.settings['d_sae']}"
            widths += "" if plain.d_out is None else f" and d_out={plain.d_out}"
            what = f"{name} has shape {shape}, but {widths} make it {wanted}"
            refuse(path, what, f"see whether it belongs to this {CONFIG}")
        if dtype not in FLOATS:
            refuse(path, f"{name} has type {dtype}", f"it must be one of {', '.join(FLOATS)}")


def _expected(plain: Plain) -> dict[str, tuple[int, ...]]:
    """The file's tensors and their shapes."""
    d_in, d_out, d_sae = plain.d_in, plain.d_out or plain.d_in, plain.settings["d_sae"]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
    }
    own = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
    shapes |= dict.fromkeys(own.get(plain.arch, ("b_enc",)), (d_sae,))
    if plain.settings["skip"]:
        shapes["W_skip"] = (d_out, d_in)
    return shapes


def _check_scaling_factor(factor: Tensor | None, path: Path) -> None:
    if factor is not None and not (factor == 1).all():
        refuse(
            path, "scaling_factor is not all ones", "fold it into W_dec and remove it from the file"
        )


@torch.no_grad()
def _fold_norms(sae: SAE, path: Path) -> None:
    """Take a rescaling by decoder norms into the weights: codes and outputs stay the same."""
    norms = torch.linalg.vector_norm(sae.W_dec, dim=-1)
    if not norms.all():
        refuse(path, f"{RESCALE} divides by decoder rows of norm 0", "train or save it again")
    sae.encoder_rows.mul_(norms[:, None])
    sae.b_enc.mul_(norms)
    sae.W_dec.div_(norms[:, None])
