"""Bars in groups, each with its interval: the same few things measured at several places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from matplotlib.figure import Figure

from sae_kit.viz.plots import INK, PALETTE, arms, axis_labels, grid, reference

Bar = tuple[float, float, float]
"""A value with the ends of its interval."""


@final
@dataclass(frozen=True)
class BarPanel:
    """What one panel shows."""

    title: str
    groups: Sequence[str]
    """Names along the x axis."""
    bars: Mapping[str, Sequence[Bar | None]]
    """Name of a kind of bar -> its bar in every group; None: it has none there."""
    x: str
    y: str
    """Labels of the axes, with units."""
    log: bool = False
    """Whether the y axis is logarithmic; then values and ends must be positive."""
    baseline: float | None = None
    """A value to compare with, drawn as a dashed line."""


def grouped_bars(panels: Sequence[BarPanel], *, title: str) -> Figure:
    """Draw the panels below one another; a kind of bar has the same colour in all of them.

    Kinds beyond the palette's colours go through it again, hatched.
    """
    kinds = list(dict.fromkeys(kind for panel in panels for kind in panel.bars))
    most = max(len(panel.groups) for panel in panels)
    width = max(6.4, 1.6 + 0.22 * most * max(len(panel.bars) for panel in panels))
    figure, axes = grid(len(panels), n_columns=1, panel=(min(width, 14.0), 3.1), title=title)
    for ax, panel in zip(axes, panels, strict=True):
        each = 0.8 / len(panel.bars)
        for i, (kind, bars) in enumerate(panel.bars.items()):
            number = kinds.index(kind)
            there = [(place, bar) for place, bar in enumerate(bars) if bar is not None]
            places = [place + each * (i - (len(panel.bars) - 1) / 2) for place, _ in there]
            values = [value for _, (value, _, _) in there]
            ends = ([low for _, (_, low, _) in there], [high for _, (_, _, high) in there])
            ax.bar(
                places,
                values,
                width=0.92 * each,
                color=PALETTE[number % len(PALETTE)],
                hatch="///" if number >= len(PALETTE) else None,
                edgecolor="white",
                linewidth=0.0,
                label=kind,
            )
            ax.errorbar(
                places,
                values,
                yerr=arms(values, ends),
                fmt="none",
                ecolor=INK,
                elinewidth=1.0,
                capsize=2.0,
            )
        if panel.log:
            ax.set_yscale("log")
        if panel.baseline is not None:
            reference(ax, panel.baseline)
        ax.set_xticks(range(len(panel.groups)), panel.groups)
        if max(map(len, panel.groups)) * len(panel.groups) > 11 * width:
            ax.tick_params(axis="x", labelrotation=40)
            for tick in ax.get_xticklabels():
                tick.set(horizontalalignment="right", rotation_mode="anchor")
        ax.set_title(panel.title, fontsize=9, color=INK)
        axis_labels(ax, panel.x, panel.y)
        ax.legend(
            fontsize=8, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
    return figure
