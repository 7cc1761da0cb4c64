"""The loss of a language model whose LayerNorms are removed while it is trained."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sae_kit.viz.plots import INK, PALETTE, axis_labels, grid

KINDS = {
    "ln2": "norm before the MLP",
    "qk": "before queries and keys",
    "v": "before values",
    "ln_final": "before the unembedding",
}
OTHER = "special scale"


def losses(
    lines: Sequence[Mapping[str, int | float]], removals: Sequence[tuple[int, str]]
) -> Figure:
    """Training loss and held-out losses against the step, with a mark for every removal.

    Args:
        lines: of metrics.jsonl; `loss`, and `heldout/<text>` where it was measured.
        removals: the steps taken before each, and its name.
    """
    title = "Removing LayerNorm while fine-tuning"
    figure, (ax,) = grid(1, n_columns=1, panel=(8.0, 3.8), title=title)
    steps = [line["step"] for line in lines]
    ax.plot(steps, [line["loss"] for line in lines], color=INK, linewidth=1.0, label="training")
    texts = dict.fromkeys(key for line in lines for key in line if key.startswith("heldout/"))
    for i, text in enumerate(texts):
        points = [(line["step"], line[text]) for line in lines if text in line]
        name = f"held out: {text.removeprefix('heldout/')}"
        ax.plot(
            *zip(*points, strict=True), color=PALETTE[i], marker="o", markersize=3.5, label=name
        )
    kinds = list(KINDS.values())
    marks = {name: number for number, name in enumerate([*kinds, OTHER], len(texts))}
    seen: set[str] = set()
    for step, name in removals:
        kind = KINDS.get(name.rsplit(".", 1)[-1], OTHER)
        ax.axvline(
            step,
            ymax=0.06,
            color=PALETTE[marks[kind] % len(PALETTE)],
            linewidth=1.6,
            label=None if kind in seen else f"removed: {kind}",
        )
        seen.add(kind)
    axis_labels(ax, "step", "cross-entropy (nats per token)")
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
