"""Schedules as pure functions of the step, so that a resumed run needs no schedule state."""


def trapezoid(step: int, *, n_steps: int, n_warmup: int, n_decay: int) -> float:
    """The multiplier of a learning rate: linear up from 0, flat at 1, linear down to 0 after the
    last step.

    Args:
        step: the step about to be taken, counted from 0.
        n_steps: all steps of the run.
        n_warmup: steps of the rise; the first step already has 1 / n_warmup of the full rate.
        n_decay: steps of the fall at the end of the run.
    """
    up = (step + 1) / n_warmup if step < n_warmup else 1.0
    left = n_steps - step
    down = left / n_decay if left < n_decay else 1.0
    return max(0.0, min(up, down))


def peak(*, n_steps: int, n_warmup: int, n_decay: int) -> float:
    """The largest multiplier of a run: below 1 where rise and fall leave each other no room."""
    if n_warmup + n_decay <= n_steps:
        return 1.0
    steps = range(n_steps)
    return max(
        trapezoid(step, n_steps=n_steps, n_warmup=n_warmup, n_decay=n_decay) for step in steps
    )
