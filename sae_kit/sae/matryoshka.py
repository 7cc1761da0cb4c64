"""Matryoshka BatchTopK SAE: every prefix of the dictionary is to be a dictionary.

    code  = as BatchTopK's, over the whole dictionary
    recon = code @ W_dec + b_dec,   and   recon_m = code[:m] @ W_dec[:m] + b_dec   for prefixes m
    loss  = mean over rows of |recon - target|^2 + sum over m of |recon_m - target|^2
            +  auxiliary loss

Source: Bussmann, Nabeshima, Karvonen and Nanda 2025, "Learning multi-level features with Matryoshka
sparse autoencoders" (2503.17547): five prefixes, whose groups of latents hold 1/32, 1/16, 1/8, 1/4
and the rest of the dictionary, and the sum of their errors. Early latents learn general features,
which later ones do not need to absorb.

The error of the whole dictionary is the term `mse`, those of the shorter prefixes together the
penalty `nested`: their sum is the paper's. Each latent is decoded once: a row's groups are summed
up apart, and prefixes are running sums over the groups. Activation and inference are BatchTopK's;
see sae/batch_top.py.

Limits: the reconstruction is a few per cent worse than BatchTopK's, which is the price. The choice
of active latents is made for the whole dictionary, not for each prefix.
"""

import itertools
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.sae import ops, ragged
from sae_kit.sae.base import Losses, Moment, TrainOutput
from sae_kit.sae.batch_top import BatchTopConfig, BatchTopSAE
from sae_kit.sae.ragged import Pairs


@final
@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchTopConfig, arch="matryoshka"):
    """A Matryoshka BatchTopK SAE."""

    group_fractions: tuple[float, ...] = (0.03125, 0.0625, 0.125, 0.25, 0.53125)
    """The share of the dictionary that each group holds, first to last; prefixes end with them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(fraction > 0 for fraction in self.group_fractions):
            raise ValueError(
                f"group_fractions: {list(self.group_fractions)} has a group without latents; give "
                "positive shares"
            )
        if abs(sum(self.group_fractions) - 1) > 1e-6:
            raise ValueError(
                f"group_fractions: {list(self.group_fractions)} add up to "
                f"{sum(self.group_fractions)}; give shares that make 1"
            )

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Latents of each prefix, the last of d_sae; groups too small for a latent are left out."""
        ends = [round(self.d_sae * share) for share in itertools.accumulate(self.group_fractions)]
        return tuple(sorted({end for end in ends if end > 0} | {self.d_sae}))

    def build(
        self, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None
    ) -> "MatryoshkaSAE":
        """See SAEConfig.build."""
        return MatryoshkaSAE(self, d_in, d_out, generator=generator)


@final
class MatryoshkaSAE(BatchTopSAE):
    """See the module's docstring."""

    config: MatryoshkaConfig

    def forward_train(self, x: Float[Tensor, "rows d_in"], at: Moment) -> TrainOutput:
        """See SAE.forward_train. Keeps `prefixes [n rows d_out]`: what the shorter ones write."""
        values, pairs = self._compete(x, at)
        written = self._by_group(values, pairs).cumsum(0) + self._skipped(x, self.b_dec)
        return TrainOutput(
            written[-1], ragged.as_code(values, pairs), kept={"prefixes": written[:-1]}
        )

    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"],
        out: TrainOutput,
        *,
        at: Moment,
        dead: Bool[Tensor, " d_sae"],
    ) -> Losses:
        """Squared error, `nested`, and `aux` while there are dead latents. See SAE.losses."""
        prefixes = out.kept["prefixes"]
        # Summed over prefixes, as over channels.
        nested = (prefixes - target).square().sum() / max(len(target), 1)
        return Losses(
            ops.squared_error(out.recon, target),
            {"nested": nested, **self._aux(x, target, out, dead)},
        )

    def _by_group(self, values: Tensor, pairs: Pairs) -> Tensor:
        """What each group of latents writes, [groups rows d_out]."""
        prefixes = self.config.prefixes
        ends = torch.tensor(prefixes, device=values.device)
        group = torch.bucketize(pairs.latents, ends, right=True)
        # To the decoder, a row's groups are rows of their own.
        rows, order = (group * pairs.n_rows + pairs.rows).sort(stable=True)
        apart = Pairs(rows, pairs.latents[order], len(prefixes) * pairs.n_rows, pairs.d_sae)
        return ragged.decode(values[order], apart, self.W_dec).view(
            len(prefixes), pairs.n_rows, self.d_out
        )
