"""A graph between layers: nodes in columns, edges between neighbouring ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.viz.plots import FAINT, INK, PALETTE, axis_labels, grid


def layered_graph(
    weights: Sequence[Float[Tensor, "_ _"]],
    *,
    layers: Sequence[str],
    groups: Sequence[Sequence[int]],
    names: Sequence[Sequence[str]],
    group_names: Sequence[str],
    title: str,
) -> Figure:
    """Draw the nodes that have an edge; a line is the wider the greater its edge's weight.

    Args:
        weights: `[there here]`, of edges between each layer and the next; 0: none.
        layers: names of the columns.
        groups: of each layer's nodes: their colour; -1 for those in no group.
        names: of each layer's nodes, beside them; empty: none.
        group_names: for the legend, by the group's number; groups beyond the palette are grey.
        title: stands above.
    """
    joined = _joined(weights)
    most = max(int(there.sum()) for there in joined)
    size = (1.6 + 2.0 * len(layers), min(9.0, 2.2 + 0.16 * most))
    figure, (ax,) = grid(1, n_columns=1, panel=size, title=title)
    places = [_places(there, own) for there, own in zip(joined, groups, strict=True)]
    largest = max((found.max().item() for found in weights if found.numel()), default=0.0) or 1.0
    for layer, found in enumerate(weights):
        there, here = found.nonzero(as_tuple=True)
        ends = [
            [(layer, places[layer][j]), (layer + 1, places[layer + 1][i])]
            for i, j in zip(there.tolist(), here.tolist(), strict=True)
        ]
        strengths = (found[there, here] / largest).tolist()
        same = [
            _colour(groups[layer][j]) if groups[layer][j] == groups[layer + 1][i] else FAINT
            for i, j in zip(there.tolist(), here.tolist(), strict=True)
        ]
        widths = [0.3 + 1.7 * strength for strength in strengths]
        ax.add_collection(LineCollection(ends, linewidths=widths, colors=same, alpha=0.6, zorder=1))
    for layer, own in enumerate(places):
        for node, place in own.items():
            colour = _colour(groups[layer][node])
            ax.plot(layer, place, "o", color=colour, markersize=5, zorder=2)
            if names[layer][node]:
                ax.annotate(
                    names[layer][node],
                    (layer, place),
                    xytext=(5, 3),
                    textcoords="offset points",
                    fontsize=6,
                    color=INK,
                )
    shown = sorted({group for own in groups for group in own if 0 <= group < len(PALETTE)})
    for group in shown:
        ax.plot([], [], "o", color=PALETTE[group], label=group_names[group])
    if shown:
        figure.legend(
            loc="outside lower center", ncols=min(len(shown), 4), fontsize=8, frameon=False
        )
    ax.set_xticks(range(len(layers)), layers)
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.margins(x=0.12)
    axis_labels(ax, "node layer", "directions, by cluster")
    return figure


def _joined(weights: Sequence[Tensor]) -> list[Tensor]:
    """Which nodes of each layer have an edge."""
    sizes = [weights[0].shape[1], *(found.shape[0] for found in weights)]
    joined = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    for layer, found in enumerate(weights):
        joined[layer] |= (found > 0).any(0)
        joined[layer + 1] |= (found > 0).any(1)
    return joined


def _places(joined: Tensor, groups: Sequence[int]) -> dict[int, float]:
    """Heights of the nodes with edges, group by group, evenly about 0."""
    nodes = sorted(joined.nonzero()[:, 0].tolist(), key=lambda node: (groups[node], node))
    return {node: (len(nodes) - 1) / 2 - number for number, node in enumerate(nodes)}


def _colour(group: int) -> str:
    return PALETTE[group] if 0 <= group < len(PALETTE) else "#999999"
