"""Areas and crossings of curves that are known, and intervals against the plain bootstrap."""

import pytest
import torch

from sae_kit.evals.shared.resampling import Resamples, area, crossing, interval, median_interval
from sae_kit.maths import bootstrap_interval

LENGTHS = torch.tensor([0.5, 1.0, 3.0])


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def everything(values):
    return torch.ones(values.shape[0], values.shape[-1], dtype=torch.bool)


def test_means_of_equal_prompts_are_those_of_the_plain_bootstrap():
    values = normal(40, 1, 6)
    draws = Resamples(40, seed=3).means(values, everything(values))
    ours, plain = interval(draws[:, 0]), bootstrap_interval(values.mean((1, 2)), seed=4)
    assert ours.estimate == pytest.approx(plain.estimate)
    width = plain.high - plain.low
    assert ours.low == pytest.approx(plain.low, abs=0.1 * width)
    assert ours.high == pytest.approx(plain.high, abs=0.1 * width)


def test_prompts_are_drawn_and_not_tokens():
    """Tokens of a prompt that are all alike say no more than one."""
    one = normal(30, 1, 1)
    many = one.expand(30, 1, 50)
    a, b = (Resamples(30, seed=0).means(v, everything(v)) for v in (one, many))
    torch.testing.assert_close(a, b)


def test_only_counting_tokens_are_averaged_however_many_a_prompt_has():
    values, counts = normal(8, 3, 5), torch.rand(8, 5, generator=torch.Generator()) > 0.4
    assert counts.sum(1).unique().numel() > 1
    hidden = values.where(counts[:, None], torch.nan)
    draws = Resamples(8, seed=0).means(hidden, counts)
    assert draws.shape == (1001, 3)
    expected = torch.stack([values[:, i][counts].mean() for i in range(3)])
    torch.testing.assert_close(draws[0], expected)


def test_the_same_draw_is_of_the_same_prompts():
    """So that a ratio of a thing to itself is 1 in every draw, and its double 2."""
    values = normal(10, 1, 4).exp()
    resamples = Resamples(10, seed=0)
    one, two = (resamples.means(v, everything(v)) for v in (values, 2 * values))
    torch.testing.assert_close(two / one, torch.full_like(one, 2.0))
    again = Resamples(10, seed=0).means(values, everything(values))
    assert torch.equal(again, one)
    assert not torch.equal(Resamples(10, seed=1).means(values, everything(values)), one)


def test_too_few_prompts_that_count_are_refused():
    values, counts = normal(5, 1, 2), torch.zeros(5, 2, dtype=torch.bool)
    counts[0] = True
    with pytest.raises(ValueError, match="n_prompts: so few prompts have a token that counts"):
        Resamples(5, seed=0).means(values, counts)


def test_areas_begin_at_zero():
    curves = torch.stack([LENGTHS, torch.tensor([1.0, 1.0, 1.0]), 4 * LENGTHS]).double()
    torch.testing.assert_close(area(LENGTHS, curves), torch.tensor([4.5, 2.75, 18]).double())


def test_crossings_lie_on_the_line_between_points():
    curves = torch.stack([LENGTHS, LENGTHS.square(), torch.tensor([2.0, 0.0, 9.0])]).double()
    found = crossing(LENGTHS, curves, 2.0)
    expected = torch.tensor([2.0, 1 + 2 * 1 / 8, 0.5]).double()
    torch.testing.assert_close(found, expected)
    before_the_first = crossing(LENGTHS, curves, 0.25)
    torch.testing.assert_close(before_the_first, torch.tensor([0.25, 0.5, 0.0625]).double())


def test_what_is_never_reached_is_at_infinity():
    curves = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 9.0]]).double()
    assert crossing(LENGTHS, curves, 1.0).isinf().tolist() == [True, False]


def test_an_interval_is_of_the_draws_after_the_first():
    draws = torch.cat([torch.tensor([7.0]), torch.linspace(0, 100, 1001)]).double()
    found = interval(draws)
    assert (found.estimate, found.low, found.high) == pytest.approx((7.0, 2.5, 97.5))


def test_the_interval_of_a_median_holds_it_and_shrinks_with_the_root_of_the_number():
    widths = []
    for n in (50, 800):
        values = torch.randn(n, generator=torch.Generator().manual_seed(1)) + 3.0
        found = median_interval(values, seed=0)
        assert found.estimate == pytest.approx(values.double().quantile(0.5).item())
        assert found.low < found.estimate < found.high
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.5)
    assert median_interval(torch.ones(5), seed=0).high == 1.0
    with pytest.raises(ValueError, match="values: empty"):
        median_interval(torch.tensor([]), seed=0)
