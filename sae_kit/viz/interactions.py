"""How few directions and edges a network needs, by the basis they are of."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.viz.layered_graph import layered_graph
from sae_kit.viz.plots import (
    MARKERS,
    PALETTE,
    Row,
    arms,
    axis_labels,
    grid,
    plain_ticks,
    site_labels,
)

BASES = ("neurons", "PCA", "LIB", "SAE latents")
"""Each keeps its colour and marker."""


def directions(rows: Sequence[Row], *, title: str) -> Figure:
    """KL against the number of directions kept, a panel for each site, a curve for each basis.

    Args:
        rows: each with site, basis, k, kl, kl_low and kl_high.
        title: stands above all.
    """
    sites = list(dict.fromkeys(row["site"] for row in rows))
    figure, axes = grid(len(sites), n_columns=3, panel=(3.8, 3.0), title=title)
    for ax, site in zip(axes, sites, strict=True):
        for i, basis in enumerate(BASES):
            own = [row for row in rows if (row["site"], row["basis"]) == (site, basis)]
            if not own:
                continue
            values = [row["kl"] for row in own]
            ends = [row["kl_low"] for row in own], [row["kl_high"] for row in own]
            ax.errorbar(
                [row["k"] for row in own],
                values,
                yerr=arms(values, ends),
                color=PALETTE[i],
                marker=MARKERS[i],
                markersize=3.5,
                linewidth=1.2,
                capsize=2.0,
                label=basis,
            )
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        plain_ticks(ax.xaxis)
        ax.set_title(site, fontsize=9)
        axis_labels(ax, "directions kept", "KL (nats per token)")
    _legend(figure, axes)
    return figure


def needed_edges(rows: Sequence[Row], *, title: str) -> Figure:
    """Bars of how many edges do between one layer and the next, for each basis.

    Args:
        rows: each with site, basis, n_edges and n_needed.
        title: stands above.
    """
    sites = list(dict.fromkeys(row["site"] for row in rows))
    bases = [basis for basis in BASES if any(row["basis"] == basis for row in rows)]
    size = (max(6.0, 1.2 * len(sites)), 3.4)
    figure, (ax,) = grid(1, n_columns=1, panel=size, title=title)
    width = 0.8 / len(bases)
    for i, basis in enumerate(bases):
        own = {row["site"]: row["n_needed"] for row in rows if row["basis"] == basis}
        places = [site + width * (i - (len(bases) - 1) / 2) for site in range(len(sites))]
        heights = [own[site] for site in sites]
        bars = ax.bar(places, heights, width=0.9 * width, color=PALETTE[i], label=basis)
        ax.bar_label(bars, fontsize=7, rotation=90, padding=3)
    names, what = site_labels(sites)
    ax.set_xticks(range(len(sites)), names)
    ax.margins(y=0.25)
    axis_labels(ax, f"{what}, to the next", "edges needed")
    _legend(figure, [ax])
    return figure


def modularity(rows: Sequence[Row], *, title: str) -> Figure:
    """Bars of the modularity of every basis' graph, beside that of its edges in random places.

    Args:
        rows: each with basis, n_clusters, modularity and modularity_shuffled.
        title: stands above.
    """
    figure, (ax,) = grid(1, n_columns=1, panel=(6.0, 3.4), title=title)
    measured = {"modularity": "as it is", "modularity_shuffled": "edges in random places"}
    for i, (column, label) in enumerate(measured.items()):
        places = [place + 0.36 * (i - 0.5) for place in range(len(rows))]
        heights = [row[column] for row in rows]
        bars = ax.bar(places, heights, width=0.33, color=(PALETTE[0], "#999999")[i], label=label)
        ax.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
    names = [f"{row['basis']}\n({row['n_clusters']} clusters)" for row in rows]
    ax.set_xticks(range(len(rows)), names)
    ax.margins(y=0.15)
    axis_labels(ax, "basis", "modularity")
    _legend(figure, [ax])
    return figure


def clustered_graph(
    weights: Sequence[Float[Tensor, "_ _"]],
    cluster: Int[Tensor, " nodes"],
    *,
    layers: Sequence[str],
    title: str,
) -> Figure:
    """The graph of a basis, its clusters coloured.

    Args:
        weights: `[there here]`, of edges between each layer and the next; 0: none.
        cluster: of every direction, layer after layer; those of one direction are grey.
        layers: names of the node layers.
        title: stands above.
    """
    sizes = cluster.bincount()
    groups = torch.where(sizes[cluster] > 1, cluster, -1)
    per_layer = [weights[0].shape[1], *(edges.shape[0] for edges in weights)]
    split = [own.tolist() for own in groups.split(per_layer)]
    return layered_graph(
        weights,
        layers=layers,
        groups=split,
        names=[[""] * len(own) for own in split],
        group_names=[f"cluster {i + 1} ({size} directions)" for i, size in enumerate(sizes)],
        title=title,
    )


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    found: dict[str, Artist] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=len(found),
        fontsize=9,
        frameon=False,
    )
