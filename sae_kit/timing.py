"""Where the time goes: seconds by part of the work.

Limits: host time. On a GPU, where the host runs ahead, a part's time is what the host spent on it.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import final


@final
class Stopwatch:
    """Adds up the seconds spent in named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the body of a `with` under the name `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def summary(self) -> str:
        """One line: each part's share of the time measured, largest first."""
        total = sum(self.seconds.values()) or 1.0
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        return ", ".join(
            f"{part} {seconds / total:.0%} ({seconds:.1f} s)" for part, seconds in parts
        )
