"""The figures of eval=sensitive_directions, drawn from a result.

- curves: responses against length, for every direction; for compared sets, for what is no SAE's.
- substitutions: what SAE(x) does beside points as far from x, by site, or by SAE where sets are
  compared.
- latents, latents_by_l0: for compared sets, curves along latents by L0 and objective, and areas
  under them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from sae_kit.result import Result
from sae_kit.viz.bands import BandPanel, Curve, Shades, bands
from sae_kit.viz.curves import Measure, curves
from sae_kit.viz.grouped import Bar, BarPanel, grouped_bars
from sae_kit.viz.plots import INK, PALETTE, site_labels

LOOKS = {
    "isotropic": ("isotropic", 0, "-"),
    "isotropic_difference": ("isotropic difference", 0, "--"),
    "cov_mixture": ("cov-random mixture", 1, "-"),
    "cov_difference": ("cov-random difference", 1, "--"),
    "real_mixture": ("real mixture", 2, "-"),
    "real_difference": ("real difference", 2, "--"),
    "toward_other": ("toward another, same position", 2, ":"),
    "toward_zero": ("toward zero", 3, "--"),
    "sae_error": ("SAE error", 6, "-"),
    "alive_decoder": ("alive latent", 4, "-"),
    "active_decoder": ("active latent", 5, "-"),
    "dead_decoder": ("dead latent", 3, "-"),
    "alive_encoder": ("alive latent (encoder)", 4, ":"),
    "active_encoder": ("active latent (encoder)", 5, ":"),
    "dead_encoder": ("dead latent (encoder)", 3, ":"),
}
"""Direction -> its name in figures, number in the palette, and line: dashed where -x is in it."""

AS_FAR = {
    "sae": "SAE(x)",
    "isotropic": "isotropic",
    "cov_mixture": "cov-random mixture",
    "real_mixture": "real mixture",
}
"""Substitutions at the same distance from x, and their names in figures."""

OTHERS = {
    "norm_corrected": "SAE(x), norm corrected",
    "shrink_only": "shrink only",
    "theta_to_sae": "same angle, norm of SAE(x)",
    "theta_to_x": "same angle, norm of x",
    "zero": "zero",
    "mean": "mean",
}

Row = Mapping[str, Any]

KL_LABEL = "KL(clean || perturbed), nats"


def figures(result: Result) -> dict[str, Figure]:
    """All that the result has something for, by name."""
    curve_rows = [row for row in result.rows if row["kind"] == "curve"]
    bar_rows = [row for row in result.rows if row["kind"] == "substitution"]
    found: dict[str, Figure] = {}
    if plain := [row for row in curve_rows if row["saes"] == ""]:
        found["curves"] = _curves(result, plain)
    if bar_rows:
        found["substitutions"] = _substitutions(result, bar_rows)
    latents = [row for row in curve_rows if row["saes"] and row["name"] != "sae_error"]
    if latents:
        found["latents"] = _latents(result, latents)
    if compared := [row for row in curve_rows if row["saes"]]:
        found["latents_by_l0"] = _by_l0(result, compared)
    return found


def _title(result: Result, what: str) -> str:
    """With the model, the positions and what intervals are of."""
    position = result.provenance["evaluation"]["position"]
    where = "all tokens" if position is None else f"token {position}"
    return (
        f"{what}: {where} of {result.scalars['n_prompts']} prompts in "
        f"{result.provenance['subject']['model']} (95 % intervals over prompts)"
    )


def _x_label(result: Result) -> str:
    unit = result.provenance["evaluation"]["unit"]
    units = "median norms" if unit is None else f"units of {unit:g}"
    return f"length of the perturbation, {units}"


def _distance_label(result: Result) -> str:
    read = result.provenance["evaluation"].get("read")
    return "distance at the last site" if read is None else f"distance at {read}"


# --- curves ---------------------------------------------------------------------------------------


def _curve(result: Result, row: Row, response: str, **look: Any) -> Curve:
    y, low, high = result.arrays[f"{_key(row)}/{response}"].tolist()
    return Curve(result.arrays["lengths"].tolist(), y, low, high, **look)


def _key(row: Row) -> str:
    """Of a curve's arrays."""
    return f"curves/{row['site']}/{row['saes']}|{row['name']}"


def _named(result: Result, row: Row, response: str) -> Curve:
    name, number, line = LOOKS[row["name"]]
    return _curve(result, row, response, name=name, colour=PALETTE[number], line=line)


def _curves(result: Result, rows: Sequence[Row]) -> Figure:
    """For every site KL, KL over that of the mixture, and distance."""
    panels = []
    for site in dict.fromkeys(row["site"] for row in rows):
        own = [row for row in rows if row["site"] == site]
        kl, l2 = ([_named(result, row, response) for row in own] for response in ("kl", "l2"))
        panels.append(BandPanel(site, kl, _x_label(result), KL_LABEL))
        if f"{_key(own[0])}/kl_ratio" in result.arrays:
            over = [_named(result, row, "kl_ratio") for row in own]
            label = "KL over the cov-random mixture"
            panels.append(
                BandPanel(site, over, _x_label(result), label, log_x=True, log_y=True, baseline=1.0)
            )
        panels.append(BandPanel(site, l2, _x_label(result), _distance_label(result)))
    n_columns = len(panels) // len({panel.title for panel in panels})
    return bands(panels, n_columns=n_columns, title=_title(result, "Sensitive directions"))


def _latents(result: Result, rows: Sequence[Row]) -> Figure:
    """A row of panels for every site and objective, with a column for every kind of latent."""
    shades = Shades([row["l0"] for row in rows], "L0")
    names = list(dict.fromkeys(row["name"] for row in rows))
    panels = []
    for site in dict.fromkeys(row["site"] for row in rows):
        baselines = [
            _curve(result, row, "kl", name=LOOKS[row["name"]][0], colour=INK, line=line)
            for baseline, line in (("isotropic", ":"), ("cov_mixture", "--"))
            for row in result.rows
            if (row["site"], row["name"], row["kind"]) == (site, baseline, "curve")
        ]
        for objective, name in product(_in_order(row["objective"] for row in rows), names):
            own = [
                _curve(result, row, "kl", colour=shades[row["l0"]])
                for row in rows
                if (row["site"], row["objective"], row["name"]) == (site, objective, name)
            ]
            title = f"{LOOKS[name][0]}, {objective} SAEs, {site}"
            panels.append(BandPanel(title, [*own, *baselines], _x_label(result), KL_LABEL))
    title = _title(result, "Directions of latents")
    return bands(panels, n_columns=len(names), title=title, shades=shades)


def _by_l0(result: Result, rows: Sequence[Row]) -> Figure:
    """The area under the curves of every kind of SAE direction, against L0."""
    is_ratio = all("kl_area_ratio" in row for row in rows)
    column, what = (
        ("kl_area_ratio", "area under KL, over the mixture's")
        if is_ratio
        else ("kl_area", "area under KL")
    )
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        line = table.setdefault((row["site"], row["saes"]), {"l0": row["l0"]})
        line["group"] = f"{row['objective']}, {row['site']}"
        for end in ("", "_low", "_high"):
            line[f"{row['name']}{end}"] = row[f"{column}{end}"]
    measures = [
        Measure(name, f"{what}: {LOOKS[name][0]}")
        for name in dict.fromkeys(row["name"] for row in rows)
    ]
    title = _title(result, "What directions do, by L0 and objective")
    x = Measure("l0", "L0", log=True)
    return curves(list(table.values()), x, measures, group="group", title=title)


# --- substitutions --------------------------------------------------------------------------------


def _substitutions(result: Result, rows: Sequence[Row]) -> Figure:
    """By site; where sets are compared, by set, for each site."""
    sites = list(dict.fromkeys(row["site"] for row in rows))
    panels: list[BarPanel] = []
    if any(row["saes"] for row in rows):
        for site in sites:
            own = [row for row in rows if row["site"] == site]
            order = _in_order(row["objective"] for row in own)
            own.sort(key=lambda row: (order.index(row["objective"]), row["l0"]))
            groups = {row["saes"]: row["saes"] for row in own}
            panels += _panels(own, "saes", groups, f"{site}, ", "SAEs, by objective and L0")
    else:
        names, what = site_labels(sites)
        panels += _panels(rows, "site", dict(zip(sites, names, strict=True)), "", what)
    return grouped_bars(panels, title=_title(result, "In the place of activations"))


def _panels(
    rows: Sequence[Row], group: str, groups: Mapping[str, str], where: str, x: str
) -> list[BarPanel]:
    """What is as far from x as SAE(x); how much worse SAE(x) is; everything else."""

    def bars(names: Mapping[str, str], column: str) -> dict[str, list[Bar | None]]:
        by_key = {(row["name"], row[group]): row for row in rows}
        found = {
            label: [_bar(by_key.get((name, one), {}), column) for one in groups]
            for name, label in names.items()
        }
        return {label: each for label, each in found.items() if any(each)}

    title = f"{where}as far from x as SAE(x), token by token"
    worse = {name: label for name, label in AS_FAR.items() if name != "sae"}
    candidates = [
        BarPanel(title, list(groups.values()), bars(AS_FAR, "kl"), x, "KL, nats"),
        BarPanel(
            f"{where}SAE(x) over the same",
            list(groups.values()),
            bars(worse, "sae_ratio"),
            x,
            "ratio of KL",
            baseline=1.0,
        ),
        BarPanel(
            f"{where}other substitutions",
            list(groups.values()),
            bars(OTHERS, "kl"),
            x,
            "KL, nats",
            log=True,
        ),
    ]
    return [panel for panel in candidates if panel.bars]


def _bar(row: Row, column: str) -> Bar | None:
    return (row[column], row[f"{column}_low"], row[f"{column}_high"]) if column in row else None


def _in_order(objectives: Iterable[str]) -> list[str]:
    """Each once; those of the toolkit from local to end to end."""
    known = ["local", "e2e", "e2e_downstream"]
    return sorted(
        set(objectives), key=lambda word: (known.index(word) if word in known else 9, word)
    )
