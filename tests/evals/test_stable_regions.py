"""The evaluation on small random models, and curves whose borders are known: METHODS 3(f)."""

import dataclasses

import pytest
import torch
import toy_subject

from sae_kit.evals.stable_regions import StableRegions, measured

SMALL = StableRegions(
    site="blocks.0.hook_resid_pre",
    sites=("blocks.1.hook_resid_pre",),
    n_pairs=8,
    prompt_size=6,
    n_alphas=7,
    models=("random",),
    n_slices=1,
    slice_size=5,
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield toy_subject.subject(tmp_path_factory.mktemp("text"), {})


@pytest.fixture(scope="module")
def result(subject):
    return SMALL.run(subject)


def test_there_is_a_row_for_every_model_site_and_path(result):
    rows = [row for row in result.rows if row["kind"] == "curves"]
    assert [(row["model"], row["site"], row["path"]) for row in rows] == [
        ("toy", "blocks.0.hook_resid_pre", "line"),
        ("toy", "blocks.0.hook_resid_pre", "arc"),
        ("toy", "blocks.1.hook_resid_pre", "line"),
        ("toy", "blocks.1.hook_resid_pre", "arc"),
        ("random", "blocks.0.hook_resid_pre", "line"),
        ("random", "blocks.0.hook_resid_pre", "arc"),
    ]
    for row in rows:
        assert row["n_pairs"] + row["n_dropped"] == 8
        assert row["max_slope_low"] <= row["max_slope"] <= row["max_slope_high"]
        assert row["max_slope_q1"] <= row["max_slope"] <= row["max_slope_q3"]


def test_curves_run_from_0_to_1(result):
    for name in ("toy", "random"):
        curves = result.arrays[f"curves/{name}/blocks.0.hook_resid_pre/line"]
        assert (curves[:, 0] == 0).all()
        assert torch.equal(curves[:, -1], torch.ones(len(curves)))
        kl = result.arrays[f"kl/{name}/blocks.0.hook_resid_pre/line"]
        assert (kl[:, 0] == 0).all()


def test_a_slope_has_at_least_the_mean_and_at_most_the_grids(result):
    assert result.scalars["max_slope_cap"] == 6
    slopes = result.arrays["slopes/toy/blocks.0.hook_resid_pre/line"]
    assert (slopes >= 1 - 1e-9).all()


def test_each_slice_has_the_clean_outcome_where_its_own_activation_is(result):
    distances, t = result.arrays["slice/0/distances"], result.arrays["slice/0/t"]
    sides = result.arrays["slice/0/sides"]
    assert distances.shape == (3, 5, 5)
    assert sides.tolist() == pytest.approx([-0.25, 0.125, 0.5, 0.875, 1.25])
    assert t.shape == (1,)
    assert (distances >= 0).all()


def test_a_run_on_behind_the_last_block_is_a_straight_line(subject):
    """F linear: r(alpha) = alpha. Read where it is written, the output is the activation itself."""
    end = "blocks.1.hook_resid_post"
    result = dataclasses.replace(SMALL, site=end, sites=(end,), models=(), n_slices=0).run(subject)
    curves = result.arrays[f"curves/toy/{end}/line"]
    torch.testing.assert_close(curves, torch.linspace(0, 1, 7).expand_as(curves))
    (row,) = [r for r in result.rows if r.get("path") == "line"]
    assert row["max_slope"] == pytest.approx(1.0, rel=1e-4)
    assert row["gate_flips"] == 0.0


def test_measures_of_a_hard_border():
    alphas = torch.linspace(0, 1, 50, dtype=torch.float64)
    found = measured((alphas > 0.31).double()[None])
    assert found["max_slope"].item() == pytest.approx(49)
    assert found["location"].item() == pytest.approx(0.31, abs=0.02)
    assert (found["begin"] + found["end"]).item() == pytest.approx(1.0, abs=0.021)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_size": 1}, "prompt_size"),
        ({"n_alphas": 2}, "n_alphas"),
        ({"paths": ("arc",)}, "paths: "),
        ({"n_pairs": 0}, "n_pairs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        StableRegions(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read": "hook_embed"}, "read: 'hook_embed' comes before"),
        ({"models": ("nowhere",)}, "there is no folder 'nowhere'"),
        ({"least_distance": 1e9}, "least_distance: no pair of toy"),
        ({"pairs": "nowhere.yaml"}, "pairs: nowhere.yaml"),
    ],
)
def test_what_does_not_fit_the_subject_is_refused(subject, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change).run(subject)
