"""Llama Scope, its later sets, and what Llamascopium (once lm-saes) saves: a folder each.

    hyperparams.json, checkpoints/final.safetensors    Llama Scope
    config.json, sae_weights.safetensors               Llama Scope R1-Distill; Llamascopium

    encoder.weight [d_sae d_in], encoder.bias, decoder.weight [d_in d_sae], decoder.bias
    or W_E [d_in d_sae], b_E, W_D [d_sae d_in], b_D

    z     = (s * x) @ W_enc + b_enc                    nothing is subtracted from x
    code  = z * [z * n > threshold]                    n: norms of decoder rows, or 1
    recon = (code @ W_dec + b_dec) / s

s brings inputs to a mean norm of sqrt(d_in): it is sqrt(d_in) over the mean norm of activations
(`norm_activation: dataset-wise`), which is stored in the config or beside the weights; where it is
not, load_sae(input_scale=...) takes s. It is folded into the weights, so that a code is that of the
scaled input. n is there with `sparsity_include_decoder_norm`, and is taken into the thresholds; in
a TopK SAE, whose choice it decides, into encoder and decoder, as the library does for inference.

Thresholds are stored as logarithms, for scaled inputs. In hyperparams.json there is one for all,
for inputs that are not scaled: it is multiplied by s, as SAELens does.

Source: 2410.20526; lm-saes and Llamascopium 2.0; SAELens' loaders.

Limits: autoencoders, and transcoders of one site to one other; jumprelu, topk and relu; norms by
data set, by row (`token-wise`) or none.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sae_kit.formats.base import Format, SAEInfo
from sae_kit.formats.configs import MAX_WHOLE, config_of, positive_of, whole_of
from sae_kit.formats.places import Header, Place, refuse
from sae_kit.formats.tensors import check_header, read_safetensors
from sae_kit.sae.normalization import Normalization

FIRST = ("hyperparams.json", "checkpoints/final.safetensors")
LATER = ("config.json", "sae_weights.safetensors")

# Names of tensors -> ours, in the two ways of naming them; in the first, weights are transposed.
MODULES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
}
LETTERS = {"W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec"}

THRESHOLD = "jump_relu_threshold"
THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
NORM = "dataset_average_activation_norm"
"""In the first config, {in, out}; later the start of tensors' names, before the site's."""

NORMS: dict[str, Normalization] = {
    "dataset-wise": "none",
    "inference": "none",
    "token-wise": "constant_norm_rescale",
}
"""Their words for how inputs are scaled -> how rows are normalised here, s aside."""

LLAMA = {"model_name": "meta-llama/Llama-3.1-8B", "context_size": 1024, "prepend_bos": True}
"""What the SAEs of Llama Scope were trained on, which only the names of their folders say."""


@final
@dataclass(frozen=True)
class _Read:
    """Config and header, understood."""

    contents: Mapping[str, Any]
    where: str
    """The config's file, for messages."""
    file: str
    """That of the weights."""
    header: Header
    is_first: bool
    """Whether it is of the first of the two layouts."""

    @staticmethod
    def of(place: Place) -> "_Read":
        is_first = place.has(FIRST[0]) or place.has(FIRST[1])
        config, file = FIRST if is_first else LATER
        where, contents = place.file(config), place.json(config)
        if (kind := contents.get("sae_type", "sae")) not in ("sae", "transcoder"):
            refuse(where, f"sae_type is {kind!r:.80}", "only sae and transcoder can be opened")
        if contents.get("use_glu_encoder"):
            refuse(where, "use_glu_encoder is true", "it can be opened where it is false")
        return _Read(contents, where, file, place.header(file), is_first)

    @property
    def d_in(self) -> int:
        return whole_of(self.contents, "d_model", self.where)

    @property
    def d_sae(self) -> int:
        if "d_sae" in self.contents:
            return whole_of(self.contents, "d_sae", self.where)
        factor = positive_of(self.contents, "expansion_factor", self.where)
        return int(self.d_in * min(factor, MAX_WHOLE))

    @property
    def hook_in(self) -> str:
        hook = self.contents.get("hook_point_in")
        if not isinstance(hook, str):
            refuse(self.where, f"hook_point_in is {hook!r:.80}", "it must name a site")
        return hook

    @property
    def hook_out(self) -> str:
        """The same as it reads, of an autoencoder."""
        hook = self.contents.get("hook_point_out")
        return hook if isinstance(hook, str) else self.hook_in

    @property
    def is_transcoder(self) -> bool:
        return self.hook_out != self.hook_in

    @property
    def arch(self) -> str:
        """Our word for it."""
        # With a threshold, the first set is jumprelu at inference, whatever it was trained as.
        known = "jumprelu" if self.is_first or self.log_threshold else None
        word = "jumprelu" if self.is_first else self.contents.get("act_fn", known)
        if word not in ("jumprelu", "topk", "relu"):
            what = f"act_fn is {word!r:.80}"
            refuse(self.where, what, "only jumprelu, topk and relu can be opened")
        return str(word)

    @property
    def log_threshold(self) -> str | None:
        """The tensor that has thresholds."""
        return next((name for name in THRESHOLDS if name in self.header), None)

    @property
    def has_norms(self) -> bool:
        """Whether decoder norms have a say in which latents are active."""
        return bool(self.contents.get("sparsity_include_decoder_norm")) and self.arch != "relu"

    @property
    def scaling(self) -> str:
        """The file's word for how inputs are scaled."""
        word = self.contents.get("norm_activation", "dataset-wise")
        if word not in tuple(NORMS):
            what = f"norm_activation is {word!r:.80}"
            refuse(self.where, what, f"only {', '.join(NORMS)} can be opened")
        if NORMS[word] != "none" and self.is_transcoder:
            refuse(self.where, f"norm_activation is {word!r}", "a transcoder's cannot be opened")
        return str(word)

    @property
    def needs_scale(self) -> bool:
        """Whether the scale of inputs is asked for and not there."""
        needed = self.scaling == "dataset-wise" and not self.is_first
        return needed and f"{NORM}.{self.hook_in}" not in self.header

    @property
    def names(self) -> dict[str, str]:
        """Names of the four tensors of every SAE -> ours."""
        return LETTERS if "W_E" in self.header else MODULES

    def check(self, where: str) -> None:
        """See that the weights are those that the config speaks of."""
        d_in, d_sae = self.d_in, self.d_sae
        shapes = {
            "W_enc": (d_in, d_sae),
            "b_enc": (d_sae,),
            "W_dec": (d_sae, d_in),
            "b_dec": (d_in,),
        }
        turn = -1 if self.names is MODULES else 1
        expected = {theirs: shapes[ours][::turn] for theirs, ours in self.names.items()}
        if self.contents.get("use_decoder_bias") is False:
            expected.pop(next(name for name, ours in self.names.items() if ours == "b_dec"))
        if self.arch == "jumprelu" and not self.is_first:
            expected[self.log_threshold or THRESHOLDS[0]] = (d_sae,)
        norms = {
            name: shape
            for name, (_, shape) in self.header.items()
            if name.startswith(f"{NORM}.") and math.prod(shape) == 1
        }
        because = f"d_model={d_in} and {d_sae} latents"
        check_header(self.header, expected, where, optional=norms, because=because)


@final
class LlamaScopeFormat(Format, name="llama_scope"):
    """See the module's docstring."""

    def find(self, names: Collection[str]) -> list[str]:
        """Folders with either file of the first layout, or both of the later and no cfg.json."""
        folders = _with(FIRST[0], names) | _with(FIRST[1], names)
        later = _with(LATER[0], names) & _with(LATER[1], names)
        return sorted(folders | (later - _with("cfg.json", names)))

    def recognises(self, place: Place) -> bool:
        """Names tell the first layout, the keys of its config the later."""
        return place.has(FIRST[0]) or place.has(FIRST[1]) or "d_model" in place.json(LATER[0])

    def site(self, place: Place) -> str | None:
        """By the config."""
        site = place.json(FIRST[0] if place.has(FIRST[0]) else LATER[0]).get("hook_point_in")
        return site if isinstance(site, str) else None

    def inspect(self, place: Place) -> SAEInfo:
        """See Format.inspect."""
        read = _Read.of(place)
        read.check(place.file(read.file))
        settings = {
            "arch": read.arch,
            "d_sae": read.d_sae,
            "apply_b_dec_to_input": read.contents.get("apply_decoder_bias_to_pre_encoder", False),
        }
        if read.arch == "topk":
            settings["k"] = read.contents.get("top_k")
        if read.is_transcoder and read.needs_scale:
            refuse(read.where, f"has no {NORM}", "it must be stored beside a transcoder's weights")
        if read.is_first:
            positive_of(read.contents, THRESHOLD, read.where)
            _scales(read, {}, read.where)  # for what it refuses
        return SAEInfo(
            source=place.where,
            format=self.name,
            config=config_of(settings, read.where),
            d_in=read.d_in,
            d_out=read.d_in if read.is_transcoder else None,
            normalization=NORMS[read.scaling],
            needs_input_scale=read.needs_scale,
            site=read.hook_in,
            metadata=(LLAMA if "Llama3_1-8B" in place.where else {})
            | ({"hook_name_out": read.hook_out} if read.is_transcoder else {}),
            conversions=_conversions(read),
            tensors=read.header,
        )

    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """See Format.weights."""
        read = _Read.of(place)
        stored = read_safetensors(place, read.file, {name: name for name in read.header})
        wide = {
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            for name, tensor in stored.items()
        }
        weights = {ours: wide[theirs] for theirs, ours in read.names.items() if theirs in wide}
        if read.names is MODULES:
            weights |= {name: weights[name].T for name in ("W_enc", "W_dec")}
        weights.setdefault("b_dec", weights["W_dec"].new_zeros(read.d_in))
        scale, scale_out = _scales(read, wide, place.file(read.file))
        if read.is_first:
            threshold = positive_of(read.contents, THRESHOLD, read.where) * scale
            weights["threshold"] = torch.full_like(weights["b_enc"], threshold)
        elif read.log_threshold is not None:
            weights["threshold"] = wide[read.log_threshold].exp()
        if read.has_norms:
            _take_norms(weights, place.file(read.file))
        weights["W_enc"] = weights["W_enc"] * scale
        weights |= {name: weights[name] / scale_out for name in ("W_dec", "b_dec")}
        return weights


def _with(file: str, names: Collection[str]) -> set[str]:
    """The folders that have a file of this name."""
    found = (
        f"/{name}".removesuffix(f"/{file}") for name in names if f"/{name}".endswith(f"/{file}")
    )
    return {folder.lstrip("/") for folder in found}


def _conversions(read: _Read) -> tuple[str, ...]:
    is_scaled = read.scaling == "dataset-wise" and not read.needs_scale
    done = {
        "input scale sqrt(d_in) / mean norm folded into the weights": is_scaled,
        "one threshold, for inputs as they are, given to every latent": read.is_first,
        "decoder norms taken into the thresholds": read.has_norms and read.arch == "jumprelu",
        "decoder norms taken into the encoder": read.has_norms and read.arch == "topk",
    }
    return tuple(what for what, was in done.items() if was)


def _scales(read: _Read, stored: Mapping[str, Tensor], where: str) -> tuple[float, float]:
    """What inputs, and what outputs are multiplied by, for the SAE as it is stored."""
    if read.scaling != "dataset-wise" or read.needs_scale:
        return 1.0, 1.0
    if read.is_first:
        norms = _norm_in_config(read, "in"), _norm_in_config(read, "out")
    else:
        hooks = {f"{NORM}.{hook}" for hook in (read.hook_in, read.hook_out)}
        missing = sorted(hooks - stored.keys())
        if missing:
            refuse(where, f"has no {', '.join(missing)}", "save it again with its norms")
        numbers = {name: stored[name].item() for name in hooks}
        norms = (
            positive_of(numbers, f"{NORM}.{read.hook_in}", where),
            positive_of(numbers, f"{NORM}.{read.hook_out}", where),
        )
    scale, scale_out = (math.sqrt(read.d_in) / norm for norm in norms)
    return scale, scale_out if read.is_transcoder else scale


def _norm_in_config(read: _Read, which: str) -> float:
    """That of inputs, or of outputs where it is another."""
    norms = read.contents.get(NORM)
    if not isinstance(norms, Mapping):
        refuse(read.where, f"{NORM} is {norms!r:.80}", "it must have the norm of inputs, in")
    return positive_of(norms, which if read.is_transcoder else "in", f"{read.where}: {NORM}")


def _take_norms(weights: dict[str, Tensor], where: str) -> None:
    """Take the norms of decoder rows, by which pre-activations count, into the other weights."""
    norms = torch.linalg.vector_norm(weights["W_dec"], dim=-1)
    if not norms.all():
        refuse(where, "has decoder rows of norm 0", "save it again without these latents")
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"] / norms
        return
    weights["W_enc"] = weights["W_enc"] * norms
    weights["b_enc"] = weights["b_enc"] * norms
    weights["W_dec"] = weights["W_dec"] / norms[:, None]
