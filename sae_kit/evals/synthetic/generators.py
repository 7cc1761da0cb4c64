"""Synthetic activations made of SAE latents, and what they are compared with.

With A the activation of a prompt, and B a real activation of another prompt:

- model_generated       B
- random                N(mu, Sigma), with the moments of real activations
- sae_reconstruction    SAE(B), of the same B
- single_latent         one random latent, as long as a latent's part of an activation is on average
- baseline              A's latents, each replaced by one of the ten closest in firing frequency
- structured            A's latents, each replaced so that its cosine to the new top latent is what
                        it was to the old one: frequency and geometry are kept
- bag                   as many latents as A has, drawn by how often they fire, with A's values
- nearest               A's latents, each replaced by the one whose decoder row is most like its own

The last four keep A's number of latents and their activations, and never use a latent twice. Only
latents that fire are used.

`structured` picks the new top latent among the hundred closest in frequency to the old one: the one
whose cosine to it is closest to 0.42. Ties (on an orthonormal dictionary all cosines are 0) go to
the candidate closest in frequency, and then to the first in `Vocabulary.order`, an order that does
not depend on how latents are numbered.

Source: Giglemiani et al. 2024 (2409.15019) and its code. There a latent's replacement is written
into the vector that is read from, which can remove one just put in; here the vector is a new one.

Limits: frequencies are measured on the prompts' own text; a latent that is silent there is dead.
"""

from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.evals.directions.directions import unit
from sae_kit.evals.perturb.pool import Pool
from sae_kit.evals.shared.draws import for_each, generator_of, standard_normal
from sae_kit.sae.base import SAE
from sae_kit.sae.code import SparseCode

N_BASELINE = 10
"""Latents closest in frequency among which `baseline` draws."""
N_TOP = 100
"""Latents closest in frequency among which `structured` looks for a new top latent."""
TOP_COSINE = 0.42
"""What the old and the new top latent's cosine should be."""


@final
class Vocabulary:
    """An SAE's latents as words: how often each fires, and where it points.

    Codes and reconstructions are computed in float64, so that they are the same to float32's last
    bit however latents are numbered: steps of curves are whole numbers, which rounding can move.

    Args:
        sae: the SAE.
        frequency: share of positions at which each latent fires.
        mean: of real activations at its site; orders the latents.

    Raises:
        ValueError: too few latents fire to replace any.
    """

    def __init__(
        self, sae: SAE, frequency: Float[Tensor, " d_sae"], mean: Float[Tensor, " d_model"]
    ) -> None:
        self.sae = deepcopy(sae).double()
        self.rows = unit(sae.W_dec.detach())
        """`[d_sae d_model]`, of length 1."""
        self.alive: Bool[Tensor, " d_sae"] = frequency > 0
        if (n := int(self.alive.sum())) <= N_BASELINE:
            raise ValueError(
                f"n_pool_prompts: only {n} latents fire on this text, too few to replace latents "
                f"by others; give more text, or an SAE with more than {N_BASELINE} live latents"
            )
        self.log_frequency = frequency.clamp(min=1e-10).log10().double()
        by_cosine = self.rows.double() @ mean.double()
        order = by_cosine.argsort()
        # Stable: latents of one frequency stay in the order of their cosines.
        self.order = order[self.log_frequency[order].argsort(stable=True)]
        """`[d_sae]`, the numbers of all latents by frequency; what draws count in."""
        self.living = self.order[self.alive[self.order]]
        """`[n]`, those that fire."""
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(self.order), device=self.order.device)
        """`[d_sae]`, the place of each latent in `order`."""

    @torch.no_grad()
    def mean_part(self, x: Float[Tensor, "rows d_model"]) -> float:
        """The mean length of an active latent's part of activations; 0 where none is active."""
        code = self.sae.encode_sparse(x.double())
        lengths = self.sae.W_dec.norm(dim=1)
        parts = (code.values * lengths[code.indices])[code.values != 0]
        return parts.mean().item() if len(parts) else 0.0

    def free(self, latent: int, used: Bool[Tensor, " d_sae"]) -> Int[Tensor, " n"]:
        """The living latents that may take one's place: not itself, and none that is used."""
        return self.living[~used[self.living] & (self.living != latent)]

    def closest(self, latent: int, used: Bool[Tensor, " d_sae"], n: int) -> Int[Tensor, " n"]:
        """The living latents closest in frequency to one, itself and the used ones left out;
        closest first.
        """
        free = self.free(latent, used)
        distance = (self.log_frequency[free] - self.log_frequency[latent]).abs()
        return free[distance.argsort(stable=True)[:n]]

    def best(
        self,
        scores: Float[Tensor, " d_sae"],
        latent: int,
        candidates: Int[Tensor, " n"],
    ) -> int:
        """The candidate of the least score; of equal ones that closest in frequency to `latent`."""
        found = scores[candidates]
        tied = candidates[found <= found.min() + 1e-9]
        distance = (self.log_frequency[tied] - self.log_frequency[latent]).abs()
        return int(tied[distance.argsort(stable=True)[0]])


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Synthetic:
    """Activations, and what they are made of."""

    vectors: Float[Tensor, "hosts d_model"]
    code: SparseCode | None
    """Their latents and activations; None for what is not made of latents."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What activations are generated from."""

    base: Float[Tensor, "hosts d_model"]
    """The prompts' own activations: A."""
    index: Int[Tensor, " hosts"]
    """The number of each prompt; its draws belong to it."""
    pool: Pool
    """Real activations of other prompts."""
    vocabulary: Vocabulary
    part_length: float
    """The mean length of an active latent's part of activations."""
    seed: int

    def real(self) -> Float[Tensor, "hosts d_model"]:
        """B."""
        n = len(self.pool.rows)
        drawn = for_each(
            self.index, self.seed, "model_generated", lambda g: torch.rand(1, generator=g)
        )
        return self.pool.rows[(drawn[:, 0].double() * n).long().to(self.pool.rows.device)]

    def code(self, x: Float[Tensor, "hosts d_model"]) -> SparseCode:
        """The SAE's code of activations."""
        with torch.no_grad():
            return self.vocabulary.sae.encode_sparse(x.double())

    def decoded(self, x: Float[Tensor, "hosts d_model"], code: SparseCode) -> Synthetic:
        """What the SAE makes of a code; `x` is what it would have read, which some SAEs rescale."""
        with torch.no_grad():
            vectors = self.vocabulary.sae.reconstruct(x.double(), code)
            return Synthetic(vectors.to(self.base), code)


class Generator(ABC):
    """A way to make an activation for every prompt."""

    name: ClassVar[str]

    @abstractmethod
    def of(self, source: Source) -> Synthetic:
        """One for every prompt."""


@final
class ModelGenerated(Generator):
    """Real activations of other prompts."""

    name = "model_generated"

    def of(self, source: Source) -> Synthetic:
        real = source.real()
        return Synthetic(real, source.code(real))


@final
class Random(Generator):
    """Normal draws with the mean and the covariance of real activations."""

    name = "random"

    def of(self, source: Source) -> Synthetic:
        standard = standard_normal(source.base[:, None], source.index, source.seed, self.name)[:, 0]
        return Synthetic(source.pool.normal.drawn(standard), None)


@final
class SAEReconstruction(Generator):
    """What the SAE makes of the same real activations as `model_generated`."""

    name = "sae_reconstruction"

    def of(self, source: Source) -> Synthetic:
        real = source.real()
        return source.decoded(real, source.code(real))


@final
class SingleLatent(Generator):
    """One latent, drawn from those that fire; its part of the vector has the mean length of an
    active latent's part.
    """

    name = "single_latent"

    def of(self, source: Source) -> Synthetic:
        living, d_sae = source.vocabulary.living, source.vocabulary.sae.d_sae
        lengths = source.vocabulary.sae.W_dec.detach().norm(dim=1)
        drawn = for_each(source.index, source.seed, self.name, lambda g: torch.rand(1, generator=g))
        latents = living[(drawn.double() * len(living)).long().to(living.device)]
        values = source.part_length / lengths[latents]
        return source.decoded(source.base, SparseCode(values, latents, d_sae))


class Replacing(Generator):
    """The latents of each prompt's activation replaced, their activations kept."""

    def of(self, source: Source) -> Synthetic:
        code = source.code(source.base)
        indices = code.indices.clone()
        for row, number in enumerate(source.index.tolist()):
            active = code.values[row] != 0
            if not active.any():
                continue  # nothing to replace: what the SAE makes of no latents
            latents, values = code.indices[row][active], code.values[row][active]
            if len(latents) + N_BASELINE > len(source.vocabulary.living):
                raise ValueError(
                    f"n_pool_prompts: prompt {number} has {len(latents)} active latents, too many "
                    f"to replace out of {len(source.vocabulary.living)} that fire; give more text"
                )
            # The strongest first: they choose before the others.
            order = values.argsort(descending=True, stable=True)
            generator = generator_of(source.seed, self.name, number)
            chosen = self.replaced(source.vocabulary, latents[order].tolist(), generator)
            places = active.nonzero()[:, 0][order]
            indices[row, places] = torch.tensor(chosen, device=indices.device)
        return source.decoded(source.base, SparseCode(code.values, indices, code.d_sae))

    @abstractmethod
    def replaced(
        self, vocabulary: Vocabulary, latents: list[int], generator: torch.Generator
    ) -> list[int]:
        """What each of one activation's latents (strongest first) becomes; all different."""


@final
class Baseline(Replacing):
    """By one of the ten closest in frequency, at random."""

    name = "baseline"

    def replaced(
        self, vocabulary: Vocabulary, latents: list[int], generator: torch.Generator
    ) -> list[int]:
        used = _nothing(vocabulary)
        chosen = []
        for latent in latents:
            near = vocabulary.closest(latent, used, N_BASELINE)
            chosen.append(_taken(near, int(torch.rand(1, generator=generator) * len(near)), used))
        return chosen


@final
class Structured(Replacing):
    """So that frequency, and cosines to the top latent, are what they were."""

    name = "structured"

    def replaced(
        self, vocabulary: Vocabulary, latents: list[int], generator: torch.Generator
    ) -> list[int]:
        used, rows = _nothing(vocabulary), vocabulary.rows
        top = latents[0]
        to_top = rows @ rows[top]
        near = vocabulary.closest(top, used, N_TOP)
        new_top = vocabulary.best((to_top - TOP_COSINE).abs(), top, near)
        used[new_top] = True
        to_new_top = rows @ rows[new_top]
        chosen = [new_top]
        for latent in latents[1:]:
            free = vocabulary.free(latent, used)
            best = vocabulary.best((to_new_top - to_top[latent]).abs(), latent, free)
            used[best] = True
            chosen.append(best)
        return chosen


@final
class Bag(Replacing):
    """By any, drawn in proportion to how often they fire, without replacement."""

    name = "bag"

    def replaced(
        self, vocabulary: Vocabulary, latents: list[int], generator: torch.Generator
    ) -> list[int]:
        weights = (10 ** vocabulary.log_frequency[vocabulary.living]).cpu()
        drawn = torch.multinomial(weights, len(latents), generator=generator)
        return vocabulary.living[drawn.to(vocabulary.living.device)].tolist()


@final
class Nearest(Replacing):
    """By the one whose decoder row has the largest cosine to its own."""

    name = "nearest"

    def replaced(
        self, vocabulary: Vocabulary, latents: list[int], generator: torch.Generator
    ) -> list[int]:
        used = _nothing(vocabulary)
        chosen = []
        for latent in latents:
            free = vocabulary.free(latent, used)
            best = vocabulary.best(-(vocabulary.rows @ vocabulary.rows[latent]), latent, free)
            used[best] = True
            chosen.append(best)
        return chosen


GENERATORS: dict[str, Generator] = {
    generator.name: generator
    for generator in (
        ModelGenerated(),
        Random(),
        SAEReconstruction(),
        SingleLatent(),
        Baseline(),
        Structured(),
        Bag(),
        Nearest(),
    )
}
"""By name."""


def _nothing(vocabulary: Vocabulary) -> Bool[Tensor, " d_sae"]:
    return torch.zeros_like(vocabulary.alive)


def _taken(near: Int[Tensor, " n"], number: int, used: Bool[Tensor, " d_sae"]) -> int:
    latent = int(near[number])
    used[latent] = True
    return latent
