"""Figures of eval=feature_evolution: what a saved result says of latents from layer to layer."""

from collections.abc import Sequence

import matplotlib
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from sae_kit.result import Result
from sae_kit.viz.layer_flow import Step, flow
from sae_kit.viz.plots import (
    INK,
    PALETTE,
    axis_labels,
    block_of,
    grid,
    reference,
    site_labels,
)

MEASURES = {
    "pearson": "Pearson correlation",
    "cosine": "cosine of activations",
    "jaccard": "Jaccard index",
    "necessity": "necessity P(up | down)",
    "sufficiency": "sufficiency P(down | up)",
    "mutual_information": "mutual information (nats)",
    "decoder_cosine": "cosine of decoder rows",
}
LEVELS = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
FLOW_LEVELS = (0.8, 0.5)  # besides the level of the table
N_BINS = 10  # of similarity, for ablations


def figures(result: Result) -> dict[str, Figure]:
    """All figures, by the name of their file."""
    drawn = {
        "similarity": _similarity(result),
        "levels": _levels(result),
        "flow": _flow(result),
        "communities": _communities(result),
        "alive": _alive(result),
    }
    if any(key.startswith("ablation/") for key in result.arrays):
        drawn["ablation"] = _ablation(result)
    return drawn


def _names(result: Result) -> list[str]:
    return [f"{row['up']}>{row['down']}" for row in result.rows]


def _pair_labels(result: Result) -> tuple[list[str], str]:
    """A short name for each pair of sites, and what the names are of."""
    sites = [site for row in result.rows for site in (row["up"], row["down"])]
    short, what = site_labels(sites)
    return [f"{up} → {down}" for up, down in zip(short[::2], short[1::2], strict=True)], what


def _title(result: Result, text: str) -> str:
    model, n = result.provenance["subject"]["model"], result.scalars["n_positions"]
    return f"{text}: SAEs in {model}, {n:,} positions of held-out text"


def _colours(n: int) -> list[tuple[float, ...]]:
    """Dark to light, from the first pair of sites to the last; the same to any colour vision."""
    return [matplotlib.colormaps["viridis"](0.92 * i / max(1, n - 1)) for i in range(n)]


def _pair_legend(figure: Figure, ax: Axes, what: str) -> None:
    """One legend for all panels."""
    handles, labels = ax.get_legend_handles_labels()
    n_columns = min(len(labels), 6)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=n_columns,
        fontsize=8,
        frameon=False,
        title=what,
        title_fontsize=8,
    )


def _similarity(result: Result) -> Figure:
    """How many pairs of latents are how alike, by every measure."""
    labels, what = _pair_labels(result)
    title = _title(result, "Pairs of latents that are active together, by similarity")
    figure, axes = grid(len(MEASURES), n_columns=4, panel=(3.3, 2.6), title=title)
    for ax, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        low, high = result.arrays[f"bins/{measure}"].tolist()
        for name, short, colour in zip(_names(result), labels, _colours(len(labels)), strict=True):
            counts = result.arrays[f"histogram/{name}/{measure}"].double()
            edges = torch.linspace(low, high, len(counts) + 1)
            ax.stairs(counts.tolist(), edges.tolist(), color=colour, label=short, linewidth=1.1)
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(bottom=0)
        ax.set_yticks([0, 1, 1e2, 1e4, 1e6])
        axis_labels(ax, label, "pairs of latents")
    _pair_legend(figure, axes[0], what)
    return figure


def _levels(result: Result) -> Figure:
    """Shares of latents without a match, at every level of similarity."""
    labels, what = _pair_labels(result)
    settings = result.provenance["evaluation"]
    measure = MEASURES[settings["measure"]]
    title = _title(result, "Latents without a match in the next layer, or the one before")
    figure, axes = grid(2, n_columns=2, panel=(4.6, 3.4), title=title)
    sides = (
        ("forward", "judged_up", "disappear"),
        ("backward", "judged_down", "appear"),
    )
    for ax, (side, judged, label) in zip(axes, sides, strict=True):
        for name, short, colour in zip(_names(result), labels, _colours(len(labels)), strict=True):
            best = result.arrays[f"matches/{name}/{side}"]
            share = _share_below(best[result.arrays[f"matches/{name}/{judged}"]])
            ax.plot(LEVELS.tolist(), share.tolist(), color=colour, label=short, linewidth=1.4)
        reference(ax, settings["level"], vertical=True)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_ylim(-0.02, 1.02)
        axis_labels(ax, f"least {measure} of a match", f"latents that {label}")
    axes[0].annotate(
        "level of the table",
        (settings["level"], 0.02),
        xytext=(-4, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        fontsize=8,
        color=INK,
    )
    _pair_legend(figure, axes[0], what)
    return figure


def _share_below(best: Float[Tensor, " n"]) -> Float[Tensor, " levels"]:
    """Of some latents, the share whose best match is below each level."""
    at = torch.searchsorted(best.double().sort().values, LEVELS)
    return at.double() / max(1, len(best))


def _flow(result: Result) -> Figure:
    """What goes on, appears and disappears, layer after layer."""
    settings = result.provenance["evaluation"]
    measure = MEASURES[settings["measure"]]
    levels = sorted({settings["level"], *FLOW_LEVELS}, reverse=True)
    steps = []
    for row, name in zip(result.rows, _names(result), strict=True):
        ends = []
        for side, judged in (("forward", "judged_up"), ("backward", "judged_down")):
            mask = result.arrays[f"matches/{name}/{judged}"]
            best = result.arrays[f"matches/{name}/{side}"][mask]
            better = [(best >= level).sum().item() for level in levels]
            ends.append((float(len(best)), [float(n) for n in better]))
        steps.append(Step((row["up"], row["down"]), *ends))
    title = _title(result, "Latents from layer to layer")
    return flow(steps, [f"{measure} ≥ {level:g}" for level in levels], title=title)


def _ablation(result: Result) -> Figure:
    """Effects of ablating a latent on its matches, against similarity."""
    settings = result.provenance["evaluation"]
    similarity, lost, at_random = _ablated(result)
    title = _title(result, "Ablating a latent: what becomes of its matches in the next layer")
    figure, (ax,) = grid(1, n_columns=1, panel=(8.2, 3.8), title=title)
    bins = torch.linspace(0, 1, N_BINS + 1, dtype=torch.float64)
    of = torch.bucketize(similarity, bins[1:-1])
    groups = [lost[at_random], *(lost[~at_random & (of == i)] for i in range(N_BINS))]
    ranges = [f"{i / N_BINS:g} to {(i + 1) / N_BINS:g}" for i in range(N_BINS)]
    names = ["drawn at\nrandom", *ranges]
    boxes = ax.boxplot(
        [group.tolist() for group in groups],
        positions=range(len(groups)),
        widths=0.6,
        patch_artist=True,
        whis=(5, 95),
        showfliers=False,
        medianprops={"color": INK, "linewidth": 1.6},
    )
    for i, box in enumerate(boxes["boxes"]):
        box.set(facecolor=PALETTE[1] if i == 0 else PALETTE[5], edgecolor=INK, alpha=0.8)
    ax.set_xticks(
        range(len(groups)),
        [f"{name}\nn={len(group)}" for name, group in zip(names, groups, strict=True)],
        fontsize=8,
    )
    reference(ax, 0.0)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    measure = MEASURES[settings["measure"]]
    axis_labels(
        ax,
        f"{measure} (box: quartiles; whiskers: 5th and 95th percentile)",
        "share of the downstream latent's\nactivation that is lost",
    )
    return figure


def _ablated(result: Result) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity, share lost and whether drawn at random, of all pairs of sites together; only
    where the downstream latent was active.
    """
    columns = []
    for column in ("similarity", "share_lost", "is_random", "n_active"):
        own = [result.arrays[f"ablation/{name}/{column}"] for name in _names(result)]
        columns.append(torch.cat(own))
    similarity, lost, at_random, n_active = columns
    there = n_active > 0
    return similarity[there], lost[there], at_random[there]


def _communities(result: Result) -> Figure:
    """How large communities are, and over how many sites they reach."""
    by_site = [x for key, x in result.arrays.items() if key.startswith("community/")]
    sizes, n_sites = _reach(by_site)
    settings = result.provenance["evaluation"]
    n = result.scalars["n_communities"]
    text = f"{n:,} communities ({settings['communities']}, edges from {settings['least']:g} on)"
    figure, (left, right) = grid(2, n_columns=2, panel=(4.2, 3.0), title=_title(result, text))
    largest = max(2, int(sizes.max())) if len(sizes) else 2
    edges = torch.logspace(0, torch.tensor(largest + 1.0).log10().item(), 24).tolist()
    left.hist(sizes.tolist(), bins=edges, color=PALETTE[0], edgecolor="white", linewidth=0.4)
    left.set_xscale("log")
    left.set_yscale("symlog", linthresh=1)
    left.set_ylim(bottom=0)
    axis_labels(left, "latents in the community", "communities")
    counts = n_sites.bincount(minlength=len(by_site) + 1)[1:]
    right.bar(range(1, len(counts) + 1), counts.tolist(), color=PALETTE[0])
    right.set_xticks(range(1, len(counts) + 1))
    axis_labels(right, "layers it reaches over", "communities")
    return figure


def _reach(by_site: Sequence[Int[Tensor, " d_sae"]]) -> tuple[Tensor, Tensor]:
    """Size of every community, and at how many sites it has members."""
    n = max(int(x.max()) for x in by_site) + 1
    counts = torch.stack([x[x >= 0].bincount(minlength=n) for x in by_site])
    counts = counts[:, counts.sum(0) > 0]
    return counts.sum(0), (counts > 0).sum(0)


def _alive(result: Result) -> Figure:
    """How many latents have fired after so many positions."""
    arrays = result.arrays
    # Arrays that were read from disk are in the order of their names: block 10 before block 2.
    sites = list(dict.fromkeys(site for row in result.rows for site in (row["up"], row["down"])))
    sites.sort(key=block_of)
    short, what = site_labels(sites)
    n = int(result.scalars["n_positions"])
    title = _title(result, "Latents that have fired so far")
    figure, (ax,) = grid(1, n_columns=1, panel=(6.4, 3.6), title=title)
    places = torch.logspace(0, torch.tensor(float(n)).log10().item(), 60, dtype=torch.float64)
    for site, name, colour in zip(sites, short, _colours(len(short)), strict=True):
        x = arrays[f"first/{site}"]
        fired = x[x >= 0].sort().values.double()
        share = torch.searchsorted(fired, places).double() / len(x)
        ax.plot(places.tolist(), share.tolist(), color=colour, label=name, linewidth=1.4)
    ax.set_xscale("log")
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis_labels(ax, "positions read", "share of latents that have fired")
    _pair_legend(figure, ax, what)
    return figure
