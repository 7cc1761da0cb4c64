"""Figures of activation patching: maps, top lists, the two directions side by side, circuits."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_kit.result import Result
from sae_kit.viz.grouped import BarPanel, grouped_bars
from sae_kit.viz.heat_maps import Map, maps, symmetric
from sae_kit.viz.plots import (
    FAINT,
    INK,
    MARKERS,
    PALETTE,
    Row,
    arms,
    axis_labels,
    grid,
    reference,
)

DIRECTIONS = ("denoising", "noising")
AT_POSITIONS = {
    "residual": "residual stream before the block",
    "attn_out": "attention's output",
    "mlp_out": "MLP's output",
}
OF_HEADS = {
    "head_z": "outputs",
    "head_q": "queries",
    "head_k": "keys",
    "head_v": "values",
    "head_pattern": "patterns",
}
LISTED = {
    "components": ("head_z", "mlp"),
    "neurons": ("neuron",),
    "SAEs": ("sae",),
    "latents": ("latent",),
}
N_UP, N_DOWN = 8, 5
"""Units above and below zero in a top list."""
N_SENDERS = 24
"""In the matrices of paths."""
N_NAMED, LEAST_NAMED = 8, 0.16
"""Points with their names: the farthest from zero, if so far by the farthest's measure."""


def figures(result: Result) -> dict[str, Figure]:
    """All figures of a result; those of units that were not exchanged are left out."""
    rows: dict[str, list[Row]] = {}
    for row in result.rows:
        rows.setdefault(row["kind"], []).append(row)
    about = f"{_task(result)} ({result.provenance['evaluation']['ablation']}): "
    metric = str(result.provenance["evaluation"]["metric"]).replace("_", " ")
    units = rows["unit"]
    drawn: dict[str, Figure | None] = {
        "positions": positions(units, title=f"{about}score by layer and position, of {metric}"),
        "heads": heads(units, title=f"{about}score of heads, of {metric}"),
        "top": top(rows["top"], title=f"{about}largest scores of {metric}"),
        "directions": directions(units, title=f"{about}what noising and denoising see"),
        "paths": paths(rows.get("path", ()), title=f"{about}score along paths, of {metric}"),
        "attribution": attribution(units, title=f"{about}attribution patching against exact"),
        "sizes": sizes(rows["size"], title=f"{about}what size buys, held-out pairs"),
        "circuit": circuit(rows["set"], rows["minimality"], title=f"{about}the circuit"),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _task(result: Result) -> str:
    """The task's name: a file's without its folder."""
    return str(result.provenance["evaluation"]["task"]).rsplit("/", maxsplit=1)[-1]


# --- maps -----------------------------------------------------------------------------------------


def positions(rows: Sequence[Row], *, title: str) -> Figure | None:
    """Layer by position, in both directions."""
    panels = []
    for word, what in AT_POSITIONS.items():
        own = [row for row in rows if row["units"] == word]
        most = symmetric([row["score"] for row in own])
        for direction in DIRECTIONS:
            chosen = [row for row in own if row["direction"] == direction]
            if chosen:
                first = [row["unit"] for row in chosen if row["layer"] == 0]
                columns = [_column(name, place) for place, name in enumerate(first)]
                panels.append(_by_layer(chosen, f"{what}, {direction}", columns, "position", most))
    if not panels:
        return None
    n_columns = 2 if len(panels[0].columns) <= 24 else 1
    return maps(panels, n_columns=n_columns, unit="score", title=title)


def _column(unit: str, place: int) -> str:
    """The token or label of a unit at a position, "3@S2" or "3@the.5"."""
    return re.sub(rf"\.{place}$", "", unit.split("@", 1)[1])


def heads(rows: Sequence[Row], *, title: str) -> Figure | None:
    """Layer by head, in both directions."""
    panels = []
    for word, what in OF_HEADS.items():
        own = [row for row in rows if row["units"] == word]
        most = symmetric([row["score"] for row in own])
        for direction in DIRECTIONS:
            chosen = [row for row in own if row["direction"] == direction]
            if chosen:
                n = 1 + max(row["place"] for row in chosen)
                columns = [str(i) for i in range(n)]
                panels.append(_by_layer(chosen, f"{what}, {direction}", columns, "head", most))
    return maps(panels, n_columns=4, unit="score", title=title) if panels else None


def _by_layer(rows: Sequence[Row], title: str, columns: Sequence[str], x: str, most: float) -> Map:
    n_layers = 1 + max(row["layer"] for row in rows)
    values = [[math.nan] * len(columns) for _ in range(n_layers)]
    for row in rows:
        values[row["layer"]][row["place"]] = row["score"]
    return Map(title, values, columns, [str(i) for i in range(n_layers)], x, "block", most)


def paths(rows: Sequence[Row], *, title: str) -> Figure | None:
    """Senders by receivers; of the senders, those of largest score anywhere, in their order."""
    if not rows:
        return None
    receivers = list(dict.fromkeys(row["receiver"] for row in rows))
    largest: dict[str, float] = {}
    for row in rows:
        largest[row["sender"]] = max(largest.get(row["sender"], 0.0), abs(row["score"]))
    kept = set(sorted(largest, key=largest.__getitem__, reverse=True)[:N_SENDERS])
    # The receiver that hears most senders has them in the order of a run.
    counts = [sum(row["receiver"] == name for row in rows) for name in receivers]
    last = receivers[counts.index(max(counts))]
    order = dict.fromkeys(row["sender"] for row in rows if row["receiver"] == last)
    senders = [name for name in order if name in kept]
    most = symmetric([row["score"] for row in rows])
    panels = []
    for path in dict.fromkeys(row["path"] for row in rows):
        values = [[math.nan] * len(receivers) for _ in senders]
        for row in rows:
            if row["path"] == path and row["sender"] in kept:
                place = senders.index(row["sender"])
                values[place][receivers.index(row["receiver"])] = row["score"]
        what = f"{path}, {rows[0]['direction']}"
        panels.append(Map(what, values, receivers, senders, "receiver", "sender", most))
    return maps(panels, n_columns=2, unit="score", title=title)


# --- lists ----------------------------------------------------------------------------------------


def top(rows: Sequence[Row], *, title: str) -> Figure:
    """The largest scores above and below zero, and what they are on held-out pairs."""
    lists = {
        (name, direction): _signed(
            [row for row in rows if row["units"] in words and row["direction"] == direction]
        )
        for name, words in LISTED.items()
        for direction in DIRECTIONS
    }
    lists = {key: own for key, own in lists.items() if own}
    n_most = max(map(len, lists.values()))
    size = (4.8, 1.1 + 0.21 * n_most)
    figure, axes = grid(len(lists), n_columns=2, panel=size, title=title)
    for ax, ((name, direction), own) in zip(axes, lists.items(), strict=True):
        _bars(ax, own)
        ax.set_title(f"{name}, {direction}", fontsize=9, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _signed(rows: Sequence[Row]) -> list[Row]:
    """The largest above zero, then the largest below, each from the top."""
    order = sorted(rows, key=lambda row: -row["score"])
    up = [row for row in order if row["score"] > 0][:N_UP]
    down = [row for row in order if row["score"] < 0][-N_DOWN:]
    return [*up, *down]


def _bars(ax: Axes, rows: Sequence[Row]) -> None:
    y = list(range(len(rows)))[::-1]
    values, again = [row["score"] for row in rows], [row["heldout_score"] for row in rows]
    colours = [PALETTE[0] if value > 0 else PALETTE[1] for value in values]
    ends = [row["low"] for row in rows], [row["high"] for row in rows]
    other_ends = [row["heldout_low"] for row in rows], [row["heldout_high"] for row in rows]
    ax.barh(y, values, height=0.7, color=colours)
    ax.errorbar(
        values,
        [place + 0.15 for place in y],
        xerr=arms(values, ends),
        fmt="none",
        ecolor="#777777",
        elinewidth=1.0,
        label="95 % interval, pairs it was found on",
    )
    ax.errorbar(
        again,
        [place - 0.15 for place in y],
        xerr=arms(again, other_ends),
        fmt="D",
        color="black",
        markersize=3,
        elinewidth=1.0,
        label="held-out pairs",
    )
    ax.axvline(0.0, color=INK, linewidth=0.8)
    ax.set_yticks(y, [_short(row["unit"]) for row in rows])
    ax.tick_params(axis="y", labelsize=8, length=0)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color=FAINT, linewidth=0.6)
    axis_labels(ax, "score", "")


def _short(unit: str) -> str:
    return unit.removeprefix("blocks.").replace("hook_", "")


# --- the two directions ---------------------------------------------------------------------------


def directions(rows: Sequence[Row], *, title: str) -> Figure:
    """Heads and MLPs by both scores, beside the table of what gates look like."""
    both: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["units"] in LISTED["components"]:
            both.setdefault(row["unit"], {})[row["direction"]] = row["score"]
    figure, (ax, table) = grid(2, n_columns=2, panel=(5.4, 4.4), title=title)
    for i, (what, letter) in enumerate((("heads", "a"), ("MLPs", "m"))):
        own = [point for name, point in both.items() if name.startswith(letter)]
        x, y = ([point[direction] for point in own] for direction in DIRECTIONS)
        ax.scatter(x, y, s=20, color=PALETTE[i], marker=MARKERS[i], label=what, zorder=3)
    size = {name: max(map(abs, point.values())) for name, point in both.items()}
    far = sorted(both, key=lambda name: -size[name])[:N_NAMED]
    for name in [name for name in far if size[name] >= LEAST_NAMED * size[far[0]]]:
        place = both[name]["denoising"], both[name]["noising"]
        # Away from the diagonal, along which most points are.
        if place[1] > place[0]:
            _name(ax, name, place, (-4, 2), ha="right", va="bottom")
        else:
            _name(ax, name, place, (4, -2), ha="left", va="top")
    ax.axline((0, 0), slope=1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    ax.margins(0.12)
    _remark(ax, "needed, not enough alone (AND)", (0.02, 0.97), ha="left", va="top")
    _remark(ax, "enough alone, replaceable (OR)", (0.98, 0.03), ha="right", va="bottom")
    axis_labels(ax, "denoising: share recovered by it alone", "noising: share lost without it")
    ax.legend(fontsize=8, frameon=False, labelcolor=INK, loc="center right")
    _gates(table)
    return figure


def _name(
    ax: Axes,
    name: str,
    place: tuple[float, float],
    shift: tuple[int, int],
    *,
    ha: Literal["left", "right"],
    va: Literal["top", "bottom"],
) -> None:
    """A name beside a point, `shift` points of type away."""
    ax.annotate(name, place, shift, textcoords="offset points", fontsize=7, color=INK, ha=ha, va=va)


def _remark(
    ax: Axes,
    text: str,
    place: tuple[float, float],
    *,
    ha: Literal["left", "right"],
    va: Literal["top", "bottom"],
) -> None:
    """What a corner of a panel means; `place` in shares of the panel's sides."""
    style = {"fontsize": 8, "color": "#666666", "style": "italic"}
    ax.text(*place, text, transform=ax.transAxes, ha=ha, va=va, fontdict=style)


def _gates(ax: Axes) -> None:
    """What exchanging one of two inputs alone does, by the gate that joins them."""
    found = ((1.0, 0.0), (0.0, 1.0))  # OR, then AND; by denoising and by noising
    ax.imshow(found, origin="lower", cmap="Blues", vmin=0.0, vmax=2.2, aspect="auto")
    for y, row in enumerate(found):
        for x, value in enumerate(row):
            word = "1\nfound" if value else "0\nmissed"
            ax.text(x, y, word, ha="center", va="center", fontsize=10, color=INK)
    ax.grid(visible=False)
    ax.set_xticks((0, 1), DIRECTIONS)
    ax.set_yticks((0, 1), ("A or B", "A and B"))
    ax.tick_params(length=0)
    ax.set_title("how to read it: the score of A exchanged alone", fontsize=9, color=INK)
    axis_labels(ax, "direction", "what the answer needs")


def attribution(rows: Sequence[Row], *, title: str) -> Figure:
    """First-order scores against exact ones, all units."""
    words = list(dict.fromkeys(row["units"] for row in rows))
    figure, axes = grid(len(DIRECTIONS), n_columns=2, panel=(4.6, 4.2), title=title)
    for ax, direction in zip(axes, DIRECTIONS, strict=True):
        for i, word in enumerate(words):
            own = [r for r in rows if (r["units"], r["direction"]) == (word, direction)]
            ax.scatter(
                [row["score"] for row in own],
                [row["attribution"] for row in own],
                s=12,
                color=PALETTE[i % len(PALETTE)],
                marker=MARKERS[(i + i // len(PALETTE)) % len(MARKERS)],
                linewidths=0,
                alpha=0.8,
                label=word.replace("_", " "),
            )
        ax.axline((0, 0), slope=1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        ax.set_title(direction, fontsize=9, color=INK)
        axis_labels(ax, "exact score", "score by attribution")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


# --- circuits -------------------------------------------------------------------------------------

ASKED = {
    "enough_denoised": "enough:\nit restored",
    "enough_noised": "enough:\nthe rest ablated",
    "needed_noised": "needed:\nit ablated",
    "needed_denoised": "needed:\nthe rest restored",
}


def sizes(rows: Sequence[Row], *, title: str) -> Figure:
    """How much sets of more and more components carry, by the way they are ranked."""
    questions = list(dict.fromkeys(row["question"] for row in rows))
    figure, axes = grid(len(questions), n_columns=2, panel=(4.8, 3.4), title=title)
    for ax, question in zip(axes, questions, strict=True):
        reference(ax, 0.0)
        reference(ax, 1.0)
        colour = 0
        for ranking in dict.fromkeys(row["ranking"] for row in rows):
            own = [r for r in rows if (r["question"], r["ranking"]) == (question, ranking)]
            x, y = [row["n_components"] for row in own], [row["answer"] for row in own]
            if ranking.startswith("random"):
                label = "random" if ranking == "random 1" else None
                ax.plot(x, y, color="#999999", linewidth=1.0, linestyle=":", label=label)
                continue
            low, high = [row["low"] for row in own], [row["high"] for row in own]
            ax.fill_between(x, low, high, color=PALETTE[colour], alpha=0.2, linewidth=0)
            style = {"color": PALETTE[colour], "marker": MARKERS[colour], "label": ranking}
            ax.plot(x, y, linewidth=1.3, markersize=4, **style)
            colour += 1
        ax.set_title(ASKED[question].replace("\n", " "), fontsize=9, color=INK)
        axis_labels(ax, "components in the circuit", "share of the score")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def circuit(sets: Sequence[Row], minimality: Sequence[Row], *, title: str) -> Figure:
    """The four questions, of the circuit and of random sets; and what its components add."""

    def bar(row: Row) -> tuple[float, float, float]:
        return row["answer"], row["low"], row["high"]

    def of(name: str, pairs: str) -> dict[str, list[Row]]:
        chosen = [r for r in sets if r["pairs"] == pairs and r["set"].startswith(name)]
        return {question: [r for r in chosen if r["question"] == question] for question in ASKED}

    def spread(rows: Sequence[Row]) -> tuple[float, float, float]:
        answers = [row["answer"] for row in rows]
        return sum(answers) / len(answers), min(answers), max(answers)

    n, random = sets[0]["n_components"], of("random", "heldout")
    bars: Mapping[str, list] = {
        "pairs it was found on": [bar(rows[0]) for rows in of("circuit", "first").values()],
        "held-out pairs": [bar(rows[0]) for rows in of("circuit", "heldout").values()],
        f"{n} random components\n(mean and range)": [spread(rows) for rows in random.values()],
    }
    panels = [
        BarPanel(
            f"{n} components: 1 is what a circuit should have",
            list(ASKED.values()),
            bars,
            "question",
            "share of the score",
            baseline=1.0,
        ),
        BarPanel(
            "each component taken out of it, the rest of the model ablated; held-out pairs",
            [row["component"] for row in minimality],
            {"held-out pairs": [bar(row) for row in minimality]},
            "component, largest effect first",
            "share of the score lost",
            baseline=0.0,
        ),
    ]
    return grouped_bars(panels, title=title)
