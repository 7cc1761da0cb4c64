"""Measures against one another: a curve for every group of rows, such as L0 against FVU.

Each group keeps its colour and marker in all panels. Groups beyond the palette's seven colours go
through it again with hollow markers and dashed lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sae_kit.viz.plots import MARKERS, PALETTE, Row, axis_labels, grid


@final
@dataclass(frozen=True)
class Measure:
    """A column of the table as an axis."""

    column: str
    label: str
    """With the unit."""
    log: bool = False
    """Whether the axis is logarithmic; then all values must be positive."""


def curves(
    rows: Sequence[Row], x: Measure, ys: Sequence[Measure], *, group: str, title: str
) -> Figure:
    """One panel for each of `ys`; the points of a group in the order of x, joined by a line."""
    figure, axes = grid(len(ys), n_columns=3, panel=(4.2, 3.8), title=title)
    groups = list(dict.fromkeys(row[group] for row in rows))
    for ax, y in zip(axes, ys, strict=True):
        for i, name in enumerate(groups):
            own = sorted((row[x.column], row[y.column]) for row in rows if row[group] == name)
            colour, again = PALETTE[i % len(PALETTE)], i >= len(PALETTE)
            ax.plot(
                *zip(*own, strict=True),
                color=colour,
                marker=MARKERS[i % len(MARKERS)],
                markersize=5,
                markerfacecolor="white" if again else colour,
                linewidth=1.3,
                linestyle="--" if again else "-",
                label=name,
            )
        for axis, measure in ((ax.xaxis, x), (ax.yaxis, y)):
            if measure.log:
                (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
        axis_labels(ax, x.label, y.label)
    handles, labels = axes[0].get_legend_handles_labels()
    n_columns = min(len(labels), 5)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=n_columns, fontsize=9, frameon=False
    )
    return figure
