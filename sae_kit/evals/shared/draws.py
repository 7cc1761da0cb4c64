"""Random draws that belong to a prompt, whatever it is worked off together with.

Every draw comes from a generator of its own, derived from (seed, what is drawn, prompt). So a
prompt gets the same directions in any group, in any order and on any device, and adding a sampler
changes no other one.
"""

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def generator_of(seed: int, name: str, index: int) -> torch.Generator:
    """The generator of what `name` draws for prompt `index`, on the CPU."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def for_each(
    index: Int[Tensor, " hosts"], seed: int, name: str, draw: Callable[[torch.Generator], Tensor]
) -> Tensor:
    """`draw` of every prompt's own generator, stacked, on the CPU: `[hosts *shape]`."""
    return torch.stack([draw(generator_of(seed, name, i)) for i in index.tolist()])


def standard_normal(
    like: Float[Tensor, "hosts pos d_model"], index: Int[Tensor, " hosts"], seed: int, name: str
) -> Float[Tensor, "hosts pos d_model"]:
    """N(0, 1) draws of the shape, type and device of `like`."""
    shape = like.shape[1:]
    return for_each(index, seed, name, lambda g: torch.randn(shape, generator=g)).to(like)
