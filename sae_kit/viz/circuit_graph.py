"""A circuit drawn: its nodes in the order of the layers, the edges' widths by their effects."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from sae_kit.viz.plots import INK, PALETTE, Row, axis_labels, grid

COLOURS = {"q": PALETTE[0], "k": PALETTE[1], "v": PALETTE[2], "": "#777777"}
"""By the part of a head that hears; others have none."""
KINDS = {"q": "queries", "k": "keys", "v": "values", "": "MLPs and logits"}
PLACES = {
    "hook_resid_pre": -0.5,
    "hook_attn_out": 0.25,
    "hook_resid_mid": 0.5,
    "hook_mlp_out": 1.25,
    "hook_resid_post": 1.4,
}
"""Of latents, after the heads of their block."""
WIDEST, THINNEST = 4.5, 0.5  # points
ROW, COLUMN = 0.62, 0.95  # inches


@final
@dataclass(frozen=True, order=True)
class _Place:
    """Where a node belongs."""

    height: float
    index: int
    label: str
    """Of its level."""


def graph(edges: Sequence[Row], *, unit: str, title: str) -> Figure:
    """All edges of a circuit, from the embedding below to the logits above.

    Args:
        edges: each with sender, receiver ("a3.2.q", "m4", "logits") and effect.
        unit: what effects are.
        title: stands above.
    """
    names = {node for row in edges for node in (row["sender"], _node(row["receiver"]))}
    at, levels = _layout(names | {"embed", "logits"})
    widest = max(abs(x) for x, _ in at.values())
    size = (max(5.5, COLUMN * (2 * widest + 1)), 1.4 + ROW * len(levels))
    figure, (ax,) = grid(1, n_columns=1, panel=size, title=title)
    largest = max((abs(row["effect"]) for row in edges), default=0.0) or 1.0
    for row in reversed(edges):  # the largest last, on top
        _arrow(ax, at, row, abs(row["effect"]) / largest)
    for node, (x, y) in at.items():
        box = {"boxstyle": "round,pad=0.28", "facecolor": "white", "edgecolor": INK}
        ax.text(x, y, _short(node), ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    ax.set_yticks(range(len(levels)), levels)
    ax.set_xticks([])
    ax.set_xlim(-widest - 0.7, widest + 0.7)
    ax.set_ylim(-0.6, len(levels) - 0.4)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    axis_labels(ax, f"width: {unit};\nthe widest {largest:.3g}", "")
    shown = dict.fromkeys(_part(row["receiver"]) for row in edges)
    handles = [
        Line2D([], [], color=COLOURS[part], linewidth=2, label=f"to {KINDS[part]}")
        for part in COLOURS
        if part in shown
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(handles),
            fontsize=9,
            frameon=False,
        )
    return figure


def _layout(names: set[str]) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Node -> (x, y), and what stands beside every y."""
    places = {name: _place(name) for name in names}
    heights = sorted({place.height for place in places.values()})
    labels, at = [], {}
    for y, height in enumerate(heights):
        own = sorted((place, name) for name, place in places.items() if place.height == height)
        labels.append(own[0][0].label)
        # Every second level is moved aside, or edges past a node would be hidden behind it.
        shift = 0.22 if y % 2 else -0.22
        for i, (_, name) in enumerate(own):
            at[name] = (i - (len(own) - 1) / 2 + shift, float(y))
    return at, labels


def _place(node: str) -> _Place:
    if node in ("embed", "logits"):
        return _Place(-1.0 if node == "embed" else 1e9, 0, node)
    if head := re.fullmatch(r"a(\d+)\.(\d+)", node):
        return _Place(2.0 * int(head[1]), int(head[2]), f"heads {head[1]}")
    if mlp := re.fullmatch(r"m(\d+)", node):
        return _Place(2.0 * int(mlp[1]) + 1, 0, f"MLP {mlp[1]}")
    latent = re.fullmatch(r"blocks\.(\d+)\.(\w+)/(\w+)", node)
    assert latent is not None, node
    index = int(latent[3]) if latent[3].isdigit() else 1 << 30
    label = f"latents {latent[1]} {latent[2].removeprefix('hook_')}"
    return _Place(2.0 * int(latent[1]) + PLACES[latent[2]], index, label)


def _arrow(ax: Axes, at: Mapping[str, tuple[float, float]], row: Row, share: float) -> None:
    start, end = at[row["sender"]], at[_node(row["receiver"])]
    part = _part(row["receiver"])
    # The three inputs of a head bend apart; long ways bend more, past what lies between.
    bend = {"q": -0.08, "k": 0.0, "v": 0.08, "": 0.04}[part] + 0.012 * (end[1] - start[1])
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=7,
            shrinkA=9,
            shrinkB=9,
            connectionstyle=f"arc3,rad={bend:.3f}",
            color=COLOURS[part],
            alpha=0.75,
            linewidth=THINNEST + (WIDEST - THINNEST) * share**0.5,
            zorder=2,
        )
    )


def _node(receiver: str) -> str:
    """The node that a receiver belongs to."""
    part = _part(receiver)
    return receiver.removesuffix(f".{part}") if part else receiver


def _part(receiver: str) -> str:
    found = re.fullmatch(r"a\d+\.\d+\.([qkv])", receiver)
    return found[1] if found else ""


def _short(node: str) -> str:
    return node.rsplit("/", 1)[-1] if "/" in node else node
