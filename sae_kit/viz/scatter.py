"""Clouds of points over a logarithmic x axis, such as features by how often they fire."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.viz.plots import MARKERS, PALETTE, axis_labels, grid, legend


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Cloud:
    """Points of one kind."""

    name: str
    x: Float[Tensor, " n"]
    """Positive."""
    y: Float[Tensor, " n"]
    """Between 0 and 1."""


def clouds(parts: Sequence[Cloud], *, x: str, y: str, title: str) -> Figure:
    """All clouds in one panel, whose y axis reaches from 0 to 1."""
    figure, (ax,) = grid(1, n_columns=1, panel=(5.2, 3.6), title=title)
    for i, part in enumerate(parts):
        ax.scatter(
            part.x.tolist(),
            part.y.tolist(),
            s=14,
            alpha=0.6,
            linewidths=0,
            marker=MARKERS[i % len(MARKERS)],
            color=PALETTE[i % len(PALETTE)],
            label=part.name,
        )
    ax.set_xscale("log")
    ax.set_ylim(-0.03, 1.03)
    axis_labels(ax, x, y)
    legend(ax)
    return figure
