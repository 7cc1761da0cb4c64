"""Spectra of a model's matrices, and how many of their parameters are free."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.viz.bands import Shades
from sae_kit.viz.plots import MARKERS, PALETTE, Row, axis_labels, grid, legend

FLOOR = 1e-9
"""Relative eigenvalues below it are not drawn: they are rounding."""


def by_block(panels: Mapping[str, Mapping[int, Float[Tensor, " d"]]], *, title: str) -> Figure:
    """Eigenvalues relative to the largest, a panel for each matrix and side, a line for each block.

    Args:
        panels: name -> block -> eigenvalues, largest first.
        title: stands above all.
    """
    figure, axes = grid(len(panels), n_columns=4, panel=(3.2, 2.6), title=title)
    blocks = sorted({block for lines in panels.values() for block in lines})
    shades = Shades([1.0 + block for block in blocks], "block")
    for ax, (name, lines) in zip(axes, panels.items(), strict=True):
        for block, spectrum in lines.items():
            relative = (spectrum / spectrum.max()).tolist()
            shown = [value for value in relative if value > FLOOR]
            ax.plot(range(1, len(shown) + 1), shown, color=shades[1.0 + block], linewidth=1.2)
        ax.set_yscale("log")
        ax.set_ylim(FLOOR, 2.0)
        ax.set_title(name, fontsize=9)
        axis_labels(ax, "direction", "eigenvalue / largest")
    shades.draw(figure, axes)
    return figure


def free_shares(rows: Sequence[Row], *, title: str) -> Figure:
    """The share of free parameters against the tolerance, a line for each kind of matrix: the mean
    over blocks, in the range from the least to the most.

    Args:
        rows: each with matrix, tolerance and share_free.
        title: stands above.
    """
    figure, (ax,) = grid(1, n_columns=1, panel=(6.0, 3.4), title=title)
    for i, matrix in enumerate(dict.fromkeys(row["matrix"] for row in rows)):
        own = [row for row in rows if row["matrix"] == matrix]
        tolerances = sorted({row["tolerance"] for row in own})
        shares = [[r["share_free"] for r in own if r["tolerance"] == t] for t in tolerances]
        means = [sum(values) / len(values) for values in shares]
        ax.fill_between(
            tolerances,
            [min(values) for values in shares],
            [max(values) for values in shares],
            color=PALETTE[i],
            alpha=0.2,
            linewidth=0,
        )
        ax.plot(tolerances, means, color=PALETTE[i], marker=MARKERS[i], markersize=4, label=matrix)
    ax.set_xscale("log")
    ax.set_ylim(-0.03, 1.03)
    axis_labels(
        ax, "tolerance (share of the largest eigenvalue)", "share free (mean and range of blocks)"
    )
    legend(ax)
    return figure
