"""The evaluation on small random models: its rows, what it leaves out, what it refuses."""

import dataclasses
import logging

import pytest
import torch
from conftest import random_gpt2
from turning import model_with_plain_norms, turn, turned

from sae_kit.evals import stable_regions
from sae_kit.evals.regions.sampled_pairs import Sample
from sae_kit.evals.stable_regions import StableRegions
from sae_kit.models.pretrained import save_model
from sae_kit.models.snapshots import Moment, save_snapshot

FIRST, SECOND = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"
SMALL = StableRegions(
    site=SECOND,
    sites=(FIRST,),
    n_pairs=8,
    prompt_size=6,
    n_alphas=7,
    models=("random",),
    n_slices=1,
    slice_size=5,
)
FEW = dataclasses.replace(SMALL, sites=(SECOND,), models=(), n_slices=0, n_pairs=4, n_alphas=4)
"""At one site, in one model."""
PAIRS = """
- {kind: similar, start: "Then, Adam and Kevin found a", a: " ball", b: " hat"}
- {kind: dissimilar, start: "Then, Adam and Kevin found", a: " a", b: " Mary"}
"""


@pytest.fixture(scope="module")
def result(subject, tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.yaml"
    file.write_text(PAIRS)
    return dataclasses.replace(SMALL, pairs=str(file)).run(subject)


def of_kind(result, kind: str):
    return [row for row in result.rows if row["kind"] == kind]


# --- what there is --------------------------------------------------------------------------------


def test_there_is_a_row_for_every_model_site_kind_of_pairs_and_path(result):
    rows = of_kind(result, "curves")
    assert [(row["model"], row["site"], row["pairs"], row["path"]) for row in rows] == [
        ("toy", SECOND, "sampled", "line"),
        ("toy", SECOND, "sampled", "arc"),
        ("toy", FIRST, "sampled", "line"),
        ("toy", FIRST, "sampled", "arc"),
        ("toy", SECOND, "same ending", "line"),
        ("random", SECOND, "sampled", "line"),
        ("random", SECOND, "sampled", "arc"),
    ]
    assert [row["number"] for row in rows] == list(range(len(rows)))
    for row in rows:
        if row["pairs"] == "sampled":
            assert row["n_pairs"] + row["n_dropped"] == 8
        assert row["max_slope_low"] <= row["max_slope"] <= row["max_slope_high"]
        assert row["max_slope_q1"] <= row["max_slope"] <= row["max_slope_q3"]


def test_arrays_are_of_the_rows_pairs_and_run_from_0_to_1(result):
    for row in of_kind(result, "curves"):
        arrays = {
            name.split("/")[2]: array
            for name, array in result.arrays.items()
            if name.startswith(f"curves/{row['number']}/")
        }
        r = arrays["r"]
        assert r.shape == (row["n_pairs"], 7)
        assert (r[:, 0] == 0).all()
        assert torch.equal(r[:, -1], torch.ones(len(r)))
        assert (arrays["kl"][:, 0] == 0).all()
        assert arrays["max_slope"].quantile(0.5).item() == row["max_slope"]
        assert len(arrays["same_ending"]) == row["n_pairs"]


def test_a_slope_has_at_least_the_mean_and_at_most_the_grids(result):
    assert result.scalars["max_slope_cap"] == 6
    slopes = result.arrays["curves/0/max_slope"]
    assert (slopes >= 1 - 1e-9).all()
    assert (slopes <= 6 + 1e-9).all()


def test_pairs_of_the_same_ending_are_known_as_such(result):
    (row,) = [r for r in of_kind(result, "curves") if r["pairs"] == "same ending"]
    assert result.arrays[f"curves/{row['number']}/same_ending"].all()


def test_hand_made_pairs_have_rows_and_curves(result):
    rows = sorted(of_kind(result, "pair"), key=lambda row: row["number"])
    assert [row["likeness"] for row in rows] == ["similar", "dissimilar"]
    for row in rows:
        assert result.arrays[f"pair/{row['number']}/r"][-1] == 1
        scaled = result.arrays.get(f"pair/{row['number']}/logits")
        assert (scaled is not None) == row["tops_differ"]
        if scaled is not None:
            assert scaled[[0, -1]].tolist() == [1.0, 0.0]


def test_every_model_has_the_same_planes(result):
    rows = of_kind(result, "slice")
    assert [(row["model"], row["plane"]) for row in rows] == [("toy", 0), ("random", 0)]
    for row in rows:
        assert result.arrays[f"slice/{row['number']}/distances"].shape == (3, 5, 5)
        assert row["margin"] == 0.25


# --- other models ---------------------------------------------------------------------------------


def test_snapshots_of_a_run_say_how_long_they_were_trained(subject, tmp_path):
    """In the order of training, each read at its own last site."""
    tokenizer = subject.language_model.tokenizer
    for step, n_layer in ((30, 3), (0, 3)):
        config = dataclasses.replace(subject.model.config, n_layer=n_layer)
        model = random_gpt2(config, seed=step)
        save_snapshot(model, tokenizer, tmp_path / "run", Moment(step=step, n_tokens=8 * step))
    found = dataclasses.replace(FEW, models=(str(tmp_path / "run"),)).run(subject)
    rows = [row for row in of_kind(found, "curves") if row["run"] and row["path"] == "line"]
    assert [(row["model"], row["n_tokens"]) for row in rows] == [
        ("run, step 0", 0),
        ("run, step 30", 240),
    ]
    own = of_kind(found, "curves")[0]
    assert (own["run"], own["n_tokens"]) == ("", -1)
    assert rows[0]["n_parameters"] > own["n_parameters"]


def test_a_model_compared_with_itself_finds_the_same(subject, tmp_path):
    save_model(subject.model, subject.language_model.tokenizer, tmp_path / "copy")
    found = dataclasses.replace(FEW, models=(str(tmp_path / "copy"),)).run(subject)
    first, *_, again = [row for row in of_kind(found, "curves") if row["path"] == "line"]
    assert again["model"] != first["model"]
    assert again["max_slope"] == pytest.approx(first["max_slope"], rel=1e-6)


# --- what has no answer ---------------------------------------------------------------------------


def test_behind_the_last_block_all_is_straight_and_no_neuron_switches(subject):
    """F linear: r(alpha) = alpha. Read where it is written, the output is the activation itself."""
    end = "blocks.1.hook_resid_post"
    found = dataclasses.replace(FEW, site=end, sites=(end,)).run(subject)
    row = of_kind(found, "curves")[0]
    assert row["max_slope"] == pytest.approx(1.0, rel=1e-4)
    assert not [name for name in row if "gate" in name]
    r = found.arrays["curves/0/r"]
    torch.testing.assert_close(r, torch.linspace(0, 1, 4).expand_as(r))


def test_prompts_that_all_end_differently_leave_a_warning(subject, monkeypatch, caplog):
    def without(subject, **sizes):
        sample = Sample.of(subject, **sizes)
        none = dataclasses.replace(sample.same_ending, a=sample.prompts[:0], b=sample.prompts[:0])
        return dataclasses.replace(sample, same_ending=none)

    monkeypatch.setattr(stable_regions, "Sample", type("Stub", (), {"of": staticmethod(without)}))
    with caplog.at_level(logging.WARNING):
        found = FEW.run(subject)
    assert "no two of the prompts end in the same token" in caplog.text
    assert {row["pairs"] for row in of_kind(found, "curves")} == {"sampled"}


def test_before_the_first_block_the_same_ending_is_the_same_activation(subject, caplog):
    with caplog.at_level(logging.WARNING):
        found = dataclasses.replace(FEW, site=FIRST, sites=(FIRST,)).run(subject)
    assert "all pairs of the same last token end where they begin" in caplog.text
    assert {row["pairs"] for row in of_kind(found, "curves")} == {"sampled"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_size": 1}, "prompt_size"),
        ({"n_alphas": 2}, "n_alphas"),
        ({"paths": ("arc",)}, "paths: "),
        ({"paths": ("line", "line")}, "paths: "),
        ({"n_pairs": 0}, "n_pairs"),
        ({"least_distance": -1.0}, "least_distance: -1.0 is negative"),
        ({"n_slices": -1}, "n_slices: -1 planes"),
        ({"slice_size": 1}, "slice_size=1"),
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
        dataclasses.replace(FEW, **change).run(subject)


def test_other_models_that_lack_a_site_or_have_short_contexts_are_refused(subject, tmp_path):
    """Before anything is run."""
    tokenizer, own = subject.language_model.tokenizer, subject.model.config
    for name, change in {"short": {"n_ctx": 4}, "flat": {"n_layer": 1}}.items():
        config = dataclasses.replace(own, **change)
        save_model(random_gpt2(config), tokenizer, tmp_path / name)
    short = dataclasses.replace(FEW, models=(str(tmp_path / "short"),))
    with pytest.raises(ValueError, match="contexts of 4 tokens, and prompt_size is 6"):
        short.run(subject)
    flat = dataclasses.replace(FEW, models=(str(tmp_path / "flat"),))
    with pytest.raises(ValueError, match=r"models \(.*flat\)"):
        flat.run(subject)


# --- what does not matter -------------------------------------------------------------------------


def test_a_rotated_copy_has_the_same_curves(subject):
    """Slopes, plateaus and gates are of the function, not of the stream's basis."""
    model = model_with_plain_norms(subject.model.config)

    def curves(own):
        language_model = dataclasses.replace(subject.language_model, model=own)
        return FEW.run(dataclasses.replace(subject, language_model=language_model, saes={})).arrays

    plain, again = curves(model), curves(turned(model, turn(32)))
    assert plain.keys() == again.keys()
    for name, values in plain.items():
        torch.testing.assert_close(again[name], values, rtol=1e-3, atol=1e-4, msg=name)
