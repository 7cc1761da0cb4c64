"""Which latents fire: how long each has been silent, and how often it has fired of late."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.sae.code import SparseCode
from sae_kit.state import State


@final
class Firing:
    """When each latent of one SAE last fired, and how often of late."""

    def __init__(
        self,
        d_sae: int,
        device: torch.device,
        total: Callable[[Tensor], Tensor] = lambda counts: counts,
    ):
        """`total` makes counts over the whole batch of those over the rows seen here."""
        self._total = total
        self.n_since: Int[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.n_fired: Int[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.n_rows = 0

    def note(self, code: Float[Tensor, "rows d_sae"] | SparseCode, *, count: bool) -> None:
        """Take in one batch's code; `count` whether it also goes into the frequencies."""
        if isinstance(code, SparseCode):
            n_fired = torch.bincount(code.indices[code.values != 0], minlength=code.d_sae)
            n_rows = len(code.values)
        else:
            n_fired, n_rows = (code != 0).sum(0), len(code)
        totals = self._total(torch.cat([n_fired, n_fired.new_tensor([n_rows])]))
        n_fired, n_rows = totals[:-1], int(totals[-1])
        self.n_since += n_rows
        self.n_since[n_fired > 0] = 0
        if count:
            self.n_fired += n_fired
            self.n_rows += n_rows

    def dead(self, after: int) -> Bool[Tensor, " d_sae"]:
        """Which latents have not fired for `after` positions."""
        return self.n_since >= after

    def frequency(self) -> Float[Tensor, " d_sae"]:
        """The share of the counted positions at which each latent fired."""
        return self.n_fired / max(self.n_rows, 1)

    def state_dict(self) -> State:
        return {"n_since": self.n_since, "n_fired": self.n_fired, "n_rows": self.n_rows}

    def load_state_dict(self, state: State) -> None:
        self.n_since.copy_(state["n_since"])
        self.n_fired.copy_(state["n_fired"])
        self.n_rows = state["n_rows"]
