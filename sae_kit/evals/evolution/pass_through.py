"""Pass-through: how many latents go on from one layer to the next, appear, or disappear.

An upstream latent is passed on if some downstream latent matches it, by a similarity of `level` or
more; a downstream latent that no upstream one matches has appeared. The shares depend on the level,
so they are given for many (Balcells et al. 2024, 2410.08869, take 0.95 of Pearson correlations,
after a search by hand).

Shares are of the latents that fired often enough to be judged: a latent that never fires has
neither appeared nor disappeared.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.evals.evolution.cooccurrence import Pairs


@final
@dataclass(frozen=True, eq=False)
class Matches:
    """How good the best match of every latent of two sites is."""

    forward: Float[Tensor, " d_up"]
    """Of each upstream latent among the downstream ones; 0 where there is none."""
    backward: Float[Tensor, " d_down"]
    """Of each downstream latent among the upstream ones."""
    judged_up: Bool[Tensor, " d_up"]
    """Whether the latent fired often enough to be judged."""
    judged_down: Bool[Tensor, " d_down"]

    @staticmethod
    def of(
        pairs: Pairs,
        measure: str,
        judged_up: Bool[Tensor, " d_up"],
        judged_down: Bool[Tensor, " d_down"],
    ) -> "Matches":
        """From the kept pairs, among which every latent's best match is."""
        up, down = pairs.index.T
        values = pairs.measures[measure]
        return Matches(
            forward=torch.zeros(len(judged_up)).double().scatter_reduce(0, up, values, "amax"),
            backward=torch.zeros(len(judged_down)).double().scatter_reduce(0, down, values, "amax"),
            judged_up=judged_up,
            judged_down=judged_down,
        )

    def disappearing(self, level: float) -> float:
        """Share of the judged upstream latents without a downstream match of `level`."""
        return _share_below(self.forward[self.judged_up], level)

    def appearing(self, level: float) -> float:
        """Share of the judged downstream latents without an upstream match of `level`."""
        return _share_below(self.backward[self.judged_down], level)


def _share_below(best: Tensor, level: float) -> float:
    """0 where there is no latent."""
    return (best < level).double().mean().item() if len(best) else 0.0
