"""TopK SAE: the k largest pre-activations of each row are its code.

    code = relu(top_k((x - b_dec) @ W_enc + b_enc))
    loss = mean over rows of |recon - target|^2  +  auxiliary loss

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (2406.04093): the activation,
the tied initialisation with an encoder scaled so that unit inputs give unit outputs, and the
auxiliary loss (their section A.2), which gives dead latents something to learn: the k_aux dead
latents with the largest pre-activations reconstruct what the live ones left over. Its error is
taken relative to the variance of what is to be fitted, as theirs is, and then given the units of
the main term (the variance of the target), so that aux_coefficient weighs the two as in the paper.

Negative pre-activations among the k largest are cut off, as in the paper's code and in SAELens; a
row may have fewer than k active latents.

Limits: k is the same for every row. A dead latent whose pre-activations are all negative stays out
of reach of the auxiliary loss. Several batches or ranks cannot be merged exactly while latents
are dead, as the variances are those of the batch.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.sae import ops
from sae_kit.sae.base import SAE, Inference, Losses, SAEConfig, TrainOutput
from sae_kit.sae.code import SparseCode

N_PROBES = 256
"""Random inputs by which the initial encoder is scaled, as many as in the paper's code."""

DENSE_UP_TO = 16
"""Up to this many dead latents for each active one, matrix products over all of them are faster
than sparse ones (measured on CPU), and their matrices stay small. It changes no result."""


@final
@dataclass(frozen=True, kw_only=True)
class TopKConfig(SAEConfig, arch="topk"):
    """A TopK SAE."""

    k: int = 16
    """Number of latents that may be active in a row."""

    aux_coefficient: float = 1 / 32
    """Weight of the dead latents' error against the live ones', both as shares of a variance."""

    k_aux: int | None = None
    """Number of dead latents that may be active in a row, at most; null = half of d_in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k: {self.k} does not fit; give 1 to d_sae={self.d_sae}")
        if self.aux_coefficient < 0:
            raise ValueError(f"aux_coefficient: {self.aux_coefficient} is negative; 0 turns it off")
        if self.k_aux is not None and self.k_aux < 1:
            raise ValueError(
                f"k_aux: {self.k_aux} is too few; give 1 or more, or aux_coefficient=0 for none"
            )

    def build(self, d_in: int, *, generator: torch.Generator) -> "TopKSAE":
        """See SAEConfig.build."""
        return TopKSAE(self, d_in, generator=generator)


@final
class TopKSAE(SAE):
    """See the module's docstring."""

    config: TopKConfig

    def __init__(self, config: TopKConfig, d_in: int, *, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator=generator)
        self._scale_encoder(ops.random_unit_rows(N_PROBES, d_in, generator))

    def encode_rows(
        self, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_sae"] | SparseCode:
        """See SAE.encode_rows."""
        values, indices = ops.top_pre_activations(
            self._centred(x), self.encoder_rows, self.b_enc, self.config.k
        )
        return SparseCode(values.relu(), indices, self.d_sae)

    def forward_train(self, x: Float[Tensor, "rows d_in"]) -> TrainOutput:
        """See SAE.forward_train."""
        code = self.encode_rows(x)
        return TrainOutput(self.decode(code), code)

    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_in"],
        out: TrainOutput,
        *,
        step: int,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """Squared error `mse`, and `aux` while there are dead latents. See SAE.losses."""
        mse = ops.squared_error(out.recon, target)
        dead_latents = dead.nonzero().flatten()
        if self.config.aux_coefficient == 0 or len(dead_latents) == 0:
            return Losses.of(mse=mse)
        return Losses.of(mse=mse, aux=self._aux(x, target, out.recon.detach(), dead_latents))

    def inference(self) -> Inference:
        """See SAE.inference."""
        return Inference("topk", {"k": self.config.k}, self.weights())

    def _aux(self, x: Tensor, target: Tensor, recon: Tensor, dead: Int[Tensor, " n"]) -> Tensor:
        """The auxiliary loss: how well the dead latents reconstruct what is left of the target."""
        residual = target - recon
        error = ops.squared_error(self._decode_dead(x, dead), residual)
        wanted, left = ops.variance(target), ops.variance(residual)
        # One row, or a perfect reconstruction, leaves nothing to be relative to.
        eps = torch.finfo(left.dtype).eps
        scale = torch.where(left > eps * wanted, wanted / left, 0.0).detach()
        return self.config.aux_coefficient * scale * error

    def _decode_dead(self, x: Tensor, dead: Int[Tensor, " n"]) -> Float[Tensor, "rows d_in"]:
        """What the k_aux strongest dead latents of each row write, without b_dec.

        Encodes again, with the dead latents alone. They are few as a rule, and keeping all
        pre-activations for their sake would cost [rows d_sae] of memory at every step. The input is
        held constant: dead latents have no say in b_dec, or in what lies before the SAE.
        """
        n_dead = len(dead)
        k_aux = min(self.config.k_aux or max(1, self.d_in // 2), n_dead)
        encoder, decoder = self.encoder_rows.index_select(0, dead), self.W_dec.index_select(0, dead)
        layer = self._centred(x).detach(), encoder, self.b_enc[dead]
        if n_dead > DENSE_UP_TO * k_aux:
            values, indices = ops.top_pre_activations(*layer, k_aux)
            return ops.sparse_decode(values.relu(), indices, decoder)
        pre = F.linear(*layer)
        if k_aux < n_dead:
            pre = ops.keep_top(pre, k_aux)
        return pre.relu() @ decoder

    @torch.no_grad()
    def _scale_encoder(self, probes: Float[Tensor, "n d_in"]) -> None:
        """Scale the encoder so that unit inputs give reconstructions of mean norm 1."""
        norm = torch.linalg.vector_norm(self(probes), dim=-1).mean()
        # d_sae 1, or a tiny dictionary, may answer no probe at all.
        self.encoder_rows.div_(norm if norm > 0 else 1.0)
