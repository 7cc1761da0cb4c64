"""Where a transcoder starts: each latent writes what the target is like while it is active.

    W_dec[i] = the direction of  sum over rows of code[row, i] * (target[row] - b_dec)

and the encoder is scaled so that the reconstruction fits the target in least squares.

An autoencoder's latents write what they read. A transcoder's, drawn at random, write something that
has nothing to do with the target; the first thing training teaches them is silence, and most never
speak again.

Limits: a latent that no row activates keeps the direction it was drawn with.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.sae.base import SAE, Moment

ROWS = 1024  # rows whose codes are matrices at once


@torch.no_grad()
def aim(sae: SAE, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"]) -> None:
    """Start a transcoder from the data: `SAE.init_from`, its decoder aimed, its encoder scaled.

    Args:
        sae: a fresh one.
        x: what it reads; some thousand rows, scaled as in training.
        target: what it is to write.
    """
    sae.init_from(x, target)
    before = {name: buffer.clone() for name, buffer in sae.named_buffers()}
    sums = torch.zeros_like(sae.W_dec)
    for code, wanted in _codes(sae, x, target):
        sums += code.T @ wanted
    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(sae.W_dec, dim=1, keepdim=True)
    sae.W_dec.copy_(torch.where(norms > 0, sums * (lengths / norms), sae.W_dec))
    along, squared = sums.new_zeros(2)
    for code, wanted in _codes(sae, x, target):
        written = code @ sae.W_dec
        along += (written * wanted).sum()
        squared += written.square().sum()
    # Never negative, by the choice of W_dec; 0 if no latent fired at all.
    sae.encoder_rows.mul_(torch.where(along > 0, along / squared, 1.0))
    for name, buffer in sae.named_buffers():
        buffer.copy_(before[name])
    sae.init_from(x, target)  # biases and thresholds follow the encoder's scale


def _codes(sae: SAE, x: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time, their codes at the first step of training and what they should write."""
    for rows, wanted in zip(x.split(ROWS), target.split(ROWS), strict=True):
        code = sae.forward_train(rows, Moment(0, 1)).code
        yield code if isinstance(code, Tensor) else code.dense(), wanted - sae.b_dec
