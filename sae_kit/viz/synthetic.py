"""Figures of eval=synthetic_activations: curves, where they rise, plateaus, the audit."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.result import Result
from sae_kit.viz.plots import PALETTE, axis_labels, grid, legend, reference

N_CURVES = 20
"""Curves in a bundle."""
N_BINS = 25
LINES = ("-", "--")
"""Types beyond the palette's colours go through it again, dashed."""


def figures(result: Result) -> dict[str, Figure]:
    """All of them, by the name of their file."""
    types = list(result.provenance["evaluation"]["types"])
    subject = result.provenance["subject"]["model"]
    n, step = result.scalars["n_prompts"], result.scalars["step"]
    steps = f"{n} prompts, steps of {step:.3g}"
    read = result.provenance["evaluation"]["read"]
    where = "the last residual stream" if read is None else read
    curves = {name: result.arrays[f"toward/{name}/l2"] for name in types}
    rises = {name: result.arrays[f"steps/{name}/l2/ms"] for name in types}
    plateaus = {name: result.arrays[f"steps/{name}/ap"] for name in types}
    audit = [row for row in result.rows if row["kind"] == "audit"]
    return {
        "curves": bundles(
            curves,
            rises,
            y=f"L2 of {where}",
            title=f"Toward activations of every type in {subject} ({steps})",
        ),
        "steps": distributions(
            rises,
            x="step of the largest slope (L2)",
            title=f"Where the output of {subject} changes most ({steps})",
        ),
        "plateaus": distributions(
            plateaus,
            x=f"steps until the output has moved by {result.scalars['plateau_threshold']:.3g}",
            title=f"Plateaus about activations of every type in {subject} ({steps})",
        ),
        "audit": audited(audit, title=f"What the activations are like ({subject}, {n} prompts)"),
    }


def bundles(
    curves: Mapping[str, Float[Tensor, "n points"]],
    steps: Mapping[str, Float[Tensor, " n"]],
    *,
    y: str,
    title: str,
) -> Figure:
    """Some curves of every type, a panel each, and a line at the mean step.

    Args:
        curves: the distances by type.
        steps: those of the largest slope.
        y: what the distances are of.
        title: stands above all.
    """
    figure, axes = grid(len(curves), n_columns=4, panel=(3.2, 2.6), title=title)
    highest = max(float(values[:N_CURVES].max()) for values in curves.values())
    for i, (ax, (name, values)) in enumerate(zip(axes, curves.items(), strict=True)):
        for curve in values[:N_CURVES]:
            ax.plot(curve.tolist(), color=PALETTE[i % len(PALETTE)], linewidth=0.8, alpha=0.6)
        mean = steps[name].mean().item()
        reference(ax, mean, vertical=True, label=f"largest slope: mean {mean:.1f}")
        ax.set_ylim(0, 1.02 * highest)
        ax.set_title(name.replace("_", " "), fontsize=9)
        axis_labels(ax, "step", y)
        legend(ax)
    return figure


def distributions(samples: Mapping[str, Float[Tensor, " n"]], *, x: str, title: str) -> Figure:
    """A histogram and the distribution functions of some samples.

    Args:
        samples: by type.
        x: what they are.
        title: stands above.
    """
    figure, (left, right) = grid(2, n_columns=2, panel=(5.4, 3.6), title=title)
    low = min(float(values.min()) for values in samples.values())
    high = max(float(values.max()) for values in samples.values())
    edges = torch.linspace(low - 0.5, high + 0.5, N_BINS + 1).tolist()
    for i, (name, values) in enumerate(samples.items()):
        label = f"{name.replace('_', ' ')}: {values.mean():.1f} ± {values.std(correction=0):.1f}"
        colour, line = PALETTE[i % len(PALETTE)], LINES[i // len(PALETTE)]
        left.hist(
            values.tolist(),
            bins=edges,
            histtype="step",
            linewidth=1.3,
            color=colour,
            linestyle=line,
        )
        ordered = values.sort().values.tolist()
        shares = [(k + 1) / len(ordered) for k in range(len(ordered))]
        right.step(
            ordered,
            shares,
            where="post",
            linewidth=1.3,
            label=label,
            color=colour,
            linestyle=line,
        )
    axis_labels(left, x, "prompts")
    axis_labels(right, x, "share of prompts up to here")
    figure.legend(
        *right.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
        title="mean ± standard deviation",
        title_fontsize=8,
    )
    return figure


MEASURES = {
    "l0": "active latents (L0)",
    "norm": "norm",
    "distance": "distance from the prompt's own",
    "log_frequency": "log10 firing frequency of its latents",
    "top_cosine": "cosine of the others to the top latent",
}


def audited(rows: Sequence[Mapping[str, float | str]], *, title: str) -> Figure:
    """A panel for each measure, a bar for each type; the real one's value is a line.

    Args:
        rows: each with type and the measures; that of model_generated among them.
        title: stands above.
    """
    figure, axes = grid(len(MEASURES), n_columns=3, panel=(4.2, 2.6), title=title)
    names = [str(row["type"]) for row in rows]
    for ax, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        values = [float(row[measure]) for row in rows]
        _bars(ax, names, values, label)
        reference(ax, values[names.index("model_generated")], vertical=True)
    return figure


def _bars(ax: Axes, names: Sequence[str], values: Sequence[float], label: str) -> None:
    places = list(range(len(names)))[::-1]
    ax.barh(places, values, height=0.65, color=PALETTE[0])
    ax.set_yticks(places, [name.replace("_", " ") for name in names], fontsize=8)
    ax.grid(visible=False, axis="y")
    axis_labels(ax, label, "")
