"""The style of every figure, and the kinds of figure that evaluations draw with.

Numbers in, matplotlib Figure out. Figures are made without pyplot, so nothing global is set, no
display is needed, and a figure is gone when nobody holds it any more. This package is the only one
that imports matplotlib; evaluations import it inside `plot`.

The palette is Okabe and Ito's (2008), which readers with any colour vision can tell apart.
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from sae_kit.maths import bootstrap_interval

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT = "#333333", "#D9D9D9"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL = (4.6, 3.0)  # inches

Row = Mapping[str, Any]


# --- kinds of figure ------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Panel:
    """What one panel of `by_site` shows."""

    label: str
    """Of the y axis, with the unit."""
    lines: Mapping[str, str]
    """Name of a line -> column of the table. `x_low` and `x_high` hold the interval of `x`."""
    baseline: float = 0.0
    """The value to compare with; always in view, and drawn as a dashed line."""


def by_site(rows: Sequence[Row], panels: Sequence[Panel], *, title: str) -> Figure:
    """Columns of a table against the sites, which stand in the order of the rows."""
    names, what = site_labels([row["site"] for row in rows])
    longest = max(map(len, names))
    size = (max(PANEL[0], 1.5 + 0.3 * len(rows)), PANEL[1] + 0.06 * longest)
    figure, axes = grid(len(panels), n_columns=2, panel=size, title=title)
    for ax, panel in zip(axes, panels, strict=True):
        reference(ax, panel.baseline)
        for i, (line, column) in enumerate(panel.lines.items()):
            # Side by side, or intervals of equal values would hide one another.
            shift = 0.12 * (i - (len(panel.lines) - 1) / 2)
            x = [place + shift for place in range(len(rows))]
            _points(ax, x, [row[column] for row in rows], interval_of(rows, column), line, number=i)
        ax.set_xticks(range(len(rows)), names)
        if longest > 3:
            ax.tick_params(axis="x", labelrotation=50)
            for tick in ax.get_xticklabels():
                tick.set(horizontalalignment="right", rotation_mode="anchor")
        ax.set_xlim(-0.5, len(rows) - 0.5)
        axis_labels(ax, what, panel.label)
        if len(panel.lines) > 1:
            legend(ax)
    return figure


def firing_frequencies(
    frequencies: Mapping[str, Float[Tensor, " d_sae"]], *, dense: float, title: str
) -> Figure:
    """For each site a histogram of how often its latents fire, on a logarithmic axis.

    Latents that never fired stand apart on the left, since zero has no logarithm.

    Args:
        frequencies: site -> share of positions at which each latent fired.
        dense: the share above which a latent is called dense; a line is drawn there.
        title: stands above all.
    """
    size = (3.8, 2.8) if len(frequencies) > 1 else (6.0, 3.6)
    figure, axes = grid(len(frequencies), n_columns=3, panel=size, title=title)
    fired = torch.cat([f[f > 0] for f in frequencies.values()])
    least = min(-1, math.floor(fired.log10().min().item())) if len(fired) else -1
    decades = range(least, 1)
    bins = [least + i / 4 for i in range(-4 * least + 1)]
    apart = 1.25 * least - 0.25  # where those that never fired stand
    for ax, (site, frequency) in zip(axes, frequencies.items(), strict=True):
        alive = frequency[frequency > 0].log10()
        n_dead = len(frequency) - len(alive)
        ax.hist(alive.tolist(), bins=bins, color=PALETTE[0], edgecolor="white", linewidth=0.4)
        bar = ax.bar(apart, n_dead, width=-least / 8, color=PALETTE[1], label="never fired")
        ax.bar_label(bar, fontsize=8, color=PALETTE[1])
        reference(ax, math.log10(dense), vertical=True, label=f"dense: above {dense:.0%}")
        shown = decades[:: -(-len(decades) // 4)]
        ax.set_xticks([apart, *shown], ["never", *(_power(decade) for decade in shown)])
        ax.set_xlim(1.15 * apart, 0.0)
        ax.margins(y=0.15)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        ax.set_title(site, fontsize=9, color=INK)
        axis_labels(ax, "share of positions", "latents")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def bars(rows: Sequence[Row], *, name: str, unit: str, title: str) -> Figure:
    """One horizontal bar per row, with its interval and its number.

    Args:
        rows: each with `value`, `low` and `high`.
        name: the column that says what the bar is.
        unit: label of the axis of the values.
        title: stands above.
    """
    figure, (ax,) = grid(1, n_columns=1, panel=(6.0, 1.2 + 0.45 * len(rows)), title=title)
    y = list(range(len(rows)))[::-1]
    values = [row["value"] for row in rows]
    low, high = [row["low"] for row in rows], [row["high"] for row in rows]
    ax.barh(y, values, height=0.6, color=PALETTE[0])
    ax.errorbar(values, y, xerr=arms(values, (low, high)), fmt="none", ecolor=INK, capsize=3)
    for place, value, end in zip(y, values, high, strict=True):
        ax.annotate(
            f"{value:.3g}",
            (max(end, 0.0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    ax.set_yticks(y, [row[name] for row in rows])
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.12)
    axis_labels(ax, unit, "")
    return figure


def by_position(
    curves: Mapping[str, Float[Tensor, "n pos"]],
    *,
    first: int,
    labels: tuple[str, str],
    marks: Mapping[str, float],
    title: str,
) -> Figure:
    """Means over samples against the position, each in its 95 % bootstrap band.

    Args:
        curves: name -> values of independent samples.
        first: the position of the first column.
        labels: of the x and the y axis.
        marks: name -> position at which a vertical line stands.
        title: stands above.
    """
    figure, (ax,) = grid(1, n_columns=1, panel=(7.0, 3.4), title=title)
    for i, (name, values) in enumerate(curves.items()):
        intervals = [bootstrap_interval(column, seed=0, n_resamples=200) for column in values.T]
        x = list(range(first, first + len(intervals)))
        low, high = [it.low for it in intervals], [it.high for it in intervals]
        ax.fill_between(x, low, high, color=PALETTE[i], alpha=0.25, linewidth=0)
        ax.plot(x, [it.estimate for it in intervals], color=PALETTE[i], linewidth=1.5, label=name)
    for name, place in marks.items():
        reference(ax, place, vertical=True, label=name)
    ax.set_ylim(bottom=0)
    axis_labels(ax, *labels)
    legend(ax)
    return figure


def histogram(values: Float[Tensor, " n"], *, label: str, unit_name: str, title: str) -> Figure:
    """How values are distributed about zero, with their mean.

    Args:
        values: one per sample.
        label: of the x axis, with the unit.
        unit_name: what a sample is, in the plural ("prompts").
        title: stands above.
    """
    figure, (ax,) = grid(1, n_columns=1, panel=(6.0, 3.2), title=title)
    n_bins = min(40, max(8, round(math.sqrt(len(values)))))
    ax.hist(values.tolist(), bins=n_bins, color=PALETTE[0], edgecolor="white", linewidth=0.4)
    reference(ax, 0.0, vertical=True, label="zero")
    mean = values.double().mean().item()
    ax.axvline(mean, color=PALETTE[1], linewidth=1.5, label=f"mean {mean:.3g}")
    ax.margins(y=0.15)
    axis_labels(ax, label, unit_name)
    legend(ax)
    return figure


# --- what these are made of -----------------------------------------------------------------------


def grid(
    n: int, *, n_columns: int, panel: tuple[float, float] = PANEL, title: str = ""
) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels of the given size in inches, in rows of at most `n_columns`."""
    n_columns = min(n, n_columns)
    n_rows = -(-n // n_columns)
    width = panel[0] * n_columns
    spaced = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
    figure = Figure(figsize=(width, panel[1] * n_rows), layout=spaced)
    axes = [figure.add_subplot(n_rows, n_columns, i + 1) for i in range(n)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(INK)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(visible=True, axis="y", color=FAINT, linewidth=0.6)
        ax.set_axisbelow(True)
    if title:
        # 12 characters of this size to the inch.
        figure.suptitle(textwrap.fill(title, int(12 * width)), fontsize=11, color=INK)
    return figure, axes


def axis_labels(ax: Axes, x: str, y: str) -> None:
    """What the axes show, with units."""
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)


def plain_ticks(axis: Axis) -> None:
    """Numbers such as 0.05 on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(ax: Axes) -> None:
    """The names of what is drawn, where there is room."""
    ax.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", labelcolor=INK)


def reference(ax: Axes, place: float, *, vertical: bool = False, label: str | None = None) -> None:
    """A dashed line to compare with."""
    line = ax.axvline if vertical else ax.axhline
    line(place, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=label)


def site_labels(sites: Sequence[str]) -> tuple[list[str], str]:
    """Short names of sites for a tick each, and a label for the axis that says the rest."""
    parts = [re.fullmatch(r"blocks\.(\d+)\.(.+)", site) for site in sites]
    kinds = {part[2] for part in parts if part}
    if len(kinds) == 1 and all(parts):
        return [part[1] for part in parts if part], f"block (site: {kinds.pop()})"
    short = [site.removeprefix("blocks.").replace("hook_", "") for site in sites]
    return short, "site"


def block_of(site: str) -> int:
    """The number of a site's block; -1 for one that is in none."""
    return next((int(part) for part in site.split(".") if part.isdecimal()), -1)


def _points(
    ax: Axes,
    x: Sequence[float],
    y: Sequence[float],
    interval: tuple[list[float], list[float]] | None,
    label: str,
    *,
    number: int,
) -> None:
    """Joined points with their intervals, in the style of line `number`."""
    ax.errorbar(
        x,
        y,
        yerr=None if interval is None else arms(y, interval),
        color=PALETTE[number],
        marker=MARKERS[number],
        markersize=4.5,
        linewidth=1.2,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
    )


def interval_of(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]] | None:
    """The ends of a column's intervals, or None where it has none."""
    low, high = f"{column}_low", f"{column}_high"
    if any(low not in row for row in rows):
        return None
    return [row[low] for row in rows], [row[high] for row in rows]


def arms(
    values: Sequence[float], interval: tuple[list[float], list[float]]
) -> tuple[list[float], list[float]]:
    """Lengths of the error bars below and above; rounding must not make one negative."""
    low, high = interval
    return (
        [max(0.0, value - end) for value, end in zip(values, low, strict=True)],
        [max(0.0, end - value) for value, end in zip(values, high, strict=True)],
    )


def _power(decade: int) -> str:
    return "1" if decade == 0 else f"$10^{{{decade}}}$"
