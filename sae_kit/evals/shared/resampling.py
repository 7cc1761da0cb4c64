"""Intervals of what is computed from means over prompts, by resampling the prompts.

Tokens of one prompt are not independent, so prompts are drawn with replacement (Efron 1979) and
everything is computed anew from each draw: means over tokens, areas under curves, the length at
which a curve crosses a value, ratios of two of these. One `Resamples` serves all quantities of an
evaluation, so that ratios and differences are of the same prompts.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.maths import Interval


@final
class Resamples:
    """Draws of `n_prompts` prompts, with replacement.

    Args:
        n_prompts: how many there are, and are drawn each time.
        seed: draws them.
        n_resamples: how often.
    """

    def __init__(self, n_prompts: int, *, seed: int, n_resamples: int = 1000) -> None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(n_prompts, (n_resamples, n_prompts), generator=generator)
        # How often each prompt was drawn; the first row are the prompts themselves, once each.
        times = torch.zeros(1 + n_resamples, n_prompts, dtype=torch.float64)
        times[0] = 1
        times[1:].scatter_add_(1, drawn, torch.ones_like(times[1:]))
        self._times = times

    def means(
        self, values: Float[Tensor, "prompts *shape pos"], counts: Bool[Tensor, "prompts pos"]
    ) -> Float[Tensor, "draws *shape"]:
        """The mean over all counting tokens, of the prompts themselves and then of every draw.

        Raises:
            ValueError: no token counts in one of the draws.
        """
        where = counts.view(len(counts), *[1] * (values.ndim - 2), -1).to(values.device)
        sums = values.double().where(where, 0.0).sum(-1)
        n = self._times @ counts.double().sum(-1).cpu()
        if (n == 0).any():
            raise ValueError(
                "n_prompts: so few prompts have a token that counts that some draws have none; "
                "give more prompts"
            )
        means = self._times @ sums.cpu().flatten(1)
        return (means / n[:, None]).view(-1, *sums.shape[1:])


def interval(draws: Float[Tensor, " draws"], *, level: float = 0.95) -> Interval:
    """The estimate (of the first draw, the prompts themselves) with its percentile interval."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = draws[1:].quantile(tails).tolist()
    return Interval(draws[0].item(), low, high)


def median_interval(
    values: Float[Tensor, " n"], *, seed: int, n_resamples: int = 1000, level: float = 0.95
) -> Interval:
    """The median of independent values with its percentile bootstrap interval.

    Raises:
        ValueError: no values.
    """
    if len(values) == 0:
        raise ValueError("values: empty; a median needs at least one value")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (n_resamples, len(values)), generator=generator)
    medians = values.cpu().double()[drawn].quantile(0.5, dim=1)
    own = values.cpu().double().quantile(0.5)
    return interval(torch.cat([own[None], medians]), level=level)


def area(
    lengths: Float[Tensor, " points"], curves: Float[Tensor, "draws points"]
) -> Float[Tensor, " draws"]:
    """The area under curves that begin at (0, 0), by trapezoids."""
    x, y = _from_zero(lengths, curves)
    return torch.trapezoid(y, x)


def crossing(
    lengths: Float[Tensor, " points"], curves: Float[Tensor, "draws points"], value: float
) -> Float[Tensor, " draws"]:
    """The first length at which curves that begin at (0, 0) reach a positive value; inf if never.

    Straight lines join the points.
    """
    x, y = _from_zero(lengths, curves)
    reached = y >= value
    after = reached.long().argmax(1).clamp(min=1)
    draw = torch.arange(len(y))
    low, high = y[draw, after - 1], y[draw, after]
    found = x[after - 1] + (value - low) / (high - low) * (x[after] - x[after - 1])
    return found.where(reached.any(1), torch.inf)


def _from_zero(
    lengths: Float[Tensor, " points"], curves: Float[Tensor, "draws points"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "draws n"]]:
    """The same with the point that needs no measuring."""
    x = torch.cat([lengths.new_zeros(1), lengths]).to(curves)
    return x, torch.cat([curves.new_zeros(len(curves), 1), curves], 1)
