"""The stopwatch: sums by part, also of parts that fail, and shares that add up."""

import re

import pytest

from sae_kit import timing
from sae_kit.timing import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in its only entry."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_a_part_adds_up(clock):
    watch = Stopwatch()
    for seconds in (1.0, 2.5):
        with watch("forward"):
            clock[0] += seconds
        clock[0] += 10.0  # between the parts: nobody's
    with watch("backward"):
        clock[0] += 0.5
    assert watch.seconds == {"forward": 3.5, "backward": 0.5}


def test_a_part_that_fails_is_counted_and_the_error_passed_on(clock):
    watch = Stopwatch()

    def fail():
        with watch("forward"):
            clock[0] += 2.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert watch.seconds == {"forward": 2.0}


def test_the_summary_is_sorted_and_adds_up_to_the_whole(clock):
    watch = Stopwatch()
    for part, seconds in (("small", 1.0), ("large", 6.0), ("middle", 3.0)):
        with watch(part):
            clock[0] += seconds
    assert watch.summary() == "large 60% (6.0 s), middle 30% (3.0 s), small 10% (1.0 s)"
    assert sum(map(int, re.findall(r"(\d+)%", watch.summary()))) == 100


def test_nothing_measured_is_nothing_to_say():
    assert Stopwatch().summary() == ""
