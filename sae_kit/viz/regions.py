"""Figures of eval=stable_regions: curves, slopes, sites and models, hand-made pairs, slices."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.result import Result
from sae_kit.viz.bands import BandPanel, Curve, bands
from sae_kit.viz.plots import (
    INK,
    MARKERS,
    PALETTE,
    Row,
    arms,
    axis_labels,
    grid,
    legend,
    reference,
    site_labels,
)

N_CURVES = 25
CONTEXTS = ("A", "B", "C")


def figures(result: Result) -> dict[str, Figure]:
    """All of them, by the name of their file."""
    rows = [row for row in result.rows if row["kind"] == "curves"]
    first = rows[0]
    model, site = first["model"], first["site"]
    n = f"{first['n_pairs']} pairs"
    own = [row for row in rows if row["site"] == site and row["path"] == "line"]
    found = {
        "curves": curves(
            {row["model"]: result.arrays[f"curves/{row['model']}/{site}/line"] for row in own},
            title=f"From one activation to another at {site} (median and quartiles of {n})",
        ),
        "slopes": slopes(
            {row["model"]: result.arrays[f"slopes/{row['model']}/{site}/line"] for row in own},
            cap=result.scalars["max_slope_cap"],
            title=f"How steep the output changes between two activations at {site} ({n})",
        ),
        "sites": by_site(
            [row for row in rows if row["model"] == model],
            title=f"Largest slopes in {model} (medians with 95 % intervals, {n})",
        ),
    }
    pairs = [row for row in result.rows if row["kind"] == "pair"]
    if pairs:
        numbers = sorted(int(k.split("/")[1]) for k in result.arrays if k.endswith("/r"))
        found["pairs"] = hand_made(
            pairs,
            [result.arrays[f"pair/{i}/r"] for i in numbers],
            [result.arrays[f"pair/{i}/logits"] for i in numbers],
            title=f"Prompts of the same beginning in {model}",
        )
    for i in range(int(result.scalars["n_slices"])):
        found[f"slice_{i}"] = plane(
            result.arrays[f"slice/{i}/distances"],
            result.arrays[f"slice/{i}/t"].item(),
            result.arrays[f"slice/{i}/sides"],
            title=f"The plane through three activations at {site} in {model}",
        )
    return found


def curves(curves: Mapping[str, Float[Tensor, "pairs alphas"]], *, title: str) -> Figure:
    """Relative distances by model: the median in its quartiles, a panel for each, some curves."""
    panels = []
    for i, (name, values) in enumerate(curves.items()):
        alphas = torch.linspace(0, 1, values.shape[1]).tolist()
        quartiles = values.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0).tolist()
        colour = PALETTE[i % len(PALETTE)]
        single = [
            Curve(alphas, curve, curve, curve, colour="#BBBBBB", line=":")
            for curve in values[:N_CURVES].tolist()
        ]
        median = Curve(alphas, quartiles[1], quartiles[0], quartiles[2], colour=colour)
        diagonal = Curve(alphas, alphas, alphas, alphas, colour=INK, line="--")
        panels.append(
            BandPanel(name, [*single, diagonal, median], "alpha", "relative distance r(alpha)")
        )
    return bands(panels, n_columns=3, title=title)


def slopes(
    samples: Mapping[str, Float[Tensor, " pairs"]], *, cap: int | float, title: str
) -> Figure:
    """Histograms of the largest slopes by model, on a logarithmic axis."""
    figure, (ax,) = grid(1, n_columns=1, panel=(7.0, 3.6), title=title)
    edges = torch.logspace(0, torch.tensor(float(cap)).log10().item(), 30).tolist()
    for i, (name, values) in enumerate(samples.items()):
        ax.hist(
            values.clamp(min=1.0).tolist(),
            bins=edges,
            histtype="step",
            linewidth=1.6,
            color=PALETTE[i % len(PALETTE)],
            label=f"{name}: median {values.median():.2f}",
        )
    ax.set_xscale("log")
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50) if tick <= cap]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    reference(ax, 1.0, vertical=True)
    axis_labels(ax, f"largest slope of r (1: a straight line; {cap:g}: the grid's most)", "pairs")
    legend(ax)
    return figure


def by_site(rows: Sequence[Row], *, title: str) -> Figure:
    """The median slope against the site where activations are replaced, by path."""
    sites = sorted({row["site"] for row in rows}, key=_block)
    figure, (ax,) = grid(1, n_columns=1, panel=(6.0, 3.4), title=title)
    for i, path in enumerate(dict.fromkeys(row["path"] for row in rows)):
        own = {row["site"]: row for row in rows if row["path"] == path}
        chosen = [own[site] for site in sites]
        values = [row["max_slope"] for row in chosen]
        ends = [row["max_slope_low"] for row in chosen], [row["max_slope_high"] for row in chosen]
        ax.errorbar(
            [place + 0.08 * i for place in range(len(sites))],
            values,
            yerr=arms(values, ends),
            color=PALETTE[i],
            marker=MARKERS[i],
            markersize=4.5,
            capsize=2.5,
            label=f"along the {path}",
        )
    names, what = site_labels(sites)
    ax.set_xticks(range(len(sites)), names)
    ax.set_ylim(bottom=0.9)
    reference(ax, 1.0)
    axis_labels(ax, what, "largest slope of r")
    legend(ax)
    return figure


def _block(site: str) -> int:
    return int(site.split(".")[1])


def hand_made(
    rows: Sequence[Row],
    distances: Sequence[Float[Tensor, " alphas"]],
    logits: Sequence[Float[Tensor, " alphas"]],
    *,
    title: str,
) -> Figure:
    """Relative distances of similar and of dissimilar pairs, and the latter's logit differences."""
    panels = []
    for likeness in ("similar", "dissimilar"):
        chosen = [i for i, row in enumerate(rows) if row["likeness"] == likeness]
        panels.append(
            BandPanel(
                f"{likeness} endings",
                _lines([(rows[i]["pair"], distances[i]) for i in chosen], likeness),
                "alpha",
                "relative distance r(alpha)",
            )
        )
    chosen = [i for i, row in enumerate(rows) if row["likeness"] == "dissimilar"]
    panels.append(
        BandPanel(
            "dissimilar endings",
            [
                Curve(c.x, c.y, c.low, c.high, c.colour, None, c.line)
                for c in _lines([(rows[i]["pair"], logits[i]) for i in chosen], "dissimilar")
            ],
            "alpha",
            "logit difference of the two top tokens",
        )
    )
    return bands(panels, n_columns=3, title=title)


def _lines(named: Sequence[tuple[str, Tensor]], likeness: str) -> list[Curve]:
    line = "--" if likeness == "similar" else "-"
    found = []
    for i, (name, values) in enumerate(named):
        alphas, y = torch.linspace(0, 1, len(values)).tolist(), values.tolist()
        found.append(Curve(alphas, y, y, y, PALETTE[i % len(PALETTE)], name, line))
    return found


def plane(
    distances: Float[Tensor, "three betas alphas"],
    t: float,
    sides: Float[Tensor, " n"],
    *,
    title: str,
) -> Figure:
    """Each context's distance by itself, and the three as the red, green and blue of one picture:
    near A's clean output is red, near B's green, near C's blue.
    """
    figure, axes = grid(4, n_columns=4, panel=(3.2, 3.2), title=title)
    near = 1 - distances / distances.amax(dim=(1, 2), keepdim=True)
    ends = (sides[0].item(), sides[-1].item())
    extent = (*ends, *ends)
    for ax, context, field in zip(axes, CONTEXTS, near, strict=False):
        image = ax.imshow(
            field.tolist(), origin="lower", extent=extent, cmap="viridis", vmin=0.0, vmax=1.0
        )
        ax.set_title(f"in the context of {context}", fontsize=9)
    axes[3].imshow(near.permute(1, 2, 0).tolist(), origin="lower", extent=extent)
    axes[3].set_title("together: A red, B green, C blue", fontsize=9)
    for ax in axes:
        ax.grid(visible=False)
        for name, place in zip(CONTEXTS, ((0.0, 0.0), (1.0, 0.0), (t, 1.0)), strict=True):
            ax.plot(*place, marker="o", color="white", markeredgecolor="black", markersize=5)
            ax.annotate(name, place, (4, 4), textcoords="offset points", color="white", fontsize=10)
        ax.set_xlim(ends)
        ax.set_ylim(ends)
        axis_labels(ax, "alpha (A to B)", "beta (towards C)")
    bar = figure.colorbar(image, ax=axes[2], shrink=0.8)
    bar.ax.set_xlabel("1 - d / largest", fontsize=8, color=INK)
    return figure
