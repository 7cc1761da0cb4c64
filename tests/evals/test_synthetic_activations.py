"""The evaluation on a small random model: what its numbers must be."""

import dataclasses

import pytest
import toy_subject

from sae_kit.evals.synthetic_activations import SyntheticActivations

SITE = "blocks.0.hook_resid_pre"
SMALL = SyntheticActivations(
    types=("model_generated", "random", "sae_reconstruction", "baseline", "structured"),
    site=SITE,
    n_prompts=12,
    n_pool_prompts=60,
    prompt_size=6,
    n_steps=15,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def subject(tmp_path_factory, cache):
    return toy_subject.subject(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def result(subject):
    return SMALL.run(subject)


def of(result, kind: str, name: str, **where) -> dict:
    rows = [row for row in result.rows if (row["kind"], row["type"]) == (kind, name)]
    (found,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return found


def test_every_type_has_curves_that_begin_at_zero(result):
    for name in SMALL.types:
        for response in ("l2", "kl", "js"):
            curves = result.arrays[f"toward/{name}/{response}"]
            assert curves.shape == (12, 16)
            assert (curves[:, 0] == 0).all()
            assert (curves[:, -1] > 0).all()
        assert (result.arrays[f"plateau/{name}"][:, 0] == 0).all()


def test_the_real_type_is_no_distance_from_itself(result):
    for response in ("l2", "kl", "js"):
        row = of(result, "toward", "model_generated", response=response)
        assert row["ms_ks"] == row["nl_ks"] == row["auc_ks"] == 0.0
        matrix = result.arrays[f"ks/{response}/ms"]
        other = of(result, "toward", SMALL.types[1], response=response)
        assert matrix[0, 1].item() == pytest.approx(other["ms_ks"])


def test_means_are_of_the_steps_that_are_kept(result):
    for name in SMALL.types:
        steps = result.arrays[f"steps/{name}/l2/ms"]
        row = of(result, "toward", name, response="l2")
        assert row["ms"] == pytest.approx(steps.mean().item())
        assert row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert 0 <= row["ms"] <= 15


def test_a_reconstruction_by_a_perfect_sae_behaves_as_the_activation_itself(subject, cache):
    perfect = dataclasses.replace(subject, saes={SITE: toy_subject.identity_sae(32)})
    types = ("model_generated", "sae_reconstruction")
    result = dataclasses.replace(SMALL, types=types).run(perfect)
    for response in ("l2", "kl"):
        real, recon = (result.arrays[f"toward/{name}/{response}"] for name in types)
        assert (recon - real).abs().max() < 1e-3 * real.max()
    assert of(result, "audit", types[1])["norm"] == pytest.approx(
        of(result, "audit", types[0])["norm"], rel=1e-4
    )


@pytest.mark.slow
def test_a_plateau_is_as_long_as_the_threshold_makes_it(subject, cache):
    lengths = []
    for threshold in (1e-6, 1e9):
        result = dataclasses.replace(SMALL, plateau_threshold=threshold).run(subject)
        lengths.append(of(result, "plateau", "random")["ap"])
    assert lengths == [1.0, 15.0]


def test_the_audit_counts_latents(result):
    for name in ("model_generated", "baseline", "structured"):
        assert of(result, "audit", name)["l0"] <= 4  # k of the toy SAEs
    assert of(result, "audit", "model_generated")["distance"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"types": ("model_generated", "rnadom")}, "there is no 'rnadom'; give one of random"),
        ({"types": ("random",)}, "'model_generated' among them"),
        ({"prompt_size": 1}, "prompt_size"),
        ({"n_steps": 5}, "n_steps"),
        ({"step": 0.0}, "step: 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SyntheticActivations(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "blocks.1.hook_resid_pre"}, "site: no SAE at 'blocks.1.hook_resid_pre'"),
        ({"read": "hook_embed", "site": "blocks.1.hook_resid_post"}, "read: 'hook_embed' comes"),
        ({"n_pool_prompts": 20}, "takes at least 33"),
        ({"n_pool_prompts": 10**6}, "the held-out text has"),
    ],
)
def test_what_does_not_fit_the_subject_is_refused(subject, cache, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change).run(subject)
