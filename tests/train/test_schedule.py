"""The trapezoid: hand-computed corners, and what holds for every shape of it."""

import pytest

from sae_kit.train.schedule import peak, trapezoid


def rates(n_steps: int, n_warmup: int, n_decay: int) -> list[float]:
    return [
        trapezoid(step, n_steps=n_steps, n_warmup=n_warmup, n_decay=n_decay)
        for step in range(n_steps)
    ]


def test_a_rise_a_plateau_and_a_fall():
    assert rates(10, 4, 2) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]


def test_without_rise_or_fall_it_is_flat():
    assert rates(5, 0, 0) == [1.0] * 5


def test_all_fall():
    assert rates(4, 0, 4) == [1.0, 0.75, 0.5, 0.25]


def test_a_rise_that_meets_the_fall_stays_below_both():
    assert rates(4, 4, 4) == [0.25, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(("n_warmup", "n_decay"), [(0, 0), (3, 5), (20, 20), (100, 1), (1, 20)])
def test_every_step_learns(n_warmup, n_decay):
    """Never 0, not at the first step nor at the last, which would waste it; never above 1."""
    assert all(0 < rate <= 1 for rate in rates(20, n_warmup, n_decay))


def test_after_the_last_step_it_is_zero():
    assert trapezoid(20, n_steps=20, n_warmup=0, n_decay=5) == 0
    assert trapezoid(25, n_steps=20, n_warmup=0, n_decay=5) == 0


@pytest.mark.parametrize(
    ("n_steps", "n_warmup", "n_decay"), [(10, 4, 2), (5, 0, 0), (4, 4, 4), (10, 100, 3), (7, 0, 20)]
)
def test_the_peak_is_the_largest_rate(n_steps, n_warmup, n_decay):
    largest = max(rates(n_steps, n_warmup, n_decay))
    assert peak(n_steps=n_steps, n_warmup=n_warmup, n_decay=n_decay) == largest
