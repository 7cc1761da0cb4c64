"""core: SAEs with known answers, every column by hand, what counts and what does not."""

import copy
import dataclasses
import logging
import math

import pytest
import torch
import torch.nn.functional as F
import toy_subject
from torch.testing import assert_close

from sae_kit.evals import base
from sae_kit.evals.core import Core
from sae_kit.models.gpt2 import GPT2
from sae_kit.sae.code import SparseCode
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

MODEL = toy_subject.model()
SITE = "blocks.1.hook_resid_pre"
WHOLE = "blocks.0.hook_mlp_out"
SMALL = Core(n_tokens=1024, n_splice_tokens=512)
COLUMNS = [
    *("site", "l0", "fvu", "cosine", "norm_ratio", "dead_fraction", "dense_fraction"),
    *("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "ce_recovered", "delta_ce", "kl"),
]


def measure(subject, sae, site=SITE, evaluation=SMALL):
    return evaluation.run(dataclasses.replace(subject, saes={site: sae})).rows[0]


def without_site(row):
    return {key: value for key, value in row.items() if key not in ("site", "writes")}


@pytest.fixture(scope="module")
def result(subject):
    return SMALL.run(subject)


def random_relu(site=SITE):
    width = MODEL.width(site)
    sae = ReLUConfig(d_sae=48).build(width, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        sae.b_enc.normal_(-0.5, 0.5, generator=torch.Generator().manual_seed(6))
    return sae


# --- known answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [SITE, WHOLE, "blocks.0.attn.hook_z"])
def test_an_identity_sae_loses_nothing(subject, site):
    row = measure(subject, toy_subject.identity_sae(MODEL.width(site)), site)
    assert row["fvu"] == row["fvu_low"] == row["fvu_high"] == 0
    assert_close(torch.tensor([row["cosine"], row["norm_ratio"]]), torch.ones(2))
    if site == SITE:  # elsewhere the runs take another path through the kernels
        assert row["kl"] == row["delta_ce"] == 0
        assert row["ce_recovered"] == row["ce_recovered_mean"] == 1
    assert abs(row["kl"]) < 1e-6
    assert abs(row["delta_ce"]) < 1e-6


def test_an_sae_that_says_zero_is_zero_ablation(subject):
    row = measure(subject, toy_subject.constant_sae(torch.zeros(32)))
    assert row["ce_spliced"] == row["ce_zero"] != row["ce_clean"]
    assert row["ce_recovered"] == 0
    assert row["l0"] == row["norm_ratio"] == row["cosine"] == 0
    assert (row["dead_fraction"], row["dense_fraction"]) == (1, 0)


def test_an_sae_that_says_the_mean_is_mean_ablation(subject):
    mean = SMALL.run(
        dataclasses.replace(subject, saes={SITE: toy_subject.identity_sae(32)})
    ).arrays[f"mean/{SITE}"]
    row = measure(subject, toy_subject.constant_sae(mean))
    assert row["ce_spliced"] == row["ce_mean"] != row["ce_clean"]
    assert row["ce_recovered_mean"] == 0
    assert row["fvu"] == pytest.approx(1, abs=1e-6)


def test_the_columns_and_their_order(result):
    assert [row["site"] for row in result.rows] == list(toy_subject.SITES)
    for row in result.rows:
        assert list(row)[: len(COLUMNS)] == COLUMNS
        assert all(math.isfinite(value) for value in without_site(row).values())


# --- every column by hand -------------------------------------------------------------------------


def counting(contexts):
    counts = contexts != toy_subject.tokenizer().eot_id
    counts[:, 0] = False
    return counts


@pytest.mark.parametrize("sae", ["topk", "relu"])
def test_statistics_are_what_the_dense_code_of_all_rows_says(subject, sae):
    site = toy_subject.SITES[2]
    sae = copy.deepcopy(subject.saes[site]) if sae == "topk" else random_relu(site)
    # Rare, so that there are dead latents as well as dense ones.
    with torch.no_grad():
        sae.b_enc[:7] = -1e3
    contexts = subject.contexts(SMALL.n_tokens)
    x = MODEL.run(contexts, capture=[site]).acts[site][counting(contexts)].double()
    with torch.no_grad():
        code = sae.encode(x.float())
        recon = sae(x.float()).double()
    active = code != 0
    frequency = active.double().mean(0)
    run = SMALL.run(dataclasses.replace(subject, saes={site: sae}))
    row = run.rows[0]
    expected = {
        "l0": active.sum(-1).double().mean(),
        "fvu": (x - recon).square().sum() / (x - x.mean(0)).square().sum(),
        "cosine": F.cosine_similarity(x, recon).mean(),
        "norm_ratio": recon.norm(dim=-1).mean() / x.norm(dim=-1).mean(),
        "dead_fraction": (frequency == 0).double().mean(),
        "dense_fraction": (frequency > 0.1).double().mean(),
    }
    for column, value in expected.items():
        assert row[column] == pytest.approx(value.item(), rel=1e-5), column
    assert 0 < row["dead_fraction"] < 1
    assert 0 < row["dense_fraction"] < 1
    assert_close(run.arrays[f"frequency/{site}"], frequency)
    assert_close(run.arrays[f"mean/{site}"], x.mean(0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("site", [SITE, WHOLE])
def test_effects_are_what_edited_runs_from_the_tokens_say(subject, site):
    sae = random_relu(site)
    contexts = subject.contexts(SMALL.n_tokens)
    n_splice = SMALL.n_splice_tokens // toy_subject.CONTEXT
    counts = counting(contexts)
    mean = MODEL.run(contexts, capture=[site]).acts[site][counts].mean(0)
    contexts, counts = contexts[:n_splice], counts[:n_splice]
    scored = counts[:, :-1]

    def log_probs(edit):
        def outside(acts):
            return torch.where(counts[..., None], edit(acts), acts)

        return MODEL.run(contexts, edit={site: outside}).logits[:, :-1][scored].log_softmax(-1)

    def ce(log_p):
        return F.nll_loss(log_p, contexts[:, 1:][scored]).item()

    with torch.no_grad():
        clean, spliced = log_probs(lambda x: x), log_probs(sae)
        zero, to_mean = log_probs(torch.zeros_like), log_probs(lambda x: mean.expand_as(x))
    row = measure(subject, sae, site)
    expected = {"ce_clean": clean, "ce_spliced": spliced, "ce_zero": zero, "ce_mean": to_mean}
    for column, log_p in expected.items():
        assert row[column] == pytest.approx(ce(log_p), rel=1e-5), column
    assert row["delta_ce"] == pytest.approx(ce(spliced) - ce(clean), rel=1e-4)
    recovered = (ce(zero) - ce(spliced)) / (ce(zero) - ce(clean))
    assert row["ce_recovered"] == pytest.approx(recovered, rel=1e-4)
    # torch's argument order is (perturbed, clean)
    kl = F.kl_div(spliced, clean, log_target=True, reduction="batchmean").item()
    reverse = F.kl_div(clean, spliced, log_target=True, reduction="batchmean").item()
    assert row["kl"] == pytest.approx(kl, rel=1e-4)
    assert row["kl"] != pytest.approx(reverse, rel=1e-2)


def test_dead_latents_are_those_of_the_whole_text_not_of_the_spliced_part(subject):
    some = Core(n_tokens=512, n_splice_tokens=512)
    more = Core(n_tokens=8192, n_splice_tokens=512)
    site = toy_subject.SITES[2]
    few, many = (measure(subject, subject.saes[site], site, one) for one in (some, more))
    assert many["dead_fraction"] < few["dead_fraction"]
    assert many["ce_spliced"] == few["ce_spliced"]


def test_intervals_hold_their_estimates_and_a_constant_has_none(result):
    for row in result.rows:
        for column in ("l0", "fvu", "kl", "delta_ce"):
            low, high = row[f"{column}_low"], row[f"{column}_high"]
            assert low <= row[column] <= high
            if column != "l0":
                assert low < high
        # Every row has 4 active latents, though contexts have different numbers of rows.
        assert row["l0_low"] == pytest.approx(4)
        assert row["l0_high"] == pytest.approx(4)


# --- transcoders ----------------------------------------------------------------------------------

READS, WRITES = "blocks.0.attn.hook_z", "blocks.0.hook_attn_out"


def skip_transcoder(writes=WRITES):
    """What attention writes is a linear function of its mixed values, which a skip connection is.

    Its latents are random, and their decoder rows zero.
    """
    config = TopKConfig(d_sae=16, k=2, apply_b_dec_to_input=False, skip=True)
    sae = config.build(32, 32, generator=torch.Generator().manual_seed(0))
    attn = MODEL.blocks[0].attn
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.W_skip.copy_(attn.W_O.T)
        sae.b_dec.copy_(attn.b_O)
    sae.metadata = {"hook_name_out": writes}
    return sae


def test_a_transcoder_that_computes_what_the_model_does_loses_nothing(subject):
    row = measure(subject, skip_transcoder(), READS)
    assert (row["site"], row["writes"]) == (READS, WRITES)
    assert row["fvu"] < 1e-10
    assert_close(torch.tensor([row["cosine"], row["norm_ratio"]]), torch.ones(2))
    assert abs(row["kl"]) < 1e-6
    assert row["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert row["l0"] > 0.5


def test_a_transcoder_is_measured_at_the_site_it_writes(subject):
    """Against the same vectors as an autoencoder of that site, and with the same ablations."""
    other = measure(subject, toy_subject.identity_sae(32), WRITES)
    row = measure(subject, skip_transcoder(), READS)
    for column in ("ce_clean", "ce_zero", "ce_mean"):
        assert row[column] == pytest.approx(other[column], rel=1e-6)
    sae = skip_transcoder()
    with torch.no_grad():
        sae.b_dec[0] += 1
    changed = measure(subject, sae, READS)
    contexts = subject.contexts(SMALL.n_tokens)
    x = MODEL.run(contexts, capture=[WRITES]).acts[WRITES][counting(contexts)].double()
    assert changed["fvu"] == pytest.approx(len(x) / (x - x.mean(0)).square().sum().item())
    assert changed["kl"] > 1e-4


def test_a_transcoder_beside_an_autoencoder_is_the_same(subject):
    saes = {READS: skip_transcoder(), SITE: random_relu()}
    both = SMALL.run(dataclasses.replace(subject, saes=saes)).rows
    assert [row["site"] for row in both] == [READS, SITE]
    assert both[1] == measure(subject, random_relu())


# --- what counts ----------------------------------------------------------------------------------


@pytest.fixture
def outlier(monkeypatch):
    """A model whose position 0 has a norm far above any other."""
    model = GPT2(MODEL.config).requires_grad_(False)
    model.load_state_dict(MODEL.state_dict())
    model.W_pos[0] *= 1000
    return model


def test_the_first_position_does_not_reach_the_statistics_unless_asked_for(subject, outlier):
    site = "blocks.0.hook_resid_pre"  # where position 0 cannot have reached the others
    lm = dataclasses.replace(subject.language_model, model=outlier)
    other = dataclasses.replace(subject, language_model=lm)
    sae = subject.saes[site]
    columns = ("l0", "fvu", "cosine", "norm_ratio", "dead_fraction", "dense_fraction")
    plain, changed = measure(subject, sae, site), measure(other, sae, site)
    assert [plain[c] for c in columns] == [changed[c] for c in columns]
    # Position 0 holds the BOS token, which is special as well.
    keep = dataclasses.replace(SMALL, drop_first_position=False, drop_special_tokens=False)
    assert abs(measure(other, sae, site, keep)["fvu"] - plain["fvu"]) > 0.01


def test_special_tokens_count_only_if_asked_for(subject):
    keep = dataclasses.replace(SMALL, drop_special_tokens=False)
    assert (
        measure(subject, random_relu())["l0"] != measure(subject, random_relu(), SITE, keep)["l0"]
    )


def test_positions_other_than_in_training_are_warned_about(subject, caplog):
    sae = toy_subject.identity_sae(32)
    sae.metadata = {"drop_first_position": False, "drop_special_tokens": True}
    with caplog.at_level(logging.WARNING):
        measure(subject, sae)
    assert "drop_first_position=True" in caplog.text
    assert "drop_special_tokens" not in caplog.text


# --- invariances ----------------------------------------------------------------------------------


def test_the_size_of_the_passes_does_not_matter(subject, result, monkeypatch):
    monkeypatch.setattr(base, "MAX_LOGITS", 1)
    single = dataclasses.replace(SMALL, contexts_per_pass=1).run(subject)
    for one, other in zip(single.rows, result.rows, strict=True):
        assert without_site(one) == pytest.approx(without_site(other), rel=1e-5, abs=1e-6)


def test_other_sites_do_not_matter(subject, result):
    site = toy_subject.SITES[1]
    assert measure(subject, subject.saes[site], site) == result.rows[1]


def test_latents_in_other_units_are_the_same_sae(subject):
    plain, scaled = random_relu(), random_relu()
    weights = {name: tensor.clone() for name, tensor in plain.weights().items()}
    units = torch.rand(48, generator=torch.Generator().manual_seed(8)) + 0.5
    weights["W_enc"] *= units
    weights["b_enc"] *= units
    weights["W_dec"] /= units[:, None]
    scaled.load_weights(weights)
    one, other = without_site(measure(subject, plain)), without_site(measure(subject, scaled))
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_a_sparse_code_is_never_made_dense(subject, monkeypatch):
    def refuse(self):
        raise AssertionError("dense")

    monkeypatch.setattr(SparseCode, "dense", refuse)
    SMALL.run(subject)


# --- refusals -------------------------------------------------------------------------------------


def test_a_subject_without_saes_is_refused(subject):
    with pytest.raises(ValueError, match="saes: none given"):
        SMALL.run(dataclasses.replace(subject, saes={}))


@pytest.mark.parametrize("name", ["n_tokens", "n_splice_tokens", "contexts_per_pass"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name}: 0 is not positive"):
        Core(**{name: 0})


def test_more_spliced_tokens_than_tokens_are_refused():
    with pytest.raises(ValueError, match="n_splice_tokens: 200 is more than n_tokens=100"):
        Core(n_tokens=100, n_splice_tokens=200)


def test_text_in_which_no_position_counts_is_refused(subject, folder):
    """Contexts of two tokens: the first is dropped, the second has no next token."""
    short = dataclasses.replace(subject, tokens=toy_subject.text(folder, context_size=2))
    with pytest.raises(ValueError, match="none of the 4 tokens read counts"):
        Core(n_tokens=4, n_splice_tokens=4).run(short)
