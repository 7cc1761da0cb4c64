"""The layout of dictionary_learning: one folder per trainer.

    trainer_0/config.json    `trainer`: dict_class, widths, k, layer, model; `buffer`: its data
    trainer_0/ae.pt          the state_dict of the class, or of a run that was stopped
                             {step, ae, optimizer, config, norm_factor}

`CLASSES` has the seven classes. All compute code = activation((x - b_dec) @ W_enc + b_enc) and
recon = code @ W_dec + b_dec, but AutoEncoderNew and JumpReluAutoEncoder do not subtract b_dec.
BatchTopK and Matryoshka are read as its code runs them outside training: above their threshold, or
above 0 where that is -1, which is to say unset. A TopK file's threshold is not in use.

Two things are done to weights, as dictionary_learning itself does them, and said in `conversions`:
the decoder columns of an AutoEncoder are scaled to norm 1, and its codes with them; and the biases
of a stopped run, which are still those for inputs over norm_factor, are multiplied by it.

Written files open in dictionary_learning with the same codes and outputs. Where a class treats
b_dec otherwise than the SAE, b_enc makes up for it. A ReLU SAE is an AutoEncoder if its decoder has
norm 1 as it is, else an AutoEncoderNew. Under `sae_kit`, a key of config.json that nobody else
reads, is how the SAE was trained, and its metadata; by it the SAE comes back as it was.

Source: dictionary_learning 0.1.0. Limits: no transcoders (buffer.io in_and_out), which have the
classes of autoencoders there; half precision is widened to float32; the checkpoints of a run, which
have no config.json of their own, are not found.
"""

import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.files import storable, write_atomic
from sae_kit.formats.base import SAEInfo, WritableFormat
from sae_kit.formats.configs import positive_of
from sae_kit.formats.dictionary_learning_config import (
    AUTOENCODER,
    CLASSES,
    Config,
    contents_for,
)
from sae_kit.formats.pickles import peek_pt, read_pt
from sae_kit.formats.places import Place, folders_with, refuse
from sae_kit.formats.plain import Plain, check_trained
from sae_kit.formats.tensors import FLOATS, check_header, header_of
from sae_kit.sae import SAE

CONFIG, WEIGHTS = "config.json", "ae.pt"

COUNTS = {"k": 0, "group_sizes": 1}
"""Buffers of whole numbers and how many axes they have; the config says the same."""


@final
@dataclass(frozen=True)
class _State:
    """ae.pt, understood."""

    tensors: Mapping[str, Tensor]
    norm_factor: float
    """What the biases are to be multiplied by; 1 where they are for inputs as they are."""

    @staticmethod
    def of(contents: Mapping[str, Any], where: str) -> "_State":
        """From the contents of a file, which may be on the meta device."""
        was_stopped = isinstance(contents.get("ae"), Mapping)
        state = contents["ae"] if was_stopped else contents
        factor = contents.get("norm_factor") if was_stopped else None
        if factor is not None:
            factor = positive_of({"norm_factor": factor}, "norm_factor", where)
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                refuse(where, f"{name} is a {type(value).__name__}", "give the state_dict alone")
        return _State(state, 1.0 if factor is None else factor)  # None: inputs as they are


@final
class DictionaryLearningFormat(WritableFormat, name="dictionary_learning"):
    """See the module's docstring."""

    def find(self, names: Collection[str]) -> list[str]:
        """Folders that hold weights of this name."""
        return folders_with(WEIGHTS, names)

    def recognises(self, place: Place) -> bool:
        """Names tell."""
        return True

    def site(self, place: Place) -> str | None:
        """By our metadata, the name of the submodule, or that of a folder."""
        return Config.read(place, CONFIG).site(place.where)

    def inspect(self, place: Place) -> SAEInfo:
        """See Format.inspect."""
        read, where = Config.read(place, CONFIG), place.file(WEIGHTS)
        state = _State.of(peek_pt(place, WEIGHTS), where)
        header = header_of(state.tensors)
        d_in, d_sae = read.widths(header, where)
        counts = {name: header[name] for name in COUNTS if name in header}
        for name, (dtype, shape) in counts.items():
            if dtype in FLOATS or len(shape) != COUNTS[name]:
                refuse(where, f"{name} is {dtype} of shape {shape}", "it must be whole numbers")
        check_header(
            {name: entry for name, entry in header.items() if name not in COUNTS},
            read.shapes(d_in, d_sae),
            where,
            optional=read.optional,
            because=f"activation_dim={d_in} and dict_size={d_sae}",
        )
        return SAEInfo(
            source=place.where,
            format=self.name,
            config=read.config(d_sae),
            d_in=d_in,
            site=read.site(place.where),
            metadata=read.metadata(),
            conversions=_conversions(read, state),
            tensors=header,
        )

    def weights(self, place: Place, info: SAEInfo) -> dict[str, Tensor]:
        """See Format.weights."""
        read, where = Config.read(place, CONFIG), place.file(WEIGHTS)
        state = _State.of(read_pt(place, WEIGHTS), where)
        read.check_counts(state.tensors, where)
        ours = {theirs: name for name, theirs in read.known.names.items()}
        weights = {}
        for name, tensor in state.tensors.items():
            if name in ours:
                wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                weights[ours[name]] = wide.T if name.endswith(".weight") else wide
        if read.known.is_batch:
            line = state.tensors["threshold"].to(weights["W_dec"].dtype).relu()
            weights["threshold"] = line.expand(info.config.d_sae).clone()
        for name in weights.keys() & {"b_enc", "b_mag", "b_dec", "threshold"}:
            weights[name] = weights[name] * state.norm_factor
        if read.record is None:
            if read.name == AUTOENCODER:
                _normalise_decoder(weights, where)
            return weights
        config = read.record.config
        # Whether b_dec is subtracted is the one thing in which file and SAE may differ.
        centred = {"apply_b_dec_to_input": config.apply_b_dec_to_input}
        d_sae = len(weights["b_enc"])
        plain = Plain({**read.plain_settings(d_sae), **centred}, info.d_in, None)
        check_trained(config, plain, place.file(CONFIG))
        _move_b_dec(weights, before=read.known.centres, after=config.apply_b_dec_to_input)
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
        name = _class_for(sae, sparsity)
        known, config = CLASSES[name], contents_for(sae, name, metadata)
        weights = dict(sae.inference().weights)
        _move_b_dec(weights, before=sae.config.apply_b_dec_to_input, after=known.centres)
        state = {}
        for ours, theirs in known.names.items():
            state[theirs] = weights[ours].T if theirs.endswith(".weight") else weights[ours]
        trainer = config["trainer"]
        if "k" in trainer:
            state["k"] = torch.tensor(trainer["k"], dtype=torch.int32)
            state["threshold"] = weights["threshold"][0] if known.is_batch else torch.tensor(-1.0)
        if "group_sizes" in trainer:
            state["group_sizes"] = torch.tensor(trainer["group_sizes"])
        written = io.BytesIO()
        torch.save(storable(state), written)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS, written.getvalue())
        write_atomic(folder / CONFIG, json.dumps(config, indent=2, allow_nan=False) + "\n")


def _conversions(read: Config, state: _State) -> tuple[str, ...]:
    done = {
        f"biases multiplied by norm_factor {state.norm_factor}, as at the end of a run": (
            state.norm_factor != 1
        ),
        "decoder columns scaled to norm 1, and codes with them, as its loader does": (
            read.name == AUTOENCODER and read.record is None
        ),
    }
    return tuple(what for what, was in done.items() if was)


def _norms(w_dec: Tensor) -> Tensor | None:
    """Norms of the latents' decoder vectors; None where all are 1, as its loader decides."""
    norms = torch.linalg.vector_norm(w_dec, dim=-1)
    return None if torch.allclose(norms, torch.ones_like(norms)) else norms


def _normalise_decoder(weights: dict[str, Tensor], where: str) -> None:
    """Scale latents so that they write vectors of norm 1; the outputs stay the same."""
    if (norms := _norms(weights["W_dec"])) is None:
        return
    if not norms.all():
        refuse(where, "a decoder column has norm 0, and is divided by it", "remove the latent")
    weights["W_enc"] = weights["W_enc"] * norms
    weights["b_enc"] = weights["b_enc"] * norms
    weights["W_dec"] = weights["W_dec"] / norms[:, None]


def _move_b_dec(weights: dict[str, Tensor], *, before: bool, after: bool) -> None:
    """Adapt biases to whether b_dec is subtracted from the input; computed in double."""
    if before == after:
        return
    dtype = torch.promote_types(weights["b_enc"].dtype, torch.float32)
    shift = (weights["b_dec"].double() @ weights["W_enc"].double()) * (after - before)
    weights["b_enc"] = (weights["b_enc"].double() + shift).to(dtype)
    if "b_mag" in weights:
        shift = shift * weights["r_mag"].double().exp()
        weights["b_mag"] = (weights["b_mag"].double() + shift).to(dtype)


def _class_for(sae: SAE, sparsity: Tensor | None) -> str:
    """The class that computes what an SAE computes.

    Raises:
        ValueError: there is none, or none for that.
    """
    word, plain = sae.config.word, sae.inference()
    if sae.is_transcoder:
        raise ValueError(
            f"d_out: dictionary_learning has no class for the transcoder {word!r}; give another "
            "format"
        )
    if sae.normalization != "none":
        raise ValueError(
            f"normalization: dictionary_learning cannot express {word!r} with "
            f"{sae.normalization!r}; it can express 'none'"
        )
    if sparsity is not None:
        raise ValueError(
            "sparsity: dictionary_learning has no place for firing frequencies; give None"
        )
    if plain.arch == "relu":
        is_unit = _norms(plain.weights["W_dec"]) is None
        return AUTOENCODER if is_unit and sae.config.apply_b_dec_to_input else "AutoEncoderNew"
    found = {known.trained_as: name for name, known in CLASSES.items()}
    # SAEs that were loaded may have thresholds of their own for each latent.
    line = plain.weights.get("threshold", torch.zeros(1))
    if word in found and (not CLASSES[found[word]].is_batch or (line == line[0]).all()):
        return found[word]
    if plain.arch not in found:
        raise ValueError(
            f"arch: dictionary_learning cannot express {word!r}, which computes what "
            f"{plain.arch!r} does; it can express {', '.join(sorted(found))}"
        )
    return found[plain.arch]
