"""The whole evaluation: against runs with the site edited, where zero is, what changes nothing."""

import dataclasses
import logging
import math

import pytest
import torch
import toy_subject
from turning import model_with_plain_norms, turn, turned

from sae_kit.evals.base import Compared
from sae_kit.evals.directions import directions as directions_module
from sae_kit.evals.directions.directions import DIRECTIONS
from sae_kit.evals.directions.sae_directions import SAE_DIRECTIONS
from sae_kit.evals.perturb.perturbation import Plan
from sae_kit.evals.perturb.pool import Gaussian
from sae_kit.evals.sensitive_directions import SensitiveDirections
from sae_kit.evals.shared.prompts import Prompts
from sae_kit.models.gpt2 import GPT2
from sae_kit.result import Result
from sae_kit.sae.topk import TopKConfig

SITE, READ = "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"
SMALL = SensitiveDirections(
    directions=(*DIRECTIONS, *SAE_DIRECTIONS),
    sites=(SITE,),
    lengths=(0.1, 0.5, 1.5),
    context_size=10,
    n_prompts=8,
    n_pool_prompts=16,
)
CURVES = dataclasses.replace(SMALL, substitutions=())
FEW = dataclasses.replace(SMALL, directions=("cov_mixture", "real_mixture"), substitutions=("sae",))


@pytest.fixture(scope="module")
def one(subject):
    """With an SAE at one site only, behind which positions still see one another."""
    return dataclasses.replace(subject, saes=toy_subject.random_saes((SITE,)))


@pytest.fixture(scope="module")
def result(one) -> Result:
    return SMALL.run(one)


def rows(result, kind):
    return {row["name"]: row for row in result.rows if row["kind"] == kind}


def curve(result, name, response="kl"):
    return result.arrays[f"curves/{SITE}/|{name}/{response}"]


def measures(row):
    return {key: value for key, value in row.items() if isinstance(value, float | int)}


def with_model(subject, model, sae=None):
    lm = dataclasses.replace(subject.language_model, model=model)
    saes = subject.saes if sae is None else {SITE: sae}
    return dataclasses.replace(subject, language_model=lm, saes=saes)


# --- against the model itself ---------------------------------------------------------------------


def prompts_of(subject, evaluation=SMALL):
    return Prompts.of(
        subject,
        context_size=evaluation.context_size,
        n_hosts=evaluation.n_prompts,
        n_others=evaluation.n_pool_prompts,
        drop_first_position=True,
        drop_special_tokens=True,
    )


def test_zero_ablation_is_what_a_run_with_the_site_edited_says(one, result):
    """All counting tokens at once, measured where a token comes next."""
    prompts = prompts_of(one)
    counts = prompts.hosts_count & (torch.arange(10) < 9)
    clean = one.model.run(prompts.hosts, capture=[READ])
    edited = one.model.run(
        prompts.hosts,
        capture=[READ],
        edit={SITE: lambda x: x.where(~counts[..., None], torch.zeros(()))},
    )
    log_p, log_q = (run.logits.double().log_softmax(-1) for run in (clean, edited))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    l2 = (edited.acts[READ] - clean.acts[READ]).double().norm(dim=-1)
    target = prompts.hosts.roll(-1, 1)[..., None]
    delta_ce = (log_p - log_q).gather(-1, target)[..., 0]
    row = rows(result, "substitution")["zero"]
    for name, values in {"kl": kl, "l2": l2, "delta_ce": delta_ce}.items():
        assert row[name] == pytest.approx(values[counts].mean().item(), rel=1e-4), name


def test_a_ray_is_what_a_run_with_the_site_edited_says(one, result):
    """Tokens that do not count are left where they are: others attend to them."""
    prompts = prompts_of(one)
    counts = prompts.hosts_count & (torch.arange(10) < 9)
    clean = one.model.run(prompts.hosts, capture=[SITE])
    x = clean.acts[SITE]
    length = SMALL.lengths[1] * result.scalars[f"unit/{SITE}"]
    error = one.saes[SITE](x) - x
    moved = x + length * error / error.norm(dim=-1, keepdim=True)
    edited = one.model.run(prompts.hosts, edit={SITE: lambda x: moved.where(counts[..., None], x)})
    log_p, log_q = (run.logits.double().log_softmax(-1) for run in (clean, edited))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[counts]
    assert curve(result, "sae_error")[0, 1].item() == pytest.approx(kl.mean().item(), rel=1e-3)
    quartiles = kl.quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    drawn = curve(result, "sae_error", "kl/quartiles")[:, 1]
    torch.testing.assert_close(drawn, quartiles, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("position", [4, -1])
def test_one_position_is_perturbed_alone(one, position):
    evaluation = dataclasses.replace(
        FEW, directions=("toward_zero",), substitutions=("zero",), position=position, unit=1.0
    )
    found = evaluation.run(one)
    prompts = prompts_of(one)
    counts = prompts.hosts_count[:, position]
    clean = one.model.run(prompts.hosts, capture=[SITE])
    x = clean.acts[SITE][:, position]

    def kl(perturbed):
        def put(acts):
            acts = acts.clone()
            acts[:, position] = perturbed
            return acts

        edited = one.model.run(prompts.hosts, edit={SITE: put})
        log_p, log_q = (r.logits[:, position].double().log_softmax(-1) for r in (clean, edited))
        return (log_p.exp() * (log_p - log_q)).sum(-1)[counts].mean().item()

    drawn = curve(found, "toward_zero")[0]
    for i, length in enumerate(SMALL.lengths):
        shrunk = x * (1 - length / x.norm(dim=-1, keepdim=True))
        assert drawn[i].item() == pytest.approx(kl(shrunk), rel=1e-3, abs=1e-6)
    row = rows(found, "substitution")["zero"]
    assert row["kl"] == pytest.approx(kl(torch.zeros_like(x)), rel=1e-4)
    assert ("delta_ce" in row) == (position == 4), "the last token has no next one"


# --- known answers --------------------------------------------------------------------------------


def test_a_length_of_zero_does_exactly_nothing(one):
    found = dataclasses.replace(CURVES, lengths=(0.0, 0.5)).run(one)
    for name in SMALL.directions:
        for response in ("kl", "l2", "kl/quartiles", "l2/quartiles"):
            values = curve(found, name, response)
            assert (values[:, 0] == 0).all(), (name, response)
            assert (values[:, 1] > 0).all(), (name, response)


def test_no_kl_is_negative(result):
    for name, array in result.arrays.items():
        if name.endswith(("/kl", "/kl/quartiles")):
            assert array.min() >= -1e-6, name


def test_double_precision_shows_the_quadratic_regime(one):
    """KLs of 1e-9, which in single precision would be rounding, quadruple with the length."""
    double = with_model(one, GPT2(one.model.config).double().requires_grad_(False))
    double.model.load_state_dict({k: v.double() for k, v in one.model.state_dict().items()})
    found = dataclasses.replace(CURVES, lengths=(1e-4, 2e-4)).run(double)
    for name in SMALL.directions:
        kl = curve(found, name)[0]
        assert kl[0] < 1e-5
        assert (kl[1] / kl[0]).log2().item() == pytest.approx(2, abs=0.01), name


def test_an_sae_that_errs_nowhere_does_nothing(one):
    """SAE(x) + (x - SAE(x)) is x."""
    perfect = dataclasses.replace(one, saes={SITE: toy_subject.identity_sae(32)})
    found = rows(dataclasses.replace(SMALL, directions=("isotropic",)).run(perfect), "substitution")
    for name in set(found) - {"zero", "mean"}:
        assert abs(found[name]["kl"]) < 1e-5, name
        assert abs(found[name]["delta_ce"]) < 1e-4, name
    assert found["zero"]["kl"] > 0.01


def test_an_sae_that_gives_zero_is_zero_ablation(one):
    nothing = dataclasses.replace(one, saes={SITE: toy_subject.constant_sae(torch.zeros(32))})
    found = rows(dataclasses.replace(SMALL, directions=("isotropic",)).run(nothing), "substitution")
    row = found["sae"]
    assert (row["kl"], row["l2"]) == (found["zero"]["kl"], found["zero"]["l2"])
    assert (row["epsilon"], row["cosine"], row["l0"]) == (pytest.approx(row["norm"]), 0.0, 0.0)


def test_the_error_is_reached_where_the_reconstruction_is(one):
    """At a length of epsilon, which is other for every token, the curve would be at SAE(x)."""
    at_error = rows(FEW.run(one), "substitution")["sae"]
    evaluation = dataclasses.replace(
        SMALL,
        directions=("sae_error",),
        unit=1.0,
        lengths=(at_error["epsilon"] / 2, at_error["epsilon"] * 2),
    )
    kl = curve(evaluation.run(one), "sae_error")[0]
    assert kl[0] < at_error["kl"] < kl[1]


def test_lengths_are_multiples_of_the_median_norm_unless_a_unit_is_given(one, result):
    unit = result.scalars[f"unit/{SITE}"]
    prompts = prompts_of(one)
    real = one.model.run(prompts.others, capture=[SITE]).acts[SITE][prompts.others_count]
    assert unit == pytest.approx(real.norm(dim=-1).median().item(), rel=1e-5)
    absolute = dataclasses.replace(
        CURVES, unit=1.0, lengths=tuple(length * unit for length in SMALL.lengths)
    ).run(one)
    for name in SMALL.directions:
        torch.testing.assert_close(curve(absolute, name), curve(result, name), rtol=1e-4, atol=1e-6)


def test_a_mixture_is_as_sensitive_as_itself(result):
    row = rows(result, "curve")["cov_mixture"]
    assert [row[f"kl_area_ratio{end}"] for end in ("", "_low", "_high")] == [1.0, 1.0, 1.0]


# --- what changes nothing (METHODS §11.4) ---------------------------------------------------------


@pytest.mark.slow
def test_groups_and_memory_change_nothing_but_rounding(one, result, monkeypatch):
    def cut(model, place, n_context, memory_mb):
        return Plan(
            place=place, n_pos=10, n_hosts=3, n_rows=30, flop_per_row=1.0, flop_per_pass=1.0
        )

    monkeypatch.setattr(Plan, "of", cut)
    for ours, whole in zip(SMALL.run(one).rows, result.rows, strict=True):
        assert measures(ours) == pytest.approx(measures(whole), rel=1e-3, abs=1e-5)


def test_other_directions_and_sites_change_nothing(subject, one, result):
    """Draws belong to a name: what else is measured plays no part."""
    found = FEW.run(dataclasses.replace(subject, saes={**subject.saes, **one.saes}))
    assert len({row["site"] for row in found.rows if row["kind"] == "substitution"}) == 4
    for name in FEW.directions:
        torch.testing.assert_close(curve(found, name), curve(result, name), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_rotated_copy_has_the_same_numbers(one, monkeypatch):
    """Model, SAE and draws turned together. LayerNorm lets a turn about (1, ..., 1) pass if its
    gain and bias are folded away; covariance-shaped draws turn along with a symmetric root."""
    q, model = turn(32), model_with_plain_norms(one.model.config)
    sae, other = (
        TopKConfig(d_sae=96, k=4).build(32, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    weights = other.weights()
    other.load_weights(
        {
            "W_enc": q.T @ weights["W_enc"],
            "b_enc": weights["b_enc"],
            "W_dec": weights["W_dec"] @ q,
            "b_dec": weights["b_dec"] @ q,
        }
    )

    def shaped(self, standard):
        values, vectors = torch.linalg.eigh(self.covariance)
        return standard @ ((vectors * values.sqrt()) @ vectors.T).to(standard)

    monkeypatch.setattr(Gaussian, "shaped", shaped)
    plain = SMALL.run(with_model(one, model, sae))
    drawn = directions_module.standard_normal
    monkeypatch.setattr(directions_module, "standard_normal", lambda *given: drawn(*given) @ q)
    again = SMALL.run(with_model(one, turned(model, q), other))
    for ours, theirs in zip(again.rows, plain.rows, strict=True):
        assert measures(ours) == pytest.approx(measures(theirs), rel=5e-3, abs=1e-4), ours["name"]


# --- several sets, or none ------------------------------------------------------------------------


def test_sets_that_are_compared_have_rows_of_their_own(one, result):
    both = tuple(Compared(label=label, saes=one.saes) for label in ("a", "b/c"))
    found = SMALL.run(dataclasses.replace(one, saes={}, compared=both))
    for kind in ("curve", "substitution"):
        for label in ("a", "b/c"):
            own = [r for r in found.rows if (r["kind"], r["saes"]) == (kind, label)]
            expected = [
                row
                for row in result.rows
                if row["kind"] == kind and (kind == "substitution" or "l0" in row)
            ]
            for ours, alone in zip(own, expected, strict=True):
                assert ours["name"] == alone["name"]
                assert measures(ours) == pytest.approx(measures(alone), rel=1e-4, abs=1e-6)
    baselines = [row["name"] for row in found.rows if row["kind"] == "curve" and not row["saes"]]
    assert baselines == list(DIRECTIONS), "measured once"


def test_a_model_without_saes_has_directions_of_its_own(one):
    alone = dataclasses.replace(one, saes={})
    found = dataclasses.replace(FEW, sites=None).run(alone)
    assert {row["kind"] for row in found.rows} == {"curve"}
    assert {row["site"] for row in found.rows} == {"blocks.1.hook_resid_pre"}
    for evaluation in (SMALL, dataclasses.replace(FEW, directions=())):
        with pytest.raises(ValueError, match="saes: none given"):
            evaluation.run(alone)


def test_the_middle_site_is_the_default(subject):
    found = dataclasses.replace(FEW, sites=None, substitutions=()).run(subject)
    assert {row["site"] for row in found.rows} == {toy_subject.SITES[1]}
    assert {row["kind"] for row in found.rows} == {"curve"}


def test_kinds_of_latents_that_there_are_none_of_are_left_out_and_told_of(one, caplog):
    nothing = dataclasses.replace(one, saes={SITE: toy_subject.identity_sae(32)})
    evaluation = dataclasses.replace(
        SMALL, directions=("active_decoder", "dead_decoder"), context_size=32, substitutions=()
    )
    with caplog.at_level(logging.WARNING):
        found = evaluation.run(nothing)
    assert list(rows(found, "curve")) == ["active_decoder"]
    assert "dead_decoder left out" in caplog.text


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"directions": ("isotropc",)},
            "directions: there is no 'isotropc'; give one of isotropic",
        ),
        ({"substitutions": ("sea",)}, "substitutions: there is no 'sea'; give one of sae"),
        ({"directions": ("isotropic", "isotropic")}, "directions: .* has one twice"),
        ({"directions": (), "substitutions": ()}, "directions: none, and no substitutions"),
        ({"lengths": ()}, "lengths: none given"),
        ({"lengths": (2.0, 1.0)}, r"lengths: \[2.0, 1.0\] do not increase"),
        ({"lengths": (-1.0, 1.0)}, "lengths: -1.0 is negative"),
        ({"lengths": (1.0, math.inf)}, "lengths: .* do not increase"),
        ({"thresholds": (0.0,)}, r"thresholds: \[0.0\]; give positive"),
        ({"unit": 0.0}, "unit: 0.0 is not positive"),
        ({"n_prompts": 0}, "n_prompts: 0 is not positive"),
        ({"n_pool_rows": 1}, "n_pool_rows: 1 has no two activations"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changed)


def test_subjects_that_do_not_fit_are_refused(one):
    with pytest.raises(ValueError, match=r"n_pool_prompts: 3 prompts .* at least 33"):
        dataclasses.replace(SMALL, n_pool_prompts=3).run(one)
    with pytest.raises(ValueError, match="sites: the model has no site 'blocks"):
        dataclasses.replace(SMALL, sites=("blocks.7.hook_resid_pre",)).run(one)
    config = TopKConfig(d_sae=16, k=2, apply_b_dec_to_input=False)
    transcoder = config.build(32, 32, generator=torch.Generator().manual_seed(0))
    transcoder.metadata = {"hook_name_out": READ}
    with pytest.raises(ValueError, match=r"saes: .* is a transcoder"):
        SMALL.run(dataclasses.replace(one, saes={SITE: transcoder}))
