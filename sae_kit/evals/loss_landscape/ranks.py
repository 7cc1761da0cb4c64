"""Parameters of a weight matrix that change nothing: what its inputs and its gradients never use.

A matrix maps inputs f (with a constant coordinate for the bias) to outputs p, and the network's
output is some function of p. With

    G = mean f f^T,   rank r        K = mean (df_out/dp)^T (df_out/dp),   rank s

changes of the matrix in (d_in - r) d_out directions are not seen by any output p on the data, and
of the others those that move p only in directions that the network's output ignores: r (d_out - s).
At most r s directions are left. That is the first two kinds of degeneracy of Bushnaq et al. 2024;
they are exact for eigenvalues of 0, and a matter of tolerance otherwise.

Source: Bushnaq et al. 2024, "Using degeneracy in the loss landscape for mechanistic
interpretability" (2405.10927), section 3.

Limits: K is estimated with random signs over outputs and positions (Hutchinson); its rank is that
of the exact one as soon as there are more rows than channels. Float64 sums of float32 activations:
tolerances below 1e-7 see rounding.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


@final
class Grams:
    """Sums of products of a matrix's inputs, and of the gradients at its outputs, in float64.

    Args:
        d_in: width of the inputs, without the constant.
        d_out: width of the outputs.
    """

    def __init__(self, d_in: int, d_out: int, *, device: torch.device) -> None:
        self._inputs = torch.zeros(d_in + 1, d_in + 1, dtype=torch.float64, device=device)
        self._gradients = torch.zeros(d_out, d_out, dtype=torch.float64, device=device)
        self.n_rows = 0

    def update(
        self, inputs: Float[Tensor, "rows d_in"], gradients: Float[Tensor, "rows d_out"]
    ) -> None:
        """Take in some positions."""
        ones = torch.ones(len(inputs), 1, dtype=torch.float64, device=inputs.device)
        f = torch.cat([inputs.double(), ones], 1)
        self._inputs += f.T @ f
        self._gradients += gradients.double().T @ gradients.double()
        self.n_rows += len(inputs)

    def spectra(self) -> tuple[Float[Tensor, " d_in_1"], Float[Tensor, " d_out"]]:
        """Eigenvalues of G and K, largest first."""
        both = (self._inputs / self.n_rows, self._gradients / self.n_rows)
        inputs, gradients = (torch.linalg.eigvalsh(gram).flip(0).clamp(min=0) for gram in both)
        return inputs, gradients


@final
@dataclass(frozen=True)
class Free:
    """How many directions of a matrix (bias included) change nothing, at one tolerance."""

    n_parameters: int
    rank_inputs: int
    rank_gradients: int

    @staticmethod
    def of(
        inputs: Float[Tensor, " d_in"], gradients: Float[Tensor, " d_out"], tolerance: float
    ) -> "Free":
        """From the spectra; eigenvalues up to `tolerance` times the largest count as 0."""
        return Free(
            len(inputs) * len(gradients), rank(inputs, tolerance), rank(gradients, tolerance)
        )

    @property
    def n_free(self) -> int:
        """Directions that no input takes, or whose effect the network ignores."""
        return self.n_parameters - self.rank_inputs * self.rank_gradients

    @property
    def share(self) -> float:
        """Of all parameters."""
        return self.n_free / self.n_parameters


def rank(spectrum: Float[Tensor, " d"], tolerance: float) -> int:
    """How many eigenvalues exceed `tolerance` times the largest; 0 if all are 0."""
    return int((spectrum > tolerance * spectrum.max()).sum())


def effective_rank(spectrum: Float[Tensor, " d"]) -> float:
    """The participation ratio (sum)^2 / sum of squares: n for n equal eigenvalues; 0 for none."""
    squares = spectrum.square().sum()
    return (spectrum.sum().square() / squares).item() if squares > 0 else 0.0
