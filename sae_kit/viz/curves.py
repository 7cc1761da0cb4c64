"""Measures against one another: a curve for every group of rows, such as L0 against FVU.

Columns `x_low` and `x_high` hold the interval of `x`, where there is one.
Each group keeps its colour and marker in all panels. Groups beyond the palette's seven colours go
through it again with hollow markers and dashed lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from matplotlib.figure import Figure

from sae_kit.viz.plots import (
    MARKERS,
    PALETTE,
    Row,
    arms,
    axis_labels,
    grid,
    interval_of,
    plain_ticks,
)


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
            own = sorted(
                (row for row in rows if row[group] == name and y.column in row),
                key=lambda row: row[x.column],
            )
            values = [row[y.column] for row in own]
            ends = interval_of(own, y.column)
            colour, again = PALETTE[i % len(PALETTE)], i >= len(PALETTE)
            ax.errorbar(
                [row[x.column] for row in own],
                values,
                yerr=None if ends is None else arms(values, ends),
                elinewidth=1.0,
                capsize=2.0,
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
                plain_ticks(axis)
        axis_labels(ax, x.label, y.label)
    handles, labels = axes[0].get_legend_handles_labels()
    n_columns = min(len(labels), 5)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=n_columns, fontsize=9, frameon=False
    )
    return figure
