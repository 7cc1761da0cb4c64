"""What every SAE architecture is: a config that builds it, and a class with the same few methods.

    code  = activation((x - b_dec) @ W_enc + b_enc)      # the activation is the architecture's
    recon = code @ W_dec + b_dec

An architecture is one module with one config and one final class. It says how rows are encoded
(`encode_rows`), what a training pass keeps (`forward_train`), which loss it minimises (`losses`)
and which plain architecture computes its outputs once trained (`inference`). The rest is here.

Told a `d_out`, an SAE is a transcoder: it reads one site and reconstructs another. It never
subtracts b_dec from its input, which lives elsewhere, and may have a linear skip connection,
recon = code @ W_dec + b_dec + x @ W_skip.T (Paulo et al. 2025, 2501.18823).

Conventions, for all variants:

- Rows of W_dec have norm 1 throughout training, unless an architecture says otherwise
  (`unit_norm`). `after_backward` removes the gradient along the rows, `after_step` normalises them
  again. This takes away the freedom to shrink the code and grow the decoder; it also means that a
  code is in units of the input.
- Losses are squared errors summed over channels and averaged over rows. With inputs scaled to a
  mean norm of sqrt(d_in), the loss of predicting the mean is at most about d_in.
- `x` is what is encoded, `target` what is to be reconstructed; they differ in a transcoder.
- W_enc and W_dec read `[d_in d_sae]` and `[d_sae d_out]`. Both are stored latents first, since the
  sparse path reads and updates whole latents; W_enc is a transposed view of the stored encoder.
- b_enc is the bias of the pre-activations that decide which latents are active.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_kit.config import Family
from sae_kit.products import linear
from sae_kit.sae import auxiliary, ops
from sae_kit.sae.code import SparseCode
from sae_kit.sae.normalization import Normalization, denormalise, normalise
from sae_kit.sae.training import Losses, Moment, TrainOutput

N_PROBES = 256
"""Random inputs by which an encoder is scaled, as many as in the code of 2406.04093."""


@dataclass(frozen=True, kw_only=True)
class SAEConfig(Family, ABC, tag="arch", package="sae_kit.sae"):
    """What every architecture is configured by."""

    d_sae: int = 2048
    """Number of latents in the dictionary."""

    apply_b_dec_to_input: bool = True
    """Whether b_dec is subtracted from the input before encoding. Public SAEs differ in this."""

    skip: bool = False
    """Whether a transcoder adds a linear function of its input, W_skip [d_out d_in]."""

    aux_coefficient: float = 1 / 32
    """Weight of the dead latents' error against the live ones', both as shares of a variance."""

    k_aux: int | None = None
    """Number of dead latents that may be active in a row, at most; null = half of d_in."""

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise ValueError(f"d_sae: {self.d_sae} is no dictionary; give at least 1")
        if self.aux_coefficient < 0:
            raise ValueError(f"aux_coefficient: {self.aux_coefficient} is negative; 0 turns it off")
        if self.k_aux is not None and self.k_aux < 1:
            raise ValueError(
                f"k_aux: {self.k_aux} is too few; give 1 or more, or aux_coefficient=0 for none"
            )

    @abstractmethod
    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "SAE":
        """A freshly initialised SAE, on the generator's device.

        Args:
            d_in: width of what it reads.
            d_out: width of what it reconstructs, for a transcoder; None = the input itself.
            generator: draws the weights; None leaves them zero on the CPU, for `load_weights`.

        Raises:
            ValueError: the config does not fit the widths.
        """


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

    unit_norm: ClassVar[bool] = True
    """Whether rows of W_dec are kept at norm 1 in training."""
    screens: ClassVar[bool] = False
    """Whether its training pass can let a cheap product propose the active latents (`screened`)."""

    W_dec: nn.Parameter  # [d_sae d_out]
    b_enc: nn.Parameter  # [d_sae]
    b_dec: nn.Parameter  # [d_out]
    encoder_rows: nn.Parameter  # [d_sae d_in]; read it as W_enc
    W_skip: nn.Parameter  # [d_out d_in], where config.skip

    def __init__(
        self, config: SAEConfig, d_in: int, d_out: int | None, *, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        _check_widths(config, d_in, d_out)
        self.config = config
        self.d_in = d_in
        self.d_out = d_in if d_out is None else d_out
        self.is_transcoder = d_out is not None
        self.d_sae = config.d_sae
        self.screened = False
        """Whether training passes screen; set by the trainer, see `screens`."""
        self.normalization: Normalization = "none"
        """How each row is normalised on the way in, and back on the way out: a property of some
        public SAEs, set when they are loaded. Training passes do not normalise."""
        self.metadata: dict[str, Any] = {}
        """Where this SAE comes from (site, model, data, ...), as its file says."""

        rows = _drawn(self.d_sae, self.d_out, generator)
        self.W_dec = nn.Parameter(rows)
        # Tied at the start only: the encoder looks for what the decoder writes. A transcoder's
        # output says nothing of its input, so there the two are drawn apart.
        self.encoder_rows = nn.Parameter(
            _drawn(self.d_sae, d_in, generator) if self.is_transcoder else rows.clone()
        )
        self.b_enc = nn.Parameter(rows.new_zeros(self.d_sae))
        self.b_dec = nn.Parameter(rows.new_zeros(self.d_out))
        if config.skip:
            self.W_skip = nn.Parameter(rows.new_zeros(self.d_out, d_in))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder weights, a view."""
        return self.encoder_rows.T

    # --- what a variant says ----------------------------------------------------------------------

    @abstractmethod
    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """The code of normalised rows in the architecture's natural form; no row sees another."""

    @abstractmethod
    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """Encode and decode a batch as in training, where rows may compete with each other."""

    @abstractmethod
    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        out: TrainOutput,
        *,
        at: Moment,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """The training loss.

        Args:
            x: the rows that were encoded.
            target: the rows to reconstruct.
            out: what `forward_train(x, at)` returned.
            at: where in the run this is, for coefficients that change.
            dead: latents which have not fired for so long that the trainer calls them dead.
        """

    @abstractmethod
    def inference(self) -> Inference:
        """The plain architecture that computes this SAE's outputs."""

    # --- the same for all -------------------------------------------------------------------------

    @final
    def natural_code(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """The code in the form that costs least: sparse where the architecture is."""
        return self.encode_rows(normalise(self.normalization, self._as_rows(x)))

    @final
    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """The code as a matrix. `encode_sparse` is far cheaper where it serves."""
        code = self.natural_code(self._as_rows(x))
        dense = code.dense() if isinstance(code, SparseCode) else code
        return dense.view(*x.shape[:-1], self.d_sae)

    @final
    def encode_sparse(self, x: Float[Tensor, "*rows d_in"]) -> SparseCode:
        """The code as values and latent numbers."""
        code = self.natural_code(self._as_rows(x))
        sparse = code if isinstance(code, SparseCode) else SparseCode.from_dense(code)
        shape = (*x.shape[:-1], sparse.values.shape[-1])
        return SparseCode(sparse.values.view(shape), sparse.indices.view(shape), self.d_sae)

    @final
    def decode(
        self, code: Float[Tensor, "*rows d_sae"] | SparseCode
    ) -> Float[Tensor, "*rows d_out"]:
        """The reconstruction of a code, dense or sparse: of the row as it was normalised, where
        it was, and without the skip connection's part. `reconstruct` is the whole output.
        """
        if isinstance(code, Tensor):
            return linear(code, self.W_dec.T, self.b_dec)
        *shape, k = code.values.shape
        recon = ops.sparse_decode(
            code.values.reshape(-1, k), code.indices.reshape(-1, k), self.W_dec
        )
        return (recon + self.b_dec).view(*shape, self.d_out)

    @final
    def reconstruct(
        self,
        x: Float[Tensor, "rows d_in"],
        code: Float[Tensor, "rows d_sae"] | SparseCode,
    ) -> Float[Tensor, "rows d_out"]:
        """The output for rows whose code is known: `decode(code)`, the skip connection, and the
        inverse of the rows' normalisation.
        """
        recon = self._skipped(x, self.decode(code))
        return denormalise(self.normalization, recon, x)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Encode and reconstruct, staying sparse where the architecture is."""
        rows = self._as_rows(x)
        return self.reconstruct(rows, self.natural_code(rows)).view(*x.shape[:-1], self.d_out)

    @final
    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"]) -> None:
        """Start from the data: b_dec becomes the geometric median of `target`.

        Where the input is not centred by b_dec, b_enc does it at the start. Some ten thousand rows
        are plenty; mixed ones, scaled as in training.
        """
        self.b_dec.copy_(ops.geometric_median(target))
        if not self.config.apply_b_dec_to_input:
            self.b_enc.copy_(-(self.encoder_rows @ ops.geometric_median(self._as_rows(x))))
        self._init_latents(self._as_rows(x))

    def _init_latents(self, x: Float[Tensor, "rows d_in"]) -> None:
        """What an architecture's own parameters start from, given the data; nothing here."""

    @final
    @torch.no_grad()
    def after_backward(self) -> None:
        """Between backward and the optimiser step: no gradient along the unit decoder rows."""
        if self.unit_norm and self.W_dec.grad is not None:
            ops.remove_parallel_(self.W_dec.grad, self.W_dec)

    @final
    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimiser step: decoder rows back to norm 1."""
        if self.unit_norm:
            ops.unit_norm_rows_(self.W_dec)

    @final
    @torch.no_grad()
    def fold_scales(self, scale: float, scale_out: float) -> None:
        """Take the scaling of inputs and targets into the weights.

        Afterwards `sae(x)` is what `sae(x * scale) / scale_out` was, and the code of `x` what that
        of `x * scale` was. Decoder rows lose their unit norm, so this is the last thing done to a
        trained SAE before it is saved. An autoencoder has one scale.

        Raises:
            ValueError: a scale is not a positive, finite number, an autoencoder got two, or rows
                are normalised anyway.
        """
        if self.normalization != "none":
            raise ValueError(
                f"scale: rows are normalised ({self.normalization}), so no scale can be folded; "
                "give the rows as they are"
            )
        for one in (scale, scale_out):
            if not (math.isfinite(one) and one > 0):
                raise ValueError(f"scale: {one} cannot be folded; give a positive, finite number")
        if not self.is_transcoder and scale != scale_out:
            raise ValueError(f"scale_out: {scale_out} is not the input's {scale}; give one scale")
        self.encoder_rows.mul_(scale)
        self.W_dec.div_(scale_out)
        self.b_dec.div_(scale_out)
        if self.config.skip:
            self.W_skip.mul_(scale / scale_out)

    @final
    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by their documented names and shapes, detached."""
        named = {name: tensor.detach() for name, tensor in self.state_dict().items()}
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
    @torch.no_grad()
    def _scale_encoder(
        self,
        generator: torch.Generator | None,
        *,
        k: int,
        choose: ops.Choose = ops.top_pre_activations,
    ) -> None:
        """Scale the encoder so that unit inputs give reconstructions of mean norm 1.

        For dictionaries of which `k` latents, chosen by `choose`, are active in a row. Source:
        2406.04093, appendix A.
        """
        if generator is None:
            return
        probes = ops.random_unit_rows(N_PROBES, self.d_in, generator)
        values, indices = choose(probes, self.encoder_rows, self.b_enc, k)
        recon = ops.sparse_decode(values.relu(), indices, self.W_dec)
        norm = torch.linalg.vector_norm(recon, dim=-1).mean()
        # d_sae 1, or a tiny dictionary, may answer no probe at all.
        self.encoder_rows.div_(norm if norm > 0 else 1.0)

    @final
    def _skipped(self, x: Tensor, recon: Tensor) -> Tensor:
        """A reconstruction with the skip connection's part added, where there is one."""
        return torch.addmm(recon, x, self.W_skip.T) if self.config.skip else recon

    @final
    def _aux(self, x: Tensor, target: Tensor, out: TrainOutput, dead: Tensor) -> dict[str, Tensor]:
        """The auxiliary loss as the penalty `aux`, while there are dead latents."""
        latents = dead.nonzero().flatten()
        if self.config.aux_coefficient == 0 or len(latents) == 0:
            return {}
        loss = auxiliary.auxiliary_loss(
            # Dead latents have no say in b_dec, or in what lies before the SAE.
            self._centred(x).detach(),
            target - out.recon.detach(),
            auxiliary.Layer.of(self.encoder_rows, self.b_enc, self.W_dec, latents),
            variance=ops.variance(target),
            k=self.config.k_aux or max(1, self.d_in // 2),
        )
        return {"aux": self.config.aux_coefficient * loss}

    @final
    def _centred(self, x: Tensor) -> Tensor:
        """The encoder's input: x, less b_dec where the config says so."""
        return x - self.b_dec if self.config.apply_b_dec_to_input else x


def _drawn(n_rows: int, width: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.zeros(n_rows, width)
    return ops.random_unit_rows(n_rows, width, generator)


def _check_widths(config: SAEConfig, d_in: int, d_out: int | None) -> None:
    for name, width in (("d_in", d_in), ("d_out", d_out)):
        if width is not None and width < 1:
            raise ValueError(f"{name}: {width} is no width; give the width of the site")
    if d_out is None and config.skip:
        raise ValueError(
            "skip: true would let an autoencoder copy its input; give false, or another site to "
            "write"
        )
    if d_out is not None and config.apply_b_dec_to_input:
        raise ValueError(
            "apply_b_dec_to_input: true does not fit a transcoder, whose b_dec belongs to the site "
            "it writes; give false"
        )
