"""Where a response curve rises: steps, slopes, plateaus, and how distributions of them differ.

A curve is a response (a distance, a KL) at points 0, 1, ... of a path; its first value belongs to
the beginning of the path. All functions take many curves at once, `[curves points]`.

Source: Giglemiani et al. 2024 (2409.15019) and its code for the steps, Janiak et al. 2024
(2409.17113) for slopes of relative distances.

Degenerate curves have defined values, given with every function: a step that does not exist is the
last point, never an error, since a long plateau is what the numbers are about.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_LINE = 9
"""The point through which, with point 0, a line is drawn that a curve may leave."""
LEAVES = 0.2
"""By this share of the line's value."""
N_SKIPPED = 5
"""Points at the beginning that `auc_step` passes over, where both areas are near zero."""


def max_slope_step(curves: Float[Tensor, "curves points"], floor: float) -> Int[Tensor, " curves"]:
    """The step of the largest rise: n where curve[n + 1] - curve[n] is largest, the first of equal
    ones; the last point where no rise exceeds `floor`, in units of the response.
    """
    _check_points(curves, 2)
    rise, step = curves.diff(dim=1).max(1)
    return torch.where(rise > floor, step, curves.shape[1] - 1)


def departure_step(curves: Float[Tensor, "curves points"]) -> Int[Tensor, " curves"]:
    """The first step at which a curve differs by more than a fifth from the line through its points
    0 and 9 (the paper's NL step); the last point where none does, as of a line, or where the line
    does not rise.
    """
    _check_points(curves, N_LINE + 2)
    first = curves[:, :1]
    slope = (curves[:, N_LINE, None] - first) / N_LINE
    line = first + slope * torch.arange(curves.shape[1], device=curves.device)
    away = (curves - line).abs() > LEAVES * line.abs()
    away[:, : N_LINE + 1] = False
    away &= slope > 0
    return _first(away)


def auc_step(curves: Float[Tensor, "curves points"]) -> Int[Tensor, " curves"]:
    """The step at which the triangle under a straight rise to the curve is largest against the area
    under the curve: the foot of a steep rise lies before it. The first points are passed over; the
    last point where the curve is 0 throughout.
    """
    _check_points(curves, N_SKIPPED + 2)
    steps = torch.arange(curves.shape[1], device=curves.device)
    triangle = steps * curves / 2
    area = torch.zeros_like(curves)
    area[:, 1:] = ((curves[:, 1:] + curves[:, :-1]) / 2).cumsum(1)
    ratio = torch.where(area > 0, triangle / area.where(area > 0, 1.0), 0.0)
    ratio[:, :N_SKIPPED] = 0
    best, step = ratio.max(1)
    return torch.where(best > 0, step, curves.shape[1] - 1)


def plateau_length(
    curves: Float[Tensor, "curves points"], threshold: float
) -> Int[Tensor, " curves"]:
    """The first point at which the response reaches `threshold`; the last point where none does."""
    _check_points(curves, 1)
    return _first(curves >= threshold)


def _first(where: Tensor) -> Tensor:
    """The first true point of every row, or the last point."""
    return torch.where(where.any(1), where.int().argmax(1), where.shape[1] - 1)


def _check_points(curves: Tensor, least: int) -> None:
    if curves.shape[1] < least:
        raise ValueError(f"points: {curves.shape[1]} on a curve; this takes at least {least}")


# --- relative distances ---------------------------------------------------------------------------


def relative(
    distances: Float[Tensor, "curves points"], least: float
) -> tuple[Float[Tensor, "kept points"], Int[Tensor, " kept"]]:
    """Distances over the distance at the end, of the curves whose end is farther than `least`, and
    which curves these are. The others have no relative distance: noise would be divided by nothing.
    """
    kept = (distances[:, -1] > least).nonzero()[:, 0]
    return distances[kept] / distances[kept, -1:], kept


def max_slope(
    curves: Float[Tensor, "curves points"], alphas: Float[Tensor, " points"]
) -> tuple[Float[Tensor, " curves"], Float[Tensor, " curves"]]:
    """The largest slope between neighbouring points, and the alpha in their middle.

    Limits: finite differences; a jump has at most the slope (points - 1), and a steep rise is
    measured a little low.
    """
    _check_points(curves, 2)
    slopes = curves.diff(dim=1) / alphas.diff().to(curves)
    slope, step = slopes.max(1)
    middles = (alphas[1:] + alphas[:-1]) / 2
    return slope, middles.to(curves)[step]


def missed_slope(slope: float, n_points: int) -> float:
    """The share of its slope that a logistic rise has lost if `slope` is what `n_points` points
    measure of it: 1 - u / atanh(u) with u = slope / (n_points - 1). A jump, which measures the most
    there is (u = 1), has lost all.

    Two points h apart about the middle of a logistic of slope s measure tanh(s h) / h.
    """
    u = min(1.0, slope / (n_points - 1))
    if u <= 0:
        return 0.0
    return 1.0 if u == 1.0 else 1 - u / math.atanh(u)


def plateaus(
    curves: Float[Tensor, "curves points"],
    alphas: Float[Tensor, " points"],
    *,
    low: float = 0.1,
    high: float = 0.9,
) -> tuple[Float[Tensor, " curves"], Float[Tensor, " curves"]]:
    """How far a curve stays below `low` from its beginning, and above `high` up to its end, as
    lengths of alpha. The two of a straight line from 0 to 1 are `low` and 1 - `high`.

    Where a crossing lies between two points it is found by the straight line between them.
    """
    begin = _crossing(curves, alphas.to(curves), low) - alphas[0]
    backwards = -curves.flip(1)
    end = alphas[-1] - _crossing(backwards, alphas.flip(0).to(curves), -high)
    return begin, end


def _crossing(curves: Tensor, alphas: Tensor, level: float) -> Tensor:
    """The first alpha at which a curve reaches the level; the last alpha where it never does."""
    reached = curves >= level
    step = torch.where(reached.any(1), reached.int().argmax(1), curves.shape[1] - 1)
    before = (step - 1).clamp(min=0)
    rows = torch.arange(len(curves), device=curves.device)
    y0, y1 = curves[rows, before], curves[rows, step]
    rise = y1 - y0
    share = torch.where(rise > 0, (level - y0) / rise.where(rise > 0, 1.0), 1.0).clamp(0, 1)
    inside = alphas[before] + share * (alphas[step] - alphas[before])
    return torch.where(reached.any(1), inside, alphas[-1])


# --- distributions --------------------------------------------------------------------------------


def ks_distance(a: Float[Tensor, " n"], b: Float[Tensor, " m"]) -> float:
    """The two-sample Kolmogorov-Smirnov distance: the largest difference of the two distribution
    functions; 0 for equal samples, 1 for samples that do not overlap.

    Raises:
        ValueError: an empty sample.
    """
    if len(a) == 0 or len(b) == 0:
        raise ValueError("samples: one is empty; a distance takes two with something in them")
    a, b = a.double().sort().values, b.double().sort().values
    places = torch.cat([a, b])
    below = [torch.searchsorted(x, places, right=True).double() / len(x) for x in (a, b)]
    return (below[0] - below[1]).abs().max().item()


def ks_matrix(samples: Mapping[str, Float[Tensor, " _"]]) -> Float[Tensor, "names names"]:
    """The distances between all samples, in their order."""
    values = list(samples.values())
    return torch.tensor([[ks_distance(a, b) for b in values] for a in values], dtype=torch.float64)
