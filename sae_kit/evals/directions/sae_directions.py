"""Directions that an SAE has: its error, and its latents.

- sae_error                         SAE(x) - x, the same for all lengths
- alive_decoder, alive_encoder      a random latent that fires in some prompt, but not in this one
- active_decoder, active_encoder    a random latent that fires somewhere in this prompt
- dead_decoder, dead_encoder        a random latent that fires in none

as the row of W_dec, or the column of W_enc. "Fires" is found out on the prompts that are perturbed
and on the activations that the pool keeps of other ones; it depends on how many there are.

A latent is drawn by one uniform number for every position, among the candidates in an order that is
their own: that of the cosines of their decoder rows and the mean activation. So a dictionary whose
latents are numbered otherwise, or whose axes are turned with the model's, gives the same latents.

Source: Lee and Heimersheim 2024 (2410.12555) and its code, where a batch of one prompt decides
which latents are active.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.evals.directions.directions import Given, unit
from sae_kit.maths import StreamingMoments, cosine_rows
from sae_kit.sae.base import SAE

ROWS = 2048
"""Rows through an SAE at once; bounds the codes of dense architectures."""


@final
class Dictionary:
    """An SAE, and in which prompts its latents fire.

    Args:
        sae: the SAE.
        mean: of the activations at its site.
        n_hosts: prompts that are perturbed.
    """

    def __init__(self, sae: SAE, mean: Float[Tensor, " d_model"], n_hosts: int) -> None:
        self.sae = sae
        device = sae.W_dec.device
        self.fired = torch.zeros(n_hosts, sae.d_sae, dtype=torch.bool, device=device)
        """`[hosts d_sae]`, whether a latent fires in a prompt to be perturbed."""
        self.alive = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)
        """`[d_sae]`, whether it fires in any prompt."""
        self.order = (unit(sae.W_dec.detach().double()) @ mean.double()).argsort()
        """`[d_sae]`, the numbers of the latents in the order in which they are drawn."""
        self._moments: dict[str, StreamingMoments] = {}

    @property
    def objective(self) -> str:
        """What the SAE was trained for, as its file says: local, e2e, e2e_downstream."""
        training = self.sae.metadata.get("training", {})
        return str(training.get("objective", {}).get("name", "unknown"))

    def means(self) -> dict[str, float]:
        """Of the prompts to be perturbed: `l0`, the number of active latents, over all activations;
        `norm`, |x|; `epsilon`, |SAE(x) - x|; `cosine`, of x and SAE(x), over those that are
        perturbed.
        """
        return {name: float(one.mean) for name, one in self._moments.items()}

    @torch.no_grad()
    def watch(
        self,
        rows: Float[Tensor, "rows d_model"],
        hosts: Int[Tensor, " rows"],
        perturbed: Bool[Tensor, " rows"],
    ) -> None:
        """Take in activations, of which of the prompts to be perturbed each is, and whether it is
        perturbed itself.
        """
        parts = zip(self._split(rows), hosts.split(ROWS), perturbed.split(ROWS), strict=True)
        for x, owner, there in parts:
            code = self.sae.encode_sparse(x)
            active = code.values != 0
            self.fired[owner[:, None].expand_as(active)[active], code.indices[active]] = True
            recon = self.sae.reconstruct(x, code)
            measures = {
                "l0": code.l0().double(),
                "norm": x.norm(dim=-1)[there],
                "epsilon": (recon - x).norm(dim=-1)[there],
                "cosine": cosine_rows(x, recon)[there],
            }
            for name, values in measures.items():
                own = self._moments.setdefault(name, StreamingMoments(1, device=values.device))
                own.update(values[:, None])
        self.alive |= self.fired.any(0)

    @torch.no_grad()
    def watch_others(self, rows: Float[Tensor, "rows d_model"]) -> None:
        """Take in activations of other prompts."""
        for x in self._split(rows):
            self.alive |= self.sae.encode_sparse(x).fired()

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """SAE(x)."""
        recon = torch.cat([self.sae(rows) for rows in self._split(x.flatten(0, -2))])
        return recon.view(x.shape).to(x.dtype)

    def _split(self, rows: Float[Tensor, "rows d_model"]) -> tuple[Tensor, ...]:
        return rows.to(self.sae.W_dec.dtype).split(ROWS)


class SAEDirection(ABC):
    """A way to get a direction for every activation from an SAE."""

    name: str

    @abstractmethod
    def of(self, given: Given, dictionary: Dictionary) -> Float[Tensor, "hosts pos d_model"]:
        """One for every activation, of any length."""

    @abstractmethod
    def is_possible(self, dictionary: Dictionary) -> bool:
        """Whether there is one for every host."""


@final
class SAEError(SAEDirection):
    """From the activation to its reconstruction."""

    name = "sae_error"

    def of(self, given: Given, dictionary: Dictionary) -> Float[Tensor, "hosts pos d_model"]:
        return dictionary.reconstruct(given.base) - given.base

    def is_possible(self, dictionary: Dictionary) -> bool:
        return True


Fired = Bool[Tensor, "hosts d_sae"]
Rows = Float[Tensor, "d_sae d_model"]


@final
class RandomLatent(SAEDirection):
    """A random one of some latents.

    Args:
        name: in tables and files.
        candidates: for every host, which latents may be drawn, from which of them fire in its
            prompt and which fire anywhere.
        rows: the direction of every latent.
    """

    def __init__(
        self,
        name: str,
        candidates: Callable[[Fired, Bool[Tensor, " d_sae"]], Fired],
        rows: Callable[[SAE], Rows],
    ) -> None:
        self.name, self._candidates, self._rows = name, candidates, rows

    def of(self, given: Given, dictionary: Dictionary) -> Float[Tensor, "hosts pos d_model"]:
        fired = dictionary.fired[given.index.to(dictionary.fired.device)]
        # In the order in which latents are drawn; the n-th is where the count reaches n.
        count = self._usable(dictionary, fired)[:, dictionary.order].cumsum(1)
        n = (given.uniform(self.name).double() * count[:, -1:]).long() + 1
        latents = dictionary.order[torch.searchsorted(count, n)]
        return self._rows(dictionary.sae)[latents].to(given.base.dtype)

    def is_possible(self, dictionary: Dictionary) -> bool:
        return bool(self._usable(dictionary, dictionary.fired).any(1).all())

    def _usable(self, dictionary: Dictionary, fired: Fired) -> Fired:
        """The candidates that point anywhere."""
        points = self._rows(dictionary.sae).norm(dim=1) > 0
        return self._candidates(fired, dictionary.alive) & points


def alive_elsewhere(fired: Fired, alive: Bool[Tensor, " d_sae"]) -> Fired:
    """Latents that fire in other prompts only."""
    return alive & ~fired


def active(fired: Fired, alive: Bool[Tensor, " d_sae"]) -> Fired:
    """Latents that fire in the prompt."""
    return fired


def dead(fired: Fired, alive: Bool[Tensor, " d_sae"]) -> Fired:
    """Latents that fire in none."""
    return (~alive).expand_as(fired)


def decoder(sae: SAE) -> Rows:
    """What a latent writes."""
    return sae.W_dec.detach()


def encoder(sae: SAE) -> Rows:
    """What a latent reads."""
    return sae.W_enc.detach().T


SAE_DIRECTIONS: dict[str, SAEDirection] = {
    direction.name: direction
    for direction in (
        SAEError(),
        RandomLatent("alive_decoder", alive_elsewhere, decoder),
        RandomLatent("active_decoder", active, decoder),
        RandomLatent("dead_decoder", dead, decoder),
        RandomLatent("alive_encoder", alive_elsewhere, encoder),
        RandomLatent("active_encoder", active, encoder),
        RandomLatent("dead_encoder", dead, encoder),
    )
}
"""By name."""
