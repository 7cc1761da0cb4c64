"""Bundles of curves, each in a band, panel beside panel: responses against how far one goes.

A band is whatever the caller says (an interval, quartiles); title or labels have to name it. One
legend serves all panels, so a name has one look everywhere. Where colours stand for numbers, a
colour bar says which (`Shades`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_hex
from matplotlib.figure import Figure

from sae_kit.viz.plots import INK, axis_labels, grid, plain_ticks, reference


@final
@dataclass(frozen=True)
class Curve:
    """A line in its band."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str
    name: str | None = None
    """In the legend; None: not there."""
    line: str = "-"
    """matplotlib's line style."""
    width: float = 1.5
    """Of the line, in points."""


@final
@dataclass(frozen=True)
class BandPanel:
    """What one panel shows."""

    title: str
    curves: Sequence[Curve]
    x: str
    y: str
    """Labels of the axes, with units."""
    log_x: bool = False
    log_y: bool = False
    """Whether an axis is logarithmic."""
    baseline: float | None = None
    """A value to compare with, drawn as a dashed line."""


@final
class Shades:
    """Colours for positive numbers on a logarithmic scale, dark for small ones.

    Args:
        values: the numbers there are.
        label: what they are.
    """

    def __init__(self, values: Sequence[float], label: str) -> None:
        low, high = min(values), max(values)
        # One number alone still needs a scale to stand on.
        self._norm = LogNorm(low, high) if high > low else LogNorm(low / 2, 2 * low)
        # Viridis without its end, which is too light to see on white.
        self._map = LinearSegmentedColormap.from_list(
            "shades", colormaps["viridis"](range(0, 221, 20))
        )
        self._values, self._label = sorted(set(values)), label

    def __getitem__(self, value: float) -> str:
        """The colour of a number."""
        return to_hex(self._map(self._norm(value)))

    def draw(self, figure: Figure, axes: Sequence[Axes]) -> None:
        """A colour bar beside these panels, marked at the numbers there are, or some of them."""
        bar = figure.colorbar(ScalarMappable(self._norm, self._map), ax=list(axes), aspect=30)
        bar.ax.minorticks_off()
        marked: list[float] = []
        for value in self._values:
            if not marked or self._norm(value) - self._norm(marked[-1]) > 0.05:
                marked.append(value)
        bar.set_ticks(marked, labels=[f"{value:.3g}" for value in marked])
        bar.ax.tick_params(labelsize=8, colors=INK)
        bar.ax.set_xlabel(self._label, fontsize=9, color=INK)


def bands(
    panels: Sequence[BandPanel], *, n_columns: int, title: str, shades: Shades | None = None
) -> Figure:
    """Draw the panels.

    Args:
        panels: in reading order.
        n_columns: panels in a row.
        title: stands above; says what the bands are.
        shades: explains the colours of curves that have no name.
    """
    figure, axes = grid(len(panels), n_columns=n_columns, panel=(4.4, 3.5), title=title)
    for ax, panel in zip(axes, panels, strict=True):
        _draw(ax, panel)
    if shades is not None:
        shades.draw(figure, axes)
    named = {
        name: handle
        for ax in axes
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if named:
        figure.legend(
            list(named.values()),
            list(named),
            loc="outside lower center",
            ncols=min(len(named), max(2, 2 * min(n_columns, len(panels)))),
            fontsize=9,
            frameon=False,
        )
    return figure


def _draw(ax: Axes, panel: BandPanel) -> None:
    """The curves, in front of their bands."""
    for curve in panel.curves:
        ax.fill_between(curve.x, curve.low, curve.high, color=curve.colour, alpha=0.2, linewidth=0)
    for curve in panel.curves:
        ax.plot(
            curve.x,
            curve.y,
            curve.line,
            color=curve.colour,
            linewidth=curve.width,
            label=curve.name,
        )
    if panel.baseline is not None:
        reference(ax, panel.baseline)
    if panel.log_x:
        ax.set_xscale("log")
        plain_ticks(ax.xaxis)
    if panel.log_y:
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)
    elif min((low for curve in panel.curves for low in curve.low), default=0.0) >= 0:
        ax.set_ylim(bottom=0.0)
    ax.set_title(panel.title, fontsize=9, color=INK)
    axis_labels(ax, panel.x, panel.y)
