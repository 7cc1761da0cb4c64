"""Sets of components: is a circuit enough, is it needed, is any of it too much?

The components are all heads (their z) and all MLPs, at all positions. The embedding belongs to
neither a circuit nor its complement: it is what the run that is patched has. Of a circuit, four
questions, each a set exchanged at once, with what later components then make of it:

- enough_denoised     the circuit is restored in the corrupted run: score 1 if it is enough
- enough_noised       everything else is ablated in the clean run: 1 - score is what stays
- needed_noised       the circuit is ablated in the clean run: score 1 if nothing else can do it
- needed_denoised     everything else is restored in the corrupted run: 1 - score is what is missing

All four are given so that 1 says "the circuit". Source: Heimersheim and Nanda 2024 (2404.15255),
section 5; Wang et al. 2022 (2211.00593) for minimality, which takes out one component at a time.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.data.pairs import Pairs
from sae_kit.evals.patches.scenes import Part, Scene
from sae_kit.evals.patches.units import HeadZ, Units, WholeMLP
from sae_kit.models.gpt2 import GPT2


@final
@dataclass(frozen=True)
class Question:
    """One of the four: which set is exchanged, in which direction."""

    direction: str
    exchanges_circuit: bool
    """Or else everything else."""

    def answer(self, score: Tensor) -> Tensor:
        """The score, so that 1 is what a circuit should have."""
        return score if self.exchanges_circuit else 1 - score


QUESTIONS: dict[str, Question] = {
    "enough_denoised": Question("denoising", True),
    "enough_noised": Question("noising", False),
    "needed_noised": Question("noising", True),
    "needed_denoised": Question("denoising", False),
}
"""By name."""


@final
class Components:
    """All heads and MLPs of a model, by name."""

    def __init__(self, model: GPT2, pairs: Pairs) -> None:
        self.layers: list[Units] = [
            units
            for both in zip(HeadZ.of(model, pairs, {}), WholeMLP.of(model, pairs, {}), strict=True)
            for units in both
        ]
        self.names = [name for units in self.layers for name in units.names]

    def check(self, circuit: Collection[str]) -> None:
        """Refuse names that no component has, or one twice.

        Raises:
            ValueError: names the nearest.
        """
        for name in circuit:
            if name not in self.names:
                close = " or ".join(nearest(name, self.names) or self.names[:3])
                raise ValueError(f"circuit: the model has no component {name!r}; give {close}")
        if len(set(circuit)) < len(circuit):
            raise ValueError(f"circuit: {list(circuit)} has one twice; give each once")


@final
class SetPatching:
    """Sets of components exchanged in the scenes of some pairs."""

    def __init__(self, components: Components, scenes: Mapping[str, Scene]) -> None:
        self._components, self._scenes = components, scenes
        self._sources = {
            word: [scene.source(units) for units in components.layers]
            for word, scene in scenes.items()
        }

    def logits(self, direction: str, exchanged: Collection[str]) -> Float[Tensor, "pairs vocab"]:
        """What comes of exchanging all of these components."""
        parts = [
            Part(units, source, [i for i, name in enumerate(units.names) if name in exchanged])
            for units, source in zip(self._components.layers, self._sources[direction], strict=True)
        ]
        return self._scenes[direction].jointly(parts)

    def ask(self, question: Question, circuit: Collection[str]) -> Float[Tensor, "pairs vocab"]:
        """The logits that answer a question about a circuit."""
        rest = [name for name in self._components.names if name not in circuit]
        exchanged = circuit if question.exchanges_circuit else rest
        return self.logits(question.direction, exchanged)


def sizes(n: int) -> list[int]:
    """Numbers of components from 0 to `n`: all small ones, then in steps of a half."""
    found = [0]
    while found[-1] < n:
        found.append(min(n, max(found[-1] + 1, round(1.5 * found[-1]))))
    return found


def random_sets(
    names: Sequence[str], n_components: int, n_sets: int, *, seed: int
) -> Iterator[list[str]]:
    """Sets of as many components, drawn without looking, to compare a circuit with."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_sets):
        drawn = torch.randperm(len(names), generator=generator)[:n_components]
        yield [names[i] for i in drawn.tolist()]
