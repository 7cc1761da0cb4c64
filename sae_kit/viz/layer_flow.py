"""A flow chart over layers: what goes on from each to the next, what appears and what disappears.

Every site is a bar as high as its latents are many. Between two bars, bands join those that have a
match, the better matches below; above them, what disappears falls away behind the bar, and what
appears comes in before the next one. Several latents may have the same match, so that a band's ends
need not be equally wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from sae_kit.viz.plots import INK, PALETTE, axis_labels, grid, site_labels

BAR = 0.07  # widths, in layers
STUB = 0.3
DROP = 0.15  # of its height that a stub narrows by
PASSED = ("#08519C", "#4292C6", "#9ECAE1")  # dark to light: better to worse matches
GONE, NEW = PALETTE[1], PALETTE[2]

Ends = tuple[float, list[float]]
"""How many latents there are, and how many of them have a match of each level or better."""

Edge = tuple[float, float, float]
"""Of a band: x, and from where to where it reaches."""


@final
@dataclass(frozen=True)
class Step:
    """From one site to another."""

    sites: tuple[str, str]
    up: Ends
    down: Ends


def flow(steps: Sequence[Step], levels: Sequence[str], *, title: str) -> Figure:
    """The chart.

    Args:
        steps: in the order of the model; sites that do not follow one another have no band.
        levels: the names of the levels of the steps' matches, the best first; three at most.
        title: stands above.
    """
    sites = list(dict.fromkeys(site for step in steps for site in step.sites))
    names, what = site_labels(sites)
    size = (max(6.4, 1.3 * len(sites)), 4.2)
    figure, (ax,) = grid(1, n_columns=1, panel=size, title=title)
    heights: dict[str, float] = {}
    for step in steps:
        left, right = map(sites.index, step.sites)
        for site, (n, _) in zip(step.sites, (step.up, step.down), strict=True):
            heights[site] = max(n, heights.get(site, 0.0))
        if right == left + 1:
            _between(ax, left + BAR, right - BAR, step)
    for site, height in heights.items():
        ax.bar(sites.index(site), height, width=2 * BAR, color=INK, zorder=3)
    ax.set_xticks(range(len(sites)), names)
    ax.set_xlim(-0.5, len(sites) - 0.5)
    ax.set_ylim(0, 1.06 * max(1, *heights.values()))
    ax.grid(visible=False)
    axis_labels(ax, what, "latents that fire\noften enough to be judged")
    parts = [*zip(PASSED, levels, strict=False), (GONE, "disappear"), (NEW, "appear")]
    handles: list[Any] = [Patch(color=colour, label=name) for colour, name in parts]
    columns = min(len(parts), 5)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    return figure


def _between(ax: Axes, left: float, right: float, step: Step) -> None:
    """What lies between two bars."""
    (n_up, up), (n_down, down) = step.up, step.down
    low = (0.0, 0.0)
    for high_up, high_down, colour in zip(up, down, PASSED, strict=False):
        _band(ax, (left, low[0], high_up), (right, low[1], high_down), colour)
        low = high_up, high_down
    inner = left + STUB, right - STUB
    _band(ax, (left, low[0], n_up), (inner[0], low[0] + DROP * (n_up - low[0]), n_up), GONE)
    _band(ax, (inner[1], low[1] + DROP * (n_down - low[1]), n_down), (right, low[1], n_down), NEW)
    for x, below, n in ((left + STUB / 2, low[0], n_up), (right - STUB / 2, low[1], n_down)):
        if n:
            share = f"{1 - below / n:.0%}"
            ax.annotate(share, (x, (below + n) / 2), ha="center", va="center", fontsize=7)


def _band(ax: Axes, left: Edge, right: Edge, colour: str) -> None:
    """A band with smooth sides."""
    (x0, low0, high0), (x1, low1, high1) = left, right
    middle = (x0 + x1) / 2
    path = Path(
        [
            *((x0, low0), (middle, low0), (middle, low1), (x1, low1)),
            *((x1, high1), (middle, high1), (middle, high0), (x0, high0), (x0, low0)),
        ],
        [
            *(Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4),
            *(Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.CLOSEPOLY),
        ],
    )
    ax.add_patch(PathPatch(path, facecolor=colour, linewidth=0))
