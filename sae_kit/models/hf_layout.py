"""GPT-2 in Hugging Face layout: config.json and named tensors, read and written, each one checked.

The layout is that of `transformers`' GPT2LMHeadModel. Both sides keep linear weights input-first,
so the two tables below (names with the layer erased, and sizes) are the whole translation.

A model without LayerNorm (`GPT2Config.norm` "linear") is written as one that has it, with an
epsilon so large that nothing else is left of the scale, and gains to match: `transformers` runs it
as it is. Models of Heimersheim 2024 (2409.13710) are stored so too. Reading undoes it.

Weights come from `model.safetensors`, from shards named in `model.safetensors.index.json`, or from
an old `pytorch_model.bin`, of which only tensors are read, never code.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_kit.files import save_tensors, write_atomic
from sae_kit.maths import all_finite
from sae_kit.models.gpt2 import GPT2, GPT2Config

KEYS = {
    "W_E": "transformer.wte.weight",
    "W_pos": "transformer.wpe.weight",
    "blocks.*.ln1.w": "transformer.h.*.ln_1.weight",
    "blocks.*.ln1.b": "transformer.h.*.ln_1.bias",
    "blocks.*.attn.W_qkv": "transformer.h.*.attn.c_attn.weight",
    "blocks.*.attn.b_qkv": "transformer.h.*.attn.c_attn.bias",
    "blocks.*.attn.W_O": "transformer.h.*.attn.c_proj.weight",
    "blocks.*.attn.b_O": "transformer.h.*.attn.c_proj.bias",
    "blocks.*.ln2.w": "transformer.h.*.ln_2.weight",
    "blocks.*.ln2.b": "transformer.h.*.ln_2.bias",
    "blocks.*.mlp.W_in": "transformer.h.*.mlp.c_fc.weight",
    "blocks.*.mlp.b_in": "transformer.h.*.mlp.c_fc.bias",
    "blocks.*.mlp.W_out": "transformer.h.*.mlp.c_proj.weight",
    "blocks.*.mlp.b_out": "transformer.h.*.mlp.c_proj.bias",
    "ln_final.w": "transformer.ln_f.weight",
    "ln_final.b": "transformer.ln_f.bias",
    "W_U": "lm_head.weight",
}
"""Our parameter names and Hugging Face's, the layer written as `*`."""

SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "d_model": "n_embd",
    "d_mlp": "n_inner",
    "n_ctx": "n_positions",
    "n_vocab": "vocab_size",
    "eps": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}
"""Fields of `GPT2Config` and of config.json."""

# What config.json may say where this GPT-2 knows one way only; the first is what is written.
# (reorder_and_upcast_attn is not here: it changes rounding in half precision, not the function.)
SUPPORTED: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}

# An epsilon from which on LayerNorm's scale is a constant: variances are far below.
LINEAR_EPS = 2.0**40  # its root, 2^20, multiplies and divides exactly
LEAST_LINEAR_EPS = 1e10

GAIN = re.compile(r"(h\.\d+\.ln_[12]|ln_f)\.weight")

# Causal masks, which old files carry although they are no parameters.
MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def hf_key(name: str) -> str:
    """Hugging Face's name of one of our parameters: "blocks.3.attn.W_O" and the like."""
    erased = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
    return KEYS[erased].replace("*", name.split(".")[1]) if erased != name else KEYS[name]


def read_model(folder: Path) -> GPT2:
    """The model in `folder`, in float32 on the CPU.

    Raises:
        ValueError: a file is missing or broken, config.json asks for something this GPT-2 lacks, or
            tensors are missing, extra or misshapen (all of them are named).
    """
    config = read_config(folder)
    tensors = _bare_names(_read_tensors(folder), folder)
    if config.norm == "linear":
        for key in filter(GAIN.fullmatch, tensors):
            tensors[key] = tensors[key] / math.sqrt(config.eps)
        config = replace(config, eps=GPT2Config.eps)
    head = tensors.get("lm_head.weight")
    if config.tied and head is not None:
        # A copy of the embedding is no news; a different one is, whatever config.json says.
        if torch.equal(head, tensors.get("wte.weight", head)):
            del tensors["lm_head.weight"]
        else:
            config = replace(config, tied=False)
    model = GPT2(config)
    parameters = {_bare(hf_key(name)): p for name, p in model.named_parameters()}
    _check(tensors, parameters, folder)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(tensors[key])
    return model


def write_model(model: GPT2, folder: Path, *, eot_id: int, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors, which `transformers` opens as a GPT2LMHeadModel.

    Raises:
        ValueError: a weight is not finite in `dtype` (float16 ends at 65,504).
    """
    sizes = model.config
    tensors = {hf_key(name): p.detach() for name, p in model.named_parameters()}
    if sizes.norm == "linear":
        sizes = replace(sizes, eps=LINEAR_EPS)
        for key in filter(lambda key: GAIN.fullmatch(_bare(key)), tensors):
            tensors[key] = tensors[key] * math.sqrt(LINEAR_EPS)
    tensors = {key: tensor.to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        if not all_finite(tensor):
            raise ValueError(f"dtype: {key} has values that are not finite in {dtype}; use float32")
    name = str(dtype).removeprefix("torch.")
    config = {
        "architectures": ["GPT2LMHeadModel"],
        **{field: values[0] for field, values in SUPPORTED.items() if values[0] is not None},
        **{theirs: getattr(sizes, ours) for ours, theirs in SIZES.items()},
        **{f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")},
        **{"bos_token_id": eot_id, "eos_token_id": eot_id, "torch_dtype": name},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    write_atomic(folder / "config.json", text)
    # Without this format word, transformers refuses the file.
    save_tensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})


def read_config(folder: Path) -> GPT2Config:
    """The sizes that `folder/config.json` states; a missing one is GPT-2 small's, as elsewhere.

    Raises:
        ValueError: no such file, no JSON, or a field with a value that this GPT-2 lacks.
    """
    path = folder / "config.json"
    stated = _read_json(path)
    if "model_type" not in stated:
        raise ValueError(f"{path}: model_type is missing; it must be 'gpt2'")
    for field, values in SUPPORTED.items():
        if stated.get(field, values[0]) not in values:
            allowed = " or ".join(map(repr, values))
            raise ValueError(
                f"{path}: {field}={stated[field]!r} is not supported; this GPT-2 has {allowed}"
            )
    sizes = {
        ours: stated[theirs] for ours, theirs in SIZES.items() if stated.get(theirs) is not None
    }
    eps = sizes.get("eps", 0.0)
    if type(eps) in (int, float) and not 0 <= eps < math.inf:
        raise ValueError(f"{path}: layer_norm_epsilon={eps} is not a finite number of 0 or more")
    if type(eps) is int:
        sizes["eps"] = float(eps)  # JSON has one kind of numbers
    for ours, size in sizes.items():
        kind = {"eps": float, "tied": bool}.get(ours, int)
        if type(size) is not kind:
            raise ValueError(f"{path}: {SIZES[ours]}={size!r} is not of type {kind.__name__}")
    sizes.setdefault("d_mlp", 4 * sizes.get("d_model", GPT2Config.d_model))
    if sizes.get("eps", 0.0) >= LEAST_LINEAR_EPS:
        sizes["norm"] = "linear"
    try:
        return GPT2Config(**sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _bare(key: str) -> str:
    """A Hugging Face name without the prefix that a model with a head has and one without lacks."""
    return key.removeprefix("transformer.")


def _bare_names(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors by bare name, masks left out; a name given twice is an error."""
    bare: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if _bare(key) in bare:
            raise ValueError(
                f"{folder}: {_bare(key)} is there twice, with and without 'transformer.'"
            )
        if not MASKS.fullmatch(_bare(key)):
            bare[_bare(key)] = tensor
    return bare


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    """Raise one ValueError that names every missing, extra, misshapen or non-float tensor."""
    problems = [
        f"missing {key} {list(p.shape)}" for key, p in expected.items() if key not in tensors
    ]
    for key, tensor in tensors.items():
        if key not in expected:
            problems.append(f"extra {key} {list(tensor.shape)}")
        elif tensor.shape != expected[key].shape:
            shape = list(expected[key].shape)
            problems.append(f"misshapen {key} {list(tensor.shape)}, config.json says {shape}")
        elif not tensor.is_floating_point():
            problems.append(f"{key} holds {tensor.dtype}, not floating-point numbers")
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"{folder}: the weights do not fit a GPT-2 of its config.json:\n  {listed}"
        )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor in `folder`, by its name there, from the first kind of file that exists."""
    whole, index, pickled = (folder / name for name in WEIGHT_FILES)
    if whole.is_file():
        return _read_safetensors(whole)
    if index.is_file():
        return _read_shards(index)
    if pickled.is_file():
        return _read_pickled(pickled)
    raise ValueError(f"no weights in {folder}: looked for {', '.join(WEIGHT_FILES)}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all the shards that the index names."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map is missing or empty")
    shards = sorted({str(name) for name in weight_map.values()})
    for shard in shards:
        # A name with a folder in it could point anywhere on this machine.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{index}: {shard!r} is not the name of a .safetensors file beside it")
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise ValueError(f"{index}: these shards are missing: {', '.join(absent)}")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors.update(_read_safetensors(index.parent / shard))
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: broken or not a safetensors file ({error})") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of damaged bytes it raises what comes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{path}: not a file of tensors only ({reason}); save it as model.safetensors"
        ) from error
    named = isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors)
    if not named or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path}: not a file of named tensors; save it as model.safetensors")
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"no {path.name} in {path.parent}; a model folder in Hugging Face layout has one"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content
