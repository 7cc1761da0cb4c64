"""Pictures of planes with marked points: fields in shades of one scale, or red, green and blue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import matplotlib.patheffects
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.viz.plots import INK, axis_labels, grid


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Picture:
    """What one panel shows."""

    title: str
    pixels: Float[Tensor, "rows columns"] | Float[Tensor, "rows columns three"]
    """From 0 to 1, the lowest row first: shades of a scale, or red, green and blue."""
    x: tuple[float, float]
    y: tuple[float, float]
    """Where the middles of the first and the last pixel lie."""
    marks: Mapping[str, tuple[float, float]]
    """Letter -> the point it stands at."""


def pictures(
    panels: Sequence[Picture], *, n_columns: int, labels: tuple[str, str], scale: str, title: str
) -> Figure:
    """Draw the panels.

    Args:
        panels: in reading order.
        n_columns: panels in a row.
        labels: of the x and the y axis.
        scale: what the shades are, for the bar beside them; unused where all panels are coloured.
        title: stands above all.
    """
    figure, axes = grid(len(panels), n_columns=n_columns, panel=(3.1, 3.1), title=title)
    shaded = None
    for ax, panel in zip(axes, panels, strict=True):
        image = ax.imshow(
            panel.pixels.tolist(),
            origin="lower",
            extent=_edges(panel),
            cmap="viridis",
            vmin=0.0,
            vmax=1.0,
            interpolation="nearest",
        )
        if panel.pixels.ndim == 2:
            shaded = image
        for letter, place in panel.marks.items():
            ax.plot(*place, marker="o", color="white", markeredgecolor="black", markersize=5)
            text = ax.annotate(letter, place, (5, 5), textcoords="offset points", fontsize=10)
            text.set_path_effects(
                [matplotlib.patheffects.withStroke(linewidth=2.5, foreground="white")]
            )
        ax.grid(visible=False)
        ax.set_xlim(*_edges(panel)[:2])
        ax.set_ylim(*_edges(panel)[2:])
        ax.set_title(panel.title, fontsize=9, color=INK)
        axis_labels(ax, *labels)
    if shaded is not None:
        bar = figure.colorbar(shaded, ax=axes, aspect=30, pad=0.02)
        bar.ax.set_xlabel(scale, fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8, colors=INK)
    return figure


def _edges(panel: Picture) -> tuple[float, float, float, float]:
    """Where the outer pixels end: half a pixel beyond their middles."""
    n_rows, n_columns = panel.pixels.shape[:2]
    (x0, x1), (y0, y1) = panel.x, panel.y
    half_x = (x1 - x0) / (n_columns - 1) / 2
    half_y = (y1 - y0) / (n_rows - 1) / 2
    return x0 - half_x, x1 + half_x, y0 - half_y, y1 + half_y
