"""The figures of eval=acdc: the circuit, what it costs to have fewer edges, the loop's way, ROC."""

from collections.abc import Sequence
from pathlib import PurePath

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_kit.result import Result
from sae_kit.viz import circuit_graph
from sae_kit.viz.plots import (
    INK,
    MARKERS,
    PALETTE,
    Row,
    arms,
    axis_labels,
    grid,
    interval_of,
    plain_ticks,
    reference,
)

METHODS = ("acdc", "probing", "eap", "eap_ig", "hisp", "random")
"""Each keeps its colour and marker."""
GREEDY = "acdc"
DASHES = ("-", (0, (5, 1, 1, 1, 1, 1)), "--", "-.", ":", "-")
"""Of the methods, where curves lie on one another."""
LEAST_SHOWN = -0.6  # of the share recovered
IN_NATS = ("kl", "logit_difference", "log_prob")
"""Metrics; the others have no unit."""


def figures(result: Result) -> dict[str, Figure]:
    """All that the result has something for."""
    settings, model = result.provenance["evaluation"], result.provenance["subject"]["model"]
    circuits = [row for row in result.rows if row["kind"] == "circuit"]
    about = f"{settings['task']}, {model}, {settings['ablation']} ablation"
    drawn = [row for row in result.rows if row["kind"] == "edge"]
    first = settings["methods"][0]
    own = [row for row in circuits if (row["model"], row["method"]) == (model, first)]
    row = own[int(result.scalars["drawn"])]
    recovered = f"recovers {row['recovered']:.0%} of the KL on held-out pairs"
    found: dict[str, Figure] = {
        "graph": circuit_graph.graph(
            drawn,
            unit=_unit(settings, first),
            title=f"{about}: {row['n_edges']} edges by {first}; {recovered}",
        ),
        "pareto": pareto(circuits, title=f"Circuits by their size: {about}"),
    }
    if GREEDY in settings["methods"]:
        found["steps"] = steps(result, [r for r in circuits if r["method"] == GREEDY], title=about)
    if any(row["kind"] == "auc" for row in result.rows):
        known = "/".join(PurePath(settings["circuit"]).parts[-2:])  # a word, or the end of a path
        found["roc"] = roc(result, title=f"Against the circuit {known}: {about}")
    return found


def _unit(settings: Row, method: str) -> str:
    if method == GREEDY:
        return f"how much {_named(settings['metric'])} changed without the edge"
    return {"probing": "probability of being there", "random": "a draw"}.get(
        method, f"score, in {_named(settings['gradient_metric'])}"
    )


def _named(metric: str) -> str:
    """A metric with its unit."""
    name = "KL" if metric == "kl" else metric.replace("_", " ")
    return f"{name} (nats)" if metric in IN_NATS else name


def pareto(rows: Sequence[Row], *, title: str) -> Figure:
    """KL on held-out pairs, and the share recovered, against the number of edges.

    Args:
        rows: circuits, each with model, method, n_edges, kl and recovered with their intervals.
        title: stands above.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = grid(2 * len(models), n_columns=2, panel=(4.6, 3.3), title=title)
    for i, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        for ax, column in zip(axes[2 * i :], ("kl", "recovered"), strict=False):
            _curves(ax, own, column)
            ax.set_title(model, fontsize=9, color=INK)
        axis_labels(axes[2 * i], "edges", "KL to the model, held out (nats)")
        axis_labels(axes[2 * i + 1], "edges", "share recovered, held out")
        reference(axes[2 * i + 1], 1.0)
        # Some circuits are far worse than none; they are below the axis.
        axes[2 * i + 1].set_ylim(max(LEAST_SHOWN, axes[2 * i + 1].get_ylim()[0]), 1.08)
    _legend(figure, axes[0])
    return figure


def _curves(ax: Axes, rows: Sequence[Row], column: str) -> None:
    """A curve for each method, over the numbers of edges."""
    for method in dict.fromkeys(row["method"] for row in rows):
        # A circuit without edges has no place on the axis.
        own = [row for row in rows if row["method"] == method and row["n_edges"] > 0]
        own = sorted(own, key=lambda row: row["n_edges"])
        values, ends = [row[column] for row in own], interval_of(own, column)
        style = METHODS.index(method)
        ax.errorbar(
            [row["n_edges"] for row in own],
            values,
            yerr=arms(values, ends) if ends else None,
            color=PALETTE[style],
            marker=MARKERS[style],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            label=method,
        )
    ax.set_xscale("log")
    plain_ticks(ax.xaxis)


def steps(result: Result, rows: Sequence[Row], *, title: str) -> Figure:
    """The circuit's cost after every trial of the greedy loop, a curve for each threshold;
    equal ones are one.

    Args:
        result: has the costs.
        rows: the greedy loop's circuits.
        title: stands above.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    whole = f"Greedy loop: {title}"
    figure, axes = grid(len(models), n_columns=2, panel=(4.6, 3.2), title=whole)
    metric = result.provenance["evaluation"]["metric"]
    # Costs of a task's metric are its negative.
    what = f"{'' if metric == 'kl' else '- '}{_named(metric)} of the circuit so far"
    for ax, model in zip(axes, models, strict=True):
        own = [row for row in rows if row["model"] == model]
        curves = [result.arrays[f"{model}/{GREEDY}/{i}/costs"].tolist() for i in range(len(own))]
        for i, costs in enumerate(curves):
            alike = [
                f"{row['threshold']:g}" for row, c in zip(own, curves, strict=True) if c == costs
            ]
            if curves.index(costs) < i:  # drawn with the first
                continue
            label = f"threshold {', '.join(alike)}: {own[i]['n_edges']} edges"
            trials = range(1, len(costs) + 1)
            ax.plot(trials, costs, color=PALETTE[i % 7], linewidth=1.2, label=label)
        ax.set_title(model, fontsize=9, color=INK)
        axis_labels(ax, "trials", what)
        ax.legend(fontsize=7, frameon=True, framealpha=0.85, edgecolor="none", labelcolor=INK)
    return figure


def roc(result: Result, *, title: str) -> Figure:
    """True against false positive rates of edges and of nodes, as stairs.

    Args:
        result: has the curves.
        title: stands above.
    """
    areas = [row for row in result.rows if row["kind"] == "auc"]
    models = list(dict.fromkeys(row["model"] for row in areas))
    figure, axes = grid(2 * len(models), n_columns=2, panel=(4.2, 3.8), title=title)
    for row in areas:
        place = 2 * models.index(row["model"])
        for ax, kind in zip(axes[place : place + 2], ("edges", "nodes"), strict=True):
            curve = result.arrays[f"roc/{row['model']}/{row['method']}/{kind}"]
            style = METHODS.index(row["method"])
            ax.step(
                *curve.T.tolist(),
                where="post",
                color=PALETTE[style],
                linewidth=1.5,
                linestyle=DASHES[style],
                label=f"{row['method']} ({row[f'auc_{kind}']:.2f})",
            )
            ax.set_title(f"{row['model']}: {kind}", fontsize=9, color=INK)
            axis_labels(ax, "false positive rate", "true positive rate")
            ax.legend(title="area", fontsize=8, title_fontsize=8, loc="lower right", frameon=False)
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False
    )
