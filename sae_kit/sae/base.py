"""What every SAE architecture is: a config that builds it, and a class with the same few methods.

    code  = activation((x - b_dec) @ W_enc + b_enc)      # the activation is the architecture's
    recon = code @ W_dec + b_dec

An architecture is one module with one config and one final class. It says how rows are encoded
(`encode_rows`), what a training pass keeps (`forward_train`), which loss it minimises (`losses`)
and which plain architecture computes its outputs once trained (`inference`). The rest is here.

Conventions, for all variants:

- Rows of W_dec have norm 1 throughout training. `after_backward` removes the gradient along the
  rows, `after_step` normalises them again. This takes away the freedom to shrink the code and grow
  the decoder; it also means that a code is in units of the input.
- Losses are squared errors summed over channels and averaged over rows. With inputs scaled to a
  mean norm of sqrt(d_in), the loss of predicting the mean is at most about d_in.
- `x` is what is encoded, `target` what is to be reconstructed; they differ in a transcoder.
- W_enc and W_dec read `[d_in d_sae]` and `[d_sae d_in]`. Both are stored `[d_sae d_in]`, since the
  sparse path reads and updates whole latents; W_enc is a transposed view of the stored encoder.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_kit.config import Family
from sae_kit.sae import ops
from sae_kit.sae.code import SparseCode


@dataclass(frozen=True, kw_only=True)
class SAEConfig(Family, ABC, tag="arch", package="sae_kit.sae"):
    """What every architecture is configured by."""

    d_sae: int = 2048
    """Number of latents in the dictionary."""

    apply_b_dec_to_input: bool = True
    """Whether b_dec is subtracted from the input before encoding. Public SAEs differ in this."""

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise ValueError(f"d_sae: {self.d_sae} is no dictionary; give at least 1")

    @abstractmethod
    def build(self, d_in: int, *, generator: torch.Generator) -> "SAE":
        """A freshly initialised SAE for inputs of width `d_in`, on the generator's device."""


@dataclass(frozen=True)
class TrainOutput:
    """What a training pass produced."""

    recon: Float[Tensor, "rows d_in"]
    """The reconstruction."""

    code: Float[Tensor, "rows d_sae"] | SparseCode
    """The code it was decoded from, in the architecture's natural form."""


@dataclass(frozen=True)
class Losses:
    """The loss of one batch."""

    total: Float[Tensor, ""]
    """What is differentiated: the sum of the terms."""

    terms: Mapping[str, Float[Tensor, ""]]
    """The summands by name, coefficients included, detached: what is logged."""

    @staticmethod
    def of(**terms: Float[Tensor, ""]) -> "Losses":
        """Add the terms up."""
        total = torch.stack(list(terms.values())).sum()
        return Losses(total, {name: term.detach() for name, term in terms.items()})


@dataclass(frozen=True)
class Inference:
    """A trained SAE as the plain architecture that computes the same outputs, for file formats."""

    arch: str
    """Word of the plain architecture."""

    fields: Mapping[str, int | float | bool | str]
    """Its config fields that matter for outputs, beyond d_sae and apply_b_dec_to_input."""

    weights: Mapping[str, Tensor]
    """Its tensors, with the documented names and shapes."""


class SAE(nn.Module, ABC):
    """A sparse autoencoder. Subclasses are final and implement the four abstract methods."""

    W_dec: nn.Parameter  # [d_sae d_in]
    b_enc: nn.Parameter  # [d_sae]
    b_dec: nn.Parameter  # [d_in]
    encoder_rows: nn.Parameter  # [d_sae d_in]; read it as W_enc

    def __init__(self, config: SAEConfig, d_in: int, *, generator: torch.Generator) -> None:
        super().__init__()
        if d_in < 1:
            raise ValueError(f"d_in: {d_in} is no width; give the width of the site")
        self.config = config
        self.d_in = d_in
        self.d_sae = config.d_sae
        self.metadata: dict[str, Any] = {}
        """Where this SAE comes from (site, model, data, ...), as its file says."""

        rows = ops.random_unit_rows(self.d_sae, d_in, generator)
        self.W_dec = nn.Parameter(rows)
        # Tied at the start only: the encoder looks for what the decoder writes.
        self.encoder_rows = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(rows.new_zeros(self.d_sae))
        self.b_dec = nn.Parameter(rows.new_zeros(d_in))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder weights, a view."""
        return self.encoder_rows.T

    # --- what a variant says ----------------------------------------------------------------------

    @abstractmethod
    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """The code of each row in the architecture's natural form. A row never sees another."""

    @abstractmethod
    def forward_train(self, x: Float[Tensor, "rows d_in"]) -> TrainOutput:
        """Encode and decode a batch as in training, where rows may compete with each other."""

    @abstractmethod
    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_in"],
        out: TrainOutput,
        *,
        step: int,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """The training loss.

        Args:
            x: the rows that were encoded.
            target: the rows to reconstruct.
            out: what `forward_train(x)` returned.
            step: number of optimiser steps done so far, for coefficients that warm up.
            dead: latents which have not fired for so long that the trainer calls them dead.
        """

    @abstractmethod
    def inference(self) -> Inference:
        """The plain architecture that computes this SAE's outputs."""

    # --- the same for all -------------------------------------------------------------------------

    @final
    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """The code as a matrix. `encode_sparse` is far cheaper where it serves."""
        code = self.encode_rows(self._as_rows(x))
        dense = code.dense() if isinstance(code, SparseCode) else code
        return dense.view(*x.shape[:-1], self.d_sae)

    @final
    def encode_sparse(self, x: Float[Tensor, "*rows d_in"]) -> SparseCode:
        """The code as values and latent numbers."""
        code = self.encode_rows(self._as_rows(x))
        sparse = code if isinstance(code, SparseCode) else SparseCode.from_dense(code)
        shape = (*x.shape[:-1], sparse.values.shape[-1])
        return SparseCode(sparse.values.view(shape), sparse.indices.view(shape), self.d_sae)

    @final
    def decode(
        self, code: Float[Tensor, "*rows d_sae"] | SparseCode
    ) -> Float[Tensor, "*rows d_in"]:
        """The reconstruction of a code, dense or sparse."""
        if isinstance(code, Tensor):
            return code @ self.W_dec + self.b_dec
        *shape, k = code.values.shape
        recon = ops.sparse_decode(
            code.values.reshape(-1, k), code.indices.reshape(-1, k), self.W_dec
        )
        return (recon + self.b_dec).view(*shape, self.d_in)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        """`decode(encode(x))`, staying sparse where the architecture is."""
        return self.decode(self.encode_rows(self._as_rows(x))).view(x.shape)

    @final
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Start from the data: b_dec becomes the geometric median of `x`.

        Some ten thousand rows are plenty; mixed ones, scaled as in training.
        """
        self.b_dec.copy_(ops.geometric_median(self._as_rows(x)))

    @final
    @torch.no_grad()
    def after_backward(self) -> None:
        """Between backward and the optimiser step: no gradient along the unit decoder rows."""
        if self.W_dec.grad is not None:
            ops.remove_parallel_(self.W_dec.grad, self.W_dec)

    @final
    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimiser step: decoder rows back to norm 1."""
        ops.unit_norm_rows_(self.W_dec)

    @final
    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Take an input scaling into the weights: afterwards `sae(x)` is `sae(x * scale) / scale`.

        The code of `x` is what the code of `x * scale` was. Decoder rows lose their unit norm, so
        this is the last thing done to a trained SAE before it is saved.

        Raises:
            ValueError: the scale is not a positive, finite number.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: {scale} cannot be folded; give a positive, finite number")
        self.encoder_rows.mul_(scale)
        self.W_dec.div_(scale)
        self.b_dec.div_(scale)

    @final
    def weights(self) -> dict[str, Tensor]:
        """The parameters by their documented names and shapes, detached."""
        named = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return {"W_enc": named.pop("encoder_rows").T, **named}

    @final
    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy in tensors named and shaped as `weights()` gives them.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape.
        """
        own = self.weights()
        if own.keys() != weights.keys():
            raise ValueError(f"weights: got {sorted(weights)}; give {sorted(own)}")
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise ValueError(
                    f"{name}: got shape {tuple(weights[name].shape)}; give {tuple(tensor.shape)}"
                )
            tensor.copy_(weights[name])

    @final
    def _as_rows(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"x: width {x.shape[-1]} does not fit an SAE of d_in {self.d_in}; "
                "give the activations of the site it was trained on"
            )
        return x.reshape(-1, self.d_in)

    @final
    def _centred(self, x: Tensor) -> Tensor:
        """The encoder's input: x, less b_dec where the config says so."""
        return x - self.b_dec if self.config.apply_b_dec_to_input else x
