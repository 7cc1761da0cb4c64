"""Figures of eval=stable_regions, drawn from a result.

- curves: relative distances and KL along paths, of single pairs and of models
- pairs: hand-made pairs
- slice_<i>: a plane in the contexts of its three prompts; slices: planes in several models
- the rest is in `region_slopes.py`
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sae_kit.result import Result
from sae_kit.viz import region_slopes
from sae_kit.viz.bands import BandPanel, Curve, bands
from sae_kit.viz.images import Picture, pictures
from sae_kit.viz.plots import INK, PALETTE, Row

N_CURVES = 40
"""Single curves in a panel, at most."""
LINES = ("-", "--", ":", "-.")
R_LABEL = "relative distance r(alpha)"


def figures(result: Result) -> dict[str, Figure]:
    """All that the result has something for, by name."""
    result = _with_short_names(result)
    rows = [row for row in result.rows if row["kind"] == "curves"]
    found = {"curves": _curves(result, rows), **region_slopes.figures(result, rows)}
    pairs = [row for row in result.rows if row["kind"] == "pair"]
    if pairs:
        found["pairs"] = _pairs(result, pairs, model=rows[0]["model"])
    slices = [row for row in result.rows if row["kind"] == "slice"]
    own = [row for row in slices if row["model"] == rows[0]["model"]]
    for row in own:
        found[f"slice_{row['plane']}"] = _slice(result, row)
    if len(slices) > len(own):
        found["slices"] = _slices(result, slices, n_models=len(slices) // len(own))
    return found


def _with_short_names(result: Result) -> Result:
    """Models that are folders by their last part, if this tells all models apart."""
    names = {row["model"]: row["model"].rpartition("/")[2] for row in result.rows if "model" in row}
    if len(set(names.values())) < len(names):
        return result
    rows = [{**row, "model": names[row["model"]]} if "model" in row else row for row in result.rows]
    return replace(result, rows=rows)


# --- curves ---------------------------------------------------------------------------------------


def _curves(result: Result, rows: Sequence[Row]) -> Figure:
    """For every path: single pairs of the subject, all models, and their KL."""
    first = rows[0]
    drawn = [row for row in rows if (row["site"], row["pairs"]) == (first["site"], first["pairs"])]
    panels = []
    for path in dict.fromkeys(row["path"] for row in drawn):
        own, *_ = every = [row for row in drawn if row["path"] == path]
        r = result.arrays[f"curves/{own['number']}/r"]
        single = [
            Curve(_alphas(one), one, one, one, colour="#AAAAAA", width=0.6)
            for one in r[:N_CURVES].tolist()
        ]
        median = _quartiles(r, PALETTE[0], None)
        panels += [
            BandPanel(f"{own['model']}, along the {path}", [*single, median], "alpha", R_LABEL),
            BandPanel(f"medians, along the {path}", _of_models(result, every, "r"), *LABELS["r"]),
            BandPanel(f"KL, along the {path}", _of_models(result, every, "kl"), *LABELS["kl"]),
        ]
    title = (
        f"From one activation to another at {first['site']}: medians and quartiles over "
        f"{first['n_pairs']} pairs of prompts"
    )
    return bands(panels, n_columns=3, title=title)


LABELS = {"r": ("alpha", R_LABEL), "kl": ("alpha", "KL(clean || perturbed), nats")}


def _of_models(result: Result, rows: Sequence[Row], what: str) -> list[Curve]:
    """The median of every model in its quartiles; for distances, the diagonal as well."""
    curves = [
        _quartiles(
            result.arrays[f"curves/{row['number']}/{what}"],
            PALETTE[i % len(PALETTE)],
            row["model"],
            LINES[i // len(PALETTE) % len(LINES)],
        )
        for i, row in enumerate(rows)
    ]
    ends = (0.0, 1.0)
    diagonal = Curve(ends, ends, ends, ends, colour=INK, line=":", width=1.0)
    return [*curves, diagonal] if what == "r" else curves


def _quartiles(
    values: Float[Tensor, "pairs alphas"], colour: str, name: str | None, line: str = "-"
) -> Curve:
    low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75]).to(values), dim=0).tolist()
    return Curve(_alphas(median), median, low, high, colour, name, line)


def _alphas(values: Sequence[float]) -> list[float]:
    return torch.linspace(0, 1, len(values)).tolist()


def _pairs(result: Result, rows: Sequence[Row], *, model: str) -> Figure:
    """Distances of similar and of dissimilar pairs, and the latter's logit differences."""
    kinds = {
        kind: [row for row in rows if row["likeness"] == kind] for kind in ("similar", "dissimilar")
    }
    panels = [
        BandPanel(f"{kind} endings", _lines(result, chosen, "r"), *LABELS["r"])
        for kind, chosen in kinds.items()
        if chosen
    ]
    if other := [row for row in kinds["dissimilar"] if row["tops_differ"]]:
        curves = [
            Curve(curve.x, curve.y, curve.low, curve.high, curve.colour, None, curve.line)
            for curve in _lines(result, other, "logits")
        ]
        panels.append(
            BandPanel(
                "dissimilar endings: top tokens",
                curves,
                "alpha",
                "logit difference (scaled)",
            )
        )
    title = f"Prompts that differ in their last token, in {model}"
    return bands(panels, n_columns=3, title=title)


def _lines(result: Result, rows: Sequence[Row], what: str) -> list[Curve]:
    """Each in a colour of its own; similar pairs dashed."""
    found = []
    for i, row in enumerate(rows):
        y = result.arrays[f"pair/{row['number']}/{what}"].tolist()
        line = "--" if row["likeness"] == "similar" else "-"
        found.append(Curve(_alphas(y), y, y, y, PALETTE[i % len(PALETTE)], row["pair"], line))
    return found


# --- planes ---------------------------------------------------------------------------------------

AXES = ("alpha: from A to B", "beta: towards C")


def nearness(distances: Float[Tensor, "three betas alphas"]) -> Float[Tensor, "three betas alphas"]:
    """1 where the output is the context's own, 0 where it is farthest away on the plane."""
    most = distances.amax(dim=(1, 2), keepdim=True)
    return 1 - distances / most.where(most > 0, 1.0)


def _slice(result: Result, row: Row) -> Figure:
    """Each context's by itself, and together as red, green and blue."""
    near = nearness(result.arrays[f"slice/{row['number']}/distances"])
    alone = [
        _picture(f"in the context of {letter}", field, row)
        for letter, field in zip("ABC", near, strict=True)
    ]
    together = _picture("red: A, green: B, blue: C", near.movedim(0, -1), row)
    title = (
        f"The plane through three activations at {row['site']} in {row['model']} "
        "(nearness: 1 - distance of the output / largest)"
    )
    return pictures([*alone, together], n_columns=4, labels=AXES, scale="nearness", title=title)


def _slices(result: Result, rows: Sequence[Row], *, n_models: int) -> Figure:
    """A row of pictures for every plane, a column for every model."""
    panels = [
        _picture(
            row["model"],
            nearness(result.arrays[f"slice/{row['number']}/distances"]).movedim(0, -1),
            row,
        )
        for row in sorted(rows, key=lambda row: row["plane"])
    ]
    title = f"Planes through three activations at {rows[0]['site']} (red: A, green: B, blue: C)"
    return pictures(panels, n_columns=n_models, labels=AXES, scale="", title=title)


def _picture(title: str, pixels: Tensor, row: Row) -> Picture:
    ends = (-row["margin"], 1 + row["margin"])
    marks = {"A": (0.0, 0.0), "B": (1.0, 0.0), "C": (row["t"], 1.0)}
    return Picture(title, pixels, ends, ends, marks)
