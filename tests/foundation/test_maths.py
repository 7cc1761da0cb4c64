"""Measures: hand-computed cases, identities, and streaming equal to whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from sae_kit.maths import (
    Predictions,
    StreamingMoments,
    all_finite,
    bootstrap_interval,
    cosine_rows,
    cross_entropy_rows,
    fvu,
    kl_rows,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- FVU and cosine -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "finite"),
    [([1.0, -2.0], True), ([], True), ([1.0, math.nan], False), ([-math.inf, 0.0], False)],
)
def test_one_value_that_is_not_finite_is_found(values, finite):
    assert all_finite(torch.tensor(values)) is finite


def test_fvu_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])  # deviations from (1, 2): 1 + 4 + 1 + 4 = 10
    x_hat = torch.tensor([[1.0, 0.0], [2.0, 2.0]])  # residuals: 1 + 4 = 5
    assert fvu(x, x_hat).item() == 0.5


def test_fvu_of_nothing_lost_the_mean_and_a_shrunken_copy() -> None:
    x = randn(50, 7) + 3
    assert fvu(x, x) == 0
    assert fvu(x, x.mean(0).expand_as(x)).item() == pytest.approx(1, abs=1e-6)
    shrunk = x.mean(0) + 0.9 * (x - x.mean(0))
    assert fvu(x, shrunk).item() == pytest.approx(0.01, rel=1e-4)


def test_fvu_of_constant_rows() -> None:
    x = torch.ones(3, 2)
    assert fvu(x, x).isnan()
    assert fvu(x, 2 * x).isinf()


def test_cosine_rows_by_hand() -> None:
    x = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    y = torch.tensor([[-2.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    expected = torch.tensor([-1.0, 1 / math.sqrt(2), 0.0, 0.0])
    torch.testing.assert_close(cosine_rows(x, y), expected)


# --- distributions --------------------------------------------------------------------------------


def kl(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return Predictions(clean).kl(Predictions(other))


def test_kl_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    # 0.5 ln 2 + 0 - 0.25 ln 2; the constants added to the logits must not matter
    found = kl(p.log()[None] + 40, q.log()[None] - 7)
    assert found.item() == pytest.approx(0.25 * math.log(2), abs=1e-5)


def test_kl_is_directed_and_zero_only_for_the_same() -> None:
    clean, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, -1.0]])
    assert kl(clean, clean.clone()).item() == 0
    assert not torch.isclose(kl(clean, other), kl(other, clean))


def test_kl_of_a_small_shift_is_half_its_variance() -> None:
    # KL(p || p exp(-d)) = Var_p(d) / 2 + O(d^3): about 5e-9 here, far below float32's rounding.
    clean = 3 * randn(4, 1000).double()
    shift = 1e-4 * randn(4, 1000, seed=1).double()
    p = clean.softmax(-1)
    variance = (p * shift**2).sum(-1) - (p * shift).sum(-1) ** 2
    torch.testing.assert_close(kl(clean, clean - shift), variance / 2, rtol=1e-3, atol=0)


def test_kl_is_pytorchs_whose_arguments_come_the_other_way_round() -> None:
    clean, other = randn(150, 11), randn(150, 11, seed=1)
    expected = F.kl_div(
        other.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(kl(clean, other), expected)
    torch.testing.assert_close(kl(clean[:1], other[:1])[0], expected[0])
    assert kl(clean[:0], other[:0]).shape == (0,)


def test_kl_of_half_precision_logits_is_that_of_the_same_numbers() -> None:
    clean, other = randn(5, 11).bfloat16(), randn(5, 11, seed=1).bfloat16()
    assert kl(clean, other).dtype == torch.float32
    torch.testing.assert_close(kl(clean, other), kl(clean.float(), other.float()))


def test_predictions_know_their_cross_entropy() -> None:
    logits, targets = 3 * randn(150, 11), torch.arange(150) % 11
    found = Predictions(logits).cross_entropy(targets)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, reduction="none"))


def test_the_gradient_of_kl_is_autograds() -> None:
    clean = Predictions(randn(130, 7).double())
    logits = randn(130, 7, seed=1).double().requires_grad_()
    weights = randn(130, seed=2).double()
    (found,) = torch.autograd.grad((weights * kl_rows(clean, logits)).sum(), logits)
    log_q, log_p = logits.log_softmax(-1), clean.logits.log_softmax(-1)
    by_autograd = (weights * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(by_autograd, logits)[0])
    few = logits.detach()[:3].requires_grad_()
    first = Predictions(clean.logits[:3])
    assert torch.autograd.gradcheck(lambda m: kl_rows(first, m), few)
    half = logits.detach().bfloat16().requires_grad_()
    assert torch.autograd.grad(kl_rows(clean, half).sum(), half)[0].dtype == torch.bfloat16


def test_cross_entropy_by_hand_and_wider_than_bfloat16() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3), -math.inf, -math.inf]]])
    targets = torch.tensor([[2, 1]])
    expected = torch.tensor([[math.log(4), math.log(4 / 3)]])
    torch.testing.assert_close(cross_entropy_rows(logits, targets), expected)
    assert cross_entropy_rows(logits.bfloat16(), targets).dtype == torch.float32
    assert cross_entropy_rows(logits.double(), targets).dtype == torch.float64


# --- streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_cov", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_streaming_moments_equal_whole(batch: int, with_cov: bool) -> None:
    x = 1000 + randn(100, 5)  # a mean far from zero: the naive formula would lose the variance
    moments = StreamingMoments(5, with_cov=with_cov)
    for rows in x.split(batch):
        moments.update(rows)
    exact = x.double()
    assert moments.count == 100
    torch.testing.assert_close(moments.mean, exact.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.var(), exact.var(0), rtol=1e-9, atol=0)
    if with_cov:
        torch.testing.assert_close(moments.cov(), exact.T.cov(), rtol=1e-9, atol=1e-12)


def test_streaming_moments_merge_resume_and_empty_batches() -> None:
    x = randn(60, 3)
    first, second, whole = (StreamingMoments(3, with_cov=True) for _ in range(3))
    first.update(x[:20])
    first.update(x[:0])
    second.update(x[20:])
    whole.update(x)
    continued = StreamingMoments(3, with_cov=True)
    continued.load_state_dict(first.state_dict())
    for merged in (first, continued):
        merged.merge(second)
        assert merged.count == 60
        torch.testing.assert_close(merged.mean, whole.mean)
        torch.testing.assert_close(merged.cov(), whole.cov())


def test_streaming_state_is_a_snapshot() -> None:
    moments = StreamingMoments(3)
    moments.update(randn(4, 3))
    state = moments.state_dict()
    before = state["mean"].clone()
    moments.update(randn(4, 3, seed=1))
    torch.testing.assert_close(state["mean"], before)


def test_moments_of_too_few_rows_and_wrong_asks() -> None:
    moments = StreamingMoments(2)
    assert moments.var().isnan().all()
    moments.update(torch.ones(1, 2))
    assert moments.var().isnan().all()
    with pytest.raises(ValueError, match="with_cov"):
        moments.cov()
    with pytest.raises(ValueError, match="cannot be merged"):
        moments.merge(StreamingMoments(2, with_cov=True))
    with pytest.raises(ValueError, match=r"saved with shape \(2, 2\)"):
        moments.load_state_dict(StreamingMoments(2, with_cov=True).state_dict())


# --- bootstrap ------------------------------------------------------------------------------------


def test_bootstrap_is_repeatable_and_contains_the_mean() -> None:
    values = randn(200)
    interval = bootstrap_interval(values, seed=0)
    assert interval == bootstrap_interval(values, seed=0)
    assert interval != bootstrap_interval(values, seed=1)
    assert interval.low < interval.estimate < interval.high
    assert interval.estimate == pytest.approx(values.mean().item(), abs=1e-6)


def test_bootstrap_width_is_that_of_the_normal_interval() -> None:
    values = randn(400)
    interval = bootstrap_interval(values, seed=0, n_resamples=4000)
    normal = 2 * 1.96 * values.std(correction=0).item() / math.sqrt(400)
    assert interval.high - interval.low == pytest.approx(normal, rel=0.06)


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(100):
        interval = bootstrap_interval(randn(50, seed=seed), seed=seed, n_resamples=200, level=0.8)
        hits += interval.low < 0 < interval.high
    assert 68 <= hits <= 92  # 80 +- 3 standard errors of a binomial


def test_bootstrap_of_constants_and_refusals() -> None:
    interval = bootstrap_interval(torch.full((5,), 2.0), seed=0)
    assert (interval.low, interval.estimate, interval.high) == (2, 2, 2)
    with pytest.raises(ValueError, match="empty"):
        bootstrap_interval(torch.empty(0), seed=0)
    with pytest.raises(ValueError, match="level: 95"):
        bootstrap_interval(torch.ones(3), seed=0, level=95.0)
