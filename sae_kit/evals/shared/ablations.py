"""What a part of the model is replaced by when its information is to be taken away.

- corrupt     its activation on the corrupted prompt: what both prompts have in common stays
- resample    its activation on another pair's clean prompt
- mean        its mean over the corrupted prompts, position by position (Wang et al. 2022: the mean
              over the "ABC" prompts, in which no name comes twice)
- zero        zero
- gaussian    its activation with noise added, in every channel and at every position of `NOISE`
              times the standard deviation over clean prompts (after Meng et al. 2022, who add it to
              embeddings)

Corrupt keeps the model on activations that it knows, resample nearly so; mean, zero and gaussian
put it where it never was, how far depends on the site, and results depend on it (Heimersheim and
Nanda 2024, 2404.15255).

Limits: resample and mean know positions, not labels: where labels changed places between pairs
(ABBA, BABA), they mix them. What is alike in all clean prompts gets no noise.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.evals.shared.draws import for_each, generator_of

NOISE = 3.0


class Ablation(ABC):
    """A way to take information away. Deterministic in (seed, number of pairs, what it is of)."""

    word: ClassVar[str]
    min_pairs: ClassVar[int] = 1
    """It can do with."""

    def __init__(self, n_pairs: int, *, seed: int) -> None:
        if n_pairs < self.min_pairs:
            raise ValueError(
                f"n_pairs: {n_pairs}, and {self.word} needs others; give {self.min_pairs} or more"
            )
        self.n_pairs, self.seed = n_pairs, seed

    @abstractmethod
    def of(
        self,
        what: str,
        clean: Float[Tensor, "pairs *axes"],
        corrupt: Float[Tensor, "pairs *axes"],
    ) -> Float[Tensor, "pairs *axes"]:
        """What takes the place of `clean`.

        Args:
            what: the variable (a site's name, say): noise is drawn anew for each.
            clean: its values on the clean prompts.
            corrupt: its values on the corrupted ones.
        """


@final
class CorruptedPrompt(Ablation):
    """The corrupted prompt's own."""

    word = "corrupt"

    def of(self, what: str, clean: Tensor, corrupt: Tensor) -> Float[Tensor, "pairs *axes"]:
        return corrupt


@final
class Resample(Ablation):
    """Another pair's; the same one for everything, so that patched parts fit together."""

    word = "resample"
    min_pairs = 2

    def __init__(self, n_pairs: int, *, seed: int) -> None:
        super().__init__(n_pairs, seed=seed)
        order = torch.randperm(n_pairs, generator=generator_of(seed, self.word, 0))
        # Everybody gets the next one's of a random circle: nobody their own.
        self._other = torch.empty_like(order).scatter_(0, order, order.roll(1))

    def of(self, what: str, clean: Tensor, corrupt: Tensor) -> Float[Tensor, "pairs *axes"]:
        return clean[self._other.to(clean.device)]


@final
class Mean(Ablation):
    """The corrupted prompts' mean."""

    word = "mean"

    def of(self, what: str, clean: Tensor, corrupt: Tensor) -> Float[Tensor, "pairs *axes"]:
        return corrupt.mean(0, keepdim=True).expand_as(clean)


@final
class Zero(Ablation):
    """Nothing."""

    word = "zero"

    def of(self, what: str, clean: Tensor, corrupt: Tensor) -> Float[Tensor, "pairs *axes"]:
        return torch.zeros_like(clean)


@final
class GaussianNoise(Ablation):
    """Noise on top."""

    word = "gaussian"
    min_pairs = 2

    def of(self, what: str, clean: Tensor, corrupt: Tensor) -> Float[Tensor, "pairs *axes"]:
        def draw(generator: torch.Generator) -> Tensor:
            return torch.randn(clean.shape[1:], generator=generator)

        noise = for_each(torch.arange(len(clean)), self.seed, f"{self.word}/{what}", draw)
        return clean + NOISE * clean.std(0) * noise.to(clean)


ABLATIONS: dict[str, type[Ablation]] = {
    ablation.word: ablation for ablation in (CorruptedPrompt, Resample, Mean, Zero, GaussianNoise)
}
"""By the word that a config names them by."""


def check_ablation(word: str) -> None:
    """Refuse a word that names none.

    Raises:
        ValueError: names the nearest.
    """
    if word not in ABLATIONS:
        close = " or ".join(nearest(word, ABLATIONS) or ABLATIONS)
        raise ValueError(f"ablation: {word!r} is unknown; give {close}")
