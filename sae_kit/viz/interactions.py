"""How few directions and edges a network needs, by the basis they are of."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.viz.bands import BandPanel, Curve, bands
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
    """Bars of the modularity of every basis' graph, beside that of the graph rewired.

    Args:
        rows: each with basis, n_clusters, modularity and modularity_rewired.
        title: stands above.
    """
    figure, (ax,) = grid(1, n_columns=1, panel=(6.0, 3.4), title=title)
    measured = {"modularity": "as it is", "modularity_rewired": "rewired at random"}
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
    labels: Int[Tensor, " nodes"] | None = None,
    cluster_names: Sequence[str] | None = None,
) -> Figure:
    """The graph of a basis, its clusters coloured.

    Args:
        weights: `[there here]`, of edges between each layer and the next; 0: none.
        cluster: of every direction, layer after layer; those of one direction are grey.
        layers: names of the node layers.
        title: stands above.
        labels: beside every direction; None: none.
        cluster_names: of the clusters of two and more; None: their sizes.
    """
    sizes = cluster.bincount()
    named = [f"cluster {i + 1} ({size} directions)" for i, size in enumerate(sizes)]
    groups = torch.where(sizes[cluster] > 1, cluster, -1)
    per_layer = [weights[0].shape[1], *(edges.shape[0] for edges in weights)]
    beside = [""] * len(cluster) if labels is None else [str(own) for own in labels.tolist()]
    starts = [0, *itertools.accumulate(per_layer)]
    return layered_graph(
        weights,
        layers=layers,
        groups=[own.tolist() for own in groups.split(per_layer)],
        names=[beside[start:end] for start, end in itertools.pairwise(starts)],
        group_names=named if cluster_names is None else cluster_names,
        title=title,
    )


def kept_accuracy(rows: Sequence[Row], *, n_tested: int, chance: float, title: str) -> Figure:
    """Accuracy against the number of directions kept, with the standard error of a share.

    Args:
        rows: each with site, basis, k and accuracy.
        n_tested: inputs that the accuracies are shares of.
        chance: accuracy of guessing.
        title: stands above.
    """
    panels = []
    for site in dict.fromkeys(row["site"] for row in rows):
        curves = []
        for i, basis in enumerate(BASES):
            own = [row for row in rows if (row["site"], row["basis"]) == (site, basis)]
            if not own:
                continue
            y = [row["accuracy"] for row in own]
            errors = [(value * (1 - value) / n_tested) ** 0.5 for value in y]
            low = [value - error for value, error in zip(y, errors, strict=True)]
            high = [value + error for value, error in zip(y, errors, strict=True)]
            x = [float(row["k"]) for row in own]
            curves.append(Curve(x, y, low, high, PALETTE[i], basis))
        panels.append(BandPanel(site, curves, "directions kept", "accuracy", True, baseline=chance))
    return bands(panels, n_columns=3, title=title)


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
