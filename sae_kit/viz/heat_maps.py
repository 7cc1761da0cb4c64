"""Maps of signed values: blue above zero, red below, white where there is nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_kit.viz.plots import INK, axis_labels, grid

COLOURS = "RdBu"
MISSING = "#E8E8E8"
CELL = 0.27  # inches
ROOM = (1.5, 1.15)  # inches for labels and the colour bar, beside and below
MOST_CELLS = 400
"""With numbers in them."""
LEAST_NUMBER = 0.05
"""Of the largest value in a map: smaller ones are not written into their cells."""


@final
@dataclass(frozen=True)
class Map:
    """One panel."""

    title: str
    values: Sequence[Sequence[float]]
    """Rows from the bottom; NaN where there is no value."""
    columns: Sequence[str]
    rows: Sequence[str]
    x: str
    y: str
    """Labels of the axes."""
    most: float
    """The value at which colours end, on both sides of zero."""


def maps(panels: Sequence[Map], *, n_columns: int, unit: str, title: str) -> Figure:
    """Draw the panels, each with its scale. `unit`: what the values are."""
    n_wide = max(len(panel.columns) for panel in panels)
    n_high = max(len(panel.rows) for panel in panels)
    longest = max(len(name) for panel in panels for name in panel.columns)
    below = 0.06 * longest if longest > 2 else 0.0
    size = (max(2.4, CELL * n_wide) + ROOM[0], max(1.0, CELL * n_high) + ROOM[1] + below)
    figure, axes = grid(len(panels), n_columns=n_columns, panel=size, title=title)
    for ax, panel in zip(axes, panels, strict=True):
        _draw(ax, panel, upright=longest > 2)
        bar = figure.colorbar(ax.images[0], ax=ax, fraction=0.05, pad=0.02)
        bar.ax.tick_params(labelsize=7, colors=INK)
        bar.ax.set_xlabel(unit, fontsize=7, color=INK)
    return figure


def symmetric(values: Sequence[float]) -> float:
    """Where colours end, for values of which none is to be cut off."""
    return max((abs(value) for value in values if not math.isnan(value)), default=0.0) or 1.0


def _draw(ax: Axes, panel: Map, *, upright: bool) -> None:
    """The cells, with their numbers where there is room."""
    ax.set_facecolor(MISSING)
    ax.imshow(
        panel.values, origin="lower", cmap=COLOURS, vmin=-panel.most, vmax=panel.most, aspect="auto"
    )
    ax.grid(visible=False)
    ax.set_xticks(range(len(panel.columns)), panel.columns, rotation=90 if upright else 0)
    ax.set_yticks(range(len(panel.rows)), panel.rows)
    ax.tick_params(labelsize=8, length=2)
    ax.set_title(panel.title, fontsize=9, color=INK)
    axis_labels(ax, panel.x, panel.y)
    if len(panel.columns) * len(panel.rows) > MOST_CELLS:
        return
    for y, row in enumerate(panel.values):
        for x, value in enumerate(row):
            if math.isnan(value) or abs(value) < max(LEAST_NUMBER * panel.most, 0.005):
                continue
            ax.text(
                x,
                y,
                f"{value:.2f}".replace("0.", ".", 1),
                ha="center",
                va="center",
                fontsize=5.5,
                color="white" if abs(value) > 0.6 * panel.most else INK,
            )
