"""What the browser takes, and what it refuses in clear words."""

import dataclasses

import pytest
import torch
import toy_results

from sae_kit.result import Result
from sae_kit.viz.browser.atlas import MEASURES, Atlas

DASHBOARD, EVOLUTION = toy_results.dashboard(), toy_results.evolution()
PAIR = f"pairs/{toy_results.SITES[0]}>{toy_results.SITES[1]}"


def damaged(**arrays):
    return dataclasses.replace(EVOLUTION, arrays={**EVOLUTION.arrays, **arrays})


def test_both_results_together_or_either_alone():
    both, one, other = (
        Atlas([DASHBOARD, EVOLUTION]),
        Atlas([DASHBOARD]),
        Atlas([EVOLUTION]),
    )
    for atlas in (both, one, other):
        assert atlas.sites == list(toy_results.SITES)
        assert atlas.d_sae == [70, 70, 70]
    assert both.measures == other.measures == list(MEASURES)
    assert [pair.sites for pair in both.pairs] == [(0, 1), (1, 2)]
    assert one.pairs == one.measures == one.booleans == []
    assert (one.community(0) == -1).all()
    assert other.known("top_place", 0) is None


def test_measures_stand_in_their_columns():
    pair = Atlas([EVOLUTION]).pairs[0]
    for i, measure in enumerate(MEASURES):
        assert torch.equal(pair.measures[:, i], EVOLUTION.arrays[f"{PAIR}/{measure}"])


def test_candidates_come_with_kind_and_strictness():
    assert [
        (up, down, rows.tolist()) for up, down, rows in Atlas([DASHBOARD, EVOLUTION]).booleans
    ] == [(up, up + 1, [[0, 1, 2, 0, 1], [5, 6, 7, 1, 0]]) for up in (0, 1)]


def test_a_site_of_some_of_the_sites_fits():
    some = {site: toy_results.subject()["saes"][site] for site in toy_results.SITES[:2]}
    kept = {k: v for k, v in EVOLUTION.arrays.items() if toy_results.SITES[2] not in k}
    own = dataclasses.replace(
        EVOLUTION, arrays=kept, provenance={"subject": toy_results.subject(saes=some)}
    )
    assert len(Atlas([DASHBOARD, own]).pairs) == 1


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], r"results: got \[\]; give one of dashboard or feature_evolution"),
        ([DASHBOARD, DASHBOARD], "results: got .* give one of dashboard or feature_evolution"),
        ([Result("core")], "results: one is of core, which the browser does not show"),
        (
            [DASHBOARD, toy_results.evolution(model="gpt2")],
            "results: model is toy <b> in dashboard and gpt2 in feature_evolution",
        ),
        (
            [DASHBOARD, toy_results.evolution(saes={"blocks.9.hook_resid_pre": {}})],
            "different sites .only one has blocks.9.hook_resid_pre.",
        ),
        (
            [
                DASHBOARD,
                toy_results.evolution(
                    saes={
                        site: {**sae, "digest": "other"}
                        for site, sae in toy_results.subject()["saes"].items()
                    }
                ),
            ],
            "the SAEs at blocks.0.hook_resid_pre differ between dashboard and feature_evolution",
        ),
    ],
)
def test_results_that_do_not_go_together_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        Atlas(results)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (f"{PAIR}/index", torch.tensor([[0, 70]]), r"row 0 is \[0, 70\], but the SAEs have"),
        (f"{PAIR}/index", torch.tensor([[-1, 0]]), r"row 0 is \[-1, 0\]"),
        (f"{PAIR}/index", torch.tensor([0, 1]), r"shape is \(2,\), not \[n, 2\]"),
        (f"{PAIR}/pearson", torch.zeros(3), "pearson: is missing or not as long as the index"),
        ("pairs/blocks.7.x>blocks.8.x/index", torch.zeros(1, 2).long(), "is no pair of the sites"),
        (f"boolean/{PAIR[6:]}/index", torch.tensor([[0, 0, 99]]), "row 0 is"),
    ],
)
def test_damaged_arrays_are_named(name, array, message):
    atlas = Atlas([DASHBOARD, damaged(**{name: array})])
    with pytest.raises(ValueError, match=message):
        _ = (atlas.pairs, atlas.booleans)


def test_a_missing_array_is_named():
    arrays = {k: v for k, v in DASHBOARD.arrays.items() if not k.startswith("max/")}
    with pytest.raises(ValueError, match=r"max/blocks.0.hook_resid_pre: in none of the results"):
        Atlas([dataclasses.replace(DASHBOARD, arrays=arrays)]).largest(0)
