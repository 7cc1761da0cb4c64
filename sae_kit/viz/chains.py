"""What chains of a sampler found about a loss: traces, and the coefficient by step size."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.result import Result
from sae_kit.viz.plots import (
    FAINT,
    INK,
    PALETTE,
    Row,
    arms,
    axis_labels,
    grid,
    interval_of,
    reference,
)

VERDICTS = {"usable": "o", "drifting": "^", "no minimum": "v"}
"""Marker of each."""


def figures(result: Result) -> dict[str, Figure]:
    """Those of an evaluation of the learning coefficient."""
    settings = result.provenance["evaluation"]
    rows = [row for row in result.rows if "coefficient" in row]
    own = result.rows[0]["model"]
    loss = settings["loss"].replace("_", "-")
    about = f"n beta = {result.scalars['n_beta']:.4g}, {settings['n_chains']} chains"
    drawn = {
        "traces": traces(
            {
                f"step {row['step']:g}": (row, result.arrays[f"trace/{own}/{row['step']:g}"])
                for row in rows_of(rows, own)
            },
            n_burn_in=settings["n_burn_in"],
            unit="loss - loss at w* (nats)",
            title=f"Sampling around the weights of {own} ({loss} per token; {about})",
        ),
        "steps": by_step_size(rows, title=f"Learning coefficient by step size ({loss}; {about})"),
    }
    trained = [row for row in rows if row["train_step"] >= 0]
    if trained:
        drawn["training"] = in_training(
            trained, title=f"Local learning coefficient in training ({loss}; {about})"
        )
    return drawn


def rows_of(rows: Sequence[Row], model: str) -> list[Row]:
    """One model's."""
    return [row for row in rows if row["model"] == model]


def traces(
    found: Mapping[str, tuple[Row, Float[Tensor, "chains steps"]]],
    *,
    n_burn_in: int,
    unit: str,
    title: str,
) -> Figure:
    """A panel for each estimate, a line for each chain; burn-in in grey.

    Args:
        found: by name, a row (verdict, r_hat) and the traces of its chains.
        n_burn_in: steps before the first draw.
        unit: label of the y axis.
        title: stands above all.
    """
    figure, axes = grid(len(found), n_columns=3, panel=(3.9, 3.0), title=title)
    for ax, (name, (row, chains)) in zip(axes, found.items(), strict=True):
        if n_burn_in:
            ax.axvspan(0, n_burn_in, color=FAINT, alpha=0.6, linewidth=0, label="burn-in")
        for i, chain in enumerate(chains):
            colour, own = PALETTE[i % len(PALETTE)], f"chain {i + 1}"
            ax.plot(range(len(chain)), chain.tolist(), color=colour, linewidth=1.1, label=own)
        reference(ax, 0.0)
        ax.set_title(
            f"{name}: {row['verdict']} (R-hat {row['r_hat']:.2f})",
            fontsize=9,
            color=INK,
        )
        axis_labels(ax, "step of the chain", unit)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 6),
        fontsize=9,
        frameon=False,
    )
    return figure


def by_step_size(rows: Sequence[Row], *, title: str) -> Figure:
    """The coefficient against the sampler's step, a line for each model; markers tell verdicts.

    Args:
        rows: each with model, step, verdict, coefficient and its interval.
        title: stands above.
    """
    figure, (ax,) = grid(1, n_columns=1, panel=(6.4, 3.8), title=title)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for i, model in enumerate(models):
        own = rows_of(rows, model)
        # Side by side, or intervals at the same step size would hide one another.
        x = [row["step"] * 1.03 ** (i - (len(models) - 1) / 2) for row in own]
        y = [row["coefficient"] for row in own]
        ends = interval_of(own, "coefficient")
        assert ends is not None
        colour = PALETTE[i % len(PALETTE)]
        ax.errorbar(
            x,
            y,
            yerr=arms(y, ends),
            color=colour,
            linestyle="-" if i < len(PALETTE) else "--",
            linewidth=1.2,
            capsize=2.5,
            label=_short(model),
        )
        _mark(ax, x, own, colour)
    _explain(ax, rows)
    reference(ax, 0.0)
    ax.set_xscale("log")
    steps = sorted({row["step"] for row in rows})
    ax.set_xticks(steps, [f"{step:g}" for step in steps])
    ax.minorticks_off()
    axis_labels(ax, "step size (variance of a step's noise)", "coefficient (95 % interval)")
    _legend(figure)
    return figure


def in_training(rows: Sequence[Row], *, title: str) -> Figure:
    """Coefficient and loss against the step of training, a line for each of the sampler's.

    Args:
        rows: each with train_step, step, loss, coefficient and its interval.
        title: stands above all.
    """
    figure, (above, below) = grid(2, n_columns=2, panel=(4.6, 3.6), title=title)
    for i, step in enumerate(sorted({row["step"] for row in rows})):
        own = sorted(
            (row for row in rows if row["step"] == step), key=lambda row: row["train_step"]
        )
        y = [row["coefficient"] for row in own]
        ends = interval_of(own, "coefficient")
        assert ends is not None
        x = [float(row["train_step"]) for row in own]
        colour = PALETTE[i % len(PALETTE)]
        above.errorbar(
            x,
            y,
            yerr=arms(y, ends),
            color=colour,
            linewidth=1.2,
            capsize=2.5,
            label=f"step size {step:g}",
        )
        _mark(above, x, own, colour)
    _explain(above, rows)
    losses = dict(sorted({row["train_step"]: row["loss"] for row in rows}.items()))
    below.plot(list(losses), list(losses.values()), color=INK, marker="o", markersize=4.5)
    for ax in (above, below):
        # Training is looked at more often early on, and it may be looked at before it begins.
        ax.set_xscale("symlog", linthresh=10)
    reference(above, 0.0)
    axis_labels(above, "step of training", "coefficient (95 % interval)")
    axis_labels(below, "step of training", "loss at w* (nats per token)")
    _legend(figure)
    return figure


def _mark(ax: Axes, x: Sequence[float], rows: Sequence[Row], colour: str) -> None:
    """The verdicts on the rows."""
    for place, row in zip(x, rows, strict=True):
        ax.plot(place, row["coefficient"], VERDICTS[row["verdict"]], color=colour, markersize=5)


def _explain(ax: Axes, rows: Sequence[Row]) -> None:
    """What the markers stand for."""
    for word in dict.fromkeys(row["verdict"] for row in rows):
        ax.plot([], [], VERDICTS[word], color=INK, markersize=5, label=word)


def _short(model: str) -> str:
    """The end of a long name, which is what tells it from others."""
    return model if len(model) <= 30 else f"...{model[-27:]}"


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 3),
        fontsize=9,
        frameon=False,
    )
