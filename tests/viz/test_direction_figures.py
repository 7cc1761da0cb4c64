"""Which figures a result of eval=sensitive_directions has, and that they show its numbers."""

import pytest
import torch

from sae_kit.evals.directions.directions import DIRECTIONS
from sae_kit.evals.directions.sae_directions import SAE_DIRECTIONS
from sae_kit.evals.directions.substitutions import SUBSTITUTIONS
from sae_kit.result import Result
from sae_kit.viz.direction_figures import AS_FAR, LOOKS, OTHERS, figures

SITES = ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
ENDS = {"": 1.0, "_low": 0.9, "_high": 1.2}


def columns(name, value):
    return {f"{name}{end}": value * factor for end, factor in ENDS.items()}


def row(kind, name, site=SITES[0], saes="", objective="", **more):
    return {"kind": kind, "site": site, "saes": saes, "objective": objective, "name": name, **more}


def curve(name, **which):
    return row("curve", name, **which, **columns("kl_area", 3.0), **columns("kl_area_ratio", 1.1))


def bar(name, value=2.0, **which):
    ratio = columns("sae_ratio", 1.5) if name in AS_FAR and name != "sae" else {}
    return row("substitution", name, **which, **columns("kl", value), **ratio)


def result(rows, **evaluation):
    arrays = {"lengths": torch.tensor([0.1, 1.0])}
    for each in rows:
        if each["kind"] == "curve":
            key = f"curves/{each['site']}/{each['saes']}|{each['name']}"
            for response in ("kl", "l2", "kl_ratio"):
                arrays[f"{key}/{response}"] = torch.tensor([[1.0, 2.0], [0.9, 1.8], [1.1, 2.2]])
    return Result(
        name="sensitive_directions",
        scalars={"n_prompts": 5},
        rows=rows,
        arrays=arrays,
        provenance={
            "evaluation": {"position": None, "unit": None, **evaluation},
            "subject": {"model": "demo"},
        },
    )


def sets(kind):
    """Of three objectives, and two sparsities each."""
    return [
        kind(name, saes=f"{objective}/{l0}", objective=objective, l0=float(l0))
        for objective in ("e2e_downstream", "local", "e2e")
        for l0 in (8, 32)
        for name in (("sae_error", "alive_decoder") if kind is curve else ("sae", "isotropic"))
    ]


def test_everything_that_can_be_measured_has_a_look_and_no_two_the_same():
    assert set(LOOKS) == {*DIRECTIONS, *SAE_DIRECTIONS}
    assert set(AS_FAR) | set(OTHERS) == set(SUBSTITUTIONS)
    assert len(set(LOOKS.values())) == len({look[1:] for look in LOOKS.values()}) == len(LOOKS)


def test_one_set_has_curves_and_bars_by_site():
    rows = [curve("isotropic"), curve("cov_mixture"), curve("sae_error")]
    rows += [
        bar(name, i + 1.0, site=site) for i, site in enumerate(SITES) for name in SUBSTITUTIONS
    ]
    found = figures(result(rows))
    assert set(found) == {"curves", "substitutions"}
    kl, ratio, l2 = found["curves"].axes
    assert [line.get_label() for line in kl.lines] == [
        "isotropic",
        "cov-random mixture",
        "SAE error",
    ]
    assert list(kl.lines[0].get_ydata()) == [1.0, 2.0]
    assert ratio.get_xscale() == "log"
    assert "median norms" in l2.get_xlabel()
    matched, worse, others = found["substitutions"].axes
    assert [p.get_height() for p in matched.patches] == [1.0, 2.0] * 4
    assert [p.get_height() for p in worse.patches] == [1.5] * 6
    assert len(others.patches) == 2 * len(OTHERS)
    assert [text.get_text() for text in matched.get_xticklabels()] == ["1", "2"]
    assert (
        found["curves"].get_suptitle().startswith("Sensitive directions: all tokens of 5 prompts")
    )


def test_compared_sets_have_panels_by_objective_and_bars_by_l0():
    rows = [curve("isotropic"), curve("cov_mixture"), *sets(curve), *sets(bar)]
    found = figures(result(rows, position=-1, unit=1.0))
    assert set(found) == {"curves", "substitutions", "latents", "latents_by_l0"}
    *panels, bar_of_colours = found["latents"].axes
    assert [ax.get_title().split(",")[1] for ax in panels] == [
        " local SAEs",
        " e2e SAEs",
        " e2e_downstream SAEs",
    ]
    # Two sets and two baselines in each.
    assert [len(ax.lines) for ax in panels] == [4, 4, 4]
    assert bar_of_colours.get_xlabel() == "L0"
    error, alive = found["latents_by_l0"].axes
    assert "SAE error" in error.get_ylabel()
    assert "alive latent" in alive.get_ylabel()
    matched, *_ = found["substitutions"].axes
    assert [text.get_text() for text in matched.get_xticklabels()] == [
        f"{objective}/{l0}" for objective in ("local", "e2e", "e2e_downstream") for l0 in (8, 32)
    ]
    assert "token -1" in found["curves"].get_suptitle()
    assert "units of 1" in found["curves"].axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([curve("isotropic")], {"curves"}),
        ([bar("sae")], {"substitutions"}),
        (sets(curve), {"latents", "latents_by_l0"}),
        (
            [curve("sae_error", saes="a", objective="local", l0=8.0)],
            {"latents_by_l0"},
        ),
    ],
)
def test_what_was_not_measured_is_not_drawn(rows, names):
    found = figures(result(rows))
    assert set(found) == names
    for figure in found.values():
        figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("read", "label"), [(None, "distance at the last site"), (SITES[1], f"distance at {SITES[1]}")]
)
def test_distances_are_labelled_by_where_they_are_measured(read, label):
    figure = figures(result([curve("isotropic")], read=read))["curves"]
    assert figure.axes[-1].get_ylabel() == label
