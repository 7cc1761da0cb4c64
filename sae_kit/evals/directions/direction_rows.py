"""The tables of eval=sensitive_directions: what is said of a curve, and of a substitution."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.evals.shared.resampling import Resamples, area, crossing, interval

Values = Mapping[str, Float[Tensor, "hosts points pos"]]
"""Response -> values."""


@final
class Summary:
    """Makes rows of values over prompts and their counting positions.

    Args:
        counts: which positions count, of every prompt.
        seed: draws the prompts that intervals are made of.

    Raises:
        ValueError: so few positions count that intervals cannot be made.
    """

    def __init__(self, counts: Bool[Tensor, "hosts pos"], *, seed: int) -> None:
        self._counts = counts
        self._resamples = Resamples(len(counts), seed=seed)

    def means(self, values: Float[Tensor, "hosts points pos"]) -> Float[Tensor, "draws points"]:
        """Over counting tokens; the first draw are the prompts themselves."""
        return self._resamples.means(values, self._counts)

    def curve(
        self,
        values: Values,
        baseline: Float[Tensor, "hosts points pos"] | None,
        lengths: Float[Tensor, " points"],
        thresholds: Sequence[float],
    ) -> dict[str, float | bool]:
        """The columns of a curve; `baseline` are the KLs of what its area is compared with."""
        kl, l2 = self.means(values["kl"]), self.means(values["l2"])
        row: dict[str, float | bool] = {
            **_columns("kl_area", area(lengths, kl)),
            **_columns("l2_area", area(lengths, l2)),
        }
        if baseline is not None:
            row |= _ratio("kl_area_ratio", area(lengths, kl), area(lengths, self.means(baseline)))
        for threshold in thresholds:
            where = crossing(lengths, kl, threshold)
            row |= _columns(f"length_at_{threshold:g}", where.clamp(max=lengths[-1].item()))
            row[f"reaches_{threshold:g}"] = bool(where[0].isfinite())
        return row

    def drawn(
        self, values: Values, baseline: Float[Tensor, "hosts points pos"] | None
    ) -> dict[str, Float[Tensor, "3 points"]]:
        """What is drawn of a curve, by name: means with their intervals, quartiles over tokens,
        and the quotients of KL and that of the baseline.
        """
        found = {}
        for response, value in values.items():
            found[response] = _ends(self.means(value))
            tokens = value.double().transpose(1, 2)[self._counts]
            quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
            found[f"{response}/quartiles"] = tokens.quantile(quarters, 0)
        if baseline is not None and (below := self.means(baseline)).gt(0).any():
            # NaN where there is nothing to divide by, as at length 0.
            ratios = self.means(values["kl"]) / below
            found["kl_ratio"] = _ends(ratios.where(below > 0, torch.nan))
        return found

    def substitution(
        self, values: Values, sae_kl: Float[Tensor, "hosts points pos"] | None
    ) -> dict[str, float | bool]:
        """The columns of a substitution; `sae_kl` is the KL of SAE(x), to be compared with."""
        row: dict[str, float | bool] = {}
        for response, value in values.items():
            row |= _columns(response, self.means(value)[:, 0])
        if sae_kl is not None:
            row |= _ratio("sae_ratio", self.means(sae_kl)[:, 0], self.means(values["kl"])[:, 0])
        return row


def _ends(draws: Float[Tensor, "draws points"]) -> Float[Tensor, "3 points"]:
    """The estimate, and the ends of its interval."""
    points = [interval(point) for point in draws.T]
    return torch.tensor([[it.estimate, it.low, it.high] for it in points], dtype=torch.float64).T


def _columns(name: str, draws: Float[Tensor, " draws"]) -> dict[str, float]:
    it = interval(draws)
    return {name: it.estimate, f"{name}_low": it.low, f"{name}_high": it.high}


def _ratio(
    name: str, above: Float[Tensor, " draws"], below: Float[Tensor, " draws"]
) -> dict[str, float]:
    """Nothing where there is nothing to divide by."""
    return _columns(name, above / below) if (below > 0).all() else {}
