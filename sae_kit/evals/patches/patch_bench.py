"""The bench on which parts of a model are exchanged: one set of pairs, all that is known of it.

Clean, corrupted and broken runs are recorded once; every patched run departs from them, and is
measured against them. An evaluation has one bench for the pairs it looks for components on, and one
for the pairs it confirms them on.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.data.pairs import Pairs
from sae_kit.evals.patches.attribution import gradients
from sae_kit.evals.patches.patch_scores import Scorer
from sae_kit.evals.patches.scenes import EMBED, Runs, Stage
from sae_kit.evals.patches.units import KINDS, SAEs, Units
from sae_kit.evals.shared.ablations import Ablation
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site

Measured = Float[Tensor, "metrics pairs"]
"""All metrics of one patched run: see `Scorer.measure`."""


@final
class Bench:
    """Runs of some pairs, and what can be exchanged in them.

    Raises:
        ValueError: the corruption does not change the chosen metric.
    """

    def __init__(
        self,
        model: GPT2,
        pairs: Pairs,
        saes: SAEs,
        *,
        kinds: Iterable[str],
        ablation: Ablation,
        metric: str,
        seed: int,
        also: Iterable[Site] = (),
    ) -> None:
        """Record the runs.

        Args:
            model: whose.
            pairs: the prompts.
            saes: by site; may be empty where no units are of SAEs.
            kinds: words of the units that will be exchanged.
            ablation: what the corrupted values are.
            metric: the chosen one.
            seed: draws pairs for intervals.
            also: sites to be captured besides those of the units.
        """
        self.groups: Mapping[str, list[Units]] = {
            word: KINDS[word].of(model, pairs, saes) for word in kinds
        }
        """Units by their word, site by site."""
        self.stage = Stage(model, pairs)
        sites = {units.site for groups in self.groups.values() for units in groups}
        order = [site for site in self.stage.order if site in sites.union(also)]
        runs = Runs.of(self.stage, ablation, [EMBED, *order])
        self.scorer = Scorer(self.stage, runs, metric=metric, seed=seed)
        self.scenes = runs.scenes(self.stage, ablation)

    def exchange(
        self, direction: str, units: Units, chosen: Sequence[int]
    ) -> dict[str, Float[Tensor, "metrics pairs"]]:
        """What comes of exchanging each of these units alone, by its name."""
        found = {
            unit: self.scorer.measure(logits)
            for unit, logits in self.scenes[direction].each(units, chosen)
        }
        return {units.names[unit]: found[unit] for unit in chosen}

    def exchange_named(
        self, direction: str, word: str, names: Sequence[str]
    ) -> dict[str, Float[Tensor, "metrics pairs"]]:
        """The same for units by their names. Latents that are never active here do nothing."""
        found = dict.fromkeys(names, self.scorer.measure(self.scenes[direction].base.logits))
        for units in self.groups[word]:
            chosen = [i for i, name in enumerate(units.names) if name in found]
            found |= self.exchange(direction, units, chosen)
        return found

    def attributions(self, direction: str) -> dict[str, list[Float[Tensor, " _"]]]:
        """Scores of all units to first order, by their word, site by site."""
        scene = self.scenes[direction]
        sites = {units.site for groups in self.groups.values() for units in groups}
        found = gradients(self.stage, scene.base, self.scorer.answers, self.scorer.metric, sites)

        def scores(units: Units) -> Tensor:
            act = scene.base.acts[units.site]
            change = units.attribution(found[units.site], act, scene.source(units))
            return self.scorer.to_first_order(scene.direction, change)

        return {word: [scores(units) for units in groups] for word, groups in self.groups.items()}


def largest(attributions: Sequence[Float[Tensor, " _"]], n: int) -> list[list[int]]:
    """The `n` units of largest absolute value among several sites': their numbers, by site."""
    values = torch.cat(list(attributions)).abs()
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.topk(min(n, len(values))).indices] = True
    parts = chosen.split([len(own) for own in attributions])
    return [part.nonzero()[:, 0].tolist() for part in parts]
