"""Which Fourier frequency a direction of a network that adds modulo a prime stands for.

A coordinate at every pair (a, b) is a function on a p x p grid. Its power at frequency k is that of
the waves in a, in b, and in both, whose frequencies are k, -k or 0: shares over k and a rest (waves
of two different frequencies) sum to 1.

Source: Nanda et al. 2023 (2301.05217); labels of directions as in Bushnaq et al. 2024 (2405.10928).
"""

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-20
"""A share of a function's squares that varies no more than this is constant."""


def frequency_shares(
    coordinates: Float[Tensor, "p p pos k"],
) -> Float[Tensor, "k frequencies"]:
    """The share of each direction's variance at frequencies 1 to (p - 1) / 2; 0 if it has none.

    Args:
        coordinates: of the pair (a, b), at each position; powers of positions are summed.
    """
    p = coordinates.shape[0]
    power = torch.fft.fft2(coordinates, dim=(0, 1)).abs().square().sum(2)  # [p p k]
    whole = power.sum((0, 1))
    power[0, 0] = 0.0
    total = power.sum((0, 1))
    varies = total > ROUNDING * whole
    shares = []
    for k in range(1, (p - 1) // 2 + 1):
        own = torch.tensor([0, k, p - k])
        shares.append(power[own[:, None], own].sum((0, 1)))
    found = torch.stack(shares, -1)
    return torch.where(varies[:, None], found / total[:, None], 0.0)
