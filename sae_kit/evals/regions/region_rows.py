"""What eval=stable_regions says of responses along paths: measures of each pair, and their medians.

With d the distance at the read site, r(alpha) = d(alpha) / d(1) is a curve from 0 to 1.

- max_slope, location: the largest slope of r between two neighbouring points, and its alpha
- begin, end: lengths of alpha over which r stays below 0.1 from its beginning, above 0.9 to its end
- end_kl: KL(clean || perturbed) at the end, in nats
- gate_flips: neurons of the last MLP that are on at one end and off at the other
- gate_crossings: how often neurons switch on the way; begin_crossings: those before `begin`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.perturb.curves import max_slope, missed_slope, plateaus, relative
from sae_kit.evals.regions.region_bench import Along
from sae_kit.evals.shared.resampling import median_interval


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Measured:
    """Pairs whose outputs are far enough apart to have relative distances."""

    kept: Int[Tensor, " kept"]
    """Which of the pairs they are."""
    n_dropped: int
    """How many there are besides."""
    r: Float[Tensor, "kept alphas"]
    """Relative distances, float64."""
    kl: Float[Tensor, "kept alphas"]
    measures: Mapping[str, Float[Tensor, " kept"]]
    """By name, float64."""

    @staticmethod
    def of(along: Along, alphas: Float[Tensor, " alphas"], *, least_distance: float) -> "Measured":
        """Those that end farther than `least_distance` from where they begin; maybe none."""
        alphas = alphas.double()
        r, kept = relative(along["l2"].double(), least_distance)
        slope, location = max_slope(r, alphas)
        begin, end = plateaus(r, alphas)
        kl = along["kl"][kept]
        measures = {
            "max_slope": slope,
            "location": location,
            "begin": begin,
            "end": end,
            "end_kl": kl[:, -1].double(),
        }
        if "gate_flips" in along:
            crossings = along["gate_crossings"][kept].double()
            measures["gate_flips"] = along["gate_flips"][kept, -1].double()
            measures["gate_crossings"] = crossings.sum(1)
            measures["begin_crossings"] = (crossings * (alphas <= begin[:, None])).sum(1)
        return Measured(kept, len(along["l2"]) - len(kept), r, kl, measures)

    def row(self, *, seed: int) -> dict[str, int | float]:
        """Medians with 95 % bootstrap intervals over pairs, of which there are some; quartiles of
        the slope, and what the grid makes it miss.
        """
        slopes = self.measures["max_slope"]
        q1, q3 = slopes.quantile(torch.tensor([0.25, 0.75], dtype=slopes.dtype)).tolist()
        row: dict[str, int | float] = {"n_pairs": len(self.kept), "n_dropped": self.n_dropped}
        for name, values in self.measures.items():
            interval = median_interval(values, seed=seed)
            row[name] = interval.estimate
            if name == "max_slope":
                row |= {"max_slope_q1": q1, "max_slope_q3": q3}
            row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        row["missed_slope"] = missed_slope(row["max_slope"], self.r.shape[1])
        return row

    def single(self, i: int) -> dict[str, float]:
        """The measures of kept pair `i`."""
        return {name: values[i].item() for name, values in self.measures.items()}

    def arrays(self) -> dict[str, Tensor]:
        """Everything, of every kept pair, by name."""
        return {"r": self.r.float(), "kl": self.kl, **self.measures}


def from_1_to_0(values: Float[Tensor, " alphas"]) -> Float[Tensor, " alphas"]:
    """Scaled and shifted to 1 at the beginning and 0 at the end, which must differ."""
    values = values.double()
    return ((values - values[-1]) / (values[0] - values[-1])).float()
