"""How the processes of a run share its work.

    data    every process has all SAEs and a part of each batch; gradients are averaged, of the
            weight matrices only those latents' rows that fired somewhere
    sites   every process has the SAEs of some sites and runs the model on a part of each batch;
            activations go to the process that owns their site

`trainer.batch_rows` counts the rows of all processes together, so a run has the same steps whatever
their number. (Which rows these are depends on it: live activations come from contexts and a buffer
of each process's own.) With `data`, two processes of B rows do what one of 2B does, up to rounding,
for architectures whose rows do not compete (BatchTopK and Matryoshka share out the budget of each
process's rows); means over a batch inside a loss (the variance that the auxiliary loss is relative
to) are each process's own. So is the factor that end-to-end objectives multiply their loss by, and
their processes have not quite equally many rows, but equal weight. With `sites`, every SAE sees
whole batches. `data` holds everything size-fold and sends gradients; `sites` divides SAEs and
optimisers among the processes and sends activations, a small part of that: it is the choice where
there are enough sites.

Limits: gradients and activations are sent between computations, not beside them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from sae_kit import dist
from sae_kit.data.activations import ActivationSource
from sae_kit.data.spread import SpreadSource
from sae_kit.dist import World
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE

Measures = Mapping[str, Tensor | int | float]


class Parallel(ABC):
    """How one process takes part. Subclasses are final."""

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def owned(self, writes: Mapping[Site, Site]) -> dict[Site, Site]:
        """Of the sites that are read, with those written, the ones whose SAEs are trained here.

        Raises:
            ValueError: there are fewer SAEs than processes.
        """

    @abstractmethod
    def source(self, source: ActivationSource, writes: Mapping[Site, Site]) -> ActivationSource:
        """What feeds this process's SAEs, from its part of the rows.

        Raises:
            ValueError: this source cannot be shared so.
        """

    @property
    @abstractmethod
    def saves(self) -> bool:
        """Whether this process's SAEs are saved by it."""

    @abstractmethod
    def start(self, sae: SAE) -> None:
        """After an SAE got its first weights."""

    @abstractmethod
    def reduce(self, sae: SAE) -> None:
        """Between backward and the optimiser step."""

    @abstractmethod
    def agree(self, sae: SAE) -> None:
        """After the optimiser step."""

    @abstractmethod
    def total(self, counts: Tensor) -> Tensor:
        """Counts over the rows of the whole batch, of those over the rows seen here."""

    @abstractmethod
    def collect(self, measured: Mapping[Site, Measures]) -> dict[Site, Measures]:
        """What was measured at all sites in all processes."""


@final
class Replicated(Parallel):
    """`data`; also a process that is alone."""

    def owned(self, writes: Mapping[Site, Site]) -> dict[Site, Site]:
        """All."""
        return dict(writes)

    def source(self, source: ActivationSource, writes: Mapping[Site, Site]) -> ActivationSource:
        """As it is."""
        return source

    @property
    def saves(self) -> bool:
        """Of equal SAEs, process 0's are saved."""
        return self.world.rank == 0

    def start(self, sae: SAE) -> None:
        """Process 0's weights for all."""
        dist.broadcast_([p.data for p in sae.parameters()] + list(sae.buffers()))

    @torch.no_grad()
    def reduce(self, sae: SAE) -> None:
        """Average the gradients."""
        if self.world.size == 1:
            return
        gradients = [p.grad for p in sae.parameters() if p.grad is not None]
        by_latent = [g for g in gradients if g.ndim == 2 and len(g) == sae.d_sae]
        dist.mean_rows_(by_latent)
        dist.mean_([g for g in gradients if all(g is not other for other in by_latent)])

    @torch.no_grad()
    def agree(self, sae: SAE) -> None:
        """Average what is learned by counting: thresholds."""
        dist.mean_([b for b in sae.buffers() if b.is_floating_point()])

    def total(self, counts: Tensor) -> Tensor:
        """The sum."""
        return dist.summed(counts)

    def collect(self, measured: Mapping[Site, Measures]) -> dict[Site, Measures]:
        """Means over the processes."""
        if self.world.size == 1:
            return dict(measured)
        names = [(site, name) for site, own in measured.items() for name in own]
        values = torch.tensor(
            [float(measured[site][name]) for site, name in names], dtype=torch.float64
        )
        dist.mean_([values])
        found: dict[Site, dict[str, float]] = {site: {} for site in measured}
        for (site, name), value in zip(names, values.tolist(), strict=True):
            found[site][name] = value
        return dict(found)


@final
class Spread(Parallel):
    """`sites`."""

    def _owners(self, writes: Mapping[Site, Site]) -> dict[Site, int]:
        if len(writes) < self.world.size:
            raise ValueError(
                f"trainer.parallel: 'sites' cannot spread {len(writes)} SAEs over "
                f"{self.world.size} processes; give trainer.parallel=data, or more sites"
            )
        return {site: i % self.world.size for i, site in enumerate(writes)}

    def owned(self, writes: Mapping[Site, Site]) -> dict[Site, Site]:
        """Every size-th."""
        owners = self._owners(writes)
        return {site: writes[site] for site in writes if owners[site] == self.world.rank}

    def source(self, source: ActivationSource, writes: Mapping[Site, Site]) -> ActivationSource:
        """Whole batches at the own sites."""
        if source.gives_runs:
            raise ValueError(
                "trainer.parallel: 'sites' sends activations between processes, and end-to-end "
                "objectives need the model where the SAE is; give trainer.parallel=data"
            )
        needed: list[list[Site]] = [[] for _ in range(self.world.size)]
        for site, owner in self._owners(writes).items():
            needed[owner] += [one for one in (site, writes[site]) if one not in needed[owner]]
        return SpreadSource(source, needed, self.world)

    @property
    def saves(self) -> bool:
        """Every process saves its own."""
        return True

    def start(self, sae: SAE) -> None:
        """Nothing: nobody else has it."""

    def reduce(self, sae: SAE) -> None:
        """Nothing: the batch is whole."""

    def agree(self, sae: SAE) -> None:
        """Nothing."""

    def total(self, counts: Tensor) -> Tensor:
        """As they are."""
        return counts

    def collect(self, measured: Mapping[Site, Measures]) -> dict[Site, Measures]:
        """All processes' sites, in the order of process 0's numbers."""
        plain = {
            site: {name: float(value) for name, value in own.items()}
            for site, own in measured.items()
        }
        return {site: own for part in dist.gather(plain) for site, own in part.items()}


def rows_per_process(batch_rows: int, world: World) -> int:
    """This process's part of a batch.

    Raises:
        ValueError: the batch cannot be shared equally.
    """
    if batch_rows % world.size:
        raise ValueError(
            f"trainer.batch_rows: {batch_rows} rows cannot be shared equally by {world.size} "
            f"processes; give a multiple of {world.size}"
        )
    return batch_rows // world.size


PARALLEL: dict[str, type[Parallel]] = {"data": Replicated, "sites": Spread}
"""By the word in the config."""
