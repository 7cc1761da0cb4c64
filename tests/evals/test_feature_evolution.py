"""feature_evolution: planted copies from end to end, a resumed run, bad settings."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import toy_subject

from sae_kit.data.activations import Passes
from sae_kit.evals.base import Subject
from sae_kit.evals.evolution import cooccurrence
from sae_kit.evals.feature_evolution import FeatureEvolution
from sae_kit.result import Result

UP, DOWN = "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"
NAME = f"{UP}>{DOWN}"
ORDER = torch.randperm(96, generator=torch.Generator().manual_seed(3))
SMALL = {"n_tokens": 4096, "n_ablated": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAE_KIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def silent_block(folder: Path) -> Subject:
    """Block 1 adds nothing, and the SAE behind it is the one before it, its latents permuted."""
    model = copy.deepcopy(toy_subject.model())
    block = model.blocks[1]
    with torch.no_grad():
        for tensor in (*block.attn.parameters(), *block.mlp.parameters()):
            tensor.zero_()
    saes = toy_subject.random_saes((UP, DOWN))
    weights = saes[UP].weights()
    permuted = {
        "W_enc": weights["W_enc"][:, ORDER],
        "b_enc": weights["b_enc"][ORDER],
        "W_dec": weights["W_dec"][ORDER],
        "b_dec": weights["b_dec"],
    }
    saes[DOWN].load_weights(permuted)
    subject = toy_subject.subject(folder, saes)
    lm = dataclasses.replace(subject.language_model, model=model)
    return dataclasses.replace(subject, language_model=lm)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("copied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_KIT_CACHE", str(folder / "cache"))
        return FeatureEvolution(**SMALL).run(silent_block(folder))


def test_a_permuted_copy_is_passed_on_whole_and_the_permutation_recovered(copied):
    (row,) = copied.rows
    assert row["n_up"] == row["n_down"] > 20
    assert row["disappearing"] == row["appearing"] == 0
    assert row["best_up"] == pytest.approx(1)
    index, pearson = (copied.arrays[f"pairs/{NAME}/{name}"] for name in ("index", "pearson"))
    same = index[pearson > 0.9999]
    assert len(same) >= row["n_up"]
    assert torch.equal(ORDER[same[:, 1]], same[:, 0])


def test_measures_of_a_copy_are_those_of_identity(copied):
    index = copied.arrays[f"pairs/{NAME}/index"]
    own = ORDER[index[:, 1]] == index[:, 0]
    judged = copied.arrays[f"matches/{NAME}/judged_up"][index[:, 0]]
    for name in ("cosine", "jaccard", "necessity", "sufficiency", "decoder_cosine"):
        values = copied.arrays[f"pairs/{NAME}/{name}"][own & judged]
        torch.testing.assert_close(values, torch.ones_like(values), msg=name)


def test_communities_hold_a_latent_and_its_copy(copied):
    up, down = (copied.arrays[f"community/{site}"] for site in (UP, DOWN))
    judged = copied.arrays[f"matches/{NAME}/judged_down"]
    assert (down[judged] >= 0).all()
    assert torch.equal(up[ORDER][judged], down[judged])
    assert copied.scalars["n_communities"] == len(down[down >= 0].unique())


def test_ablating_a_latent_takes_its_copy_away(copied):
    """Where the copy was among the k strongest, it fires with what is left: a TopK latent whose
    direction is taken out of the stream is gone, or nearly.
    """
    index = copied.arrays[f"ablation/{NAME}/index"]
    lost = copied.arrays[f"ablation/{NAME}/share_lost"]
    own = ORDER[index[:, 1]] == index[:, 0]
    assert own.any()
    assert lost[own].median() > 0.5


def test_latents_seen_first_where_they_fire_first(copied):
    first, n_active = (copied.arrays[f"{name}/{UP}"] for name in ("first", "n_active"))
    assert torch.equal(first >= 0, n_active > 0)
    assert first.max() < copied.scalars["n_positions"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_what_it_had(tmp_path, cache, monkeypatch):
    subject = toy_subject.subject(tmp_path)
    settings = FeatureEvolution(n_tokens=1024, n_ablated=0)
    whole = settings.run(subject)
    assert not list(cache.glob("evaluations/*"))
    compare, n_calls = cooccurrence.compare, []

    def failing(*args, **kwargs):
        n_calls.append(1)
        if len(n_calls) == 2:
            raise KeyboardInterrupt
        return compare(*args, **kwargs)

    monkeypatch.setattr("sae_kit.evals.feature_evolution.compare", failing)
    with pytest.raises(KeyboardInterrupt):
        settings.run(subject)
    monkeypatch.setattr(Passes, "rows", lambda *_: pytest.fail("read the text again"))
    again = settings.run(subject)
    assert len(n_calls) == 3  # the second pair only
    assert again.rows == whole.rows
    for name, array in whole.arrays.items():
        assert torch.equal(again.arrays[name], array), name


@pytest.mark.slow
def test_the_batch_size_makes_no_difference(tmp_path):
    subject = toy_subject.subject(tmp_path)
    one, other = (
        FeatureEvolution(n_tokens=1024, n_ablated=0, contexts_per_pass=n).run(subject)
        for n in (1, 16)
    )
    for name in ("index", "n_both"):
        key = f"pairs/{toy_subject.SITES[0]}>{toy_subject.SITES[1]}/{name}"
        assert torch.equal(one.arrays[key], other.arrays[key])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"measure": "r2"}, "measure: 'r2' is none of pearson"),
        ({"level": 0.0}, "level: 0.0 is not above 0"),
        ({"least": 1.5}, "least: 1.5"),
        ({"boolean_certain": 0.0}, "boolean_certain"),
        ({"n_ablated": -1}, "n_ablated: -1"),
        ({"relative": 1.0}, "relative: 1.0"),
        ({"resolution": 0.0}, "resolution: 0.0"),
        ({"n_both": 0}, "n_both"),
    ],
)
def test_bad_settings_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        FeatureEvolution(**bad)


def test_a_text_too_short_for_the_support_is_refused_before_the_model_runs(tmp_path, monkeypatch):
    subject = toy_subject.subject(tmp_path)
    monkeypatch.setattr(Passes, "rows", lambda *_: pytest.fail("ran the model"))
    with pytest.raises(ValueError, match=r"n_tokens: 128 tokens have \d+ positions .* ask for 10"):
        FeatureEvolution(n_tokens=128).run(subject)


@pytest.mark.slow
def test_components_need_no_resolution(tmp_path):
    result = FeatureEvolution(n_tokens=1024, n_ablated=0, communities="components").run(
        toy_subject.subject(tmp_path)
    )
    assert result.scalars["community_agreement"] == 1
