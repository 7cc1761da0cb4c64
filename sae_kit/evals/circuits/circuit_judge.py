"""How much of what a model does a circuit does, on pairs that it was not found on.

Circuits are fitted to the pairs they are found on, by thousands of decisions; other pairs tell what
is left of that. A circuit's KL from the model's own predictions is held against the KL without any
edge: `recovered` is 1 for the model itself, 0 where everything is ablated, and may be less.
Intervals are of means over pairs, drawn anew with replacement.
"""

from typing import final

import torch
from torch import Tensor

from sae_kit.evals.circuits.circuit import Circuit
from sae_kit.evals.circuits.circuit_bench import KL, CircuitBench
from sae_kit.evals.shared.resampling import Resamples, interval


@final
class Judge:
    """Of one model's circuits."""

    def __init__(self, bench: CircuitBench, metric: str, *, seed: int) -> None:
        """Args:
        bench: held-out pairs.
        metric: read besides.
        seed: draws the resamples.
        """
        self._bench, self._metric = bench, metric
        self._resamples = Resamples(len(bench.pairs), seed=seed)
        graph = bench.graph
        none = Circuit.of(graph, torch.zeros_like(graph.allowed))
        self._kl_none, score_none = self._read(bench.logits(none))
        score_clean = self._read(bench.answers.clean.logits)[1]
        self.ends = {
            "kl_ablated": self._kl_none.mean().item(),
            "score_clean": score_clean.mean().item(),
            "score_ablated": score_none.mean().item(),
        }
        """What there is to recover."""

    def judged(self, circuit: Circuit) -> dict[str, float]:
        """kl and recovered, with intervals, and score."""
        kl, score = self._read(self._bench.logits(circuit))
        both = torch.stack([kl, self._kl_none], 1)[..., None]
        means = self._resamples.means(both, torch.ones(len(kl), 1, dtype=torch.bool))
        found = {"kl": interval(means[:, 0]), "recovered": interval(1 - means[:, 0] / means[:, 1])}
        values = {"score": score.mean().item()}
        for name, one in found.items():
            values |= {name: one.estimate, f"{name}_low": one.low, f"{name}_high": one.high}
        return values

    def _read(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """KL and the other metric, of every pair."""
        reading = self._bench.answers.read(logits.double())
        return reading.metric(KL), reading.metric(self._metric)
