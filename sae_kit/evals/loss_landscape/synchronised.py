"""Neurons that switch together: the third kind of degeneracy.

A neuron is on where its pre-activation is positive. Neurons with the same pattern of on and off
over all data act as one linear map, within which weights can be mixed without changing anything.
With GELU, whose kink is soft, that holds approximately.

Neurons that are never on, or always, are synchronised trivially and are counted apart.

Source: Bushnaq et al. 2024 (2405.10927), section 3 ("synchronised nonlinearities").

Limits: patterns are compared exactly, and as pairs that differ at up to a given share of the
positions, joined to groups (two far members of a group may differ by more).
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Synchronised:
    """Which of a layer's neurons switch together."""

    group: Int[Tensor, " d_mlp"]
    """The number of each neuron's group; -1 for neurons that are never or always on."""
    n_never: int
    n_always: int

    @property
    def sizes(self) -> Int[Tensor, " groups"]:
        """Of the groups of two and more, largest first."""
        sizes = torch.bincount(self.group[self.group >= 0])
        return sizes[sizes > 1].sort(descending=True).values


@final
class Patterns:
    """Counts of how neurons are on together, over data that comes in batches.

    Args:
        d_mlp: neurons.
    """

    def __init__(self, d_mlp: int, *, device: torch.device) -> None:
        # Float32 counts are exact up to 2^24 positions, and their products fast.
        self._both_on = torch.zeros(d_mlp, d_mlp, dtype=torch.float64, device=device)
        self.n_rows = 0

    def update(self, on: Bool[Tensor, "rows d_mlp"]) -> None:
        """Take in some positions."""
        on = on.float()
        self._both_on += (on.T @ on).double()
        self.n_rows += len(on)

    def differing(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """At how many positions two neurons differ."""
        n_on = self._both_on.diagonal()
        return n_on[:, None] + n_on[None] - 2 * self._both_on

    def groups(self, share: float = 0.0) -> Synchronised:
        """Neurons that differ at up to `share` of the positions, joined.

        Raises:
            ValueError: `share` is not in [0, 1/2).
        """
        if not 0 <= share < 0.5:
            raise ValueError(f"share: {share} of the positions; give at least 0 and less than 0.5")
        n_on = self._both_on.diagonal()
        never, always = n_on == 0, n_on == self.n_rows
        switching = ~(never | always)
        joined = (self.differing() <= share * self.n_rows) & switching & switching[:, None]
        rows, columns = (index.cpu().numpy() for index in joined.nonzero(as_tuple=True))
        n = len(n_on)
        graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n))
        labels = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
        labels[~switching.cpu()] = -1
        return Synchronised(labels, int(never.sum()), int(always.sum()))
