"""The effects of all units of one kind, exchanged one by one in one direction, as rows of a table.

Columns of a row of kind "unit":
units, unit, direction       the word of the kind (`units.py`), the unit's name, which direction
layer, place                 the site's number among those of the kind, the unit's at its site (of
                             neurons and latents: its rank by attribution)
score, low, high             the chosen metric's normalised score, with its 95 % interval over pairs
attribution                  the same to first order
<metric>, <metric>_score     every metric that the corruption changes: its mean, and its score
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.patches.patch_bench import Bench, largest
from sae_kit.evals.patches.patch_scores import Scored
from sae_kit.evals.patches.units import KINDS
from sae_kit.evals.shared.resampling import interval

Row = dict[str, Any]

LEAST_SPREAD = 1e-9
"""Of scores: below it, effects are no effects, and nothing correlates with them."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)  # eq: tensors have no single truth value
class Effects:
    """What exchanging the units of one kind did, one by one."""

    word: str
    direction: str
    names: Sequence[str]
    places: Sequence[tuple[int, int]]
    """Of each unit: which site, and which unit there."""
    attribution: Float[Tensor, " units"]
    scored: Scored
    metrics: Sequence[str]
    place: int
    """The chosen metric's among them."""
    by_pair: Float[Tensor, "units pairs"]
    """The chosen metric."""

    @staticmethod
    def of(
        bench: Bench,
        direction: str,
        word: str,
        attributions: Sequence[Float[Tensor, " _"]],
        *,
        n_screened: int,
    ) -> "Effects":
        """Measure them.

        Args:
            bench: where.
            direction: denoising or noising.
            word: of the kind of units.
            attributions: theirs in this direction, site by site (`Bench.attributions`).
            n_screened: how many to patch, largest attribution first, where there are too many.
        """
        groups = bench.groups[word]
        is_screened = KINDS[word].is_screened
        chosen = [list(range(len(units))) for units in groups]
        if is_screened:
            chosen = largest(attributions, n_screened)
        places = [(layer, unit) for layer, units in enumerate(chosen) for unit in units]
        measured = {
            name: values
            for units, own in zip(groups, chosen, strict=True)
            for name, values in bench.exchange(direction, units, own).items()
        }
        estimates = torch.stack([attributions[layer][unit] for layer, unit in places])
        if is_screened:
            order = estimates.abs().argsort(descending=True, stable=True).tolist()
            measured = dict(list(measured.items())[i] for i in order)
            places = [(places[i][0], rank) for rank, i in enumerate(order)]
            estimates = estimates[order]
        values = torch.stack(list(measured.values()))
        return Effects(
            word=word,
            direction=direction,
            names=list(measured),
            places=places,
            attribution=estimates,
            scored=bench.scorer.scored(bench.scenes[direction].direction, list(values)),
            metrics=bench.scorer.metrics,
            place=bench.scorer.place,
            by_pair=values[:, bench.scorer.place],
        )

    @property
    def score(self) -> Float[Tensor, " units"]:
        """The chosen metric's."""
        return self.scored.score[:, self.place]

    def rows(self) -> Iterator[Row]:
        """One for each unit."""
        for i, (name, (layer, place)) in enumerate(zip(self.names, self.places, strict=True)):
            yield {
                "kind": "unit",
                "units": self.word,
                "unit": name,
                "direction": self.direction,
                "layer": layer,
                "place": place,
                **score_of(self.scored, i, self.place),
                "attribution": self.attribution[i].item(),
                **all_metrics(self.scored, i, self.metrics),
            }

    def top_rows(self, heldout: Bench, n: int) -> Iterator[Row]:
        """The `n` units of largest effect, and what they do on other pairs."""
        order = self.score.abs().argsort(descending=True, stable=True)[:n].tolist()
        names = [self.names[i] for i in order]
        again = heldout.exchange_named(self.direction, self.word, names)
        scored = heldout.scorer.scored(
            heldout.scenes[self.direction].direction, [again[name] for name in names]
        )
        for rank, i in enumerate(order):
            other = score_of(scored, rank, heldout.scorer.place)
            yield {
                "kind": "top",
                "units": self.word,
                "unit": self.names[i],
                "direction": self.direction,
                **score_of(self.scored, i, self.place),
                **{f"heldout_{name}": value for name, value in other.items()},
            }

    def attribution_rows(self) -> Iterator[Row]:
        """How far attribution is from the exact scores; nothing where one of them is constant."""
        exact, estimate = self.score, self.attribution
        if len(exact) < 2 or min(exact.std().item(), estimate.std().item()) < LEAST_SPREAD:
            return
        yield {
            "kind": "attribution",
            "units": self.word,
            "direction": self.direction,
            "n_units": len(exact),
            "correlation": torch.corrcoef(torch.stack([exact, estimate]))[0, 1].item(),
            "rms_exact": exact.square().mean().sqrt().item(),
            "rms_error": (estimate - exact).square().mean().sqrt().item(),
        }


def score_of(scored: Scored, run: int, place: int) -> dict[str, float]:
    """A run's score by one metric, with its interval."""
    found = interval(scored.draws[:, run, place])
    return {"score": found.estimate, "low": found.low, "high": found.high}


def all_metrics(scored: Scored, run: int, metrics: Sequence[str]) -> dict[str, float]:
    """A run's means and scores by all metrics."""
    raw, score = scored.raw[run].tolist(), scored.score[run].tolist()
    named = dict(zip(metrics, raw, strict=True))
    return named | {f"{name}_score": value for name, value in zip(metrics, score, strict=True)}
