"""Activations for a process that owns some of the sites: every process computes a part of the rows
at all sites, and sends each site's to its owner.

A batch's rows are those of process 0, then of process 1, ...; the same at every site.

Limits: rows to start from (`sample`) are of this process's own part.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit import dist
from sae_kit.data.activations import ActivationSource, Batch
from sae_kit.dist import World
from sae_kit.models.hooks import Site


@final
class SpreadSource(ActivationSource):
    """See the module's docstring."""

    def __init__(
        self, source: ActivationSource, needed: Sequence[Sequence[Site]], world: World
    ) -> None:
        """`source` gives this process's part; `needed[r]` are the sites that process r needs."""
        self.inner, self.needed, self.own = source, needed, list(needed[world.rank])
        self.widths = {site: source.widths[site] for site in self.own}
        self.drop_first_position = source.drop_first_position
        self.drop_special_tokens = source.drop_special_tokens
        self.text = source.text

    @property
    def scales(self) -> dict[Site, float]:  # type: ignore[override]
        """Those of the source, known after `prepare`."""
        return dict(self.inner.scales)

    def prepare(self) -> None:
        """Prepare the source."""
        self.inner.prepare()

    def sample(self, site: Site, n_rows: int) -> Float[Tensor, "rows _"]:
        """Of this process's own part."""
        return self.inner.sample(site, n_rows)

    def __next__(self) -> Batch:
        """The whole batch at the own sites."""
        batch = next(self.inner)
        received = dist.exchange([[batch.acts[site] for site in part] for part in self.needed])
        acts = {site: torch.cat([part[i] for part in received]) for i, site in enumerate(self.own)}
        n_contexts = int(dist.summed(torch.tensor(batch.n_contexts)))
        return Batch(acts, n_contexts)

    def state_dict(self) -> dict[str, Any]:
        """That of the source."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position, as if never stopped."""
        self.inner.load_state_dict(state)

    def continue_from(self, states: Sequence[dict[str, Any]]) -> None:
        """See ActivationSource.continue_from."""
        self.inner.continue_from(states)
