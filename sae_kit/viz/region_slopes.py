"""Figures of eval=stable_regions that show largest slopes and switching neurons.

- slopes: how they are distributed, by model, and by whether prompts end in the same token
- sites: by the site where activations are replaced
- models: by model, and where it is known against tokens trained on and number of parameters
- gates: neurons of the last MLP that switch between two activations
"""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter
from torch import Tensor

from sae_kit.result import Result
from sae_kit.viz.plots import (
    INK,
    MARKERS,
    PALETTE,
    Row,
    arms,
    axis_labels,
    block_of,
    grid,
    interval_of,
    legend,
    plain_ticks,
    reference,
    site_labels,
)

N_BINS = 24
SLOPE = "largest slope of r"


def figures(result: Result, rows: Sequence[Row]) -> dict[str, Figure]:
    """All that the rows of kind "curves" have something for, by name."""
    first = rows[0]
    sampled = [row for row in rows if row["pairs"] == first["pairs"]]
    here = [row for row in sampled if row["site"] == first["site"]]
    found = {"slopes": _slopes(result, here, rows)}
    if len({row["site"] for row in sampled}) > 1:
        found["sites"] = _by_site([row for row in sampled if row["model"] == first["model"]])
    if len({row["model"] for row in here}) > 1:
        found["models"] = _by_model(here)
    if "gate_flips" in first:
        found["gates"] = _gates(result, rows)
    return found


# --- distributions --------------------------------------------------------------------------------


def _slopes(result: Result, here: Sequence[Row], rows: Sequence[Row]) -> Figure:
    """Of every model; of the subject's pairs of the same last token and of others."""
    first, cap = here[0], float(result.scalars["max_slope_cap"])
    title = f"How steeply the output changes between activations at {first['site']}"
    figure, axes = grid(2, n_columns=2, panel=(5.4, 3.6), title=title)
    by_model = {
        row["model"]: result.arrays[f"curves/{row['number']}/max_slope"]
        for row in here
        if row["path"] == first["path"]
    }
    _log_histograms(axes[0], by_model, cap=cap)
    axes[0].set_title("pairs of sampled prompts, by model", fontsize=9, color=INK)
    _log_histograms(axes[1], by_ending(result, rows), cap=cap)
    axes[1].set_title(f"{first['model']}, by last tokens", fontsize=9, color=INK)
    for ax in axes:
        reference(ax, 1.0, vertical=True)
        axis_labels(ax, f"{SLOPE} (1: a straight line; at most {cap:g})", "share of pairs")
    return figure


def by_ending(result: Result, rows: Sequence[Row]) -> dict[str, Float[Tensor, " pairs"]]:
    """Slopes on the straight line at the first row's model and site, by whether two prompts end in
    the same token; all pairs there are, sampled as such or not.
    """
    first = rows[0]
    same, other = [], []
    for row in rows:
        if all(row[key] == first[key] for key in ("model", "site", "path")):
            slopes = result.arrays[f"curves/{row['number']}/max_slope"]
            alike = result.arrays[f"curves/{row['number']}/same_ending"]
            same.append(slopes[alike])
            other.append(slopes[~alike])
    groups = {"different": torch.cat(other), "the same": torch.cat(same)}
    return {name: slopes for name, slopes in groups.items() if len(slopes)}


def _log_histograms(
    ax: Axes, samples: Mapping[str, Float[Tensor, " pairs"]], *, cap: float
) -> None:
    """Outlines of histograms over the slopes there are, each of unit area."""
    # A slope is 1 at least, but for rounding.
    most = min(cap, max(2.0, *(values.max().item() for values in samples.values())))
    edges = [most ** (i / N_BINS) for i in range(N_BINS + 1)]  # the last is `most` to the bit
    for i, (name, values) in enumerate(samples.items()):
        ax.hist(
            values.clamp(1.0, most).tolist(),
            bins=edges,
            weights=[1 / len(values)] * len(values),
            histtype="step",
            linewidth=1.5,
            linestyle="-" if i < len(PALETTE) else "--",
            color=PALETTE[i % len(PALETTE)],
            label=f"{name} (n = {len(values)}, median {values.quantile(0.5):.2f})",
        )
    ax.set_xscale("log")
    plain_ticks(ax.xaxis)
    if most < 4:  # too few of them to read slopes from
        ticks = [1 + i / 4 for i in range(int(4 * most) - 3)]
        ax.set_xticks(ticks, map("{:g}".format, ticks))
    legend(ax)


def _gates(result: Result, rows: Sequence[Row]) -> Figure:
    """Neurons that differ at the end, switches on the way, and switches while r is below 0.1."""
    first = rows[0]
    title = f"Neurons of the last MLP that switch on the way from A to B, in {first['model']}"
    panels = {
        "gate_flips": "on at one end and off at the other",
        "gate_crossings": "switches on the way",
        "begin_crossings": "switches while r is below 0.1",
    }
    figure, axes = grid(len(panels), n_columns=3, panel=(4.2, 3.2), title=title)
    own = [row for row in rows if all(row[key] == first[key] for key in ("model", "site", "path"))]
    for ax, (name, label) in zip(axes, panels.items(), strict=True):
        samples = {row["pairs"]: result.arrays[f"curves/{row['number']}/{name}"] for row in own}
        most = max(1.0, *(values.max().item() for values in samples.values()))
        width = math.ceil(most / N_BINS)  # as many whole numbers in one bin as in another
        for i, (pairs, values) in enumerate(samples.items()):
            ax.hist(
                values.tolist(),
                bins=[width * edge - 0.5 for edge in range(math.ceil((most + 1) / width) + 1)],
                weights=[1 / len(values)] * len(values),
                histtype="step",
                linewidth=1.5,
                color=PALETTE[i],
                label=f"{pairs} (median {values.quantile(0.5):g})",
            )
        axis_labels(ax, f"neurons {label}" if name == "gate_flips" else label, "share of pairs")
        legend(ax)
    return figure


# --- medians --------------------------------------------------------------------------------------


def _by_site(rows: Sequence[Row]) -> Figure:
    """The median slope against the site where activations are replaced, by path."""
    sites = sorted({row["site"] for row in rows}, key=block_of)
    title = f"{rows[0]['model']}: medians over pairs of prompts, 95 % intervals"
    figure, (ax,) = grid(1, n_columns=1, panel=(6.0, 3.4), title=title)
    for i, path in enumerate(dict.fromkeys(row["path"] for row in rows)):
        own = [row for row in rows if row["path"] == path]
        places = [sites.index(row["site"]) + 0.08 * i for row in own]
        _medians(
            ax, sorted(zip(places, own, strict=True), key=itemgetter(0)), f"along the {path}", i
        )
    names, what = site_labels(sites)
    ax.set_xticks(range(len(sites)), names)
    _finish(ax, what)
    return figure


def _by_model(rows: Sequence[Row]) -> Figure:
    """One panel with a place for each model, and one for each number that models differ in."""
    snapshots = [row for row in rows if row["n_tokens"] >= 0]
    sizes = {row["n_parameters"] for row in rows}
    n = 1 + bool(snapshots) + (len(sizes) > 1)
    title = f"Medians over pairs at {rows[0]['site']}, 95 % intervals; wide: quartiles"
    figure, axes = grid(n, n_columns=n, panel=(5.4, 3.8), title=title)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for i, path in enumerate(dict.fromkeys(row["path"] for row in rows)):
        own = [row for row in rows if row["path"] == path]
        places = [models.index(row["model"]) + 0.15 * i for row in own]
        points = list(zip(places, own, strict=True))
        for place, row in points:
            quartiles = [row["max_slope_q1"], row["max_slope_q3"]]
            axes[0].vlines(place, *quartiles, color=PALETTE[i], linewidth=5, alpha=0.3)
        _medians(axes[0], points, f"along the {path}", i, line="")
    axes[0].set_xticks(range(len(models)), models)
    if sum(map(len, models)) > 40:
        axes[0].tick_params(axis="x", labelrotation=40)
        for tick in axes[0].get_xticklabels():
            tick.set(horizontalalignment="right", rotation_mode="anchor")
    _finish(axes[0], "model")
    if snapshots:
        _against(axes[1], snapshots, "n_tokens", rows)
        _token_axis(axes[1], sorted({float(row["n_tokens"]) for row in snapshots}))
        _finish(axes[1], "tokens trained on")
    if len(sizes) > 1:
        trained = [row for row in rows if row["model"] not in ("random", "shuffled")]
        _against(axes[-1], _last_ones(trained), "n_parameters", rows)
        axes[-1].set_xscale("log")
        _finish(axes[-1], "parameters")
    return figure


def _against(ax: Axes, rows: Sequence[Row], column: str, every: Sequence[Row]) -> None:
    """A line for every path and, along tokens, run."""
    lines = list(
        dict.fromkeys((row["run"] if column == "n_tokens" else "", row["path"]) for row in rows)
    )
    for i, (run, path) in enumerate(lines):
        own = [row for row in rows if row["path"] == path and run in ("", row["run"])]
        points = sorted(((float(row[column]), row) for row in own), key=itemgetter(0))
        _medians(ax, points, f"{run}, {path}" if run else f"along the {path}", i)
    if column == "n_tokens":
        reference(ax, every[0]["max_slope"], label=f"{every[0]['model']}, {every[0]['path']}")


def _token_axis(ax: Axes, tokens: Sequence[float]) -> None:
    """Logarithmic, with a place for 0: up to the first snapshot in training it is linear."""
    least = next((n for n in tokens if n > 0), 1.0)
    ax.set_xscale("symlog", linthresh=least, linscale=0.5)
    ax.set_xticks(tokens, [EngFormatter(sep="")(n) for n in tokens])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(-0.2 * least, 1.3 * max(tokens[-1], least))


def _last_ones(rows: Sequence[Row]) -> list[Row]:
    """Of every run the last snapshot; and all that are no snapshots."""
    last: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row["run"] or row["model"], row["path"], row["run"])
        if key not in last or row["n_tokens"] > last[key]["n_tokens"]:
            last[key] = row
    return list(last.values())


def _medians(
    ax: Axes, points: Sequence[tuple[float, Row]], label: str, number: int, *, line: str = "-"
) -> None:
    """Medians with their intervals, in the style of line `number`."""
    rows = [row for _, row in points]
    values = [row["max_slope"] for row in rows]
    ends = interval_of(rows, "max_slope")
    ax.errorbar(
        [place for place, _ in points],
        values,
        yerr=None if ends is None else arms(values, ends),
        color=PALETTE[number % len(PALETTE)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4.5,
        linestyle=line,
        linewidth=1.2,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
    )


def _finish(ax: Axes, x: str) -> None:
    ax.set_ylim(bottom=min(0.95, ax.get_ylim()[0]))
    reference(ax, 1.0)
    axis_labels(ax, x, SLOPE)
    legend(ax)
