"""How much of an SAE's decoder counts: learning coefficients by site, and by cut-off."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sae_kit.viz.plots import (
    INK,
    MARKERS,
    PALETTE,
    Row,
    arms,
    axis_labels,
    grid,
    interval_of,
    reference,
    site_labels,
)

CUT_OFFS = tuple(10 ** (i / 4) for i in range(-32, 13))
"""At which `by_cut_off` is drawn."""


def coefficients(rows: Sequence[Row], *, title: str) -> Figure:
    """By site: the two parts of the known coefficient, their sum, and what was sampled.

    Args:
        rows: each with site, curvature, fall, known, coefficient and its interval.
        title: stands above.
    """
    names, what = site_labels([row["site"] for row in rows])
    figure, (ax,) = grid(1, n_columns=1, panel=(max(6.0, 1.0 + 0.9 * len(rows)), 3.8), title=title)
    places = range(len(rows))
    for i, (part, label) in enumerate(
        (("curvature", "known: curvature"), ("fall", "known: fall (no minimum)"))
    ):
        heights = [row[part] for row in rows]
        ax.bar(places, heights, width=0.5, color=PALETTE[i], alpha=0.45, label=label)
    for place, row in zip(places, rows, strict=True):
        own = "known: sum" if place == 0 else ""
        ax.hlines(row["known"], place - 0.32, place + 0.32, colors=INK, linewidth=2.0, label=own)
    sampled = [row["coefficient"] for row in rows]
    ends = interval_of(rows, "coefficient")
    assert ends is not None
    ax.errorbar(
        places,
        sampled,
        yerr=arms(sampled, ends),
        color=PALETTE[2],
        fmt="o",
        markersize=5,
        capsize=3,
        label="sampled (95 % interval)",
    )
    ax.axhline(0.0, color=INK, linewidth=0.8)
    ax.set_xticks(places, names)
    axis_labels(ax, what, "learning coefficient")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def by_cut_off(shares: Mapping[str, Sequence[float]], *, used: float, title: str) -> Figure:
    """The share of the decoder weights that count, against the cut-off; a line for each site.

    Args:
        shares: by site, at each of CUT_OFFS.
        used: the cut-off that was sampled at, where a line stands.
        title: stands above.
    """
    names, what = site_labels(list(shares))
    figure, (ax,) = grid(1, n_columns=1, panel=(6.8, 3.8), title=title)
    for i, (name, values) in enumerate(zip(names, shares.values(), strict=True)):
        ax.plot(
            CUT_OFFS,
            values,
            color=PALETTE[i % len(PALETTE)],
            marker=MARKERS[i % len(MARKERS)],
            markevery=4,
            markersize=4,
            linewidth=1.3,
            label=name,
        )
    reference(ax, used, vertical=True, label="sampled at")
    ax.set_xscale("log")
    ax.set_ylim(0.0, 1.03)
    axis_labels(
        ax,
        "cut-off gamma / n beta (nats per squared change)",
        "share of decoder weights that count",
    )
    ax.legend(title=what, fontsize=8, title_fontsize=8, frameon=False, labelcolor=INK)
    return figure
