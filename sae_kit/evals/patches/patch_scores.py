"""Scores of patched runs: raw metrics, their share of what the corruption did, and intervals.

A score is a ratio of means over pairs, never a mean of ratios: a pair whose own difference is close
to 0 would decide that one alone. Intervals resample pairs, and compute the ratio anew of each draw.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.patches.scenes import Direction, Runs, Stage
from sae_kit.evals.shared.answers import METRICS, Answers, check_varies
from sae_kit.evals.shared.resampling import Resamples

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value
class Scored:
    """Patched runs by all metrics that vary."""

    raw: Float[Tensor, "runs metrics"]
    """Means over pairs."""
    draws: Float[Tensor, "draws runs metrics"]
    """Scores of the pairs themselves and of every draw of them."""

    @property
    def score(self) -> Float[Tensor, "runs metrics"]:
        """Of the pairs themselves."""
        return self.draws[0]


@final
class Scorer:
    """Measures logits of some pairs against what is known of them.

    Raises:
        ValueError: the chosen metric is the same on the clean and the corrupted prompts.
    """

    def __init__(self, stage: Stage, runs: Runs, *, metric: str, seed: int) -> None:
        self.answers = Answers(stage.pairs, runs.clean.logits)
        self.metric = metric
        clean, broken = self._all(runs.clean.logits), self._all(runs.broken.logits)
        self.metrics: list[str] = []
        """Those that the corruption changes, in the order of `METRICS`."""
        for i, name in enumerate(METRICS):
            try:
                check_varies(name, clean[i], broken[i])
            except ValueError:
                if name == metric:
                    raise
                log.warning("%s is left out: the corruption does not change it", name)
            else:
                self.metrics.append(name)
        self._kept = [list(METRICS).index(name) for name in self.metrics]
        self._resamples = Resamples(len(stage.pairs), seed=seed)
        self.clean, self.broken = self._means(clean[self._kept]), self._means(broken[self._kept])
        """Means over pairs, of the pairs themselves and of every draw, `[draws metrics]`."""

    @property
    def place(self) -> int:
        """The chosen metric's among `metrics`."""
        return self.metrics.index(self.metric)

    @property
    def gap(self) -> float:
        """What the corruption does to the mean of the chosen metric."""
        return (self.clean - self.broken)[0, self.place].item()

    def measure(self, logits: Float[Tensor, "pairs vocab"]) -> Float[Tensor, "metrics pairs"]:
        """All metrics that vary of one patched run, in float64 on the CPU."""
        return self._all(logits)[self._kept]

    def scored(
        self, direction: Direction, measured: Sequence[Float[Tensor, "metrics pairs"]]
    ) -> Scored:
        """Runs that were measured, on the scale of a direction."""
        means = self._means(torch.stack(list(measured)))
        draws = direction.score(means, self.clean[:, None], self.broken[:, None])
        return Scored(means[0], draws)

    def to_first_order(
        self, direction: Direction, change: Float[Tensor, "units pairs"]
    ) -> Float[Tensor, " units"]:
        """The chosen metric's scores, if it changed by that much from the run that is patched."""
        clean, broken = self.clean[0, self.place], self.broken[0, self.place]
        return direction.score(direction.start(clean, broken) + change.mean(1).cpu(), clean, broken)

    def _all(self, logits: Tensor) -> Float[Tensor, "metrics pairs"]:
        return self.answers.read(logits).metrics().double().cpu()

    def _means(self, values: Float[Tensor, "*shape pairs"]) -> Float[Tensor, "draws *shape"]:
        by_pair = values.movedim(-1, 0)[..., None]
        every = torch.ones(len(by_pair), 1, dtype=torch.bool)
        return self._resamples.means(by_pair, every)
