"""Responses against their definitions in float64, and what they are when nothing is perturbed."""

import math

import pytest
import torch

from sae_kit.evals.perturb import responses
from sae_kit.evals.perturb.responses import (
    KL,
    L2,
    CEIncrease,
    JensenShannon,
    LogitDifference,
    Outcome,
)

SITE = "blocks.0.hook_resid_post"


def outcome(n_points: int, *, seed: int, scale: float = 1.0) -> Outcome:
    """Two hosts, three positions, eleven tokens."""
    generator = torch.Generator().manual_seed(seed)
    act = torch.randn(2, n_points, 3, 5, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, n_points, 3, 11, generator=generator, dtype=torch.float64)
    return Outcome({SITE: act}, scale * logits)


CLEAN, PERTURBED = outcome(1, seed=0), outcome(7, seed=1)
TARGETS = torch.tensor([[1, 2, 3], [4, 5, 10]])
ZERO_AT_CLEAN = [L2(SITE), KL(), JensenShannon(), CEIncrease(TARGETS)]


@pytest.fixture(autouse=True, params=[1, 1 << 22])
def _pieces(request, monkeypatch):
    """All points at once, and one after another."""
    monkeypatch.setattr(responses, "LOGIT_VALUES", request.param)


def p_and_q():
    return CLEAN.logits.softmax(-1), PERTURBED.logits.softmax(-1)


def test_l2_is_the_distance():
    expected = (PERTURBED.acts[SITE] - CLEAN.acts[SITE]).square().sum(-1).sqrt()
    torch.testing.assert_close(L2(SITE)(CLEAN, PERTURBED), expected)


def test_kl_is_of_the_clean_distribution_from_the_perturbed_one():
    p, q = p_and_q()
    torch.testing.assert_close(KL()(CLEAN, PERTURBED), (p * (p / q).log()).sum(-1))
    other_way = (q * (q / p).log()).sum(-1)
    assert (KL()(CLEAN, PERTURBED) - other_way).abs().max() > 0.1


def test_jensen_shannon_is_the_root_of_the_base_2_divergence():
    p, q = p_and_q()
    m = (p + q) / 2
    bits = ((p * (p / m).log2()).sum(-1) + (q * (q / m).log2()).sum(-1)) / 2
    torch.testing.assert_close(JensenShannon()(CLEAN, PERTURBED), bits.sqrt())


def test_jensen_shannon_of_distributions_without_a_common_token_is_one():
    one, other = torch.full((2, 1, 1, 1, 4), -1e4, dtype=torch.float64)
    one[..., 0], other[..., 1] = 0, 0
    distance = JensenShannon()(Outcome({}, one), Outcome({}, other))
    assert distance.item() == pytest.approx(1.0, abs=1e-9)


def test_ce_increase_is_of_the_next_token():
    p, q = p_and_q()
    where = TARGETS[:, None, :, None]
    expected = p.gather(-1, where).log() - q.gather(-1, where.expand(2, 7, 3, 1)).log()
    torch.testing.assert_close(CEIncrease(TARGETS)(CLEAN, PERTURBED), expected[..., 0])


def test_a_logit_difference_is_the_perturbed_runs_own():
    first, second = TARGETS, TARGETS.flip(0)
    difference = LogitDifference(first, second)(CLEAN, PERTURBED)
    logits = PERTURBED.logits
    assert difference[1, 4, 2].item() == (logits[1, 4, 2, 10] - logits[1, 4, 2, 3]).item()
    torch.testing.assert_close(LogitDifference(second, first)(CLEAN, PERTURBED), -difference)


@pytest.mark.parametrize("response", ZERO_AT_CLEAN, ids=lambda r: r.name)
def test_nothing_perturbed_is_exactly_zero(response):
    assert (response(CLEAN, CLEAN) == 0).all()


@pytest.mark.parametrize("response", ZERO_AT_CLEAN[:3], ids=lambda r: r.name)
def test_a_divergence_is_never_negative(response):
    near = Outcome({SITE: CLEAN.acts[SITE].float()}, CLEAN.logits.float() + 1e-6)
    single = Outcome({SITE: CLEAN.acts[SITE].float()}, CLEAN.logits.float())
    assert response(single, near).min() >= -1e-6


@pytest.mark.parametrize("response", ZERO_AT_CLEAN[1:3], ids=lambda r: r.name)
def test_a_constant_added_to_all_logits_changes_nothing(response):
    shifted = Outcome({}, CLEAN.logits + 7.0)
    assert response(CLEAN, shifted).abs().max() < 1e-7


def test_half_precision_is_compared_in_single_precision():
    half = Outcome({SITE: CLEAN.acts[SITE].bfloat16()}, CLEAN.logits.bfloat16())
    other = Outcome({SITE: PERTURBED.acts[SITE].bfloat16()}, PERTURBED.logits.bfloat16())
    kl = KL()(half, other)
    assert kl.dtype == torch.float32
    p, q = half.logits.double().softmax(-1), other.logits.double().softmax(-1)
    torch.testing.assert_close(kl.double(), (p * (p / q).log()).sum(-1), rtol=1e-5, atol=1e-6)
    assert not math.isnan(L2(SITE)(half, other).sum().item())
