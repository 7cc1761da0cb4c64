"""How much of a behaviour a circuit carries, as rows of a table.

A circuit is found by ranking: components by the larger of their scores in the two directions, since
noising sees only what nothing else replaces and denoising only what is enough by itself; and of
this ranking the shortest beginning that carries enough. That is no search for the smallest circuit.

Kinds of rows, each with an answer (1: as a circuit should) and its 95 % interval over pairs:
set          a circuit, or as many components drawn at random, by each of the four questions of
             `component_sets.py`
size         beginnings of rankings: what size buys
minimality   what the circuit loses by itself (enough_noised) when one component is taken out
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.patches.component_sets import QUESTIONS, Components, SetPatching, sizes
from sae_kit.evals.patches.patch_bench import Bench
from sae_kit.evals.shared.resampling import interval

Row = dict[str, Any]

CARRIES = "enough_noised"
"""The question by which a circuit is found, and its components are too much or not."""
SIZED = ("enough_denoised", "enough_noised")
"""The questions asked of circuits of all sizes."""


@final
class Faithfulness:
    """Questions about circuits, on one set of pairs."""

    def __init__(self, bench: Bench, components: Components) -> None:
        self._bench = bench
        self._sets = SetPatching(components, bench.scenes)

    def draws(
        self, question: str, circuits: Sequence[Collection[str]]
    ) -> Float[Tensor, "draws circuits"]:
        """The answers for some circuits, of the pairs themselves and of every draw of them."""
        asked, bench = QUESTIONS[question], self._bench
        measured = [bench.scorer.measure(self._sets.ask(asked, circuit)) for circuit in circuits]
        scored = bench.scorer.scored(bench.scenes[asked.direction].direction, measured)
        return asked.answer(scored.draws[..., bench.scorer.place])

    def shortest(self, ranking: Sequence[str], enough: float) -> list[str]:
        """The shortest beginning of a ranking of all components that carries that much."""
        for n in range(len(ranking)):
            if self.draws(CARRIES, [ranking[:n]])[0, 0] >= enough:
                return list(ranking[:n])
        return list(ranking)

    def set_rows(
        self, circuit: Sequence[str], random: Sequence[Sequence[str]], *, pairs: str
    ) -> Iterator[Row]:
        """Of a circuit and of random sets, by each question. `pairs`: which these are."""
        for question in QUESTIONS:
            draws = self.draws(question, [circuit, *random])
            for i, own in enumerate(draws.T):
                yield {
                    "kind": "set",
                    "set": "circuit" if i == 0 else f"random {i}",
                    "pairs": pairs,
                    "question": question,
                    "n_components": len(circuit),
                    **_answer(own),
                }

    def size_rows(self, rankings: Mapping[str, Sequence[str]]) -> Iterator[Row]:
        """Of beginnings of some rankings, by name."""
        for name, ranking in rankings.items():
            lengths = sizes(len(ranking))
            for question in SIZED:
                draws = self.draws(question, [ranking[:n] for n in lengths])
                for n, own in zip(lengths, draws.T, strict=True):
                    yield {
                        "kind": "size",
                        "ranking": name,
                        "question": question,
                        "n_components": n,
                        **_answer(own),
                    }

    def minimality_rows(self, circuit: Sequence[str]) -> Iterator[Row]:
        """What each component of a circuit adds to it."""
        without = [[other for other in circuit if other != name] for name in circuit]
        draws = self.draws(CARRIES, [circuit, *without])
        for name, own in zip(circuit, draws.T[1:], strict=True):
            yield {"kind": "minimality", "component": name, **_answer(draws[:, 0] - own)}


def ranked(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """Names by the largest of their scores, largest first."""
    best = torch.tensor([max(own) for own in scores.values()])
    names = list(scores)
    return [names[i] for i in best.argsort(descending=True, stable=True).tolist()]


def _answer(draws: Float[Tensor, " draws"]) -> dict[str, float]:
    found = interval(draws)
    return {"answer": found.estimate, "low": found.low, "high": found.high}
