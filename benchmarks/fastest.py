"""What the benchmarks of this folder time by."""

import time
from collections.abc import Callable


def fastest(*calls: Callable[[], object], n_runs: int) -> list[float]:
    """Seconds of the fastest of several runs of each call; they take turns, so as to share what
    slows the machine.
    """
    seconds = [float("inf")] * len(calls)
    for _ in range(n_runs):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds
