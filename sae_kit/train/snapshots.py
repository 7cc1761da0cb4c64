"""A training task that also hands out its state at chosen steps."""

from collections.abc import Callable, Collection, Sequence
from typing import final

from sae_kit.state import State
from sae_kit.train.loop import Metrics, Task


@final
class WithSnapshots:
    """A `sae_kit.train.loop.Task` around another.

    Args:
        task: what is trained.
        steps: numbers of finished steps at which to call `save`; 0 is before the first.
        save: gets the number of finished steps.
    """

    def __init__(self, task: Task, steps: Collection[int], save: Callable[[int], None]) -> None:
        self.task, self.n_tokens_per_step = task, task.n_tokens_per_step
        self._steps, self._save = frozenset(steps), save

    def step(self, step: int, *, measure: bool) -> Metrics:
        """See Task."""
        if step == 0 and 0 in self._steps:
            self._save(0)
        metrics = self.task.step(step, measure=measure)
        if step + 1 in self._steps:
            self._save(step + 1)
        return metrics

    def state_dict(self) -> State:
        """See Task."""
        return self.task.state_dict()

    def load_parts(self, parts: Sequence[State]) -> None:
        """See Task."""
        self.task.load_parts(parts)
